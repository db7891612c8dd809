"""Whole runs: data in, trained and evaluated networks out, one folder per variant and seed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from examples.pretrain_gde.data import Dataset, load_dataset, tell_of_lungs
from examples.pretrain_gde.disk import locking
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.evaluate import (
    METRICS,
    SPLIT,
    caution,
    changed_parts,
    finish,
    load_metrics,
    result_of,
    worth,
)
from examples.pretrain_gde.metrics import summary
from examples.pretrain_gde.readers import SPLIT_FORM, Split, read_split, shared_patients, unread
from examples.pretrain_gde.report import REPORT, write_report
from examples.pretrain_gde.runtime import Runtime
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.shortcuts import strongest
from examples.pretrain_gde.storage import printable, read_json, write_json
from examples.pretrain_gde.train import CHECKPOINT, train

FEW = 10  # normal images to standardize scores by
COLUMNS = {"scored": "", "untrained": "untrained"}  # summed up: by whose score, as of `result_of`


@dataclass(frozen=True)
class Source:
    """Where the images come from.

    Attributes
    ----------
    folder : Path
        The data set.
    cache : Path
        Where decoded images are kept.
    layout : str
        As for `read_split`.
    held_out : (int, int) or None
        As for `read_split`.
    skip_bad : bool
        Whether missing and damaged files are left out.
    published : str or None
        Data set whose published AUC the report marks, if not that of the layout.
    groups : tuple of str
        A table of more covariates, and the columns to read, as for `read_groups`.
    """

    folder: Path
    cache: Path
    layout: str = "auto"
    held_out: tuple[int, int] | None = None
    skip_bad: bool = False
    published: str | None = None
    groups: tuple[str, ...] = ()


def run_folder(out: Path, variant: str, seed: int) -> Path:
    """Return the folder of one run."""
    return out / variant / f"seed{seed}"


def run(
    settings: Settings,
    source: Source,
    folder: Path,
    runtime: Runtime,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train and evaluate one variant with one seed; return its metrics.

    Raises
    ------
    PipelineError
        If `folder` holds a run already, and it is neither to go on nor to be replaced, or it was
        made with other settings or images.
    """
    with contextlib.ExitStack() as stack:
        if runtime.leads:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locking(folder))
        if not overwrite:
            check_folder(settings, source, folder, runtime, resume=resume)
        finished = resume and (folder / METRICS).exists()
        dataset = load(settings, source, folder, runtime, resume=resume)
        metrics, scores = {}, None
        if finished:
            metrics = load_metrics(folder)
            if changed_parts(metrics["data"], dataset):
                raise PipelineError(f"{folder} was made with other images")
            if metrics["evaluated"]:
                raise PipelineError(f"{folder} was last evaluated on other images: do it again")
        else:
            progress = train(settings, dataset, folder, runtime, resume=resume)
            if runtime.leads:
                metrics, scores = finish(settings, dataset, progress, folder, runtime)
        if runtime.leads and not (finished and (folder / REPORT).exists()):
            write_report(folder, dataset, source.published, scores)
        runtime.wait()
        return metrics


def check_folder(
    settings: Settings, source: Source, folder: Path, runtime: Runtime, *, resume: bool = False
) -> None:
    """Check that a run may be made in `folder`, or go on there.

    Raises
    ------
    PipelineError
        If it holds a run and `resume` is false, or one of other settings, another layout, other
        held-out numbers or another number of processes.
    """
    if not resume:
        if any((folder / name).exists() for name in (METRICS, CHECKPOINT)):
            raise PipelineError(f"{folder} holds a run: give --resume or another --out")
        return
    if (folder / METRICS).exists():
        metrics = load_metrics(folder)
        now = {**settings.as_dict(), "number of processes": runtime.world}
        processes = metrics["environment"]["processes"]
        then = {**metrics["settings"], "number of processes": processes}
        if other := [f"{name} ({then.get(name)})" for name in now if then.get(name) != now[name]]:
            raise PipelineError(f"{folder} was made with another {', '.join(other)}")
    if (folder / SPLIT).exists():
        saved = read_json(folder / SPLIT, SPLIT_FORM)
        layout = Split.from_dict(saved).layout
        if source.layout not in ("auto", layout):
            raise PipelineError(f"{folder} was made with another layout: {layout}")
        for name, given in (("held_out", source.held_out), ("groups", source.groups)):
            if (saved.get(name) or []) != list(given or []):
                told = saved.get(name) or "none"
                raise PipelineError(
                    f"{folder} was made with other --{name.replace('_', '-')}: {told}"
                )


def check_runs(
    variants: Sequence[Settings],
    seeds: Sequence[int],
    source: Source,
    out: Path,
    runtime: Runtime,
    *,
    resume: bool = False,
) -> None:
    """Check the folders and splits of several runs, before the first of them takes its time.

    Raises
    ------
    PipelineError
        If a seed or a variant is given twice, a split cannot be drawn, or as `check_folder`.
    """
    for kind, given in (("seed", seeds), ("variant", [one.variant for one in variants])):
        twice = sorted({value for value in given if list(given).count(value) > 1}, key=str)
        if twice:
            raise PipelineError(f"{kind} {', '.join(map(str, twice))} is given twice")
    for seed in seeds:
        drawn = False
        for one in variants:
            folder = run_folder(out, one.variant, seed)
            check_folder(replace(one, seed=seed), source, folder, runtime, resume=resume)
            if not drawn and not (resume and (folder / SPLIT).exists()):
                read_split(source.folder, source.layout, seed, source.held_out)
                drawn = True


