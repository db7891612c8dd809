"""The reference pipeline, end to end on tiny phantoms."""

from __future__ import annotations

import csv
import dataclasses
import errno
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline import PACKAGES, ROOT, need

need(*PACKAGES)

import torch  # noqa: E402
from sklearn.covariance import LedoitWolf  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.neighbors import KernelDensity  # noqa: E402

from anatpaste_aug.crop import CROP_MARGIN, crop_window  # noqa: E402
from examples.pretrain_gde import augment, cli, commands, data, disk, evaluate, run, storage, train  # noqa: E402
from examples.pretrain_gde.augment import Augmenter, jitter, reframe, roughen, second_view  # noqa: E402
from examples.pretrain_gde.density import PUBLISHED, SCORES, Scorer  # noqa: E402
from examples.pretrain_gde.detector import (  # noqa: E402
    Detector,
    Reference,
    fit_detector,
    standard,
)
from examples.pretrain_gde.errors import PipelineError  # noqa: E402
from examples.pretrain_gde.heatmap import NO_MAP, grad_cam, heat_maps  # noqa: E402
from examples.pretrain_gde.metrics import auc_between, best_threshold, measure  # noqa: E402
from examples.pretrain_gde.model import Network, prepare  # noqa: E402
from examples.pretrain_gde.phantoms import write_phantoms  # noqa: E402
from examples.pretrain_gde.readers import Entry, Split, read_split  # noqa: E402
from examples.pretrain_gde.runtime import Runtime  # noqa: E402
from examples.pretrain_gde.settings import VARIANTS, Settings, derive_seed  # noqa: E402
from examples.pretrain_gde.shortcuts import WORDS, strongest  # noqa: E402
from examples.pretrain_gde.tensors import load_tensors, save_tensors  # noqa: E402
from examples.pretrain_gde.view import View  # noqa: E402

