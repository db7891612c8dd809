"""The pipeline among strangers' files, changed files, killed processes and senseless options."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import hostile
import numpy as np
import pytest
from PIL import Image
from pipeline import PACKAGES, ROOT, need

need(*PACKAGES)

import torch  # noqa: E402

from examples.pretrain_gde import cli, commands, data, evaluate, storage  # noqa: E402
from examples.pretrain_gde.disk import locking  # noqa: E402
from examples.pretrain_gde.errors import PipelineError  # noqa: E402
from examples.pretrain_gde.forms import check_form  # noqa: E402
from examples.pretrain_gde.phantoms import write_phantoms  # noqa: E402
from examples.pretrain_gde.readers import Entry, read_split  # noqa: E402
from examples.pretrain_gde.settings import Settings  # noqa: E402
from examples.pretrain_gde.tensors import load_tensors, save_tensors  # noqa: E402
from examples.pretrain_gde.view import View  # noqa: E402

COUNTS = {
    ("train", "normal"): 8,
    ("valid", "normal"): 3,
    ("valid", "abnormal"): 3,
    ("test", "normal"): 4,
    ("test", "abnormal"): 4,
}
# A folder of 5,000 letters: from Python 3.14 on, `Path.is_dir` says so of too long a name as well.
TOO_LONG = "is not a folder" if sys.version_info >= (3, 14) else "File name too long"
TINY = [
    "--preset",
    "quick",
    "--size",
    "32",
    "--batch",
    "4",
    "--epochs",
    "1",
    "--updates",
    "1",
    "--validate-every",
    "1",
]
TINY += ["--precision", "fp32", "--variant", "cutpaste"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a data set, a cache and one finished run, never to be changed."""
    folder = tmp_path_factory.mktemp("made")
    write_phantoms(folder / "data", 64, counts=COUNTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("examples.pretrain_gde.run.write_report", lambda *arguments: None)
        options = ("--data", folder / "data", "--cache", folder / "cache", "--out", folder / "out")
        assert main("train", *options, *TINY) == 0
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """Return a copy of that folder whose split names the copied data and cache."""
    folder = tmp_path / "copy"

    def copy_or_link(source, target):  # large files are always replaced, never written to
        (os.link if source.endswith(".safetensors") else shutil.copy)(source, target)

    shutil.copytree(made, folder, copy_function=copy_or_link)
    with changed_json(run_of(folder) / "split.json") as split:
        split["folder"], split["cache"] = str(folder / "data"), str(folder / "cache")
    return folder


@pytest.fixture
def _no_report(monkeypatch):
    monkeypatch.setattr("examples.pretrain_gde.run.write_report", lambda *arguments: None)
    monkeypatch.setattr(commands, "write_report", lambda *arguments: None)


def main(*arguments):
    return cli.main([str(argument) for argument in (*arguments, "--device", "cpu", "--quiet")])


def train(folder, *options):
    given = ("--data", folder / "data", "--cache", folder / "cache", "--out", folder / "out")
    return main("train", *given, *TINY, *options)


def run_of(folder):
    return folder / "out" / "cutpaste" / "seed0"


@contextlib.contextmanager
def changed_json(path):
    value = json.loads(path.read_text())
    yield value
    path.write_text(json.dumps(value))


def only_line(capsys):
    """Return the one line of an error, whose traceback nobody sees."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def all_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class _Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)


# Files of strangers.


def put(value, path, new):
    """Set or, with `...`, drop what lies at a path like ``epochs.0.loss``."""
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        value = value[step]
    if new is ...:
        del value[last]
    else:
        value[last] = new


SCRIPT = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        ("scored.epoch", SCRIPT, "metrics.scored.epoch must be an integer in 0..1000000"),
        ("scored.score", SCRIPT, "metrics.scored.score must be one of mean, kde, gaussian"),
        ("scored.score", "kde", "it was scored by another score than its settings say"),
        ("scored.network", "both", "it was scored by another score than its settings say"),
        ("scored.network", SCRIPT, "scored.network must be one of trained"),
        ("test.untrained", {}, "gaussian was not measured"),
        ("test.trained.kde.auc", True, "kde.auc must be a number in 0.0..1.0, got True"),
        ("test.trained.kde.auc_interval", [0.1], "must be a list of 2, got a list of 1"),
        ("test.trained.other", {}, "metrics.test.trained must not hold 'other'"),
        ("test.other", {}, "metrics.test must not hold 'other'"),
        ("test.trained.kde.adjusted.bytes.auc", 0.5, "its adjusted AUCs are not of its shortcuts"),
        ("shortcuts", {}, "its adjusted AUCs are not of its shortcuts"),
        ("shortcuts", None, "its adjusted AUCs are not of its shortcuts"),
        ("shortcuts.bytes.raw.auc", 2, "bytes.raw.auc must be a number in 0.0..1.0, got 2"),
        ("validation.trained.kde", "1", "trained.kde must be a number"),
        ("validation.trained", {}, "gaussian was not measured"),
        ("validation", {}, "gaussian was not measured"),
        ("validation.untrained.gaussian", None, "gaussian was not measured"),
        ("test", {}, "gaussian was not measured"),
        ("test.untrained", None, "gaussian was not measured"),
        ("validated_by", "eye", "metrics.validated_by must be one of labels, pasted, got 'eye'"),
        ("epochs.0.loss", -1, "metrics.epochs[0].loss must be a number"),
        ("epochs", [], "it holds 0 epochs"),
        ("epochs", {}, "metrics.epochs must be a list, got an object"),
        ("seconds", "1", "metrics.seconds must be a number"),
        ("data", ..., "metrics lacks data"),
        ("data.files.test", 1.5, "metrics.data.files.test must be an integer"),
        ("threshold", None, "metrics lacks threshold"),
        ("environment.versions", ["torch"], "metrics.environment.versions must be an object"),
        ("environment.deep", [[[[]]]], "metrics.environment must not hold 'deep'"),
        ("settings.size", "32", "size must be an integer in 32..4096, got '32'"),
        ("settings.size", 10**400, "got an integer of 1329 bits"),
        ("settings.extra", 1, "unexpected keyword argument 'extra'"),
        ("settings.variant", [SCRIPT], "variant must be one of anatpaste"),
    ],
)
def test_metrics_of_another_form_are_refused(place, new, message, copy, capsys):
    with changed_json(run_of(copy) / "metrics.json") as metrics:
        put(metrics, place, new)
    before = all_files(copy)
    assert main("evaluate", run_of(copy)) == 1
    line = only_line(capsys)
    assert message in line
    assert "metrics.json" in line
    assert all_files(copy) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 1_000_000 + "]" * 1_000_000, "nested too deeply"),
        ('{"a":' * 1_000_000 + "1" + "}" * 1_000_000, "nested too deeply"),
        ("NaN", "it holds NaN, which is no number"),
        ("[1, -Infinity]", "it holds -Infinity"),
        ("\xff", "cannot read"),
        ("9" * 10_000, "cannot read"),
        ("", "cannot read"),
    ],
)
@pytest.mark.parametrize("name", ["metrics.json", "split.json"])
def test_json_that_is_none_is_refused(name, content, message, copy, capsys):
    (run_of(copy) / name).write_text(content, "latin-1")
    assert main("evaluate", run_of(copy)) == 1
    line = only_line(capsys)
    assert message in line
    assert name in line


def test_infinite_numbers_are_refused_by_value_too():
    for text in ("1e999", "-1e999"):
        with pytest.raises(ValueError, match=r"x must be a number in 0\.0\.\.1\.0, got -?inf"):
            check_form(storage.parse_json(text), (0.0, 1.0), "x")


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        ("train.0.path", "../../etc/passwd", "must lead into the data folder"),
        ("train.0.path", "/etc/passwd", "must lead into the data folder"),
        ("train.0.path", "", "must lead into the data folder"),
        ("train.0.path", "a\0b", "must lead into the data folder"),
        ("train.0.path", "\ud800", "is no name of a file in this locale"),
        ("train.0.path", 3, "split.train[0].path must be a text, got 3"),
        ("test.0.abnormal", 0, "split.test[0].abnormal must be true or false, got 0"),
        ("test", {}, "split.test must be a list"),
        ("layout", SCRIPT, "split.layout must be one of plain"),
        ("folder", "a\0b", "does not say where the data are"),
        ("folder", ..., "does not say where the data are"),
        ("cache", 5, "split.cache must be a text"),
        ("train.0.extra", 5, "split.train[0] must not hold 'extra'"),
    ],
)
def test_splits_of_another_form_are_refused(place, new, message, copy, capsys):
    with changed_json(run_of(copy) / "split.json") as split:
        put(split, place, new)
    before = all_files(copy)
    assert main("evaluate", run_of(copy)) == 1
    assert message in only_line(capsys)
    assert all_files(copy) == before


def rewrite(path, change):
    tensors, info = load_tensors(path, {})
    change(tensors, info)
    save_tensors(path, tensors, info)


def fill(name, value):
    return lambda tensors, info: tensors[name].fill_(value)


def swap(name, shape, dtype=torch.float64):
    return lambda tensors, info: tensors.update({name: torch.ones(shape, dtype=dtype)})


def tell(name, value):
    return lambda tensors, info: info.update({name: value})


def negative(tensors, info):
    tensors[f"{GAUSSIAN}.precision"].fill_(-1.0)


def choose(**settings):
    return lambda tensors, info: info["settings"].update(settings)


NET, GAUSSIAN = "trained.network.backbone", "trained.scorer.normal.pool4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fill(f"{NET}.conv1.weight", float("nan")), "conv1.weight holds NaN or infinity"),
        (fill("trained.scorer.centers", float("inf")), "centers holds NaN or infinity"),
        (fill(f"{NET}.conv1.weight", 1e38), "features that are not finite"),
        (fill(f"{NET}.bn1.running_var", -1.0), "features that are not finite"),
        (negative, "scores that are not finite (trained, gaussian)"),
        (swap("trained.scorer.centers", (0, 512)), "it was fitted to nothing"),
        (swap("trained.scorer.centers", (3, 4)), "size mismatch for trained.scorer.centers"),
        (swap(f"{GAUSSIAN}.mean", (4,)), "size mismatch for trained.scorer.normal.pool4.mean"),
        (swap("normal_scores", (0,)), "normal_scores must be sorted, one at least"),
        (swap("normal_scores", ()), "normal_scores must be sorted, one at least"),
        (lambda tensors, info: tensors.pop("normal_scores"), "no detector: 'normal_scores'"),
        (swap("usual_shares", (0, 0)), "usual_shares must be one for each place"),
        (lambda tensors, info: tensors.pop("usual_shares"), "no detector: 'usual_shares'"),
        (
            lambda tensors, info: tensors.pop(f"{GAUSSIAN}.mean"),
            f'Missing key(s) in state_dict: "{GAUSSIAN}.mean"',
        ),
        (swap(f"{GAUSSIAN}.other", (1,)), f'Unexpected key(s) in state_dict: "{GAUSSIAN}.other"'),
        (lambda tensors, info: tensors.pop(f"{NET}.bn1.bias"), "holds no detector: Error"),
        (swap(f"{NET}.conv1.weight", (2, 2)), "holds no detector: Error"),
        (choose(size=10**9), "size must be an integer in 32..4096"),
        (choose(size=True), "size must be an integer"),
        (choose(scores="all"), "holds no detector"),
        (choose(other=1), "unexpected keyword argument 'other'"),
        (tell("threshold", "x"), "info.threshold must be a number"),
        (tell("standards", {"trained": {"kde": [1]}}), "info.standards.trained.kde must be"),
        (tell("standards", {"trained": {"kde": [1, -1]}}), "standards.trained.kde[1] must be"),
        (lambda tensors, info: info.clear(), "info lacks settings"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_detectors_that_cannot_score_say_so(change, message, copy, capsys):
    path = run_of(copy) / "detector.safetensors"
    rewrite(path, change)
    image = min((copy / "data" / "test" / "normal").iterdir())
    assert main("predict", run_of(copy), image) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert "nan" not in captured.out


def test_a_detector_of_another_run_is_refused(copy, capsys):
    rewrite(run_of(copy) / "detector.safetensors", choose(size=64))
    assert main("evaluate", run_of(copy)) == 1
    assert "are not of one run" in capsys.readouterr().err


def test_a_detector_of_another_seed_is_refused(copy, capsys):
    assert train(copy, "--seeds", "1") == 0
    name = "detector.safetensors"
    os.replace(copy / "out" / "cutpaste" / "seed1" / name, run_of(copy) / name)
    capsys.readouterr()
    assert main("evaluate", run_of(copy)) == 1
    assert "are not of one run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tell("best", {"epoch": SCRIPT, "auc": 1}), "info.best.epoch"),
        (tell("epochs", [1]), "info.epochs[0] must be an object"),
        (lambda tensors, info: info["epochs"].append(info["epochs"][0]), "holds no checkpoint"),
        (lambda tensors, info: info["settings"].update(jitter=[1]), "jitter must be a number"),
        (fill("network.head.0.weight", float("nan")), "holds NaN or infinity"),
        (lambda tensors, info: tensors.pop("network.head.0.weight"), "holds no checkpoint"),
        (swap("momentum.head.0.weight", (3, 3)), "holds no checkpoint"),
    ],
)
@pytest.mark.usefixtures("_no_report")
def test_checkpoints_of_another_form_are_refused(change, message, copy, capsys):
    (run_of(copy) / "metrics.json").unlink()
    rewrite(run_of(copy) / "checkpoint.safetensors", change)
    assert train(copy, "--resume") == 1
    line = only_line(capsys)
    assert message in line
    assert "checkpoint.safetensors" in line or "jitter" in line


@pytest.mark.usefixtures("_no_report")
def test_weights_of_another_network_are_refused(copy, capsys):
    (run_of(copy) / "metrics.json").unlink()
    (path,) = run_of(copy).glob("weights-*")
    save_tensors(path, {"other": torch.zeros(1)}, {})
    assert train(copy, "--resume") == 1
    assert f"{path.name} holds no weights of resnet18" in only_line(capsys)


def test_all_that_reaches_the_report_is_escaped(copy):
    """Texts that no form can refuse: names of files, versions and the environment."""
    test = copy / "data" / "test" / "normal"
    min(test.iterdir()).rename(test / "<script>&'\".png")
    os.rename(max(test.iterdir()), os.fsencode(test) + b"/\xff.png")
    old = read_split(copy / "data")
    with changed_json(run_of(copy) / "split.json") as split:
        split["test"] = old.as_dict()["test"]
    with changed_json(run_of(copy) / "metrics.json") as metrics:
        metrics["environment"]["device"] = SCRIPT
        metrics["environment"]["versions"][SCRIPT] = SCRIPT
        metrics["data"]["layout"] = SCRIPT
        metrics["data"]["files"]["test"] = 0
    assert main("evaluate", run_of(copy), "--changed-images") == 0
    text = (run_of(copy) / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in text
    assert "script" not in _Tags(text).tags


@pytest.mark.usefixtures("_no_report")
def test_evaluate_writes_into_the_folder_of_the_run_alone(copy, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    with changed_json(run_of(copy) / "split.json") as split:
        split["cache"] = str(outside / "cache")
    assert main("evaluate", run_of(copy)) == 0
    assert not list(outside.iterdir())
    shutil.rmtree(run_of(copy) / "cache")
    (run_of(copy) / "cache").symlink_to(outside)
    capsys.readouterr()
    assert main("evaluate", run_of(copy)) == 1
    assert "is a link, which may lead anywhere: give --cache" in capsys.readouterr().err
    assert not list(outside.iterdir())


def test_cells_that_a_spreadsheet_would_run_are_quoted():
    for text, cell in (
        ("=1+1.png", "'=1+1.png"),
        ("+a", "'+a"),
        ("-a", "'-a"),
        ("@a", "'@a"),
        ("\t=a", "\\t=a"),
        ("a\r\n=b", "a\\r\\n=b"),
        ("a\x1b[31m\x7f\x85", "a\\x1b[31m\\x7f\\x85"),
        ("\udcff", "\\udcff"),
        ("normal/é 1-2=3.png", "normal/é 1-2=3.png"),
    ):
        assert storage.csv_cell(text) == cell


def test_predictions_hold_no_formulas(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "=cmd|' !A1\n.png"
    shutil.copy(min((made / "data" / "test" / "normal").iterdir()), name)
    assert main("predict", run_of(made), name) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["path"] == "'=cmd|' !A1\\n.png"
    assert float(row["score"])
    assert main("predict", run_of(made), name, "--format", "jsonl") == 0
    assert json.loads(capsys.readouterr().out)["path"] == name


def test_pipes_in_the_place_of_files_are_refused_at_once(copy, capsys):
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")

    def waits(*arguments):
        raise TimeoutError("waited for the other end of a pipe")

    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(60)
    try:
        os.mkfifo(copy / "data" / "train" / "normal" / "pipe.png")
        assert train(copy, "--seeds", "1") == 1
        assert "train/normal/pipe.png: OSError: not a regular file" in capsys.readouterr().err
        for name in ("split.json", "metrics.json"):
            (run_of(copy) / name).unlink()
            os.mkfifo(run_of(copy) / name)
            assert main("evaluate", run_of(copy)) == 1
            assert "not a regular file" in only_line(capsys)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("number", ["ENOMEM", "EMFILE"])
def test_no_file_is_dropped_for_want_of_memory_or_handles(number, made, tmp_path, monkeypatch):
    import errno

    def lacks(path):
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)), str(path))

    monkeypatch.setattr(data, "read_image", lacks)
    entries = read_split(made / "data").train
    with pytest.raises(PipelineError, match="was not read"):
        data.load_images(data.Source(made / "data", tmp_path, skip_bad=True), entries, View(48))


def test_the_hostile_corpus_is_named_and_skipped(copy, tmp_path, capsys):
    pytest.importorskip("pydicom")
    folder = tmp_path / "corpus"
    folder.mkdir()
    pixels = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)
    bad = hostile.bad(pixels)
    for name, (content, _) in bad.items():
        (folder / name).write_bytes(content)
    bad["words.dcm"] = hostile.dicom(photometric="X" * 60_000), ""
    (folder / "words.dcm").write_bytes(bad["words.dcm"][0])
    (folder / "good.png").write_bytes(hostile.valid(pixels)["gray.png"])
    assert main("predict", run_of(copy), folder) == 3
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    lines = captured.err.splitlines()
    assert lines[-1] == f"{len(bad)} of {len(bad) + 1} images could not be read"
    assert [line.split(":")[0] for line in lines[:-1]] == [
        f"skipped {folder / name}" for name in sorted(bad)
    ]
    assert all(line.count(str(folder)) == 1 for line in lines[:-1])
    assert max(map(len, lines)) < 800


def test_all_runs_are_looked_at_before_the_first_is_evaluated(copy, capsys):
    before = all_files(run_of(copy))
    assert main("evaluate", run_of(copy), copy / "none") == 1
    assert "none holds no finished run" in only_line(capsys)
    assert all_files(run_of(copy)) == before


# Silently wrong.


@pytest.mark.usefixtures("_no_report")
@pytest.mark.parametrize("what", ["image", "label", "train"])
def test_evaluate_refuses_images_that_changed(what, copy, capsys):
    run = run_of(copy)
    test = copy / "data" / "test"
    before = evaluate.load_metrics(run)
    if what == "label":
        with changed_json(run / "split.json") as split:
            for entry in split["test"]:
                entry["abnormal"] = not entry["abnormal"]
    else:
        kept = test / "normal" if what == "image" else copy / "data" / "train" / "normal"
        shutil.copy(min((test / "abnormal").iterdir()), min(kept.iterdir()))
    files = all_files(run)
    assert main("evaluate", run) == 1
    part = "train" if what == "train" else "test"
    assert f"made with other images or labels ({part}): --changed-images" in capsys.readouterr().err
    assert {path: files[path] for path in files} == {path: path.read_bytes() for path in files}

    assert main("evaluate", run, "--changed-images") == 0
    after = evaluate.load_metrics(run)
    assert after["data"] == before["data"]  # the record of what was trained on
    assert after["evaluated"]["files"] != before["data"]["files"]
    # Nor are these numbers taken for those of the run.
    if what != "label":
        for path in before["data"]["files"]:
            shutil.rmtree(copy / "data" / path)
        write_phantoms(copy / "data", 64, counts=COUNTS)
        assert train(copy, "--resume") == 1
        assert "last evaluated on other images" in capsys.readouterr().err
        assert main("evaluate", run) == 0
        assert evaluate.load_metrics(run) == before


def test_the_report_says_that_images_changed(copy):
    test = copy / "data" / "test"
    assert main("evaluate", run_of(copy)) == 0
    assert "Warning: these numbers" not in (run_of(copy) / "report.html").read_text()
    shutil.copy(min((test / "abnormal").iterdir()), min((test / "normal").iterdir()))
    assert main("evaluate", run_of(copy), "--changed-images") == 0
    assert (
        "Warning: these numbers are of other images" in (run_of(copy) / "report.html").read_text()
    )


@pytest.mark.parametrize("change", ["pixels", "digest", "deep", "index", "turned", "archive"])
def test_a_cache_that_was_changed_is_made_again(change, made, tmp_path):
    entries = read_split(made / "data").train

    def load():
        return data.load_images(data.Source(made / "data", tmp_path), entries, View(32))

    before = load().images.copy()
    (path,) = tmp_path.glob("*.npy")
    content, sidecar = path.read_bytes(), path.with_suffix(".json")
    if change == "pixels":
        path.unlink()  # not in place: the array is mapped
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    elif change == "archive":
        path.unlink()
        with path.open("wb") as file:
            np.savez(file, before)
        with changed_json(sidecar) as told:
            told["sha256"] = data._digest(path)
    elif change == "deep":
        sidecar.write_text('{"bad":' * 10_000 + "1" + "}" * 10_000)
    else:
        with changed_json(sidecar) as told:
            if change == "digest":
                told["sha256"] = "0" * 64
            elif change == "turned":
                told["turned"] = [99]
            else:
                told["bad"] = {"-1": "x", "99": "y"}
    np.testing.assert_array_equal(load().images, before)
    assert path.read_bytes() == content


@pytest.mark.usefixtures("_no_report")
def test_two_runs_cannot_work_in_one_folder(copy, capsys):
    with locking(run_of(copy)):
        for command in (
            lambda: train(copy, "--resume"),
            lambda: main("evaluate", run_of(copy)),
        ):
            assert command() == 1
            assert "another process is at work here" in only_line(capsys)
    assert train(copy, "--resume") == 0


@pytest.mark.usefixtures("_no_report")
def test_what_is_left_out_for_its_name_is_told(copy, capsys):
    folder = copy / "data" / "train" / "normal"
    (folder / "patient").mkdir()
    for name in ("IM0001", "scan.webp", "Thumbs.db"):
        shutil.copy(folder / "phantom0000.png", folder / name)
    for name in ("._phantom0000.png", ".DS_Store"):
        (folder / name).write_bytes(b"no image")
    assert train(copy, "--seeds", "1") == 0
    told = "4 left out, by their names no images: train/normal/IM0001, train/normal/Thumbs.db, "
    hidden = "; hidden files skipped: 2"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {copy / 'data'}: {told}")
    assert line.endswith(hidden)
    assert main("predict", run_of(copy), folder) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1 + len(list(folder.glob("phantom*")))
    (line,) = captured.err.splitlines()
    assert line.startswith(f"warning: {folder}: 4 left out")
    assert line.endswith(hidden)


def test_hidden_files_are_scored_only_if_they_are_named(made, tmp_path, capsys):
    image = tmp_path / ".hidden.png"
    shutil.copy(min((made / "data" / "test" / "normal").iterdir()), image)
    assert main("predict", run_of(made), tmp_path) == 1
    assert only_line(capsys) == f"error: {tmp_path} holds no images"
    assert main("predict", run_of(made), image) == 0
    assert str(image) in capsys.readouterr().out
    # A folder may be hidden itself.
    folder = tmp_path / ".folder"
    folder.mkdir()
    image.rename(folder / "a.png")
    assert main("predict", run_of(made), folder) == 0
    assert str(folder / "a.png") in capsys.readouterr().out


# Lost work.


def test_the_demonstration_replaces_no_other_run(copy, monkeypatch, capsys):
    monkeypatch.setattr(commands, "write_phantoms", None)  # not reached
    run = copy / "out" / "mix" / "seed0"
    shutil.move(run_of(copy).parent, run.parent)
    before = all_files(run)
    assert main("demo", "--out", copy / "out") == 1
    assert "holds a run on other images" in only_line(capsys)
    assert all_files(run) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs names that are no text")
def test_a_name_that_is_not_utf8_goes_through_everything(copy, capsysbinary):
    images = [copy / "data" / part / "normal" for part in ("train", "valid", "test")]
    for folder in images:
        os.rename(min(folder.iterdir()), os.fsencode(folder) + b"/caf\xe9.png")
    bad = os.fsencode(images[0]) + b"/bad\xff.png"
    Path(os.fsdecode(bad)).write_bytes(b"no image")
    shutil.rmtree(copy / "out")
    assert train(copy) == 1
    assert b"bad\\udcff.png: OSError" in capsysbinary.readouterr().err
    assert train(copy, "--skip-bad") == 0
    assert train(copy, "--skip-bad", "--resume") == 0
    assert b"bad\\udcff.png" in capsysbinary.readouterr().out
    assert "caf\\udce9.png" in (run_of(copy) / "scores.csv").read_text(encoding="utf-8")
    assert "caf\\udce9.png" in (run_of(copy) / "report.html").read_text(encoding="utf-8")
    assert main("evaluate", run_of(copy), "--skip-bad") == 0
    for form in ("csv", "jsonl"):
        capsysbinary.readouterr()
        assert main("predict", run_of(copy), images[2], "--format", form) == 0
        assert b"caf\\udce9.png" in capsysbinary.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="needs locales")
def test_files_are_read_in_the_encoding_that_they_are_written_in(copy):
    test = copy / "data" / "test" / "normal"
    min(test.iterdir()).rename(test / "bébé.png")
    shutil.rmtree(copy / "out")
    code = "import sys; from examples.pretrain_gde import cli; sys.exit(cli.main(sys.argv[1:]))"
    options = ["--data", copy / "data", "--cache", copy / "cache", "--out", copy / "out", *TINY]
    command = [sys.executable, "-c", code, "train", *map(str, options), "--quiet", "--device=cpu"]
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    # The bytes of the name, which are no text in that locale.
    assert "b\\udcc3\\udca9b" in (run_of(copy) / "scores.csv").read_text(encoding="utf-8")


@pytest.mark.usefixtures("_no_report")
@pytest.mark.skipif(sys.platform == "win32", reason="needs locks")
def test_what_a_killed_run_left_half_written_is_removed(copy):
    places = [run_of(copy), copy / "cache", copy / "out" / "cutpaste"]
    for place in places:
        (place / ".checkpoint.safetensors.0123456789abcdef.part~").write_bytes(bytes(1000))
    (run_of(copy) / ".lock").touch()
    assert train(copy, "--resume") == 0
    assert not [path for place in places for path in place.glob(".*")]


@pytest.mark.skipif(sys.platform == "win32", reason="needs permissions")
def test_results_obey_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        storage.write_json(tmp_path / "file.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o600


def test_no_file_that_is_read_is_written_over(copy, capsys):
    image = copy / "data" / "test" / "normal" / "phantom0000.png"
    for output in (image, run_of(copy) / "detector.safetensors"):
        before = output.read_bytes()
        assert main("predict", run_of(copy), image.parent, "--output", output) == 1
        assert "--output must be none of the files read" in only_line(capsys)
        assert output.read_bytes() == before


@pytest.mark.parametrize("target", ["folder", "file/inside.csv"])
def test_an_output_that_cannot_be_written_comes_out_before_the_work(
    target, made, tmp_path, monkeypatch, capsys
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(
        "examples.pretrain_gde.predict.attempt", lambda *arguments: pytest.fail("scored an image")
    )
    image = min((made / "data" / "test" / "normal").iterdir())
    assert main("predict", run_of(made), image, "--output", tmp_path / target) == 1
    assert "cannot write" in only_line(capsys)


# Senseless options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "0"], "threads must be an integer in 1..1024, got 0"),
        (["--threads", "1000000000"], "threads must be an integer in 1..1024, got 1000000000"),
        (["--seeds", str(2**70)], "seed must be an integer in 0..9223372036854775807, got 118"),
        (["--seeds", "-1"], "seed must be an integer in 0..9223372036854775807, got -1"),
        (["--size", "10000000"], "size must be an integer in 32..4096, got 10000000"),
        (["--size", "1" + "0" * 400], "size must be an integer in 32..4096, got an integer of"),
        (["--batch", str(10**12)], "batch must be an integer in 1..1048576, got 1000000000000"),
        (["--batch", "1000000"], "batch must be at most 1048575 at 32 pixels"),
        (["--epochs", str(10**12)], "epochs must be an integer in 0..1000000"),
        (["--head-layers", "1000000"], "head_layers must be an integer in 0..100"),
        (["--jitter", "inf"], "jitter must be a number in 0.0..1.0, got inf"),
        (["--jitter", "nan"], "jitter must be a number in 0.0..1.0, got nan"),
        (["--learning-rate", "inf"], "learning_rate must be a number in 0.0..1e+38, got inf"),
        (["--momentum", "1e9"], "momentum must be a number in 0.0..1.0"),
        (["--weight-decay", "nan"], "weight_decay must be a number"),
        (["--held-out", "-1", "5"], "held-out numbers"),
        (["--data", "a" * 5000], TOO_LONG),
        (["--device", "meta"], "device 'meta' cannot be used"),
        (["--device", "cpu:x"], "device 'cpu:x' cannot be used"),
    ],
)
def test_senseless_options_are_refused_at_once(options, message, made, tmp_path, capsys):
    given = ["--data", made / "data", "--cache", tmp_path / "c", "--out", tmp_path / "o", *TINY]
    begin = time.perf_counter()
    if "1000000" in options and "--batch" in options:
        given[given.index("--size") + 1], message = "64", "batch must be at most 262144 at 64"
    whole = ["train", *given, "--device", "cpu", "--quiet", *options]
    assert cli.main([str(option) for option in whole]) == 1
    assert message in only_line(capsys)
    assert time.perf_counter() - begin < 5
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("kind", [MemoryError, RuntimeError])
def test_a_lack_of_memory_is_one_line(kind, made, tmp_path, monkeypatch, capsys):
    def lacks(*arguments, **options):
        raise kind("DefaultCPUAllocator: can't allocate memory: you tried\nto allocate 1 TB")

    monkeypatch.setattr("examples.pretrain_gde.run.Trainer", lacks)
    given = ("--data", made / "data", "--cache", made / "cache", "--out", tmp_path)
    assert main("train", *given, *TINY) == 1
    assert "out of memory: DefaultCPUAllocator" in only_line(capsys)


def test_other_failures_are_not_hidden(made, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("examples.pretrain_gde.run.Trainer", fails)
    given = ("--data", made / "data", "--cache", made / "cache", "--out", tmp_path)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main("train", *given, *TINY)


def test_names_that_are_too_long_are_skipped_and_counted(made, tmp_path, capsys):
    good = min((made / "data" / "test" / "normal").iterdir())
    long = tmp_path / ("a" * 251 + ".png")
    shutil.copy(good, long)
    maps, longer = tmp_path / "maps", tmp_path / ("b" * 300 + ".png")
    assert main("predict", run_of(made), long, longer, good, "--heat-maps", maps) == 3
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert [row["path"] for row in rows] == [str(long), str(good)]
    assert "bbb.png: OSError: File name too long" in captured.err
    assert captured.err.splitlines()[-1] == "1 of 3 images could not be read"
    for row in rows:
        with Image.open(row["heat_map"]) as image:
            assert image.size == (32, 32)


def test_entries_lead_into_the_data_folder_alone():
    assert Entry("test/normal/..a.png", False).owner == "test/normal/..a.png"
    for path in ("..", "a/../../b", "/etc", ".", "a\0"):
        with pytest.raises(PipelineError, match="must lead into the data folder, got"):
            Entry(path, False)


def test_settings_are_of_the_right_type():
    for name, value in (("size", 32.5), ("batch", "4"), ("crop", 1), ("seed", True)):
        with pytest.raises(PipelineError, match=f"{name} must be"):
            Settings(**{name: value})
