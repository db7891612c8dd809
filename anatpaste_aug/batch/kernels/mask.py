"""The published lung mask in fifteen launches."""

import torch
from torch import Tensor

from anatpaste_aug.batch.kernels import boxes, labels, otsu, pixels, tiles
from anatpaste_aug.batch.kernels.constants import COLS, EXTREMES, ROWS, SMALLEST
from anatpaste_aug.batch.kernels.launch import chunks, launch, parts, planned
from anatpaste_aug.masks.clahe import BINS, CLIP_LIMIT

STEP = 2048  # pixels, where rows do not matter
QUANTIZED = 512  # pixels of a tile at a time; half as many float64, of two registers each
WORDS = 32  # words of 32 pixels
REGIONS = 64


@planned
def lung_mask(images: Tensor, min_area: int, chosen: Tensor) -> Tensor:
    """Segment the images of a batch.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        On a GPU; any memory layout.
    min_area : int
        Regions of fewer pixels are removed, with their boxes.
    chosen : (B,) Tensor of bool
        Which images need a mask; all get one.

    Returns
    -------
    masks : (B, H, W) Tensor of bool
        What `anatpaste_aug.lung_mask` gives image by image, bit for bit.
    """
    masks = images.new_empty((images.shape[0], *images.shape[2:]), dtype=torch.bool)
    for some, out in chunks(images, masks):
        segment(some, out, min_area)
    return masks


def segment(images: Tensor, masks: Tensor, min_area: int) -> None:
    """Segment the images of a chunk; write (B, H, W) bool into `masks`."""
    images, count = images.contiguous(), images.shape[0]
    # Everything that is added to by atomics starts at 0: one buffer, cleared at once.
    zeros = torch.zeros(count * (BINS + 3), dtype=torch.int32, device=images.device)
    counts, ends, found = zeros.split_with_sizes([count * BINS, count * 2, count])
    levels = equalize(images, ends)
    narrow = images.dtype in (torch.float16, torch.float32)
    regions = Regions(threshold(levels, ends, counts, narrow), images.shape[3])
    keep_inner(regions)
    remove_small(regions, min_area, found, masks)


def equalize(images: Tensor, ends: Tensor) -> Tensor:
    """Return the levels after CLAHE, (B, H, W) int16, and their extremes in `ends`."""
    count, channels, height, width = images.shape
    color, block = channels == 3, {"ROWS": ROWS, "COLS": COLS}
    extremes = images.new_empty((count, EXTREMES, 2), dtype=torch.float64)
    args = (images, extremes, height, width)
    launch(pixels.find_extremes_kernel, (count, EXTREMES), *args, COLOR=color, **block)

    tile_h, tile_w = height // 8, width // 8
    down, across = parts(height, tile_h), parts(width, tile_w)
    limit = max(int(CLIP_LIMIT * tile_h * tile_w), 1)
    bins = images.new_empty((count, height, width), dtype=torch.uint8)
    maps = images.new_empty((count, down * across, BINS), dtype=torch.int16)
    args = (images, extremes, bins, maps, height, width, tile_h, tile_w, across, limit)
    step = QUANTIZED // 2 if images.dtype == torch.float64 else QUANTIZED
    meta = {"COLOR": color, "EXTREMES": EXTREMES, "STEP": step}
    launch(tiles.map_tiles_kernel, (count, down * across), *args, **meta)
    levels = images.new_empty(bins.shape, dtype=torch.int16)
    grid = (count, parts(height, ROWS), parts(width, COLS))
    exact = tile_h & (tile_h - 1) == 0 == tile_w & (tile_w - 1)
    args = (bins, maps, levels, ends, height, width, tile_h, tile_w, down, across)
    launch(tiles.blend_maps_kernel, grid, *args, EXACT=exact, **block, num_warps=8)
    return levels


