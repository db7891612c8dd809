"""How kernels read pixels: luma, rounding; extremes of images, and counts of masks."""

import triton
import triton.language as tl

from anatpaste_aug.images import LUMA

LUMA_RED = tl.constexpr(LUMA[0])
LUMA_GREEN = tl.constexpr(LUMA[1])
LUMA_BLUE = tl.constexpr(LUMA[2])


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
    """Reduce colors, in a working dtype, to ITU-R 601 luma in the same dtype.

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
def load_gray(at, plane, inside, COLOR: tl.constexpr):
    """Load pixels at pointers to their first channel of `plane` pixels; reduce them to luma."""
    gray = working(tl.load(at, mask=inside, other=0))
    if COLOR:
        green = working(tl.load(at + plane, mask=inside, other=0))
        blue = working(tl.load(at + 2 * plane, mask=inside, other=0))
        gray = luma(gray, green, blue)
    return gray


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
def find_extremes_kernel(
    images_ptr,
    extremes_ptr,
    height,
    width,
    COLOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Find minimum and maximum of some rows of an image, of its luma if it is in `COLOR`.

    Grid: images, parts: rows are dealt to the parts, `ROWS` at a time. Reads the rows of one part,
    or the last one if there are none; writes float64 ``extremes[image, part]``, which holds every
    pixel's value exactly and belongs to this program alone. `read_extremes` puts the parts together
    in the next launch.
    """
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    plane = height * width
    images_ptr += b * plane * (3 if COLOR else 1)
    # The part's first pixel stands for those that are not there.
    first_at = images_ptr + tl.minimum(part * ROWS, height - 1) * width
    first = load_gray(first_at, plane, True, COLOR)
    low = tl.zeros((ROWS, COLS), first.dtype) + first
    high = low
    for top in range(part * ROWS, height, tl.num_programs(1) * ROWS):
        y = top + tl.arange(0, ROWS)
        for left in range(0, width, COLS):
            x = left + tl.arange(0, COLS)
            inside = (y < height)[:, None] & (x < width)[None, :]
            at = images_ptr + y[:, None] * width + x[None, :]
            gray = load_gray(at, plane, inside, COLOR)
            low = tl.where(inside, tl.minimum(low, gray), low)
            high = tl.where(inside, tl.maximum(high, gray), high)
    to = extremes_ptr + (b * tl.num_programs(1) + part) * 2
    tl.store(to, tl.min(low).to(tl.float64))
    tl.store(to + 1, tl.max(high).to(tl.float64))


@triton.jit
def read_extremes(extremes_ptr, b, EXTREMES: tl.constexpr):
    """Put together what `find_extremes_kernel` found in the parts of image `b`."""
    at = extremes_ptr + (b * EXTREMES + tl.arange(0, EXTREMES)) * 2
    return tl.min(tl.load(at)), tl.max(tl.load(at + 1))


@triton.jit
def count_pixels_kernel(masks_ptr, counts_ptr, pixels, STEP: tl.constexpr):
    """Count the pixels of a part of a mask.

    Grid: images, parts of `STEP` pixels. Reads (B, H, W) masks; writes ``counts[image, part]``,
    int32, which belongs to this program. `read_counts` reads them in a later launch.
    """
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = part * STEP + tl.arange(0, STEP)
    mask = tl.load(masks_ptr + b * pixels + i, mask=i < pixels, other=0)
    tl.store(counts_ptr + b * tl.num_programs(1) + part, tl.sum((mask != 0).to(tl.int32)))


@triton.jit
def read_counts(counts_ptr, b, parts, PARTS: tl.constexpr):
    """Load what `count_pixels_kernel` counted in the parts of mask `b`; zeros beyond them."""
    part = tl.arange(0, PARTS)
    return tl.load(counts_ptr + b * parts + part, mask=part < parts, other=0)
