"""How kernels read pixels: any strides, luma, rounding, and the extremes of each image."""

from __future__ import annotations

import triton
import triton.language as tl

LUMA_RED = tl.constexpr(0.299)
LUMA_GREEN = tl.constexpr(0.587)
LUMA_BLUE = tl.constexpr(0.114)


@triton.jit
def working(values):
    """Return pixels as int32, float32 or float64, of which float16 becomes float32."""
    if values.dtype == tl.float64:
        result = values
    elif values.dtype.is_floating():
        result = values.to(tl.float32)
    else:
        result = values.to(tl.int32)
    return result


@triton.jit
def luma(red, green, blue):
    """Reduce colours, in a working dtype, to ITU-R 601 luma in the same dtype.

    Integers: 64 bits hold the sum of any 32-bit values. Floats: products rounded, then added from
    the left, each sum rounded.
    """
    if red.dtype.is_floating():
        kind: tl.constexpr = red.dtype
        first = tl.full((), LUMA_RED, kind) * red + tl.full((), LUMA_GREEN, kind) * green
        result = first + tl.full((), LUMA_BLUE, kind) * blue
    else:
        total = 19595 * red.to(tl.int64) + 38470 * green.to(tl.int64) + 7471 * blue.to(tl.int64)
        result = ((total + 0x8000) >> 16).to(tl.int32)
    return result


@triton.jit
def load_grey(at, stride_c, inside, COLOUR: tl.constexpr):
    """Load pixels at pointers to their first channel, and reduce them to luma."""
    grey = working(tl.load(at, mask=inside, other=0))
    if COLOUR:
        green = working(tl.load(at + stride_c, mask=inside, other=0))
        blue = working(tl.load(at + stride_c + stride_c, mask=inside, other=0))
        grey = luma(grey, green, blue)
    return grey


@triton.jit
def nearest(values):
    """Round floats to the nearest whole number, ties to even.

    Adding 1.5 * 2**23 (2**52) leaves no bits for a fraction, so that the addition itself rounds;
    taking it away again is exact. Values must lie within +-2**22 (+-2**51).
    """
    if values.dtype == tl.float32:
        shift = tl.full((), 12582912.0, tl.float32)
    else:
        shift = tl.full((), 6755399441055744.0, tl.float64)
    return (values + shift) - shift


@triton.jit
def divide(one, two):
    """Divide floats, rounding once: in float32 the plain operator may not."""
    return tl.div_rn(one, two) if one.dtype == tl.float32 else one / two


@triton.jit
def find_extremes(
    images,
    chosen,
    extremes,
    height,
    width,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    COLOUR: tl.constexpr,
    GREY: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Return minimum and maximum of some rows of an image, of its luma or of all its channels.

    Grid: images, parts: rows are dealt to the parts, `ROWS` at a time, and each gets some. Reads
    the rows of one part; writes float64 ``extremes[image, part]``, which holds every pixel's value
    exactly and belongs to this program alone. `read_extremes` puts the parts together in the next
    launch.
    """
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(chosen + b) == 0:
        return
    # The part's first pixel stands for those that are not there.
    first_at = images + b * stride_b + (part * ROWS).to(tl.int64) * stride_y
    first = load_grey(first_at, stride_c, True, COLOUR and GREY)
    low = tl.zeros((ROWS, COLS), first.dtype) + first
    high = low
    for top in range(part * ROWS, height, tl.num_programs(1) * ROWS):
        y = top + tl.arange(0, ROWS)
        at_row = images + b * stride_b + y.to(tl.int64)[:, None] * stride_y
        for left in range(0, width, COLS):
            x = left + tl.arange(0, COLS)
            inside = (y < height)[:, None] & (x < width)[None, :]
            at = at_row + x.to(tl.int64)[None, :] * stride_x
            grey = load_grey(at, stride_c, inside, COLOUR and GREY)
            low = tl.where(inside, tl.minimum(low, grey), low)
            high = tl.where(inside, tl.maximum(high, grey), high)
            if COLOUR and not GREY:
                for _ in tl.static_range(2):
                    at += stride_c
                    other = working(tl.load(at, mask=inside, other=0))
                    low = tl.where(inside, tl.minimum(low, other), low)
                    high = tl.where(inside, tl.maximum(high, other), high)
    to = extremes + (b * tl.num_programs(1) + part) * 2
    tl.store(to, tl.min(low).to(tl.float64))
    tl.store(to + 1, tl.max(high).to(tl.float64))


@triton.jit
def read_extremes(extremes, b, parts, PARTS: tl.constexpr):
    """Put together what `find_extremes` found in the parts of image `b`."""
    part = tl.arange(0, PARTS)
    at = extremes + (b * parts + tl.minimum(part, parts - 1)) * 2
    return tl.min(tl.load(at)), tl.max(tl.load(at + 1))
