"""What counts as an image and as a mask: validation, Pillow in and out, luma, black and white."""

import sys
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from anatpaste_aug.checks import MIN_SIDE

Array: TypeAlias = npt.NDArray[Any]
Mask: TypeAlias = npt.NDArray[np.bool_]
ImageLike: TypeAlias = "Array | Image.Image"
MaskLike: TypeAlias = Any  # what `as_mask` takes (array, Pillow image, torch tensor), or None
Window: TypeAlias = tuple[slice, slice]  # rows and columns

NAMES = ("uint8", "uint16", "int16", "int32", "float16", "float32", "float64")
DTYPES = frozenset(np.dtype(name) for name in NAMES)
PILLOW_MODES = {"L": "uint8", "RGB": "uint8", "I;16": "uint16", "I": "int32", "F": "float32"}
MAX_FLOAT = 1e30
LUMA = (0.299, 0.587, 0.114)


def as_array(image: Any) -> Array:
    """Return the pixels of `image` as a checked (H, W) or (H, W, 3) array, mostly without a copy.

    A channel axis of 1 is dropped. float16 becomes float32, in which it is computed.

    Raises
    ------
    TypeError
        If `image` is neither a NumPy array nor a Pillow image, or has another dtype or mode than
        those in `DTYPES` and `PILLOW_MODES`.
    ValueError
        If it has another shape, or a side under 16 pixels. Pixels are for `check_finite`.
    """
    if isinstance(image, Image.Image):
        if image.mode not in PILLOW_MODES:
            modes = ", ".join(PILLOW_MODES)
            raise TypeError(f"image must have a Pillow mode out of {modes}, got {image.mode!r}")
    elif not isinstance(image, np.ndarray) or isinstance(image, np.ma.MaskedArray):
        got = type(image).__name__
        raise TypeError(f"image must be a NumPy array or a Pillow image, got {got}")
    elif image.dtype not in DTYPES:
        raise TypeError(f"image must have a dtype out of {', '.join(NAMES)}, got {image.dtype}")
    array: Array = np.asarray(image)  # plain: np.matrix, say, has an arithmetic of its own
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    elif array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        raise ValueError(
            "image must have the shape (H, W), (H, W, 3), (H, W, 1) or (1, H, W), "
            f"got {array.shape}"
        )
    size = array.shape[:2]
    if min(size) < MIN_SIDE:
        raise ValueError(f"image must be at least {MIN_SIDE} pixels high and wide, got {size}")
    return array.astype(np.float32) if array.dtype == np.float16 else array


def check_finite(array: Array) -> None:
    """Check that no pixel is NaN, infinite or beyond 1e30, where sums and products overflow."""
    if array.dtype.kind == "f":
        # A NaN anywhere makes both extremes NaN, so that two reductions find every bad pixel.
        for extreme in (array.min(), array.max()):
            if not np.isfinite(extreme):
                raise ValueError(f"image must be finite, got {extreme}")
            if abs(extreme) > MAX_FLOAT:
                raise ValueError(f"image must lie within +-{MAX_FLOAT:g}, got {extreme:g}")


def as_kind_of(image: ImageLike, array: Array) -> ImageLike:
    """Return a result on `as_array(image)` as the caller's kind, shape and dtype of image."""
    if isinstance(image, Image.Image):
        return Image.fromarray(array)
    return array.reshape(image.shape).astype(image.dtype, copy=False)


def to_gray(array: Array) -> Array:
    """Reduce (H, W, 3) to (H, W) with ITU-R 601 luma, in the same dtype; pass (H, W) through.

    Integers use the 16-bit fixed-point weights of Pillow's ``convert("L")``, so that uint8 color
    gives Pillow's result and wider integers the same formula without loss.
    """
    if array.ndim == 2:
        return array
    if array.dtype.kind == "f":
        red, green, blue = (array[..., i] * array.dtype.type(LUMA[i]) for i in range(3))
        return red + green + blue  # in this order, each step rounded, on every machine
    # The weights add up to 2**16: 32 bits hold the sum of unsigned 16-bit products.
    wide = np.uint32 if array.dtype.kind == "u" else np.int64
    total = np.full(array.shape[:2], 0x8000, wide)
    for channel, weight in enumerate((19595, 38470, 7471)):
        total += np.multiply(array[..., channel], weight, dtype=wide)
    return (total >> 16).astype(array.dtype)


def black_and_white(array: Array) -> tuple[float, float]:
    """Return the values of black and white: what is outside a patch, and where jitter is clipped.

    Black is 0 for unsigned images, white 255 for uint8; else they are the image's own extremes.
    """
    black = 0 if array.dtype.kind == "u" else array.min().item()
    return black, 255 if array.dtype == np.uint8 else array.max().item()


def as_mask(mask: Any, shape: tuple[int, ...] | None = None, name: str = "mask") -> Mask:
    """Check a lung mask, against the image's height and width if given; return it as bool.

    Bool and integer arrays and torch tensors, also with a channel axis of 1, and Pillow images of
    mode 1 or L are taken; anything but 0 is lung.

    Raises
    ------
    TypeError
        If it is something else. Probabilities must be thresholded by the caller.
    ValueError
        If its shape is not that of the image, or of no image.
    """
    given = mask
    if isinstance(mask, Image.Image) and mask.mode in ("1", "L"):
        mask = np.asarray(mask)
    torch = sys.modules.get("torch")  # whoever brings a tensor has imported it
    if torch is not None and isinstance(mask, torch.Tensor):
        mask = mask.detach().as_subclass(torch.Tensor).cpu().numpy()
    plain = isinstance(mask, np.ndarray) and not isinstance(mask, np.ma.MaskedArray)
    if not plain or mask.dtype.kind not in "bui":
        got = given.dtype if plain or hasattr(given, "device") else type(given).__name__
        raise TypeError(f"{name} must be a bool or integer array, got {got}")
    mask = np.asarray(mask)
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[2]):
        mask = mask[0] if mask.shape[0] == 1 else mask[..., 0]
    if shape is not None and mask.shape != tuple(shape[:2]):
        raise ValueError(f"{name} must have the image's shape {tuple(shape[:2])}, got {mask.shape}")
    if mask.ndim != 2 or min(mask.shape) < MIN_SIDE:
        raise ValueError(
            f"{name} must have the shape (H, W), at least {MIN_SIDE} pixels each, got {mask.shape}"
        )
    return mask.astype(bool, copy=False)
