"""Triton's interpreter with the programs of a launch at the same time, as on a GPU.

By itself it runs one program after the other, so that a race between them cannot be seen. Needs
what `benchmarks.interpreter` needs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from threading import Lock, Thread
from typing import Any

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton.runtime.interpreter import TensorHandle

STATES = 8  # of a tensor that are kept


class Interleaved:
    """Run the programs of a launch in random order, taking turns at loads, stores and atomics.

    Parameters
    ----------
    seed : int
        The same seed gives the same order.
    alive : int
        Programs at a time; with 1 they run one after the other.
    split : bool
        Divide the lanes of an instruction into groups, with turns in between.
    older : float
        Share of loaded lanes that get what their place held earlier in the launch, if a store or an
        atomic has changed the tensor since. On a GPU they may: caches are not kept up to date, and
        what a program has stored itself may be loaded by another of its threads.
    reverse : bool
        Begin with the last program, then the one before it, and so on.

    One thing that a GPU does is left out: the lanes of a program do one instruction after the other
    together.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        alive: int = 24,
        split: bool = True,
        older: float = 0.5,
        reverse: bool = False,
    ) -> None:
        self.alive, self.split, self.older, self.reverse = alive, split, older, reverse
        self.turns = self.outdated = 0  # turns taken, and lanes that got older values
        self._rng = np.random.default_rng(seed)
        self._paused: list[Lock] = []
        self._failures: list[BaseException] = []
        # The memory of the launch's tensors by where it begins, and earlier states of it.
        self._memory: dict[int, torch.Tensor] = {}
        self._states: dict[int, list[torch.Tensor]] = {}
        self._starts = np.zeros(0, np.uint64)
        self._kept: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Interleaved:
        """Begin to interleave."""
        builder = interpreter.InterpreterBuilder
        self._replace(interpreter.GridExecutor, "__call__", self._launch)
        self._replace(builder, "create_masked_load", self._load)
        self._replace(builder, "create_masked_store", self._store)
        self._replace(builder, "create_atomic_rmw", self._change)
        return self

    def __exit__(self, *_: object) -> None:
        """Interleave no more."""
        for owner, name, original in self._kept:
            setattr(owner, name, original)

    def _replace(self, owner: Any, name: str, other: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        self._kept.append((owner, name, original))
        setattr(owner, name, lambda *args, **kwargs: other(original, *args, **kwargs))

    # Each program runs in a thread, and one thread at a time: the one whose turn it is.

    def _launch(self, original: Any, executor: Any, *args: Any, **kwargs: Any) -> None:
        nothing = torch.tensor([], dtype=torch.uint8)
        storages = [arg.untyped_storage() for arg in args if isinstance(arg, torch.Tensor)]
        self._memory = {one.data_ptr(): nothing.new().set_(one) for one in storages}
        self._starts = np.array(sorted(self._memory), np.uint64)
        self._states = {}
        executor.fn = _Collector(executor.fn, self._run)
        original(executor, *args, **kwargs)

    def _run(self, programs: list[Callable[[], None]]) -> None:
        if not self.reverse:
            self._rng.shuffle(programs)
        self._failures = []
        turns = [Lock() for _ in programs[: self.alive]]
        for turn in turns:
            self._pause(turn)
        threads = [Thread(target=self._work, args=(programs, turn)) for turn in turns[1:]]
        for thread in threads:
            thread.start()
        self._wake_one()
        self._work(programs, turns[0])
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _work(self, programs: list[Callable[[], None]], turn: Lock) -> None:
        turn.acquire()
        try:
            while programs and not self._failures:
                programs.pop()()
        except BaseException as failure:
            self._failures.append(failure)
        self._wake_one()

    def _pause(self, turn: Lock) -> None:
        turn.acquire()
        self._paused.append(turn)

    def _wake_one(self) -> None:
        if self._paused:
            self._paused.pop(self._rng.integers(len(self._paused))).release()

    def _take_turns(self) -> None:
        """Let a program go on, which may be this one."""
        if not self._paused:
            return
        index, turn = interpreter.interpreter_builder.grid_idx, Lock()
        self._pause(turn)
        self._wake_one()
        turn.acquire()
        if self._failures:
            raise self._failures[0]
        self.turns += 1
        interpreter.interpreter_builder.grid_idx = index

    # Instructions.

    def _groups(self, mask: Any) -> Iterator[TensorHandle]:
        """Deal the lanes of a mask to groups, and let others go on before each."""
        lanes = mask.data != 0  # the interpreter leaves some conditions as 0 and 1 of int32
        count = self._rng.integers(1, 4) if self.split and lanes.size > 1 else 1
        dealt = self._rng.integers(count, size=lanes.shape)
        for number in range(count):
            self._take_turns()
            yield TensorHandle(lanes & (dealt == number), tl.int1)

    def _load(
        self, original: Any, builder: Any, pointer: Any, mask: Any, other: Any, *rest: Any
    ) -> Any:
        for group in self._groups(mask):
            other = original(builder, self._outdate(pointer, group), group, other, *rest)
        return other

    def _store(
        self, original: Any, builder: Any, pointer: Any, value: Any, mask: Any, *rest: Any
    ) -> None:
        for group in self._groups(mask):
            self._keep_state(pointer, group)
            original(builder, pointer, value, group, *rest)

    def _change(
        self,
        original: Any,
        builder: Any,
        kind: Any,
        pointer: Any,
        value: Any,
        mask: Any,
        *rest: Any,
    ) -> Any:
        found = np.zeros_like(value.data)
        for group in self._groups(mask):
            self._keep_state(pointer, group)
            part = original(builder, kind, pointer, value, group, *rest)
            found = np.where(group.data, part.data, found)
        return TensorHandle(found, value.dtype.scalar)

    # Memory.

    def _start(self, pointer: Any, group: Any) -> int:
        """Return where the tensor's memory begins into which a group points, 0 if it is empty."""
        places = pointer.data[group.data]
        if not places.size:
            return 0
        return int(self._starts[np.searchsorted(self._starts, places[0], "right") - 1])

    def _keep_state(self, pointer: Any, group: Any) -> None:
        """Keep the memory that a group is about to change."""
        start = self._start(pointer, group)
        if start and self.older:
            states = self._states.setdefault(start, [])
            if len(states) == STATES:
                states.pop(self._rng.integers(STATES))
            states.append(self._memory[start].clone())

    def _outdate(self, pointer: Any, group: Any) -> Any:
        """Let some lanes point to their place in an earlier state of the memory."""
        start = self._start(pointer, group)
        states = self._states.get(start)
        if not states:
            return pointer
        away = np.array([0, *(state.data_ptr() - start for state in states)])
        shape = pointer.data.shape
        chosen = group.data & (self._rng.random(shape) < self.older)
        self.outdated += np.count_nonzero(chosen)
        which = self._rng.integers(1, len(away), shape) * chosen
        places = pointer.data.astype(np.int64) + away[which]
        return TensorHandle(places.astype(np.uint64), pointer.dtype)


class _Collector:
    """Stands for a kernel's function: collects its programs, and runs all with the last one."""

    def __init__(self, kernel: Any, run: Callable[[list[Callable[[], None]]], None]) -> None:
        self.__name__, self.__globals__ = kernel.__name__, kernel.__globals__
        self.__signature__ = inspect.signature(kernel)
        self._kernel, self._run = kernel, run
        self._programs: list[Callable[[], None]] = []

    def __call__(self, **args: Any) -> None:
        """Take the program that the interpreter has come to."""
        builder = interpreter.interpreter_builder
        index = builder.grid_idx

        def program() -> None:
            builder.grid_idx = index
            self._kernel(**args)

        self._programs.append(program)
        if len(self._programs) == math.prod(builder.grid_dim):
            self._run(self._programs)
