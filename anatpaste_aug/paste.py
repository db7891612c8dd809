"""How a patch is pasted: alpha, colour jitter, blending, and AnatPaste as one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from anatpaste_aug.checks import Range, Rng, as_generator
from anatpaste_aug.images import (
    Array,
    ImageLike,
    Mask,
    as_array,
    as_mask,
    black_level,
    like,
    to_grey,
    white_level,
)
from anatpaste_aug.mask import lung_mask
from anatpaste_aug.sampling import (
    BLUR,
    JITTER,
    MARGIN,
    OPACITY,
    RATIO,
    SCALE,
    PasteParams,
    PasteRanges,
    draw_paste,
)

Segment = Callable[[Array], Array]
Window = tuple[slice, slice]


def anatpaste(
    image: ImageLike,
    rng: Rng = None,
    *,
    mask: Array | None = None,
    segment: Segment | None = None,
    return_mask: bool = False,
    scale: Range = SCALE,
    ratio: Range = RATIO,
    blur: Range = BLUR,
    opacity: Range = OPACITY,
    margin: int = MARGIN,
    jitter: float = JITTER,
) -> Any:
    """Paste a blurred patch of a chest radiograph into its lungs.

    This is AnatPaste: find the lungs, cut a patch anywhere in the image, jitter it, and blend it in
    through a blurred ellipse or rectangle that is confined to the lungs.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image of mode L, RGB, I;16, I or F
        uint8, uint16, int16, int32, float32 or float64, at least 16 pixels high and wide. Nothing
        is reduced to 8 bits.
    rng : int, numpy.random.Generator or None, optional
        Seed or source of the draws.
    mask : (H, W) ndarray of bool or integer, optional
        A lung mask that is already there. If it is empty, the paste may go anywhere.
    segment : callable, optional
        Makes the lung mask from the image's (H, W) or (H, W, 3) array, which it must not change,
        instead of `lung_mask`: for other modalities and learned segmenters.
    return_mask : bool, optional
        Whether to return the changed region too.
    scale, ratio, blur, opacity, margin, jitter
        As for `sample_paste`, with the published defaults.

    Returns
    -------
    out : same type, shape and dtype as `image`
        Values stay in 0..255 for uint8, in 0..maximum of the image for uint16, else between the
        image's minimum and maximum.
    region : (H, W) ndarray of bool
        Where alpha > 0. Only with ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        If the image, the mask or an option is not as above, or both `mask` and `segment` are given.

    References
    ----------
    Sato et al., Anatomy-aware self-supervised learning for anomaly detection in chest radiographs,
    iScience 2023, arXiv:2205.04282, section "AnatPaste augmentation".

    Examples
    --------
    >>> from anatpaste_aug import anatpaste
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> image = phantom_radiograph(256, rng=0)
    >>> out, region = anatpaste(image, rng=0, return_mask=True)
    >>> out.shape, out.dtype, bool((out != image)[~region].any())
    ((256, 256), dtype('uint8'), False)
    """
    ranges = PasteRanges(scale, ratio, blur, opacity, margin, jitter)
    array = as_array(image)
    lungs = find_lungs(array, mask, segment)
    params = draw_paste(lungs, as_generator(rng), ranges)
    return _paste(array, params, lungs, like(image), return_mask)


def find_lungs(array: Array, mask: Array | None, segment: Segment | None) -> Mask:
    """Take the mask that is given, or make one with `segment` or `lung_mask`."""
    if mask is not None:
        if segment is not None:
            raise ValueError("mask and segment must not be given together")
        return as_mask(mask, array.shape)
    if segment is None:
        return lung_mask(array)
    return as_mask(check_segment(segment)(array), array.shape, "the mask returned by segment")


def check_segment(segment: Any) -> Any:
    """Check that a segmenter, if there is one, can be called."""
    if segment is not None and not callable(segment):
        raise TypeError(f"segment must be callable, got {type(segment).__name__}")
    return segment


def paste_alpha(params: PasteParams, mask: Mask) -> npt.NDArray[np.uint8]:
    """Draw the opacity of a paste: a filled shape, blurred, confined to the lungs.

    Parameters
    ----------
    params : PasteParams
        The shape fills the patch's box, centred on (`center_x`, `center_y`), less `margin` on every
        side; where that would leave nothing, the margin is cut to half the patch.
    mask : (H, W) ndarray of bool or integer
        Lung mask; an empty one confines nothing.

    Returns
    -------
    alpha : (H, W) ndarray of uint8
        0 (image) to 255 (patch). Pillow's own drawing and `GaussianBlur`, byte for byte.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, or the centre lies outside the image.
    """
    mask = as_mask(mask)
    alpha = np.zeros(mask.shape, np.uint8)
    window, part = _alpha_window(params, mask)
    alpha[window] = part
    return alpha


def apply_paste(
    image: ImageLike, params: PasteParams, mask: Array | None = None, *, return_mask: bool = False
) -> Any:
    """Apply one paste; deterministic.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image
        As for `anatpaste`.
    params : PasteParams
        What to paste.
    mask : (H, W) ndarray of bool or integer, optional
        Lung mask. Without one, or with an empty one, the paste goes anywhere.
    return_mask : bool, optional
        Whether to return the changed region too.

    Returns
    -------
    out : same type, shape and dtype as `image`
        ``image * (1 - alpha / 255) + canvas * alpha / 255``, rounded to nearest for integers, where
        the canvas is the jittered patch on black. Black is 0 for unsigned images, else the
        image's minimum. 8-bit results equal Pillow's ``paste``.
    region : (H, W) ndarray of bool
        Where alpha > 0. Only with ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, or the patch or its centre lies outside the image.
    """
    array = as_array(image)
    lungs = np.zeros(array.shape[:2], bool) if mask is None else as_mask(mask, array.shape)
    return _paste(array, params, lungs, like(image), return_mask)


def _paste(
    image: Array,
    params: PasteParams,
    mask: Mask,
    convert: Callable[[Array], Any],
    return_mask: bool,
) -> Any:
    """Apply one paste to a checked image and mask; convert the result to the caller's kind."""
    window, alpha = _alpha_window(params, mask)
    out = convert(_blend_patch(image, params, window, alpha))
    if not return_mask:
        return out
    region = np.zeros(mask.shape, bool)
    region[window] = alpha > 0
    return out, region


