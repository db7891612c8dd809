"""Morphology on bits, and the labels of 8-connected regions by union and find.

Nodes are blocks of 2 x 2 pixels: block `c` of word `w` in block row `r` is node
``1 + (r * across + w) * 16 + c``; node 0 stands for all that lies outside the image. ``parents``
holds a forest: no parent has a larger number than its child, a root is its own parent. The trees
are the regions, so that a region's root is the smallest of its nodes, whatever order they were
joined in.
"""

from __future__ import annotations

import triton
import triton.language as tl

from anatpaste_aug.batch.kernels.bits import (
    BLOCKS,
    EVEN,
    blocks_of,
    count_bits,
    filled_window,
    highest,
    inside_window,
    links_left,
    lowest,
    window,
)

AREA = tl.constexpr(0)
FIRST = tl.constexpr(1)
LEFT = tl.constexpr(2)
RIGHT = tl.constexpr(3)
BOTTOM = tl.constexpr(4)


@triton.jit
def erode(one, two, three, y, inner, height):
    """Erode row `y` by a 3 x 3 square, from the windows of the rows around it.

    Bit `j` of the result is the pixel one further to the right than in a window. Pixels outside the
    image, which the windows hold as True, are False in it.
    """
    bits = one & two & three
    bits = bits & (bits >> 1) & (bits >> 2) & (inner >> 1)
    return tl.where((y >= 0) & (y < height), bits, 0)


@triton.jit
def spread(bits, inner):
    """Dilate words along a row, from bits as `erode` gives them."""
    return (bits | (bits >> 1) | (bits >> 2)) & (inner >> 2) & 0xFFFFFFFF


@triton.jit
def run_starts(both):
    """Return the first block of the run in which each block of a word lies, and whether it is one.

    `both` has both rows of the blocks in one word, (n,); the result is (n, 16). Runs are blocks
    that touch one after the other; at the word's left end they start anew.
    """
    c = tl.arange(0, BLOCKS)[None, :].to(tl.int64)
    apart = (~links_left(both) & EVEN)[:, None]  # the lowest bit always
    start = highest(apart & ((tl.full((1, BLOCKS), 2, tl.int64) << (2 * c)) - 1)) // 2
    occupied = ((blocks_of(both)[:, None] >> (2 * c)) & 1) != 0
    return start, occupied & (start == c.to(tl.int32))


@triton.jit
def start_regions(
    chosen,
    words,
    done,
    parents,
    measures,
    height,
    width,
    across,
    nodes,
    OPEN: tl.constexpr,
    STEP: tl.constexpr,
):
    """Open or dilate a mask, and give each run of blocks in a word its first block as parent.

    Grid: images, parts of `STEP` words of block rows. Reads `words`, of the launch before, up to
    two pixels around the part. Writes the words of the two rows to `done`, another buffer, and the
    parents of their blocks, (B, nodes) int32. When dilating, it also sets what `measure_regions`
    adds to, (B, 5, nodes) int32, at the first block of every run: no other block can be a root.
    Each place is written by one program.
    """
    b = tl.program_id(0).to(tl.int64)
    if tl.load(chosen + b) == 0:
        return
    words += b * height * across
    done += b * height * across
    parents += b * nodes
    k = tl.program_id(1) * STEP + tl.arange(0, STEP)
    r, w = k // across, k % across
    upper = 2 * r < height
    lower = 2 * r + 1 < height
    inner = inside_window(w, width)
    y = 2 * r
    if OPEN:
        # What lies outside the image counts as True when eroding, as False when dilating.
        row0 = filled_window(words, y - 2, w, upper, height, across, inner)
        row1 = filled_window(words, y - 1, w, upper, height, across, inner)
        row2 = filled_window(words, y, w, upper, height, across, inner)
        row3 = filled_window(words, y + 1, w, upper, height, across, inner)
        row4 = filled_window(words, y + 2, w, upper, height, across, inner)
        row5 = filled_window(words, y + 3, w, upper, height, across, inner)
        before = erode(row0, row1, row2, y - 1, inner, height)
        here = erode(row1, row2, row3, y, inner, height)
        here1 = erode(row2, row3, row4, y + 1, inner, height)
        after = erode(row3, row4, row5, y + 2, inner, height)
    else:
        before = window(words, y - 1, w, upper, height, across) >> 1
        here = window(words, y, w, upper, height, across) >> 1
        here1 = window(words, y + 1, w, upper, height, across) >> 1
        after = window(words, y + 2, w, upper, height, across) >> 1
    a = spread(before | here | here1, inner)
    d = spread(here | here1 | after, inner)
    d = tl.where(lower, d, 0)
    tl.store(done + 2 * r * across + w, a.to(tl.uint32), mask=upper)
    tl.store(done + (2 * r + 1) * across + w, d.to(tl.uint32), mask=lower)

    start, is_start = run_starts(a | d)
    c = tl.arange(0, BLOCKS)[None, :]
    node = 1 + (k * BLOCKS)[:, None] + c
    tl.store(parents + node, node - c + start, mask=upper[:, None])
    if tl.program_id(1) == 0:
        tl.store(parents, 0)
    if not OPEN:
        at = measures + b * 5 * nodes + node
        new = is_start & upper[:, None]
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
def find_roots(parents, node, active):
    """Follow parents, which nobody writes any more, to the roots. Ends: parents never grow."""
    above = tl.load(parents + node, mask=active, other=0)
    while any_of(active & (above != node)):
        node = tl.where(active, above, node)
        above = tl.load(parents + node, mask=active, other=0)
    return node


