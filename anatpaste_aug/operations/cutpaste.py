"""CutPaste: *normal*, *scar* and their union (Li et al., CVPR 2021, arXiv:2104.04015)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np

from anatpaste_aug.checks import LARGEST, Range, Rng, check_number
from anatpaste_aug.images import Array, ImageLike, ImageT, Mask, as_array
from anatpaste_aug.operations.anatpaste import JITTER, RATIO, SCALE
from anatpaste_aug.operations.base import LENGTHS_FOR, Operation, lengths_for_option, option
from anatpaste_aug.operations.draws import Drawn, Draws, Fields
from anatpaste_aug.operations.patch import check_fields, cut_patch

if TYPE_CHECKING:
    from typing_extensions import Unpack

# The published ranges of the scar.
WIDTH = (2, 16)
HEIGHT = (10, 25)
ANGLE = (-45, 45)


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
        check_fields(self, ("crop_x", "crop_y", "paste_x", "paste_y"))
        object.__setattr__(self, "angle", check_number("angle", self.angle))

    @property
    def bounding_box(self) -> tuple[int, int]:
        """Width and height, in pixels, of the rotated patch's bounding box."""
        return bounding_box(self.width, self.height, self.angle, math)


def bounding_box(width: Drawn, height: Drawn, angle: Drawn, functions: Any) -> tuple[Drawn, Drawn]:
    """Return width and height of a rotated patch's bounding box, as whole numbers.

    `functions` holds `cos`, `sin` and `ceil`: `math` for numbers, `torch` for tensors.
    """
    turn = angle * (math.pi / 180)
    cos, sin = abs(functions.cos(turn)), abs(functions.sin(turn))
    # The subtraction keeps rounding errors from adding an empty pixel.
    return (
        functions.ceil(width * cos + height * sin - 1e-9),
        functions.ceil(width * sin + height * cos - 1e-9),
    )


