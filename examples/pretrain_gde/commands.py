"""What the commands do, each with the options that `cli` has read."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anatpaste_aug.functions import is_function
from examples.pretrain_gde import finetune
from examples.pretrain_gde.augment import segments_quickly
from examples.pretrain_gde.compare import describe_result, mean_and_sd, write_table
from examples.pretrain_gde.data import Dataset, Source, load_dataset, tell_of_masks
from examples.pretrain_gde.density import NAMES
from examples.pretrain_gde.detector import Detector
from examples.pretrain_gde.disk import is_among, locking
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.evaluate import DETECTOR, SPLIT, changed_parts, evaluate, load_metrics
from examples.pretrain_gde.given import OPTIONS, code_of, given
from examples.pretrain_gde.heatmap import NO_MAP, has_map
from examples.pretrain_gde.model import tell_of_maps
from examples.pretrain_gde.phantoms import write_phantoms
from examples.pretrain_gde.predict import find_images, predict, write_predictions
from examples.pretrain_gde.readers import SPLIT_FORM, Split
from examples.pretrain_gde.report import REPORT, write_report
from examples.pretrain_gde.run import run, run_all, run_folder
from examples.pretrain_gde.runtime import Runtime, default_precision, describe, start
from examples.pretrain_gde.settings import MASKS, PLAN, PRESETS, Settings
from examples.pretrain_gde.storage import printable, read_json, warn, write_json
from examples.pretrain_gde.transfer import describe_transfer, transfer

DEMO_PIXELS = 128  # of the phantoms' files


def obey(options: Namespace, command: Callable[[Namespace, Runtime], int | None]) -> int:
    """Run a command; return the exit status, and say in a line what failed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be texts
            stream.reconfigure(errors="backslashreplace")
    try:
        with start(
            options.device, options.threads, options.compile, options.tensorboard
        ) as runtime:
            return int(command(options, runtime) or 0)
    except (PipelineError, OSError) as error:
        return _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        return _fail(f"out of memory: {str(error).splitlines()[0] if str(error) else 'no details'}")
    except KeyboardInterrupt:
        trains = command in (train_command, compare_command)
        hint = ": --resume goes on from the last checkpoint" if trains else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return 130


