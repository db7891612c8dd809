"""How patches are pasted into a batch: alpha, colour jitter, blending, and CutPaste."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anatpaste_aug import baselines
from anatpaste_aug import paste as functional
from anatpaste_aug.batch.params import CutPasteParams, PasteParams, bounding_box
from anatpaste_aug.batch.tensors import (
    as_images,
    as_masks,
    check_device,
    chunks,
    divide,
    everyone,
    from_numpy,
    like,
    make_op,
    to_grey,
    to_numpy,
    working,
)

PASSES = 3  # Pillow's GaussianBlur is an extended box blur, run three times each way,
ONE = 1 << 24  # with weights in fixed point.
ELLIPSE = 0


def paste_alpha(params: PasteParams, masks: Tensor) -> Tensor:
    """Draw the opacity of each paste: a filled shape, blurred, confined to the lungs.

    Parameters
    ----------
    params : PasteParams
        One paste for each mask.
    masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer
        Lung masks; an empty one confines nothing.

    Returns
    -------
    alpha : (B, 1, H, W) Tensor of uint8
        0 (image) to 255 (patch); equal to `anatpaste_aug.paste_alpha`, byte for byte.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or device.
    """
    masks = as_masks(masks)
    check_params(params, PasteParams, masks)
    canvas = masks[:, None].to(torch.uint8)
    return _paste(canvas, params.tensors(), masks, everyone(masks))[1]


def apply_paste(images: Tensor, params: PasteParams, masks: Tensor | None = None) -> Tensor:
    """Apply one paste to each image; deterministic.

    Parameters
    ----------
    images : (B, C, H, W) or (B, H, W) Tensor
        C is 1 or 3; uint8, uint16, int16, int32, float16, float32 or float64; at least 16 pixels
        high and wide, and finite; on other devices than the CPU NaN and infinities are not looked
        for, because that would wait for the device. Any memory layout. float16 is computed in
        float32.
    params : PasteParams
        What to paste. Patches and centres must lie inside the images; on a GPU this is not checked,
        because that would wait for the device.
    masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer, optional
        Lung masks. Without them, and where one is empty, the paste goes anywhere.

    Returns
    -------
    out : Tensor, same shape, dtype, device and memory layout as `images`
        What `anatpaste_aug.apply_paste` gives image by image. No gradient flows through it.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or device.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> images = torch.rand(4, 3, 64, 64)
    >>> params = batch.sample_paste(torch.zeros(4, 1, 64, 64, dtype=torch.bool))
    >>> batch.apply_paste(images, params).shape
    torch.Size([4, 3, 64, 64])
    """
    checked = as_images(images)
    count, _, height, width = checked.shape
    if masks is None:
        masks = torch.zeros((count, height, width), dtype=torch.bool, device=checked.device)
    lungs = as_masks(masks, checked)
    check_params(params, PasteParams, checked)
    return like(images, _paste(checked, params.tensors(), lungs, everyone(checked))[0])


def apply_cutpaste(images: Tensor, params: CutPasteParams) -> tuple[Tensor, Tensor]:
    """Apply one CutPaste, *normal* or *scar*, to each image; deterministic.

    Parameters
    ----------
    images : (B, C, H, W) or (B, H, W) Tensor
        As for `apply_paste`.
    params : CutPasteParams
        What to paste; patches must lie inside the images, which is not checked on a GPU.

    Returns
    -------
    out : Tensor, same shape, dtype, device and memory layout as `images`
        What `anatpaste_aug.apply_cutpaste` gives image by image.
    regions : (B, 1, H, W) Tensor of bool
        Where the patches lie.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or device.
    """
    checked = as_images(images)
    check_params(params, CutPasteParams, checked)
    out, regions = _cutpaste(checked, params.tensors(), everyone(checked))
    return like(images, out), regions


def check_params(params: object, kind: type, images: Tensor) -> None:
    """Check parameters against the number and the device of the images."""
    if not isinstance(params, kind):
        raise TypeError(
            f"params must be anatpaste_aug.batch.{kind.__name__}, got {type(params).__name__}"
        )
    if len(params) != images.shape[0]:  # type: ignore[arg-type]
        raise ValueError(
            f"params must be as many as the images, {images.shape[0]}, got {len(params)}"  # type: ignore[arg-type]
        )
    check_device("params", params.crop_x, images.device)  # type: ignore[attr-defined]


# --- AnatPaste ------------------------------------------------------------------------------------


def paste_fake(
    images: Tensor, fields: list[Tensor], masks: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Give empty tensors for images and alpha."""
    alpha = images.new_empty((images.shape[0], 1, *images.shape[2:]), dtype=torch.uint8)
    return torch.empty_like(images), alpha


