"""Another modality: heads in CT, with a mask and an operation of their own.

``python -m examples.head_ct [FOLDER]`` draws some, to train on without data.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from anatpaste_aug.operations import Operation, Sampler, lengths_for_option, option

COUNTS = {  # of the drawn heads
    "train/normal": 40,
    "valid/normal": 10,
    "valid/abnormal": 10,
    "test/normal": 20,
    "test/abnormal": 20,
}


def brain_mask(image: np.ndarray) -> np.ndarray:
    """Find the brain: in every direction from the middle, what lies inside the skull."""
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 1)
    bright, _ = ndimage.label(smooth >= 0.8 * np.percentile(smooth, 99))
    sizes = np.bincount(bright.ravel())
    sizes[0] = 0
    skull = (sizes >= sizes.max() / 5)[bright]  # without letters; the image's border may divide it
    places = np.argwhere(skull)
    center_y, center_x = (places.min(0) + places.max(0)) / 2
    angles, radii = np.arange(360), np.arange(max(image.shape))
    y = center_y + np.outer(np.sin(np.deg2rad(angles)), radii)
    x = center_x + np.outer(np.cos(np.deg2rad(angles)), radii)
    bone = ndimage.map_coordinates(skull.astype(np.uint8), [y, x], order=0) > 0
    outer = np.where(bone, radii, 0).max(1)
    inner = np.where(~bone & (radii < outer[:, None]), radii, 0).max(1)
    # Neighbors decide where a bleeding makes the skull look thicker, or the image has cut it off.
    share = ndimage.median_filter(inner / np.maximum(outer, 1), 45, mode="wrap")
    seen = outer >= 0.7 * np.median(outer)
    edge = np.interp(angles, angles[seen], (outer * share)[seen], period=360)
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    angle = np.rad2deg(np.arctan2(y - center_y, x - center_x))
    return np.hypot(y - center_y, x - center_x) < np.interp(angle, angles, edge, period=360)


@dataclass(frozen=True)
class BleedingParams:
    """A ragged ellipse, in pixels and radians, and how far it goes toward white."""

    center_x: int
    center_y: int
    radius: int
    squeeze: float
    angle: float
    phase: float
    density: float


@dataclass(frozen=True)
class Bleeding(Operation[BleedingParams]):
    """Brighten a ragged blob inside the brain, as fresh blood is in CT."""

    radius: tuple[int, int] = option((8, 32), 1, integer=True)  # in pixels of a 256 x 256 image
    density: tuple[float, float] = option((0.3, 0.9), 0, 1)
    lengths_for: float | None = lengths_for_option()

    params = BleedingParams

    def draw(self, sampler: Sampler, shape: tuple[int, int], lungs: np.ndarray) -> BleedingParams:
        """Draw one bleeding, its center anywhere in the brain."""
        center_y, center_x = sampler.pixel(lungs)
        return BleedingParams(
            center_x,
            center_y,
            radius=sampler.integer(self.scaled(self.radius, shape, least=1)),
            squeeze=sampler.uniform((0.5, 1.0)),
            angle=sampler.uniform((0.0, np.pi)),
            phase=sampler.uniform((0.0, 2 * np.pi)),
            density=sampler.uniform(self.density),
        )

    @staticmethod
    def apply(
        image: np.ndarray, params: BleedingParams, lungs: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Blend toward white, inside the brain where one was found."""
        y, x = np.ogrid[: image.shape[0], : image.shape[1]]
        place = (x - params.center_x) + 1j * (y - params.center_y)
        place = place * np.exp(-1j * params.angle)
        place = place.real + 1j * place.imag / params.squeeze
        ragged = 1 + 0.2 * np.sin(3 * np.angle(place) + params.phase)
        alpha = params.density * np.clip(1.2 * ragged - abs(place) / params.radius, 0, 0.2) / 0.2
        if lungs is not None and lungs.any():
            alpha = alpha * lungs
        alpha = alpha.reshape(*alpha.shape, *[1] * (image.ndim - 2))
        white = 255 if image.dtype == np.uint8 else image.max()
        out = image + alpha * (white - image.astype(np.float64))
        if image.dtype.kind != "f":
            out = np.rint(out)
        return out.astype(image.dtype), (alpha > 0).reshape(image.shape[:2])


def head_slice(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a slice as CT shows it: skull, brain, its folds and ventricles, float32 in 0..255."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j] - rng.normal(0, 0.02, (2, 1, 1))
    radius = np.hypot(x / rng.uniform(0.68, 0.8), y / rng.uniform(0.88, 0.94))
    folds = ndimage.gaussian_filter(rng.standard_normal((size, size)), size / 64)
    folds *= 12 / folds.std()
    ventricles = np.hypot((abs(x) - 0.13) / 0.08, y / rng.uniform(0.2, 0.35)) < 1
    brain = rng.uniform(80, 110) + folds - 60 * ventricles
    image = np.select(
        [radius < rng.uniform(0.85, 0.91), radius < 1, radius < 1.05], [brain, 255, 60], 0
    )
    image = ndimage.gaussian_filter(image, size / 256) + rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.float32)


def main(folder: str = "heads") -> None:
    """Draw heads in the pipeline's plain layout: the abnormal ones with a bleeding."""
    if folder.startswith("-") or (Path(folder).exists() and any(Path(folder).iterdir())):
        sys.exit(f"usage: python -m examples.head_ct [FOLDER], a new one, got {folder}")
    rng, bleed = np.random.default_rng(0), Bleeding()
    for part, count in COUNTS.items():
        (Path(folder) / part).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = head_slice(128, rng).round().astype(np.uint8)
            if part.endswith("abnormal"):
                image = bleed(image, rng, segment=brain_mask)
            Image.fromarray(image).save(Path(folder) / part / f"head{number:03d}.png")
    print(f"wrote {sum(COUNTS.values())} drawn heads into {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