def _fail(message: str) -> int:
    """Say in one line, or one for each bad file, what is wrong."""
    print("error:", "\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    return 1


def demo_command(options: Namespace, runtime: Runtime) -> None:
    """Show on phantoms what training changes, no data needed; also without a command."""
    precision = default_precision(runtime.device)
    settings = Settings(**PRESETS["demo"], seed=options.seed, precision=precision)
    data = options.out / "phantoms"
    folder = run_folder(options.out, settings)
    if (folder / SPLIT).exists():
        made_from = read_json(folder / SPLIT, SPLIT_FORM).get("folder")
        if made_from != str(data.resolve()):  # the demonstration replaces its own runs alone
            raise PipelineError(f"{folder} holds a run on other images: give another --out")
    if runtime.leads:
        write_phantoms(data, DEMO_PIXELS)
    runtime.wait()
    metrics = run(settings, Source(data, options.out / "cache"), folder, runtime, overwrite=True)
    if not runtime.leads:
        return
    print()
    _print_table("test AUC on phantoms", metrics["test"], "auc")
    print(describe_result(metrics))
    print(f"\nreport: {folder / REPORT}")


def train_command(options: Namespace, runtime: Runtime) -> None:
    """Train and evaluate one variant, one run per seed."""
    for variant, summary in run_variants(options, runtime, [options.variant]).items():
        scored = summary["columns"].get("scored")
        if scored and len(options.seeds) > 1:
            print(f"{variant}: test AUC {mean_and_sd(scored)} over {len(options.seeds)} seeds")


def compare_command(options: Namespace, runtime: Runtime) -> None:
    """Run all variants with the same budget and seeds, and print the table."""
    summaries = run_variants(options, runtime, options.variants)
    if runtime.leads:
        print(f"\n{write_table(summaries, options.out)}")


def run_variants(
    options: Namespace, runtime: Runtime, variants: Sequence[str | None]
) -> dict[str, dict[str, Any]]:
    """Run variants with all seeds; return their summaries."""
    chosen = [make_settings(options, runtime, variant) for variant in variants]
    if runtime.leads:
        tell_of_maps(chosen[0])
    runs = [replace(one, seed=seed) for one in chosen for seed in options.seeds]
    return run_all(runs, make_source(options), options.out, runtime, resume=options.resume)


def evaluate_command(options: Namespace, runtime: Runtime) -> None:
    """Score the test part of finished runs anew."""
    for folder in options.runs:  # before the first takes its time
        check_own(folder, Settings(**load_metrics(folder)["settings"]), options, "view_with_mask")
    for folder in options.runs:
        with locking(folder):  # what its files say is read from, never written to
            metrics, saved, dataset = load_run(folder, options)
            changed = changed_parts(metrics["data"], dataset)
            if changed and not options.changed_images:
                raise PipelineError(
                    f"{folder} was made with other images or labels ({', '.join(changed)}): "
                    "--changed-images scores these all the same, and the report says so"
                )
            detector = Detector.load(folder / DETECTOR, runtime.device)
            metrics, scores = evaluate(detector, dataset, folder, metrics)
            write_report(folder, dataset, options.published or saved.get("published"), scores)
        print(f"{folder}: {describe_result(metrics)}")


def load_run(folder: Path, options: Namespace) -> tuple[dict[str, Any], dict[str, Any], Dataset]:
    """Return a run's metrics, what its split says, and its images."""
    metrics = load_metrics(folder)
    settings = Settings(**metrics["settings"])
    saved = read_json(folder / SPLIT, SPLIT_FORM)
    split = Split.from_dict(saved)
    data = options.data or Path(saved.get("folder", ""))
    if options.data is None:
        if not saved.get("folder") or not data.is_dir():
            raise PipelineError(f"{folder / SPLIT} does not say where the data are: give --data")
        print(printable(f"{folder}: images from {data}, as {SPLIT} says"), file=sys.stderr)
    groups = options.groups or saved.get("groups") or ()
    if groups and not options.groups:
        print(printable(f"{folder}: groups from {groups[0]}, as {SPLIT} says"), file=sys.stderr)
    cache = options.cache or folder / "cache"
    readable = [Path(saved["cache"])] if saved.get("cache") and not options.cache else []
    if cache.is_symlink() and not options.cache:
        raise PipelineError(f"{cache} is a link, which may lead anywhere: give --cache")
    source = Source(data, cache, skip_bad=options.skip_bad, groups=groups)
    dataset = load_dataset(source, split, settings, *readable)
    tell_of_masks(dataset.upright, settings.mask)
    return metrics, saved, dataset


def export_command(options: Namespace, runtime: Runtime) -> None:
    """Write the trained backbone for other libraries."""
    detector = Detector.load(options.run / DETECTOR)
    check_own(options.run, detector.settings, options)
    _check_output(options.output, list(options.run.rglob("*")))
    detector.export(options.output)


def finetune_command(options: Namespace, runtime: Runtime) -> None:
    """Learn from few labeled images, pretrained or not, and compare."""
    own = options.run / finetune.FINETUNED
    page = options.output or own
    if page.suffix != ".html":
        raise PipelineError(f"--output must end in .html, got {page}")
    plan = finetune.check_plan({name: getattr(options, name) for name in ("labels", *PLAN)})
    detector = Detector.load(options.run / DETECTOR, runtime.device)
    check_own(options.run, detector.settings, options, "view_with_mask")
    networks, settings = finetune.starts(detector, options.beside), detector.settings
    normal, abnormal = find_images(options.normal), find_images(options.abnormal)
    kept = {*options.run.rglob("*")} - {own, own.with_suffix(".json")}
    for output in (page, page.with_suffix(".json")):
        _check_output(output, [*normal, *abnormal, *kept])
    with locking(options.run):
        metrics, _, dataset = load_run(options.run, options)
        changed = changed_parts(metrics["data"], dataset)
        if "test" in changed or settings.as_dict() != metrics["settings"]:
            raise PipelineError(f"{options.run} was made with other test images or settings")
        labeled = finetune.read_labeled(settings, normal, abnormal, dataset)
        result = finetune.finetune(networks, labeled, plan, settings.seed)
        result |= {"settings": settings.as_dict(), "environment": describe(runtime)}
        rows = finetune.write_finetuned(page, result)
    width = max(len(name) for name, *_ in rows)
    for name, way, *cells in rows:
        print(f"{name:{width}}  {way:13}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"\nreport: {page}")


def predict_command(options: Namespace, runtime: Runtime) -> int:
    """Score new images with a finished run; exit 3 if some cannot be read, 1 if none can."""
    detector = Detector.load(options.run / DETECTOR, runtime.device)
    check_own(options.run, detector.settings, options, "view")
    if options.heat_maps is not None and not has_map(detector):  # before anything is written
        raise PipelineError(NO_MAP)
    paths = find_images(options.images)
    _check_output(options.output, [*paths, options.run / DETECTOR])
    rows = predict(detector, paths, options.heat_maps)
    scored, failed = write_predictions(rows, options.format, options.output, detector.settings.mask)
    if failed:
        print(f"{failed} of {scored + failed} images could not be read", file=sys.stderr)
    return 0 if not failed else 3 if scored else 1


def _print_table(title: str, results: dict[str, Any], key: str) -> None:
    """Print one figure of each network's scores, a line for each score."""
    print(f"{title:32}" + "".join(f"{network:>12}" for network in results))
    for name, words in NAMES.items():
        figures = [found.get(name, {}).get(key) for found in results.values()]
        cells = ["" if figure is None else f"{figure:.3f}" for figure in figures]
        if any(cells):
            print(f"{words:32}" + "".join(f"{cell:>12}" for cell in cells))


def _check_output(output: Path | None, read: Sequence[Path]) -> None:
    """Check that no file that is read, or that a run keeps, will be written over."""
    if output is not None and is_among(output, read):
        raise PipelineError(f"--output must be none of the files read or of the run, got {output}")


def transfer_command(options: Namespace, runtime: Runtime) -> None:
    """Test a finished run on another hospital's images, fitted to its normals."""
    detector = Detector.load(options.run / DETECTOR, runtime.device)
    check_own(options.run, detector.settings, options, "view_with_mask")
    normal, abnormal = find_images(options.normal), find_images(options.abnormal)
    _check_output(options.output, [*normal, *abnormal, options.run / DETECTOR])
    result = transfer(detector, normal, abnormal, options.folds, groups=options.groups)
    if options.output is not None:
        write_json(options.output, result)
    _print_table("AUC, mean of the folds", result["auc"], "mean")
    print(describe_transfer(result))


def check_own(folder: Path, settings: Settings, options: Namespace, needs: str = "") -> None:
    """Check that the command line names what a run was made with, where it is needed or named."""
    for option in OPTIONS:
        made, named = getattr(settings, option), getattr(options, option, None)
        if named not in (None, made):
            raise PipelineError(f"{folder} was made with --{option} {made}, not {named}")
    for option, code in code_of(vars(options)).items():
        if settings.code.get(option) != code:
            warn(f"{getattr(options, option)} was edited since {folder} was made")
    if needs:
        getattr(settings, needs).made_by()
        if is_function(settings.backbone):
            given("backbone", settings.backbone)


def make_settings(options: Namespace, runtime: Runtime, variant: str | None) -> Settings:
    """Put single options over the preset."""
    named = {**vars(options), "variant": variant}
    chosen = {"precision": default_precision(runtime.device), **PRESETS[options.preset]}
    chosen |= {n: named[n] for n in Settings.__dataclass_fields__ if named.get(n) is not None}
    whole = not chosen.get("crop") and chosen.get("mask", MASKS[0]) == MASKS[0]
    paper = options.preset == "paper" and whole  # as published, where it costs nothing
    chosen.setdefault("fresh_masks", paper and segments_quickly(runtime.device))
    chosen["code"] = code_of(chosen)
    return Settings(**chosen)


def make_source(options: Namespace) -> Source:
    """Return where the images come from."""
    return Source(
        options.data,
        options.cache or options.out / "cache",
        options.layout,
        tuple(options.held_out) if options.held_out else None,
        options.skip_bad,
        options.published,
        (*(str(Path(file).resolve()) for file in options.groups[:1]), *options.groups[1:]),
    )
