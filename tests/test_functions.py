"""Functions by their names: what is found, what is said where nothing is, and when it is edited."""

from __future__ import annotations

import functools
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from anatpaste_aug.functions import (
    NoFunctionError,
    is_function,
    load_function,
    load_segment,
    source_of,
)

SOURCE = """
from dataclasses import dataclass
import json

@dataclass
class Holder:
    value: "int" = 3

def find(image):
    return image > Holder().value

def other(image):
    return image[1:] > 0

def fails(image):
    raise KeyError("two\\nlines")

number = 5
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Write a module of a name that no other test has, and stand beside it."""
    monkeypatch.chdir(tmp_path)
    before = {*sys.modules}
    (tmp_path / "masks.py").write_text(SOURCE)
    (tmp_path / "given_masks.py").write_text(SOURCE)
    yield tmp_path
    for name in {*sys.modules} - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("masks:find", True),
        ("a.b_1.masks:find", True),
        ("masks.py:find", True),
        ("../my masks/a-b.py:find", True),
        (r"C:\masks\brain.py:find", True),
        ("C:/masks/brain.py:find", True),
        ("MODULE:FUNCTION", True),
        ("robust", False),
        ("masks.py", False),
        (r"C:\masks\brain.py", False),
        ("masks:", False),
        (":find", False),
        ("masks:find()", False),
        ("masks:find.inner", False),
        ("../masks:find", False),
        ("a..b:find", False),
        ("a\n.py:find", False),
        ("masks:find\n", False),
        ("1a:find", False),
        ("", False),
    ],
)
def test_names(name, fits):
    assert is_function(name) is fits


@pytest.mark.parametrize("module", ["given_masks", "masks.py", "./masks.py"])
def test_a_function_is_loaded_once(here, module):
    function = load_function(f"{module}:find")
    assert function(np.array([2, 4])).tolist() == [False, True]
    assert load_function(f"{module}:find") is function
    assert str(here) not in sys.path


def test_an_absolute_path_leads_there_from_anywhere(here, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_function(f"{here / 'masks.py'}:find")(np.array([4])).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("masks", "'masks' is not of the form MODULE:FUNCTION"),
        (
            "no_such.masks:find",
            "no_such.masks:find: ModuleNotFoundError: No module named 'no_such'",
        ),
        ("given_masks.inner:find", "No module named 'given_masks.inner'"),
        ("none.py:find", "none.py:find: FileNotFoundError: "),
        ("./none.py:find", "No such file or directory: './none.py'"),
        ("given_masks:fnd", "module 'given_masks' has no attribute 'fnd'"),
        ("masks.py:zzz", "has no attribute 'zzz'"),
        ("empty.py:find", "has no attribute 'find'"),
        ("given_masks:number", "given_masks:number: it is no function, but int"),
        ("broken.py:find", "broken.py:find: ZeroDivisionError: division by zero"),
        ("wrong.py:find", "wrong.py:find: SyntaxError: "),
        ("leaves.py:find", "leaves.py:find: SystemExit: all of it"),
        ("needs.py:find", "needs.py:find: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("needs:find", "needs:find: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("chatty.py:find", "chatty.py:find: ValueError: one two xxx"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(here, name, message):
    for file, text in {
        "empty": "",
        "broken": "1 / 0",
        "wrong": "def find(",
        "leaves": "raise SystemExit('all\\nof it')",
        "needs": "import no_such_thing",
        "chatty": "raise ValueError('one\\n\\ntwo ' + 1000 * 'x')",
    }.items():
        (here / f"{file}.py").write_text(text)
    modules = {*sys.modules}
    with pytest.raises(NoFunctionError) as caught:
        load_function(name)
    told = str(caught.value)
    assert message in told
    assert "\n" not in told
    assert len(told) < 500
    assert told.startswith((f"{name}: ", repr(name)))
    assert not [one for one in {*sys.modules} - modules if "broken" in one or "leaves" in one]


def test_an_interrupted_import_stays_one(here):
    (here / "stops.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_function("stops.py:find")


def test_a_segmenter_checks_and_names_its_function(here):
    image = np.arange(400, dtype=np.uint8).reshape(20, 20)
    mask = load_segment("masks.py:find")(image)
    np.testing.assert_array_equal(mask, image > 3)
    with pytest.raises(ValueError, match=r"masks.py:fails raised KeyError: 'two\\nlines'") as told:
        load_segment("masks.py:fails")(image)
    assert isinstance(told.value.__cause__, KeyError)
    with pytest.raises(
        ValueError, match=r"returned by masks.py:other must have the image's shape \(20, 20\)"
    ):
        load_segment("masks.py:other")(image)
    with pytest.raises(TypeError, match="the mask returned by numpy:sqrt must be a bool"):
        load_segment("numpy:sqrt")(image)


def test_a_segmenter_that_lacks_a_package_is_no_fault_of_an_image(here):
    (here / "lazy.py").write_text("def find(image):\n    import no_such_thing\n")
    with pytest.raises(ModuleNotFoundError):
        load_segment("lazy.py:find")(np.zeros((20, 20)))


def test_the_source_tells_an_edited_function(here):
    before = load_function("masks.py:find")
    digest = source_of(before)
    assert source_of(load_segment("masks.py:find")) == digest
    (here / "masks.py").write_text(SOURCE.replace("= 3", "= 5"))
    assert source_of(before) == digest  # it runs as it was read
    after = load_function("masks.py:find")
    assert after(np.array([4])).any() != before(np.array([4])).any()
    assert source_of(after) != digest
    (here / "masks.py").write_text(SOURCE)
    assert source_of(load_function("masks.py:find")) == digest


def test_the_source_is_that_of_the_file_named_and_of_the_one_that_defines():
    names = ("anatpaste_aug:lung_mask", "anatpaste_aug.masks:lung_mask", "json:loads")
    assert len({source_of(load_function(name)) for name in (names[0], names[2])}) == 2
    assert len(source_of(len)) == len(source_of(functools.partial(json.loads))) == 64


def test_a_file_that_passes_a_function_on_counts(here):
    text = "from given_masks import find  # {}\n"
    digests = []
    for word in "ab":
        (here / "passes.py").write_text(text.format(word))
        function = load_function("passes.py:find")
        assert function is sys.modules["given_masks"].find
        digests.append(source_of(function))
    assert digests[0] != digests[1]


def test_older_bytecode_is_not_run(here, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = here / "stale.py"
    for value in (1, 2):
        path.write_text(f"def mask(image):\n    return {value}\n")
        os.utime(path, (10**9, 10**9))  # the same second, and as many bytes
        assert load_function(f"{path}:mask")(None) == value


def test_a_segmenter_is_given_a_copy_by_one_thread_at_a_time(here):
    code = """
inside = []
def mask(image):
    inside.append(1)
    assert len(inside) == 1
    image[:] = 0
    sum(range(10**5))
    inside.pop()
    return image == 0
"""
    (here / "own_state.py").write_text(code)
    segment = load_segment(f"{here / 'own_state.py'}:mask")
    images = [np.full((16, 16), 9, np.uint8) for _ in range(32)]
    with ThreadPoolExecutor(8) as pool:
        assert all(mask.all() for mask in pool.map(segment, images))
    assert all((image == 9).all() for image in images)
