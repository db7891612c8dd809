"""CutPaste: *normal*, *scar* and their union (Li et al., CVPR 2021, arXiv:2104.04015)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from anatpaste_aug.checks import LARGEST, Range, Rng, check_inside, check_integers, check_number
from anatpaste_aug.images import Array, ImageLike, Mask, as_array, black_and_white
from anatpaste_aug.operations.anatpaste import JITTER, RATIO, SCALE
from anatpaste_aug.operations.base import (
    CallOptions,
    Operation,
    lengths_for_option,
    option,
    show_options,
)
from anatpaste_aug.operations.patch import PatchOptions, check_patch, cut_patch
from anatpaste_aug.operations.sampling import Sampler

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "CutPasteParams",
    "apply_cutpaste",
    "cutpaste",
    "cutpaste_scar",
    "cutpaste_union",
    "sample_cutpaste",
    "sample_scar",
]


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
    paste_x: int
    paste_y: int
    angle: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0

    def __post_init__(self) -> None:
        """Check every field, and keep plain Python numbers."""
        check_patch(self)
        check_integers(self, ("paste_x", "paste_y"), 0)
        vars(self)["angle"] = check_number("angle", self.angle)

    @property
    def bounding_box(self) -> tuple[int, int]:
        """Width and height, in pixels, of the rotated patch's bounding box."""
        return rotated_size(self.width, self.height, self.angle)


def rotated_size(width: int, height: int, angle: float) -> tuple[int, int]:
    """Return width and height of a rotated patch's bounding box."""
    turn = math.radians(angle)
    cos, sin = abs(math.cos(turn)), abs(math.sin(turn))
    # The subtraction keeps rounding errors from adding an empty pixel.
    across, down = width * cos + height * sin - 1e-9, width * sin + height * cos - 1e-9
    return math.ceil(across), math.ceil(down)


class CutPasteOperation(Operation[CutPasteParams]):
    """What the three kinds share: params, no use of lungs, and the paste itself."""

    params = CutPasteParams
    needs_lungs = False

    @staticmethod
    def apply(image: Array, params: CutPasteParams, lungs: Mask | None) -> tuple[Array, Mask]:
        """Turn the jittered patch about its center, nearest pixel, and put it in its place."""
        patch = cut_patch(image, params, *black_and_white(image))
        check_inside("the paste must begin", params.paste_x, params.paste_y, image.shape, params)
        box_width, box_height = params.bounding_box
        rows = slice(params.paste_y, params.paste_y + box_height)  # as far as the image goes
        columns = slice(params.paste_x, params.paste_x + box_width)
        before = image[rows, columns]
        # From the pixel centers of the box back to those of the patch.
        right = np.arange(before.shape[1]) + (0.5 - box_width / 2)
        down = (np.arange(before.shape[0]) + (0.5 - box_height / 2))[:, None]
        turn = math.radians(params.angle)
        cos, sin = math.cos(turn), math.sin(turn)
        x = np.floor(right * cos - down * sin + params.width / 2).astype(np.intp)
        y = np.floor(right * sin + down * cos + params.height / 2).astype(np.intp)
        inside = (x >= 0) & (x < params.width) & (y >= 0) & (y < params.height)

        out, region = image.copy(), np.zeros(image.shape[:2], bool)
        out[rows, columns][inside] = patch[y[inside], x[inside]]
        if out[rows, columns].tobytes() != before.tobytes():  # not so for black on a black border
            region[rows, columns] = inside
        return out, region


@dataclass(frozen=True)
class CutPaste(CutPasteOperation):
    """The options of *normal*, and what is done with them; see `cutpaste`."""

    scale: Range = option(SCALE, 0, 1, above=True)
    ratio: Range = option(RATIO, 1e-6, 1e6)
    jitter: float = option(JITTER, 0, 1, single=True)

    def draw(self, sampler: Sampler, shape: tuple[int, int], lungs: Any) -> CutPasteParams:
        """Draw a patch, and a place for it inside the image."""
        crop = sampler.crop(shape, self.scale, self.ratio)
        x, y = sampler.corner(shape, crop["width"], crop["height"])
        return CutPasteParams(**crop, paste_x=x, paste_y=y, **sampler.jitter(self.jitter))


@dataclass(frozen=True)
class CutPasteScar(CutPasteOperation):
    """The options of *scar*, and what is done with them; see `cutpaste_scar`."""

    width: Range = option((2, 16), 1, LARGEST, integer=True)
    height: Range = option((10, 25), 1, LARGEST, integer=True)
    angle: Range = option((-45, 45), -1e6, 1e6)
    jitter: float = option(JITTER, 0, 1, single=True)
    lengths_for: float | None = lengths_for_option()

    def draw(self, sampler: Sampler, shape: tuple[int, int], lungs: Any) -> CutPasteParams:
        """Draw a thin patch, its rotation, and a place for its bounding box."""
        # Scaled down to no less than 2 x 2 pixels, which hold the center of one at any angle.
        width = min(sampler.integer(self.scaled(self.width, shape, 2)), shape[1])
        height = min(sampler.integer(self.scaled(self.height, shape, 2)), shape[0])
        angle = sampler.uniform(self.angle)
        crop = sampler.corner(shape, width, height)
        place = sampler.corner(shape, *rotated_size(width, height, angle))
        jitter = sampler.jitter(self.jitter)
        return CutPasteParams(*crop, width, height, *place, angle, **jitter)


