"""Alpha: the shape, drawn and blurred along its rows, then along its columns."""

from __future__ import annotations

import triton
import triton.language as tl

from anatpaste_aug.batch import anatpaste
from anatpaste_aug.batch.kernels import LARGEST_SIDE
from anatpaste_aug.batch.kernels.pixels import divide

PASSES = tl.constexpr(anatpaste.PASSES)
ONE = tl.constexpr(anatpaste.ONE)
ELLIPSE = tl.constexpr(anatpaste.ELLIPSE)
LONGEST = tl.constexpr(LARGEST_SIDE // 2)


@triton.jit
def find_lungs(chosen, masks, lungs, pixels, STEP: tl.constexpr):
    """Tell whether a part of a lung mask holds a pixel.

    Grid: images, parts of `STEP` pixels. Reads (B, H, W) `masks`; writes ``lungs[image, part]``,
    uint8, which belongs to this program.
    """
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(chosen + b) == 0:
        return
    i = part * STEP + tl.arange(0, STEP)
    mask = tl.load(masks + b * pixels + i, mask=i < pixels, other=0)
    found = tl.max((mask != 0).to(tl.int32))
    tl.store(lungs + b * tl.num_programs(1) + part, found.to(tl.uint8))


@triton.jit
def blur_weights(sigma):
    """Return the box radius and the weights of its inside and its two ends, in units of 2**-24.

    `anatpaste_aug.batch.anatpaste.blur_weights`, step by step; `sigma` is a whole number. The last
    step is in whole numbers, and ``(2 * reach + 1) * inside`` is at most `ONE`.
    """
    sigma = sigma.to(tl.float32)
    sigma2 = divide(sigma * sigma, tl.full((), 3.0, tl.float32))
    length = tl.sqrt(12.0 * sigma2.to(tl.float64) + 1.0).to(tl.float32)
    whole = tl.floor((length.to(tl.float64) - 1.0) / 2.0).to(tl.float32)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * sigma2)
    part = divide(part, 6 * (sigma2 - (whole + 1) * (whole + 1)))
    radius = whole + part
    inside = divide(tl.full((), 1.0 * ONE, tl.float32), radius * 2 + 1).to(tl.int32)
    reach = radius.to(tl.int32)
    ends = (ONE - (reach * 2 + 1) * inside) // 2
    return reach, inside.to(tl.uint32), ends.to(tl.uint32)


