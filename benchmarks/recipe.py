"""AnatPaste written out with scikit-image and Pillow calls: what the package is measured against.

It does everything on full-size canvases, as the published description reads and as the released
code does, so that nothing here is faster or slower than what a user would write in an afternoon.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter
from skimage import exposure, filters, measure, morphology, segmentation

Gray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
SQUARE = np.ones((3, 3), bool)


def recipe_mask(image: Gray, min_area: int = 400) -> Mask:
    """Segment the lungs: CLAHE, Otsu, opening, border clearing, dilation, bounding-box rule."""
    equalized = exposure.equalize_adapthist(image)
    mask = (equalized > 0) & (equalized <= filters.threshold_otsu(equalized))
    mask = segmentation.clear_border(morphology.opening(mask, SQUARE))
    labels = measure.label(morphology.dilation(mask, SQUARE))
    for region in measure.regionprops(labels):
        if region.area < min_area:  # computed now, after earlier boxes were zeroed
            top, left, bottom, right = region.bbox
            labels[top:bottom, left:right] = 0
    return labels > 0


def recipe_paste(image: Gray, mask: Mask, rng: np.random.Generator) -> Gray:
    """Draw the parameters of one paste and apply it, on full-size Pillow canvases."""
    height, width = image.shape
    picture = Image.fromarray(image)
    area = rng.uniform(0.02, 0.15) * height * width
    ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
    patch_w = min(round(math.sqrt(area * ratio)), width)
    patch_h = min(round(math.sqrt(area / ratio)), height)
    x = int(rng.integers(width - patch_w, endpoint=True))
    y = int(rng.integers(height - patch_h, endpoint=True))
    patch = picture.crop((x, y, x + patch_w, y + patch_h))
    patch = ImageEnhance.Brightness(patch).enhance(rng.uniform(0.9, 1.1))
    patch = ImageEnhance.Contrast(patch).enhance(rng.uniform(0.9, 1.1))

    rows, columns = np.nonzero(mask if mask.any() else np.ones_like(mask))
    place = rng.integers(rows.size)
    center_x, center_y = int(columns[place]), int(rows[place])
    half_w, half_h = patch_w // 2, patch_h // 2
    inner_w, inner_h = half_w - min(10, half_w), half_h - min(10, half_h)
    box = (center_x - inner_w, center_y - inner_h, center_x + inner_w, center_y + inner_h)
    alpha = Image.new("L", picture.size)
    draw = ImageDraw.Draw(alpha)
    shape = draw.ellipse if rng.integers(2) else draw.rectangle
    shape(box, fill=int(rng.integers(150, 255)))
    alpha = alpha.filter(ImageFilter.GaussianBlur(int(rng.integers(15))))
    if mask.any():
        alpha = ImageChops.multiply(alpha, Image.fromarray(mask.astype(np.uint8) * 255))

    canvas = Image.new("L", picture.size)
    canvas.paste(patch, (center_x - half_w, center_y - half_h))
    result = picture.copy()
    result.paste(canvas, (0, 0), alpha)
    return np.asarray(result)


def recipe(image: Gray, rng: np.random.Generator) -> Gray:
    """Segment, draw and paste."""
    return recipe_paste(image, recipe_mask(image), rng)
