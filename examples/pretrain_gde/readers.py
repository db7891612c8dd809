"""Which files make up a data set, and which of them train, validate and test.

A reader lists; it opens no image. Every reader gives the same thing, a `Split`: the plain layout
takes it from the folders, the three published data sets draw it by seed, by patient where patients
are named. Normal images alone are enough: what is to be set aside of them is drawn.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from anatpaste_aug.data import SUFFIXES
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import COUNT
from examples.pretrain_gde.storage import first, read_csv

PARTS = ("train", "valid", "test")
MIN_TRAIN = 4  # images: fewer make no density
MIN_VALID = 2
MOST_HELD_OUT = 100  # normals for validation, where the folders set none aside, and at most ...
SHARE_HELD_OUT = 0.2  # ... this share of them
HELD_OUT = {"zhanglab": (100, 0), "chexpert": (250, 250), "rsna": (250, 250)}
PUBLISHED_AUC = {"zhanglab": 0.921, "chexpert": 0.787, "rsna": 0.819}

_ENTRIES = [{"path": str, "abnormal": bool, "patient?": str}]
SHARED_FORM = {"patients": COUNT, "images": dict.fromkeys(PARTS, COUNT)}
SPLIT_FORM: dict[str, Any] = {
    "layout": ("plain", "normals", *HELD_OUT),
    **dict.fromkeys(PARTS, _ENTRIES),
    "seed?": (0, 2**63 - 1),
    "folder?": str,
    "cache?": str,
    "held_out?": [COUNT, COUNT],
    "published?": tuple(PUBLISHED_AUC),
    "groups?": [str],
    "shared_patients?": SHARED_FORM,
}


@dataclass(frozen=True)
class Entry:
    """One image of a data set: its path below the data folder, what it shows, and whom."""

    path: str
    abnormal: bool
    patient: str | None = None

    def __post_init__(self) -> None:
        """Check that the path stays inside the data folder; links in it are the folder's own."""
        try:
            os.fsencode(self.path)
        except UnicodeEncodeError as error:
            raise PipelineError(f"{self.path!r} is no name of a file in this locale") from error
        named = PurePath(self.path)
        if not named.parts or named.anchor or ".." in named.parts or "\0" in self.path:
            raise PipelineError(f"a path must lead into the data folder, got {self.path!r}")

    @property
    def owner(self) -> str:
        """Tell whom it shows, if need be by its name; an image of nobody known stands alone."""
        return self.patient or _named_patient(Path(self.path)) or self.path


Entries = tuple[Entry, ...]


@dataclass(frozen=True)
class Split:
    """The files of the three parts of a data set."""

    layout: str
    train: Entries
    valid: Entries
    test: Entries

    def __getitem__(self, part: str) -> Entries:
        """Return the entries of a part, by name."""
        return getattr(self, part)

    def as_dict(self) -> dict[str, Any]:
        """Return the split as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> Split:
        """Read what `as_dict` gave, in the form of `SPLIT_FORM`."""
        parts = {part: tuple(Entry(**entry) for entry in value[part]) for part in PARTS}
        return cls(value["layout"], **parts)


def read_split(
    folder: Path, layout: str = "auto", seed: int = 0, held_out: tuple[int, int] | None = None
) -> Split:
    """List a data set and split it.

    Parameters
    ----------
    folder : Path
        The data set as distributed, or the plain layout
        ``{train,valid,test}/{normal,abnormal}``, of which ``train/normal`` alone must be there, or
        a folder of normal images.
    layout : str, optional
        A name out of `READERS`, or "auto" to tell by the files.
    seed : int, optional
        Seed of the split, where it is drawn.
    held_out : (int, int), optional
        Images of either class that are set aside for validation and for testing, where they are
        drawn; by default `HELD_OUT`.

    Raises
    ------
    PipelineError
        If no layout fits, there are too few images, or a part that is scored has one class only.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not a folder")
    name = find_layout(folder) if layout == "auto" else layout
    if name not in READERS:
        raise PipelineError(f"layout must be auto or one of {', '.join(READERS)}, got {layout!r}")
    if held_out is not None:
        if name not in HELD_OUT:
            raise PipelineError(f"held-out numbers cannot be given for {name}: its folders decide")
        if min(held_out) < 0:
            raise PipelineError(f"held-out numbers must be at least 0, got {held_out}")
        if name == "zhanglab" and held_out[1] != 0:
            raise PipelineError(
                "the held-out number of the test part must be 0 for zhanglab, whose test part is "
                f"the official one, got {held_out[1]}"
            )
    rng = np.random.default_rng(seed)
    split = READERS[name](folder, rng, held_out or HELD_OUT.get(name, (0, 0)))
    check_split(split, folder)
    return split


