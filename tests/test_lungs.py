"""lung_mask against the released code's masks and the recipe in scikit-image calls."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import DTYPES, images, real_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from recipe import SQUARE, recipe_mask

from anatpaste_aug import lung_mask
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.images import to_gray
from anatpaste_aug.masks.clahe import BINS, CLIP_LIMIT, clip_histograms, dark_side
from anatpaste_aug.masks.regions import Runs, clear_small_boxes, frame, opening


def golden_masks():
    sizes = np.load(real_data("golden") / "reference_sizes.npz")
    for i in range(int(sizes["count"])):
        image = sizes[f"image_{i}"]
        yield image, np.unpackbits(sizes[f"mask_{i}"], axis=-1)[:, : image.shape[1]]
    reference = np.load(real_data("golden") / "reference256.npz")
    yield from zip(reference["images"], np.unpackbits(reference["masks"], axis=-1), strict=True)


def test_equals_the_released_code_bit_for_bit():
    pairs = list(golden_masks())
    assert len(pairs) == 24 + 13
    for image, expected in pairs:
        np.testing.assert_array_equal(lung_mask(image), expected.astype(bool))


@pytest.mark.parametrize(
    "size", [16, 31, 64, 96, 128, 224, 255, 256, (200, 317), (317, 200), (40, 700), (17, 93)]
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_equals_the_recipe_on_phantoms(size, dtype):
    image = phantom_radiograph(size, rng=1)
    if dtype == "uint16":
        image = image.astype(np.uint16) * 16 + 3
    elif dtype != "uint8":
        image = (image / np.float64(255)).astype(dtype)
    np.testing.assert_array_equal(lung_mask(image), recipe_mask(image))


def hard_images():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128]
    for value in (0, 1, 63, 64, 128, 254, 255):
        yield np.full((64, 72), value, np.uint8)
    yield np.zeros((256, 256), np.uint16)
    yield np.full((100, 50), 65535, np.uint16)
    for amplitude in (1, 2, 16, 255):
        yield (100 * (amplitude < 100) + rng.integers(0, amplitude + 1, (96, 130))).astype(np.uint8)
    yield ((x + y) % 2 * 255).astype(np.uint8)
    yield ((x // 9 + y // 9) % 2 * 200 + 20).astype(np.uint8)
    yield x.astype(np.uint8)
    yield (x * y // 64).astype(np.uint8)
    yield np.where(np.hypot(x - 64, y - 64) < 30, 10, 200).astype(np.uint8)
    yield np.where(np.abs(np.hypot(x - 64, y - 64) % 12 - 6) < 3, 10, 200).astype(np.uint8)
    yield np.where(rng.random((256, 256)) < 0.001, 0, 255).astype(np.uint8)
    yield np.where((y % 16 < 10) & (x > 4) & (x < 120), 30, 220).astype(np.uint8)


def test_equals_the_recipe_on_hard_images():
    for image in hard_images():
        for min_area in (0, 30, 400):
            np.testing.assert_array_equal(
                lung_mask(image, min_area=min_area), recipe_mask(image, min_area)
            )


@given(images(dtypes=("uint8", "uint16"), channels=(1,), max_side=150))
def test_equals_the_recipe_on_anything(image):
    np.testing.assert_array_equal(lung_mask(image, min_area=20), recipe_mask(image, 20))


@given(
    size=st.sampled_from([4, 25, 99, 100, 255, 784, 1024, 16384]),
    used=st.lists(st.sampled_from([1, 2, 40, 103, 150, 256]), min_size=1, max_size=5),
    skew=st.sampled_from([0, 1, 5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_clips_tiles_together_as_scikit_image_clips_one(size, used, skew, seed):
    adapthist = pytest.importorskip("skimage.exposure._adapthist", reason="needs scikit-image")
    rng = np.random.default_rng(seed)
    counts = np.zeros((len(used), BINS), np.int32)
    for row, bins in zip(counts, used, strict=True):
        weights = rng.random(bins) ** skew
        drawn = rng.choice(rng.permutation(BINS)[:bins], size, p=weights / weights.sum())
        row[:] = np.bincount(drawn, minlength=BINS)
    before = counts.copy()
    limit = max(int(CLIP_LIMIT * size), 1)
    expected = [adapthist.clip_histogram(row.copy(), limit) for row in counts]
    np.testing.assert_array_equal(clip_histograms(counts, size), expected)
    np.testing.assert_array_equal(counts, before)


random_masks = st.builds(
    lambda height, width, share, seed: np.random.default_rng(seed).random((height, width)) < share,
    *(st.integers(1, 30), st.integers(1, 30)),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)


@given(random_masks)
def test_opens_as_scikit_image_to_the_very_edge(mask):
    morphology = pytest.importorskip("skimage.morphology", reason="needs scikit-image")
    opened = opening(mask)
    np.testing.assert_array_equal(opened[1:-1, 1:-1], morphology.opening(mask, SQUARE))
    assert np.count_nonzero(opened) == np.count_nonzero(opened[1:-1, 1:-1])


@given(random_masks)
def test_runs_are_numbered_as_scikit_image_labels(mask):
    measure = pytest.importorskip("skimage.measure", reason="needs scikit-image")
    framed = frame(mask, False)
    runs = Runs(framed)
    expected, count = measure.label(mask, return_num=True, connectivity=2)
    assert runs.regions == count
    labels = np.zeros_like(framed, int)
    for row, left, right, region in zip(runs.row, runs.left, runs.right, runs.region, strict=True):
        labels[row, left:right] = region + 1
    np.testing.assert_array_equal(labels[1:-1, 1:-1], expected)
    for region in range(min(count, 3)):
        painted = runs.paint(runs.region == region)
        np.testing.assert_array_equal(painted, labels == region + 1)


def test_runs_of_a_spiral_and_of_combs():
    measure = pytest.importorskip("skimage.measure", reason="needs scikit-image")
    spiral = np.zeros((61, 61), bool)
    for ring in range(0, 30, 2):
        spiral[ring, ring : 61 - ring] = spiral[60 - ring, ring : 61 - ring] = True
        spiral[ring : 61 - ring, 60 - ring] = spiral[ring + 2 : 61 - ring, ring] = True
        spiral[ring + 2, ring : ring + 3] = True
    comb = np.zeros((40, 81), bool)
    comb[:, ::2] = comb[20] = True
    for mask in (spiral, spiral.T, comb, comb.T, ~comb, ~spiral):
        assert Runs(frame(mask, False)).regions == measure.label(mask, connectivity=2).max()


def test_a_small_region_takes_its_box_and_later_areas_are_recounted():
    mask = np.zeros((60, 60), bool)
    mask[2:22, 2] = mask[21, 2:22] = True  # an L of 39 px, with a box of 20 x 20
    mask[5:15, 12:32] = True  # 200 px, half of them in that box
    mask[40:50, 40:50] = True  # 100 px, out of reach
    expected = np.zeros((60, 60), bool)
    expected[5:15, 22:32] = expected[40:50, 40:50] = True
    for min_area in (40, 100):
        np.testing.assert_array_equal(clear_small_boxes(mask, min_area), expected)
    assert not clear_small_boxes(mask, 101).any()
    np.testing.assert_array_equal(clear_small_boxes(mask, 39), mask)


def boxes_one_by_one(mask, min_area):
    """Remove the boxes of small regions as the released code does, in scikit-image's calls."""
    measure = pytest.importorskip("skimage.measure", reason="needs scikit-image")
    labels = measure.label(mask)
    for region in measure.regionprops(labels):
        if region.area < min_area:
            labels[region.slice] = 0
    return labels > 0


