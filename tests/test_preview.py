"""The preview command, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from anatpaste_aug.__main__ import main
from anatpaste_aug.preview import LUNG_COLOUR, REGION_COLOUR, preview_row, stack_rows


def count(picture, colour, column):
    pixels = np.asarray(picture)[:, 256 * column : 256 * (column + 1)]
    return int((pixels == colour).all(axis=-1).sum())


def test_the_picture(phantom):
    wide = phantom.astype(np.uint16) * 100
    wide[0, :2] = 0, 25500  # so that stretching gives the phantom back
    picture = stack_rows([preview_row("a", phantom), preview_row("b", wide)])
    assert picture.size == (6 * 256, 18 + 2 * (256 + 18))
    assert count(picture, LUNG_COLOUR, 1) > 500
    assert count(picture, REGION_COLOUR, 3) > 100
    assert count(picture, LUNG_COLOUR, 0) == count(picture, REGION_COLOUR, 4) == 0
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
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["preview", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
