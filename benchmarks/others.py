"""The same job, or its costliest stage, with other libraries' operations; each may be missing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np


def load(module: str) -> tuple[Any, str]:
    """Import a module; return it and "", or None and the reason why it is not there."""
    try:
        return importlib.import_module(module), ""
    except ImportError as error:
        return None, f"{module} cannot be imported ({str(error).splitlines()[0]})"


def kornia_mask(kornia: Any) -> Callable[[Any], Any]:
    """Compose kornia's operations to the lung mask of a (1, 1, H, W) tensor in 0..1.

    Otsu's threshold is computed from torch's histogram. Regions are removed by their own pixels
    instead of their boxes, and kornia's CLAHE differs in details: the masks are alike, not equal.
    """
    torch = importlib.import_module("torch")
    square = torch.ones(3, 3)

    def segment(image: Any) -> Any:
        equalized = kornia.enhance.equalize_clahe(image, clip_limit=2.56, grid_size=(8, 8))
        histogram = torch.histc(equalized, 256, 0, 1)
        centers = (torch.arange(256) + 0.5) / 256
        below, moment = histogram.cumsum(0), (histogram * centers).cumsum(0)
        above = below[-1] - below
        between = below * above * (moment / below - (moment[-1] - moment) / above) ** 2
        threshold = centers[between.nan_to_num().argmax()]
        mask = ((equalized > 0) & (equalized <= threshold)).to(image.dtype)
        mask = kornia.morphology.opening(mask, square)
        labels = _labels(kornia, mask)
        sides = (labels[..., 0, :], labels[..., -1, :], labels[..., 0], labels[..., -1])
        border = torch.cat([side.ravel() for side in sides]).unique()
        mask = mask * ~torch.isin(labels, border)
        mask = kornia.morphology.dilation(mask, square)
        names, region, area = _labels(kornia, mask).unique(return_inverse=True, return_counts=True)
        return ((area >= 400) & (names > 0))[region]

    return segment


def _labels(kornia: Any, mask: Any) -> Any:
    # A label travels one pixel an iteration: a lung needs about as many as the image is high.
    return kornia.contrib.connected_components(mask, num_iterations=mask.shape[-2])


def opencv_clahe(albumentations: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return albumentations' CLAHE (OpenCV's, 8-bit) at the clip limit that matches 0.01."""
    clahe = albumentations.CLAHE(clip_limit=(2.56, 2.56), tile_grid_size=(8, 8), p=1)
    return lambda image: clahe(image=image)["image"]
