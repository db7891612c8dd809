"""CutPaste on a batch: draws and paste, and the operator that pastes on any device."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from anatpaste_aug import operations
from anatpaste_aug.batch.draws import TorchDraws
from anatpaste_aug.batch.params import CutPasteParams, check_params
from anatpaste_aug.batch.patch import apply_each, color_jitter, levels, take, within
from anatpaste_aug.batch.tensors import as_images, chunks, everyone, make_op, working
from anatpaste_aug.checks import Range
from anatpaste_aug.operations.anatpaste import JITTER, RATIO, SCALE
from anatpaste_aug.operations.base import LENGTHS_FOR
from anatpaste_aug.operations.cutpaste import ANGLE, HEIGHT, WIDTH, bounding_box


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
    images : (B, C, H, W) Tensor
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
    images = as_images(images)
    return _sample(operations.CutPaste(scale, ratio, jitter), images, generator)


def sample_scar(
    images: Tensor,
    generator: torch.Generator | None = None,
    *,
    width: Range = WIDTH,
    height: Range = HEIGHT,
    angle: Range = ANGLE,
    jitter: float = JITTER,
    lengths_for: float | None = LENGTHS_FOR,
) -> CutPasteParams:
    """Draw one CutPaste *scar* for each image of a batch.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        Only its shape and device are used.
    generator : torch.Generator, optional
        Source of the draws, on the device of `images`.
    width, height, angle, jitter, lengths_for
        As for `anatpaste_aug.sample_scar`.

    Returns
    -------
    params : CutPasteParams
        Tensors of (B,), distributed as `anatpaste_aug.sample_scar` states.

    Raises
    ------
    TypeError, ValueError
        As `sample_paste`.
    """
    images = as_images(images)
    scar = operations.CutPasteScar(width, height, angle, jitter, lengths_for)
    return _sample(scar, images, generator)


def _sample(
    operation: operations.Operation[Any], images: Tensor, generator: torch.Generator | None
) -> CutPasteParams:
    drawn: CutPasteParams = TorchDraws(images, generator).sample(operation, images.shape[2:], None)
    return drawn


@overload
def apply_cutpaste(
    images: Tensor, params: CutPasteParams, *, return_mask: Literal[False] = False
) -> Tensor: ...
@overload
def apply_cutpaste(
    images: Tensor, params: CutPasteParams, *, return_mask: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def apply_cutpaste(images: Tensor, params: CutPasteParams, *, return_mask: bool = False) -> Any:
    """Apply one CutPaste, *normal* or *scar*, to each image; deterministic.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        As for `apply_paste`.
    params : CutPasteParams
        What to paste; patches must lie inside the images, which is not checked on a GPU.
    return_mask : bool, optional
        Whether to return the changed regions too.

    Returns
    -------
    out : Tensor, same shape, dtype, device and memory layout as `images`
        What `anatpaste_aug.apply_cutpaste` gives image by image.
    regions : (B, 1, H, W) Tensor of bool
        Where the patches lie. Only with ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or device.
    """
    images = as_images(images)
    check_params(params, CutPasteParams, images)
    out, regions = paste_chosen(images, params, None, everyone(images))
    return (out, regions) if return_mask else out


def paste_chosen(
    images: Tensor, params: CutPasteParams, lungs: Tensor | None, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images of a checked batch; return images and (B, 1, H, W) regions."""
    return _cutpaste(images, params.tensors(), chosen)


def cutpaste_fake(images: Tensor, fields: list[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return empty tensors for images and regions."""
    region = images.new_empty((images.shape[0], 1, *images.shape[2:]), dtype=torch.bool)
    return torch.empty_like(images), region


def cutpaste_plain(images: Tensor, fields: list[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """CutPaste into the chosen images with plain torch operations; return images and regions."""
    out, regions = cutpaste_fake(images, fields, chosen)
    for part in chunks(images):
        params = CutPasteParams(*(field[part] for field in fields))
        region, y, x = rotated_patch(params, *images.shape[2:])
        region &= chosen[part, None, None]
        work = working(images[part])
        jittered = color_jitter(work, params, *levels(images[part], work))
        patch = take(jittered, y + params.crop_y[:, None, None], x + params.crop_x[:, None, None])
        out[part] = torch.where(region[:, None], patch, work).to(images.dtype)
        regions[part] = region[:, None]
    return out, regions


def rotated_patch(params: CutPasteParams, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return where rotated patches lie, and the row and column in the patch for every pixel."""
    box_width, box_height = (
        side.long() for side in bounding_box(params.width, params.height, params.angle, torch)
    )
    right = torch.arange(width, device=params.angle.device) - params.paste_x[:, None]
    down = torch.arange(height, device=params.angle.device) - params.paste_y[:, None]
    inside = within(down, box_height)[:, :, None] & within(right, box_width)[:, None, :]
    # From the pixel centres of the box back to those of the patch.
    right = (right + (0.5 - box_width.double() / 2)[:, None])[:, None, :]
    down = (down + (0.5 - box_height.double() / 2)[:, None])[:, :, None]
    angle = params.angle.double()[:, None, None] * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x = (right * cos - down * sin + (params.width.double() / 2)[:, None, None]).floor().long()
    y = (right * sin + down * cos + (params.height.double() / 2)[:, None, None]).floor().long()
    last_x, last_y = params.width[:, None, None] - 1, params.height[:, None, None] - 1
    region = inside & (x >= 0) & (x <= last_x) & (y >= 0) & (y <= last_y)
    zero = torch.zeros_like(last_x)
    return region, torch.clamp(y, zero, last_y), torch.clamp(x, zero, last_x)


def cutpaste_cpu(images: Tensor, fields: list[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """CutPaste into the chosen images one by one in the functional form."""
    params = CutPasteParams(*fields)
    return apply_each(operations.CutPaste.apply, images, params, None, chosen)


_cutpaste = make_op(
    "cutpaste",
    "(Tensor images, Tensor[] fields, Tensor chosen) -> (Tensor, Tensor)",
    cutpaste_plain,
    cutpaste_cpu,
    cutpaste_fake,
)
