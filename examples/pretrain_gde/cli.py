"""The command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.readers import READERS
from examples.pretrain_gde.run import Source, run_seeds, summarise
from examples.pretrain_gde.runtime import Runtime, start
from examples.pretrain_gde.settings import (
    MASKS,
    PRECISIONS,
    PRESETS,
    VARIANTS,
    Settings,
    default_precision,
)

# Settings that have an option of their own name: their type and their help.
OPTIONS: dict[str, tuple[type, str]] = {
    "size": (int, "side of the input in pixels"),
    "epochs": (int, "epochs; a checkpoint is written after each"),
    "updates": (int, "updates per epoch"),
    "batch": (int, "originals per update"),
    "validate_every": (int, "epochs between validations"),
    "learning_rate": (float, "learning rate at the start of the cosine"),
    "momentum": (float, "momentum"),
    "weight_decay": (float, "weight decay"),
    "head_layers": (int, "hidden layers of 512 in the head"),
    "jitter": (float, "colour jitter before the augmentation"),
    "freeze_epochs": (int, "epochs with a frozen backbone, with --imagenet"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; give its exit status."""
    options = make_parser().parse_args(arguments)
    try:
        with start(
            options.device,
            options.threads,
            compiled=getattr(options, "compile", False),
            progress=not options.quiet,
            tensorboard=getattr(options, "tensorboard", False),
        ) as runtime:
            return int(options.command(options, runtime) or 0)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: --resume goes on from the last checkpoint", file=sys.stderr)
        return 130


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
        chosen = summarise(results)["chosen"]
        print(
            f"{settings.variant}: test AUC {chosen['mean']:.3f}, standard deviation "
            f"{chosen['sd']:.3f} over {len(results)} seeds"
        )


def make_settings(options: argparse.Namespace, runtime: Runtime, variant: str) -> Settings:
    """Put single options over the preset."""
    chosen: dict[str, Any] = dict(PRESETS[options.preset])
    for name in OPTIONS:
        if getattr(options, name) is not None:
            chosen[name] = getattr(options, name)
    return Settings(
        **chosen,
        variant=variant,
        mask=options.mask,
        fresh_masks=options.fresh_masks,
        imagenet=options.imagenet,
        precision=options.precision or default_precision(runtime.device),
        channels_last=options.channels_last,
    )


def make_source(options: argparse.Namespace) -> Source:
    """Give where the images come from."""
    return Source(
        options.data,
        options.cache or options.out / "cache",
        options.layout,
        tuple(options.held_out) if options.held_out else None,
        options.skip_bad,
    )


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.pretrain_gde",
        description="Anatomy-aware pretraining and Gaussian density estimation.",
    )
    commands = parser.add_subparsers(title="commands", required=True)

    training = commands.add_parser("train", help="train and evaluate, one run per seed")
    _add_run_options(training)
    training.add_argument("--variant", choices=VARIANTS, default="anatpaste")
    training.set_defaults(command=train_command)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (auto)")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's own choice)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _add_data_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--data", type=Path, required=required, help="folder of the data set")
    parser.add_argument("--layout", default="auto", choices=("auto", *READERS))
    parser.add_argument("--cache", type=Path, help="folder of decoded images (OUT/cache)")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out missing and damaged files"
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    _add_data_options(parser, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/gde"), help="results (runs/gde)")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="quick", help="(quick)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per seed (0)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoints")
    parser.add_argument(
        "--held-out",
        type=int,
        nargs=2,
        metavar=("VALID", "TEST"),
        help="images per class set aside, where the data set leaves it open",
    )
    parser.add_argument("--mask", choices=MASKS, default="default", help="which lung mask")
    parser.add_argument(
        "--fresh-masks", action="store_true", help="segment at every draw, not once per image"
    )
    parser.add_argument("--imagenet", action="store_true", help="start from ImageNet weights")
    parser.add_argument("--precision", choices=PRECISIONS, help="(bf16 where the hardware has it)")
    parser.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory layout"
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile (on a GPU)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write logs for TensorBoard")
    for name, (kind, text) in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
