"""The pipeline's readers, on replicas of each data set's layout."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image
from pipeline import ROOT, need

need("torch", "sklearn", "safetensors", "tqdm", "pydicom")

import pydicom  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage  # noqa: E402

from anatpaste_aug.images import to_gray  # noqa: E402
from examples.pretrain_gde import data as pipeline_data  # noqa: E402
from examples.pretrain_gde.data import Source, load_dataset, load_images  # noqa: E402
from examples.pretrain_gde.errors import PipelineError  # noqa: E402
from examples.pretrain_gde.readers import (  # noqa: E402
    CHEXPERT_FINDINGS,
    PARTS,
    Entry,
    Split,
    find_layout,
    read_split,
    set_aside,
    shared_patients,
    split_by_patient,
    unread,
)
from examples.pretrain_gde.settings import Settings  # noqa: E402
from examples.pretrain_gde.view import View  # noqa: E402

RAMP = np.arange(64 * 64).reshape(64, 64) * 255 // (64 * 64 - 1)  # 0..255, rising downwards


def decode(path, view):
    """Return what the network sees of a file; where its lungs are, nobody asks here."""
    return pipeline_data.decode(path, view)[0]


def write_image(path, seed=0, size=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(size, size + 8), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_dicom(path, pixels, polarity="MONOCHROME2", bits=8, **elements):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.Modality, data.PhotometricInterpretation = "CR", polarity
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated = 8 if bits == 8 else 16
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelData = pixels.astype(np.uint8 if bits == 8 else np.uint16).tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def assert_patients_apart(split):
    patients = [{entry.patient for entry in split[part]} for part in PARTS]
    assert None not in set.union(*patients)
    assert sum(map(len, patients)) == len(set.union(*patients))


def kinds(entries):
    return sum(not entry.abnormal for entry in entries), sum(entry.abnormal for entry in entries)


@pytest.fixture
def plain(tmp_path):
    folder = tmp_path / "plain"
    seed = 0
    for part, kind, count in (
        ("train", "normal", 6),
        ("valid", "normal", 2),
        ("valid", "abnormal", 2),
        ("test", "normal", 2),
        ("test", "abnormal", 3),
    ):
        for index in range(count):
            seed += 1
            write_image(folder / part / kind / f"{index}.png", seed)
    return folder


@pytest.fixture
def zhanglab(tmp_path):
    root = tmp_path / "zhanglab" / "chest_xray"
    for patient in range(12):
        for view in range(1 + patient % 2):  # every other patient has two images
            stem = f"{'NORMAL2-' if patient % 3 else ''}IM-{patient:04d}-000{view + 1}"
            write_image(root / "train" / "NORMAL" / f"{stem}.jpeg", patient)
            stem = f"person{patient}_{'virus' if view else 'bacteria'}_{patient * 3 + view}"
            write_image(root / "train" / "PNEUMONIA" / f"{stem}.jpeg", 50 + patient)
    for patient in (20, 21, 22):
        write_image(root / "test" / "NORMAL" / f"IM-{patient:04d}-0001.jpeg", patient)
    for patient in (0, 30, 31, 32):  # person0 is in the official train part, too
        write_image(root / "test" / "PNEUMONIA" / f"person{patient}_virus_{patient}.jpeg", patient)
    return tmp_path / "zhanglab"


@pytest.fixture
def chexpert(tmp_path):
    root = tmp_path / "chexpert" / "CheXpert-v1.0-small"
    rows = []
    for patient in range(40):
        for view, direction in ((1, "Frontal"), (2, "Lateral")):
            path = f"train/patient{patient:05d}/study1/view{view}_{direction.lower()}.jpg"
            write_image(root / path, patient * 2 + view)
            rows.append(
                {
                    "Path": f"CheXpert-v1.0-small/{path}",
                    "Sex": "Female",
                    "Age": "50",
                    "Frontal/Lateral": direction,
                    "AP/PA": "AP" if view == 1 else "",
                    "No Finding": "1.0" if patient < 24 else "",
                    **dict.fromkeys(CHEXPERT_FINDINGS, ""),
                    "Edema": "1.0" if 24 <= patient < 36 else "",
                    # The last ones have an uncertain finding, or a device only: neither class.
                    "Pneumonia": "-1.0" if patient in (36, 37) else "",
                    "Support Devices": "1.0" if patient > 37 else "",
                }
            )
    write_table(root / "train.csv", rows)
    write_table(root / "valid.csv", rows[:1])
    return tmp_path / "chexpert"


@pytest.fixture
def rsna(tmp_path):
    root = tmp_path / "rsna"
    rows = []
    for patient in range(30):
        name = f"{patient:08x}-0000"
        kind = ("Normal", "Lung Opacity", "No Lung Opacity / Not Normal")[patient % 3]
        pixels = np.random.default_rng(patient).integers(256, size=(40, 40))
        polarity = "MONOCHROME1" if patient % 2 else "MONOCHROME2"
        write_dicom(root / "stage_2_train_images" / f"{name}.dcm", pixels, polarity)
        rows += [{"patientId": name, "class": kind}] * (2 if kind == "Lung Opacity" else 1)
    write_table(root / "stage_2_detailed_class_info.csv", rows)
    return root


def test_the_plain_layout(plain):
    split = read_split(plain)
    assert split.layout == find_layout(plain) == "plain"
    assert [kinds(split[part]) for part in PARTS] == [(6, 0), (2, 2), (2, 3)]
    assert read_split(plain, seed=5) == split


def test_patients_that_plain_file_names_give_are_counted(plain):
    names = iter(("person1_virus_6", "person2_virus_7", "IM-0001-0001", "NORMAL2-IM-0003-0001"))
    for path in sorted((plain / "train" / "normal").iterdir())[:4]:
        path.rename(path.with_name(f"{next(names)}.png"))
    names = iter(("person1_bacteria_9", "IM-0003-0001", "person22"))
    for path in sorted((plain / "test" / "abnormal").iterdir()):
        path.rename(path.with_name(f"{next(names)}.png"))
    split = read_split(plain)
    assert shared_patients(split) == {"patients": 1, "images": {"train": 1, "valid": 0, "test": 1}}
    with pytest.raises(PipelineError, match="held-out numbers cannot be given for plain"):
        read_split(plain, held_out=(1, 1))


def test_zhanglab(zhanglab):
    split = read_split(zhanglab, held_out=(4, 0))
    assert split.layout == "zhanglab"
    assert kinds(split.test) == (3, 4)  # the official test part, whole
    assert kinds(split.valid) == (4, 4)
    assert kinds(split.train) == (14, 0)
    assert_patients_apart(split)
    assert all((zhanglab / entry.path).exists() for part in PARTS for entry in split[part])
    assert not any(entry.patient == "person0" for entry in split.valid)
    # Also from within the folder.
    inner = read_split(zhanglab / "chest_xray", held_out=(4, 0))
    assert [entry.patient for entry in inner.train] == [entry.patient for entry in split.train]


def test_chexpert(chexpert):
    split = read_split(chexpert, held_out=(3, 5))
    assert split.layout == "chexpert"
    assert [kinds(split[part]) for part in PARTS] == [(16, 0), (3, 3), (5, 5)]
    assert_patients_apart(split)
    for part in PARTS:
        for entry in split[part]:
            assert (chexpert / entry.path).exists()
            assert "frontal" in entry.path
            number = int(entry.patient.removeprefix("patient"))
            assert number >= 24 if entry.abnormal else number < 24
            assert number < 36
    # The folder may bear any name, and be given itself.
    renamed = (chexpert / "CheXpert-v1.0-small").rename(chexpert / "small")
    again = read_split(renamed, held_out=(3, 5))
    assert [entry.patient for entry in again.test] == [entry.patient for entry in split.test]


def test_rsna(rsna, tmp_path):
    split = read_split(rsna, held_out=(2, 3))
    assert split.layout == "rsna"
    assert [kinds(split[part]) for part in PARTS] == [(5, 0), (2, 2), (3, 3)]
    assert_patients_apart(split)
    settings = Settings(variant="cutpaste", size=32)
    dataset = load_dataset(Source(rsna, tmp_path / "cache"), split, settings)
    for part in PARTS:
        for entry, image in zip(split[part], dataset.images[part], strict=True):
            patient = int(entry.patient.partition("-")[0], 16)
            assert entry.abnormal == (patient % 3 != 0)
            pixels = np.random.default_rng(patient).integers(256, size=(40, 40)).astype(np.uint8)
            shown = Image.fromarray(255 - pixels if patient % 2 else pixels)
            expected = np.asarray(shown.resize((32, 32), Image.Resampling.BICUBIC))
            np.testing.assert_array_equal(image, expected)


def edit_table(path, change):
    """Apply a change to the rows of a CSV file, the header being the first."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    change(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize(
    ("row", "column", "cell", "message"),
    [
        (1, "Path", "a/../../../../etc/patient1/x.jpg", "must lead into the data folder"),
        (1, "Path", "", "line 2: Path must name a patient, got ''"),
        (2, "Path", "CheXpert-v1.0-small/train/view1.jpg", "line 3: Path must name a patient"),
        (3, "Path", "x/train/patient00002/study1/a\0.jpg", "must lead into|NUL"),
        (1, "Frontal/Lateral", "frontal", "line 2: Frontal/Lateral must be one of them"),
        (1, "No Finding", "yes", "line 2: could not convert string to float: 'yes'"),
        (1, "Edema", "1,0", "line 2: could not convert string to float: '1,0'"),
        (1, "Edema", "nan", "line 2: a finding must be 1, 0, -1 or empty, got 'nan'"),
        (1, "Edema", "2", "line 2: a finding must be 1, 0, -1 or empty, got '2'"),
        (0, "Edema", "Edemas", "has no column Edema"),
        (0, "Sex", "Path", "has the column Path twice"),
    ],
)
def test_chexpert_rows_that_cannot_be_read_are_named(chexpert, row, column, cell, message):
    def change(rows):
        rows[row][rows[0].index(column)] = cell

    edit_table(chexpert / "CheXpert-v1.0-small" / "train.csv", change)
    with pytest.raises(PipelineError, match=message):
        read_split(chexpert, held_out=(3, 5))


