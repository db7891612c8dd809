"""What is drawn: the parameters of a paste, their legal ranges and their distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from anatpaste_aug.checks import (
    LARGEST,
    Range,
    Rng,
    as_generator,
    check_integer,
    check_number,
    check_range,
    check_shape,
)
from anatpaste_aug.images import Mask, as_mask

Shape: TypeAlias = Literal["ellipse", "rectangle"]
SHAPES: tuple[Shape, Shape] = ("ellipse", "rectangle")

# The published ranges.
SCALE = (0.02, 0.15)
RATIO = (0.3, 1 / 0.3)
BLUR = (0, 14)
OPACITY = (150, 254)
MARGIN = 10
JITTER = 0.1
SCAR_WIDTH = (2, 16)
SCAR_HEIGHT = (10, 25)
SCAR_ANGLE = (-45.0, 45.0)


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
        The pixel on which the patch is centred when pasted.
    shape : {"ellipse", "rectangle"}
        Shape of the opaque part.
    blur_radius : int
        Standard deviation of the Gaussian blur of alpha, in pixels (Pillow's radius), at least 0.
    opacity : int
        Alpha inside the shape before the blur, 0..255.
    margin : int
        Pixels by which the shape is smaller than the patch on every side, at least 0.
    brightness, contrast : float, optional
        Factors of the patch's colour jitter, at least 0; 1 changes nothing.

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
        integers = ("crop_x", "crop_y", "center_x", "center_y", "blur_radius", "margin")
        _check_fields(self, integers, ("brightness", "contrast"))
        object.__setattr__(self, "opacity", check_integer("opacity", self.opacity, 0, 255))
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be 'ellipse' or 'rectangle', got {self.shape!r}")


@dataclass(frozen=True)
class CutPasteParams:
    """One CutPaste: which patch is cut, how it is rotated, and where it goes.

    Parameters
    ----------
    crop_x, crop_y : int
        Upper left corner of the patch in the image, in pixels.
    width, height : int
        Size of the patch, in pixels, at least 1.
    paste_x, paste_y : int
        Upper left corner of the rotated patch's bounding box where it is pasted.
    angle : float, optional
        Counterclockwise rotation, in degrees.
    brightness, contrast : float, optional
        Factors of the patch's colour jitter, at least 0; 1 changes nothing.

    Raises
    ------
    TypeError, ValueError
        If a field has another type or leaves its range.
    """

    crop_x: int
    crop_y: int
    width: int
    height: int
    paste_x: int
    paste_y: int
    angle: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0

    def __post_init__(self) -> None:
        """Check every field, and keep plain Python numbers."""
        _check_fields(self, ("crop_x", "crop_y", "paste_x", "paste_y"), ("brightness", "contrast"))
        object.__setattr__(self, "angle", check_number("angle", self.angle))

    @property
    def bounding_box(self) -> tuple[int, int]:
        """Width and height, in pixels, of the rotated patch's bounding box."""
        cos, sin = abs(math.cos(math.radians(self.angle))), abs(math.sin(math.radians(self.angle)))
        # The subtraction keeps rounding errors from adding an empty pixel.
        return (
            math.ceil(self.width * cos + self.height * sin - 1e-9),
            math.ceil(self.width * sin + self.height * cos - 1e-9),
        )


def _check_fields(params: Any, integers: Sequence[str], factors: Sequence[str]) -> None:
    for name in integers:
        object.__setattr__(params, name, check_integer(name, getattr(params, name), 0, LARGEST))
    for name in ("width", "height"):
        object.__setattr__(params, name, check_integer(name, getattr(params, name), 1, LARGEST))
    for name in factors:
        object.__setattr__(params, name, check_number(name, getattr(params, name), 0))


