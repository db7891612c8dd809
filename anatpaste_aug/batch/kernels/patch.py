"""The jittered patch: its mean, and how it is blended into the image."""

from __future__ import annotations

import triton
import triton.language as tl

from anatpaste_aug.batch.kernels.pixels import divide, luma, nearest, read_extremes, working


@triton.jit
def black_and_white(
    extremes, b, parts, UNSIGNED: tl.constexpr, BYTES: tl.constexpr, PARTS: tl.constexpr
):
    """Return the values of black and white, float64: 0 and 255, or the image's own extremes."""
    if BYTES:
        black = tl.full((), 0.0, tl.float64)
        white = tl.full((), 255.0, tl.float64)
    else:
        black, white = read_extremes(extremes, b, parts, PARTS)
        if UNSIGNED:
            black = black * 0
    return black, white


@triton.jit
def move_from(base, values, factor, black, white, BYTES: tl.constexpr):
    """Scale the distance from `base`, within black and white; a factor of 1 changes nothing.

    `anatpaste_aug.batch.patch.move_from`: 8-bit images in float32, cut to whole numbers; wider
    integers in float64, rounded to nearest; floats in their own precision. All but `values` are
    float64.
    """
    whole: tl.constexpr = tl.float32 if BYTES else tl.float64
    kind: tl.constexpr = values.dtype if values.dtype.is_floating() else whole
    base = base.to(kind)
    moved = base + factor.to(kind) * (values.to(kind) - base)
    moved = tl.minimum(tl.maximum(moved, black.to(kind)), white.to(kind))
    if not values.dtype.is_floating() and not BYTES:
        moved = nearest(moved)
    return tl.where(factor == 1, values, moved.to(values.dtype))


