"""The published mask's thresholding: contrast-limited equalization, Otsu's threshold, what is dark.

Every stage gives, bit for bit, what its scikit-image counterpart gives inside this chain, in a
fraction of the time: the work is done on small integers and histograms.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anatpaste_aug.images import Array, Mask

GRAY_LEVELS = 2**14  # scikit-image's CLAHE works on 14 bits,
BINS = 256  # in histograms of 256 bins,
BIN_WIDTH = 1 + GRAY_LEVELS // BINS  # each of 65 levels, so that the last three stay empty.
CLIP_LIMIT = 0.01
CHUNK = 32768  # pixels blended at a time: what is made of them stays in the cache

CENTERS = (np.arange(BINS) + 0.5) / BINS  # of Otsu's bins

# MULTIPLES[step, i] tells whether i is a multiple of step, or of 1 for step 0.
MULTIPLES = np.arange(BINS) % np.maximum(np.arange(BINS + 1), 1)[:, None] == 0


def quantize(gray: Array) -> npt.NDArray[np.uint8]:
    """Stretch an (H, W) image to 14 bits and return each pixel's CLAHE bin, 0..252.

    That is ``img_as_uint``, ``rescale_intensity`` and the division by the bin width. An 8-bit image
    goes through a table of 256 entries.
    """
    low, high = gray.min(), gray.max()
    if gray.dtype == np.uint8:
        table = np.zeros(256, np.uint8)
        values = np.arange(int(low), int(high) + 1)
        table[values] = _bins_of(values * 257, int(low) * 257, int(high) * 257)
        bins = np.frombuffer(gray.tobytes().translate(table.tobytes()), np.uint8)
        return bins.reshape(gray.shape)
    if gray.dtype.kind == "f":
        if low < 0 or high > 1:
            span = np.float64(high) - np.float64(low)
            gray = ((gray - np.float64(low)) / span).astype(gray.dtype) if span else gray * 0
        # img_as_uint, in the precision of the image.
        gray = np.rint(gray * gray.dtype.type(65535)).astype(np.uint16)
        low, high = gray.min(), gray.max()
    return _bins_of(gray, int(low), int(high))


def _bins_of(values: Array, low: int, high: int) -> npt.NDArray[np.uint8]:
    if low == high:
        levels = np.minimum(values, GRAY_LEVELS - 1)
    else:
        levels = (values - np.float64(low)) / np.float64(high - low)
        levels *= GRAY_LEVELS - 1
        np.rint(levels, out=levels)
    return (levels.astype(np.uint16) // np.uint16(BIN_WIDTH)).astype(np.uint8)


def clahe(bins: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Equalize an (H, W) image of bins locally; return 14-bit levels, before the final stretch.

    Equal to ``skimage.exposure.equalize_adapthist`` at its default settings up to the last
    ``rescale_intensity``: same tiles (an eighth of each side), reflected at the far edges, same
    clipping, and the same bilinear blend, a float32 sum of four products that are each rounded to
    float32 first, cut to an integer. For one pixel, with maps repeated beyond the outermost ones::

        (i, down), (j, right) = divmod(y + tile_h // 2, tile_h), divmod(x + tile_w // 2, tile_w)
        a, b = maps[i - 1, j - 1 : j + 1, bins[y, x]], maps[i, j - 1 : j + 1, bins[y, x]]
        y_weights, x_weights = [1 - down / tile_h, down / tile_h], [1 - right / tile_w, ...]
        level = int(sum(float32(v * wy * wx) for v, wy, wx in the four corners))

    All pixels at once would make large arrays: rows are taken in strips that fit the cache.
    """
    height, width = bins.shape
    tile_h, tile_w = height // 8, width // 8
    maps = tile_maps(bins, tile_h, tile_w)

    # A pixel lies in a cell between the centers of four tiles, at a place that gives the weights.
    cell_y, place_y = np.divmod(np.arange(tile_h) + tile_h // 2, tile_h)
    cell_x, place_x = np.divmod(np.arange(width) + tile_w // 2, tile_w)
    down, right = place_y / tile_h, place_x / tile_w
    # Float64 products rounded to float32 are float32 products where the weights are exact in it.
    powers_of_two = tile_h & (tile_h - 1) == 0 == tile_w & (tile_w - 1)
    precise = np.float32 if powers_of_two else np.float64
    y_weights = np.array([1 - down, down], precise)
    x_weights = np.array([1 - right, right], precise)
    # Outside the outermost centers, the nearest ones serve.
    rows, cols = ([0, *range(n), n - 1] for n in maps.shape[:2])
    table = maps.astype(precise).take(rows, axis=0).take(cols, axis=1).ravel()
    row_below = len(cols) * BINS
    # Where the cells' entries begin in the table, from a row of cells on: 16 bits hold that.
    first_y, first_x = (cell_y * row_below).astype(np.uint16), (cell_x * BINS).astype(np.uint16)

    # Rows at the same place between centers have the same weights: they are blended in turn.
    out = np.empty((height, width), np.uint16)
    step = min(max(CHUNK // width, 1), tile_h)
    entry, index = np.empty((step, width), np.uint16), np.empty((step, width), np.intp)
    values, weights = np.empty((2, 2, 2, step, width), precise)
    products = values if powers_of_two else np.empty(values.shape, np.float32)
    total = np.empty((step, width), np.float32)
    for place in range(0, tile_h, step):
        places = slice(place, place + step)
        n = min(step, tile_h - place)
        np.multiply(y_weights[:, None, places, None], x_weights[:, None], out=weights[:, :, :n])
        first = first_y[places, None] + first_x
        for start in range(place, height, tile_h):
            n = min(n, height - start)
            part = slice(n)
            # The sum is cheapest in 16 bits.
            entry[part] = bins[start : start + n]
            entry[part] += first[part]
            index[part] = entry[part]
            upper = table[start // tile_h * row_below :]
            for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
                corner = upper[y * row_below + x * BINS :]
                corner.take(index[part], mode="wrap", out=values[y, x, part])
            np.multiply(values, weights, out=products, casting="same_kind")
            np.add.reduce(products.reshape(4, step, width), axis=0, out=total)
            out[start : start + n] = total[part]
    return out


def tile_maps(
    bins: npt.NDArray[np.uint8], tile_h: int, tile_w: int
) -> npt.NDArray[np.floating[Any]]:
    """Return the gray-level map of every tile, (rows, columns, 256), whole numbers 0..16383."""
    height, width = bins.shape
    if height % tile_h or width % tile_w:
        bins = np.pad(bins, [(0, -height % tile_h), (0, -width % tile_w)], mode="reflect")
    rows, cols = bins.shape[0] // tile_h, bins.shape[1] // tile_w
    # One histogram for a row of tiles: the tile's number stands above the bin's 8 bits.
    tile = (np.arange(bins.shape[1]) // tile_w * BINS).astype(np.uint16)
    index = np.empty((tile_h, bins.shape[1]), np.uint16)
    counts = np.empty((rows, cols * BINS), np.int32)
    for row, band in enumerate(bins.reshape(rows, tile_h, -1)):
        index[:] = band
        index += tile
        counts[row] = np.bincount(index.ravel(), minlength=cols * BINS)
    counts = clip_histograms(counts.reshape(-1, BINS), tile_h * tile_w)
    maps = np.cumsum(counts, axis=1, dtype=np.int32) * ((GRAY_LEVELS - 1) / (tile_h * tile_w))
    np.minimum(maps, GRAY_LEVELS - 1, out=maps)
    return np.floor(maps, out=maps).reshape(rows, cols, BINS)


def clip_histograms(counts: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int32]:
    """Clip the (tiles, 256) histograms of tiles of `size` pixels; hand the excess to other bins.

    The rule is that of scikit-image's ``clip_histogram``, for all tiles at once: an equal share for
    every bin; bins that are then within one more share of the limit are filled; what remains is
    dealt out one by one, at even steps, to the bins with room: from bin 0, then from bin 1, ...

    With 4 bins, a limit of 3, and 10 pixels::

        9 0 1 0    the histogram
        3 0 1 0    clipped; 6 are over: a share of 6 // 4 = 1 for every bin ...
        3 1 2 1    ... with room for it,
        3 1 3 1    and what is then within a share of the limit is filled; 2 are left
        3 2 3 2    dealt to the 2 bins with room, at steps of 2 // 2 = 1
    """
    limit = np.int32(max(int(CLIP_LIMIT * size), 1))
    counts = np.minimum(counts, limit)
    share = (size - counts.sum(axis=1, dtype=np.int32, keepdims=True)) // BINS
    counts += share
    counts += (counts >= limit - share) * limit
    np.minimum(counts, limit, out=counts)
    left = size - counts.sum(axis=1, dtype=np.int32)
    start = 0
    while (over := left > 0).any():  # ends: all limits together exceed `size`
        room = (counts < limit) & over[:, None]
        step = room.sum(axis=1, dtype=np.int32) // np.maximum(left, 1)
        chosen = room[:, start:] & MULTIPLES.take(step, axis=0)[:, : BINS - start]
        counts[:, start:] += chosen
        left -= chosen.sum(axis=1, dtype=np.int32)
        start = (start + 1) % BINS
    return counts


def dark_side(levels: npt.NDArray[np.uint16], dtype: npt.DTypeLike) -> Mask:
    """Keep the pixels that are not black and not above Otsu's threshold.

    That is ``0 < value <= threshold``, where `value` is the level stretched to 0..1 in `dtype`. The
    edges and centers of Otsu's 256 bins are multiples of 1/512, and levels are at most 14 bits, so
    that rounding a value never moves it across one: integers decide the same.
    """
    height, width = levels.shape
    lowest = levels.min()
    levels = levels - lowest
    highest = int(levels.max())
    if highest == 0:  # a constant image is its own threshold
        return np.full(levels.shape, lowest > 0)
    bins = np.empty(levels.shape, np.uint8)
    for start in range(0, bins.size, CHUNK):
        part = slice(start, start + CHUNK)
        scaled = levels.ravel()[part].astype(np.uint32)
        scaled *= BINS
        scaled //= np.uint32(highest)
        bins.ravel()[part] = scaled
    # Pillow counts bytes twice as fast as NumPy. The highest level, 256, wrapped round to bin 0.
    picture = Image.frombuffer("L", (width, height), bins, "raw", "L", 0, 1)
    histogram = np.array(picture.histogram())
    top = np.count_nonzero(levels == highest)
    histogram[0] -= top
    histogram[-1] += top
    threshold = otsu(histogram, CENTERS.astype(dtype))
    brightest = (2 * threshold + 1) * highest // (2 * BINS)
    # Levels from 1 to brightest: in unsigned arithmetic a single comparison.
    levels -= np.uint16(1)
    return levels < brightest


def otsu(histogram: npt.NDArray[np.int32], centers: npt.NDArray[np.floating[Any]]) -> int:
    """Return the bin of Otsu's threshold, with the arithmetic of scikit-image's ``threshold_otsu``.

    Neither the first nor the last of the bins is empty.
    """
    counts = histogram.astype(np.float32)
    moments = counts * centers
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])
    mean_below, mean_above = np.cumsum(moments) / below, np.cumsum(moments[::-1]) / above
    distance = mean_below[:-1] - mean_above[-2::-1]
    return int(np.argmax(below[:-1] * above[-2::-1] * distance**2))