COUNTS = {
    ("train", "normal"): 12,
    ("valid", "normal"): 4,
    ("valid", "abnormal"): 4,
    ("test", "normal"): 5,
    ("test", "abnormal"): 5,
}
TINY = [
    "--preset",
    "quick",
    "--size",
    "32",
    "--batch",
    "4",
    "--epochs",
    "2",
    "--updates",
    "2",
    "--validate-every",
    "1",
]
TINY += ["--precision", "fp32", "--quiet", "--device", "cpu"]
LAPTOP = ["--preset", "laptop", *TINY[2:]]
LONGER = [*TINY, "--epochs", "3"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(phantoms, cache, tmp_path_factory):
    """Return the folder of one finished run."""
    out = tmp_path_factory.mktemp("trained")
    assert main("train", "--data", phantoms, "--cache", cache, "--out", out, *TINY) == 0
    return out / "anatpaste" / "seed0"


@pytest.fixture
def _no_report(monkeypatch):
    """Leave out the figures, which take longer than all else in a tiny run."""
    monkeypatch.setattr("examples.pretrain_gde.run.write_report", lambda *arguments: None)


def main(*arguments):
    """Run a command, on the CPU if it does not say where."""
    if "--device" not in arguments:
        arguments += ("--device", "cpu")
    return cli.main([str(argument) for argument in arguments])


def without_times(metrics):
    """Drop what a clock decides."""
    metrics = json.loads(json.dumps(metrics))
    for record in (metrics, *metrics["epochs"]):
        assert 0 < record.pop("seconds") < record.pop("wall_seconds")
    for record in metrics["epochs"]:
        del record["augmentation_share"]
    return metrics


def all_files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


# Training and what it leaves behind.


def test_a_run_leaves_metrics_scores_split_and_report(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["settings"]["variant"] == "anatpaste"
    assert metrics["settings"]["seed"] == 0
    assert metrics["data"]["images"] == {"train": 12, "valid": 8, "test": 10}
    assert [record["epoch"] for record in metrics["epochs"]] == [1, 2]
    for record in metrics["epochs"]:
        assert record["loss"] > 0
        assert 0 < record["augmentation_share"] < 1
        assert set(record["valid"]) == set(PUBLISHED)
    best = max(metrics["epochs"], key=lambda record: record["valid"]["gaussian"])["epoch"]
    assert metrics["scored"] == {"network": "trained", "score": "gaussian", "epoch": best}
    assert set(metrics["test"]) == {"trained", "untrained"}
    for results in metrics["test"].values():
        for name in PUBLISHED:
            low, high = results[name]["auc_interval"]
            assert 0 <= low <= results[name]["auc"] <= high <= 1
    assert metrics["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]

    with (trained / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    truth = [int(row["abnormal"]) for row in rows]
    for network, results in metrics["test"].items():
        for name in PUBLISHED:
            auc = roc_auc_score(truth, [float(row[f"{network}_{name}"]) for row in rows])
            assert auc == pytest.approx(results[name]["auc"])

    split = json.loads((trained / "split.json").read_text())
    assert [len(split[part]) for part in ("train", "valid", "test")] == [12, 8, 10]


class _Page(HTMLParser):
    """Collects what a page refers to, and checks that its tags are closed in order."""

    EMPTY = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_valid_and_self_contained(trained):
    text = (trained / "report.html").read_text()
    page = _Page()
    page.feed(text)
    page.close()
    assert text.startswith("<!DOCTYPE html>")
    assert not page.open
    assert len(page.sources) >= 4 + 3 * 6 + 4 * 5
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"https?://(?!www\.w3\.org)", re.sub(r'src="[^"]*"', "", text))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "anatpaste"])
def test_every_variant_trains(variant, phantoms, cache, tmp_path):
    short = [*TINY, "--epochs", "1", "--updates", "1"]
    options = ("--cache", cache, "--out", tmp_path, "--variant", variant)
    assert main("train", "--data", phantoms, *options, *short) == 0
    report = (tmp_path / variant / "seed0" / "report.html").read_text()
    assert ("CutPaste scar" in report) == (variant in ("scar", "3way"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own imports
@pytest.mark.usefixtures("_no_report")
def test_several_seeds_are_summed_up(phantoms, cache, tmp_path, capsys):
    short = [*TINY, "--epochs", "1", "--updates", "1", "--seeds", "3", "4", "--tensorboard"]
    assert main("train", "--data", phantoms, "--cache", cache, "--out", tmp_path, *short) == 0
    summary = json.loads((tmp_path / "anatpaste" / "summary.json").read_text())
    assert summary["seeds"] == [3, 4]
    scored = summary["columns"]["scored"]
    assert scored["values"] == summary["columns"]["trained_gaussian"]["values"]
    assert scored["mean"] == pytest.approx(np.mean(scored["values"]))
    assert scored["sd"] == pytest.approx(np.std(scored["values"], ddof=1))
    assert "over 2 seeds" in capsys.readouterr().out
    assert list((tmp_path / "anatpaste" / "seed3" / "tensorboard").glob("events*"))


def test_no_run_is_overwritten(trained, phantoms, cache, capsys):
    before = (trained / "metrics.json").read_bytes()
    options = ("--cache", cache, "--out", trained.parents[1])
    assert main("train", "--data", phantoms, *options, *TINY) == 1
    assert "--resume or another --out" in capsys.readouterr().err
    assert (trained / "metrics.json").read_bytes() == before
    # With --resume a finished run is taken as it is.
    assert main("train", "--data", phantoms, *options, *TINY, "--resume") == 0
    assert (trained / "metrics.json").read_bytes() == before


def test_all_runs_are_checked_before_the_first(trained, phantoms, cache, capsys):
    out = trained.parents[1]
    options = ("--data", phantoms, "--cache", cache, "--out", out, *TINY)
    assert main("train", *options, "--seeds", "7", "0") == 1
    assert "seed0 holds a run" in capsys.readouterr().err
    assert main("compare", *options, "--variants", "scar", "anatpaste") == 1
    assert "seed0 holds a run" in capsys.readouterr().err
    assert main("train", *options, "--seeds", "7", "8", "7") == 1
    assert "seed 7 is given twice" in capsys.readouterr().err
    assert [path.name for path in out.glob("*/seed*")] == ["seed0"]


@pytest.fixture(scope="module")
def longer(phantoms, cache, tmp_path_factory):
    """Return the folder of a run of three epochs."""
    out = tmp_path_factory.mktemp("longer")
    assert main("train", "--data", phantoms, "--cache", cache, "--out", out, *LONGER) == 0
    return out / "anatpaste" / "seed0"


@pytest.mark.usefixtures("_no_report")
@pytest.mark.parametrize(("crash", "saved"), [(KeyboardInterrupt, 2), (RuntimeError, 1)])
def test_resume_gives_the_numbers_of_an_uninterrupted_run(
    crash, saved, longer, phantoms, cache, tmp_path, monkeypatch, capsys
):
    options = ("train", "--data", phantoms, "--cache", cache, "--out", tmp_path, *LONGER)
    update, calls = train.Trainer.update, []

    def breaks(self, *arguments):
        calls.append(1)
        # A checkpoint after the first epoch alone, and none more but for the interrupt.
        monkeypatch.setattr(train, "SAVE_EVERY", 0 if len(calls) < 3 else 1e9)
        if len(calls) == 6:  # within the third epoch
            raise crash("enough")
        return update(self, *arguments)

    monkeypatch.setattr(train.Trainer, "update", breaks)
    if crash is KeyboardInterrupt:
        assert main(*options) == 130
        assert "--resume" in capsys.readouterr().err
    else:
        with pytest.raises(crash):
            main(*options)
    folder = tmp_path / "anatpaste" / "seed0"
    assert not (folder / "metrics.json").exists()
    _, info = load_tensors(folder / "checkpoint.safetensors", train.CHECKPOINT_FORM)
    assert len(info["epochs"]) == saved
    assert (folder / train.WEIGHTS.format(info["best"]["epoch"])).exists()
    assert main(*options, "--resume") == 0
    assert len(calls) == 6 + 2 * (3 - saved)
    assert len(list(folder.glob("weights-*"))) == 1
    whole, resumed = (evaluate.load_metrics(path) for path in (longer, folder))
    assert without_times(resumed) == without_times(whole)
    for name in ("detector.safetensors", "checkpoint.safetensors"):
        one, other = (load_tensors(path / name, {})[0] for path in (longer, folder))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("_no_report")
@pytest.mark.parametrize(("seconds", "checkpoints"), [(60.0, [3]), (0.0, [1, 2, 3])])
def test_a_checkpoint_is_written_at_most_once_a_minute_and_at_the_end(
    seconds, checkpoints, phantoms, cache, tmp_path, monkeypatch
):
    assert train.SAVE_EVERY == 60
    monkeypatch.setattr(train, "SAVE_EVERY", seconds)
    save, saved = train.save_tensors, []

    def record(path, tensors, info):
        if path.name == "checkpoint.safetensors":
            saved.append(len(info["epochs"]))
        save(path, tensors, info)

    monkeypatch.setattr(train, "save_tensors", record)
    short = [*TINY, "--epochs", "3", "--updates", "1", "--validate-every", "3"]
    assert main("train", "--data", phantoms, "--cache", cache, "--out", tmp_path, *short) == 0
    assert saved == checkpoints


def test_resume_refuses_other_settings_and_other_images(trained, phantoms, cache, tmp_path, capsys):
    folder = tmp_path / "anatpaste" / "seed0"
    folder.mkdir(parents=True)
    for name in ("checkpoint.safetensors", "split.json"):
        (folder / name).write_bytes((trained / name).read_bytes())
    options = ("train", "--data", phantoms, "--cache", cache, "--out", tmp_path, *TINY, "--resume")
    assert main(*options, "--learning-rate", "0.5") == 1
    assert "other settings: learning_rate 0.03" in capsys.readouterr().err
    finished = ("--out", trained.parents[1], "--learning-rate", "0.5")
    assert main(*options, *finished) == 1
    assert "another learning_rate" in capsys.readouterr().err
    other = tmp_path / "other"
    write_phantoms(other, 64, seed=1, counts=COUNTS)
    assert main(*options, "--data", other) == 1
    assert "other training or validation images" in capsys.readouterr().err


def test_resume_of_a_finished_run_mends_its_report(trained, phantoms, cache):
    report = trained / "report.html"
    report.unlink()
    options = ("--cache", cache, "--out", trained.parents[1], *TINY, "--resume")
    assert main("train", "--data", phantoms, *options) == 0
    assert report.exists()


def test_resume_of_a_finished_run_refuses_what_differs(trained, phantoms, cache, tmp_path, capsys):
    options = ("train", "--cache", cache, "--out", trained.parents[1], *TINY, "--resume", "--data")
    other = tmp_path / "other"
    write_phantoms(other, 64, seed=1, counts=COUNTS)
    assert main(*options, other) == 1
    assert "was made with other images" in capsys.readouterr().err
    assert main(*options, phantoms, "--layout", "zhanglab") == 1
    assert "another layout: plain" in capsys.readouterr().err
    assert main(*options, phantoms, "--held-out", "2", "2") == 1
    assert "was made with other --held-out: none" in capsys.readouterr().err
    source = data.Source(phantoms, cache)
    settings = Settings(**evaluate.load_metrics(trained)["settings"])
    with pytest.raises(PipelineError, match=r"another number of processes \(1\)"):
        run.check_folder(settings, source, trained, Runtime(torch.device("cpu"), 0, 2), resume=True)


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "other", "detector"])
def test_a_corrupt_checkpoint_is_a_clear_error(damage, trained, phantoms, cache, tmp_path, capsys):
    folder = tmp_path / "anatpaste" / "seed0"
    folder.mkdir(parents=True)
    content = bytearray((trained / "checkpoint.safetensors").read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[-1000] ^= 1
    elif damage == "header":
        content = content.replace(b"loss", b"lose", 1)
    elif damage == "detector":
        content = (trained / "detector.safetensors").read_bytes()
    else:
        content = b"not a checkpoint"
    (folder / "checkpoint.safetensors").write_bytes(content)
    options = ("--cache", cache, "--out", tmp_path, *TINY, "--resume")
    assert main("train", "--data", phantoms, *options) == 1
    error = capsys.readouterr().err
    assert "checkpoint.safetensors is damaged or not one of the pipeline's" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "victim", ["checkpoint.safetensors", "detector.safetensors", "report.html"]
)
def test_a_full_disk_leaves_nothing_half_written(
    victim, phantoms, cache, tmp_path, monkeypatch, capsys
):
    fsync = os.fsync

    def full(handle):
        if f".{victim}." in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell which file is written")
    monkeypatch.setattr(os, "fsync", full)
    short = [*TINY, "--epochs", "1", "--updates", "1"]
    assert main("train", "--data", phantoms, "--cache", cache, "--out", tmp_path, *short) == 1
    error = capsys.readouterr().err
    assert victim in error
    assert "No space left on device" in error
    names = {path.name for path in all_files(tmp_path)}
    assert victim not in names
    assert not any(name.startswith(".") for name in names)


def test_a_full_disk_spares_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    storage.write_json(path, {"a": 1})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PipelineError, match="No space left"):
        storage.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert all_files(tmp_path) == {path}


def test_a_loss_that_is_not_finite_stops_the_run(phantoms, cache, tmp_path, capsys):
    wild = ["--learning-rate", "1e30", "--epochs", "3"]
    assert main("train", "--data", phantoms, "--cache", cache, "--out", tmp_path, *TINY, *wild) == 1
    assert "lower the learning rate" in capsys.readouterr().err


def test_imagenet_weights_that_cannot_be_had(phantoms, cache, tmp_path, monkeypatch, capsys):
    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.get_model", offline)
    options = ("--cache", cache, "--out", tmp_path, *TINY, "--imagenet")
    assert main("train", "--data", phantoms, *options) == 1
    assert "ImageNet weights cannot be had" in capsys.readouterr().err


