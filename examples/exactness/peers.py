"""The call budget beside its peers: errors over the number of calls, on problems of all families.

Each peer gets its best settings of a small grid, chosen for each family and number of calls on problems for
tuning. Results are appended to a CSV file, and what is there is not measured again.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from measurement import METRICS, Moments, Samples, excess, measure, target_of
from problems import FAMILIES, TUNING_SEED, Family
from samplers import daps, ddnm, ddrm, ding, dps, lanpaint, mmps, pigdm, smcdiff, tds
from samplers.chains import call_budget, resampling
from samplers.levels import LEVELS, even
from samplers.sampler import Sampler
from tqdm import tqdm

import repaint_jax as rp

PAPER = "RePaint"
CALLS = (24, 64, 256)  # of a peer, and of the call budget
OWN_CALLS = (8, 16, 24, 32, 64, 128, 256)

PEERS: dict[str, tuple[Callable[..., Sampler], list[dict[str, Any]]]] = {
    "LanPaint": (lanpaint.lanpaint, lanpaint.GRID),
    "DING": (ding.ding, ding.GRID),
    "DING, delayed": (ding.ding_delayed, ding.GRID),
    "DDNM": (ddnm.ddnm, ddnm.GRID),
    "DDRM": (ddrm.ddrm, ddrm.GRID),
    "DPS": (dps.dps, dps.GRID),
    "PiGDM": (pigdm.pigdm, pigdm.GRID),
    "MMPS": (mmps.mmps, mmps.GRID),
    "DAPS": (daps.daps, daps.GRID),
    "SMCDiff": (smcdiff.smcdiff, smcdiff.GRID),
    "TDS": (tds.tds, tds.GRID),
}
FIXED: dict[str, Callable[[bool], Sampler]] = {
    PAPER: lambda clip: resampling(PAPER, _config(clip, eta=1.0), 250, 10, 10),
    "official order": lambda clip: resampling("official order", _official(clip), 250, 10, 10),
    "diffusers": lambda clip: resampling("diffusers", _diffusers(clip), 250, 10, 10),
    "no resampling": lambda clip: resampling("no resampling", _config(clip, eta=1.0), 250, 1, 1),
}
TOO_LONG = ("official order", "diffusers")  # for large pictures, on which RePaint is measured once
OWN = "call budget"
SAMPLERS = (*FIXED, OWN, *PEERS)
COLUMNS = (
    *("family", "split", "seed", "sampler", "settings", "calls", "cost"),
    *(column for metric in METRICS for column in (metric, f"{metric}_floor")),
    "seconds",
)


def _config(clip: bool, **options: Any) -> rp.RePaintSchedulerConfig:
    return rp.RePaintSchedulerConfig(clip_sample=clip, **options)


def _official(clip: bool) -> rp.RePaintSchedulerConfig:
    return rp.RePaintSchedulerConfig.paper(clip_sample=clip, variance_type="fixed_small")


def _diffusers(clip: bool) -> rp.RePaintSchedulerConfig:
    return rp.RePaintSchedulerConfig.diffusers(clip_sample=clip)


def run(
    families: Iterable[str],
    samplers: Iterable[str],
    calls: Iterable[int],
    path: Path,
    quick: bool = False,
) -> list[dict[str, str]]:
    """Measure what the file at `path` lacks, and return all its rows."""
    results = Results(path)
    jobs = [
        (family, sampler, budget)
        for family in families
        for sampler in samplers
        for budget in calls_of(sampler, calls)
        if family != "sizes" or sampler not in TOO_LONG
    ]
    for name, sampler, budget in (progress := tqdm(jobs)):
        progress.set_description(f"{name}, {sampler}, {budget}")
        family = as_quick(FAMILIES[name]) if quick else FAMILIES[name]
        settings = best_settings(results, name, family, sampler, budget, quick)
        measure_all(results, name, family, sampler, settings, budget, "report")
    return results.rows


def calls_of(sampler: str, calls: Iterable[int]) -> Iterable[int]:
    """Return the budgets of a sampler; 0 for one whose number of calls is its own."""
    if sampler in FIXED:
        return (0,)
    return sorted({*calls, *OWN_CALLS}) if sampler == OWN and tuple(calls) == CALLS else calls


def as_quick(family: Family) -> Family:
    """Return a family with a problem of each kind and few samples."""
    return family._replace(report=1, tune=1, samples=min(family.samples, 8))


def best_settings(
    results: "Results", name: str, family: Family, sampler: str, budget: int, quick: bool = False
) -> dict[str, Any]:
    """Return the settings of a peer's grid with the least error on the problems for tuning.

    A quick run compares the first and the last settings.
    """
    if sampler not in PEERS:
        return {}
    grid = [settings for settings in PEERS[sampler][1] if _cost(sampler, settings) * 2 <= budget]
    if quick:
        grid = [grid[0], grid[-1]]
    errors = []
    for settings in grid:
        rows = measure_all(results, name, family, sampler, settings, budget, "tune")
        errors.append(np.mean([np.log(excess(row, family.metric) + 1e-12) for row in rows]))
    return grid[int(np.argmin(errors))]


def measure_all(
    results: "Results",
    name: str,
    family: Family,
    sampler: str,
    settings: dict[str, Any],
    budget: int,
    split: str,
) -> list[dict[str, Any]]:
    """Return the rows of all problems for reporting or tuning, measured or read."""
    first, count = {"report": (0, family.report), "tune": (TUNING_SEED, family.tune)}[split]
    chain = make(sampler, settings, budget, clip=name == "clip limit")
    rows = []
    for seed in range(first, first + count):
        key = {
            "family": name,
            "split": split,
            "seed": seed,
            "sampler": sampler,
            "settings": json.dumps(settings),
            "calls": budget or chain.calls,
        }
        row = results.find(key)
        if row is None:
            names = METRICS if split == "report" else (family.metric,)
            values = measure(target_of_seed(name, family, seed), chain, names)
            row = results.add(key | {"cost": chain.calls} | values)
        rows.append(row)
    return rows


def make(sampler: str, settings: dict[str, Any], budget: int, clip: bool) -> Sampler:
    """Return a sampler with at most `budget` calls."""
    if sampler in FIXED:
        return FIXED[sampler](clip)
    if sampler == OWN:
        return call_budget(_config(clip), budget)
    options = dict(settings)
    sigmas = LEVELS[options.pop("levels")](budget // _cost(sampler, settings))
    return PEERS[sampler][0](sigmas, **options)


def _cost(sampler: str, settings: dict[str, Any]) -> int:
    options = {name: value for name, value in settings.items() if name != "levels"}
    return PEERS[sampler][0](even(2), **options).calls // 2


@cache
def target_of_seed(name: str, family: Family, seed: int) -> Moments | Samples:
    """Return what the results on a problem are compared with. Both are made once."""
    return target_of(FAMILIES[name].make(seed), family)


class Results:
    """Rows of a CSV file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))
        self.index = {self._key(row): row for row in self.rows}

    def _key(self, row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in COLUMNS[:6])

    def find(self, key: dict[str, Any]) -> dict[str, str] | None:
        """Return the row of a measurement, or None if there is none."""
        return self.index.get(self._key(key))

    def add(self, values: dict[str, Any]) -> dict[str, str]:
        """Append a row to the file, and return it."""
        row = {name: _as_text(values.get(name, "")) for name in COLUMNS}
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append(row)
        self.index[self._key(row)] = row
        return row


