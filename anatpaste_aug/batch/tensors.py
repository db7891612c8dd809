"""What counts as a batch: checks of shape, dtype and device, and the way to NumPy."""

from typing import Any

import torch
from torch import Tensor

from anatpaste_aug.checks import MIN_SIDE
from anatpaste_aug.images import NAMES, Array, as_array

DTYPES = tuple(getattr(torch, name) for name in NAMES)


def as_images(images: Any) -> Tensor:
    """Check a (B, C, H, W) batch of images; return it without gradient, sharing memory."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.dtype not in DTYPES:
        raise TypeError(f"images must have a dtype out of {', '.join(NAMES)}, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        got = f"got {tuple(images.shape)}"
        if images.ndim == 3:
            got += (
                f"; write images[None] for one image, images[:, None] for {len(images)} gray ones"
            )
        raise ValueError(f"images must have the shape (B, 1, H, W) or (B, 3, H, W), {got}")
    check_sides("images", images)
    return images.detach()


def as_masks(masks: Any, images: Tensor | None = None, name: str = "masks") -> Tensor:
    """Check a batch of lung masks, against its (B, C, H, W) images too; return (B, H, W) bool."""
    if not isinstance(masks, Tensor) or masks.is_floating_point() or masks.is_complex():
        got = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"{name} must be a bool or integer tensor, got {got}")
    size = tuple(masks.shape)
    if masks.ndim not in (3, 4) or (masks.ndim == 4 and masks.shape[1] != 1):
        raise ValueError(f"{name} must have the shape (B, H, W) or (B, 1, H, W), got {size}")
    check_sides(name, masks)
    flat = masks if masks.ndim == 3 else masks[:, 0]
    if images is not None:
        expected = (images.shape[0], *images.shape[2:])
        if flat.shape != expected:
            size = tuple(flat.shape)
            raise ValueError(f"{name} must have the images' size {expected}, got {size}")
        check_device(name, masks, images.device)
    return flat if flat.dtype == torch.bool else flat != 0


def check_sides(name: str, tensor: Tensor) -> None:
    """Check that images or masks are large enough."""
    if min(tensor.shape[-2:]) < MIN_SIDE:
        size = tuple(tensor.shape[-2:])
        raise ValueError(f"{name} must be at least {MIN_SIDE} pixels high and wide, got {size}")


def check_device(name: str, value: Any, device: torch.device) -> None:
    """Check that a tensor or a generator lies on the device of the batch."""
    there = value.device
    both = there.index is not None and device.index is not None
    if there.type != device.type or (both and there.index != device.index):
        raise ValueError(f"{name} must be on the device of the batch, {device}, got {there}")


def to_numpy(image: Tensor) -> Array:
    """Return a (C, H, W) image on the CPU as a checked (H, W) or (H, W, 3) array."""
    return as_array((image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)).numpy())


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Move a tensor to a device; MPS has no float64."""
    mps = torch.device(device).type == "mps" and tensor.dtype == torch.float64
    return (tensor.float() if mps else tensor).to(device)