def test_rows_of_too_many_cells_are_named(chexpert):
    table = chexpert / "CheXpert-v1.0-small" / "train.csv"
    edit_table(table, lambda rows: rows[2].append("1.0"))
    with pytest.raises(PipelineError, match="line 3: more cells than columns"):
        read_split(chexpert, held_out=(3, 5))


def test_chexpert_rows_that_are_given_twice(chexpert):
    table = chexpert / "CheXpert-v1.0-small" / "train.csv"
    edit_table(table, lambda rows: rows.extend([rows[1]] * 2))
    with pytest.raises(PipelineError, match=r"view1_frontal\.jpg is given twice"):
        read_split(chexpert, held_out=(3, 5))


def test_images_of_nobody_known_are_not_lost():
    entries = [Entry(f"{number}.png", number % 2 == 1) for number in range(20)]
    split = split_by_patient("plain", entries, (2, 3), np.random.default_rng(0))
    assert [kinds(split[part]) for part in PARTS] == [(5, 0), (2, 2), (3, 3)]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["../../secret", "Normal"], "must lead into the data folder, got 'stage_2_train_images"),
        (["", "Normal"], "line 42: patientId must not be empty"),
        (["new", "normal"], "line 42: class must be one of Normal, Lung Opacity, .* got 'normal'"),
        (["new"], "line 42: class must be one of .* got ''"),
    ],
)
def test_rsna_rows_that_cannot_be_read_are_named(rsna, cells, message):
    edit_table(rsna / "stage_2_detailed_class_info.csv", lambda rows: rows.append(cells))
    with pytest.raises(PipelineError, match=message):
        read_split(rsna, held_out=(2, 3))


