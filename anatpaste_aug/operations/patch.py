"""What every paste of a patch shares: its place in the image, its colour jitter, and the blend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from anatpaste_aug.checks import LARGEST, check_integer, check_number
from anatpaste_aug.images import Array, black_level, to_grey, white_level


def check_fields(params: Any, places: Sequence[str]) -> None:
    """Check the fields that name `places`, the patch's size and its jitter; keep plain numbers."""
    for name in places:
        object.__setattr__(params, name, check_integer(name, getattr(params, name), 0, LARGEST))
    for name in ("width", "height"):
        object.__setattr__(params, name, check_integer(name, getattr(params, name), 1, LARGEST))
    for name in ("brightness", "contrast"):
        object.__setattr__(params, name, check_number(name, getattr(params, name), 0, LARGEST))


def check_center(params: Any, shape: tuple[int, int]) -> None:
    """Check that the centre of a paste lies inside the image."""
    height, width = shape
    if not (params.center_x < width and params.center_y < height):
        raise ValueError(
            f"center must lie inside the image of height {height} and width {width}, "
            f"got center_x={params.center_x}, center_y={params.center_y}"
        )


def cut_patch(image: Array, params: Any) -> Array:
    """Cut the patch out of an image and jitter it.

    Raises
    ------
    ValueError
        If it does not lie inside the image.
    """
    height, width = image.shape[:2]
    if params.crop_x + params.width > width or params.crop_y + params.height > height:
        raise ValueError(
            f"the patch must lie inside the image of height {height} and width {width}, "
            f"got {params}"
        )
    patch = image[params.crop_y :, params.crop_x :][: params.height, : params.width]
    black, white = black_level(image), white_level(image)
    return color_jitter(patch, params.brightness, params.contrast, black, white)


def blend(image: Array, canvas: Array, alpha: npt.NDArray[np.uint8]) -> Array:
    """Return ``image * (1 - alpha / 255) + canvas * alpha / 255`` in the image's dtype.

    Integers are rounded to nearest. For uint8 this is Pillow's division by 255.
    """
    if image.dtype.kind == "f":
        weight = alpha.astype(image.dtype) / image.dtype.type(255)
        mixed: Array = image * (1 - weight) + canvas * weight
        return mixed
    wide = {1: np.uint16, 2: np.uint32 if image.dtype.kind == "u" else np.int64, 4: np.int64}
    dtype = wide[image.dtype.itemsize]
    total = image * (np.uint8(255) - alpha).astype(dtype) + canvas * alpha.astype(dtype)
    out: Array = ((total + dtype(127)) // dtype(255)).astype(image.dtype)
    return out


def color_jitter(
    patch: Array, brightness: float, contrast: float, black: float, white: float
) -> Array:
    """Scale the brightness, then the contrast of a patch, as torchvision's `ColorJitter`.

    8-bit patches give what torchvision gives for Pillow images: brightness blends with black,
    contrast with the rounded mean of the luma, and results are cut to whole numbers. Other dtypes
    are rounded to nearest, and their brightness is measured from 0, or from `black` where that is
    negative. Everything is clipped to [`black`, `white`].
    """
    patch = move_from(min(black, 0), patch, brightness, black, white)
    if contrast != 1:
        mean = to_grey(patch).mean(dtype=np.float64)
        if patch.dtype == np.uint8:
            mean = int(mean + 0.5)
        patch = move_from(mean, patch, contrast, black, white)
    return patch


def move_from(base: float, patch: Array, factor: float, black: float, white: float) -> Array:
    """Scale the distance of pixels from `base` by a factor, within [black, white]."""
    if factor == 1:
        return patch
    kind = patch.dtype
    # Pillow computes in float32, exactly where the pixels are 8-bit.
    dtype = kind if kind.kind == "f" else np.dtype(np.float32 if kind == np.uint8 else np.float64)
    base = dtype.type(base)
    moved = base + dtype.type(factor) * (patch.astype(dtype) - base)
    np.clip(moved, black, white, out=moved)
    if kind.kind != "f" and kind != np.uint8:
        np.rint(moved, out=moved)
    out: Array = moved.astype(kind)
    return out