def test_thousands_of_regions_are_not_counted_one_by_one(monkeypatch):
    """Which would take seconds: a box that loses nothing tells that without drawing its region."""
    mask = np.zeros((512, 512), bool)
    mask[0, ::2] = True  # small, with boxes that together are larger than any square
    for row in range(2, 500, 12):
        for column in range(2, 500, 12):
            mask[row : row + 10, column : column + 10] = True
    drawn = []
    paint = Runs.paint
    monkeypatch.setattr(Runs, "paint", lambda self, keep: drawn.append(1) or paint(self, keep))
    np.testing.assert_array_equal(clear_small_boxes(mask, 100)[2:], mask[2:])
    assert not drawn


def test_boxes_that_cut_other_regions():
    pytest.importorskip("torch", reason="the hooks are drawn beside batches")
    from batches import hooks, without_order

    order_matters = 0
    for seed in range(40):
        inside, areas = hooks(np.random.default_rng(seed))
        min_area = int(np.quantile(areas, 0.1 + 0.02 * seed))
        for mask in (inside, inside[::-1], inside.T, inside.T[::-1]):
            expected = boxes_one_by_one(mask, min_area)
            np.testing.assert_array_equal(clear_small_boxes(mask, min_area), expected)
            order_matters += bool((expected != without_order(mask, min_area)).any())
    assert order_matters > 10


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_threshold_is_the_first_of_equal_maxima(dtype):
    # Two gray values: every bin between them separates them equally well.
    filters = pytest.importorskip("skimage.filters", reason="needs scikit-image")
    for lowest in (100, 0):
        levels = np.full((20, 20), 100, np.uint16)
        levels[5:] = 9000
        levels[0, 0] = lowest
        unit = (levels - levels.min()).astype(dtype) / np.dtype(dtype).type(levels.max() - lowest)
        expected = (unit > 0) & (unit <= filters.threshold_otsu(unit))
        np.testing.assert_array_equal(dark_side(levels.copy(), dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_lungs_in_every_dtype(phantom, dtype):
    image = phantom.astype(dtype) * (1 if dtype == "uint8" else 4)
    assert np.mean(lung_mask(image) != lung_mask(phantom)) < 0.002


def test_signed_images_are_stretched_from_their_minimum(phantom):
    shifted = phantom.astype(np.int16) * 10 - 1000
    np.testing.assert_array_equal(lung_mask(shifted), lung_mask((shifted + 1000).astype(np.uint16)))
    np.testing.assert_array_equal(lung_mask(shifted), lung_mask(shifted.astype(np.int32)))
    assert lung_mask(shifted / 500).any()


def test_floats_beyond_one_are_stretched(phantom):
    image = phantom / 255.0
    image[0, :2] = 0, 1  # the range 0..1 exactly
    np.testing.assert_array_equal(lung_mask(image * 1.5), lung_mask(image))
    np.testing.assert_array_equal(lung_mask(image * 1e-3), recipe_mask(image * 1e-3))


def test_color_is_reduced_as_pillow_does():
    rng = np.random.default_rng(3)
    color = rng.integers(0, 256, (64, 80, 3)).astype(np.uint8)
    gray = np.asarray(Image.fromarray(color).convert("L"))
    np.testing.assert_array_equal(to_gray(color), gray)
    wide = to_gray(color.astype(np.uint16) * 257)
    assert np.abs(wide / 257 - gray).max() <= 0.51
    phantom3 = np.repeat(phantom_radiograph(128, rng=2)[..., None], 3, axis=2)
    np.testing.assert_array_equal(lung_mask(phantom3), lung_mask(phantom3[..., 0]))
    np.testing.assert_allclose(to_gray(phantom3 / 255.0), phantom3[..., 0] / 255.0)


@given(images())
def test_gives_a_mask_of_the_same_size_and_leaves_the_image_alone(image):
    before = image.copy()
    mask = lung_mask(image)
    assert mask.dtype == bool
    assert mask.shape == image.shape[:2]
    np.testing.assert_array_equal(image, before)


def test_pillow_and_array_agree(phantom):
    for mode, array in {
        "L": phantom,
        "I;16": phantom.astype(np.uint16) * 200,
        "I": phantom.astype(np.int32) * 3,
        "F": phantom.astype(np.float32),
        "RGB": np.repeat(phantom[..., None], 3, axis=2),
    }.items():
        picture = Image.fromarray(array)
        assert picture.mode == mode
        np.testing.assert_array_equal(lung_mask(picture), lung_mask(array))


def test_views_and_fortran_order(phantom):
    expected = lung_mask(np.ascontiguousarray(phantom[::-1, 10:200].T))
    np.testing.assert_array_equal(lung_mask(phantom[::-1, 10:200].T), expected)


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_bad_min_area(phantom, value, error):
    with pytest.raises(error, match=r"min_area must be .*, got"):
        lung_mask(phantom, min_area=value)
