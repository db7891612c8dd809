"""What an operation is: the same options in every form, own operations, lengths, types."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from conftest import real_data
from PIL import Image
from scipy import stats

import anatpaste_aug as ap
from anatpaste_aug import operations
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.operations import Operation, Sampler, option

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = {
    operations.AnatPaste: (ap.anatpaste, ap.sample_paste),
    operations.CutPaste: (ap.cutpaste, ap.sample_cutpaste),
    operations.CutPasteScar: (ap.cutpaste_scar, ap.sample_scar),
    operations.CutPasteUnion: (ap.cutpaste_union,),
    operations.Opacity: (ap.opacity, ap.sample_opacity),
}
# What forms take besides the options of the operation.
SHARED = {"p", "segment", "return_mask", "shared", "mask"}
MONAI = {"mask_key", "region_key", "allow_missing_keys"}


def options_of(form):
    """Return the names and defaults of a form's options, in order; no other is taken."""
    parameters = inspect.signature(form).parameters
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()), form
    return [
        (name, parameter.default)
        for name, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in SHARED | MONAI
    ]


def described(form):
    """Return the names of the options that type checkers know of, of a function or a class."""
    where = form.__mro__[1] if inspect.isclass(form) else form  # transform and module share it
    (name,) = re.findall(r"\*\*options: Unpack\[(\w+)\]", inspect.getsource(where))
    options = getattr(sys.modules[where.__module__], name)
    assert not options.__required_keys__
    return options.__annotations__.keys()


def check_options(operation, forms, typed=True):
    """Check that forms show the operation's options, and take lungs where it does."""
    expected = [(one.name, one.default) for one in dataclasses.fields(operation)]
    for form in forms:
        assert options_of(form) == expected, form
        shown = inspect.signature(form).parameters
        assert not {"self", "operation", "options"} & shown.keys()
        assert operation.needs_lungs or not {"segment", "mask_key"} & shown.keys()
        if typed:
            # Type checkers know of all that some form takes, and of no other option.
            assert described(form) - SHARED == dict(expected).keys()
            words = {name for name, one in shown.items() if one.kind is one.KEYWORD_ONLY}
            assert words & SHARED <= described(form) or form in FUNCTIONS[operation][1:]
        required = [np.ones((64, 64), np.uint8)] if inspect.isfunction(form) else []
        with pytest.raises(TypeError, match="unexpected keyword argument 'blurr'"):
            form(*required, blurr=3)


@pytest.mark.parametrize("operation", FUNCTIONS)
def test_every_function_has_the_operation_s_options(operation):
    check_options(operation, FUNCTIONS[operation])
    main = inspect.signature(FUNCTIONS[operation][0]).parameters
    assert ({"mask", "segment"} <= main.keys()) == operation.needs_lungs
    with pytest.raises(TypeError, match="unexpected keyword argument 'blurr'"):
        operation(blurr=3)


@pytest.mark.parametrize("operation", FUNCTIONS)
def test_every_form_has_the_operation_s_options(operation):
    pytest.importorskip("torchvision", reason="needs torchvision")
    from anatpaste_aug import batch, transforms

    name = operation.__name__
    kinds = [getattr(transforms, name), getattr(batch, name)]
    check_options(operation, kinds)
    for kind in kinds:
        assert ("segment" in inspect.signature(kind).parameters) == operation.needs_lungs
    if operation is operations.AnatPaste:
        assert options_of(batch.sample_paste) == options_of(kinds[0])
        assert described(batch.sample_paste) == dict(options_of(kinds[0])).keys()
    # Subclasses, with or without an operation of their own, show what they take.
    check_options(operation, [type("Own", (kind,), {}) for kind in kinds], typed=False)
    other = type("Own", (kinds[0],), {"operation": operations.CutPasteScar})
    check_options(operations.CutPasteScar, [other], typed=False)


