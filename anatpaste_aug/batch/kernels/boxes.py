"""The bounding-box rule, region after region, and the mask's bits as bytes."""

import triton
import triton.language as tl

from anatpaste_aug.batch.kernels.bits import BLOCKS, count_bits, sizes
from anatpaste_aug.batch.kernels.labels import AREA, BOTTOM, FIRST, LEFT, RIGHT

ENTRY = tl.constexpr(8)  # numbers in a row of the table of regions: the measures, and
ROOT = tl.constexpr(5)
ZEROED = tl.constexpr(6)
WORDS = tl.constexpr(256)  # of a box, counted at a time


@triton.jit
def order_regions_kernel(
    lists_ptr, found_ptr, measures_ptr, table_ptr, nodes, most, STEP: tl.constexpr
):
    """Put the regions into label order, that of their first pixels, which are all different.

    Grid: images, parts of `STEP` regions. Reads `lists`, `found` and `measures`, of the launch
    before. A region's place is the number of regions that begin before it: no two have the same, so
    that every row of ``table[image]``, (most, 8) int32, is written by one program.
    """
    b = tl.program_id(0).to(tl.int64)
    count = tl.minimum(tl.load(found_ptr + b), most)
    if tl.program_id(1) * STEP >= count:
        return
    lists_ptr += b * most
    measures_ptr += b * 5 * nodes
    slot = tl.program_id(1) * STEP + tl.arange(0, STEP)
    mine = slot < count
    root = tl.load(lists_ptr + slot, mask=mine, other=0)
    first = tl.load(measures_ptr + FIRST * nodes + root, mask=mine, other=0)
    place = slot * 0
    for start in range(0, count, STEP):
        others = start + tl.arange(0, STEP)
        there = others < count
        other = tl.load(lists_ptr + others, mask=there, other=0)
        begins = tl.load(measures_ptr + FIRST * nodes + other, mask=there, other=0)
        earlier = there[None, :] & (begins[None, :] < first[:, None])
        place += tl.sum(earlier.to(tl.int32), 1)
    row = table_ptr + (b * most + place) * ENTRY
    for kind in tl.static_range(5):
        tl.store(row + kind, tl.load(measures_ptr + kind * nodes + root, mask=mine), mask=mine)
    tl.store(row + ROOT, root, mask=mine)


@triton.jit
def box_bits(col, left, right):
    """Return the bits of words `col` of a row that lie in the columns `left`..`right`."""
    begin, end = tl.maximum(left - 32 * col, 0), tl.minimum(right - 32 * col, 31)
    ones = tl.full(col.shape, 0xFFFFFFFF, tl.uint32)
    bits = ones << tl.minimum(begin, 31).to(tl.uint32)
    bits &= ones >> (31 - tl.maximum(end, 0)).to(tl.uint32)
    return tl.where(begin <= end, bits, 0)


