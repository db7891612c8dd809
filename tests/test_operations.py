"""What an operation is: the same options in every form, own operations, lengths, types."""

from __future__ import annotations

import dataclasses
import inspect
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
from anatpaste_aug.operations import Draws, Operation, anatpaste, cutpaste, opacity, option

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = {
    operations.AnatPaste: (ap.anatpaste, ap.sample_paste),
    operations.CutPaste: (ap.cutpaste, ap.sample_cutpaste),
    operations.CutPasteScar: (ap.cutpaste_scar, ap.sample_scar),
    operations.CutPasteUnion: (ap.cutpaste_union,),
    operations.Opacity: (ap.opacity, ap.sample_opacity),
}
SHARED = {"p", "segment", "return_mask", "shared", "mask"}


def options_of(form):
    """Give the names and defaults of a form's options, in order."""
    return [
        (name, parameter.default)
        for name, parameter in inspect.signature(form).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in SHARED
    ]


@pytest.mark.parametrize("operation", FUNCTIONS)
def test_every_form_has_the_same_options(operation):
    expected = [(one.name, one.default) for one in dataclasses.fields(operation)]
    forms = list(FUNCTIONS[operation])
    if "torch" in sys.modules or pytest.importorskip("torchvision", reason="needs torchvision"):
        from anatpaste_aug import batch, transforms

        samples = {
            "AnatPaste": batch.sample_paste,
            "CutPaste": batch.sample_cutpaste,
            "CutPasteScar": batch.sample_scar,
            "Opacity": batch.sample_opacity,
        }
        name = operation.__name__
        forms += [getattr(module, name) for module in (transforms, batch)]
        forms += [samples[name]] if name in samples else []
    for form in forms:
        assert options_of(form) == expected, form
    described = {  # what the function's overloads take
        operations.AnatPaste: anatpaste.PasteArgs,
        operations.CutPaste: cutpaste.CutArgs,
        operations.CutPasteScar: cutpaste.ScarArgs,
        operations.CutPasteUnion: cutpaste.UnionArgs,
        operations.Opacity: opacity.OpacityArgs,
    }[operation]
    assert described.__annotations__.keys() - SHARED == dict(expected).keys()


def test_images_masks_and_sources_of_random_numbers_stand_in_the_same_places():
    pytest.importorskip("torchvision", reason="needs torchvision")
    from anatpaste_aug import batch

    def places(form):
        words = {"images": "image", "masks": "mask", "generator": "rng"}
        return [
            (words.get(name, name), parameter.kind, parameter.default)
            for name, parameter in inspect.signature(form).parameters.items()
        ]

    for name in ("sample_paste", "sample_cutpaste", "sample_scar", "apply_paste", "apply_cutpaste"):
        assert places(getattr(ap, name)) == places(getattr(batch, name)), name
    assert places(ap.paste_alpha) == places(batch.paste_alpha)


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


def check_operation(kind, image, transform=None, module=None):
    """Check what every operation promises; with its transform and module, that they agree."""
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
    if transform is None:
        return
    import torch

    torch.manual_seed(0)
    applied = transform(p=1)
    drawn = applied.make_params([image])
    np.testing.assert_array_equal(
        applied.transform(image, drawn), kind.replay(image, drawn["params"], drawn["lungs"])
    )
    from anatpaste_aug import batch

    images = torch.from_numpy(np.stack([image] * 4))[:, None]
    masks = torch.from_numpy(np.stack([lungs] * 4)) if kind.needs_lungs else None
    generator = torch.Generator().manual_seed(0)
    out, regions, labels = module(p=1.0)(images, masks=masks, generator=generator)
    draws = batch.TorchDraws(images, torch.Generator().manual_seed(0))
    draws.unit()  # who is chosen
    for i, params in enumerate(draws.sample(operation, image.shape[:2], masks).unstack()):
        pasted, region = kind.replay(image, params, lungs, return_mask=True)
        np.testing.assert_array_equal(out[i, 0], pasted)
        np.testing.assert_array_equal(regions[i, 0], region)
    assert labels.tolist() == [1] * 4


