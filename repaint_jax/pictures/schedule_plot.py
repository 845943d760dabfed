"""Draw the noise in the sample over the model calls, as in the paper's figures 9 and 10."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repaint_jax.files import StrPath, optional_package, whole_file
from repaint_jax.sampling.scheduler import RePaintSchedulerState, schedule_of

DRAWINGS = (".png", ".svg", ".pdf", ".jpg", ".webp")


def chain_path(
    state: RePaintSchedulerState,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:  # both [2 * num_model_calls]
    """Return the number of model calls and the noise in the sample, before and after each call.

    The noise is given as its standard deviation sqrt(1 - abar): 1 is pure noise, and 0 is the clean image,
    at which the path ends. A jump back takes no model call.
    """
    before, after = schedule_of(state).noise_of_calls()
    calls = np.arange(len(before))
    return np.stack([calls, calls + 1], axis=1).ravel(), np.stack([before, after], axis=1).ravel()


def draw_schedule(state: RePaintSchedulerState, path: StrPath) -> None:
    """Draw a chain into a file.

    Args:
        state: a state with a schedule.
        path: the picture to write, with one of the suffixes in `DRAWINGS`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    with optional_package("matplotlib", "drawing a schedule needs matplotlib: install repaint_jax[plots]"):
        from matplotlib.figure import Figure
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
        figure.savefig(unfinished, format=Path(path).suffix[1:].lower())
