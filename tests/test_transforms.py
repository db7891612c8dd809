"""The transforms against the functions, and their behavior in torchvision and DataLoader."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
from conftest import real_data
from PIL import Image

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("torchvision", reason="needs torchvision")

from torch.utils.data import DataLoader  # noqa: E402
from torchvision import transforms as v1  # noqa: E402
from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from anatpaste_aug import (  # noqa: E402
    CutPasteParams,
    apply_cutpaste,
    apply_opacity,
    apply_paste,
    lung_mask,
    operations,
    sample_cutpaste,
    sample_opacity,
    sample_paste,
    sample_scar,
)
from anatpaste_aug.data import phantom_radiograph  # noqa: E402
from anatpaste_aug.transforms import (  # noqa: E402
    AnatPaste,
    CutPaste,
    CutPasteScar,
    CutPasteUnion,
    LungCrop,
    LungField,
    LungMask,
    Opacity,
    OperationTransform,
)

PASTES = [AnatPaste, CutPaste, CutPasteScar, CutPasteUnion, Opacity]
# Two workers are started: where there is one core, torch warns of it.
starts_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def drawn_generator():
    """Make the NumPy generator that a transform draws from, at torch's present state."""
    torch.rand(())
    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))


@pytest.fixture
def tensor(phantom):
    return torch.from_numpy(phantom.copy())[None]


@pytest.mark.parametrize("seed", range(5))
def test_equal_the_functions(phantom, tensor, seed):
    mask = lung_mask(phantom)
    for transform, function in (
        (AnatPaste, lambda rng: apply_paste(phantom, sample_paste(mask, rng), mask)),
        (Opacity, lambda rng: apply_opacity(phantom, sample_opacity(mask, rng), mask)),
        (CutPaste, lambda rng: apply_cutpaste(phantom, sample_cutpaste(phantom, rng))),
        (CutPasteScar, lambda rng: apply_cutpaste(phantom, sample_scar(phantom, rng))),
    ):
        torch.manual_seed(seed)
        expected = function(drawn_generator())
        torch.manual_seed(seed)
        np.testing.assert_array_equal(transform(p=1)(tensor)[0].numpy(), expected)


def test_union_is_half_and_half(tensor):
    areas = [CutPasteUnion(p=1, return_mask=True)(tensor)[1].sum().item() for _ in range(200)]
    # A scar has at most 16 x 25 pixels, a normal patch at least 2 % of 65,536.
    assert 70 <= sum(area < 500 for area in areas) <= 130


@pytest.mark.parametrize("transform", PASTES)
@pytest.mark.parametrize("compose", [v1.Compose, v2.Compose])
def test_pillow_in_compose(phantom, transform, compose):
    for mode in ("L", "RGB", "I;16", "F"):
        picture = Image.fromarray(phantom).convert("L")
        if mode == "I;16":
            picture = Image.fromarray(phantom.astype(np.uint16) * 100)
        elif mode != "L":
            picture = picture.convert(mode)
        out = compose([transform(p=1), transform(p=1)])(picture)
        assert (out.mode, out.size) == (mode, picture.size)
        assert (np.asarray(out) != np.asarray(picture)).any()


@pytest.mark.parametrize("transform", PASTES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 80, 64), (3, 80, 64), (80, 64)])
@pytest.mark.parametrize("kind", [torch.Tensor, tv_tensors.Image])
def test_tensors(transform, dtype, shape, kind):
    if kind is tv_tensors.Image and len(shape) == 2:
        pytest.skip("tv_tensors.Image adds the channel itself")
    image = torch.rand(shape) * (1 if dtype.startswith("float") else 250)
    image = image.to(getattr(torch, dtype))
    image = tv_tensors.Image(image) if kind is tv_tensors.Image else image
    before = image.clone()
    out, region = transform(p=1, return_mask=True)(image)
    assert type(out) is kind
    assert (out.shape, out.dtype) == (image.shape, image.dtype)
    assert out.is_contiguous()
    assert torch.equal(image, before)
    assert type(region) is tv_tensors.Mask
    assert (tuple(region.shape), region.dtype) == ((1, 80, 64), torch.bool)
    changed = (out.numpy() != image.numpy()).reshape(-1, 80, 64).any(axis=0)
    assert not (changed & ~region[0].numpy()).any()


