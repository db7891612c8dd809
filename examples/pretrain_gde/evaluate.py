"""From trained weights to a detector, its scores of the test part, and their figures."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from sklearn.metrics import average_precision_score

from examples.pretrain_gde.data import Dataset
from examples.pretrain_gde.density import NAMES
from examples.pretrain_gde.detector import EVERY, AllScores, Detector, fit_detector, scored_by
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import COUNT, LARGE
from examples.pretrain_gde.metrics import Values, by_score, measure, measure_adjusted
from examples.pretrain_gde.model import Network, seeded_network
from examples.pretrain_gde.readers import PARTS, SHARED_FORM, shared_patients
from examples.pretrain_gde.runtime import Runtime, describe
from examples.pretrain_gde.settings import EPOCHS, Settings
from examples.pretrain_gde.shortcuts import NEAR, Covariates, in_words, judge, strongest
from examples.pretrain_gde.storage import csv_cell, read_json, write_json, write_text
from examples.pretrain_gde.tensors import load_tensors
from examples.pretrain_gde.train import EPOCH_FORM, WEIGHTS, Progress, fingerprint

DETECTOR = "detector.safetensors"
METRICS = "metrics.json"
SPLIT = "split.json"
SCORE_TABLE = "scores.csv"

_RATE = (0.0, 1.0)
_AUC = {"auc": _RATE, "auc_interval": [_RATE] * 2}
_ADJUSTED = {
    "auc?": _RATE,
    "auc_interval?": [_RATE] * 2,
    "counted": COUNT,
    "left_out": COUNT,
    "groups": {str: {"normal": COUNT, "abnormal": COUNT, "auc?": _RATE}},
}
_RESULT = {**_AUC, "ap": _RATE, "adjusted": {str: _ADJUSTED}}
_SHORTCUT = {"way?": ("higher", "lower", "by group"), "raw?": _AUC, "distance?": _AUC}


def _each(form: Any) -> dict[str, Any]:
    """Make the form of values by network and score."""
    return {f"{network}?": {f"{score}?": form for score in NAMES} for network in EVERY}


_DATA = {
    "layout": str,
    "images": dict.fromkeys(PARTS, COUNT),
    "files": dict.fromkeys(PARTS, COUNT),
    "skipped": [str],
    "shared_patients": SHARED_FORM,
}
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
    "scored": {"network": EVERY, "score": tuple(NAMES), "epoch?": EPOCHS},
    "validated_by": ("labels", "pasted"),
    "validation": _each(_RATE),
    "threshold": (-LARGE, LARGE),
    "data": _DATA,
    "evaluated?": _DATA,
    "test?": _each(_RESULT),
    "shortcuts?": {str: _SHORTCUT},
}


def finish(
    settings: Settings, dataset: Dataset, progress: Progress, folder: Path, runtime: Runtime
) -> tuple[dict[str, Any], AllScores]:
    """Make the detector from the best weights, and go on as `evaluate`."""
    networks = {"untrained": seeded_network(settings).to(runtime.device)}
    if settings.epochs:
        trained = _load_best(settings, progress, folder).to(runtime.device)
        networks = {"trained": trained, **networks}
    detector, validation = fit_detector(networks, settings, dataset)
    detector.save(folder / DETECTOR)
    network, score = detector.scored
    epoch = progress.best["epoch"] if progress.best else None
    metrics = {
        "settings": settings.as_dict(),
        "environment": describe(runtime),
        "data": describe_data(dataset),
        "epochs": progress.epochs,
        "seconds": sum(record["seconds"] for record in progress.epochs),
        "wall_seconds": sum(record["wall_seconds"] for record in progress.epochs),
        "scored": {"network": network, "score": score, "epoch": epoch},
        "validated_by": "labels" if dataset.has_labels("valid") else "pasted",
        "validation": validation,
        "threshold": detector.threshold,
    }
    return evaluate(detector, dataset, folder, metrics)


def _load_best(settings: Settings, progress: Progress, folder: Path) -> Network:
    if progress.best is None:
        raise PipelineError("nothing was validated, so that no weights can be chosen")
    path = folder / WEIGHTS.format(progress.best["epoch"])
    weights, _ = load_tensors(path, {})
    network = Network(settings)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise PipelineError(f"{path} holds no weights of {settings.backbone}") from error
    return network


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
    detector: Detector, dataset: Dataset, folder: Path, metrics: dict[str, Any]
) -> tuple[dict[str, Any], AllScores]:
    """Score the test part, if there is one; write and return the completed metrics and the scores.

    `metrics` is what is known from training: what `METRICS` holds, less the measured parts. Its
    record of the data is kept; where others are scored now, theirs comes beside it.
    """
    threshold = metrics["threshold"]  # a float, as good as a name
    if (detector.settings.as_dict(), detector.threshold) != (metrics["settings"], threshold):
        raise PipelineError(f"{folder / DETECTOR} and {METRICS} are not of one run")
    changed = changed_parts(metrics["data"], dataset)
    scores: AllScores = {}
    test = shortcuts = None
    if dataset.has_labels("test"):
        scores, labels = detector.score_all(dataset.images["test"]), dataset.labels("test")
        shortcuts = judge(dataset.covariates, labels, dataset.labels("valid"))
        told = {name: dataset.covariates["test"][name] for name in shortcuts}
        test = measure_all(scores, labels, told)
        write_scores(folder / SCORE_TABLE, dataset, scores)
    evaluated = describe_data(dataset) if changed else None
    metrics = {**metrics, "evaluated": evaluated, "test": test, "shortcuts": shortcuts}
    write_json(folder / METRICS, metrics)
    return metrics, scores


def measure_all(scores: AllScores, abnormal: Values, covariates: Covariates) -> dict[str, Any]:
    """Measure all scores of some images, plain and adjusted for each covariate."""

    def figures(values: Values) -> dict[str, Any]:
        adjusted = {n: measure_adjusted(values, abnormal, v) for n, v in covariates.items()}
        average_precision = float(average_precision_score(abnormal, values))
        return {**measure(values, abnormal), "ap": average_precision, "adjusted": adjusted}

    return by_score(figures, scores)


def write_scores(path: Path, dataset: Dataset, scores: AllScores) -> None:
    """Write the covariates and scores of the test part as CSV, a column for each."""
    columns = {
        "path": [entry.path for entry in dataset.split.test],
        "abnormal": [str(int(entry.abnormal)) for entry in dataset.split.test],
    }
    columns |= {f"image_{name}": v for name, v in dataset.covariates["test"].items()}
    for network, named in scores.items():
        columns |= {f"{network}_{name}": values for name, values in named.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_cell, columns))
    writer.writerows(map(csv_cell, row) for row in zip(*columns.values(), strict=True))
    write_text(path, text.getvalue())


def result_of(metrics: dict[str, Any], network: str = "") -> dict[str, Any]:
    """Return what the score that counts reached on the test part, which there must be.

    Or the same score of another network, by name.
    """
    scored = metrics["scored"]
    result: dict[str, Any] = metrics["test"][network or scored["network"]][scored["score"]]
    return result


def worth(metrics: dict[str, Any]) -> str:
    """Say what is left of the test AUC beyond the strongest shortcut; empty if there is none."""
    found = strongest(metrics["shortcuts"])
    if found is None:
        return ""
    name, alone = found
    scored = result_of(metrics)["adjusted"][name]
    told = "too few normals are like the abnormal images to adjust for it"
    if scored["auc"] is not None:
        low, high = scored["auc_interval"]
        told = f"adjusted for it, the score has {scored['auc']:.3f} ({low:.3f}-{high:.3f})"
        untrained = result_of(metrics, "untrained")["adjusted"][name]["auc"]
        told += f", untrained {untrained:.3f}"
        if scored["left_out"]:
            every = scored["counted"] + scored["left_out"]
            told += f"; {scored['counted']} of {every} abnormal images have normals like them"
    return f"The strongest shortcut, {in_words(name)}, has {alone['auc']:.3f} alone; {told}."


def caution(metrics: dict[str, Any]) -> str:
    """Say in a sentence if a shortcut comes near the score; empty if none does."""
    found, scored = strongest(metrics["shortcuts"]), metrics["test"] and result_of(metrics)["auc"]
    if found is None or found[1]["auc"] < scored - NEAR or found[1]["auc_interval"][0] <= 0.5:
        return ""
    name, alone = found
    by_group = metrics["shortcuts"][name]["way"] == "by group"
    return (
        f"One {'column' if by_group else 'number'}, {in_words(name)}, does "
        f"{'better' if alone['auc'] > scored else 'nearly as well'}: this data may be told apart "
        "by something other than disease."
    )


def load_metrics(folder: Path) -> dict[str, Any]:
    """Read the metrics of a finished run."""
    if not (folder / METRICS).exists():
        raise PipelineError(f"{folder} holds no finished run: no {METRICS}")
    metrics: dict[str, Any] = read_json(folder / METRICS, METRICS_FORM)
    try:
        settings = Settings(**metrics["settings"])
        if bool(metrics["epochs"]) != bool(settings.epochs):
            raise PipelineError(f"it holds {len(metrics['epochs'])} epochs of {settings.epochs}")
        network, score = (metrics["scored"][name] for name in ("network", "score"))
        if (network, score) != scored_by(settings):
            raise PipelineError("it was scored by another score than its settings say")
        for results in (metrics["validation"], metrics["test"]):
            for name in (network, "untrained") if results is not None else ():
                if (results.get(name) or {}).get(score) is None:
                    raise PipelineError(f"{score} was not measured")
        shortcuts = metrics["shortcuts"] or {}
        if shortcuts and metrics["test"] is None:
            raise PipelineError("it holds shortcuts, but nothing was tested")
        for named in filter(None, (metrics["test"] or {}).values()):
            for result in filter(None, named.values()):
                each = result["adjusted"].values()
                halved = any((a["auc"] is None) != (a["auc_interval"] is None) for a in each)
                if halved or result["adjusted"].keys() != shortcuts.keys():
                    raise PipelineError("its adjusted AUCs are not of its shortcuts")
    except (KeyError, TypeError, PipelineError) as error:
        raise PipelineError(f"{folder / METRICS} is not one of the pipeline's: {error}") from error
    return metrics
