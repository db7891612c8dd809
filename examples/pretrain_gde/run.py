"""Whole runs: data in, trained and evaluated networks out, one folder per variant and seed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.pretrain_gde.compare import describe_result, summarize
from examples.pretrain_gde.data import Dataset, Source, load_dataset, tell_of_masks
from examples.pretrain_gde.disk import locking
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.evaluate import METRICS, SPLIT, changed_parts, finish, load_metrics
from examples.pretrain_gde.readers import SPLIT_FORM, Split, read_split, shared_patients, unread
from examples.pretrain_gde.report import REPORT, write_report
from examples.pretrain_gde.runtime import Runtime
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.storage import printable, read_json, warn, write_json
from examples.pretrain_gde.train import CHECKPOINT, Trainer

FEW = 10  # normal images to standardize scores by


def run_folder(out: Path, settings: Settings) -> Path:
    """Return the folder of one run."""
    return out / settings.label / f"seed{settings.seed}"


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
    if runtime.leads:
        folder.mkdir(parents=True, exist_ok=True)
    with locking(folder) if runtime.leads else contextlib.nullcontext():
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
            progress = Trainer(settings, dataset, folder, runtime, resume=resume).run()
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
        then = {**metrics["settings"], "number of processes": metrics["environment"]["processes"]}
        if other := [f"{name} ({then.get(name)})" for name in now if then.get(name) != now[name]]:
            raise PipelineError(f"{folder} was made with another {', '.join(other)}")
    if (folder / SPLIT).exists():
        saved = read_json(folder / SPLIT, SPLIT_FORM)
        layout = Split.from_dict(saved).layout
        if source.layout not in ("auto", layout):
            raise PipelineError(f"{folder} was made with another layout: {layout}")
        for name in ("held_out", "groups"):
            given = saved.get(name) or []
            if given != list(getattr(source, name) or ()):
                option = name.replace("_", "-")
                raise PipelineError(f"{folder} was made with other --{option}: {given or 'none'}")


def run_all(
    runs: Sequence[Settings], source: Source, out: Path, runtime: Runtime, *, resume: bool = False
) -> dict[str, dict[str, Any]]:
    """Do several runs, a folder each; return and write a summary of each variant's.

    Other processes than the first return none.

    Raises
    ------
    PipelineError
        Before the first training, if any of the runs cannot be made: one is given twice, a split
        cannot be drawn, or as `check_folder`.
    """
    drawn: set[int] = set()
    folders = [run_folder(out, one) for one in runs]
    for one, folder in zip(runs, folders, strict=True):
        if folders.count(folder) > 1:
            raise PipelineError(f"variant {one.label}, seed {one.seed} is given twice")
        check_folder(one, source, folder, runtime, resume=resume)
        if one.seed not in drawn and not (resume and (folder / SPLIT).exists()):
            read_split(source.folder, source.layout, one.seed, source.held_out)
            drawn.add(one.seed)
    results: dict[str, list[dict[str, Any]]] = {}
    summaries = {}
    for one, folder in zip(runs, folders, strict=True):
        metrics = run(one, source, folder, runtime, resume=resume)
        if runtime.leads:
            print(f"{folder}: {describe_result(metrics)}", flush=True)
            results.setdefault(one.label, []).append(metrics)
            summaries[one.label] = summarize(results[one.label])
            write_json(folder.parent / "summary.json", summaries[one.label])
    return summaries


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
    dataset = load_dataset(source, split, settings)
    if runtime.leads:
        shared = shared_patients(dataset.split)
        if not (resume and path.exists()):
            made_from = {
                "seed": settings.seed,
                "folder": str(source.folder.resolve()),
                "cache": str(source.cache.resolve()),
                "held_out": source.held_out,
                "published": source.published,
                "groups": source.groups,
                "shared_patients": shared,
            }
            write_json(path, {**split.as_dict(), **made_from})
        if shared["patients"]:
            counts = ", ".join(f"{count} {part}" for part, count in shared["images"].items())
            warn(
                f"by the file names, {shared['patients']} patients are in several parts "
                f"(images: {counts}): the test is not of new patients only"
            )
        if told := unread(source.folder, dataset.split):
            warn(told)
        if dataset.skipped:
            lines = map(printable, dataset.skipped)
            print(f"{len(dataset.skipped)} files skipped:", *lines, sep="\n  ")
        tell_of_masks(dataset.upright, settings.mask)
        count = int((~dataset.labels("valid")).sum())
        if settings.scores == "all" and count < FEW:
            warn(f"scores are standardized by {count} normal images")
        runtime.wait()
    return dataset
