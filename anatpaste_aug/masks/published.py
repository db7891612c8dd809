"""The published lung mask: thresholding (`clahe`), then morphology (`regions`)."""

import numpy as np

from anatpaste_aug.checks import check_integer
from anatpaste_aug.images import ImageLike, Mask, as_array, check_finite, to_gray
from anatpaste_aug.masks.clahe import clahe, dark_side, quantize
from anatpaste_aug.masks.regions import clear_border, clear_small_boxes, combine_squares, opening

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
        A channel axis of 1, first or last, is dropped. Lungs are dark. Color is reduced with
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
    array = as_array(image)
    check_finite(array)
    gray = to_gray(array)
    levels = clahe(quantize(gray))
    # scikit-image keeps float32 images in float32 and computes on all others in float64.
    dark = dark_side(levels, np.float32 if gray.dtype == np.float32 else np.float64)
    dilated = combine_squares(np.logical_or, clear_border(opening(dark)))
    return clear_small_boxes(dilated[1:-1, 1:-1], min_area)
