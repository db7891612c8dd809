"""Morphology on bits, and the labels of 8-connected regions by union and find.

Nodes are blocks of 2 x 2 pixels: block `i` of word `col` in block row `row` is node
``1 + (row * across + col) * 16 + i``; node 0 stands for all that lies outside the image. Programs
take pairs of words, one above the other, which hold a word's blocks; a pair's number is
``row * across + col``. ``parents`` holds a forest: no parent has a larger number than its child, a
root is its own parent. The trees are the regions, so that a region's root is the smallest of its
nodes, whatever order they were joined in.
"""

import triton
import triton.language as tl

from anatpaste_aug.batch.kernels import bits

AREA = tl.constexpr(0)
FIRST = tl.constexpr(1)
LEFT = tl.constexpr(2)
RIGHT = tl.constexpr(3)
BOTTOM = tl.constexpr(4)


@triton.jit
def row_to_dilate(words_ptr, y, col, active, height, across, inner, OPEN: tl.constexpr):
    """Load row `y` of a mask, eroded by a 3 x 3 square if that is to `OPEN` it.

    Bit `j` of the result is the pixel one further to the right than in a window. What lies outside
    the image counts as True when eroding, and is False in the result.
    """
    if OPEN:
        row = bits.filled_window(words_ptr, y - 1, col, active, height, across, inner)
        row &= bits.filled_window(words_ptr, y, col, active, height, across, inner)
        row &= bits.filled_window(words_ptr, y + 1, col, active, height, across, inner)
        row = row & (row >> 1) & (row >> 2) & (inner >> 1)
        row = tl.where((y >= 0) & (y < height), row, 0)
    else:
        row = bits.window(words_ptr, y, col, active, height, across) >> 1
    return row


@triton.jit
def spread(row, inner):
    """Dilate words along a row, from bits as `row_to_dilate` gives them."""
    return (row | (row >> 1) | (row >> 2)) & (inner >> 2) & 0xFFFFFFFF


@triton.jit
def run_starts(both):
    """Return the first block of the run in which each block of a word lies, and whether it is one.

    `both` has both rows of the blocks in one word, (n,); the result is (n, 16). Runs are blocks
    that touch one after the other; at the word's left end they start anew.
    """
    block = tl.arange(0, bits.BLOCKS)[None, :]
    apart = (~bits.links_left(both) & bits.EVEN)[:, None]  # the lowest bit always
    up_to_block = (tl.full((1, bits.BLOCKS), 2, tl.int64) << (2 * block).to(tl.int64)) - 1
    start = bits.highest(apart & up_to_block) // 2
    return start, bits.each_block(bits.blocks_of(both), block) & (start == block)


@triton.jit
def start_regions_kernel(
    words_ptr,
    done_ptr,
    parents_ptr,
    measures_ptr,
    height,
    width,
    OPEN: tl.constexpr,
    STEP: tl.constexpr,
):
    """Open or dilate a mask, and give each run of blocks in a word its first block as parent.

    Grid: images, parts of `STEP` pairs of words. Reads `words`, of the launch before, up to two
    pixels around the part. Writes the words of the two rows to `done`, another buffer, and the
    parents of their blocks, (B, nodes) int32. When dilating, it also sets what
    `measure_regions_kernel` adds to, (B, 5, nodes) int32, at the first block of every run: no other
    block can be a root. Each place is written by one program.
    """
    b = tl.program_id(0).to(tl.int64)
    across, nodes = bits.sizes(height, width)
    words_ptr += b * height * across
    parents_ptr += b * nodes
    pair = tl.program_id(1) * STEP + tl.arange(0, STEP)
    row, col = pair // across, pair % across
    y = 2 * row
    active = y < height
    inner = bits.inside_window(col, width)
    before = row_to_dilate(words_ptr, y - 1, col, active, height, across, inner, OPEN)
    upper = row_to_dilate(words_ptr, y, col, active, height, across, inner, OPEN)
    lower = row_to_dilate(words_ptr, y + 1, col, active, height, across, inner, OPEN)
    after = row_to_dilate(words_ptr, y + 2, col, active, height, across, inner, OPEN)
    both = upper | lower
    upper = spread(before | both, inner)
    lower = tl.where(y + 1 < height, spread(both | after, inner), 0)
    bits.store_pair(done_ptr + b * height * across, row, col, height, across, upper, lower)

    start, is_start = run_starts(upper | lower)
    block = tl.arange(0, bits.BLOCKS)[None, :]
    node = 1 + (pair * bits.BLOCKS)[:, None] + block
    tl.store(parents_ptr + node, node - block + start, mask=active[:, None])
    if tl.program_id(1) == 0:
        tl.store(parents_ptr, 0)
    if not OPEN:
        at = measures_ptr + b * 5 * nodes + node
        new = is_start & active[:, None]
        tl.store(at + AREA * nodes, 0, mask=new)
        tl.store(at + FIRST * nodes, height * width, mask=new)
        tl.store(at + LEFT * nodes, width, mask=new)
        tl.store(at + RIGHT * nodes, 0, mask=new)
        tl.store(at + BOTTOM * nodes, 0, mask=new)


