"""Opacity on a batch: draw, alpha and paste, and the operator that pastes on any device.

Arithmetic that NumPy and torch share is in `anatpaste_aug.operations.opacity`. Here, alpha is
computed on the whole grid: what a window leaves out there is 0 here.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from anatpaste_aug import operations
from anatpaste_aug.batch.anatpaste import paste_fake
from anatpaste_aug.batch.draws import TorchDraws
from anatpaste_aug.batch.params import OpacityParams, check_params
from anatpaste_aug.batch.patch import apply_each, blend, within
from anatpaste_aug.batch.tensors import (
    as_images,
    as_masks,
    chunks,
    everyone,
    make_op,
    masks_or_none,
    span,
    working,
)
from anatpaste_aug.images import Array, Mask
from anatpaste_aug.operations import opacity as functional
from anatpaste_aug.operations.base import LENGTHS_FOR
from anatpaste_aug.operations.opacity import KINDS, Kinds


def sample_opacity(
    masks: Tensor,
    generator: torch.Generator | None = None,
    *,
    kinds: Kinds = KINDS,
    size: float = 1,
    density: float = 1,
    lengths_for: float | None = LENGTHS_FOR,
) -> OpacityParams:
    """Draw one opacity for each image of a batch.

    Parameters
    ----------
    masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer
        Lung masks, as for `anatpaste_aug.sample_opacity`.
    generator : torch.Generator, optional
        Source of the draws, on the device of `masks`; default is torch's global one.
    kinds, size, density, lengths_for
        As for `anatpaste_aug.sample_opacity`.

    Returns
    -------
    params : OpacityParams
        Tensors of (B,) on the device of `masks`.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or shape, or leaves its limits.
    """
    lungs = as_masks(masks)
    opacity = operations.Opacity(kinds, size, density, lengths_for)
    drawn: OpacityParams = TorchDraws(lungs, generator).sample(opacity, lungs.shape[1:], lungs)
    return drawn


def opacity_alpha(params: OpacityParams, masks: Tensor) -> Tensor:
    """Draw the alpha of each opacity: its profile, with a texture, times the softened lungs.

    Parameters
    ----------
    params : OpacityParams
        One opacity for each mask.
    masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer
        Lung masks; an empty one confines nothing.

    Returns
    -------
    alpha : (B, 1, H, W) Tensor of uint8
        0 (image) to 255 (bright level); equal to `anatpaste_aug.opacity_alpha`, byte for byte.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or device.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> masks = torch.ones(4, 1, 64, 64, dtype=torch.bool)
    >>> batch.opacity_alpha(batch.sample_opacity(masks), masks).shape
    torch.Size([4, 1, 64, 64])
    """
    masks = as_masks(masks)
    check_params(params, OpacityParams, masks)
    canvas = masks[:, None].to(torch.uint8)
    alpha: Tensor = _opacity(canvas, params.tensors(), masks, everyone(masks))[1]
    return alpha


@overload
def apply_opacity(
    images: Tensor,
    params: OpacityParams,
    masks: Tensor | None = None,
    *,
    return_mask: Literal[False] = False,
) -> Tensor: ...
@overload
def apply_opacity(
    images: Tensor,
    params: OpacityParams,
    masks: Tensor | None = None,
    *,
    return_mask: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def apply_opacity(
    images: Tensor, params: OpacityParams, masks: Tensor | None = None, *, return_mask: bool = False
) -> Any:
    """Apply one opacity to each image; deterministic.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        As for `apply_paste`.
    params : OpacityParams
        What to paste. Centres must lie inside the images; on a GPU this is not checked, because
        that would wait for the device.
    masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer, optional
        Lung masks. Without them, and where one is empty, the opacity goes anywhere.
    return_mask : bool, optional
        Whether to return the changed regions too.

    Returns
    -------
    out : Tensor, same shape, dtype, device and memory layout as `images`
        What `anatpaste_aug.apply_opacity` gives image by image. No gradient flows through it.
    regions : (B, 1, H, W) Tensor of bool
        Where alpha > 0. Only with ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or device.
    """
    images = as_images(images)
    check_params(params, OpacityParams, images)
    lungs = masks_or_none(masks, images)
    out, regions = paste_chosen(images, params, lungs, everyone(images))
    return (out, regions) if return_mask else out


def paste_chosen(
    images: Tensor, params: OpacityParams, lungs: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images of a checked batch; return images and (B, 1, H, W) regions."""
    out, alpha = _opacity(images, params.tensors(), lungs, chosen)
    return out, alpha > 0


