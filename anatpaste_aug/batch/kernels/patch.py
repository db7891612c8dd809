"""The jittered patch: its mean, and how it is blended into the image."""

import triton
import triton.language as tl

from anatpaste_aug.batch.kernels.fields import read_patch
from anatpaste_aug.batch.kernels.pixels import divide, luma, nearest, read_extremes, working


@triton.jit
def black_and_white(extremes_ptr, b, kind: tl.constexpr, EXTREMES: tl.constexpr):
    """Return black and white, float64, of pixels of a dtype: 0 and 255, or the image's extremes."""
    if kind == tl.uint8:
        black = tl.full((), 0.0, tl.float64)
        white = tl.full((), 255.0, tl.float64)
    else:
        black, white = read_extremes(extremes_ptr, b, EXTREMES)
        if kind == tl.uint16:
            black = black * 0
    return black, white


@triton.jit
def move_from(base, values, factor, black, white, kind: tl.constexpr):
    """Scale the distance from `base`, within black and white; a factor of 1 changes nothing.

    As `anatpaste_aug.operations.patch.move_from`, for pixels of the dtype `kind`: 8-bit images in
    float32, cut to whole numbers; wider integers in float64, rounded to nearest; floats in their
    own precision. All but `values` are float64.
    """
    whole: tl.constexpr = tl.float32 if kind == tl.uint8 else tl.float64
    real: tl.constexpr = values.dtype if values.dtype.is_floating() else whole
    base = base.to(real)
    moved = base + factor.to(real) * (values.to(real) - base)
    moved = tl.minimum(tl.maximum(moved, black.to(real)), white.to(real))
    if not values.dtype.is_floating() and kind != tl.uint8:
        moved = nearest(moved)
    return tl.where(factor == 1, values, moved.to(values.dtype))