@triton.jit
def unite(parents, one, two, active):
    """Join the trees of `one` and `two`, while other programs join others.

    Each round follows the parents a little, then hooks the larger node to the smaller by an atomic
    minimum. If it was its own parent still, they are joined. If not, it had been given another
    parent: that one and the smaller node are left to be joined, and whichever of the two became the
    parent, the other is joined to it in the next rounds, so that no link is lost.

    What is read may be out of date, since other programs write to `parents` at the same time: it
    is still a node of the same tree, and the atomic operation gives the true parent. The larger of
    the two nodes decreases with every round, by the atomic's answer if by nothing else: it ends.
    """
    while any_of(active):
        for _ in tl.static_range(2):
            one = tl.load(parents + one, mask=active, other=0)
            two = tl.load(parents + two, mask=active, other=0)
        high, low = tl.maximum(one, two), tl.minimum(one, two)
        active = active & (high != low)
        above = tl.atomic_min(parents + high, low, mask=active, sem="relaxed")
        active = active & (above != high)
        one, two = tl.where(active, above, 0), tl.where(active, low, 0)


@triton.jit
def join_regions(
    chosen, words, parents, height, width, across, nodes, BORDER: tl.constexpr, STEP: tl.constexpr
):
    """Join the runs of blocks that touch; with `BORDER` also all that touch the border, to node 0.

    Grid: images, parts of `STEP` words of block rows. Reads `words` and changes `parents`, both of
    the launch before, by `unite`. Runs are joined to the word on the left, and to the row of blocks
    above: straight up (`up`), to the left (`up_left`) and to the right (`up_right`). Of links that
    say the same, one is left out, so that most runs need one:

    - `up`, where the blocks on the left of both are joined by `up`, and both touch theirs: from
      left to right, the first of a row of such links is there.
    - a slanting link, where the straight one from the same block, or from the one below its other
      end, goes to the same run. Straight links are joined whether left out or not.
    """
    b = tl.program_id(0).to(tl.int64)
    if tl.load(chosen + b) == 0:
        return
    words += b * height * across
    parents += b * nodes
    k = tl.program_id(1) * STEP + tl.arange(0, STEP)
    r, w = k // across, k % across
    active = 2 * r < height
    a = window(words, 2 * r, w, active, height, across)
    both = a | window(words, 2 * r + 1, w, active, height, across)
    u = window(words, 2 * r - 1, w, active, height, across)
    above = u | window(words, 2 * r - 2, w, active, height, across)

    here, there = links_left(both), links_left(above)
    up = blocks_of(a) & blocks_of(u)
    up_left = a & (u << 1) & ~(up & there) & ~(here & (up << 2))
    up_right = (a >> 1) & (u >> 2) & ~(up & (there >> 2)) & ~((here >> 2) & (up >> 2))
    up &= ~(here & there & (up << 2))

    left = here & 4  # of block 0, to the word before
    edge = left * 0
    if BORDER:
        d = window(words, 2 * r + 1, w, active, height, across)
        edge = tl.where((r == 0) | (2 * r == height - 1), a, 0)
        edge |= tl.where(2 * r + 1 == height - 1, d, 0)
        edge |= tl.where(w == 0, both & 4, 0)
        one = tl.full(w.shape, 1, tl.int64)
        edge |= tl.where(w == across - 1, both & (one << ((width - 1) % 32 + 2).to(tl.int64)), 0)
        edge = blocks_of(edge)

    c = tl.arange(0, BLOCKS)[None, :]
    node = 1 + (k * BLOCKS)[:, None] + c
    above_node = node - across * BLOCKS
    for kind in range(5 if BORDER else 4):
        links = tl.where(kind == 0, left, tl.where(kind == 1, up, up_left))
        links = tl.where(kind == 3, up_right, tl.where(kind == 4, edge, links))
        two = tl.where(kind == 0, node - 1, above_node + tl.where(kind == 3, 1, 1 - kind))
        two = tl.where(kind == 4, 0, two)
        unite(parents, node, two, ((links[:, None] >> (2 * c + 2).to(tl.int64)) & 1) != 0)


