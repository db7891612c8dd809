"""The command line: ``python -m anatpaste_aug preview``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from anatpaste_aug._version import __version__
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.disk import is_among
from anatpaste_aug.files import read_image
from anatpaste_aug.lungs import Segment, lung_mask
from anatpaste_aug.preview import preview_row, save_picture, stack_rows
from anatpaste_aug.robust import lung_mask_robust

MASKS: dict[str, Segment] = {"published": lung_mask, "robust": lung_mask_robust}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, or 2 where a file or an argument is bad."""
    parser = argparse.ArgumentParser(prog="python -m anatpaste_aug", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "preview",
        help="draw images, their lung masks and some pastes into one picture",
        description="One row per image: original, lung mask, alpha, result with its region outlined"
        ", two more draws. Without an image: a procedural phantom.",
    )
    command.add_argument("images", nargs="*", type=Path, help="PNG, JPEG, TIFF or DICOM files")
    command.add_argument("-o", "--output", type=Path, default=Path("preview.png"), metavar="FILE")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws")
    command.add_argument("--mask", choices=MASKS, default="published", help="which lung mask")
    options = parser.parse_args(arguments)

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
                name, image = "phantom", phantom_radiograph(256, rng=options.seed)
            else:
                name, image = path.name, read_image(path)
            rows.append(preview_row(name, image, options.seed, MASKS[options.mask]))
        except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
            complain(path, error)
            bad += 1
    if rows:
        try:
            save_picture(stack_rows(rows), output)
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
