"""CLAHE: the grey-level map of every tile, and the blend of four maps at every pixel."""

from __future__ import annotations

import triton
import triton.language as tl

from anatpaste_aug import clahe as functional
from anatpaste_aug.batch.kernels.pixels import divide, load_grey, nearest, read_extremes

BINS = tl.constexpr(functional.BINS)
BIN_WIDTH = tl.constexpr(functional.BIN_WIDTH)
TOP = tl.constexpr(functional.GREY_LEVELS - 1)
UNUSED = tl.constexpr(functional.BINS - 1)  # no pixel falls into the last three bins


@triton.jit
def to_sixteen_bits(value, low, high, kind: tl.constexpr):
    """Bring float64 values of an image, extremes `low` and `high`, to 0..65535, in `kind`."""
    span = tl.where(high == low, 1.0, high - low)
    stretched = ((value - low) / span).to(kind)
    value = tl.where((low < 0) | (high > 1), stretched, value.to(kind))
    return nearest(value * tl.full((), 65535.0, kind)).to(tl.float64)


@triton.jit
def quantise(grey, low, high, WIDEN: tl.constexpr):
    """Stretch pixels to 14 bits and give their CLAHE bins, 0..252; `low`, `high`: float64 extremes.

    The steps are those of `anatpaste_aug.batch.clahe.quantise`. Floats come to 0..65535 first, in
    their own precision; rounding is monotonic, so that the extremes are those of before. The factor
    257 of 8-bit images (`WIDEN`) cancels in the quotient, which is rounded once either way; it is
    left in images of one value only.
    """
    kind: tl.constexpr = grey.dtype
    value = grey.to(tl.float64)
    if kind.is_floating():
        value = to_sixteen_bits(value, low, high, kind)
        ends = to_sixteen_bits(low, low, high, kind), to_sixteen_bits(high, low, high, kind)
        low, high = ends
    span = tl.where(high == low, 1.0, high - low)
    level = nearest((value - low) / span * TOP)
    level = tl.where(high == low, value * 257 if WIDEN else value, level)
    # NaN and infinities are not looked for, but must not lead astray: hence the second limits.
    level = tl.minimum(tl.maximum(level, 0.0), 1.0 * TOP).to(tl.int32)
    return tl.minimum(tl.maximum(level, 0), TOP) // BIN_WIDTH


