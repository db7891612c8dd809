"""The batch against the functional form: each element alone, with the same parameters."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import any_mask, any_params, any_paste, real_data
from conftest import images as numpy_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph

torch = pytest.importorskip("torch", reason="needs torch")
skimage_label = pytest.importorskip("skimage.measure", reason="needs scikit-image").label
clip_histogram = pytest.importorskip("skimage.exposure._adapthist").clip_histogram

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from anatpaste_aug import batch, operations  # noqa: E402
from anatpaste_aug import clahe as functional_clahe  # noqa: E402
from anatpaste_aug import regions as functional_regions  # noqa: E402
from anatpaste_aug.batch import (  # noqa: E402
    anatpaste,
    clahe,
    cutpaste,
    kernels,
    lungs,
    opacity,
    regions,
    tensors,
)
from anatpaste_aug.operations.cutpaste import bounding_box  # noqa: E402
from anatpaste_aug.operations.opacity import DENSITY, KINDS  # noqa: E402

FORMS = ("plain", "functional")
MODULES = (
    batch.AnatPaste,
    batch.CutPaste,
    batch.CutPasteScar,
    batch.CutPasteUnion,
    batch.Opacity,
)
SIGNED = (torch.int16, torch.int32)
INTEGERS = (torch.uint8, torch.uint16, *SIGNED)
FLOATS = (torch.float16, torch.float32, torch.float64)


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Run a test in the plain form, which GPUs use, and in the CPU's own, both on the CPU."""
    if request.param == "plain":
        use_plain(monkeypatch)
    return request.param


def use_plain(monkeypatch):
    monkeypatch.setattr(lungs, "_lung_mask", lungs.mask_plain)
    monkeypatch.setattr(anatpaste, "_paste", anatpaste.paste_plain)
    monkeypatch.setattr(cutpaste, "_cutpaste", cutpaste.cutpaste_plain)
    monkeypatch.setattr(opacity, "_opacity", opacity.opacity_plain)


def random_images(shape, dtype, seed=0):
    """Make images with large dark and bright parts, and negative ones where the dtype has them."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((shape[0], 1, -(-shape[-2] // 8), -(-shape[-1] // 8)))
    blobs = np.kron(coarse, np.ones((1, 1, 8, 8)))[..., : shape[-2], : shape[-1]]
    unit = 0.8 * blobs + 0.2 * rng.random(shape)
    low, high = {
        torch.uint8: (0, 255),
        torch.uint16: (0, 65535),
        torch.int16: (-1024, 3000),
        torch.int32: (-70000, 70000),
        torch.float16: (-1, 1),
        torch.float32: (0, 1),
        torch.float64: (-1000, 1000),
    }[dtype]
    values = low + unit * (high - low)
    return torch.from_numpy(values if dtype.is_floating_point else values.astype(np.int64)).to(
        dtype
    )


def random_masks(count, height, width):
    """Make one empty mask, and rectangles."""
    masks = torch.zeros(count, 1, height, width, dtype=torch.bool)
    for i in range(1, count):
        masks[i, :, i : height // 2 + i, width // 4 : width - i] = True
    return masks


def alone(image):
    """Give one image of a batch as the functional form takes it."""
    array = (image if image.ndim == 3 else image[None]).numpy()
    array = array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def assert_alone(out, images, function):
    """Replay every element alone and compare: integers exactly, floats within 1e-6."""
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    for i in range(len(images)):
        expected, got = function(alone(images[i]), i), alone(out[i])
        if images.dtype == torch.float16:
            expected = expected.astype(np.float16).astype(np.float32)
        if images.dtype.is_floating_point:
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
        else:
            np.testing.assert_array_equal(got, expected)


# --- the lung mask --------------------------------------------------------------------------------


def plain_masks(images, min_area=400):
    images = tensors.as_images(images)
    return lungs.mask_plain(images, min_area, tensors.everyone(images)).numpy()


def test_golden_masks():
    golden = np.load(real_data("golden") / "reference256.npz")
    expected = np.unpackbits(golden["masks"], axis=-1).astype(bool)
    np.testing.assert_array_equal(
        plain_masks(torch.from_numpy(golden["images"])[:, None]), expected
    )


@pytest.mark.parametrize("largest", [300, pytest.param(4096, marks=pytest.mark.slow)])
def test_golden_masks_of_all_sizes(largest):
    golden = np.load(real_data("golden") / "reference_sizes.npz")
    for i in range(int(golden["count"])):
        image = golden[f"image_{i}"]
        if max(image.shape) <= largest:
            expected = np.unpackbits(golden[f"mask_{i}"], axis=-1)[:, : image.shape[1]]
            got = plain_masks(torch.from_numpy(image)[None, None])[0]
            np.testing.assert_array_equal(got, expected.astype(bool))


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 256])
def test_whole_data_set(size):
    paths = sorted(real_data("data/zhanglab224").rglob("*.jp*g"))
    assert len(paths) == 2073
    for start in range(0, len(paths), 16):
        grey = [Image.open(path).convert("L") for path in paths[start : start + 16]]
        arrays = [np.array(image.resize((size, size), Image.Resampling.BILINEAR)) for image in grey]
        expected = np.stack([ap.lung_mask(array) for array in arrays])
        np.testing.assert_array_equal(
            plain_masks(torch.from_numpy(np.stack(arrays))[:, None]), expected
        )


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("shape", [(3, 1, 72, 90), (2, 1, 64, 64), (2, 3, 33, 80)])
def test_lung_mask_alone(form, shape, dtype):
    images = random_images(shape, dtype, seed=len(shape))
    masks = batch.lung_mask(images, min_area=40)
    assert masks.shape == (shape[0], 1, *shape[-2:])
    assert masks.dtype == torch.bool
    for i in range(shape[0]):
        expected = ap.lung_mask(alone(images[i]), min_area=40)
        np.testing.assert_array_equal(masks[i, 0].numpy(), expected)


@settings(max_examples=40)
@given(image=numpy_images(max_side=70), min_area=st.sampled_from([0, 25, 26, 30, 60, 400, 10**6]))
def test_lung_mask_of_any_image(image, min_area):
    variants = np.stack([image, image[::-1], image[:, ::-1]])
    images = torch.from_numpy(
        variants[:, None] if image.ndim == 2 else variants.transpose(0, 3, 1, 2).copy()
    )
    masks = plain_masks(images, min_area)
    for array, got in zip(variants, masks, strict=True):
        np.testing.assert_array_equal(got, ap.lung_mask(array, min_area=min_area))


@settings(max_examples=100)
@given(data=st.data(), size=st.sampled_from([4, 25, 99, 100, 199, 200, 784, 1024, 4096, 16384]))
def test_clipping_needs_no_more_deals_than_proved(data, size):
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    used = data.draw(st.sampled_from([1, 2, 5, 40, 100, 103, 150, 256]))
    skew = data.draw(st.sampled_from([0, 1, 5]))
    bins = rng.permutation(256)[:used] if rng.random() < 0.5 else np.arange(256)[-used:]
    weights = rng.random(used) ** skew
    counts = np.bincount(rng.choice(bins, size, p=weights / weights.sum()), minlength=256)
    got = clahe.clip_histograms(torch.from_numpy(counts).int()[None], size)[0]
    expected = clip_histogram(counts.copy(), max(int(0.01 * size), 1))
    np.testing.assert_array_equal(got.numpy(), expected)


def spiral(size, width=1, gap=1):
    """Draw a line that winds to the middle; `gap` pixels lie between its turns."""
    out = np.zeros((size, size), bool)
    y = x = 1
    dy, dx, steps, turns = 0, 1, size - 2 - width, 0
    while steps > 0:
        for _ in range(steps):
            out[y : y + width, x : x + width] = True
            y, x = y + dy, x + dx
        out[y : y + width, x : x + width] = True
        dy, dx, turns = dx, -dy, turns + 1
        steps -= (width + gap) if turns >= 3 and turns % 2 else 0
    return out


def hard_masks(size=96):
    """Draw what takes many rounds to label."""
    y, x = np.mgrid[:size, :size]
    rng = np.random.default_rng(0)
    comb = (x % 2 == 0) | (y == size - 1)
    serpentine = (y % 2 == 0) | ((x == 0) & (y % 4 == 1)) | ((x == size - 1) & (y % 4 == 3))
    masks = [
        spiral(size),
        comb,
        comb[::-1],
        comb.T,
        serpentine,
        serpentine.T,
        (y + x) % 2 == 0,
        (y % 2 == 0) & (x % 2 == 0),
        np.ones_like(comb),
        np.zeros_like(comb),
        (y - x) % 3 == 0,
    ]
    return np.stack(masks + [rng.random((size, size)) < share for share in (0.2, 0.4, 0.5, 0.7)])


@pytest.mark.parametrize("crop", [(0, 0), (1, 0), (0, 3)])
def test_labels_are_those_of_scikit_image(crop):
    masks = hard_masks()[:, crop[0] :, crop[1] :]
    labels = regions.label(torch.from_numpy(masks.copy())).numpy()
    for inside, got in zip(masks, labels, strict=True):
        expected = skimage_label(inside, connectivity=2)
        pairs = np.unique(np.stack([expected[inside], got[inside]]), axis=1)
        # As many pairs as labels of either kind: a one-to-one relation.
        assert pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
        assert (got[~inside] == inside.size).all()


def functional_boxes(inside, min_area):
    return functional_regions.clear_small_boxes(inside, min_area)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0.01, 0.6),
    min_area=st.sampled_from([25, 26, 50, 150, 400]),
)
def test_regions_of_any_mask(seed, share, min_area):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(16, 90, 2)
    sparse = rng.random((2, height, width)) < share**2
    long = sparse.copy()  # lines make large boxes
    for _ in range(10):
        y, x, length = rng.integers(0, height), rng.integers(0, width), rng.integers(1, 60)
        long[:, y : y + length, x] = True
        long[:, y, x : x + length] = True
    inside = regions.clear_border(torch.from_numpy(np.concatenate([sparse, long])))
    inside = regions.dilate(inside)
    inside = regions.dilate(regions.erode(inside))
    inside = regions.dilate(regions.clear_border(inside))  # up to the border
    got = regions.clear_small_boxes(inside, min_area)
    for one, cleared in zip(inside.numpy(), got.numpy(), strict=True):
        np.testing.assert_array_equal(cleared, functional_boxes(one, min_area))


def hooks(rng, size=90):
    """Draw hooks of 5 pixels' width that do not touch: their boxes hold parts of other hooks."""
    inside, areas = np.zeros((size + 2, size + 2), bool), []
    for _ in range(60):
        height, width = rng.integers(8, 45, 2)
        hook = np.zeros((height, width), bool)
        hook[:, :5] = hook[-5:] = True
        hook[: rng.integers(5, height), -5:] |= rng.random() < 0.3
        hook = np.rot90(hook, rng.integers(4))
        y, x = rng.integers(1, size + 2 - np.array(hook.shape))  # up to the border
        window = slice(y - 1, y + hook.shape[0] + 1), slice(x - 1, x + hook.shape[1] + 1)
        room = regions.dilate(torch.from_numpy(np.pad(hook, 1))[None])[0].numpy()
        if not (inside[window] & room).any():
            inside[y : y + hook.shape[0], x : x + hook.shape[1]] |= hook
            areas.append(np.count_nonzero(hook))
    return inside[1:-1, 1:-1], areas


