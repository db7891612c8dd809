"""Cutting the images of a batch to their lungs: a box for each, and one size for all."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anatpaste_aug.batch.lungs import find_lungs
from anatpaste_aug.batch.robust import lung_mask_robust
from anatpaste_aug.batch.tensors import as_images, chunks, everyone, span
from anatpaste_aug.checks import MIN_SIDE, check_size
from anatpaste_aug.crop import CROP_MARGIN, check_crop
from anatpaste_aug.lungs import Segment, check_segment
from anatpaste_aug.operations.base import describe


class Cropped(NamedTuple):
    """What `LungCrop` returns: (B, C, h, w) images and (B, 1, h, w) lung masks."""

    images: Tensor
    masks: Tensor


def lung_crop(
    images: Tensor,
    size: int | tuple[int, int],
    *,
    masks: Tensor | None = None,
    segment: Segment | None = None,
    margin: float = CROP_MARGIN,
    square: bool = False,
) -> Tensor:
    """Cut each image of a batch to the box around its lungs, and bring all to one size.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        As for `apply_paste`.
    size : int or (int, int)
        Height and width of the results, at least 16.
    masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer, optional
        Lung masks. An image whose mask is empty is kept whole.
    segment : callable, optional
        Makes the masks from the images; default is `lung_mask_robust`. Not together with `masks`.
    margin, square
        As for `anatpaste_aug.lung_crop`; the boxes are the same.

    Returns
    -------
    out : (B, C, h, w) Tensor, same dtype and device as `images`
        The boxes, resized linearly and with a wider filter where they shrink: what torchvision's
        ``resize(..., antialias=True)`` gives for `anatpaste_aug.lung_crop` of each image, 8-bit
        values within 1, because that rounds between the two directions. Computed in float64.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or device, or leaves its limits.
    """
    crop = LungCrop(size, segment=segment, margin=margin, square=square)
    return crop.forward(images, masks=masks).images


class LungCrop(nn.Module):
    """Cut each image of a batch to the box around its lungs, and bring all to one size.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of the results, at least 16.
    segment, margin, square
        As for `lung_crop`.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or leaves its limits.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> images = torch.randint(256, (8, 1, 96, 80), dtype=torch.uint8)
    >>> crop = batch.LungCrop(64)
    >>> images, masks = crop(images)
    >>> images.shape, masks.shape
    (torch.Size([8, 1, 64, 64]), torch.Size([8, 1, 64, 64]))
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        segment: Segment | None = None,
        margin: float = CROP_MARGIN,
        square: bool = False,
    ):
        super().__init__()
        self.size = check_size(size)
        self.segment = check_segment(segment)
        self.margin, self.square = check_crop(margin, square)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``, so that it can be pasted back."""
        names = ("size", "segment", "margin", "square")
        return describe({name: getattr(self, name) for name in names})

    def forward(self, images: Tensor, *, masks: Tensor | None = None) -> Cropped:
        """Crop a batch.

        Parameters
        ----------
        images : (B, C, H, W) Tensor
        masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer, optional
            Lung masks that are already there; not together with `segment`.

        Returns
        -------
        images : (B, C, h, w) Tensor, same dtype and device as `images`
        masks : (B, 1, h, w) Tensor of bool
            The masks, cut and resized in the same way; lung where it is half of it or more.

        Raises
        ------
        TypeError, ValueError
            If an argument has another type, shape or device.
        """
        images = as_images(images)
        segment = self.segment or (lung_mask_robust if masks is None else None)
        lungs = find_lungs(images, masks, segment, everyone(images))
        (height, width), count = self.size, len(images)
        out = images.new_empty((count, images.shape[1], height, width))
        fields = torch.empty((count, 1, height, width), dtype=torch.bool, device=images.device)
        for part in chunks(images):
            ends = crop_ends(lungs[part], self.margin, self.square)
            rows, columns = (
                resize_weights(start, stop, old, new)[:, None]
                for (start, stop), old, new in zip(ends, lungs.shape[1:], self.size, strict=True)
            )
            cut = rows @ images[part].double() @ columns.mT
            out[part] = (cut if images.is_floating_point() else cut.round()).to(images.dtype)
            fields[part] = rows @ lungs[part, None].double() @ columns.mT >= 0.5
        return Cropped(out, fields)


def crop_ends(lungs: Tensor, margin: float, square: bool) -> list[tuple[Tensor, Tensor]]:
    """Return (B,) starts and stops of rows and of columns, as `anatpaste_aug.crop.crop_window`."""
    ends: list[Any] = []
    for flags in (lungs.any(2), lungs.any(1)):
        start, stop = span(flags)
        pad = ((stop - start).double() * margin).round().clamp(max=flags.shape[1]).long()
        ends.append(((start - pad).clamp(min=0), (stop + pad).clamp(max=flags.shape[1])))
    longest = torch.maximum(*(stop - start for start, stop in ends))
    for axis, size in enumerate(lungs.shape[1:]):
        start, stop = ends[axis]
        length = torch.maximum(stop - start, longest) if square else stop - start
        length = length.clamp(MIN_SIDE, size)
        start = torch.minimum(((start + stop - length) // 2).clamp(min=0), size - length)
        ends[axis] = start, start + length
    return ends


def resize_weights(start: Tensor, stop: Tensor, old: int, new: int) -> Tensor:
    """Return the share of each of `old` pixels in each of `new` ones, (B, new, old) float64.

    A tent around the middle of the new pixel, as wide as one or, where they are smaller, two.
    """
    scale = ((stop - start).double() / new)[:, None, None]
    middle = torch.arange(new, device=start.device)[:, None].double() + 0.5
    place = torch.arange(old, device=start.device) - start[:, None, None]
    inside = (place >= 0) & (place < (stop - start)[:, None, None])
    tent = (1 - (place + 0.5 - middle * scale).abs() / scale.clamp(min=1)).clamp(min=0) * inside
    return tent / tent.sum(2, keepdim=True)
