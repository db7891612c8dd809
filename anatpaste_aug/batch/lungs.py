"""Where the lung masks of a batch come from: given, made by a segmenter, or the published ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from anatpaste_aug import lungs as functional
from anatpaste_aug.batch import tensors
from anatpaste_aug.batch.clahe import dark_side, equalise, quantise
from anatpaste_aug.batch.regions import clear_border, clear_small_boxes, dilate, erode
from anatpaste_aug.batch.robust import lung_mask_robust, robust_masks
from anatpaste_aug.checks import check_integer
from anatpaste_aug.lungs import MIN_AREA, Segment
from anatpaste_aug.robust import lung_mask_robust as lung_mask_robust_of_one


def lung_mask(images: Tensor, *, min_area: int = MIN_AREA) -> Tensor:
    """Segment the lungs on each radiograph of a batch, as `anatpaste_aug.lung_mask` does.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        As for `anatpaste_aug.batch.apply_paste`. Lungs are dark.
    min_area : int, optional
        Regions of fewer pixels are removed, together with everything in their bounding boxes.

    Returns
    -------
    masks : (B, 1, H, W) Tensor of bool
        Equal to `anatpaste_aug.lung_mask` of every image, bit for bit.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or shape, or `min_area` is negative.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> batch.lung_mask(torch.randint(256, (4, 1, 64, 64), dtype=torch.uint8)).shape
    torch.Size([4, 1, 64, 64])
    """
    check_integer("min_area", min_area, 0)
    images = tensors.as_images(images)
    return _lung_mask(images, int(min_area), tensors.everyone(images))[:, None]


def find_lungs(
    images: Tensor, masks: Tensor | None, segment: Segment | None, chosen: Tensor
) -> Tensor:
    """Return the masks that are given, or make those of the chosen images: (B, H, W) bool."""
    if masks is not None:
        if segment is not None:
            raise ValueError("masks and segment must not be given together")
        return tensors.as_masks(masks, images)
    # The functions of this package stand for their batched forms.
    if segment is None or segment is functional.lung_mask or segment is lung_mask:
        return _lung_mask(images, MIN_AREA, chosen)
    if segment is lung_mask_robust_of_one or segment is lung_mask_robust:
        return robust_masks(images, chosen)
    try:
        found = segment(images)
    except Exception as error:  # whatever a function of one image raises here
        raise TypeError(
            "segment must take a (B, C, H, W) tensor and return (B, 1, H, W) masks, "
            f"got {getattr(segment, '__name__', segment)}, which raised {error}"
        ) from error
    return tensors.as_masks(found, images, "the masks returned by segment")


def mask_fake(images: Tensor, min_area: int, chosen: Tensor) -> Tensor:
    """Return an empty tensor for the masks."""
    return images.new_empty((images.shape[0], *images.shape[2:]), dtype=torch.bool)


def mask_plain(images: Tensor, min_area: int, chosen: Tensor) -> Tensor:
    """Segment all images with plain torch operations."""
    masks = mask_fake(images, min_area, chosen)
    for part in tensors.chunks(images):
        grey = tensors.to_grey(tensors.working(images[part]))
        # scikit-image keeps float32 images in float32 and computes on all others in float64.
        precision = torch.float32 if grey.dtype == torch.float32 else torch.float64
        levels = equalise(quantise(grey, images.dtype))
        mask = dark_side(levels, precision)
        mask = dilate(erode(mask))
        mask = dilate(clear_border(mask))
        masks[part] = clear_small_boxes(mask, min_area)
    return masks


def mask_cpu(images: Tensor, min_area: int, chosen: Tensor) -> Tensor:
    """Segment the chosen images one by one in the functional form."""
    masks = np.zeros((images.shape[0], *images.shape[2:]), bool)
    for i in np.flatnonzero(chosen.numpy()):
        masks[i] = functional.lung_mask(tensors.to_numpy(images[i]), min_area=min_area)
    return torch.from_numpy(masks)


_lung_mask = tensors.make_op(
    "lung_mask",
    "(Tensor images, int min_area, Tensor chosen) -> Tensor",
    mask_plain,
    mask_cpu,
    mask_fake,
)
