"""From a trained network to a detector, its scores and its figures."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from examples.pretrain_gde.data import Dataset
from examples.pretrain_gde.density import ESTIMATORS, Density
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import COUNT, LARGE
from examples.pretrain_gde.metrics import best_threshold, measure
from examples.pretrain_gde.model import make_backbone, seeded_network
from examples.pretrain_gde.readers import PARTS, SHARED_FORM, shared_patients
from examples.pretrain_gde.runtime import Runtime, describe
from examples.pretrain_gde.settings import LIMITS, Settings
from examples.pretrain_gde.storage import (
    Tensors,
    csv_cell,
    load_tensors,
    read_csv,
    read_json,
    save_tensors,
    write_json,
    write_text,
)
from examples.pretrain_gde.train import (
    BEST_FORM,
    EPOCH_FORM,
    WEIGHTS,
    Progress,
    embed_images,
    fingerprint,
    validate,
)

DETECTOR = "detector.safetensors"
METRICS = "metrics.json"
SPLIT = "split.json"
SCORES = "scores.csv"
FOLDS = 5

Scores = dict[str, npt.NDArray[np.float64]]

_RATE = (0.0, 1.0)
_RESULT = {"auc": _RATE, "ap": _RATE, "auc_interval": [_RATE] * 2, "ap_interval": [_RATE] * 2}
_MEASURED = {name: _RESULT for name in ESTIMATORS}
_DATA = {
    "layout": str,
    "images": dict.fromkeys(PARTS, COUNT),
    "files": dict.fromkeys(PARTS, COUNT),
    "skipped": [str],
    "shared_patients": SHARED_FORM,
}
THRESHOLDS = dict.fromkeys(ESTIMATORS, (-LARGE, LARGE))
METRICS_FORM = {
    "settings": {},
    "environment": {
        "device": str,
        "processes": COUNT,
        "threads": COUNT,
        "cores?": COUNT,
        "compiled": bool,
        "platform": str,
        "versions": {str: str},
    },
    "epochs": [EPOCH_FORM],
    "seconds": (0.0, LARGE),
    "wall_seconds": (0.0, LARGE),
    "selected": BEST_FORM,
    "data": _DATA,
    "evaluated?": _DATA,
    "thresholds": THRESHOLDS,
    "valid": _MEASURED,
    "test": _MEASURED,
    "untrained": {"estimator": ESTIMATORS, "test": _MEASURED},
}
DETECTOR_FORM = {
    "thresholds": THRESHOLDS,
    "estimator": ESTIMATORS,
    "size": LIMITS["size"],
}


@dataclass(frozen=True)
class Detector:
    """A trained backbone, the density of normal features, and what its scores mean.

    Attributes
    ----------
    backbone : nn.Module
        (B, 3, H, W) in, (B, 512) out.
    density : Density
        Fitted to the training normals.
    normal_scores : dict of str to (N,) array
        Sorted scores of the training normals, for percentiles. See `cross_scores`.
    thresholds : dict of str to float
        The greatest Youden index on the validation part; at or above is abnormal.
    estimator : str
        The one that validation chose.
    size : int
        Side of the input, in pixels.
    """

    backbone: nn.Module
    density: Density
    normal_scores: Scores
    thresholds: dict[str, float]
    estimator: str
    size: int

    def score(self, images: npt.NDArray[np.uint8]) -> Scores:
        """Score (N, S, S) uint8 images with both estimators.

        Raises
        ------
        PipelineError
            If a score is not finite: the weights or the density are of no use.
        """
        features = embed_images(self.backbone, images)
        with np.errstate(all="ignore"):
            scores = {name: self.density.score(features, name) for name in ESTIMATORS}
        for name, values in scores.items():
            if not np.isfinite(values).all():
                raise PipelineError(f"the detector gives scores that are not finite ({name})")
        return scores

    def save(self, path: Path) -> None:
        """Write everything into one file."""
        tensors: Tensors = {
            f"backbone.{name}": value for name, value in self.backbone.state_dict().items()
        }
        tensors |= self.density.as_tensors()
        for name, values in self.normal_scores.items():
            tensors[f"normal_scores.{name}"] = torch.from_numpy(values)
        info = {"thresholds": self.thresholds, "estimator": self.estimator, "size": self.size}
        save_tensors(path, tensors, info)

    @classmethod
    def load(cls, path: Path, device: torch.device | None = None) -> Detector:
        """Read what `save` wrote.

        Raises
        ------
        PipelineError
            If the file is missing, damaged or of another kind.
        """
        tensors, info = load_tensors(path, DETECTOR_FORM)
        backbone = make_backbone()
        prefix = "backbone."
        try:
            weights = {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
            backbone.load_state_dict(weights)
            density = Density.from_tensors(tensors)
            scores = {name: tensors[f"normal_scores.{name}"].numpy() for name in ESTIMATORS}
            for name, values in scores.items():
                if values.ndim != 1 or not values.size or (np.diff(values) < 0).any():
                    raise ValueError(f"normal_scores.{name} must be sorted, one at least")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise PipelineError(f"{path} holds no detector: {reason}") from error
        return cls(
            backbone.eval().to(device),
            density,
            scores,
            {name: float(info["thresholds"][name]) for name in ESTIMATORS},
            info["estimator"],
            info["size"],
        )


def fit_detector(backbone: nn.Module, dataset: Dataset, size: int, estimator: str) -> Detector:
    """Fit the density to the training normals and the thresholds to the validation part."""
    normal = embed_images(backbone, dataset.images["train"])
    valid = embed_images(backbone, dataset.images["valid"])
    density = Density.fit(normal)
    labels = dataset.labels("valid")
    return Detector(
        backbone.eval(),
        density,
        cross_scores(normal),
        {name: best_threshold(density.score(valid, name), labels) for name in ESTIMATORS},
        estimator,
        size,
    )


def cross_scores(features: npt.ArrayLike) -> Scores:
    """Score training normals, each by a density fitted without its fifth of them; sorted.

    A density scores what it was fitted to too low: hardly any other image would score lower.
    """
    values = np.asarray(features)
    folds = np.array_split(np.arange(len(values)), min(FOLDS, len(values)))
    scores: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in ESTIMATORS}
    for fold in folds:
        rest = Density.fit(np.delete(values, fold, axis=0))
        for name in ESTIMATORS:
            scores[name].append(rest.score(values[fold], name))
    return {name: np.sort(np.concatenate(parts)) for name, parts in scores.items()}


def measure_part(detector: Detector, dataset: Dataset, part: str) -> tuple[Scores, dict[str, Any]]:
    """Score a part and measure both estimators on it."""
    scores = detector.score(dataset.images[part])
    labels = dataset.labels(part)
    return scores, {name: measure(scores[name], labels) for name in ESTIMATORS}


def measure_untrained(
    settings: Settings, dataset: Dataset, runtime: Runtime
) -> tuple[Scores, dict[str, Any]]:
    """Score and measure the test part with the network as it was before training.

    The estimator is chosen on the validation part, as after training.
    """
    network = seeded_network(
        settings.seed, settings.classes, settings.head_layers, settings.imagenet
    )
    backbone = network.backbone.to(runtime.device)
    aucs = validate(network, dataset)
    density = Density.fit(embed_images(backbone, dataset.images["train"]))
    features = embed_images(backbone, dataset.images["test"])
    scores = {name: density.score(features, name) for name in ESTIMATORS}
    labels = dataset.labels("test")
    return scores, {
        "estimator": max(ESTIMATORS, key=lambda name: aucs[name]),
        "test": {name: measure(scores[name], labels) for name in ESTIMATORS},
    }


def finish(
    settings: Settings, dataset: Dataset, progress: Progress, folder: Path, runtime: Runtime
) -> dict[str, Any]:
    """Make the detector from the best weights, score the test part and write `METRICS`."""
    best = progress.best
    if best is None:
        raise PipelineError("nothing was validated, so that no weights can be chosen")
    path = folder / WEIGHTS.format(best["epoch"])
    weights, _ = load_tensors(path, {})
    backbone = make_backbone()
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise PipelineError(f"{path} holds no weights of this network") from error
    detector = fit_detector(backbone.to(runtime.device), dataset, settings.size, best["estimator"])
    detector.save(folder / DETECTOR)
    metrics = {
        "settings": settings.as_dict(),
        "environment": describe(runtime),
        "data": describe_data(dataset),
        "epochs": progress.epochs,
        "seconds": sum(record["seconds"] for record in progress.epochs),
        "wall_seconds": sum(record["wall_seconds"] for record in progress.epochs),
        "selected": best,
    }
    return evaluate(detector, settings, dataset, folder, metrics, runtime)


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Describe the images of a run, so that others can be told from them."""
    return {
        "layout": dataset.split.layout,
        "images": {part: len(images) for part, images in dataset.images.items()},
        "files": fingerprint(dataset, PARTS),
        "skipped": list(dataset.skipped),
        "shared_patients": shared_patients(dataset.split),
    }


