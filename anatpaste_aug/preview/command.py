"""The command line: ``python -m anatpaste_aug preview``."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from anatpaste_aug import operations
from anatpaste_aug._version import __version__
from anatpaste_aug.checks import MIN_SIDE, check_integer
from anatpaste_aug.data import SUFFIXES, phantom_radiograph, read_image
from anatpaste_aug.functions import load_segment
from anatpaste_aug.masks import Segment, lung_mask, lung_mask_robust
from anatpaste_aug.masks.robust import UPRIGHT
from anatpaste_aug.operations.base import Operation, format_options
from anatpaste_aug.preview import picture

ROBUST = partial(lung_mask_robust, return_quality=True)  # no warning
MASKS: dict[str, Segment] = {"published": lung_mask, "robust": ROBUST}
OPERATIONS: dict[str, type[Operation[Any]]] = {
    "anatpaste": operations.AnatPaste,
    "opacity": operations.Opacity,
    "cutpaste": operations.CutPaste,
    "cutpaste_scar": operations.CutPasteScar,
    "cutpaste_union": operations.CutPasteUnion,
}
SIZE = 256
LARGEST_SIZE = 4096
LONGEST = 70  # characters of a name, its last ones, that have room above the tiles
EMPTY = "no lungs found"
POOR = f"no upright pair of lungs (quality below {UPRIGHT})"
PHANTOM = Path("phantom")  # stands for an image where none is given


def value(text: str) -> Any:
    """Read a number, whole if it is written so, "none", or a word; several, after commas."""
    if "," in text:
        return tuple(value(part) for part in text.split(","))
    for read in (int, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return None if text == "none" else text


def make_parser() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the parser, and that of the preview for its errors."""
    parser = argparse.ArgumentParser(
        prog="python -m anatpaste_aug", description="Synthetic anomalies for chest radiographs."
    )
    parser.add_argument("--version", action="version", version=__version__)
    command = parser.add_subparsers(dest="command", required=True, metavar="COMMAND").add_parser(
        "preview",
        usage="%(prog)s [IMAGE ...] [OPTION ...]",
        help="draw images, their lung masks and some pastes into one picture",
        description="Each image: original, lung mask, alpha, and three draws with their regions "
        "outlined. Without an image: a procedural phantom.",
        epilog=". ".join(
            f"{name}: {format_options(vars(kind()))}" for name, kind in OPERATIONS.items()
        ),
    )
    add = command.add_argument
    files = "PNG, JPEG, TIFF, BMP or DICOM files, or folders of them, first of all"
    add("images", nargs="*", type=Path, metavar="IMAGE", help=files)
    taken = (
        "draw at most N images of each folder, spread evenly by name over all in it and its "
        "subfolders; files that are named are all drawn (default: %(default)s)"
    )
    add("--limit", type=value, default=12, metavar="N", help=taken)
    written = "the picture to write, left out of folders (default: %(default)s)"
    add("-o", "--output", type=Path, default=Path("preview.png"), metavar="FILE", help=written)
    add("--seed", type=value, default=0, metavar="N", help="random seed (default: %(default)s)")
    pixels = (
        f"pixels on a side, {MIN_SIDE} to {LARGEST_SIZE}, to which images are squeezed before "
        "anything else, as for training, or native: as they are (default: %(default)s, the size "
        "that the published lengths are made for)"
    )
    add("--size", type=value, default=SIZE, metavar="N", help=pixels)
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


