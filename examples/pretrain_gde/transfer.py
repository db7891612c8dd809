"""How a detector does at another hospital: its networks, fitted anew to that one's normals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from examples.pretrain_gde.data import Dataset, Images, Seen, attempt, tell_of_lungs
from examples.pretrain_gde.detector import AllScores, Detector, fit_detector
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.evaluate import measure_all
from examples.pretrain_gde.metrics import LEAST_FITTED, auc_between, is_number, summary
from examples.pretrain_gde.readers import Entry, Split, set_aside
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.shortcuts import WORDS, Covariates, judge, read_groups
from examples.pretrain_gde.view import View


def transfer(
    detector: Detector,
    normal: Sequence[Path],
    abnormal: Sequence[Path],
    folds: int,
    *,
    groups: Sequence[str] = (),
    progress: bool = True,
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
    source = read_source(settings, normal, abnormal, groups=groups, progress=progress)
    images, masks, truth, shortcuts = source.images, source.masks, source.truth, source.shortcuts
    order = np.random.default_rng(settings.seed).permutation(len(normal))
    aucs: dict[str, dict[str, list[float]]] = {}
    pooled: AllScores = {}
    for number, fold in enumerate(
        tqdm(np.array_split(order, folds), "folds", disable=not progress)
    ):
        rest = [Entry(str(index), False) for index in np.sort(np.setdiff1d(order, fold))]
        valid, train = set_aside(rest, np.random.default_rng((settings.seed, number)))
        rows = {"train": [int(e.path) for e in train], "valid": [int(e.path) for e in valid]}
        dataset = Dataset(
            Split("normals", train, valid, ()),
            {part: images[chosen] for part, chosen in rows.items()},
            {part: masks[chosen] for part, chosen in rows.items()} if len(masks) else {},
            (),
        )
        fitted, _ = fit_detector(detector.networks, settings, dataset)
        for network, named in fitted.score_all(images).items():
            for name, values in named.items():
                auc = auc_between(values[fold], values[truth])
                aucs.setdefault(network, {}).setdefault(name, []).append(auc)
                every = pooled.setdefault(network, {}).setdefault(name, np.zeros(len(images)))
                every[fold] = values[fold]
                every[truth] += values[truth] / folds
    return {
        "folds": folds,
        "images": {"normal": len(normal), "abnormal": len(abnormal)},
        "scored": dict(zip(("network", "score"), detector.scored, strict=True)),
        "auc": {
            network: {name: summary(values) for name, values in named.items()}
            for network, named in aucs.items()
        },
        "pooled": measure_all(pooled, truth, source.covariates),
        "shortcuts": shortcuts,
    }


class SourceImages(NamedTuple):
    """Images of another source, normal ones first.

    Attributes
    ----------
    images : (N, S, S) uint8 array
        What the network sees.
    masks : (M, S, S) uint8 array
        Of the normals, if the settings need masks, else empty.
    truth : (N,) bool array
        Which are abnormal.
    covariates : Covariates
        Shortcuts and groups, to adjust for.
    shortcuts : dict
        As of `judge`, of the numbers, where all images are every part.
    """

    images: Images
    masks: Images
    truth: npt.NDArray[np.bool_]
    covariates: Covariates
    shortcuts: dict[str, Any]


def read_source(
    settings: Settings,
    normal: Sequence[Path],
    abnormal: Sequence[Path],
    *,
    groups: Sequence[str] = (),
    progress: bool = True,
) -> SourceImages:
    """Read images of another source, and what tells them apart.

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
    views = [settings.view_with_mask] * len(normal) + [settings.view] * len(abnormal)
    pairs = list(zip(given, views, strict=True))
    seen = [_read(path, view) for path, view in tqdm(pairs, disable=not progress)]
    images = np.stack([each.image for each in seen])
    masks = np.array([each.mask for each in seen if each.mask is not None], np.uint8)
    truth = np.arange(len(given)) >= len(normal)
    upright = {p: each.upright for (p, v), each in zip(pairs, seen, strict=True) if v.finds_lungs}
    tell_of_lungs(upright)
    covariates = dict(zip(WORDS, np.array([each.numbers for each in seen]).T, strict=True))
    if groups:
        paths = {"test": [path.as_posix() for path in given]}
        covariates |= read_groups(Path(groups[0]), groups[1:], paths)["test"]
    # Of groups, the same images would be learned by heart.
    numbers = {name: values for name, values in covariates.items() if is_number(values)}
    parts = dict.fromkeys(("valid", "test"), numbers)
    parts["train"] = {name: values[~truth] for name, values in numbers.items()}
    shortcuts = judge(parts, truth, truth)
    told = {name: v for name, v in covariates.items() if name in shortcuts or name not in numbers}
    return SourceImages(images, masks, truth, told, shortcuts)


def _read(path: Path, view: View) -> Seen:
    result = attempt(path, view)
    if isinstance(result, str):
        raise PipelineError(f"{path} cannot be read: {result}")
    return result
