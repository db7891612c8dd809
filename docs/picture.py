"""Draw the README's picture: ``python docs/picture.py``."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.preview.picture import LUNG_COLOR, REGION_COLOR, draw_tile

image = phantom_radiograph(256, rng=5)
mask = ap.lung_mask(image)
pasted, region = ap.anatpaste(image, rng=5, return_mask=True)
tiles = {
    "before": draw_tile(image, side=256),
    "after": draw_tile(pasted, side=256),
    "where": draw_tile(pasted, region, REGION_COLOR, side=256),
    "lung mask": draw_tile(image, mask, LUNG_COLOR, side=256),
}
picture = Image.fromarray(np.concatenate(list(tiles.values()), axis=1))
for column, title in enumerate(tiles):
    ImageDraw.Draw(picture).text((256 * column + 5, 4), title, fill="white")
picture.save(Path(__file__).parent / "before_after.png", optimize=True)
