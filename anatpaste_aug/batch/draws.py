"""The distributions' source for batches: torch, on the device where the batch lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from anatpaste_aug.batch.params import stacked
from anatpaste_aug.batch.tensors import check_device, span
from anatpaste_aug.operations import Draws, Operation
from anatpaste_aug.operations.draws import Fields

BLOCK = 20  # enough for one paste of a patch


class TorchDraws(Draws):
    """Independent draws, one for each element of a batch, on the batch's device.

    Parameters
    ----------
    images : Tensor
        The batch, or its masks: its length and device are used.
    generator : torch.Generator or None
        Source of the draws, on that device; None is torch's global one.

    Raises
    ------
    TypeError, ValueError
        If the generator is none, or of another device.
    """

    math = torch
    # Operations that are drawn whole, in a few launches, by a function of this source, the
    # operation and the masks; and the devices where that pays. The draws are the same.
    whole_draws: ClassVar[dict[Any, Callable[..., dict[str, Tensor]]]] = {}
    whole_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __init__(self, images: Tensor, generator: torch.Generator | None):
        if generator is not None:
            if not isinstance(generator, torch.Generator):
                raise TypeError(
                    f"generator must be a torch.Generator or None, got {type(generator).__name__}"
                )
            check_device("generator", generator, images.device)
        self.count, self.device, self.generator = images.shape[0], images.device, generator
        self.left: list[Tensor] = []
        self.words: dict[str, tuple[str, ...]] = {}  # of the params that are drawn
        self.kinds: dict[str, torch.dtype] = {}

    def unit(self) -> Tensor:
        """Draw float64 numbers; many at once, as every call of the generator costs a launch."""
        if not self.left:
            # torch.compile refuses a generator, even None, where the batch's size varies.
            source: Any = {} if self.generator is None else {"generator": self.generator}
            shape = (BLOCK, self.count)
            block = torch.rand(shape, dtype=torch.float64, device=self.device, **source)
            self.left = list(block.unbind())
        return self.left.pop()

    def pixel(self, lungs: Tensor) -> tuple[Tensor, Tensor]:
        """Draw rows and columns of True pixels of (B, H, W) masks."""
        ranks = lungs.flatten(1).cumsum(1, dtype=torch.int32)
        found = ranks[:, -1].long()
        chosen = self.integer((0, found.masked_fill(found == 0, ranks.shape[1]) - 1))
        ranked = torch.searchsorted(ranks, chosen[:, None].int() + 1)[:, 0]
        flat, width = torch.where(found == 0, chosen, ranked), lungs.shape[2]
        return flat // width, flat % width

    def choice(self, words: Sequence[str]) -> Tensor:
        """Draw words, by their index among all that the params' field may hold."""
        known = next((every for every in self.words.values() if {*words} <= {*every}), words)
        chosen: Tensor = self.integer((0, len(words) - 1))
        index = chosen
        if tuple(words) == tuple(known):
            return index
        for i, word in enumerate(words):
            index = torch.where(chosen == i, known.index(word), index)
        return index

    def either(self, *functions: Callable[[], Fields]) -> Fields:
        """Call all functions, and choose for each element."""
        chosen = self.integer((0, len(functions) - 1))
        fields = self.tensors(functions[0]())
        for i, function in enumerate(functions[1:], 1):
            mine, other = chosen == i, self.tensors(function())
            fields = {name: torch.where(mine, other[name], old) for name, old in fields.items()}
        return fields

    def half(self, lungs: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """Return four tensors of (B,), and the sides."""
        start, stop = span(lungs.any(1))
        middle = (start + stop) // 2
        left = x < middle
        columns = torch.arange(lungs.shape[2], device=lungs.device)
        inside = (columns < middle[:, None]) == left[:, None]
        found = lungs.flatten(1).any(1)[:, None, None]
        half = (lungs | ~found) & inside[:, None]
        return (*span(half.any(2)), *span(half.any(1)), 2 * left.long() - 1)

    def floor(self, value: Tensor) -> Tensor:
        """Round down to int64."""
        return value.floor().long()

    def whole(self, value: Tensor) -> Tensor:
        """Round to int64."""
        return value.round().long()

    def clip(self, value: Tensor, low: int, high: int) -> Tensor:
        """Cut to low..high."""
        return value.clamp(low, high)

    def tensors(self, fields: Fields) -> dict[str, Tensor]:
        """Make (B,) tensors of what was drawn, numbers and words among them."""
        out = {}
        for name, value in fields.items():
            if not isinstance(value, Tensor):
                number = self.words[name].index(value) if name in self.words else value
                kind = self.kinds[name]
                value = torch.full((self.count,), number, dtype=kind, device=self.device)
            out[name] = value
        return out

    def sample(self, operation: Operation[Any], shape: Sequence[int], lungs: Any) -> Any:
        """Draw an operation's params for images of this shape, stacked."""
        kind = stacked(operation.params)
        self.words, self.kinds = kind.words, kind.kinds
        if type(operation) in self.whole_draws and self.device.type in self.whole_on:
            return kind(**self.whole_draws[type(operation)](self, operation, lungs))
        drawn = operation.draw(self, (shape[0], shape[1]), lungs)
        return kind(**self.tensors({**kind.defaults, **drawn}))
