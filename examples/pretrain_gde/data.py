"""From files to arrays: decoding, and a cache on disk so that it happens once.

Everything becomes 8-bit gray on a square grid, as the method was published.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from anatpaste_aug.data import read_image
from examples.pretrain_gde import disk
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import LARGE
from examples.pretrain_gde.metrics import LEAST, LEAST_FITTED, measure_adjusted
from examples.pretrain_gde.readers import PARTS, Entry, Split, check_split
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.shortcuts import WORDS, Covariates, describe, read_groups
from examples.pretrain_gde.storage import first, read_json, replacing, warn, write_json
from examples.pretrain_gde.view import View

Images = npt.NDArray[np.uint8]
Notes = npt.NDArray[np.float64]  # (N, K): whether the mask of each image is fine, its numbers
LONGEST = 500  # characters of a reason: a file may hold what it is quoted with
WORKERS = min(os.cpu_count() or 1, 16)  # threads that read files
CACHE_VERSION = 7  # to be raised when decoding changes, or what is kept beside an array


class Seen(NamedTuple):
    """What `View.see` gives of an image, and `describe`'s numbers: zeros where nobody asks."""

    image: Images
    upright: bool = True
    mask: npt.NDArray[np.bool_] | None = None
    numbers: tuple[float, ...] = (0.0,) * len(WORDS)


@dataclass(frozen=True)
class Dataset:
    """The images of a split, ready to train on.

    Attributes
    ----------
    split : Split
        The files, without those that were skipped.
    images : dict of str to (N, S, S) uint8 array
        For each part; memory-mapped.
    masks : dict of str to (N, S, S) uint8 array
        Lung masks of the training and validation parts, 0 or 1; none where they are not needed, or
        found afresh at every draw.
    skipped : tuple of str
        Files that were missing or damaged, with the reason.
    upright : dict of str to bool
        By file, where masks were looked for: whether it is fine, as of `View.see`.
    covariates : dict of str to Covariates
        For each part, the images' numbers and what a table says of them.
    """

    split: Split
    images: dict[str, Images]
    masks: dict[str, Images]
    skipped: tuple[str, ...]
    upright: dict[str, bool] = field(default_factory=dict)
    covariates: dict[str, Covariates] = field(default_factory=dict)

    def labels(self, part: str) -> npt.NDArray[np.bool_]:
        """Tell which images of a part are abnormal."""
        return np.array([entry.abnormal for entry in self.split[part]], bool)

    def has_labels(self, part: str) -> bool:
        """Tell whether a part holds both classes, so that it has an AUC."""
        return len(set(self.labels(part).tolist())) == 2

    def normals(self, part: str) -> tuple[Images, Images | None]:
        """Return the normal images of a part, and their masks where there are any."""
        normal, masks = ~self.labels(part), self.masks.get(part)
        if normal.all():  # as in training: without a copy of what is mapped
            return self.images[part], masks
        return self.images[part][normal], None if masks is None else masks[normal]


@dataclass(frozen=True)
class Source:
    """Where the images come from.

    Attributes
    ----------
    folder : Path
        The data set.
    cache : Path
        Where decoded images are kept.
    layout : str
        As for `read_split`.
    held_out : (int, int) or None
        As for `read_split`.
    skip_bad : bool
        Whether missing and damaged files are left out.
    published : str or None
        Data set whose published AUC the report marks, if not that of the layout.
    groups : tuple of str
        A table of more covariates, and the columns to read, as for `read_groups`.
    """

    folder: Path
    cache: Path
    layout: str = "auto"
    held_out: tuple[int, int] | None = None
    skip_bad: bool = False
    published: str | None = None
    groups: tuple[str, ...] = ()


def load_dataset(source: Source, split: Split, settings: Settings, *readable: Path) -> Dataset:
    """Load the images of a split, and the lung masks if the settings need them.

    What is not in the source's cache is taken from one of the folders of `readable`, or made and
    put there.

    Raises
    ------
    PipelineError
        If files are missing or damaged and `skip_bad` is false: the message names them. If the
        table is none, or the settings adjust for a covariate that there is not.
    """
    disk.remove_abandoned(source.cache)
    known: dict[str, Covariates] = {part: {} for part in PARTS}
    if source.groups:  # before all else takes its time
        paths = {part: [entry.path for entry in split[part]] for part in PARTS}
        known = read_groups(Path(source.groups[0]), source.groups[1:], paths)
    parts, images, skipped = {}, {}, []
    covariates: dict[str, Covariates] = {}
    masks: dict[str, Images] = {}
    upright: dict[str, bool] = {}
    bad: list[str] = []
    for part in PARTS:
        pasted_into = part != "test" and not settings.fresh_masks
        view = settings.view_with_mask if pasted_into else settings.view
        try:
            stored = load_images(source, split[part], view, *readable)
        except BadFilesError as error:  # to name those of all parts together
            bad += error.lines
            continue
        parts[part] = tuple(split[part][index] for index in stored.kept)
        images[part] = stored.images
        if stored.masks is not None:
            masks[part] = stored.masks
        skipped += stored.bad
        covariates[part] = dict(zip(WORDS, stored.notes[:, 1:].T, strict=True))
        covariates[part] |= {name: values[stored.kept] for name, values in known[part].items()}
        if view.finds_mask:
            names = [entry.path for entry in parts[part]]
            upright |= zip(names, stored.notes[:, 0] > 0, strict=True)
    if bad:
        raise BadFilesError(source.folder, bad)
    remaining = Split(split.layout, **parts)
    check_split(remaining, source.folder)
    if settings.adjust:
        _check_adjust(settings.adjust, remaining, covariates["valid"])
    return Dataset(remaining, images, masks, tuple(skipped), upright, covariates)