def _alpha_window(params: PasteParams, mask: Mask) -> tuple[Window, npt.NDArray[np.uint8]]:
    """Give the part of the image that alpha may reach, and alpha there."""
    if not isinstance(params, PasteParams):
        raise TypeError(f"params must be PasteParams, got {type(params).__name__}")
    height, width = mask.shape
    if not (params.center_x < width and params.center_y < height):
        raise ValueError(
            f"center must lie inside the image of height {height} and width {width}, "
            f"got center_x={params.center_x}, center_y={params.center_y}"
        )
    half_w, half_h = params.width // 2, params.height // 2
    inner_w = half_w - min(params.margin, half_w)
    inner_h = half_h - min(params.margin, half_h)
    reach = 3 * params.blur_radius  # of three box filters, each no further than the radius
    left = max(params.center_x - inner_w - reach, 0)
    top = max(params.center_y - inner_h - reach, 0)
    right = min(params.center_x + inner_w + reach + 1, width)
    bottom = min(params.center_y + inner_h + reach + 1, height)
    size, center = (right - left, bottom - top), (params.center_x - left, params.center_y - top)
    alpha = _draw_shape(params, size, center, inner_w, inner_h)
    window = (slice(top, bottom), slice(left, right))
    return window, alpha * mask[window] if mask.any() else alpha


def _draw_shape(
    params: PasteParams, size: tuple[int, int], center: tuple[int, int], inner_w: int, inner_h: int
) -> npt.NDArray[np.uint8]:
    """Draw the shape on a canvas and blur it, byte for byte as Pillow does.

    Pillow blurs along x, then along y, every line by itself, and the same in both directions: of
    equal or mirrored lines, one is blurred.
    """
    (width, height), (x, y) = size, center
    along_x = ImageFilter.GaussianBlur((params.blur_radius, 0))
    along_y = ImageFilter.GaussianBlur((0, params.blur_radius))
    box = (x - inner_w, 0, x + inner_w, 2 * inner_h)
    if params.shape == "rectangle":
        # One row stands for all, and one column for those that have the same level in it.
        line = Image.new("L", (width, 1))
        ImageDraw.Draw(line).rectangle(box, fill=params.opacity)
        row = np.asarray(line.filter(along_x))[0]
        levels = np.flatnonzero(np.bincount(row))
        columns = np.zeros((height, levels.size), np.uint8)
        columns[max(y - inner_h, 0) : y + inner_h + 1] = levels
        blurred = np.asarray(Image.fromarray(columns).filter(along_y))
        return blurred.take(np.searchsorted(levels, row), axis=1)
    half = Image.new("L", (width, inner_h + 1))
    ImageDraw.Draw(half).ellipse(box, fill=params.opacity)
    half = half.filter(along_x)
    mirrored = 2 * x == width - 1  # not so where one side meets the border of the image
    canvas = Image.new("L", (x + 1 if mirrored else width, height))
    canvas.paste(half.transpose(Image.Transpose.FLIP_TOP_BOTTOM), (0, y))
    canvas.paste(half, (0, y - inner_h))
    blurred = np.asarray(canvas.filter(along_y))
    return np.concatenate((blurred, blurred[:, -2::-1]), axis=1) if mirrored else blurred