@pytest.mark.parametrize("size", [(17, 17), (23, 35), (16, 22)])
def test_as_many_regions_as_fit(size):
    mask = torch.zeros(1, *size, dtype=torch.bool)
    for dy in range(5):
        for dx in range(5):
            mask[:, dy:, dx:][:, : size[0] - 4 : 6, : size[1] - 4 : 6] = True
    region, _, area = regions.measure(mask)
    squares = (size[0] + 1) // 6 * ((size[1] + 1) // 6)
    assert (area == 25).sum() == squares <= area.shape[1]
    assert region[mask].unique().numel() == squares
    assert torch.equal(regions.clear_small_boxes(mask, 25), mask)
    assert not regions.clear_small_boxes(mask, 26).any()


def without_order(inside, min_area):
    """Remove the boxes of what is small from the start, then of what is small after that."""
    labels = skimage_label(inside, connectivity=2)
    left = labels.copy()
    for _ in range(2):
        for number in np.flatnonzero(np.bincount(left.ravel(), minlength=1) < min_area):
            y, x = np.nonzero(labels == number)
            if y.size:
                left[y.min() : y.max() + 1, x.min() : x.max() + 1] = 0
    return left > 0


def test_boxes_that_cut_others():
    order_matters = 0
    for seed in range(40):
        inside, areas = hooks(np.random.default_rng(seed))
        masks = torch.from_numpy(np.stack([inside, inside[::-1], inside.T, inside.T[::-1]]))
        min_area = int(np.quantile(areas, 0.1 + 0.02 * seed))
        got = regions.clear_small_boxes(masks, min_area).numpy()
        for one, cleared in zip(masks.numpy(), got, strict=True):
            expected = functional_boxes(one, min_area)
            np.testing.assert_array_equal(cleared, expected)
            order_matters += bool((expected != without_order(one, min_area)).any())
    assert order_matters > 10


def test_threshold_keeps_the_first_of_equal_maxima():
    # Two grey values: every bin between them separates them equally well.
    levels = torch.full((2, 20, 20), 100, dtype=torch.int32)
    levels[:, 5:] = 9000
    levels[1, 0, 0] = 0
    for dtype in (torch.float32, torch.float64):
        got = clahe.dark_side(levels, dtype).numpy()
        for one, dark in zip(levels.numpy().astype(np.uint16), got, strict=True):
            expected = functional_clahe.dark_side(one, str(dtype).removeprefix("torch."))
            np.testing.assert_array_equal(dark, expected)


