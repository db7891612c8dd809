"""The published lung mask: CLAHE, Otsu's threshold, 3x3 morphology and the bounding-box rule.

Every stage gives, bit for bit, what its scikit-image counterpart gives inside this chain, in a
fraction of the time: the work is done on small integers, histograms and runs of pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anatpaste_aug.checks import check_integer
from anatpaste_aug.images import Array, ImageLike, Mask, as_array, to_grey

GREY_LEVELS = 2**14  # scikit-image's CLAHE works on 14 bits,
BINS = 256  # in histograms of 256 bins,
BIN_WIDTH = 1 + GREY_LEVELS // BINS  # each of 65 levels, so that the last three stay empty.
CLIP_LIMIT = 0.01
CHUNK = 32768  # pixels blended at a time: what is made of them stays in the cache

CENTERS = (np.arange(BINS) + 0.5) / BINS  # of Otsu's bins

# MULTIPLES[step, i] tells whether i is a multiple of step, or of 1 for step 0; the last row, of
# step NEVER, is False.
NEVER = BINS + 1
MULTIPLES = np.zeros((NEVER + 1, BINS), bool)
MULTIPLES[1:NEVER] = np.arange(BINS) % np.arange(1, NEVER)[:, None] == 0
MULTIPLES[0] = True


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
    dilated = combine_squares(np.logical_or, clear_border(opening(dark)))
    return clear_small_boxes(dilated[1:-1, 1:-1], min_area)


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

    # A pixel lies in a cell between the centres of four tiles, at a place that gives the weights.
    cell_y, place_y = np.divmod(np.arange(tile_h) + tile_h // 2, tile_h)
    cell_x, place_x = np.divmod(np.arange(width) + tile_w // 2, tile_w)
    down, right = place_y / tile_h, place_x / tile_w
    # Float64 products rounded to float32 are float32 products where the weights are exact in it.
    powers_of_two = tile_h & (tile_h - 1) == 0 == tile_w & (tile_w - 1)
    precise = np.float32 if powers_of_two else np.float64
    y_weights = np.array([1 - down, down], precise)
    x_weights = np.array([1 - right, right], precise)
    # Outside the outermost centres, the nearest ones serve.
    rows, cols = ([0, *range(n), n - 1] for n in maps.shape[:2])
    table = maps.astype(precise).take(rows, axis=0).take(cols, axis=1).ravel()
    row_below = len(cols) * BINS
    # Where the cells' entries begin in the table, from a row of cells on: 16 bits hold that.
    first_y, first_x = (cell_y * row_below).astype(np.uint16), (cell_x * BINS).astype(np.uint16)

    # Rows at the same place between centres have the same weights: they are blended in turn.
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
    """Give the grey-level map of every tile, (rows, columns, 256), whole numbers 0..16383."""
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
    counts += (counts >= limit - share) * limit
    np.minimum(counts, limit, out=counts)
    left = size - counts.sum(axis=1, dtype=np.int32)
    start = 0
    while (left > 0).any():  # ends: all limits together exceed `size`
        room = counts < limit
        step = room.sum(axis=1, dtype=np.int32) // np.maximum(left, 1)
        step[left <= 0] = NEVER
        chosen = room[:, start:] & MULTIPLES.take(step, axis=0)[:, : BINS - start]
        counts[:, start:] += chosen
        left -= chosen.sum(axis=1, dtype=np.int32)
        start = (start + 1) % BINS
    return counts


def dark_side(levels: npt.NDArray[np.uint16], dtype: npt.DTypeLike) -> Mask:
    """Keep the pixels that are not black and not above Otsu's threshold.

    That is ``0 < value <= threshold``, where `value` is the level stretched to 0..1 in `dtype`. The
    edges and centres of Otsu's 256 bins are multiples of 1/512, and levels are at most 14 bits, so
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
    """Give the bin of Otsu's threshold, with the arithmetic of scikit-image's ``threshold_otsu``.

    Neither the first nor the last of the bins is empty.
    """
    counts = histogram.astype(np.float32)
    moments = counts * centers
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])
    mean_below, mean_above = np.cumsum(moments) / below, np.cumsum(moments[::-1]) / above
    distance = mean_below[:-1] - mean_above[-2::-1]
    return int(np.argmax(below[:-1] * above[-2::-1] * distance**2))


