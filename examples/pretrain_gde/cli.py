"""The command line."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from examples.pretrain_gde.augment import segments_quickly
from examples.pretrain_gde.compare import compare
from examples.pretrain_gde.data import load_dataset, tell_of_lungs
from examples.pretrain_gde.density import NAMES
from examples.pretrain_gde.detector import Detector
from examples.pretrain_gde.disk import is_among, locking
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.evaluate import (
    DETECTOR,
    SPLIT,
    caution,
    changed_parts,
    evaluate,
    load_metrics,
    result_of,
    worth,
)
from examples.pretrain_gde.heatmap import NO_MAP, has_map
from examples.pretrain_gde.phantoms import write_phantoms
from examples.pretrain_gde.predict import find_images, predict, write_predictions
from examples.pretrain_gde.readers import PUBLISHED_AUC, READERS, SPLIT_FORM, Split
from examples.pretrain_gde.report import REPORT, write_report
from examples.pretrain_gde.run import Source, describe_result, run, run_folder, run_seeds, summarize
from examples.pretrain_gde.runtime import Runtime, start
from examples.pretrain_gde.settings import MASKS, PRESETS, VARIANTS, Settings, default_precision
from examples.pretrain_gde.shortcuts import in_words, strongest
from examples.pretrain_gde.storage import printable, read_json, write_json
from examples.pretrain_gde.transfer import transfer

RESULTS = "results, by one process at a time, which is not seen to on Windows (runs/gde)"
DEMO_PIXELS = 128  # of the phantoms' files


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, or the demonstration without any; return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given.insert(0, "demo")
    return obey(make_parser().parse_args(given))


def obey(options: argparse.Namespace) -> int:
    """Run the command that was parsed; return the exit status, and say in a line what failed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be texts
            stream.reconfigure(errors="backslashreplace")
    try:
        with start(
            options.device,
            options.threads,
            compiled=getattr(options, "compile", False),
            progress=not options.quiet,
            tensorboard=getattr(options, "tensorboard", False),
        ) as runtime:
            return int(options.command(options, runtime) or 0)
    except (PipelineError, OSError) as error:
        return _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        return _fail(f"out of memory: {str(error).splitlines()[0] if str(error) else 'no details'}")
    except KeyboardInterrupt:
        trains = options.command in (train_command, compare_command)
        hint = ": --resume goes on from the last checkpoint" if trains else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return 130


