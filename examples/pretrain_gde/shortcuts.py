"""What tells images apart besides disease: one-number descriptions, and what users know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import LARGE, check_form
from examples.pretrain_gde.metrics import Values, auc_between, is_number, measure
from examples.pretrain_gde.storage import first, printable, read_csv, warn
from examples.pretrain_gde.view import Gray, resize

WORDS = {  # what `describe` returns, in this order
    "brightness": "brightness",
    "contrast": "contrast",
    "sharpness256": "sharpness at 256 pixels",
    "sharpness64": "sharpness at 64 pixels",
    "border": "black border",
    "aspect": "aspect ratio of the file",
    "bytes": "bytes a pixel",
    "seen_brightness": "brightness as seen",
    "seen_contrast": "contrast as seen",
    "seen_sharpness64": "sharpness at 64 pixels as seen",
    "seen_sharpness32": "sharpness at 32 pixels as seen",
    "seen_border": "black border as seen",
}
BLACK = 16  # the mean gray value of a row or column from which on it is no border
LONGEST = 100  # characters of a cell
MOST_GROUPS = 10  # different numbers: a column with more is one of numbers, not of groups
NEAR = 0.05  # AUC: a shortcut that comes as close to the score is warned of

Covariates = dict[str, Values]  # by name: (N,) floats, or texts for groups


def describe(gray: Gray, seen: Gray, size: int) -> tuple[float, ...]:
    """Describe an image as it is read, of `size` bytes, and as the network sees it; see `WORDS`.

    Brightness and contrast are mean and standard deviation of the gray values, 0..1; sharpness is
    the mean absolute difference between neighbors after resizing; the border is the share of the
    area outside the smallest box that holds all rows and columns of a mean from `BLACK` on.
    """
    height, width = gray.shape
    return (
        *_describe(resize(gray, 256), (256, 64)),
        width / height,
        size / gray.size,
        *_describe(seen, (64, 32)),
    )


def _describe(image: Gray, sides: tuple[int, int]) -> tuple[float, ...]:
    sharpness = []
    for side in sides:
        small = resize(image, side).astype(np.int16)
        steps = [np.abs(np.diff(small, axis=axis)).mean() for axis in (0, 1)]
        sharpness.append(np.mean(steps) / 255)
    inside = [np.flatnonzero(image.mean(axis) >= BLACK) for axis in (0, 1)]
    area = np.prod([one[-1] - one[0] + 1 if one.size else 0 for one in inside])
    numbers = image.mean() / 255, image.std() / 255, *sharpness, 1 - area / image.size
    return tuple(float(number) for number in numbers)


def read_groups(
    path: Path, columns: Sequence[str], images: Mapping[str, Sequence[str]]
) -> dict[str, Covariates]:
    """Read what a table says of the images of each part: a covariate for each column.

    Parameters
    ----------
    path : Path
        A CSV file with a column ``file``, an image's path in the data folder or its name alone, and
        others: numbers where all cells are and more than `MOST_GROUPS` differ, else groups. What is
        not known is empty. Images that it does not name are told of on standard error.
    columns : sequence of str
        Those to read; all others where none is named.
    images : dict of str to sequence of str
        The paths of each part; those that the table does not name are of unknown covariate.

    Raises
    ------
    PipelineError
        If it cannot be read, names a file twice, several by one name or none at all, has no other
        column, or one of numbers that holds something else.
    """
    rows: dict[str, dict[str, str]] = {}

    def take(row: dict[str, str]) -> None:
        if rows.setdefault(row.pop("file").strip().replace("\\", "/"), row) is not row:
            raise ValueError("this file is given twice")

    read_csv(path, ("file", *columns), take)
    columns = columns or [name for name in next(iter(rows.values()), {}) if name]
    if not columns or {"file", *WORDS} & set(columns):
        told = first(columns, 3) or "none"
        raise PipelineError(f"{path} must have rows, and columns of names of its own, got {told}")
    every = [name for names in images.values() for name in names]
    alike = Counter(PurePath(name).name for name in every)
    found: dict[str, dict[str, str]] = {}
    for name in every:
        short = PurePath(name).name
        if name not in rows and short in rows and alike[short] > 1:
            raise PipelineError(f"{path} names {short}, as several images are called")
        found[name] = rows.get(name, rows.get(short, {}))
    if missing := list(found.values()).count({}):
        if missing == len(found):
            raise PipelineError(f"{path} names none of the images")
        warn(f"{path} says nothing of {missing} of {len(found)} images")
    covariates: dict[str, Covariates] = {part: {} for part in images}
    for column in columns:
        numbers = _are_numbers(path, column, [row[column] for row in rows.values()])
        for part, names in images.items():
            cells = np.array([found[name].get(column, "").strip() for name in names], str)
            values = np.where(cells == "", "nan", cells).astype(float) if numbers else cells
            covariates[part][column] = values
    return covariates


def _are_numbers(path: Path, column: str, cells: list[str]) -> bool:
    """Tell whether a column is one of numbers, and refuse one that is in most cells alone."""
    numbers, others = set(), []
    for cell in filter(None, map(str.strip, cells)):
        if len(cell) > LONGEST:
            raise PipelineError(f"{path}: a cell of {column} has more than {LONGEST} characters")
        try:
            check_form(float(cell), (-LARGE, LARGE), column)
            numbers.add(float(cell))
        except ValueError:
            others.append(cell)
    if len(numbers) > max(len(others), MOST_GROUPS) and others:
        raise PipelineError(f"{path}: {column} holds {others[0]!r} among numbers")
    return len(numbers) > MOST_GROUPS and not others


def judge(covariates: Mapping[str, Covariates], truth: Values, labels: Values) -> dict[str, Any]:
    """Measure how well each covariate alone tells the abnormal images of the test part, both ways.

    What is the same for all of them, or not known for half of them, is left out.

    Parameters
    ----------
    covariates : dict of str to Covariates
        For each part.
    truth, labels : (N,) bool arrays
        Which images of the test and of the validation part are abnormal.

    Returns
    -------
    dict
        By covariate: ``way``, which is found on the validation part to be abnormal, "higher",
        "lower", or "by group", the more often a group's images are; ``raw``, the result of
        `measure` in this way; ``distance``, of the distance to the median of the training normals,
        or for groups of how rare they are among these, which needs no label. None where that is not
        known.
    """
    found = {}
    for name, values in covariates["test"].items():
        near, there = covariates["train"][name], covariates["valid"][name]
        known, kept = _known(values), _known(there)
        if known.mean() < 0.5 or len(set(values[known])) < 2 or len(set(truth[known])) < 2:
            continue
        way, raw, distance = None if is_number(values) else "by group", None, None
        if len(set(labels[kept])) == 2:
            way, directed = _direct(values[known], there[kept], labels[kept])
            raw = measure(directed, truth[known])
        if _known(near).any():
            distance = measure(_distance(values[known], near[_known(near)]), truth[known])
        found[name] = {"way": way, "raw": raw, "distance": distance}
    return found


def _known(values: Values) -> Values:
    return np.isfinite(values) if is_number(values) else values != ""


def _direct(values: Values, valid: Values, labels: Values) -> tuple[str, Values]:
    """Turn values so that abnormal ones are higher, as labels of others say."""
    if is_number(values):
        higher = auc_between(valid[~labels], valid[labels]) >= 0.5
        return ("higher", values) if higher else ("lower", -values)
    shares = {group: labels[valid == group].mean() for group in np.unique(valid)}
    return "by group", np.array([shares.get(group, labels.mean()) for group in values])


def _distance(values: Values, normal: Values) -> Values:
    if is_number(values):
        return np.abs(values - np.median(normal))
    return np.array([-np.mean(normal == group) for group in values])


def strongest(shortcuts: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]] | None:
    """Name the shortcut of the highest AUC, either way, with its result; None without any.

    Groups that tell all are passed over: they are a label, or as good as one.
    """
    found = [
        (name, result)
        for name, each in (shortcuts or {}).items()
        for result in (each["raw"], each["distance"])
        if result is not None and (result["auc"] < 1 or each["way"] != "by group")
    ]
    return max(found, key=lambda pair: pair[1]["auc"], default=None)


def in_words(name: str) -> str:
    """Call a covariate by its words, or as its table does."""
    return WORDS.get(name, printable(name))