def test_pillow_array_and_tensor_agree(phantom, tensor):
    outs = []
    for image in (tensor, Image.fromarray(phantom), tv_tensors.Image(tensor), tensor[0]):
        torch.manual_seed(3)
        outs.append(np.asarray(AnatPaste(p=1)(image)).squeeze())
    for out in outs[1:]:
        np.testing.assert_array_equal(out, outs[0])


@pytest.mark.parametrize("transform", PASTES)
def test_nested_samples(phantom, tensor, transform):
    boxes = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(256, 256))
    label, labels = torch.tensor(3), tv_tensors.Mask(torch.zeros(1, 256, 256))
    others = {"boxes": boxes, "label": label, "mask": labels, "name": "a.png", "n": 5, "x": None}
    sample = {"image": tv_tensors.Image(tensor), "target": [others, ("y", phantom)]}
    out = transform(p=1)(sample)
    assert not torch.equal(out["image"], sample["image"])
    for name, value in others.items():
        assert out["target"][0][name] is value
    assert out["target"][1][1] is phantom
    image, target = transform(p=1)(Image.fromarray(phantom), 4)
    assert isinstance(image, Image.Image)
    assert target == 4
    (image, region), target = transform(p=1, return_mask=True)((tensor, label))
    assert region.any()
    assert target is label


def test_every_image_gets_its_own_paste_unless_they_share(tensor):
    sample = {"a": tv_tensors.Image(tensor), "b": [tv_tensors.Image(tensor.clone())]}
    for transform in PASTES:
        out = transform(p=1)(sample)
        assert not torch.equal(out["a"], out["b"][0])
        same = transform(p=1, shared=True)(sample)
        assert torch.equal(same["a"], same["b"][0])
        for part in (out, same):
            assert not torch.equal(part["a"], tensor)
    small = tv_tensors.Image(tensor[:, :100])
    for transform in PASTES:
        with pytest.raises(ValueError, match=r"must have one size, got \[\(100, 256\), \(256, 256"):
            transform(p=1, shared=True)((tv_tensors.Image(tensor), small))


def test_lists_of_pictures_get_their_own_masks():
    # Hugging Face's with_transform hands over a dict of lists, one entry for each row.
    pictures = [Image.fromarray(phantom_radiograph(size, rng=size)) for size in (96, 128, 160)]
    masks = [lung_mask(np.asarray(picture)) for picture in pictures]
    rows = {"image": pictures, "label": [0, 1, 0]}
    out = v2.Compose([LungMask(), AnatPaste(p=1)])(rows)
    assert out["label"] == rows["label"]
    for picture, pasted, mask, field in zip(
        pictures, out["image"], masks, out["lung_field"], strict=True
    ):
        assert (np.asarray(picture) != np.asarray(pasted)).any()
        assert not (np.asarray(picture) != np.asarray(pasted))[~mask].any()
        np.testing.assert_array_equal(field[0].numpy(), mask)
    pairs = AnatPaste(p=1, return_mask=True)(rows)["image"]
    for picture, (pasted, region) in zip(pictures, pairs, strict=True):
        changed = np.asarray(picture) != np.asarray(pasted)
        assert not changed[~region[0].numpy()].any()
    with pytest.raises(
        ValueError, match=r"a LungField for each image, or none, .*got 3 images, 1 f"
    ):
        AnatPaste(p=1)({**rows, "lung_field": out["lung_field"][0]})


@pytest.mark.parametrize("transform", [*(kind(p=1) for kind in PASTES), LungMask()])
def test_between_plain_tensors_nothing_is_guessed(phantom, tensor, transform):
    seg = torch.zeros(1, 256, 256, dtype=torch.uint8)
    for sample in (
        {"seg": seg, "image": tensor},
        (tensor, tensor.clone()),
        [phantom, seg],
        {"image": phantom, "mask": phantom > 9},
    ):
        with pytest.raises(ValueError, match=r"must say which .* tv_tensors.Image.* got \(.*256"):
            transform(sample)
    out = transform({"seg": seg, "image": tv_tensors.Image(tensor)})
    assert out["seg"] is seg
    assert transform((tensor, torch.tensor(3), torch.arange(4)))[1] == 3