def _check_adjust(name: str, split: Split, covariates: Covariates) -> None:
    """Check that AUCs of the validation part can be adjusted for a covariate."""
    if name not in covariates:
        raise PipelineError(f"adjust must be one of {', '.join(covariates)}, got {name!r}")
    labels = np.array([entry.abnormal for entry in split.valid], bool)
    if measure_adjusted(np.zeros(len(labels)), labels, covariates[name])["auc"] is None:
        raise PipelineError(
            f"adjust needs abnormal images to validate on and normals that are alike in {name}: "
            f"{LEAST} of a group, {LEAST_FITTED} where it is a number"
        )


def tell_of_masks(upright: Mapping[Any, bool], mask: str) -> None:
    """Say in one line, on standard error, in which images the mask of this name is not fine."""
    poor = [str(name) for name, fine in upright.items() if not fine]
    if poor:
        told = "no upright pair of lungs" if mask == "robust" else f"empty mask ({mask})"
        which = "is --mask the right one?" if len(poor) == len(upright) else first(poor, 10)
        warn(f"{told} in {len(poor)} of {len(upright)} images: {which}")


@dataclass(frozen=True)
class StoredImages:
    """Decoded images, which files they are, and what was left out.

    Attributes
    ----------
    images : (N, S, S) uint8 array
        Those that could be read.
    masks : (N, S, S) uint8 array or None
        Their masks, 0 or 1, if the view has some.
    kept : list of int
        Their positions in the list of files.
    bad : list of str
        The others, with the reason.
    notes : (N, K) float array
        Of each image whether its mask is fine, and what `describe` says of it.
    """

    images: Images
    masks: Images | None
    kept: list[int]
    bad: list[str]
    notes: Notes


def load_images(
    source: Source, entries: Sequence[Entry], view: View, *readable: Path
) -> StoredImages:
    """Decode files to what the network sees, or take that from the source's cache or `readable`.

    Without a cache and without bad files that is::

        np.stack([decode(source.folder / entry.path, view).image for entry in entries])

    Raises
    ------
    BadFilesError
        If files are missing or damaged and `skip_bad` is false.
    """
    if not entries:  # an empty file cannot be mapped
        none, notes = np.zeros((0, view.size, view.size), np.uint8), np.zeros((0, 1 + len(WORDS)))
        return StoredImages(none, none if view.masked else None, [], [], notes)
    names = [entry.path for entry in entries]
    paths = [source.folder / name for name in names]
    with ThreadPoolExecutor(WORKERS) as pool:
        digests = list(pool.map(_digest, paths))
    key = _key(*view.made_by(), *digests)
    shape = (len(names), 2 if view.masked else 1, view.size, view.size)

    def lines(reasons: dict[int, str]) -> list[str]:
        # The cache does not keep names: two data sets may hold the same bytes under different ones.
        told = [f"{names[index]}: {reason}" for index, reason in sorted(reasons.items())]
        if told and not source.skip_bad:
            raise BadFilesError(source.folder, told)
        return told

    found = _cached(key, shape, [source.cache, *readable])
    if found is not None and any(isinstance(attempt(paths[i], view), Seen) for i in found[1]):
        found = None  # a decoder was missing, perhaps
    if found is None:
        found = _store(key, _decoded(paths, view), shape, source.cache, lines)
    stored, reasons, notes = found
    kept = [index for index in range(len(names)) if index not in reasons]
    planes = stored[kept] if reasons else stored
    masks = planes[:, 1] if view.masked else None
    return StoredImages(planes[:, 0], masks, kept, lines(reasons), notes[kept])


def decode(path: Path, view: View, *, described: bool = True) -> Seen:
    """Decode an image file to 8-bit gray; return what the network sees of it, and describe both.

    To describe them takes a third of the time: it is not done where `described` is false.

    Read by the library's `read_image`. 8-bit images stay as they are; all others, DICOM among them
    (after its window and with air dark), are stretched from their minimum to their maximum.

    Raises
    ------
    OSError, ValueError, TypeError
        If the file is no image that can be read.
    ImportError
        If it is a DICOM file and pydicom is missing.
    """
    gray = read_image(path)
    if gray.ndim == 3:  # 8-bit color
        gray = np.asarray(Image.fromarray(gray).convert("L"))
    if gray.dtype != np.uint8:
        gray = _stretched(gray.astype(float))
    seen = Seen(*view.see(gray))
    if not described:
        return seen
    return seen._replace(numbers=describe(gray, seen.image, path.stat().st_size))


