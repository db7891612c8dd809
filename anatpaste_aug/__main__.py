"""The command line: ``python -m anatpaste_aug preview``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image

from anatpaste_aug import operations
from anatpaste_aug._version import __version__
from anatpaste_aug.checks import MIN_SIDE
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.disk import is_among
from anatpaste_aug.files import read_image
from anatpaste_aug.lungs import Segment, lung_mask
from anatpaste_aug.operations.opacity import KINDS
from anatpaste_aug.preview import preview_row, resize_square, save_picture, stack_rows, titles
from anatpaste_aug.robust import lung_mask_robust

MASKS: dict[str, Segment] = {"published": lung_mask, "robust": lung_mask_robust}
OPERATIONS: dict[str, type[operations.Operation[Any]]] = {
    "anatpaste": operations.AnatPaste,
    "opacity": operations.Opacity,
    "cutpaste": operations.CutPaste,
    "cutpaste_scar": operations.CutPasteScar,
    "cutpaste_union": operations.CutPasteUnion,
}
SIZE = 256
LARGEST_SIZE = 4096
FLAGS = {"size": "lesion_size"}  # options whose names the command needs itself


def number(text: str) -> int | float:
    """Read a number, whole if it is written so."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def length(text: str) -> int | float | None:
    """Read a number or "none"."""
    return None if text == "none" else number(text)


def size(text: str) -> int | None:
    """Read a side in pixels, or "native"."""
    if text == "native":
        return None
    if not MIN_SIDE <= int(text) <= LARGEST_SIZE:
        raise ValueError
    return int(text)


def make_parser() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the parser, and that of the preview for its errors."""
    parser = argparse.ArgumentParser(
        prog="python -m anatpaste_aug", description="Synthetic anomalies for chest radiographs."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "preview",
        usage="%(prog)s [IMAGE ...] [-o FILE] [--size N] [--operation NAME] [its options] ...",
        help="draw images, their lung masks and some pastes into one picture",
        description="One row per image: original, lung mask, alpha, result with its region outlined"
        ", two more draws. Without an image: a procedural phantom.",
    )
    add = command.add_argument
    add(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="PNG, JPEG, TIFF, BMP or DICOM files, first of all",
    )
    add(
        "-o",
        "--output",
        type=Path,
        default=Path("preview.png"),
        metavar="FILE",
        help="the picture to write (default: %(default)s)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: %(default)s)")
    add(
        "--size",
        type=size,
        default=SIZE,
        metavar="N",
        help=f"pixels on a side, {MIN_SIDE} to {LARGEST_SIZE}, to which images are squeezed before "
        "anything else, as for training, or native: as they are (default: %(default)s, the size "
        "that the published lengths are made for)",
    )
    add("--mask", choices=MASKS, help="which lung mask (default: published)")
    add(
        "--operation",
        choices=OPERATIONS,
        default="anatpaste",
        help="what to paste (default: %(default)s)",
    )
    group = command.add_argument_group(
        "options of the operation",
        "As published unless given. Two numbers are a range to draw from, one is a fixed value.",
    )

    def option(flag: str, text: str, nargs: str | None = "+", **more: Any) -> None:
        more = {"type": number, "metavar": "N", **more}
        group.add_argument(flag, nargs=nargs, help=text, **more)

    option("--scale", "area of the patch as a share of the image's (anatpaste, cutpaste, union)")
    option("--ratio", "width of the patch over its height (anatpaste, cutpaste, union)")
    option("--blur", "radius of the blur of alpha, in pixels (anatpaste)")
    option("--opacity", "alpha inside the shape, 0 to 255 (anatpaste)")
    option("--margin", "by how much the shape is smaller than the patch (anatpaste)", None)
    option("--jitter", "of brightness and contrast, 0 to 1 (all but opacity)", None)
    option("--width", "of the scar, in pixels (scar, union)")
    option("--height", "of the scar, in pixels (scar, union)")
    option("--angle", "of the scar, in degrees (scar, union)")
    kinds = f"kinds of lesions, out of {', '.join(KINDS)} (opacity)"
    option("--kinds", kinds, type=str, choices=KINDS, metavar="KIND")
    option("--lesion-size", "factor of the lesions' lengths (opacity)", None)
    option("--density", "factor of their alpha (opacity)", None)
    option(
        "--lengths-for",
        "the side of the images that all lengths are meant for, or none: pixels as they are "
        "(all but cutpaste)",
        None,
        type=length,
        default=argparse.SUPPRESS,
    )
    return parser, command


def make_operation(given: dict[str, Any]) -> operations.Operation[Any]:
    """Make the operation from the command's arguments; those that are None were not given.

    Raises
    ------
    TypeError, ValueError
        If an option is not one of this operation, or a value is not legal.
    """
    name = given["operation"]
    kind = OPERATIONS[name]
    own = {FLAGS.get(one.name, one.name): one.name for one in fields(kind)}  # type: ignore[arg-type]
    every = {FLAGS.get(f.name, f.name) for k in OPERATIONS.values() for f in fields(k)}  # type: ignore[arg-type]
    options = {}
    for flag in sorted(every & given.keys()):
        value = given[flag]
        if value is None and flag != "lengths_for":
            continue
        if flag not in own:
            raise ValueError(f"--{flag.replace('_', '-')} is no option of {name}")
        if isinstance(value, list) and flag != "kinds":
            if len(value) > 2:
                raise ValueError(f"--{flag} takes one number or two, got {len(value)}")
            value = value[0] if len(value) == 1 else tuple(value)
        options[own[flag]] = value
    if given["mask"] and not kind.needs_lungs:
        raise ValueError(f"--mask is no option of {name}, which takes no interest in the lungs")
    return kind(**options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, or 2 where a file or an argument is bad."""
    parser, command = make_parser()
    options = parser.parse_args(arguments)
    try:
        operation = make_operation(vars(options))
    except (TypeError, ValueError) as error:
        command.error(str(error))

    output: Path = options.output
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        command.error(f"-o must end in a picture format such as .png, got {str(output)!r}")
    if not output.parent.is_dir():
        command.error(f"-o must lie in a folder that exists, got {str(output)!r}")
    if is_among(output, options.images):
        command.error(f"-o must not be one of the images, got {str(output)!r}")
    if options.seed < 0:
        command.error(f"--seed must be at least 0, got {options.seed}")

    rows, bad = [], 0
    for path in options.images or [None]:
        try:
            if path is None:
                name = "phantom"
                image = phantom_radiograph(options.size or SIZE, rng=options.seed)
            else:
                name, image = path.name, read_image(path)
            if options.size and image.shape[:2] != (options.size, options.size):
                name += f" ({image.shape[1]} x {image.shape[0]})"
                image = resize_square(image, options.size)
            segment = MASKS[options.mask or "published"]
            rows.append(preview_row(name, image, options.seed, segment, operation))
        except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
            complain(path, error)
            bad += 1
    if rows:
        try:
            save_picture(stack_rows(rows, titles(operation)), output)
        except OSError as error:
            complain(output, error)
            return 2
        print(f"wrote {_shown(output)}")
    return 2 if bad else 0


def complain(path: Path, error: Exception) -> None:
    """Say in one line which file is bad, and why."""
    reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
    reason = " ".join(reason.split())
    print(f"{_shown(path)}: {reason}", file=sys.stderr)


def _shown(path: Path) -> str:
    """Show a name that may hold anything in one line of text."""
    return str(path) if str(path).isprintable() else ascii(str(path))


if __name__ == "__main__":
    sys.exit(main())