def changed_parts(made_with: dict[str, Any], dataset: Dataset) -> list[str]:
    """Name the parts whose images or labels are not those of a record of `describe_data`."""
    now = fingerprint(dataset, PARTS)
    return [part for part in PARTS if now[part] != made_with["files"][part]]


def evaluate(
    detector: Detector,
    settings: Settings,
    dataset: Dataset,
    folder: Path,
    metrics: dict[str, Any],
    runtime: Runtime,
) -> dict[str, Any]:
    """Score the test part; write the scores, the completed metrics and the report.

    `metrics` is what is known from training: what `METRICS` holds, less the measured parts. Its
    record of the data is kept; where others are scored now, theirs comes beside it.
    """
    thresholds = metrics.get("thresholds", detector.thresholds)  # floats, as good as a name
    if (detector.size, detector.estimator, detector.thresholds) != (
        settings.size,
        metrics["selected"]["estimator"],
        thresholds,
    ):
        raise PipelineError(f"{folder / DETECTOR} and {METRICS} are not of one run")
    scores, test = measure_part(detector, dataset, "test")
    _, valid = measure_part(detector, dataset, "valid")
    scores_before, untrained = measure_untrained(settings, dataset, runtime)
    changed = changed_parts(metrics["data"], dataset)
    metrics = {
        **metrics,
        "evaluated": describe_data(dataset) if changed else None,
        "thresholds": detector.thresholds,
        "valid": valid,
        "test": test,
        "untrained": untrained,
    }
    write_scores(folder / SCORES, dataset, {"": scores, "untrained_": scores_before})
    write_json(folder / METRICS, metrics)
    return metrics


