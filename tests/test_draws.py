"""What is drawn: legal, inside the image, reproducible, and distributed as stated."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from anatpaste_aug import (
    CutPasteParams,
    PasteParams,
    sample_cutpaste,
    sample_paste,
    sample_scar,
)
from anatpaste_aug.operations.sampling import nth_pixel

N = 4000
SIDE = 1000  # large, so that rounding to whole pixels does not show


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(1)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[100:300, 200:600] = True
    return [sample_paste(mask, rng, lengths_for=None) for _ in range(N)]


def blank(height, width):
    return np.zeros((height, width), np.uint8)


def column(draws, name):
    return np.array([getattr(draw, name) for draw in draws])


def assert_uniform(values, low, high):
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.001


def assert_even(values, choices):
    observed = [np.sum(values == choice) for choice in choices]
    assert sum(observed) == len(values)
    assert stats.chisquare(observed).pvalue > 0.001


def test_area_is_uniform(draws):
    area = column(draws, "width") * column(draws, "height") / SIDE**2
    assert_uniform(area, 0.02, 0.15)


def test_aspect_is_log_uniform(draws):
    ratio = np.log(column(draws, "width") / column(draws, "height"))
    assert_uniform(ratio, math.log(0.3), math.log(1 / 0.3))


def test_area_and_aspect_are_independent(draws):
    width, height = column(draws, "width"), column(draws, "height")
    assert stats.spearmanr(width * height, width / height).pvalue > 0.001


def test_crop_is_uniform_inside_the_image(draws):
    for size, start in (("width", "crop_x"), ("height", "crop_y")):
        room = SIDE - column(draws, size)
        # The place among room + 1 ones, spread over its pixel.
        jitter = np.random.default_rng(1).random(N)
        assert_uniform((column(draws, start) + jitter) / (room + 1), 0, 1)


def test_center_is_uniform_over_the_mask(draws):
    x, y = column(draws, "center_x"), column(draws, "center_y")
    assert_even((y - 100) // 50 * 4 + (x - 200) // 100, range(16))


def test_blur_opacity_and_shape_are_even(draws):
    assert_even(column(draws, "blur_radius"), range(15))
    assert_even(column(draws, "opacity"), range(150, 255))
    assert_even(column(draws, "shape"), ["ellipse", "rectangle"])


def test_jitter_is_uniform(draws):
    assert_uniform(column(draws, "brightness"), 0.9, 1.1)
    assert_uniform(column(draws, "contrast"), 0.9, 1.1)


def test_cutpaste_distributions():
    rng = np.random.default_rng(2)
    normal = [sample_cutpaste(blank(SIDE, SIDE), rng) for _ in range(N)]
    assert_uniform(column(normal, "width") * column(normal, "height") / SIDE**2, 0.02, 0.15)
    jitter = rng.random(N)
    for size, start in (("width", "paste_x"), ("height", "paste_y")):
        assert_uniform((column(normal, start) + jitter) / (SIDE + 1 - column(normal, size)), 0, 1)
    assert set(column(normal, "angle")) == {0.0}

    scars = [sample_scar(blank(SIDE, SIDE), rng, lengths_for=None) for _ in range(N)]
    assert_even(column(scars, "width"), range(2, 17))
    assert_even(column(scars, "height"), range(10, 26))
    assert_uniform(column(scars, "angle"), -45, 45)
    box = np.array([scar.bounding_box for scar in scars])
    for axis, start in ((0, "paste_x"), (1, "paste_y")):
        assert_uniform((column(scars, start) + jitter) / (SIDE + 1 - box[:, axis]), 0, 1)
    for draws_ in (normal, scars):
        for name in ("brightness", "contrast"):
            assert_uniform(column(draws_, name), 0.9, 1.1)
        for size, start in (("width", "crop_x"), ("height", "crop_y")):
            room = SIDE + 1 - column(draws_, size)
            assert_uniform((column(draws_, start) + jitter) / room, 0, 1)


def test_a_scar_may_lie_anywhere_and_stays_inside():
    scars = [sample_scar(blank(40, 41), seed, lengths_for=None) for seed in range(500)]
    right = [scar.paste_x + scar.bounding_box[0] for scar in scars]
    bottom = [scar.paste_y + scar.bounding_box[1] for scar in scars]
    assert (max(right), max(bottom)) == (41, 40)


@given(
    st.integers(16, 300),
    st.integers(16, 300),
    st.integers(0, 2**32 - 1),
    st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted),
    st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)).map(sorted),
)
def test_everything_drawn_lies_inside_the_image(height, width, seed, scale, ratio):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < 0.1
    paste = sample_paste(mask, rng, scale=tuple(scale), ratio=tuple(ratio))
    assert mask[paste.center_y, paste.center_x] or not mask.any()
    normal = sample_cutpaste(blank(height, width), rng, scale=tuple(scale), ratio=tuple(ratio))
    scar = sample_scar(blank(height, width), rng)
    for draw in (paste, normal, scar):
        assert draw.crop_x + draw.width <= width
        assert draw.crop_y + draw.height <= height
    assert normal.paste_x + normal.width <= width
    assert normal.paste_y + normal.height <= height
    for start, size, side in zip(
        (scar.paste_x, scar.paste_y), scar.bounding_box, (width, height), strict=True
    ):
        assert start + size <= max(side, size)


@given(
    st.integers(16, 300),
    st.integers(16, 300),
    st.sampled_from([0.0001, 0.01, 0.5, 1]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_the_nth_lung_pixel_is_that_of_the_list(height, width, share, swapped, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < share
    mask[rng.integers(height), rng.integers(width)] = True
    mask = mask.T if swapped else mask
    pixels = np.flatnonzero(mask)
    for n in {0, int(rng.integers(pixels.size)), pixels.size - 1}:
        assert nth_pixel(mask, n) == pixels[n]


def test_not_square_means_not_swapped():
    wide = [sample_paste(np.ones((20, 400), bool), rng=seed) for seed in range(200)]
    assert max(draw.crop_x + draw.width for draw in wide) > 300
    assert max(draw.height for draw in wide) <= 20


def test_an_empty_mask_means_anywhere():
    draws = [sample_paste(np.zeros((64, 128), bool), rng=seed) for seed in range(500)]
    assert_even(column(draws, "center_x") // 16, range(8))
    assert_even(column(draws, "center_y") // 8, range(8))


def test_same_seed_same_draw():
    mask = np.ones((64, 64), bool)
    assert sample_paste(mask, 7) == sample_paste(mask, np.random.default_rng(7))
    assert sample_paste(mask, 7) != sample_paste(mask, 8)
    assert sample_paste(mask) != sample_paste(mask)


def test_single_numbers_are_fixed_values():
    draw = sample_paste(
        np.ones((256, 256), bool), 0, scale=0.04, ratio=1, blur=3, opacity=200, margin=2, jitter=0
    )
    assert (draw.width, draw.height, draw.blur_radius, draw.opacity) == (51, 51, 3, 200)
    assert (draw.margin, draw.brightness, draw.contrast) == (2, 1, 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": (0.2, 0.1)}, ValueError, r"scale must not be reversed.*\(0.2, 0.1\)"),
        ({"scale": (0, 0.1)}, ValueError, "scale must be above 0"),
        ({"scale": (0.1, 1.5)}, ValueError, r"scale must lie in 0..1, got 1.5"),
        ({"ratio": -1}, ValueError, r"ratio must lie in 1e-06..1000000.0, got -1"),
        ({"ratio": float("nan")}, ValueError, r"ratio must lie in 1e-06..1000000.0, got nan"),
        ({"ratio": float("inf")}, ValueError, r"ratio must lie in 1e-06..1000000.0, got inf"),
        ({"ratio": (1, 2, 3)}, ValueError, r"ratio must be a number or a pair"),
        ({"blur": (-1, 3)}, ValueError, "blur must be at least 0, got -1"),
        ({"blur": 1.5}, TypeError, "blur must be an integer, got 1.5"),
        ({"opacity": (150, 300)}, ValueError, "opacity must lie in 0..255, got 300"),
        ({"opacity": "high"}, TypeError, "opacity must be an integer, got 'high'"),
        ({"margin": -2}, ValueError, "margin must be at least 0, got -2"),
        ({"margin": None}, TypeError, "margin must be an integer, got None"),
        ({"jitter": 2}, ValueError, r"jitter must lie in 0..1, got 2"),
        ({"jitter": True}, TypeError, "jitter must be a number, got True"),
        ({"blur": 2**70}, ValueError, "blur must be at most"),
        ({"margin": 2**70}, ValueError, "margin must be at most"),
        ({"rng": True}, TypeError, "rng must be an int"),
        ({"rng": -1}, ValueError, "rng must be at least 0, got -1"),
        ({"rng": "seed"}, TypeError, "rng must be an int"),
        ({"rng": 1.5}, TypeError, "rng must be an int"),
    ],
)
def test_bad_ranges(options, error, message):
    with pytest.raises(error, match=message):
        sample_paste(np.ones((64, 64), bool), **options)


@pytest.mark.parametrize("mask", [None, np.ones((64, 64)), [[True]], Image.new("F", (64, 64))])
def test_masks_of_a_bad_type(mask):
    with pytest.raises(TypeError, match="mask must be a bool or integer array, got"):
        sample_paste(mask)


@pytest.mark.parametrize("shape", [(50,), (50, 50, 2), (0, 50), (50, 15)])
def test_masks_of_a_bad_shape(shape):
    with pytest.raises(ValueError, match=r"mask must have the shape \(H, W\)"):
        sample_paste(np.ones(shape, bool))


def test_masks_may_be_integers_or_pillow_images():
    mask = np.zeros((64, 64), bool)
    mask[20:30, 40:50] = True
    for same in (mask.astype(np.uint8) * 255, Image.fromarray(mask)):
        assert sample_paste(same, 3) == sample_paste(mask, 3)


@pytest.mark.parametrize("margin", [3, np.int8(3)])
def test_numpy_numbers_become_plain_ones(margin):
    draw = sample_paste(
        np.ones((512, 512), bool),
        np.int64(3),
        margin=margin,
        blur=np.uint8(5),
        scale=np.float32(0.1),
    )
    draw = dataclasses.replace(draw, crop_x=np.uint8(250), width=np.uint8(200))
    for field in dataclasses.fields(draw):
        assert type(getattr(draw, field.name)) in (int, float, str)


@pytest.mark.parametrize("image", [None, 64, (64, 64)])
def test_cutpaste_is_drawn_for_an_image(image):
    for sample in (sample_cutpaste, sample_scar):
        with pytest.raises(TypeError, match="image must be a NumPy array or a Pillow image"):
            sample(image)
        with pytest.raises(ValueError, match="image must be at least 16 pixels"):
            sample(blank(3, 64))


PASTE = PasteParams(0, 0, 20, 20, 30, 30, "ellipse", 3, 200, 5)
CUTPASTE = CutPasteParams(0, 0, 20, 20, 5, 5)


@pytest.mark.parametrize(
    ("params", "field", "value", "error"),
    [
        (PASTE, "crop_x", -1, ValueError),
        (PASTE, "width", 0, ValueError),
        (PASTE, "height", 2.0, TypeError),
        (PASTE, "shape", "circle", ValueError),
        (PASTE, "opacity", 256, ValueError),
        (PASTE, "blur_radius", -1, ValueError),
        (PASTE, "brightness", -0.1, ValueError),
        (PASTE, "contrast", float("nan"), ValueError),
        (PASTE, "margin", "1", TypeError),
        (CUTPASTE, "paste_x", -1, ValueError),
        (CUTPASTE, "angle", float("inf"), ValueError),
        (CUTPASTE, "width", 0, ValueError),
        (CUTPASTE, "contrast", None, TypeError),
    ],
)
def test_bad_params(params, field, value, error):
    with pytest.raises(error, match=rf"{field} must .*, got"):
        dataclasses.replace(params, **{field: value})


def test_params_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PASTE.width = 3
