"""How kernels are launched."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from anatpaste_aug.batch.kernels.constants import CHUNK_PIXELS


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Launch one kernel.

    Multiply-adds are not fused: every product is rounded, as in the functional form. Rows, steps
    and warps are such that no register is spilled, whatever the dtype, by Triton 3.6 and 3.8.
    """
    kernel[grid](*args, **meta, enable_fp_fusion=False)


def parts(total: int, size: int) -> int:
    """Return how many parts of a size a total needs."""
    return -(-total // size)


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is not below a size."""
    return 1 << (size - 1).bit_length()


def chunks(images: Tensor) -> Iterator[slice]:
    """Cut a batch into slices of at most `CHUNK_PIXELS` pixels, and at least one image."""
    step = max(CHUNK_PIXELS // images.shape[-2:].numel(), 1)
    return (slice(start, start + step) for start in range(0, images.shape[0], step))
