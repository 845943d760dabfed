"""Weights that no file stores: recorders and replay draw the same numbers for a tensor's name and shape."""

import math
from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np


def drawn(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Draw float32 weights under which no layer is an identity, and activations keep their size.

    The numbers come from a bit generator's raw stream, which NumPy promises not to change.
    """
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    bits = np.random.PCG64(crc32(name.encode())).random_raw(math.prod(shape))
    uniform = ((bits >> np.uint64(40)) * 2.0**-23 - 1).reshape(shape)  # in [-1, 1)
    if len(shape) > 1:
        tensor = uniform * math.sqrt(3 * shape[0] / uniform.size)  # variance 1 / fan-in
    else:
        tensor = 0.2 * uniform + name.endswith("weight")
    return tensor.astype(np.float32)