@triton.jit
def any_of(mask):
    """Tell whether any element of a block is True."""
    return tl.max(mask.to(tl.int32)) > 0


@triton.jit
def find_roots(parents_ptr, node, active):
    """Follow parents, which nobody writes any more, to the roots. Ends: parents never grow."""
    above = tl.load(parents_ptr + node, mask=active, other=0)
    while any_of(active & (above != node)):
        node = tl.where(active, above, node)
        above = tl.load(parents_ptr + node, mask=active, other=0)
    return node


@triton.jit
def unite(parents_ptr, one, two, active):
    """Join the trees of `one` and `two`, while other programs join others.

    Each round follows the parents a little, then hooks the larger node to the smaller by an atomic
    minimum. If it was its own parent still, they are joined. If not, it had been given another
    parent: that one and the smaller node are yet to be joined, and whichever of the two became the
    parent, the other is joined to it in the next rounds, so that no link is lost.

    What is read may be out of date, since other programs write to `parents` at the same time: it
    is still a node of the same tree, and the atomic operation gives the true parent. The larger of
    the two nodes decreases with every round, by the atomic's answer if by nothing else: it ends.
    """
    while any_of(active):
        for _ in tl.static_range(2):
            one = tl.load(parents_ptr + one, mask=active, other=0)
            two = tl.load(parents_ptr + two, mask=active, other=0)
        high, low = tl.maximum(one, two), tl.minimum(one, two)
        active = active & (high != low)
        above = tl.atomic_min(parents_ptr + high, low, mask=active, sem="relaxed")
        active = active & (above != high)
        one, two = tl.where(active, above, 0), tl.where(active, low, 0)


@triton.jit
def join_regions_kernel(
    words_ptr, parents_ptr, height, width, BORDER: tl.constexpr, STEP: tl.constexpr
):
    """Join the runs of blocks that touch; with `BORDER` also all that touch the border, to node 0.

    Grid: images, parts of `STEP` pairs of words. Reads `words` and changes `parents`, both of the
    launch before, by `unite`. Runs are joined to the word on the left (`aside`), and to the row of
    blocks above: straight up (`up`), to the left (`up_left`) and to the right (`up_right`). Of
    links that say the same, one is omitted, so that most runs need one:

    - `up`, where the blocks on the left of both are joined by `up`, and both touch theirs: from
      left to right, the first of a row of such links is there.
    - a slanting link, where the straight one from the same block, or from the one below its other
      end, goes to the same run. Straight links are joined whether omitted or not.
    """
    b = tl.program_id(0).to(tl.int64)
    across, nodes = bits.sizes(height, width)
    words_ptr += b * height * across
    pair = tl.program_id(1) * STEP + tl.arange(0, STEP)
    row, col = pair // across, pair % across
    y = 2 * row
    active = y < height
    upper = bits.window(words_ptr, y, col, active, height, across)
    lower = bits.window(words_ptr, y + 1, col, active, height, across)
    both = upper | lower
    last_above = bits.window(words_ptr, y - 1, col, active, height, across)
    both_above = last_above | bits.window(words_ptr, y - 2, col, active, height, across)

    here, there = bits.links_left(both), bits.links_left(both_above)
    up = bits.blocks_of(upper) & bits.blocks_of(last_above)
    up_left = upper & (last_above << 1) & ~(up & there) & ~(here & (up << 2))
    up_right = (upper >> 1) & (last_above >> 2) & ~(up & (there >> 2)) & ~((here >> 2) & (up >> 2))
    up &= ~(here & there & (up << 2))

    aside = here & 4  # of block 0, to the word before
    edge = aside * 0
    if BORDER:
        edge = tl.where((y == 0) | (y == height - 1), upper, 0)
        edge |= tl.where(y + 1 == height - 1, lower, 0)
        edge |= tl.where(col == 0, both & 4, 0)
        one = tl.full(col.shape, 1, tl.int64)
        last = both & (one << ((width - 1) % 32 + 2).to(tl.int64))
        edge = bits.blocks_of(edge | tl.where(col == across - 1, last, 0))

    block = tl.arange(0, bits.BLOCKS)[None, :]
    node = 1 + (pair * bits.BLOCKS)[:, None] + block
    node_above = node - across * bits.BLOCKS
    for kind in range(5 if BORDER else 4):
        links = tl.where(kind == 0, aside, tl.where(kind == 1, up, up_left))
        links = tl.where(kind == 3, up_right, tl.where(kind == 4, edge, links))
        two = tl.where(kind == 0, node - 1, node_above + tl.where(kind == 3, 1, 1 - kind))
        two = tl.where(kind == 4, 0, two)
        unite(parents_ptr + b * nodes, node, two, bits.each_block(links, block + 1))


