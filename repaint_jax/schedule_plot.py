"""Draw a chain as the paper does in its figures 9 and 10: the noise in the sample over the model calls."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repaint_jax.files import whole_file
from repaint_jax.scheduler import RePaintSchedulerState


def chain_path(
    state: RePaintSchedulerState,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # both [n]
    """Return the levels that a chain passes, and how many model calls lead to each.

    A level is sqrt(1 - abar), the standard deviation of the noise in the sample: 1 is nothing but noise, 0
    the clean image, where the path ends. A jump back up takes no model call.
    """
    timesteps = np.asarray(state.timesteps)
    noise = np.append(np.asarray(state.sqrt_one_minus_alphas_cumprod, np.float64), 0.0)
    passed = np.append(timesteps[timesteps >= 0], -1)
    is_call = np.diff(passed) <= 0
    calls = np.concatenate([[0], np.cumsum(is_call)])
    return calls, noise[passed]


def draw_schedule(state: RePaintSchedulerState, path: Path) -> None:
    """Write a picture of a chain (needs matplotlib)."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("drawing a schedule needs matplotlib: install repaint_jax[plots]") from None
    calls, noise = chain_path(state)
    figure = Figure(figsize=(8, 3.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(calls, noise, color="tab:blue", linewidth=1 if len(calls) > 500 else 1.5)
    axes.set(
        xlabel="model calls",
        ylabel=r"noise in the sample, $\sqrt{1 - \bar\alpha}$",
        xlim=(0, calls[-1]),
        ylim=(0, 1.02),
    )
    axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:])
