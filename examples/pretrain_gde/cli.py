"""The command line: read before torch is imported, which takes seconds."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, BooleanOptionalAction, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from examples.pretrain_gde.given import OPTIONS, give
from examples.pretrain_gde.readers import PUBLISHED_AUC, READERS
from examples.pretrain_gde.settings import PLAN, PRESETS, PURPOSES, VARIANTS, Settings

HELP = ("-h", "--help", "--list-presets")
MANY = 10**6  # as a limit, none to speak of
LAYOUTS = """plain: {train,valid,test}/{normal,abnormal}, train/normal at least
normals: a folder of normal images
zhanglab, chexpert, rsna: as they are distributed
"""
TABLE = "a CSV of file and covariates (age, view, ...) to adjust AUCs for (all columns)"
SAME = "as in training; needed for your own code alone, which no file can have imported"
BESIDE = "other starts: networks with ImageNet weights of their library, or your own function"
SWITCH, FOLDER = {"action": "store_true"}, {"type": Path, "metavar": "DIR"}
FILES = {"type": Path, "nargs": "+", "metavar": "PATH", "help": "files, folders"}
NUMBER, OWN = {"type": int, "metavar": "N"}, {"metavar": "NAME", "help": SAME}
CODE = ("--mask --segment", "--variant", "--backbone")
LABELED = ("run", "--normal", "--abnormal", "--groups")
MACHINE = ("--device", "--threads", "--quiet")
OF_RUNS = ("--cache", "--skip-bad", "--published", "--groups")
KNOWN: dict[str, dict[str, Any]] = {  # options of several commands, by their flags
    "--device": {"default": "auto", "metavar": "NAME", "help": "cpu, cuda, cuda:1, ... (auto)"},
    "--threads": {**NUMBER, "help": "CPU threads, 1 to 1024 (torch's choice)"},
    "--quiet": {**SWITCH, "help": "no progress bars"},
    "--data": {**FOLDER, "help": "folder of the data set, if it has moved"},
    "--cache": {**FOLDER, "help": "folder of decoded images (OUT/cache, or RUN/cache)"},
    "--skip-bad": {**SWITCH, "help": "leave out missing and damaged files"},
    "--published": {
        "choices": PUBLISHED_AUC,
        "help": "whose AUC the report marks (that of the layout)",
    },
    "--groups": {"nargs": "+", "default": (), "metavar": ("FILE", "COLUMN"), "help": TABLE},
    "--normal": {**FILES, "required": True},
    "--abnormal": {**FILES, "required": True},
    "run": {"type": Path, "metavar": "RUN", "help": "folder of a run"},
    "--list-presets": {"action": "version", "help": "print what each preset decides, and exit"},
    "-o --output": {"type": Path, "metavar": "FILE"},
    "--mask --segment": {**OWN, "type": partial(give, "mask")},
    "--variant": {**OWN, "type": partial(give, "variant")},
    "--variants": {**OWN, "type": partial(give, "variant"), "nargs": "+", "default": VARIANTS},
    "--backbone": {**OWN, "type": partial(give, "backbone")},
    "--beside": {**OWN, "type": partial(give, "backbone"), "nargs": "+", "default": ()},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, or the demonstration without any; return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in HELP):
        given.insert(0, "demo")
    # Both are read as torch and tqdm are imported, which code of the user's own may do as it is
    # named. Threads that spin wait long for one that another process keeps from its core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.environ.get("RANK", "0") != "0" or any(each.startswith("--q") for each in given):
        os.environ["TQDM_DISABLE"] = "1"
    options = make_parser().parse_args(given)
    from examples.pretrain_gde import commands

    return commands.obey(options, getattr(commands, f"{options.command}_command"))


def make_parser() -> ArgumentParser:
    """Make the parser of the command line."""
    parser = ArgumentParser(
        prog="python -m examples.pretrain_gde",
        description="Anatomy-aware pretraining and Gaussian density estimation.",
        epilog="COMMAND --help lists its options.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    _add(parser, "--list-presets", version=table_of_presets())
    parser.set_defaults(compile=False, tensorboard=False)
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )

    def add(name: str, told: str, *known: str, usage: str | None = None) -> ArgumentParser:
        """Add a command with some options."""
        form = partial(RawDescriptionHelpFormatter, max_help_position=27)
        text = f"{told.capitalize()}."
        added = commands.add_parser(
            name, help=told, description=text, usage=usage, formatter_class=form
        )
        _add(added, *known)
        return added

    demo = add("demo", "show on phantoms what training changes (also without a command)")
    demo.add_argument("--out", **FOLDER, default=Path("runs/demo"), help="results (runs/demo)")
    demo.add_argument("--seed", **NUMBER, default=0, help="of every draw (0)")
    demo.set_defaults(compile=None)

    usage = "%(prog)s --data DIR [options]"
    training = add("train", "train and evaluate one variant, one run per seed", usage=usage)
    _add_training(training, "--variant")
    table = add("compare", "train variants with the same budget and seeds, in a table", usage=usage)
    _add_training(table, "--variants")

    told = "score the test part of finished runs anew"
    again = add("evaluate", told, "--data", *OF_RUNS, *CODE)
    again.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    told = "score images or labels that are not those of the run; the report says so"
    again.add_argument("--changed-images", **SWITCH, help=told)

    told = "score new images; exit 3 if some cannot be read, 1 if none"
    scoring = add("predict", told, "run", "--mask --segment", "--backbone")
    scoring.add_argument("images", **FILES)
    scoring.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="(csv)")
    _add(scoring, "-o --output", help="table to write (standard output)")
    scoring.add_argument("--heat-maps", **FOLDER, help="where to write heat maps")

    told = "test a run on another hospital's images, fitted to its normals"
    elsewhere = add("transfer", told, *LABELED, *CODE)
    elsewhere.add_argument("--folds", **NUMBER, default=5, help="of the normals (5)")
    _add(elsewhere, "-o --output", help="JSON file to write")

    told = "write the trained backbone for other libraries"
    weights = add("export", told, "run", "--backbone")
    _add(weights, "-o --output", help="safetensors file", required=True)

    told = "learn from few labeled images, pretrained or not, and compare"
    tuning = add("finetune", told, *LABELED, "--data", "--cache", "--skip-bad", *CODE)
    tuning.add_argument("--labels", **NUMBER, nargs="+", required=True, help="images of each kind")
    for name, (default, form, told) in PLAN.items():
        _add_choice(tuning, name, default, form, f"{told} ({default:g})", default=default)
    _add(tuning, "--beside", help=BESIDE)
    _add(tuning, "-o --output", help="HTML file (RUN/finetune.html)")

    for name, command in commands.choices.items():
        machine = command.add_argument_group("machine")
        _add(machine, *MACHINE)
        if name in ("train", "compare"):
            _add_settings(machine, "machine")
            told = "torch.compile (on a GPU)"
            machine.add_argument("--compile", action=BooleanOptionalAction, help=told)
            machine.add_argument("--tensorboard", **SWITCH, help="write logs for TensorBoard")
    return parser


def _add_training(parser: ArgumentParser, variant: str) -> None:
    """Add the options of training but the machine's, by what they decide."""
    data = parser.add_argument_group("data", LAYOUTS)
    _add(data, "--data", required=True, help="folder of the data set")
    names, told = ("auto", *READERS), "one of these (told by the files)"
    data.add_argument("--layout", choices=names, default="auto", metavar="NAME", help=told)
    told = "images of each class to set aside, where the data leave it open"
    data.add_argument("--held-out", type=int, nargs=2, metavar=("VALID", "TEST"), help=told)
    _add(data, *OF_RUNS)
    _add_settings(data, "data")
    told = "results, for one process at a time (runs/gde)"
    data.add_argument("--out", **FOLDER, default=Path("runs/gde"), help=told)

    every = " (all of these)" if variant == "--variants" else ""
    recipe = parser.add_argument_group("recipe", told_of_presets())
    told = "one of these, for all that is not given (laptop)"
    recipe.add_argument("--preset", choices=PRESETS, default="laptop", metavar="NAME", help=told)
    _add(recipe, "--list-presets", version=table_of_presets())
    _add(recipe, variant, help=f"{', '.join(VARIANTS)}, or your own class{every}")
    _add_settings(recipe, "recipe")
    _add_settings(parser.add_argument_group("network"), "network")

    training = parser.add_argument_group("training")
    training.add_argument("--seeds", **NUMBER, nargs="+", default=[0], help="one run per seed (0)")
    training.add_argument("--resume", **SWITCH, help="go on from the last checkpoints")
    _add_settings(training, "training")