def _stretched(values: npt.NDArray[np.float64]) -> Images:
    """Stretch values, which are worked on in place, from 0 to 255."""
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(values.shape, np.uint8)
    values -= low
    values /= high - low
    values *= 255
    return values.round(out=values).astype(np.uint8)


def attempt(path: Path, view: View, *, described: bool = True) -> Seen | str:
    """Decode an image file, or say why it cannot be.

    Raises
    ------
    PipelineError
        If that is not the file's fault: a package or memory is missing.
    """
    try:
        return decode(path, view, described=described)
    except PipelineError:
        raise
    except FileNotFoundError:
        return "no such file"
    except Exception as error:  # decoders raise whatever they like on damaged files
        told = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ")
        if isinstance(error, (ImportError, MemoryError)) or _lacks(error):
            raise PipelineError(f"{path} was not read: {told or type(error).__name__}") from error
        return f"{type(error).__name__}: {told[:LONGEST]}{'...' if len(told) > LONGEST else ''}"


def _lacks(error: Exception) -> bool:
    """Tell whether an error is for want of memory or of open files, not for what a file holds."""
    return getattr(error, "errno", None) in (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def _decoded(paths: Sequence[Path], view: View) -> Iterator[Seen | str]:
    """Decode files in order, or say why one cannot be."""
    told = f"decoding at {view.size} px"
    with ThreadPoolExecutor(WORKERS) as pool:
        results = pool.map(lambda path: attempt(path, view), paths)
        yield from tqdm(results, told, len(paths), unit="img")


class BadFilesError(PipelineError):
    """Files are missing or damaged; `lines` names them, with the reason."""

    def __init__(self, folder: Path, lines: Sequence[str]) -> None:
        self.lines = list(lines)
        shown = "\n  ".join(lines[:10]) + ("\n  ..." if len(lines) > 10 else "")
        super().__init__(
            f"{len(lines)} file{'s' if len(lines) > 1 else ''} in {folder} cannot be read "
            f"(--skip-bad leaves them out):\n  {shown}"
        )


Shape = tuple[int, int, int, int]
# An array of the cache, what is bad in it, and the notes on its rows.
Stored = tuple[Images, dict[int, str], Notes]
SIDECAR_FORM = {"bad": {str: str}, "notes": [[(-LARGE, LARGE)]], "sha256": str}


def _store(
    key: str, rows: Iterable[Seen | str], shape: Shape, cache: Path, check: Callable[..., object]
) -> Stored:
    """Write an array row by row, blank where one is bad, and open it; it appears last and complete.

    What is bad is checked before.
    """
    path = cache / f"{key}.npy"
    header, form = io.BytesIO(), {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, form)
    digest = hashlib.sha256(header.getvalue())
    notes, bad, blank = [], {}, np.zeros(shape[2:], np.uint8)
    with replacing(path) as file:
        file.write(header.getvalue())
        for index, row in enumerate(rows):
            if isinstance(row, str):
                bad[index], row = row, Seen(blank, mask=blank > 0)
            for plane in (row.image, row.mask)[: shape[1]]:
                data = np.asarray(plane, np.uint8).tobytes()
                file.write(data)
                digest.update(data)
            notes.append([int(row.upright), *row.numbers])
        check(bad)
        told = {"bad": bad, "notes": notes, "sha256": _key(digest.hexdigest(), notes)}
        write_json(path.with_suffix(".json"), told)
    found = _cached(key, shape, [cache])
    if found is None:
        raise PipelineError(f"{path} cannot be read back")
    return found


def _cached(key: str, shape: Shape, caches: Iterable[Path]) -> Stored | None:
    """Open an array that a cache holds as it was written; None if none does."""
    for path in (cache / f"{key}.npy" for cache in caches):
        with contextlib.suppress(Exception):  # whatever is wrong with it, it is made again
            sidecar = read_json(path.with_suffix(".json"), SIDECAR_FORM)
            reasons = {int(index): reason for index, reason in sidecar["bad"].items()}
            notes = np.array(sidecar["notes"], float)
            digest = _key(_digest(path), sidecar["notes"])
            if digest != sidecar["sha256"] or not set(reasons) <= set(range(shape[0])):
                continue
            stored = np.load(path, mmap_mode="c")
            fits = stored.shape == shape and notes.shape == (shape[0], 1 + len(WORDS))
            if fits and stored.dtype == np.uint8:
                return stored, reasons, notes
    return None


def _digest(path: Path) -> str:
    """Return a digest of what a file holds, or why it cannot be read.

    Raises
    ------
    PipelineError
        If that is not the file's fault.
    """
    digest = hashlib.sha256()
    try:
        with disk.reading(path) as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        if _lacks(error):
            raise PipelineError(f"{path} was not read: {error.strerror}") from error
        return f"unreadable: {error.strerror}"
    return digest.hexdigest()


def _key(*parts: Any) -> str:
    text = "\n".join(map(str, (CACHE_VERSION, *parts)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