@pytest.mark.parametrize("name", ["chexpert", "rsna"])
def test_tables_may_begin_with_a_byte_order_mark(name, request):
    folder = request.getfixturevalue(name)
    split = read_split(folder, held_out=(2, 2))
    (table,) = [path for path in folder.rglob("*.csv") if path.name != "valid.csv"]
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert read_split(folder, held_out=(2, 2)) == split


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "cannot read"), (b"a" * 200_000, "field larger"), (b"", "has no column Path")],
)
def test_tables_that_are_none_are_refused(chexpert, content, message):
    table = chexpert / "CheXpert-v1.0-small" / "train.csv"
    table.write_bytes(content)
    with pytest.raises(PipelineError, match=message) as caught:
        read_split(chexpert)
    assert str(table) in str(caught.value)


def test_held_out_numbers_that_would_be_ignored(zhanglab, plain):
    with pytest.raises(PipelineError, match=r"must be 0 for zhanglab, .* got 5"):
        read_split(zhanglab, held_out=(4, 5))
    for folder in (zhanglab, plain):
        with pytest.raises(PipelineError, match="held-out numbers"):
            read_split(folder, held_out=(-1, 0))


@pytest.mark.parametrize("name", ["zhanglab", "chexpert", "rsna"])
def test_the_split_is_drawn_by_seed_and_can_be_saved(name, request):
    folder = request.getfixturevalue(name)
    test = 0 if name == "zhanglab" else 2
    split = read_split(folder, seed=1, held_out=(2, test))
    assert read_split(folder, seed=1, held_out=(2, test)) == split
    assert read_split(folder, seed=2, held_out=(2, test)) != split
    assert Split.from_dict(json.loads(json.dumps(split.as_dict()))) == split
    with pytest.raises(PipelineError, match="cannot set 1000 images aside"):
        read_split(folder, held_out=(1000, test))


