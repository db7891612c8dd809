"""How a detector does at another hospital: its networks, fitted anew to that one's normals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from examples.pretrain_gde.compare import mean_and_sd
from examples.pretrain_gde.data import Dataset, Seen, attempt, tell_of_masks
from examples.pretrain_gde.density import NAMES
from examples.pretrain_gde.detector import AllScores, Detector, fit_detector
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.evaluate import caution, measure_all, result_of, worth
from examples.pretrain_gde.metrics import LEAST_FITTED, auc_between, by_score, is_number, summary
from examples.pretrain_gde.readers import Entry, Split, set_aside
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.shortcuts import WORDS, judge, read_groups, strongest

Floats = npt.NDArray[np.float64]


def transfer(
    detector: Detector,
    normal: Sequence[Path],
    abnormal: Sequence[Path],
    folds: int,
    *,
    groups: Sequence[str] = (),
) -> dict[str, Any]:
    """Fit the scores to normals of another source, and test them there, by cross-validation.

    In each of `folds` folds the scores are fitted to the normals of the others, without any label,
    and score the fold's normals and all abnormal images. Nothing is trained.

    Returns
    -------
    dict
        ``scored``: network and score of the detector; ``auc``: by network and score, the mean and
        ``sd`` over folds, and ``values``; ``pooled``, as of `measure_all`, of the scores of all
        normals, each by its fold, and of the abnormal images, their mean over the folds;
        ``shortcuts``, as of `judge`, of the numbers, where all images are every part: which way is
        abnormal is found on the same ones.

    Raises
    ------
    PipelineError
        If an image cannot be read or is given twice, or there are too few.
    """
    if not 2 <= folds <= len(normal) or len(normal) * (folds - 1) // folds < LEAST_FITTED:
        raise PipelineError(
            f"folds must be 2 or more and leave {LEAST_FITTED} normals, got {folds}"
        )
    settings = detector.settings
    seen, truth = see_all(settings, normal, abnormal, masked=True)
    images = np.stack([each.image for each in seen])
    masks = np.array([each.mask for each in seen if each.mask is not None], np.uint8)
    covariates = dict(zip(WORDS, np.array([each.numbers for each in seen]).T, strict=True))
    if groups:
        paths = {"test": [path.as_posix() for path in (*normal, *abnormal)]}
        covariates |= read_groups(Path(groups[0]), groups[1:], paths)["test"]
    # Of groups, the same images would be learned by heart.
    numbers = {name: values for name, values in covariates.items() if is_number(values)}
    normals = {name: values[~truth] for name, values in numbers.items()}
    shortcuts = judge({"train": normals, "valid": numbers, "test": numbers}, truth, truth)
    told = {name: v for name, v in covariates.items() if name in shortcuts or name not in numbers}

    order = np.random.default_rng(settings.seed).permutation(len(normal))
    parts = np.array_split(order, folds)
    scores: list[AllScores] = []
    for number, fold in enumerate(tqdm(parts, "folds")):
        rest = [Entry(str(index), False) for index in np.setdiff1d(order, fold)]
        valid, train = set_aside(rest, np.random.default_rng((settings.seed, number)))
        rows = {"train": [int(e.path) for e in train], "valid": [int(e.path) for e in valid]}
        shown = {part: images[chosen] for part, chosen in rows.items()}
        lungs = {part: masks[chosen] for part, chosen in rows.items()} if len(masks) else {}
        dataset = Dataset(Split("normals", train, valid, ()), shown, lungs, ())
        fitted, _ = fit_detector(detector.networks, settings, dataset)
        scores.append(fitted.score_all(images))

    def average(*found: Floats) -> dict[str, Any] | None:
        pairs = zip(found, parts, strict=True)
        return summary([auc_between(values[fold], values[truth]) for values, fold in pairs])

    def pool(*found: Floats) -> Floats:
        every = sum(values / folds for values in found)
        for values, fold in zip(found, parts, strict=True):
            every[fold] = values[fold]
        return every

    return {
        "folds": folds,
        "images": {"normal": len(normal), "abnormal": len(abnormal)},
        "scored": dict(zip(("network", "score"), detector.scored, strict=True)),
        "auc": by_score(average, *scores),
        "pooled": measure_all(by_score(pool, *scores), truth, told),
        "shortcuts": shortcuts,
    }


def describe_transfer(result: dict[str, Any]) -> str:
    """Say in a line how the score that counts does, and in another what the figure is worth."""
    scored = result["scored"]
    figures = mean_and_sd(result["auc"][scored["network"]][scored["score"]])
    told = f"{scored['network']}, {NAMES[scored['score']]}: {figures}"
    told += f", standard deviation of {result['folds']} folds"
    if strongest(result["shortcuts"]):
        pooled = {**result, "test": result["pooled"]}
        auc = result_of(pooled)["auc"]
        told += f"\nall folds together: {auc:.3f}. {worth(pooled)} {caution(pooled)}"
    return told


def see_all(
    settings: Settings, normal: Sequence[Path], abnormal: Sequence[Path], *, masked: bool = False
) -> tuple[list[Seen], npt.NDArray[np.bool_]]:
    """Return what the network sees of images, with masks of the normals or without; which are ill.

    Raises
    ------
    PipelineError
        If an image cannot be read or is given twice, or none is abnormal.
    """
    if not abnormal:
        raise PipelineError("there are no abnormal images")
    given = [*normal, *abnormal]
    if len({path.resolve() for path in given}) < len(given):  # it would be fitted to and tested on
        raise PipelineError("an image is given twice")
    view = settings.view_with_mask if masked else settings.view
    views = [view] * len(normal) + [settings.view] * len(abnormal)
    seen, upright = [], {}
    for path, view in zip(tqdm(given, "reading", unit="img"), views, strict=True):
        result = attempt(path, view)
        if isinstance(result, str):
            raise PipelineError(f"{path} cannot be read: {result}")
        seen.append(result)
        if view.finds_mask:
            upright[path] = result.upright
    tell_of_masks(upright, settings.mask)
    return seen, np.arange(len(given)) >= len(normal)
