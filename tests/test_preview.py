"""The preview command, run as a user runs it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from anatpaste_aug.preview import command
from anatpaste_aug.preview.command import OPERATIONS, main
from anatpaste_aug.preview.picture import (
    LUNG_COLOR,
    REGION_COLOR,
    preview_row,
    resize_square,
    stack_rows,
)


def count(picture, color, column):
    pixels = np.asarray(picture)[:, 256 * column : 256 * (column + 1)]
    return int((pixels == color).all(axis=-1).sum())


def test_the_picture(phantom):
    wide = phantom.astype(np.uint16) * 100
    wide[0, :2] = 0, 25500  # so that stretching gives the phantom back
    picture = stack_rows([preview_row("a", phantom), preview_row("b", wide)])
    assert picture.size == (6 * 256, 18 + 2 * (256 + 18))
    assert count(picture, LUNG_COLOR, 1) > 500
    assert count(picture, REGION_COLOR, 3) > 100
    assert count(picture, LUNG_COLOR, 0) == count(picture, REGION_COLOR, 4) == 0
    tiles = np.asarray(picture)[18:274].reshape(256, 6, 256, 3)
    np.testing.assert_array_equal(tiles[:, 0, :, 0], phantom)
    assert (tiles[:, 4] != tiles[:, 0]).any()
    assert (tiles[:, 4] != tiles[:, 5]).any()
    second = np.asarray(picture)[292 + 1 : 292 + 256, :256, 0]
    assert np.abs(second.astype(int) - phantom[1:]).max() <= 1


def test_rows_keep_the_aspect(phantom):
    assert preview_row("wide", phantom[:128]).size == (6 * 256, 128 + 18)
    assert preview_row("tall", phantom[:, :100]).size == (6 * 256, 256 + 18)


def test_command_on_the_phantom(tmp_path):
    outputs = []
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        command = [sys.executable, "-m", "anatpaste_aug", "preview", "--seed", seed, "-o", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {name}\n", "")
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
        assert picture.height == 18 + 256 + 18


def test_the_robust_mask_can_be_chosen(tmp_path):
    pictures = []
    for mask in ("published", "robust"):
        assert main(["preview", "--mask", mask, "-o", str(tmp_path / "out.png")]) == 0
        with Image.open(tmp_path / "out.png") as picture:
            pictures.append(np.asarray(picture))
    assert (pictures[0][:, 256:512] != pictures[1][:, 256:512]).any()
    np.testing.assert_array_equal(pictures[0][:, :256], pictures[1][:, :256])


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
    tiles = show(tmp_path, option, f"{functions}:corner")
    outline = (tiles[:, 1] == LUNG_COLOR).all(-1)
    assert outline[99, :100].all()
    assert not outline[101:].any()
    assert (tiles[:, 2] > 0).any()
    assert not tiles[101:, 2].any()


def test_images_that_a_mask_of_one_s_own_fails_on_are_named(functions, phantom, capsys):
    Image.fromarray(phantom).save("a.png")
    Image.fromarray(np.full_like(phantom, 255)).save("b.png")
    assert main(["preview", "a.png", "b.png", "--mask", "own.py:picky"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "b.png: own.py:picky raised KeyError: 'too\\nbright'\n"
    assert captured.out == "wrote preview.png\n"
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
    assert captured.out == b"wrote '\\udcfd.png'\n"
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
        (["--seed", "x"], "invalid int value"),
        (["--size", "8"], "invalid size value: '8'"),
        (["--size", "all"], "invalid size value: 'all'"),
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
    """Run the command; return the picture without its titles and labels, as tiles."""
    assert main(["preview", "-o", str(tmp_path / "out.png"), *map(str, arguments)]) == 0
    with Image.open(tmp_path / "out.png") as picture:
        pixels = np.asarray(picture)
    return pixels[18:-18].reshape(pixels.shape[0] - 36, -1, 256, 3)


def test_images_are_squeezed_as_for_training(tmp_path, phantom):
    path = tmp_path / "a.png"
    Image.fromarray(phantom.repeat(2, 0).repeat(3, 1)).save(path)
    with Image.open(path) as large:
        plain = np.asarray(large.resize((256, 256), Image.Resampling.BILINEAR), int)
    assert np.abs(show(tmp_path, path)[:, 0, :, 0] - plain).max() <= 1
    assert show(tmp_path, path, "--size", "native").shape[0] == round(256 * 512 / 768)
    small = show(tmp_path, path, "--size", 64)
    assert small.shape[0] == 256  # enlarged again, to look at
    assert np.abs(np.diff(small[:, 0, :, 0].astype(int))).mean() < 5
    assert (show(tmp_path, "--size", 64) != show(tmp_path, "--size", 512)).any()


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
    rows = {name: show(tmp_path, "--operation", name) for name in OPERATIONS}
    assert {name: row.shape[1] for name, row in rows.items()} == {
        "anatpaste": 6,
        "opacity": 6,
        "cutpaste": 5,
        "cutpaste_scar": 5,
        "cutpaste_union": 5,
    }
    default = rows["anatpaste"]
    fixed = show(tmp_path, "--set", "opacity=200", "blur=0")
    assert set(np.unique(fixed[:, 2])) == {0, 200}  # alpha
    assert default[:, 2].max() < 255
    np.testing.assert_array_equal(fixed[:, :2], default[:, :2])
    nodule = show(tmp_path, "--operation", "opacity", "--set", "kinds=nodule", "size=0.5")
    assert 0 < (nodule[:, 2] > 0).mean() < (rows["opacity"][:, 2] > 0).mean()
    flat = show(tmp_path, "--operation", "cutpaste_scar", "--set", "angle=0", "height=10,12")
    assert (flat != rows["cutpaste_scar"]).any()
    pixels = show(tmp_path, "--size", 128, "--set", "lengths_for=none")
    assert (pixels != show(tmp_path, "--size", 128)).any()


def test_help_is_plain_text_and_says_the_defaults(capsys):
    for arguments in (["--help"], ["preview", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert "`" not in text
        assert "*" not in text
    text = " ".join(text.split())
    assert "the picture to write (default: preview.png)" in text
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
        assert capsys.readouterr() == ("", f"{output}: not a regular file\n")
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
