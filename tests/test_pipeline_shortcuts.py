"""What a detection figure is worth: shortcuts, and AUCs that are adjusted for a covariate."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
from PIL import Image
from pipeline import PACKAGES, need

need(*PACKAGES)

from sklearn.metrics import roc_auc_score  # noqa: E402

from examples.pretrain_gde import cli  # noqa: E402
from examples.pretrain_gde.data import Source, load_dataset  # noqa: E402
from examples.pretrain_gde.errors import PipelineError  # noqa: E402
from examples.pretrain_gde.evaluate import caution, load_metrics, result_of, worth  # noqa: E402
from examples.pretrain_gde.metrics import measure, measure_adjusted  # noqa: E402
from examples.pretrain_gde.readers import read_split  # noqa: E402
from examples.pretrain_gde.settings import Settings  # noqa: E402
from examples.pretrain_gde.shortcuts import (  # noqa: E402
    WORDS,
    describe,
    judge,
    read_groups,
    strongest,
)

RNG = np.random.default_rng
COUNTS = {"train": (80, 0), "valid": (20, 20), "test": (60, 60)}


# The plain AUC and its interval.


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_auc_is_scikit_learns(levels):
    rng = RNG(levels)
    truth = rng.random(60) < 0.4
    scores = rng.integers(levels, size=60) + truth * levels / 4
    assert measure(scores, truth)["auc"] == pytest.approx(roc_auc_score(truth, scores))


def test_the_interval_is_delongs_worked_out_by_hand():
    # Shares of the normals (1, 2, 3, 4) below each abnormal score, and of these above each normal.
    result = measure([1, 2, 3, 4, 2.5, 3, 5], [False] * 4 + [True] * 3)
    below, above = np.array([2, 2.5, 4]) / 4, np.array([3, 3, 1.5, 1]) / 3
    auc, error = 8.5 / 12, np.sqrt(below.var(ddof=1) / 3 + above.var(ddof=1) / 4)
    assert result["auc"] == pytest.approx(auc)
    logits = np.log(auc / (1 - auc)) + np.array([-1.96, 1.96]) * error / (auc * (1 - auc))
    np.testing.assert_allclose(result["auc_interval"], 1 / (1 + np.exp(-logits)))
    # Where all are told: the exact limit of the rarer class.
    told = measure([1, 2, 3, 4, 5], [False, False, False, True, True])
    assert told == {"auc": 1, "auc_interval": [pytest.approx(0.025**0.5), 1]}
    low, high = measure([1, 2, 3, 4, 2.5], [False] * 4 + [True])["auc_interval"]
    assert low < 0.15 < 0.85 < high  # one abnormal image says little


@pytest.mark.parametrize("adjusted", [None, "groups", "number"])
def test_the_intervals_cover(adjusted):
    covered = 0
    for seed in range(200):
        rng = RNG(seed)
        truth = rng.random(150) < 0.5
        site = rng.random(150) < 0.3 + 0.4 * truth
        x = site if adjusted == "groups" else rng.normal(size=150) + truth
        scores = rng.normal(size=150) + truth + (3 * x if adjusted else 0)
        covariate = np.where(site, "a", "b") if adjusted == "groups" else x
        found = measure_adjusted(scores, truth, covariate) if adjusted else measure(scores, truth)
        low, high = found["auc_interval"]
        covered += low <= 0.7602 <= high
    assert 180 <= covered <= 198  # of 190 expected


# Adjusted for groups.


def test_within_groups_the_mean_is_weighted_by_abnormal_images():
    # PA: normals 1 to 5, abnormal 4.5 (4 of 5 below) and 6 (5 of 5); AP: 11 to 15, and 10 (0 of 5).
    normal = [1, 2, 3, 4, 5, 11, 12, 13, 14, 15]
    views = np.array(["PA"] * 5 + ["AP"] * 5 + ["PA", "PA", "AP"])
    scores, truth = np.array([*normal, 4.5, 6, 10.0]), np.arange(13) >= 10
    found = measure_adjusted(scores, truth, views)
    assert found["auc"] == pytest.approx((0.8 + 1 + 0) / 3)
    assert (found["counted"], found["left_out"]) == (3, 0)
    assert found["groups"] == {
        "AP": {"normal": 5, "abnormal": 1, "auc": 0},
        "PA": {"normal": 5, "abnormal": 2, "auc": pytest.approx(0.9)},
    }


def test_planted_offsets_of_groups_are_taken_out():
    rng = RNG(5)
    site = rng.integers(3, size=900)
    truth = rng.random(900) < np.array([0.2, 0.5, 0.8])[site]
    noise = rng.normal(size=900)
    names = np.array(["a", "b", "c"])[site]
    shortcut = measure_adjusted(noise + 5 * site, truth, names)
    assert measure(noise + 5 * site, truth)["auc"] > 0.75
    assert shortcut["auc"] == pytest.approx(0.5, abs=0.04)
    assert shortcut["auc_interval"][0] < 0.5 < shortcut["auc_interval"][1]
    real = measure_adjusted(noise + 5 * site + truth, truth, names)  # 0.760 within each
    assert real["auc"] == pytest.approx(0.76, abs=0.04)


def test_small_groups_and_unknown_ones_are_named_and_left_out():
    covariate = np.array(["a"] * 5 + ["b"] * 4 + ["a", "b", "c", ""])
    truth = np.arange(13) >= 9
    found = measure_adjusted(np.arange(13.0), truth, covariate)
    assert (found["auc"], found["counted"], found["left_out"]) == (1, 1, 3)
    assert found["groups"]["b"] == {"normal": 4, "abnormal": 1, "auc": None}
    assert found["groups"]["c"] == {"normal": 0, "abnormal": 1, "auc": None}
    nothing = measure_adjusted(np.arange(13.0), truth, np.array(["a"] * 9 + ["b"] * 4))
    assert (nothing["auc"], nothing["auc_interval"], nothing["counted"]) == (None, None, 0)


# Adjusted for a number.


def test_images_are_placed_among_normals_of_the_same_number():
    # At x = 0, 1, 2, 3: normals 10 x^2, twice, and 1 to 3 below and above.
    x = np.repeat(np.arange(4.0), 8)
    scores = 10 * x**2 + np.tile([-3, -2, -1, 0, 0, 1, 2, 3], 4)
    ill, at = np.array([4, 14, 44, 94.0]), np.arange(4.0)
    truth = np.arange(38) >= 32
    covariate = np.concatenate([x, at, [3.1, np.nan]])

    def adjusted(values):
        return measure_adjusted(np.concatenate([scores, values, [999, 999]]), truth, covariate)

    found = adjusted(ill)
    assert (found["counted"], found["left_out"]) == (4, 2)  # one is beyond, one unknown
    assert measure(np.concatenate([scores, ill]), truth[:36])["auc"] < 0.7
    # Above all eight at its place, in the middle, alike with the seventh, below all.
    for below, share in ((0, 1), (4, 0.5), (2, 6.5 / 8), (8, 0)):
        assert adjusted(ill - below)["auc"] == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize(
    "scale", [lambda x: x, lambda x: np.exp(x / 2)], ids=["plain", "long tail"]
)
@pytest.mark.parametrize(("real", "auc"), [(0, 0.5), (1, 0.76), (2.5, 0.961)])
def test_adjusted_aucs_are_not_biased(real, auc, scale):
    found = []
    for seed in range(30):
        rng = RNG(seed)
        truth = np.arange(200) % 2 == 1
        x = rng.normal(size=200) + truth
        scores = scale(3 * x + rng.normal(size=200) + real * truth)
        found.append(measure_adjusted(scores, truth, x)["auc"])
    assert np.mean(found) == pytest.approx(auc, abs=0.025 if real < 2 else 0.01)


def test_a_distance_that_rises_to_both_sides_is_taken_out():
    rng = RNG(2)
    truth = np.arange(4000) % 2 == 1
    sharpness = rng.normal(size=4000) + truth
    scores = sharpness**2 + rng.normal(size=4000)
    assert measure(scores, truth)["auc"] > 0.6
    assert measure_adjusted(scores, truth, sharpness)["auc"] == pytest.approx(0.5, abs=0.03)


def test_a_planted_number_is_taken_out():
    rng = RNG(1)
    truth = np.arange(1200) % 2 == 1
    sharpness = rng.normal(size=1200) + truth
    noise = rng.normal(size=1200)
    shortcut = 3 * sharpness + noise * (2 + 0.3 * sharpness)
    plain, adjusted = measure(shortcut, truth), measure_adjusted(shortcut, truth, sharpness)
    assert plain["auc"] > 0.68
    assert adjusted["auc"] == pytest.approx(0.5, abs=0.03)
    real = measure_adjusted(3 * sharpness + noise + truth, truth, sharpness)
    assert real["auc"] == pytest.approx(0.76, abs=0.03)


@pytest.mark.parametrize("scores", [lambda x: 3 * x, lambda x: np.full(len(x), 0.1)])
def test_nothing_is_left_of_a_number_itself_or_of_a_constant(scores):
    truth = np.arange(200) >= 80
    x = RNG(2).normal(size=200) + truth
    found = measure_adjusted(scores(x), truth, x)
    assert found["auc"] == pytest.approx(0.5, abs=0.1)


def test_too_few_normals_make_no_model():
    found = measure_adjusted(np.arange(40.0), np.arange(40) >= 19, np.arange(40.0) % 5)
    assert (found["auc"], found["counted"], found["left_out"]) == (None, 0, 21)


# The numbers, and how well they do alone.


def test_images_are_described():
    stripes = np.tile(np.array([[0, 255]], np.uint8), (64, 32))
    padded = np.pad(np.full((100, 100), 128, np.uint8), ((0, 0), (0, 100)))
    numbers = dict(zip(WORDS, describe(padded, stripes, 5000), strict=True))
    assert numbers["brightness"] == pytest.approx(64 / 255, abs=0.01)
    assert numbers["contrast"] == pytest.approx(64 / 255, abs=0.01)
    assert numbers["border"] == pytest.approx(0.5, abs=0.01)
    assert numbers["aspect"] == 2
    assert numbers["bytes"] == 0.25
    assert numbers["seen_brightness"] == numbers["seen_contrast"] == pytest.approx(0.5)
    assert numbers["seen_sharpness64"] == pytest.approx(0.5)  # 1 along one axis, 0 along the other
    assert numbers["seen_sharpness32"] < 0.05  # too fine for that size
    assert numbers["seen_border"] == pytest.approx(1 / 64)
    black = dict(zip(WORDS, describe(0 * padded, stripes, 1), strict=True))
    assert black["border"] == 1


def test_shortcuts_are_judged_both_ways():
    rng = RNG(3)
    truth = np.arange(400) % 2 == 1
    parts = {}
    for part, labels in (("train", truth & False), ("valid", truth), ("test", truth)):
        parts[part] = {
            "darker": rng.normal(size=400) - labels,
            "either": rng.normal(size=400) * (1 + 4 * labels),
            "site": np.where(rng.random(400) < 0.2 + 0.6 * labels, "b", "a"),
            "same": np.ones(400),
        }
    found = judge(parts, truth, truth)
    assert set(found) == {"darker", "either", "site"}
    assert found["darker"]["way"] == "lower"
    assert found["darker"]["raw"]["auc"] == pytest.approx(0.76, abs=0.05)
    assert found["either"]["raw"]["auc"] < 0.6 < 0.8 < found["either"]["distance"]["auc"]
    assert found["site"]["way"] == "by group"
    assert found["site"]["raw"]["auc"] == found["site"]["distance"]["auc"] > 0.75
    assert strongest(found) == ("either", found["either"]["distance"])
    label = {part: {"kind": np.where(truth, "ill", "well")} for part in ("valid", "test")}
    label["train"] = {"kind": np.full(400, "well")}
    assert judge(label, truth, truth)["kind"]["raw"]["auc"] == 1
    assert strongest(judge(label, truth, truth)) is None  # it is told of, but no shortcut
    few = {
        p: {"few": np.where(np.arange(400) < 150, one["either"], np.nan)}
        for p, one in parts.items()
    }
    assert judge(few, truth, truth) == {}
    unlabelled = judge(parts, truth, truth & False)["darker"]
    assert (unlabelled["way"], unlabelled["raw"]) == (None, None)
    assert unlabelled["distance"] == found["darker"]["distance"]


# Tables of groups.


def _table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_table_gives_numbers_and_groups(tmp_path, capsys):
    images = {"train": [f"train/{i}.png" for i in range(12)], "test": ["test/t.png", "test/0.png"]}
    rows = [(f"train/{i}.png", 20 + i, "PA" if i % 2 else "AP", i % 2) for i in range(12)]
    rows += [("t.png", "", "AP", "")]
    found = read_groups(
        _table(tmp_path / "t.csv", [("file", "age", "view", "sex"), *rows]), (), images
    )
    np.testing.assert_array_equal(found["train"]["age"], 20.0 + np.arange(12))
    np.testing.assert_array_equal(found["train"]["sex"][:2], ["0", "1"])
    np.testing.assert_array_equal(found["test"]["view"], ["AP", ""])
    assert np.isnan(found["test"]["age"]).all()
    assert "says nothing of 1 of 14 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("name", "age"), ("a.png", 1)], "has no column file"),
        ([("file",), ("a.png",)], "must have rows, and columns of names of its own, got none"),
        ([("file", "age")], "must have rows"),
        ([("file", "bytes"), ("a.png", 1)], "columns of names of its own, got bytes"),
        ([("file", ""), ("a.png", 1)], "columns of names of its own, got none"),
        ([("file", "age"), ("b.png", 1)], "names none of the images"),
        ([("file", "age"), ("a.png", 1), ("a.png", 2)], "line 3: this file is given twice"),
        ([("file", "age"), ("c.png", 1)], "names c.png, as several images are called"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(rows, message, tmp_path):
    images = {"train": ["normal/a.png", "normal/c.png"], "test": ["other/c.png"]}
    with pytest.raises(PipelineError, match=message):
        read_groups(_table(tmp_path / "t.csv", rows), (), images)
    table = _table(tmp_path / "t.csv", [("file", "age"), ("a.png", 1)])
    with pytest.raises(PipelineError, match="has no column sex"):
        read_groups(table, ["sex"], images)
    with pytest.raises(PipelineError, match="columns of names of its own, got file"):
        read_groups(table, ["file"], images)


@pytest.mark.parametrize(
    ("chosen", "alone", "way", "told"),
    [
        (0.9, 0.84, "higher", ""),
        (0.9, 0.86, "higher", "One number, brightness, does nearly as well: "),
        (0.8, 0.86, "higher", "One number, brightness, does better: "),
        (0.8, 0.86, "by group", "One column, brightness, does better: "),
        (0.5, 0.52, "higher", ""),  # neither tells them
    ],
)
def test_what_is_cautioned_of(chosen, alone, way, told):
    result = {"auc": alone, "auc_interval": [alone - 0.05, alone + 0.05]}
    metrics = {
        "scored": {"network": "trained", "score": "kde"},
        "test": {"trained": {"kde": {"auc": chosen}}},
        "shortcuts": {"brightness": {"way": way, "raw": result, "distance": None}},
    }
    assert caution(metrics).startswith(told)
    assert bool(caution(metrics)) == bool(told)


# Runs.


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Make two data sets whose abnormal images are darker; in one they have a blob besides."""
    rng = RNG(0)
    across = np.arange(64) - 32
    blob = 60 * np.exp(-(across**2 + (across[:, None] - 8) ** 2) / 50)
    folders = {}
    for kind in ("shortcut", "signal"):
        folders[kind] = folder = tmp_path_factory.mktemp(kind)
        for part, counts in COUNTS.items():
            for ill in np.repeat([False, True], counts):
                image = rng.normal(100, 8, (64, 64)) + rng.normal(-14 if ill else 0, 14)
                image += blob * (ill and kind == "signal")
                where = folder / part / ("abnormal" if ill else "normal")
                where.mkdir(parents=True, exist_ok=True)
                path = where / f"{part}{len(list(folder.rglob('*.png')))}.png"
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    return folders