class _CutPaste(Operation[CutPasteParams]):
    """What the three kinds share: params, no interest in the lungs, and the paste itself."""

    params = CutPasteParams
    needs_lungs = False

    @staticmethod
    def apply(image: Array, params: CutPasteParams, lungs: Mask | None) -> tuple[Array, Mask]:
        """Turn the jittered patch about its centre, nearest pixel, and put it in its place."""
        height, width = image.shape[:2]
        patch = cut_patch(image, params)
        if params.paste_x >= width or params.paste_y >= height:
            raise ValueError(
                f"the paste must begin inside the image of height {height} and width {width}, "
                f"got {params}"
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

        out = image.copy()
        out[window][inside] = patch[y[inside], x[inside]]
        region = np.zeros((height, width), bool)
        region[window] = inside
        return out, region


@dataclass(frozen=True)
class CutPaste(_CutPaste):
    """The options of *normal*, and what is done with them; see `cutpaste`."""

    scale: Range = option(SCALE, 0, 1, above=True)
    ratio: Range = option(RATIO, 1e-6, 1e6)
    jitter: float = option(JITTER, 0, 1, single=True)

    def draw(self, draws: Draws, shape: tuple[int, int], lungs: Any) -> Fields:
        """Draw a patch, and a place for it inside the image."""
        crop = draws.crop(shape, self.scale, self.ratio)
        return {
            **crop,
            "paste_x": draws.integer((0, shape[1] - crop["width"])),
            "paste_y": draws.integer((0, shape[0] - crop["height"])),
            "angle": 0.0,
            **draws.jitter(self.jitter),
        }


@dataclass(frozen=True)
class CutPasteScar(_CutPaste):
    """The options of *scar*, and what is done with them; see `cutpaste_scar`."""

    width: Range = option(WIDTH, 1, LARGEST, integer=True)
    height: Range = option(HEIGHT, 1, LARGEST, integer=True)
    angle: Range = option(ANGLE, -1e6, 1e6)
    jitter: float = option(JITTER, 0, 1, single=True)
    lengths_for: float | None = lengths_for_option()

    def draw(self, draws: Draws, shape: tuple[int, int], lungs: Any) -> Fields:
        """Draw a thin patch, its rotation, and a place for its bounding box."""
        # Scaled down to no less than 2 x 2 pixels, which hold the centre of one at any angle.
        width = draws.clip(draws.integer(self.scaled(self.width, shape, 2)), 1, shape[1])
        height = draws.clip(draws.integer(self.scaled(self.height, shape, 2)), 1, shape[0])
        angle = draws.uniform(self.angle)
        box = bounding_box(width, height, angle, draws.math)
        return {
            "crop_x": draws.integer((0, shape[1] - width)),
            "crop_y": draws.integer((0, shape[0] - height)),
            "width": width,
            "height": height,
            "paste_x": draws.integer((0, draws.clip(shape[1] - draws.whole(box[0]), 0, shape[1]))),
            "paste_y": draws.integer((0, draws.clip(shape[0] - draws.whole(box[1]), 0, shape[0]))),
            "angle": angle,
            **draws.jitter(self.jitter),
        }


@dataclass(frozen=True)
class CutPasteUnion(CutPasteScar, CutPaste):
    """The options of both kinds, and what is done with them; see `cutpaste_union`."""

    def draw(self, draws: Draws, shape: tuple[int, int], lungs: Any) -> Fields:
        """Draw one of the two."""
        return draws.either(
            lambda: CutPaste.draw(self, draws, shape, lungs),
            lambda: CutPasteScar.draw(self, draws, shape, lungs),
        )


class CutArgs(TypedDict, total=False):
    """What `cutpaste` takes besides `return_mask`, for its overloads."""

    scale: Range
    ratio: Range
    jitter: float


@overload
def cutpaste(
    image: ImageT, rng: Rng = None, *, return_mask: Literal[False] = False, **own: Unpack[CutArgs]
) -> ImageT: ...
@overload
def cutpaste(
    image: ImageT, rng: Rng = None, *, return_mask: Literal[True], **own: Unpack[CutArgs]
) -> tuple[ImageT, Mask]: ...
def cutpaste(
    image: ImageT,
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
    return CutPaste(scale, ratio, jitter)(image, rng, return_mask=return_mask)


class ScarArgs(TypedDict, total=False):
    """What `cutpaste_scar` takes besides `return_mask`, for its overloads."""

    width: Range
    height: Range
    angle: Range
    jitter: float
    lengths_for: float | None


@overload
def cutpaste_scar(
    image: ImageT, rng: Rng = None, *, return_mask: Literal[False] = False, **own: Unpack[ScarArgs]
) -> ImageT: ...
@overload
def cutpaste_scar(
    image: ImageT, rng: Rng = None, *, return_mask: Literal[True], **own: Unpack[ScarArgs]
) -> tuple[ImageT, Mask]: ...
def cutpaste_scar(
    image: ImageT,
    rng: Rng = None,
    *,
    return_mask: bool = False,
    width: Range = WIDTH,
    height: Range = HEIGHT,
    angle: Range = ANGLE,
    jitter: float = JITTER,
    lengths_for: float | None = LENGTHS_FOR,
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
    width, height, angle, jitter, lengths_for
        As for `sample_scar`.

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
    return CutPasteScar(width, height, angle, jitter, lengths_for)(
        image, rng, return_mask=return_mask
    )


class UnionArgs(CutArgs, ScarArgs, total=False):
    """What `cutpaste_union` takes besides `return_mask`, for its overloads."""


@overload
def cutpaste_union(
    image: ImageT, rng: Rng = None, *, return_mask: Literal[False] = False, **own: Unpack[UnionArgs]
) -> ImageT: ...
@overload
def cutpaste_union(
    image: ImageT, rng: Rng = None, *, return_mask: Literal[True], **own: Unpack[UnionArgs]
) -> tuple[ImageT, Mask]: ...
def cutpaste_union(
    image: ImageT,
    rng: Rng = None,
    *,
    return_mask: bool = False,
    scale: Range = SCALE,
    ratio: Range = RATIO,
    jitter: float = JITTER,
    width: Range = WIDTH,
    height: Range = HEIGHT,
    angle: Range = ANGLE,
    lengths_for: float | None = LENGTHS_FOR,
) -> Any:
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
        As for `sample_scar`; *normal* has no use for them.

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
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015, section 2.2.

    Examples
    --------
    >>> from anatpaste_aug import cutpaste_union
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> cutpaste_union(phantom_radiograph(128, rng=0), rng=0).shape
    (128, 128)
    """
    return CutPasteUnion(scale, ratio, jitter, width, height, angle, lengths_for)(
        image, rng, return_mask=return_mask
    )


def sample_cutpaste(
    image: ImageLike,
    rng: Rng = None,
    *,
    scale: Range = SCALE,
    ratio: Range = RATIO,
    jitter: float = JITTER,
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
    return CutPaste(scale, ratio, jitter).sample(as_array(image).shape[:2], None, rng)


def sample_scar(
    image: ImageLike,
    rng: Rng = None,
    *,
    width: Range = WIDTH,
    height: Range = HEIGHT,
    angle: Range = ANGLE,
    jitter: float = JITTER,
    lengths_for: float | None = LENGTHS_FOR,
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
    scar = CutPasteScar(width, height, angle, jitter, lengths_for)
    return scar.sample(as_array(image).shape[:2], None, rng)


@overload
def apply_cutpaste(
    image: ImageT, params: CutPasteParams, *, return_mask: Literal[False] = False
) -> ImageT: ...
@overload
def apply_cutpaste(
    image: ImageT, params: CutPasteParams, *, return_mask: Literal[True]
) -> tuple[ImageT, Mask]: ...
def apply_cutpaste(image: ImageT, params: CutPasteParams, *, return_mask: bool = False) -> Any:
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
    return _CutPaste.replay(image, params, return_mask=return_mask)
