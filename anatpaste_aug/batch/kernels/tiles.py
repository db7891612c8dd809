"""CLAHE: the gray-level map of every tile, and the blend of four maps at every pixel."""

import triton
import triton.language as tl

from anatpaste_aug.batch.kernels.pixels import divide, load_gray, nearest, read_extremes
from anatpaste_aug.masks import clahe as functional

BINS = tl.constexpr(functional.BINS)
BIN_WIDTH = tl.constexpr(functional.BIN_WIDTH)
TOP = tl.constexpr(functional.GRAY_LEVELS - 1)
UNUSED = tl.constexpr(functional.BINS - 1)  # no pixel falls into the last three bins


@triton.jit
def to_sixteen_bits(value, low, high, kind: tl.constexpr):
    """Bring float64 values of an image, extremes `low` and `high`, to 0..65535, in `kind`."""
    span = tl.where(high == low, 1.0, high - low)
    stretched = ((value - low) / span).to(kind)
    value = tl.where((low < 0) | (high > 1), stretched, value.to(kind))
    return nearest(value * tl.full((), 65535.0, kind)).to(tl.float64)


@triton.jit
def quantize(gray, low, high, WIDEN: tl.constexpr):
    """Stretch pixels to 14 bits; return CLAHE bins, 0..252. `low`, `high` are float64 extremes.

    The steps are those of `anatpaste_aug.masks.clahe.quantize`. Floats come to 0..65535 first, in
    their own precision; rounding is monotonic, so that the extremes are those of before. The factor
    257 of 8-bit images (`WIDEN`) cancels in the quotient, which is rounded once either way; it
    stays in images of one value only.
    """
    kind: tl.constexpr = gray.dtype
    value = gray.to(tl.float64)
    if kind.is_floating():
        value = to_sixteen_bits(value, low, high, kind)
        low, high = to_sixteen_bits(low, low, high, kind), to_sixteen_bits(high, low, high, kind)
    span = tl.where(high == low, 1.0, high - low)
    level = nearest((value - low) / span * TOP)
    level = tl.where(high == low, value * 257 if WIDEN else value, level)
    # NaN and infinities are not looked for, but must not lead astray: hence the second limits.
    level = tl.minimum(tl.maximum(level, 0.0), 1.0 * TOP).to(tl.int32)
    return tl.minimum(tl.maximum(level, 0), TOP) // BIN_WIDTH