@dataclass(frozen=True)
class PasteRanges:
    """The ranges that `sample_paste` draws from, checked when they are made.

    Attributes are those keyword arguments of `sample_paste`; a single number stands for a fixed
    value and is kept as a pair.
    """

    scale: Any = SCALE
    ratio: Any = RATIO
    blur: Any = BLUR
    opacity: Any = OPACITY
    margin: int = MARGIN
    jitter: float = JITTER

    def __post_init__(self) -> None:
        """Check every range and keep it as a pair of plain numbers."""
        for name, low, high, integer in (
            ("scale", 0, 1, False),
            ("ratio", 0, math.inf, False),
            ("blur", 0, LARGEST, True),
            ("opacity", 0, 255, True),
        ):
            pair = check_range(name, getattr(self, name), low, high, integer=integer)
            object.__setattr__(self, name, pair)
            if name in ("scale", "ratio") and pair[0] == 0:
                raise ValueError(f"{name} must be above 0, got {pair}")
        object.__setattr__(self, "margin", check_integer("margin", self.margin, 0, LARGEST))
        object.__setattr__(self, "jitter", check_number("jitter", self.jitter, 0, 1))


def sample_paste(
    mask: Mask,
    rng: Rng = None,
    *,
    scale: Range = SCALE,
    ratio: Range = RATIO,
    blur: Range = BLUR,
    opacity: Range = OPACITY,
    margin: int = MARGIN,
    jitter: float = JITTER,
) -> PasteParams:
    """Draw the parameters of one AnatPaste; all draws are independent.

    Parameters
    ----------
    mask : (H, W) ndarray of bool or integer, or Pillow image of mode 1 or L
        Lung mask of the image. Its shape is that of the image; the paste is centred on one of its
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
        Radius of the blur in pixels, uniform over whole numbers, at least 0.
    opacity : int or (int, int), optional
        Opacity, uniform over whole numbers within 0..255.
    margin : int, optional
        Pixels by which the shape is smaller than the patch on every side.
    jitter : float, optional
        Brightness and contrast of the patch are scaled by factors uniform in
        [1 - `jitter`, 1 + `jitter`]; 0..1.

    Returns
    -------
    params : PasteParams

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, or a range is reversed or leaves its limits.

    References
    ----------
    Sato et al., arXiv:2205.04282, section "AnatPaste augmentation". The blur, the margin and the
    opacity are the released code's, in pixels of a 256 x 256 image: scale them for other sizes.

    Examples
    --------
    >>> import numpy as np
    >>> from anatpaste_aug import sample_paste
    >>> params = sample_paste(np.ones((256, 256), bool), rng=0)
    >>> params.width, params.height, params.shape
    (62, 108, 'ellipse')
    """
    ranges = PasteRanges(scale, ratio, blur, opacity, margin, jitter)
    return draw_paste(as_mask(mask), as_generator(rng), ranges)


def draw_paste(mask: Mask, rng: np.random.Generator, ranges: PasteRanges) -> PasteParams:
    """Draw one paste from checked arguments."""
    crop = _draw_crop(mask.shape, rng, ranges)
    area = np.count_nonzero(mask)
    chosen = int(rng.integers(area or mask.size))
    center_y, center_x = divmod(_nth_pixel(mask, chosen) if area else chosen, mask.shape[1])
    return PasteParams(
        **crop,
        center_x=center_x,
        center_y=center_y,
        shape=SHAPES[rng.integers(2)],
        blur_radius=_draw_integer(rng, ranges.blur),
        opacity=_draw_integer(rng, ranges.opacity),
        margin=ranges.margin,
        brightness=_draw_factor(rng, ranges.jitter),
        contrast=_draw_factor(rng, ranges.jitter),
    )


def sample_cutpaste(
    shape: tuple[int, int],
    rng: Rng = None,
    *,
    scale: Range = SCALE,
    ratio: Range = RATIO,
    jitter: float = JITTER,
) -> CutPasteParams:
    """Draw the parameters of one CutPaste *normal* (Li et al., CVPR 2021, arXiv:2104.04015).

    Parameters
    ----------
    shape : (int, int)
        Height and width of the image.
    rng, scale, ratio, jitter
        As for `sample_paste`.

    Returns
    -------
    params : CutPasteParams
        The patch and its destination both lie inside the image.

    Raises
    ------
    TypeError, ValueError
        As `sample_paste`.
    """
    ranges = PasteRanges(scale, ratio, jitter=jitter)
    return draw_cutpaste(check_shape(shape), as_generator(rng), ranges)