def test_patients_who_are_on_two_sides_are_refused(plain):
    split = read_split(plain).as_dict()
    split["train"][0]["patient"] = split["test"][0]["patient"] = "Doe"
    with pytest.raises(PipelineError, match="patient Doe is in both train and test"):
        load_dataset(Source(plain, plain / "c"), Split.from_dict(split), Settings(size=32))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("train/normal", "no known layout"),
        ("valid/normal", "validation needs at least 2 normal images"),
        ("test/normal", "the test part .* holds abnormal images only"),
    ],
)
def test_a_missing_part_is_named(missing, message, plain, tmp_path):
    (plain / missing).rename(tmp_path / "away")
    with pytest.raises(PipelineError, match=message):
        read_split(plain)


@pytest.mark.parametrize(("part", "kind"), [("test", "normal"), ("test", "abnormal")])
def test_a_part_of_one_class_cannot_be_scored(part, kind, plain):
    for path in (plain / part / kind).iterdir():
        path.unlink()
    other = "abnormal" if kind == "normal" else "normal"
    with pytest.raises(PipelineError, match=f"{part} part .* holds {other} images only: an AUC"):
        read_split(plain)


def test_a_single_image_cannot_be_trained_on(plain):
    for path in sorted((plain / "train" / "normal").iterdir())[1:]:
        path.unlink()
    with pytest.raises(PipelineError, match=r"needs at least 4 normal images, .* has 1"):
        read_split(plain)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(PipelineError, match="is not a folder"):
        read_split(tmp_path / "none")
    with pytest.raises(PipelineError, match="no known layout"):
        read_split(tmp_path)
    with pytest.raises(PipelineError, match="layout must be auto or one of"):
        read_split(tmp_path, layout="other")
    write_table(tmp_path / "train.csv", [{"File": "a.jpg"}])
    with pytest.raises(PipelineError, match="has no column Path, Frontal/Lateral, No Finding"):
        read_split(tmp_path)


def test_rsna_with_two_classes_for_one_patient(rsna):
    table = rsna / "stage_2_detailed_class_info.csv"
    table.write_text(table.read_text() + "00000000-0000,Lung Opacity\n")
    with pytest.raises(PipelineError, match="line 42: patient 00000000-0000 is given two classes"):
        read_split(rsna, held_out=(2, 2))


def hide_files(folder):
    """Put beside the images what systems and editors leave there: five hidden files and folders."""
    for name in ("._0.png", ".thumb.jpeg", ".DS_Store"):
        (folder / name).write_bytes(b"no image")
    write_image(folder / ".ipynb_checkpoints" / "0-checkpoint.png")
    write_image(folder / ".Trash.png" / "1.png")


