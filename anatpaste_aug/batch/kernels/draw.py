"""The draw: a pixel of each lung mask, and all parameters of a paste."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from anatpaste_aug.batch.kernels.fields import FIELDS
from anatpaste_aug.batch.kernels.launch import launch, parts, planned, power_of_two
from anatpaste_aug.batch.kernels.pixels import count_pixels_kernel, nearest, read_counts

STEP = 4096  # pixels
UNIT = tl.constexpr(2.0**-53)


@triton.jit
def unit(number_ptr):
    """Load a whole number below 2**53, as a draw from [0, 1); nothing is rounded."""
    return tl.load(number_ptr).to(tl.float64) * UNIT


@triton.jit
def uniform(number_ptr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Return a draw from [LOW, HIGH), in float64."""
    low, span = tl.full((), LOW, tl.float64), tl.full((), HIGH - LOW, tl.float64)
    return low + span * unit(number_ptr)


@triton.jit
def integer(number_ptr, count):
    """Return a whole number from 0..count - 1: float64 holds any count here."""
    return tl.floor(count * unit(number_ptr)).to(tl.int64)


@triton.jit
def side(square, longest):
    """Return the rounded root of a float64 square, within 1..longest."""
    return tl.minimum(tl.maximum(nearest(tl.sqrt(square)).to(tl.int64), 1), longest)


@triton.jit
def draw_pastes_kernel(
    lungs_ptr,
    counts_ptr,
    numbers_ptr,
    whole_ptr,
    real_ptr,
    count,
    height,
    width,
    blur_low,
    blur_count,
    margin,
    SCALE_LOW: tl.constexpr,
    SCALE_HIGH: tl.constexpr,
    ASPECT_LOW: tl.constexpr,
    ASPECT_HIGH: tl.constexpr,
    OPACITY_LOW: tl.constexpr,
    OPACITY_HIGH: tl.constexpr,
    JITTER: tl.constexpr,
    PARTS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Draw the parameters of one paste.

    Grid: images. Reads `counts`, of the launch before, one part of the image's mask, and its column
    of `numbers`, (10, B) int64; writes its row of `whole`, (B, 10) int64, and of `real`, (B, 2)
    float64.

    The numbers are taken in the order of `anatpaste_aug.operations.AnatPaste.draw`, with its
    arithmetic. The pixel is one of the mask's, by its rank: first the part where that lies, then
    the pixel there; in an empty mask, it is any. All indices follow from counts of the mask itself,
    so that they lie in it.
    """
    b = tl.program_id(0).to(tl.int64)
    numbers_ptr += b
    whole_ptr += b * FIELDS
    real_ptr += b * 2
    pixels = height * width
    area = uniform(numbers_ptr, SCALE_LOW, SCALE_HIGH) * pixels
    aspect = tl.exp(uniform(numbers_ptr + count, ASPECT_LOW, ASPECT_HIGH))
    patch_w, patch_h = side(area * aspect, width), side(area / aspect, height)
    tl.store(whole_ptr + 2, patch_w)
    tl.store(whole_ptr + 3, patch_h)
    tl.store(whole_ptr, integer(numbers_ptr + 2 * count, width - patch_w + 1))
    tl.store(whole_ptr + 1, integer(numbers_ptr + 3 * count, height - patch_h + 1))

    part_count = (pixels + STEP - 1) // STEP
    found = read_counts(counts_ptr, b, part_count, PARTS)
    total = tl.sum(found)
    rank = integer(numbers_ptr + 4 * count, tl.where(total == 0, pixels, total)).to(tl.int32)
    part = tl.minimum(tl.sum((tl.cumsum(found) <= rank).to(tl.int32)), part_count - 1)
    before = tl.sum(tl.where(tl.arange(0, PARTS) < part, found, 0))
    i = part * STEP + tl.arange(0, STEP)
    lung = tl.load(lungs_ptr + b * pixels + i, mask=i < pixels, other=0)
    inner = tl.cumsum((lung != 0).to(tl.int32))
    center = part * STEP + tl.sum((inner <= rank - before).to(tl.int32))
    center = tl.where(total == 0, rank, center)
    tl.store(whole_ptr + 4, center % width)
    tl.store(whole_ptr + 5, center // width)

    tl.store(whole_ptr + 6, integer(numbers_ptr + 5 * count, 2))
    tl.store(whole_ptr + 7, blur_low + integer(numbers_ptr + 6 * count, blur_count))
    opacity = integer(numbers_ptr + 7 * count, OPACITY_HIGH - OPACITY_LOW + 1)
    tl.store(whole_ptr + 8, OPACITY_LOW + opacity)
    tl.store(whole_ptr + 9, margin)
    tl.store(real_ptr, uniform(numbers_ptr + 8 * count, 1 - JITTER, 1 + JITTER))
    tl.store(real_ptr + 1, uniform(numbers_ptr + 9 * count, 1 - JITTER, 1 + JITTER))


def count_pixels(lungs: Tensor) -> Tensor:
    """Count the pixels of (B, H, W) masks in parts of `STEP` pixels: (B, parts) int32."""
    pixels = lungs.shape[1] * lungs.shape[2]
    grid = (lungs.shape[0], parts(pixels, STEP))
    counts = torch.empty(grid, dtype=torch.int32, device=lungs.device)
    launch(count_pixels_kernel, grid, lungs, counts, pixels, STEP=STEP)
    return counts


@planned
def sample(
    lungs: Tensor, numbers: Tensor, shape: Sequence[int], operation: Any
) -> tuple[Tensor, Tensor]:
    """Draw one paste for each lung mask.

    Parameters
    ----------
    lungs : (B, H, W) Tensor of bool
        Lung masks, on a GPU.
    numbers : (10, B) Tensor of int64
        Random whole numbers below 2**53; each times 2**-53 is a draw from [0, 1).
    shape : (int, int)
        Height and width of the masks.
    operation : AnatPaste
        Its options are used.

    Returns
    -------
    whole, real : (B, 10) Tensor of int64, (B, 2) Tensor of float64
        The fields of `PasteParams` in their order.
    """
    lungs, numbers = lungs.contiguous(), numbers.contiguous()
    count, (height, width) = lungs.shape[0], shape
    whole, real = numbers.new_empty((count, 10)), numbers.new_empty((count, 2), dtype=torch.float64)
    counts = count_pixels(lungs)
    lengths, ranges = options_of(operation, (height, width))
    args = (lungs, counts, numbers, whole, real, count, height, width, *lengths)
    meta = {"PARTS": power_of_two(counts.shape[1]), "STEP": STEP, "num_warps": 8}
    launch(draw_pastes_kernel, (count,), *args, **ranges, **meta)
    return whole, real


@lru_cache
def options_of(operation: Any, size: tuple[int, int]) -> tuple[tuple[int, ...], dict[str, float]]:
    """Return AnatPaste's options as `draw_pastes_kernel` takes them, for images of a size."""
    low, high = operation.scaled(operation.blur, size)
    aspect = [math.log(ratio) for ratio in operation.ratio]
    pairs = {"SCALE": operation.scale, "ASPECT": aspect, "OPACITY": operation.opacity}
    ranges = {f"{name}_LOW": pair[0] for name, pair in pairs.items()}
    ranges |= {f"{name}_HIGH": pair[1] for name, pair in pairs.items()}
    lengths = (low, high - low + 1, operation.scaled(operation.margin, size))
    return lengths, ranges | {"JITTER": operation.jitter}
