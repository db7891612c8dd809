"""A GPU that is not there, for Triton: kernels are compiled for it, and launched into nothing.

Tensors stay on the CPU. What is compiled lies in Triton's cache, where the same versions on a
machine with such a GPU find it.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver


class Card:
    """Stands for a driver of Triton's: an NVIDIA GPU of a compute capability."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.launches: Counter[str] = Counter()
        self.utils = types.SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 2**30},
            load_binary=lambda *args: (object(), 0, 0, 0, 2**10),
        )

    def get_current_target(self) -> GPUTarget:
        """Return what kernels are compiled for."""
        return self.target

    def get_current_device(self) -> int:
        """Return the first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default one."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return where tensors lie, really."""
        return torch.device("cpu")

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Return what launches a compiled kernel: nothing."""
        return lambda *args: None


@contextmanager
def card(capability: int = 90) -> Iterator[Card]:
    """Let Triton take a GPU of this compute capability for the active one.

    Raises
    ------
    RuntimeError
        If kernels are interpreted in this process.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not launched")
    before, pretended = driver._active, Card(capability)
    driver.set_active(pretended)
    try:
        yield pretended
    finally:
        driver._active = before