def draw_cutpaste(
    shape: tuple[int, ...], rng: np.random.Generator, ranges: PasteRanges
) -> CutPasteParams:
    """Draw one CutPaste *normal* from checked arguments."""
    crop = _draw_crop(shape, rng, ranges)
    return CutPasteParams(
        **crop,
        paste_x=int(rng.integers(shape[1] - crop["width"], endpoint=True)),
        paste_y=int(rng.integers(shape[0] - crop["height"], endpoint=True)),
        brightness=_draw_factor(rng, ranges.jitter),
        contrast=_draw_factor(rng, ranges.jitter),
    )


def sample_scar(
    shape: tuple[int, int], rng: Rng = None, *, jitter: float = JITTER
) -> CutPasteParams:
    """Draw the parameters of one CutPaste *scar* (Li et al., CVPR 2021, arXiv:2104.04015).

    Width 2..16 and height 10..25 pixels, uniform over whole numbers (cut to the image's), angle
    uniform in [-45, 45] degrees, position uniform.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the image.
    rng, jitter
        As for `sample_paste`.

    Returns
    -------
    params : CutPasteParams
        The patch lies inside the image; so does its destination, if the image is at least as large
        as the rotated patch's bounding box.

    Raises
    ------
    TypeError, ValueError
        As `sample_paste`.
    """
    return draw_scar(check_shape(shape), as_generator(rng), PasteRanges(jitter=jitter))


def draw_scar(
    shape: tuple[int, ...], rng: np.random.Generator, ranges: PasteRanges
) -> CutPasteParams:
    """Draw one CutPaste *scar* from checked arguments."""
    width = min(_draw_integer(rng, SCAR_WIDTH), shape[1])
    height = min(_draw_integer(rng, SCAR_HEIGHT), shape[0])
    patch = CutPasteParams(
        crop_x=int(rng.integers(shape[1] - width, endpoint=True)),
        crop_y=int(rng.integers(shape[0] - height, endpoint=True)),
        width=width,
        height=height,
        paste_x=0,
        paste_y=0,
        angle=float(rng.uniform(*SCAR_ANGLE)),
        brightness=_draw_factor(rng, ranges.jitter),
        contrast=_draw_factor(rng, ranges.jitter),
    )
    box_width, box_height = patch.bounding_box
    return replace(
        patch,
        paste_x=int(rng.integers(max(shape[1] - box_width, 0), endpoint=True)),
        paste_y=int(rng.integers(max(shape[0] - box_height, 0), endpoint=True)),
    )


def _draw_crop(
    shape: tuple[int, ...], rng: np.random.Generator, ranges: PasteRanges
) -> dict[str, int]:
    height, width = shape[:2]
    area = rng.uniform(*ranges.scale) * height * width
    ratio = math.exp(rng.uniform(*np.log(ranges.ratio)))
    patch_width = min(max(round(math.sqrt(area * ratio)), 1), width)
    patch_height = min(max(round(math.sqrt(area / ratio)), 1), height)
    return {
        "crop_x": int(rng.integers(width - patch_width, endpoint=True)),
        "crop_y": int(rng.integers(height - patch_height, endpoint=True)),
        "width": patch_width,
        "height": patch_height,
    }


def _nth_pixel(mask: Mask, n: int) -> int:
    """Give ``np.flatnonzero(mask)[n]``, by halving: counting pixels is faster than listing them."""
    flat = mask.ravel()
    start, stop = 0, flat.size
    while stop - start > 4096:
        middle = (start + stop) // 2
        before = int(np.count_nonzero(flat[start:middle]))
        if n < before:
            stop = middle
        else:
            n -= before
            start = middle
    return start + int(np.flatnonzero(flat[start:stop])[n])


def _draw_integer(rng: np.random.Generator, ends: tuple[int, int]) -> int:
    return int(rng.integers(ends[0], ends[1], endpoint=True))


def _draw_factor(rng: np.random.Generator, jitter: float) -> float:
    return float(rng.uniform(1 - jitter, 1 + jitter))