@triton.jit
def sum_patches(
    images,
    chosen,
    extremes,
    crops_x,
    crops_y,
    widths,
    heights,
    brightnesses,
    sums,
    height,
    width,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    parts,
    COLOUR: tl.constexpr,
    UNSIGNED: tl.constexpr,
    BYTES: tl.constexpr,
    PARTS: tl.constexpr,
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
    if tl.load(chosen + b) == 0:
        return
    black, white = black_and_white(extremes, b, parts, UNSIGNED, BYTES, PARTS)
    low = tl.minimum(black, 0.0)
    factor = tl.load(brightnesses + b)
    top, left = tl.load(crops_y + b).to(tl.int32), tl.load(crops_x + b).to(tl.int32)
    # Parameters are not checked: what lies outside the image is not read.
    bottom = tl.minimum(top + tl.load(heights + b).to(tl.int32), height)
    right = tl.minimum(left + tl.load(widths + b).to(tl.int32), width)
    top, left = tl.maximum(top, 0), tl.maximum(left, 0)
    total = tl.zeros((ROWS, COLS), sums.dtype.element_ty)
    for y0 in range(top + part * ROWS, bottom, ROWS * tl.num_programs(1)):
        y = y0 + tl.arange(0, ROWS)
        at_row = images + b * stride_b + y.to(tl.int64)[:, None] * stride_y
        for x0 in range(left, right, COLS):
            x = x0 + tl.arange(0, COLS)
            inside = (y < bottom)[:, None] & (x < right)[None, :]
            at = at_row + x.to(tl.int64)[None, :] * stride_x
            grey = working(tl.load(at, mask=inside, other=0))
            grey = move_from(low, grey, factor, black, white, BYTES)
            if COLOUR:
                green = working(tl.load(at + stride_c, mask=inside, other=0))
                green = move_from(low, green, factor, black, white, BYTES)
                blue = working(tl.load(at + stride_c + stride_c, mask=inside, other=0))
                blue = move_from(low, blue, factor, black, white, BYTES)
                grey = luma(grey, green, blue)
            total += tl.where(inside, grey, 0).to(total.dtype)
    tl.store(sums + b * tl.num_programs(1) + part, tl.sum(total))


@triton.jit
def blend_patches(
    images,
    chosen,
    extremes,
    crops_x,
    crops_y,
    widths,
    heights,
    centers_x,
    centers_y,
    brightnesses,
    contrasts,
    sums,
    alpha,
    out,
    height,
    width,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    out_b,
    out_c,
    out_y,
    out_x,
    parts,
    CHANNELS: tl.constexpr,
    UNSIGNED: tl.constexpr,
    BYTES: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    SUMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Blend the jittered patches, on black, into the images.

    Grid: images, parts of `ROWS` rows, parts of `COLS` columns. Reads the images, the parameters,
    `extremes`, `sums` and `alpha`, of launches before; writes ``out``, each pixel once: the image
    itself where it is not chosen, and where alpha is 0.

    Pixels of 16 bits times 255 stay below 2**24; 32-bit pixels (`WIDE`) are multiplied in 64 bits.
    """
    b = tl.program_id(0).to(tl.int64)
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(2) * COLS + tl.arange(0, COLS)
    inside = (y < height)[:, None] & (x < width)[None, :]
    wide_y, wide_x = y.to(tl.int64)[:, None], x.to(tl.int64)[None, :]
    images += b * stride_b
    at = images + wide_y * stride_y + wide_x * stride_x
    to = out + b * out_b + wide_y * out_y + wide_x * out_x
    if tl.load(chosen + b) == 0:
        for _ in tl.static_range(CHANNELS):
            tl.store(to, tl.load(at, mask=inside), mask=inside)
            at += stride_c
            to += out_c
        return

    weight = tl.load(
        alpha + b * height * width + y[:, None] * width + x[None, :], mask=inside, other=0
    )
    patch_w, patch_h = tl.load(widths + b).to(tl.int32), tl.load(heights + b).to(tl.int32)
    from_y = y - (tl.load(centers_y + b).to(tl.int32) - patch_h // 2)
    from_x = x - (tl.load(centers_x + b).to(tl.int32) - patch_w // 2)
    in_patch = ((from_y >= 0) & (from_y < patch_h))[:, None]
    in_patch = in_patch & ((from_x >= 0) & (from_x < patch_w))[None, :] & inside & (weight > 0)
    source_y = tl.minimum(tl.maximum(from_y + tl.load(crops_y + b).to(tl.int32), 0), height - 1)
    source_x = tl.minimum(tl.maximum(from_x + tl.load(crops_x + b).to(tl.int32), 0), width - 1)
    source = images + source_y.to(tl.int64)[:, None] * stride_y
    source += source_x.to(tl.int64)[None, :] * stride_x

    black, white = black_and_white(extremes, b, parts, UNSIGNED, BYTES, PARTS)
    brightness, contrast = tl.load(brightnesses + b), tl.load(contrasts + b)
    total = tl.sum(tl.load(sums + b * SUMS + tl.arange(0, SUMS))).to(tl.float64)
    mean = total / (patch_w.to(tl.int64) * patch_h).to(tl.float64)
    if BYTES:
        mean = tl.floor(mean + 0.5)
    kind: tl.constexpr = tl.int64 if WIDE else tl.int32
    for _ in tl.static_range(CHANNELS):
        value = working(tl.load(at, mask=inside, other=0))
        patch = working(tl.load(source, mask=in_patch, other=0))
        patch = move_from(tl.minimum(black, 0.0), patch, brightness, black, white, BYTES)
        patch = move_from(mean, patch, contrast, black, white, BYTES)
        canvas = tl.where(in_patch, patch, black.to(patch.dtype))
        if value.dtype.is_floating():
            share = divide(weight.to(value.dtype), tl.full((), 255.0, value.dtype))
            mixed = value * (1 - share) + canvas * share
            # A weighted mean may leave the range of its terms by a last bit.
            mixed = tl.maximum(mixed, black.to(value.dtype))
            mixed = tl.minimum(mixed, white.to(value.dtype))
        else:
            mixed = value.to(kind) * (255 - weight.to(kind)) + canvas.to(kind) * weight.to(kind)
            # Down, where the operator cuts towards 0.
            mixed += 127
            mixed = tl.where(mixed < 0, -((254 - mixed) // 255), mixed // 255)
        tl.store(to, mixed.to(out.dtype.element_ty), mask=inside)
        at += stride_c
        source += stride_c
        to += out_c
