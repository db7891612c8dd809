"""The package as it is imported: what it exports, and what it needs."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import anatpaste_aug

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "monai"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_everything_exported_exists():
    assert sorted(anatpaste_aug.__all__) == anatpaste_aug.__all__
    for name in anatpaste_aug.__all__:
        assert getattr(anatpaste_aug, name) is not None


def test_every_public_thing_is_documented():
    for name in anatpaste_aug.__all__:
        member = getattr(anatpaste_aug, name)
        if callable(member):
            assert "Raises" in member.__doc__
            assert "Parameters" in member.__doc__


def test_importing_never_imports_torch():
    done = run("import sys, anatpaste_aug, anatpaste_aug.data; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["transforms", "pretext", "batch", "monai"])
def test_missing_torch_names_the_extra(module):
    done = run(f"{BLOCKED}\nimport anatpaste_aug.{module}")
    assert done.returncode == 1
    assert f"ImportError: anatpaste_aug.{module} needs" in done.stderr
    assert "pip install 'anatpaste-aug[torch]'" in done.stderr


def test_version_is_the_same_everywhere():
    root = Path(__file__).resolve().parents[1]
    if not (root / "CITATION.cff").exists():
        pytest.skip("needs the source tree")
    assert f"version: {anatpaste_aug.__version__}\n" in (root / "CITATION.cff").read_text()
    assert f"## {anatpaste_aug.__version__}" in (root / "CHANGELOG.md").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", anatpaste_aug.__version__)


def test_links_of_the_readme_lead_somewhere_and_from_pypi_too():
    root = Path(__file__).resolve().parents[1]
    if not (root / "setup.py").exists() or not (root / "examples").exists():
        pytest.skip("needs the source tree")
    source = re.search(r"Source = (.*)", (root / "setup.cfg").read_text())[1]
    readme = (root / "README.md").read_text()
    titles = re.findall(r"^#+ (.*)", readme, re.M)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert len(links) > 10
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors
        elif not link.startswith("https://"):
            assert (root / link).exists(), link
        else:
            assert "github.com" not in link, link  # another name of the repository
    page = runpy.run_path(str(root / "setup.py"))["absolute_links"](readme, source)
    found = re.findall(r"(!?)\[[^]]*\]\(([^)]+)\)", page)
    assert len(found) == len(links)
    raw = source.replace("//github.com", "//raw.githubusercontent.com") + "/main/"
    for (picture, link), before in zip(found, links, strict=True):
        same = before.startswith(("#", "https://"))
        assert link == (before if same else (raw if picture else f"{source}/blob/main/") + before)
