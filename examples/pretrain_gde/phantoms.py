"""A data set without data: phantom radiographs in the plain layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from anatpaste_aug.data import phantom_radiograph
from examples.pretrain_gde.storage import replacing

Counts = dict[tuple[str, str], int]
COUNTS: Counts = {
    ("train", "normal"): 300,
    ("valid", "normal"): 60,
    ("valid", "abnormal"): 60,
    ("test", "normal"): 150,
    ("test", "abnormal"): 150,
}


def write_phantoms(folder: Path, size: int, seed: int = 0, *, counts: Counts | None = None) -> None:
    """Write phantom radiographs as PNG into ``{train,valid,test}/{normal,abnormal}``.

    Parameters
    ----------
    folder : Path
        Where to write; files that are there already stay.
    size : int
        Side in pixels.
    seed : int, optional
        Seed of all phantoms; no two share their anatomy.
    counts : dict, optional
        Images per part and kind, instead of `COUNTS`.
    """
    jobs = [
        (folder / part / kind / f"phantom{index:04d}.png", kind == "abnormal", (seed, where, index))
        for where, ((part, kind), count) in enumerate((counts or COUNTS).items())
        for index in range(count)
    ]

    def write(job: tuple[Path, bool, tuple[int, ...]]) -> None:
        path, abnormal, seeds = job
        if path.exists():
            return
        image = phantom_radiograph(size, np.random.default_rng(seeds), abnormal)
        with replacing(path) as file:
            Image.fromarray(image).save(file, "png")

    thread_map(write, jobs, desc="phantoms", unit="img")
