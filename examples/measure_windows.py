"""Measure how much of the posterior a window sees, where the posterior is known.

    python examples/measure_windows.py

The prior is a Gaussian on a large grid. The model is exact for the same prior, and sees a window around the
hole, scaled to its own size. Cutting, scaling, the model's posterior, and putting back are all linear, so
the distribution of the filled hole is known in closed form. The script prints its squared Wasserstein
distance to the posterior given all known pixels, over the trace of that posterior's covariance, for several
values of `context`. Below 1 it is the share of the uncertainty; what a model of less detail cannot have is
in it as well. The last column is the same without matching the window at the rim of the hole.
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy.linalg import sqrtm

from repaint_jax.pictures.blending import smooth_continuation
from repaint_jax.pictures.windows import Canvas, plan_windows, resized_array

CONTEXTS = (0.0625, 0.125, 0.25, 0.5, 1.0)


def exponential(length: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda distance: np.exp(-distance / length)


def natural(distance: np.ndarray) -> np.ndarray:
    """Return a covariance whose spectrum falls with the squared frequency, as that of photographs."""
    side = int(distance.max()) + 1
    frequency = np.fft.fftfreq(4 * side)
    spectrum = 1 / (np.add.outer(frequency**2, frequency**2) + (1 / (2 * side)) ** 2)
    row = np.fft.ifft2(spectrum).real[0]
    return np.interp(distance, np.arange(len(row) // 2), row[: len(row) // 2] / row[0])


PRIORS = {
    "exponential, 4 px": exponential(4),
    "exponential, 16 px": exponential(16),
    "natural": natural,
}


def linear(function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the matrix of a linear function of an image [h, w, any]."""
    basis = np.eye(shape[0] * shape[1], dtype=np.float32).reshape(*shape, -1)
    images = function(basis)
    return images.reshape(-1, images.shape[-1]).astype(np.float64)


def conditional(covariance: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the map from the known values to the mean of the others, and the covariance of these."""
    hole = ~known
    inverse = np.linalg.inv(covariance[np.ix_(known, known)] + 1e-9 * np.eye(known.sum()))
    weights = covariance[np.ix_(hole, known)] @ inverse
    return weights, covariance[np.ix_(hole, hole)] - weights @ covariance[np.ix_(known, hole)]


def squared_distance(
    weights: np.ndarray, noise: np.ndarray, exact: tuple[np.ndarray, np.ndarray], known: np.ndarray
) -> float:
    """Return W2^2 of two conditional Gaussians, averaged over the known values."""
    difference = weights - exact[0]
    means = np.trace(difference @ known @ difference.T)
    root = np.real(sqrtm(exact[1]))
    bures = np.trace(noise) + np.trace(exact[1]) - 2 * np.trace(np.real(sqrtm(root @ noise @ root)))
    return float(means + bures)


def error(covariance: np.ndarray, side: int, hole: np.ndarray, size: int, context: float) -> list[float]:
    ((window,),) = plan_windows(hole, (size, size), context)
    known = ~hole.ravel()
    exact = conditional(covariance, known)
    seen = np.zeros((side, side), bool)
    seen[np.ix_(window.rows, window.columns)] = True
    in_window = covariance[np.ix_(seen.ravel(), seen.ravel())]
    shape = window.hole.shape

    canvas = Canvas(np.zeros((side, side, 1), np.float32), (~hole).astype(np.float32)[..., None])
    known_to_model = canvas.cut(window, (size, size))[1][..., 0].ravel() == 1
    down = linear(lambda image: resized_array(image, (size, size)), shape)
    up = linear(lambda image: resized_array(image, shape), (size, size))
    of_model, noise = conditional(down @ in_window @ down.T, known_to_model)

    # The model's image is a map of the window's pixels, of which it uses the known ones, and noise.
    image = np.zeros((size * size, shape[0] * shape[1]))
    image[known_to_model] = down[known_to_model]
    image[~known_to_model] = of_model @ down[known_to_model]
    pixels, covered = up @ image, up[:, ~known_to_model]
    results = []
    for matched in (True, False):
        inside = window.hole.ravel()
        total, spread = pixels, covered
        if matched:
            push = linear(lambda image: smooth_continuation(image, ~window.hole), shape)
            total = total + push[:, ~inside] @ (np.eye(len(inside)) - pixels)[~inside]
            spread = spread - push[:, ~inside] @ covered[~inside]
        rows = np.zeros((int(hole.sum()), side * side))
        rows[:, seen.ravel()] = total[inside]
        weights, spread = rows[:, known], spread[inside]
        distance = squared_distance(
            weights, spread @ noise @ spread.T, exact, covariance[np.ix_(known, known)]
        )
        results.append(distance / np.trace(exact[1]))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=40, help="of the picture, in pixels")
    parser.add_argument("--model", type=int, default=16, help="side of what the model sees")
    parser.add_argument("--holes", type=int, nargs="+", default=[6, 12, 18], help="sides of the hole")
    options = parser.parse_args()
    side = options.side
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    distance = np.linalg.norm(grid[:, None] - grid[None], axis=-1)
    print("| prior | hole | context | window | error | without matching |")
    print("|---|---|---|---|---|---|")
    for name, prior in PRIORS.items():
        covariance = prior(distance)
        for length in options.holes:
            first = (side - length) // 2
            hole = np.zeros((side, side), bool)
            hole[first : first + length, first : first + length] = True
            for context in CONTEXTS:
                ((window,),) = plan_windows(hole, (options.model, options.model), context)
                errors = error(covariance, side, hole, options.model, context)
                cells = (name, length, context, window.hole.shape[0], *(f"{one:.3f}" for one in errors))
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
