"""AnatPaste in nine launches, ten for images that are not 8-bit."""

from typing import Any

import torch
from torch import Tensor

from anatpaste_aug.batch.kernels.alpha import blur_once_kernel, draw_rows_kernel
from anatpaste_aug.batch.kernels.constants import COLS, EXTREMES, PASSES, ROWS
from anatpaste_aug.batch.kernels.draw import count_pixels
from anatpaste_aug.batch.kernels.launch import chunks, launch, parts, planned, power_of_two
from anatpaste_aug.batch.kernels.patch import blend_patches_kernel, sum_patches_kernel
from anatpaste_aug.batch.kernels.pixels import find_extremes_kernel

DRAWN_ROWS = 8  # that are drawn at a time
SUMS = 8  # programs that sum up a patch


@planned
def paste(
    images: Tensor, fields: list[Tensor], lungs: Tensor | None, chosen: Tensor, operation: Any
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images of a batch.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        On a GPU; any memory layout.
    fields : list of (B, 10) Tensor of int64, (B, 2) Tensor of float64
        The fields of `PasteParams` in their order.
    lungs : (B, H, W) Tensor of bool, or None
        Lung masks; an empty one confines nothing, nor does None.
    chosen : (B,) Tensor of bool
        Which images a paste goes into.
    operation : AnatPaste
        Nothing depends on its options.

    Returns
    -------
    out : Tensor
        What `anatpaste_aug.apply_paste` gives image by image, integers byte for byte.
    regions : (B, 1, H, W) Tensor of bool
        Where alpha > 0.
    """
    count, _, height, width = images.shape
    given, images = images, images.contiguous()
    if lungs is None:
        lungs = torch.zeros((count, height, width), dtype=torch.bool, device=images.device)
    out = torch.empty_like(images)
    regions = lungs.new_empty((count, 1, height, width))
    inputs = [tensor.contiguous() for tensor in (*fields, lungs, chosen)]
    for part in chunks(images, *inputs, out, regions):
        blend(*part)
    # In the memory layout of the images.
    return (out if given is images else torch.empty_like(given).copy_(out)), regions


def blend(images, whole, real, lungs, chosen, out, regions) -> None:
    """Paste into the chosen images of a chunk; write images and regions into `out`, `regions`."""
    count, channels, height, width = images.shape
    alpha = draw_alpha(whole, lungs)
    extremes = images.new_empty((count, EXTREMES, 2), dtype=torch.float64)
    block = {"ROWS": ROWS, "COLS": COLS}
    if images.dtype != torch.uint8:
        # Of all channels: their rows lie one after the other.
        args = (images, extremes, channels * height, width)
        launch(find_extremes_kernel, (count, EXTREMES), *args, COLOR=False, **block)
    block["EXTREMES"] = EXTREMES
    kind = torch.float64 if images.is_floating_point() else torch.int64
    sums = images.new_empty((count, SUMS), dtype=kind)
    args = (images, extremes, whole, real, sums, height, width)
    launch(sum_patches_kernel, (count, SUMS), *args, COLOR=channels == 3, **block, num_warps=8)
    grid = (count, parts(height, ROWS), parts(width, COLS))
    args = (images, chosen, extremes, whole, real, sums, alpha, out, regions, height, width)
    meta = {"CHANNELS": channels, "SUMS": SUMS, **block}
    launch(blend_patches_kernel, grid, *args, **meta, num_warps=8)


def draw_alpha(whole: Tensor, lungs: Tensor) -> Tensor:
    """Draw alpha, (B, H, W) uint8, in seven launches: shapes inside the lungs."""
    count, height, width = lungs.shape
    counts = count_pixels(lungs)
    source, target = (torch.empty_like(lungs, dtype=torch.uint8) for _ in range(2))
    grid = (count, parts(height, DRAWN_ROWS))
    args = (whole, source, height, width)
    launch(draw_rows_kernel, grid, *args, ROWS=DRAWN_ROWS, COLS=COLS)
    grid = (count, parts(height, ROWS), parts(width, COLS))
    block = {"PARTS": power_of_two(counts.shape[1]), "ROWS": ROWS, "COLS": COLS}
    for done in range(1, 2 * PASSES):
        args = (whole, source, target, lungs, counts, height, width, counts.shape[1])
        passes = {"ACROSS": min(done, PASSES), "DOWN": max(done - PASSES, 0)}
        launch(blur_once_kernel, grid, *args, **passes, **block)
        source, target = target, source
    return source