def paste_plain(
    images: Tensor, fields: list[Tensor], masks: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images with plain torch operations; give images and alpha."""
    out, alphas = paste_fake(images, fields, masks, chosen)
    for part in chunks(images):
        params = PasteParams(*(field[part] for field in fields))
        alpha = draw_alpha(params, masks[part]) * chosen[part, None, None]
        alphas[part] = alpha[:, None]
        out[part] = blend_patch(images[part], params, alpha[:, None])
    return out, alphas


def paste_cpu(
    images: Tensor, fields: list[Tensor], masks: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images one by one in the functional form; give images and alpha."""
    params = PasteParams(*fields).unstack()
    out = images.clone()
    alphas = torch.zeros((images.shape[0], 1, *images.shape[2:]), dtype=torch.uint8)
    for i in chosen.nonzero()[:, 0].tolist():
        single, array = params[i], to_numpy(images[i])
        window, alpha = functional._alpha_window(single, masks[i].numpy())
        out[i] = from_numpy(functional._blend_patch(array, single, window, alpha))
        alphas[i, 0].numpy()[window] = alpha
    return out, alphas


_paste = make_op(
    "paste",
    "(Tensor images, Tensor[] fields, Tensor masks, Tensor chosen) -> (Tensor, Tensor)",
    paste_plain,
    paste_cpu,
    paste_fake,
)


def draw_alpha(params: PasteParams, masks: Tensor) -> Tensor:
    """Draw alpha, (B, H, W) uint8: the shape, blurred along x and then y, inside the lungs."""
    alpha = draw_shape(params, *masks.shape[1:])
    radius, weights = blur_weights(params.blur_radius)
    alpha = box_blur(alpha, radius, weights)
    alpha = box_blur(alpha.mT, radius, weights).mT
    lungs = masks | ~masks.flatten(1).any(1)[:, None, None]
    return (alpha * lungs).to(torch.uint8)


def draw_shape(params: PasteParams, height: int, width: int) -> Tensor:
    """Draw filled ellipses or rectangles, (B, H, W) int32 of 0 and opacity.

    Pillow walks along the ellipse from its right end to its top, always to the one of three
    neighbours (up, left, or both) that is closest to the curve, and fills what lies inside. In
    closed form, a pixel is filled if it is closer to the curve than its left neighbour or inside;
    or closer than its lower neighbour, and the walk comes by its right lower one. Coordinates are
    doubled, and whole. It was compared with Pillow for all half axes up to 400 pixels.
    """
    half_w, half_h = params.width // 2, params.height // 2
    a = 2 * (half_w - torch.minimum(params.margin, half_w))[:, None, None]
    b = 2 * (half_h - torch.minimum(params.margin, half_h))[:, None, None]
    x = 2 * (torch.arange(width, device=a.device) - params.center_x[:, None]).abs()[:, None, :]
    y = 2 * (torch.arange(height, device=a.device) - params.center_y[:, None]).abs()[:, :, None]

    def reached(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # Twice the mean of the ellipse's equation over two neighbours along x, and along y.
        along_x = b * b * (x * x + (x - 2) ** 2 - 2 * a * a) <= -2 * a * a * y * y
        along_y = 2 * b * b * (x * x - a * a) <= -a * a * (y * y + (y - 2) ** 2)
        return along_x, along_y

    along_x, along_y = reached(x, y)
    before_x, before_y = reached(x + 2, y - 2)
    ellipse = (along_x | (along_y & (before_x | before_y)) | (x == 0)) & (a + b > 0)
    inside = (x <= a) & (y <= b) & (ellipse | (params.shape != ELLIPSE)[:, None, None])
    return inside * params.opacity.to(torch.int32)[:, None, None]


def blur_weights(sigma: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Give the box radius and the weights of its inside and its two ends, as Pillow's C code.

    Gwosdek et al., Theoretical foundations of Gaussian convolution by extended box filtering, SSVM
    2011, equations 7, 11 and 14, in float32 except for two expressions in double.
    """
    sigma2 = divide(sigma.float() * sigma.float(), PASSES)
    length = (12.0 * sigma2.double() + 1.0).sqrt().float()
    whole = ((length.double() - 1.0) / 2.0).floor().float()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * sigma2)
    part = part / (6 * (sigma2 - (whole + 1) * (whole + 1)))
    radius = whole + part
    inside = (ONE / (radius * 2 + 1)).long()
    reach = radius.long()
    ends = (ONE - (reach * 2 + 1) * inside) // 2
    return reach, (inside, ends)


def box_blur(rows: Tensor, radius: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """Blur (B, H, W) int32 rows of 0..255 three times, rounding each time, borders repeated."""
    width = rows.shape[2]
    inside, ends = (weight[:, None, None] for weight in weights)
    x = torch.arange(width, device=rows.device)
    steps = torch.stack([-radius - 2, -radius - 1, radius, radius + 1])
    places = [x + step[:, None] for step in steps]
    for _ in range(PASSES):
        sums = rows.cumsum(2, dtype=torch.int32)
        # The sum up to any place: beyond the border the outermost pixel goes on and on.
        far_left, left, right, far_right = (
            sums.gather(2, place.clamp(0, width - 1)[:, None].expand_as(rows))
            + rows[:, :, :1] * place.clamp(max=0)[:, None]
            + rows[:, :, -1:] * (place - (width - 1)).clamp(min=0)[:, None]
            for place in places
        )
        total = (right - left) * inside + (far_right - right + left - far_left) * ends
        rows = ((total + ONE // 2) >> 24).to(torch.int32)
    return rows


def blend_patch(images: Tensor, params: PasteParams, alpha: Tensor) -> Tensor:
    """Blend the jittered patches, on black, into images of any dtype; alpha is (B, 1, H, W)."""
    work = working(images)
    black, white = levels(images, work)
    height, width = images.shape[2:]
    top, left = params.center_y - params.height // 2, params.center_x - params.width // 2
    y = torch.arange(height, device=work.device) - top[:, None]
    x = torch.arange(width, device=work.device) - left[:, None]
    inside = within(y, params.height)[:, :, None] & within(x, params.width)[:, None, :]
    source_y = (y + params.crop_y[:, None]).clamp(0, height - 1)
    source_x = (x + params.crop_x[:, None]).clamp(0, width - 1)
    patch = take(color_jitter(work, params, black, white), source_y[:, :, None], source_x[:, None])
    canvas = torch.where(inside[:, None], patch, black)
    if work.is_floating_point():
        weight = divide(alpha.to(work.dtype), 255)
        out = work * (1 - weight) + canvas * weight
        out = torch.minimum(
            torch.maximum(out, work.amin((1, 2, 3), keepdim=True)),
            work.amax((1, 2, 3), keepdim=True),
        )
    else:
        wide = torch.int64 if images.dtype == torch.int32 else torch.int32
        total = work.to(wide) * (255 - alpha.to(wide)) + canvas.to(wide) * alpha.to(wide)
        out = torch.div(total + 127, 255, rounding_mode="floor")
    return out.to(images.dtype)


def levels(images: Tensor, work: Tensor) -> tuple[Tensor, Tensor]:
    """Give the values of black and white, (B, 1, 1, 1): 0 and 255, or the image's own extremes."""
    low, high = work.amin((1, 2, 3), keepdim=True), work.amax((1, 2, 3), keepdim=True)
    if images.dtype in (torch.uint8, torch.uint16):
        low = torch.zeros_like(low)
    if images.dtype == torch.uint8:
        high = torch.full_like(high, 255)
    return low, high


def within(offset: Tensor, size: Tensor) -> Tensor:
    """Tell where an offset lies in 0..size - 1."""
    return (offset >= 0) & (offset < size[:, None])


def take(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Take pixels of (B, C, H, W) images at broadcast (B, H', W') places."""
    index = y * images.shape[3] + x
    taken = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return taken.reshape(*images.shape[:2], *index.shape[1:])


def color_jitter(
    images: Tensor, params: PasteParams | CutPasteParams, black: Tensor, white: Tensor
) -> Tensor:
    """Scale brightness, then contrast, of whole images as of their patches.

    Every pixel gets what it would get in the patch: contrast is measured from the patch's own mean
    luma. See `anatpaste_aug.paste.color_jitter` for the rounding.
    """
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device) - params.crop_y[:, None]
    x = torch.arange(width, device=images.device) - params.crop_x[:, None]
    patch = within(y, params.height)[:, :, None] & within(x, params.width)[:, None, :]

    images = move_from(black.clamp(max=0), images, params.brightness, black, white)
    grey = to_grey(images)
    grey = grey.double() if grey.is_floating_point() else grey.long()
    mean = (grey * patch).sum((1, 2)).double() / (params.width * params.height)
    if images.dtype == torch.uint8:
        mean = (mean + 0.5).floor()
    return move_from(mean[:, None, None, None], images, params.contrast, black, white)


def move_from(base: Tensor, images: Tensor, factor: Tensor, black: Tensor, white: Tensor) -> Tensor:
    """Scale the distance from `base`, within black and white; a factor of 1 changes nothing."""
    kind = images.dtype
    narrow = torch.float32 if kind == torch.uint8 else torch.float64
    dtype = kind if kind.is_floating_point else narrow
    factor = factor[:, None, None, None]
    base = base.to(dtype)
    moved = base + factor.to(dtype) * (images.to(dtype) - base)
    moved = torch.minimum(torch.maximum(moved, black.to(dtype)), white.to(dtype))
    if kind == torch.int32:
        moved = moved.round()
    return torch.where(factor == 1, images, moved.to(kind))


# --- CutPaste -------------------------------------------------------------------------------------


def cutpaste_fake(images: Tensor, fields: list[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Give empty tensors for images and regions."""
    region = images.new_empty((images.shape[0], 1, *images.shape[2:]), dtype=torch.bool)
    return torch.empty_like(images), region


def cutpaste_plain(images: Tensor, fields: list[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """CutPaste into the chosen images with plain torch operations; give images and regions."""
    out, regions = cutpaste_fake(images, fields, chosen)
    for part in chunks(images):
        params = CutPasteParams(*(field[part] for field in fields))
        region, y, x = rotated_patch(params, *images.shape[2:])
        region &= chosen[part, None, None]
        work = working(images[part])
        jittered = color_jitter(work, params, *levels(images[part], work))
        patch = take(jittered, y + params.crop_y[:, None, None], x + params.crop_x[:, None, None])
        out[part] = torch.where(region[:, None], patch, work).to(images.dtype)
        regions[part] = region[:, None]
    return out, regions


def rotated_patch(params: CutPasteParams, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give where rotated patches lie, and the row and column in the patch for every pixel."""
    box_width, box_height = bounding_box(params.width, params.height, params.angle)
    right = torch.arange(width, device=params.angle.device) - params.paste_x[:, None]
    down = torch.arange(height, device=params.angle.device) - params.paste_y[:, None]
    box = within(down, box_height)[:, :, None] & within(right, box_width)[:, None, :]
    # From the pixel centres of the box back to those of the patch.
    right = (right + (0.5 - box_width.double() / 2)[:, None])[:, None, :]
    down = (down + (0.5 - box_height.double() / 2)[:, None])[:, :, None]
    angle = params.angle.double()[:, None, None] * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x = (right * cos - down * sin + (params.width.double() / 2)[:, None, None]).floor().long()
    y = (right * sin + down * cos + (params.height.double() / 2)[:, None, None]).floor().long()
    last_x, last_y = params.width[:, None, None] - 1, params.height[:, None, None] - 1
    region = box & (x >= 0) & (x <= last_x) & (y >= 0) & (y <= last_y)
    zero = torch.zeros_like(last_x)
    return region, torch.clamp(y, zero, last_y), torch.clamp(x, zero, last_x)


def cutpaste_cpu(images: Tensor, fields: list[Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """CutPaste into the chosen images one by one in the functional form."""
    params = CutPasteParams(*fields).unstack()
    out = images.clone()
    regions = torch.zeros((images.shape[0], 1, *images.shape[2:]), dtype=torch.bool)
    for i in chosen.nonzero()[:, 0].tolist():
        pasted, region = baselines.apply_cutpaste(to_numpy(images[i]), params[i], return_mask=True)
        out[i], regions[i, 0] = from_numpy(pasted), torch.from_numpy(region)
    return out, regions


_cutpaste = make_op(
    "cutpaste",
    "(Tensor images, Tensor[] fields, Tensor chosen) -> (Tensor, Tensor)",
    cutpaste_plain,
    cutpaste_cpu,
    cutpaste_fake,
)
