"""Draw the picture of the opacities: ``python docs/gallery.py``."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.preview.picture import REGION_COLOR

TILE = 192
SEEDS = {"consolidation": 3, "haze": 4, "nodule": 7, "effusion": 22}


def tile(pixels: np.ndarray) -> np.ndarray:
    """Bring an image or a mask to the size of a tile."""
    return np.asarray(Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BOX))


columns = []
for kind, seed in SEEDS.items():
    image, mask = ap.lung_crop(phantom_radiograph(768, rng=seed), square=True, return_mask=True)
    pasted, region = ap.opacity(image, seed, mask=mask, kinds=kind, return_mask=True)
    rows = np.concatenate([tile(image), tile(pasted), tile(pasted)]) // 6 * 6  # for a small file
    column = np.stack([rows] * 3, axis=-1)
    where = tile(region)
    column[2 * TILE :][where & ~binary_erosion(where)] = REGION_COLOR
    columns.append(column)
picture = Image.fromarray(np.concatenate(columns, axis=1))
draw = ImageDraw.Draw(picture)
draw.fontmode = "1"  # no shades
for number, kind in enumerate(SEEDS):
    draw.text((TILE * number + 5, 4), kind, fill="white")
for number, title in enumerate(("before", "after", "where")):
    draw.text((5, TILE * number + TILE - 15), title, fill="white")
colors, index = np.unique(np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True)
small = Image.fromarray(index.reshape(picture.height, picture.width).astype(np.uint8), "P")
small.putpalette(colors.tobytes())
small.save(Path(__file__).parent / "opacities.png", optimize=True)
