"""AnatPaste in nine kernels, ten for images that are not 8-bit."""

from __future__ import annotations

import torch
from torch import Tensor

from anatpaste_aug.batch.anatpaste import PASSES
from anatpaste_aug.batch.kernels.alpha import blur_once, draw_rows, find_lungs
from anatpaste_aug.batch.kernels.launch import chunks, launch, parts, power_of_two
from anatpaste_aug.batch.kernels.patch import blend_patches, sum_patches
from anatpaste_aug.batch.kernels.pixels import find_extremes

ROWS, COLS = 8, 128  # pixels that a program of the pixel-wise kernels takes at a time
STEP = 4096  # pixels, where rows do not matter
LINES = 1024  # pixels of rows that are drawn at a time
SHARES = 64  # programs that find an image's extremes, at most
SUMS = 8  # programs that sum up a patch


def paste_triton(
    images: Tensor, fields: list[Tensor], masks: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images, (B, C, H, W) on a GPU; return images and alpha.

    Equal to `anatpaste_aug.batch.anatpaste.paste_plain`, integers byte for byte.
    """
    out = torch.empty_like(images)
    alpha = images.new_empty((images.shape[0], 1, *images.shape[2:]), dtype=torch.uint8)
    # The kernels take one number after the other, and one mask.
    fields = [field.contiguous() for field in fields]
    masks, chosen = masks.contiguous(), chosen.contiguous()
    for part in chunks(images):
        some = [field[part] for field in fields]
        paste(images[part], some, masks[part], chosen[part], out[part], alpha[part])
    return out, alpha


def paste(
    images: Tensor,
    fields: list[Tensor],
    masks: Tensor,
    chosen: Tensor,
    out: Tensor,
    alpha: Tensor,
) -> None:
    """Paste into the chosen images of a chunk; write images and alpha into `out` and `alpha`."""
    count, channels, height, width = images.shape
    device, dtype, colour = images.device, images.dtype, channels == 3
    crop_x, crop_y, patch_w, patch_h, center_x, center_y = fields[:6]
    brightness, contrast = fields[10:]
    size = (height, width)

    step = parts(height * width, STEP)
    lungs = torch.empty((count, step), dtype=torch.uint8, device=device)
    launch(find_lungs, (count, step), chosen, masks, lungs, height * width, STEP=STEP)
    draw_alpha(fields, masks, lungs, chosen, alpha)

    shares = min(parts(height, ROWS), SHARES)
    extremes = torch.empty((count, shares, 2), dtype=torch.float64, device=device)
    block = {"ROWS": ROWS, "COLS": COLS}
    if dtype != torch.uint8:
        args = (images, chosen, extremes, *size, *images.stride())
        launch(find_extremes, (count, shares), *args, COLOUR=colour, GREY=False, **block)
    block |= {"PARTS": power_of_two(shares), "BYTES": dtype == torch.uint8}
    block["UNSIGNED"] = dtype in (torch.uint8, torch.uint16)
    kind = torch.float64 if images.is_floating_point() else torch.int64
    sums = torch.empty((count, SUMS), dtype=kind, device=device)
    args = (images, chosen, extremes, crop_x, crop_y, patch_w, patch_h, brightness, sums, *size)
    args += (*images.stride(), shares)
    launch(sum_patches, (count, SUMS), *args, COLOUR=colour, **block, num_warps=8)
    grid = (count, parts(height, ROWS), parts(width, COLS))
    args = (images, chosen, extremes, crop_x, crop_y, patch_w, patch_h, center_x, center_y)
    args += (brightness, contrast, sums, alpha, out, *size, *images.stride(), *out.stride(), shares)
    wide = dtype == torch.int32
    block |= {"CHANNELS": channels, "WIDE": wide, "SUMS": SUMS}
    launch(blend_patches, grid, *args, **block, num_warps=8)


def draw_alpha(
    fields: list[Tensor], masks: Tensor, lungs: Tensor, chosen: Tensor, alpha: Tensor
) -> None:
    """Draw alpha, (B, 1, H, W) uint8, into a tensor that is there."""
    _, _, patch_w, patch_h, center_x, center_y, shape, radius, opacity, margin = fields[:10]
    count, height, width = masks.shape
    here, there = alpha.new_empty(masks.shape), alpha.new_empty(masks.shape)
    places = (patch_w, patch_h, center_x, center_y)
    args = (chosen, *places, shape, radius, opacity, margin, here, height, width)
    rows = LINES // COLS
    launch(draw_rows, (count, parts(height, rows)), *args, ROWS=rows, COLS=COLS)
    grid = (count, parts(height, ROWS), parts(width, COLS))
    for done in range(1, 2 * PASSES):
        last = done == 2 * PASSES - 1
        target = alpha if last else there
        args = (chosen, *places, radius, margin, here, target, masks, lungs, height, width)
        meta = {"ACROSS": min(done, PASSES), "DOWN": max(done - PASSES, 0), "LAST": last}
        meta |= {"PARTS": power_of_two(lungs.shape[1]), "ROWS": ROWS, "COLS": COLS}
        launch(blur_once, grid, *args, lungs.shape[1], **meta)
        here, there = there, here