@pytest.mark.filterwarnings("default")  # MONAI's own
def test_monai_s_forms_have_the_operation_s_options():
    pytest.importorskip("monai", reason="needs monai: the extra `clients`")
    from anatpaste_aug import monai

    own = type("RandScard", (monai.RandOperationd,), {"operation": operations.CutPasteScar})
    for kind in (monai.RandAnatPasted, monai.RandOpacityd, own):
        shown = inspect.signature(kind).parameters
        assert [*shown][:2] == ["keys", "prob"]
        assert {"region_key", "allow_missing_keys"} <= shown.keys()
        assert ({"mask_key", "segment"} <= shown.keys()) == kind.operation.needs_lungs
        expected = [(one.name, one.default) for one in dataclasses.fields(kind.operation)]
        assert options_of(kind) == expected
        with pytest.raises(TypeError, match="unexpected keyword argument 'blurr'"):
            kind("image", blurr=3)


def test_images_masks_and_sources_of_random_numbers_stand_in_the_same_places():
    pytest.importorskip("torchvision", reason="needs torchvision")
    from anatpaste_aug import batch

    def places(form):
        words = {"images": "image", "masks": "mask", "generator": "rng"}
        return [
            (words.get(name, name), parameter.kind, parameter.default)
            for name, parameter in inspect.signature(form).parameters.items()
        ]

    for name in ("sample_paste", "apply_paste", "lung_mask"):
        assert places(getattr(ap, name)) == places(getattr(batch, name)), name


def test_functions_and_operations_agree(phantom):
    for operation, (function, *_) in FUNCTIONS.items():
        out, region = function(phantom, 3, return_mask=True)
        same, where = operation()(phantom, 3, return_mask=True)
        np.testing.assert_array_equal(out, same)
        np.testing.assert_array_equal(region, where)
        np.testing.assert_array_equal(function(phantom, 3), out)
    assert ap.cutpaste_union(Image.fromarray(phantom), 0).mode == "L"


def test_the_union_is_half_and_half():
    drawn = [operations.CutPasteUnion().sample((256, 256), None, seed) for seed in range(400)]
    assert 160 <= sum(params.angle != 0 for params in drawn) <= 240


# --- lengths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 128, 224, 512, 1024])
def test_lengths_scale_with_the_image(size):
    mask, image = np.ones((size, size), bool), np.zeros((size, size), np.uint8)
    scale = size / 256
    blurs = [ap.sample_paste(mask, seed, blur=(4, 8)).blur_radius for seed in range(40)]
    assert (min(blurs), max(blurs)) == (round(4 * scale), round(8 * scale))
    assert ap.sample_paste(mask, 0).margin == round(10 * scale)
    assert ap.sample_paste(mask, 0, lengths_for=None).margin == 10
    assert ap.sample_paste(mask, 0, lengths_for=size).margin == 10
    scar = ap.sample_scar(image, 0, width=8, height=16)
    assert (scar.width, scar.height) == (8 * scale, 16 * scale)
    plain = ap.sample_scar(image, 0, width=8, height=16, angle=30, lengths_for=None)
    assert (plain.width, plain.height, plain.angle) == (8, 16, 30)


def test_lengths_of_images_that_are_not_square():
    assert ap.sample_paste(np.ones((128, 512), bool), 0).margin == 10
    assert ap.sample_paste(np.ones((64, 256), bool), 0).margin == 5


@pytest.mark.parametrize("shape", [(256, 256), (257, 257)])
@pytest.mark.parametrize("lengths_for", [256, 257, None])
def test_lengths_are_whole_at_every_factor(shape, lengths_for):
    operation = operations.Opacity(size=0.3, lengths_for=lengths_for)
    factor = math.sqrt(shape[0] * shape[1]) / (lengths_for or shape[0])
    for length, least in ((1.5, 1), (22.5, 1), (0.3, 0), (0.3, 1), (7, 0)):
        scaled = operation.scaled(length, shape, least)
        assert type(scaled) is int
        assert scaled == max(round(length * factor), min(math.ceil(length), least))
    assert operation.scaled((1.5, 4.2), shape) == (round(1.5 * factor), round(4.2 * factor))
    radii = [22 * 0.3, 75 * 0.3]
    assert operation.scaled(tuple(radii), shape, 1) == tuple(round(r * factor) for r in radii)