def _train(data, out, *options):
    """Score by an untrained network, as that is quick."""
    given = ["train", "--data", data, "--out", out, "--preset", "quick", "--variant", "cutpaste"]
    given += ["--size", 32, "--epochs", 0, "--device", "cpu", "--threads", 1, "--quiet", *options]
    assert cli.main([str(option) for option in given]) == 0
    return out / "cutpaste" / "seed0"


def test_a_planted_shortcut_is_found_out(planted, tmp_path, capsys):
    folder = _train(planted["shortcut"], tmp_path)
    metrics = load_metrics(folder)
    name, alone = strongest(metrics["shortcuts"])
    assert "brightness" in name
    assert metrics["shortcuts"][name]["way"] == "lower"
    assert alone["auc"] > 0.7
    found = result_of(metrics)
    assert abs(found["auc"] - 0.5) > 0.15
    low, high = found["adjusted"][name]["auc_interval"]
    assert low < 0.5 < high
    told = f"One number, {WORDS[name]}, does better: this data may be told apart by"
    assert told in caution(metrics)
    printed = capsys.readouterr().out
    assert worth(metrics) in printed
    assert told in printed
    page = (folder / "report.html").read_text()
    assert told in page
    assert worth(metrics) in page


def test_a_signal_beside_the_same_shortcut_keeps_its_auc(planted, tmp_path):
    metrics = load_metrics(_train(planted["signal"], tmp_path))
    found = result_of(metrics)
    assert found["auc"] > 0.8
    for name in ("brightness", "seen_brightness"):
        assert metrics["shortcuts"][name]["raw"]["auc"] > 0.6
        assert found["adjusted"][name]["auc"] > found["auc"] - 0.03


