"""Contrast-limited equalisation and Otsu's threshold for a batch, bit for bit scikit-image's."""

from __future__ import annotations

import torch
from torch import Tensor

from anatpaste_aug.batch.tensors import divide
from anatpaste_aug.clahe import BIN_WIDTH, BINS, CLIP_LIMIT, GREY_LEVELS


def quantise(grey: Tensor, original: torch.dtype) -> Tensor:
    """Stretch (B, H, W) images to 14 bits and give each pixel's CLAHE bin, 0..252, int32.

    `original` is the dtype of the images before any cast: 8-bit images are widened to 16 bits
    first, and floats are brought to 0..65535 in their own precision.
    """
    low, high = extremes(grey)
    if grey.is_floating_point():
        span = (high.double() - low.double()).masked_fill(high == low, 1)
        stretched = ((grey - low.double()) / span).to(grey.dtype)
        grey = torch.where((low < 0) | (high > 1), stretched, grey)
        grey = (grey * 65535).round()
        low, high = extremes(grey)
    values, low, high = grey.double(), low.double(), high.double()
    if original == torch.uint8:
        values, low, high = values * 257, low * 257, high * 257
    span = (high - low).masked_fill(high == low, 1)
    stretched = ((values - low) / span * (GREY_LEVELS - 1)).round()
    stretched = torch.where(high == low, values, stretched)
    return stretched.clamp(0, GREY_LEVELS - 1).to(torch.int32) // BIN_WIDTH


def extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minimum and the maximum of every image, (B, 1, 1)."""
    return values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)


def equalise(bins: Tensor) -> Tensor:
    """Blend the maps of the four tiles around every pixel: (B, H, W) levels of 14 bits, int32.

    The blend is a float32 sum of four products, each computed in float64 and then rounded: no
    compiler can fuse such a product into the sum.
    """
    height, width = bins.shape[1:]
    tile_h, tile_w = height // 8, width // 8
    maps = tile_maps(bins, tile_h, tile_w)
    rows, cols = maps.shape[1:3]
    table = maps.flatten(1)

    y = torch.arange(height, device=bins.device)
    x = torch.arange(width, device=bins.device)
    tile_y, tile_x = (y + tile_h // 2) // tile_h, (x + tile_w // 2) // tile_w
    down = divide(((y + tile_h // 2) % tile_h).double(), tile_h)[:, None]
    right = divide(((x + tile_w // 2) % tile_w).double(), tile_w)
    total = torch.zeros(bins.shape, dtype=torch.float32, device=bins.device)
    for dy, weight_y in ((0, 1 - down), (1, down)):
        for dx, weight_x in ((0, 1 - right), (1, right)):
            # Outside the outermost centres the outermost tiles go on.
            row = (tile_y + dy - 1).clamp(0, rows - 1)[:, None]
            col = (tile_x + dx - 1).clamp(0, cols - 1)
            index = (row * cols + col) * BINS + bins
            value = table.gather(1, index.flatten(1)).view_as(bins)
            total += (value.double() * (weight_y * weight_x)).float()
    return total.to(torch.int32)


def tile_maps(bins: Tensor, tile_h: int, tile_w: int) -> Tensor:
    """Return the grey-level map of every tile: (B, rows, columns, 256) int32, 0..16383."""
    count, height, width = bins.shape
    rows, cols = -(-height // tile_h), -(-width // tile_w)
    # Beyond the far edges the image is reflected.
    y = torch.arange(rows * tile_h, device=bins.device)
    x = torch.arange(cols * tile_w, device=bins.device)
    padded = bins[:, (height - 1) - ((height - 1) - y).abs()][
        :, :, (width - 1) - ((width - 1) - x).abs()
    ]
    tile = (y // tile_h * cols)[:, None] + x // tile_w
    index = (tile * BINS + padded).flatten(1)
    counts = torch.zeros((count, rows * cols * BINS), dtype=torch.int32, device=bins.device)
    one = torch.ones((1, 1), dtype=torch.int32, device=bins.device)
    counts.scatter_add_(1, index, one.expand_as(index))
    size = tile_h * tile_w
    counts = clip_histograms(counts.view(count * rows * cols, BINS), size)
    levels = counts.cumsum(1, dtype=torch.int64).double() * ((GREY_LEVELS - 1) / size)
    return levels.clamp(max=GREY_LEVELS - 1).to(torch.int32).view(count, rows, cols, BINS)


def clip_histograms(counts: Tensor, size: int) -> Tensor:
    """Clip (tiles, 256) histograms of `size` pixels each and hand the excess to the other bins.

    The rule is scikit-image's: an equal share for every bin; bins that are then within one more
    share of the limit are filled; what remains is dealt out at even steps to the bins with room,
    from bin 0, then from bin 1, and so on. See `most_deals` for how often.
    """
    limit = max(int(CLIP_LIMIT * size), 1)
    counts = counts.clamp(max=limit)
    share = (size - counts.sum(1, keepdim=True, dtype=torch.int32)) // BINS
    counts = torch.where(counts < limit - share, counts + share, counts)
    counts = counts.masked_fill(counts >= limit - share, limit)
    excess = size - counts.sum(1, dtype=torch.int32)

    steps = torch.arange(BINS + 1, device=counts.device).clamp(min=1)[:, None]
    multiples = (torch.arange(BINS, device=counts.device) % steps == 0).float()
    room, left = (limit - counts).float(), excess.float()  # whole numbers, exact in float32
    for deal in range(most_deals(size, limit)):
        start = deal % BINS
        free = room.sign()
        step = torch.div(free.sum(1), left.clamp(min=1), rounding_mode="floor").long()
        dealt = free[:, start:] * multiples[step, : BINS - start] * (left > 0)[:, None]
        room[:, start:] -= dealt
        left -= dealt.sum(1)
    return limit - room.to(torch.int32)


def most_deals(size: int, limit: int) -> int:
    """Bound how many deals `clip_histograms` needs for any histogram of `size` pixels.

    A deal is one step of its loop, from one bin on. For tiles of 32 x 32 pixels (an image of
    256 x 256) the limit is 10 a bin, and 183 deals are always enough; of 128 x 128, where it is
    163, 229.

    Let U be the bins with room and n the excess, while n > 0. The room of all bins exceeds n by the
    constant ``256 * limit - size`` > 0, and no bin has more than `limit`: so U is never less than
    ``few = (256 * limit - size) / limit``. At the start n is at most 255, plus one share for each
    of the bins that were filled, at most 256 - few.

    - While U < 2 n the step is 1: the deal from bin i takes a pixel for every bin with room from i
      on, which are at least ``few - i``.
    - Once U >= 2 n it stays so: after a deal of c pixels there are at least U - c bins and n - c
      pixels. Every deal from a bin of these U takes a pixel for it, unless it has been filled in
      the meantime, which took one as well; so n ends after n + 256 - U deals, which decreases as U
      grows, if the row of 256 does not end before. If it does, the next row takes no more.
    """
    few = -(-(BINS * limit - size) // limit)
    most = left = min(size - 1, BINS - 1 + size // BINS * (BINS - few))
    deals = 0
    while 2 * left > few:
        left -= max(few - deals % BINS, 0)
        deals += 1
    rest = min(most, few // 2) + BINS - few
    row = -deals % BINS or BINS  # what is left of the row
    return deals + rest if rest <= row else deals + row + rest


def dark_side(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """Keep the pixels of (B, H, W) levels that are not black and not above Otsu's threshold.

    scikit-image stretches the levels to 0..1 in `dtype`, makes 256 bins of that, and gives the
    centre of one of them. The edges are multiples of 1/256 and the levels whole, so that both
    histogram and comparison are exact in integers.
    """
    lowest, highest = extremes(levels)
    above, span = levels - lowest, (highest - lowest).clamp(min=1)
    index = (above * BINS // span).clamp(max=BINS - 1).flatten(1).long()
    counts = torch.zeros((levels.shape[0], BINS), dtype=torch.int32, device=levels.device)
    one = torch.ones((1, 1), dtype=torch.int32, device=levels.device)
    counts.scatter_add_(1, index, one.expand_as(index))
    best = otsu_bin(counts, dtype)[:, None, None]
    return (above > 0) & (above <= span * (2 * best + 1) // (2 * BINS))


def otsu_bin(counts: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bin whose centre is Otsu's threshold, (B,) int32, as `skimage.filters` has it.

    Counts and weights are float32 and the means in `dtype`, as there.
    """
    weight1 = counts.cumsum(1, dtype=torch.int64).float()
    weight2 = counts.flip(1).cumsum(1, dtype=torch.int64).float()
    doubled = counts.float().long() * (2 * torch.arange(BINS, device=counts.device) + 1)
    mean1 = running_sum(doubled, dtype) / weight1
    mean2 = running_sum(doubled.flip(1), dtype) / weight2
    difference = mean1[:, :-1] - mean2.flip(1)[:, 1:]
    variance = weight1[:, :-1] * weight2.flip(1)[:, 1:] * (difference * difference)
    return variance.argmax(1).to(torch.int32)


def running_sum(doubled: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum counts times centres, multiples of 1 / (2 * BINS), up one by one: (B, n) in `dtype`.

    In float64 no sum is rounded, so that integers give the same, on a GPU in any order.
    """
    if dtype == torch.float64:
        return doubled.cumsum(1).double() / (2 * BINS)
    columns = list((doubled.to(dtype) / (2 * BINS)).unbind(1))
    for i in range(1, len(columns)):
        columns[i] = columns[i - 1] + columns[i]
    return torch.stack(columns, 1)