@pytest.mark.parametrize("name", [kind.__name__ for kind in FUNCTIONS])
def test_own_promises_are_kept(name, phantom):
    forms = ()
    if pytest.importorskip("torchvision", reason="needs torchvision"):
        from anatpaste_aug import batch, transforms

        forms = (getattr(transforms, name), getattr(batch, name))
    check_operation(getattr(operations, name), phantom, *forms)


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
    check_operation(kind, phantom, names["InvertDiscTransform"], names["InvertDiscModule"])
    assert repr(names["InvertDiscTransform"](radius=3)) == (
        "InvertDiscTransform(p=0.5, radius=(3, 3), lengths_for=256, segment=None, "
        "return_mask=False, shared=False)"
    )
    with pytest.raises(ValueError, match="radius must be at least 1, got 0"):
        names["InvertDiscModule"](radius=0)
    colour = torch.from_numpy(np.stack([phantom] * 3))[None]
    assert names["InvertDiscModule"](1.0)(colour).images.shape == (1, 3, 256, 256)


@dataclasses.dataclass(frozen=True)
class NoLungs(Operation[ap.CutPasteParams]):
    """An operation that takes no interest in lungs."""

    side: int = option(9, 1, integer=True, single=True)

    params = ap.CutPasteParams
    needs_lungs = False
    apply = staticmethod(operations.CutPaste.apply)

    def draw(self, draws, shape, lungs):
        assert lungs is None
        return {
            "crop_x": 0,
            "crop_y": 0,
            "width": self.side,
            "height": self.side,
            "paste_x": draws.integer((0, shape[1] - self.side)),
            "paste_y": 3,
            "angle": 0.0,
            **draws.jitter(0.1),
        }


def test_operations_without_lungs(phantom):
    assert NoLungs()(phantom, 0).shape == phantom.shape
    with pytest.raises(ValueError, match="mask and segment must be None where no lungs are needed"):
        NoLungs()(phantom, 0, mask=phantom > 9)
    pytest.importorskip("torchvision", reason="needs torchvision")
    from anatpaste_aug import batch, transforms

    transform = type("T", (transforms.OperationTransform,), {"operation": NoLungs})
    module = type("M", (batch.OperationModule,), {"operation": NoLungs})
    check_operation(NoLungs, phantom, transform, module)
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

    def draw(self, draws, shape, lungs):
        if self.strength == 0:
            return {"kind": draws.choice(["dark"]), "strength": 1}
        return draws.either(
            lambda: {"kind": "dark", "strength": self.strength},
            lambda: {"kind": draws.choice(["dark", "light"]), "strength": 0.3},
        )

    @staticmethod
    def apply(image, params, lungs):
        region = np.ones(image.shape[:2], bool)
        return {"light": image, "dark": image.astype(float)}[params.kind], region


def test_words_constants_and_defaults_are_the_same_in_a_batch():
    pytest.importorskip("torch", reason="needs torch")
    import torch

    from anatpaste_aug import batch

    images = torch.zeros(60, 1, 16, 16, dtype=torch.uint8)
    for operation in (Mark(), Mark(strength=0), Mark(strength=1)):
        alone = {operation.sample((16, 16), None, seed) for seed in range(60)}
        together = batch.TorchDraws(images, None).sample(operation, (16, 16), None)
        assert set(together.unstack()) == alone
        again = pickle.loads(pickle.dumps(together))
        assert again.unstack() == together.unstack()
    assert {params.kind for params in alone} == {"dark", "light"}


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


