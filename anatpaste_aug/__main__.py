"""The command line: ``python -m anatpaste_aug preview``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from anatpaste_aug._version import __version__
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.files import read_image
from anatpaste_aug.images import Array
from anatpaste_aug.preview import preview, save_picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; give the exit status: 0, or 2 where a file or an argument is bad."""
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
    options = parser.parse_args(arguments)

    output: Path = options.output
    if output.suffix.lower() not in Image.registered_extensions():
        command.error(f"-o must end in a picture format such as .png, got {str(output)!r}")
    if not output.parent.is_dir():
        command.error(f"-o must lie in a folder that exists, got {str(output)!r}")
    if options.seed < 0:
        command.error(f"--seed must be at least 0, got {options.seed}")

    bad: list[Path] = []

    def readable() -> Iterator[tuple[str, Array]]:
        for path in options.images:
            try:
                yield path.name, read_image(path)
            except (OSError, ValueError, TypeError, ImportError) as error:
                reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
                print(f"{path}: {reason}", file=sys.stderr)
                bad.append(path)

    phantom = phantom_radiograph(256, rng=options.seed)
    images = list(readable()) if options.images else [("phantom", phantom)]
    if images:
        try:
            save_picture(preview(images, options.seed), output)
        except OSError as error:
            print(f"{output}: {error.strerror or error}", file=sys.stderr)
            return 2
        print(f"wrote {output}")
    return 2 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
