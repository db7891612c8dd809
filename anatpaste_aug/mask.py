"""The published lung mask: CLAHE, Otsu's threshold, 3x3 morphology and the bounding-box rule.

Every stage gives, bit for bit, what its scikit-image counterpart gives inside this chain, in a
fraction of the time: the work is done on small integers, histograms and runs of pixels.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from anatpaste_aug.checks import check_integer
from anatpaste_aug.images import Array, ImageLike, Mask, as_array, to_grey

GREY_LEVELS = 2**14  # scikit-image's CLAHE works on 14 bits,
BINS = 256  # in histograms of 256 bins,
BIN_WIDTH = 1 + GREY_LEVELS // BINS  # each of 65 levels, so that the last three stay empty.
CLIP_LIMIT = 0.01
CHUNK = 16384  # pixels blended at a time: in the cache, and in blocks that malloc keeps for reuse

CENTERS = (np.arange(BINS) + 0.5) / BINS  # of Otsu's bins

Bits: TypeAlias = Array  # a mask as made by `pack`

# MULTIPLES[step, i] tells whether i is a multiple of step, or of 1 for step 0.
MULTIPLES = np.arange(BINS) % np.arange(1, BINS + 1)[:, None] == 0
MULTIPLES = np.concatenate([MULTIPLES[:1], MULTIPLES])


def lung_mask(image: ImageLike, *, min_area: int = 400) -> Mask:
    """Segment the lungs of a frontal chest radiograph by thresholding, as AnatPaste does.

    The chain is CLAHE (8 x 8 tiles, clip limit 0.01), Otsu's threshold, the pixels that are darker
    than it but not black, 3x3 opening, removal of what touches the image border, 3x3 dilation, and
    removal of the bounding box of every region smaller than `min_area`. Bit for bit it equals the
    authors' released code on unsigned images, and the same steps in scikit-image on floats within
    0..1. It is a rough mask: ribs and clavicles cut into it, and on some images nothing is found.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image of mode L, RGB, I;16, I or F
        uint8, uint16, int16, int32, float32 or float64; at least 16 pixels high and wide. Lungs
        are dark. Colour is reduced with ITU-R 601 luma. Floats within 0..1 are taken in steps of
        1/65535, so stretch dim ones first; floats that leave 0..1, and signed images, are
        stretched linearly from their own minimum to their maximum.
    min_area : int, optional
        Regions of fewer pixels are removed, together with everything in their bounding boxes.

    Returns
    -------
    mask : (H, W) ndarray of bool
        True in the lungs; all False if none is found.

    Raises
    ------
    TypeError, ValueError
        If `image` is not as above, or not finite; if `min_area` is not an integer of at least 0.

    References
    ----------
    Sato et al., Anatomy-aware self-supervised learning for anomaly detection in chest radiographs,
    iScience 2023, arXiv:2205.04282, section "AnatPaste augmentation".

    Examples
    --------
    >>> from anatpaste_aug import lung_mask
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> mask = lung_mask(phantom_radiograph(256, rng=0))
    >>> mask.shape, mask.dtype, bool(mask.any())
    ((256, 256), dtype('bool'), True)
    """
    min_area = check_integer("min_area", min_area, 0)
    grey = to_grey(as_array(image))
    levels = clahe(quantise(grey))
    # scikit-image keeps float32 images in float32 and computes on all others in float64.
    dark = dark_side(levels, np.float32 if grey.dtype == np.float32 else np.float64)
    width = dark.shape[1]
    inside = pack(np.ones((1, width), bool))
    opened = dilate(erode(pack(dark), inside), inside)
    dilated = dilate(clear_border(opened, width), inside)
    return clear_small_boxes(unpack(dilated, width), min_area)


def quantise(grey: Array) -> npt.NDArray[np.uint8]:
    """Stretch an (H, W) image to 14 bits and give each pixel's CLAHE bin, 0..252.

    That is ``img_as_uint``, ``rescale_intensity`` and the division by the bin width. An 8-bit image
    goes through a table of 256 entries.
    """
    low, high = grey.min(), grey.max()
    if grey.dtype == np.uint8:
        table = np.zeros(256, np.uint8)
        values = np.arange(int(low), int(high) + 1)
        table[values] = _bins_of(values * 257, int(low) * 257, int(high) * 257)
        bins = np.frombuffer(grey.tobytes().translate(table.tobytes()), np.uint8)
        return bins.reshape(grey.shape)
    if grey.dtype.kind == "f":
        if low < 0 or high > 1:
            span = np.float64(high) - np.float64(low)
            grey = ((grey - np.float64(low)) / span).astype(grey.dtype) if span else grey * 0
        # img_as_uint, in the precision of the image.
        grey = np.rint(grey * grey.dtype.type(65535)).astype(np.uint16)
        low, high = grey.min(), grey.max()
    return _bins_of(grey, int(low), int(high))


def _bins_of(values: Array, low: int, high: int) -> npt.NDArray[np.uint8]:
    if low == high:
        levels = np.minimum(values, GREY_LEVELS - 1)
    else:
        levels = (values - np.float64(low)) / np.float64(high - low)
        levels *= GREY_LEVELS - 1
        np.rint(levels, out=levels)
    return (levels.astype(np.uint16) // np.uint16(BIN_WIDTH)).astype(np.uint8)


def clahe(bins: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Equalise an (H, W) image of bins locally; give 14-bit levels, before the final stretch.

    Equal to ``skimage.exposure.equalize_adapthist`` at its default settings up to the last
    ``rescale_intensity``: same tiles (an eighth of each side), reflected at the far edges, same
    clipping, and the same bilinear blend, a float32 sum of four products that are each rounded to
    float32 first, cut to an integer.
    """
    height, width = bins.shape
    tile_h, tile_w = height // 8, width // 8
    maps = tile_maps(bins, tile_h, tile_w)

    # A pixel lies between the centres of four tiles: the upper left one, and its place from there.
    tile_y, place_y = np.divmod(np.arange(height) + tile_h // 2, tile_h)
    tile_x, place_x = np.divmod(np.arange(width) + tile_w // 2, tile_w)
    down, right = place_y[:tile_h] / tile_h, place_x / tile_w
    # Float64 products rounded to float32 are float32 products where the weights are exact in it.
    powers_of_two = tile_h & (tile_h - 1) == 0 == tile_w & (tile_w - 1)
    precise = np.float32 if powers_of_two else np.float64
    y_weights = np.stack([1 - down, down]).astype(precise)
    x_weights = np.stack([1 - right, right]).astype(precise)
    # Outside the outermost centres, the nearest ones serve.
    rows, cols = ([0, *range(n), n - 1] for n in maps.shape[:2])
    table = maps.astype(precise).take(rows, axis=0).take(cols, axis=1).ravel()
    row_below = len(cols) * BINS

    # Rows at the same place between centres have the same weights: they are blended in turn.
    out = np.empty((height, width), np.uint16)
    step = min(max(CHUNK // width, 1), tile_h)
    index = np.empty((step, width), np.intp)
    values, weights = np.empty((2, 2, 2, step, width), precise)
    products = values if powers_of_two else np.empty(values.shape, np.float32)
    total = np.empty((step, width), np.float32)
    for place in range(0, tile_h, step):
        n = min(step, tile_h - place)
        y_weight = y_weights[:, None, place : place + n, None]
        np.multiply(y_weight, x_weights[:, None], out=weights[:, :, :n])
        first = (tile_y[place : place + n] * row_below)[:, None] + tile_x * BINS
        for start in range(place, height, tile_h):
            n = min(n, height - start)
            part = slice(n)
            np.add(first[part], bins[start : start + n], out=index[part])
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
    """Give the grey-level map of every tile, (rows, columns, 256), whole numbers 0..16383."""
    height, width = bins.shape
    if height % tile_h or width % tile_w:
        bins = np.pad(bins, [(0, -height % tile_h), (0, -width % tile_w)], mode="reflect")
    rows, cols = bins.shape[0] // tile_h, bins.shape[1] // tile_w
    # One histogram for a row of tiles: the tile's number stands above the bin's 8 bits.
    tile = np.arange(bins.shape[1]) // tile_w * BINS
    index = np.empty((tile_h, bins.shape[1]), np.intp)
    counts = np.empty((rows, cols * BINS), np.int32)
    for row, band in enumerate(bins.reshape(rows, tile_h, -1)):
        np.add(tile, band, out=index)
        counts[row] = np.bincount(index.ravel(), minlength=cols * BINS)
    counts = clip_histograms(counts.reshape(-1, BINS), tile_h * tile_w)
    maps = np.cumsum(counts, axis=1, dtype=np.int32) * ((GREY_LEVELS - 1) / (tile_h * tile_w))
    np.minimum(maps, GREY_LEVELS - 1, out=maps)
    return np.floor(maps, out=maps).reshape(rows, cols, BINS)


def clip_histograms(counts: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.int32]:
    """Clip the (tiles, 256) histograms of tiles of `size` pixels; hand the excess to other bins.

    The rule is that of scikit-image's ``clip_histogram``, for all tiles at once: an equal share for
    every bin; bins that are then within one more share of the limit are filled; what remains is
    dealt out one by one, at even steps, to the bins with room: from bin 0, then from bin 1, ...
    """
    limit = np.int32(max(int(CLIP_LIMIT * size), 1))
    counts = np.minimum(counts, limit)
    share = (size - counts.sum(axis=1, dtype=np.int32, keepdims=True)) // BINS
    counts += share
    filled = (counts >= limit - share) * limit
    np.maximum(np.minimum(counts, limit, out=counts), filled, out=counts)

    tiles = np.arange(len(counts))  # those with an excess; `part` and `left` are of these
    part, left = counts, size - counts.sum(axis=1, dtype=np.int32)
    start, before = 0, left
    while True:
        more = left > 0
        if start == BINS:  # once round: if nothing had room, the rest is dropped
            more &= left != before
        if not more.all():
            counts[tiles] = part
            tiles, part, left, before = tiles[more], part[more], left[more], before[more]
            if not tiles.size:
                return counts
        if start == BINS:
            start, before = 0, left
        room = part < limit
        step = room.sum(axis=1, dtype=np.int32) // left
        chosen = room[:, start:] & MULTIPLES[step, : BINS - start]
        part[:, start:] += chosen
        left = left - chosen.sum(axis=1, dtype=np.int32)
        start += 1


def dark_side(levels: npt.NDArray[np.uint16], dtype: npt.DTypeLike) -> Mask:
    """Keep the pixels that are not black and not above Otsu's threshold.

    That is ``0 < value <= threshold``, where `value` is the level stretched to 0..1 in `dtype`. The
    edges and centres of Otsu's 256 bins are multiples of 1/512, and levels are at most 14 bits, so
    that rounding a value never moves it across one: integers decide the same.
    """
    lowest = levels.min()
    levels = levels - lowest
    highest = int(levels.max())
    if highest == 0:  # a constant image is its own threshold
        return np.full(levels.shape, lowest > 0)
    bins = np.empty(levels.size, np.uint8)
    for start in range(0, bins.size, CHUNK):
        part = slice(start, start + CHUNK)
        scaled = levels.ravel()[part].astype(np.uint32)
        scaled *= BINS
        scaled //= np.uint32(highest)
        bins[part] = scaled
    # Pillow counts bytes twice as fast as NumPy. The highest level, 256, wrapped round to bin 0.
    histogram = np.array(Image.fromarray(bins.reshape(levels.shape)).histogram())
    top = np.count_nonzero(levels == highest)
    histogram[0] -= top
    histogram[-1] += top
    threshold = otsu(histogram, CENTERS.astype(dtype))
    brightest = (2 * threshold + 1) * highest // (2 * BINS)
    # Levels from 1 to brightest: in unsigned arithmetic a single comparison.
    levels -= np.uint16(1)
    return levels < brightest


def otsu(histogram: npt.NDArray[np.int32], centers: npt.NDArray[np.floating[Any]]) -> int:
    """Give the bin of Otsu's threshold, with the arithmetic of scikit-image's ``threshold_otsu``.

    Neither the first nor the last of the bins is empty.
    """
    counts = histogram.astype(np.float32)
    moments = counts * centers
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])
    mean_below, mean_above = np.cumsum(moments) / below, np.cumsum(moments[::-1]) / above
    distance = mean_below[:-1] - mean_above[-2::-1]
    return int(np.argmax(below[:-1] * above[-2::-1] * distance**2))


def pack(mask: Mask) -> Bits:
    """Pack an (H, W) mask, eight pixels to a byte; every row ends in at least one False."""
    height, width = mask.shape
    padded = np.zeros((height, width // 8 * 8 + 8), bool)
    padded[:, :width] = mask
    return np.packbits(padded, axis=1)


def unpack(bits: Bits, width: int) -> Mask:
    """Unpack an (H, width) mask."""
    return np.unpackbits(bits, axis=1, count=width).view(bool)


def erode(bits: Bits, inside: Bits) -> Bits:
    """Erode a packed mask by a 3x3 square; what lies outside the image counts as True."""
    return dilate(bits ^ inside, inside) ^ inside


def dilate(bits: Bits, inside: Bits) -> Bits:
    """Dilate a packed mask by a 3x3 square, one axis after the other.

    `inside` is a packed row of the image's width: it keeps the padding False.
    """
    flat = bits.ravel()
    wide = flat | flat << 1
    wide |= flat >> 1
    # The neighbours in the next byte. Rows do not meet: they end in a 0.
    wide[:-1] |= flat[1:] >> 7
    wide[1:] |= flat[:-1] << 7
    wide = wide.reshape(bits.shape)
    out = wide.copy()
    out[1:] |= wide[:-1]
    out[:-1] |= wide[1:]
    out &= inside
    return out


def find_heads(above: Array, below: Array, count: int) -> npt.NDArray[np.intp]:
    """Give the first run of each run's region, from the links between runs of successive rows.

    Every run points to an earlier one: at first to the first one that it touches in the row above.
    Pointers are followed to their ends; ends that a link joins are made to point to the earlier.
    """
    heads = np.arange(count)
    heads[below[::-1]] = above[::-1]  # of several, the last assignment stands
    while True:
        ends = heads.take(heads)
        while not np.array_equal(ends, heads):
            heads, ends = ends, ends.take(ends)
        above, below = heads.take(above), heads.take(below)
        apart = np.flatnonzero(above != below)
        if not apart.size:
            return heads
        above, below = above.take(apart), below.take(apart)
        np.minimum.at(heads, np.maximum(above, below), np.minimum(above, below))


class Runs:
    """The horizontal runs of a packed mask's True pixels, with the 8-connected region of each.

    Regions are numbered from 0 in the order of their first pixels, row by row, as
    ``skimage.measure.label`` numbers them from 1. Some 1,500 runs stand for the 65,536 pixels of a
    256x256 mask.
    """

    def __init__(self, bits: Bits):
        self.shape = bits.shape
        self.stride = stride = bits.shape[1] * 8
        # The pixels that differ from their left neighbour.
        flat = bits.ravel()
        edges = flat ^ flat >> 1
        edges[1:] ^= flat[:-1] << 7
        at = np.flatnonzero(edges != 0)
        where = np.flatnonzero(np.unpackbits(edges[at]).view(bool))
        where = 8 * at[where >> 3] + (where & 7)
        self.start, self.stop = where[0::2].copy(), where[1::2].copy()
        self.row = self.start // stride
        self.left = self.start - self.row * stride
        self.right = self.stop - self.row * stride
        # Runs of the next row that overlap this one, or touch it at a corner, are consecutive.
        first = np.searchsorted(self.stop, self.start + stride, side="left")
        last = np.searchsorted(self.start, self.stop + stride, side="right")
        number = last - first
        above = np.repeat(np.arange(number.size), number)
        below = np.arange(above.size) + np.repeat(last - np.cumsum(number), number)
        heads = find_heads(above, below, number.size)
        is_head = heads == np.arange(heads.size)
        self.regions = np.count_nonzero(is_head)
        self.region = (np.cumsum(is_head) - 1).take(heads)

    def paint(self, keep: Mask) -> Mask:
        """Draw the runs for which `keep` is True into a new mask, padded as for packing."""
        # The edges between False and True, from the first pixel to one behind the last.
        edges = np.zeros(2 * np.count_nonzero(keep) + 2, np.intp)
        edges[1:-1:2], edges[2:-1:2] = self.start[keep], self.stop[keep]
        edges[-1] = self.shape[0] * self.stride
        painted = np.zeros(edges.size - 1, bool)
        painted[1::2] = True
        return np.repeat(painted, np.diff(edges)).reshape(-1, self.stride)


def clear_border(bits: Bits, width: int) -> Bits:
    """Remove the 8-connected regions that touch the image's border."""
    runs = Runs(bits)
    touches = (
        (runs.row == 0) | (runs.row == bits.shape[0] - 1) | (runs.left == 0) | (runs.right == width)
    )
    cleared = np.zeros(runs.regions, bool)
    cleared[runs.region[touches]] = True
    return np.packbits(runs.paint(~cleared[runs.region]), axis=1)


def clear_small_boxes(mask: Mask, min_area: int) -> Mask:
    """Zero the bounding box of every region of fewer than `min_area` pixels, in label order.

    The box goes whole, with the pixels of other regions in it, and a later region's area is
    counted after that: this is what the released code does.
    """
    width = mask.shape[1]
    mask = mask.copy()
    runs = Runs(pack(mask))
    # Runs are in row order: a region's first run is its top, its last one its bottom.
    top, bottom = np.empty((2, runs.regions), np.intp)
    top[runs.region[::-1]], bottom[runs.region] = runs.row[::-1], runs.row + 1
    left, right = np.full(runs.regions, width), np.zeros(runs.regions, np.intp)
    np.minimum.at(left, runs.region, runs.left)
    np.maximum.at(right, runs.region, runs.right)
    area = np.bincount(runs.region, runs.stop - runs.start)
    zeroed: list[list[int]] = []
    boxes = np.stack([top, bottom, left, right], axis=1).tolist()
    for region, (box, count) in enumerate(zip(boxes, area.tolist(), strict=True)):
        top, bottom, left, right = box
        if count >= min_area:  # at most so many of its pixels are gone
            lost = sum(
                max(min(bottom, gone[1]) - max(top, gone[0]), 0)
                * max(min(right, gone[3]) - max(left, gone[2]), 0)
                for gone in zeroed
            )
            if count - lost < min_area:
                kept = runs.paint(runs.region == region)[:, :width] & mask
                count = np.count_nonzero(kept)
        if count < min_area:
            mask[top:bottom, left:right] = False
            zeroed.append(box)
    return mask
