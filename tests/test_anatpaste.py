"""AnatPaste against the released code, the recipe in Pillow calls, and its stated properties."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from conftest import DTYPES, assert_in_range, images, real_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from recipe import recipe_alpha, recipe_paste

from anatpaste_aug import PasteParams, anatpaste, apply_paste, lung_mask, paste_alpha, sample_paste
from anatpaste_aug.data import phantom_radiograph

seeds = st.integers(0, 2**32 - 1)


def test_equals_the_released_code_byte_for_byte():
    golden = dict(np.load(real_data("golden") / "reference256.npz"))
    cases = json.loads(str(golden["params"]))
    assert len(cases) == 72
    for i, case in enumerate(cases):
        image = golden["images"][case.pop("image")]
        mask = lung_mask(image)
        assert mask.any() == case.pop("lung_found")
        params = PasteParams(**case)
        np.testing.assert_array_equal(paste_alpha(params, mask), golden["alphas"][i])
        np.testing.assert_array_equal(apply_paste(image, params, mask), golden["outputs"][i])


@given(images(dtypes=("uint8",), max_side=200), seeds)
def test_equals_the_recipe_on_anything(image, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(image.shape[:2]) < rng.choice([0, 0.5, 1])
    params = sample_paste(mask, rng)
    np.testing.assert_array_equal(paste_alpha(params, mask), recipe_alpha(params, mask))
    np.testing.assert_array_equal(
        apply_paste(image, params, mask), recipe_paste(image, params, mask)
    )


@pytest.mark.parametrize("shape", ["ellipse", "rectangle"])
@pytest.mark.parametrize("blur", [0, 1, 2, 7, 14, 40])
@pytest.mark.parametrize("center", [(0, 0), (63, 40), (30, 20)])
def test_alpha_at_the_borders(shape, blur, center):
    params = PasteParams(0, 0, 37, 20, *center, shape, blur, 254, 3)
    mask = np.ones((41, 64), bool)
    np.testing.assert_array_equal(paste_alpha(params, mask), recipe_alpha(params, mask))


@given(st.data())
def test_alpha_of_any_shape_is_pillow_s_on_the_whole_canvas(data):
    height, width = (data.draw(st.integers(16, 120)) for _ in range(2))
    params = PasteParams(
        crop_x=0,
        crop_y=0,
        width=data.draw(st.integers(1, width)),
        height=data.draw(st.integers(1, height)),
        center_x=data.draw(st.integers(0, width - 1)),
        center_y=data.draw(st.integers(0, height - 1)),
        shape=data.draw(st.sampled_from(["ellipse", "rectangle"])),
        blur_radius=data.draw(st.integers(0, 30)),
        opacity=data.draw(st.integers(0, 255)),
        margin=data.draw(st.integers(0, 12)),
    )
    mask = np.ones((height, width), bool)
    np.testing.assert_array_equal(paste_alpha(params, mask), recipe_alpha(params, mask))


def test_a_constant_float_image_keeps_its_range():
    image = np.full((64, 64), 0.9)
    for seed in range(20):
        np.testing.assert_array_equal(np.unique(anatpaste(image, seed)), [0.9])


@given(images(), seeds)
def test_keeps_kind_and_range_and_touches_only_the_region(image, seed):
    before = image.copy()
    out, region = anatpaste(image, seed, return_mask=True)
    assert out.dtype == image.dtype
    assert out.shape == image.shape
    assert region.dtype == bool
    assert region.shape == image.shape[:2]
    np.testing.assert_array_equal(image, before)
    assert not np.shares_memory(out, image)
    np.testing.assert_array_equal(out[~region], image[~region])
    mask = lung_mask(image)
    assert not mask.any() or not (region & ~mask).any()
    assert_in_range(out, image)
    np.testing.assert_array_equal(out, anatpaste(image, seed))
    np.testing.assert_array_equal(out, anatpaste(image, np.random.default_rng(seed)))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64"])
def test_other_dtypes_agree_with_8_bit(phantom, dtype):
    mask = lung_mask(phantom)
    gain = 1 / 255 if dtype.startswith("float") else 16
    image = (phantom * np.float64(gain)).astype(dtype)
    image[0, 0] = 0
    for seed in range(20):
        params = dataclasses.replace(sample_paste(mask, seed), brightness=1.0, contrast=1.0)
        fine = apply_paste(image, params, mask) / gain
        assert np.abs(fine - apply_paste(phantom, params, mask))[1:].max() <= 1


def test_nothing_is_reduced_to_8_bits():
    image = np.random.default_rng(0).integers(0, 60000, (64, 64)).astype(np.uint16)
    params = PasteParams(0, 0, 20, 20, 40, 40, "rectangle", 0, 100, 2)
    out = apply_paste(image, params)
    expected = image[40, 40] * (155 / 255) + image[10, 10] * (100 / 255)
    assert out[40, 40] == round(expected)
    floats = image / 7.0
    np.testing.assert_allclose(apply_paste(floats, params)[40, 40], expected / 7)


def test_black_is_the_minimum_of_signed_and_float_images():
    # The patch lies left of the part of alpha that the blur carries to the right.
    params = PasteParams(0, 0, 4, 4, 20, 20, "rectangle", 5, 255, 0)
    for image, black in (
        (np.full((40, 40), 90, np.int16), -1000),
        (np.full((40, 40), 0.75), 0.25),
        (np.full((40, 40), 500, np.uint16), 0),
    ):
        if image.dtype != np.uint16:
            image[39, 0] = black
        alpha = paste_alpha(params, np.zeros((40, 40), bool))
        assert alpha[20, 26] > 0
        out = apply_paste(image, params)
        weight = alpha[20, 26] / 255
        assert out[20, 26] == pytest.approx(image[0, 0] * (1 - weight) + black * weight, abs=0.51)
        if image.dtype.kind == "f":
            assert out[20, 26] == pytest.approx(0.75 * (1 - weight) + 0.25 * weight)


def test_jitter_of_16_bit_images_is_rounded():
    image = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 7
    params = PasteParams(4, 4, 20, 20, 40, 40, "rectangle", 0, 255, 0, 1.1, 1.0)
    expected = np.round(image[4:24, 4:24] * 1.1)
    np.testing.assert_array_equal(apply_paste(image, params)[30:50, 30:50], expected)
    image[0, 0] = 20000  # now the clip to the image's maximum does not matter
    params = dataclasses.replace(params, brightness=1.0, contrast=0.9)
    patch = image[4:24, 4:24].astype(float)
    expected = np.round(0.9 * patch + 0.1 * patch.mean())
    np.testing.assert_allclose(apply_paste(image, params)[30:50, 30:50], expected, atol=1)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64"])
def test_jitter_is_clipped_to_the_image_s_maximum(dtype):
    image = np.full((64, 64), 100).astype(dtype)
    image[0, 0] = 105
    params = PasteParams(4, 4, 20, 20, 40, 40, "rectangle", 0, 255, 0, 1.5, 1.0)
    assert apply_paste(image, params).max() == 105
    assert apply_paste(image.astype(np.uint8), params).max() == 150


def test_jitter_of_float_images_is_torchvision_s():
    # brightness, then contrast about the mean, by hand
    image = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    params = PasteParams(4, 4, 20, 20, 40, 40, "rectangle", 0, 255, 0, 1.1, 0.9)
    patch = np.clip(image[4:24, 4:24] * 1.1, 0, 1)
    patch = np.clip(0.9 * patch + 0.1 * patch.mean(), 0, 1)
    np.testing.assert_allclose(apply_paste(image, params)[30:50, 30:50], patch)


def test_jitter_does_not_depend_on_the_offset_of_signed_images(phantom):
    image = phantom.astype(np.float64) - phantom.min()
    params = PasteParams(10, 10, 60, 60, 128, 128, "ellipse", 4, 200, 5, 1.1, 0.9)
    shifted = apply_paste(image - 1000, params)
    np.testing.assert_allclose(shifted + 1000, apply_paste(image, params), atol=1e-9)


@pytest.mark.parametrize(("side", "seeds"), [(128, 300), (224, 1000), (16, 100), (20, 100)])
def test_small_images_never_turn_the_shape_inside_out(side, seeds):
    image = phantom_radiograph(side, rng=3)
    mask = lung_mask(image)
    for seed in range(seeds):
        out, region = anatpaste(image, seed, mask=mask, return_mask=True)
        if side == 224:
            assert mask.any()
            assert (out != image).any()
            assert region.any()


def test_margin_is_cut_to_half_the_patch():
    params = PasteParams(0, 0, 9, 40, 30, 30, "rectangle", 0, 200, 10)
    alpha = paste_alpha(params, np.zeros((64, 64), bool))
    assert np.argwhere(alpha).min(axis=0).tolist() == [20, 30]
    assert np.argwhere(alpha).max(axis=0).tolist() == [40, 30]


def test_no_lung_means_anywhere_even_if_not_square():
    image = np.full((64, 200), 128, np.uint8)
    image[:, ::7] = 90
    regions = [anatpaste(image, seed, return_mask=True)[1] for seed in range(60)]
    columns = np.any(regions, axis=(0, 1))
    assert not lung_mask(image).any()
    assert columns.all()


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "I", "F"])
def test_pillow_in_pillow_out(phantom, mode):
    arrays = {
        "L": phantom,
        "RGB": np.repeat(phantom[..., None], 3, axis=2),
        "I;16": phantom.astype(np.uint16) * 200,
        "I": phantom.astype(np.int32) * 3000,
        "F": phantom.astype(np.float32) / 255,
    }
    out, region = anatpaste(Image.fromarray(arrays[mode]), 5, return_mask=True)
    expected, expected_region = anatpaste(arrays[mode], 5, return_mask=True)
    assert (out.mode, out.size) == (mode, (256, 256))
    np.testing.assert_array_equal(np.asarray(out), expected)
    np.testing.assert_array_equal(region, expected_region)


def test_own_masks(phantom):
    mask = np.zeros((256, 256), np.uint8)
    mask[100:150, 60:90] = 255
    out, region = anatpaste(phantom, 1, mask=mask, return_mask=True)
    assert region.any()
    assert not (region & (mask == 0)).any()
    same = anatpaste(phantom, 1, segment=lambda image: mask > 0)
    np.testing.assert_array_equal(out, same)
    picture = anatpaste(phantom, 1, mask=Image.fromarray(mask))
    np.testing.assert_array_equal(out, picture)


def test_the_default_mask_is_lung_mask(phantom):
    np.testing.assert_array_equal(
        anatpaste(phantom, 2), anatpaste(phantom, 2, mask=lung_mask(phantom))
    )


def test_options_reach_the_draw(phantom):
    mask = lung_mask(phantom)
    for option in (
        {"scale": 0.3},
        {"ratio": 1},
        {"blur": 30},
        {"opacity": 10},
        {"margin": 1},
        {"jitter": 0.9},
    ):
        params = sample_paste(mask, 3, **option)
        assert params != sample_paste(mask, 3)
        np.testing.assert_array_equal(
            anatpaste(phantom, 3, **option), apply_paste(phantom, params, mask)
        )
    out, region = anatpaste(phantom, 3, opacity=0, return_mask=True)
    assert not region.any()
    np.testing.assert_array_equal(out, phantom)
    with pytest.raises(ValueError, match=r"opacity must lie in 0..255, got 300"):
        anatpaste(phantom, opacity=300)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (None, TypeError, "image must be a NumPy array or a Pillow image, got NoneType"),
        ("chest.png", TypeError, "got str"),
        ([[1, 2], [3, 4]], TypeError, "got list"),
        (np.zeros(64, np.uint8), ValueError, r"image must have the shape .* got \(64,\)"),
        (np.zeros((2, 64, 64, 3), np.uint8), ValueError, r"got \(2, 64, 64, 3\)"),
        (np.zeros((64, 64, 2), np.uint8), ValueError, r"got \(64, 64, 2\)"),
        (np.zeros((64, 64, 5), np.uint8), ValueError, r"got \(64, 64, 5\)"),
        (np.zeros((0, 64), np.uint8), ValueError, r"at least 16 pixels .* got \(0, 64\)"),
        (np.zeros((64, 15), np.uint8), ValueError, r"at least 16 pixels .* got \(64, 15\)"),
        (np.full((64, 64), np.nan), ValueError, "image must be finite"),
        (np.where(np.eye(64) > 0, np.inf, 1.0), ValueError, "image must be finite"),
        (np.where(np.eye(64) > 0, -np.inf, 1.0), ValueError, "image must be finite"),
        (np.full((64, 64), 1e31), ValueError, r"image must lie within \+-1e\+30, got 1e\+31"),
        (np.ma.zeros((64, 64)), TypeError, "got MaskedArray"),
        (np.zeros((64, 64), complex), TypeError, "dtype out of .* got complex128"),
        (np.zeros((64, 64), object), TypeError, "got object"),
        (np.zeros((64, 64), bool), TypeError, "got bool"),
        (np.zeros((64, 64), np.complex64), TypeError, "got complex64"),
        (np.zeros((64, 64), "U1"), TypeError, "got <U1"),
        (np.zeros((64, 64), ">u2"), TypeError, "got >u2"),
        (Image.new("1", (64, 64)), TypeError, "Pillow mode out of .* got '1'"),
        (Image.new("RGBA", (64, 64)), TypeError, "got 'RGBA'"),
    ],
)
def test_bad_images(image, error, message):
    for function in (anatpaste, lung_mask):
        with pytest.raises(error, match=message):
            function(image)
    with pytest.raises(error, match=message):
        apply_paste(image, PasteParams(0, 0, 4, 4, 8, 8, "ellipse", 0, 200, 0))


def test_bad_masks_and_segments(phantom):
    for mask, error, message in (
        (np.ones((64, 64), bool), ValueError, r"shape \(256, 256\), got \(64, 64\)"),
        (np.ones((256, 256)), TypeError, "mask must be a bool or integer array, got float64"),
        ("lungs", TypeError, "mask must be .* got str"),
    ):
        with pytest.raises(error, match=message):
            anatpaste(phantom, mask=mask)
        with pytest.raises(error, match="returned by segment must"):
            anatpaste(phantom, segment=lambda image, mask=mask: mask)
    with pytest.raises(TypeError, match="segment must be callable, got int"):
        anatpaste(phantom, segment=3)
    with pytest.raises(ValueError, match="not be given together"):
        anatpaste(phantom, mask=lung_mask(phantom), segment=lung_mask)


def test_bad_params(phantom):
    good = PasteParams(0, 0, 40, 40, 50, 50, "ellipse", 3, 200, 5)
    mask = lung_mask(phantom)
    with pytest.raises(TypeError, match="params must be PasteParams, got dict"):
        apply_paste(phantom, dataclasses.asdict(good), mask)
    for change, message in (
        ({"crop_x": 217}, "patch must lie inside"),
        ({"crop_y": 300}, "patch must lie inside"),
        ({"center_x": 256}, "center must lie inside .* center_x=256"),
        ({"center_y": 999}, "center must lie inside"),
    ):
        with pytest.raises(ValueError, match=message):
            apply_paste(phantom, dataclasses.replace(good, **change), mask)
    with pytest.raises(TypeError, match="mask must be a bool or integer array, got NoneType"):
        paste_alpha(good, None)


def test_every_listed_dtype_is_tested():
    from anatpaste_aug import images as module

    assert {str(kind) for kind in module.DTYPES} == {*DTYPES, "float16"}