class Reciprocals(TorchDispatchMode):
    """Divide by plain numbers as CUDA does: multiply with the rounded reciprocal."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.div.Tensor and not isinstance(args[1], torch.Tensor):
            return args[0] * (1 / args[1])
        return func(*args, **(kwargs or {}))


def test_levels_where_division_is_by_reciprocals():
    bins = torch.from_numpy(np.random.default_rng(0).integers(0, 253, (1, 768, 1024))).int()
    expected = clahe.equalise(bins)
    with Reciprocals():
        assert torch.tensor(5.0) / 49 != torch.tensor(5.0) / torch.tensor(49.0)
        assert torch.equal(clahe.equalise(bins), expected)


def test_masks_where_division_is_by_reciprocals():
    image = phantom_radiograph(392, rng=0)
    images = torch.from_numpy(np.stack([image[:296], image[-296:]]))
    with Reciprocals():
        got = plain_masks(images[:, None])
    for one, found in zip(images.numpy(), got, strict=True):
        np.testing.assert_array_equal(found, ap.lung_mask(one))


def test_blur_where_division_is_by_reciprocals():
    drawn, masks = shapes(blur_radius=list(range(64))), torch.zeros(64, 120, 120) > 0
    expected = anatpaste.draw_alpha(drawn, masks)
    with Reciprocals():
        assert torch.equal(anatpaste.draw_alpha(drawn, masks), expected)


# --- pasting --------------------------------------------------------------------------------------


def test_golden_pastes(form):
    golden = np.load(real_data("golden") / "reference256.npz")
    cases = json.loads(str(golden["params"]))
    index = [case.pop("image") for case in cases]
    found = torch.tensor([case.pop("lung_found") for case in cases])
    masks = torch.from_numpy(np.unpackbits(golden["masks"], axis=-1).astype(bool))[index]
    masks &= found[:, None, None]
    drawn = batch.PasteParams.stack(ap.PasteParams(**case) for case in cases)
    images = torch.from_numpy(golden["images"])[index][:, None]
    np.testing.assert_array_equal(batch.paste_alpha(drawn, masks)[:, 0], golden["alphas"])
    out = batch.apply_paste(images, drawn, masks)
    np.testing.assert_array_equal(out[:, 0], golden["outputs"])


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("shape", [(5, 1, 40, 61), (5, 1, 64, 64), (5, 3, 33, 47)])
def test_paste_alone(form, shape, dtype):
    images = random_images(shape, dtype)
    before = images.clone()
    masks = random_masks(5, *shape[-2:])
    drawn = batch.sample_paste(masks, torch.Generator().manual_seed(1), margin=3, scale=(0.02, 0.6))
    out = batch.apply_paste(images, drawn, masks)
    assert_alone(out, images, lambda a, i: ap.apply_paste(a, drawn[i], masks[i, 0].numpy()))
    assert_alone(batch.apply_paste(images, drawn), images, lambda a, i: ap.apply_paste(a, drawn[i]))
    alpha = batch.paste_alpha(drawn, masks)
    for i in range(5):
        np.testing.assert_array_equal(alpha[i, 0], ap.paste_alpha(drawn[i], masks[i, 0].numpy()))
    assert torch.equal(images, before)


@settings(max_examples=40)
@given(image=numpy_images(max_side=64), data=st.data())
def test_paste_of_any_image_and_parameters(image, data):
    height, width = image.shape[:2]
    singles = [any_paste(data.draw, height, width) for _ in range(3)]
    seed = data.draw(st.integers(0, 99))
    masks = np.random.default_rng(seed).random((3, height, width)) < [[[0]], [[0.5]], [[1]]]
    arrays = np.stack([image] * 3)
    images = torch.from_numpy(
        arrays[:, None] if image.ndim == 2 else arrays.transpose(0, 3, 1, 2).copy()
    )
    checked, lungs = tensors.as_images(images), torch.from_numpy(masks)
    drawn = batch.PasteParams.stack(singles)
    assert drawn.unstack() == singles == [drawn[i] for i in range(3)]
    out, alpha = anatpaste.paste_plain(checked, drawn.tensors(), lungs, tensors.everyone(checked))
    assert_alone(out, checked, lambda a, i: ap.apply_paste(a, singles[i], masks[i]))
    for i in range(3):
        np.testing.assert_array_equal(alpha[i, 0], ap.paste_alpha(singles[i], masks[i]))


def shapes(**fields):
    """Give parameters of shapes in the middle of 200 x 200 pixels; lists make a batch."""
    count = max(len(value) for value in fields.values())
    usual = {"crop_x": 0, "crop_y": 0, "center_x": 99, "center_y": 99, "shape": 0, "opacity": 255}
    usual |= {"margin": 0, "blur_radius": 0, "width": 60, "height": 80}
    columns = {
        name: torch.tensor(fields[name]) if name in fields else torch.full((count,), value)
        for name, value in usual.items()
    }
    one = torch.ones(count)
    return batch.PasteParams(**columns, brightness=one, contrast=one)


@pytest.mark.parametrize("half_h", [*range(0, 12), 17, 31, 50, 99])
def test_ellipses_are_pillows(half_h):
    widths = list(range(0, 99, 1 if half_h < 12 else 3))
    drawn = anatpaste.draw_shape(
        shapes(width=[2 * w + 1 for w in widths], height=[2 * half_h + 1] * len(widths)), 200, 200
    )
    for half_w, got in zip(widths, drawn.numpy(), strict=True):
        canvas = Image.new("L", (200, 200))
        box = (99 - half_w, 99 - half_h, 99 + half_w, 99 + half_h)
        ImageDraw.Draw(canvas).ellipse(box, fill=255)
        np.testing.assert_array_equal(got, np.asarray(canvas))


def test_blur_is_pillows():
    radii = [*range(0, 31), 45, 77, 150]
    masks = torch.zeros(len(radii), 120, 90, dtype=torch.bool)
    drawn = shapes(blur_radius=radii, center_x=[3] * len(radii))
    got = anatpaste.draw_alpha(drawn, masks).numpy()
    canvas = Image.new("L", (90, 120))
    ImageDraw.Draw(canvas).ellipse((3 - 30, 99 - 40, 3 + 30, 99 + 40), fill=255)
    for radius, alpha in zip(radii, got, strict=True):
        expected = np.asarray(canvas.filter(ImageFilter.GaussianBlur(radius)))
        np.testing.assert_array_equal(alpha, expected)


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("shape", [(5, 1, 40, 61), (5, 3, 33, 47)])
@pytest.mark.parametrize("sample", [batch.sample_cutpaste, batch.sample_scar])
def test_cutpaste_alone(form, sample, shape, dtype):
    images = random_images(shape, dtype)
    drawn = sample(images, torch.Generator().manual_seed(2))
    out, changed = batch.apply_cutpaste(images, drawn, return_mask=True)
    assert_alone(out, images, lambda a, i: ap.apply_cutpaste(a, drawn[i]))
    for i in range(5):
        _, expected = ap.apply_cutpaste(alone(images[i]), drawn[i], return_mask=True)
        np.testing.assert_array_equal(changed[i, 0], expected)


def test_scars_at_any_angle(form):
    images = random_images((60, 1, 40, 40), torch.uint8)
    angles = [-180, -90, -45, -30, 0, 30, 45, 60, 90, 135, 180, 360, *range(-24, 24)]
    singles = [
        ap.CutPasteParams(3, 4, 7, 20, 9 + i % 20, 2 + i % 9, a) for i, a in enumerate(angles)
    ]
    drawn = batch.CutPasteParams.stack(singles)
    out = batch.apply_cutpaste(images, drawn)
    assert_alone(out, images, lambda a, i: ap.apply_cutpaste(a, singles[i]))


def test_parameters_of_any_precision(form):
    # uint8 would wrap, and the box of float32's sine of -180 degrees is a pixel wider.
    images = random_images((4, 1, 64, 300), torch.uint8)
    angles = [-180.0, 90.0, 0.0, 30.0]
    cuts = [ap.CutPasteParams(200, 4, 17, 20, 100 + i, 12, a) for i, a in enumerate(angles)]
    pastes = [ap.PasteParams(200, 4, 40, 40, 3, 30, "ellipse", 2, 254, 10)] * 4
    for singles, apply in ((cuts, batch.apply_cutpaste), (pastes, batch.apply_paste)):
        kind = batch.CutPasteParams if apply is batch.apply_cutpaste else batch.PasteParams
        wide = kind.stack(singles)
        narrow = kind(
            *(f.to(torch.float32 if f.is_floating_point() else torch.uint8) for f in wide.tensors())
        )
        assert {f.dtype for f in narrow.tensors()} == {torch.int64, torch.float64}
        expected = apply(images, wide, return_mask=True)
        for one, other in zip(apply(images, narrow, return_mask=True), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [-1, 2])
def test_words_are_checked_when_params_are_used(shape):
    images = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    drawn = batch.PasteParams.stack([ap.PasteParams(0, 0, 20, 20, 30, 30, "ellipse", 3, 200, 5)])
    wrong = batch.PasteParams(
        *(torch.tensor([shape]) if n == "shape" else getattr(drawn, n) for n in drawn.kinds)
    )
    for use in (lambda: wrong[0], lambda: batch.apply_paste(images, wrong)):
        with pytest.raises(ValueError, match=rf"shape must lie in 0..1, got {shape}"):
            use()


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("shape", [(6, 1, 40, 61), (6, 1, 200, 300), (6, 3, 33, 47)])
def test_opacity_alone(form, shape, dtype):
    images = random_images(shape, dtype)
    before = images.clone()
    masks = random_masks(6, *shape[-2:])
    drawn = batch.sample_opacity(masks, torch.Generator().manual_seed(1), size=0.6)
    out, changed = batch.apply_opacity(images, drawn, masks, return_mask=True)
    assert_alone(out, images, lambda a, i: ap.apply_opacity(a, drawn[i], masks[i, 0].numpy()))
    free = batch.apply_opacity(images, drawn)
    assert_alone(free, images, lambda a, i: ap.apply_opacity(a, drawn[i]))
    alpha = batch.opacity_alpha(drawn, masks)
    for i in range(6):
        np.testing.assert_array_equal(alpha[i, 0], ap.opacity_alpha(drawn[i], masks[i, 0].numpy()))
    assert torch.equal(changed, alpha > 0)
    assert torch.equal(images, before)
    working = tensors.working
    assert (working(out) >= working(images)).all()


@settings(max_examples=60)
@given(data=st.data(), height=st.integers(16, 300), width=st.integers(16, 300))
def test_opacities_of_any_size_and_parameters(data, height, width):
    # The whole grid against the window of it that the functional form works in.
    singles = [data.draw(any_params(height, width)) for _ in range(4)]
    masks = np.stack([any_mask(data.draw(st.integers(0, 99)), height, width) for _ in range(4)])
    drawn = batch.OpacityParams.stack(singles)
    assert drawn.unstack() == singles
    alpha = opacity.draw_alpha(drawn, torch.from_numpy(masks))
    for i, single in enumerate(singles):
        np.testing.assert_array_equal(alpha[i], ap.opacity_alpha(single, masks[i]))


def test_distributions_of_opacities():
    torch.manual_seed(0)
    count = 20000
    lungs = torch.zeros(1, 64, 100, dtype=torch.bool)
    lungs[0, 10:50, 5:30] = lungs[0, 15:60, 50:90] = True
    lungs = lungs.expand(count, -1, -1)
    drawn = batch.sample_opacity(lungs)
    for kind in range(4):
        some = drawn.kind == kind
        assert abs(some.double().mean() - 0.25) < 0.02
        low, high = DENSITY[KINDS[kind]]
        assert (drawn.density[some].min(), drawn.density[some].max()) == (low, high)
        assert abs(drawn.density[some].double().mean() - (low + high) / 2) < 1
    lesion, fluid = drawn.kind < 3, drawn.kind == 3
    assert lungs[0][drawn.center_y[lesion], drawn.center_x[lesion]].all()
    assert drawn.angle[lesion].unique().tolist() == list(range(-90, 90))
    assert drawn.level.unique().tolist() == list(range(90, 201))
    assert abs(drawn.seed.double().mean() / 2**30 - 1) < 0.02
    for middle, base, sign in ((17, 49, 1), (69, 59, -1)):
        some = fluid & (drawn.center_x == middle)
        assert abs(some.sum() / fluid.sum() - (1000 if sign > 0 else 1800) / 2800) < 0.03
        heights = base - drawn.center_y[some]
        assert (heights.min(), heights.max()) in ((2, 15), (2, 17))
        assert (drawn.angle[some] * sign).unique().tolist() == list(range(16))
        draws = batch.TorchDraws(lungs[:2], None)
        box = [part[0].item() for part in draws.half(lungs[:2], torch.tensor([middle] * 2))]
        assert box == ([10, 50, 5, 30, 1] if sign > 0 else [15, 60, 50, 90, -1])
    one = batch.sample_opacity(lungs[:99], kinds="nodule")
    assert one.kind.unique().tolist() == [2]


def test_params_that_are_no_params_stay_inside_the_tensors():
    # A GPU does not look at values: whatever they are, nothing is read from outside.
    images = random_images((3, 1, 64, 80), torch.uint8)
    fields = [torch.tensor([-(10**6), 0, 10**9]) for _ in batch.OpacityParams.kinds]
    everyone = tensors.everyone(images)
    for masks in (random_masks(3, 64, 80)[:, 0], torch.ones(3, 64, 80, dtype=torch.bool)):
        out, alpha = opacity.opacity_plain(images, fields, masks, everyone)
        assert out.shape == images.shape
        assert alpha.shape == images.shape


def test_apply_gives_what_the_functions_give(form):
    images = random_images((3, 1, 64, 80), torch.uint8)
    masks = random_masks(3, 64, 80)
    paste, cut = batch.sample_paste(masks), batch.sample_cutpaste(images)
    out, regions = batch.apply_paste(images, paste, masks, return_mask=True)
    assert torch.equal(batch.apply_paste(images, paste, masks), out)
    cut_out, cut_regions = batch.apply_cutpaste(images, cut, return_mask=True)
    assert torch.equal(batch.apply_cutpaste(images, cut), cut_out)
    for i in range(3):
        one = ap.apply_paste(alone(images[i]), paste[i], masks[i], return_mask=True)
        two = ap.apply_cutpaste(alone(images[i]), cut[i], return_mask=True)
        for got, expected in zip(
            (out[i], regions[i], cut_out[i], cut_regions[i]), one + two, strict=True
        ):
            np.testing.assert_array_equal(got[0], expected)


# --- modules --------------------------------------------------------------------------------------


def test_modules_return_named_tuples_and_take_masks(form):
    images = random_images((4, 1, 64, 64), torch.uint8)
    masks = random_masks(4, 64, 64)
    for kind in MODULES:
        got = kind(1.0)(images, masks=masks, generator=torch.Generator().manual_seed(0))
        assert got._fields == ("images", "regions", "labels")
        assert got.images is got[0]


def test_published_function_as_segmenter(form):
    images = torch.from_numpy(phantom_radiograph(128, rng=0))[None, None]
    torch.manual_seed(0)
    expected = batch.AnatPaste(1.0)(images)
    torch.manual_seed(0)
    got = batch.AnatPaste(1.0, segment=ap.lung_mask)(images)
    assert torch.equal(got.images, expected.images)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("p", [0, 0.5, 1])
def test_modules(form, kind, p):
    images = random_images((12, 1, 64, 64), torch.uint8)
    module = kind(p)
    out, changed, labels = module(images, generator=torch.Generator().manual_seed(0))
    again = module(images, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip((out, changed, labels), again, strict=True))
    other = module(images, generator=torch.Generator().manual_seed(1))
    assert p == 0 or not torch.equal(out, other[0])
    assert out.dtype == torch.uint8
    assert changed.shape == (12, 1, 64, 64)
    assert changed.dtype == torch.bool
    assert labels.dtype == torch.int64
    assert labels.sum() == {0: 0, 1: 12}.get(p, labels.sum())
    assert set(labels.tolist()) == ({0, 1} if p == 0.5 else {p})
    assert (changed.flatten(1).any(1).long() <= labels).all()
    assert torch.equal(out[labels == 0], images[labels == 0])
    assert torch.equal(out[~changed], images[~changed])
    assert repr(eval(repr(module), {kind.__name__: kind})) == repr(module)
    assert repr(module).startswith(f"{kind.__name__}(p={p}, ")
    assert ("segment=None" in repr(module)) == kind.operation.needs_lungs


def test_both_forms_draw_the_same(monkeypatch):
    images = random_images((6, 1, 64, 64), torch.uint8)
    for kind in MODULES:
        torch.manual_seed(0)
        fast = kind(0.5)(images)
        with monkeypatch.context() as patch:
            use_plain(patch)
            torch.manual_seed(0)
            plain = kind(0.5)(images)
        assert all(torch.equal(a, b) for a, b in zip(fast, plain, strict=True))


def test_anatpaste_takes_masks_and_segmenters(form):
    images = random_images((8, 1, 64, 64), torch.uint8)
    masks = torch.zeros(8, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 20:40, 10:30] = True
    given_masks = batch.AnatPaste(1.0, margin=2)(images, masks=masks).regions
    segmented = batch.AnatPaste(1.0, margin=2, segment=lambda images: masks.int())(images).regions
    for changed in (given_masks, segmented):
        assert changed.flatten(1).any(1).all()
        assert not (changed & ~masks).any()


def test_one_of_several(form):
    images = random_images((60, 1, 64, 64), torch.uint8)
    masks = random_masks(60, 64, 64)
    choices = [batch.AnatPaste(1, margin=2), batch.Opacity(1), batch.CutPaste(1)]
    for p in (0, 0.5, 1):
        module = batch.OneOf(choices, p)
        out, regions, labels = module(images, masks=masks, generator=torch.Generator())
        again = module(images, masks=masks, generator=torch.Generator())
        assert torch.equal(again.images, out)
        assert labels.sum() == {0: 0, 1: 60}.get(p, labels.sum())
        assert torch.equal(out[labels == 0], images[labels == 0])
        assert torch.equal(out[~regions], images[~regions])
        # Replayed by hand: the same draws in the same order.
        draws = batch.TorchDraws(images, torch.Generator())
        chosen, which = draws.unit() < p, draws.integer((0, 2))
        assert torch.equal(labels, chosen.long())
        expected = images.clone()
        for i, one in enumerate(choices):
            own = masks[:, 0] if one.paste.needs_lungs else None
            drawn = draws.sample(one.paste, (64, 64), own)
            mine = chosen & (which == i)
            assert p == 0 or mine.any()
            for k in mine.nonzero()[:, 0].tolist():
                array = one.paste.apply(alone(images[k]), drawn[k], masks[k, 0].numpy())[0]
                expected[k, 0] = torch.from_numpy(array)
        assert torch.equal(out, expected)


def test_one_of_several_segments_once_and_compiles():
    images, calls = random_images((4, 1, 64, 64), torch.uint8), []

    def segment(images):
        calls.append(1)
        return images > 99

    batch.OneOf([batch.AnatPaste(1), batch.Opacity(1)], segment=segment)(images)
    assert len(calls) == 1
    module = batch.OneOf([batch.AnatPaste(1), batch.Opacity(1)], 1.0)
    assert "OneOf(" in repr(module)
    assert "Opacity(p=1" in repr(module)
    torch.manual_seed(0)
    expected = module(images)
    torch.manual_seed(0)
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(images)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    with FakeTensorMode():
        fakes = torch.empty(2, 1, 32, 32, device="cuda")
        assert module(fakes).images.device.type == "cuda"


def test_only_the_named_results_come_out():
    images = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    module = batch.AnatPaste(p=0.5)
    wanted = module(images, generator=torch.Generator().manual_seed(3))
    for names, expected in (
        (["images"], wanted.images),
        (["images", "regions"], (wanted.images, wanted.regions)),
        (["labels"], wanted.labels),
    ):
        only = batch.Only(module, *names)
        got = only(images, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        assert str(tuple(names)) in repr(only)
    with pytest.raises(AttributeError, match="masks"):
        batch.Only(module, "masks")(images)


def test_masks_of_any_integer_dtype():
    images = random_images((2, 1, 200, 200), torch.uint8)
    drawn, expected = shapes(opacity=[254] * 2), None
    for dtype in (torch.bool, torch.int8, torch.uint16, torch.uint32, torch.int64):
        out = batch.apply_paste(images, drawn, random_masks(2, 200, 200).to(dtype))
        assert expected is None or torch.equal(out, expected)
        expected = out


def test_every_element_draws_for_itself():
    images = torch.zeros(64, 1, 64, 64, dtype=torch.uint8)
    masks = torch.ones(64, 64, 64, dtype=torch.bool)
    for drawn in (
        batch.sample_paste(masks),
        batch.sample_cutpaste(images),
        batch.sample_scar(images),
        batch.sample_opacity(masks),
    ):
        assert len(drawn) == 64
        for name in drawn.kinds:
            constant = name == "margin" or (name == "angle" and not drawn.angle.any())
            assert constant or len(getattr(drawn, name).unique()) > 1, name


def test_distributions():
    torch.manual_seed(0)
    count, height, width = 20000, 100, 80
    masks = torch.zeros(1, height, width, dtype=torch.bool)
    masks[0, 10, [3, 5, 70]] = True
    masks[0, 90, 20] = True
    drawn = batch.sample_paste(masks.expand(count, -1, -1), ratio=(0.8, 1.25), lengths_for=None)
    flat, times = (drawn.center_y * width + drawn.center_x).unique(return_counts=True)
    assert flat.tolist() == [803, 805, 870, 7220]
    assert (times / count - 0.25).abs().max() < 0.02
    assert abs(drawn.shape.double().mean() - 0.5) < 0.02
    for name, low, high in (("blur_radius", 0, 14), ("opacity", 150, 254)):
        values, times = getattr(drawn, name).unique(return_counts=True)
        assert values.tolist() == list(range(low, high + 1))
        assert (times * len(values) / count - 1).abs().max() < 0.35
    area = (drawn.width * drawn.height).double() / (height * width)
    assert abs(area.mean() - 0.085) < 0.002
    aspect = (drawn.width / drawn.height).log()
    assert abs(aspect.mean()) < 0.01
    assert abs(aspect.abs().max() - math.log(1.25)) < 0.1
    for name in ("brightness", "contrast"):
        values = getattr(drawn, name)
        assert abs(values.mean() - 1) < 0.002
        assert 0.9 <= values.min() < 0.901
        assert 1.099 < values.max() <= 1.1
    assert (drawn.crop_x + drawn.width <= width).all()
    assert (drawn.crop_y + drawn.height <= height).all()
    for mean, room in ((drawn.crop_x, width - drawn.width), (drawn.crop_y, height - drawn.height)):
        assert abs((mean / room).mean() - 0.5) < 0.01

    empty = batch.sample_paste(torch.zeros(count, 16, 16, dtype=torch.bool))
    assert len((empty.center_y * 16 + empty.center_x).unique()) == 256

    blank = torch.zeros(1, 1, height, width).expand(count, -1, -1, -1)
    scars = batch.sample_scar(blank, lengths_for=None)
    assert (scars.width.min(), scars.width.max()) == (2, 16)
    assert (scars.height.min(), scars.height.max()) == (10, 25)
    assert abs(scars.angle.mean()) < 1
    assert scars.angle.abs().max() <= 45
    box_width, box_height = bounding_box(scars.width, scars.height, scars.angle, torch)
    assert (scars.paste_x + box_width <= width).all()
    assert (scars.paste_y + box_height <= height).all()
    union = batch.TorchDraws(blank, None).sample(operations.CutPasteUnion(), (height, width), None)
    assert abs((union.angle != 0).double().mean() - 0.5) < 0.02


# --- what the comparison must see -----------------------------------------------------------------


def flip_corner(mask):
    """Change one pixel next to each corner."""
    mask = mask.clone()
    mask[:, [1, 1, -2, -2], [1, -2, 1, -2]] ^= True
    return mask


WRONG = {
    "equalise": (lungs, lambda levels: 16000 - levels),
    "dark_side": (lungs, lambda dark: ~dark),
    "dilate": (lungs, lambda grown: grown.roll(1, 2)),
    "clear_border": (lungs, lambda kept: kept.roll(1, 1)),
    "clear_small_boxes": (lungs, flip_corner),
    "box_blur": (anatpaste, lambda rows: (rows + (rows > 0)).clamp(max=255)),
    "color_jitter": (anatpaste, lambda images: images ^ 1),
    "texture": (opacity, lambda noise: noise.roll(1, 2)),
    "enlarge": (opacity, lambda alpha: alpha.roll(1, 2)),
    "bright_level": (opacity, lambda level: level + 1),
}


def replay():
    """Compare the plain form with the functional one, masks and pastes."""
    images = torch.from_numpy(phantom_radiograph(96, rng=0))[None, None]
    masks = torch.from_numpy(plain_masks(images, 40))
    np.testing.assert_array_equal(masks[0], ap.lung_mask(alone(images[0]), min_area=40))
    single = ap.PasteParams(20, 20, 60, 60, 48, 48, "ellipse", 3, 200, 4, 1.1, 0.9)
    drawn = batch.PasteParams.stack([single])
    nowhere = torch.zeros_like(masks)
    out = anatpaste.paste_plain(images, drawn.tensors(), nowhere, tensors.everyone(images))[0]
    assert_alone(out, images, lambda a, i: ap.apply_paste(a, single))
    lesion = ap.OpacityParams("consolidation", 48, 48, 30, 40, 20, 200, 150, 7)
    drawn = batch.OpacityParams.stack([lesion])
    out = opacity.opacity_plain(images, drawn.tensors(), nowhere, tensors.everyone(images))[0]
    assert_alone(out, images, lambda a, i: ap.apply_opacity(a, lesion))


@pytest.mark.parametrize("stage", [None, *WRONG])
def test_a_wrong_stage_is_seen(stage, monkeypatch):
    if stage is None:
        return replay()
    module, spoil = WRONG[stage]
    right = getattr(module, stage)
    monkeypatch.setattr(module, stage, lambda *args: spoil(right(*args)))
    with pytest.raises(AssertionError):
        replay()


# --- layout, memory and the compiler --------------------------------------------------------------


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("layout", ["channels-last", "strided", "transposed", "float16"])
def test_layouts(form, kind, layout):
    images = random_images((4, 3, 48, 64), torch.uint8)
    other = {
        "channels-last": lambda: images.to(memory_format=torch.channels_last),
        "strided": lambda: torch.cat([images, images], 3)[..., :64],
        "transposed": lambda: images.mT.contiguous().mT,
        "float16": lambda: images.to(torch.float16),
    }[layout]()
    torch.manual_seed(3)
    expected = kind(1.0)(images.to(other.dtype))
    torch.manual_seed(3)
    got = kind(1.0)(other)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    if layout != "strided":
        assert got[0].stride() == other.stride()


def test_chunks_change_nothing(form, monkeypatch):
    images = random_images((7, 1, 64, 64), torch.uint8)
    results = []
    for pixels in (1, 2 * 64 * 64, 2**23):
        monkeypatch.setattr(tensors, "CHUNK_ELEMENTS", pixels)
        torch.manual_seed(0)
        results.append([part for kind in MODULES for part in kind(1.0)(images)])
    for parts in zip(*results, strict=True):
        assert torch.equal(parts[0], parts[1])
        assert torch.equal(parts[0], parts[2])


def test_empty_batch(form):
    for kind in MODULES:
        out, changed, labels = kind()(torch.zeros(0, 1, 32, 32, dtype=torch.uint8))
        assert out.shape == (0, 1, 32, 32)
        assert changed.shape == (0, 1, 32, 32)
        assert labels.shape == (0,)


class Steering(TorchDispatchMode):
    """Fail on operations whose work or result depends on values, or that leave the device."""

    BANNED = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "item", "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        assert not name.startswith(self.BANNED), name
        # CUDA's floating-point sums are not the same every time.
        assert not (name.startswith("cumsum") and args[0].is_floating_point()), name
        if name.startswith(("index", "_unsafe_index")) and not name.startswith("index_select"):
            indices = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
            assert not any(i is not None and i.dtype == torch.bool for i in indices), name
        return func(*args, **(kwargs or {}))


def everything(images, min_area=100):
    """Run every operation in the plain form."""
    checked = tensors.as_images(images)
    chosen = batch.TorchDraws(checked, None).unit() < 0.5
    masks = lungs.mask_plain(checked, min_area, chosen)
    drawn = batch.sample_paste(masks)
    results = [masks, *anatpaste.paste_plain(checked, drawn.tensors(), masks, chosen)]
    cut = batch.TorchDraws(images, None).sample(operations.CutPasteUnion(), images.shape[2:], None)
    results += cutpaste.cutpaste_plain(checked, cut.tensors(), chosen)
    lesions = batch.sample_opacity(masks)
    return [*results, *opacity.opacity_plain(checked, lesions.tensors(), masks, chosen)]


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_no_operation_depends_on_values(dtype):
    images = random_images((2, 3, 16, 17), dtype)
    with Steering():
        expected = [(part.shape, part.dtype) for part in everything(images)]
    # Fake tensors of a GPU have no values at all, and can't be mixed with those of the CPU.
    with FakeTensorMode():
        fakes = torch.empty(images.shape, dtype=dtype, device="cuda")
        results = everything(fakes)
        assert [(part.shape, part.dtype) for part in results] == expected
        assert all(part.device.type == "cuda" for part in results)
        for kind in MODULES:
            assert all(part.device.type == "cuda" for part in kind()(fakes))


@pytest.mark.parametrize("kind", MODULES)
def test_modules_compile_whole(kind):
    images = random_images((2, 1, 32, 32), torch.uint8)
    module = kind(1.0)
    torch.manual_seed(0)
    expected = module(images)
    torch.manual_seed(0)
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(images)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_drawing_compiles_whole_and_batches_of_any_size():
    def augment(images, masks):
        drawn = batch.sample_paste(masks)
        return batch.apply_paste(images, drawn, masks)

    compiled = torch.compile(augment, fullgraph=True, backend="eager")
    module = torch.compile(batch.CutPaste(1.0), fullgraph=True, backend="eager")
    for count in (2, 3, 1, 5):
        images, masks = random_images((count, 1, 32, 40), torch.uint8), random_masks(count, 32, 40)
        torch.manual_seed(0)
        expected = augment(images, masks)
        torch.manual_seed(0)
        assert torch.equal(compiled(images, masks), expected)
        assert module(images).labels.tolist() == [1] * count


@pytest.mark.slow
def test_plain_form_compiles_whole():
    images = random_images((2, 1, 16, 16), torch.uint8)
    torch.manual_seed(0)
    expected = everything(images)
    torch.manual_seed(0)
    got = torch.compile(everything, fullgraph=True, backend="eager")(images)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.slow
def test_modules_compile_with_inductor():
    images = random_images((2, 1, 32, 32), torch.uint8)
    out, changed, labels = torch.compile(batch.AnatPaste(1.0), fullgraph=True)(images)
    assert labels.tolist() == [1, 1]
    assert torch.equal(out[~changed], images[~changed])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_autocast_changes_nothing(form, dtype):
    images = random_images((3, 3, 40, 48), dtype)
    for kind in MODULES:
        torch.manual_seed(0)
        expected = kind(1.0)(images)
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            got = kind(1.0)(images)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


class Copies(TorchDispatchMode):
    """Fail where torch copies or fills: its threads fight for the cores of a shared machine."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        assert not name.startswith(("clone", "copy", "_to_copy", "zero", "fill", "index_put")), name
        return func(*args, **(kwargs or {}))


