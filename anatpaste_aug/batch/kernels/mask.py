"""The published lung mask in fifteen kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from anatpaste_aug.batch.kernels.boxes import choose_boxes, order_regions, write_masks
from anatpaste_aug.batch.kernels.labels import (
    clear_border,
    join_regions,
    measure_regions,
    start_regions,
)
from anatpaste_aug.batch.kernels.launch import chunks, launch, parts, power_of_two
from anatpaste_aug.batch.kernels.otsu import count_levels, find_threshold, keep_dark
from anatpaste_aug.batch.kernels.pixels import find_extremes
from anatpaste_aug.batch.kernels.tiles import blend_maps, map_tiles
from anatpaste_aug.batch.regions import SMALLEST
from anatpaste_aug.clahe import BINS, CLIP_LIMIT

ROWS, COLS = 8, 128  # pixels that a program of the pixel-wise kernels takes at a time
SHARES = 64  # programs that find an image's extremes, at most
STEP = 2048  # pixels, where rows do not matter
WORDS = 32  # words of 32 pixels
REGIONS = 64


def mask_triton(images: Tensor, min_area: int, chosen: Tensor) -> Tensor:
    """Segment the chosen images, (B, C, H, W) on a GPU; the masks of the others stay empty.

    Equal to `anatpaste_aug.batch.lungs.mask_plain`, and so to the functional form, bit for bit.
    """
    masks = images.new_empty((images.shape[0], *images.shape[2:]), dtype=torch.bool)
    for part in chunks(images):
        segment(images[part], min_area, chosen[part].contiguous(), masks[part])
    return masks


def segment(images: Tensor, min_area: int, chosen: Tensor, masks: Tensor) -> None:
    """Segment the chosen images of a chunk; write (B, H, W) bool into `masks`."""
    count = images.shape[0]
    # Everything that is added to by atomics starts at 0: one buffer, cleared at once.
    zeros = torch.zeros(count * (BINS + 3), dtype=torch.int32, device=images.device)
    counts, ends, found = zeros.split([count * BINS, count * 2, count])
    levels = equalise(images, chosen, ends)
    narrow = images.dtype in (torch.float16, torch.float32)
    words = threshold(levels, chosen, ends, counts, narrow)
    kept = keep_inner(words, chosen, *images.shape[2:])
    remove_small(kept, min_area, chosen, found, masks)


def equalise(images: Tensor, chosen: Tensor, ends: Tensor) -> Tensor:
    """Return the levels after CLAHE, (B, H, W) int16, and their extremes in `ends`."""
    count, channels, height, width = images.shape
    device, colour = images.device, channels == 3
    shares = min(parts(height, ROWS), SHARES)
    extremes = torch.empty((count, shares, 2), dtype=torch.float64, device=device)
    args = (images, chosen, extremes, height, width, *images.stride())
    meta = {"COLOUR": colour, "ROWS": ROWS, "COLS": COLS}
    launch(find_extremes, (count, shares), *args, GREY=True, **meta)

    tile_h, tile_w = height // 8, width // 8
    down, across = parts(height, tile_h), parts(width, tile_w)
    limit = max(int(CLIP_LIMIT * tile_h * tile_w), 1)
    bins = torch.empty((count, height, width), dtype=torch.uint8, device=device)
    maps = torch.empty((count, down * across, BINS), dtype=torch.int16, device=device)
    args = (images, chosen, extremes, bins, maps, height, width, *images.stride(), shares)
    launch(
        map_tiles,
        (count, down * across),
        *args,
        tile_h,
        tile_w,
        across,
        limit,
        COLOUR=colour,
        WIDEN=images.dtype == torch.uint8,
        PARTS=power_of_two(shares),
        STEP=512,
    )
    levels = torch.empty((count, height, width), dtype=torch.int16, device=device)
    grid = (count, parts(height, ROWS), parts(width, COLS))
    exact = tile_h & (tile_h - 1) == 0 == tile_w & (tile_w - 1)
    args = (chosen, bins, maps, levels, ends, height, width, tile_h, tile_w, down, across)
    launch(blend_maps, grid, *args, EXACT=exact, ROWS=ROWS, COLS=COLS, num_warps=8)
    return levels


def threshold(levels: Tensor, chosen: Tensor, ends: Tensor, counts: Tensor, narrow: bool) -> Tensor:
    """Keep the levels that are not black and not above Otsu's threshold: (B, H, W / 32) words."""
    count, height, width = levels.shape
    pixels, across = height * width, parts(width, 32)
    grid = (count, parts(pixels, STEP))
    launch(count_levels, grid, chosen, levels, ends, counts, pixels, STEP=STEP)
    limits = levels.new_empty((count, 2), dtype=torch.int32)
    launch(find_threshold, (count,), chosen, ends, counts, limits, NARROW=narrow)
    words = levels.new_empty((count, height, across), dtype=torch.uint32)
    grid = (count, parts(height * across, WORDS))
    launch(keep_dark, grid, chosen, levels, limits, words, height, width, across, STEP=WORDS)
    return words