def test_a_frozen_backbone_stays_while_the_head_learns(phantoms, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "seeded_network", Network)
    settings = Settings(
        size=32, batch=4, epochs=2, updates=1, validate_every=2, imagenet=True, freeze_epochs=1
    )
    split = read_split(phantoms)
    dataset = data.load_dataset(data.Source(phantoms, cache), split, settings)
    runtime = Runtime(torch.device("cpu"))
    trainer = train.Trainer(settings, dataset, tmp_path, runtime)
    before = trainer.network.backbone.conv1.weight.clone()
    head = trainer.network.head[0].weight.clone()
    model = trainer.model(frozen=True)
    trainer.update(model, trainer.augment(*trainer.source(0)))
    assert torch.equal(trainer.network.backbone.conv1.weight, before)
    assert not torch.equal(trainer.network.head[0].weight, head)
    trainer.update(trainer.model(frozen=False), trainer.augment(*trainer.source(1)))
    assert not torch.equal(trainer.network.backbone.conv1.weight, before)


def test_the_network_is_compiled_once_and_whole(phantoms, cache, monkeypatch, tmp_path):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    whole = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", whole)
    form = {"size": 32, "batch": 4, "epochs": 2, "updates": 2, "validate_every": 1}
    settings = Settings(**form, precision="bf16", map_weight=1.0)
    split = read_split(phantoms)
    dataset = data.load_dataset(data.Source(phantoms, cache), split, settings)
    runtime = Runtime(torch.device("cpu"), compiled=True)
    train.Trainer(settings, dataset, tmp_path, runtime).run()  # validation comes in between
    assert dict(counters["stats"])["unique_graphs"] == 1
    assert dict(counters["frames"]) == {"total": 1, "ok": 1}
    assert not counters["graph_break"]


# The other commands.


def test_evaluate_repeats_the_numbers_of_training(trained, phantoms, cache, capsys):
    before = evaluate.load_metrics(trained)
    assert main("evaluate", trained, "--quiet", "--published", "rsna") == 0
    assert not (trained / "cache").exists()  # that of the run was found
    assert evaluate.load_metrics(trained) == before
    assert f"test AUC {evaluate.result_of(before)['auc']:.3f}" in capsys.readouterr().out


def test_evaluate_and_predict_need_a_finished_run(tmp_path, capsys):
    assert main("evaluate", tmp_path, "--quiet") == 1
    assert "no finished run" in capsys.readouterr().err
    for content, message in (("{}", "metrics lacks settings"), ("[]", "metrics must be")):
        (tmp_path / "metrics.json").write_text(content)
        assert main("evaluate", tmp_path, "--quiet") == 1
        assert message in capsys.readouterr().err
    assert main("predict", tmp_path, tmp_path / "a.png", "--quiet") == 1
    assert "detector.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("network", ["trained", "untrained"])
def test_a_detector_that_lacks_a_standard_is_refused(network, cropped, tmp_path):
    tensors, info = load_tensors(cropped / "detector.safetensors", {})
    del info["standards"][network]["places2"]
    path = tmp_path / "detector.safetensors"
    save_tensors(path, tensors, info)
    with pytest.raises(PipelineError, match="holds no detector: 'places2'"):
        Detector.load(path)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_predict_scores_files_and_skips_the_unreadable(form, trained, phantoms, tmp_path, capsys):
    good = sorted((phantoms / "test" / "abnormal").iterdir())[:2]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    maps = tmp_path / "maps"
    output = tmp_path / f"rows.{form}"
    options = ("--format", form, "--output", output, "--heat-maps", maps, "--quiet")
    assert main("predict", trained, good[0], bad, tmp_path / "none.png", good[1], *options) == 3
    error = capsys.readouterr().err
    assert "bad.png" in error
    assert "none.png" in error
    assert "2 of 4 images could not be read" in error
    if form == "csv":
        rows = list(csv.DictReader(output.read_text().splitlines()))
    else:
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in good]
    with (trained / "scores.csv").open() as file:
        known = {
            Path(row["path"]).name: row for row in csv.DictReader(file) if row["abnormal"] == "1"
        }
    for row, path in zip(rows, good, strict=True):
        assert float(row["score"]) == pytest.approx(
            float(known[path.name][f"{row['network']}_{row['kind']}"])
        )
        assert 0 <= float(row["percentile"]) <= 100
        assert str(row["abnormal"]) in ("True", "False")
        with Image.open(row["heat_map"]) as image:
            assert image.size == (32, 32)
            assert image.mode == "RGB"
    assert len(all_files(maps)) == 2


def test_there_is_no_map_of_an_untrained_network_without_places(phantoms, cache, tmp_path, capsys):
    options = ("--data", phantoms, "--cache", cache, "--out", tmp_path, *TINY, "--epochs", "0")
    assert main("train", *options) == 0
    run = tmp_path / "anatpaste" / "seed0"
    report = (run / "report.html").read_text()
    assert "There are no heat maps: the score has no places, and " in report
    assert 'alt="heat map"' not in report
    image, before = min((phantoms / "test" / "normal").iterdir()), all_files(tmp_path)
    predict = ("predict", run, image, "--quiet", "--output", tmp_path / "rows.csv")
    capsys.readouterr()
    assert main(*predict, "--heat-maps", tmp_path / "maps") == 1
    assert capsys.readouterr().err == f"error: {NO_MAP}\n"
    assert all_files(tmp_path) == before
    assert main(*predict) == 0
    with pytest.raises(PipelineError, match="there are no heat maps"):
        heat_maps(Detector.load(run / "detector.safetensors"), np.zeros((1, 32, 32), np.uint8))


BY_PLACE = [name for name, (feature, _, _) in SCORES.items() if feature.startswith("cells")]


@pytest.mark.parametrize("name", sorted(SCORES.keys() - BY_PLACE))
def test_grad_cam_of_a_trained_network_points_at_something(name, cropped):
    detector = Detector.load(cropped / "detector.safetensors")
    network, scorer = detector.networks["trained"], detector.scorers["trained"]
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    inputs = prepare(torch.from_numpy(images)[:, None])
    found = grad_cam(network, scorer, name, inputs)
    assert found.shape == (3, 1, 8, 8)
    assert found.min() >= 0
    assert (found.amax((1, 2, 3)) > 0).any()
    if name == "pooled2":
        values = network.see(inputs)[1][2].detach().requires_grad_()
        pooled = torch.nn.functional.normalize(values.mean((2, 3)))
        (slope,) = torch.autograd.grad(scorer({"pool2": pooled}, name).sum(), values)
        by_hand = (slope.mean((2, 3))[..., None, None] * values).sum(1, keepdim=True).relu()
        torch.testing.assert_close(found, by_hand)


@pytest.mark.parametrize("network", ["trained", "untrained", "both"])
@pytest.mark.parametrize("name", [*BY_PLACE, "mean"])
def test_the_shares_of_all_places_add_up_to_the_score(network, name, cropped):
    detector = Detector.load(cropped / "detector.safetensors")
    detector = dataclasses.replace(detector, scored=(network, name))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    shares = detector.shares(images)
    assert shares.shape == (3, 16)
    assert shares.std(1).min() > 0
    scores = detector.score_all(images)[network][name]
    np.testing.assert_allclose(shares.sum(1), scores, rtol=0, atol=1e-6)


def test_usual_shares_are_those_of_the_validation_normals(cropped, phantoms, cache):
    detector = Detector.load(cropped / "detector.safetensors")
    split = read_split(phantoms)
    dataset = data.load_dataset(data.Source(phantoms, cache), split, detector.settings)
    normals, _ = dataset.normals("valid")
    np.testing.assert_allclose(detector.usual_shares, detector.shares(normals).mean(0))
    assert detector.usual_shares.sum() == pytest.approx(detector.score(normals).mean())