def alphas(size, count=150):
    images = [phantom_radiograph(size, rng=seed) for seed in range(3)]
    # `min_area` is in pixels of the image: small images need a smaller one to keep their lungs.
    masks = [ap.lung_mask(image, min_area=round(400 * (size / 256) ** 2)) for image in images]
    rng = np.random.default_rng(0)
    for image, mask in zip(images, masks, strict=True):
        for _ in range(count):
            params = ap.sample_paste(mask, rng)
            changed = (ap.apply_paste(image, params, mask) != image).any()
            yield ap.paste_alpha(params, mask).max(), changed


@pytest.mark.parametrize("size", [64, 128, 224, 512, 1024])
def test_pastes_are_as_strong_at_every_size(size):
    peaks, changed = zip(*alphas(size, 150 if size < 1000 else 60), strict=True)
    usual = np.median([peak for peak, _ in alphas(256, 60)])
    assert np.mean(np.logical_not(changed)) < 0.005
    assert 0.8 * usual <= np.median(peaks) <= 1.2 * usual


def test_scars_cover_as_much_at_every_size():
    areas = {}
    for size in (64, 256, 1024):
        image = phantom_radiograph(size, rng=0)
        regions = [ap.cutpaste_scar(image, seed, return_mask=True)[1] for seed in range(200)]
        assert all(region.any() for region in regions)
        areas[size] = np.mean(regions)
    assert 0.8 * areas[256] < areas[64] < 1.4 * areas[256]
    assert 0.8 * areas[256] < areas[1024] < 1.2 * areas[256]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lengths_for": 0}, ValueError, "lengths_for must be at least 1, got 0"),
        ({"lengths_for": "256"}, TypeError, "lengths_for must be a number, got '256'"),
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"height": (9, 3)}, ValueError, "height must not be reversed"),
        ({"angle": float("inf")}, ValueError, r"angle must lie in -1000000.0..1000000.0, got inf"),
        ({"width": 10**400}, ValueError, "width must be at most 1048576, got 1329 bits"),
    ],
)
def test_bad_options_of_the_scar(phantom, options, error, message):
    for call in (ap.cutpaste_scar, ap.sample_scar, ap.cutpaste_union):
        with pytest.raises(error, match=message):
            call(phantom, **options)


# --- images and masks -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 64, 80), (64, 80, 1)])
def test_a_channel_axis_of_one_is_kept(shape):
    image = np.random.default_rng(0).integers(0, 255, (64, 80)).astype(np.uint8)
    mask = image > 99
    for function, (out, region) in {
        name: getattr(ap, name)(image.reshape(shape), 3, return_mask=True)
        for name in ("anatpaste", "cutpaste", "cutpaste_scar", "cutpaste_union", "opacity")
    }.items():
        expected, where = getattr(ap, function)(image, 3, return_mask=True)
        assert out.shape == shape
        np.testing.assert_array_equal(out.reshape(64, 80), expected)
        np.testing.assert_array_equal(region, where)
    for lungs in (mask[None], mask[..., None]):
        assert ap.sample_paste(lungs, 1) == ap.sample_paste(mask, 1)
        np.testing.assert_array_equal(
            ap.anatpaste(image, 1, mask=lungs), ap.anatpaste(image, 1, segment=lambda _: mask)
        )
    np.testing.assert_array_equal(ap.lung_mask(image.reshape(shape)), ap.lung_mask(image))
    np.testing.assert_array_equal(
        ap.lung_mask_robust(image.reshape(shape)), ap.lung_mask_robust(image)
    )