def find_layout(folder: Path) -> str:
    """Tell a data set by its files."""
    names = {path.name for path in folder.iterdir()}
    if "stage_2_detailed_class_info.csv" in names:
        return "rsna"
    if "train.csv" in names or "CheXpert-v1.0-small" in names:
        return "chexpert"
    if "chest_xray" in names or "NORMAL" in _names(folder / "train"):
        return "zhanglab"
    if "normal" in _names(folder / "train"):
        return "plain"
    if list_images(folder)[0]:
        return "normals"
    raise PipelineError(
        f"{folder} has no known layout: expected train/normal (plain), images (normals), "
        "train/NORMAL (Zhanglab), train.csv (CheXpert) or stage_2_detailed_class_info.csv (RSNA)"
    )


def check_split(split: Split, folder: Path) -> None:
    """Check that a split can train and be scored, and that no patient is on two sides."""
    needed = {"training": (split.train, MIN_TRAIN), "validation": (split.valid, MIN_VALID)}
    for what, (entries, least) in needed.items():
        count = sum(not entry.abnormal for entry in entries)
        if count < least:
            raise PipelineError(
                f"{what} needs at least {least} normal images, {folder} has {count}"
            )
    if any(entry.abnormal for entry in split.train):
        raise PipelineError("the training part holds abnormal images")
    kinds = {entry.abnormal for entry in split.test}
    if len(kinds) == 1:
        kind = "abnormal" if kinds == {True} else "normal"
        raise PipelineError(
            f"the test part of {folder} holds {kind} images only: an AUC needs both classes"
        )
    owner: dict[str, str] = {}
    paths: set[str] = set()
    for part in PARTS:
        for entry in split[part]:
            if entry.path in paths:
                raise PipelineError(f"{entry.path} is given twice")
            paths.add(entry.path)
            if entry.patient and (known := owner.setdefault(entry.patient, part)) != part:
                raise PipelineError(f"patient {entry.patient} is in both {known} and {part}")


def shared_patients(split: Split) -> dict[str, Any]:
    """Count patients whose images are in several parts, where the file names give patients.

    Only a split that is given by its folders can have any: all others are by patient. The names
    known are those of Kermany et al. (Zhanglab).

    Returns
    -------
    dict
        ``patients``, how many there are, and ``images``, how many of theirs each part holds.
    """
    patients = {part: [_named_patient(Path(entry.path)) for entry in split[part]] for part in PARTS}
    seen = Counter(name for names in patients.values() for name in {*names} - {None})
    shared = {name for name, parts in seen.items() if parts > 1}
    images = {part: sum(name in shared for name in names) for part, names in patients.items()}
    return {"patients": len(shared), "images": images}


