"""Connected regions of a batch of masks: labels, border clearing and the bounding-box rule."""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
SMALLEST = 25  # pixels of a region: see `measure`


def dilate(mask: Tensor) -> Tensor:
    """Dilate (B, H, W) masks by a 3x3 square, one axis after the other."""
    wide = mask.clone()
    wide[:, :, 1:] |= mask[:, :, :-1]
    wide[:, :, :-1] |= mask[:, :, 1:]
    out = wide.clone()
    out[:, 1:] |= wide[:, :-1]
    out[:, :-1] |= wide[:, 1:]
    return out


def erode(mask: Tensor) -> Tensor:
    """Erode by a 3x3 square; what lies outside the image counts as True."""
    return ~dilate(~mask)


def shifted(blocks: Tensor, dy: int, dx: int, fill: int) -> Tensor:
    """Return what lies (dy, dx) further, in (B, H, W); `fill` beyond the border."""
    height, width = blocks.shape[1:]
    padded = torch.nn.functional.pad(blocks, (1, 1, 1, 1), value=fill)
    return padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]


def label(mask: Tensor) -> Tensor:
    """Label 8-connected regions of (B, H, W) masks with numbers below H * W, int32.

    All pixels of a region get the same number, no two regions the same; False pixels have H * W.
    But for which numbers they are, that is ``scipy.ndimage.label(mask[i], np.ones((3, 3)))`` for
    each i, without a loop that depends on the masks.

    Nodes are the blocks of 2x2 pixels, whose True pixels always touch. In every round, each
    component is hooked to the smallest of the components next to it. That makes no cycles but pairs
    that choose each other, of which the smaller becomes the root: if u is the smallest of a cycle,
    the component v that u chose has u next to it, so that v chose u, or a smaller one, which can't
    be in the cycle. Every component that has another next to it is merged, so that n of them are at
    most n // 2 after the round, and no path in a round is longer than n - 1 steps.
    """
    count, height, width = mask.shape
    odd = (0, width % 2, 0, height % 2)
    rows, cols = (height + 1) // 2, (width + 1) // 2
    corners = torch.nn.functional.pad(mask, odd).view(count, rows, 2, cols, 2)
    size = rows * cols
    links = [block_links(corners.permute(2, 4, 0, 1, 3), dy, dx) for dy, dx in NEIGHBOURS]
    numbers = torch.arange(size, dtype=torch.int32, device=mask.device)
    roots = numbers.expand(count, size)
    left = size
    while left > 1:
        grid = roots.reshape(count, rows, cols)
        nearest = torch.full_like(grid, size)
        for (dy, dx), link in zip(NEIGHBOURS, links, strict=True):
            other = shifted(grid, dy, dx, size)
            usable = link & (other != grid)
            nearest = torch.minimum(nearest, other.masked_fill(~usable, size))
        index = roots.long()
        hook = torch.full_like(roots, size).scatter_reduce_(1, index, nearest.flatten(1), "amin")
        parent = torch.where(hook < size, hook, numbers)
        mutual = (parent.gather(1, parent.long()) == numbers) & (numbers < parent)
        parent = torch.where(mutual, numbers, parent)
        for _ in range((left - 1).bit_length()):
            parent = parent.gather(1, parent.long())
        roots = parent.gather(1, index)
        left //= 2
    # The first pixel of a block stands for it.
    first = (roots // cols) * (2 * width) + roots % cols * 2
    labels = first.view(count, rows, 1, cols, 1).expand(-1, -1, 2, -1, 2)
    labels = labels.reshape(count, 2 * rows, 2 * cols)[:, :height, :width]
    return labels.masked_fill(~mask, height * width)


def block_links(corners: Tensor, dy: int, dx: int) -> Tensor:
    """Tell which 2x2 blocks touch their neighbour at (dy, dx); `corners` is (2, 2, B, H/2, W/2)."""

    def side(dy: int, dx: int) -> Tensor:
        # Whether a block has a pixel on the side, or in the corner, towards (dy, dx).
        rows = corners[{-1: slice(0, 1), 0: slice(0, 2), 1: slice(1, 2)}[dy]]
        return rows[:, {-1: slice(0, 1), 0: slice(0, 2), 1: slice(1, 2)}[dx]].flatten(0, 1).any(0)

    return side(dy, dx) & shifted(side(-dy, -dx), dy, dx, False)


def clear_border(mask: Tensor) -> Tensor:
    """Remove the 8-connected regions that touch the image's border."""
    count, height, width = mask.shape
    labels = label(mask).flatten(1).long()
    border = torch.ones((height, width), dtype=torch.bool, device=mask.device)
    border[1:-1, 1:-1] = False
    touches = torch.zeros((count, height * width + 1), dtype=torch.int32, device=mask.device)
    touches.scatter_reduce_(1, labels, border.flatten().int().expand_as(labels), "amax")
    return mask & (touches.gather(1, labels) == 0).view_as(mask)


def clear_small_boxes(mask: Tensor, min_area: int) -> Tensor:
    """Zero the bounding box of every region of fewer than `min_area` pixels, in label order.

    Every region must hold a 5x5 square, as `measure` says. Regions that are small from the start
    always go. Only for the others, at most ``H * W // min_area``, does the order matter: they are
    counted again one after the other.
    """
    count, height, width = mask.shape
    pixels = height * width
    if min_area <= SMALLEST:
        return mask
    region, boxes, area = measure(mask)
    background = area.shape[1]
    over = paint_boxes(boxes, (area > 0) & (area < min_area), height, width)
    # The region of each pixel, where no box of a region before it has zeroed the pixel.
    alive = region.masked_fill(over <= region, background)

    # The k-th large region, or `background` where there are not so many.
    rank = (area >= min_area).cumsum(1, dtype=torch.int32)
    wanted = torch.arange(1, pixels // min_area + 1, dtype=torch.int32, device=mask.device)
    large = torch.searchsorted(rank, wanted.expand(count, -1).contiguous(), out_int32=True)
    boxes = boxes.gather(2, large.clamp(max=background - 1).long().expand(4, -1, -1))
    y = torch.arange(height, dtype=torch.int32, device=mask.device)[:, None]
    x = torch.arange(width, dtype=torch.int32, device=mask.device)
    for k in range(wanted.numel()):
        this = large[:, k, None, None]
        top, bottom, left, right = boxes[:, :, k, None, None]
        rest = (alive == this).sum((1, 2), keepdim=True, dtype=torch.int32)
        zeroed = (rest < min_area) & (this < background)
        box = (zeroed & (y >= top) & (y <= bottom)) & ((x >= left) & (x <= right))
        alive.masked_fill_(box, background)
    return (alive < background) & (over == background)


def measure(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Measure the regions, numbered in the order of their first pixels, row by row.

    Every region must hold a 5x5 square inside the image, and may touch the border. So it is in
    `lung_mask`: the opening leaves at least a 3x3 square in each region, `clear_border` keeps the
    whole region off the border, and `dilate` adds a pixel on every side.

    There are at most ``most = (H + 1) * (W + 1) // 36`` such regions: 8-connected regions do not
    touch each other, so that the squares are still apart with one more row below and one more
    column on the right, which lie in (H + 1) x (W + 1) pixels.

    Returns
    -------
    region : (B, H, W) Tensor of int32
        The number of every pixel's region, from 0; `most` in the background.
    boxes : (4, B, most) Tensor of int32
        First and last row, first and last column of each region.
    area : (B, most) Tensor of int32
        In pixels; 0 where there are not so many regions.
    """
    count, height, width = mask.shape
    pixels, most = height * width, (height + 1) * (width + 1) // 36
    inside = mask.flatten(1)
    flat = torch.arange(pixels, dtype=torch.int32, device=mask.device)

    def reduce(values: Tensor, index: Tensor, size: int, how: str, start: int) -> Tensor:
        table = torch.full((count, size + 1), start, dtype=torch.int32, device=mask.device)
        return table.scatter_reduce_(1, index, values.expand(count, pixels), how)

    labels = label(mask).flatten(1).long()
    first = reduce(flat, labels, pixels, "amin", pixels).gather(1, labels)
    order = ((first == flat) & inside).cumsum(1, dtype=torch.int32) - 1
    region = order.gather(1, first.clamp(max=pixels - 1).long()).masked_fill(~inside, most)
    index = region.long()
    y, x = flat // width, flat % width
    boxes = torch.stack(
        [
            reduce(y, index, most, "amin", height),
            reduce(y, index, most, "amax", 0),
            reduce(x, index, most, "amin", width),
            reduce(x, index, most, "amax", 0),
        ]
    )
    area = reduce(torch.ones_like(flat), index, most, "sum", 0)
    return region.view_as(mask), boxes[:, :, :most], area[:, :most]


def paint_boxes(boxes: Tensor, chosen: Tensor, height: int, width: int) -> Tensor:
    """Return every pixel the smallest number of the chosen boxes over it, (B, H, W) int32.

    Where there is none, the number of all boxes. For each mask::

        painted = np.full((height, width), most)
        for number in reversed(range(most)):
            if chosen[number]:
                painted[top[number] : bottom[number] + 1, left[number] : right[number] + 1] = number

    without the loop: a box is the union of four, overlapping, with sides that are powers of two.
    Each is noted at its upper left corner; then, from the largest side to the smallest, what is
    noted is handed on to the two halves.
    """
    count, most = chosen.shape
    numbers = torch.arange(most, dtype=torch.int32, device=chosen.device)
    top, bottom, left, right = boxes
    tall, wide = bottom - top + 1, right - left + 1

    def empty() -> Tensor:
        return torch.full((count, height, width), most, dtype=torch.int32, device=chosen.device)

    def halve(notes: Tensor, step: int, dim: int) -> None:
        size = notes.shape[dim] - step
        if size > 0:
            target = notes.narrow(dim, step, size)
            target.copy_(torch.minimum(target, notes.narrow(dim, 0, size)))

    painted = empty()
    for j in reversed(range(width.bit_length())):
        halve(painted, 1 << j, 2)
        column = empty()
        for i in reversed(range(height.bit_length())):
            halve(column, 1 << i, 1)
            fits = chosen & (tall >> i == 1) & (wide >> j == 1)
            values = numbers.masked_fill(~fits, most)
            for row in (top, bottom + 1 - (1 << i)):
                for col in (left, right + 1 - (1 << j)):
                    corner = (row * width + col).clamp(0, height * width - 1).long()
                    column.flatten(1).scatter_reduce_(1, corner, values, "amin")
        painted = torch.minimum(painted, column)
    return painted
