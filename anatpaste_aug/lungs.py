"""Where a lung mask comes from: given, made by the caller's segmenter, or the published one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from anatpaste_aug.checks import check_integer
from anatpaste_aug.clahe import clahe, dark_side, quantise
from anatpaste_aug.images import Array, ImageLike, Mask, MaskLike, as_array, as_mask, to_grey
from anatpaste_aug.regions import clear_border, clear_small_boxes, combine_squares, opening

Segment: TypeAlias = Callable[[Any], Any]
MIN_AREA = 400


def lung_mask(image: ImageLike, *, min_area: int = MIN_AREA) -> Mask:
    """Segment the lungs of a frontal chest radiograph by thresholding, as AnatPaste does.

    The chain is CLAHE (8 x 8 tiles, clip limit 0.01), Otsu's threshold, the pixels that are darker
    than it but not black, 3x3 opening, removal of what touches the image border, 3x3 dilation, and
    removal of the bounding box of every region smaller than `min_area`. Bit for bit it equals the
    authors' released code on unsigned images, and the same steps in scikit-image on floats within
    0..1. It is a rough mask: ribs and clavicles cut into it, and on some images nothing is found.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image of mode L, RGB, I;16, I or F
        uint8, uint16, int16, int32, float16, float32 or float64; at least 16 pixels high and wide.
        A channel axis of 1, first or last, is dropped. Lungs are dark. Colour is reduced with
        ITU-R 601 luma. Floats within 0..1 are taken in steps of 1/65535, so stretch dim ones first;
        floats that leave 0..1, and signed images, are stretched linearly from their own minimum to
        their maximum.
    min_area : int, optional
        Regions of fewer pixels are removed, together with everything in their bounding boxes.

    Returns
    -------
    mask : (H, W) ndarray of bool
        True in the lungs; all False if none is found.

    Raises
    ------
    TypeError, ValueError
        If `image` is not as above, or not finite; if `min_area` is not an integer of at least 0.

    References
    ----------
    Sato et al., Anatomy-aware self-supervised learning for anomaly detection in chest radiographs,
    iScience 2023, arXiv:2205.04282, section "AnatPaste augmentation".

    Examples
    --------
    >>> from anatpaste_aug import lung_mask
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> mask = lung_mask(phantom_radiograph(256, rng=0))
    >>> mask.shape, mask.dtype, bool(mask.any())
    ((256, 256), dtype('bool'), True)
    """
    min_area = check_integer("min_area", min_area, 0)
    grey = to_grey(as_array(image))
    levels = clahe(quantise(grey))
    # scikit-image keeps float32 images in float32 and computes on all others in float64.
    dark = dark_side(levels, np.float32 if grey.dtype == np.float32 else np.float64)
    dilated = combine_squares(np.logical_or, clear_border(opening(dark)))
    return clear_small_boxes(dilated[1:-1, 1:-1], min_area)


def find_lungs(array: Array, mask: MaskLike | None = None, segment: Segment | None = None) -> Mask:
    """Return the mask that is given, or make one with `segment` or `lung_mask`."""
    if mask is not None:
        if segment is not None:
            raise ValueError("mask and segment must not be given together")
        return as_mask(mask, array.shape)
    if segment is None:
        return lung_mask(array)
    return as_mask(check_segment(segment)(array), array.shape, "the mask returned by segment")


def check_segment(segment: Any, needed: bool = True) -> Any:
    """Check that a segmenter, if there is one, can be called and is needed."""
    if segment is not None and not callable(segment):
        raise TypeError(f"segment must be callable, got {type(segment).__name__}")
    if segment is not None and not needed:
        raise ValueError(f"segment must be None where no lungs are needed, got {segment}")
    return segment
