"""What every paste of a patch shares: how it is cut, and its color jitter."""

from typing import Any, TypedDict

import numpy as np

from anatpaste_aug.checks import LARGEST, Range, check_inside, check_integers, check_number
from anatpaste_aug.images import Array, to_gray


class PatchOptions(TypedDict, total=False):
    """What AnatPaste and CutPaste *normal* share of their options: how a patch is drawn."""

    scale: Range
    ratio: Range
    jitter: float


def check_patch(params: Any) -> None:
    """Check the fields of a patch: its place, its size, and its jitter."""
    check_integers(params, ("crop_x", "crop_y"), 0)
    check_integers(params, ("width", "height"), 1)
    own = vars(params)  # params are frozen
    for name in ("brightness", "contrast"):
        own[name] = check_number(name, own[name], 0, LARGEST)


def cut_patch(image: Array, params: Any, black: float, white: float) -> Array:
    """Cut the patch out of an image and jitter it within [black, white].

    Raises
    ------
    ValueError
        If it does not lie inside the image.
    """
    right, bottom = params.crop_x + params.width - 1, params.crop_y + params.height - 1
    check_inside("the patch must lie", right, bottom, image.shape, params)
    patch = image[params.crop_y :, params.crop_x :][: params.height, : params.width]
    return color_jitter(patch, params.brightness, params.contrast, black, white)


def color_jitter(
    patch: Array, brightness: float, contrast: float, black: float, white: float
) -> Array:
    """Scale the brightness, then the contrast of a patch, as torchvision's `ColorJitter`.

    8-bit patches come out as torchvision's do of Pillow images: brightness blends with black,
    contrast with the rounded mean of the luma, and results are cut to whole numbers. Other dtypes
    are rounded to nearest, and their brightness is measured from 0, or from `black` where that is
    negative. Everything is clipped to [`black`, `white`].
    """
    patch = move_from(min(black, 0), patch, brightness, black, white)
    if contrast != 1:
        mean = to_gray(patch).mean(dtype=np.float64)
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
    return moved.astype(kind)
