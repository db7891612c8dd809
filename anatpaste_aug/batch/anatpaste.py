"""AnatPaste on a batch: draw, alpha and paste, and the operator that pastes on any device."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from anatpaste_aug import operations
from anatpaste_aug.batch import tensors
from anatpaste_aug.batch.draws import TorchDraws
from anatpaste_aug.batch.params import PasteParams, check_params
from anatpaste_aug.batch.patch import apply_each, blend, color_jitter, levels, take, within
from anatpaste_aug.checks import Range
from anatpaste_aug.images import Array, Mask
from anatpaste_aug.operations import anatpaste as functional
from anatpaste_aug.operations.anatpaste import BLUR, JITTER, MARGIN, OPACITY, RATIO, SCALE
from anatpaste_aug.operations.base import LENGTHS_FOR

PASSES = 3  # Pillow's GaussianBlur is an extended box blur, run three times each way,
ONE = 1 << 24  # with weights in fixed point.
ELLIPSE = 0
UNITS = 10  # random numbers for one paste


def sample_paste(
    masks: Tensor,
    generator: torch.Generator | None = None,
    *,
    scale: Range = SCALE,
    ratio: Range = RATIO,
    blur: Range = BLUR,
    opacity: Range = OPACITY,
    margin: int = MARGIN,
    jitter: float = JITTER,
    lengths_for: float | None = LENGTHS_FOR,
) -> PasteParams:
    """Draw one AnatPaste for each image of a batch; all draws are independent.

    Parameters
    ----------
    masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer
        Lung masks. Each paste is centred on a pixel of its mask, drawn uniformly, or anywhere in
        the image if the mask is empty.
    generator : torch.Generator, optional
        Source of the draws, on the device of `masks`; default is torch's global one.
    scale, ratio, blur, opacity, margin, jitter, lengths_for
        As for `anatpaste_aug.sample_paste`.

    Returns
    -------
    params : PasteParams
        Tensors of (B,) on the device of `masks`.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or shape, or a range is reversed or leaves its limits.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> params = batch.sample_paste(torch.ones(8, 1, 256, 256, dtype=torch.bool))
    >>> len(params), params.width.shape
    (8, torch.Size([8]))
    """
    paste = operations.AnatPaste(scale, ratio, blur, opacity, margin, jitter, lengths_for)
    lungs = tensors.as_masks(masks)
    drawn: PasteParams = TorchDraws(lungs, generator).sample(paste, lungs.shape[1:], lungs)
    return drawn


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
    masks = tensors.as_masks(masks)
    check_params(params, PasteParams, masks)
    canvas = masks[:, None].to(torch.uint8)
    return _paste(canvas, params.tensors(), masks, tensors.everyone(masks))[1]


@overload
def apply_paste(
    images: Tensor,
    params: PasteParams,
    masks: Tensor | None = None,
    *,
    return_mask: Literal[False] = False,
) -> Tensor: ...
@overload
def apply_paste(
    images: Tensor, params: PasteParams, masks: Tensor | None = None, *, return_mask: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def apply_paste(
    images: Tensor, params: PasteParams, masks: Tensor | None = None, *, return_mask: bool = False
) -> Any:
    """Apply one paste to each image; deterministic.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        C is 1 or 3; uint8, uint16, int16, int32, float16, float32 or float64; at least 16 pixels
        high and wide, and finite; on other devices than the CPU NaN and infinities are not looked
        for, because that would wait for the device. Any memory layout. float16 is computed in
        float32.
    params : PasteParams
        What to paste. Patches and centres must lie inside the images; on a GPU this is not checked,
        because that would wait for the device.
    masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer, optional
        Lung masks. Without them, and where one is empty, the paste goes anywhere.
    return_mask : bool, optional
        Whether to return the changed regions too.

    Returns
    -------
    out : Tensor, same shape, dtype, device and memory layout as `images`
        What `anatpaste_aug.apply_paste` gives image by image. No gradient flows through it.
    regions : (B, 1, H, W) Tensor of bool
        Where alpha > 0. Only with ``return_mask=True``.

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
    images = tensors.as_images(images)
    check_params(params, PasteParams, images)
    lungs = tensors.masks_or_none(masks, images)
    out, regions = paste_chosen(images, params, lungs, tensors.everyone(images))
    return (out, regions) if return_mask else out


