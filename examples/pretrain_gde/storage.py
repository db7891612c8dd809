"""Text, JSON and CSV: written whole or not at all, checked when read."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from examples.pretrain_gde import disk
from examples.pretrain_gde.disk import refusing, replacing
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import check_form


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; bytes of file names that are not become escapes."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def csv_cell(value: str | float) -> str:
    """Make a cell: a number in full, none of NaN; a text with ``'`` where it would be run."""
    if not isinstance(value, str):
        return "" if math.isnan(value) else repr(float(value))
    return printable(f"'{value}" if value.startswith(("=", "+", "-", "@")) else value)


def printable(text: str) -> str:
    """Escape what would change a line or steer a terminal; all else stays."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def warn(text: str) -> None:
    """Say something in a line on standard error."""
    print(printable(f"warning: {text}"), file=sys.stderr)


def first(names: Sequence[str], most: int) -> str:
    """Name some things, the first of them if there are many."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read.

    Raises
    ------
    PipelineError
        If it cannot be read, or what is read raises ValueError: its form is not as expected.
    """
    try:
        with refusing(f"read {path}"), disk.reading(path) as file:
            yield file
    except RecursionError as error:
        raise PipelineError(f"cannot read {path}: it is nested too deeply") from error
    except (ValueError, csv.Error) as error:
        raise PipelineError(f"cannot read {path}: {error}") from error


def read_json(path: Path, form: Any) -> Any:
    """Read a JSON file of a certain form; see `check_form`.

    Raises
    ------
    PipelineError
        If it is missing, no JSON, or of another form.
    """
    with reading(path) as file:
        value = parse_json(file.read())
        check_form(value, form, path.stem)
    return value


def read_csv(path: Path, columns: Sequence[str], take: Callable[[dict[str, str]], None]) -> None:
    """Read a CSV file, and hand over row by row; cells that are missing are empty.

    Raises
    ------
    PipelineError
        If it cannot be read, lacks one of the columns or has it twice, a row has more cells than
        there are columns, or `take` raises ValueError: the message names the line.
    """
    with reading(path) as file:
        text = file.read().decode("utf-8-sig")  # Excel begins a file with a mark of the byte order
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        found = list(reader.fieldnames or ())
        if missing := [name for name in columns if name not in found]:
            raise PipelineError(f"{path} has no column {', '.join(missing)}")
        if twice := [name for name in dict.fromkeys(found) if name and found.count(name) > 1]:
            raise PipelineError(f"{path} has the column {', '.join(twice)} twice")
        for row in reader:
            try:
                if reader.restkey in row:
                    raise ValueError("more cells than columns")
                take(row)
            except ValueError as error:
                raise PipelineError(f"{path}, line {reader.line_num}: {error}") from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON as the standard has it: without NaN and infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"it holds {name}, which is no number")

    return json.loads(text, parse_constant=refuse)