@triton.jit
def clip(counts, size, limit):
    """Clip a histogram of `size` pixels at `limit`, and hand the excess to the other bins.

    The rule is that of `anatpaste_aug.batch.clahe.clip_histograms`. The loop ends: all limits
    together exceed `size`, so that there is always a bin with room, and every 256 deals fill it
    (see `anatpaste_aug.batch.clahe.most_deals` for a bound).
    """
    index = tl.arange(0, BINS)
    counts = tl.minimum(counts, limit)
    share = (size - tl.sum(counts)) // BINS
    counts += share
    counts = tl.where(counts >= limit - share, limit, counts)
    left = size - tl.sum(counts)
    start = left * 0
    while left > 0:
        room = counts < limit
        step = tl.maximum(tl.sum(room.to(tl.int32)) // left, 1)
        dealt = room & (index >= start) & ((index - start) % step == 0)
        counts += dealt.to(tl.int32)
        left -= tl.sum(dealt.to(tl.int32))
        start = (start + 1) % BINS
    return counts


@triton.jit
def map_tiles(
    images,
    chosen,
    extremes,
    bins,
    maps,
    height,
    width,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    parts,
    tile_h,
    tile_w,
    across,
    limit,
    COLOUR: tl.constexpr,
    WIDEN: tl.constexpr,
    PARTS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Quantise a tile, and make the map from its bins to levels of 14 bits.

    Grid: images, tiles. Reads the pixels of the tile, those reflected at the far edges too, and the
    image's `extremes`, of the launch before. Writes ``bins``, (B, H, W) uint8, where the tile lies
    inside the image, and ``maps[image, tile]``, 256 of int16: both belong to this program alone.

    Places stay in the image: a tile reaches at most ``tile - 1`` beyond the edge, and is reflected
    by as much. 32 bits hold the running sum of at most 2**20 pixels, float64 its product with 14
    bits, so that only the factor and the product are rounded, as in the functional form.
    """
    b, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(chosen + b) == 0:
        return
    low, high = read_extremes(extremes, b, parts, PARTS)
    size = tile_h * tile_w
    counts = tl.zeros((BINS,), tl.int32)
    for start in range(0, size, STEP):
        i = start + tl.arange(0, STEP)
        y, x = tile // across * tile_h + i // tile_w, tile % across * tile_w + i % tile_w
        inside = i < size
        from_y = (height - 1) - tl.abs(height - 1 - y)
        from_x = (width - 1) - tl.abs(width - 1 - x)
        at = images + b * stride_b + from_y.to(tl.int64) * stride_y + from_x.to(tl.int64) * stride_x
        level = quantise(load_grey(at, stride_c, inside, COLOUR), low, high, WIDEN)
        to = bins + b * height * width + y * width + x
        tl.store(to, level.to(tl.uint8), mask=inside & (y < height) & (x < width))
        counts += tl.histogram(tl.where(inside, level, UNUSED), BINS)
    index = tl.arange(0, BINS)
    counts = clip(tl.where(index == UNUSED, 0, counts), size, limit)
    factor = tl.full((), 1.0 * TOP, tl.float64) / size.to(tl.float64)
    levels = tl.minimum((tl.cumsum(counts).to(tl.float64) * factor).to(tl.int32), TOP)
    to = maps + (b * tl.num_programs(1) + tile) * BINS
    tl.store(to + index, levels.to(tl.int16))


@triton.jit
def blend_maps(
    chosen,
    bins,
    maps,
    levels,
    ends,
    height,
    width,
    tile_h,
    tile_w,
    down_tiles,
    across,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Blend the maps of the four tiles around every pixel: (B, H, W) levels, int16.

    Grid: images, parts of `ROWS` rows, parts of `COLS` columns. Reads the pixels' bins and the
    image's maps, of the launch before; writes the levels, each by one program. ``ends[image]``, two
    int32 that are 0 before, gets the maximum of the levels, and of what they lack to 2**15 - 1, by
    atomics: a maximum does not depend on their order.

    Each of the four products is computed in float64 and rounded to float32, then the sum in
    float32, from the left, as in the functional form. Where the tiles' sides are powers of two
    (`EXACT`) the weights are exact in float32, and so the same product is rounded once.
    """
    b = tl.program_id(0).to(tl.int64)
    if tl.load(chosen + b) == 0:
        return
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(2) * COLS + tl.arange(0, COLS)
    inside = (y < height)[:, None] & (x < width)[None, :]
    place = b * height * width + y[:, None] * width + x[None, :]
    level = tl.load(bins + place, mask=inside, other=0).to(tl.int32)

    kind: tl.constexpr = tl.float32 if EXACT else tl.float64
    # A pixel lies in a cell between the centres of four tiles, at a place that gives the weights.
    cell_y, cell_x = (y + tile_h // 2) // tile_h, (x + tile_w // 2) // tile_w
    down = divide(((y + tile_h // 2) % tile_h).to(kind), tile_h.to(kind))
    right = divide(((x + tile_w // 2) % tile_w).to(kind), tile_w.to(kind))
    total = tl.zeros((ROWS, COLS), tl.float32)
    for dy in tl.static_range(2):
        # Outside the outermost centres the outermost tiles go on.
        row = tl.minimum(tl.maximum(cell_y + (dy - 1), 0), down_tiles - 1)
        weight_y = down if dy else 1 - down
        for dx in tl.static_range(2):
            col = tl.minimum(tl.maximum(cell_x + (dx - 1), 0), across - 1)
            weight_x = right if dx else 1 - right
            corner = ((b * down_tiles + row) * across)[:, None] + col[None, :]
            value = tl.load(maps + corner * BINS + level, mask=inside, other=0)
            weight = weight_y[:, None] * weight_x[None, :]
            total += (value.to(kind) * weight).to(tl.float32)
    level = total.to(tl.int32)
    tl.store(levels + place, level.to(tl.int16), mask=inside)
    highest = tl.max(tl.where(inside, level, 0))
    lowest = tl.max(tl.where(inside, 32767 - level, 0))
    tl.atomic_max(ends + 2 * b, highest, sem="relaxed")
    tl.atomic_max(ends + 2 * b + 1, lowest, sem="relaxed")