def list_images(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """List what a folder holds, sorted, by names alone: images, what is none, and what is hidden.

    Hidden files may be named like images: macOS puts a ``._x.png`` beside x.png.
    """
    images, others, hidden = [], [], []
    for path in sorted(folder.iterdir()):
        named = images if path.suffix.lower() in SUFFIXES else others
        (hidden if path.name.startswith(".") else named).append(path)
    return images, others, hidden


def unread(folder: Path, split: Split) -> str:
    """Say what lies among the images of a split and is left out, where folders decide."""
    if split.layout not in ("plain", "normals", "zhanglab"):
        return ""
    inside = {(folder / entry.path).parent for part in PARTS for entry in split[part]}
    return left_out(folder, sorted(inside))


def left_out(folder: Path, inside: Iterable[Path]) -> str:
    """Say in one line what some folders in `folder` hold beside images; empty if nothing."""
    found = [list_images(each) for each in inside]
    others = [_below(folder, path) for _, more, _ in found for path in more]
    count = sum(len(hidden) for _, _, hidden in found)
    told = []
    if others:
        told.append(f"{len(others)} left out, by their names no images: {first(others, 3)}")
    if count:
        told.append(f"hidden files skipped: {count}")
    return f"{folder}: {'; '.join(told)}" if told else ""


def read_plain(folder: Path, rng: np.random.Generator, held_out: tuple[int, int]) -> Split:
    """Read ``{train,valid,test}/{normal,abnormal}``; abnormal images, and the test, may be missing.

    Without ``valid`` the training part is split by `set_aside`.
    """
    parts = {"train": tuple(_entries(folder, folder / "train" / "normal"))}
    for part in ("valid", "test"):
        parts[part] = ()
        for kind in ("normal", "abnormal"):
            if (folder / part / kind).is_dir():
                parts[part] += tuple(_entries(folder, folder / part / kind, kind == "abnormal"))
    if not (folder / "valid").is_dir():
        parts["valid"], parts["train"] = set_aside(parts["train"], rng)
    return Split("plain", **parts)


def read_normals(folder: Path, rng: np.random.Generator, held_out: tuple[int, int]) -> Split:
    """Read a folder of normal images, split by `set_aside`; nothing is tested."""
    valid, train = set_aside(_entries(folder, folder), rng)
    return Split("normals", train, valid, ())


def set_aside(entries: Sequence[Entry], rng: np.random.Generator) -> tuple[Entries, Entries]:
    """Draw normals to validate with: `SHARE_HELD_OUT` of them, at most `MOST_HELD_OUT`.

    Whole patients at a time where file names give them, as those of Kermany et al. do.
    """
    count = min(round(SHARE_HELD_OUT * len(entries)), MOST_HELD_OUT)
    drawn = set(_draw(entries, count, rng))
    rest = tuple(entry for entry in entries if entry not in drawn)
    return tuple(entry for entry in entries if entry in drawn), rest


def read_zhanglab(folder: Path, rng: np.random.Generator, held_out: tuple[int, int]) -> Split:
    """Read ``chest_xray/{train,test}/{NORMAL,PNEUMONIA}`` (Kermany et al., 2018).

    The test part is the official one. Validation is drawn from the official train part, from
    patients that are in neither of the others.
    """
    root = folder / "chest_xray" if (folder / "chest_xray").is_dir() else folder

    def entries(part: str) -> list[Entry]:
        found = _entries(folder, root / part / "NORMAL")
        found += _entries(folder, root / part / "PNEUMONIA", True)
        return [replace(e, patient=_zhanglab_patient(Path(e.path).stem)) for e in found]

    test = entries("test")
    tested = {entry.patient for entry in test}
    others = [entry for entry in entries("train") if entry.patient not in tested]
    return replace(split_by_patient("zhanglab", others, held_out, rng), test=tuple(test))


def _zhanglab_patient(stem: str) -> str:
    match = re.match(r"(person\d+|(?:NORMAL2-)?IM-\d+)", stem)
    return match.group(1) if match else stem


def _named_patient(path: Path) -> str | None:
    """Return the patient if a file is named as those of Kermany et al. are, whole."""
    pattern = r"person\d+_(?:bacteria|virus)_\d+|(?:NORMAL2-)?IM-\d+-\d+(?:-\d+)?"
    return _zhanglab_patient(path.stem) if re.fullmatch(pattern, path.stem) else None


def read_chexpert(folder: Path, rng: np.random.Generator, held_out: tuple[int, int]) -> Split:
    """Read ``train.csv`` and the JPEGs that it names (Irvin et al., 2019).

    Normal is a frontal view with "No Finding"; abnormal, a frontal view with a certain finding
    other than support devices. Both held-out parts are drawn from the train CSV.
    """
    root = folder / "CheXpert-v1.0-small" if (folder / "CheXpert-v1.0-small").is_dir() else folder
    entries = []

    def take(row: dict[str, str]) -> None:
        # Paths in the CSV begin with the data set's own folder, whatever it is called here.
        named = Path(row["Path"])
        patient = next((part for part in named.parts if re.fullmatch(r"patient\d+", part)), None)
        if patient is None:
            raise ValueError(f"Path must name a patient, got {row['Path']!r}")
        view = row["Frontal/Lateral"]
        if view not in ("Frontal", "Lateral"):
            raise ValueError(f"Frontal/Lateral must be one of them, got {view!r}")
        if view == "Lateral":
            return
        normal = _is_one(row["No Finding"])
        ill = any([_is_one(row[finding]) for finding in CHEXPERT_FINDINGS])
        if normal or ill:
            path = _below(folder, root.joinpath(*named.parts[1:]))
            entries.append(Entry(path, not normal, patient))

    columns = ("Path", "Frontal/Lateral", "No Finding", *CHEXPERT_FINDINGS)
    read_csv(root / "train.csv", columns, take)
    return split_by_patient("chexpert", entries, held_out, rng)


CHEXPERT_FINDINGS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
)