def told_of_presets() -> str:
    """Say what each preset is for."""
    return "\n".join(f"{name}: {PURPOSES[name]}" for name in PRESETS)


def table_of_presets() -> str:
    """Say what each preset decides."""
    lines = [f"{'':18}" + "".join(f"{name:13}" for name in PRESETS)]
    for each in fields(Settings):
        if each.metadata["group"] in ("variant", "recipe", "network", "training"):
            values = [preset.get(each.name, each.default) for preset in PRESETS.values()]
            lines.append(f"{_flag(each.name):18}" + "".join(f"{value!s:13}" for value in values))
    return "\n".join([*map(str.rstrip, lines), "", told_of_presets()])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add(parser: Any, *flags: str, **how: Any) -> None:
    """Add options that are known."""
    for each in flags:
        parser.add_argument(*each.split(), **{**KNOWN[each], **how})


def _add_settings(parser: Any, group: str) -> None:
    """Add an option for each setting of a group."""
    for each in fields(Settings):
        about = each.metadata
        if about["group"] == group:
            _add_choice(parser, each.name, each.default, about["form"], about["help"])


def _add_choice(parser: Any, name: str, value: Any, form: Any, told: str, **how: Any) -> None:
    """Add an option by the form of its values, and say their range."""
    if name in OPTIONS:
        flags = "--mask --segment" if name == "mask" else f"--{name}"
        return _add(parser, flags, help=told)
    if form is bool:
        how["action"] = BooleanOptionalAction
    elif form is str:
        how["metavar"] = "NAME"
    elif isinstance(form[0], str):
        how["choices"] = form
    else:
        (low, high), kind = form, type(value)
        how |= {"type": kind, "metavar": "N" if kind is int else "X"}
        least = f", at least {low:g}" if low else ""
        told += least if high >= MANY else f", {low:g} to {high:g}"
    parser.add_argument(_flag(name), help=told, **how)
