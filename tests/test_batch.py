"""The batch against the functional form: each element alone, with the same parameters."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import any_mask, any_params, any_paste, real_data
from conftest import images as numpy_images
from hypothesis import given, settings
from hypothesis import strategies as st

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph

torch = pytest.importorskip("torch", reason="needs torch")

from batches import (  # noqa: E402
    FLOATS,
    INTEGERS,
    alone,
    assert_alone,
    batch_of,
    draw,
    paste,
    random_images,
    random_masks,
)
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from anatpaste_aug import batch, operations  # noqa: E402
from anatpaste_aug.batch import functions, operators, params  # noqa: E402
from anatpaste_aug.operations.opacity import DENSITY, KINDS  # noqa: E402

MODULES = (
    batch.AnatPaste,
    batch.CutPaste,
    batch.CutPasteScar,
    batch.CutPasteUnion,
    batch.Opacity,
)


# --- the lung mask --------------------------------------------------------------------------------


def test_golden_masks():
    golden = np.load(real_data("golden") / "reference256.npz")
    expected = np.unpackbits(golden["masks"], axis=-1).astype(bool)
    np.testing.assert_array_equal(
        batch.lung_mask(torch.from_numpy(golden["images"])[:, None])[:, 0], expected
    )


@pytest.mark.parametrize("largest", [300, pytest.param(4096, marks=pytest.mark.slow)])
def test_golden_masks_of_all_sizes(largest):
    golden = np.load(real_data("golden") / "reference_sizes.npz")
    for i in range(int(golden["count"])):
        image = golden[f"image_{i}"]
        if max(image.shape) <= largest:
            expected = np.unpackbits(golden[f"mask_{i}"], axis=-1)[:, : image.shape[1]]
            got = batch.lung_mask(torch.from_numpy(image)[None, None])[0, 0]
            np.testing.assert_array_equal(got, expected.astype(bool))


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("shape", [(3, 1, 72, 90), (2, 1, 64, 64), (2, 3, 33, 80)])
def test_lung_mask_alone(shape, dtype):
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
    variants = [image, image[::-1], image[:, ::-1]]
    images = batch_of(*variants)
    masks = batch.lung_mask(images, min_area=min_area)
    for array, got in zip(variants, masks, strict=True):
        np.testing.assert_array_equal(got[0], ap.lung_mask(array, min_area=min_area))


def test_robust_masks_are_those_of_the_function():
    images = torch.from_numpy(np.stack([phantom_radiograph(96, rng=i) for i in range(2)]))[:, None]
    for dtype in INTEGERS + FLOATS:
        some = (images / (255 if dtype.is_floating_point else 1)).to(dtype)
        some = torch.cat([some] * 3, 1) if dtype == torch.uint16 else some
        masks = batch.lung_mask_robust(some)
        assert masks.shape == (2, 1, 96, 96)
        for image, mask in zip(some, masks, strict=True):
            np.testing.assert_array_equal(mask[0], ap.lung_mask_robust(alone(image)))
    chosen = torch.tensor([True, False])
    assert operators.lung_mask_robust(images, chosen).any((1, 2)).tolist() == [True, False]
    masks = batch.lung_mask_robust(images)
    for segment in (ap.lung_mask_robust, batch.lung_mask_robust):
        torch.manual_seed(0)
        given = batch.AnatPaste(1.0, margin=2)(images, masks=masks)
        torch.manual_seed(0)
        made = batch.AnatPaste(1.0, margin=2, segment=segment)(images)
        assert torch.equal(given.images, made.images)
    crop = batch.LungCrop(40)
    got = crop(images)
    assert all(torch.equal(a, b) for a, b in zip(got, crop(images, masks=masks), strict=True))
    with pytest.raises(ValueError, match="masks and segment must not be given together"):
        batch.LungCrop(40, segment=batch.lung_mask_robust)(images, masks=masks)


def test_robust_masks_warn_as_the_function_does():
    sideways = np.rot90(phantom_radiograph(128, rng=0)).copy()
    said = []
    for call in (
        ap.lung_mask_robust,
        lambda a: batch.lung_mask_robust(torch.tensor(a)[None, None]),
    ):
        with pytest.warns(UserWarning, match="lung_mask_robust found no upright pair") as caught:
            call(sideways)
        said.append([str(one.message) for one in caught])
    assert said[0] == said[1]


# --- pasting --------------------------------------------------------------------------------------


def test_golden_pastes():
    golden = np.load(real_data("golden") / "reference256.npz")
    cases = json.loads(str(golden["params"]))
    index = [case.pop("image") for case in cases]
    found = torch.tensor([case.pop("lung_found") for case in cases])
    masks = torch.from_numpy(np.unpackbits(golden["masks"], axis=-1).astype(bool))[index]
    masks &= found[:, None, None]
    drawn = batch.PasteParams.stack(ap.PasteParams(**case) for case in cases)
    images = torch.from_numpy(golden["images"])[index][:, None]
    out, regions = batch.apply_paste(images, drawn, masks, return_mask=True)
    np.testing.assert_array_equal(out[:, 0], golden["outputs"])
    np.testing.assert_array_equal(regions[:, 0], golden["alphas"] > 0)


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("shape", [(5, 1, 40, 61), (5, 1, 64, 64), (5, 3, 33, 47)])
def test_paste_alone(shape, dtype):
    images = random_images(shape, dtype)
    before = images.clone()
    masks = random_masks(5, *shape[-2:])
    drawn = batch.sample_paste(masks, torch.Generator().manual_seed(1), margin=3, scale=(0.02, 0.6))
    out, regions = batch.apply_paste(images, drawn, masks, return_mask=True)
    assert_alone(out, images, lambda a, i: ap.apply_paste(a, drawn[i], masks[i, 0].numpy()))
    assert_alone(batch.apply_paste(images, drawn), images, lambda a, i: ap.apply_paste(a, drawn[i]))
    for i in range(5):
        alpha = ap.paste_alpha(drawn[i], masks[i, 0].numpy())
        np.testing.assert_array_equal(regions[i, 0], alpha > 0)
    assert torch.equal(images, before)


@settings(max_examples=40)
@given(image=numpy_images(max_side=64), data=st.data())
def test_paste_of_any_image_and_parameters(image, data):
    height, width = image.shape[:2]
    singles = [any_paste(data.draw, height, width) for _ in range(3)]
    seed = data.draw(st.integers(0, 99))
    masks = np.random.default_rng(seed).random((3, height, width)) < [[[0]], [[0.5]], [[1]]]
    images = batch_of(*[image] * 3)
    lungs, drawn = torch.from_numpy(masks), batch.PasteParams.stack(singles)
    assert [drawn[i] for i in range(3)] == singles
    out, regions = batch.apply_paste(images, drawn, lungs, return_mask=True)
    assert_alone(out, images, lambda a, i: ap.apply_paste(a, singles[i], masks[i]))
    for i in range(3):
        np.testing.assert_array_equal(regions[i, 0], ap.paste_alpha(singles[i], masks[i]) > 0)


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("shape", [(5, 1, 40, 61), (5, 3, 33, 47)])
@pytest.mark.parametrize("operation", [operations.CutPaste(), operations.CutPasteScar()])
def test_cutpaste_alone(operation, shape, dtype):
    images = random_images(shape, dtype)
    drawn = draw(operation, images, generator=torch.Generator().manual_seed(2))
    out, changed = paste(operation, images, drawn)
    assert_alone(out, images, lambda a, i: ap.apply_cutpaste(a, drawn[i]))
    for i in range(5):
        _, expected = ap.apply_cutpaste(alone(images[i]), drawn[i], return_mask=True)
        np.testing.assert_array_equal(changed[i, 0], expected)


def test_scars_at_any_angle():
    images = random_images((60, 1, 40, 40), torch.uint8)
    angles = [-180, -90, -45, -30, 0, 30, 45, 60, 90, 135, 180, 360, *range(-24, 24)]
    singles = [
        ap.CutPasteParams(3, 4, 7, 20, 9 + i % 20, 2 + i % 9, a) for i, a in enumerate(angles)
    ]
    out, _ = paste(operations.CutPaste(), images, singles)
    assert_alone(out, images, lambda a, i: ap.apply_cutpaste(a, singles[i]))


@pytest.mark.parametrize("shape", [-1, 2])
def test_words_are_checked_when_params_are_used(shape):
    images = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    drawn = batch.PasteParams.stack([ap.PasteParams(0, 0, 20, 20, 30, 30, "ellipse", 3, 200, 5)])
    whole = drawn.whole.clone()
    whole[0, 6] = shape
    wrong = batch.PasteParams(whole, drawn.real)
    assert wrong.shape.tolist() == [shape]
    for use in (lambda: wrong[0], lambda: batch.apply_paste(images, wrong)):
        with pytest.raises(ValueError, match=rf"shape must lie in 0..1, got {shape}"):
            use()


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("shape", [(6, 1, 40, 61), (6, 1, 200, 300), (6, 3, 33, 47)])
def test_opacity_alone(shape, dtype):
    images = random_images(shape, dtype)
    before = images.clone()
    masks = random_masks(6, *shape[-2:])
    operation = operations.Opacity(size=0.6)
    drawn = draw(operation, images, masks[:, 0], torch.Generator().manual_seed(1))
    out, changed = paste(operation, images, drawn, masks)
    assert_alone(out, images, lambda a, i: ap.apply_opacity(a, drawn[i], masks[i, 0].numpy()))
    free, _ = paste(operation, images, drawn)
    assert_alone(free, images, lambda a, i: ap.apply_opacity(a, drawn[i]))
    for i in range(6):
        alpha = ap.opacity_alpha(drawn[i], masks[i, 0].numpy())
        np.testing.assert_array_equal(changed[i, 0], alpha > 0)
    assert torch.equal(images, before)
    assert (out.double() >= images.double()).all()


@settings(max_examples=40)
@given(image=numpy_images(max_side=64), data=st.data())
def test_opacity_of_any_image_and_parameters(image, data):
    height, width = image.shape[:2]
    singles = [data.draw(any_params(height, width)) for _ in range(3)]
    masks = np.stack([any_mask(data.draw(st.integers(0, 99)), height, width) for _ in range(3)])
    images, lungs = batch_of(*[image] * 3), torch.from_numpy(masks)
    out, regions = paste(operations.Opacity(), images, singles, lungs)
    assert_alone(out, images, lambda a, i: ap.apply_opacity(a, singles[i], masks[i]))
    for i, single in enumerate(singles):
        np.testing.assert_array_equal(regions[i, 0], ap.opacity_alpha(single, masks[i]) > 0)


def fields_of(operation, images, lungs=None):
    """Draw for a batch, and return the tensors (B,) of the fields by their names."""
    whole, real = functions.sample(operators.register(operation), images, lungs, None)
    assert (whole.dtype, real.dtype) == (torch.int64, torch.float64)
    columns = {}
    for names, tensor in zip(params.fields_of(operation.params), (whole, real), strict=True):
        columns |= dict(zip(names, tensor.unbind(1), strict=True))
    return SimpleNamespace(**columns)


def test_distributions_of_opacities():
    torch.manual_seed(0)
    count = 20000
    lungs = torch.zeros(1, 64, 100, dtype=torch.bool)
    lungs[0, 10:50, 5:30] = lungs[0, 15:60, 50:90] = True
    lungs = lungs.expand(count, -1, -1)
    drawn = fields_of(operations.Opacity(), lungs, lungs)
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
    one = fields_of(operations.Opacity("nodule"), lungs[:99], lungs[:99])
    assert one.kind.unique().tolist() == [2]


def test_apply_gives_what_the_functions_give():
    images = random_images((3, 1, 64, 80), torch.uint8)
    masks = random_masks(3, 64, 80)
    drawn = batch.sample_paste(masks)
    out, regions = batch.apply_paste(images, drawn, masks, return_mask=True)
    assert torch.equal(batch.apply_paste(images, drawn, masks), out)
    for i in range(3):
        one = ap.apply_paste(alone(images[i]), drawn[i], masks[i], return_mask=True)
        for got, expected in zip((out[i], regions[i]), one, strict=True):
            np.testing.assert_array_equal(got[0], expected)


# --- modules --------------------------------------------------------------------------------------


def test_modules_return_named_tuples_and_take_masks():
    images = random_images((4, 1, 64, 64), torch.uint8)
    masks = random_masks(4, 64, 64)
    for kind in MODULES:
        got = kind(1.0)(images, masks=masks, generator=torch.Generator().manual_seed(0))
        assert got._fields == ("images", "regions", "labels")
        assert got.images is got[0]


def test_published_function_as_segmenter():
    images = torch.from_numpy(phantom_radiograph(128, rng=0))[None, None]
    torch.manual_seed(0)
    expected = batch.AnatPaste(1.0)(images)
    torch.manual_seed(0)
    got = batch.AnatPaste(1.0, segment=ap.lung_mask)(images)
    assert torch.equal(got.images, expected.images)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("p", [0, 0.5, 1])
def test_modules(kind, p):
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


def test_anatpaste_takes_masks_and_segmenters():
    images = random_images((8, 1, 64, 64), torch.uint8)
    masks = torch.zeros(8, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 20:40, 10:30] = True
    given_masks = batch.AnatPaste(1.0, margin=2)(images, masks=masks).regions
    segmented = batch.AnatPaste(1.0, margin=2, segment=lambda images: masks.int())(images).regions
    for changed in (given_masks, segmented):
        assert changed.flatten(1).any(1).all()
        assert not (changed & ~masks).any()


def test_one_of_several():
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
        generator = torch.Generator()
        chosen = torch.rand(60, generator=generator) < p
        which = torch.randint(3, (60,), generator=generator)
        assert torch.equal(labels, chosen.long())
        expected = images.clone()
        for i, op in enumerate(module.ops):
            own = masks[:, 0] if op.needs_lungs else None
            drawn = draw(op, images, own, generator)
            mine = chosen & (which == i)
            assert p == 0 or mine.any()
            for k in mine.nonzero()[:, 0].tolist():
                array = op.apply(alone(images[k]), drawn[k], masks[k, 0].numpy())[0]
                expected[k, 0] = torch.from_numpy(array)
        assert torch.equal(out, expected)


def test_one_of_several_segments_once_and_compiles(compiler):
    images, calls = random_images((4, 1, 64, 64), torch.uint8), []

    def segment(images):
        calls.append(1)
        return images > 99

    batch.OneOf([batch.AnatPaste(1), batch.Opacity(1)], segment=segment)(images)
    assert len(calls) == 1
    module = batch.OneOf([batch.AnatPaste(1), batch.Opacity(1)], 1.0)
    assert "OneOf(" in repr(module)
    assert "Opacity(kinds=" in repr(module)
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
        only = batch.Select(module, *names)
        got = only(images, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        assert str(tuple(names)) in repr(only)
    with pytest.raises(AttributeError, match="masks"):
        batch.Select(module, "masks")(images)
    whole = batch.Select(batch.CutPaste(p=1), "images", "labels")
    compiled = torch.compile(whole, fullgraph=True, backend="eager")
    outs = [(torch.manual_seed(0), form(images))[1] for form in (whole, compiled)]
    torch.testing.assert_close(*outs, rtol=0, atol=0)


def test_masks_of_any_integer_dtype():
    images = random_images((2, 1, 200, 200), torch.uint8)
    one = ap.PasteParams(0, 0, 60, 80, 99, 99, "ellipse", 0, 254, 0)
    drawn, expected = batch.PasteParams.stack([one] * 2), None
    for dtype in (torch.bool, torch.int8, torch.uint16, torch.uint32, torch.int64):
        out = batch.apply_paste(images, drawn, random_masks(2, 200, 200).to(dtype))
        assert expected is None or torch.equal(out, expected)
        expected = out


def test_every_element_draws_for_itself():
    images = torch.zeros(64, 1, 64, 64, dtype=torch.uint8)
    masks = torch.ones(64, 64, 64, dtype=torch.bool)
    for kind in MODULES:
        operation = kind.operation()
        drawn = fields_of(operation, images, masks if operation.needs_lungs else None)
        for name, values in vars(drawn).items():
            assert values.shape == (64,)
            constant = name == "margin" or (name == "angle" and kind is batch.CutPaste)
            assert constant or len(values.unique()) > 1, name


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
    scars = fields_of(operations.CutPasteScar(lengths_for=None), blank)
    assert (scars.width.min(), scars.width.max()) == (2, 16)
    assert (scars.height.min(), scars.height.max()) == (10, 25)
    assert abs(scars.angle.mean()) < 1
    assert scars.angle.abs().max() <= 45
    for scar in draw(operations.CutPasteScar(lengths_for=None), blank[:999]):
        assert scar.paste_x + scar.bounding_box[0] <= width
        assert scar.paste_y + scar.bounding_box[1] <= height
    union = fields_of(operations.CutPasteUnion(), blank)
    assert abs((union.angle != 0).double().mean() - 0.5) < 0.02


# --- layout, memory and the compiler --------------------------------------------------------------


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("layout", ["channels-last", "strided", "transposed", "float16"])
def test_layouts(kind, layout):
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


def test_empty_batch():
    for kind in MODULES:
        out, changed, labels = kind()(torch.zeros(0, 1, 32, 32, dtype=torch.uint8))
        assert out.shape == (0, 1, 32, 32)
        assert changed.shape == (0, 1, 32, 32)
        assert labels.shape == (0,)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_fakes_tell_what_comes_out(dtype, device):
    images = random_images((2, 3, 32, 34), dtype)
    images = images.to(memory_format=torch.channels_last)

    def everything(images):
        masks = batch.lung_mask(images)
        drawn = batch.sample_paste(masks)
        parts = [masks, batch.lung_mask_robust(images), drawn.whole, drawn.real, drawn.brightness]
        parts += batch.apply_paste(images, drawn, masks, return_mask=True)
        parts += batch.LungCrop((40, 20))(images)
        for kind in MODULES:
            own = masks[:, 0] if kind.operation.needs_lungs else None
            parts += functions.sample(operators.register(kind.operation()), images, own, None)
            parts += kind()(images)
        return parts

    expected = everything(images)
    with FakeTensorMode():
        fakes = torch.empty_strided(images.shape, images.stride(), dtype=dtype, device=device)
        found = everything(fakes)
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == device
        assert (one.shape, one.stride()) == (other.shape, other.stride())
        assert one.dtype == other.dtype


ROBUST = batch.AnatPaste(1.0, segment=batch.lung_mask_robust)


@pytest.mark.parametrize("module", [*(kind(1.0) for kind in MODULES), ROBUST])
def test_modules_compile_whole(compiler, module):
    images = random_images((2, 1, 32, 32), torch.uint8)
    torch.manual_seed(0)
    expected = module(images)
    torch.manual_seed(0)
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(images)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_drawing_compiles_whole_and_batches_of_any_size(compiler):
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
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # Inductor imports torch.jit
def test_modules_compile_with_inductor(compiler):
    images = random_images((2, 1, 32, 32), torch.uint8)
    out, changed, labels = torch.compile(batch.AnatPaste(1.0), fullgraph=True)(images)
    assert labels.tolist() == [1, 1]
    assert torch.equal(out[~changed], images[~changed])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_autocast_changes_nothing(dtype):
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
    everyone, drawn = functions.all_of(images), {}
    for kind in MODULES:
        name = operators.register(kind.operation())
        own = masks if kind.operation.needs_lungs else None
        drawn[name] = functions.sample(name, images, own, None), own
    run = {name: getattr(operators, name)._backend_fns["cpu"] for name in ("lung_mask", "paste")}
    with Copies():
        run["lung_mask"](images, 400, everyone)
        for name, (fields, own) in drawn.items():
            run["paste"](images, fields, own, everyone, name)


@pytest.mark.parametrize("module", [*(kind(1.0) for kind in MODULES), batch.LungCrop(32)])
def test_gradients_are_cut_and_the_docstrings_say_so(module):
    layer = torch.nn.Conv2d(1, 1, 3, padding=1)
    images = layer(torch.rand(2, 1, 64, 64))
    out = module(images)
    assert images.requires_grad
    for part in out:
        assert not part.requires_grad
        assert part.grad_fn is None
    assert "No gradient flows through it" in type(module).forward.__doc__
    # In inference mode, as in evaluation loops, it works as well.
    with torch.inference_mode():
        assert module(torch.rand(2, 1, 64, 64)).images.shape == out.images.shape


def test_gradients_of_the_functions_are_cut():
    images = torch.rand(2, 1, 64, 64, requires_grad=True)
    masks = batch.lung_mask(images)
    assert not batch.apply_paste(images, batch.sample_paste(masks), masks).requires_grad
    assert "No gradient flows through it" in batch.apply_paste.__doc__


def test_last_in_a_sequence_and_moved():
    images = torch.rand(4, 1, 64, 64, requires_grad=True)
    steps = torch.nn.Sequential(torch.nn.Identity(), batch.AnatPaste(1.0)).to("cpu").eval()
    out, _, labels = steps(images)
    assert out.shape == images.shape
    assert not out.requires_grad
    assert labels.sum() == 4


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
            r"got \(3, 32, 32\); write images\[None\] for one image, images\[:, None\] for 3 gray",
        ),
        (lambda: batch.AnatPaste()(IMAGES, torch.zeros(2).long()), TypeError, "positional"),
        (lambda: batch.CutPaste()(IMAGES, torch.Generator()), TypeError, "positional"),
        (lambda: batch.CutPaste()(IMAGES, masks="none"), TypeError, "masks must be a bool"),
        (
            lambda: batch.OneOf([batch.CutPaste(1), batch.CutPasteScar(1)])(IMAGES, masks="none"),
            TypeError,
            "masks must be a bool",
        ),
        (
            lambda: batch.OneOf([batch.CutPaste(1)])(IMAGES, masks=torch.zeros(2, 32, 31) > 0),
            ValueError,
            r"masks must have the images' size \(2, 32, 32\), got \(2, 32, 31\)",
        ),
        (
            lambda: batch.apply_paste(IMAGES * torch.nan, PARAMS),
            ValueError,
            "image must be finite, got nan",
        ),
        (
            lambda: batch.AnatPaste(segment=ap.lung_crop)(IMAGES),
            TypeError,
            "image must be a NumPy array or a Pillow image, got Tensor",
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
        (lambda: batch.sample_paste(IMAGES > 0, jitter=2), ValueError, "jitter .* got 2"),
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
        (
            lambda: batch.PasteParams.stack([ap.CutPasteParams(0, 0, 9, 9, 9, 9)]),
            TypeError,
            "params must be PasteParams, got CutPasteParams",
        ),
        (
            lambda: batch.apply_paste(IMAGES, PARAMS, return_mask="no"),
            TypeError,
            "return_mask must be True or False, got 'no'",
        ),
        (
            lambda: batch.apply_paste(IMAGES, PARAMS, torch.zeros(2, 1, 32, 31) > 0),
            ValueError,
            r"masks must have the images' size \(2, 32, 32\), got \(2, 32, 31\)",
        ),
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
        (lambda: batch.Select(batch.lung_mask, "images"), TypeError, "nn.Module, got function"),
        (lambda: batch.Select(batch.AnatPaste()), ValueError, "names must be at least one"),
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


@pytest.mark.parametrize("error", [IndexError, KeyError, RuntimeError, ZeroDivisionError])
def test_a_segmenter_s_own_error_comes_out_as_it_is(error):
    raised = error("mine")

    def segment(images):
        raise raised

    for module in (
        batch.AnatPaste(segment=segment),
        batch.OneOf([batch.Opacity(1)], segment=segment),
        batch.LungCrop(32, segment=segment),
    ):
        with pytest.raises(error) as caught:
            module(IMAGES)
        assert caught.value is raised


def test_params_are_whole_and_cannot_be_changed_by_halves():
    drawn = batch.sample_paste(torch.ones(3, 1, 64, 64, dtype=torch.bool))
    with pytest.raises(AttributeError):
        drawn.opacity = torch.zeros(3, dtype=torch.int64)
    for whole, real in ((drawn.whole[:, :9], drawn.real), (drawn.whole, drawn.real[:2])):
        with pytest.raises(ValueError, match=r"whole must have the shape \(B, 10\)"):
            batch.PasteParams(whole, real)
    with pytest.raises(TypeError, match="whole must be of int64"):
        batch.PasteParams(drawn.whole.double(), drawn.real)


def test_devices_must_agree():
    with pytest.raises(ValueError, match="masks must be on the device of the batch, cpu, got meta"):
        batch.apply_paste(IMAGES, PARAMS, torch.zeros(2, 32, 32, device="meta", dtype=torch.bool))
    with pytest.raises(ValueError, match="params must be on the device"):
        batch.apply_paste(IMAGES, PARAMS.to("meta"))


def test_everything_exported_is_documented():
    assert len(set(batch.__all__)) == len(batch.__all__)
    for name in batch.__all__:
        if name not in ("Augmented", "Cropped", "PasteParams"):
            assert "Raises" in getattr(batch, name).__doc__, name
    assert "Raises" in batch.PasteParams.stack.__doc__


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


@pytest.mark.parametrize("name", ["functions", "params", "modules"])
def test_docstring_examples(name):
    import doctest
    import importlib

    module = importlib.import_module(f"anatpaste_aug.batch.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0
