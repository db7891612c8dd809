"""The operators of a batch: what torch takes as one step, and which engine does the work.

On the CPU the functions work image by image: they are the definition. NVIDIA and AMD GPUs have
Triton kernels for the lung mask and AnatPaste. All else goes over the CPU and back, on any device:
right, not fast. `torch.compile` takes an operator whole, and learns from its fake what comes out.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils._pytree import tree_leaves, tree_map_only

from anatpaste_aug import masks, operations
from anatpaste_aug.batch.kernels.constants import LARGEST_AREA, LARGEST_SIDE
from anatpaste_aug.batch.params import fields_of, stack, unstack
from anatpaste_aug.batch.tensors import move, to_numpy
from anatpaste_aug.crop import crop_window
from anatpaste_aug.images import check_finite

SWITCH = "ANATPASTE_AUG_TRITON"  # an environment variable: 0 leaves GPUs without the kernels
OLDEST = (8, 0)  # compute capability
KERNELS = {"lung_mask": "mask", "sample": "draw", "paste": "paste"}  # their files
NUMBERS = 10  # random ones for each image, as many as AnatPaste draws

registered: dict[str, operations.Operation[Any]] = {}


def register(operation: operations.Operation[Any]) -> str:
    """Return the name by which operators know an operation, with its options."""
    name = f"{type(operation).__module__}.{operation!r}"
    while registered.setdefault(name, operation) != operation:
        name += "'"  # another class of this name, redefined in a notebook
    return name


# --- which engine ---------------------------------------------------------------------------------


def operator(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make an operator of a function of tensors on the CPU; `fake` returns empty ones.

    Where there are kernels, its first argument has the size of the images, and the last may be an
    operation's name.
    """

    def decorate(on_cpu: Callable[..., Any]) -> Any:
        name = on_cpu.__name__

        def over_cpu(*args: Any) -> Any:
            devices = [part.device for part in tree_leaves(args) if isinstance(part, Tensor)]
            there = tree_map_only(Tensor, Tensor.cpu, args)
            return tree_map_only(Tensor, partial(move, device=devices[0]), on_cpu(*there))

        def on_gpu(*args: Any) -> Any:
            run = find_kernels(name, args)
            if run is None:
                return over_cpu(*args)
            with torch.cuda.device(args[0].device):
                return run(*(registered[arg] if isinstance(arg, str) else arg for arg in args))

        schema = torch.library.infer_schema(on_cpu, mutates_args=())
        op = torch.library.custom_op(
            f"anatpaste_aug::{name}", over_cpu, mutates_args=(), schema=schema
        )
        op.register_kernel("cpu")(on_cpu)
        op.register_kernel("cuda")(on_gpu if name in KERNELS else over_cpu)
        op.register_fake(fake)
        return op

    return decorate


def find_kernels(name: str, args: Sequence[Any]) -> Callable[..., Any] | None:
    """Return what runs an operator in Triton kernels; None where they cannot run it."""
    images, last = args[0], args[-1]
    if isinstance(last, str) and type(registered[last]) is not operations.AnatPaste:
        return None
    height, width = images.shape[-2:]
    too_large = height * width > LARGEST_AREA or max(height, width) > LARGEST_SIDE
    if too_large or os.environ.get(SWITCH) == "0":
        return None
    try:
        fault = find_fault(images.device)
    except torch.OutOfMemoryError:
        fault = "out of memory, for the moment"
    if fault is None:
        return getattr(import_kernels(KERNELS[name]), name)
    warnings.warn(
        f"batches on {images.device} go over the CPU, as it cannot run Triton kernels: {fault}",
        stacklevel=2,
    )
    return None


def import_kernels(file: str) -> Any:
    """Import a file of the kernels, which need Triton."""
    return import_module(f"anatpaste_aug.batch.kernels.{file}")


@cache
def find_fault(device: torch.device) -> str | None:
    """Return why a GPU cannot run the kernels, None if it can: a small draw is tried.

    Triton may be missing, too old, or without a compiler for what it needs on the host. That does
    not change, and is remembered; running out of memory is not, and is raised.
    """
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST:
        return f"its compute capability is below {OLDEST[0]}.{OLDEST[1]}"
    try:
        lungs = torch.zeros((1, 16, 16), dtype=torch.bool, device=device)
        numbers = torch.zeros((NUMBERS, 1), dtype=torch.int64, device=device)
        with torch.cuda.device(device):
            import_kernels("draw").sample(lungs, numbers, (16, 16), operations.AnatPaste())
    except Exception as error:  # whatever an unknown Triton raises
        if "out of memory" in str(error) or isinstance(error, torch.OutOfMemoryError):
            raise torch.OutOfMemoryError(str(error)) from error
        return f"{type(error).__name__}: {error}"
    return None