def test_groups_and_validation_by_adjusted_aucs(planted, tmp_path, capsys):
    files = sorted(planted["shortcut"].rglob("*.png"))
    rows = [
        ("file", "site", "$x_{$", "no", "mixed", "long", "few"),
        *(
            (p.name, "ab"[i % 2], 20 + i, i, i or "x", "a" * (200 if i == 5 else 1), f"c{i % 40}")
            for i, p in enumerate(files)
        ),
    ]
    table = _table(tmp_path / "groups.csv", rows)
    options = ("--groups", table, "site", "$x_{$", "--adjust", "brightness")
    folder = _train(planted["shortcut"], tmp_path / "out", *options)
    metrics = load_metrics(folder)
    assert {"site", "$x_{$"} < metrics["shortcuts"].keys()
    assert "no" not in metrics["shortcuts"]
    found = result_of(metrics)["adjusted"]
    assert set(found["site"]["groups"]) == {"a", "b"}
    assert found["site"]["counted"] == found["$x_{$"]["counted"] + found["$x_{$"]["left_out"] == 60
    rows = list(csv.DictReader((folder / "scores.csv").read_text().splitlines()))
    truth = np.array([row["abnormal"] == "1" for row in rows])
    covariate = np.array([float(row["image_brightness"]) for row in rows])
    assert {row["image_site"] for row in rows} == {"a", "b"}
    for name, result in metrics["test"]["untrained"].items():
        scores = np.array([float(row[f"untrained_{name}"]) for row in rows])
        assert result["adjusted"]["brightness"] == measure_adjusted(scores, truth, covariate)
    page = (folder / "report.html").read_text()
    assert "<th>untrained: valid, adjusted</th>" in page
    plain = load_metrics(_train(planted["shortcut"], tmp_path / "plain"))
    for name, auc in metrics["validation"]["untrained"].items():
        assert auc != plain["validation"]["untrained"][name]
    # Evaluated again, the table is that of the run.
    assert cli.main(["evaluate", str(folder), "--device", "cpu", "--quiet"]) == 0
    assert load_metrics(folder)["test"] == metrics["test"]
    assert f"groups from {table}, as split.json says" in capsys.readouterr().err
    # Taken up again, it must be given again; the report does without it.
    again = [
        "train",
        "--data",
        planted["shortcut"],
        "--out",
        tmp_path / "out",
        "--resume",
        "--quiet",
    ]
    again += ["--preset", "quick", "--variant", "cutpaste", "--size", 32, "--epochs", 0]
    again += ["--adjust", "brightness"]
    assert cli.main([str(option) for option in again]) == 1
    assert f"was made with other --groups: ['{table}', 'site'" in capsys.readouterr().err
    given = ["train", "--data", planted["shortcut"], "--out", tmp_path / "bad", "--quiet"]
    for options, told in (
        (["--adjust", "site"], "adjust must be one of brightness, contrast,"),
        (["--groups", table, "mixed"], "mixed holds 'x' among numbers"),
        (["--groups", table, "long"], "a cell of long has more than 100 characters"),
        (["--groups", table, "few", "--adjust", "few"], "normals that are alike in few"),
        (["--groups", tmp_path / "none.csv"], "cannot read"),
    ):
        assert cli.main([str(option) for option in [*given, *options]]) == 1
        assert told in capsys.readouterr().err


