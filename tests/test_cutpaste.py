"""CutPaste against hand-computed pastes and its stated properties."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import assert_in_range, images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from anatpaste_aug import (
    CutPasteParams,
    apply_cutpaste,
    cutpaste,
    cutpaste_scar,
    sample_cutpaste,
    sample_scar,
)

seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("function", [cutpaste, cutpaste_scar])
@given(images(), seeds)
def test_keeps_kind_and_range_and_touches_only_the_region(function, image, seed):
    before = image.copy()
    out, region = function(image, seed, return_mask=True)
    assert out.dtype == image.dtype
    assert out.shape == image.shape
    assert region.any() == (out != image).any()
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(out[~region], image[~region])
    assert_in_range(out, image)
    np.testing.assert_array_equal(out, function(image, seed))


@given(images(dtypes=("uint16",)), seeds)
def test_normal_pastes_the_patch_whole(image, seed):
    params = dataclasses.replace(sample_cutpaste(image, seed), brightness=1.0, contrast=1)
    expected = image.copy()
    patch = image[params.crop_y :, params.crop_x :][: params.height, : params.width]
    expected[params.paste_y :, params.paste_x :][: params.height, : params.width] = patch
    np.testing.assert_array_equal(apply_cutpaste(image, params), expected)


def test_jitter_is_pillow_s(phantom):
    params = CutPasteParams(60, 80, 70, 50, 10, 20, 0.0, 1.1, 0.9)
    patch = Image.fromarray(phantom).crop((60, 80, 130, 130))
    patch = ImageEnhance.Contrast(ImageEnhance.Brightness(patch).enhance(1.1)).enhance(0.9)
    out = apply_cutpaste(phantom, params)
    np.testing.assert_array_equal(out[20:70, 10:80], np.asarray(patch))


def test_options_reach_the_draw(phantom):
    for option in ({"scale": 0.3}, {"ratio": 1}, {"jitter": 0.9}):
        params = sample_cutpaste(phantom, 3, **option)
        np.testing.assert_array_equal(
            cutpaste(phantom, 3, **option), apply_cutpaste(phantom, params)
        )
    params = sample_scar(phantom, 3, jitter=0.9)
    np.testing.assert_array_equal(
        cutpaste_scar(phantom, 3, jitter=0.9), apply_cutpaste(phantom, params)
    )


def test_scar_turns_by_right_angles_as_numpy_does():
    image = np.random.default_rng(0).integers(0, 256, (50, 60)).astype(np.uint8)
    patch = image[10:35, 20:30]
    for angle, turned in (
        (90, np.rot90(patch)),
        (-90, np.rot90(patch, -1)),
        (180, patch[::-1, ::-1]),
    ):
        params = CutPasteParams(20, 10, 10, 25, 5, 7, float(angle))
        expected = image.copy()
        expected[7 : 7 + turned.shape[0], 5 : 5 + turned.shape[1]] = turned
        np.testing.assert_array_equal(apply_cutpaste(image, params), expected)


@pytest.mark.parametrize("seed", range(20))
def test_scar_is_close_to_pillow_s_rotation(seed):
    # Pillow lays its grid out differently by a fraction of a pixel, so that outlines may differ.
    image = np.random.default_rng(0).integers(0, 256, (120, 120)).astype(np.uint8)
    drawn = sample_scar(image, seed, lengths_for=None)
    params = dataclasses.replace(drawn, crop_y=20, brightness=1, contrast=1)
    patch = Image.new("L", (params.width, params.height), 255)
    turned = np.asarray(patch.rotate(params.angle, expand=True))
    region = apply_cutpaste(image, params, return_mask=True)[1]
    area = params.width * params.height
    assert abs(np.count_nonzero(region) - area) <= max(0.1 * area, 6)
    assert abs(np.count_nonzero(region) - np.count_nonzero(turned)) <= max(0.15 * area, 8)


def test_pastes_that_change_nothing_have_no_region(phantom):
    framed = np.pad(phantom[50:-50, 50:-50], 50)  # a black border of 50 pixels
    unchanged = 0
    for seed in range(200):
        out, region = cutpaste_scar(framed, seed, return_mask=True)
        assert region.any() == (out != framed).any()
        unchanged += not region.any()
    assert unchanged > 20


def test_the_region_is_where_the_patch_lies():
    image = np.zeros((40, 40), np.float32)
    image[0:4, 0:12] = 1
    params = CutPasteParams(0, 0, 12, 4, 20, 20, 30.0)
    out, region = apply_cutpaste(image, params, return_mask=True)
    np.testing.assert_array_equal(region, (out == 1) & (np.arange(40)[:, None] >= 16))
    rows, cols = np.nonzero(region)
    assert np.corrcoef(rows, cols)[0, 1] < -0.6  # counterclockwise: to the upper right


def test_pillow_in_pillow_out(phantom):
    for function in (cutpaste, cutpaste_scar):
        out = function(Image.fromarray(phantom), 5)
        assert out.mode == "L"
        np.testing.assert_array_equal(np.asarray(out), function(phantom, 5))


def test_bad_input(phantom):
    for function in (cutpaste, cutpaste_scar):
        with pytest.raises(TypeError, match="got NoneType"):
            function(None)
        with pytest.raises(ValueError, match=r"got \(64, 64, 5\)"):
            function(np.zeros((64, 64, 5), np.uint8))
        with pytest.raises(ValueError, match="jitter must lie in"):
            function(phantom, jitter=3)
    with pytest.raises(ValueError, match="scale must not be reversed"):
        cutpaste(phantom, scale=(0.5, 0.1))
    with pytest.raises(TypeError, match="params must be CutPasteParams, got NoneType"):
        apply_cutpaste(phantom, None)
    with pytest.raises(ValueError, match="patch must lie inside"):
        apply_cutpaste(phantom, CutPasteParams(250, 0, 20, 20, 0, 0))
    with pytest.raises(ValueError, match=r"paste must begin inside .* paste_x=256"):
        apply_cutpaste(phantom, CutPasteParams(0, 0, 20, 20, 256, 0))