@triton.jit
def clear_border(chosen, words, parents, done, height, across, nodes, STEP: tl.constexpr):
    """Remove the regions that touch the border: those whose root is node 0.

    Grid: images, parts of `STEP` words of block rows. Reads `words` and `parents`, of launches
    before; writes the words of the two rows to `done`, another buffer.
    """
    b = tl.program_id(0).to(tl.int64)
    if tl.load(chosen + b) == 0:
        return
    words += b * height * across
    done += b * height * across
    k = tl.program_id(1) * STEP + tl.arange(0, STEP)
    r, w = k // across, k % across
    upper, lower = 2 * r < height, 2 * r + 1 < height
    a = tl.load(words + 2 * r * across + w, mask=upper, other=0).to(tl.int64)
    d = tl.load(words + (2 * r + 1) * across + w, mask=lower, other=0).to(tl.int64)
    c = tl.arange(0, BLOCKS)[None, :]
    occupied = ((blocks_of(a | d)[:, None] >> (2 * c).to(tl.int64)) & 1) != 0
    root = find_roots(parents + b * nodes, 1 + (k * BLOCKS)[:, None] + c, occupied)
    kept = occupied & (root != 0)
    bits = tl.sum(kept.to(tl.int64) << (2 * c).to(tl.int64), 1) * 3
    tl.store(done + 2 * r * across + w, (a & bits).to(tl.uint32), mask=upper)
    tl.store(done + (2 * r + 1) * across + w, (d & bits).to(tl.uint32), mask=lower)


@triton.jit
def measure_regions(
    chosen,
    words,
    parents,
    roots,
    measures,
    lists,
    found,
    height,
    width,
    across,
    nodes,
    most,
    STEP: tl.constexpr,
):
    """Measure the regions, each at its root: area, first pixel, and box; and list the roots.

    Grid: images, parts of `STEP` words of block rows. Reads `words` and `parents`, of launches
    before; writes the root of every block to `roots`. Every run of a word adds what it has to
    ``measures`` (set by `start_regions`), and every root takes the next place of ``lists[image]``
    (``found[image]`` counts them, 0 before), by atomics: sums, minima and maxima of whole numbers
    do not depend on their order; that of the list does, and nothing follows from it.

    At most `most` regions fit (see `anatpaste_aug.batch.regions.measure`): the list is long enough.
    """
    b = tl.program_id(0).to(tl.int64)
    if tl.load(chosen + b) == 0:
        return
    words += b * height * across
    k = tl.program_id(1) * STEP + tl.arange(0, STEP)
    r, w = k // across, k % across
    upper, lower = 2 * r < height, 2 * r + 1 < height
    a = tl.load(words + 2 * r * across + w, mask=upper, other=0).to(tl.int64)
    d = tl.load(words + (2 * r + 1) * across + w, mask=lower, other=0).to(tl.int64)
    _, is_start = run_starts(a | d)
    c = tl.arange(0, BLOCKS)[None, :]
    bit = (2 * c).to(tl.int64)
    occupied = ((blocks_of(a | d)[:, None] >> bit) & 1) != 0
    node = 1 + (k * BLOCKS)[:, None] + c
    root = find_roots(parents + b * nodes, node, occupied)
    tl.store(roots + b * nodes + node, root, mask=occupied)

    # The bits of the run that starts here: up to the next block that is apart.
    apart = (~links_left(a | d) & EVEN)[:, None] | (tl.full((1, 1), 1, tl.int64) << 32)
    later = apart & ~((tl.full((1, BLOCKS), 2, tl.int64) << bit) - 1)
    run = ((later & (~later + 1)) - 1) & ~((tl.full((1, BLOCKS), 1, tl.int64) << bit) - 1)
    run_a, run_d = a[:, None] & run, d[:, None] & run
    run_both = tl.where(is_start, run_a | run_d, 1)
    area = count_bits(run_a.to(tl.uint32)) + count_bits(run_d.to(tl.uint32))
    x, y = (32 * w)[:, None], (2 * r)[:, None]
    top = tl.where(run_a != 0, run_a, run_both)
    first = tl.where(run_a != 0, y, y + 1) * width + x + lowest(top)
    at = measures + b * 5 * nodes + root
    tl.atomic_add(at + AREA * nodes, area, mask=is_start, sem="relaxed")
    tl.atomic_min(at + FIRST * nodes, first, mask=is_start, sem="relaxed")
    tl.atomic_min(at + LEFT * nodes, x + lowest(run_both), mask=is_start, sem="relaxed")
    tl.atomic_max(at + RIGHT * nodes, x + highest(run_both), mask=is_start, sem="relaxed")
    bottom = tl.where(run_d != 0, y + 1, y)
    tl.atomic_max(at + BOTTOM * nodes, bottom, mask=is_start, sem="relaxed")

    is_root = occupied & (root == node)
    one = is_root.to(tl.int32)
    place = tl.atomic_add(found + b + node * 0, one, mask=is_root, sem="relaxed")
    tl.store(lists + b * most + place, node, mask=is_root & (place < most))
