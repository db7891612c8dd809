"""The preview: what the augmentation does to some images, as one picture."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from anatpaste_aug.checks import as_generator
from anatpaste_aug.images import Array, Mask, MaskLike, as_array, to_gray
from anatpaste_aug.masks import find_lungs
from anatpaste_aug.operations import AnatPaste, Operation
from anatpaste_aug.operations.alpha import AlphaOperation

TILE = 512
COLUMNS = 3
LABEL = 28  # height of a line of text
FONT = 18
BAR = (64, 64, 64)
LUNG_COLOR = (64, 200, 255)
REGION_COLOR = (255, 170, 40)


def preview_row(
    name: str,
    image: Array,
    seed: int = 0,
    mask: MaskLike = None,
    operation: Operation[Any] | None = None,
) -> Image.Image:
    """Draw an image, its lung mask, alpha, and three draws, with the regions that they change.

    Parameters
    ----------
    name : str
        Written above the tiles.
    image : (H, W) or (H, W, 3) ndarray
        Stretched from its own minimum to its maximum for display, unless it is uint8.
    seed : int, optional
        Seed of the draws.
    mask : (H, W) array, optional
        The lung mask; by default that of `anatpaste_aug.lung_mask`.
    operation : anatpaste_aug.operations.Operation, optional
        What to draw, with its options; by default AnatPaste as published. One that does not use
        lungs has no tile for their mask; where there is no alpha, its region is shown.

    Returns
    -------
    row : Pillow image of mode RGB
        Two lines of three tiles 512 pixels wide, into which the image is fitted, with their titles.

    Raises
    ------
    TypeError, ValueError
        If the image or the mask is not one that `anatpaste_aug.anatpaste` takes.
    """
    operation = operation or AnatPaste()
    image = as_array(image)
    lungs = find_lungs(image, mask) if operation.needs_lungs else None
    rng = as_generator(seed)
    draws = [operation.sample(image.shape[:2], lungs, rng) for _ in range(3)]
    results = [operation.perform(image, draw, lungs) for draw in draws]
    low, high = (0, 255) if image.dtype == np.uint8 else (image.min(), image.max())

    def tile(pixels: Array, outline: Mask | None = None, color: tuple[int, ...] = ()) -> Array:
        gray = (to_gray(pixels).astype(np.float64) - low) / max(float(high) - float(low), 1e-12)
        return draw_tile((gray * 255).astype(np.uint8), outline, color)

    tiles = [("original", tile(image))]
    if lungs is not None:
        tiles.append(("lung mask", tile(image, lungs, LUNG_COLOR)))
    if isinstance(operation, AlphaOperation):
        tiles.append(("alpha", draw_tile(operation.alpha(draws[0], lungs))))
    else:
        tiles.append(("region", draw_tile(results[0][1] * np.uint8(255))))
    titles = (f"{type(operation).__name__}, region outlined", "another draw", "another draw")
    for title, (result, region) in zip(titles, results, strict=True):
        tiles.append((title, tile(result, region, REGION_COLOR)))

    height = len(tiles[0][1]) + LABEL
    row = Image.new("RGB", (COLUMNS * TILE, 2 * height + LABEL))
    draw = ImageDraw.Draw(row)
    draw.rectangle((0, 0, row.width, LABEL - 1), BAR)
    label = f"{name}, {image.shape[1]} x {image.shape[0]} pixels, {image.dtype}"
    if lungs is not None and not lungs.any():
        label += ", no lung found: pasted anywhere"
    draw.text((6, 3), label, font_size=FONT)
    for number, (title, pixels) in enumerate(tiles):
        x, y = number % COLUMNS * TILE, number // COLUMNS * height + LABEL
        draw.text((x + 6, y + 3), title, font_size=FONT)
        row.paste(Image.fromarray(pixels), (x, y + LABEL))
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


def save_rows(rows: Sequence[Image.Image], path: Path) -> None:
    """Write rows as a picture, whole or not at all; only a file is replaced.

    Raises
    ------
    OSError
        If it cannot be written; what was there stays untouched.
    """
    if path.exists() and not path.is_file():  # a folder, or a device
        raise OSError(f"{path}: not a regular file")
    picture = Image.fromarray(np.vstack([np.asarray(row) for row in rows]))
    part = path.with_name(f".preview-{secrets.token_hex(8)}.tmp")
    try:
        with part.open("xb") as file:
            picture.save(file, Image.registered_extensions()[path.suffix.lower()])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def draw_tile(
    gray: Array, outline: Mask | None = None, color: tuple[int, ...] = (), side: int = TILE
) -> Array:
    """Scale uint8 pixels to the width of a tile (tall ones to its height), and outline a mask."""
    scale = side / max(gray.shape)
    height, width = (max(round(length * scale), 1) for length in gray.shape)

    def fit(pixels: Array) -> Array:
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))

    picture = np.zeros((height, side, 3), np.uint8)
    inner = picture[:, (side - width) // 2 :][:, :width]
    inner[:] = fit(gray)[..., None]
    if outline is not None:
        mask = fit(outline * np.uint8(255)) > (127 if scale > 1 else 0)  # smooth; or else complete
        inner[mask & ~binary_erosion(mask, np.ones((3, 3)), border_value=1)] = color
    return picture