def _blend_patch(
    image: Array, params: PasteParams, window: Window, alpha: npt.NDArray[np.uint8]
) -> Array:
    """Blend the jittered patch, on black, into a copy of the image, inside the window."""
    height, width = image.shape[:2]
    crop = (
        slice(params.crop_y, params.crop_y + params.height),
        slice(params.crop_x, params.crop_x + params.width),
    )
    check_crop(params, height, width)
    black = black_level(image)
    patch = color_jitter(image[crop], params.brightness, params.contrast, black, white_level(image))

    # The part of the patch that lies in the window, in window and in patch coordinates.
    inside, source = [], []
    corners = (params.center_y - params.height // 2, params.center_x - params.width // 2)
    for corner, size, part in zip(corners, (params.height, params.width), window, strict=True):
        start, stop = max(corner, part.start), min(corner + size, part.stop)
        inside.append(slice(start - part.start, stop - part.start))
        source.append(slice(start - corner, stop - corner))
    canvas = np.full(image[window].shape, black, image.dtype)
    canvas[tuple(inside)] = patch[tuple(source)]

    out = image.copy()
    out[window] = blend(image[window], canvas, alpha if image.ndim == 2 else alpha[..., None])
    if image.dtype.kind == "f":  # a weighted mean may leave the range of its terms by a last bit
        np.clip(out[window], image.min(), image.max(), out=out[window])
    return out


def blend(image: Array, canvas: Array, alpha: npt.NDArray[np.uint8]) -> Array:
    """Give ``image * (1 - alpha / 255) + canvas * alpha / 255`` in the image's dtype.

    Integers are rounded to nearest. For uint8 this is Pillow's division by 255.
    """
    if image.dtype.kind == "f":
        weight = alpha.astype(image.dtype) / image.dtype.type(255)
        return image * (1 - weight) + canvas * weight
    wide = {1: np.uint16, 2: np.uint32 if image.dtype.kind == "u" else np.int64, 4: np.int64}
    dtype = wide[image.dtype.itemsize]
    total = image * (np.uint8(255) - alpha).astype(dtype) + canvas * alpha.astype(dtype)
    return ((total + dtype(127)) // dtype(255)).astype(image.dtype)


def color_jitter(
    patch: Array, brightness: float, contrast: float, black: float, white: float
) -> Array:
    """Scale the brightness, then the contrast of a patch, as torchvision's `ColorJitter`.

    8-bit patches give what torchvision gives for Pillow images: brightness blends with black,
    contrast with the rounded mean of the luma, and results are cut to whole numbers. Other dtypes
    are rounded to nearest, and their brightness is measured from 0, or from `black` where that is
    negative. Everything is clipped to [`black`, `white`].
    """
    patch = _move_from(min(black, 0), patch, brightness, black, white)
    if contrast != 1:
        mean = to_grey(patch).mean(dtype=np.float64)
        if patch.dtype == np.uint8:
            mean = int(mean + 0.5)
        patch = _move_from(mean, patch, contrast, black, white)
    return patch


def _move_from(base: float, patch: Array, factor: float, black: float, white: float) -> Array:
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


def check_crop(params: Any, height: int, width: int) -> None:
    """Check that the patch lies inside the image."""
    if params.crop_x + params.width > width or params.crop_y + params.height > height:
        raise ValueError(
            f"the patch must lie inside the image of height {height} and width {width}, "
            f"got {params}"
        )
