"""AnatPaste: options, draw, alpha and paste, and its functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from anatpaste_aug.checks import LARGEST, Range, Rng, check_integers
from anatpaste_aug.images import Array, ImageLike, Mask, MaskLike, Window, as_mask, black_and_white
from anatpaste_aug.operations.alpha import Alpha, AlphaOperation, check_center, meet
from anatpaste_aug.operations.base import CallOptions, lengths_for_option, option, show_options
from anatpaste_aug.operations.patch import PatchOptions, check_patch, cut_patch
from anatpaste_aug.operations.sampling import Sampler

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PasteParams", "anatpaste", "apply_paste", "paste_alpha", "sample_paste"]

Shape: TypeAlias = Literal["ellipse", "rectangle"]
SHAPES: tuple[Shape, Shape] = ("ellipse", "rectangle")

# The published ranges, of CutPaste too.
SCALE = (0.02, 0.15)
RATIO = (0.3, 1 / 0.3)
JITTER = 0.1


@dataclass(frozen=True)
class PasteParams:
    """One paste: which patch is cut, where it goes, and how it is blended.

    Parameters
    ----------
    crop_x, crop_y : int
        Upper left corner of the patch in the image, in pixels.
    width, height : int
        Size of the patch, in pixels, at least 1.
    center_x, center_y : int
        The pixel on which the patch is centered when pasted.
    shape : {"ellipse", "rectangle"}
        Shape of the opaque part.
    blur_radius : int
        Standard deviation of the Gaussian blur of alpha, in pixels (Pillow's radius), at least 0.
    opacity : int
        Alpha inside the shape before the blur, 0..255.
    margin : int
        Pixels by which the shape is smaller than the patch on every side, at least 0.
    brightness, contrast : float, optional
        Factors of the patch's color jitter, at least 0; 1 changes nothing.

    Raises
    ------
    TypeError, ValueError
        If a field has another type or leaves its range.
    """

    crop_x: int
    crop_y: int
    width: int
    height: int
    center_x: int
    center_y: int
    shape: Shape
    blur_radius: int
    opacity: int
    margin: int
    brightness: float = 1.0
    contrast: float = 1.0

    def __post_init__(self) -> None:
        """Check every field, and keep plain Python numbers."""
        check_patch(self)
        check_integers(self, ("center_x", "center_y", "blur_radius", "margin"), 0)
        check_integers(self, ("opacity",), 0, 255)
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be 'ellipse' or 'rectangle', got {self.shape!r}")


@dataclass(frozen=True)
class AnatPaste(AlphaOperation[PasteParams]):
    """The options of AnatPaste, and what is done with them; see `anatpaste` and `sample_paste`."""

    scale: Range = option(SCALE, 0, 1, above=True)
    ratio: Range = option(RATIO, 1e-6, 1e6)
    blur: Range = option((0, 14), 0, LARGEST, integer=True)
    opacity: Range = option((150, 254), 0, 255, integer=True)
    margin: int = option(10, 0, LARGEST, integer=True, single=True)
    jitter: float = option(JITTER, 0, 1, single=True)
    lengths_for: float | None = lengths_for_option()

    params = PasteParams

    def draw(self, sampler: Sampler, shape: tuple[int, int], lungs: Any) -> PasteParams:
        """Draw a patch anywhere, a pixel of the lungs to center it on, and how it is blended."""
        crop = sampler.crop(shape, self.scale, self.ratio)
        center_y, center_x = sampler.pixel(lungs)
        return PasteParams(
            **crop,
            center_x=center_x,
            center_y=center_y,
            shape=sampler.choice(SHAPES),
            blur_radius=sampler.integer(self.scaled(self.blur, shape)),
            opacity=sampler.integer(self.opacity),
            margin=self.scaled(self.margin, shape),
            **sampler.jitter(self.jitter),
        )

    @staticmethod
    def alpha_window(params: PasteParams, lungs: Mask) -> tuple[Window, Alpha]:
        """Draw the shape, blurred, where the blur may reach, and confine it to the lungs."""
        height, width = lungs.shape
        check_center(params, lungs.shape)
        inner_w = max(params.width // 2 - params.margin, 0)
        inner_h = max(params.height // 2 - params.margin, 0)
        reach = 3 * params.blur_radius  # of three box filters, each no further than the radius
        columns = meet(params.center_x, inner_w + reach, 1, width)
        rows = meet(params.center_y, inner_h + reach, 1, height)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        center = (params.center_x - columns.start, params.center_y - rows.start)
        alpha = draw_shape(params, size, center, inner_w, inner_h)
        return (rows, columns), alpha * lungs[rows, columns] if lungs.any() else alpha

    @staticmethod
    def canvas(
        image: Array, params: PasteParams, window: Window, lungs: Mask
    ) -> tuple[Array, float, float]:
        """Return the jittered patch, on black."""
        black, white = black_and_white(image)
        patch = cut_patch(image, params, black, white)
        # The part of the patch that lies in the window, in window and in patch coordinates.
        inside, source = [], []
        corners = (params.center_y - params.height // 2, params.center_x - params.width // 2)
        for corner, size, part in zip(corners, patch.shape, window, strict=False):
            start, stop = max(corner, part.start), min(corner + size, part.stop)
            inside.append(slice(start - part.start, stop - part.start))
            source.append(slice(start - corner, stop - corner))
        canvas = np.full(image[window].shape, black, image.dtype)
        canvas[tuple(inside)] = patch[tuple(source)]
        return canvas, black, white


class PasteOptions(PatchOptions, total=False):
    """The options of AnatPaste."""

    blur: Range
    opacity: Range
    margin: int
    lengths_for: float | None


class PasteArguments(CallOptions, PasteOptions, total=False):
    """What forms of AnatPaste take."""


class AnatPasteForm:
    """What the transform and the module of AnatPaste share: what they do and take."""

    operation: Any = AnatPaste

    if TYPE_CHECKING:

        def __init__(self, p: float = 0.5, **options: Unpack[PasteArguments]) -> None: ...


@show_options(AnatPaste, like=AnatPaste.__call__)
def anatpaste(image: ImageLike, rng: Rng = None, **options: Unpack[PasteArguments]) -> Any:
    """Paste a blurred patch of a chest radiograph into its lungs.

    This is AnatPaste: find the lungs, cut a patch anywhere in the image, jitter it, and blend it in
    through a blurred ellipse or rectangle that is confined to the lungs.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image of mode L, RGB, I;16, I or F
        uint8, uint16, int16, int32, float16, float32 or float64, at least 16 pixels high and wide.
        Nothing is reduced to 8 bits. A channel axis of 1, first or last, is kept.
    rng : int, numpy.random.Generator or None, optional
        Seed or source of the draws.
    mask : (H, W) ndarray or torch tensor of bool or integer, optional
        A lung mask that is already there, perhaps with a channel axis of 1. If it is empty, the
        paste may go anywhere.
    segment : callable, optional
        Makes the lung mask from the image's (H, W) or (H, W, 3) array, which it must not change,
        instead of `lung_mask`: for other modalities and learned segmenters.
    return_mask : bool, optional
        Whether to return the changed region too.
    scale, ratio, blur, opacity, margin, jitter, lengths_for
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
    return AnatPaste.call(image, rng, options)


@show_options(AnatPaste)
def sample_paste(mask: MaskLike, rng: Rng = None, **options: Unpack[PasteOptions]) -> PasteParams:
    """Draw the parameters of one AnatPaste; all draws are independent.

    Parameters
    ----------
    mask : (H, W) ndarray of bool or integer, or Pillow image of mode 1 or L
        Lung mask of the image. Its shape is that of the image; the paste is centered on one of its
        pixels, drawn uniformly, or anywhere in the image if the mask is empty.
    rng : int, numpy.random.Generator or None, optional
        Seed or source of the draws.
    scale : float or (float, float), optional
        Patch area as a share of the image's, uniform, within (0, 1]. A single number, here and
        below, is a fixed value.
    ratio : float or (float, float), optional
        Patch width over height, log-uniform, above 0. Width and height are rounded to whole pixels,
        and cut to those of the image.
    blur : int or (int, int), optional
        Radius of the blur, uniform over whole numbers, at least 0; see `lengths_for`.
    opacity : int or (int, int), optional
        Opacity, uniform over whole numbers within 0..255.
    margin : int, optional
        By how much the shape is smaller than the patch on every side; see `lengths_for`.
    jitter : float, optional
        Brightness and contrast of the patch are scaled by factors uniform in
        [1 - `jitter`, 1 + `jitter`]; 0..1.
    lengths_for : float or None, optional
        `blur` and `margin` are lengths for an image of this height and width, and are scaled by
        sqrt(H W) over it, to whole pixels. None: pixels of the image as it is.

    Returns
    -------
    params : PasteParams
        In pixels of the image.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, or a range is reversed or leaves its limits.

    References
    ----------
    Sato et al., arXiv:2205.04282, section "AnatPaste augmentation". The blur, the margin and the
    opacity are the released code's, for images of 256 x 256.

    Examples
    --------
    >>> import numpy as np
    >>> from anatpaste_aug import sample_paste
    >>> params = sample_paste(np.ones((256, 256), bool), rng=0)
    >>> params.width, params.height, params.shape
    (62, 108, 'rectangle')
    """
    lungs = as_mask(mask)
    return AnatPaste(**options).sample(lungs.shape, lungs, rng)


def paste_alpha(params: PasteParams, mask: MaskLike) -> Alpha:
    """Draw the opacity of a paste: a filled shape, blurred, confined to the lungs.

    Parameters
    ----------
    params : PasteParams
        The shape fills the patch's box, centered on (`center_x`, `center_y`), less `margin` on
        every side; where that would leave nothing, the margin is cut to half the patch.
    mask : (H, W) ndarray of bool or integer
        Lung mask; an empty one confines nothing.

    Returns
    -------
    alpha : (H, W) ndarray of uint8
        0 (image) to 255 (patch). Pillow's own drawing and `GaussianBlur`, byte for byte.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, or the center lies outside the image.
    """
    return AnatPaste.alpha(params, mask)


def apply_paste(
    image: ImageLike, params: PasteParams, mask: MaskLike = None, *, return_mask: bool = False
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
        If an argument has another type, or the patch or its center lies outside the image.
    """
    return AnatPaste.replay(image, params, mask, return_mask=return_mask)


def draw_shape(
    params: PasteParams, size: tuple[int, int], center: tuple[int, int], inner_w: int, inner_h: int
) -> Alpha:
    """Draw the shape on a canvas and blur it, byte for byte as Pillow does.

    That is::

        canvas = Image.new("L", size)
        box = (x - inner_w, y - inner_h, x + inner_w, y + inner_h)
        getattr(ImageDraw.Draw(canvas), params.shape)(box, fill=params.opacity)
        return canvas.filter(ImageFilter.GaussianBlur(params.blur_radius))

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
