"""Cutting an image to its lungs: where the cut lies, and its form as a function; boxes of masks."""

from typing import Any

import numpy as np
from PIL import Image

from anatpaste_aug.checks import LARGEST, MIN_SIDE, check_flag, check_number
from anatpaste_aug.images import ImageLike, Mask, MaskLike, Window, as_array, check_finite
from anatpaste_aug.masks import Segment, find_lungs, lung_mask_robust

CROP_MARGIN = 0.08


def lung_crop(
    image: ImageLike,
    *,
    mask: MaskLike = None,
    segment: Segment | None = None,
    return_mask: bool = False,
    margin: float = CROP_MARGIN,
    square: bool = False,
) -> Any:
    """Cut an image to the box around its lungs, and a margin.

    Framing differs between hospitals and between wards, lungs do not: what is learned from cropped
    images depends less on the frame. Where no lungs are found, the whole image comes back.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image
        As for `anatpaste`.
    mask : (H, W) ndarray or torch tensor of bool or integer, optional
        A lung mask that is already there, perhaps with a channel axis of 1.
    segment : callable, optional
        Makes the lung mask from the image's (H, W) or (H, W, 3) array instead of
        `lung_mask_robust`: the published `lung_mask` often misses a part of the lungs, or includes
        what is not lung, and a box shows every such pixel.
    return_mask : bool, optional
        Whether to return the mask too, cut in the same way.
    margin : float, optional
        Added on every side, as a share of the box's height or width, at least 0; cut at the image's
        border.
    square : bool, optional
        Whether the shorter side is lengthened to the longer one, as far as the image goes.

    Returns
    -------
    out : same type and dtype as `image`
        A copy of the part, at least 16 pixels high and wide.
    lungs : ndarray of bool, height and width of `out`
        Only with ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or leaves its limits, or both `mask` and `segment` are
        given.

    Examples
    --------
    >>> from anatpaste_aug import lung_crop
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> lung_crop(phantom_radiograph(256, rng=0), square=True).shape
    (201, 201)
    """
    array = as_array(image)
    check_finite(array)
    if mask is None and segment is None:
        segment = lung_mask_robust
    lungs = find_lungs(array, mask, segment)
    window = crop_window(lungs, *check_crop(margin, square))
    out = cut(image, window)
    return (out, lungs[window].copy()) if check_flag("return_mask", return_mask) else out


def cut(image: ImageLike, window: Window) -> ImageLike:
    """Copy a part of an image of any kind that `as_array` takes."""
    if isinstance(image, Image.Image):
        rows, columns = window
        return image.crop((columns.start, rows.start, columns.stop, rows.stop))
    array = np.asarray(image)
    first = array.ndim == 3 and array.shape[0] == 1  # a channel axis of 1 may stand first
    return array[(slice(None), *window) if first else window].copy()


def check_crop(margin: Any, square: Any) -> tuple[float, bool]:
    """Check the options of a crop."""
    return check_number("margin", margin, 0, LARGEST), check_flag("square", square)


def crop_window(lungs: Mask, margin: float, square: bool) -> Window:
    """Return the rows and columns of the lungs' box and its margin; all, if there are none."""
    ends = []
    for part, size in zip(bounding_box(lungs), lungs.shape, strict=True):
        pad = round((part.stop - part.start) * margin)
        ends.append((max(part.start - pad, 0), min(part.stop + pad, size), size))
    least = max([MIN_SIDE, *(stop - start for start, stop, _ in ends)]) if square else MIN_SIDE
    parts = []
    for start, stop, size in ends:  # lengthen on both sides, and shift into the image
        length = min(max(stop - start, least), size)
        start = min(max((start + stop - length) // 2, 0), size - length)
        parts.append(slice(start, start + length))
    return parts[0], parts[1]


def true_range(flags: Any) -> slice:
    """Return the part of a row of flags from the first to the last True; all, if there is none."""
    places = np.flatnonzero(flags)
    return slice(int(places[0]), int(places[-1]) + 1) if places.size else slice(0, flags.size)


def bounding_box(mask: Mask) -> Window:
    """Return the bounding box of a mask, rows and columns; all, if it is empty."""
    return true_range(mask.any(1)), true_range(mask.any(0))
