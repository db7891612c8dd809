"""The package as it is imported: what it exports, and what it needs."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import anatpaste_aug

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("batch", "data", "functions", "masks", "monai", "operations", "pretext", "transforms")
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
    assert len({*anatpaste_aug.__all__}) == len(anatpaste_aug.__all__) > 20
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


def exported(module):
    """Read the names that a module exports, without importing it: it may need torch."""
    path = Path(anatpaste_aug.__file__).parent.joinpath(*filter(None, module.split(".")))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    names = re.search(r"^__all__ = (\[.*?\])", text, re.M | re.S)
    starred = re.findall(r"^from anatpaste_aug\.(\S+) import \*", text, re.M)
    own = ast.literal_eval(names[1]) if names else []
    return own + [name for other in starred for name in exported(other)]


def test_exported_names_are_read_as_they_are():
    assert exported("") == anatpaste_aug.__all__


def private_names(code):
    """List what code takes of the package that is not public, imported or as `module.name`."""
    modules = {"": "anatpaste_aug", **{name: f"anatpaste_aug.{name}" for name in MODULES}}
    public = {f"{whole}.{name}" for module, whole in modules.items() for name in exported(module)}
    tree, meaning, used = ast.parse(code), {"anatpaste_aug": "anatpaste_aug"}, set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            meaning |= {one.asname or one.name: start + one.name for one in node.names}
            used |= {start + one.name for one in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            whole = f"{meaning.get(first)}.{rest}"
            if whole.rpartition(".")[0] in modules.values():
                used.add(whole)
    used = {name for name in used if name.split(".")[0] == "anatpaste_aug"}
    return sorted(used - public - {*modules.values()})


def test_private_names_are_found():
    code = """
import numpy as np, anatpaste_aug, anatpaste_aug.crop, anatpaste_aug as ap
from anatpaste_aug import batch, images
from anatpaste_aug.data import read_image, files
from anatpaste_aug.masks.robust import fit
ap.lung_crop(np.zeros(3)).shape, ap.checks.check_flag, batch.OneOf, batch.kernels, batch.lung_mask
anatpaste_aug.operations.Operation, anatpaste_aug.operations.base.format_options, ap.data.phantom
"""
    assert private_names(code) == [
        "anatpaste_aug.batch.kernels",
        "anatpaste_aug.checks",
        "anatpaste_aug.crop",
        "anatpaste_aug.data.files",
        "anatpaste_aug.data.phantom",
        "anatpaste_aug.images",
        "anatpaste_aug.masks.robust.fit",
        "anatpaste_aug.operations.base",
    ]


def test_examples_and_pages_use_public_names_alone():
    if not (ROOT / "examples").exists() or not (ROOT / "docs").exists():
        pytest.skip("needs the source tree")
    scripts = {*(ROOT / "examples").rglob("*.py"), *(ROOT / "docs/illustrated").glob("*.py")}
    scripts.remove(ROOT / "docs/illustrated/stages.py")  # which shows the library's inside
    code = {path: path.read_text(encoding="utf-8") for path in scripts}
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        code[path] = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    assert len(code) > 40
    found = {str(path): private_names(text) for path, text in code.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_library_stands_alone():
    for path in Path(anatpaste_aug.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"examples", "benchmarks", "tests"}


def test_version_is_the_same_everywhere():
    root = Path(__file__).resolve().parents[1]
    if not (root / "CITATION.cff").exists():
        pytest.skip("needs the source tree")
    assert f"version: {anatpaste_aug.__version__}\n" in (root / "CITATION.cff").read_text()
    assert f"## {anatpaste_aug.__version__}" in (root / "CHANGELOG.md").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", anatpaste_aug.__version__)


def test_versions_of_python_are_the_same_everywhere():
    workflow = ROOT / ".github" / "workflows" / "tests.yml"
    if not workflow.exists():
        pytest.skip("needs the source tree")
    setup = (ROOT / "setup.cfg").read_text()
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)$", setup, re.M)
    tried = re.search(r"python: \[(.*)\]", workflow.read_text())[1]
    assert re.findall(r"[\d.]+", tried) == named
    assert re.search(r"python_requires = >=(.*)", setup)[1] == named[0]
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert f"Python {named[0]} to {named[-1]}." in contributing
    assert named[-1] == "3.14"


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