def opacity_plain(
    images: Tensor, fields: list[Tensor], masks: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images with plain torch operations; return images and alpha."""
    out, alphas = paste_fake(images, fields, masks, chosen)
    for part in chunks(images):
        params = OpacityParams(*(field[part] for field in fields))
        alpha = (draw_alpha(params, masks[part]) * chosen[part, None, None])[:, None]
        alphas[part] = alpha
        work = working(images[part])
        canvas = torch.maximum(work, bright_level(work, params.level, masks[part]))
        mixed = blend(work, canvas, alpha, images.dtype)
        if work.is_floating_point():
            mixed = torch.minimum(torch.maximum(mixed, work), canvas)
        out[part] = mixed.to(images.dtype)
    return out, alphas


def opacity_cpu(
    images: Tensor, fields: list[Tensor], masks: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images one by one in the functional form; return images and alpha."""

    def paste(image: Array, params: functional.OpacityParams, lungs: Mask) -> tuple[Array, Array]:
        alpha = np.zeros(lungs.shape, np.uint8)
        window, part = functional.alpha_window(params, lungs)
        alpha[window] = part
        return functional.blend_level(image, params, window, part, lungs), alpha

    return apply_each(paste, images, OpacityParams(*fields), masks, chosen, np.uint8)


_opacity = make_op(
    "opacity",
    "(Tensor images, Tensor[] fields, Tensor masks, Tensor chosen) -> (Tensor, Tensor)",
    opacity_plain,
    opacity_cpu,
    paste_fake,
)


class Lesion(NamedTuple):
    """The fields of `OpacityParams` as (B, 1, 1), for pictures of a batch."""

    kind: Tensor
    center_x: Tensor
    center_y: Tensor
    radius_x: Tensor
    radius_y: Tensor
    angle: Tensor
    density: Tensor
    level: Tensor
    seed: Tensor


def draw_alpha(params: OpacityParams, masks: Tensor) -> Tensor:
    """Draw alpha, (B, H, W) uint8, as `anatpaste_aug.operations.opacity.alpha_window`."""
    height, width = masks.shape[1:]
    cell = functional.cell_size(height, width)
    rows, columns = (torch.arange(-(-n // cell), device=masks.device) for n in (height, width))
    one = Lesion(*(value[:, None, None] for value in params.tensors()))
    # Illegal half axes, which a GPU does not refuse, divide by something at least.
    one = one._replace(radius_x=one.radius_x.clamp(min=1), radius_y=one.radius_y.clamp(min=1))
    level = one.angle * (one.kind != KINDS.index("effusion"))
    x, y = (part * (2 * cell) + (cell - 1) for part in (columns, rows[:, None]))
    u, v = functional.axes(one, level, x, y, Tensor.int)
    noise = texture(params.seed, height, width, cell)
    dense, within = functional.profile(KINDS[0], u, v, noise)
    for i, kind in enumerate(KINDS[1:], 1):
        other = functional.profile(kind, u, v, noise)
        dense, within = (
            torch.where(one.kind == i, new, old)
            for new, old in zip(other, (dense, within), strict=True)
        )
    alpha = functional.smooth(dense) * functional.unit(within) >> 10
    y, x = (
        functional.middles(torch.arange(-2, -(-n // cell) + 2, device=masks.device), n, cell)
        for n in (height, width)
    )
    soft = functional.soften(masks[:, y[:, None], x].to(torch.int8))
    soft = torch.where(masks.flatten(1).any(1)[:, None, None], soft, 64)
    alpha = (alpha * one.density.int() * soft + (1 << 15)) >> 16
    alpha = enlarge(enlarge(alpha, cell).mT, cell).mT
    alpha = (alpha + 2 * cell**2) // (4 * cell**2)
    return alpha[:, :height, :width].to(torch.uint8)


def texture(seed: Tensor, height: int, width: int, cell: int) -> Tensor:
    """Return smooth noise around 0, within +-896, on the grid, (B, rows, columns) int32."""
    side, device = math.isqrt(height * width), seed.device
    counts = [(functional.spans(n, side), n) for n in (height, width)]
    y = torch.arange(counts[0][0][-1] + 2, device=device)[:, None]
    x = torch.arange(sum(count + 2 for count in counts[1][0]), device=device)
    white = functional.white_noise(seed[:, None, None], y, x).double()

    def splines(count: int, length: int) -> Tensor:
        cells = torch.arange(-(-length // cell), device=device)[:, None]
        knots = torch.arange(count + 2, device=device)
        table: Tensor = functional.splines(cells, knots, length, cell, count).double()
        return table

    total, start = torch.zeros((), dtype=torch.float64, device=device), 0
    for weight, ny, nx in zip(functional.WEIGHTS, counts[0][0], counts[1][0], strict=True):
        down, across = splines(ny, height) * weight, splines(nx, width)
        total = total + down @ white[:, : ny + 2, start : start + nx + 2] @ across.T
        start += nx + 2
    return (total * 2.0**-34).int()


def enlarge(alpha: Tensor, cell: int) -> Tensor:
    """Enlarge (B, rows, columns) linearly along the rows, times 2 * cell; the ends are repeated."""
    before = torch.cat((alpha[:, :1], alpha[:, :-1]), 1)
    after = torch.cat((alpha[:, 1:], alpha[:, -1:]), 1)
    parts = [
        alpha * (2 * cell - abs(weight)) + (before if weight < 0 else after) * abs(weight)
        for weight in range(1 - cell, cell, 2)
    ]
    return torch.stack(parts, 2).flatten(1, 2)


def bright_level(work: Tensor, level: Tensor, masks: Tensor) -> Tensor:
    """Return the grey values, (B, C, 1, 1), that are brighter than `level` / 256 of soft tissue.

    `work` are (B, C, H, W) images in a working dtype. Sorted with what is no tissue at the end.
    """
    step = max(1, math.isqrt(masks.shape[1] * masks.shape[2]) // functional.TONES)
    some, lungs = work[:, :, ::step, ::step], masks[:, ::step, ::step]

    def between(flags: Tensor) -> Tensor:
        (first, stop), place = span(flags), torch.arange(flags.shape[1], device=flags.device)
        return within(place - first[:, None], stop - first)

    window = between(lungs.any(2))[:, :, None] & between(lungs.any(1))[:, None]
    tissue = window & ~lungs
    tissue = tissue | (window & ~tissue.flatten(1).any(1)[:, None, None])
    kind = torch.finfo(some.dtype) if some.is_floating_point() else torch.iinfo(some.dtype)
    ordered = torch.where(tissue[:, None], some, kind.max).flatten(2).sort(2).values
    place = (level * tissue.sum((1, 2)) >> 8).clamp(0, ordered.shape[2] - 1)
    return ordered.gather(2, place[:, None, None].expand(-1, work.shape[1], 1))[..., None]