def write_scores(path: Path, dataset: Dataset, kinds: dict[str, Scores]) -> None:
    """Write the scores of the test part as CSV, one column per prefix and estimator."""
    columns = {
        prefix + name: values for prefix, scores in kinds.items() for name, values in scores.items()
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "abnormal", *columns])
    for index, entry in enumerate(dataset.split.test):
        values = [repr(float(column[index])) for column in columns.values()]
        writer.writerow([csv_cell(entry.path), int(entry.abnormal), *values])
    write_text(path, text.getvalue())


def read_scores(path: Path, truth: npt.NDArray[np.bool_]) -> Scores:
    """Read the columns of what `write_scores` wrote, for the images of this truth.

    Raises
    ------
    PipelineError
        If the file cannot be read or belongs to other images.
    """
    names = [prefix + name for prefix in ("", "untrained_") for name in ESTIMATORS]
    rows = [row for _, row in read_csv(path, ("abnormal", *names))]
    try:
        if [row["abnormal"] for row in rows] != [str(int(label)) for label in truth]:
            raise ValueError("it is not of the images of the test part")
        columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
        if not all(np.isfinite(values).all() for values in columns.values()):
            raise ValueError("a score is not finite")
    except ValueError as error:
        raise PipelineError(f"cannot read {path}: {error}") from error
    return columns


def chosen_auc(metrics: dict[str, Any]) -> float:
    """Give the test AUC of the estimator that validation chose."""
    return float(metrics["test"][metrics["selected"]["estimator"]]["auc"])


def load_metrics(folder: Path) -> dict[str, Any]:
    """Read the metrics of a finished run."""
    if not (folder / METRICS).exists():
        raise PipelineError(f"{folder} holds no finished run: no {METRICS}")
    metrics: dict[str, Any] = read_json(folder / METRICS, METRICS_FORM)
    try:
        Settings(**metrics["settings"])
        if not metrics["epochs"]:
            raise PipelineError("epochs must not be empty")
    except (TypeError, PipelineError) as error:
        raise PipelineError(f"{folder / METRICS} is not one of the pipeline's: {error}") from error
    return metrics
