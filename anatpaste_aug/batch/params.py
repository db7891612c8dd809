"""What is drawn for a batch: parameters as tensors of (B,), and their distributions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from anatpaste_aug import sampling
from anatpaste_aug.batch.tensors import as_images, as_masks, check_device
from anatpaste_aug.sampling import (
    BLUR,
    JITTER,
    MARGIN,
    OPACITY,
    RATIO,
    SCALE,
    SCAR_ANGLE,
    SCAR_HEIGHT,
    SCAR_WIDTH,
    SHAPES,
    PasteRanges,
    Range,
)

Params = TypeVar("Params", bound="_Params")
REAL = ("brightness", "contrast", "angle")


class _Params:
    """What `PasteParams` and `CutPasteParams` of a batch share: checks, stacking, elements."""

    single: ClassVar[Any]
    names: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        """Check dtypes and shapes, not values: that would wait for the device.

        What is computed from them must not depend on their precision: int64 and float64 are kept.
        """
        first = self.tensors()[0]
        for name, value in zip(self.names, self.tensors(), strict=True):
            if not isinstance(value, Tensor) or value.is_floating_point() != (name in REAL):
                kind = "floating-point" if name in REAL else "integer"
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{name} must be a tensor of {kind} dtype, got {got}")
            if value.is_complex():
                raise TypeError(f"{name} must be a tensor of integer dtype, got {value.dtype}")
            if value.ndim != 1 or value.shape != first.shape:
                raise ValueError(
                    f"{name} must have the shape (B,) = {tuple(first.shape[:1])}, "
                    f"got {tuple(value.shape)}"
                )
            kept = torch.float64 if name in REAL else torch.int64
            object.__setattr__(self, name, value.to(kept))

    def tensors(self) -> list[Tensor]:
        """Give the fields, in order."""
        return [getattr(self, name) for name in self.names]

    def to(self: Params, device: torch.device | str) -> Params:
        """Give the same parameters on another device."""
        return type(self)(*(value.to(device) for value in self.tensors()))

    def __len__(self) -> int:
        return self.tensors()[0].shape[0]

    def __getitem__(self, index: int) -> Any:
        """Give the functional parameters of one element; this reads them back to the host."""
        return self._single([value[index].item() for value in self.tensors()])

    def unstack(self) -> list[Any]:
        """Give the functional parameters of all elements; this reads them back to the host."""
        columns = [value.tolist() for value in self.tensors()]
        return [self._single(values) for values in zip(*columns, strict=True)]

    def _single(self, values: Iterable[Any]) -> Any:
        named = dict(zip(self.names, values, strict=True))
        if "shape" in named:
            named["shape"] = SHAPES[named["shape"]]
        return self.single(**named)

    @classmethod
    def stack(
        cls: type[Params], items: Iterable[Any], device: torch.device | str = "cpu"
    ) -> Params:
        """Make the parameters of a batch from functional ones, one for each element."""
        items = list(items)
        columns = {name: [getattr(item, name) for item in items] for name in cls.names}
        if "shape" in columns:
            columns["shape"] = [SHAPES.index(shape) for shape in columns["shape"]]
        return cls(
            **{
                name: torch.tensor(
                    values, dtype=torch.float64 if name in REAL else torch.int64, device=device
                )
                for name, values in columns.items()
            }
        )


@dataclass(frozen=True, eq=False)
class PasteParams(_Params):
    """One paste for each image of a batch; ``params[i]`` is the functional `PasteParams` of one.

    Parameters
    ----------
    crop_x, crop_y, width, height, center_x, center_y, blur_radius, opacity, margin : (B,) Tensor
        As in the functional form, of an integer dtype; kept as int64. Their ranges are not checked,
        because that would wait for the device.
    shape : (B,) Tensor
        0 for "ellipse", 1 for "rectangle".
    brightness, contrast : (B,) Tensor
        Factors of the colour jitter, floating-point; kept as float64.

    Raises
    ------
    TypeError, ValueError
        If a field has another dtype or shape.

    Examples
    --------
    Element 3 alone, in the functional form:

    >>> import torch
    >>> import anatpaste_aug as ap
    >>> from anatpaste_aug import batch
    >>> images = torch.randint(256, (4, 1, 64, 64), dtype=torch.uint8)
    >>> masks = batch.lung_mask(images)
    >>> params = batch.sample_paste(masks)
    >>> alone = ap.apply_paste(images[3, 0].numpy(), params[3], masks[3, 0].numpy())
    >>> bool((batch.apply_paste(images, params, masks)[3, 0].numpy() == alone).all())
    True
    """

    crop_x: Tensor
    crop_y: Tensor
    width: Tensor
    height: Tensor
    center_x: Tensor
    center_y: Tensor
    shape: Tensor
    blur_radius: Tensor
    opacity: Tensor
    margin: Tensor
    brightness: Tensor
    contrast: Tensor

    single = sampling.PasteParams
    names = tuple(field.name for field in fields(sampling.PasteParams))


@dataclass(frozen=True, eq=False)
class CutPasteParams(_Params):
    """One CutPaste for each image; ``params[i]`` is the functional `CutPasteParams` of one.

    Parameters
    ----------
    crop_x, crop_y, width, height, paste_x, paste_y : (B,) Tensor
        As in the functional form, of an integer dtype; kept as int64; ranges are not
        checked.
    angle, brightness, contrast : (B,) Tensor
        Degrees counterclockwise, and factors of the colour jitter; floating-point, kept as
        float64.

    Raises
    ------
    TypeError, ValueError
        If a field has another dtype or shape.
    """

    crop_x: Tensor
    crop_y: Tensor
    width: Tensor
    height: Tensor
    paste_x: Tensor
    paste_y: Tensor
    angle: Tensor
    brightness: Tensor
    contrast: Tensor

    single = sampling.CutPasteParams
    names = tuple(field.name for field in fields(sampling.CutPasteParams))


class Draws:
    """Independent draws, one for each element of a batch, on the batch's device."""

    def __init__(self, count: int, device: torch.device, generator: torch.Generator | None):
        if generator is not None:
            if not isinstance(generator, torch.Generator):
                raise TypeError(
                    f"generator must be a torch.Generator or None, got {type(generator).__name__}"
                )
            check_device("generator", generator, device)
        self.count, self.device, self.generator = count, device, generator

    def uniform(self, low: float, high: float) -> Tensor:
        """Draw float64 numbers from [low, high)."""
        draws = torch.rand(
            self.count, dtype=torch.float64, device=self.device, generator=self.generator
        )
        return low + (high - low) * draws

    def integer(self, low: Any, high: Any) -> Tensor:
        """Draw whole numbers from low..high, which may be (B,) tensors."""
        draws = torch.randint(2**62, (self.count,), device=self.device, generator=self.generator)
        return low + draws % (high - low + 1)  # the remainder favours none by more than 2**-30

    def constant(self, value: int) -> Tensor:
        """Give the same whole number to each."""
        return torch.full((self.count,), value, dtype=torch.int64, device=self.device)

    def jitter(self, jitter: float) -> dict[str, Tensor]:
        """Draw the factors of the colour jitter."""
        low, high = 1 - jitter, 1 + jitter
        return {"brightness": self.uniform(low, high), "contrast": self.uniform(low, high)}

    def crop(self, height: int, width: int, ranges: PasteRanges) -> dict[str, Tensor]:
        """Draw a patch: area, aspect, and position inside the image."""
        area = self.uniform(*ranges.scale) * (height * width)
        low, high = ranges.ratio
        aspect = self.uniform(math.log(low), math.log(high)).exp()
        patch_width = (area * aspect).sqrt().round().long().clamp(1, width)
        patch_height = (area / aspect).sqrt().round().long().clamp(1, height)
        return {
            "crop_x": self.integer(0, width - patch_width),
            "crop_y": self.integer(0, height - patch_height),
            "width": patch_width,
            "height": patch_height,
        }

    def pixel(self, masks: Tensor) -> Tensor:
        """Draw a True pixel of each (B, H, W) mask, as a flat index; any pixel if none is True."""
        ranks = masks.flatten(1).cumsum(1, dtype=torch.int32)
        found = ranks[:, -1].long()
        draws = self.integer(0, found.masked_fill(found == 0, ranks.shape[1]) - 1)
        ranked = torch.searchsorted(ranks, draws[:, None].int() + 1)[:, 0]
        return torch.where(found == 0, draws, ranked)


