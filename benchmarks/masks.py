"""Compare both lung masks with lungs drawn by radiologists: quality and time.

``python -m benchmarks.masks --data DIR [--out DIR]``, where DIR holds ``images/*.png`` and
``masks/*.png`` (Montgomery County, 256 x 256). Writes ``masks.json``, the section of RESULTS.md and
``masks_worst.jpg``: the ten worst of each mask, drawn outline red, found outline green.

Nothing that is measured was seen: the images are split into two halves, and the robust mask
meets each half with a prior computed from the other. With ``--tune`` the constants it was
tuned by are chosen afresh on each half too (by 2-fold cross-checking inside it).

Times are medians over the images of processor time, the masks taken in turns image by image. Run
with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import scipy
import skimage
from PIL import Image, ImageDraw
from scipy import ndimage

from anatpaste_aug import lung_mask
from anatpaste_aug.masks import robust
from anatpaste_aug.masks.robust import lung_mask_robust
from benchmarks import harness, make_lung_prior
from benchmarks.make_lung_prior import build_prior, load_pairs
from benchmarks.recipe import recipe_mask

HERE = Path(__file__).parent

Mask = np.ndarray
GRID = {  # what was tuned: constants of `robust`, and the number of modes
    (robust, "SMOOTHING"): (0.7, 1.0, 1.5),
    (robust, "FAINT"): (1.0, 1.5, 2.0),
    (make_lung_prior, "MODES"): (8, 12, 16),
}


def dice(found: Mask, drawn: Mask) -> float:
    return float(2 * (found & drawn).sum() / (found.sum() + drawn.sum()))


def boundary_distance(found: Mask, drawn: Mask) -> float:
    """Return the mean symmetric surface distance in pixels; NaN for an empty mask."""
    if not found.any():
        return float("nan")
    rims = [mask & ~ndimage.binary_erosion(mask) for mask in (found, drawn)]
    away = [ndimage.distance_transform_edt(~rim) for rim in rims]
    return float(np.concatenate([away[1][rims[0]], away[0][rims[1]]]).mean())


def halves(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (training, testing) indices, both ways; neighbors fall into different halves."""
    even, odd = np.arange(0, count, 2), np.arange(1, count, 2)
    yield even, odd
    yield odd, even


def prior_of(images: list, masks: list, chosen: np.ndarray) -> robust.ShapePrior:
    return build_prior([images[i] for i in chosen], [masks[i] for i in chosen])


@contextmanager
def constants(values: tuple) -> Iterator[None]:
    """Set the tuned constants for a while."""
    patches = [mock.patch.object(*k, v) for k, v in zip(GRID, values, strict=True)]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def choose(images: list, masks: list, chosen: np.ndarray) -> tuple:
    """Return the constants with the best mean Dice, by 2-fold cross-checking within `chosen`."""

    def quality(values: tuple) -> float:
        scores = []
        with constants(values):
            for train, test in halves(len(chosen)):
                prior = prior_of(images, masks, chosen[train])
                scores += [
                    dice(robust.outline_lungs(images[i], prior)[0], masks[i]) for i in chosen[test]
                ]
        return float(np.mean(scores))

    return max(itertools.product(*GRID.values()), key=quality)


def cross_check(images: list, masks: list, tune: bool) -> tuple[list[Mask], list[np.ndarray], list]:
    """Return the robust masks, none with a prior that saw it; the test halves; the constants."""
    found: list[Mask] = [None] * len(images)
    tests, values = [], []
    for train, test in halves(len(images)):
        now = tuple(getattr(*key) for key in GRID)
        values.append(choose(images, masks, train) if tune else now)
        with constants(values[-1]):
            prior = prior_of(images, masks, train)
            for i in test:
                found[i] = robust.outline_lungs(images[i], prior)[0]
        tests.append(test)
    return found, tests, values


def summary(found: list[Mask], drawn: list[Mask]) -> dict[str, float]:
    scores = [dice(*pair) for pair in zip(found, drawn, strict=True)]
    away = [boundary_distance(*pair) for pair in zip(found, drawn, strict=True)]
    return {
        "images": len(scores),
        "dice_mean": float(np.mean(scores)),
        "dice_5th_percentile": float(np.percentile(scores, 5)),
        "dice_min": float(np.min(scores)),
        "boundary_px": float(np.nanmean(away)),  # of the masks that are not empty
        "empty_share": float(np.mean([not mask.any() for mask in found])),
    }


