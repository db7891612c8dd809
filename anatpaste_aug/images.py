"""What counts as an image: validation, Pillow in and out, luma, and the black and white levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from anatpaste_aug.checks import MIN_SIDE

Array: TypeAlias = npt.NDArray[Any]
Mask: TypeAlias = npt.NDArray[np.bool_]
ImageLike: TypeAlias = "Array | Image.Image"

DTYPES = ("uint8", "uint16", "int16", "int32", "float32", "float64")
PILLOW_MODES = {"L": "uint8", "RGB": "uint8", "I;16": "uint16", "I": "int32", "F": "float32"}
MAX_FLOAT = 1e30  # beyond it, sums and products of float32 pixels overflow
LUMA = (0.299, 0.587, 0.114)


def as_array(image: Any) -> Array:
    """Give the pixels of `image` as a checked (H, W) or (H, W, 3) array, without copying arrays.

    Raises
    ------
    TypeError
        If `image` is neither a plain NumPy array nor a Pillow image, or has another dtype or mode
        than those in `DTYPES` and `PILLOW_MODES`.
    ValueError
        If it has another shape, a side under 16 pixels, or a pixel that is NaN, infinite or beyond
        1e30.
    """
    if isinstance(image, Image.Image):
        if image.mode not in PILLOW_MODES:
            raise TypeError(
                f"image must have a Pillow mode out of {', '.join(PILLOW_MODES)}, "
                f"got {image.mode!r}"
            )
        array = np.asarray(image)
    elif isinstance(image, np.ndarray) and not isinstance(image, np.ma.MaskedArray):
        array = image
        if array.dtype.name not in DTYPES or not array.dtype.isnative:
            names = ", ".join(DTYPES)
            raise TypeError(f"image must have a dtype out of {names}, got {array.dtype}")
    else:
        raise TypeError(
            f"image must be a NumPy array or a Pillow image, got {type(image).__name__}"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"image must have the shape (H, W) or (H, W, 3), got {array.shape}")
    if min(array.shape[:2]) < MIN_SIDE:
        raise ValueError(
            f"image must be at least {MIN_SIDE} pixels high and wide, got {array.shape[:2]}"
        )
    if array.dtype.kind == "f":
        # A NaN anywhere makes both extremes NaN, so that two reductions find every bad pixel.
        for extreme in (array.min(), array.max()):
            if not np.isfinite(extreme):
                raise ValueError(f"image must be finite, got {extreme}")
            if abs(extreme) > MAX_FLOAT:
                raise ValueError(f"image must lie within +-{MAX_FLOAT:g}, got {extreme:g}")
    return array


def like(image: ImageLike) -> Callable[[Array], Any]:
    """Give the function that turns an array back into the kind of `image` (array or Pillow)."""
    return Image.fromarray if isinstance(image, Image.Image) else lambda array: array


def to_grey(array: Array) -> Array:
    """Reduce (H, W, 3) to (H, W) with ITU-R 601 luma, in the same dtype; pass (H, W) through.

    Integers use the 16-bit fixed-point weights of Pillow's ``convert("L")``, so that uint8 colour
    gives Pillow's result and wider integers the same formula without loss.
    """
    if array.ndim == 2:
        return array
    if array.dtype.kind == "f":
        red, green, blue = (
            array[..., i] * array.dtype.type(weight) for i, weight in enumerate(LUMA)
        )
        return red + green + blue  # in this order, each step rounded, on every machine
    # The weights add up to 2**16: 32 bits hold the sum of unsigned 16-bit products.
    wide = np.uint32 if array.dtype.kind == "u" else np.int64
    total = np.full(array.shape[:2], 0x8000, wide)
    for channel, weight in enumerate((19595, 38470, 7471)):
        total += np.multiply(array[..., channel], weight, dtype=wide)
    return (total >> 16).astype(array.dtype)


def black_level(array: Array) -> float:
    """Return the value of black: 0 for unsigned images, else the image's own minimum."""
    return 0 if array.dtype.kind == "u" else array.min().item()


def white_level(array: Array) -> float:
    """Return the value that jitter is clipped to: 255 for uint8, else the image's own maximum."""
    return 255 if array.dtype == np.uint8 else array.max().item()


def as_mask(mask: Any, shape: tuple[int, ...] | None = None, name: str = "mask") -> Mask:
    """Check a lung mask, against the image's height and width if given, and give it as bool.

    Bool and integer arrays, and Pillow images of mode 1 or L, are taken; anything but 0 is lung.

    Raises
    ------
    TypeError
        If it is something else. Probabilities must be thresholded by the caller.
    ValueError
        If its shape is not that of the image, or of no image.
    """
    if isinstance(mask, Image.Image) and mask.mode in ("1", "L"):
        mask = np.asarray(mask)
    if not isinstance(mask, np.ndarray) or mask.dtype.kind not in "bui":
        got = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"{name} must be a bool or integer array, got {got}")
    if shape is not None and mask.shape != tuple(shape[:2]):
        raise ValueError(f"{name} must have the image's shape {tuple(shape[:2])}, got {mask.shape}")
    if mask.ndim != 2 or min(mask.shape) < MIN_SIDE:
        raise ValueError(
            f"{name} must have the shape (H, W), at least {MIN_SIDE} pixels each, got {mask.shape}"
        )
    return mask.astype(bool, copy=False)