@pytest.mark.parametrize("network", ["trained", "untrained", "both"])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (3, 1)])
def test_a_map_shows_where_an_image_was_changed(network, row, column, cropped):
    detector = Detector.load(cropped / "detector.safetensors")
    detector = dataclasses.replace(detector, scored=(network, "plain1"))
    image = np.full((1, 64, 64), 128, np.uint8)
    changed = image.copy()
    changed[:, 16 * row + 2 : 16 * row + 14, 16 * column + 2 : 16 * column + 14] = 255
    detector = dataclasses.replace(detector, usual_shares=detector.shares(image)[0])
    assert not heat_maps(detector, image).any()
    (found,) = heat_maps(detector, changed)
    place = np.abs(found).argmax()
    assert (place // 64 // 16, place % 64 // 16) == (row, column)
    # In units of the normals' scores, so that the color means the same in every image.
    far = (detector.score(changed) - detector.score(image)) / detector.normal_scores.std() / 16
    assert found.mean() == pytest.approx(far, rel=0.3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_heat_maps_leave_the_scorer_on_the_cpu(device, trained, monkeypatch):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    detector = Detector.load(trained / "detector.safetensors", torch.device(device))
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32), np.uint8)
    before = detector.score(images)
    monkeypatch.setattr(Scorer, "to", lambda self, where: pytest.fail(f"moved to {where}"))
    maps = heat_maps(detector, images)
    assert maps.shape == images.shape
    assert maps.max() == pytest.approx(1, abs=0.3)  # of Grad-CAM, but for its enlargement
    np.testing.assert_array_equal(detector.score(images), before)


def test_predict_takes_a_single_image_a_folder_and_tells_when_nothing_can_be_read(
    trained, phantoms, tmp_path, capsys
):
    folder = phantoms / "test" / "normal"
    assert main("predict", trained, min(folder.iterdir()), "--quiet") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main("predict", trained, folder, "--quiet", "--format", "jsonl") == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main("predict", trained, tmp_path / "none.png", "--quiet") == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main("predict", trained, empty, "--quiet") == 1
    assert "holds no images" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_report")
def test_compare_makes_one_table(phantoms, cache, tmp_path, capsys):
    short = [*TINY, "--epochs", "1", "--updates", "1", "--variants", "scar", "cutpaste"]
    options = ("--data", phantoms, "--cache", cache, "--out", tmp_path, *short)
    assert main("compare", *options) == 0
    table = (tmp_path / "compare.md").read_text()
    assert table in capsys.readouterr().out
    assert {line.split("|")[1].strip() for line in table.splitlines()[2:]} == {"scar", "cutpaste"}
    summaries = json.loads((tmp_path / "compare.json").read_text())
    assert set(summaries) == {"scar", "cutpaste"}
    assert main("compare", *options, "--resume") == 0  # nothing is trained again
    assert (tmp_path / "compare.md").read_text() == table


def test_benchmark_prints_the_share_of_the_augmentation(
    phantoms, cache, tmp_path, monkeypatch, capsys
):
    training = pytest.importorskip("benchmarks.training")
    monkeypatch.setattr(train, "Reference", None)  # nothing is scored, so nothing to fit to is made
    file = tmp_path / "rate.json"
    options = ["--data", phantoms, "--cache", cache, "--out", tmp_path, "--output", file, *TINY]

    def timed(steps):
        given = ["training", *map(str, options), "--steps", steps]
        monkeypatch.setattr(sys, "argv", given)
        return training.main()

    assert timed("2") == 0
    told = r"[\d.]+ % of a step for augmentation; the first 5 steps took [\d.]+ s"
    assert re.search(told, capsys.readouterr().out)
    result = json.loads(file.read_text())
    assert result["low"] <= result["median"] <= result["high"]
    assert result["warm_up"] > 0
    assert result["images_per_second"] == pytest.approx(8 / result["median"])
    assert 0 < result["augmentation_share"] < 1
    assert timed("0") == 1
    assert "error: steps must lie in 1..1000000, got 0" in capsys.readouterr().err


