"""The CutPaste baselines: *normal* and *scar* (Li et al., CVPR 2021, arXiv:2104.04015)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from anatpaste_aug.checks import Range, Rng
from anatpaste_aug.images import ImageLike, as_array, black_level, like, white_level
from anatpaste_aug.paste import check_crop, color_jitter
from anatpaste_aug.sampling import (
    JITTER,
    RATIO,
    SCALE,
    CutPasteParams,
    sample_cutpaste,
    sample_scar,
)


def cutpaste(
    image: ImageLike,
    rng: Rng = None,
    *,
    return_mask: bool = False,
    scale: Range = SCALE,
    ratio: Range = RATIO,
    jitter: float = JITTER,
) -> Any:
    """Paste a patch of the image whole at a uniformly drawn place: CutPaste *normal*.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image
        As for `anatpaste`.
    rng : int, numpy.random.Generator or None, optional
        Seed or source of the draws.
    return_mask : bool, optional
        Whether to return the changed region too.
    scale, ratio, jitter
        As for `sample_paste`.

    Returns
    -------
    out : same type, shape and dtype as `image`
    region : (H, W) ndarray of bool
        Where the patch lies. Only with ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        As `anatpaste`.

    References
    ----------
    Li et al., CutPaste: Self-Supervised Learning for Anomaly Detection and Localization,
    CVPR 2021, arXiv:2104.04015, section 2.2.

    Examples
    --------
    >>> from anatpaste_aug import cutpaste
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> cutpaste(phantom_radiograph(128, rng=0), rng=0).shape
    (128, 128)
    """
    shape = as_array(image).shape[:2]
    params = sample_cutpaste(shape, rng, scale=scale, ratio=ratio, jitter=jitter)
    return apply_cutpaste(image, params, return_mask=return_mask)


def cutpaste_scar(
    image: ImageLike, rng: Rng = None, *, return_mask: bool = False, jitter: float = JITTER
) -> Any:
    """Paste a thin rotated patch of the image at a uniformly drawn place: CutPaste *scar*.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image
        As for `anatpaste`.
    rng : int, numpy.random.Generator or None, optional
        Seed or source of the draws.
    return_mask : bool, optional
        Whether to return the changed region too.
    jitter : float, optional
        As for `sample_paste`.

    Returns
    -------
    out : same type, shape and dtype as `image`
    region : (H, W) ndarray of bool
        Where the rotated patch lies. Only with ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        As `anatpaste`.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015, section 2.2 ("CutPaste-Scar").

    Examples
    --------
    >>> from anatpaste_aug import cutpaste_scar
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> cutpaste_scar(phantom_radiograph(128, rng=0), rng=0).shape
    (128, 128)
    """
    params = sample_scar(as_array(image).shape[:2], rng, jitter=jitter)
    return apply_cutpaste(image, params, return_mask=return_mask)


def apply_cutpaste(image: ImageLike, params: CutPasteParams, *, return_mask: bool = False) -> Any:
    """Apply one CutPaste, *normal* (no angle) or *scar*; deterministic.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image
        As for `anatpaste`.
    params : CutPasteParams
        What to paste. The patch is rotated about its centre, nearest pixel, and pasted through its
        own outline; what would leave the image is cut off.
    return_mask : bool, optional
        Whether to return the changed region too.

    Returns
    -------
    out : same type, shape and dtype as `image`
    region : (H, W) ndarray of bool
        Where the patch lies. Only with ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, or the patch lies outside the image.
    """
    array = as_array(image)
    if not isinstance(params, CutPasteParams):
        raise TypeError(f"params must be CutPasteParams, got {type(params).__name__}")
    height, width = array.shape[:2]
    check_crop(params, height, width)
    if params.paste_x >= width or params.paste_y >= height:
        raise ValueError(
            f"the paste must begin inside the image of height {height} and width {width}, "
            f"got {params}"
        )
    patch = color_jitter(
        array[params.crop_y :, params.crop_x :][: params.height, : params.width],
        params.brightness,
        params.contrast,
        black_level(array),
        white_level(array),
    )
    box_width, box_height = params.bounding_box
    window = (
        slice(params.paste_y, min(params.paste_y + box_height, height)),
        slice(params.paste_x, min(params.paste_x + box_width, width)),
    )
    # From the pixel centres of the box back to those of the patch.
    right = np.arange(window[1].stop - window[1].start) + (0.5 - box_width / 2)
    down = (np.arange(window[0].stop - window[0].start) + (0.5 - box_height / 2))[:, None]
    cos, sin = math.cos(math.radians(params.angle)), math.sin(math.radians(params.angle))
    x = np.floor(right * cos - down * sin + params.width / 2).astype(np.intp)
    y = np.floor(right * sin + down * cos + params.height / 2).astype(np.intp)
    inside = (x >= 0) & (x < params.width) & (y >= 0) & (y < params.height)

    out = array.copy()
    out[window][inside] = patch[y[inside], x[inside]]
    if not return_mask:
        return like(image)(out)
    region = np.zeros((height, width), bool)
    region[window] = inside
    return like(image)(out), region