@pytest.mark.parametrize("name", ["plain", "normals", "zhanglab", "chexpert", "rsna"])
def test_hidden_files_are_no_images(name, request):
    folder = request.getfixturevalue("plain" if name == "normals" else name)
    if name == "normals":
        folder = folder / "train" / "normal"
        for index in range(6, 10):
            write_image(folder / f"{index}.png", 20 + index)
    held_out = {"zhanglab": (4, 0), "chexpert": (3, 5), "rsna": (2, 3)}.get(name)
    split = read_split(folder, held_out=held_out)
    assert split.layout == name
    assert not unread(folder, split)
    inside = {(folder / entry.path).parent for part in PARTS for entry in split[part]}
    for each in inside:
        hide_files(each)
    assert read_split(folder, held_out=held_out) == split
    if name in ("chexpert", "rsna"):  # tables name their images
        assert not unread(folder, split)
    else:
        assert unread(folder, split) == f"{folder}: hidden files skipped: {5 * len(inside)}"


def test_hidden_files_are_read_where_a_table_names_them(chexpert):
    table = chexpert / "CheXpert-v1.0-small" / "train.csv"
    path = "train/patient00000/study1/.view1_frontal.jpg"
    edit_table(table, lambda rows: rows[1].__setitem__(0, f"CheXpert-v1.0-small/{path}"))
    split = read_split(chexpert, held_out=(3, 5))
    assert any(entry.path.endswith(path) for part in PARTS for entry in split[part])


def test_a_folder_of_hidden_files_holds_no_images(tmp_path):
    hide_files(tmp_path)
    with pytest.raises(PipelineError, match="no known layout"):
        find_layout(tmp_path)


def test_bad_files_are_named_and_skipped_on_request(plain, tmp_path):
    cache = tmp_path / "cache"
    split = read_split(plain)
    (plain / split.train[1].path).write_bytes(b"no image")
    truncated = plain / split.train[3].path
    truncated.write_bytes(truncated.read_bytes()[:200])
    (plain / split.test[0].path).unlink()
    settings = Settings(variant="cutpaste", size=32)

    def load(skip_bad):
        return load_dataset(Source(plain, cache, skip_bad=skip_bad), split, settings)

    with pytest.raises(PipelineError, match="3 files in") as error:
        load(False)
    for entry in (split.train[1], split.train[3], split.test[0]):  # of all parts together
        assert entry.path in str(error.value)
    assert "--skip-bad" in str(error.value)
    # That of the part without bad files; nothing half-written.
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npy"]
    for _ in range(2):  # decoded, then from the cache
        dataset = load(True)
        assert len(dataset.skipped) == 3
        assert any(split.test[0].path in line for line in dataset.skipped)
        assert [len(dataset.images[part]) for part in PARTS] == [4, 4, 4]
        assert [len(dataset.split[part]) for part in PARTS] == [4, 4, 4]
        kept = decode(plain / split.train[2].path, View(32))
        np.testing.assert_array_equal(dataset.images["train"][1], kept)
    with pytest.raises(PipelineError, match="3 files in"):
        load(False)  # a cache made with --skip-bad hides nothing


def test_too_few_images_left_after_skipping(plain, tmp_path):
    split = read_split(plain)
    for entry in split.train[:3]:
        (plain / entry.path).unlink()
    settings = Settings(variant="cutpaste", size=32)
    with pytest.raises(PipelineError, match="at least 4 normal images"):
        load_dataset(Source(plain, tmp_path, skip_bad=True), split, settings)


def test_the_cache_is_memory_mapped(plain, tmp_path):
    split = read_split(plain)
    stored = load_images(Source(plain, tmp_path), split.train, View(32))
    again = load_images(Source(plain, tmp_path), split.train, View(32))
    assert isinstance(again.images, np.memmap)
    np.testing.assert_array_equal(stored.images, again.images)
    before = again.images.copy()
    again.images[:] = 0  # private to this process
    fresh = load_images(Source(plain, tmp_path), split.train, View(32))
    np.testing.assert_array_equal(fresh.images, before)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "sidecar"])
def test_a_damaged_cache_is_built_again(damage, plain, tmp_path):
    split = read_split(plain)
    stored = load_images(Source(plain, tmp_path), split.train, View(32))
    before = stored.images.copy()
    (path,) = tmp_path.glob("*.npy")
    content = path.read_bytes()
    if damage == "sidecar":
        path.with_suffix(".json").write_text("[]")
    else:
        path.unlink()
        path.write_bytes({"cut": content[:-100], "empty": b"", "other": b"text"}[damage])
    again = load_images(Source(plain, tmp_path), split.train, View(32))
    np.testing.assert_array_equal(again.images, before)
    assert path.read_bytes() == content