def test_draws_of_a_batch_are_those_of_images():
    torch = pytest.importorskip("torch", reason="needs torch")
    from anatpaste_aug import batch

    count, lungs = 4000, np.zeros((20, 30), bool)
    lungs[3:9, 10:12] = True
    images = torch.zeros(count, 1, 20, 30)
    masks = torch.from_numpy(lungs).expand(count, -1, -1)
    many = batch.TorchDraws(images, torch.Generator().manual_seed(0))
    one = Draws(np.random.default_rng(0))
    for draw in (
        lambda draws: draws.uniform((-3, 5)),
        lambda draws: draws.log_uniform((0.3, 4)),
        lambda draws: draws.integer((2, 40)),
        lambda draws: draws.jitter(0.2)["contrast"],
        lambda draws: draws.crop((20, 30), (0.1, 0.5), (0.5, 2))["width"],
        lambda draws: draws.crop((20, 30), (0.1, 0.5), (0.5, 2))["crop_y"],
        lambda draws: draws.pixel(masks if draws is many else lungs)[0],
        lambda draws: draws.pixel(masks if draws is many else lungs)[1],
    ):
        alone = [draw(one) for _ in range(count)]
        assert stats.ks_2samp(draw(many).numpy(), alone).pvalue > 1e-4
    with pytest.raises(TypeError, match=r"fields .*each once, got 13 values"):
        batch.PasteParams(*[torch.zeros(2)] * 13)


def test_draws_are_the_stated_ones():
    draws = Draws(np.random.default_rng(0))
    assert {draws.integer((3, 5)) for _ in range(100)} == {3, 4, 5}
    assert {draws.choice(["a", "b"]) for _ in range(50)} == {"a", "b"}
    assert all(2 <= draws.uniform((2, 4)) < 4 for _ in range(100))
    logs = [np.log(draws.log_uniform((0.1, 10))) for _ in range(2000)]
    assert abs(np.mean(logs)) < 0.1


# --- types ----------------------------------------------------------------------------------------

TYPED = """
from typing import Any
import numpy as np
import numpy.typing as npt
from PIL import Image
import anatpaste_aug as ap
from typing_extensions import assert_type

picture = Image.new("L", (64, 64))
array = np.zeros((64, 64), np.uint8)
params = ap.sample_paste(array > 0)
cut = ap.sample_cutpaste(array)
Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
assert_type(ap.anatpaste(picture), Image.Image)
assert_type(ap.anatpaste(array, rng=0, mask=array > 0), Array)
assert_type(ap.anatpaste(picture, return_mask=True), tuple[Image.Image, Mask])
assert_type(ap.apply_paste(picture, params), Image.Image)
assert_type(ap.apply_paste(array, params, return_mask=True), tuple[Array, Mask])
assert_type(ap.cutpaste(picture), Image.Image)
assert_type(ap.cutpaste_scar(array, return_mask=True), tuple[Array, Mask])
assert_type(ap.cutpaste_union(picture, return_mask=True), tuple[Image.Image, Mask])
assert_type(ap.apply_cutpaste(picture, cut, return_mask=True), tuple[Image.Image, Mask])
assert_type(ap.lung_mask(picture), Mask)
assert_type(ap.opacity(picture, kinds="haze"), Image.Image)
assert_type(ap.opacity(array, return_mask=True), tuple[Array, Mask])
assert_type(ap.apply_opacity(array, ap.sample_opacity(array > 0)), Array)
assert_type(ap.lung_crop(picture, return_mask=True), tuple[Image.Image, Mask])
ap.anatpaste(array, opacity="high")  # an error
"""


def test_types_say_what_comes_back(tmp_path):
    pytest.importorskip("mypy", reason="needs mypy")
    path = tmp_path / "typed.py"
    path.write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stdout
    assert 'typed.py:29: error: No overload variant of "anatpaste"' in errors[0]


@pytest.mark.slow
def test_strength_on_radiographs():
    paths = sorted(real_data("data/zhanglab224/train").rglob("*.jp*g"))[::60]
    medians = {}
    for size in (64, 128, 224, 256, 512, 1024):
        peaks, same, rng = [], 0, np.random.default_rng(0)
        for path in paths:
            grey = Image.open(path).convert("L").resize((size, size), Image.Resampling.BILINEAR)
            image = np.asarray(grey)
            mask = ap.lung_mask(image, min_area=round(400 * (size / 256) ** 2))
            for _ in range(40):
                params = ap.sample_paste(mask, rng)
                peaks.append(ap.paste_alpha(params, mask).max())
                same += not (ap.apply_paste(image, params, mask) != image).any()
        medians[size] = np.median(peaks)
        assert same / len(peaks) < 0.005
    assert all(0.8 < value / medians[256] < 1.2 for value in medians.values())
