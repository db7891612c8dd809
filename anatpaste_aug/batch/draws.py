"""The distributions' source for batches: torch, on the device where the batch lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anatpaste_aug.batch.params import stacked
from anatpaste_aug.batch.tensors import check_device, span
from anatpaste_aug.operations import Draws, Operation
from anatpaste_aug.operations.draws import Fields

BLOCK = 16  # enough for one paste of a patch


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

    def unit(self) -> Tensor:
        """Draw float64 numbers; many at once, as every call of the generator costs a launch."""
        if not self.left:
            shape, kind = (BLOCK, self.count), torch.float64
            block = torch.rand(shape, dtype=kind, device=self.device, generator=self.generator)
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
        """Draw words by their index."""
        index: Tensor = self.integer((0, len(words) - 1))
        return index

    def word(self, word: str, words: Sequence[str]) -> int:
        """Return its index."""
        return words.index(word)

    def either(self, *functions: Callable[[], Fields]) -> Fields:
        """Call all functions, and choose for each element."""
        chosen = self.integer((0, len(functions) - 1))
        fields = functions[0]()
        for i, function in enumerate(functions[1:], 1):
            mine, other = chosen == i, function()
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

    def sample(self, operation: Operation[Any], shape: Sequence[int], lungs: Any) -> Any:
        """Draw an operation's params for images of this shape, stacked."""
        return stacked(operation.params)(
            **{
                name: value
                if isinstance(value, Tensor)
                else torch.full((self.count,), value, device=self.device)
                for name, value in operation.draw(self, (shape[0], shape[1]), lungs).items()
            }
        )
