"""How the package's modules stand to each other: no import circles, no foreign private names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import anatpaste_aug

ROOT = Path(anatpaste_aug.__file__).parent  # as installed: the sdist's tests run on the wheel


def modules_of(root):
    """Return the syntax trees of a package's modules by their dotted names; packages too."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def packages_of(names):
    """Return the names that are packages: those that other names begin with."""
    return {name for name in names if any(other.startswith(f"{name}.") for other in names)}


def statements(body):
    """Walk the statements that run on import, not those for type checkers alone."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                yield from statements(node.body)
            yield from statements(node.orelse)
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from statements(handler.body)


def imports(name, tree, known, everywhere=False):
    """Return the (module, name or None) that a module imports of its own package."""
    package = name if name in packages_of(known) else name.rpartition(".")[0]
    for node in ast.walk(tree) if everywhere else statements(tree.body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in known:
                    yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*above, *([source] if source else [])])
            for alias in node.names:
                if f"{source}.{alias.name}" in known:
                    yield f"{source}.{alias.name}", None
                elif source in known:
                    yield source, alias.name


def graph_of(modules):
    """Return what every module imports.

    A package stands for its ``__init__``, which runs before any of its modules: who imports a
    module waits for its packages too, but for those that it lies in itself, which run already.
    """
    graph = {}
    for name, tree in modules.items():
        needs = set()
        own = {name, *(name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1))}
        for target, item in imports(name, tree, modules):
            parts = target.split(".")
            chain = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
            needs |= (chain & modules.keys()) - own
            if item and target in own:  # what the package of this module itself may not have yet
                needs.add(target)
        graph[name] = needs
    return graph


def find_circle(graph):
    """Return a circle, as the names on the way, or None."""
    done = set()

    def follow(name, way):
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return None
        for other in sorted(graph[name]):
            circle = follow(other, [*way, name])
            if circle:
                return circle
        done.add(name)
        return None

    for name in sorted(graph):
        circle = follow(name, [])
        if circle:
            return circle
    return None


def foreign_private(modules):
    """Return private names that are imported, or taken as attributes, from another package."""
    packages, found = packages_of(modules), []

    def package_of(name):
        return name if name in packages else name.rpartition(".")[0]

    for name, tree in modules.items():
        bound = {}  # what stands for a module here
        for target, item in imports(name, tree, modules, everywhere=True):
            bound[target.rpartition(".")[2]] = target
            last = item or target.rpartition(".")[2]
            foreign = package_of(target) != package_of(name)
            if last.startswith("_") and not last.startswith("__") and foreign:
                found.append(f"{name}: {target} {last}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                target, attribute = bound.get(node.value.id), node.attr
                private = attribute.startswith("_") and not attribute.startswith("__")
                if private and target and package_of(target) != package_of(name):
                    found.append(f"{name}: {target}.{attribute}")
    return found


def test_no_module_imports_itself_in_the_end():
    modules = modules_of(ROOT)
    assert {"anatpaste_aug.batch.operators", "anatpaste_aug.operations.base"} <= modules.keys()
    graph = graph_of(modules)
    assert "anatpaste_aug.checks" in graph["anatpaste_aug.operations.base"]
    assert find_circle(graph) is None


def test_no_private_name_is_taken_from_another_package():
    modules = modules_of(ROOT)
    assert modules
    private = foreign_private(modules)
    # The version has a file of its own, which the package's metadata are read from.
    assert [one for one in private if not one.endswith("_version")] == []


CIRCLE = {
    "": "from made.one import a\n",
    "one": "from made.part.two import b\na = 1\n",
    "part/__init__": "",
    "part/two": "from . import three\nb = 1\n",
    "part/three": "try:\n    import made.one\nexcept ImportError:\n    pass\n",
}


def make(folder, files):
    root = folder / "made"
    for name, text in files.items():
        path = root / f"{name or '__init__'}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return modules_of(root)


def test_a_circle_is_found(tmp_path):
    circle = find_circle(graph_of(make(tmp_path, CIRCLE)))
    assert circle == ["made.one", "made.part.two", "made.part.three", "made.one"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.one import a\n",
        "def late():\n    from made.one import a\n",
        "import numpy, madeup.one\n",
    ],
)
def test_what_is_no_circle_is_not_found(tmp_path, text):
    assert find_circle(graph_of(make(tmp_path, {**CIRCLE, "part/three": text}))) is None


def test_names_taken_of_the_own_package_are_a_circle(tmp_path):
    files = {**CIRCLE, "part/three": "", "part/__init__": "from made.part.two import b\n"}
    assert find_circle(graph_of(make(tmp_path, files))) is None
    files["part/two"] = "from made.part import c\nb = 1\n"
    assert find_circle(graph_of(make(tmp_path, files))) is not None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("from made.part.two import _b\n", 1),
        ("from made.part import two\ntwo._b\n", 1),
        ("def late():\n    from made.part.two import _b\n", 1),
        ("from made.part import _hidden\n", 1),
        ("from made.part.two import b, __all__\nimport numpy as np\nnp._x\n", 0),
        ("from made.two import _b\n", 0),
    ],
)
def test_foreign_private_names_are_found(tmp_path, text, count):
    files = {"": "", "one": text, "two": "_b = 1\n", "part/__init__": "", "part/two": "_b = b = 1"}
    modules = make(tmp_path, {**files, "part/_hidden": ""})
    assert len(foreign_private(modules)) == count