@pytest.mark.parametrize("transform", PASTES)
@pytest.mark.parametrize("shape", [(64, 80), (64, 80, 3), (1, 64, 80), (64, 80, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_arrays_are_images(transform, shape, dtype):
    values = np.random.default_rng(0).random(shape) * 200
    image = values.astype(dtype)
    before = image.copy()
    out, region = transform(p=1, return_mask=True)(image)
    assert type(out) is np.ndarray
    assert (out.shape, out.dtype) == (image.shape, image.dtype)
    assert (out != image).any()
    assert tuple(region.shape) == (1, 64, 80)
    np.testing.assert_array_equal(image, before)
    assert transform(p=0)(image) is image


class Tagged(torch.Tensor):
    """A tensor that carries something, as MONAI's MetaTensor does."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        source = next((arg for arg in args if isinstance(arg, Tagged)), None)
        if isinstance(out, Tagged) and source is not None:
            out.meta = getattr(source, "meta", None)
        return out


def test_tensor_subclasses_come_back(tensor):
    image = tensor.clone().as_subclass(Tagged)
    image.meta = {"spacing": 0.2}
    for p in (0, 1):
        out = AnatPaste(p=p)(image)
        assert type(out) is Tagged
        assert out.meta == image.meta
    torch.manual_seed(0)
    plain = AnatPaste(p=1)(tensor)
    torch.manual_seed(0)
    assert torch.equal(AnatPaste(p=1)(image).as_subclass(torch.Tensor), plain)


@pytest.mark.parametrize("transform", PASTES)
def test_what_was_drawn_can_be_seen_and_repeated(phantom, tensor, transform):
    paste = transform(p=1)
    for image in (tensor, phantom, Image.fromarray(phantom)):
        torch.manual_seed(5)
        drawn = paste.make_params([image])
        torch.manual_seed(5)
        expected = np.asarray(paste(image))
        assert set(drawn) == {"params", "lungs"}
        copied = pickle.loads(pickle.dumps(drawn))
        assert repr(copied["params"]) == repr(drawn["params"])
        for params in (drawn, copied):
            np.testing.assert_array_equal(np.asarray(paste.transform(image, params)), expected)
        if transform is AnatPaste:
            np.testing.assert_array_equal(drawn["lungs"], lung_mask(phantom))
            function = apply_paste(phantom, drawn["params"], drawn["lungs"])
        elif transform is Opacity:
            np.testing.assert_array_equal(drawn["lungs"], lung_mask(phantom))
            function = apply_opacity(phantom, drawn["params"], drawn["lungs"])
        else:
            assert drawn["lungs"] is None
            function = apply_cutpaste(phantom, drawn["params"])
        np.testing.assert_array_equal(expected.squeeze(), function)
    assert transform(p=0).make_params([tensor]) == {"params": None, "lungs": None}
    assert paste.transform("a.png", drawn) == "a.png"


def test_repeating_a_paste_is_checked(phantom, tensor):
    paste = AnatPaste(p=1)
    drawn = paste.make_params([phantom])
    with pytest.raises(ValueError, match=r"shape \(256, 200\), got \(256, 256\)"):
        paste.transform(phantom[:, :200], drawn)
    with pytest.raises(TypeError, match="params must be PasteParams, got int"):
        paste.transform(phantom, {"params": 3, "lungs": None})
    with pytest.raises(TypeError, match="params must be PasteParams, got CutPasteParams"):
        paste.transform(phantom, CutPaste(p=1).make_params([phantom]))
    field = LungField(torch.ones(1, 256, 256, dtype=torch.bool))
    drawn = paste.make_params([tensor, field])
    field[:] = False
    assert drawn["lungs"].all()  # what was drawn does not change with the sample
    lungs = torch.from_numpy(drawn["lungs"])
    assert torch.equal(
        paste.transform(tensor, {**drawn, "lungs": lungs}), paste.transform(tensor, drawn)
    )


def test_images_that_share_use_the_first_field(tensor):
    pictures = [tv_tensors.Image(tensor), tv_tensors.Image(tensor.flip(-1))]
    out = v2.Compose([LungMask(), AnatPaste(p=1, shared=True)])({"image": pictures})
    left, right = (
        (pasted != image)[0].numpy() for pasted, image in zip(out["image"], pictures, strict=True)
    )
    mask = out["lung_field"][0][0].numpy()
    assert not (left | right)[~mask].any()
    assert (left & right).any()


def test_fields_of_lists_of_one_stay_lists(phantom):
    picture = Image.fromarray(phantom)
    assert type(LungMask()({"image": [picture]})["lung_field"]) is list
    assert type(LungMask()({"image": picture})["lung_field"]) is LungField


@pytest.mark.parametrize("flip", [True, False])
def test_segmenters_may_keep_or_share_their_masks(phantom, tensor, flip):
    kept = phantom > 100
    field = LungMask(segment=lambda image: kept[:, ::-1] if flip else kept)(tensor)[1]
    field[:] = False
    np.testing.assert_array_equal(kept, phantom > 100)


@starts_workers
@pytest.mark.parametrize("workers", [0, 2])
def test_collated_subclasses(tensor, workers):
    images = [tensor.clone().as_subclass(Tagged) for _ in range(8)]
    loader = DataLoader(
        [image.as_subclass(torch.Tensor) for image in images],
        batch_size=8,
        collate_fn=lambda batch: torch.stack(
            [AnatPaste(p=0.5)(image.as_subclass(Tagged)) for image in batch]
        ),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    assert next(iter(loader)).shape == (8, 1, 256, 256)


@pytest.mark.parametrize("shape", [(256, 256), (1, 256, 256), (256, 256, 1)])
@pytest.mark.parametrize("kind", [torch.Tensor, tv_tensors.Mask, np.ndarray])
def test_segmenters_may_return_tensors_and_a_channel(tensor, shape, kind):
    def corner(image):
        mask = torch.zeros(256, 256, dtype=torch.bool)
        mask[:40, :40] = True
        mask = mask.reshape(shape)
        return mask.numpy() if kind is np.ndarray else mask.as_subclass(kind)

    region = AnatPaste(p=1, segment=corner, return_mask=True)(tensor)[1]
    assert region.any()
    assert not region[0, 40:].any()


def test_p(tensor):
    assert AnatPaste(p=0)(tensor) is tensor
    image, region = AnatPaste(p=0, return_mask=True)(tensor)
    assert image is tensor
    assert not region.any()
    assert tuple(region.shape) == (1, 256, 256)
    hits = sum(CutPaste(p=0.3)(tensor) is not tensor for _ in range(400))
    assert 85 <= hits <= 155  # 120, standard deviation 9


@pytest.mark.parametrize("p", [0, 0.1])
@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        (torch.zeros(4, 64, 64), ValueError, r"got \(4, 64, 64\)"),
        (torch.zeros(1, 8, 64), ValueError, "at least 16 pixels"),
        (torch.zeros(1, 64, 64, dtype=torch.int64), TypeError, "got int64"),
        (torch.zeros(1, 64, 64, dtype=torch.bfloat16), TypeError, "got torch.bfloat16"),
        (np.zeros((64, 64), complex), TypeError, "got complex128"),
        (Image.new("RGBA", (64, 64)), TypeError, "got 'RGBA'"),
    ],
)
def test_bad_images_are_found_at_any_p(p, sample, error, message):
    for kind in PASTES:
        for more in ({}, {"shared": True}, {"return_mask": True}):
            paste = kind(p=p, **more)
            for _ in range(200 if kind is AnatPaste and not more else 5):
                with pytest.raises(error, match=message):
                    paste(sample)


@pytest.mark.parametrize("p", [0, 0.1])
@pytest.mark.parametrize(
    ("field", "error", "message"),
    [
        (torch.ones(1, 64, 63, dtype=torch.bool), ValueError, r"got \(64, 63\)"),
        (torch.ones(1, 64, 64), TypeError, "LungField must be a bool or integer array"),
    ],
)
def test_bad_fields_are_found_at_any_p(p, field, error, message):
    image = tv_tensors.Image(torch.zeros(1, 64, 64, dtype=torch.uint8))
    for kind in (AnatPaste, Opacity):
        paste = kind(p=p)
        for _ in range(200 if kind is AnatPaste else 5):
            with pytest.raises(error, match=message):
                paste((image, LungField(field)))
    # Those that need no lungs do not look.
    assert CutPaste(p=p)((image, LungField(field)))[1].shape == field.shape


COMPILED = [*(kind(p=0.7) for kind in PASTES), LungMask(), LungCrop()]


@pytest.mark.filterwarnings("ignore:.*torch:UserWarning")
@pytest.mark.parametrize("transform", COMPILED, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_compiled_they_give_what_they_give(tensor, transform, dtype, compiler):
    image = (tensor.float() / 255 * (1 if dtype.is_floating_point else 250)).to(dtype)

    def augment(image):
        return transform(image)

    compiled = torch.compile(augment, backend="eager")
    for sample in (image, tv_tensors.Image(image)):
        for seed in range(4):
            torch.manual_seed(seed)
            expected = transform(sample)
            torch.manual_seed(seed)
            got = compiled(sample)
            assert type(got) is type(expected)
            pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
            for one, other in pairs:
                assert type(one) is type(other)
                assert torch.equal(one, other)


def test_the_lung_field_is_used_and_moves_with_the_image(tensor):
    corner = torch.zeros(1, 256, 256, dtype=torch.bool)
    corner[0, :40, :40] = True
    sample = (tensor, LungField(corner), 7)
    image, field, _ = v2.Compose([v2.RandomHorizontalFlip(p=1), AnatPaste(p=1)])(sample)
    changed = (image != tensor.flip(-1))[0]
    assert changed[:40, -40:].any()
    assert not changed[40:].any()
    assert not changed[:, :-40].any()
    assert type(field) is LungField

    def refuse(image):
        raise AssertionError("segmented although the mask is there")

    AnatPaste(p=1, segment=refuse)(sample)


@pytest.mark.parametrize(
    "move",
    [
        v2.Resize(128),
        v2.RandomRotation(10),
        v2.RandomCrop(200),
        v2.RandomResizedCrop(100),
        v2.RandomAffine(5, translate=(0.1, 0.1)),
        v2.ElasticTransform(),
        v2.Pad(10),
    ],
)
def test_geometric_transforms_keep_the_field_usable(tensor, move):
    sample = LungMask()({"image": tv_tensors.Image(tensor), "label": 1})
    out = v2.Compose([move, AnatPaste(p=1)])(sample)
    assert type(out["lung_field"]) is LungField
    assert out["lung_field"].dtype == torch.bool
    assert out["lung_field"].shape[-2:] == out["image"].shape[-2:]


def test_lung_mask_adds_the_field(phantom, tensor):
    expected = lung_mask(phantom)
    picture = Image.fromarray(phantom)
    image, field = LungMask()(picture)
    assert image is picture
    assert type(field) is LungField
    np.testing.assert_array_equal(field[0].numpy(), expected)
    assert LungMask()(picture, 3)[:2] == (picture, 3)
    assert type(LungMask()([tensor, 3])) is list
    sample = LungMask()({"image": tensor})
    assert list(sample) == ["image", "lung_field"]
    assert LungMask()(sample) is sample
    own = LungMask(segment=lambda image: image > 100)(tensor)[1]
    np.testing.assert_array_equal(own[0].numpy(), phantom > 100)
    with pytest.raises(ValueError, match="'lung_field' must be free"):
        LungMask()({"image": tensor, "lung_field": 3})


def test_lung_mask_keeps_the_kind_of_dict_and_refuses_named_tuples(tensor):
    sample = LungMask()(OrderedDict(image=tensor))
    assert type(sample) is OrderedDict
    pair = namedtuple("pair", ["image", "label"])
    with pytest.raises(TypeError, match="named tuple has no place"):
        LungMask()(pair(tensor, 3))


def test_own_segmenters_are_used(tensor):
    def corner(image):
        mask = np.zeros(image.shape[:2], bool)
        mask[200:, 200:] = True
        return mask

    region = AnatPaste(p=1, segment=corner, return_mask=True)(tensor)[1]
    assert region[0, 200:, 200:].any()
    assert region.sum() == region[0, 200:, 200:].sum()


@pytest.mark.parametrize("seed", range(3))
def test_options_reach_the_draw(phantom, tensor, seed):
    mask = lung_mask(phantom)

    def drawn(transform):
        torch.manual_seed(seed)
        return transform(tensor)[0].numpy()

    def rng():
        torch.manual_seed(seed)
        return drawn_generator()

    for option in (
        {"scale": 0.3},
        {"ratio": 1},
        {"blur": 30},
        {"opacity": 10},
        {"margin": 1},
        {"jitter": 0.9},
    ):
        expected = apply_paste(phantom, sample_paste(mask, rng(), **option), mask)
        np.testing.assert_array_equal(drawn(AnatPaste(p=1, **option)), expected)
        if option.keys() <= {"scale", "ratio", "jitter"}:
            expected = apply_cutpaste(phantom, sample_cutpaste(phantom, rng(), **option))
            np.testing.assert_array_equal(drawn(CutPaste(p=1, **option)), expected)
    expected = apply_cutpaste(phantom, sample_scar(phantom, rng(), jitter=0.9))
    np.testing.assert_array_equal(drawn(CutPasteScar(p=1, jitter=0.9)), expected)


def test_the_default_p_is_one_half():
    assert all(transform().p == 0.5 for transform in PASTES)


def test_typed_images_come_before_plain_tensors(tensor):
    label = torch.tensor([3])
    out_label, out = AnatPaste(p=1)((label, tv_tensors.Image(tensor)))
    assert out_label is label
    assert not torch.equal(out, tensor)


@pytest.mark.parametrize("shape", [(256, 256), (2, 256, 256)])
def test_fields_of_other_dimensions(tensor, shape):
    field = torch.ones(shape, dtype=torch.bool).as_subclass(LungField)
    if len(shape) == 2:
        AnatPaste(p=1)((tensor, field))
    else:
        with pytest.raises(ValueError, match=r"LungField must have .* got \(2, 256, 256\)"):
            AnatPaste(p=1)((tensor, field))


def test_a_field_of_another_size_is_refused(tensor):
    field = LungField(torch.ones(1, 64, 64, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"shape \(256, 256\), got \(64, 64\)"):
        AnatPaste(p=1)((tensor, field))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"p": 1.5}, ValueError, r"p must lie in 0..1, got 1.5"),
        ({"p": "often"}, TypeError, "p must be a number"),
        ({"opacity": 300}, ValueError, "opacity must lie in 0..255, got 300"),
        ({"scale": (0.3, 0.1)}, ValueError, "scale must not be reversed"),
        ({"ratio": 0}, ValueError, r"ratio must lie in 1e-06..1000000.0, got 0"),
        ({"blur": (0, -1)}, ValueError, "blur must be at least 0"),
        ({"margin": -1}, ValueError, "margin must be at least 0"),
        ({"jitter": 7}, ValueError, "jitter must lie in"),
        ({"return_mask": "no"}, TypeError, "return_mask must be True or False, got 'no'"),
        ({"segment": "lungs"}, TypeError, "segment must be callable, got str"),
    ],
)
def test_bad_settings_are_found_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        AnatPaste(**options)
    for transform in (CutPaste, CutPasteUnion):
        if set(options) <= {"p", "scale", "ratio", "jitter", "return_mask"}:
            with pytest.raises(error, match=message):
                transform(**options)
    if "segment" in options:
        with pytest.raises(error, match=message):
            LungMask(**options)


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        (("label", 3), ValueError, "sample must hold a Pillow image"),
        (np.zeros(64, np.uint8), ValueError, "sample must hold a Pillow image"),
        (torch.zeros(2, 1, 64, 64), ValueError, r"got \(2, 1, 64, 64\); anatpaste_aug.batch"),
        (torch.zeros(2, 64, 64), ValueError, r"got \(2, 64, 64\)"),
        (torch.zeros(1, 64, 64, dtype=torch.int64), TypeError, "got int64"),
        (np.zeros((3, 64, 64)), ValueError, r"or \(1, H, W\), got \(3, 64, 64\)"),
        (torch.full((1, 64, 64), torch.nan), ValueError, "image must be finite"),
        (torch.zeros(1, 8, 64), ValueError, "at least 16 pixels"),
        (torch.zeros(1, 64, 64, device="meta"), ValueError, "must be on the CPU, got meta"),
        (torch.zeros(1, 64, 64, dtype=torch.bfloat16), TypeError, "got torch.bfloat16"),
        (Image.new("RGBA", (64, 64)), TypeError, "Pillow mode out of .* got 'RGBA'"),
        (Image.new("P", (64, 64)), TypeError, "Pillow mode out of .* got 'P'"),
        (Image.new("YCbCr", (64, 64)), TypeError, "Pillow mode out of .* got 'YCbCr'"),
    ],
)
def test_bad_samples(sample, error, message):
    for transform in (AnatPaste(p=1), LungMask()):
        with pytest.raises(error, match=message):
            transform(sample)


def test_repr_and_pickle_and_copy(tensor):
    transform = AnatPaste(p=0.25, opacity=200, segment=lung_mask)
    assert repr(transform) == (
        "AnatPaste(p=0.25, scale=(0.02, 0.15), ratio=(0.3, 3.3333333333333335), blur=(0, 14), "
        "opacity=(200, 200), margin=10, jitter=0.1, lengths_for=256, segment=lung_mask, "
        "return_mask=False, shared=False)"
    )
    for one in (transform, *(kind(p=0.1, return_mask=True) for kind in PASTES)):
        again = eval(repr(one), {**globals()})  # a repr can be pasted back
        assert repr(again) == repr(one)
    assert repr(LungMask(segment=lung_mask)) == "LungMask(segment=lung_mask)"
    for twin in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        torch.manual_seed(1)
        expected = transform(tensor)
        torch.manual_seed(1)
        assert torch.equal(twin(tensor), expected)


class Phantoms(torch.utils.data.Dataset):
    """The same phantom at every index, augmented."""

    def __init__(self, transform):
        self.image = torch.from_numpy(phantom_radiograph(128, rng=0))[None]
        self.transform = transform

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return self.transform(self.image)


@pytest.mark.parametrize("transform", PASTES)
@starts_workers
@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader_workers(transform, workers):
    def epochs(seed):
        torch.manual_seed(seed)
        loader = DataLoader(
            Phantoms(transform(p=1)),
            batch_size=4,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
            persistent_workers=bool(workers),
        )
        return [torch.cat(list(loader)).flatten(1) for _ in range(2)]

    first, second = epochs(0)
    assert len(torch.unique(first, dim=0)) == 16  # no two workers, no two images alike
    assert not torch.equal(first, second)
    again_first, again_second = epochs(0)
    assert torch.equal(first, again_first)
    assert torch.equal(second, again_second)
    assert not torch.equal(first, epochs(1)[0])


class Radiographs(torch.utils.data.Dataset):
    def __init__(self, paths, size):
        self.paths = paths
        self.transform = v2.Compose(
            [v2.Resize((size, size)), LungMask(), AnatPaste(p=1, return_mask=True)]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            image = image.convert("L")
        resized = self.transform.transforms[0](image)
        (pasted, region), field = self.transform(image)
        return (
            bool(field.any()),
            bool((np.asarray(pasted) != np.asarray(resized)).any()),
            bool(region.any()),
        )


@pytest.mark.slow
@starts_workers
@pytest.mark.parametrize("size", [224, 256, 512])
def test_real_radiographs_in_workers(size):
    paths = sorted(real_data("data/zhanglab224/train/normal").iterdir())
    paths = (paths * 2)[:2000]
    torch.manual_seed(size)
    loader = DataLoader(Radiographs(paths, size), batch_size=50, num_workers=2)
    lungs, changed, region = (torch.cat(column) for column in zip(*loader, strict=True))
    assert len(lungs) == 2000
    assert changed[lungs].all()
    assert region[lungs].all()
    assert (~lungs).float().mean() < 0.05
    print(f"size {size}: no lung in {(~lungs).sum()} of 2000")


# --- forms of one's own ---------------------------------------------------------------------------


def test_subclasses_show_their_own_signature():
    class Fixed(AnatPaste):
        def __init__(self, p=0.5, *, margin=4):
            super().__init__(p, margin=margin)

    class Other(AnatPaste):
        operation = operations.Opacity

    class Plain(operations.Operation):
        params, needs_lungs = CutPasteParams, False

    class Without(OperationTransform):
        operation = Plain

    assert [*inspect.signature(Fixed).parameters] == ["p", "margin"]
    assert "kinds" in inspect.signature(Other).parameters
    assert "scale" not in inspect.signature(Other).parameters
    assert [*inspect.signature(Without).parameters] == ["p", "return_mask", "shared"]
    assert inspect.signature(AnatPaste).parameters["margin"].default == 10
    assert Fixed().op.margin == 4


def test_crops_and_segmenters_do_not_see_pixels_that_are_not_finite():
    image = torch.full((1, 64, 64), torch.nan)
    field = LungField(torch.ones(1, 64, 64, dtype=torch.bool))
    called = []
    for refuse in (
        lambda: LungCrop()({"image": image, "field": field}),
        lambda: LungMask(called.append)(image),
        lambda: AnatPaste(1, segment=called.append)(image),
    ):
        with pytest.raises(ValueError, match="image must be finite, got nan"):
            refuse()
    assert called == []


def test_one_field_serves_a_crop_that_is_shared():
    images = [tv_tensors.Image(torch.zeros(1, 64, 64, dtype=torch.uint8)) for _ in range(2)]
    field = torch.zeros(1, 64, 64, dtype=torch.bool)
    field[:, 10:40, 20:50] = True
    first, second, cut = LungCrop(shared=True, margin=0)((*images, LungField(field)))
    assert first.shape == second.shape == cut.shape == (1, 30, 30)