def _is_one(cell: str) -> bool:
    """Tell whether a finding is certain: 1, not 0 (absent), -1 (uncertain) or empty (untold)."""
    value = float(cell or 0)
    if value not in (1, 0, -1):  # nor is NaN
        raise ValueError(f"a finding must be 1, 0, -1 or empty, got {cell!r}")
    return value == 1


RSNA_CLASSES = ("Normal", "Lung Opacity", "No Lung Opacity / Not Normal")


def read_rsna(folder: Path, rng: np.random.Generator, held_out: tuple[int, int]) -> Split:
    """Read ``stage_2_detailed_class_info.csv`` and the DICOMs (RSNA Pneumonia Detection, 2018).

    Normal is the class "Normal", abnormal the other two. An image is named after its patient.
    """
    classes: dict[str, str] = {}

    def take(row: dict[str, str]) -> None:  # a row per box
        patient, kind = row["patientId"], row["class"]
        if not patient:
            raise ValueError("patientId must not be empty")
        if kind not in RSNA_CLASSES:
            raise ValueError(f"class must be one of {', '.join(RSNA_CLASSES)}, got {kind!r}")
        if classes.setdefault(patient, kind) != kind:
            raise ValueError(f"patient {patient} is given two classes")

    read_csv(folder / "stage_2_detailed_class_info.csv", ("patientId", "class"), take)
    entries = [
        Entry(f"stage_2_train_images/{patient}.dcm", kind != "Normal", patient)
        for patient, kind in classes.items()
    ]
    return split_by_patient("rsna", entries, held_out, rng)


READERS: dict[str, Callable[[Path, np.random.Generator, tuple[int, int]], Split]] = {
    "plain": read_plain,
    "normals": read_normals,
    "zhanglab": read_zhanglab,
    "chexpert": read_chexpert,
    "rsna": read_rsna,
}


def split_by_patient(
    layout: str, entries: Iterable[Entry], held_out: tuple[int, int], rng: np.random.Generator
) -> Split:
    """Draw balanced validation and test parts; train on the normals of all other patients."""
    remaining = list(entries)
    parts: dict[str, list[Entry]] = {}
    for part, size in zip(("valid", "test"), held_out, strict=True):
        parts[part] = []
        for abnormal in (False, True):
            pool = [entry for entry in remaining if entry.abnormal == abnormal]
            drawn = _draw(sorted(pool, key=lambda entry: entry.path), size, rng)
            if len(drawn) < size:
                raise PipelineError(
                    f"cannot set {size} images aside: of {len(pool)}, whole patients at a time, "
                    f"{len(drawn)} were drawn"
                )
            parts[part] += drawn
            gone = {entry.owner for entry in drawn}
            remaining = [entry for entry in remaining if entry.owner not in gone]
    train = tuple(entry for entry in remaining if not entry.abnormal)
    return Split(layout, train, tuple(parts["valid"]), tuple(parts["test"]))


def _draw(entries: Iterable[Entry], size: int, rng: np.random.Generator) -> list[Entry]:
    """Draw `size` images, or nearly so many, whole patients at a time."""
    patients: dict[str, list[Entry]] = {}
    for entry in entries:
        patients.setdefault(entry.owner, []).append(entry)
    groups = list(patients.values())
    drawn: list[Entry] = []
    for index in rng.permutation(len(groups)):
        if len(drawn) + len(groups[index]) <= size:
            drawn += groups[index]
    return drawn


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _entries(folder: Path, inside: Path, abnormal: bool = False) -> list[Entry]:
    if not inside.is_dir():
        raise PipelineError(f"{inside} is missing")
    return [Entry(_below(folder, path), abnormal) for path in list_images(inside)[0]]


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