@triton.jit
def clip(counts, size, limit):
    """Clip a histogram of `size` pixels at `limit`, and hand the excess to the other bins.

    The rule is that of `anatpaste_aug.masks.clahe.clip_histograms`. A deal is one step of the loop,
    from bin `start` on. The loop ends: all limits together exceed `size`, so that there is always a
    bin with room, and every 256 deals fill it. How many deals it takes:

    Let U be the bins with room and n the excess, while n > 0. The room of all bins exceeds n by the
    constant ``256 * limit - size`` > 0, and no bin has more than `limit`: so U is never less than
    ``few = (256 * limit - size) / limit``. At the start n is at most 255, plus one share for each
    of the bins that were filled, at most 256 - few.

    - While U < 2 n the step is 1: the deal from bin i takes a pixel for every bin with room from i
      on, which are at least ``few - i``.
    - Once U >= 2 n it stays so: after a deal of c pixels there are at least U - c bins and n - c
      pixels. Every deal from a bin of these U takes a pixel for it, unless it has been filled in
      the meantime, which took one as well; so n ends after n + 256 - U deals, which decreases as U
      grows, if the row of 256 does not end before. If it does, the next row takes no more.

    For tiles of 32 x 32 pixels (an image of 256 x 256) the limit is 10 a bin, and 183 deals are
    always enough; of 128 x 128, where it is 163, 229.
    """
    index = tl.arange(0, BINS)
    counts = tl.minimum(counts, limit)
    share = (size - tl.sum(counts)) // BINS
    counts += share
    counts = tl.where(counts >= limit - share, limit, counts)
    excess = size - tl.sum(counts)
    start = excess * 0
    while excess > 0:
        room = counts < limit
        step = tl.maximum(tl.sum(room.to(tl.int32)) // excess, 1)
        dealt = room & (index >= start) & ((index - start) % step == 0)
        counts += dealt.to(tl.int32)
        excess -= tl.sum(dealt.to(tl.int32))
        start = (start + 1) % BINS
    return counts


@triton.jit
def map_tiles_kernel(
    images_ptr,
    extremes_ptr,
    bins_ptr,
    maps_ptr,
    height,
    width,
    tile_h,
    tile_w,
    across,
    limit,
    COLOR: tl.constexpr,
    EXTREMES: tl.constexpr,
    STEP: tl.constexpr,
):
    """Quantize a tile, and make the map from its bins to levels of 14 bits.

    Grid: images, tiles. Reads the pixels of the tile, those reflected at the far edges too, and the
    image's extremes, of the launch before. Writes `bins`, (B, H, W) uint8, where the tile lies
    inside the image, and ``maps[image, tile]``, 256 of int16: both belong to this program alone.

    Places stay in the image: a tile reaches at most ``tile - 1`` beyond the edge, and is reflected
    by as much. 32 bits hold the running sum of at most 2**20 pixels, float64 its product with 14
    bits, so that only the factor and the product are rounded, as in the functional form.
    """
    b, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    plane = height * width
    images_ptr += b * plane * (3 if COLOR else 1)
    low, high = read_extremes(extremes_ptr, b, EXTREMES)
    widen: tl.constexpr = images_ptr.dtype.element_ty == tl.uint8
    size = tile_h * tile_w
    counts = tl.zeros((BINS,), tl.int32)
    for start in range(0, size, STEP):
        i = start + tl.arange(0, STEP)
        y, x = tile // across * tile_h + i // tile_w, tile % across * tile_w + i % tile_w
        inside = i < size
        from_y = (height - 1) - tl.abs(height - 1 - y)
        from_x = (width - 1) - tl.abs(width - 1 - x)
        gray = load_gray(images_ptr + from_y * width + from_x, plane, inside, COLOR)
        level = quantize(gray, low, high, widen)
        to = bins_ptr + b * plane + y * width + x
        tl.store(to, level.to(tl.uint8), mask=inside & (y < height) & (x < width))
        counts += tl.histogram(tl.where(inside, level, UNUSED), BINS)
    index = tl.arange(0, BINS)
    counts = clip(tl.where(index == UNUSED, 0, counts), size, limit)
    factor = tl.full((), 1.0 * TOP, tl.float64) / size.to(tl.float64)
    levels = tl.minimum((tl.cumsum(counts).to(tl.float64) * factor).to(tl.int32), TOP)
    to = maps_ptr + (b * tl.num_programs(1) + tile) * BINS
    tl.store(to + index, levels.to(tl.int16))


@triton.jit
def blend_maps_kernel(
    bins_ptr,
    maps_ptr,
    levels_ptr,
    ends_ptr,
    height,
    width,
    tile_h,
    tile_w,
    down,
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
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(2) * COLS + tl.arange(0, COLS)
    inside = (y < height)[:, None] & (x < width)[None, :]
    place = b * height * width + y[:, None] * width + x[None, :]
    level = tl.load(bins_ptr + place, mask=inside, other=0).to(tl.int32)

    kind: tl.constexpr = tl.float32 if EXACT else tl.float64
    # A pixel lies in a cell between the centers of four tiles, at a place that gives the weights.
    cell_y, cell_x = (y + tile_h // 2) // tile_h, (x + tile_w // 2) // tile_w
    below = divide(((y + tile_h // 2) % tile_h).to(kind), tile_h.to(kind))
    beside = divide(((x + tile_w // 2) % tile_w).to(kind), tile_w.to(kind))
    total = tl.zeros((ROWS, COLS), tl.float32)
    for dy in tl.static_range(2):
        # Outside the outermost centers the outermost tiles go on.
        row = tl.minimum(tl.maximum(cell_y + (dy - 1), 0), down - 1)
        weight_y = below if dy else 1 - below
        for dx in tl.static_range(2):
            col = tl.minimum(tl.maximum(cell_x + (dx - 1), 0), across - 1)
            weight_x = beside if dx else 1 - beside
            corner = ((b * down + row) * across)[:, None] + col[None, :]
            value = tl.load(maps_ptr + corner * BINS + level, mask=inside, other=0)
            weight = weight_y[:, None] * weight_x[None, :]
            total += (value.to(kind) * weight).to(tl.float32)
    level = total.to(tl.int32)
    tl.store(levels_ptr + place, level.to(tl.int16), mask=inside)
    highest = tl.max(tl.where(inside, level, 0))
    lowest = tl.max(tl.where(inside, 32767 - level, 0))
    tl.atomic_max(ends_ptr + 2 * b, highest, sem="relaxed")
    tl.atomic_max(ends_ptr + 2 * b + 1, lowest, sem="relaxed")
