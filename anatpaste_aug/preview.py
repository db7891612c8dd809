"""The preview: what the augmentation does to some images, as one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from anatpaste_aug.checks import as_generator
from anatpaste_aug.disk import replacing
from anatpaste_aug.images import Array, Mask, as_array, to_grey
from anatpaste_aug.lungs import Segment, find_lungs, lung_mask
from anatpaste_aug.operations.anatpaste import AnatPaste, paste_alpha
from anatpaste_aug.operations.base import Operation
from anatpaste_aug.operations.opacity import Opacity, opacity_alpha

TILE = 256
LABEL = 18  # height of a line of text
LUNG_COLOUR = (64, 200, 255)
REGION_COLOUR = (255, 170, 40)
ALPHAS: dict[type, Callable[..., Array]] = {AnatPaste: paste_alpha, Opacity: opacity_alpha}


def titles(operation: Operation[Any] | None = None) -> tuple[str, ...]:
    """Say what the tiles of a row show."""
    kind = type(operation or AnatPaste())
    lungs = ("lung mask",) if kind.needs_lungs else ()
    alpha = "alpha" if kind in ALPHAS else "region"
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
        What to draw, with its options; by default AnatPaste as published. Without interest in the
        lungs it has no tile for their mask; where there is no alpha, its region is shown.

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
    draw_alpha = ALPHAS.get(type(operation))
    alpha = draw_alpha(draws[0], mask) if draw_alpha else region * np.uint8(255)
    low, high = (0, 255) if image.dtype == np.uint8 else (image.min(), image.max())

    def tile(pixels: Array, outline: Mask | None = None, colour: tuple[int, ...] = ()) -> Array:
        grey = (to_grey(pixels).astype(np.float64) - low) / max(float(high) - float(low), 1e-12)
        return draw_tile((grey * 255).astype(np.uint8), outline, colour)

    tiles = [
        tile(image),
        *([] if mask is None else [tile(image, mask, LUNG_COLOUR)]),
        draw_tile(alpha),
        tile(first, region, REGION_COLOUR),
        *(tile(other) for other, _ in others),
    ]
    strip = np.zeros((LABEL, TILE * len(tiles), 3), np.uint8)
    row = Image.fromarray(np.concatenate([np.concatenate(tiles, axis=1), strip]))
    label = f"{name}, {image.shape[1]} x {image.shape[0]} pixels, {image.dtype}"
    if mask is not None and not mask.any():
        label += ", no lung found: pasted anywhere"
    ImageDraw.Draw(row).text((4, row.height - LABEL + 3), label, fill="white")
    return row


def resize_square(image: Array, size: int) -> Array:
    """Squeeze an image to a square of `size` pixels, smoothed as for training, in its own dtype."""
    if image.shape[:2] == (size, size):
        return image
    channels = image.reshape(*image.shape[:2], -1)
    out = np.empty((size, size, channels.shape[2]), image.dtype)
    for channel in range(channels.shape[2]):
        exact = Image.fromarray(channels[..., channel].astype(np.float32))
        pixels = np.asarray(exact.resize((size, size), Image.Resampling.BILINEAR))
        out[..., channel] = pixels if image.dtype.kind == "f" else np.rint(pixels)
    return out.reshape(size, size, *image.shape[2:])


def stack_rows(rows: Sequence[Image.Image], columns: Sequence[str] | None = None) -> Image.Image:
    """Put the columns' titles (default: AnatPaste's) above the rows of at least one image."""
    sheet = Image.new("RGB", (rows[0].width, LABEL + sum(row.height for row in rows)))
    for column, title in enumerate(columns or titles()):
        ImageDraw.Draw(sheet).text((TILE * column + 4, 3), title, fill="white")
    top = LABEL
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture that appears whole or not at all."""
    with replacing(path) as file:
        picture.save(file, Image.registered_extensions()[path.suffix.lower()])


def draw_tile(
    grey: npt.NDArray[np.uint8], outline: Mask | None = None, colour: tuple[int, ...] = ()
) -> Array:
    """Scale a picture to the width of a tile (a tall one to its height), and outline a mask."""
    height, width = grey.shape
    scale = TILE / max(width, height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    picture = np.zeros((size[1], TILE, 3), np.uint8)
    inner = picture[:, (TILE - size[0]) // 2 :][:, : size[0]]
    inner[:] = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))[..., None]
    if outline is not None:
        mask = np.asarray(Image.fromarray(outline).resize(size, Image.Resampling.NEAREST))
        inner[mask & ~binary_erosion(mask, np.ones((3, 3)), border_value=1)] = colour
    return picture
