"""What counts as a batch: checks of shape and dtype, layout, luma, and the way to NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from anatpaste_aug.batch.kernels import FORMS, on_gpu
from anatpaste_aug.checks import MIN_SIDE
from anatpaste_aug.images import LUMA, NAMES, Array, as_array

P = ParamSpec("P")
T = TypeVar("T")

DTYPES = tuple(getattr(torch, name) for name in NAMES)
CHUNK_ELEMENTS = 2**23  # 128 grey images of 256 x 256 are worked through at a time


def as_images(images: Any) -> Tensor:
    """Check a (B, C, H, W) batch of images; return it without gradient, sharing memory."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.dtype not in DTYPES:
        raise TypeError(f"images must have a dtype out of {', '.join(NAMES)}, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        shape = tuple(images.shape)
        message = f"images must have the shape (B, 1, H, W) or (B, 3, H, W), got {shape}"
        if len(shape) == 3:
            message += (
                f"; write images[None] for one image, images[:, None] for {shape[0]} grey ones"
            )
        raise ValueError(message)
    if min(images.shape[2:]) < MIN_SIDE:
        size = tuple(images.shape[2:])
        raise ValueError(f"images must be at least {MIN_SIDE} pixels high and wide, got {size}")
    return images.detach()


def as_masks(masks: Any, images: Tensor | None = None, name: str = "masks") -> Tensor:
    """Check a batch of lung masks, against its (B, C, H, W) images too; return (B, H, W) bool."""
    if not isinstance(masks, Tensor) or masks.is_floating_point() or masks.is_complex():
        got = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"{name} must be a bool or integer tensor, got {got}")
    if masks.ndim not in (3, 4) or (masks.ndim == 4 and masks.shape[1] != 1):
        raise ValueError(
            f"{name} must have the shape (B, H, W) or (B, 1, H, W), got {tuple(masks.shape)}"
        )
    if min(masks.shape[-2:]) < MIN_SIDE:
        size = tuple(masks.shape[-2:])
        raise ValueError(f"{name} must be at least {MIN_SIDE} pixels high and wide, got {size}")
    flat = masks if masks.ndim == 3 else masks[:, 0]
    flat = flat if flat.dtype == torch.bool else flat != 0
    if images is not None:
        expected = (images.shape[0], *images.shape[2:])
        if flat.shape != expected:
            raise ValueError(
                f"{name} must have the images' size {expected}, got {tuple(flat.shape)}"
            )
        check_device(name, masks, images.device)
    return flat


def masks_or_none(masks: Tensor | None, images: Tensor) -> Tensor:
    """Check masks as `as_masks` does; without any, return empty ones, which confine nothing."""
    if masks is not None:
        return as_masks(masks, images)
    shape = (images.shape[0], *images.shape[2:])
    return torch.zeros(shape, dtype=torch.bool, device=images.device)


def check_device(name: str, value: Any, device: torch.device) -> None:
    """Check that a tensor or a generator lies on the device of the batch."""
    there = value.device
    both = there.index is not None and device.index is not None
    if there.type != device.type or (both and there.index != device.index):
        raise ValueError(f"{name} must be on the device of the batch, {device}, got {there}")


def working(images: Tensor) -> Tensor:
    """Return images in a dtype torch computes in: int32 for 16 bits, float32 for half floats."""
    if images.dtype in (torch.uint16, torch.int16):
        return images.to(torch.int32)
    return images.float() if images.dtype == torch.float16 else images


def span(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Return first and one past the last True of rows of flags, (B, n); all, if there is none."""
    places = torch.arange(flags.shape[1], device=flags.device)
    flags = flags | ~flags.any(1, keepdim=True)
    first = torch.where(flags, places, flags.shape[1]).amin(1)
    return first, torch.where(flags, places, -1).amax(1) + 1


def to_grey(images: Tensor) -> Tensor:
    """Reduce (B, C, H, W) in a working dtype to (B, H, W) luma, as `anatpaste_aug.images.to_grey`.

    Integers, uint8 too, come as they are or as int64 luma; floats stay what they are.
    """
    if images.shape[1] == 1:
        return images[:, 0]
    red, green, blue = images.unbind(1)
    if images.is_floating_point():
        return (LUMA[0] * red + LUMA[1] * green) + LUMA[2] * blue
    red, green, blue = red.long(), green.long(), blue.long()
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def divide(values: Tensor, by: int) -> Tensor:
    """Divide floats by a whole number, rounding once on any device.

    By a plain number CUDA multiplies with its reciprocal, which rounds twice; by a tensor of its
    own it divides.
    """
    return values / torch.full((), by, dtype=values.dtype, device=values.device)


def everyone(images: Tensor) -> Tensor:
    """Choose every element of a batch."""
    return torch.ones(images.shape[0], dtype=torch.bool, device=images.device)


def chunks(images: Tensor) -> Iterator[slice]:
    """Cut a batch into slices of at most `CHUNK_ELEMENTS` elements, and at least one image."""
    count, size = images.shape[0], images.shape[1:].numel()
    step = max(CHUNK_ELEMENTS // size, 1)
    return (slice(start, start + step) for start in range(0, max(count, 1), step))


def to_numpy(image: Tensor) -> Array:
    """Return a (C, H, W) image on the CPU as a checked (H, W) or (H, W, 3) array."""
    return as_array((image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)).numpy())


def copy_of(images: Tensor) -> tuple[Tensor, Array]:
    """Copy a batch on the CPU; return it, and its memory as a (B, H, W, C) array to write into.

    NumPy copies in one thread: torch's copies are slow where its threads fight for the cores.
    """
    out = torch.empty_like(images)
    np.copyto(out.numpy(), images.numpy())
    return out, out.permute(0, 2, 3, 1).numpy()


def make_op(
    name: str, schema: str, plain: Callable[P, T], cpu: Callable[P, T], fake: Callable[P, T]
) -> Callable[P, T]:
    """Register an operator: `plain` on any device, the functional form image by image on the CPU.

    On a GPU the Triton form of that name is taken instead of `plain`, where there is one.
    `torch.compile` takes the operator whole, and learns from `fake` what comes out, so that no
    compiler fuses its roundings away.
    """
    op = torch.library.custom_op(f"anatpaste_aug::{name}", plain, mutates_args=(), schema=schema)
    op.register_kernel("cpu")(cpu)
    if name in FORMS:
        op.register_kernel("cuda")(on_gpu(name, plain))
    op.register_fake(fake)
    return op
