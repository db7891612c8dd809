"""What every paste of a patch into a batch shares: levels, colour jitter, gathering."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anatpaste_aug.batch.params import StackedParams
from anatpaste_aug.batch.tensors import copy_of, divide, to_grey, to_numpy
from anatpaste_aug.images import Array


def levels(images: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
    """Return black and white, (B, 1, 1, 1): 0 and 255, or the image's own extremes."""
    low, high = work.amin((1, 2, 3), keepdim=True), work.amax((1, 2, 3), keepdim=True)
    if images.dtype in (torch.uint8, torch.uint16):
        low = torch.zeros_like(low)
    if images.dtype == torch.uint8:
        high = torch.full_like(high, 255)
    return low, high


def within(offset: Tensor, size: Tensor) -> Tensor:
    """Tell where an offset lies in 0..size - 1."""
    return (offset >= 0) & (offset < size[:, None])


def take(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Take pixels of (B, C, H, W) images at broadcast (B, H', W') places."""
    index = y * images.shape[3] + x
    taken = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return taken.reshape(*images.shape[:2], *index.shape[1:])


def blend(work: Tensor, canvas: Tensor, alpha: Tensor, dtype: torch.dtype) -> Tensor:
    """Blend images of this dtype, in their working one, with a canvas; alpha is (B, 1, H, W)."""
    if work.is_floating_point():
        weight = divide(alpha.to(work.dtype), 255)
        return work * (1 - weight) + canvas * weight
    wide = torch.int64 if dtype == torch.int32 else torch.int32
    total = work.to(wide) * (255 - alpha.to(wide)) + canvas.to(wide) * alpha.to(wide)
    return torch.div(total + 127, 255, rounding_mode="floor")


def color_jitter(images: Tensor, params: StackedParams, black: Tensor, white: Tensor) -> Tensor:
    """Scale brightness, then contrast, of whole images as of their patches.

    Every pixel gets what it would get in the patch: contrast is measured from the patch's own mean
    luma. See `anatpaste_aug.operations.patch.color_jitter` for the rounding.
    """
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device) - params.crop_y[:, None]
    x = torch.arange(width, device=images.device) - params.crop_x[:, None]
    patch = within(y, params.height)[:, :, None] & within(x, params.width)[:, None, :]

    images = move_from(black.clamp(max=0), images, params.brightness, black, white)
    grey = to_grey(images)
    grey = grey.double() if grey.is_floating_point() else grey.long()
    mean = (grey * patch).sum((1, 2)).double() / (params.width * params.height)
    if images.dtype == torch.uint8:
        mean = (mean + 0.5).floor()
    return move_from(mean[:, None, None, None], images, params.contrast, black, white)


def move_from(base: Tensor, images: Tensor, factor: Tensor, black: Tensor, white: Tensor) -> Tensor:
    """Scale the distance from `base`, within black and white; a factor of 1 changes nothing."""
    kind = images.dtype
    narrow = torch.float32 if kind == torch.uint8 else torch.float64
    dtype = kind if kind.is_floating_point else narrow
    factor = factor[:, None, None, None]
    base = base.to(dtype)
    moved = base + factor.to(dtype) * (images.to(dtype) - base)
    moved = torch.minimum(torch.maximum(moved, black.to(dtype)), white.to(dtype))
    if kind == torch.int32:
        moved = moved.round()
    return torch.where(factor == 1, images, moved.to(kind))


def apply_each(
    apply: Callable[..., tuple[Array, Array]],
    images: Tensor,
    params: StackedParams,
    lungs: Tensor | None,
    chosen: Tensor,
    dtype: npt.DTypeLike = bool,
) -> tuple[Tensor, Tensor]:
    """Apply one paste to each of the chosen images, on the CPU, in the functional form.

    `apply` gives an image and its region, or alpha, of this dtype: (B, 1, H, W).
    """
    out, pixels = copy_of(images)
    regions = np.zeros((len(images), 1, *images.shape[2:]), dtype)
    singles = params.unstack()
    masks = [None] * len(images) if lungs is None else lungs.numpy()
    for i in np.flatnonzero(chosen.numpy()).tolist():
        pasted, regions[i, 0] = apply(to_numpy(images[i]), singles[i], masks[i])
        pixels[i] = pasted if pasted.ndim == 3 else pasted[..., None]
    return out, torch.from_numpy(regions)
