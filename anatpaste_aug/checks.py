"""Arguments: numbers, ranges, seeds and flags, checked with a message that says what is wrong."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

Rng: TypeAlias = "int | np.random.Generator | None"
Range: TypeAlias = "float | tuple[float, float]"

MIN_SIDE = 16  # pixels: CLAHE cuts each side into eight tiles
LARGEST = 2**20  # more pixels than any image has on a side, so that sums of them stay exact
NUMBERS = (int, float, np.integer, np.floating)


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Check that a value is a finite real number within [low, high]; return a Python number."""
    if isinstance(value, bool) or not isinstance(value, NUMBERS):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (low <= value <= high and (isinstance(value, int) or math.isfinite(value))):
        limit = f"be at least {low}" if high in (math.inf, LARGEST) else f"lie in {low}..{high}"
        if value > LARGEST == high:
            limit = f"be at most {high}"
        got: Any = value
        if isinstance(value, int) and value.bit_length() > 64:
            got = f"{value.bit_length()} bits"  # such an integer may be too long to print
        raise ValueError(f"{name} must {'be finite' if low == -math.inf else limit}, got {got}")
    return value if isinstance(value, (int, float)) else value.item()


def check_integer(name: str, value: Any, low: float, high: float = math.inf) -> int:
    """Check that a value is an integer within [low, high]; return a Python integer."""
    if type(value) is int and low <= value <= high:  # mostly, and params have many of them
        return value
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    return int(check_number(name, value, low, high))


def check_integers(params: Any, names: Sequence[str], low: int, high: int = LARGEST) -> None:
    """Check fields of frozen params, and keep plain Python integers."""
    own = vars(params)
    for name in names:
        own[name] = check_integer(name, own[name], low, high)


def check_range(
    name: str, value: Any, low: float, high: float, *, check: Callable[..., float], above: bool
) -> tuple[float, float]:
    """Check a number or a (low, high) pair against the legal range; return a pair.

    `check` is `check_number` or `check_integer`, for each end. With `above`, the lower limit itself
    is not legal.
    """
    ends = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(ends) != 2:
        raise ValueError(f"{name} must be a number or a pair (low, high), got {value!r}")
    first, last = (check(name, end, low, high) for end in ends)
    if first > last:
        raise ValueError(f"{name} must not be reversed: low <= high, got {value!r}")
    if above and first == low:
        raise ValueError(f"{name} must be above {low}, got {value!r}")
    return first, last


def check_words(name: str, value: Any, words: Sequence[str]) -> tuple[str, ...]:
    """Check that a value is one of some words, or several of them; return a tuple."""
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, (tuple, list)):
        raise TypeError(f"{name} must be a word or several, got {value!r}")
    if not given or any(word not in words for word in given) or len(set(given)) < len(given):
        raise ValueError(f"{name} must be out of {tuple(words)}, each once, got {value!r}")
    return tuple(given)


def check_size(value: Any) -> tuple[int, int]:
    """Check the height and width of an image, or one number for both."""
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise TypeError(f"size must be a pair (height, width), got {value!r}")
    height, width = (check_integer("size", side, MIN_SIDE, LARGEST) for side in pair)
    return height, width


def check_inside(name: str, x: int, y: int, shape: Sequence[int], got: Any) -> None:
    """Check that a pixel lies inside an image; `name` says what of `got` must, and how."""
    height, width = shape[:2]
    if x >= width or y >= height:
        size = f"height {height} and width {width}"
        raise ValueError(f"{name} inside the image of {size}, got {got}")


def check_flag(name: str, value: Any) -> bool:
    """Check that a value is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def as_generator(rng: Any) -> np.random.Generator:
    """Return the generator that `rng` stands for."""
    if not (rng is None or isinstance(rng, np.random.Generator)):
        if isinstance(rng, bool) or not isinstance(rng, (int, np.integer)):
            raise TypeError(f"rng must be an int, a numpy.random.Generator or None, got {rng!r}")
        check_integer("rng", rng, 0)
    return np.random.default_rng(rng)