def _as_text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def errors(rows: list[dict[str, str]], family: str) -> Iterator[tuple[str, int, float]]:
    """Yield sampler, calls and mean error, of chains that all problems have been measured with.

    The error is over the paper's on the same problem, in the geometric mean: squared W2 for Gaussian
    priors, sliced W2 (not squared) for mixtures. For images it is the energy distance less its floor.
    """
    metric = FAMILIES[family].metric
    chosen: dict[tuple[str, int], dict[str, dict[str, str]]] = {}
    for row in rows:
        if row["family"] == family and row["split"] == "report":
            chosen.setdefault((row["sampler"], int(row["calls"])), {})[row["seed"]] = row
    paper = next((by_seed for (name, _), by_seed in chosen.items() if name == PAPER), {})
    for (sampler, calls), by_seed in chosen.items():
        if not paper or by_seed.keys() != paper.keys():
            continue
        if metric == "energy":
            values = [float(row["energy"]) - float(row["energy_floor"]) for row in by_seed.values()]
            yield sampler, calls, float(np.mean(values))
        else:
            ratios = [excess(by_seed[seed], metric) / excess(paper[seed], metric) for seed in paper]
            power = 0.5 if metric == "sliced" else 1.0
            yield sampler, calls, float(np.exp(power * np.mean(np.log(ratios))))