def pick_images(path: Path, limit: int, output: Path) -> list[tuple[Path, str]]:
    """Return a file, or some images of a folder, spread evenly, each with the name to show.

    Raises
    ------
    OSError, ValueError
        If the folder cannot be read, or holds no images beside hidden ones and the output.
    """
    if path is PHANTOM or not os.path.isdir(path):
        return [(path, path.name)]
    found = []
    for folder, inside, names in os.walk(path, onerror=_refuse):
        inside[:] = [name for name in inside if not name.startswith(".")]
        shown = (Path(folder, name) for name in names if not name.startswith("."))
        found += [each for each in shown if each.suffix.lower() in SUFFIXES]
    others = sorted(each for each in found if not is_same(each, output))
    if len(others) < len(found) and output.stem != "preview":  # no preview of before
        raise ValueError(f"-o must not be one of the images, got {str(output)!r}")
    if not others:
        kinds = ", ".join(SUFFIXES)
        raise ValueError(f"a folder must hold images ({kinds}), got none in {str(path)!r}")
    count = min(limit, len(others))
    print(f"{_shown(path)}: {count} of {len(others):,} images")
    drawn = [others[number * len(others) // count] for number in range(count)]
    return [(each, str(each.relative_to(path))) for each in drawn]


def _refuse(error: OSError) -> None:
    raise error


def is_same(path: Path, other: Path) -> bool:
    """Tell whether two paths lead to the same thing; one may lead nowhere."""
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, or 2 where a file or an argument is bad."""
    parser, command = make_parser()
    options = parser.parse_args(arguments)
    output: Path = options.output
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        command.error(f"-o must end in a picture format such as .png, got {str(output)!r}")
    if not output.parent.is_dir():
        command.error(f"-o must lie in a folder that exists, got {str(output)!r}")
    if any(is_same(path, output) for path in options.images):
        command.error(f"-o must not be one of the images, got {str(output)!r}")
    side = None if options.size == "native" else options.size
    try:
        operation = make_operation(options.operation, options.set, options.mask)
        segment = make_segment(options.mask or "published")
        seed = check_integer("--seed", options.seed, 0)
        limit = check_integer("--limit", options.limit, 1)
        if options.size != "native":
            check_integer("--size", side, MIN_SIDE, LARGEST_SIZE)
        given = options.images or [PHANTOM]
        images = [one for path in given for one in pick_images(path, limit, output)]
    except (OSError, TypeError, ValueError) as error:
        command.error(str(error))

    rows, bad = [], 0
    told_of: dict[str, list[str]] = {EMPTY: []} if operation.needs_lungs else {}
    for path, name in images:
        try:
            if path is PHANTOM:
                image = phantom_radiograph(side or SIZE, rng=seed)
            else:
                image = read_image(path)
            label = _shown(name)[-LONGEST:]
            if side and image.shape[:2] != (side, side):
                label += f" ({image.shape[1]} x {image.shape[0]})"
                image = picture.resize_square(image, side)
            lungs = segment(image) if operation.needs_lungs else None
            mask, quality = lungs if isinstance(lungs, tuple) else (lungs, 1)
            what = (
                EMPTY if mask is not None and not mask.any() else POOR if quality < UPRIGHT else ""
            )
            if what == POOR:  # a row says by itself that it is empty
                label += f", {POOR}"
            rows.append(picture.preview_row(label, image, seed, mask, operation))
            if what:
                told_of.setdefault(what, []).append(_shown(name))
        except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
            complain(path, error)
            bad += 1
    if rows:
        for what, names in told_of.items():
            first = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
            print(f"{what} in {len(names)} of {len(rows)} images" + f": {first}" * bool(names))
        try:
            picture.save_rows(rows, output)
        except (
            OSError,
            ValueError,
            OverflowError,
            MemoryError,
        ) as error:  # each format has its own limits
            complain(output, error)
            return 2
        print(f"wrote {output.resolve().as_uri()}")
    return 2 if bad else 0


def complain(path: Path, error: Exception) -> None:
    """Say in one line which file is bad, and why."""
    reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
    print(f"{_shown(path)}: {' '.join(reason.split())}", file=sys.stderr)


def _shown(path: Path | str) -> str:
    """Show a name that may hold anything in one line of text."""
    return str(path) if str(path).isprintable() else ascii(str(path))
