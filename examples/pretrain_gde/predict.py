"""Scoring new images with a saved detector."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from examples.pretrain_gde.data import Images, attempt, tell_of_masks
from examples.pretrain_gde.detector import Detector
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.heatmap import heat_maps, overlay
from examples.pretrain_gde.readers import left_out, list_images
from examples.pretrain_gde.storage import csv_cell, printable, replacing, warn

COLUMNS = ("path", "score", "percentile", "abnormal", "network", "kind", "heat_map")
BATCH = 32


def predict(
    detector: Detector, paths: Sequence[Path], maps: Path | None
) -> Iterator[dict[str, Any]]:
    """Score image files, in order; files that cannot be read give a row with an ``error``.

    Parameters
    ----------
    detector : Detector
        From a finished run.
    paths : sequence of Path
        Images of any size that `decode` reads.
    maps : Path or None
        Where to write a heat map for each image, as PNG.

    Yields
    ------
    dict
        ``path``; ``score``, higher being less normal; ``percentile``, the share of the validation
        normals that score lower, in per cent; ``abnormal``, whether the score reaches the threshold
        chosen on the validation part; ``network`` and ``kind``, the score;
        ``heat_map``, the file or None. The map is of what the detector sees of the image.
        ``upright``, whether its mask is fine, or was not needed.
    """
    with tqdm(total=len(paths), desc="scoring", unit="img") as bar:
        for begin in range(0, len(paths), BATCH):
            rows: list[dict[str, Any]] = []
            images: list[Images] = []
            for path in paths[begin : begin + BATCH]:
                seen = attempt(path, detector.settings.view, described=False)
                if isinstance(seen, str):
                    rows.append({"path": str(path), "error": seen})
                else:
                    rows.append({"path": str(path), "upright": seen.upright})
                    images.append(seen.image)
                bar.update()
            if images:
                good = [row for row in rows if "error" not in row]
                _fill(good, np.stack(images), detector, maps, begin)
            yield from rows


def _fill(
    rows: list[dict[str, Any]], images: Images, detector: Detector, maps: Path | None, begin: int
) -> None:
    scores = detector.score(images)
    percentiles = 100 * detector.share_below(scores)
    for row, score, percentile in zip(rows, scores, percentiles, strict=True):
        row["score"], row["percentile"] = float(score), float(percentile)
        row["abnormal"] = bool(score >= detector.threshold)
        row["network"], row["kind"] = detector.scored
        row["heat_map"] = None
    if maps is None:
        return
    heat = heat_maps(detector, images)
    for number, (row, image, warm) in enumerate(zip(rows, images, heat, strict=True), begin):
        # Numbered, as images of several folders may bear one name; the name may be too long.
        path = maps / f"{number:05d}_{Path(row['path']).stem[:60]}.png"
        with replacing(path) as file:
            Image.fromarray(overlay(image, warm)).save(file, "png")
        row["heat_map"] = str(path)


def find_images(names: Sequence[Path]) -> list[Path]:
    """Put the images in a folder in the place of the folder.

    Raises
    ------
    PipelineError
        If a folder holds no image.
    """
    paths = []
    for name in names:
        if os.path.isdir(name):  # which too long a name is not, either: reading it will tell
            inside, _, _ = list_images(name)
            if not inside:
                raise PipelineError(f"{name} holds no images")
            paths += inside
            if told := left_out(name, [name]):
                warn(told)
        else:
            paths.append(name)
    return paths


def write_predictions(
    rows: Iterator[dict[str, Any]], form: str, output: Path | None, mask: str
) -> tuple[int, int]:
    """Write scored rows to a file, or to standard output as they come; report the others.

    Returns
    -------
    scored, failed : int
        How many images were scored, and how many could not be read.
    """
    text = io.StringIO()
    target = sys.stdout if output is None else text
    writer = csv.DictWriter(target, COLUMNS, lineterminator="\n")
    scored = failed = 0
    upright: dict[str, bool] = {}
    # Opened at once: that it cannot be written must not come out after all the work.
    with contextlib.nullcontext() if output is None else replacing(output) as file:
        if form == "csv":
            writer.writeheader()
        for row in rows:
            if "error" in row:
                failed += 1
                tqdm.write(printable(f"skipped {row['path']}: {row['error']}"), file=sys.stderr)
                continue
            scored += 1
            upright[row["path"]] = row.pop("upright")
            if form == "csv":
                cells = {name: csv_cell(row[name]) for name in ("path", "heat_map") if row[name]}
                writer.writerow({**row, **cells})
            else:
                print(json.dumps(row), file=target)
            target.flush()
        if file is not None:
            file.write(text.getvalue().encode())
    tell_of_masks(upright, mask)
    return scored, failed
