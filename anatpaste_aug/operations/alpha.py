"""What operations share that blend something in through an alpha."""

from typing import Any

import numpy as np
import numpy.typing as npt

from anatpaste_aug.checks import check_inside
from anatpaste_aug.images import Array, Mask, MaskLike, Window, as_mask
from anatpaste_aug.operations.base import Operation, P

Alpha = npt.NDArray[np.uint8]


class AlphaOperation(Operation[P]):
    """An operation that blends a canvas into the image: a subclass defines both, and the draw.

    Only the window that alpha may reach is worked on.
    """

    @staticmethod
    def alpha_window(params: Any, lungs: Mask) -> tuple[Window, Alpha]:
        """Return the part of the image that alpha may reach, and alpha there.

        An empty lung mask confines nothing.
        """
        raise NotImplementedError

    @staticmethod
    def canvas(image: Array, params: Any, window: Window, lungs: Mask) -> tuple[Array, Any, Any]:
        """Return what is blended in, inside the window, and the limits that no mean may leave."""
        raise NotImplementedError

    @classmethod
    def apply(cls, image: Array, params: Any, lungs: Mask | None) -> tuple[Array, Mask]:
        """Blend the canvas in, through alpha."""
        if lungs is None:
            lungs = np.zeros(image.shape[:2], bool)
        window, alpha = cls.alpha_window(params, lungs)
        pixels = image[window]
        canvas, low, high = cls.canvas(image, params, window, lungs)
        mixed = blend(pixels, canvas, alpha if image.ndim == 2 else alpha[..., None])
        if image.dtype.kind == "f":  # a weighted mean may leave the range of its terms by a bit
            np.clip(mixed, low, high, out=mixed)
        out: Array = image.copy()
        out[window] = mixed
        region = np.zeros(lungs.shape, bool)
        np.greater(alpha, 0, out=region[window])
        return out, region

    @classmethod
    def alpha(cls, params: Any, mask: MaskLike) -> Alpha:
        """Draw alpha, (H, W), for the image of a lung mask."""
        lungs = as_mask(mask)
        cls.check_params(params)
        alpha = np.zeros(lungs.shape, np.uint8)
        window, part = cls.alpha_window(params, lungs)
        alpha[window] = part
        return alpha


def check_center(params: Any, shape: tuple[int, ...]) -> None:
    """Check that the center of a paste lies inside the image."""
    got = f"center_x={params.center_x}, center_y={params.center_y}"
    check_inside("center must lie", params.center_x, params.center_y, shape, got)


def meet(center: int, reach: int, cell: int, length: int) -> slice:
    """Return the cells that lie within `reach` pixels of a center inside the image."""
    count = -(-length // cell)
    return slice(max((center - reach) // cell, 0), min((center + reach) // cell + 1, count))


def blend(image: Array, canvas: Array, alpha: Alpha) -> Array:
    """Return ``image * (1 - alpha / 255) + canvas * alpha / 255`` in the image's dtype.

    Integers are rounded to nearest. For uint8 this is Pillow's division by 255.
    """
    if image.dtype.kind == "f":
        weight = alpha.astype(image.dtype) / image.dtype.type(255)
        return image * (1 - weight) + canvas * weight
    wide = {1: np.uint16, 2: np.uint32 if image.dtype.kind == "u" else np.int64, 4: np.int64}
    dtype = wide[image.dtype.itemsize]
    total = image * (np.uint8(255) - alpha).astype(dtype) + canvas * alpha.astype(dtype)
    return ((total + dtype(127)) // dtype(255)).astype(image.dtype)
