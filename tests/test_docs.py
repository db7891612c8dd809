"""Every documented snippet runs: docstring examples, the README's Python and its commands."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
MODULES = (
    "lungs",
    "operations.anatpaste",
    "operations.cutpaste",
    "operations.opacity",
    "data",
    "files",
    "robust",
)
TORCH_MODULES = (
    "transforms",
    "pretext",
    "batch.lungs",
    "batch.modules",
    "batch.params",
    "batch.anatpaste",
    "batch.opacity",
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.M | re.S)


@pytest.mark.parametrize("name", MODULES + TORCH_MODULES)
def test_docstring_examples(name):
    if name in TORCH_MODULES:
        pytest.importorskip("torchvision", reason="needs torchvision")
    module = importlib.import_module(f"anatpaste_aug.{name}")
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert result.attempted > 0


def test_readme_python(tmp_path, monkeypatch):
    pytest.importorskip("torchvision", reason="needs torchvision")
    monkeypatch.chdir(tmp_path)
    snippets = blocks("python")
    assert len(snippets) >= 5
    names: dict[str, object] = {}
    for snippet in snippets:  # in order, as a reader would type them
        exec(compile(snippet, "README.md", "exec"), names)
    assert names["region"].any()


def test_readme_commands(tmp_path, phantom):
    from PIL import Image

    Image.fromarray(phantom).save(tmp_path / "a.png")
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("python -m anatpaste_aug")]
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command.replace("*.png *.dcm", "a.png"), comments=True)
        subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True)
        assert (tmp_path / "preview.png").stat().st_size > 1000


def test_readme_setup_is_two_lines_of_one_command_each():
    setup = [line for block in blocks("bash") for line in block.splitlines() if "venv" in line]
    assert len(setup) == 2
    assert all(line.startswith("python3 -m venv .venv") for line in setup)
    assert "pytest" in setup[1]
