"""The distributions' source for batches: torch, on the device where the batch lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anatpaste_aug.batch.params import stacked
from anatpaste_aug.batch.tensors import check_device
from anatpaste_aug.operations import Draws, Operation
from anatpaste_aug.operations.draws import Fields

BLOCK = 20  # as many as any operation here draws


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
        for i, word in enumerate(words):
            index = torch.where(chosen == i, known.index(word), index)
        return index

    def either(self, first: Callable[[], Fields], second: Callable[[], Fields]) -> Fields:
        """Call both functions, and choose for each element."""
        chosen, one, other = self.unit() < 0.5, self.tensors(first()), self.tensors(second())
        return {name: torch.where(chosen, value, other[name]) for name, value in one.items()}

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
        drawn = operation.draw(self, (shape[0], shape[1]), lungs)
        return kind(**self.tensors({**kind.defaults, **drawn}))
