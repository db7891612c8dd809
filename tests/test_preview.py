"""The preview command, run as a user runs it."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anatpaste_aug.preview import command
from anatpaste_aug.preview.command import OPERATIONS, main
from anatpaste_aug.preview.picture import (
    LABEL,
    LUNG_COLOR,
    REGION_COLOR,
    TILE,
    draw_tile,
    preview_row,
    resize_square,
)

NONE = "no lungs found in 0 of 1 images\n"


def cut(row):
    """Cut the picture of one image into its tiles, without the text above them."""
    lines = np.split(np.asarray(row)[LABEL:], 2)
    return [tile for line in lines for tile in np.split(line[LABEL:], 3, axis=1)]


def count(tile, color):
    return int((tile == color).all(axis=-1).sum())


def fit(image, size=TILE):
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC), int)


def test_the_picture(phantom):
    row = preview_row("a", phantom)
    assert row.size == (1536, 28 + 2 * (28 + 512))
    tiles = cut(row)
    np.testing.assert_array_equal(tiles[0][..., 0], fit(phantom))
    assert count(tiles[1], LUNG_COLOR) > 500
    assert [count(tile, LUNG_COLOR) > 0 for tile in tiles] == [False, True, *[False] * 4]
    assert [count(tile, REGION_COLOR) > 100 for tile in tiles] == [False] * 3 + [True] * 3
    assert (tiles[4] != tiles[0]).any()
    assert (tiles[4] != tiles[5]).any()
    above = np.asarray(row)[: 2 * LABEL]
    assert [(text > 200).any() for text in np.split(above[LABEL:], 3, axis=1)] == [True] * 3
    assert (above[:LABEL] > 200).any()


def test_each_draw_has_the_outline_of_what_it_changed(phantom):
    large = fit(phantom).astype(np.uint8)
    original, _, alpha, *draws = (tile[..., 0].astype(int) for tile in cut(preview_row("", large)))
    for draw, tile in zip(draws, cut(preview_row("", large))[3:], strict=True):
        outline = (tile == REGION_COLOR).all(-1)
        changed = (draw != original) & ~outline
        rows, columns = np.nonzero(outline)
        inside = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert changed[inside].sum() == changed.sum() > 0
    outline = (cut(preview_row("", large))[3] == REGION_COLOR).all(-1)
    assert (alpha[outline] > 0).all()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_dtypes_are_stretched(phantom, dtype):
    wide = phantom.astype(dtype) * 100
    wide[0, :2] = 0, 25500  # so that stretching gives the phantom back
    tile = cut(preview_row("", wide))[0][..., 0].astype(int)
    assert np.abs(tile - fit(phantom))[8:].max() <= 1


@pytest.mark.parametrize("side", [64, 256, 512, 2048])
def test_outlines_are_as_thin_on_small_images_as_on_large_ones(side):
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    disc = np.hypot(x, y) < 0.25
    tile = draw_tile(np.zeros((side, side), np.uint8), disc, REGION_COLOR)
    assert tile.shape == (512, 512, 3)
    assert 0.85 < count(tile, REGION_COLOR) / (np.pi * 256) < 1.3  # a pixel wide
    y, x = np.nonzero((tile == REGION_COLOR).all(-1))
    assert abs(np.hypot(x - 255.5, y - 255.5).mean() - 128) < 0.7  # where the region ends


def test_a_thin_region_does_not_vanish_from_a_large_image():
    line = np.zeros((4096, 4096), bool)
    line[2000, 1000:3000] = True
    assert count(draw_tile(line * np.uint8(0), line, REGION_COLOR), REGION_COLOR) >= 250


def test_rows_keep_the_aspect(phantom):
    assert preview_row("wide", phantom[:128]).size == (1536, 28 + 2 * (28 + 256))
    assert preview_row("tall", phantom[:, :100]).size == (1536, 28 + 2 * (28 + 512))


def test_command_on_the_phantom(tmp_path):
    outputs = []
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        command = [sys.executable, "-m", "anatpaste_aug", "preview", "--seed", seed, "-o", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        wrote = f"{NONE}wrote {(tmp_path / name).resolve().as_uri()}\n"
        assert (done.returncode, done.stdout, done.stderr) == (0, wrote, "")
        outputs.append((tmp_path / name).read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]


def test_bad_files_are_named_and_the_others_done(tmp_path, phantom, capsys):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(phantom).save(good)
    bad.write_text("no image")
    output = tmp_path / "out.png"
    assert main(["preview", str(bad), str(good), str(tmp_path / "none"), "-o", str(output)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{bad}: cannot identify image file")
    assert lines[1] == f"{tmp_path / 'none'}: No such file or directory"
    with Image.open(output) as picture:
        assert picture.height == 28 + 2 * (28 + 512)


def test_the_robust_mask_can_be_chosen(tmp_path):
    published, robust = (show(tmp_path, "--mask", mask) for mask in ("published", "robust"))
    assert (published[1] != robust[1]).any()
    np.testing.assert_array_equal(published[0], robust[0])


MASKS = """
import numpy as np

