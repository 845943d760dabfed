"""The posterior of the missing pixels: a mixture, of which each component can be sampled."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Posterior(NamedTuple):
    """A mixture over the missing pixels."""

    weights: np.ndarray  # [K]
    draw: Callable[[np.random.Generator, int, int], np.ndarray]  # (rng, component, count) -> [count, m]

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:  # [count, m]
        """Return samples in random order."""
        counts = rng.multinomial(count, self.weights)
        parts = [self.draw(rng, int(k), int(counts[k])) for k in np.flatnonzero(counts)]
        return rng.permutation(np.concatenate(parts))


def normalised(log_weights: np.ndarray) -> np.ndarray:
    """Return the weights from their logarithms, less any constant."""
    weights = np.exp(log_weights - np.max(log_weights))
    return weights / weights.sum()