def paste_chosen(
    images: Tensor, params: PasteParams, lungs: Any, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images of a checked batch; return images and (B, 1, H, W) regions."""
    out, alpha = _paste(images, params.tensors(), lungs, chosen)
    return out, alpha > 0


def draw_fake(
    lungs: Tensor, units: list[Tensor], reals: list[float], wholes: list[int], side: float
) -> tuple[Tensor, Tensor]:
    """Return empty tensors for whole fields and real ones."""
    return (
        lungs.new_empty((10, lungs.shape[0]), dtype=torch.int64),
        lungs.new_empty((2, lungs.shape[0]), dtype=torch.float64),
    )


def draw_plain(
    lungs: Tensor, units: list[Tensor], reals: list[float], wholes: list[int], side: float
) -> tuple[Tensor, Tensor]:
    """Draw pastes with plain torch operations.

    Parameters
    ----------
    lungs : (B, H, W) Tensor of bool
    units : list of (B,) Tensor of float64
        Random numbers of [0, 1), as many as `operations.AnatPaste.draw` takes, in its order.
    reals, wholes, side
        Its options: see `options_of`.

    Returns
    -------
    fields : (10, B) Tensor of int64
        `PasteParams`' fields from crop_x to margin.
    factors : (2, B) Tensor of float64
        Brightness and contrast.
    """
    draws = TorchDraws(lungs, None)
    draws.left = units[::-1]
    draws.words, draws.kinds = PasteParams.words, PasteParams.kinds
    paste = with_options(reals, wholes, side)
    drawn = draws.tensors(paste.draw(draws, (lungs.shape[1], lungs.shape[2]), lungs))
    fields = [drawn[name] for name in PasteParams.kinds]
    return torch.stack(fields[:10]), torch.stack(fields[10:])


def options_of(paste: Any) -> tuple[list[float], list[int], float]:
    """Return the options as an operator takes them; 0 stands for lengths that are not scaled."""
    reals = [*paste.scale, *paste.ratio, paste.jitter]
    wholes = [*paste.blur, *paste.opacity, paste.margin]
    return reals, [int(whole) for whole in wholes], paste.lengths_for or 0.0


def with_options(reals: list[float], wholes: list[int], side: float) -> Any:
    """Return the operation that has these options."""
    scale, ratio, jitter = (reals[0], reals[1]), (reals[2], reals[3]), reals[4]
    blur, opacity, margin = (wholes[0], wholes[1]), (wholes[2], wholes[3]), wholes[4]
    return operations.AnatPaste(scale, ratio, blur, opacity, margin, jitter, side or None)


_draw = tensors.make_op(
    "draw_paste",
    "(Tensor lungs, Tensor[] units, float[] reals, int[] wholes, float side) -> (Tensor, Tensor)",
    draw_plain,
    draw_plain,
    draw_fake,
)


def draw_whole(draws: TorchDraws, paste: operations.AnatPaste, lungs: Tensor) -> dict[str, Tensor]:
    """Draw pastes by one operator, which has a Triton form."""
    fields, factors = _draw(lungs, [draws.unit() for _ in range(UNITS)], *options_of(paste))
    return dict(zip(PasteParams.kinds, (*fields.unbind(), *factors.unbind()), strict=True))


TorchDraws.whole_draws[operations.AnatPaste] = draw_whole


def paste_fake(
    images: Tensor, fields: list[Tensor], masks: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Return empty tensors for images and alpha."""
    alpha = images.new_empty((images.shape[0], 1, *images.shape[2:]), dtype=torch.uint8)
    return torch.empty_like(images), alpha


def paste_plain(
    images: Tensor, fields: list[Tensor], masks: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images with plain torch operations; return images and alpha."""
    out, alphas = paste_fake(images, fields, masks, chosen)
    for part in tensors.chunks(images):
        params = PasteParams(*(field[part] for field in fields))
        alpha = draw_alpha(params, masks[part]) * chosen[part, None, None]
        alphas[part] = alpha[:, None]
        out[part] = blend_patch(images[part], params, alpha[:, None])
    return out, alphas


def paste_cpu(
    images: Tensor, fields: list[Tensor], masks: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images one by one in the functional form; return images and alpha."""

    def paste(image: Array, params: functional.PasteParams, lungs: Mask) -> tuple[Array, Array]:
        alpha = np.zeros(lungs.shape, np.uint8)
        window, part = functional.alpha_window(params, lungs.shape, lungs)
        alpha[window] = part
        return functional.blend_patch(image, params, window, part), alpha

    return apply_each(paste, images, PasteParams(*fields), masks, chosen, np.uint8)


_paste = tensors.make_op(
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

    For each image that is::

        canvas = Image.new("L", (width, height))
        box = (center_x - a, center_y - b, center_x + a, center_y + b)
        getattr(ImageDraw.Draw(canvas), shape)(box, fill=opacity)

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
    """Return the box radius and the weights of its inside and its two ends, as Pillow's C code.

    Gwosdek et al., Theoretical foundations of Gaussian convolution by extended box filtering, SSVM
    2011, equations 7, 11 and 14, in float32 except for two expressions in double.
    """
    sigma2 = tensors.divide(sigma.float() * sigma.float(), PASSES)
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
    work = tensors.working(images)
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
    out = blend(work, canvas, alpha, images.dtype)
    if work.is_floating_point():
        out = out.clamp(black, white)  # a weighted mean may leave them by a last bit
    return out.to(images.dtype)