# --- the operators --------------------------------------------------------------------------------


def empty_masks(images: Tensor, *args: Any) -> Tensor:
    """Return an empty tensor for (B, H, W) masks."""
    return images.new_empty((images.shape[0], *images.shape[2:]), dtype=torch.bool)


@operator(fake=empty_masks)
def lung_mask(images: Tensor, min_area: int, chosen: Tensor) -> Tensor:
    """Segment the chosen images; what the others get is not defined."""
    return segment_each(partial(masks.lung_mask, min_area=min_area), images, chosen)


@operator(fake=empty_masks)
def lung_mask_robust(images: Tensor, chosen: Tensor) -> Tensor:
    """Segment the chosen images; what the others get is not defined."""
    return segment_each(masks.lung_mask_robust, images, chosen)


def segment_each(segment: Callable[..., Any], images: Tensor, chosen: Tensor) -> Tensor:
    """Segment the chosen images one by one."""
    out = np.zeros((images.shape[0], *images.shape[2:]), bool)
    for i in np.flatnonzero(chosen.numpy()):
        out[i] = segment(to_numpy(images[i]))
    return torch.from_numpy(out)


def empty_crops(
    images: Tensor, lungs: Tensor, size: Sequence[int], *args: Any
) -> tuple[Tensor, Tensor]:
    """Return empty tensors for images and (B, 1, h, w) masks of a size."""
    out = images.new_empty((*images.shape[:2], *size))
    return out, images.new_empty((images.shape[0], 1, *size), dtype=torch.bool)


@operator(fake=empty_crops)
def lung_crop(
    images: Tensor, lungs: Tensor, size: Sequence[int], margin: float, square: bool
) -> tuple[Tensor, Tensor]:
    """Cut each image and its mask to the box of the lungs, and bring them to a size."""
    out, fields = empty_crops(images, lungs, size)

    def resize(cut: Tensor) -> Tensor:
        return interpolate(cut[None].double(), list(size), mode="bilinear", antialias=True)[0]

    for i, mask in enumerate(lungs.numpy()):
        check_finite(to_numpy(images[i]))
        rows, columns = crop_window(mask, margin, square)
        cut = resize(images[i][:, rows, columns])
        out[i] = cut if images.is_floating_point() else cut.round()
        fields[i] = resize(lungs[i : i + 1, rows, columns]) >= 0.5
    return out, fields


def empty_fields(
    lungs: Tensor | None, numbers: Tensor, shape: Sequence[int], name: str
) -> tuple[Tensor, Tensor]:
    """Return empty tensors for the whole and the real fields of an operation's params."""
    single: Any = registered[name].params
    whole, real = fields_of(single)
    count = numbers.shape[1]
    exact = numbers.new_empty((count, len(real)), dtype=torch.float64)
    return numbers.new_empty((count, len(whole))), move(exact, numbers.device)


@operator(fake=empty_fields)
def sample(
    lungs: Tensor | None, numbers: Tensor, shape: Sequence[int], name: str
) -> tuple[Tensor, Tensor]:
    """Draw one paste after the other; the first image's `numbers` are the seed."""
    operation, size = registered[name], (shape[0], shape[1])
    sampler = operations.Sampler(np.random.default_rng(numbers[:, :1].flatten().tolist()))
    each = [None] * numbers.shape[1] if lungs is None else lungs.numpy()
    return stack(operation.params, [operation.draw(sampler, size, mask) for mask in each])


def empty_pastes(images: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Return empty tensors for images and (B, 1, H, W) regions."""
    shape = (images.shape[0], 1, *images.shape[2:])
    return torch.empty_like(images), images.new_empty(shape, dtype=torch.bool)


@operator(fake=empty_pastes)
def paste(
    images: Tensor, fields: list[Tensor], lungs: Tensor | None, chosen: Tensor, name: str
) -> tuple[Tensor, Tensor]:
    """Paste into the chosen images, one by one; return images and regions."""
    operation = registered[name]
    out = torch.empty_like(images)
    pixels = out.permute(0, 2, 3, 1).numpy()  # NumPy copies in one thread; torch's fight for cores
    regions = np.zeros((len(images), 1, *images.shape[2:]), bool)
    params = unstack(operation.params, *fields)
    each = [None] * len(images) if lungs is None else lungs.numpy()
    for i, wanted in enumerate(chosen.tolist()):
        array = to_numpy(images[i])
        if wanted:
            array, regions[i, 0] = operation.perform(array, params[i], each[i])
        pixels[i] = array if array.ndim == 3 else array[..., None]
    return out, torch.from_numpy(regions)