@dataclass(frozen=True)
class CutPasteUnion(CutPasteScar, CutPaste):
    """The options of both kinds, and what is done with them; see `cutpaste_union`."""

    def draw(self, sampler: Sampler, shape: tuple[int, int], lungs: Any) -> CutPasteParams:
        """Draw one of the two."""
        if sampler.choice((False, True)):
            return CutPasteScar.draw(self, sampler, shape, lungs)
        return CutPaste.draw(self, sampler, shape, lungs)


class ScarOptions(TypedDict, total=False):
    """The options of *scar*."""

    width: Range
    height: Range
    angle: Range
    jitter: float
    lengths_for: float | None


class CutPasteArguments(CallOptions, PatchOptions, total=False):
    """What forms of *normal* take."""


class ScarArguments(CallOptions, ScarOptions, total=False):
    """What forms of *scar* take."""


class UnionArguments(CallOptions, PatchOptions, ScarOptions, total=False):
    """What forms of the union take."""


class CutPasteForm:
    """What the transform and the module of CutPaste *normal* share: what they do and take."""

    operation: Any = CutPaste

    if TYPE_CHECKING:

        def __init__(self, p: float = 0.5, **options: Unpack[CutPasteArguments]) -> None: ...


@show_options(CutPaste, like=CutPaste.__call__)
def cutpaste(image: ImageLike, rng: Rng = None, **options: Unpack[CutPasteArguments]) -> Any:
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
        Where the patch lies; empty if it changes nothing, as black on black. Only with
        ``return_mask=True``.

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
    return CutPaste.call(image, rng, options)


class CutPasteScarForm:
    """What the transform and the module of CutPaste *scar* share: what they do and take."""

    operation: Any = CutPasteScar

    if TYPE_CHECKING:

        def __init__(self, p: float = 0.5, **options: Unpack[ScarArguments]) -> None: ...


@show_options(CutPasteScar, like=CutPasteScar.__call__)
def cutpaste_scar(image: ImageLike, rng: Rng = None, **options: Unpack[ScarArguments]) -> Any:
    """Paste a thin rotated patch of the image at a uniformly drawn place: CutPaste *scar*.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image
        As for `anatpaste`.
    rng : int, numpy.random.Generator or None, optional
        Seed or source of the draws.
    return_mask : bool, optional
        Whether to return the changed region too.
    width, height, angle, jitter, lengths_for
        As for `sample_scar`.

    Returns
    -------
    out : same type, shape and dtype as `image`
    region : (H, W) ndarray of bool
        Where the rotated patch lies; empty if it changes nothing. Only with ``return_mask=True``.

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
    return CutPasteScar.call(image, rng, options)


class CutPasteUnionForm:
    """What the transform and the module of the union share: what they do and take."""

    operation: Any = CutPasteUnion

    if TYPE_CHECKING:

        def __init__(self, p: float = 0.5, **options: Unpack[UnionArguments]) -> None: ...


@show_options(CutPasteUnion, like=CutPasteUnion.__call__)
def cutpaste_union(image: ImageLike, rng: Rng = None, **options: Unpack[UnionArguments]) -> Any:
    """Paste as `cutpaste` or as `cutpaste_scar`, each half of the time.

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
    width, height, angle, lengths_for
        As for `sample_scar`; *normal* does not use them.

    Returns
    -------
    out : same type, shape and dtype as `image`
    region : (H, W) ndarray of bool
        Where the patch lies; empty if it changes nothing, as black on black. Only with
        ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        As `anatpaste`.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015, section 2.2.

    Examples
    --------
    >>> from anatpaste_aug import cutpaste_union
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> cutpaste_union(phantom_radiograph(128, rng=0), rng=0).shape
    (128, 128)
    """
    return CutPasteUnion.call(image, rng, options)


@show_options(CutPaste)
def sample_cutpaste(
    image: ImageLike, rng: Rng = None, **options: Unpack[PatchOptions]
) -> CutPasteParams:
    """Draw the parameters of one CutPaste *normal* (Li et al., CVPR 2021, arXiv:2104.04015).

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image
        As for `anatpaste`; only its height and width are used.
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
    return CutPaste(**options).sample(as_array(image).shape[:2], None, rng)


@show_options(CutPasteScar)
def sample_scar(
    image: ImageLike, rng: Rng = None, **options: Unpack[ScarOptions]
) -> CutPasteParams:
    """Draw the parameters of one CutPaste *scar* (Li et al., CVPR 2021, arXiv:2104.04015).

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image
        As for `anatpaste`; only its height and width are used.
    rng, jitter
        As for `sample_paste`.
    width, height : int or (int, int), optional
        Size of the patch in pixels of a 256 x 256 image (see `lengths_for`), uniform over whole
        numbers, at least 1; scaled down to no less than 2, and cut to the image's size.
    angle : float or (float, float), optional
        Counterclockwise rotation in degrees, uniform.
    lengths_for : float or None, optional
        As for `sample_paste`, for `width` and `height`.

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
    return CutPasteScar(**options).sample(as_array(image).shape[:2], None, rng)


def apply_cutpaste(image: ImageLike, params: CutPasteParams, *, return_mask: bool = False) -> Any:
    """Apply one CutPaste, *normal* (no angle) or *scar*; deterministic.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image
        As for `anatpaste`.
    params : CutPasteParams
        What to paste. The patch is rotated about its center, nearest pixel, and pasted through its
        own outline; what would leave the image is cut off.
    return_mask : bool, optional
        Whether to return the changed region too.

    Returns
    -------
    out : same type, shape and dtype as `image`
    region : (H, W) ndarray of bool
        Where the patch lies; empty if it changes nothing, as black on black. Only with
        ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, or the patch lies outside the image.
    """
    return CutPasteOperation.replay(image, params, return_mask=return_mask)
