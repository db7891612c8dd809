"""Triton's interpreter, made faster, and what it loads and stores.

It runs kernels on the CPU, one program after the other, in NumPy. Needs ``TRITON_INTERPRET=1`` in
the environment before anything imports Triton.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import triton
import triton.language
import triton.runtime.interpreter as interpreter
from torch import Tensor


class _Patched:
    """Stands for the patches of a module, which are never taken back."""

    def restore(self) -> None:
        """Do nothing."""


def patch_once() -> None:
    """Let the interpreter prepare each module once, and spare it checks that nobody reads.

    By default it computes all whole numbers twice, for assertions that are left out. `Watch` may
    ask for them.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("TRITON_INTERPRET must be 1 before Triton is imported")
    original = interpreter._patch_lang
    if getattr(original, "once", False):
        return
    patched: set[int] = set()
    builder = interpreter.InterpreterBuilder
    splat = builder.create_splat

    def spread(self: Any, kind: Any, value: Any) -> Any:
        # What a comparison gives is int32 by name, and turned into it here; Triton 3.9 then refuses
        # it as a mask.
        if value.data.dtype == np.bool_:
            value = interpreter.TensorHandle(value.data, triton.language.int1)
        return splat(self, kind, value)

    def patch(function: Any) -> _Patched:
        if id(function.__globals__) not in patched:
            original(function)
            # Triton 3.6 calls int() of an array of one number, which NumPy from 2.4 on refuses.
            triton.language.tensor.__index__ = lambda tensor: tensor.handle.data.item()
            patched.add(id(function.__globals__))
        return _Patched()

    patch.once = True  # type: ignore[attr-defined]
    builder.create_splat = spread
    check_overflow(False)
    interpreter._patch_lang = patch


def check_overflow(wanted: bool) -> None:
    """Let sums and products of whole numbers that leave their 32 bits raise, or not."""
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, debug=wanted, sanitize_overflow=wanted)


class Watch:
    """Watch kernels run: the bytes of their loads and stores, and that they stay in their tensors.

    Atomics count as a load and a store, masked lanes not at all. A place outside the tensors that
    the kernel was given raises `IndexError`; with ``overflow=True``, which takes twice the time, a
    sum or product of 32 bits that leaves them raises `AssertionError`.
    """

    def __init__(self, overflow: bool = False) -> None:
        self.overflow = overflow
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._kernel = ""
        self._starts = self._ends = np.zeros(0, np.uint64)
        self._kept: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Watch:
        """Begin to watch."""
        check_overflow(self.overflow)
        builder = interpreter.InterpreterBuilder
        self._wrap(interpreter.GridExecutor, "__call__", self._launch)
        self._wrap(builder, "create_masked_load", lambda _, p, m, *__: self._see(p, m, 1))
        self._wrap(builder, "create_masked_store", lambda _, p, __, m, *___: self._see(p, m, 1))
        self._wrap(builder, "create_atomic_rmw", lambda _, __, p, ___, m, *____: self._see(p, m, 2))
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        check_overflow(False)
        for owner, name, original in self._kept:
            setattr(owner, name, original)

    def _wrap(self, owner: Any, name: str, before: Any) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            before(*args)
            return original(*args, **kwargs)

        self._kept.append((owner, name, original))
        setattr(owner, name, call)

    def _launch(self, executor: Any, *args: Any) -> None:
        self._kernel = executor.fn.__name__
        self.launches[self._kernel] += 1
        storages = [arg.untyped_storage() for arg in args if isinstance(arg, Tensor)]
        ranges = sorted({(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages})
        self._starts, self._ends = np.array(ranges, np.uint64).reshape(-1, 2).T.copy()

    def _see(self, pointer: Any, mask: Any, times: int) -> None:
        width = max(pointer.get_element_ty().primitive_bitwidth // 8, 1)
        # The interpreter leaves some conditions as 0 and 1 of int32.
        places, active = np.broadcast_arrays(pointer.data, mask.data != 0)
        places = places[active]
        self.bytes[self._kernel] += times * places.size * width
        owner = np.searchsorted(self._starts, places, "right")
        inside = owner > 0
        inside[inside] = places[inside] + np.uint64(width) <= self._ends[owner[inside] - 1]
        if not inside.all():
            raise IndexError(f"{self._kernel} leaves its tensors")


def is_interpreting() -> bool:
    """Tell whether kernels are interpreted in this process."""
    return bool(triton.knobs.runtime.interpret)
