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
from examples.pretrain_gde.metrics import best_threshold, measure
from examples.pretrain_gde.model import make_backbone, seeded_network
from examples.pretrain_gde.readers import PARTS, shared_patients
from examples.pretrain_gde.runtime import Runtime, describe
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.storage import (
    Tensors,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
    write_text,
)
from examples.pretrain_gde.train import (
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
RECORDED = ("environment", "data", "epochs", "seconds", "selected", "test", "untrained")

Scores = dict[str, npt.NDArray[np.float64]]


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
        """Score (N, S, S) uint8 images with both estimators."""
        features = embed_images(self.backbone, images)
        return {name: self.density.score(features, name) for name in ESTIMATORS}

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
        tensors, info = load_tensors(path)
        backbone = make_backbone()
        prefix = "backbone."
        try:
            if info["estimator"] not in ESTIMATORS:
                raise ValueError(f"its estimator is {info['estimator']!r}")
            weights = {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
            backbone.load_state_dict(weights)
            scores = {name: tensors[f"normal_scores.{name}"].numpy() for name in ESTIMATORS}
            return cls(
                backbone.eval().to(device),
                Density.from_tensors(tensors),
                scores,
                {name: float(info["thresholds"][name]) for name in ESTIMATORS},
                str(info["estimator"]),
                int(info["size"]),
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PipelineError(f"{path} holds no detector: {error}") from error


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
    weights, _ = load_tensors(folder / WEIGHTS.format(best["epoch"]))
    backbone = make_backbone()
    backbone.load_state_dict(weights)
    detector = fit_detector(backbone.to(runtime.device), dataset, settings.size, best["estimator"])
    detector.save(folder / DETECTOR)
    metrics = {
        "settings": settings.as_dict(),
        "environment": describe(runtime),
        "epochs": progress.epochs,
        "seconds": sum(record["seconds"] for record in progress.epochs),
        "wall_seconds": sum(
            record.get("wall_seconds", record["seconds"]) for record in progress.epochs
        ),
        "selected": best,
    }
    return evaluate(detector, settings, dataset, folder, metrics, runtime)


def evaluate(
    detector: Detector,
    settings: Settings,
    dataset: Dataset,
    folder: Path,
    metrics: dict[str, Any],
    runtime: Runtime,
) -> dict[str, Any]:
    """Score the test part; write the scores, the completed metrics and the report.

    `metrics` is what is known from training: what `METRICS` holds, less the measured parts.
    """
    scores, test = measure_part(detector, dataset, "test")
    _, valid = measure_part(detector, dataset, "valid")
    scores_before, untrained = measure_untrained(settings, dataset, runtime)
    metrics = {
        **metrics,
        "data": {
            "layout": dataset.split.layout,
            "images": {part: len(images) for part, images in dataset.images.items()},
            "files": fingerprint(dataset, PARTS),
            "skipped": list(dataset.skipped),
            "shared_patients": shared_patients(dataset.split),
        },
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
        writer.writerow([entry.path, int(entry.abnormal), *values])
    write_text(path, text.getvalue())


def read_scores(path: Path) -> tuple[list[str], npt.NDArray[np.bool_], Scores]:
    """Read what `write_scores` wrote: paths, truth, and the columns."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in rows[0] if name not in ("path", "abnormal")]
        columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
        truth = np.array([row["abnormal"] == "1" for row in rows])
        return [row["path"] for row in rows], truth, columns
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise PipelineError(f"cannot read {path}: {error}") from error


def chosen_auc(metrics: dict[str, Any]) -> float:
    """Give the test AUC of the estimator that validation chose."""
    return float(metrics["test"][metrics["selected"]["estimator"]]["auc"])


def load_metrics(folder: Path) -> dict[str, Any]:
    """Read the metrics of a finished run."""
    if not (folder / METRICS).exists():
        raise PipelineError(f"{folder} holds no finished run: no {METRICS}")
    metrics: dict[str, Any] = read_json(folder / METRICS)
    try:
        Settings(**metrics["settings"])
        missing = [name for name in RECORDED if name not in metrics]
    except (KeyError, TypeError) as error:
        raise PipelineError(f"{folder / METRICS} is not one of the pipeline's: {error}") from error
    if missing:
        raise PipelineError(f"{folder / METRICS} lacks {', '.join(missing)}")
    return metrics
