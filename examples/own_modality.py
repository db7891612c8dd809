"""Another modality needs only its own mask: ``python -m examples.own_modality``.

Writes own_modality.png: a slice of a head, drawn by code, its brain, and a paste inside it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

import anatpaste_aug as ap


def head_slice(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a slice as magnetic resonance shows it: scalp, skull, brain and ventricles, float32."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    radius = np.hypot(x / 0.72, y / 0.9)
    folds = ndimage.gaussian_filter(rng.standard_normal((size, size)), size / 64)
    brain = 600 + 120 * (folds > 0) - 350 * (np.hypot((abs(x) - 0.13) / 0.08, y / 0.3) < 1)
    image = np.select([radius < 0.86, radius < 0.94, radius < 1], [brain, 40, 750], 0)
    return (ndimage.gaussian_filter(image, 1) + rng.normal(0, 12, image.shape)).astype(np.float32)


def brain_mask(image: np.ndarray) -> np.ndarray:
    """Find the brain: the bright region in the middle that the skull cuts off from the scalp."""
    bright, _ = ndimage.label(ndimage.gaussian_filter(image, 1) > 150)
    regions = np.bincount(bright[tuple(slice(n // 4, -n // 4) for n in image.shape)].ravel())
    regions[0] = 0
    return ndimage.binary_fill_holes(bright == regions.argmax())


def main() -> None:
    """Paste into a slice and save slice, brain and result side by side."""
    image = head_slice(256, np.random.default_rng(0))
    pasted, region = ap.anatpaste(image, rng=4, segment=brain_mask, return_mask=True)
    assert not region[~brain_mask(image)].any()
    scaled = (np.clip(part / image.max(), 0, 1) * 255 for part in (image, pasted))
    before, after = (part.astype(np.uint8) for part in scaled)
    brain = brain_mask(image) * np.uint8(255)
    Image.fromarray(np.hstack([before, brain, after])).save("own_modality.png")
    print("wrote own_modality.png: the slice, its brain, and a paste inside it")


if __name__ == "__main__":
    main()
