"""Argument checks that several modules share.

A message names the parameter, its value and what is expected.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LONGEST_TEXT = 200  # of a value in a message


def check_int(name: str, value: Any, minimum: int | None) -> int:
    """Return a parameter as a Python int, or raise if it is not an integer, or is below `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {described(value)}, expected an integer")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} is {value}, expected an integer of at least {minimum}")
    return int(value)


def check_number(name: str, value: Any, expected: str = "a number") -> float:
    """Return a parameter as a Python float, or raise if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {described(value)}, expected {expected}")
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf if value > 0 else -math.inf


def check_positive(name: str, value: Any) -> float:
    """Return a parameter as a Python float, or raise if it is not a positive, finite number."""
    number = check_number(name, value, "a positive number")
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {value}, expected a positive number")
    return number


def check_mapping(name: str, value: Any) -> None:
    """Raise if a value is no dict."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {described(value)}, expected a dict")


def described(value: Any) -> str:
    """Return a value as a message shows it: arrays and what has a long text do not fit into a sentence."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    text = repr(value)
    return f"a {type(value).__name__}" if len(text) > _LONGEST_TEXT or "\n" in text else text


def kind_of(value: object) -> str:
    """Return what a value is, for messages: modules have long texts of many lines."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return repr(value) if isinstance(value, str | bytes | int | float) else f"a {type(value).__name__}"


def checked_calls(preview_calls: Sequence[int] | None, bound: str, num_calls: int) -> tuple[int, ...]:
    """Return preview_calls as a tuple, or raise if they are not different calls below num_calls."""
    if not isinstance(preview_calls, Sequence | np.ndarray | None):
        raise TypeError(f"preview_calls is {preview_calls!r}, expected a sequence of integers")
    calls = tuple(
        check_int("preview_calls", call, 0) for call in (() if preview_calls is None else preview_calls)
    )
    if len(set(calls)) != len(calls):
        raise ValueError(f"preview_calls is {calls}, expected each call once")
    for call in calls:
        if call >= num_calls:
            raise ValueError(f"preview_calls has {call}, expected calls below {bound}={num_calls}")
    return calls


def check_noise(name: str, value: Any) -> float:
    """Return a standard deviation as a float, or raise if it is not a finite number of at least 0."""
    number = check_number(name, value, "a number of at least 0")
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} is {value}, expected a finite number of at least 0")
    return number


def check_strength(strength: Any) -> float:
    """Return a strength as a float, or raise if it is not a number above 0 and at most 1."""
    number = check_number("strength", strength, "a number above 0 and at most 1")
    if not 0 < number <= 1:
        raise ValueError(f"strength is {strength}, expected a number above 0 and at most 1")
    return number


def check_flag(name: str, value: Any) -> None:
    """Raise if a value is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}, expected True or False")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise if a value is not one of the choices, which are strings or None."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        raise ValueError(f"{name} is {described(value)}, expected one of {', '.join(map(str, choices))}")


def check_floating(name: str, array: jax.Array) -> None:
    """Raise if a value is not a floating array."""
    if not isinstance(array, jax.Array | np.ndarray | np.generic):
        raise TypeError(f"{name} is a {type(array).__name__}, expected a floating array")
    if isinstance(array, np.ndarray | np.generic) and not array.dtype.isnative:
        raise TypeError(
            f"{name} has dtype {array.dtype.str}, expected the byte order of this machine (FITS files have "
            f"another one): {name}.astype('float32')"
        )
    if array.dtype == np.longdouble and array.dtype.itemsize > 8:
        raise TypeError(f"{name} has dtype {array.dtype}, expected float64 or a narrower one")
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {dtype}, expected a floating dtype")


def check_callable(name: str, value: Any) -> None:
    """Raise if a value is not a hashable callable."""
    if not callable(value):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a function")
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{name} is an unhashable {type(value).__name__}, expected a function") from None


def check_image_and_mask(original_image: jax.Array, mask: jax.Array) -> None:
    """Raise if the image or the mask is not floating, or if the mask's shape does not fit the image."""
    check_floating("original_image", original_image)
    check_floating("mask", mask)
    shape, mask_shape = jnp.shape(original_image), jnp.shape(mask)
    fits = len(mask_shape) == len(shape) and all(
        m in (1, n) for m, n in zip(mask_shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"mask has shape {mask_shape}, expected the rank of original_image's {shape} "
            "with each axis equal or 1"
        )


def check_like_image(name: str, array: jax.Array, original_image: jax.Array) -> None:
    """Raise if an array is not floating or does not have the image's shape."""
    check_floating(name, array)
    if jnp.shape(array) != jnp.shape(original_image):
        raise ValueError(
            f"{name} has shape {jnp.shape(array)}, expected original_image's {original_image.shape}"
        )