def _fail(message: str) -> int:
    """Say in one line, or one for each bad file, what is wrong."""
    print("error:", "\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    return 1


def demo_command(options: argparse.Namespace, runtime: Runtime) -> None:
    """Train on phantoms and show what training changes."""
    settings = Settings(
        **PRESETS["demo"], seed=options.seed, precision=default_precision(runtime.device)
    )
    data = options.out / "phantoms"
    folder = run_folder(options.out, settings.variant, settings.seed)
    if (folder / SPLIT).exists():
        made_from = read_json(folder / SPLIT, SPLIT_FORM).get("folder")
        if made_from != str(data.resolve()):  # the demonstration replaces its own runs alone
            raise PipelineError(f"{folder} holds a run on other images: give another --out")
    if runtime.leads:
        write_phantoms(data, DEMO_PIXELS, progress=runtime.progress)
    runtime.wait()
    source = Source(data, options.out / "cache")
    metrics = run(settings, source, folder, runtime, overwrite=True)
    if not runtime.leads:
        return
    print()
    _print_table("test AUC on phantoms", metrics["test"], "auc")
    print(describe_result(metrics))
    print(f"\nreport: {folder / REPORT}")


def train_command(options: argparse.Namespace, runtime: Runtime) -> None:
    """Train and evaluate one variant with one or several seeds."""
    settings = make_settings(options, runtime, options.variant)
    results = run_seeds(
        settings,
        options.seeds,
        make_source(options),
        options.out,
        runtime,
        resume=options.resume,
    )
    if runtime.leads and len(results) > 1:
        scored = summarize(results)["columns"].get("scored")
        if scored is None:
            return
        print(
            f"{settings.variant}: test AUC {scored['mean']:.3f}, standard deviation "
            f"{scored['sd']:.3f} over {len(results)} seeds"
        )


def compare_command(options: argparse.Namespace, runtime: Runtime) -> None:
    """Run all variants with the same budget and seeds, and print the table."""
    table = compare(
        make_settings(options, runtime, options.variants[0]),
        options.variants,
        options.seeds,
        make_source(options),
        options.out,
        runtime,
        resume=options.resume,
    )
    if runtime.leads:
        print(f"\n{table}")


def evaluate_command(options: argparse.Namespace, runtime: Runtime) -> None:
    """Score the test part of finished runs anew."""
    for folder in options.runs:
        load_metrics(folder)  # before the first takes its time
    for folder in options.runs:
        with locking(folder):
            metrics = evaluate_run(folder, options, runtime)
        print(f"{folder}: {describe_result(metrics)}")


def evaluate_run(folder: Path, options: argparse.Namespace, runtime: Runtime) -> dict[str, Any]:
    """Score the test part of one run. What its files say is read from, never written to."""
    metrics = load_metrics(folder)
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
    cache, readable = options.cache, []
    if cache is None:
        cache = folder / "cache"
        readable = [Path(saved["cache"])] if saved.get("cache") else []
        if cache.is_symlink():
            raise PipelineError(f"{cache} is a link, which may lead anywhere: give --cache")
    settings = Settings(**metrics["settings"])
    dataset = load_dataset(
        data,
        split,
        settings,
        cache,
        groups=groups,
        readable=readable,
        skip_bad=options.skip_bad,
        progress=runtime.progress,
    )
    tell_of_lungs(dataset.upright)
    changed = changed_parts(metrics["data"], dataset)
    if changed and not options.changed_images:
        raise PipelineError(
            f"{folder} was made with other images or labels ({', '.join(changed)}): "
            "--changed-images scores these all the same, and the report says so"
        )
    detector = Detector.load(folder / DETECTOR, runtime.device)
    metrics, scores = evaluate(detector, dataset, folder, metrics)
    write_report(folder, dataset, options.published or saved.get("published"), scores)
    return metrics


def predict_command(options: argparse.Namespace, runtime: Runtime) -> int:
    """Score new images; 3 if some could not be read, 1 if none could."""
    detector = Detector.load(options.run / DETECTOR, runtime.device)
    if options.heat_maps is not None and not has_map(detector):  # before anything is written
        raise PipelineError(NO_MAP)
    paths = find_images(options.images)
    _check_output(options.output, [*paths, options.run / DETECTOR])
    rows = predict(
        detector,
        paths,
        heat_map_folder=options.heat_maps,
        progress=runtime.progress,
    )
    scored, failed = write_predictions(rows, options.format, options.output)
    if failed:
        print(f"{failed} of {scored + failed} images could not be read", file=sys.stderr)
    return 0 if not failed else 3 if scored else 1


def _print_table(
    title: str, results: dict[str, Any], key: str, names: Mapping[str, str] = NAMES
) -> None:
    """Print one figure of each network's scores, a line for each score, or of other things."""
    print(f"{title:32}" + "".join(f"{network:>12}" for network in results))
    for name, words in names.items():
        figures = [found.get(name, {}).get(key) for found in results.values()]
        cells = ["" if figure is None else f"{figure:.3f}" for figure in figures]
        if any(cells):
            print(f"{words:32}" + "".join(f"{cell:>12}" for cell in cells))


def _check_output(output: Path | None, read: Sequence[Path]) -> None:
    """Check that no file that is read will be written over."""
    if output is not None and is_among(output, read):
        raise PipelineError(f"--output must be none of the files read, got {output}")


def transfer_command(options: argparse.Namespace, runtime: Runtime) -> None:
    """Test a finished run's networks on images of another source, and print the table."""
    detector = Detector.load(options.run / DETECTOR, runtime.device)
    normal, abnormal = find_images(options.normal), find_images(options.abnormal)
    _check_output(options.output, [*normal, *abnormal, options.run / DETECTOR])
    result = transfer(
        detector,
        normal,
        abnormal,
        options.folds,
        groups=options.groups,
        progress=runtime.progress,
    )
    if options.output is not None:
        write_json(options.output, result)
    aucs, scored = result["auc"], result["scored"]
    _print_table("AUC, mean of the folds", aucs, "mean")
    found = aucs[scored["network"]][scored["score"]]
    print(
        f"{scored['network']}, {NAMES[scored['score']]}: {found['mean']:.3f}, "
        f"standard deviation {found['sd']:.3f} over {result['folds']} folds"
    )
    if not (found := strongest(result["shortcuts"])):
        return
    print()
    alone = {
        told: {name: each[key] or {} for name, each in result["shortcuts"].items()}
        for told, key in (("alone", "raw"), ("distance", "distance"))
    }
    _print_table(
        "AUC of shortcuts", alone, "auc", {name: in_words(name) for name in alone["alone"]}
    )
    metrics = {"scored": scored, "test": result["pooled"], "shortcuts": result["shortcuts"]}
    print(
        f"all folds together: {result_of(metrics)['auc']:.3f}. {worth(metrics)} {caution(metrics)}"
    )
    adjusted = {
        network: {name: each["adjusted"][found[0]] for name, each in named.items()}
        for network, named in result["pooled"].items()
    }
    print()
    _print_table("AUC adjusted for it", adjusted, "auc")


def make_settings(options: argparse.Namespace, runtime: Runtime, variant: str | None) -> Settings:
    """Put single options over the preset."""
    given = {each.name: getattr(options, each.name, None) for each in fields(Settings)}
    given["variant"] = variant
    chosen = {"precision": default_precision(runtime.device), **PRESETS[options.preset]}
    chosen |= {name: value for name, value in given.items() if value is not None}
    if "fresh_masks" not in chosen:  # as published, where it costs nothing
        whole = not chosen.get("crop") and chosen.get("mask", MASKS[0]) == MASKS[0]
        paper = options.preset == "paper" and whole and segments_quickly(runtime.device)
        chosen["fresh_masks"] = paper
    return Settings(**chosen)


def make_source(options: argparse.Namespace) -> Source:
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


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.pretrain_gde",
        description="Anatomy-aware pretraining and Gaussian density estimation.",
    )
    commands = parser.add_subparsers(title="commands", required=True)

    demo = commands.add_parser("demo", help="phantoms, no data needed; also without a command")
    _add_common(demo)
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="(runs/demo)")
    demo.add_argument("--seed", type=int, default=0, help="(0)")
    demo.set_defaults(command=demo_command, compile=None)

    training = commands.add_parser("train", help="train and evaluate, one run per seed")
    _add_run_options(training)
    training.add_argument("--variant", choices=VARIANTS, help="(that of the preset)")
    training.set_defaults(command=train_command)

    table = commands.add_parser("compare", help="all variants, same budget and seeds, one table")
    _add_run_options(table)
    table.add_argument("--variants", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    table.set_defaults(command=compare_command)

    again = commands.add_parser("evaluate", help="score the test part of finished runs anew")
    _add_common(again)
    again.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    again.add_argument("--data", type=Path, help="folder of the data set, if it has moved")
    again.add_argument("--cache", type=Path, help="folder of decoded images (RUN/cache)")
    again.add_argument("--skip-bad", action="store_true", help="leave out damaged files")
    again.add_argument(
        "--changed-images",
        action="store_true",
        help="score images or labels that are not those of the run; the report says so",
    )
    _add_published(again)
    _add_groups(again)
    again.set_defaults(command=evaluate_command)

    scoring = commands.add_parser("predict", help="score new images with a finished run")
    _add_common(scoring)
    scoring.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    scoring.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="files or folders")
    scoring.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="(csv)")
    scoring.add_argument("--output", type=Path, help="file to write (standard output)")
    scoring.add_argument("--heat-maps", type=Path, metavar="DIR", help="where to write heat maps")
    scoring.set_defaults(command=predict_command)

    elsewhere = commands.add_parser(
        "transfer", help="test a finished run on another hospital's images, fitted to its normals"
    )
    _add_common(elsewhere)
    elsewhere.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    for kind in ("normal", "abnormal"):
        elsewhere.add_argument(
            f"--{kind}", type=Path, nargs="+", required=True, help="files or folders"
        )
    _add_groups(elsewhere)
    elsewhere.add_argument("--folds", type=int, default=5, help="of the normals (5)")
    elsewhere.add_argument("--output", type=Path, help="JSON file to write")
    elsewhere.set_defaults(command=transfer_command)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (auto)")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's own choice)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _add_published(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--published",
        choices=tuple(PUBLISHED_AUC),
        help="data set whose published AUC the report marks (that of the layout)",
    )


def _add_groups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--groups",
        nargs="+",
        default=(),
        metavar=("FILE", "COLUMN"),
        help="a CSV of file and covariates (age, view, ...) to adjust AUCs for; (all columns)",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--layout", default="auto", choices=("auto", *READERS))
    parser.add_argument("--cache", type=Path, help="folder of decoded images (OUT/cache)")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out missing and damaged files"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gde"), help=RESULTS)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="laptop", help="(laptop)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per seed (0)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoints")
    parser.add_argument(
        "--held-out",
        type=int,
        nargs=2,
        metavar=("VALID", "TEST"),
        help="images per class set aside, where the data set leaves it open",
    )
    _add_published(parser)
    _add_groups(parser)
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile (on a GPU)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write logs for TensorBoard")
    for each in fields(Settings):
        form = each.metadata["form"]
        if form is bool:
            how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        elif isinstance(form, tuple) and isinstance(form[0], str):
            how = {"choices": form}
        else:
            how = {"type": str if form is str else type(form[0])}
        if each.name not in ("variant", "seed"):
            option = f"--{each.name.replace('_', '-')}"
            parser.add_argument(option, help=each.metadata["help"], **how)
