"""The Triton kernels against the functional form, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import contextlib
import json
import os
import warnings

import numpy as np
import pytest
from conftest import any_paste, real_data
from conftest import images as numpy_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph

torch = pytest.importorskip("torch", reason="needs torch")
triton = pytest.importorskip("triton", reason="needs Triton, which comes with torch on Linux")
skimage_label = pytest.importorskip("skimage.measure", reason="needs scikit-image").label

import triton.language as tl  # noqa: E402
from batches import (  # noqa: E402
    FLOATS,
    INTEGERS,
    alone,
    assert_alone,
    functional_boxes,
    hard_masks,
    hooks,
    random_images,
    random_masks,
    without_order,
)
from scipy.ndimage import binary_erosion  # noqa: E402

from anatpaste_aug import batch  # noqa: E402
from anatpaste_aug.batch.params import stack  # noqa: E402
from anatpaste_aug.operations import AnatPaste, Sampler  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from anatpaste_aug.batch.kernels import boxes, labels, launch, otsu  # noqa: E402
from anatpaste_aug.batch.kernels import draw as draw_host  # noqa: E402
from anatpaste_aug.batch.kernels import mask as mask_host  # noqa: E402
from anatpaste_aug.batch.kernels import paste as paste_host  # noqa: E402
from anatpaste_aug.batch.kernels.constants import LARGEST_AREA  # noqa: E402
from benchmarks import gpu_cost  # noqa: E402

if not GPU:
    from benchmarks.interpreter import Watch, patch_once

    patch_once()


@pytest.fixture(autouse=True)
def no_plans():
    """Forget what tests have launched, some of which spoil it."""
    yield
    launch.plan_of.cache_clear()


@pytest.fixture
def large_parts(monkeypatch):
    """Return each program more to do: the interpreter's time goes by programs, not by pixels."""
    if not GPU:
        for host in (mask_host, paste_host):
            monkeypatch.setattr(host, "ROWS", 128)
            monkeypatch.setattr(host, "EXTREMES", 2)
        for host in (mask_host, draw_host):
            monkeypatch.setattr(host, "STEP", 2**14)
        monkeypatch.setattr(mask_host, "QUANTIZED", 2**14)
        monkeypatch.setattr(mask_host, "WORDS", 1024)
        monkeypatch.setattr(paste_host, "DRAWN_ROWS", 128)


def watched():
    return contextlib.nullcontext() if GPU else Watch()


def everyone(images):
    return torch.ones(len(images), dtype=torch.bool, device=images.device)


def masks_of(images, min_area=400):
    images = (images if images.ndim == 4 else images[:, None]).to(DEVICE)
    with watched():
        return mask_host.lung_mask(images, min_area, everyone(images)).cpu().numpy()


def fields_of(singles):
    """Stack params as the kernels take them."""
    return [fields.to(DEVICE) for fields in stack(ap.PasteParams, singles)]


def pastes_of(images, singles, masks, chosen=None):
    """Return images, and alpha."""
    images = (images if images.ndim == 4 else images[:, None]).to(DEVICE)
    masks, chosen = masks.to(DEVICE), everyone(images) if chosen is None else chosen.to(DEVICE)
    fields = fields_of(singles)
    with watched():
        out, regions = paste_host.paste(images, fields, masks, chosen, None)
        alpha = paste_host.draw_alpha(fields[0], masks.contiguous())[:, None]
    assert torch.equal(regions, (alpha > 0) & chosen[:, None, None, None])
    return out.cpu(), alpha[:, 0].cpu().numpy()


# --- the lung mask --------------------------------------------------------------------------------


def test_golden_masks(large_parts):
    golden = np.load(real_data("golden") / "reference256.npz")
    some = slice(None, None, 12)
    expected = np.unpackbits(golden["masks"][some], axis=-1).astype(bool)
    np.testing.assert_array_equal(masks_of(torch.from_numpy(golden["images"][some])), expected)