class Regions:
    """The buffers of a labelling, and its first two launches."""

    def __init__(self, words: Tensor, chosen: Tensor, width: int, *, opening: bool):
        """Open or dilate the masks, and join the pixels of each region.

        When opening, all regions that touch the border become one.
        """
        count, height, across = words.shape
        self.blocks = parts(height, 2) * across
        self.nodes = 1 + self.blocks * 16
        self.size = (height, width, across, self.nodes)
        self.grid = (count, parts(self.blocks, WORDS))
        self.words = torch.empty_like(words)
        self.parents = words.new_empty((count, self.nodes), dtype=torch.int32)
        # Nothing is measured when opening.
        measures = 1 if opening else 5 * self.nodes
        self.measures = words.new_empty((count, measures), dtype=torch.int32)
        args = (chosen, words, self.words, self.parents, self.measures, *self.size)
        launch(start_regions, self.grid, *args, OPEN=opening, STEP=WORDS)
        args = (chosen, self.words, self.parents, *self.size)
        launch(join_regions, self.grid, *args, BORDER=opening, STEP=WORDS)


def keep_inner(words: Tensor, chosen: Tensor, height: int, width: int) -> Tensor:
    """Open masks, and remove the regions that touch the border; words."""
    regions = Regions(words, chosen, width, opening=True)
    done = torch.empty_like(words)
    args = (chosen, regions.words, regions.parents, done, height, words.shape[2], regions.nodes)
    launch(clear_border, regions.grid, *args, STEP=WORDS)
    return done


def remove_small(
    words: Tensor, min_area: int, chosen: Tensor, found: Tensor, masks: Tensor
) -> None:
    """Dilate masks, and zero the boxes of small regions; write (B, H, W) bool into `masks`."""
    count, height, width = masks.shape
    regions = Regions(words, chosen, width, opening=False)
    size, nodes, measures = regions.size, regions.nodes, regions.measures
    most = max((height + 1) * (width + 1) // 36, 1)  # see `anatpaste_aug.batch.regions.measure`
    table = words.new_empty((count, most, 8), dtype=torch.int32)
    if min_area > SMALLEST:  # no region is smaller
        lists = words.new_empty((count, most), dtype=torch.int32)
        roots = torch.empty_like(regions.parents)
        args = (chosen, regions.words, regions.parents, roots, measures, lists, found, *size, most)
        launch(measure_regions, regions.grid, *args, STEP=WORDS, num_warps=8)
        grid = (count, parts(most, REGIONS))
        args = (chosen, lists, found, measures, table, nodes, most)
        launch(order_regions, grid, *args, STEP=REGIONS)
        args = (chosen, regions.words, roots, table, found, *size, most)
        limit = min(min_area, height * width + 1)
        flags = power_of_two(parts(most, 32))
        warps = max(flags // 1024, 2)  # up to 16: so that the flags stay in registers
        launch(choose_boxes, (count,), *args, limit, FLAGS=flags, STEP=256, num_warps=warps)
    grid = (count, parts(height * width, STEP))
    args = (chosen, regions.words, table, found, masks, height, width, words.shape[2], most)
    launch(write_masks, grid, *args, STEP=STEP)