def threshold(levels: Tensor, ends: Tensor, counts: Tensor, narrow: bool) -> Tensor:
    """Keep the levels that are not black and not above Otsu's threshold: (B, H, W / 32) words."""
    count, height, width = levels.shape
    area, across = height * width, parts(width, 32)
    grid = (count, parts(area, STEP))
    launch(otsu.count_levels_kernel, grid, levels, ends, counts, area, STEP=STEP)
    limits = torch.empty_like(ends)
    launch(otsu.find_threshold_kernel, (count,), ends, counts, limits, NARROW=narrow)
    words = levels.new_empty((count, height, across), dtype=torch.uint32)
    grid = (count, parts(height * across, WORDS))
    args = (levels, limits, words, height, width, across)
    launch(otsu.keep_dark_kernel, grid, *args, STEP=WORDS)
    return words


class Regions:
    """Masks as words, in turn in two buffers, and the regions of those in the second."""

    def __init__(self, words: Tensor, width: int):
        count, height, across = words.shape
        pairs = parts(height, 2) * across
        self.size, self.nodes = (height, width), 1 + pairs * 16
        self.grid = (count, parts(pairs, WORDS))
        self.words, self.joined = words, torch.empty_like(words)
        self.parents = words.new_empty((count, self.nodes), dtype=torch.int32)
        self.measures = words.new_empty((count, 5 * self.nodes), dtype=torch.int32)

    def join(self, *, opening: bool) -> None:
        """Open or dilate the masks, from `words` to `joined`, and join the pixels of each region.

        When opening, nothing is measured, and all regions that touch the border become one.
        """
        args = (self.words, self.joined, self.parents, self.measures, *self.size)
        launch(labels.start_regions_kernel, self.grid, *args, OPEN=opening, STEP=WORDS)
        args = (self.joined, self.parents, *self.size)
        launch(labels.join_regions_kernel, self.grid, *args, BORDER=opening, STEP=WORDS)


def keep_inner(regions: Regions) -> None:
    """Open masks, and remove the regions that touch the border."""
    regions.join(opening=True)
    args = (regions.joined, regions.parents, regions.words, *regions.size)
    launch(labels.clear_border_kernel, regions.grid, *args, STEP=WORDS)


def most_regions(height: int, width: int) -> int:
    """Return how many regions an image can have where each holds a 5 x 5 square: see `SMALLEST`.

    8-connected regions do not touch each other, so that the squares are still apart with one more
    row below and one more column on the right, and those lie in (H + 1) x (W + 1) pixels.
    """
    return max((height + 1) * (width + 1) // 36, 1)


def remove_small(regions: Regions, min_area: int, found: Tensor, masks: Tensor) -> None:
    """Dilate masks, and zero the boxes of small regions; write (B, H, W) bool into `masks`."""
    regions.join(opening=False)
    words, measures, size = regions.joined, regions.measures, regions.size
    count, most = len(masks), most_regions(*size)
    table = words.new_empty((count, most, 8), dtype=torch.int32)
    if min_area > SMALLEST:  # no region is smaller
        lists = words.new_empty((count, most), dtype=torch.int32)
        roots = torch.empty_like(regions.parents)
        args = (words, regions.parents, roots, measures, lists, found, *size, most)
        launch(labels.measure_regions_kernel, regions.grid, *args, STEP=WORDS, num_warps=8)
        grid = (count, parts(most, REGIONS))
        args = (lists, found, measures, table, regions.nodes, most)
        launch(boxes.order_regions_kernel, grid, *args, STEP=REGIONS)
        args = (words, roots, table, found, *size, most)
        limit = min(min_area, size[0] * size[1] + 1)
        rows = next(n for n in (8, 16, 32) if 32 * n * 16 * n >= most)  # a flag for each region
        meta = {"ROWS": rows, "num_warps": rows // 2}
        launch(boxes.choose_boxes_kernel, (count,), *args, limit, **meta)
    grid = (count, parts(size[0] * size[1], STEP))
    args = (words, table, found, masks, *size, most)
    launch(boxes.write_masks_kernel, grid, *args, STEP=STEP)
