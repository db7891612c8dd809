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

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RELEASING = ROOT / "RELEASING.md"
PAGES = ("index", "batches", "exact")  # of the site; test_operations.py runs own_operation
MODULES = (
    "masks.published",
    "operations.anatpaste",
    "operations.cutpaste",
    "operations.opacity",
    "data.phantom",
    "data.files",
    "masks.robust",
    "functions",
)
TORCH_MODULES = (
    "transforms",
    "pretext",
    "batch.functions",
    "batch.modules",
    "batch.params",
)


def blocks(language, page=README):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


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


@pytest.mark.parametrize("name", PAGES)
def test_snippets_of_the_site(name, tmp_path, monkeypatch):
    pytest.importorskip("torchvision", reason="needs torchvision")
    page = ROOT / f"docs/{name}.md"
    if not page.exists():
        pytest.skip("needs the source tree")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for snippet in blocks("python", page):
        exec(compile(snippet, page.name, "exec"), names)
    assert names


def test_no_page_of_the_site_has_snippets_that_nobody_runs():
    if not (ROOT / "docs/conf.py").exists():
        pytest.skip("needs the source tree")
    pages = {page.stem for page in (ROOT / "docs").glob("*.md") if blocks("python", page)}
    assert pages - {"clients"} == {*PAGES, "own_operation"}


def test_the_first_page_s_commands_are_the_readme_s():
    page = ROOT / "docs/illustrated/first_steps.py"
    if not page.exists():
        pytest.skip("needs the source tree")
    command = next(line for line in blocks("bash") if ".venv/bin/pip" in line).splitlines()[0]
    assert f"#     {command}\n" in page.read_text(encoding="utf-8")


def test_readme_commands(tmp_path, phantom):
    from PIL import Image

    folder = tmp_path / "runs/demo/phantoms/test"  # the demo's, which the README previews
    folder.mkdir(parents=True)
    Image.fromarray(phantom).save(folder / "a.png")
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("python -m anatpaste_aug")]
    assert len(commands) == 4
    for command in commands:
        words = shlex.split(command, comments=True)
        subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True)
        assert (tmp_path / "preview.png").stat().st_size > 1000


def test_readme_setup_is_two_lines_of_one_command_each():
    setup = [line for block in blocks("bash") for line in block.splitlines() if "/bin/pip" in line]
    assert len(setup) == 2
    assert all(line.startswith("python3 -m venv .venv") for line in setup)
    assert "pytest" in setup[1]


def test_the_lines_that_change_at_the_first_release_are_listed():
    if not RELEASING.exists():
        pytest.skip("needs the source tree")
    rows = re.findall(r"^\| (\S+) \| ``(.+?)`` \| ``(.+?)`` \|$", RELEASING.read_text(), re.M)
    assert len(rows) == RELEASING.read_text().count("\n| ") - 2
    now = {(name, line) for name, line, _ in rows}
    for name, line, then in rows:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        assert lines.count(line) == 1, (name, line)
        assert then not in lines
    pages = [README, *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/illustrated").glob("*.py")]
    for page in pages:
        for line in page.read_text(encoding="utf-8").splitlines():
            if "checkout" in line or re.search(r"pip install '(\.|anatpaste-aug)\[torch\]'", line):
                assert (page.relative_to(ROOT).as_posix(), line) in now


@pytest.mark.parametrize("name", ["functions", "transforms", "batches", "operations"])
def test_the_site_s_api_lists_everything_public(name):
    module = {"functions": "", "batches": ".batch"}.get(name, f".{name}")
    if module in (".transforms", ".batch"):
        pytest.importorskip("torchvision", reason="needs torchvision")
    page = ROOT / f"docs/api/{name}.rst"
    if not page.exists():
        pytest.skip("needs the source tree")
    public = {*importlib.import_module(f"anatpaste_aug{module}").__all__} - {"__version__"}
    assert public <= set(re.findall(r"^   ([\w.]+)$", page.read_text(encoding="utf-8"), re.M))
