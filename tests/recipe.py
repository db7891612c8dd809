"""The published method in plain scikit-image and Pillow calls: what the package must equal."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

SQUARE = np.ones((3, 3), bool)


def recipe_mask(image, min_area=400):
    """Segment as spec'd: CLAHE, Otsu, opening, border clearing, dilation, bounding-box rule."""
    pytest.importorskip("skimage", reason="needs scikit-image")
    from skimage import exposure, filters, measure, morphology, segmentation

    equalized = exposure.equalize_adapthist(image, kernel_size=None, clip_limit=0.01, nbins=256)
    threshold = filters.threshold_otsu(equalized)
    mask = (equalized > 0) & (equalized <= threshold)
    mask = morphology.opening(mask, SQUARE)
    mask = segmentation.clear_border(mask)
    mask = morphology.dilation(mask, SQUARE)
    labels = measure.label(mask)
    for region in measure.regionprops(labels):
        if region.area < min_area:  # computed now, from what earlier boxes have left
            top, left, bottom, right = region.bbox
            labels[top:bottom, left:right] = 0
    return labels > 0


def recipe_alpha(params, mask):
    """Draw and blur the shape on a full canvas, and multiply by the mask."""
    canvas = Image.new("L", mask.shape[::-1])
    half_w, half_h = params.width // 2, params.height // 2
    inner_w = half_w - min(params.margin, half_w)
    inner_h = half_h - min(params.margin, half_h)
    box = (
        params.center_x - inner_w,
        params.center_y - inner_h,
        params.center_x + inner_w,
        params.center_y + inner_h,
    )
    draw = ImageDraw.Draw(canvas)
    getattr(draw, params.shape)(box, fill=params.opacity)
    alpha = np.asarray(canvas.filter(ImageFilter.GaussianBlur(params.blur_radius)))
    return alpha * mask if mask.any() else alpha


def recipe_paste(image, params, mask):
    """Paste with Pillow; `image` is uint8, (H, W) or (H, W, 3)."""
    original = Image.fromarray(image)
    patch = original.crop(
        (
            params.crop_x,
            params.crop_y,
            params.crop_x + params.width,
            params.crop_y + params.height,
        )
    )
    patch = ImageEnhance.Brightness(patch).enhance(params.brightness)
    patch = ImageEnhance.Contrast(patch).enhance(params.contrast)
    canvas = Image.new(original.mode, original.size)
    canvas.paste(patch, (params.center_x - params.width // 2, params.center_y - params.height // 2))
    original.paste(canvas, (0, 0), Image.fromarray(recipe_alpha(params, mask)))
    return np.asarray(original)
