"""What is random: each distribution once, over a source of random numbers."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from anatpaste_aug.images import Mask

Ends: TypeAlias = Any  # a pair (low, high), as options are kept
Item = TypeVar("Item")


class Sampler:
    """Independent draws for the parameters of a paste.

    Parameters
    ----------
    source : numpy.random.Generator
        Or anything else whose ``random()`` draws from [0, 1).
    """

    def __init__(self, source: Any):
        self.source = source

    def uniform(self, ends: Ends) -> float:
        """Draw a real number from [low, high)."""
        low, high = ends
        return float(low + (high - low) * self.source.random())

    def log_uniform(self, ends: Ends) -> float:
        """Draw a number whose logarithm is uniform."""
        return math.exp(self.uniform((math.log(ends[0]), math.log(ends[1]))))

    def integer(self, ends: Ends) -> int:
        """Draw a whole number from low..high, both included."""
        low, high = int(ends[0]), int(ends[1])
        return low + math.floor((high - low + 1) * self.source.random())

    def choice(self, items: Sequence[Item]) -> Item:
        """Draw one of some items, each equally likely."""
        return items[self.integer((0, len(items) - 1))]

    def pixel(self, mask: Mask) -> tuple[int, int]:
        """Draw a True pixel of a mask, or any pixel if there is none: row and column."""
        area = int(np.count_nonzero(mask))
        chosen = self.integer((0, (area or mask.size) - 1))
        row, column = divmod(nth_pixel(mask, chosen) if area else chosen, mask.shape[1])
        return row, column

    def jitter(self, amount: float) -> dict[str, Any]:
        """Draw the factors of a patch's color jitter: `brightness` and `contrast`."""
        ends = (1 - amount, 1 + amount)
        return {"brightness": self.uniform(ends), "contrast": self.uniform(ends)}

    def crop(self, shape: tuple[int, int], scale: Ends, ratio: Ends) -> dict[str, Any]:
        """Draw a patch inside an image: its area as a share, its aspect, its place.

        Return `crop_x`, `crop_y`, `width` and `height`.
        """
        height, width = shape
        area, aspect = self.uniform(scale) * (height * width), self.log_uniform(ratio)
        patch_width = min(max(round(math.sqrt(area * aspect)), 1), width)
        patch_height = min(max(round(math.sqrt(area / aspect)), 1), height)
        x, y = self.corner(shape, patch_width, patch_height)
        return {"crop_x": x, "crop_y": y, "width": patch_width, "height": patch_height}

    def corner(self, shape: tuple[int, int], width: int, height: int) -> tuple[int, int]:
        """Draw where a box inside an image begins, x and y: 0 where the box is larger."""
        x = self.integer((0, max(shape[1] - width, 0)))
        return x, self.integer((0, max(shape[0] - height, 0)))


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
