"""The table and the picture of the peers."""

from pathlib import Path

from peers import OWN, SAMPLERS, errors
from problems import FAMILIES

TITLES = {
    "gaussians": "Gaussians",
    "mixtures": "mixtures",
    "several modes": "several modes",
    "clip limit": "clip limit",
    "high dimensions": "64-256 dim.",
    "images": "images",
    "sizes": "sizes",
}


def markdown(rows: list[dict[str, str]]) -> str:
    """Return the errors of all samplers as a Markdown table, with a column for each family."""
    found = {
        family: {(sampler, calls): error for sampler, calls, error, _ in errors(rows, family)}
        for family in FAMILIES
    }
    chains = sorted({chain for cells in found.values() for chain in cells}, key=_order)
    lines = [
        "| sampler | calls | " + " | ".join(TITLES[family] for family in FAMILIES) + " |",
        "|---|---" + "|---" * len(FAMILIES) + "|",
    ]
    for sampler, calls in chains:
        cells = [_cell(found[family].get((sampler, calls))) for family in FAMILIES]
        lines.append(f"| {sampler} | {calls:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _order(chain: tuple[str, int]) -> tuple[int, int]:
    return SAMPLERS.index(chain[0]), chain[1]


def _cell(error: float | None) -> str:
    if error is None:
        return ""
    return f"{error:.2g}" if abs(error) >= 0.001 else f"{error:.4f}"


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Draw the errors over the number of calls, with a panel for each family."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(14, 7), layout="constrained")
    handles = {}
    for axis, family in zip(axes.flat, FAMILIES, strict=False):
        by_sampler: dict[str, list[tuple[int, float]]] = {}
        for sampler, calls, error, _ in errors(rows, family):
            by_sampler.setdefault(sampler, []).append((calls, max(error, 1e-3)))
        for sampler in SAMPLERS:
            points = sorted(by_sampler.get(sampler, []))
            if points:
                style = {"color": "black", "linewidth": 2.5} if sampler == OWN else {}
                style = style or {"color": f"C{SAMPLERS.index(sampler) % 10}", "linewidth": 1}
                style["marker"] = "os^vDP*X"[SAMPLERS.index(sampler) % 8]
                (handles[sampler],) = axis.loglog(*zip(*points, strict=True), **style, markersize=4)
        axis.set(title=TITLES[family], xlabel="calls")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("error / that of RePaint's setting")
    axes[1, 0].set_ylabel("error / that of RePaint's setting")
    axes[1, 3].axis("off")
    axes[1, 3].legend(handles.values(), handles, loc="center", ncols=1, fontsize="small")
    figure.savefig(path, dpi=110)