@pytest.mark.parametrize("failure", [ImportError("no decoder"), MemoryError()])
def test_what_is_not_the_files_fault_is_not_put_down_as_a_bad_file(
    failure, plain, tmp_path, monkeypatch
):
    split = read_split(plain)

    def fails(path):
        raise failure

    monkeypatch.setattr("examples.pretrain_gde.data.read_image", fails)
    with pytest.raises(PipelineError, match=r"was not read: (no decoder|MemoryError)"):
        load_images(Source(plain, tmp_path, skip_bad=True), split.train, View(32))
    assert not list(tmp_path.glob("*.npy"))


def test_bad_files_are_tried_again(plain, tmp_path, monkeypatch):
    from examples.pretrain_gde import data

    split, read = read_split(plain), data.read_image

    def fails(path):
        if path.name == "1.png":
            raise RuntimeError("no decoder for this compression")
        return read(path)

    def load():
        return load_images(Source(plain, tmp_path, skip_bad=True), split.train, View(32))

    with monkeypatch.context() as patch:
        patch.setattr(data, "read_image", fails)
        assert load().kept == load().kept == [0, 2, 3, 4, 5]
    assert load().kept == [0, 1, 2, 3, 4, 5]


# Decoding.


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_polarity(polarity, tmp_path):
    path = tmp_path / "image.dcm"
    write_dicom(path, RAMP, polarity)
    image = decode(path, View(64))
    np.testing.assert_array_equal(image, 255 - RAMP if polarity == "MONOCHROME1" else RAMP)


@pytest.mark.parametrize("name", ["image.dcm", "image.DICOM", "image", "image.png"])
def test_a_dicom_decodes_alike_under_any_name(name, tmp_path):
    path = tmp_path / name
    write_dicom(path, RAMP, "MONOCHROME1")
    np.testing.assert_array_equal(decode(path, View(64)), 255 - RAMP)


