"""How kernels are launched."""

import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

from anatpaste_aug.batch.kernels.constants import CHUNK_PIXELS


class Launches(threading.local):
    """What the operator that runs in this thread launches: known from an earlier run, or noted."""

    known: Iterator[Any] | None = None
    noted: list[Any] | None = None


here = Launches()


def planned(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Remember what an operator launches: Triton's binder is asked once for a form of arguments.

    The binder takes 20 microseconds a launch. It finds a compiled kernel by dtypes, numbers,
    constants, and whether 16 divides an address: all follow from the form of the arguments here, as
    does the order of the launches. AMD's looks at sizes in bytes too, and is always asked.
    """

    @wraps(operator)
    def run(*args: Any) -> Any:
        flat = [part for arg in args for part in (arg if isinstance(arg, list) else (arg,))]
        plan = plan_of(operator, *map(form, flat))
        here.known, here.noted = iter(plan) if plan else None, []
        try:
            result = operator(*args)
            if here.noted and not plan:
                plan[:] = here.noted
            return result
        finally:
            here.known = here.noted = None

    return run if torch.version.hip is None else operator


@lru_cache(maxsize=1024)
def plan_of(operator: Callable[..., Any], *forms: Any) -> list[Any]:
    """Return the launches of an operator for arguments of such forms; empty until they are known.

    Each is a kernel, what starts the one that was compiled of it, and its constants.
    """
    return []


def form(part: Any) -> Any:
    """Return what decides which kernels an argument needs: all about a tensor but its elements."""
    if not isinstance(part, Tensor):
        return part
    return part.shape, part.stride(), part.dtype, part.device, part.data_ptr() % 16


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Launch one kernel.

    Multiply-adds are not fused: every product is rounded, as in the functional form. Rows, steps
    and warps are such that no register is spilled, whatever the dtype, by Triton 3.6 and 3.8.
    """
    if here.known is not None:
        expected, start, constants = next(here.known)
        if expected is not kernel:
            raise RuntimeError(f"{kernel} is launched in place of {expected}")
        start(*args, *constants)
        return
    compiled = kernel[grid](*args, **meta, enable_fp_fusion=False)
    if compiled is None:  # interpreted, or held back by a hook: nothing is known
        here.noted = None
    elif here.noted is not None:
        constants = [meta[name] for name in kernel.arg_names[len(args) :]]
        here.noted.append((kernel, compiled[(*grid, 1, 1)[:3]], constants))


def parts(total: int, size: int) -> int:
    """Return how many parts of a size a total needs."""
    return -(-total // size)


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is not below a size."""
    return 1 << (size - 1).bit_length()


def chunks(*batch: Tensor) -> Iterator[list[Tensor]]:
    """Cut a batch's tensors into parts of at most `CHUNK_PIXELS` pixels, and at least one image."""
    count, step = len(batch[0]), max(CHUNK_PIXELS // batch[0].shape[-2:].numel(), 1)
    for start in range(0, count, step):
        yield [tensor if count <= step else tensor[start : start + step] for tensor in batch]
