"""The command line: ``python -m anatpaste_aug preview``."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from anatpaste_aug import operations
from anatpaste_aug._version import __version__
from anatpaste_aug.checks import MIN_SIDE, check_integer
from anatpaste_aug.data import phantom_radiograph, read_image
from anatpaste_aug.functions import load_segment
from anatpaste_aug.masks import Segment, lung_mask, lung_mask_robust
from anatpaste_aug.operations.base import Operation, format_options
from anatpaste_aug.preview import picture

MASKS: dict[str, Segment] = {"published": lung_mask, "robust": lung_mask_robust}
OPERATIONS: dict[str, type[Operation[Any]]] = {
    "anatpaste": operations.AnatPaste,
    "opacity": operations.Opacity,
    "cutpaste": operations.CutPaste,
    "cutpaste_scar": operations.CutPasteScar,
    "cutpaste_union": operations.CutPasteUnion,
}
SIZE = 256
LARGEST_SIZE = 4096
PHANTOM = Path("phantom")  # stands for an image where none is given


def value(text: str) -> Any:
    """Read a number, whole if it is written so, "none", or a word; several, after commas."""
    if "," in text:
        return tuple(value(part) for part in text.split(","))
    for read in (int, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return None if text == "none" else text


def size(text: str) -> int | None:
    """Read a side in pixels, or "native"."""
    if text == "native":
        return None
    return check_integer("size", int(text), MIN_SIDE, LARGEST_SIZE)


def make_parser() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the parser, and that of the preview for its errors."""
    parser = argparse.ArgumentParser(
        prog="python -m anatpaste_aug", description="Synthetic anomalies for chest radiographs."
    )
    parser.add_argument("--version", action="version", version=__version__)
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "preview",
        usage="%(prog)s [IMAGE ...] [-o FILE] [--size N] [--mask NAME] [--operation NAME] "
        "[--set NAME=VALUE ...]",
        help="draw images, their lung masks and some pastes into one picture",
        description="One row per image: original, lung mask, alpha, result with its region outlined"
        ", two more draws. Without an image: a procedural phantom.",
        epilog=". ".join(
            f"{name}: {format_options(vars(kind()))}" for name, kind in OPERATIONS.items()
        ),
    )
    add = command.add_argument
    files = "PNG, JPEG, TIFF, BMP or DICOM files, first of all"
    add("images", nargs="*", type=Path, metavar="IMAGE", help=files)
    written = "the picture to write (default: %(default)s)"
    add("-o", "--output", type=Path, default=Path("preview.png"), metavar="FILE", help=written)
    add("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: %(default)s)")
    pixels = (
        f"pixels on a side, {MIN_SIDE} to {LARGEST_SIZE}, to which images are squeezed before "
        "anything else, as for training, or native: as they are (default: %(default)s, the size "
        "that the published lengths are made for)"
    )
    add("--size", type=size, default=SIZE, metavar="N", help=pixels)
    own = f"{' or '.join(MASKS)} lung mask, or MODULE:FUNCTION, your own (default: published)"
    add("--mask", "--segment", metavar="NAME", help=own)
    pasted = "what to paste (default: %(default)s)"
    add("--operation", choices=OPERATIONS, default="anatpaste", help=pasted)
    given = (
        "options of the operation, as published unless given: a number, a range to draw from such "
        "as scale=0.1,0.2, words, or none"
    )
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help=given)
    return parser, command


def make_operation(name: str, settings: Sequence[str], mask: str | None) -> Operation[Any]:
    """Make an operation with settings such as ``blur=3``.

    Raises
    ------
    TypeError, ValueError
        If a setting is not of this operation, or its value is not legal.
    """
    kind = OPERATIONS[name]
    options = {key: value(text) for key, _, text in (one.partition("=") for one in settings)}
    for key in options.keys() - vars(kind()).keys():
        raise ValueError(f"{key} is no option of {name}, which has {format_options(vars(kind()))}")
    if mask and not kind.needs_lungs:
        raise ValueError(f"--mask is no option of {name}, which does not use lungs")
    return kind(**options)


def make_segment(name: str) -> Segment:
    """Return a lung mask by its name, or import a function of the user's own.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    if name not in MASKS and ":" not in name:
        raise ValueError(f"--mask must be {', '.join(MASKS)} or MODULE:FUNCTION, got {name!r}")
    return MASKS.get(name) or load_segment(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, or 2 where a file or an argument is bad."""
    parser, command = make_parser()
    options = parser.parse_args(arguments)
    try:
        operation = make_operation(options.operation, options.set, options.mask)
        segment = make_segment(options.mask or "published")
    except (TypeError, ValueError) as error:
        command.error(str(error))

    output: Path = options.output
    there = [path for path in options.images if os.path.exists(path)]
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        command.error(f"-o must end in a picture format such as .png, got {str(output)!r}")
    if not output.parent.is_dir():
        command.error(f"-o must lie in a folder that exists, got {str(output)!r}")
    if os.path.exists(output) and any(os.path.samefile(output, path) for path in there):
        command.error(f"-o must not be one of the images, got {str(output)!r}")
    if options.seed < 0:
        command.error(f"--seed must be at least 0, got {options.seed}")

    rows, bad = [], 0
    side = options.size
    for path in options.images or [PHANTOM]:
        try:
            if path is PHANTOM:
                image = phantom_radiograph(side or SIZE, rng=options.seed)
            else:
                image = read_image(path)
            name = path.name
            if side and image.shape[:2] != (side, side):
                name += f" ({image.shape[1]} x {image.shape[0]})"
                image = picture.resize_square(image, side)
            rows.append(picture.preview_row(name, image, options.seed, segment, operation))
        except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
            complain(path, error)
            bad += 1
    if rows:
        try:
            sheet = picture.stack_rows(rows, picture.titles(operation))
            picture.save_picture(sheet, output)
        except OSError as error:
            complain(output, error)
            return 2
        print(f"wrote {_shown(output)}")
    return 2 if bad else 0


def complain(path: Path, error: Exception) -> None:
    """Say in one line which file is bad, and why."""
    reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
    print(f"{_shown(path)}: {' '.join(reason.split())}", file=sys.stderr)


def _shown(path: Path) -> str:
    """Show a name that may hold anything in one line of text."""
    return str(path) if str(path).isprintable() else ascii(str(path))
