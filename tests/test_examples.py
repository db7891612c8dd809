"""The short scripts in examples/, run as their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "examples").exists():
    pytest.skip("needs examples/", allow_module_level=True)


def run(name, folder):
    """Run an example in a folder; return what it printed, and its picture if it wrote one."""
    if "torch" in (ROOT / f"examples/{name}.py").read_text():
        pytest.importorskip("torchvision", reason="needs torchvision")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", f"examples.{name}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    files = list(folder.iterdir())
    assert [file.name for file in files] == [f"{name}.png"][: len(files)]
    if not files:
        return done.stdout, None
    with Image.open(files[0]) as picture:
        return done.stdout, np.asarray(picture.convert("L"))


def test_compose(tmp_path):
    _, picture = run("compose", tmp_path)
    above, below = picture[2:258], picture[260:516]
    assert len(np.unique(above)) > 200
    regions = [below[:, 2 + 258 * i : 258 + 258 * i] for i in range(4)]
    assert all(set(np.unique(region)) == {0, 255} for region in regions)


def test_batches(tmp_path):
    printed, picture = run("batches", tmp_path)
    assert picture is None
    assert len(printed.splitlines()) == 2
    for line in printed.splitlines():
        labels, changed = line.split("labels ")[1].split(", changed ")
        assert labels == changed
        assert set(labels) >= {"0", "1"}


def test_own_modality(tmp_path):
    _, picture = run("own_modality", tmp_path)
    before, brain, after = np.split(picture, 3, axis=1)
    assert 0.2 < (brain == 255).mean() < 0.6
    np.testing.assert_array_equal(before[brain == 0], after[brain == 0])
    assert (before != after).mean() > 0.01