def test_the_demonstration_runs_without_arguments(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("examples.pretrain_gde.phantoms.COUNTS", COUNTS)
    monkeypatch.setattr(commands, "DEMO_PIXELS", 64)
    tiny = {"size": 32, "batch": 4, "epochs": 1, "updates": 1, "validate_every": 1}
    monkeypatch.setitem(commands.PRESETS, "demo", tiny)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pretrain_gde"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main() == 0
    captured = capsys.readouterr()
    assert re.search(r"trained +untrained", captured.out)
    assert (tmp_path / "runs" / "demo" / "anatpaste" / "seed0" / "report.html").exists()
    assert main("--seed", "1", "--quiet") == 0  # options alone go to the demonstration


def test_a_device_that_is_not_there(phantoms, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    options = ("--data", phantoms, "--out", tmp_path, *TINY, "--device", "cuda")
    assert main("train", *options) == 1
    assert "device 'cuda' cannot be used" in capsys.readouterr().err


def test_the_module_is_a_program(tmp_path):
    (tmp_path / "pydicom.py").write_text("raise ImportError")  # which is nothing to fail for
    command = [sys.executable, "-m", "examples.pretrain_gde", "train", "--device", "cpu"]
    command += ["--data", str(tmp_path / "no")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "is not a folder" in result.stderr
    assert "Traceback" not in result.stderr


# Several processes.


def run_two(options):
    """Train in two processes; return the exit statuses and what was printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "examples.pretrain_gde", "train", *map(str, options)],
            cwd=ROOT,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "GLOO_SOCKET_IFNAME": "lo",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


@pytest.mark.slow
def test_the_other_process_says_in_one_line_that_the_first_has_ended(phantoms, tmp_path):
    folder = tmp_path / "anatpaste" / "seed0"
    folder.mkdir(parents=True)
    options = ["--data", phantoms, "--out", tmp_path, *TINY, "--threads", "1"]
    with disk.locking(folder):
        statuses, (first, other) = run_two(options)
    assert statuses == [1, 1]
    assert "another process is at work here" in first
    assert "error: another of the processes has ended; it says why" in other
    assert "Traceback" not in first + other


@pytest.mark.slow
def test_two_processes_do_what_one_does(phantoms, cache, tmp_path):
    options = ["--data", phantoms, "--cache", cache, "--out", tmp_path, *TINY, "--threads", "1"]
    statuses, outputs = run_two(options)
    assert statuses == [0, 0], outputs
    together = evaluate.load_metrics(tmp_path / "anatpaste" / "seed0")
    assert together["environment"]["processes"] == 2

    # The same by hand: each half of a batch through its own forward pass, gradients averaged.
    settings = Settings(**together["settings"])
    dataset = data.load_dataset(data.Source(phantoms, cache), read_split(phantoms), settings)
    cpu = torch.device("cpu")
    halves = [Runtime(cpu, rank, 2) for rank in range(2)]
    trainer = train.Trainer(settings, dataset, tmp_path, Runtime(cpu))
    network, optimizer = trainer.network, trainer.optimizer
    masks = dataset.masks["train"]
    sources = [train.Batches(dataset.images["train"], masks, settings, h) for h in halves]
    buffers = {name for name, _ in network.named_buffers()}
    network.train()
    for epoch in range(settings.epochs):
        total = 0.0
        for step in range(epoch * settings.updates, (epoch + 1) * settings.updates):
            rate = settings.learning_rate * (1 + np.cos(np.pi * step / settings.steps)) / 2
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            for rank, source in enumerate(sources):
                kept = {name: network.state_dict()[name].clone() for name in buffers}
                inputs, labels, _ = trainer.augment(*source(step))
                assert len(inputs) == 4  # half of 4 originals and 4 augmented images
                loss = torch.nn.functional.cross_entropy(network(inputs).logits, labels)
                (loss / 2).backward()
                total += loss.item() / 2
                if rank:  # running statistics are those of the first process
                    network.load_state_dict(kept, strict=False)
            optimizer.step()
        assert together["epochs"][epoch]["loss"] == pytest.approx(
            total / settings.updates, rel=1e-4
        )
    folder = tmp_path / "anatpaste" / "seed0"
    saved, _ = load_tensors(folder / "checkpoint.safetensors", {})
    for name, parameter in network.named_parameters():
        # The momentum buffer is the sum of the gradients: it differs if any gradient did.
        torch.testing.assert_close(
            saved[f"momentum.{name}"],
            optimizer.state[parameter]["momentum_buffer"],
            rtol=1e-3,
            atol=1e-5,
        )
        torch.testing.assert_close(
            saved[f"network.{name}"], parameter.detach(), rtol=1e-4, atol=1e-6
        )
    assert together["epochs"][-1]["valid"] == pytest.approx(
        Reference(settings, dataset).validate(network), abs=1e-3
    )


def test_a_batch_must_be_shared_evenly(phantoms, cache):
    settings = Settings(size=32, batch=5, epochs=1, updates=1)
    with pytest.raises(PipelineError, match="batch 5 cannot be shared by 2 processes"):
        train.Batches(
            np.zeros((8, 32, 32), np.uint8), None, settings, Runtime(torch.device("cpu"), 0, 2)
        )


# The parts.


def test_batches_show_every_image_before_any_comes_again():
    images = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 32, 32), np.uint8)
    settings = Settings(size=32, batch=4, epochs=5, updates=5)
    cpu = torch.device("cpu")
    one = train.Batches(images, None, settings, Runtime(cpu))
    seen = torch.cat([one(step)[0][:, 0, 0, 0] for step in range(25)]).view(10, 10)
    assert not torch.equal(seen[0], seen[1])
    for turn, order in enumerate(seen):
        seeded = torch.Generator().manual_seed(derive_seed(0, 0, turn))
        assert torch.equal(order, torch.randperm(10, generator=seeded))
    halves = [train.Batches(images, None, settings, Runtime(cpu, rank, 2)) for rank in range(2)]
    for step in (7, 3):  # any step can be had at any time
        both = torch.cat([half(step)[0] for half in halves])
        assert torch.equal(both, one(step)[0])
    draws = [torch.rand(1, generator=source(3)[2]).item() for source in (one, *halves)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_augmenter_labels_what_it_makes(variant, phantoms):
    settings = Settings(variant=variant, size=64)
    paths = sorted((phantoms / "train" / "normal").iterdir())[:6]
    images = torch.stack([torch.from_numpy(data.decode(path, View(64))[0])[None] for path in paths])
    masks = torch.zeros_like(images, dtype=torch.bool)
    masks[..., 20:50, 10:25] = True
    inputs, labels, alpha = Augmenter(settings)(images, masks, torch.Generator().manual_seed(0))
    assert inputs.dtype == alpha.dtype == torch.uint8
    assert alpha.shape == inputs.shape
    assert not alpha[labels == 0].any()
    assert labels.tolist() == [kind for kind in range(settings.classes) for _ in range(6)]
    originals = inputs[labels == 0]
    for kind in range(1, settings.classes):
        changed = inputs[labels == kind] != originals
        assert changed.any((1, 2, 3)).sum() >= 4
        assert not (changed & (alpha[labels == kind] == 0)).any()
        if variant == "anatpaste":
            assert not (changed & ~masks).any()


def test_fresh_masks_are_found_at_every_draw(phantoms, cache):
    settings = Settings(size=64, batch=4, fresh_masks=True)
    dataset = data.load_dataset(data.Source(phantoms, cache), read_split(phantoms), settings)
    assert dataset.masks == {}
    source = train.Batches(dataset.images["train"], None, settings, Runtime(torch.device("cpu")))
    inputs, labels, _ = Augmenter(settings)(*source(0))
    assert (inputs[labels == 1] != inputs[labels == 0]).any()


def test_jitter_is_that_of_color_jitter_and_covers_its_range():
    image = torch.randint(40, 200, (1, 1, 32, 32), dtype=torch.uint8)
    many = image.expand(2000, 1, 32, 32)
    out = jitter(many, 0.1, torch.Generator().manual_seed(0))
    factors = out.float().mean((1, 2, 3)) / image.float().mean()
    assert 0.895 < factors.min() < 0.905
    assert 1.095 < factors.max() < 1.105
    spread = out.float().std((1, 2, 3)) / image.float().std() / factors
    assert 0.89 < spread.min() < 0.91
    assert 1.09 < spread.max() < 1.11
    assert torch.equal(jitter(image, 0.0, torch.Generator()), image)


def test_masks_are_found_at_256_pixels(phantoms, cache):
    from anatpaste_aug import lung_mask

    entries = read_split(phantoms).train
    view = View(64, masked=True)
    native = data.load_images(data.Source(phantoms, cache), entries, View(256)).images
    small = data.load_images(data.Source(phantoms, cache), entries, view).masks
    full = np.stack([lung_mask(image) for image in native])
    shares = full.reshape(len(full), 64, 4, 64, 4).mean((2, 4))
    decided = abs(shares - 0.5) > 0.01  # Pillow rounds a half its own way
    assert set(np.unique(small)) == {0, 1}
    assert (small.astype(bool) == (shares >= 0.5))[decided].all()
    assert small.any((1, 2)).mean() > 0.8


@pytest.mark.usefixtures("_no_report")
@pytest.mark.parametrize(
    ("crop", "count"), [((), 12 + 8), (("--crop", "--tone", "lungs"), 12 + 8 + 10)]
)
def test_the_robust_mask_is_used_once_an_image(crop, count, phantoms, cache, tmp_path, monkeypatch):
    import anatpaste_aug

    options = ("--data", phantoms, "--cache", tmp_path, "--out", tmp_path, *TINY, *crop)
    seen = []

    def robust(image, return_quality):
        seen.append(image.shape)
        return np.ones(image.shape, bool), 1.0

    monkeypatch.setattr(anatpaste_aug, "lung_mask_robust", robust)
    assert main("train", *options, "--mask", "robust", "--epochs", "1", "--updates", "1") == 0
    assert seen == [(256, 256)] * count


def _features(count, seed):
    """Make features of nothing, as `embed` gives them."""
    draw = torch.Generator().manual_seed(seed)
    found = {"logit": torch.randn(count, generator=draw)}
    for stage, width in ((1, 64), (2, 128), (3, 256), (4, 512)):
        pooled = torch.randn(count, width, generator=draw) + 1
        found[f"pool{stage}"] = torch.nn.functional.normalize(pooled)
        if stage < 4:
            found[f"cells{stage}"] = torch.randn(count, 16, width, generator=draw)
    return found


def test_scores_are_scikit_learns():
    normal, pasted, others = _features(40, 0), _features(40, 1), _features(7, 2)
    scorer = Scorer.fit(normal, pasted, tuple(SCORES))
    scores = scorer.score(others)
    assert tuple(scores) == tuple(SCORES)
    values = {name: found.double().numpy() for name, found in normal.items()}
    far = {name: found.double().numpy() for name, found in pasted.items()}
    asked = {name: found.double().numpy() for name, found in others.items()}

    def distance(fitted, given):
        return np.sqrt(LedoitWolf().fit(fitted).mahalanobis(given))

    kernels = KernelDensity(kernel="gaussian", bandwidth=1).fit(values["pool4"])
    np.testing.assert_allclose(scores["kde"], -kernels.score_samples(asked["pool4"]))
    alone = distance(values["pool4"], asked["pool4"])
    np.testing.assert_allclose(scores["gaussian"], alone, rtol=1e-6)
    np.testing.assert_allclose(
        scores["pooled3"],
        distance(values["pool3"], asked["pool3"]) - distance(far["pool3"], asked["pool3"]),
        atol=1e-6,
    )
    cells = [
        [distance(kind["cells2"][:, place], asked["cells2"][:, place]) for place in range(16)]
        for kind in (values, far)
    ]
    np.testing.assert_allclose(scores["plain2"], np.mean(cells[0], 0), rtol=1e-6)
    difference = np.mean(cells[0], 0) - np.mean(cells[1], 0)
    np.testing.assert_allclose(scores["places2"], difference, atol=1e-6)
    likeness = np.sort(asked["pool4"] @ values["pool4"].T)[:, -5:]
    np.testing.assert_allclose(scores["nearest"], 1 - likeness.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(scores["logit"], asked["logit"])
    widths = {feature: values.shape[-1] for feature, values in normal.items()}
    loaded = Scorer(tuple(SCORES), widths, 40)
    loaded.load_state_dict(scorer.state_dict())
    again = loaded.score(others)
    for name in SCORES:
        np.testing.assert_array_equal(again[name], scores[name])


def test_features_of_one_value_are_refused():
    same = {name: found[:1].expand(9, *found.shape[1:]) for name, found in _features(1, 0).items()}
    with pytest.raises(PipelineError, match="all normal images are the same"):
        Scorer.fit(same, None, ["gaussian"])


def test_the_interval_covers_and_the_threshold_separates():
    rng = np.random.default_rng(0)
    truth = np.arange(400) % 2 == 1
    scores = rng.normal(size=400) + truth  # the true AUC is 0.760
    result = measure(scores, truth)
    assert result == measure(scores, truth)
    low, high = result["auc_interval"]
    assert low < 0.76 < high
    assert 0.06 < high - low < 0.13
    assert best_threshold([1, 2, 3, 4], [False, False, True, True]) == 3
    for truth in ([True, True], [False, False]):
        with pytest.raises(ValueError, match="needs normal and abnormal"):
            measure([1.0, 2.0], truth)


def test_the_network_is_as_published():
    network = Network(Settings())
    shapes = [tuple(layer.weight.shape) for layer in network.head if hasattr(layer, "weight")]
    assert shapes == [(512, 512), (512,), (128, 512), (128,), (2, 128)]
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 32, 32)
    scaled = prepare(images)
    assert scaled.shape == (2, 3, 32, 32)
    assert scaled.amin().item() == -1
    assert scaled.amax().item() == 1
    assert network.see(scaled)[0].shape == (2, 512)
    deep = Network(Settings(variant="3way", head_layers=8)).head
    assert len([layer for layer in deep if isinstance(layer, torch.nn.Linear)]) == 10


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 8), ("epochs", -1), ("tone", "warm"), ("variant", "other"), ("mask", "best")],
)
def test_settings_are_checked(name, value):
    with pytest.raises(PipelineError, match=f"{name} must"):
        Settings(**{name: value})


def test_fresh_masks_are_the_published_ones():
    with pytest.raises(PipelineError, match="mask 'robust' and fresh_masks cannot be combined"):
        Settings(mask="robust", fresh_masks=True)


def test_a_checkpoint_of_tensors_and_text_only(tmp_path):
    path = tmp_path / "file.safetensors"
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.tensor(0.5), "c": torch.zeros(0)}
    save_tensors(path, tensors, {"epochs": [1, 2.5, None]})
    loaded, info = load_tensors(path, {})
    assert info == {"epochs": [1, 2.5, None]}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with pytest.raises(PipelineError, match="cannot read"):
        load_tensors(tmp_path / "none", {})


def test_the_cache_is_keyed_by_content_and_size(phantoms, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    source = sorted((phantoms / "train" / "normal").iterdir())
    for name, path in zip("ab", source, strict=False):
        (folder / f"{name}.png").write_bytes(path.read_bytes())
    entries = [Entry("a.png", False), Entry("b.png", False)]
    cache = tmp_path / "cache"

    def load(size):
        found = data.load_images(data.Source(folder, cache), entries, View(size))
        return found.images, len(list(cache.glob("*.npy")))

    images, count = load(32)
    assert (images.shape, count) == ((2, 32, 32), 1)
    np.testing.assert_array_equal(images[0], data.decode(folder / "a.png", View(32)).image)
    assert load(32)[1] == 1
    assert load(48)[1] == 2
    (folder / "a.png").rename(folder / "c.png")
    (folder / "c.png").replace(folder / "a.png")  # a new date, the same content
    assert load(32)[1] == 2
    (folder / "a.png").write_bytes(source[5].read_bytes())
    images, count = load(32)
    np.testing.assert_array_equal(images[0], data.decode(source[5], View(32)).image)
    assert count == 3


# Views, relative scores, and runs without training or labels.


@pytest.fixture(scope="module")
def cropped(phantoms, cache, tmp_path_factory):
    """Return the folder of a finished run of the preset `laptop`, made tiny."""
    out = tmp_path_factory.mktemp("cropped")
    options = ("--data", phantoms, "--cache", cache, "--out", out)
    assert main("train", *options, *LAPTOP, "--seeds", "5") == 0
    return out / "mix" / "seed5"


@pytest.fixture
def normals(phantoms, tmp_path):
    """Return a folder of nothing but normal images."""
    folder = tmp_path / "normals"
    folder.mkdir()
    for path in (phantoms / "train" / "normal").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_view_is_the_lungs_in_their_own_tones():
    from anatpaste_aug import lung_crop
    from anatpaste_aug.data import phantom_radiograph

    image = phantom_radiograph(256, rng=3)
    assert np.array_equal(View(256).see(image)[0], image)
    part, inside = lung_crop(image, return_mask=True)
    cut = View(64, crop=True, mask="robust", masked=True)
    expected = Image.fromarray(part).resize((64, 64), Image.Resampling.BILINEAR)
    difference = abs(cut.see(image)[0].astype(int) - np.asarray(expected))
    assert difference[1:-1, 1:-1].max() <= 1  # at the border, the crop sees what lies beyond
    _, _, mask = cut.see(image)
    assert mask.dtype == bool
    assert mask.mean() == pytest.approx(inside.mean(), abs=0.01)

    toned = View(64, crop=True, tone="lungs", mask="robust")
    low, high = np.percentile(toned.see(image)[0][mask], (5, 95))
    assert (low, high) == pytest.approx((64, 192), abs=3)
    darker = (image * 0.6 + 20).round().astype(np.uint8)  # tone and contrast make no difference
    assert abs(toned.see(darker)[0].astype(int) - toned.see(image)[0]).mean() < 4
    blank = np.full((70, 50), 7, np.uint8)
    for view in (cut, toned, View(64, tone="lungs")):
        assert view.see(blank)[0].shape == (64, 64)


@pytest.mark.parametrize("seed", range(8))
def test_the_part_that_is_seen_is_that_of_the_library(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(16, 300, 2)
    mask = rng.random((height, width)) < (0, 3 / height / width)[seed % 2]
    rows, columns = crop_window(mask, CROP_MARGIN, square=False)
    left, top, right, bottom = View(64, crop=True)._box(mask)
    assert (left * width, right * width) == pytest.approx((columns.start, columns.stop))
    assert (top * height, bottom * height) == pytest.approx((rows.start, rows.stop))


def turn(path):
    with Image.open(path) as image:
        image.rotate(180).save(path)


@pytest.fixture
def turned(phantoms, tmp_path):
    """Return a data set of which one image of each part is upside down."""
    folder = tmp_path / "turned"
    shutil.copytree(phantoms, folder)
    for part in ("train", "valid", "test"):
        turn(folder / part / "normal" / "phantom0001.png")
    return folder


@pytest.mark.usefixtures("_no_report")
@pytest.mark.parametrize(
    ("options", "parts", "count"),
    [
        (LAPTOP, ("train", "valid", "test"), 30),
        ([*TINY, "--crop", "--mask", "robust"], ("train", "valid", "test"), 30),
        ([*TINY, "--tone", "lungs", "--mask", "robust"], ("train", "valid", "test"), 30),
        ([*TINY, "--mask", "robust"], ("train", "valid"), 20),  # those that need a mask
    ],
)
def test_images_without_upright_lungs_are_named_once(
    options, parts, count, turned, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(commands, "write_report", lambda *arguments: None)
    names = ", ".join(f"{part}/normal/phantom0001.png" for part in parts)
    few = "warning: scores are standardized by 4 normal images"
    others = [few] if options is LAPTOP else []
    told = f"warning: no upright pair of lungs in {len(parts)} of {count} images: {names}"
    given = ("--data", turned, "--cache", tmp_path / "cache", *options, "--epochs", "0")
    for out in (tmp_path / "first", tmp_path / "second"):  # looked at, then from the cache
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert main("train", *given, "--out", out) == 0
        assert capsys.readouterr().err.splitlines() == [told, *others]
        assert not [one for one in caught if "upright" in str(one.message)]
    (folder,) = out.glob("*/seed0")
    assert main("evaluate", folder, "--quiet") == 0
    assert told in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("crop", [False, True])
def test_lungs_are_told_of_by_file_where_others_are_skipped(crop, turned, cache):
    settings = Settings(size=32, crop=crop, mask="robust")
    (turned / "train" / "normal" / "phantom0000.png").write_bytes(b"no image")
    split = read_split(turned)
    for _ in range(2):  # looked at, then from the cache
        dataset = data.load_dataset(data.Source(turned, cache, skip_bad=True), split, settings)
        assert len(dataset.split.train) == 11
        names = {name for name, upright in dataset.upright.items() if not upright}
        parts = ("train", "valid", "test") if settings.crop else ("train", "valid")
        assert names == {f"{part}/normal/phantom0001.png" for part in parts}
        assert dataset.upright.keys() == {e.path for part in parts for e in dataset.split[part]}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_predict_names_images_without_upright_lungs(form, cropped, trained, turned, capsys):
    folder, bad = turned / "test" / "normal", turned / "bad.png"
    bad.write_bytes(b"no image")
    options = ("--quiet", "--format", form)
    assert main("predict", cropped, turned / "valid" / "normal", *options) == 0
    before = capsys.readouterr().out.splitlines()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main("predict", cropped, folder, bad, *options) == 3
    captured = capsys.readouterr()
    assert not [one for one in caught if "upright" in str(one.message)]
    assert captured.err.splitlines()[1:] == [
        f"warning: no upright pair of lungs in 1 of 5 images: {folder / 'phantom0001.png'}",
        "1 of 6 images could not be read",
    ]
    lines = captured.out.splitlines()
    if form == "csv":
        assert lines[0] == before[0] == "path,score,percentile,abnormal,network,kind,heat_map"
    else:
        assert json.loads(lines[1]).keys() == json.loads(before[1]).keys()
        assert "upright" not in json.loads(lines[1])
    assert main("predict", trained, folder, *options) == 0  # sees whole images, as they are
    assert "upright" not in capsys.readouterr().err


def test_the_first_ten_are_named(capsys):
    data.tell_of_masks(dict.fromkeys("abc", True), "robust")
    assert capsys.readouterr().err == ""
    upright = {"a\n": False, **{str(index): index > 11 for index in range(1, 20)}}
    data.tell_of_masks(upright, "robust")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(r"lungs in 12 of 20 images: a\n, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...")


def test_reframing_moves_images_and_masks_together():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(200, 1, 64, 64, dtype=torch.bool)
    mask[..., 24:40, 24:40] = True
    images = mask.to(torch.uint8) * 200
    moved, lungs = reframe(images, mask, 0.1, generator)
    assert ((moved > 100) == lungs).float().mean() > 0.995
    centers = (lungs * torch.arange(64)).sum((1, 2, 3)) / lungs.sum((1, 2, 3))
    assert 2.5 < (centers - 31.5).abs().max() < 4.5  # a tenth of the half side, and zoom
    assert reframe(images, None, 0.1, generator)[1] is None


def test_roughening_blurs_half_and_adds_noise_up_to_its_limit():
    flat = torch.full((400, 1, 32, 32), 128, dtype=torch.uint8)
    deviations = roughen(flat, 6.0, torch.Generator().manual_seed(0)).float().std((1, 2, 3))
    assert deviations.min() < 0.6
    assert 5.5 < deviations.max() < 6.5
    stripes = flat.clone()
    stripes[..., ::2] = 0
    contrast = roughen(stripes, 0.0, torch.Generator().manual_seed(0)).float().std((1, 2, 3))
    assert 0.4 < (contrast < 63.9).float().mean() < 0.6
    assert contrast.min() > 64 * 0.3  # what a box of three leaves of stripes


def test_the_laptop_preset_leaves_all_scores(cropped):
    metrics = evaluate.load_metrics(cropped)
    assert set(metrics["test"]) == {"trained", "untrained", "both"}
    assert set(metrics["test"]["trained"]) == {"mean", *SCORES}
    assert set(metrics["test"]["both"]) == {"mean", *SCORES} - {"logit"}
    assert metrics["validation"].keys() == metrics["test"].keys()
    scored = {"network": "both", "score": "mean", "epoch": metrics["epochs"][-1]["epoch"]}
    assert metrics["scored"] == scored
    text = (cropped / "report.html").read_text()
    assert "relative by place, stage 2" in text
    assert "mean of Gaussian and relative (the score)" in text
    detector = Detector.load(cropped / "detector.safetensors")
    assert len(detector.normal_scores) == 4
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    every = detector.score_all(images)
    np.testing.assert_allclose(detector.score(images), every["both"]["mean"])
    for name in ("kde", "places3"):
        parts = []
        for network in ("trained", "untrained"):
            mean, deviation = detector.standards[network][name]
            parts.append((every[network][name] - mean) / deviation)
        np.testing.assert_allclose(every["both"][name], sum(parts) / 2)
    for network in ("trained", "untrained"):
        names = ["gaussian", "pooled2", "pooled3", "pooled4", "places1", "places2", "places3"]
        standards = detector.standards[network]
        scaled = [(every[network][n] - standards[n][0]) / standards[n][1] for n in names]
        by_hand = np.mean(scaled, axis=0)
        np.testing.assert_allclose(every[network]["mean"], by_hand)


def test_evaluate_repeats_the_numbers_of_all_scores(cropped, capsys):
    before = evaluate.load_metrics(cropped)
    assert main("evaluate", cropped, "--quiet") == 0
    assert evaluate.load_metrics(cropped) == before


def test_without_epochs_nothing_is_trained(phantoms, cache, tmp_path, capsys):
    options = ("--data", phantoms, "--cache", cache, "--out", tmp_path, *LAPTOP, "--epochs", "0")
    assert main("train", *options) == 0
    folder = tmp_path / "mix" / "seed0"
    metrics = evaluate.load_metrics(folder)
    assert set(metrics["test"]) == {"untrained"}
    assert metrics["scored"] == {"network": "untrained", "score": "mean", "epoch": None}
    assert {path.name for path in folder.iterdir()} >= {"detector.safetensors", "report.html"}
    assert not (folder / "checkpoint.safetensors").exists()
    assert main("train", *options, "--resume") == 0


@pytest.mark.parametrize("preset", ["laptop", "quick"])
def test_normal_images_alone_are_enough(preset, normals, tmp_path, capsys):
    options = ("--data", normals, "--out", tmp_path / "out", *TINY, "--preset", preset)
    assert main("train", *options, "--seeds", "0", "1") == 0
    told = capsys.readouterr()
    assert "nothing tested" in told.out
    (folder,) = (tmp_path / "out").glob("*/seed0")
    metrics = evaluate.load_metrics(folder)
    assert metrics["data"]["images"] == {"train": 10, "valid": 2, "test": 0}
    assert metrics["test"] is None
    network, score = ("both", "mean") if preset == "laptop" else ("trained", "gaussian")
    assert (metrics["scored"]["network"], metrics["scored"]["score"]) == (network, score)
    assert 0 <= metrics["validation"][network][score] <= 1
    assert metrics["validated_by"] == "pasted"
    assert "between normals and themselves with something pasted in" in told.out
    few = "warning: scores are standardized by 2 normal images" in told.err
    assert few == (preset == "laptop")
    assert not (folder / "scores.csv").exists()
    assert "no abnormal images to validate on" in (folder / "report.html").read_text()
    image = min(normals.iterdir())
    maps = ("--heat-maps", tmp_path / "maps")
    assert main("predict", folder, image, "--quiet", "--format", "jsonl", *maps) == 0
    assert len(all_files(tmp_path / "maps")) == 1
    row = json.loads(capsys.readouterr().out)
    assert (row["network"], row["kind"]) == (network, score)
    assert main("evaluate", folder, "--quiet") == 0
    assert main("compare", *options, "--resume", "--variants", metrics["settings"]["variant"]) == 0


def test_parts_of_the_plain_layout_may_be_missing(phantoms, tmp_path):
    names = ("train/normal", "valid/normal")
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        for path in (phantoms / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    split = read_split(tmp_path)
    assert [len(split[part]) for part in ("train", "valid", "test")] == [12, 4, 0]
    for path in (tmp_path / "valid" / "normal").iterdir():
        path.unlink()
    with pytest.raises(PipelineError, match="validation needs at least 2 normal images"):
        read_split(tmp_path)
    (tmp_path / "valid" / "normal").rmdir()
    (tmp_path / "valid").rmdir()
    first, other = (read_split(tmp_path, seed=seed) for seed in (0, 1))
    assert [len(first[part]) for part in ("train", "valid", "test")] == [10, 2, 0]
    assert not {e.path for e in first.train} & {e.path for e in first.valid}
    assert first.valid != other.valid


def test_what_scores_are_fitted_to_is_made_in_pieces(monkeypatch):
    monkeypatch.setattr(augment, "PIECE", 5 * 32 * 32)
    images = torch.arange(12, dtype=torch.uint8)[:, None, None, None] * torch.ones(1, 1, 32, 32)
    images, masks = (20 * images).to(torch.uint8), torch.zeros(12, 1, 32, 32, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[:, : 2 * index + 4] = True
    generator = torch.Generator().manual_seed(0)
    seen, moved = second_view(images, masks, generator)
    assert seen.shape == moved.shape == images.shape
    areas = moved.sum((1, 2, 3))
    assert (areas[4:] > areas[:-4]).all()
    assert (seen[4:].float().mean((1, 2, 3)) > seen[:-4].float().mean((1, 2, 3))).all()
    assert second_view(images, None, generator)[1] is None

    augmenter, sizes = Augmenter(Settings(variant="mix", size=32, mask="robust")), []

    def paste(part, inside, generator):
        sizes.append((len(part), len(inside)))
        return part, part

    augmenter.contrast = paste
    assert torch.equal(augmenter.abnormal(images, masks, generator), images)
    assert sizes == [(5, 5), (5, 5), (2, 2)]


def test_training_images_are_not_copied(phantoms, cache):
    settings = Settings(size=32)
    dataset = data.load_dataset(data.Source(phantoms, cache), read_split(phantoms), settings)
    assert dataset.normals("train")[0] is dataset.images["train"]
    assert dataset.normals("train")[1] is dataset.masks["train"]
    assert [len(found) for found in dataset.normals("valid")] == [4, 4]


def test_scores_are_fitted_to_two_views_and_measured_against_the_validation_part(phantoms, cache):
    settings = Settings(
        variant="opacity", size=32, crop=True, epochs=0, mask="robust", scores="all"
    )
    dataset = data.load_dataset(data.Source(phantoms, cache), read_split(phantoms), settings)
    reference = Reference(settings, dataset)
    assert len(reference.normal) == len(reference.pasted) == 2 * 12
    np.testing.assert_array_equal(reference.normal[:12], dataset.images["train"])
    detector, aucs = fit_detector({"untrained": Network(settings)}, settings, dataset)
    scores, labels = detector.score(dataset.images["valid"]), dataset.labels("valid")
    np.testing.assert_allclose(detector.normal_scores, np.sort(scores[~labels]))
    assert aucs["untrained"]["mean"] == auc_between(scores[~labels], scores[labels])
    assert detector.share_below(detector.normal_scores).tolist() == [0, 0.25, 0.5, 0.75]
    # A score's standard is that of the validation normals.
    every = detector.score_all(dataset.images["valid"][~labels])["untrained"]["places2"]
    expected = (every.mean(), every.std())
    assert detector.standards["untrained"]["places2"] == pytest.approx(expected)


def test_stand_ins_are_not_adjusted_for_what_abnormal_images_have(phantoms, cache):
    settings = Settings(variant="cutpaste", size=32, epochs=0, scores="all")
    dataset = data.load_dataset(data.Source(phantoms, cache), read_split(phantoms), settings)
    normals = tuple(entry for entry in dataset.split.valid if not entry.abnormal)
    images = {**dataset.images, "valid": dataset.normals("valid")[0]}
    bare = data.Dataset(Split("normals", dataset.split.train, normals, ()), images, {}, ())
    settings = dataclasses.replace(settings, adjust="brightness")
    _, aucs = fit_detector({"untrained": Network(settings)}, settings, bare)
    assert all(0 <= auc <= 1 for auc in aucs["untrained"].values())


def test_values_that_are_all_the_same_are_not_divided_by_rounding():
    assert standard(np.full(6, 0.1)) == pytest.approx((0.1, 1.0))
    assert standard(np.array([0.0, 2.0])) == (1.0, 1.0)
    assert standard(np.array([0.0, 2e-6])) == pytest.approx((1e-6, 1e-6))


def test_transfer_fits_to_the_other_normals(cropped, phantoms, tmp_path, capsys):
    more = tmp_path / "more"
    write_phantoms(more, 64, seed=1, counts={("train", "normal"): 30})
    folder, abnormal = more / "train" / "normal", phantoms / "test" / "abnormal"
    turn(folder / "phantom0001.png")
    output = tmp_path / "transfer.json"
    options = ("--normal", folder, "--abnormal", abnormal, "--quiet", "--output", output)
    assert main("transfer", cropped, *options, "--folds", "2") == 1
    assert "folds must be 2 or more and leave 20 normals, got 2" in capsys.readouterr().err
    assert main("transfer", cropped, *options, "--folds", "0") == 1
    assert "folds must be 2 or more and leave 20 normals, got 0" in capsys.readouterr().err
    assert main("transfer", cropped, *options, "--folds", "3") == 0
    told = "warning: no upright pair of lungs in 1 of 35 images"
    printed = capsys.readouterr()
    assert printed.err == f"{told}: {folder / 'phantom0001.png'}\n"
    twice = ("--normal", folder, min(folder.iterdir()))
    assert main("transfer", cropped, *options, "--folds", "3", *twice) == 1
    assert "an image is given twice" in capsys.readouterr().err
    result = json.loads(output.read_text())
    assert result["scored"] == {"network": "both", "score": "mean"}
    assert result["images"] == {"normal": 30, "abnormal": 5}
    assert set(result["auc"]) == {"trained", "untrained", "both"}
    values = result["auc"]["both"]["places2"]["values"]
    assert len(values) == 3
    assert result["auc"]["both"]["places2"]["mean"] == pytest.approx(np.mean(values))
    pooled = result["pooled"]["both"]["places2"]
    assert min(values) <= pooled["auc"] <= max(values)
    assert pooled["adjusted"].keys() == result["shortcuts"].keys() > {"brightness", "bytes"}
    found = strongest(result["shortcuts"])
    told = f"The strongest shortcut, {WORDS[found[0]]}, has {found[1]['auc']:.3f} alone"
    assert told in printed.out
    scored = result["pooled"]["both"]["mean"]
    assert f"all folds together: {scored['auc']:.3f}. {told}" in printed.out
    assert (
        f"adjusted for it, the score has {scored['adjusted'][found[0]]['auc']:.3f}" in printed.out
    )
    (folder / "bad.png").write_bytes(b"no image")
    assert main("transfer", cropped, *options, "--folds", "3") == 1
    assert "bad.png cannot be read" in capsys.readouterr().err