def sample_paste(
    masks: Tensor,
    generator: torch.Generator | None = None,
    *,
    scale: Range = SCALE,
    ratio: Range = RATIO,
    blur: Range = BLUR,
    opacity: Range = OPACITY,
    margin: int = MARGIN,
    jitter: float = JITTER,
) -> PasteParams:
    """Draw one AnatPaste for each image of a batch; all draws are independent.

    Parameters
    ----------
    masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer
        Lung masks. Each paste is centred on a pixel of its mask, drawn uniformly, or anywhere in
        the image if the mask is empty.
    generator : torch.Generator, optional
        Source of the draws, on the device of `masks`; default is torch's global one.
    scale, ratio, blur, opacity, margin, jitter
        As for `anatpaste_aug.sample_paste`.

    Returns
    -------
    params : PasteParams
        Tensors of (B,) on the device of `masks`.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or shape, or a range is reversed or leaves its limits.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> params = batch.sample_paste(torch.ones(8, 1, 256, 256, dtype=torch.bool))
    >>> len(params), params.width.shape
    (8, torch.Size([8]))
    """
    ranges = PasteRanges(scale, ratio, blur, opacity, margin, jitter)
    return draw_paste(as_masks(masks), generator, ranges)


def draw_paste(
    masks: Tensor, generator: torch.Generator | None, ranges: PasteRanges
) -> PasteParams:
    """Draw pastes from checked (B, H, W) masks."""
    count, height, width = masks.shape
    draws = Draws(count, masks.device, generator)
    center = draws.pixel(masks)
    return PasteParams(
        **draws.crop(height, width, ranges),
        center_x=center % width,
        center_y=center // width,
        shape=draws.integer(0, len(SHAPES) - 1),
        blur_radius=draws.integer(*ranges.blur),
        opacity=draws.integer(*ranges.opacity),
        margin=draws.constant(ranges.margin),
        **draws.jitter(ranges.jitter),
    )