@triton.jit
def inner_halves(size, margin):
    """Return half a patch's side less the margin, which is cut to half the patch.

    No patch is larger than the image. Parameters are not checked, but no loop follows them further.
    """
    half = tl.minimum(tl.maximum(size // 2, 0), LONGEST)
    return half - tl.minimum(tl.maximum(margin, 0), half)


@triton.jit
def reached(x, y, a, b):
    """Tell where Pillow's walk along the ellipse stops: see `anatpaste_aug.batch.anatpaste`."""
    along_x = b * b * (x * x + (x - 2) * (x - 2) - 2 * a * a) <= -2 * a * a * y * y
    along_y = 2 * b * b * (x * x - a * a) <= -a * a * (y * y + (y - 2) * (y - 2))
    return along_x, along_y


@triton.jit
def draw_half(x, y, half_w, half_h, shape):
    """Tell where a filled ellipse or rectangle lies, at distances `x`, (1, n), and `y`, (m, 1).

    `anatpaste_aug.batch.anatpaste.draw_shape`, with the same whole numbers in 64 bits: distances
    and axes, doubled, are below 2**14, products of four of them below 2**58.
    """
    a, b = 2 * half_w.to(tl.int64), 2 * half_h.to(tl.int64)
    x, y = 2 * x.to(tl.int64), 2 * y.to(tl.int64)
    along_x, along_y = reached(x, y, a, b)
    before_x, before_y = reached(x + 2, y - 2, a, b)
    ellipse = (along_x | (along_y & (before_x | before_y)) | (x == 0)) & (a + b > 0)
    return (x <= a) & (y <= b) & (ellipse | (shape != ELLIPSE))


@triton.jit
def weigh(inner, outer, inside, ends):
    """Round a box's weighted sum, given the sums of its inside and of its two ends.

    It stays below ``255 * 2**24 + 2**23``, since the weights add up to at most 2**24: 32 bits
    without a sign hold it.
    """
    total = inner.to(tl.uint32) * inside + outer.to(tl.uint32) * ends
    return ((total + ONE // 2) >> 24).to(tl.int32)


@triton.jit
def draw_rows(
    chosen,
    widths,
    heights,
    centers_x,
    centers_y,
    shapes,
    radii,
    opacities,
    margins,
    target,
    height,
    width,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Draw a shape and blur it along its rows, once.

    Grid: images, parts of `ROWS` rows. Reads parameters; writes ``target``, (B, H, W) uint8, in the
    rows that the shape meets and the columns that the box reaches from there. Nobody reads the
    rest, which would be 0.

    A row of the shape is one run of pixels, as far to the left as to the right of the centre. How
    many of them lie in a box needs no sum. Where the run meets the image's border it goes on
    outside, as Pillow repeats the outermost pixel.
    """
    b = tl.program_id(0).to(tl.int64)
    if tl.load(chosen + b) == 0:
        return
    margin = tl.load(margins + b).to(tl.int32)
    half_w = inner_halves(tl.load(widths + b).to(tl.int32), margin)
    half_h = inner_halves(tl.load(heights + b).to(tl.int32), margin)
    center_x, center_y = tl.load(centers_x + b).to(tl.int32), tl.load(centers_y + b).to(tl.int32)
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    from_y = tl.abs(y - center_y)
    meets = (from_y <= half_h) & (y < height)
    if tl.max(meets.to(tl.int32)) == 0:
        return
    shape = tl.load(shapes + b)
    half = tl.full((ROWS,), -1, tl.int32)  # of the row's run; -1 for none
    for begin in range(0, half_w + 1, COLS):
        x = begin + tl.arange(0, COLS)
        drawn = draw_half(x[None, :], from_y[:, None], half_w, half_h, shape)
        half = tl.maximum(half, tl.max(tl.where(drawn, x[None, :], -1), 1))

    reach, inside, ends = blur_weights(tl.load(radii + b))
    far = 2**28
    left, right = center_x - half, center_x + half
    left = tl.where(left <= 0, -far, left)[:, None]
    right = tl.where(right >= width - 1, far, right)[:, None]
    some = (half >= 0)[:, None]
    opacity = tl.load(opacities + b).to(tl.int32)
    begin = tl.maximum(center_x - half_w - reach - 1, 0)
    end = tl.minimum(center_x + half_w + reach + 2, width)
    at_row = target + b * height * width + y[:, None] * width
    for start in range(begin, end, COLS):
        x = start + tl.arange(0, COLS)[None, :]
        low, high = x - reach, x + reach
        count = tl.maximum(tl.minimum(right, high) - tl.maximum(left, low) + 1, 0)
        outer = ((low - 1 >= left) & (low - 1 <= right)).to(tl.int32)
        outer += ((high + 1 >= left) & (high + 1 <= right)).to(tl.int32)
        value = weigh(opacity * count, opacity * outer, inside, ends)
        value = tl.where(some, value, 0).to(tl.uint8)
        tl.store(at_row + x, value, mask=meets[:, None] & (x < end))


@triton.jit
def blur_once(
    chosen,
    widths,
    heights,
    centers_x,
    centers_y,
    radii,
    margins,
    source,
    target,
    masks,
    lungs,
    height,
    width,
    parts,
    ACROSS: tl.constexpr,
    DOWN: tl.constexpr,
    LAST: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Blur a shape once more, after it was blurred `ACROSS` times along x and `DOWN` along y.

    Grid: images, parts of `ROWS` rows, parts of `COLS` columns. Along x while `ACROSS` is less than
    `PASSES`, then along y. Reads `source`, of the launch before, where the shape has come so far:
    each blur takes it at most ``reach + 1`` pixels further. Writes `target`, another buffer, where
    it comes to now. The `LAST` time it is alpha that is written, everywhere, each pixel once: 0
    outside the lungs, if `lungs` (of an earlier launch) says that there are any in `masks`, and
    where the image is not chosen.

    The loop is over the box, or the image's side where that is shorter; places are limited to the
    image. A box of at most ``2**21`` pixels of 8 bits sums up to less than 2**31.
    """
    b = tl.program_id(0).to(tl.int64)
    y0, x0 = tl.program_id(1) * ROWS, tl.program_id(2) * COLS
    y, x = (y0 + tl.arange(0, ROWS))[:, None], (x0 + tl.arange(0, COLS))[None, :]
    image = b * height * width
    in_image = (y < height) & (x < width)
    active = tl.load(chosen + b) != 0
    margin = tl.load(margins + b).to(tl.int32)
    reach, inside, ends = blur_weights(tl.load(radii + b))
    center_x, center_y = tl.load(centers_x + b).to(tl.int32), tl.load(centers_y + b).to(tl.int32)
    far_x = inner_halves(tl.load(widths + b).to(tl.int32), margin) + ACROSS * (reach + 1)
    far_y = inner_halves(tl.load(heights + b).to(tl.int32), margin) + DOWN * (reach + 1)
    step_x: tl.constexpr = 1 if ACROSS < PASSES else 0
    step_y: tl.constexpr = 1 - step_x
    now_x, now_y = far_x + step_x * (reach + 1), far_y + step_y * (reach + 1)
    active = active & (y0 <= center_y + now_y) & (y0 + ROWS > center_y - now_y)
    active = active & (x0 <= center_x + now_x) & (x0 + COLS > center_x - now_x)
    if not active:
        if LAST:
            nothing = tl.zeros((ROWS, COLS), tl.uint8)
            tl.store(target + image + y * width + x, nothing, mask=in_image)
        return

    inner, outer = tl.zeros((ROWS, COLS), tl.int32), tl.zeros((ROWS, COLS), tl.int32)
    # A box may be much larger than the image: beyond the border every pixel is the outermost.
    near = tl.minimum(reach, width * step_x + height * step_y)
    far = reach + 1
    for step in range(-near - 1, near + 2):
        ends_here = (step < -near) | (step > near)
        by = tl.where(ends_here, tl.where(step < 0, -far, far), step)
        at_y = tl.minimum(tl.maximum(y + by * step_y, 0), height - 1)
        at_x = tl.minimum(tl.maximum(x + by * step_x, 0), width - 1)
        there = (tl.abs(at_y - center_y) <= far_y) & (tl.abs(at_x - center_x) <= far_x)
        at = source + image + at_y * width + at_x
        value = tl.load(at, mask=there & in_image, other=0).to(tl.int32)
        if ends_here:
            outer += value
        else:
            inner += value
    inner += (reach - near) * outer
    value = weigh(inner, outer, inside, ends)
    if LAST:
        part = tl.arange(0, PARTS)
        found = tl.load(lungs + b * parts + part, mask=part < parts, other=0).to(tl.int32)
        asked = in_image & (value > 0) & (tl.max(found) != 0)
        lung = tl.load(masks + image + y * width + x, mask=asked, other=1)
        value = tl.where(lung != 0, value, 0)
        reached_now = in_image
    else:
        reached_now = in_image & (tl.abs(y - center_y) <= now_y) & (tl.abs(x - center_x) <= now_x)
    tl.store(target + image + y * width + x, value.to(tl.uint8), mask=reached_now)