def corner(image):
    mask = np.zeros(image.shape, bool)
    mask[:100, :100] = True
    return mask

def small(image):
    return corner(image)[1:]

def picky(image):
    if image[0, 0] == 255:
        raise KeyError("too\\nbright")
    return corner(image)
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(MASKS)
    yield "own.py"
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


@pytest.mark.parametrize("option", ["--mask", "--segment"])
def test_a_mask_of_one_s_own(option, functions, tmp_path):
    tiles = show(tmp_path, option, f"{functions}:corner", "--size", TILE)
    outline = (tiles[1] == LUNG_COLOR).all(-1)
    assert outline[99, :100].all()
    assert not outline[101:].any()
    assert (tiles[2] > 0).any()
    assert not tiles[2][101:].any()


def test_images_that_a_mask_of_one_s_own_fails_on_are_named(functions, phantom, capsys):
    Image.fromarray(phantom).save("a.png")
    Image.fromarray(np.full_like(phantom, 255)).save("b.png")
    assert main(["preview", "a.png", "b.png", "--mask", "own.py:picky"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "b.png: own.py:picky raised KeyError: 'too\\nbright'\n"
    assert captured.out == f"{NONE}wrote {Path('preview.png').resolve().as_uri()}\n"
    assert main(["preview", "a.png", "--mask", "own.py:small"]) == 2
    told = "a.png: the mask returned by own.py:small must have the image's shape (256, 256)"
    assert capsys.readouterr().err.startswith(told)


def test_one_line_for_each_bad_file_whatever_its_name(tmp_path, capsys):
    assert main(["preview", "a\nb.png", "-o", str(tmp_path / "out.png")]) == 2
    assert capsys.readouterr().err == "'a\\nb.png': No such file or directory\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs names that are no text")
def test_names_that_are_no_text(tmp_path, phantom, monkeypatch, capsysbinary):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"\xff.png")
    Image.fromarray(phantom).save(name)
    assert main(["preview", name, os.fsdecode(b"\xfe"), "-o", os.fsdecode(b"\xfd.png")]) == 2
    captured = capsysbinary.readouterr()
    assert captured.out == f"{NONE}wrote {tmp_path.resolve().as_uri()}/%FD.png\n".encode()
    assert captured.err == b"'\\udcfe': No such file or directory\n"


def test_no_image_is_written_over(tmp_path, phantom, capsys):
    path = tmp_path / "image.png"
    Image.fromarray(phantom).save(path)
    before = path.read_bytes()
    (tmp_path / "link.png").hardlink_to(path)
    for output in (path, tmp_path / "link.png"):
        with pytest.raises(SystemExit):
            main(["preview", str(tmp_path / "none"), str(path), "-o", str(output)])
        assert "-o must not be one of the images" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_phantom_that_cannot_be_drawn_is_named(tmp_path, monkeypatch, capsys):
    def fail(size, rng):
        raise MemoryError("out of memory")

    monkeypatch.setattr(command, "phantom_radiograph", fail)
    assert main(["preview", "-o", str(tmp_path / "out.png")]) == 2
    assert capsys.readouterr().err == "phantom: out of memory\n"


