"""Otsu's threshold: the histogram of the levels, the bin, and the dark pixels as bits."""

import triton
import triton.language as tl

from anatpaste_aug.batch.kernels.pixels import divide
from anatpaste_aug.batch.kernels.tiles import BINS
from anatpaste_aug.masks import clahe

HALF_BIN = tl.constexpr(0.5 / clahe.BINS)


@triton.jit
def read_ends(ends_ptr, b):
    """Return the lowest level of image `b`, and how far the highest lies above it, at least 1."""
    low = 32767 - tl.load(ends_ptr + 2 * b + 1)
    return low, tl.maximum(tl.load(ends_ptr + 2 * b) - low, 1)


@triton.jit
def count_levels_kernel(levels_ptr, ends_ptr, counts_ptr, pixels, STEP: tl.constexpr):
    """Count the levels in 256 bins between the lowest and the highest.

    Grid: images, parts of `STEP` pixels. Reads the part's levels and the image's ends, of the
    launch before. Adds to ``counts[image]``, 256 of int32 that are 0 before, by atomics: whole
    numbers, whose sum does not depend on their order.
    """
    b = tl.program_id(0).to(tl.int64)
    low, span = read_ends(ends_ptr, b)
    i = tl.program_id(1) * STEP + tl.arange(0, STEP)
    level = tl.load(levels_ptr + b * pixels + i, mask=i < pixels, other=0).to(tl.int32)
    bin_ = tl.minimum((level - low) * BINS // span, BINS - 1)
    # What lies beyond the last pixel is counted in bin 0, and taken off again.
    found = tl.histogram(tl.where(i < pixels, bin_, 0), BINS)
    index = tl.arange(0, BINS)
    found -= tl.where(index == 0, tl.sum((i >= pixels).to(tl.int32)), 0)
    tl.atomic_add(counts_ptr + b * BINS + index, found, mask=found > 0, sem="relaxed")


@triton.jit
def running_sums(counts_ptr, NARROW: tl.constexpr):
    """Sum up counts times the centers of their bins, ``(2 * i + 1) / 512``, bin by bin.

    Returns the sum up to each bin with it, and the sum of those beyond it. In float64 no sum is
    rounded, so that whole numbers give the same; in float32 (`NARROW`) the additions must follow
    one another, from either end.
    """
    index = tl.arange(0, BINS)
    if NARROW:
        up, beyond = tl.zeros((BINS,), tl.float32), tl.zeros((BINS,), tl.float32)
        first, last = tl.sum(up), tl.sum(up)
        for i in range(BINS):
            j = BINS - 1 - i
            first += tl.load(counts_ptr + i).to(tl.float32) * ((2 * i + 1) * HALF_BIN)
            up = tl.where(index == i, first, up)
            beyond = tl.where(index == j, last, beyond)
            last += tl.load(counts_ptr + j).to(tl.float32) * ((2 * j + 1) * HALF_BIN)
    else:
        doubled = tl.load(counts_ptr + index).to(tl.int64) * (2 * index + 1)
        sums = tl.cumsum(doubled)
        up = sums.to(tl.float64) / (2 * BINS)
        beyond = (tl.sum(doubled) - sums).to(tl.float64) / (2 * BINS)
    return up, beyond


@triton.jit
def find_threshold_kernel(ends_ptr, counts_ptr, limits_ptr, NARROW: tl.constexpr):
    """Find Otsu's threshold, in levels above the lowest one.

    Grid: images. Reads the image's `ends` and `counts`, of launches before; writes
    ``limits[image]``: the lowest level, and the highest that is still dark, above it.

    Counts and weights are float32, exact up to 2**24 pixels, the means float64, or float32 for
    float32 images (`NARROW`); products are rounded from left to right, as in the functional form.
    The first of equal maxima counts. An image of one level is dark nowhere, whatever comes out.
    """
    b = tl.program_id(0).to(tl.int64)
    low, span = read_ends(ends_ptr, b)
    counts_ptr += b * BINS
    index = tl.arange(0, BINS)
    count = tl.load(counts_ptr + index)
    below = tl.cumsum(count)
    above = tl.sum(count) - below  # of the bins beyond this one
    up, beyond = running_sums(counts_ptr, NARROW)
    inner = (index < BINS - 1) & (below > 0) & (above > 0)
    weight1 = tl.where(inner, below, 1).to(tl.float32)
    weight2 = tl.where(inner, above, 1).to(tl.float32)
    distance = divide(up, weight1.to(up.dtype)) - divide(beyond, weight2.to(up.dtype))
    variance = (weight1 * weight2).to(up.dtype) * (distance * distance)
    best = tl.argmax(tl.where(inner, variance, -1.0), 0, tie_break_left=True)
    tl.store(limits_ptr + 2 * b, low)
    tl.store(limits_ptr + 2 * b + 1, span * (2 * best + 1) // (2 * BINS))


@triton.jit
def keep_dark_kernel(levels_ptr, limits_ptr, words_ptr, height, width, across, STEP: tl.constexpr):
    """Keep the pixels that are not black and not above the threshold, as bits.

    Grid: images, parts of `STEP` words of the image's ``height * across``. Reads the words' levels
    and the image's `limits`, of launches before; writes the words, (B, H, across) uint32.
    """
    b = tl.program_id(0).to(tl.int64)
    low, brightest = tl.load(limits_ptr + 2 * b), tl.load(limits_ptr + 2 * b + 1)
    word = tl.program_id(1) * STEP + tl.arange(0, STEP)
    y, bit = word // across, tl.arange(0, 32)
    x = (word % across * 32)[:, None] + bit[None, :]
    inside = (y < height)[:, None] & (x < width)
    at = levels_ptr + b * height * width + y[:, None] * width + x
    above = tl.load(at, mask=inside, other=0).to(tl.int32) - low
    dark = inside & (above > 0) & (above <= brightest)
    bits = tl.sum(dark.to(tl.uint32) << bit[None, :].to(tl.uint32), 1)
    tl.store(words_ptr + b * height * across + word, bits, mask=y < height)
