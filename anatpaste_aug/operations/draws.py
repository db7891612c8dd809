"""What is random: each distribution once, over a source of random numbers, NumPy's or torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from anatpaste_aug.images import Mask, box, span

Drawn: TypeAlias = Any  # a number (NumPy), or one for each image of a batch: a (B,) tensor (torch)
Ends: TypeAlias = Any  # a pair (low, high), of plain numbers or of what was drawn
Fields: TypeAlias = dict[str, Drawn]


class Draws:
    """Independent draws for the parameters of a paste, from a NumPy generator.

    An operation draws from here alone, and so serves single images and batches: for one image a
    draw is a number; for a batch (`anatpaste_aug.batch.TorchDraws`, which gives `math` and the
    first eight methods anew) it is a (B,) tensor. The rest follows from them.

    Attributes
    ----------
    math : module
        Holds ``sqrt, exp, cos, sin, ceil`` for what was drawn.
    """

    math: Any = math

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def unit(self) -> Drawn:
        """Draw a real number from [0, 1)."""
        return self.rng.random()

    def pixel(self, lungs: Any) -> tuple[Drawn, Drawn]:
        """Draw a True pixel of a mask, or any pixel if there is none: row and column."""
        area = np.count_nonzero(lungs)
        chosen = self.integer((0, (area or lungs.size) - 1))
        flat = nth_pixel(lungs, chosen) if area else chosen
        return flat // lungs.shape[1], flat % lungs.shape[1]

    def choice(self, words: Sequence[str]) -> Drawn:
        """Draw one of some words, each equally likely."""
        return words[self.integer((0, len(words) - 1))]

    def either(self, *functions: Callable[[], Fields]) -> Fields:
        """Draw what one of some functions draws, each equally likely; all give the same names."""
        return functions[self.integer((0, len(functions) - 1))]()

    def half(self, lungs: Any, x: Drawn) -> tuple[Drawn, ...]:
        """Return the box of the lungs in that half, left or right, which holds column `x`.

        The halves are those of the box of both lungs; without lungs, of the image. Returns top,
        bottom, left, right, the two ends not included, and 1 for the left half, -1 for the right.
        """
        columns = span(lungs.any(0))
        middle = (columns.start + columns.stop) // 2
        left = x < middle
        rows, columns = box(lungs[:, :middle] if left else lungs[:, middle:])
        before = 0 if left else middle
        ends = (before + columns.start, before + columns.stop)
        return rows.start, rows.stop, *ends, 1 if left else -1

    def floor(self, value: Drawn) -> Drawn:
        """Round down to a whole number."""
        return math.floor(value)

    def whole(self, value: Drawn) -> Drawn:
        """Round to the nearest whole number, halves to even."""
        return round(value)

    def clip(self, value: Drawn, low: int, high: int) -> Drawn:
        """Cut to low..high."""
        return min(max(value, low), high)

    def uniform(self, ends: Ends) -> Drawn:
        """Draw a real number from [low, high)."""
        low, high = ends
        return low + (high - low) * self.unit()

    def log_uniform(self, ends: Ends) -> Drawn:
        """Draw a number whose logarithm is uniform."""
        return self.math.exp(self.uniform((math.log(ends[0]), math.log(ends[1]))))

    def integer(self, ends: Ends) -> Drawn:
        """Draw a whole number from low..high, both included; they may be drawn themselves."""
        low, high = ends
        return low + self.floor((high - low + 1) * self.unit())

    def jitter(self, amount: float) -> Fields:
        """Draw the factors of a patch's colour jitter."""
        ends = (1 - amount, 1 + amount)
        return {"brightness": self.uniform(ends), "contrast": self.uniform(ends)}

    def crop(self, shape: tuple[int, int], scale: Ends, ratio: Ends) -> Fields:
        """Draw a patch inside an image: its area as a share, its aspect, its place."""
        height, width = shape
        area = self.uniform(scale) * (height * width)
        aspect = self.log_uniform(ratio)
        patch_width = self.clip(self.whole(self.math.sqrt(area * aspect)), 1, width)
        patch_height = self.clip(self.whole(self.math.sqrt(area / aspect)), 1, height)
        return {
            "crop_x": self.integer((0, width - patch_width)),
            "crop_y": self.integer((0, height - patch_height)),
            "width": patch_width,
            "height": patch_height,
        }


def nth_pixel(mask: Mask, n: int) -> int:
    """Return ``np.flatnonzero(mask)[n]``, by halving: counting is faster than listing pixels."""
    flat = mask.ravel()
    start, stop = 0, flat.size
    while stop - start > 4096:
        middle = (start + stop) // 2
        before = int(np.count_nonzero(flat[start:middle]))
        if n < before:
            stop = middle
        else:
            n -= before
            start = middle
    return start + int(np.flatnonzero(flat[start:stop])[n])