def test_nothing_readable_writes_nothing(tmp_path, capsys):
    assert main(["preview", str(tmp_path / "none"), "-o", str(tmp_path / "out.png")]) == 2
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full(self, file, format):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    old = tmp_path / "out.png"
    old.write_bytes(b"old")
    assert main(["preview", "-o", str(old)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out.xyz"], "-o must end in a picture format"),
        (["-o", "out.psd"], "-o must end in a picture format"),
        (["-o", "/nowhere/out.png"], "-o must lie in a folder that exists"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--seed", "x"], "--seed must be an integer, got 'x'"),
        (["--size", "8"], "--size must lie in 16..4096, got 8"),
        (["--size", "all"], "--size must be an integer, got 'all'"),
        (["--size", "0"], "--size must lie in 16..4096, got 0"),
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--limit", "few"], "--limit must be an integer, got 'few'"),
        (["--set", "opacity=300"], "opacity must lie in 0..255, got 300"),
        (["--set", "blur=1,2,3"], "blur must be a number or a pair (low, high), got (1, 2, 3)"),
        (
            ["--operation", "cutpaste", "--set", "blur=3"],
            "blur is no option of cutpaste, which has",
        ),
        (["--operation", "cutpaste", "--set", "lengths_for=none"], "lengths_for is no option of"),
        (["--operation", "cutpaste", "--mask", "robust"], "--mask is no option of cutpaste, which"),
        (["--mask", "best"], "--mask must be published, robust or MODULE:FUNCTION, got 'best'"),
        (["--mask", "no_such:f"], "no_such:f: ModuleNotFoundError: No module named 'no_such'"),
        (["--segment", "none.py:f"], "none.py:f: FileNotFoundError: [Errno 2] No such file"),
        (["--mask", "anatpaste_aug:lung_msk"], "anatpaste_aug:lung_msk: AttributeError: module"),
        (["--set", "size=2"], "size is no option of anatpaste"),
        (["--set", "margin=x"], "margin must be an integer, got 'x'"),
        (["--set", "blur"], "blur must be an integer, got ''"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["preview", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def show(tmp_path, *arguments):
    """Run the command on one image; return the tiles."""
    assert main(["preview", *map(str, arguments), "-o", str(tmp_path / "out.png")]) == 0
    with Image.open(tmp_path / "out.png") as picture:
        return cut(picture)


def test_images_are_squeezed_as_for_training(tmp_path, phantom):
    path = tmp_path / "a.png"
    Image.fromarray(phantom.repeat(2, 0).repeat(3, 1)).save(path)
    with Image.open(path) as large:
        plain = np.asarray(large.resize((TILE, TILE), Image.Resampling.BILINEAR), int)
    assert np.abs(show(tmp_path, path, "--size", TILE)[0][..., 0] - plain).max() <= 1
    assert show(tmp_path, path, "--size", "native")[0].shape[0] == round(512 * 512 / 768)
    small = show(tmp_path, path, "--size", 64)
    assert small[0].shape[0] == 512  # enlarged again, to look at
    assert np.abs(np.diff(small[0][..., 0].astype(int))).mean() < 5
    assert (show(tmp_path, "--size", 64)[0] != show(tmp_path, "--size", 512)[0]).any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("color", [False, True])
def test_squeezing_keeps_dtype_channels_and_values(phantom, dtype, color):
    image = phantom.astype(dtype)
    image = np.stack([image, image // 2, image // 3], axis=-1) if color else image
    out = resize_square(image, 64)
    assert (out.dtype, out.shape) == (image.dtype, (64, 64, *image.shape[2:]))
    plain = Image.fromarray(phantom).resize((64, 64), Image.Resampling.BILINEAR)
    first = out[..., 0] if color else out
    assert np.abs(first.astype(float) - np.asarray(plain, float)).max() <= 1
    assert resize_square(phantom, 256) is phantom


def test_every_operation_with_options(tmp_path):
    rows = {name: show(tmp_path, "--size", TILE, "--operation", name) for name in OPERATIONS}
    assert {name: sum(tile.any() for tile in row) for name, row in rows.items()} == {
        "anatpaste": 6,
        "opacity": 6,
        "cutpaste": 5,
        "cutpaste_scar": 5,
        "cutpaste_union": 5,
    }
    for row in rows.values():
        assert sum(count(tile, REGION_COLOR) > 30 for tile in row) == 3
    default = rows["anatpaste"]
    fixed = show(tmp_path, "--size", TILE, "--set", "opacity=200", "blur=0")
    assert set(np.unique(fixed[2])) == {0, 200}  # alpha
    assert default[2].max() < 255
    np.testing.assert_array_equal(fixed[:2], default[:2])
    options = ("--size", TILE, "--operation", "opacity", "--set", "kinds=nodule", "size=0.5")
    nodule = show(tmp_path, *options)
    assert 0 < (nodule[2] > 0).mean() < (rows["opacity"][2] > 0).mean()
    options = ("--size", TILE, "--operation", "cutpaste_scar", "--set", "angle=0", "height=10,12")
    assert (show(tmp_path, *options)[1] != rows["cutpaste_scar"][1]).any()
    pixels = show(tmp_path, "--size", 128, "--set", "lengths_for=none")
    assert (pixels[2] != show(tmp_path, "--size", 128)[2]).any()


@pytest.fixture
def folder(tmp_path, phantom, monkeypatch):
    """Make a folder with 25 images in two folders, and what is none of them."""
    monkeypatch.chdir(tmp_path)
    for name in ("normal", "abnormal"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(phantom).save(tmp_path / f"data/{name}/{number}.png")
    for suffix in (".jpg", ".JPEG", ".tif", ".tiff", ".bmp"):
        Image.fromarray(phantom).save(tmp_path / f"data/z{suffix}")
    (tmp_path / "data/notes.txt").write_text("no image")
    (tmp_path / "data/folder.png").mkdir()
    (tmp_path / "data/._0.png").write_text("no image")
    (tmp_path / "data/.cache").mkdir()
    (tmp_path / "data/.cache/0.png").write_text("no image")
    return "data"


@pytest.fixture
def labels(monkeypatch):
    """Note what would be written above each image, and draw nothing."""
    labels = []

    def note(label, *rest):
        labels.append(label)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(command.picture, "preview_row", note)
    return labels


def test_folders_are_sampled_evenly_in_the_order_of_names(folder, labels, capsys):
    assert main(["preview", folder, "--limit", "5"]) == 0
    picked = ["abnormal/0.png", "abnormal/5.png", "normal/0.png", "normal/5.png", "z.JPEG"]
    assert [label.replace(os.sep, "/") for label in labels] == picked
    lines = capsys.readouterr().out.splitlines()
    wrote = f"wrote {Path('preview.png').resolve().as_uri()}"
    assert lines == ["data: 5 of 25 images", "no lungs found in 0 of 5 images", wrote]


def test_the_limit_is_each_folder_s_and_files_are_all_drawn(folder, labels, capsys):
    files = [f"{folder}/normal/{number}.png" for number in range(3)]
    arguments = [f"{folder}/abnormal", *files, folder]
    assert main(["preview", *arguments, "--limit", "1"]) == 0
    assert labels == ["0.png", "0.png", "1.png", "2.png", f"abnormal{os.sep}0.png"]
    told = "data/abnormal: 1 of 10 images\ndata: 1 of 25 images\nno lungs found in 0 of 5"
    assert capsys.readouterr().out.replace(os.sep, "/").startswith(told)


def test_twelve_of_a_large_folder_are_drawn(tmp_path, monkeypatch, labels, phantom, capsys):
    for number in range(1234):
        (tmp_path / f"{number:04}.dcm").touch()
    monkeypatch.setattr(command, "read_image", lambda path: phantom)
    assert main(["preview", str(tmp_path), "-o", str(tmp_path / "out.png")]) == 0
    assert labels == [f"{number * 1234 // 12:04}.dcm" for number in range(12)]
    assert capsys.readouterr().out.startswith(f"{tmp_path}: 12 of 1,234 images\n")


def test_the_picture_may_lie_in_the_folder(folder, labels, capsys):
    for _ in range(2):
        assert main(["preview", folder, "--limit", "99", "-o", f"{folder}/normal/preview.png"]) == 0
        assert capsys.readouterr().out.startswith("data: 25 of 25 images\n")
    assert len(labels) == 50
    assert not [label for label in labels if "preview" in label]


def test_an_image_of_a_folder_is_never_written_over(folder, labels, capsys):
    before = Path(folder, "abnormal", "0.png").read_bytes()
    for given in (
        [folder],
        [folder, f"{folder}/abnormal/0.png"],
        ["-o", f"{folder}/abnormal/0.png", folder],
    ):
        with pytest.raises(SystemExit) as caught:
            main(["preview", *given, "-o", f"{folder}/abnormal/0.png"])
        assert caught.value.code == 2
        assert "error: -o must not be one of the images, got " in capsys.readouterr().err
    assert Path(folder, "abnormal", "0.png").read_bytes() == before
    assert not labels


def test_a_folder_that_cannot_be_read_is_an_error(folder, capsys, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("abnormal"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SystemExit) as caught:
        main(["preview", folder])
    assert caught.value.code == 2
    assert "Permission denied: " in capsys.readouterr().err


def test_a_folder_without_images_is_an_error(folder, capsys):
    Path("empty").mkdir()
    Image.new("L", (64, 64)).save("empty/preview.png")
    with pytest.raises(SystemExit) as caught:
        main(["preview", folder, "empty", "-o", "empty/preview.png"])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "a folder must hold images (.png, " in last
    assert last.endswith(", .dicom), got none in 'empty'")


def test_a_folder_called_phantom_is_not_read_unasked(folder, labels):
    Path(folder).rename("phantom")
    assert main(["preview"]) == 0
    assert labels == ["phantom"]


def test_images_without_lungs_are_counted_and_named(tmp_path, phantom, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(phantom).save("a.png")
    for name in "bcdef":
        Image.fromarray(np.full_like(phantom, 9)).save(f"{name}.png")
    assert main(["preview", "a.png", "b.png"]) == 0
    assert capsys.readouterr().out.startswith("no lungs found in 1 of 2 images: b.png\nwrote ")
    assert main(["preview", ".", "--mask", "robust"]) == 0
    told = "no lungs found in 5 of 6 images: b.png, c.png, d.png, ...\nwrote "
    assert told in capsys.readouterr().out
    assert main(["preview", "b.png", "--operation", "cutpaste"]) == 0
    assert capsys.readouterr().out.startswith("wrote ")


def test_doubtful_finds_of_the_robust_mask_are_counted(tmp_path, phantom, labels):
    for name, image in (("a", phantom), ("b", phantom.T), ("c", phantom[::-1])):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    command = [sys.executable, "-m", "anatpaste_aug", "preview", ".", "--mask", "robust"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    told = "no upright pair of lungs (quality below 0.5)"
    assert done.stdout.splitlines()[:3] == [
        ".: 3 of 3 images",
        "no lungs found in 0 of 3 images",
        f"{told} in 2 of 3 images: b.png, c.png",
    ]
    assert (done.returncode, done.stderr) == (0, "")
    assert main(["preview", str(tmp_path), "--mask", "robust", "-o", str(tmp_path / "o.png")]) == 0
    assert labels[:3] == ["a.png", f"b.png, {told}", f"c.png, {told}"]


def test_a_picture_too_large_for_its_format_is_an_error(tmp_path, phantom, monkeypatch, capsys):
    monkeypatch.setattr(command.picture, "preview_row", lambda *_: Image.new("RGB", (9, 16500)))
    assert main(["preview", "-o", str(tmp_path / "out.webp")]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'out.webp'}: ")
    assert not list(tmp_path.iterdir())


def test_the_help_is_quick_and_fits_a_terminal():
    command = [sys.executable, "-X", "importtime", "-m", "anatpaste_aug", "preview", "--help"]
    start = time.perf_counter()
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert time.perf_counter() - start < 5  # half a second where nothing else runs
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "torch" not in done.stderr


def test_help_is_plain_text_and_says_the_defaults(capsys):
    for arguments in (["--help"], ["preview", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert "`" not in text
        assert "*" not in text
    text = " ".join(text.split())
    assert "the picture to write, left out of folders (default: preview.png)" in text
    assert "(default: 256, the size that the published lengths are made for)" in text


def test_every_option_of_every_operation_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["preview", "--help"])
    text = "".join(capsys.readouterr().out.split())
    for name, kind in OPERATIONS.items():
        own = ",".join(f"{one.name}={one.default}" for one in dataclasses.fields(kind))
        assert f"{name}:{own}".replace(" ", "").replace("'", "") in text.replace("'", "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs permissions")
@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_the_picture_has_the_permissions_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        assert main(["preview", "-o", str(tmp_path / "out.png")]) == 0
    finally:
        os.umask(before)
    assert (tmp_path / "out.png").stat().st_mode & 0o777 == 0o666 & ~mask


def test_only_a_regular_file_is_replaced(tmp_path, capsys):
    output = tmp_path / "out.png"
    kinds = [(output.mkdir, output.rmdir)]
    if hasattr(os, "mkfifo"):
        kinds.append((lambda: os.mkfifo(output), output.unlink))
    for make, remove in kinds:
        make()
        assert main(["preview", "-o", str(output)]) == 2
        assert capsys.readouterr() == (NONE, f"{output}: not a regular file\n")
        remove()
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def stop(self, file, format):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        main(["preview", "-o", str(tmp_path / "out.png")])
    assert not list(tmp_path.iterdir())


def test_a_picture_with_a_name_as_long_as_names_can_be(tmp_path):
    output = tmp_path / ("a" * 251 + ".png")
    assert main(["preview", "-o", str(output)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