@pytest.mark.parametrize("largest", [130, pytest.param(4096, marks=pytest.mark.slow)])
def test_golden_masks_of_all_sizes(largest, large_parts):
    golden = np.load(real_data("golden") / "reference_sizes.npz")
    for i in range(int(golden["count"])):
        image = golden[f"image_{i}"]
        if max(image.shape) <= largest:
            expected = np.unpackbits(golden[f"mask_{i}"], axis=-1)[:, : image.shape[1]]
            got = masks_of(torch.from_numpy(image)[None])[0]
            np.testing.assert_array_equal(got, expected.astype(bool))


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 256])
def test_radiographs(size, large_parts):
    paths = sorted(real_data("data/zhanglab224").rglob("*.jp*g"))[:: 1 if GPU else 10]
    assert len(paths) >= 200
    for start in range(0, len(paths), 16):
        gray = [Image.open(path).convert("L") for path in paths[start : start + 16]]
        arrays = [np.array(image.resize((size, size), Image.Resampling.BILINEAR)) for image in gray]
        expected = np.stack([ap.lung_mask(array) for array in arrays])
        np.testing.assert_array_equal(masks_of(torch.from_numpy(np.stack(arrays))), expected)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["montgomery256", "zhanglab_fullres"])
def test_radiographs_as_they_are(folder, large_parts):
    paths = sorted(real_data(f"data/{folder}").rglob("*.*g"))
    paths = [path for path in paths if "mask" not in str(path).lower()]
    for path in paths if GPU else paths[:1]:
        array = np.array(Image.open(path).convert("L"))
        got = masks_of(torch.from_numpy(array)[None])[0]
        np.testing.assert_array_equal(got, ap.lung_mask(array))


@pytest.mark.parametrize("size", [96, (72, 200)])
def test_phantoms_in_parts_as_on_a_gpu(size):
    image = phantom_radiograph(size if isinstance(size, int) else max(size), rng=0)
    image = image if isinstance(size, int) else image[: size[0], : size[1]]
    got = masks_of(torch.from_numpy(image.copy())[None], 40)[0]
    np.testing.assert_array_equal(got, ap.lung_mask(image, min_area=40))


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("shape", [(2, 1, 72, 90), (2, 3, 33, 80)])
def test_lung_mask_alone(shape, dtype, large_parts):
    images = random_images(shape, dtype, seed=shape[1] + 2)
    masks = masks_of(images, 40)
    for image, got in zip(images, masks, strict=True):
        np.testing.assert_array_equal(got, ap.lung_mask(alone(image), min_area=40))


def check_any_mask(image, min_area):
    variants = np.stack([image, image[::-1, ::-1]])
    images = torch.from_numpy(
        variants if image.ndim == 2 else variants.transpose(0, 3, 1, 2).copy()
    )
    for array, got in zip(variants, masks_of(images, min_area), strict=True):
        np.testing.assert_array_equal(got, ap.lung_mask(array, min_area=min_area))


MASKS = {
    "image": numpy_images(max_side=70),
    "min_area": st.sampled_from([0, 25, 26, 30, 60, 400, 10**6]),
}
test_lung_mask_of_any_image = settings(max_examples=4)(given(**MASKS)(check_any_mask))
test_lung_mask_of_many_images = pytest.mark.slow(
    settings(max_examples=40 if GPU else 12)(given(**MASKS)(check_any_mask))
)