def frame(mask: Mask, outside: bool) -> Mask:
    """Put a frame one pixel wide around an (H, W) mask: (H + 2, W + 2).

    In a framed mask every pixel has eight neighbours at fixed distances in memory, so that it can
    be worked on as one long row.
    """
    framed = np.empty((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    framed[1:-1, 1:-1] = mask
    return set_frame(framed, outside)


def set_frame(framed: Mask, outside: bool) -> Mask:
    """Set the frame of a framed mask, in place."""
    framed[0] = framed[-1] = framed[:, 0] = framed[:, -1] = outside
    return framed


def combine_squares(combine: np.ufunc, framed: Mask) -> Mask:
    """Combine every pixel of a framed mask with its eight neighbours; set the new frame to False.

    With ``np.logical_and`` this is erosion by a 3x3 square, with ``np.logical_or`` dilation.
    """
    flat, width = framed.ravel(), framed.shape[1]
    rows = combine(flat[:-2], flat[1:-1])
    combine(rows, flat[2:], out=rows)
    out = np.empty_like(framed)
    inner = out.ravel()[width + 1 : -width - 1]
    combine(rows[: -2 * width], rows[width:-width], out=inner)
    combine(inner, rows[2 * width :], out=inner)
    return set_frame(out, False)


def opening(mask: Mask) -> Mask:
    """Open an (H, W) mask with a 3x3 square; give it framed.

    What lies outside the image counts as True when eroding, as False when dilating.
    """
    eroded = combine_squares(np.logical_and, frame(mask, True))
    return combine_squares(np.logical_or, eroded)


class Runs:
    """The horizontal runs of a framed mask's True pixels, with the 8-connected region of each.

    Regions are numbered from 0 in the order of their first pixels, row by row, as
    ``skimage.measure.label`` numbers them from 1. Some 1,500 runs stand for the 65,536 pixels of a
    256x256 mask.
    """

    def __init__(self, framed: Mask):
        """Find the runs, and join those of successive rows that touch."""
        self.shape = framed.shape
        self.edges = find_edges(framed.ravel())
        # Where runs begin, and where they have ended, counted in the framed mask's pixels.
        self.start, self.stop = start, stop = self.edges[0::2].copy(), self.edges[1::2].copy()
        self.row, self.left = np.divmod(start, framed.shape[1])
        self.right = self.left + (stop - start)
        # Runs of the row above that overlap this one, or touch it at a corner, are consecutive.
        first = stop.searchsorted(start - framed.shape[1], side="left")
        number = start.searchsorted(stop - framed.shape[1], side="right") - first
        heads = find_heads(first, number, framed.shape[0])
        is_head = heads == np.arange(heads.size)
        self.regions = np.count_nonzero(is_head)
        self.region = (is_head.cumsum() - 1).take(heads)

    def paint(self, keep: Mask) -> Mask:
        """Draw the runs for which `keep` is True into a new framed mask."""
        # In turn, what lies between runs and the runs.
        painted = np.zeros(self.edges.size + 1, bool)
        painted[1::2] = keep
        ends = np.empty(self.edges.size + 2, np.intp)
        ends[0], ends[1:-1], ends[-1] = 0, self.edges, self.shape[0] * self.shape[1]
        return np.repeat(painted, ends[1:] - ends[:-1]).reshape(self.shape)


def find_heads(first: Array, number: Array, height: int) -> npt.NDArray[np.intp]:
    """Give the first run of each run's region.

    A run touches `number` runs of the row above, from run `first` on. It points to the first of
    them; pointers are followed to their ends, at most `height` of them. Where a run touches two
    runs with different ends, the later end is made to point to the earlier.
    """
    heads = np.where(number > 0, first, np.arange(first.size))
    for _ in range(height.bit_length()):
        heads = heads.take(heads)
    several = (number > 1).nonzero()[0]
    others = number.take(several) - 1
    one = several.repeat(others)
    # Successive numbers from first + 1 on, for each of the several.
    two = np.arange(one.size) + (first.take(several) + 1 - others.cumsum() + others).repeat(others)
    one, two = heads.take(one), heads.take(two)
    while one.size:
        np.minimum.at(heads, np.maximum(one, two), np.minimum(one, two))
        one, two = _follow(heads, one), _follow(heads, two)
        apart = one != two
        one, two = one[apart], two[apart]
    return _follow(heads, heads)


def _follow(pointers: Array, at: Array) -> Array:
    while True:
        ends = pointers.take(at)
        if (ends == at).all():
            return ends
        at = ends


def find_edges(flat: Mask) -> npt.NDArray[np.intp]:
    """Give the pixels that differ from the one before; few do, so that eight are tested at once."""
    edges = np.empty(-(-flat.size // 8) * 8, bool)
    edges[0] = edges[flat.size :] = False
    np.not_equal(flat[1:], flat[:-1], out=edges[1 : flat.size])
    eights = edges.view(np.uint64)
    at = (eights != 0).nonzero()[0]
    within = eights.take(at).view(bool).nonzero()[0]
    return 8 * at.take(within >> 3) + (within & 7)


def clear_border(framed: Mask) -> Mask:
    """Remove the 8-connected regions that touch the image's border."""
    runs = Runs(framed)
    height, width = runs.shape
    touches = (
        (runs.row == 1) | (runs.row == height - 2) | (runs.left == 1) | (runs.right == width - 1)
    )
    cleared = np.zeros(runs.regions, bool)
    cleared[runs.region[touches]] = True
    return runs.paint(~cleared[runs.region])


def clear_small_boxes(mask: Mask, min_area: int) -> Mask:
    """Zero the bounding box of every region of fewer than `min_area` pixels, in label order.

    The box goes whole, with the pixels of other regions in it, and a later region's area is
    counted after that: this is what the released code does.
    """
    framed = frame(mask, False)
    runs = Runs(framed)
    # Runs are in row order: a region's first run is its top, its last one its bottom.
    top, bottom = np.empty((2, runs.regions), np.intp)
    top[runs.region[::-1]], bottom[runs.region] = runs.row[::-1], runs.row + 1
    left, right = np.full(runs.regions, framed.shape[1]), np.zeros(runs.regions, np.intp)
    np.minimum.at(left, runs.region, runs.left)
    np.maximum.at(right, runs.region, runs.right)
    area = np.bincount(runs.region, runs.stop - runs.start)
    zeroed: list[list[int]] = []
    gone = 0  # pixels in those boxes
    boxes = np.stack([top, bottom, left, right], axis=1).tolist()
    for region, (box, count) in enumerate(zip(boxes, area.tolist(), strict=True)):
        top, bottom, left, right = box
        if count >= min_area and count - gone < min_area:  # not sure to be left
            lost = sum(
                max(min(bottom, other[1]) - max(top, other[0]), 0)
                * max(min(right, other[3]) - max(left, other[2]), 0)
                for other in zeroed
            )
            if count - lost < min_area:
                count = np.count_nonzero(runs.paint(runs.region == region) & framed)
        if count < min_area:
            framed[top:bottom, left:right] = False
            zeroed.append(box)
            gone += (bottom - top) * (right - left)
    return framed[1:-1, 1:-1].copy()
