"""The draw: a pixel of each lung mask, and all parameters of a paste."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from anatpaste_aug.batch.anatpaste import draw_fake, with_options
from anatpaste_aug.batch.kernels.launch import launch, parts, power_of_two
from anatpaste_aug.batch.kernels.pixels import nearest

STEP = 4096  # pixels


@triton.jit
def count_pixels(masks, counts, pixels, STEP: tl.constexpr):
    """Count the pixels of a part of a mask.

    Grid: images, parts of `STEP` pixels. Reads (B, H, W) `masks`; writes ``counts[image, part]``,
    int32, which belongs to this program.
    """
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = part * STEP + tl.arange(0, STEP)
    mask = tl.load(masks + b * pixels + i, mask=i < pixels, other=0)
    tl.store(counts + b * tl.num_programs(1) + part, tl.sum((mask != 0).to(tl.int32)))


@triton.jit
def uniform(unit, low: tl.constexpr, high: tl.constexpr):
    """Move a draw from [0, 1) to [low, high), as `anatpaste_aug.operations.draws.Draws`."""
    return tl.full((), low, tl.float64) + tl.full((), high - low, tl.float64) * unit


@triton.jit
def integer(unit, count):
    """Return a whole number from 0..count - 1: float64 holds the product of any count here."""
    return tl.floor(count.to(tl.float64) * unit).to(tl.int64)


@triton.jit
def side(square, longest):
    """Return the rounded root of a float64 square, within 1..longest."""
    return tl.minimum(tl.maximum(nearest(tl.sqrt(square)).to(tl.int64), 1), longest)


@triton.jit
def draw_pastes(
    masks,
    counts,
    area_units,
    aspect_units,
    crop_x_units,
    crop_y_units,
    pixel_units,
    shape_units,
    blur_units,
    opacity_units,
    brightness_units,
    contrast_units,
    fields,
    factors,
    count,
    height,
    width,
    blur_low,
    blur_count,
    opacity_low,
    opacity_count,
    margin,
    SCALE_LOW: tl.constexpr,
    SCALE_HIGH: tl.constexpr,
    ASPECT_LOW: tl.constexpr,
    ASPECT_HIGH: tl.constexpr,
    JITTER: tl.constexpr,
    PARTS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Draw the parameters of one paste.

    Grid: images. Reads ``counts``, of the launch before, one part of the image's mask, and the
    image's random numbers, of [0, 1), float64; writes its column of ``fields``, (10, B) int64, and
    ``factors``, (2, B) float64.

    The steps are those of `anatpaste_aug.operations.AnatPaste.draw`. The pixel is one of the
    mask's, by its rank: first the part where that lies, then the pixel there; in an empty mask, it
    is any. All indices follow from counts of the mask itself, so that they lie in it.
    """
    b = tl.program_id(0).to(tl.int64)
    pixels = height * width
    part = tl.arange(0, PARTS)
    parts = (pixels + STEP - 1) // STEP
    found = tl.load(counts + b * parts + part, mask=part < parts, other=0)
    total = tl.sum(found)
    unit = tl.load(pixel_units + b)
    rank = integer(unit, tl.where(total == 0, pixels, total)).to(tl.int32)
    sums = tl.cumsum(found)
    which = tl.minimum(tl.sum((sums <= rank).to(tl.int32)), parts - 1)
    before = tl.sum(tl.where(part < which, found, 0))
    i = which * STEP + tl.arange(0, STEP)
    mask = tl.load(masks + b * pixels + i, mask=i < pixels, other=0)
    inner = tl.cumsum((mask != 0).to(tl.int32))
    center = which * STEP + tl.sum((inner <= rank - before).to(tl.int32))
    center = tl.where(total == 0, rank, center)

    area = uniform(tl.load(area_units + b), SCALE_LOW, SCALE_HIGH) * pixels.to(tl.float64)
    aspect = tl.exp(uniform(tl.load(aspect_units + b), ASPECT_LOW, ASPECT_HIGH))
    patch_w, patch_h = side(area * aspect, width), side(area / aspect, height)
    to = fields + b
    tl.store(to, integer(tl.load(crop_x_units + b), width - patch_w + 1))
    tl.store(to + count, integer(tl.load(crop_y_units + b), height - patch_h + 1))
    tl.store(to + 2 * count, patch_w)
    tl.store(to + 3 * count, patch_h)
    tl.store(to + 4 * count, (center % width).to(tl.int64))
    tl.store(to + 5 * count, (center // width).to(tl.int64))
    tl.store(to + 6 * count, integer(tl.load(shape_units + b), tl.full((), 2, tl.int32)))
    blur = blur_low + integer(tl.load(blur_units + b), tl.full((), 0, tl.int32) + blur_count)
    tl.store(to + 7 * count, blur)
    opacity = integer(tl.load(opacity_units + b), tl.full((), 0, tl.int32) + opacity_count)
    tl.store(to + 8 * count, opacity_low + opacity)
    tl.store(to + 9 * count, tl.full((), 0, tl.int64) + margin)
    brightness = uniform(tl.load(brightness_units + b), 1 - JITTER, 1 + JITTER)
    tl.store(factors + b, brightness)
    contrast = uniform(tl.load(contrast_units + b), 1 - JITTER, 1 + JITTER)
    tl.store(factors + count + b, contrast)


def draw_triton(
    lungs: Tensor, units: list[Tensor], reals: list[float], wholes: list[int], side: float
) -> tuple[Tensor, Tensor]:
    """Draw pastes, as `anatpaste_aug.batch.anatpaste.draw_plain`, on a GPU."""
    count, height, width = lungs.shape
    fields, factors = draw_fake(lungs, units, reals, wholes, side)
    if count == 0:
        return fields, factors
    paste = with_options(reals, wholes, side)
    lungs, units = lungs.contiguous(), [unit.contiguous() for unit in units]
    bands = parts(height * width, STEP)
    counts = torch.empty((count, bands), dtype=torch.int32, device=lungs.device)
    launch(count_pixels, (count, bands), lungs, counts, height * width, STEP=STEP)
    args = (lungs, counts, *units, fields, factors, count, height, width)
    for low, high in (paste.scaled(paste.blur, (height, width)), paste.opacity):
        args += (int(low), int(high) - int(low) + 1)
    margin = paste.scaled(paste.margin, (height, width))
    meta = {"SCALE_LOW": paste.scale[0], "SCALE_HIGH": paste.scale[1], "JITTER": paste.jitter}
    meta |= {"ASPECT_LOW": math.log(paste.ratio[0]), "ASPECT_HIGH": math.log(paste.ratio[1])}
    blocks = {"PARTS": power_of_two(bands), "STEP": STEP}
    launch(draw_pastes, (count,), *args, margin, **meta, **blocks)
    return fields, factors