def test_float16_is_computed_in_float32():
    image = (phantom_radiograph(96, rng=0) / 255).astype(np.float16)
    wide = image.astype(np.float32)
    np.testing.assert_array_equal(ap.lung_mask(image), ap.lung_mask(wide))
    for name in ("anatpaste", "cutpaste", "cutpaste_scar", "cutpaste_union", "opacity"):
        out = getattr(ap, name)(image, 3)
        assert out.dtype == np.float16
        np.testing.assert_array_equal(out, getattr(ap, name)(wide, 3).astype(np.float16))


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_arrays_with_an_arithmetic_of_their_own_are_taken_as_plain():
    image = phantom_radiograph(96, rng=0)
    mask = ap.lung_mask(image, min_area=50)
    out = ap.anatpaste(np.asmatrix(image), 0, mask=np.asmatrix(mask))
    assert type(out) is np.ndarray
    np.testing.assert_array_equal(out, ap.anatpaste(image, 0, mask=mask))
    with pytest.raises(TypeError, match="got MaskedArray"):
        ap.anatpaste(np.ma.masked_array(image), 0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_factors_of_the_jitter_cannot_overflow(dtype):
    image = np.full((32, 32), 100, dtype)
    image[:8] = 0
    params = ap.PasteParams(0, 0, 20, 20, 16, 16, "ellipse", 0, 200, 0, 2**20, 2**20)
    assert np.isfinite(ap.apply_paste(image, params)).all()
    for name in ("brightness", "contrast"):
        for kind in (params, ap.CutPasteParams(0, 0, 9, 9, 5, 5)):
            with pytest.raises(ValueError, match=rf"^{name} must be at most 1048576, got 1e.39$"):
                dataclasses.replace(kind, **{name: 1e39})


def test_torch_masks_in_the_functions(phantom):
    torch = pytest.importorskip("torch", reason="needs torch")
    mask = ap.lung_mask(phantom)
    expected = ap.anatpaste(phantom, 3, mask=mask)
    for given in (torch.from_numpy(mask), torch.from_numpy(mask)[None]):
        np.testing.assert_array_equal(ap.anatpaste(phantom, 3, mask=given), expected)
        same = ap.anatpaste(phantom, 3, segment=lambda image, given=given: given)
        np.testing.assert_array_equal(same, expected)
    with pytest.raises(TypeError, match=r"bool or integer array, got torch\.float32"):
        ap.anatpaste(phantom, 3, mask=torch.from_numpy(mask).float())


# --- an operation of one's own --------------------------------------------------------------------


def check_operation(kind, image):
    """Check what every operation promises."""
    operation = kind()
    before, lungs = image.copy(), ap.lung_mask(image) if kind.needs_lungs else None
    params = operation.sample(image.shape[:2], lungs, 5)
    out, region = operation.apply(image, params, lungs)
    np.testing.assert_array_equal(image, before)
    assert (out.shape, out.dtype, region.shape, region.dtype.kind) == (
        image.shape,
        image.dtype,
        image.shape[:2],
        "b",
    )
    assert region.any()
    np.testing.assert_array_equal(out[~region], image[~region])
    np.testing.assert_array_equal(operation(image, 5), out)
    np.testing.assert_array_equal(kind.replay(image, params, lungs), out)
    assert operation.sample(image.shape[:2], lungs, 5) == params


def check_forms(kind, image, transform, module):
    """Check that an operation's transform and module give what it gives."""
    import torch
    from batches import draw

    from anatpaste_aug import batch

    lungs = ap.lung_mask(image) if kind.needs_lungs else None
    torch.manual_seed(0)
    applied = transform(p=1)
    drawn = applied.make_params([image])
    np.testing.assert_array_equal(
        applied.transform(image, drawn), kind.replay(image, drawn["params"], drawn["lungs"])
    )
    images = torch.from_numpy(np.stack([image] * 4))[:, None]
    masks = torch.from_numpy(np.stack([lungs] * 4)) if kind.needs_lungs else None
    one = module(p=1.0)
    out, regions, labels = one(images, masks=masks, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    torch.rand(4, generator=generator)  # who is chosen
    for i, params in enumerate(draw(one.ops[0], images, masks, generator)):
        pasted, region = kind.replay(image, params, lungs, return_mask=True)
        np.testing.assert_array_equal(out[i, 0], pasted)
        np.testing.assert_array_equal(regions[i, 0], region)
    assert labels.tolist() == [1] * 4
    both = batch.OneOf([module(p=1), batch.CutPaste(1)], 1)
    assert both(images, masks=masks).labels.tolist() == [1] * 4


@pytest.mark.parametrize("name", [kind.__name__ for kind in FUNCTIONS])
def test_own_promises_are_kept(name, phantom):
    check_operation(getattr(operations, name), phantom)


@pytest.mark.parametrize("name", [kind.__name__ for kind in FUNCTIONS])
def test_own_promises_are_kept_by_every_form(name, phantom):
    pytest.importorskip("torchvision", reason="needs torchvision")
    from anatpaste_aug import batch, transforms

    kind = getattr(operations, name)
    check_forms(kind, phantom, getattr(transforms, name), getattr(batch, name))


def test_the_documented_operation(phantom, capsys):
    page = ROOT / "docs/own_operation.md"
    if not page.exists():
        pytest.skip("needs the source tree")
    torch = pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("torchvision", reason="needs torchvision")
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    assert len([line for line in blocks[0].splitlines() if line.strip()]) < 60
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    assert "DiscParams(center_x=" in capsys.readouterr().out
    kind = names["InvertDisc"]
    check_operation(kind, phantom)
    check_forms(kind, phantom, names["InvertDiscTransform"], names["InvertDiscModule"])
    assert repr(names["InvertDiscTransform"](radius=3)) == (
        "InvertDiscTransform(p=0.5, radius=(3, 3), lengths_for=256, segment=None, "
        "return_mask=False, shared=False)"
    )
    with pytest.raises(ValueError, match="radius must be at least 1, got 0"):
        names["InvertDiscModule"](radius=0)
    color = torch.from_numpy(np.stack([phantom] * 3))[None]
    assert names["InvertDiscModule"](1.0)(color).images.shape == (1, 3, 256, 256)


@dataclasses.dataclass(frozen=True)
class NoLungs(Operation[ap.CutPasteParams]):
    """An operation that does not use lungs."""

    side: int = option(9, 1, integer=True, single=True)

    params = ap.CutPasteParams
    needs_lungs = False
    apply = staticmethod(operations.CutPaste.apply)

    def draw(self, sampler, shape, lungs):
        assert lungs is None
        return ap.CutPasteParams(
            crop_x=0,
            crop_y=0,
            width=self.side,
            height=self.side,
            paste_x=sampler.integer((0, shape[1] - self.side)),
            paste_y=3,
            angle=0.0,
            **sampler.jitter(0.1),
        )


def test_operations_without_lungs(phantom):
    assert NoLungs()(phantom, 0).shape == phantom.shape
    with pytest.raises(ValueError, match="mask and segment must be None where no lungs are needed"):
        NoLungs()(phantom, 0, mask=phantom > 9)
    pytest.importorskip("torchvision", reason="needs torchvision")
    from anatpaste_aug import batch, transforms

    transform = type("T", (transforms.OperationTransform,), {"operation": NoLungs})
    module = type("M", (batch.OperationModule,), {"operation": NoLungs})
    check_operation(NoLungs, phantom)
    check_forms(NoLungs, phantom, transform, module)
    for form in (transform, module):
        with pytest.raises(ValueError, match="segment must be None where no lungs are needed"):
            form(segment=ap.lung_mask)


@dataclasses.dataclass(frozen=True)
class MarkParams:
    """A word, a real number and a whole one, with a default."""

    kind: Literal["light", "dark"]
    strength: float
    times: int = 3


@dataclasses.dataclass(frozen=True)
class Mark(Operation[MarkParams]):
    """An operation whose draw mixes words, numbers and constants."""

    strength: float = option(0.1, 0, 1, single=True)

    params = MarkParams
    needs_lungs = False

    def draw(self, sampler, shape, lungs):
        if self.strength == 0:
            return MarkParams(sampler.choice(["dark"]), 1)
        if sampler.choice((False, True)):
            return MarkParams("dark", self.strength, times=sampler.integer((1, 2)))
        return MarkParams(sampler.choice(["dark", "light"]), 0.3)

    @staticmethod
    def apply(image, params, lungs):
        region = np.ones(image.shape[:2], bool)
        return {"light": image, "dark": image.astype(float)}[params.kind], region


def draw_batch(operation, count):
    """Draw for a batch, and return the params of each image."""
    import torch
    from batches import draw

    return draw(operation, torch.zeros(count, 1, 16, 16, dtype=torch.uint8))


def test_words_constants_and_defaults_are_the_same_in_a_batch():
    pytest.importorskip("torch", reason="needs torch")
    for operation in (Mark(), Mark(strength=0), Mark(strength=1)):
        alone = {operation.sample((16, 16), None, seed) for seed in range(60)}
        assert set(draw_batch(operation, 60)) == alone
    assert {params.kind for params in alone} == {"dark", "light"}


@dataclasses.dataclass(frozen=True)
class WordsParams:
    """Two fields of the same words in another order, and one that shares a word with them."""

    first: Literal["a", "b"]
    second: Literal["b", "a"]
    third: Literal["c", "b", "d"]


@dataclasses.dataclass(frozen=True)
class Words(Operation[WordsParams]):
    """An operation that sets a pixel for every word."""

    params = WordsParams
    needs_lungs = False

    def draw(self, sampler, shape, lungs):
        one = sampler.choice(["a", "b"])
        return WordsParams(one, one, sampler.choice(["b", "b", "c"]))

    @staticmethod
    def apply(image, params, lungs):
        out, region = image.copy(), np.zeros(image.shape[:2], bool)
        region[0, :3] = True
        out[0, :3] = [ord(word) for word in (params.first, params.second, params.third)]
        return out, region


def test_fields_that_share_words_are_not_confused():
    torch = pytest.importorskip("torch", reason="needs torch")
    from anatpaste_aug import batch
    from anatpaste_aug.batch.params import stack, unstack

    expected = {WordsParams(one, one, other) for one in "ab" for other in "bc"}
    assert {Words().sample((16, 16), None, seed) for seed in range(60)} == expected
    drawn = draw_batch(Words(), 200)
    assert set(drawn) == expected
    whole, real = stack(WordsParams, drawn)
    assert unstack(WordsParams, whole, real) == drawn
    assert torch.equal(whole[:, 0], 1 - whole[:, 1])  # the index of the word in its own field
    module = type("M", (batch.OperationModule,), {"operation": Words})
    out = module(1)(torch.zeros(200, 1, 16, 16, dtype=torch.uint8)).images
    pixels = {tuple(chr(value) for value in image[0, 0, :3].tolist()) for image in out}
    assert pixels == {dataclasses.astuple(params) for params in expected}


def test_an_operation_that_breaks_its_promises_is_told():
    image = phantom_radiograph(64, rng=0)
    dark, light = MarkParams("dark", 0.1), MarkParams("light", 0.1)
    with pytest.raises(TypeError, match=r"Mark.apply must return an image of uint8 .* got float64"):
        Mark.replay(image, dark)
    out = Mark.replay(image, light)
    assert not np.shares_memory(out, image)
    with pytest.raises(TypeError, match="params must be MarkParams, got PasteParams"):
        Mark.replay(image, ap.sample_paste(image > 9))

    @dataclasses.dataclass(frozen=True)
    class Writes(Mark):
        @staticmethod
        def apply(image, params, lungs):
            image[:] = 0
            return image, image > 0

    with pytest.raises(ValueError, match="read-only"):
        Writes()(image)

    @dataclasses.dataclass(frozen=True)
    class Loose(Mark):
        free: int = 3

    with pytest.raises(TypeError, match=r"free must be declared with option\(...\), got 3"):
        Loose()
    with pytest.raises(ValueError, match=r"shape \(16, 16\), got \(64, 64\)"):
        operations.AnatPaste().sample((16, 16), image > 9)
    with pytest.raises(TypeError, match="return_mask must be True or False, got 'no'"):
        ap.anatpaste(image, return_mask="no")


@dataclasses.dataclass(frozen=True)
class AllParams:
    """One number from each of the distributions."""

    uniform: float
    log_uniform: float
    integer: int
    contrast: float
    width: int
    crop_y: int
    row: int
    column: int


@dataclasses.dataclass(frozen=True)
class All(Operation[AllParams]):
    """An operation that draws from each of the distributions."""

    params = AllParams

    def draw(self, sampler, shape, lungs):
        crop = sampler.crop(shape, (0.1, 0.5), (0.5, 2))
        row, column = sampler.pixel(lungs)
        return AllParams(
            uniform=sampler.uniform((-3, 5)),
            log_uniform=sampler.log_uniform((0.3, 4)),
            integer=sampler.integer((2, 40)),
            contrast=sampler.jitter(0.2)["contrast"],
            width=crop["width"],
            crop_y=crop["crop_y"],
            row=row,
            column=column,
        )


def test_draws_of_a_batch_are_those_of_images():
    torch = pytest.importorskip("torch", reason="needs torch")
    from batches import draw

    count, lungs = 4000, np.zeros((20, 30), bool)
    lungs[3:9, 10:12] = True
    masks = torch.from_numpy(lungs).expand(count, -1, -1)
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    many = draw(All(), masks, masks, generator)
    alone = [All().sample((20, 30), lungs, rng) for _ in range(count)]
    for one in dataclasses.fields(AllParams):
        values, single = ([getattr(params, one.name) for params in some] for some in (many, alone))
        assert stats.ks_2samp(values, single).pvalue > 1e-4
        assert {type(value).__name__ for value in values} == {one.type}
        assert len(set(values)) > 1
    assert draw(All(), masks, masks, generator) != many  # the generator goes on
    assert draw(All(), masks, masks, torch.Generator().manual_seed(0)) == many


def test_params_of_a_batch():
    torch = pytest.importorskip("torch", reason="needs torch")
    from anatpaste_aug import batch

    drawn = batch.sample_paste(torch.ones(5, 32, 40) > 0)
    singles = [drawn[i] for i in range(5)]
    for one in dataclasses.fields(ap.PasteParams):
        column = [getattr(single, one.name) for single in singles]
        if one.name == "shape":
            column = [["ellipse", "rectangle"].index(word) for word in column]
        assert getattr(drawn, one.name).tolist() == column
    for same in (
        pickle.loads(pickle.dumps(drawn)),
        copy.deepcopy(drawn),
        drawn.to("cpu"),
        batch.PasteParams.stack(singles),
        batch.PasteParams.stack(single for single in singles),
    ):
        assert len(same) == 5
        assert [same[i] for i in range(5)] == singles
    assert drawn[-1] == singles[4]
    assert repr(drawn).startswith("PasteParams(B=5")
    with pytest.raises(AttributeError, match="no field 'angle'"):
        _ = drawn.angle
    with pytest.raises(IndexError):
        drawn[5]
    assert len(batch.PasteParams.stack([])) == 0


def test_draws_are_the_stated_ones():
    draws = Sampler(np.random.default_rng(0))
    assert {draws.integer((3, 5)) for _ in range(100)} == {3, 4, 5}
    assert {draws.choice(["a", "b"]) for _ in range(50)} == {"a", "b"}
    assert all(2 <= draws.uniform((2, 4)) < 4 for _ in range(100))
    logs = [np.log(draws.log_uniform((0.1, 10))) for _ in range(2000)]
    assert abs(np.mean(logs)) < 0.1


# --- types ----------------------------------------------------------------------------------------

TYPED = """
import numpy as np
from PIL import Image
import anatpaste_aug as ap
from anatpaste_aug import batch, transforms
from typing_extensions import assert_type
import torch

array = np.zeros((64, 64), np.uint8)
picture, images = Image.new("L", (64, 64)), torch.zeros(2, 1, 64, 64)
assert_type(ap.sample_paste(array > 0), ap.PasteParams)
assert_type(ap.sample_cutpaste(array), ap.CutPasteParams)
assert_type(ap.sample_opacity(array > 0), ap.OpacityParams)
assert_type(ap.lung_mask(picture), ap.images.Mask)
ap.anatpaste(picture, 0, mask=array > 0, return_mask=True, opacity=(150, 254), lengths_for=None)
ap.opacity(array, rng=0, kinds="haze", segment=ap.lung_mask_robust)
ap.cutpaste_union(picture, width=(2, 16), scale=0.1)
transforms.AnatPaste(p=1, segment=ap.lung_mask, shared=True, margin=3)
transforms.Opacity(0.3, kinds=("haze", "nodule"), return_mask=True)
module = batch.AnatPaste(segment=batch.lung_mask_robust, blur=3)
assert_type(module.forward(images), batch.Augmented)
assert_type(batch.LungCrop(64).forward(images), batch.Cropped)
assert_type(batch.sample_paste(images > 0, opacity=200)[0], ap.PasteParams)
# Errors, one in each line:
ap.anatpaste(array, opacity="high")
ap.anatpaste(array, kinds="haze")
ap.opacity(array, blur=3)
ap.cutpaste(array, width=3)
ap.cutpaste_scar(array, scale=0.1)
ap.sample_paste(array > 0, blurr=3)
ap.sample_scar(array, angle="steep")
transforms.AnatPaste(p=1, size=3)
transforms.CutPasteScar(ratio=1)
batch.Opacity(margin=3)
batch.CutPasteUnion(kinds="haze")
batch.sample_paste(images > 0, scale="large")
"""


def test_types_know_the_options(tmp_path):
    pytest.importorskip("mypy", reason="needs mypy")
    pytest.importorskip("torchvision", reason="needs torchvision")
    path = tmp_path / "typed.py"
    path.write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    found = re.findall(r"typed\.py:(\d+): error", done.stdout)
    right, wrong = TYPED.split("# Errors, one in each line:\n")
    first = right.count("\n") + 2
    assert found == [str(first + i) for i in range(wrong.count("\n"))], done.stdout


@pytest.mark.slow
def test_strength_on_radiographs():
    paths = sorted(real_data("data/zhanglab224/train").rglob("*.jp*g"))[::60]
    medians = {}
    for size in (64, 128, 224, 256, 512, 1024):
        peaks, same, rng = [], 0, np.random.default_rng(0)
        for path in paths:
            gray = Image.open(path).convert("L").resize((size, size), Image.Resampling.BILINEAR)
            image = np.asarray(gray)
            mask = ap.lung_mask(image, min_area=round(400 * (size / 256) ** 2))
            for _ in range(40):
                params = ap.sample_paste(mask, rng)
                peaks.append(ap.paste_alpha(params, mask).max())
                same += not (ap.apply_paste(image, params, mask) != image).any()
        medians[size] = np.median(peaks)
        assert same / len(peaks) < 0.005
    assert all(0.8 < value / medians[256] < 1.2 for value in medians.values())
