"""The published lung mask: CLAHE, Otsu's threshold, 3x3 morphology and the bounding-box rule.

Every stage gives, bit for bit, what its scikit-image counterpart gives inside this chain, in a
fraction of the time: the work is done on small integers, histograms and runs of pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from skimage.filters import threshold_otsu

from anatpaste_aug.images import Array, ImageLike, Mask, as_array, to_grey

GREY_LEVELS = 2**14  # scikit-image's CLAHE works on 14 bits,
BINS = 256  # in histograms of 256 bins,
BIN_WIDTH = 1 + GREY_LEVELS // BINS  # each of 65 levels, so that the last three stay empty.
CLIP_LIMIT = 0.01
CHUNK = 60_000  # bytes of a blending buffer: it stays in the cache, and in malloc's reused blocks

# MULTIPLES[step, i] tells whether i is a multiple of step.
MULTIPLES = np.arange(BINS) % np.arange(1, BINS + 1)[:, None] == 0
MULTIPLES = np.concatenate([MULTIPLES[:1], MULTIPLES])


def lung_mask(image: ImageLike, *, min_area: int = 400) -> Mask:
    """Segment the lungs of a frontal chest radiograph by thresholding, as AnatPaste does.

    The chain is CLAHE (8 x 8 tiles, clip limit 0.01), Otsu's threshold, the pixels that are darker
    than it but not black, 3x3 opening, removal of what touches the image border, 3x3 dilation, and
    removal of the bounding box of every region smaller than `min_area`. It equals the authors'
    released code bit for bit on unsigned images. It is a rough mask: ribs and clavicles cut into
    it, and on some images nothing is found.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image of mode L, RGB, I;16, I or F
        uint8, uint16, int16, int32, float32 or float64; at least 16 pixels high and wide. Lungs
        are dark. Colour is reduced with ITU-R 601 luma. Signed images, and floats that leave
        0..1, are stretched linearly from their own minimum to their maximum.
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
    if isinstance(min_area, bool) or not isinstance(min_area, (int, np.integer)):
        raise TypeError(f"min_area must be an integer, got {type(min_area).__name__}")
    if min_area < 0:
        raise ValueError(f"min_area must be at least 0, got {min_area}")
    grey = to_grey(as_array(image))
    levels = clahe(quantise(grey))
    # scikit-image keeps float32 images in float32 and computes on all others in float64.
    mask = dark_side(levels, np.float32 if grey.dtype == np.float32 else np.float64)
    mask = dilate(erode(mask))
    mask = clear_border(mask)
    mask = dilate(mask)
    return clear_small_boxes(mask, min_area)