def test_the_operators_of_the_cpu_copy_in_one_thread():
    images, masks = random_images((2, 3, 64, 80), torch.uint8), random_masks(2, 64, 80)[:, 0]
    paste = batch.sample_paste(masks).tensors()
    cut, blob = batch.sample_cutpaste(images).tensors(), batch.sample_opacity(masks).tensors()
    everyone = tensors.everyone(images)
    with Copies():
        lungs.mask_cpu(images, 400, everyone)
        anatpaste.paste_cpu(images, paste, masks, everyone)
        cutpaste.cutpaste_cpu(images, cut, everyone)
        opacity.opacity_cpu(images, blob, masks, everyone)


def test_last_in_a_sequence_and_moved():
    images = torch.rand(4, 1, 64, 64, requires_grad=True)
    steps = torch.nn.Sequential(torch.nn.Identity(), batch.AnatPaste(1.0)).to("cpu").eval()
    out, _, labels = steps(images)
    assert out.shape == images.shape
    assert not out.requires_grad
    assert labels.sum() == 4


def test_cuda_without_synchronising():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    for dtype in INTEGERS + FLOATS:
        images = random_images((4, 1, 96, 80), dtype)
        drawn = batch.sample_paste(batch.lung_mask(images))
        expected = batch.apply_paste(images, drawn, batch.lung_mask(images))
        there, moved = images.cuda(), drawn.to("cuda")
        everything(there)
        batch.lung_mask_robust(there)  # the first call copies the prior there
        for kind in MODULES:  # and makes kernels
            kind()(there)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            masks = batch.lung_mask(there)
            batch.lung_mask_robust(there)
            out = batch.apply_paste(there, moved, masks)
            everything(there)
            for kind in MODULES:
                kind()(there, generator=torch.Generator("cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(masks.cpu(), batch.lung_mask(images))
        torch.testing.assert_close(out.cpu(), expected, rtol=1e-6, atol=1e-6)


# --- the Triton form, where there is a GPU --------------------------------------------------------


def test_triton_is_taken_where_it_can_be(monkeypatch, request):
    request.addfinalizer(kernels.forms_for.cache_clear)
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    run = kernels.on_gpu("lung_mask", lambda *args: "plain")
    images = random_images((1, 1, 16, 16), torch.uint8)

    def taken(capability=(9, 0), forms=lambda: dict.fromkeys(kernels.FORMS, lambda *a: "Triton")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(kernels, "forms", forms)
        kernels.forms_for.cache_clear()
        return run(images, 400, None)

    def broken(*args):
        raise RuntimeError("no C compiler")

    assert taken() == "Triton"
    assert run(torch.empty(1, 1, 16, kernels.LARGEST_SIDE + 1, device="meta"), 400, None) == "plain"
    assert taken(capability=(7, 5)) == "plain"
    assert taken(forms=broken) == "plain"
    assert taken(forms=lambda: dict.fromkeys(kernels.FORMS, broken)) == "plain"
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert taken() == "plain"
    for name in kernels.FORMS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"anatpaste_aug::{name}", "CUDA")


def test_without_triton_the_package_works():
    code = (
        "import sys; sys.modules['triton'] = None; import torch; from anatpaste_aug import batch\n"
        "print(batch.AnatPaste(1)(torch.zeros(1, 1, 16, 16)).labels.tolist())\n"
        "batch._triton = __import__('anatpaste_aug.batch.kernels').batch.kernels.forms()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[1]\n"
    assert "ModuleNotFoundError: import of triton halted" in done.stderr


@pytest.mark.parametrize("lengths_for", [256, None])
def test_pastes_drawn_whole_are_those_drawn_one_by_one(lengths_for, monkeypatch):
    images, masks = random_images((5, 1, 64, 80), torch.uint8), random_masks(5, 64, 80)
    options = {"blur": (2, 5), "opacity": 200, "margin": 3, "lengths_for": lengths_for}
    modules = (
        batch.AnatPaste(0.7, **options),
        batch.OneOf([batch.AnatPaste(1, **options), batch.Opacity(1), batch.AnatPaste(1)]),
    )
    for module in modules:
        torch.manual_seed(0)
        expected = module(images, masks=masks)
        with monkeypatch.context() as patch:
            patch.setattr(batch.TorchDraws, "whole_on", ("cpu",))
            torch.compiler.reset()
            for run in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
                torch.manual_seed(0)
                got = run(images, masks=masks)
                assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    torch.compiler.reset()


# --- errors ---------------------------------------------------------------------------------------


IMAGES = torch.zeros(2, 1, 32, 32)
PARAMS = batch.sample_paste(torch.zeros(2, 32, 32, dtype=torch.bool))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: batch.lung_mask(np.zeros((2, 32, 32))),
            TypeError,
            "images must be a torch.Tensor",
        ),
        (lambda: batch.lung_mask(IMAGES.bool()), TypeError, "dtype out of .* got torch.bool"),
        (lambda: batch.lung_mask(IMAGES[0, 0]), ValueError, r"got \(32, 32\)$"),
        (
            lambda: batch.AnatPaste()(torch.zeros(3, 32, 32)),
            ValueError,
            r"got \(3, 32, 32\); write images\[None\] for one image, images\[:, None\] for 3 grey",
        ),
        (lambda: batch.AnatPaste()(IMAGES, torch.zeros(2).long()), TypeError, "positional"),
        (lambda: batch.CutPaste()(IMAGES, torch.Generator()), TypeError, "positional"),
        (
            lambda: batch.AnatPaste(segment=lambda image: image[:, :, 99])(IMAGES),
            TypeError,
            "segment must take a .* which raised index 99",
        ),
        (lambda: batch.CutPaste()(IMAGES, masks="none"), TypeError, "masks must be a bool"),
        (
            lambda: batch.apply_paste(IMAGES * torch.nan, PARAMS),
            ValueError,
            "image must be finite, got nan",
        ),
        (
            lambda: batch.AnatPaste(segment=ap.lung_crop)(IMAGES),
            TypeError,
            r"segment must take a \(B, C, H, W\) tensor .* got lung_crop, which raised",
        ),
        (lambda: batch.lung_mask(IMAGES.expand(2, 2, 32, 32)), ValueError, r"got \(2, 2, 32, 32\)"),
        (lambda: batch.lung_mask(IMAGES[..., :15]), ValueError, r"at least 16 .* got \(32, 15\)"),
        (lambda: batch.sample_paste(IMAGES[..., :15] > 0), ValueError, "masks .*at least 16"),
        (
            lambda: batch.AnatPaste(segment=lambda images: images > 0)(IMAGES, masks=IMAGES > 0),
            ValueError,
            "masks and segment must not be given together",
        ),
        (lambda: batch.lung_mask(IMAGES, min_area=-1), ValueError, "min_area .* got -1"),
        (lambda: batch.lung_mask(IMAGES, min_area=1.5), TypeError, "min_area .* got 1.5"),
        (lambda: batch.sample_paste(IMAGES), TypeError, "masks must be a bool or integer tensor"),
        (lambda: batch.sample_paste(IMAGES[0, 0] > 0), ValueError, r"masks .* got \(32, 32\)"),
        (lambda: batch.sample_paste(IMAGES > 0, opacity=300), ValueError, "opacity .* got 300"),
        (lambda: batch.sample_paste(IMAGES > 0, 7), TypeError, "generator must be .* got int"),
        (lambda: batch.sample_scar(IMAGES, jitter=2), ValueError, "jitter .* got 2"),
        (
            lambda: batch.apply_paste(IMAGES[:1], PARAMS),
            ValueError,
            "params must be as many .* 1, got 2",
        ),
        (
            lambda: batch.apply_paste(IMAGES, PARAMS[0]),
            TypeError,
            "batch.PasteParams, got PasteParams",
        ),
        (lambda: batch.apply_cutpaste(IMAGES, PARAMS), TypeError, "batch.CutPasteParams, got"),
        (
            lambda: batch.apply_paste(IMAGES, PARAMS, torch.zeros(2, 1, 32, 31) > 0),
            ValueError,
            r"masks must have the images' size \(2, 32, 32\), got \(2, 32, 31\)",
        ),
        (lambda: shapes(opacity=[1.5]), TypeError, "opacity must be a tensor of integer dtype"),
        (lambda: shapes(opacity=[[1]]), ValueError, r"opacity must have the shape \(B,\)"),
        (lambda: batch.AnatPaste(1.5), ValueError, "p must lie in 0..1, got 1.5"),
        (lambda: batch.CutPaste(p="0.5"), TypeError, "p must be a number"),
        (lambda: batch.AnatPaste(segment=3), TypeError, "segment must be callable, got int"),
        (
            lambda: batch.AnatPaste(segment=lambda images: images)(IMAGES),
            TypeError,
            "the masks returned by segment must be",
        ),
        (lambda: batch.AnatPaste(blur=(5, 2)), ValueError, "blur"),
        (lambda: batch.Opacity(kinds="mass"), ValueError, "kinds must be out of .* got 'mass'"),
        (lambda: batch.sample_opacity(IMAGES), TypeError, "masks must be a bool or integer"),
        (lambda: batch.apply_opacity(IMAGES, PARAMS), TypeError, "batch.OpacityParams, got Paste"),
        (lambda: batch.Only(batch.lung_mask, "images"), TypeError, "nn.Module, got function"),
        (lambda: batch.Only(batch.AnatPaste()), ValueError, "names must be at least one"),
        (lambda: batch.OneOf([]), ValueError, "modules must be at least one, got none"),
        (lambda: batch.OneOf([torch.nn.Identity()]), TypeError, "OperationModules, got Identity"),
        (lambda: batch.OneOf([batch.Opacity()]), ValueError, "p=1 and no segment, got Opacity"),
        (
            lambda: batch.OneOf([batch.CutPaste(1)], segment=batch.lung_mask),
            ValueError,
            "segment must be None where no lungs are needed",
        ),
    ],
)
def test_errors_name_argument_rule_and_value(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_devices_must_agree():
    with pytest.raises(ValueError, match="masks must be on the device of the batch, cpu, got meta"):
        batch.apply_paste(IMAGES, PARAMS, torch.zeros(2, 32, 32, device="meta", dtype=torch.bool))
    with pytest.raises(ValueError, match="params must be on the device"):
        batch.apply_paste(IMAGES, PARAMS.to("meta"))


def test_everything_exported_is_documented():
    assert sorted(batch.__all__) == batch.__all__
    for name in batch.__all__:
        if name not in ("Augmented", "Cropped"):
            assert "Raises" in getattr(batch, name).__doc__, name


def test_without_torch_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import anatpaste_aug\n"
        "import anatpaste_aug.batch\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: anatpaste_aug.batch needs PyTorch" in done.stderr
    assert "pip install 'anatpaste-aug[torch]'" in done.stderr


@pytest.mark.parametrize("name", ["lungs", "params", "anatpaste", "opacity", "modules", "robust"])
def test_docstring_examples(name):
    import doctest
    import importlib

    module = importlib.import_module(f"anatpaste_aug.batch.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0
