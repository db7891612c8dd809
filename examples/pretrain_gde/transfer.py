"""How a detector does at another hospital: its networks, fitted anew to that one's normals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from examples.pretrain_gde.data import Dataset, Images, Seen, attempt, tell_of_lungs
from examples.pretrain_gde.detector import Detector, fit_detector
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.evaluate import measure_all
from examples.pretrain_gde.metrics import summary
from examples.pretrain_gde.readers import Entry, Split, set_aside
from examples.pretrain_gde.shortcuts import WORDS, Covariates, judge, read_groups
from examples.pretrain_gde.view import NATIVE_SIZE, View

LEAST = 20  # normals to fit to


def transfer(
    detector: Detector,
    normal: Sequence[Path],
    abnormal: Sequence[Path],
    folds: int,
    *,
    groups: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Fit the scores to normals of another source, and test them there, by cross-validation.

    In each of `folds` folds the scores are fitted to the normals of the others, without any label,
    and score the fold's normals and all abnormal images. Nothing is trained.

    Returns
    -------
    dict
        ``chosen``: network and score of the detector; ``auc``: by network and score, the mean and
        ``sd`` over folds, and ``values``; ``adjusted``, the same by covariate, too, where each fold
        has images alike; ``shortcuts``, as of `judge`, all images being one part: which way is
        abnormal is found on the same ones.

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
    seen = [_read(path, view) for path in tqdm(given, disable=not progress)]
    images = np.stack([each.image for each in seen])
    truth = np.arange(len(given)) >= len(normal)
    upright = {p: each.upright for p, each in zip(given, seen, strict=True) if view.needs_lungs}
    masks: list[Images] = []
    for path in tqdm(normal if settings.needs_masks else (), "lung masks", disable=not progress):
        mask, fine = view.see_mask(_read(path, View(NATIVE_SIZE)).image, settings.mask)
        masks.append(mask.astype(np.uint8))
        if settings.mask == "robust":
            upright[path] = fine
    tell_of_lungs(upright)
    covariates = dict(zip(WORDS, np.array([each.numbers for each in seen]).T, strict=True))
    if groups is not None:
        covariates |= read_groups(groups, {"test": [path.as_posix() for path in given]})["test"]
    parts = dict.fromkeys(("train", "valid", "test"), covariates)
    shortcuts = judge({**parts, "train": _rows(covariates, ~truth)}, truth, truth)
    order = np.random.default_rng(settings.seed).permutation(len(normal))
    results = []
    for number, fold in enumerate(
        tqdm(np.array_split(order, folds), "folds", disable=not progress)
    ):
        rest = [Entry(str(index), False) for index in np.sort(np.setdiff1d(order, fold))]
        valid, train = set_aside(rest, np.random.default_rng((settings.seed, number)))
        rows = {"train": [int(e.path) for e in train], "valid": [int(e.path) for e in valid]}
        dataset = Dataset(
            Split("normals", train, valid, ()),
            {part: images[chosen] for part, chosen in rows.items()},
            {part: np.stack(masks)[chosen] for part, chosen in rows.items()} if masks else {},
            (),
        )
        fitted, _ = fit_detector(detector.networks, settings, dataset)
        tested = np.concatenate([fold, np.flatnonzero(truth)])
        told = _rows({name: covariates[name] for name in shortcuts}, tested)
        results.append(measure_all(fitted.score_all(images[tested]), truth[tested], told))

    def over_folds(figure: Callable[[list[dict[str, Any]]], Any]) -> dict[str, Any]:
        return {
            network: {name: figure([r[network][name] for r in results]) for name in named}
            for network, named in results[0].items()
        }

    return {
        "folds": folds,
        "images": {"normal": len(normal), "abnormal": len(abnormal)},
        "chosen": {"network": detector.choice.network, "score": detector.choice.score},
        "auc": over_folds(lambda each: summary([one["auc"] for one in each])),
        "adjusted": over_folds(
            lambda each: {
                name: summary([one["adjusted"][name]["auc"] for one in each]) for name in shortcuts
            }
        ),
        "shortcuts": shortcuts,
    }


def _rows(covariates: Covariates, rows: npt.NDArray[Any]) -> Covariates:
    return {name: values[rows] for name, values in covariates.items()}


def _read(path: Path, view: View) -> Seen:
    result = attempt(path, view)
    if isinstance(result, str):
        raise PipelineError(f"{path} cannot be read: {result}")
    return result
