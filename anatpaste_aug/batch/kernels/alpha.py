"""Alpha: the shape, drawn and blurred along its rows, then along its columns."""

import triton
import triton.language as tl

from anatpaste_aug.batch.kernels import constants
from anatpaste_aug.batch.kernels.fields import read_patch, read_shape
from anatpaste_aug.batch.kernels.pixels import divide, read_counts
from anatpaste_aug.operations.anatpaste import SHAPES

PASSES = tl.constexpr(constants.PASSES)
ONE = tl.constexpr(1 << 24)  # the sum of a box's weights
ELLIPSE = tl.constexpr(SHAPES.index("ellipse"))
LONGEST = tl.constexpr(constants.LARGEST_SIDE // 2)


@triton.jit
def blur_weights(sigma):
    """Return the box radius and the weights of its inside and its two ends, in units of 2**-24.

    Gwosdek et al., Theoretical foundations of Gaussian convolution by extended box filtering, SSVM
    2011, equations 7, 11 and 14, as in Pillow's C code: in float32 except for two expressions in
    double. `sigma` is a whole number. The last step is in whole numbers, and
    ``(2 * reach + 1) * inside`` is at most `ONE`.
    """
    sigma = sigma.to(tl.float32)
    sigma2 = divide(sigma * sigma, tl.full((), 1.0 * PASSES, tl.float32))
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
def inner_half(size, margin):
    """Return half a patch's side less the margin, which is cut to half the patch.

    No patch is larger than the image. Parameters are not checked, but no loop follows them further.
    """
    half = tl.minimum(tl.maximum(size // 2, 0), LONGEST)
    return half - tl.minimum(tl.maximum(margin, 0), half)


@triton.jit
def reached(x, y, axis_x, axis_y):
    """Tell where Pillow's walk along the ellipse stops, in a step along x, and along y.

    That is where the mean of the ellipse's equation over the pixel and its neighbor further in is
    not positive. It is taken twice; coordinates and axes are doubled.
    """
    square_x, square_y = axis_x * axis_x, axis_y * axis_y
    along_x = square_y * (x * x + (x - 2) * (x - 2) - 2 * square_x) <= -2 * square_x * y * y
    along_y = 2 * square_y * (x * x - square_x) <= -square_x * (y * y + (y - 2) * (y - 2))
    return along_x, along_y


@triton.jit
def draw_half(x, y, half_w, half_h, shape):
    """Tell where a filled ellipse or rectangle lies, at distances `x`, (1, n), and `y`, (m, 1).

    Pillow walks along the ellipse from its right end to its top, always to the one of three
    neighbors (up, left, or both) that is closest to the curve, and fills what lies inside. In
    closed form, a pixel is filled if it is closer to the curve than its left neighbor or inside;
    or closer than its lower neighbor, and the walk comes by its right lower one. It was compared
    with Pillow for all half axes up to 400 pixels.

    Coordinates are doubled, and whole: distances and axes are below 2**14, products of four of them
    below 2**58.
    """
    axis_x, axis_y = 2 * half_w.to(tl.int64), 2 * half_h.to(tl.int64)
    x, y = 2 * x.to(tl.int64), 2 * y.to(tl.int64)
    along_x, along_y = reached(x, y, axis_x, axis_y)
    before_x, before_y = reached(x + 2, y - 2, axis_x, axis_y)
    ellipse = (along_x | (along_y & (before_x | before_y)) | (x == 0)) & (axis_x + axis_y > 0)
    return (x <= axis_x) & (y <= axis_y) & (ellipse | (shape != ELLIPSE))


@triton.jit
def weigh(inner, outer, inside, ends):
    """Round a box's weighted sum, given the sums of its inside and of its two ends.

    It stays below ``255 * 2**24 + 2**23``, since the weights add up to at most 2**24: 32 bits
    without a sign hold it.
    """
    total = inner.to(tl.uint32) * inside + outer.to(tl.uint32) * ends
    return ((total + ONE // 2) >> 24).to(tl.int32)


@triton.jit
def draw_rows_kernel(fields_ptr, target_ptr, height, width, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Draw a shape and blur it along its rows, once.

    Grid: images, parts of `ROWS` rows. Reads parameters; writes `target`, (B, H, W) uint8, in the
    rows that the shape meets and the columns that the box reaches from there. Nobody reads the
    rest, which would be 0.

    A row of the shape is one run of pixels, as far to the left as to the right of the center. How
    many of them lie in a box needs no sum. Where the run meets the image's border it goes on
    outside, as Pillow repeats the outermost pixel.
    """
    b = tl.program_id(0).to(tl.int64)
    _, _, patch_w, patch_h, center_x, center_y = read_patch(fields_ptr, b)
    shape, radius, opacity, margin = read_shape(fields_ptr, b)
    half_w, half_h = inner_half(patch_w, margin), inner_half(patch_h, margin)
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    from_y = tl.abs(y - center_y)
    meets = (from_y <= half_h) & (y < height)
    if tl.max(meets.to(tl.int32)) == 0:
        return
    half = tl.full((ROWS,), -1, tl.int32)  # of the row's run; -1 for none
    for begin in range(0, half_w + 1, COLS):
        x = begin + tl.arange(0, COLS)
        drawn = draw_half(x[None, :], from_y[:, None], half_w, half_h, shape)
        half = tl.maximum(half, tl.max(tl.where(drawn, x[None, :], -1), 1))

    reach, inside, ends = blur_weights(radius)
    far = 2**28
    first, last = center_x - half, center_x + half
    first = tl.where(first <= 0, -far, first)[:, None]
    last = tl.where(last >= width - 1, far, last)[:, None]
    some = (half >= 0)[:, None]
    begin = tl.maximum(center_x - half_w - reach - 1, 0)
    end = tl.minimum(center_x + half_w + reach + 2, width)
    at_row = target_ptr + b * height * width + y[:, None] * width
    for start in range(begin, end, COLS):
        x = start + tl.arange(0, COLS)[None, :]
        low, high = x - reach, x + reach
        count = tl.maximum(tl.minimum(last, high) - tl.maximum(first, low) + 1, 0)
        outer = ((low - 1 >= first) & (low - 1 <= last)).to(tl.int32)
        outer += ((high + 1 >= first) & (high + 1 <= last)).to(tl.int32)
        value = weigh(opacity * count, opacity * outer, inside, ends)
        value = tl.where(some, value, 0).to(tl.uint8)
        tl.store(at_row + x, value, mask=meets[:, None] & (x < end))


@triton.jit
def blur_once_kernel(
    fields_ptr,
    source_ptr,
    target_ptr,
    lungs_ptr,
    counts_ptr,
    height,
    width,
    parts,
    ACROSS: tl.constexpr,
    DOWN: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Blur a shape once more, after it was blurred `ACROSS` times along x and `DOWN` along y.

    Grid: images, parts of `ROWS` rows, parts of `COLS` columns. Along x while `ACROSS` is less than
    `PASSES`, then along y. Reads `source`, of the launch before, where the shape has come so far:
    each blur takes it at most ``reach + 1`` pixels further. Writes `target`, another buffer, where
    it comes to now. The last time it is alpha that is written, everywhere, each pixel once: 0
    outside the lungs, if there are any by the `counts` of an earlier launch.

    The loop is over the box, or the image's side where that is shorter; places are limited to the
    image. A box of at most ``2**21`` pixels of 8 bits sums up to less than 2**31.
    """
    b = tl.program_id(0).to(tl.int64)
    y0, x0 = tl.program_id(1) * ROWS, tl.program_id(2) * COLS
    y, x = (y0 + tl.arange(0, ROWS))[:, None], (x0 + tl.arange(0, COLS))[None, :]
    place = b * height * width + y * width + x
    in_image = (y < height) & (x < width)
    _, _, patch_w, patch_h, center_x, center_y = read_patch(fields_ptr, b)
    _, radius, _, margin = read_shape(fields_ptr, b)
    half_w, half_h = inner_half(patch_w, margin), inner_half(patch_h, margin)
    reach, inside, ends = blur_weights(radius)
    far_x, far_y = half_w + ACROSS * (reach + 1), half_h + DOWN * (reach + 1)
    step_x: tl.constexpr = 1 if ACROSS < PASSES else 0
    step_y: tl.constexpr = 1 - step_x
    last: tl.constexpr = DOWN == PASSES - 1
    now_x, now_y = far_x + step_x * (reach + 1), far_y + step_y * (reach + 1)
    active = (y0 <= center_y + now_y) & (y0 + ROWS > center_y - now_y)
    active = active & (x0 <= center_x + now_x) & (x0 + COLS > center_x - now_x)
    if not active:
        if last:
            tl.store(target_ptr + place, tl.zeros((ROWS, COLS), tl.uint8), mask=in_image)
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
        at = source_ptr + b * height * width + at_y * width + at_x
        value = tl.load(at, mask=there & in_image, other=0).to(tl.int32)
        if ends_here:
            outer += value
        else:
            inner += value
    inner += (reach - near) * outer
    value = weigh(inner, outer, inside, ends)
    if last:
        confined = tl.sum(read_counts(counts_ptr, b, parts, PARTS)) != 0
        asked = in_image & (value > 0) & confined
        lung = tl.load(lungs_ptr + place, mask=asked, other=1)
        value = tl.where(lung != 0, value, 0)
        now_reached = in_image
    else:
        now_reached = in_image & (tl.abs(y - center_y) <= now_y) & (tl.abs(x - center_x) <= now_x)
    tl.store(target_ptr + place, value.to(tl.uint8), mask=now_reached)
