"""The opacity: golden cases, what it promises of every image, what is drawn, bad input."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import any_mask, any_params, images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from scipy.ndimage import binary_dilation

import anatpaste_aug as ap
from anatpaste_aug import operations
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.operations import opacity as functional
from anatpaste_aug.operations.opacity import DENSITY, KINDS, RADIUS, STRETCH

GOLDEN = Path(__file__).parent / "opacity_golden.npz"
SHAPES = ((64, 64), (256, 256), (200, 350), (1024, 768))  # cells of 1, 2, 2 and 7 pixels


def golden_image(image, mask, shape, dtype):
    """Enlarge the golden phantom and its mask by repeating pixels; give it another dtype."""
    factor = -(-max(shape) // len(image))
    tall = np.ones((factor, factor), np.uint8)
    image, mask = (np.kron(part, tall)[: shape[0], : shape[1]] for part in (image, mask))
    scaled = {"uint8": image, "uint16": image.astype(np.uint16) * 257}
    return scaled.get(dtype, image / np.float32(255)), mask


def digests(image, mask, cases):
    """Hash alpha and results of all cases, at all sizes."""
    found = []
    for case in cases:
        shape = tuple(case["shape"])
        params = ap.OpacityParams(**case["params"])
        parts = [ap.opacity_alpha(params, golden_image(image, mask, shape, "uint8")[1])]
        for dtype in ("uint8", "uint16", "float32"):
            parts.append(ap.apply_opacity(*_with(params, golden_image(image, mask, shape, dtype))))
        found.append([hashlib.sha256(part.tobytes()).hexdigest()[:16] for part in parts])
    return found


def _with(params, image_and_mask):
    return image_and_mask[0], params, image_and_mask[1]


def write_golden():
    """Write the golden file anew: only after a change that is meant."""
    image = phantom_radiograph(256, rng=7)
    mask = ap.lung_mask_robust(image)[::4, ::4]
    image = image[::4, ::4]
    cases = []
    for shape in SHAPES:
        lungs = golden_image(image, mask, shape, "uint8")[1]
        for seed, kind in enumerate(KINDS * 2):
            drawn = dataclasses.asdict(ap.sample_opacity(lungs, seed, kinds=kind))
            cases.append({"shape": shape, "params": drawn})
    np.savez_compressed(
        GOLDEN,
        image=image,
        mask=np.packbits(mask, -1),
        cases=json.dumps(cases),
        digests=np.array(digests(image, mask, cases)),
    )


def test_golden_cases():
    golden = np.load(GOLDEN)
    image, mask = golden["image"], np.unpackbits(golden["mask"], axis=-1)
    cases = json.loads(str(golden["cases"]))
    assert len(cases) == len(SHAPES) * len(KINDS) * 2
    assert digests(image, mask, cases) == golden["digests"].tolist()


# --- what is promised -----------------------------------------------------------------------------


@given(image=images(), data=st.data(), seed=st.integers(0, 99))
def test_promises_for_any_image(image, data, seed):
    height, width = image.shape[:2]
    mask, params = any_mask(seed, height, width), data.draw(any_params(height, width))
    out, region = ap.apply_opacity(image, params, mask, return_mask=True)
    alpha = ap.opacity_alpha(params, mask)
    assert (out.shape, out.dtype, region.shape, alpha.dtype) == (
        image.shape,
        image.dtype,
        image.shape[:2],
        np.uint8,
    )
    np.testing.assert_array_equal(region, alpha > 0)
    assert (out >= image).all()
    assert out.max() == image.max()
    np.testing.assert_array_equal(out[~region], image[~region])
    assert alpha.max() <= params.density
    reach = 3 * max(1, (math.isqrt(height * width) + 64) // 128)
    allowed = binary_dilation(mask, np.ones((3, 3)), reach) if mask.any() else ~mask
    assert not (region & ~allowed).any()


@given(image=images(dtypes=("uint8", "int16", "float32")), seed=st.integers(0, 2**32 - 1))
def test_the_function_is_the_three_steps(image, seed):
    mask = any_mask(seed % 100, *image.shape[:2])
    out, region = ap.opacity(image, seed, mask=mask, return_mask=True)
    params = ap.sample_opacity(mask, seed)
    same, where = ap.apply_opacity(image, params, mask, return_mask=True)
    np.testing.assert_array_equal(out, same)
    np.testing.assert_array_equal(region, where)
    np.testing.assert_array_equal(ap.opacity(image, seed, mask=mask), out)


@given(data=st.data(), height=st.integers(16, 300), width=st.integers(16, 300))
def test_the_window_of_alpha_leaves_nothing_out(data, height, width):
    params = data.draw(any_params(height, width))
    mask = any_mask(data.draw(st.integers(0, 99)), height, width)
    alpha = ap.opacity_alpha(params, mask)
    with pytest.MonkeyPatch.context() as patch:  # every cell of the grid is worked on
        patch.setattr(functional, "meet", lambda _, __, cell, length: slice(0, -(-length // cell)))
        patch.setattr(functional, "extent", lambda flags, part: part)
        (rows, columns), whole = operations.Opacity.alpha_window(params, mask)
    assert (rows, columns) == (slice(0, height), slice(0, width))
    np.testing.assert_array_equal(alpha, whole)


def test_alpha_is_full_inside_the_lungs_and_soft_outside():
    mask = np.zeros((256, 256), bool)
    mask[60:200, 40:110] = True
    params = ap.OpacityParams("consolidation", 75, 130, 250, 250, 0, 200, 128, 3)
    confined, free = (ap.opacity_alpha(params, lungs) for lungs in (mask, mask & False))
    inner = (slice(64, 196), slice(44, 106))  # corners are rounded
    np.testing.assert_array_equal(confined[inner], free[inner])
    assert 0 < confined[130, 112] < free[130, 112]
    assert not confined[:, 120:].any()


def test_kinds_look_as_they_should():
    mask = np.zeros((256, 256), bool)
    mask[40:220, 30:120] = mask[40:220, 140:230] = True
    usual = {"angle": 0, "density": 200, "level": 128, "seed": 5}
    nodule = ap.opacity_alpha(ap.OpacityParams("nodule", 70, 100, 10, 10, **usual), mask) > 0
    y, x = np.nonzero(nodule)
    assert math.pi * 7**2 < nodule.sum() < math.pi * 13**2
    assert abs(x.mean() - 70) < 3
    assert abs(y.mean() - 100) < 3
    fluid = ap.opacity_alpha(ap.OpacityParams("effusion", 75, 170, 45, 20, **usual), mask)
    assert fluid[210, 34:116].min() == 200  # down to the base, as dense as it gets
    assert not fluid[:130].any()
    assert not fluid[:, 128:].any()  # in one lung
    narrow = ap.OpacityParams("effusion", 75, 100, 20, 5, **usual)
    assert ap.opacity_alpha(narrow, mask)[215, 75] == 200  # far below its axes
    top = (fluid > 100).argmax(0)
    assert top[38] + 8 < top[75]  # the meniscus
    assert top[112] + 8 < top[75]
    tilted = ap.OpacityParams("effusion", 75, 170, 45, 20, **{**usual, "angle": 15})
    top = (ap.opacity_alpha(tilted, mask) > 100).argmax(0)
    assert top[38] + 10 < top[112]


def test_the_bright_level_is_an_order_statistic_of_the_tissue_between_the_lungs():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 65536, (64, 64, 3)).astype(np.uint16)
    mask = np.zeros((64, 64), bool)
    mask[10:50, 8:20] = mask[10:50, 40:60] = True
    tissue = np.sort(image[10:50, 20:40].reshape(-1, 3), axis=0)
    for level in (0, 100, 255):
        expected = tissue[level * len(tissue) // 256]
        np.testing.assert_array_equal(functional.bright_level(image, level, mask), expected)
    whole = np.sort(image.reshape(-1, 3), axis=0)
    for lungs in (mask & False, mask | True):  # nothing beside them
        np.testing.assert_array_equal(functional.bright_level(image, 128, lungs), whole[2048])


def test_arithmetic():
    angles = np.arange(-90, 91)
    assert np.abs(functional.sine(angles) / 2**14 - np.sin(np.radians(angles))).max() < 0.002
    assert [functional.sine(a) for a in (-90, 0, 90)] == [-(2**14), 0, 2**14]
    for cells, length, cell, count in ((128, 256, 2, 7), (60, 299, 5, 31), (17, 17, 1, 1)):
        table = functional.spline_table(cells, length, cell, count)
        assert (table.sum(1) == 2**17).all()
        assert table.min() >= 0
    y, x = np.arange(200)[:, None], np.arange(200)
    white = functional.white_noise(3, y, x)
    assert stats.chisquare(np.bincount(white.ravel() + 128, minlength=256)).pvalue > 0.001
    assert abs(np.corrcoef(white[1:].ravel(), white[:-1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(white.ravel(), functional.white_noise(4, y, x).ravel())[0, 1]) < 0.02
    whole = functional.texture(9, (256, 256), 2, slice(0, 128), slice(0, 128))
    part = functional.texture(9, (256, 256), 2, slice(30, 50), slice(7, 90))
    np.testing.assert_array_equal(whole[30:50, 7:90], part)
    assert 100 < whole.std() < np.abs(whole).max() < 896


def test_pictures_of_every_size_look_alike():
    shares = {}
    for size in (64, 256, 1024):
        mask = ap.lung_mask_robust(phantom_radiograph(size, rng=0))
        alphas = [ap.opacity_alpha(ap.sample_opacity(mask, s), mask) for s in range(40)]
        shares[size] = np.mean([alpha.mean() for alpha in alphas])
    assert all(0.75 < share / shares[256] < 1.3 for share in shares.values()), shares


def test_pillow_and_channels(phantom):
    out = ap.opacity(Image.fromarray(phantom), 0)
    assert out.mode == "L"
    np.testing.assert_array_equal(np.asarray(out), ap.opacity(phantom, 0))
    assert ap.opacity(phantom[None], 0).shape == (1, 256, 256)


# --- what is drawn --------------------------------------------------------------------------------


def column(drawn, name):
    return np.array([getattr(one, name) for one in drawn])


def test_distributions():
    rng = np.random.default_rng(0)
    mask = np.zeros((256, 256), bool)
    mask[40:200, 20:100] = mask[60:220, 140:240] = True
    drawn = [ap.sample_opacity(mask, rng) for _ in range(8000)]
    counts = [sum(one.kind == kind for one in drawn) for kind in KINDS]
    assert stats.chisquare(counts).pvalue > 0.001
    assert stats.kstest(column(drawn, "seed") / 2**31, "uniform").pvalue > 0.001
    assert stats.chisquare(np.bincount(column(drawn, "level"))[90:201]).pvalue > 0.001
    for kind in KINDS:
        some = [one for one in drawn if one.kind == kind]
        low, high = DENSITY[kind]
        times = np.bincount(column(some, "density") - low, minlength=high - low + 1)
        assert len(times) == high - low + 1
        assert stats.chisquare(times).pvalue > 0.001
        if kind == "effusion":
            continue
        assert mask[column(some, "center_y"), column(some, "center_x")].all()
        assert stats.chisquare(np.bincount(column(some, "angle") + 90)).pvalue > 0.001
        assert (column(some, "angle").min(), column(some, "angle").max()) == (-90, 89)
        rx, ry = column(some, "radius_x") + 0.0, column(some, "radius_y") + 0.0
        radius, stretch = np.log(rx * ry) / 2, np.log(rx / ry) / 2
        ends = np.log(RADIUS[kind])
        assert abs(radius.mean() - ends.mean()) < 0.04
        assert ends[0] - 0.1 < radius.min() < ends[0] + 0.1
        assert ends[1] - 0.1 < radius.max() < ends[1] + 0.1
        assert abs(np.abs(stretch).mean() - STRETCH[kind] / 2) < 0.03
    fluid = [one for one in drawn if one.kind == "effusion"]
    left = [one for one in fluid if one.center_x < 120]
    right = [one for one in fluid if one.center_x >= 120]
    assert abs(len(left) / len(fluid) - 80 / 180) < 0.05  # as many as there are pixels
    for some, middle, width, base, sign in ((left, 59, 40, 199, 1), (right, 189, 50, 219, -1)):
        assert set(column(some, "center_x")) == {middle}
        assert set(column(some, "radius_x")) == {width}
        heights = (base - column(some, "center_y")) / 160
        assert stats.kstest(heights, stats.uniform(0.04, 0.34).cdf).pvalue > 1e-4
        rise = column(some, "radius_y") / 160
        assert stats.kstest(rise, stats.uniform(0.05, 0.11).cdf).statistic < 0.1
        assert set(column(some, "angle") * sign) == set(range(16))


def test_halves_of_odd_masks():
    def box(x):
        (rows, columns), side = functional.one_lung(lungs, x)
        return rows.start, rows.stop, columns.start, columns.stop, side

    lungs = np.zeros((20, 31), bool)
    assert box(3) == (0, 20, 0, 15, 1)
    assert box(15) == (0, 20, 15, 31, -1)
    lungs[5:9, 7] = True
    assert box(7) == (5, 9, 7, 8, -1)
    lungs[2, 30] = True
    assert box(7) == (5, 9, 7, 8, 1)
    assert box(30) == (2, 3, 30, 31, -1)


def test_options():
    mask = np.ones((256, 256), bool)
    for size, factor in ((256, 1), (64, 0.25), (1024, 4)):
        lungs = np.ones((size, size), bool)
        drawn = [ap.sample_opacity(lungs, s, kinds="haze") for s in range(60)]
        radius = np.sqrt(column(drawn, "radius_x") * column(drawn, "radius_y")) / factor
        assert 53 < radius.min() < 65
        assert 110 < radius.max() < 133
    large = [ap.sample_opacity(mask, s, kinds="nodule", size=3, density=0.5) for s in range(60)]
    assert 14 < np.sqrt(column(large, "radius_x") * column(large, "radius_y")).min() < 20
    assert column(large, "density").max() <= 70
    assert ap.sample_opacity(mask, 0, density=255).density == 255
    assert ap.sample_opacity(mask[:64, :64], 0, lengths_for=None, kinds="haze").radius_x > 30
    some = [ap.sample_opacity(mask, s, kinds=["haze", "nodule"]).kind for s in range(40)]
    assert set(some) == {"haze", "nodule"}
    assert repr(operations.Opacity("haze", 2)) == (
        "Opacity(kinds=('haze',), size=2, density=1, lengths_for=256)"
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kinds": "mass"}, ValueError, r"kinds must be out of \('consolidation', .* got 'mass'"),
        ({"kinds": ()}, ValueError, r"kinds must be out of .* got \(\)"),
        ({"kinds": ["haze", "haze"]}, ValueError, "each once"),
        ({"kinds": 3}, TypeError, "kinds must be a word or several, got 3"),
        ({"kinds": [3]}, ValueError, r"got \[3\]"),
        ({"size": 0}, ValueError, "size must lie in 0.01..100, got 0"),
        ({"density": -1}, ValueError, "density must lie in 0..255, got -1"),
        ({"density": (1, 2)}, TypeError, r"density must be a number, got \(1, 2\)"),
        ({"lengths_for": 0}, ValueError, "lengths_for must be at least 1"),
    ],
)
def test_bad_options(phantom, options, error, message):
    for call in (lambda: ap.opacity(phantom, **options), lambda: operations.Opacity(**options)):
        with pytest.raises(error, match=message):
            call()


PARAMS = ap.OpacityParams("haze", 30, 30, 20, 10, 5, 200, 100, 7)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("kind", "mass", ValueError),
        ("center_x", -1, ValueError),
        ("center_y", 2.0, TypeError),
        ("radius_x", 0, ValueError),
        ("radius_y", 2**21, ValueError),
        ("angle", 91, ValueError),
        ("density", 256, ValueError),
        ("level", -1, ValueError),
        ("seed", 2**31, ValueError),
        ("seed", None, TypeError),
    ],
)
def test_bad_params(field, value, error):
    with pytest.raises(error, match=rf"{field} must .*, got"):
        dataclasses.replace(PARAMS, **{field: value})


def test_bad_input(phantom):
    mask = phantom > 9
    with pytest.raises(ValueError, match="center must lie inside the image of height 25"):
        ap.apply_opacity(phantom[:25], PARAMS)
    for call in (lambda p: ap.opacity_alpha(p, mask), lambda p: ap.apply_opacity(phantom, p)):
        with pytest.raises(TypeError, match="params must be OpacityParams, got dict"):
            call({})
    with pytest.raises(ValueError, match="mask and segment must not be given together"):
        ap.opacity(phantom, mask=mask, segment=ap.lung_mask)


if __name__ == "__main__":
    write_golden()