def test_a_table_keeps_to_its_images_where_some_are_skipped(planted, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(planted["shortcut"], folder)
    for part in ("train/normal", "test/abnormal"):
        sorted((folder / part).iterdir())[1].write_bytes(b"no image")
    files = sorted(folder.rglob("*.png"))
    rows = [("file", "no"), *((path.relative_to(folder), i) for i, path in enumerate(files))]
    table = _table(tmp_path / "groups.csv", rows)
    split, settings = read_split(folder), Settings(size=32, variant="cutpaste", epochs=0)
    options = {"groups": [str(table)], "skip_bad": True}
    dataset = load_dataset(Source(folder, tmp_path / "cache", **options), split, settings)
    assert len(dataset.skipped) == 2
    for part in ("train", "valid", "test"):
        wanted = [files.index(folder / entry.path) for entry in dataset.split[part]]
        np.testing.assert_array_equal(dataset.covariates[part]["no"], wanted)


def test_adjusting_needs_abnormal_validation_images(planted, tmp_path, capsys):
    given = ["train", "--data", planted["shortcut"] / "train" / "normal", "--out", tmp_path]
    given += ["--quiet", "--adjust", "bytes"]
    assert cli.main([str(option) for option in given]) == 1
    assert "adjust needs abnormal images to validate on" in capsys.readouterr().err


def test_compare_has_the_shortcut_and_what_is_left_beyond_it(planted, tmp_path, capsys):
    given = ["compare", "--data", planted["shortcut"], "--out", tmp_path, "--preset", "quick"]
    given += ["--variants", "cutpaste", "--size", 32, "--epochs", 0, "--device", "cpu", "--quiet"]
    assert cli.main([str(option) for option in given]) == 0
    head, _, row = (tmp_path / "compare.md").read_text().splitlines()
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    metrics = load_metrics(tmp_path / "cutpaste" / "seed0")
    name, alone = strongest(metrics["shortcuts"])
    assert cells["AUC, strongest shortcut"] == f"{alone['auc']:.3f}"
    adjusted = result_of(metrics)["adjusted"][name]["auc"]
    assert cells["adjusted for it"] == f"{adjusted:.3f}"