def quantise(grey: Array) -> npt.NDArray[np.uint8]:
    """Stretch an (H, W) image to 14 bits and give each pixel's CLAHE bin, 0..252.

    That is ``img_as_uint``, ``rescale_intensity`` and the division by the bin width. An 8-bit image
    goes through a table of 256 entries.
    """
    low, high = grey.min(), grey.max()
    if grey.dtype == np.uint8:
        table = _bins_of(np.arange(256) * 257, int(low) * 257, int(high) * 257)
        return np.frombuffer(grey.tobytes().translate(table.tobytes()), np.uint8).reshape(
            grey.shape
        )
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
        levels = np.clip(values, 0, GREY_LEVELS - 1)
    else:
        levels = (values - np.float64(low)) / np.float64(high - low)
        levels *= GREY_LEVELS - 1
        levels = np.rint(levels, out=levels).clip(0, GREY_LEVELS - 1)
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
    maps = np.pad(tile_maps(bins, tile_h, tile_w), [(1, 1), (1, 1), (0, 0)], mode="edge")

    # A pixel lies between the centres of four tiles: the upper left one, and its place from there.
    tile_y, place_y = np.divmod(np.arange(height) + tile_h // 2, tile_h)
    tile_x, place_x = np.divmod(np.arange(width) + tile_w // 2, tile_w)
    down, right = (place_y / tile_h)[:, None], place_x / tile_w
    up, left = 1 - down, 1 - right
    # Float64 products rounded to float32 are float32 products where the weights are exact in it.
    powers_of_two = tile_h & (tile_h - 1) == 0 == tile_w & (tile_w - 1)
    precise = np.float32 if powers_of_two else np.float64
    up, down, left, right = (weight.astype(precise) for weight in (up, down, left, right))
    table = maps.astype(precise).ravel()
    row_below = maps.shape[1] * BINS
    row_first, col_first = (tile_y * row_below)[:, None], tile_x * BINS

    out = np.empty((height, width), np.uint16)
    step = min(max(CHUNK // (width * table.itemsize), 1), height)
    index = np.zeros((step, width), np.intp)
    product, weight = np.empty((step, width), precise), np.empty((step, width), precise)
    total = np.empty((step, width), np.float32)
    for start in range(0, height, step):
        rows = slice(start, start + step)
        n = min(step, height - start)
        np.add(row_first[rows], col_first, out=index[:n])
        index[:n] += bins[rows]
        total.fill(0)
        for offset, y, x in (
            (0, up, left),
            (BINS, up, right),
            (row_below, down, left),
            (row_below + BINS, down, right),
        ):
            table[offset:].take(index, mode="wrap", out=product)
            np.multiply(y[rows], x, out=weight[:n])
            product *= weight
            np.add(total, product, out=total, dtype=np.float32, casting="same_kind")
        out[rows] = total[:n]
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
    counts = np.stack(
        [
            np.bincount((tile + band).ravel(), minlength=cols * BINS)
            for band in bins.reshape(rows, tile_h, -1)
        ]
    ).reshape(-1, BINS)
    size = tile_h * tile_w
    counts = clip_histograms(counts.astype(np.int32), max(int(CLIP_LIMIT * size), 1))
    maps = np.cumsum(counts, axis=1) * ((GREY_LEVELS - 1) / size)
    return np.floor(np.minimum(maps, GREY_LEVELS - 1)).reshape(rows, cols, BINS)


def clip_histograms(counts: npt.NDArray[np.int32], limit: int) -> npt.NDArray[np.int32]:
    """Clip (tiles, 256) histograms at `limit` and hand the excess to the other bins.

    The rule is that of scikit-image's ``clip_histogram``, for all tiles at once: an equal share for
    every bin; bins that are then within one more share of the limit are filled; what remains is
    dealt out one by one, at even steps, to the bins with room: from bin 0, then from bin 1, ...
    """
    total = counts.sum(axis=1)
    counts = np.minimum(counts, limit)
    share = ((total - counts.sum(axis=1)) // BINS)[:, None]
    counts = np.where(counts < limit - share, counts + share, counts)
    counts[counts >= limit - share] = limit
    excess = total - counts.sum(axis=1)

    active = np.flatnonzero(excess > 0)
    while active.size:
        before = excess[active]
        for start in range(BINS):
            part, left = counts[active], excess[active]
            room = part < limit
            step = np.maximum(room.sum(axis=1) // left, 1)
            chosen = room[:, start:] & MULTIPLES[step, : BINS - start]
            part[:, start:] += chosen
            counts[active] = part
            excess[active] = left = left - chosen.sum(axis=1)
            if (left <= 0).any():
                active, before = active[left > 0], before[left > 0]
                if not active.size:
                    break
        active = active[excess[active] != before]  # full everywhere: the rest is dropped
    return counts


def dark_side(levels: npt.NDArray[np.uint16], dtype: npt.DTypeLike) -> Mask:
    """Keep the pixels that are not black and not above Otsu's threshold.

    The comparison ``0 < value <= threshold`` is made on the integer levels: `value`, the stretched
    image in `dtype`, grows with the level, so that a table of the levels gives both Otsu's
    histogram and the level where the threshold lies.
    """
    counts = np.bincount(levels.ravel(), minlength=GREY_LEVELS)
    present = np.flatnonzero(counts)
    lowest, highest = int(present[0]), int(present[-1])
    if lowest == highest:  # a constant image is its own threshold
        return np.full(levels.shape, lowest > 0)
    values = np.arange(highest - lowest + 1).astype(dtype) / (highest - lowest)
    edges = np.histogram_bin_edges(values, BINS)
    bounds = lowest + np.searchsorted(values, edges)
    bounds[-1] = highest + 1  # the last bin holds its right edge
    below = np.append(0, np.cumsum(counts))
    histogram = np.diff(below[bounds])
    threshold = threshold_otsu(hist=(histogram, (edges[:-1] + edges[1:]) / 2))
    brightest = lowest + np.searchsorted(values, threshold, side="right") - 1
    # Levels from lowest + 1 to brightest: in unsigned arithmetic a single comparison.
    return (levels - np.uint16(lowest + 1)) < brightest - lowest


def erode(mask: Mask) -> Mask:
    """Erode by a 3x3 square; what lies outside the image counts as True."""
    return ~dilate(~mask)


def dilate(mask: Mask) -> Mask:
    """Dilate by a 3x3 square, one axis after the other."""
    wide = mask.copy()
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    out = wide.copy()
    out[1:] |= wide[:-1]
    out[:-1] |= wide[1:]
    return out


class Runs:
    """The horizontal runs of a mask's True pixels, with the 8-connected region of each.

    Regions are numbered from 0 in the order of their first pixels, row by row, as
    ``skimage.measure.label`` numbers them from 1. Some 1,500 runs stand for the 65,536 pixels of a
    256x256 mask.
    """

    def __init__(self, mask: Mask):
        height, width = mask.shape
        self.shape = mask.shape
        self.stride = width + 1  # one False column more, so that no run goes on into the next row
        flat = np.zeros(height * self.stride + 1, np.uint8)
        flat[1:].reshape(height, self.stride)[:, :-1] = mask
        edges = np.flatnonzero(flat[1:] != flat[:-1])
        self.start, self.stop = edges[0::2], edges[1::2]
        self.row = self.start // self.stride
        self.left = self.start - self.row * self.stride
        self.right = self.stop - self.row * self.stride
        # Runs of the next row that overlap this one, or touch it at a corner, are consecutive.
        first = np.searchsorted(self.stop, self.start + self.stride, side="left")
        last = np.searchsorted(self.start, self.stop + self.stride, side="right")
        links = np.concatenate([[0], np.cumsum(last - first)])
        below = np.arange(links[-1]) + np.repeat(first - links[:-1], last - first)
        graph = csr_array(
            (np.ones(below.size, np.int8), below, links), shape=(self.start.size,) * 2
        )
        self.regions, self.region = connected_components(graph, directed=False)

    def paint(self, keep: Mask) -> Mask:
        """Draw the runs for which `keep` is True into a new mask."""
        height, width = self.shape
        # The edges between False and True, from the first pixel to one behind the last.
        edges = np.zeros(2 * np.count_nonzero(keep) + 2, np.intp)
        edges[1:-1:2], edges[2:-1:2] = self.start[keep], self.stop[keep]
        edges[-1] = height * self.stride
        lengths = np.diff(edges)
        flat = np.repeat(np.arange(lengths.size) % 2 == 1, lengths)
        return flat.reshape(height, self.stride)[:, :width]


def clear_border(mask: Mask) -> Mask:
    """Remove the 8-connected regions that touch the image's border."""
    height, width = mask.shape
    runs = Runs(mask)
    touches = (runs.row == 0) | (runs.row == height - 1) | (runs.left == 0) | (runs.right == width)
    cleared = np.zeros(runs.regions, bool)
    cleared[runs.region[touches]] = True
    return runs.paint(~cleared[runs.region])


def clear_small_boxes(mask: Mask, min_area: int) -> Mask:
    """Zero the bounding box of every region of fewer than `min_area` pixels, in label order.

    The box goes whole, with the pixels of other regions in it, and a later region's area is
    counted after that: this is what the released code does.
    """
    mask = mask.copy()
    runs = Runs(mask)
    if not runs.regions:
        return mask
    length = runs.stop - runs.start
    area = np.bincount(runs.region, weights=length)
    order = np.argsort(runs.region, kind="stable")
    heads = np.searchsorted(runs.region[order], np.arange(runs.regions))
    tops = runs.row[order[heads]]
    bottoms = runs.row[order[np.append(heads[1:], order.size) - 1]] + 1
    lefts = np.minimum.reduceat(runs.left[order], heads)
    rights = np.maximum.reduceat(runs.right[order], heads)
    boxes = np.stack([tops, bottoms, lefts, rights], axis=1)
    zeroed: list[npt.NDArray[np.int64]] = []
    for region in range(runs.regions):
        top, bottom, left, right = box = boxes[region]
        count = area[region]
        if count >= min_area and any(
            top < b and t < bottom and left < r and l < right for t, b, l, r in zeroed
        ):
            count = np.count_nonzero(runs.paint(runs.region == region) & mask)
        if count < min_area:
            mask[top:bottom, left:right] = False
            zeroed.append(box)
    return mask
