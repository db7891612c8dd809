"""How a detector does at another hospital: its networks, fitted anew to that one's normals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from examples.pretrain_gde.data import Dataset, Images, Seen, attempt, tell_of_lungs
from examples.pretrain_gde.detector import AllScores, Detector, auc_between, fit_detector
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.readers import Entry, Split, set_aside
from examples.pretrain_gde.view import NATIVE_SIZE, View

LEAST = 20  # normals to fit to


def transfer(
    detector: Detector,
    normal: Sequence[Path],
    abnormal: Sequence[Path],
    folds: int,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Fit the scores to normals of another source, and test them there, by cross-validation.

    In each of `folds` folds the scores are fitted to the normals of the others, without any label,
    and score the fold's normals and all abnormal images. Nothing is trained.

    Returns
    -------
    dict
        ``chosen``: network and score of the detector; ``auc``: by network and score, the mean and
        ``sd`` over folds, and ``values``.

    Raises
    ------
    PipelineError
        If an image cannot be read or is given twice, or there are too few.
    """
    if not 2 <= folds <= len(normal) or len(normal) * (folds - 1) // folds < LEAST:
        raise PipelineError(f"folds must be 2 or more and leave {LEAST} normals, got {folds}")
    if not abnormal:
        raise PipelineError("there are no abnormal images")
    given = [*normal, *abnormal]
    if len({path.resolve() for path in given}) < len(given):  # it would be fitted to and tested on
        raise PipelineError("an image is given twice")
    settings, view = detector.settings, detector.settings.view
    found = {path: _read(path, view) for path in tqdm(given, disable=not progress)}
    seen = {path: image for path, (image, _) in found.items()}
    upright = {path: fine for path, (_, fine) in found.items() if view.needs_lungs}
    masks: dict[Path, Images] = {}
    if settings.needs_masks:
        for path in tqdm(normal, "lung masks", disable=not progress):
            native, _ = _read(path, View(NATIVE_SIZE))
            mask, fine = view.see_mask(native, settings.mask)
            masks[path] = mask.astype(np.uint8)
            if settings.mask == "robust":
                upright[path] = fine
    tell_of_lungs(upright)
    order = np.random.default_rng(settings.seed).permutation(len(normal))
    aucs: dict[str, dict[str, list[float]]] = {}
    for number, fold in enumerate(
        tqdm(np.array_split(order, folds), "folds", disable=not progress)
    ):
        rest = [Entry(str(index), False) for index in np.sort(np.setdiff1d(order, fold))]
        valid, train = set_aside(rest, np.random.default_rng((settings.seed, number)))
        parts = {"train": train, "valid": valid}
        chosen = {part: [normal[int(e.path)] for e in found] for part, found in parts.items()}
        dataset = Dataset(
            Split("normals", train, valid, ()),
            {part: np.stack([seen[path] for path in paths]) for part, paths in chosen.items()},
            {part: np.stack([masks[path] for path in paths]) for part, paths in chosen.items()}
            if masks
            else {},
            (),
        )
        fitted, _ = fit_detector(detector.networks, settings, dataset)
        healthy = fitted.score_all(np.stack([seen[normal[index]] for index in fold]))
        ill = fitted.score_all(np.stack([seen[path] for path in abnormal]))
        _add(aucs, healthy, ill)
    return {
        "folds": folds,
        "images": {"normal": len(normal), "abnormal": len(abnormal)},
        "chosen": {"network": detector.choice.network, "score": detector.choice.score},
        "auc": {
            network: {name: _summary(values) for name, values in found.items()}
            for network, found in aucs.items()
        },
    }


def _read(path: Path, view: View) -> Seen:
    result = attempt(path, view)
    if isinstance(result, str):
        raise PipelineError(f"{path} cannot be read: {result}")
    return result


def _add(aucs: dict[str, dict[str, list[float]]], normal: AllScores, ill: AllScores) -> None:
    for network, found in normal.items():
        for name, values in found.items():
            one = auc_between(values, ill[network][name])
            aucs.setdefault(network, {}).setdefault(name, []).append(one)


def _summary(values: list[float]) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values),
        "values": values,
    }
