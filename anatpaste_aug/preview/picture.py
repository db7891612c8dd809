"""The preview: what the augmentation does to some images, as one picture."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from anatpaste_aug.checks import as_generator
from anatpaste_aug.images import Array, Mask, as_array, to_gray
from anatpaste_aug.masks import Segment, find_lungs, lung_mask
from anatpaste_aug.operations import AnatPaste, Operation
from anatpaste_aug.operations.alpha import AlphaOperation

TILE = 256
LABEL = 18  # height of a line of text
LUNG_COLOR = (64, 200, 255)
REGION_COLOR = (255, 170, 40)


def titles(operation: Operation[Any] | None = None) -> tuple[str, ...]:
    """Say what the tiles of a row show."""
    kind = type(operation or AnatPaste())
    lungs = ("lung mask",) if kind.needs_lungs else ()
    alpha = "alpha" if issubclass(kind, AlphaOperation) else "region"
    return ("original", *lungs, alpha, f"{kind.__name__}, region", "another draw", "another draw")


def preview_row(
    name: str,
    image: Array,
    seed: int = 0,
    segment: Segment = lung_mask,
    operation: Operation[Any] | None = None,
) -> Image.Image:
    """Draw an image, its lung mask, alpha, the result with its region, and two more draws.

    Parameters
    ----------
    name : str
        Written below the row.
    image : (H, W) or (H, W, 3) ndarray
        Stretched from its own minimum to its maximum for display, unless it is uint8.
    seed : int, optional
        Seed of the draws.
    segment : callable, optional
        Makes the lung mask from the image.
    operation : anatpaste_aug.operations.Operation, optional
        What to draw, with its options; by default AnatPaste as published. One that does not use
        lungs has no tile for their mask; where there is no alpha, its region is shown.

    Returns
    -------
    row : Pillow image of mode RGB
        Tiles 256 pixels wide, into which the image is fitted; `titles` names them.

    Raises
    ------
    TypeError, ValueError
        If the image is not one that `anatpaste_aug.anatpaste` takes.
    """
    operation = operation or AnatPaste()
    image = as_array(image)
    mask = find_lungs(image, None, segment) if operation.needs_lungs else None
    rng = as_generator(seed)
    draws = [operation.sample(image.shape[:2], mask, rng) for _ in range(3)]
    (first, region), *others = (operation.perform(image, draw, mask) for draw in draws)
    alpha: Array = region * np.uint8(255)
    if isinstance(operation, AlphaOperation):
        alpha = operation.alpha(draws[0], mask)
    low, high = (0, 255) if image.dtype == np.uint8 else (image.min(), image.max())

    def tile(pixels: Array, outline: Mask | None = None, color: tuple[int, ...] = ()) -> Array:
        gray = (to_gray(pixels).astype(np.float64) - low) / max(float(high) - float(low), 1e-12)
        return draw_tile((gray * 255).astype(np.uint8), outline, color)

    tiles = [tile(image), draw_tile(alpha), tile(first, region, REGION_COLOR)]
    tiles += [tile(other) for other, _ in others]
    if mask is not None:
        tiles.insert(1, tile(image, mask, LUNG_COLOR))
    row = Image.fromarray(np.pad(np.hstack(tiles), ((0, LABEL), (0, 0), (0, 0))))
    label = f"{name}, {image.shape[1]} x {image.shape[0]} pixels, {image.dtype}"
    if mask is not None and not mask.any():
        label += ", no lung found: pasted anywhere"
    ImageDraw.Draw(row).text((4, row.height - LABEL + 3), label, fill="white")
    return row


def resize_square(image: Array, size: int) -> Array:
    """Squeeze an image to a square of `size` pixels, smoothed as for training, in its own dtype."""
    if image.shape[:2] == (size, size):
        return image
    if image.ndim == 3:
        return np.dstack([resize_square(image[..., channel], size) for channel in range(3)])
    exact = Image.fromarray(image.astype(np.float32))
    pixels = np.asarray(exact.resize((size, size), Image.Resampling.BILINEAR))
    return (pixels if image.dtype.kind == "f" else np.rint(pixels)).astype(image.dtype)


def stack_rows(rows: Sequence[Image.Image], columns: Sequence[str] | None = None) -> Image.Image:
    """Put the columns' titles (default: AnatPaste's) above the rows of at least one image."""
    pixels = np.vstack([np.asarray(row) for row in rows])
    sheet = Image.fromarray(np.pad(pixels, ((LABEL, 0), (0, 0), (0, 0))))
    for column, title in enumerate(columns or titles()):
        ImageDraw.Draw(sheet).text((TILE * column + 4, 3), title, fill="white")
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all; whatever else stands in its place is not replaced.

    Raises
    ------
    OSError
        If it cannot be written; what was there stays untouched.
    """
    if path.exists() and not path.is_file():  # a folder, or a device
        raise OSError(f"{path}: not a regular file")
    part = path.with_name(f".preview-{secrets.token_hex(8)}.tmp")
    try:
        with part.open("xb") as file:
            picture.save(file, Image.registered_extensions()[path.suffix.lower()])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def draw_tile(gray: Array, outline: Mask | None = None, color: tuple[int, ...] = ()) -> Array:
    """Scale uint8 pixels to the width of a tile (tall ones to its height), and outline a mask."""
    scale = TILE / max(gray.shape)
    height, width = (max(round(side * scale), 1) for side in gray.shape)
    size = (width, height)
    picture = np.zeros((height, TILE, 3), np.uint8)
    inner = picture[:, (TILE - width) // 2 :][:, :width]
    inner[:] = np.asarray(Image.fromarray(gray).resize(size, Image.Resampling.BILINEAR))[..., None]
    if outline is not None:
        mask = np.asarray(Image.fromarray(outline).resize(size, Image.Resampling.NEAREST))
        inner[mask & ~binary_erosion(mask, np.ones((3, 3)), border_value=1)] = color
    return picture
