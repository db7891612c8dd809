"""Compute the shape prior of the robust lung mask from radiographs with drawn lungs.

``python -m benchmarks.make_lung_prior --data DIR`` writes ``anatpaste_aug/masks/lung_prior.npz``.
DIR holds ``images/*.png`` and ``masks/*.png`` of the same names: the Montgomery County set of
the U.S. National Library of Medicine (Jaeger et al., 2014), public for research with citation.
The file depends on nothing else; it holds averages only, no image.

Every radiograph is used twice, as it is and mirrored, so the prior knows no left and right:
flipped images and a right-sided heart are as likely as any.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import measure

from anatpaste_aug.masks import robust

MODES = 12
SEGMENTS = (16, 8, 16)  # landmarks from apex to outer, outer to inner, inner corner to apex


def load_pairs(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read images (H, W) uint8 and masks (H, W) bool, in the order of their names."""
    images, masks = [], []
    for file in sorted((folder / "images").glob("*.png")):
        images.append(np.array(Image.open(file).convert("L")))
        masks.append(np.array(Image.open(folder / "masks" / file.name).convert("L")) > 127)
    if not images:
        raise FileNotFoundError(f"no images/*.png in {folder}")
    return images, masks


def landmarks(mask: np.ndarray) -> np.ndarray:
    """Return 40 landmarks of each of the two largest regions, (80, 2) x and y, in 0..1."""
    labels = measure.label(mask)
    regions = sorted(measure.regionprops(labels), key=lambda r: -r.area)[:2]
    first, second = sorted(regions, key=lambda r: r.centroid[1])
    mirror = np.array([-1.0, 1.0])
    points = np.concatenate(
        [
            _lung(_contour(labels == first.label)),
            _lung(_contour(labels == second.label) * mirror) * mirror,
        ]
    )
    return points / mask.shape[::-1]


def _contour(mask: np.ndarray) -> np.ndarray:
    lines = measure.find_contours(np.pad(mask.astype(float), 1), 0.5)
    return max(lines, key=len)[:-1, ::-1] - 0.5  # pixel centers lie at 0.5


def _lung(line: np.ndarray) -> np.ndarray:
    """Resample one outline between its three corners; the outer side has small x."""
    x, y = line.T
    if np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) > 0:
        line = line[::-1]
    x, y = ((line - line.min(0)) / np.ptp(line, axis=0)).T
    top = np.flatnonzero(y < 0.01)
    corners = (top[len(top) // 2], np.argmax(y - x), np.argmax(2 * y + x))
    ends = (*corners[1:], corners[0])
    parts = zip(corners, ends, SEGMENTS, strict=True)
    return np.concatenate([_resample(line, *part) for part in parts])


def _resample(line: np.ndarray, start: int, end: int, count: int) -> np.ndarray:
    index = np.arange(start, end + 1 + (len(line) if end <= start else 0)) % len(line)
    part = line[index]
    length = np.r_[0.0, np.cumsum(np.hypot(*np.diff(part, axis=0).T))]
    at = np.linspace(0, length[-1], count, endpoint=False)
    return np.stack([np.interp(at, length, part[:, axis]) for axis in (0, 1)], 1)


def build_prior(images: list[np.ndarray], masks: list[np.ndarray]) -> robust.ShapePrior:
    """Compute the mean shape, its modes and the edge profiles from drawn lungs."""
    drawn = np.array([landmarks(mask) for mask in masks])
    half = drawn.shape[1] // 2
    mirrored = np.roll(drawn * [-1, 1], half, axis=1)
    shapes = np.concatenate([drawn, mirrored])
    shapes = (shapes - shapes.mean(1, keepdims=True)) / shapes.std(1, keepdims=True)
    mean = shapes.mean(0)
    _, size, modes = np.linalg.svd((shapes - mean).reshape(len(shapes), -1), full_matrices=False)
    modes *= np.sign(modes[np.arange(len(modes)), np.abs(modes).argmax(1)])[:, None]
    prior = robust.ShapePrior(
        mean,
        modes[:MODES].reshape(-1, 2 * half, 2),
        size[:MODES] / np.sqrt(len(shapes)),
        _profiles(images, drawn),
    )
    return _rounded(prior)


def _profiles(images: list[np.ndarray], drawn: np.ndarray) -> np.ndarray:
    """Mean edge strength across the drawn outline; the same for both lungs."""
    offsets = np.arange(-robust.REACH, robust.REACH + 1)
    total = 0.0
    for image, points in zip(images, drawn, strict=True):
        picture, frame = robust.make_view(image)
        outline = ((points - frame[:2]) / frame[2:] * robust.SIDE).T[None]
        tangents = np.concatenate(
            [
                (np.roll(loop, -1, -1) - np.roll(loop, 1, -1)) * sign
                for loop, sign in zip(np.split(outline, 2, axis=2), (-1, 1), strict=True)
            ],
            axis=2,
        )
        normals = robust.unit_normals(tangents, np.ones((1, 2)))
        total = (
            total + robust.edges_across(outline, normals, robust.edge_field(picture), offsets)[0]
        )
    one = np.add(*np.split(total, 2))
    profile = np.concatenate([one, one])
    return profile / np.abs(profile).sum(1).mean()


def _rounded(prior: robust.ShapePrior) -> robust.ShapePrior:
    """Return the prior as it is after storage in half precision."""
    return robust.ShapePrior(
        **{k: v.astype(np.float16).astype(np.float64) for k, v in _fields(prior).items()}
    )


def _fields(prior: robust.ShapePrior) -> dict[str, np.ndarray]:
    return {name: getattr(prior, name) for name in ("mean", "modes", "deviations", "profile")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument(
        "--out", type=Path, default=Path(robust.__file__).with_name("lung_prior.npz")
    )
    args = parser.parse_args()
    prior = build_prior(*load_pairs(args.data))
    stored = {name: value.astype(np.float16) for name, value in _fields(prior).items()}
    np.savez_compressed(args.out, **stored)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