@triton.jit
def clear_border_kernel(words_ptr, parents_ptr, done_ptr, height, width, STEP: tl.constexpr):
    """Remove the regions that touch the border: those whose root is node 0.

    Grid: images, parts of `STEP` pairs of words. Reads `words` and `parents`, of launches before;
    writes the words of the two rows to `done`, another buffer.
    """
    b = tl.program_id(0).to(tl.int64)
    across, nodes = bits.sizes(height, width)
    image = b * height * across
    pair = tl.program_id(1) * STEP + tl.arange(0, STEP)
    row, col = pair // across, pair % across
    upper, lower = bits.load_pair(words_ptr + image, row, col, height, across)
    block = tl.arange(0, bits.BLOCKS)[None, :]
    occupied = bits.each_block(bits.blocks_of(upper | lower), block)
    root = find_roots(parents_ptr + b * nodes, 1 + (pair * bits.BLOCKS)[:, None] + block, occupied)
    kept = occupied & (root != 0)
    kept_bits = tl.sum(kept.to(tl.int64) << (2 * block).to(tl.int64), 1) * 3
    bits.store_pair(
        done_ptr + image, row, col, height, across, upper & kept_bits, lower & kept_bits
    )


@triton.jit
def measure_regions_kernel(
    words_ptr,
    parents_ptr,
    roots_ptr,
    measures_ptr,
    lists_ptr,
    found_ptr,
    height,
    width,
    most,
    STEP: tl.constexpr,
):
    """Measure the regions, each at its root: area, first pixel, and box; and list the roots.

    Grid: images, parts of `STEP` pairs of words. Reads `words` and `parents`, of launches before;
    writes the root of every block to `roots`. Every run of a word adds what it has to ``measures``
    (set by `start_regions_kernel`), and every root takes the next place of ``lists[image]``
    (``found[image]`` counts them, 0 before), by atomics: sums, minima and maxima of whole numbers
    do not depend on their order; that of the list does, and nothing follows from it.

    The list has `most` places: see `anatpaste_aug.batch.kernels.mask.most_regions`.
    """
    b = tl.program_id(0).to(tl.int64)
    across, nodes = bits.sizes(height, width)
    pair = tl.program_id(1) * STEP + tl.arange(0, STEP)
    row, col = pair // across, pair % across
    upper, lower = bits.load_pair(words_ptr + b * height * across, row, col, height, across)
    both = upper | lower
    _, is_start = run_starts(both)
    block = tl.arange(0, bits.BLOCKS)[None, :]
    occupied = bits.each_block(bits.blocks_of(both), block)
    node = 1 + (pair * bits.BLOCKS)[:, None] + block
    root = find_roots(parents_ptr + b * nodes, node, occupied)
    tl.store(roots_ptr + b * nodes + node, root, mask=occupied)

    # The bits of the run that starts here: up to the next block that is apart.
    bit = (2 * block).to(tl.int64)
    apart = (~bits.links_left(both) & bits.EVEN)[:, None] | (tl.full((1, 1), 1, tl.int64) << 32)
    later = apart & ~((tl.full((1, bits.BLOCKS), 2, tl.int64) << bit) - 1)
    run = ((later & (~later + 1)) - 1) & ~((tl.full((1, bits.BLOCKS), 1, tl.int64) << bit) - 1)
    run_upper, run_lower = upper[:, None] & run, lower[:, None] & run
    run_both = tl.where(is_start, run_upper | run_lower, 1)
    area = bits.count_bits(run_upper.to(tl.uint32)) + bits.count_bits(run_lower.to(tl.uint32))
    x, y = (32 * col)[:, None], (2 * row)[:, None]
    top = tl.where(run_upper != 0, run_upper, run_both)
    first = tl.where(run_upper != 0, y, y + 1) * width + x + bits.lowest(top)
    bottom = tl.where(run_lower != 0, y + 1, y)
    at = measures_ptr + b * 5 * nodes + root
    tl.atomic_add(at + AREA * nodes, area, mask=is_start, sem="relaxed")
    tl.atomic_min(at + FIRST * nodes, first, mask=is_start, sem="relaxed")
    tl.atomic_min(at + LEFT * nodes, x + bits.lowest(run_both), mask=is_start, sem="relaxed")
    tl.atomic_max(at + RIGHT * nodes, x + bits.highest(run_both), mask=is_start, sem="relaxed")
    tl.atomic_max(at + BOTTOM * nodes, bottom, mask=is_start, sem="relaxed")

    is_root = occupied & (root == node)
    one = is_root.to(tl.int32)
    place = tl.atomic_add(found_ptr + b + node * 0, one, mask=is_root, sem="relaxed")
    tl.store(lists_ptr + b * most + place, node, mask=is_root & (place < most))
