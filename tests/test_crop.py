"""The crop to the lungs: function, transform and batch, and that it never fails."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from conftest import any_mask, images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import anatpaste_aug as ap
from anatpaste_aug.crop import crop_window
from anatpaste_aug.data import phantom_radiograph


def lungs_of(top, bottom, left, right, shape=(200, 300)):
    mask = np.zeros(shape, bool)
    mask[top, left] = mask[bottom - 1, right - 1] = True
    return mask


@pytest.mark.parametrize(
    ("ends", "margin", "square", "expected"),
    [
        ((50, 150, 60, 260), 0, False, (50, 150, 60, 260)),
        ((50, 150, 60, 260), 0.1, False, (40, 160, 40, 280)),
        ((50, 150, 60, 260), 0.5, False, (0, 200, 0, 300)),
        ((2, 150, 60, 260), 0.1, False, (0, 165, 40, 280)),  # cut, not shifted
        ((50, 150, 60, 160), 0.1, True, (40, 160, 50, 170)),
        ((80, 120, 60, 160), 0, True, (50, 150, 60, 160)),
        ((0, 40, 60, 160), 0, True, (0, 100, 60, 160)),  # shifted into the image
        ((100, 200, 0, 300), 0, True, (0, 200, 0, 300)),  # no more rows than there are
        ((190, 194, 290, 291), 0.08, False, (184, 200, 282, 298)),  # 16 pixels at least
    ],
)
def test_where_the_cut_lies(ends, margin, square, expected):
    mask = lungs_of(*ends)
    rows, columns = crop_window(mask, margin, square)
    assert (rows.start, rows.stop, columns.start, columns.stop) == expected
    image = np.arange(200 * 300, dtype=np.int32).reshape(200, 300)
    out, lungs = ap.lung_crop(image, mask=mask, margin=margin, square=square, return_mask=True)
    np.testing.assert_array_equal(out, image[rows, columns])
    np.testing.assert_array_equal(lungs, mask[rows, columns])


@given(
    image=images(),
    seed=st.integers(0, 99),
    margin=st.sampled_from([0, 0.08, 0.6, 10**6]),
    square=st.booleans(),
)
def test_it_never_fails(image, seed, margin, square):
    mask = any_mask(seed, *image.shape[:2])
    out, lungs = ap.lung_crop(image, mask=mask, margin=margin, square=square, return_mask=True)
    assert out.dtype == image.dtype
    assert out.shape[:2] == lungs.shape
    assert min(out.shape[:2]) >= 16
    assert lungs.sum() == mask.sum()
    if not mask.any():
        np.testing.assert_array_equal(out, image)
    assert not np.shares_memory(out, image)
    assert ap.lung_crop(image, segment=lambda _: mask, margin=margin, square=square).shape == (
        out.shape
    )


def test_kinds_of_images_and_the_default_mask(phantom):
    robust = ap.lung_mask_robust(phantom)
    expected = phantom[crop_window(robust, 0.08, False)]
    assert expected.shape < phantom.shape
    np.testing.assert_array_equal(ap.lung_crop(phantom), expected)
    picture = ap.lung_crop(Image.fromarray(phantom))
    np.testing.assert_array_equal(np.asarray(picture), expected)
    sixteen = ap.lung_crop(Image.fromarray(phantom.astype(np.uint16) * 100), mask=robust)
    assert sixteen.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(sixteen), expected.astype(np.uint16) * 100)
    np.testing.assert_array_equal(ap.lung_crop(phantom[None]), expected[None])
    np.testing.assert_array_equal(ap.lung_crop(phantom[..., None]), expected[..., None])
    blank = np.zeros((64, 64), np.uint8)
    np.testing.assert_array_equal(ap.lung_crop(blank), blank)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"margin": -0.1}, ValueError, "margin must be at least 0, got -0.1"),
        ({"margin": "8 %"}, TypeError, "margin must be a number"),
        ({"square": 1}, TypeError, "square must be True or False, got 1"),
        ({"segment": 3}, TypeError, "segment must be callable"),
        ({"mask": np.ones((9, 9), bool)}, ValueError, "mask must have the image's shape"),
        (
            {"mask": np.ones((256, 256), bool), "segment": ap.lung_mask},
            ValueError,
            "mask and segment must not be given together",
        ),
    ],
)
def test_bad_options(phantom, options, error, message):
    with pytest.raises(error, match=message):
        ap.lung_crop(phantom, **options)


# --- the transform --------------------------------------------------------------------------------


@pytest.fixture
def torchvision():
    return pytest.importorskip("torchvision", reason="needs torchvision")


def test_the_transform_equals_the_function(phantom, torchvision):
    import torch

    from anatpaste_aug.transforms import LungCrop

    expected = ap.lung_crop(phantom, square=True)
    crop = LungCrop(square=True)
    for image in (
        torch.from_numpy(phantom.copy())[None],
        torch.from_numpy(phantom.copy()),
        Image.fromarray(phantom),
        phantom,
        phantom[None],
    ):
        out = crop(image)
        assert type(out) is type(image) or isinstance(image, Image.Image)
        np.testing.assert_array_equal(np.asarray(out).squeeze(), expected)
    own = LungCrop(ap.lung_mask, margin=0.5)
    np.testing.assert_array_equal(
        own(phantom), ap.lung_crop(phantom, segment=ap.lung_mask, margin=0.5)
    )
    assert repr(own) == "LungCrop(segment=lung_mask, margin=0.5, square=False, shared=False)"
    for twin in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        np.testing.assert_array_equal(twin(phantom), own(phantom))


def test_boxes_masks_and_the_field_move_along(phantom, torchvision):
    import torch
    from torchvision import tv_tensors

    from anatpaste_aug.transforms import LungCrop, LungField, LungMask, Opacity

    mask = np.zeros((256, 256), bool)
    mask[50:150, 60:160] = True
    label = torch.tensor(3)
    sample = {
        "image": tv_tensors.Image(torch.from_numpy(phantom.copy())[None]),
        "boxes": tv_tensors.BoundingBoxes(
            [[70, 60, 90, 100]], format="XYXY", canvas_size=(256,) * 2
        ),
        "mask": tv_tensors.Mask(torch.from_numpy(phantom > 99)[None]),
        "field": LungField(torch.from_numpy(mask)[None]),
        "label": label,
    }

    def refuse(image):
        raise AssertionError("segmented although the mask is there")

    crop = LungCrop(refuse, margin=0.1)
    out = crop(sample)
    np.testing.assert_array_equal(out["image"][0], phantom[40:160, 50:170])
    np.testing.assert_array_equal(out["mask"][0], phantom[40:160, 50:170] > 99)
    np.testing.assert_array_equal(out["field"][0], mask[40:160, 50:170])
    assert out["boxes"].tolist() == [[20, 20, 40, 60]]
    assert tuple(out["boxes"].canvas_size) == (120, 120)
    assert type(out["field"]) is LungField
    assert out["label"] is label
    params = crop.make_params([sample["image"], sample["field"]])
    assert params == {"window": (slice(40, 160), slice(50, 170))}
    assert torch.equal(crop.transform(sample["image"], params), out["image"])
    assert Opacity(p=1)(out)["image"].shape == (1, 120, 120)
    nothing = LungCrop(lambda image: image > 999)(LungMask()(Image.fromarray(phantom)))
    assert nothing[0].size[0] < 256  # the field is used, not the segmenter
    whole = LungCrop(lambda image: image < 0)(phantom)
    np.testing.assert_array_equal(whole, phantom)


def test_several_images(phantom, torchvision):
    import torch
    from torchvision import tv_tensors

    from anatpaste_aug.transforms import LungCrop, LungMask

    pictures = [Image.fromarray(phantom_radiograph(size, rng=size)) for size in (128, 160)]
    out = LungCrop()({"image": pictures, "label": [0, 1]})
    for picture, cut in zip(pictures, out["image"], strict=True):
        np.testing.assert_array_equal(np.asarray(cut), np.asarray(ap.lung_crop(picture)))
    rows = LungMask()({"image": pictures})
    out = LungCrop()(rows)
    for picture, cut, field in zip(pictures, out["image"], out["lung_field"], strict=True):
        expected, lungs = ap.lung_crop(picture, segment=ap.lung_mask, return_mask=True)
        np.testing.assert_array_equal(np.asarray(cut), np.asarray(expected))
        np.testing.assert_array_equal(field[0], lungs)
    mask = tv_tensors.Mask(torch.zeros(1, 128, 128))
    for sample, message in (
        ({"image": pictures, "mask": mask}, "no boxes or masks unless shared=True"),
        (
            {"image": pictures, "field": rows["lung_field"][0]},
            "a LungField for each image, or none",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            LungCrop()(sample)
    same = {"a": pictures[0], "b": pictures[0].transpose(Image.Transpose.ROTATE_180), "mask": mask}
    out = LungCrop(shared=True)(same)
    assert out["a"].size == out["b"].size == tuple(out["mask"].shape[:0:-1])
    with pytest.raises(ValueError, match="must have one size, got"):
        LungCrop(shared=True)({"image": pictures})


# --- the batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [24, (96, 130)])
@pytest.mark.parametrize("square", [False, True])
def test_the_batch_is_crop_and_resize(torchvision, dtype, channels, size, square):
    import torch
    from torchvision.transforms import v2

    from anatpaste_aug import batch

    rng = np.random.default_rng(0)
    base = np.stack([phantom_radiograph((90, 110), rng=i) for i in range(5)])[:, None]
    images = torch.from_numpy(base * rng.random((1, channels, 1, 1)))
    scale = {"uint16": 250, "int16": 100, "float16": 1 / 255, "float32": 1 / 255}.get(dtype, 1)
    images = (images * scale).to(getattr(torch, dtype))
    before = images.clone()
    masks = torch.from_numpy(np.stack([any_mask(seed, 90, 110) for seed in (0, 1, 3, 5, 8)]))
    masks[0], masks[4] = False, torch.from_numpy(lungs_of(80, 82, 3, 9, (90, 110)))
    crop = batch.LungCrop(size, square=square)
    out, fields = crop(images, masks=masks)
    assert torch.equal(images, before)
    assert out.dtype == images.dtype
    assert fields.shape == (5, 1, *out.shape[2:])
    for i in range(5):
        array = images[i].double().permute(1, 2, 0).numpy()
        array, lungs = ap.lung_crop(array, mask=masks[i], square=square, return_mask=True)
        cut = torch.from_numpy(array).permute(2, 0, 1)
        expected = v2.functional.resize(cut, out.shape[2:], antialias=True)
        step = 0.5 if not dtype.startswith("float") else 1e-3 if dtype == "float16" else 1e-6
        tolerance = 1e-9 if dtype == "float64" else step
        assert (out[i].double() - expected).abs().max() <= tolerance + 1e-9
        if dtype == "uint8":
            eight = v2.functional.resize(cut.to(torch.uint8), out.shape[2:], antialias=True)
            assert (out[i].int() - eight.int()).abs().max() <= 1
        share = v2.functional.resize(
            torch.from_numpy(lungs)[None].double(), out.shape[2:], antialias=True
        )
        sure = (share - 0.5).abs() > 1e-6
        assert torch.equal(fields[i][sure], (share >= 0.5)[sure])


@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    margin=st.sampled_from([0, 0.08, 0.125, 0.5, 10**6]),
    square=st.booleans(),
)
def test_boxes_of_the_batch_are_those_of_the_function(seed, height, width, margin, square):
    torch = pytest.importorskip("torch", reason="needs torch")
    from anatpaste_aug import batch

    # Masks of boxes come out whole where they are not resized.
    masks = np.stack([any_mask(seed + i, height, width) for i in range(4)])
    image = np.random.default_rng(seed).integers(0, 255, (height, width)).astype(np.uint8)
    for mask in masks:
        expected, lungs = ap.lung_crop(
            image, mask=mask, margin=margin, square=square, return_mask=True
        )
        crop = batch.LungCrop(expected.shape, margin=margin, square=square)
        out, fields = crop(torch.from_numpy(image)[None, None], masks=torch.from_numpy(mask)[None])
        np.testing.assert_array_equal(out[0, 0], expected)
        np.testing.assert_array_equal(fields[0, 0], lungs)


def test_the_batch_compiles_whole(torchvision, compiler):
    import torch

    from anatpaste_aug import batch

    images = torch.randint(256, (3, 1, 48, 64), dtype=torch.uint8)
    masks = torch.zeros(3, 1, 48, 64, dtype=torch.bool)
    masks[1:, :, 10:30, 20:40] = True
    crop = batch.LungCrop(32)
    expected = crop(images, masks=masks)
    compiled = torch.compile(crop, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        got = compiled(images, masks=masks)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert repr(batch.LungCrop((32, 40), segment=batch.lung_mask)) == (
        "LungCrop(size=(32, 40), segment=lung_mask, margin=0.08, square=False)"
    )
    assert len(crop(images[:0], masks=masks[:0]).images) == 0
    robust = batch.lung_mask_robust(images)
    assert torch.equal(crop(images).images, crop(images, masks=robust).images)
    for size in (8, (32, 9), "big", 32.0):
        with pytest.raises((TypeError, ValueError), match="size must"):
            batch.LungCrop(size)