def run_seeds(
    settings: Settings,
    seeds: Sequence[int],
    source: Source,
    out: Path,
    runtime: Runtime,
    *,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Do one run per seed; return the metrics of all.

    Raises
    ------
    PipelineError
        Before the first training, if any of the runs cannot be made. See `check_runs`.
    """
    check_runs([settings], seeds, source, out, runtime, resume=resume)
    results = []
    for seed in seeds:
        folder = run_folder(out, settings.variant, seed)
        metrics = run(replace(settings, seed=seed), source, folder, runtime, resume=resume)
        results.append(metrics)
        if runtime.leads:
            print(f"{folder}: {describe_result(metrics)}", flush=True)
    if runtime.leads:
        write_json(out / settings.variant / "summary.json", summarize(results))
    return results


def load(
    settings: Settings, source: Source, folder: Path, runtime: Runtime, *, resume: bool = False
) -> Dataset:
    """Load the data of a run, and write its split beside the results."""
    if not runtime.leads:
        runtime.wait()  # the first process fills the cache
    path = folder / SPLIT
    if path.exists() and (resume or not runtime.leads):
        split = Split.from_dict(read_json(path, SPLIT_FORM))
    else:
        split = read_split(source.folder, source.layout, settings.seed, source.held_out)
    dataset = load_dataset(
        source.folder,
        split,
        settings,
        source.cache,
        groups=source.groups,
        skip_bad=source.skip_bad,
        progress=runtime.progress,
    )
    if runtime.leads:
        if not (resume and path.exists()):
            made_from: dict[str, Any] = {
                "seed": settings.seed,
                "folder": str(source.folder.resolve()),
                "cache": str(source.cache.resolve()),
                "held_out": source.held_out,
                "published": source.published,
                "groups": list(source.groups),
            }
            made_from["shared_patients"] = shared_patients(dataset.split)
            write_json(path, {**split.as_dict(), **made_from})
        shared = shared_patients(dataset.split)
        if shared["patients"]:
            counts = ", ".join(f"{count} {part}" for part, count in shared["images"].items())
            print(
                f"warning: by the file names, {shared['patients']} patients are in several parts "
                f"(images: {counts}): the test is not of new patients only",
                file=sys.stderr,
            )
        if told := unread(source.folder, dataset.split):
            print(printable(f"warning: {told}"), file=sys.stderr)
        if dataset.skipped:
            lines = map(printable, dataset.skipped)
            print(f"{len(dataset.skipped)} files skipped:", *lines, sep="\n  ")
        tell_of_lungs(dataset.upright)
        count = int((~dataset.labels("valid")).sum())
        if settings.scores == "all" and count < FEW:
            print(f"warning: scores are standardized by {count} normal images", file=sys.stderr)
        runtime.wait()
    return dataset


def describe_result(metrics: dict[str, Any]) -> str:
    """Say in a line how a run went, and in another what the figure is worth."""
    network, score, epoch = (metrics["scored"][name] for name in ("network", "score", "epoch"))
    if metrics["test"] is None:
        auc = metrics["validation"][network][score]
        stands = {
            "labels": "",
            "pasted": ", between normals and themselves with something pasted in",
        }
        told = f"AUC {auc:.3f} on validation{stands[metrics['validated_by']]}; nothing tested"
    else:
        test = result_of(metrics)
        low, high = test["auc_interval"]
        told = (
            f"test AUC {test['auc']:.3f} (95 % {low:.3f}-{high:.3f}), AP {test['ap']:.3f}, "
            f"untrained {result_of(metrics, 'untrained')['auc']:.3f}"
        )
    of_epoch = f" of epoch {epoch}" if epoch else ""
    return (
        f"{told}; {network} {score}{of_epoch}; {metrics['seconds'] / 60:.1f} min of training\n"
        f"{worth(metrics)} {caution(metrics)}"
    ).strip()


def summarize(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean and standard deviation of the test AUCs and APs over seeds."""
    columns: dict[str, list[Any]] = {}
    shortcuts = [strongest(metrics["shortcuts"]) for metrics in results]
    if all(metrics["test"] for metrics in results):
        for name, which in COLUMNS.items():
            columns[name] = [result_of(metrics, which)["auc"] for metrics in results]
            columns[f"{name}_adjusted"] = [
                result_of(metrics, which)["adjusted"][found[0]]["auc"] if found else None
                for metrics, found in zip(results, shortcuts, strict=True)
            ]
        columns["shortcut"] = [found[1]["auc"] if found else None for found in shortcuts]
        for network, scores in results[0]["test"].items():
            for name in scores:
                measured = [metrics["test"][network][name] for metrics in results]
                columns[f"{network}_{name}"] = [result["auc"] for result in measured]
                columns[f"{network}_{name}_ap"] = [result["ap"] for result in measured]
    return {
        "seeds": [metrics["settings"]["seed"] for metrics in results],
        "minutes": [metrics["seconds"] / 60 for metrics in results],
        "shortcuts": [found and found[0] for found in shortcuts],
        "columns": {name: summary(values) for name, values in columns.items()},
    }