@triton.jit
def sum_patches_kernel(
    images_ptr,
    extremes_ptr,
    fields_ptr,
    real_ptr,
    sums_ptr,
    height,
    width,
    COLOR: tl.constexpr,
    EXTREMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Sum the luma of some of a patch's rows, after its brightness was changed.

    Grid: images, parts: rows are dealt to the parts, `ROWS` at a time. Reads the patch, the
    parameters, and `extremes`, of the launch before; writes ``sums[image, part]``, int64 or
    float64, which belongs to this program. Whole numbers are summed exactly; floats in float64, in
    an order that is always the same.
    """
    b, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    plane = height * width
    images_ptr += b * plane * (3 if COLOR else 1)
    kind: tl.constexpr = images_ptr.dtype.element_ty
    black, white = black_and_white(extremes_ptr, b, kind, EXTREMES)
    low = tl.minimum(black, 0.0)
    factor = tl.load(real_ptr + 2 * b)
    left, top, patch_w, patch_h, _, _ = read_patch(fields_ptr, b)
    # Parameters are not checked: what lies outside the image is not read.
    bottom, right = tl.minimum(top + patch_h, height), tl.minimum(left + patch_w, width)
    top, left = tl.maximum(top, 0), tl.maximum(left, 0)
    total = tl.zeros((ROWS, COLS), sums_ptr.dtype.element_ty)
    for y0 in range(top + part * ROWS, bottom, ROWS * tl.num_programs(1)):
        y = y0 + tl.arange(0, ROWS)
        for x0 in range(left, right, COLS):
            x = x0 + tl.arange(0, COLS)
            inside = (y < bottom)[:, None] & (x < right)[None, :]
            at = images_ptr + y[:, None] * width + x[None, :]
            gray = working(tl.load(at, mask=inside, other=0))
            gray = move_from(low, gray, factor, black, white, kind)
            if COLOR:
                green = working(tl.load(at + plane, mask=inside, other=0))
                green = move_from(low, green, factor, black, white, kind)
                blue = working(tl.load(at + 2 * plane, mask=inside, other=0))
                blue = move_from(low, blue, factor, black, white, kind)
                gray = luma(gray, green, blue)
            total += tl.where(inside, gray, 0).to(total.dtype)
    tl.store(sums_ptr + b * tl.num_programs(1) + part, tl.sum(total))


@triton.jit
def mix(value, canvas, weight, black, white, kind: tl.constexpr):
    """Blend pixels with the canvas by a weight of 0..255, integers rounded to nearest.

    Pixels of 16 bits times 255 stay below 2**24; 32-bit pixels are multiplied in 64 bits.
    """
    if value.dtype.is_floating():
        share = divide(weight.to(value.dtype), tl.full((), 255.0, value.dtype))
        mixed = value * (1 - share) + canvas * share
        # A weighted mean may leave the range of its terms by a last bit.
        mixed = tl.maximum(mixed, black.to(value.dtype))
        mixed = tl.minimum(mixed, white.to(value.dtype))
    else:
        wide: tl.constexpr = tl.int64 if kind == tl.int32 else tl.int32
        mixed = value.to(wide) * (255 - weight.to(wide)) + canvas.to(wide) * weight.to(wide)
        # Down, where the operator cuts towards 0.
        mixed += 127
        mixed = tl.where(mixed < 0, -((254 - mixed) // 255), mixed // 255)
    return mixed.to(kind)


@triton.jit
def blend_patches_kernel(
    images_ptr,
    chosen_ptr,
    extremes_ptr,
    fields_ptr,
    real_ptr,
    sums_ptr,
    alpha_ptr,
    out_ptr,
    regions_ptr,
    height,
    width,
    CHANNELS: tl.constexpr,
    EXTREMES: tl.constexpr,
    SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Blend the jittered patches, on black, into the images.

    Grid: images, parts of `ROWS` rows, parts of `COLS` columns. Reads the images, the parameters,
    `extremes`, `sums` and `alpha`, of launches before; writes `out`, each pixel once: the image
    itself where it is not chosen, and where alpha is 0; and `regions`, (B, H, W) bool, where it is
    more in chosen images.
    """
    b = tl.program_id(0).to(tl.int64)
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(2) * COLS + tl.arange(0, COLS)
    inside = (y < height)[:, None] & (x < width)[None, :]
    plane = height * width
    place = y[:, None] * width + x[None, :]
    weight = tl.load(alpha_ptr + b * plane + place, mask=inside, other=0)
    chosen = tl.load(chosen_ptr + b) != 0
    tl.store(regions_ptr + b * plane + place, (weight > 0) & chosen, mask=inside)
    images_ptr += b * plane * CHANNELS
    out_ptr += b * plane * CHANNELS
    if not chosen:
        for _ in tl.static_range(CHANNELS):
            tl.store(out_ptr + place, tl.load(images_ptr + place, mask=inside), mask=inside)
            images_ptr += plane
            out_ptr += plane
        return

    crop_x, crop_y, patch_w, patch_h, center_x, center_y = read_patch(fields_ptr, b)
    from_y, from_x = y - (center_y - patch_h // 2), x - (center_x - patch_w // 2)
    in_patch = ((from_y >= 0) & (from_y < patch_h))[:, None]
    in_patch = in_patch & ((from_x >= 0) & (from_x < patch_w))[None, :] & inside & (weight > 0)
    source_y = tl.minimum(tl.maximum(from_y + crop_y, 0), height - 1)
    source_x = tl.minimum(tl.maximum(from_x + crop_x, 0), width - 1)
    source = source_y[:, None] * width + source_x[None, :]

    kind: tl.constexpr = images_ptr.dtype.element_ty
    black, white = black_and_white(extremes_ptr, b, kind, EXTREMES)
    brightness, contrast = tl.load(real_ptr + 2 * b), tl.load(real_ptr + 2 * b + 1)
    total = tl.sum(tl.load(sums_ptr + b * SUMS + tl.arange(0, SUMS))).to(tl.float64)
    mean = total / (patch_w.to(tl.int64) * patch_h).to(tl.float64)
    if kind == tl.uint8:
        mean = tl.floor(mean + 0.5)
    for _ in tl.static_range(CHANNELS):
        value = working(tl.load(images_ptr + place, mask=inside, other=0))
        patch = working(tl.load(images_ptr + source, mask=in_patch, other=0))
        patch = move_from(tl.minimum(black, 0.0), patch, brightness, black, white, kind)
        patch = move_from(mean, patch, contrast, black, white, kind)
        canvas = tl.where(in_patch, patch, black.to(patch.dtype))
        mixed = mix(value, canvas, weight, black, white, kind)
        tl.store(out_ptr + place, mixed, mask=inside)
        images_ptr += plane
        out_ptr += plane