def sample_cutpaste(
    images: Tensor,
    generator: torch.Generator | None = None,
    *,
    scale: Range = SCALE,
    ratio: Range = RATIO,
    jitter: float = JITTER,
) -> CutPasteParams:
    """Draw one CutPaste *normal* for each image of a batch.

    Parameters
    ----------
    images : (B, C, H, W) or (B, H, W) Tensor
        Only its shape and device are used.
    generator : torch.Generator, optional
        Source of the draws, on the device of `images`.
    scale, ratio, jitter
        As for `anatpaste_aug.sample_paste`.

    Returns
    -------
    params : CutPasteParams
        Tensors of (B,); patch and destination lie inside the image.

    Raises
    ------
    TypeError, ValueError
        As `sample_paste`.
    """
    ranges = PasteRanges(scale, ratio, jitter=jitter)
    images = as_images(images)
    count, _, height, width = images.shape
    draws = Draws(count, images.device, generator)
    crop = draws.crop(height, width, ranges)
    return CutPasteParams(
        **crop,
        paste_x=draws.integer(0, width - crop["width"]),
        paste_y=draws.integer(0, height - crop["height"]),
        angle=draws.uniform(0, 0),
        **draws.jitter(jitter),
    )


def sample_scar(
    images: Tensor, generator: torch.Generator | None = None, *, jitter: float = JITTER
) -> CutPasteParams:
    """Draw one CutPaste *scar* for each image of a batch.

    Parameters
    ----------
    images : (B, C, H, W) or (B, H, W) Tensor
        Only its shape and device are used.
    generator : torch.Generator, optional
        Source of the draws, on the device of `images`.
    jitter : float, optional
        As for `anatpaste_aug.sample_paste`.

    Returns
    -------
    params : CutPasteParams
        Tensors of (B,), distributed as `anatpaste_aug.sample_scar` states.

    Raises
    ------
    TypeError, ValueError
        As `sample_paste`.
    """
    PasteRanges(jitter=jitter)
    images = as_images(images)
    count, _, height, width = images.shape
    draws = Draws(count, images.device, generator)
    patch_width = draws.integer(*SCAR_WIDTH).clamp(max=width)
    patch_height = draws.integer(*SCAR_HEIGHT).clamp(max=height)
    angle = draws.uniform(*SCAR_ANGLE)
    box_width, box_height = bounding_box(patch_width, patch_height, angle)
    return CutPasteParams(
        crop_x=draws.integer(0, width - patch_width),
        crop_y=draws.integer(0, height - patch_height),
        width=patch_width,
        height=patch_height,
        paste_x=draws.integer(0, (width - box_width).clamp(min=0)),
        paste_y=draws.integer(0, (height - box_height).clamp(min=0)),
        angle=angle,
        **draws.jitter(jitter),
    )


def bounding_box(width: Tensor, height: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Give width and height of rotated patches' bounding boxes, as the functional property."""
    cos, sin = (angle * (math.pi / 180)).cos().abs(), (angle * (math.pi / 180)).sin().abs()
    return (
        (width * cos + height * sin - 1e-9).ceil().long(),
        (width * sin + height * cos - 1e-9).ceil().long(),
    )
