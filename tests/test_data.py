"""The phantom: its contract, and that the published lung-mask recipe finds two lungs on it."""

from __future__ import annotations

import numpy as np
import pytest
from recipe import recipe_mask
from scipy import ndimage

from anatpaste_aug.data import phantom as data
from anatpaste_aug.data import phantom_radiograph


def true_lungs(seed, size=256):
    """Where the phantom of this seed has aerated lung."""
    body = np.random.default_rng(np.random.default_rng(seed).integers(2**63, size=3)[0])
    return data._position_patient(size, size, body).air > 0.02


@pytest.mark.parametrize("size", [16, 64, 256, (16, 100), (100, 300), (301, 97), [40, 50]])
@pytest.mark.parametrize("abnormal", [False, True])
def test_shape_and_dtype(size, abnormal):
    image = phantom_radiograph(size, rng=1, abnormal=abnormal)
    assert image.shape == ((size, size) if isinstance(size, int) else tuple(size))
    assert image.dtype == np.uint8


def test_default_is_a_256_square_that_differs_each_time():
    first, second = phantom_radiograph(), phantom_radiograph()
    assert first.shape == (256, 256)
    assert not np.array_equal(first, second)


def test_same_seed_same_image():
    np.testing.assert_array_equal(phantom_radiograph(64, rng=5), phantom_radiograph(64, rng=5))
    np.testing.assert_array_equal(
        phantom_radiograph(64, rng=5), phantom_radiograph(64, rng=np.int64(5))
    )
    assert not np.array_equal(phantom_radiograph(64, rng=5), phantom_radiograph(64, rng=6))


def test_generator_is_used_and_advanced():
    rng = np.random.default_rng(5)
    first, second = phantom_radiograph(64, rng=rng), phantom_radiograph(64, rng=rng)
    np.testing.assert_array_equal(first, phantom_radiograph(64, rng=5))
    assert not np.array_equal(first, second)


def test_generator_advances_alike_with_and_without_opacity_and_at_any_size():
    rngs = [np.random.default_rng(2) for _ in range(3)]
    phantom_radiograph(32, rng=rngs[0])
    phantom_radiograph(32, rng=rngs[1], abnormal=True)
    phantom_radiograph((48, 80), rng=rngs[2])
    assert len({rng.integers(2**62) for rng in rngs}) == 1


def test_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    phantom_radiograph(32, rng=0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("seed", range(40))
def test_opacity_brightens_and_stays_in_the_lungs(seed):
    normal = phantom_radiograph(rng=seed).astype(int)
    difference = phantom_radiograph(rng=seed, abnormal=True) - normal
    changed = difference > 0
    assert np.all(difference >= 0)
    assert difference.max() >= 8
    assert 0.005 < changed.mean() < 0.3
    reach = ndimage.binary_dilation(true_lungs(seed), iterations=4)  # the film's blur
    assert not np.any(changed & ~reach)


def test_opacity_falls_on_either_side_and_sometimes_on_both():
    sides = set()
    for seed in range(40):
        normal = phantom_radiograph(64, rng=seed)
        columns = np.flatnonzero((phantom_radiograph(64, rng=seed, abnormal=True) != normal).any(0))
        sides.add((bool(columns.min() < 28), bool(columns.max() > 36)))
    assert sides == {(True, False), (False, True), (True, True)}


@pytest.mark.parametrize("seed", range(5))
def test_same_anatomy_at_every_size(seed):
    small = phantom_radiograph(128, rng=seed).astype(float)
    large = phantom_radiograph(512, rng=seed).astype(float)
    reduced = large.reshape(128, 4, 128, 4).mean(axis=(1, 3))
    assert np.abs(small - reduced).mean() < 4
    assert np.corrcoef(small.ravel(), reduced.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("seed", range(30))
def test_published_recipe_finds_both_lungs(seed):
    mask, lungs = recipe_mask(phantom_radiograph(rng=seed)), true_lungs(seed)
    assert mask[:, :128].mean() >= 0.05
    assert mask[:, 128:].mean() >= 0.05
    assert mask[lungs].sum() >= 0.9 * mask.sum()
    assert mask[lungs].mean() >= 0.3


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (3, ValueError, "size must be at least 16, got 3"),
        ((256, 15), ValueError, "size must be at least 16, got 15"),
        (-1, ValueError, "size must be at least 16, got -1"),
        ((1, 2, 3), TypeError, r"size must be a pair \(height, width\), got \(1, 2, 3\)"),
        (256.0, TypeError, "size must be an integer, got 256.0"),
        ((64, "a"), TypeError, "size must be an integer, got 'a'"),
        (None, TypeError, "size must be an integer, got None"),
        (True, TypeError, "size must be an integer, got True"),
    ],
)
def test_bad_size(size, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        phantom_radiograph(size)


@pytest.mark.parametrize(
    ("rng", "error", "message"),
    [
        (-1, ValueError, "rng must be at least 0, got -1"),
        (1.5, TypeError, "rng must be an int, a numpy.random.Generator or None, got 1.5"),
        ("a", TypeError, "rng must be an int, a numpy.random.Generator or None, got 'a'"),
    ],
)
def test_bad_rng(rng, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        phantom_radiograph(64, rng=rng)