def test_a_neutral_rescale_changes_nothing(tmp_path):
    one, other = tmp_path / "one.dcm", tmp_path / "other.dcm"
    write_dicom(one, 100 + RAMP // 8)
    write_dicom(other, 100 + RAMP // 8, RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(decode(one, View(64)), decode(other, View(64)))


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_padding_is_black(polarity, tmp_path):
    pixels = 1000 + RAMP * 4
    pixels[:, :8] = 4000
    path = tmp_path / "image.dcm"
    write_dicom(path, pixels, polarity, 12, PixelPaddingValue=4000)
    image = decode(path, View(64))
    assert not image[:, :8].any()
    rest = 255 - RAMP if polarity == "MONOCHROME1" else RAMP
    assert abs(image[:, 10:-2].astype(int) - rest[:, 10:-2]).max() <= 1


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_window(polarity, tmp_path):
    pixels = np.linspace(0, 4095, 64 * 64).round().reshape(64, 64)
    path = tmp_path / "image.dcm"
    window = {"WindowCenter": 2048, "WindowWidth": 1024}
    write_dicom(path, pixels, polarity, 12, **window)
    # DICOM PS3.3 C.11.2.1.2, written out.
    x = ((pixels - 2047.5) / 1023 + 0.5).clip(0, 1)
    expected = 255 * (1 - x if polarity == "MONOCHROME1" else x)
    assert abs(decode(path, View(64)) - expected).max() <= 0.5 + 1e-3
    exact = tmp_path / "exact.dcm"
    write_dicom(exact, pixels, polarity, 12, **window, VOILUTFunction="LINEAR_EXACT")
    x = ((pixels - 2048) / 1024 + 0.5).clip(0, 1)
    expected = 255 * (1 - x if polarity == "MONOCHROME1" else x)
    assert abs(decode(exact, View(64)) - expected).max() <= 0.5 + 1e-3


def test_dicom_window_after_the_rescale_and_the_first_of_several(tmp_path):
    pixels = np.linspace(0, 4095, 64 * 64).round().reshape(64, 64)
    path = tmp_path / "image.dcm"
    write_dicom(
        path,
        pixels,
        bits=12,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=[3000, 10],
        WindowWidth=[2000, 10],
    )
    x = ((2 * pixels - 1000 - 2999.5) / 1999 + 0.5).clip(0, 1)
    assert abs(decode(path, View(64)) - 255 * x).max() <= 0.5 + 1e-3


def test_dicom_sigmoid_and_table(tmp_path):
    pixels = np.linspace(0, 4095, 64 * 64).round().reshape(64, 64)
    path = tmp_path / "sigmoid.dcm"
    window = {"WindowCenter": 2048, "WindowWidth": 1024, "VOILUTFunction": "SIGMOID"}
    write_dicom(path, pixels, bits=12, **window)
    expected = 1 / (1 + np.exp(-4 * (pixels - 2048) / 1024))
    expected -= expected.min()
    assert abs(decode(path, View(64)) - 255 * expected / expected.max()).max() <= 0.5 + 1e-3

    table = Dataset()
    table.LUTDescriptor = [4096, 0, 10]
    table.add_new("LUTData", "OW", (1023 - np.arange(4096) // 4).astype("<u2").tobytes())
    path = tmp_path / "table.dcm"
    write_dicom(path, pixels, bits=12, VOILUTSequence=[table])
    expected = 255 * (1023 - pixels // 4) / 1023
    assert abs(decode(path, View(64)) - expected).max() <= 0.5 + 1e-3


def test_dicom_without_a_window_is_stretched(tmp_path):
    pixels = 1000 + RAMP * 4
    path = tmp_path / "image.dcm"
    write_dicom(path, pixels, bits=12)
    np.testing.assert_array_equal(decode(path, View(64)), RAMP)
    write_dicom(path, np.full((40, 40), 700), bits=12)
    assert not decode(path, View(64)).any()


def test_dicom_that_is_no_radiograph(tmp_path):
    path = tmp_path / "image.dcm"
    write_dicom(path, RAMP, "PALETTE COLOR")
    with pytest.raises(ValueError, match="one gray frame"):
        decode(path, View(64))


def test_sixteen_bit_and_color_files(tmp_path):
    deep = tmp_path / "deep.png"
    Image.fromarray((RAMP * 200 + 3000).astype(np.uint16)).save(deep)
    np.testing.assert_array_equal(decode(deep, View(64)), RAMP)
    color = tmp_path / "color.png"
    Image.fromarray(np.repeat(RAMP[..., None], 3, 2).astype(np.uint8)).save(color)
    np.testing.assert_array_equal(decode(color, View(64)), RAMP)
    assert decode(color, View(32)).shape == (32, 32)
    pixels = np.random.default_rng(0).integers(256, size=(256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(color)
    np.testing.assert_array_equal(decode(color, View(256)), to_gray(pixels))


def test_real_dicoms():
    samples = ROOT.parent / "shared" / "data" / "samples"
    if not samples.is_dir():
        pytest.skip("the sample files are not beside the repository")
    one, two = (decode(samples / f"rsna_monochrome{kind}.dcm", View(128)) for kind in (1, 2))
    assert two[:8, :8].mean() < 60  # the air beside the neck is dark
    # The other file holds the same pixels under the other polarity.
    assert abs(one.astype(int) - (255 - two.astype(int))).max() <= 1


def test_what_is_set_aside_are_whole_patients():
    names = [f"IM-{patient:04}-0001-{view:04}.png" for patient in range(20) for view in range(3)]
    entries = [Entry(name, False) for name in names] + [Entry("x.png", False)]
    valid, train = set_aside(entries, np.random.default_rng(0))
    assert len(valid) in (11, 12)
    assert sorted(valid + train, key=lambda entry: entry.path) == entries
    sides = [{entry.path[:7] for entry in part} for part in (valid, train)]
    assert not sides[0] & sides[1]
    alone = [Entry(f"{index}.png", False) for index in range(50)]
    valid, _ = set_aside(alone, np.random.default_rng(1))
    order = np.random.default_rng(1).permutation(50)
    assert {entry.path for entry in valid} == {f"{index}.png" for index in order[:10]}