@triton.jit
def flag_of(i, ROWS: tl.constexpr):
    """Return the bit of region `i` among those of all regions: (ROWS, 16 * ROWS) of uint32.

    With ``ROWS / 2`` warps a row is one register of every thread, so that its number is known when
    this is compiled, and takes no register.
    """
    row, col = tl.arange(0, ROWS)[:, None], tl.arange(0, 16 * ROWS)[None, :]
    here = (row == i // 32 // (16 * ROWS)) & (col == i // 32 % (16 * ROWS))
    return tl.where(here, tl.full((), 1, tl.uint32) << (i % 32), 0)


@triton.jit
def choose_boxes_kernel(
    words_ptr, roots_ptr, table_ptr, found_ptr, height, width, most, min_area, ROWS: tl.constexpr
):
    """Choose the regions of fewer than `min_area` pixels, in label order; their boxes go whole.

    Grid: images. Reads `words`, `roots`, `table` and `found`, of launches before; writes column
    `ZEROED` of the table, 0 or 1, which no program reads. What has been chosen so far is kept in
    registers, one bit a region: see `flag_of`.

    A region that is large enough is counted again, without the boxes that were chosen before it,
    where one of them meets its own: word by word of its box. All loops are over the image's regions
    or the words of a box.
    """
    b = tl.program_id(0).to(tl.int64)
    across, nodes = sizes(height, width)
    words_ptr += b * height * across
    roots_ptr += b * nodes
    table_ptr += b * most * ENTRY
    count = tl.minimum(tl.load(found_ptr + b), most)
    flags = tl.zeros((ROWS, 16 * ROWS), tl.uint32)
    # The rectangle around what has been chosen: empty, so far.
    all_top, all_bottom, all_left, all_right = height, -1, width, -1
    for i in range(count):
        row = table_ptr + i * ENTRY
        area, root = tl.load(row + AREA), tl.load(row + ROOT)
        top, bottom = tl.load(row + FIRST) // width, tl.load(row + BOTTOM)
        left, right = tl.load(row + LEFT), tl.load(row + RIGHT)
        meets = (top <= all_bottom) & (bottom >= all_top)
        meets = meets & (left <= all_right) & (right >= all_left)
        if (area >= min_area) & meets:
            area = 0
            first, last = left // 32, right // 32
            wide = last - first + 1
            total = wide * (bottom - top + 1)
            for start in range(0, total, WORDS):
                place = start + tl.arange(0, WORDS)
                y, col = top + place // wide, first + place % wide
                word = tl.load(words_ptr + y * across + col, mask=place < total, other=0)
                word &= box_bits(col, left, right)
                node = 1 + (y // 2 * across + col) * BLOCKS
                own = tl.zeros((WORDS,), tl.uint32)
                for block in tl.static_range(BLOCKS):
                    pixels = word & (tl.full((WORDS,), 3, tl.uint32) << (2 * block))
                    here = tl.load(roots_ptr + node + block, mask=pixels != 0, other=0)
                    own |= tl.where(here == root, pixels, 0)
                for j in range(i):
                    other = table_ptr + j * ENTRY
                    top2, bottom2 = tl.load(other + FIRST) // width, tl.load(other + BOTTOM)
                    left2, right2 = tl.load(other + LEFT), tl.load(other + RIGHT)
                    if (top2 <= bottom) & (bottom2 >= top) & (left2 <= right) & (right2 >= left):
                        chosen = tl.sum(flags & flag_of(j, ROWS)) != 0
                        there = chosen & (y >= top2) & (y <= bottom2)
                        lost = tl.where(there, box_bits(col, left2, right2), 0)
                        own &= lost ^ 0xFFFFFFFF
                area += tl.sum(count_bits(own))
        small = area < min_area
        if small:
            flags |= flag_of(i, ROWS)
            all_top, all_bottom = tl.minimum(all_top, top), tl.maximum(all_bottom, bottom)
            all_left, all_right = tl.minimum(all_left, left), tl.maximum(all_right, right)
        tl.store(row + ZEROED, small.to(tl.int32))


@triton.jit
def write_masks_kernel(
    words_ptr, table_ptr, found_ptr, masks_ptr, height, width, most, STEP: tl.constexpr
):
    """Write a mask's bits as bytes, without the chosen boxes.

    Grid: images, parts of `STEP` pixels. Reads `words`, `table` and `found`, of launches before;
    writes (B, H, W) bool, each pixel once.
    """
    b = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * STEP + tl.arange(0, STEP)
    inside = i < height * width
    across, _ = sizes(height, width)
    y, x = i // width, i % width
    word = tl.load(words_ptr + (b * height + y) * across + x // 32, mask=inside, other=0)
    keep = ((word >> (x % 32).to(tl.uint32)) & 1) != 0
    table_ptr += b * most * ENTRY
    begin, end = tl.program_id(1) * STEP // width, (tl.program_id(1) * STEP + STEP - 1) // width
    for j in range(tl.minimum(tl.load(found_ptr + b), most)):
        row = table_ptr + j * ENTRY
        top, bottom = tl.load(row + FIRST) // width, tl.load(row + BOTTOM)
        if (tl.load(row + ZEROED) != 0) & (top <= end) & (bottom >= begin):
            left, right = tl.load(row + LEFT), tl.load(row + RIGHT)
            box = (y >= top) & (y <= bottom) & (x >= left) & (x <= right)
            keep = keep & ~box
    tl.store(masks_ptr + b * height * width + i, keep, mask=inside)
