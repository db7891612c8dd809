"""What a detection figure is worth: shortcuts, and AUCs that are adjusted for a covariate."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
for _module in ("torch", "torchvision", "sklearn", "safetensors", "tqdm", "matplotlib"):
    pytest.importorskip(_module)
if not (ROOT / "examples").is_dir():
    pytest.skip("the examples are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from sklearn.metrics import roc_auc_score  # noqa: E402

from examples.pretrain_gde import cli  # noqa: E402
from examples.pretrain_gde.errors import PipelineError  # noqa: E402
from examples.pretrain_gde.evaluate import load_metrics, result_of, worth  # noqa: E402
from examples.pretrain_gde.metrics import measure, measure_adjusted  # noqa: E402
from examples.pretrain_gde.shortcuts import (  # noqa: E402
    WORDS,
    describe,
    judge,
    read_groups,
    strongest,
)

RNG = np.random.default_rng
COUNTS = {"train": (12, 0), "valid": (6, 6), "test": (12, 12)}


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
    assert measure([1, 2], [False, True]) == {"auc": 1, "auc_interval": [1, 1]}


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


def test_a_location_and_scale_model_worked_out_by_hand():
    # Normals: score = 10 x, plus and minus 1 at x = 0, plus and minus 3 at x = 2; spread 1 + x.
    x = np.array([0, 0, 0, 2, 2, 2, 1, 1, 2, 2.5, np.nan])
    scores = np.array([1.0, -1, 0, 23, 17, 20, 11, 10 - 1.9, 21, 99, 99])
    truth = np.arange(11) >= 6
    found = measure_adjusted(scores, truth, x)
    # Standardized by 2/3 (1 + x): normals 1.5, -1.5, 0 twice; abnormal 0.75, -1.425 and 0.5.
    assert found["auc"] == pytest.approx((4 + 2 + 4) / 6 / 3)
    assert (found["counted"], found["left_out"]) == (3, 2)  # beyond the normals' range, unknown


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
    x = RNG(2).random(50)
    found = measure_adjusted(scores(x), np.arange(50) >= 20, x)
    assert found["auc"] == 0.5


def test_too_few_normals_make_no_model():
    found = measure_adjusted(np.arange(6.0), np.arange(6) >= 4, np.arange(6.0))
    assert (found["auc"], found["counted"], found["left_out"]) == (None, 0, 2)


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
    assert strongest(found)[0] == "either"
    unlabelled = judge(parts, truth, truth & False)["darker"]
    assert (unlabelled["way"], unlabelled["raw"]) == (None, None)
    assert unlabelled["distance"] == found["darker"]["distance"]


# Tables of groups.


def _table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_table_gives_numbers_and_groups(tmp_path):
    images = {"train": [f"train/{i}.png" for i in range(12)], "test": ["test/t.png", "test/0.png"]}
    rows = [(f"train/{i}.png", 20 + i, "PA" if i % 2 else "AP", i % 2) for i in range(12)]
    rows += [("t.png", "", "AP", "")]
    found = read_groups(_table(tmp_path / "t.csv", [("file", "age", "view", "sex"), *rows]), images)
    np.testing.assert_array_equal(found["train"]["age"], 20.0 + np.arange(12))
    np.testing.assert_array_equal(found["train"]["sex"][:2], ["0", "1"])
    np.testing.assert_array_equal(found["test"]["view"], ["AP", ""])
    assert np.isnan(found["test"]["age"]).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("name", "age"), ("a.png", 1)], "has no column file"),
        ([("file",), ("a.png",)], "must have rows, and columns of names of its own, got none"),
        ([("file", "age")], "must have rows"),
        ([("file", "bytes"), ("a.png", 1)], "columns of names of its own, got bytes"),
        ([("file", "age"), ("b.png", 1)], "names none of the images"),
        ([("file", "age"), ("a.png", 1), ("a.png", 2)], "line 3: this file is given twice"),
        ([("file", "age"), ("c.png", 1)], "names c.png, as several images are called"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(rows, message, tmp_path):
    images = {"train": ["normal/a.png", "normal/c.png"], "test": ["other/c.png"]}
    with pytest.raises(PipelineError, match=message):
        read_groups(_table(tmp_path / "t.csv", rows), images)