def test_checkerboards_and_constants(large_parts):
    y, x = np.mgrid[:64, :64]
    for dtype in (np.uint8, np.float32):
        patterns = [0 * y, 0 * y + 200, (y + x) % 2 * 100, (y // 9 + x // 9) % 2 * 100 + 50]
        arrays = np.stack(patterns).astype(dtype) / (256 if np.dtype(dtype).kind == "f" else 1)
        arrays = arrays.astype(dtype)
        for array, got in zip(arrays, masks_of(torch.from_numpy(arrays), 30), strict=True):
            np.testing.assert_array_equal(got, ap.lung_mask(array, min_area=30))


def words_of(masks):
    """Pack (B, H, W) bool into words of 32 pixels."""
    width = -(-masks.shape[2] // 32) * 32
    padded = np.zeros((*masks.shape[:2], width), bool)
    padded[:, :, : masks.shape[2]] = masks
    words = np.packbits(padded, axis=-1, bitorder="little").view(np.uint32)
    return torch.from_numpy(words.copy()).to(DEVICE)


def labeled(masks, border=False, step=32):
    """Label masks as the kernels do; return the root of every pixel's block, else -1."""
    count, height, width = masks.shape
    words = words_of(masks)
    across, rows = words.shape[2], -(-height // 2)
    nodes = 1 + rows * across * 16
    parents = torch.zeros((count, nodes), dtype=torch.int32, device=DEVICE)
    set_first_parents(words, parents)
    grid = (count, -(-rows * across // step))
    args = (words, parents, height, width)
    launch.launch(labels.join_regions_kernel, grid, *args, BORDER=border, STEP=step)
    found = parents.cpu().numpy().astype(np.int64)
    roots = found
    while True:
        above = np.take_along_axis(found, roots, 1)
        if (above == roots).all():
            break
        roots = above
    y, x = np.mgrid[:height, :width]
    node = 1 + (y // 2 * across + x // 32) * 16 + x % 32 // 2
    return np.where(masks, roots[:, node], -1)


def set_first_parents(words, parents):
    """Set parents as `start_regions_kernel` does: the first block of a word's run."""
    height, across = words.shape[1:]
    for b, image in enumerate(words.cpu().numpy()):
        both = np.zeros((-(-height // 2) * 2, across), np.uint32)
        both[:height] = image
        both = both[0::2] | both[1::2]
        bit = (both[..., None] >> np.arange(32, dtype=np.uint32)) & 1
        start = np.tile(np.arange(16), (*both.shape, 1))
        for c in range(1, 16):
            linked = (bit[..., 2 * c] & bit[..., 2 * c - 1]) != 0
            start[..., c] = np.where(linked, start[..., c - 1], c)
        node = 1 + np.arange(both.size).reshape(both.shape)[..., None] * 16 + start
        parents[b, 1:] = torch.from_numpy(node.astype(np.int32).ravel())


@pytest.mark.parametrize("crop", [(0, 0), (1, 0), (0, 3)])
def test_labels_are_those_of_scikit_image(crop):
    masks = hard_masks()[:, crop[0] :, crop[1] :]
    for inside, got in zip(masks, labeled(masks), strict=True):
        expected = skimage_label(inside, connectivity=2)
        pairs = np.unique(np.stack([expected[inside], got[inside]]), axis=1)
        # As many pairs as labels of either kind: a one-to-one relation.
        assert pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))


def test_all_that_touches_the_border_joins_node_0():
    masks = hard_masks()[:, 3:, 2:]
    for inside, got in zip(masks, labeled(masks, border=True), strict=True):
        expected = skimage_label(inside, connectivity=2)
        edge = np.unique(np.concatenate([expected[[0, -1]].ravel(), expected[:, [0, -1]].ravel()]))
        np.testing.assert_array_equal(got == 0, inside & np.isin(expected, edge))


def rule(masks, min_area):
    """Return what the kernels leave of masks, which are unions of 5 x 5 squares."""
    words = words_of(binary_erosion(masks, np.ones((1, 3, 3))))
    found = torch.zeros(len(masks), dtype=torch.int32, device=DEVICE)
    kept = torch.empty(masks.shape, dtype=torch.bool, device=DEVICE)
    mask_host.remove_small(mask_host.Regions(words, masks.shape[2]), min_area, found, kept)
    return kept.cpu().numpy()


def test_boxes_that_cut_others():
    order_matters = 0
    for seed, share in ((23, 0.5), (30, 0.7)):  # where it often does
        inside, areas = hooks(np.random.default_rng(seed))
        masks = np.stack([inside, inside[::-1], inside.T, inside.T[::-1]])
        min_area = int(np.quantile(areas, share))
        for one, kept in zip(masks, rule(masks, min_area), strict=True):
            np.testing.assert_array_equal(kept, functional_boxes(one, min_area))
            order_matters += bool((kept != without_order(one, min_area)).any())
    assert order_matters > 4


@pytest.mark.parametrize("size", [(17, 17), (23, 35)])
def test_as_many_regions_as_fit(size):
    masks = np.zeros((1, *size), bool)
    for dy in range(5):
        for dx in range(5):
            masks[:, dy:, dx:][:, : size[0] - 4 : 6, : size[1] - 4 : 6] = True
    # Squares at the border are none after the erosion; one pixel further in they are whole.
    masks = np.pad(masks, [(0, 0), (1, 1), (1, 1)])
    np.testing.assert_array_equal(rule(masks, 26), masks & False)
    np.testing.assert_array_equal(rule(masks, 25), masks)


def layouts(images):
    """Lay a batch out in other ways."""
    return images.mT.contiguous().mT, images.to(memory_format=torch.channels_last)


def test_strides_and_empty_batches(large_parts):
    images = random_images((2, 3, 40, 70), torch.uint8)
    expected = masks_of(images, 40)
    assert expected.any()
    for strided in layouts(images):
        np.testing.assert_array_equal(masks_of(strided, 40), expected)
    assert masks_of(images[:0], 40).shape == (0, 40, 70)


# --- pastes ---------------------------------------------------------------------------------------


def test_golden_pastes(large_parts):
    golden = np.load(real_data("golden") / "reference256.npz")
    cases = json.loads(str(golden["params"]))[::12]
    index = [case.pop("image") for case in cases]
    found = torch.tensor([case.pop("lung_found") for case in cases])
    masks = torch.from_numpy(np.unpackbits(golden["masks"], axis=-1).astype(bool))[index]
    masks &= found[:, None, None]
    singles = [ap.PasteParams(**case) for case in cases]
    out, alpha = pastes_of(torch.from_numpy(golden["images"])[index], singles, masks)
    np.testing.assert_array_equal(alpha, golden["alphas"][::12])
    np.testing.assert_array_equal(out[:, 0], golden["outputs"][::12])


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("shape", [(4, 1, 40, 61), (4, 3, 33, 47)])
def test_paste_alone(shape, dtype, large_parts):
    check_paste_alone(shape, dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_paste_in_parts_as_on_a_gpu(dtype):
    check_paste_alone((4, 1, 40, 161), dtype)


def check_paste_alone(shape, dtype):
    images = random_images(shape, dtype)
    before = images.clone()
    masks = random_masks(4, *shape[-2:])[:, 0]
    rng = np.random.default_rng(1)
    drawn = [ap.sample_paste(mask, rng, margin=3, scale=(0.02, 0.6)) for mask in masks.numpy()]
    chosen = torch.tensor([True, True, True, False])
    out, alpha = pastes_of(images, drawn, masks, chosen)
    some = images[:3]
    assert_alone(out[:3], some, lambda a, i: ap.apply_paste(a, drawn[i], masks[i].numpy()))
    for i in range(3):
        np.testing.assert_array_equal(alpha[i], ap.paste_alpha(drawn[i], masks[i].numpy()))
    assert torch.equal(out[3], images[3])
    assert torch.equal(images, before)


def check_any_paste(image, data):
    height, width = image.shape[:2]
    single = any_paste(data.draw, height, width)
    masks = np.random.default_rng(data.draw(st.integers(0, 99))).random((2, height, width)) < [
        [[0]],
        [[0.5]],
    ]
    arrays = np.stack([image] * 2)
    images = torch.from_numpy(arrays if image.ndim == 2 else arrays.transpose(0, 3, 1, 2).copy())
    out, alpha = pastes_of(images, [single] * 2, torch.from_numpy(masks))
    checked = images if images.ndim == 4 else images[:, None]
    assert_alone(out, checked, lambda a, i: ap.apply_paste(a, single, masks[i]))
    for i in range(2):
        np.testing.assert_array_equal(alpha[i], ap.paste_alpha(single, masks[i]))


PASTES = {"image": numpy_images(max_side=64), "data": st.data()}
test_paste_of_any_image_and_parameters = settings(max_examples=4)(given(**PASTES)(check_any_paste))
test_paste_of_many_images_and_parameters = pytest.mark.slow(
    settings(max_examples=40 if GPU else 12)(given(**PASTES)(check_any_paste))
)


def test_params_that_are_no_params_stay_inside_the_tensors(large_parts):
    images = random_images((8, 3, 33, 47), torch.uint8)
    masks = random_masks(8, 33, 47)[:, 0]
    rng = np.random.default_rng(0)
    whole = torch.from_numpy(rng.integers(-(2**62), 2**62, (8, 10)))
    whole[:4, :2] = -(2**31)
    whole[2:, 4:6], whole[4:6, 7] = 20, 2**20
    real = torch.from_numpy(rng.normal(0, 1e9, (8, 2)))
    images, masks = images.to(DEVICE), masks.to(DEVICE)
    moved = [whole.to(DEVICE), real.to(DEVICE)]
    with watched(), np.errstate(all="ignore"):
        out, regions = paste_host.paste(images, moved, masks, everyone(images), None)
    assert out.shape == images.shape
    assert regions.shape == masks[:, None].shape


@pytest.mark.parametrize("half_h", [0, 1, 2, 11, 31])
def test_shapes_are_pillows(half_h, large_parts):
    masks = torch.zeros((8, 128, 128), dtype=torch.bool)
    singles = [
        ap.PasteParams(0, 0, 2 * w + 1, 2 * half_h + 1, 63, 63, kind, radius, 255, 0)
        for w in (0, 1, 13, 60)
        for kind, radius in (("ellipse", 0), ("rectangle", 3))
    ]
    _, alpha = pastes_of(masks.to(torch.uint8), singles, masks)
    for single, got in zip(singles, alpha, strict=True):
        canvas = Image.new("L", (128, 128))
        a, b = single.width // 2, single.height // 2
        pen = ImageDraw.Draw(canvas)
        fill = pen.ellipse if single.shape == "ellipse" else pen.rectangle
        fill((63 - a, 63 - b, 63 + a, 63 + b), fill=255)
        expected = canvas.filter(ImageFilter.GaussianBlur(single.blur_radius))
        np.testing.assert_array_equal(got, np.asarray(expected))


def test_blur_is_pillows(large_parts):
    radii = [0, 1, 2, 3, 14, 77, 300]  # of boxes within the image, and beyond it
    singles = [ap.PasteParams(0, 0, 61, 81, 3, 99, "ellipse", r, 255, 0) for r in radii]
    masks = torch.zeros((len(radii), 120, 90), dtype=torch.bool)
    _, alpha = pastes_of(masks.to(torch.uint8), singles, masks)
    canvas = Image.new("L", (90, 120))
    ImageDraw.Draw(canvas).ellipse((3 - 30, 99 - 40, 3 + 30, 99 + 40), fill=255)
    for radius, got in zip(radii, alpha, strict=True):
        expected = np.asarray(canvas.filter(ImageFilter.GaussianBlur(radius)))
        np.testing.assert_array_equal(got, expected)


def test_layouts_and_no_masks(large_parts):
    images = random_images((2, 3, 40, 70), torch.uint8)
    drawn = [ap.sample_paste(np.ones((40, 70), bool), i) for i in range(2)]
    fields = [field.repeat_interleave(2, 1)[:, ::2] for field in fields_of(drawn)]
    for strided in layouts(images):
        there = strided.to(DEVICE)
        out, _ = paste_host.paste(there, fields, None, everyone(there), None)
        assert out.stride() == strided.stride()
        assert_alone(out.cpu(), images, lambda array, i: ap.apply_paste(array, drawn[i]))


@pytest.mark.skipif(not GPU, reason="needs a GPU, which could be waited for")
def test_nothing_waits_for_the_device():
    images = random_images((8, 1, 96, 96), torch.uint8).to(DEVICE)
    module = batch.AnatPaste(0.5)

    def use():
        module(images)
        masks = batch.lung_mask(images)
        batch.apply_paste(images, batch.sample_paste(masks), masks, return_mask=True)

    use()  # compiles
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode says that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            use()
            with pytest.raises(RuntimeError, match="synchroniz"):
                images.sum().item()
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Given:
    """A source of random numbers that are given."""

    def __init__(self, numbers):
        self.numbers = iter(numbers)

    def random(self):
        return next(self.numbers) * 2**-53


def test_draws_are_those_of_the_function():
    masks = torch.zeros((40, 90, 100), dtype=torch.bool)
    masks[1:] = torch.rand((39, 90, 100), generator=torch.Generator().manual_seed(0)) < 0.01
    masks[2:6] = False
    masks[2, 0, 0] = masks[3, 89, 99] = masks[4, 40, 96] = masks[5, 40, 95] = True
    numbers = torch.randint(2**53, (10, 40), generator=torch.Generator().manual_seed(1))
    numbers[4][:2], numbers[4][2:4] = 0, 2**53 - 1
    for operation in (AnatPaste(), AnatPaste(0.1, 1, 3, (0, 255), 1, 0, None)):
        drawn = [
            operation.draw(Sampler(Given(own)), (90, 100), mask)
            for own, mask in zip(numbers.T.tolist(), masks.numpy(), strict=True)
        ]
        args = (masks.to(DEVICE), numbers.to(DEVICE), (90, 100), operation)
        with watched():
            got = draw_host.sample(*args)
        for field, expected in zip(got, fields_of(drawn), strict=True):
            # The exponential may differ in its last bit, and a side then in a pixel.
            assert field.dtype == expected.dtype
            assert (field != expected).sum() <= (1 if GPU else 0)


# --- what the watch and the comparison must see, and what it costs --------------------------------


@triton.jit
def careless(values, step, factor):
    at = values + tl.program_id(0) * step
    tl.store(at, tl.load(at) * factor)


@pytest.mark.skipif(GPU, reason="the interpreter is watched")
def test_the_watch_sees_places_outside_and_overflows():
    values = torch.full((4,), 2**20, dtype=torch.int32)
    with Watch(overflow=True) as watch:
        careless[(4,)](values, 1, 8)
    assert watch.bytes == {"careless": 4 * 2 * 4}
    with Watch(overflow=True), pytest.raises(Exception, match="overflow detected"):
        careless[(4,)](values, 1, 2**10)
    for step in (2, -1):
        with Watch(), pytest.raises(Exception, match="careless leaves its tensors"):
            careless[(4,)](values, step, 1)


@pytest.mark.skipif(GPU, reason="the interpreter is watched")
@pytest.mark.parametrize(
    ("side", "options"),
    [
        (40, {}),
        # Sums of a blur grow with its box, not with the image.
        (40, {"blur": (2**20, 2**20), "scale": (1, 1), "ratio": (1, 1), "margin": 0}),
        # Places, counts, and sums of levels and of pixels grow with the image.
        pytest.param(1024, {"blur": (3, 3)}, marks=pytest.mark.slow),
    ],
)
def test_32_bits_hold_what_they_must(side, options, large_parts):
    gray = phantom_radiograph(side, rng=0) * np.int64(16_000_000) - 2**31
    gray[0, :2] = -(2**31), 2**31 - 1
    images = torch.from_numpy(np.stack([gray, gray // 2, gray.T]).astype(np.int32))[None]
    numbers = torch.full((10, 1), 2**53 - 1)
    operation = AnatPaste(opacity=(255, 255), lengths_for=None, **options)
    with Watch(overflow=True):
        masks = mask_host.lung_mask(images, 400, everyone(images))
        fields = draw_host.sample(masks, numbers, (side, side), operation)
        out, _ = paste_host.paste(images, fields, masks, everyone(images), None)
    lungs = ap.lung_mask(alone(images[0]))
    np.testing.assert_array_equal(masks[0], lungs)
    drawn = operation.draw(Sampler(Given(numbers[:, 0].tolist())), (side, side), lungs)
    assert_alone(out, images, lambda array, i: ap.apply_paste(array, drawn, lungs))


@pytest.mark.skipif(GPU, reason="the interpreter is watched")
def test_32_bits_hold_what_the_threshold_of_the_largest_image_needs():
    ends, counts = torch.tensor([[16383, 32767]], dtype=torch.int32), torch.zeros((1, 256)).int()
    counts[0, 0], counts[0, -1] = 1, LARGEST_AREA - 1
    limits = torch.empty_like(ends)
    with Watch(overflow=True):
        launch.launch(otsu.find_threshold_kernel, (1,), ends, counts, limits, NARROW=False)
    assert limits.tolist() == [[0, 16383 // 512]]  # the center of the first bin


@pytest.mark.parametrize("name", ["nothing", "no border", "no opening", "no boxes"])
def test_a_wrong_stage_is_seen(name, monkeypatch, large_parts):
    image = phantom_radiograph(96, rng=0)
    real = launch.launch

    def spoiled(kernel, grid, *args, **meta):
        if name == "no border" and "BORDER" in meta:
            meta["BORDER"] = False
        if name == "no opening" and "OPEN" in meta:
            meta["OPEN"] = False
            args = (*args[:3], args[3].new_empty((args[3].shape[0], 10**6)), *args[4:])
        if kernel is boxes.choose_boxes_kernel and name == "no boxes":
            args = (*args[:-1], 0)
        real(kernel, grid, *args, **meta)

    monkeypatch.setattr(mask_host, "launch", spoiled)
    images = torch.from_numpy(image)[None, None].to(DEVICE)
    got = mask_host.lung_mask(images, 40, everyone(images))[0].cpu().numpy()
    same = (got == ap.lung_mask(image, min_area=40)).all()
    assert same == (name == "nothing")


def test_a_wrong_order_is_seen(monkeypatch):
    real = launch.launch

    def spoiled(kernel, grid, *args, **meta):
        real(kernel, grid, *args, **meta)
        if kernel is boxes.order_regions_kernel:
            _, found, _, table, *_ = args
            table[0, : int(found[0])] = table[0, : int(found[0])].flip(0)

    inside, areas = hooks(np.random.default_rng(30))
    min_area = int(np.quantile(areas, 0.7))
    expected = functional_boxes(inside, min_area)
    np.testing.assert_array_equal(rule(inside[None], min_area)[0], expected)
    monkeypatch.setattr(mask_host, "launch", spoiled)
    assert (rule(inside[None], min_area)[0] != expected).any()


@pytest.mark.compiles
def test_launches_stay_below_the_bar():
    stages = gpu_cost.part("launches").values()
    kernels_ = sum(stage["kernels"] for stage in stages)
    assert 20 < kernels_ <= kernels_ + sum(stage["operations"] for stage in stages) <= 30


@pytest.mark.compiles
@pytest.mark.slow
def test_kernels_compile_for_amd():
    assert len(gpu_cost.part("amd")) == 19


@pytest.mark.compiles
@pytest.mark.skipif(not gpu_cost.tools(), reason="needs ptxas and cuobjdump, of Triton's wheel")
@pytest.mark.parametrize("cases", ["quick", pytest.param("compile", marks=pytest.mark.slow)])
def test_kernels_compile_without_spilling(cases):
    rows = gpu_cost.part(cases)
    assert {row["target"] for row in rows} == {80, 90, 100}
    assert len({row["kernel"] for row in rows}) == 19
    assert [row for row in rows if row["stack"]] == []
    # Nothing is fused or approximated, but the exponential of a drawn aspect.
    assert {row["kernel"] for row in rows if row["inexact"]} == {"draw_pastes_kernel"}