def times(images: list[np.ndarray], functions: dict[str, Callable]) -> dict[str, dict]:
    """Return median and quartiles, in ms, of each function, called in turns on each image."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function(images[0])
    for image in images:
        for name, function in functions.items():
            start = time.process_time()
            function(image)
            taken[name].append(1e3 * (time.process_time() - start))
    quartiles = {name: np.percentile(values, (25, 50, 75)) for name, values in taken.items()}
    return {n: {"median_ms": q[1], "quartiles_ms": [q[0], q[2]]} for n, q in quartiles.items()}


def worst_sheet(images: list, drawn: list, rows: dict[str, list[Mask]], count: int = 10):
    """Draw the worst of each mask, one row of pictures per mask."""
    side = max(images[0].shape)
    sheet = Image.new("RGB", (count * side, len(rows) * side))
    for y, (name, found) in enumerate(rows.items()):
        scores = [dice(*pair) for pair in zip(found, drawn, strict=True)]
        for x, i in enumerate(np.argsort(scores)[:count]):
            picture = np.stack([images[i]] * 3, -1)
            for mask, color in ((drawn[i], (255, 0, 0)), (found[i], (0, 255, 0))):
                picture[mask & ~ndimage.binary_erosion(mask)] = color
            tile = Image.fromarray(picture)
            label = f"{name}: {scores[i]:.2f} (image {i})"
            ImageDraw.Draw(tile).text((4, side - 14), label, fill=(255, 255, 0))
            sheet.paste(tile, (x * side, y * side))
    return sheet


def table(report: dict) -> str:
    head = "| mask | Dice mean | Dice 5th percentile | Dice min | boundary (px of 256) | empty |"
    lines = [head, "| --- |" + " --- |" * 5]
    for name, row in report["quality"].items():
        numbers = " | ".join(
            f"{row[key]:.{digits}f}"
            for key, digits in (
                ("dice_mean", 3),
                ("dice_5th_percentile", 3),
                ("dice_min", 3),
                ("boundary_px", 2),
            )
        )
        lines.append(f"| {name} | {numbers} | {100 * row['empty_share']:.1f} % |")
    lines += ["", "| time, median (ms) | " + " | ".join(report["times"]) + " |"]
    lines.append("| --- |" + " --- |" * len(report["times"]))
    for name in next(iter(report["times"].values())):
        cells = [f"{sizes[name]['median_ms']:.1f}" for sizes in report["times"].values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--tune", action="store_true", help="choose the constants afresh (slow)")
    args = parser.parse_args()
    images, drawn = load_pairs(args.data)
    found, tests, values = cross_check(images, drawn, args.tune)
    old = [lung_mask(image) for image in images]
    quality = {"published": summary(old, drawn), "robust (2-fold)": summary(found, drawn)}
    for name, test in zip(("first to second", "second to first"), tests, strict=True):
        here = [found[i] for i in test], [drawn[i] for i in test]
        quality[f"robust, {name} half"] = summary(*here)
    functions = {
        "scikit-image recipe": recipe_mask,
        "lung_mask": lung_mask,
        "lung_mask_robust": lung_mask_robust,
    }
    large = [np.array(Image.fromarray(image).resize((1024, 1024))) for image in images[::7]]
    report = {
        "quality": quality,
        "constants": [{name: v for (_, name), v in zip(GRID, row, strict=True)} for row in values],
        "times": {"256 x 256": times(images, functions), "1024 x 1024": times(large, functions)},
        "commit": harness.commit(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scikit-image": skimage.__version__,
            "pillow": Image.__version__,
        },
    }
    harness.write_json(args.out / "masks.json", report)
    rows = {"published": old, "robust": found}
    worst_sheet(images, drawn, rows).save(args.out / "masks_worst.jpg", quality=80)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    text = (
        f"## Lung masks\n\nAgainst lungs drawn by radiologists on {len(images)} adult radiographs "
        "(Montgomery County), by `python -m benchmarks.masks`; the robust mask's prior never saw "
        f"the half it is judged on. One thread; commit {report['commit']}, {versions}.\n\n"
    )
    harness.replace_section(HERE / "RESULTS.md", "masks", text + table(report))
    print(table(report))
    print("constants:", *report["constants"])


if __name__ == "__main__":
    main()
