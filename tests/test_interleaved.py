"""What Triton's interpreter does not show of the kernels: other orders of their programs, programs
at the same time, and memory that nobody has written yet."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from conftest import real_data

import anatpaste_aug as ap

torch = pytest.importorskip("torch", reason="needs torch")
triton = pytest.importorskip("triton", reason="needs Triton, which comes with torch on Linux")
if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

import test_kernels as kernels  # noqa: E402
import triton.language as tl  # noqa: E402
from batches import alone, functional_boxes, hard_masks, hooks, random_images  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from triton.runtime.interpreter import TensorHandle  # noqa: E402

from anatpaste_aug.batch.kernels import draw as draw_host  # noqa: E402
from anatpaste_aug.batch.kernels import launch, otsu  # noqa: E402
from anatpaste_aug.batch.kernels import mask as mask_host  # noqa: E402
from anatpaste_aug.batch.kernels import paste as paste_host  # noqa: E402
from benchmarks.interleaved import Interleaved  # noqa: E402

IN_TURN = {"alive": 1, "split": False, "older": 0}
ORDERS = {
    "reversed": {**IN_TURN, "reverse": True},
    "random": IN_TURN,
    "interleaved": {"seed": 1},
    "interleaved again": {"seed": 2},
    "interleaved, not split": {"seed": 3, "split": False},
}


@pytest.fixture(params=ORDERS.values(), ids=ORDERS)
def order(request):
    with Interleaved(**request.param) as order:
        yield order


def parts(monkeypatch, rows, step, words):
    """Cut work into few programs, whose number costs the time, but several for each image."""
    for host in (mask_host, paste_host):
        monkeypatch.setattr(host, "ROWS", rows)
        monkeypatch.setattr(host, "EXTREMES", 2)
    for host in (mask_host, draw_host):
        monkeypatch.setattr(host, "STEP", step)
    monkeypatch.setattr(mask_host, "WORDS", words)
    monkeypatch.setattr(paste_host, "DRAWN_ROWS", rows)


# --- the order of programs ------------------------------------------------------------------------


HARD = hard_masks(36)[:, 1:, 2:]
SPIRAL_AND_NOISE = HARD[[0, 12]]


def labels_of(masks, border=False):
    """Label masks one by one, so that all programs at a time belong to one."""
    return np.concatenate([kernels.labeled(mask[None], border, step=4) for mask in masks])


@pytest.fixture(scope="module")
def usual_labels():
    """Label as programs in turn do: `test_kernels` compares that with scikit-image."""
    return [labels_of(HARD, border) for border in (False, True)]


def minimum_in_two_steps(pointer, value, mask, sem):
    """Do what `tl.atomic_min` does, lane after lane; others may write before a lane has stored."""
    found = value
    for place in zip(*np.nonzero(mask.handle.data), strict=True):
        one = np.zeros(mask.handle.data.shape, bool)
        one[place] = True
        lane = tl.tensor(TensorHandle(one, tl.int1), mask.type)
        above = tl.load(pointer, mask=lane)
        tl.store(pointer, tl.minimum(above, value), mask=lane)
        found = tl.where(lane, above, found)
    return found


def wrong_labels(seeds, racing, **options):
    """Count the labelings, by several seeds, that differ from the usual ones."""
    usual, wrong = labels_of(SPIRAL_AND_NOISE), 0
    with pytest.MonkeyPatch.context() as patch:
        if racing:
            patch.setattr(tl, "atomic_min", minimum_in_two_steps)
        for seed in range(seeds):
            with Interleaved(seed, **options) as order:
                got = labels_of(SPIRAL_AND_NOISE)
            assert (order.turns > 0) == (order.alive > 1)
            assert (order.outdated > 0) == (order.older > 0)
            wrong += np.count_nonzero((got != usual).any((1, 2)))
    return wrong


def test_a_race_is_seen():
    assert wrong_labels(1, racing=False) == 0
    assert wrong_labels(1, racing=True) == 2


def test_a_failing_program_ends_the_others():
    values = torch.zeros(4, dtype=torch.int32)
    with Interleaved(), kernels.Watch(), pytest.raises(Exception, match="leaves its tensors"):
        kernels.careless[(4,)](values, 2, 1)


@pytest.mark.slow
def test_turns_alone_show_a_race():
    """It is they that do, not the order: the kernels' other tests would pass."""
    assert wrong_labels(8, racing=True, older=0) > 0
    assert wrong_labels(2, racing=True, older=0, alive=1) == 0


@pytest.mark.slow
@pytest.mark.parametrize("border", [False, True])
def test_labels(border, usual_labels, order):
    np.testing.assert_array_equal(labels_of(HARD, border), usual_labels[border])


@pytest.mark.slow
def test_boxes(order, monkeypatch):
    monkeypatch.setattr(mask_host, "WORDS", 8)
    inside, areas = hooks(np.random.default_rng(30))
    masks, min_area = np.stack([inside, inside.T[::-1]]), int(np.quantile(areas, 0.7))
    for one, kept in zip(masks, kernels.rule(masks, min_area), strict=True):
        np.testing.assert_array_equal(kept, functional_boxes(one, min_area))


def check_masks(shape, dtype, min_area=40):
    images = random_images(shape, dtype, seed=3)
    for image, got in zip(images, kernels.masks_of(images, min_area), strict=True):
        np.testing.assert_array_equal(got, ap.lung_mask(alone(image), min_area=min_area))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_masks_of_noise(dtype, order, monkeypatch):
    parts(monkeypatch, 8, 512, 4)
    check_masks((1, 3 if dtype == torch.int16 else 1, 40, 61), dtype)


@pytest.mark.slow
def test_golden_masks(order, monkeypatch):
    golden = np.load(real_data("golden") / "reference256.npz")
    parts(monkeypatch, 64, 2**14, 128)
    expected = np.unpackbits(golden["masks"][:1], axis=-1).astype(bool)
    got = kernels.masks_of(torch.from_numpy(golden["images"][:1]))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
def test_golden_pastes(order, monkeypatch):
    golden = np.load(real_data("golden") / "reference256.npz")
    parts(monkeypatch, 64, 2**14, 128)
    cases = json.loads(str(golden["params"]))[:1]
    index = [case.pop("image") for case in cases]
    found = torch.tensor([case.pop("lung_found") for case in cases])
    masks = torch.from_numpy(np.unpackbits(golden["masks"], axis=-1).astype(bool))[index]
    masks &= found[:, None, None]
    singles = [ap.PasteParams(**case) for case in cases]
    out, alpha = kernels.pastes_of(torch.from_numpy(golden["images"])[index], singles, masks)
    np.testing.assert_array_equal(alpha, golden["alphas"][:1])
    np.testing.assert_array_equal(out[:, 0], golden["outputs"][:1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.float64])
def test_pastes(dtype, order, monkeypatch):
    parts(monkeypatch, 32, 512, 4)
    kernels.check_paste_alone((4, 3, 33, 47), dtype)


@pytest.mark.slow
def test_draws(order):
    kernels.test_draws_are_those_of_the_function()


# --- memory that nobody has written yet -----------------------------------------------------------


class Garbage(TorchFunctionMode):
    """Fill new tensors that have no values yet: with ones, or at random."""

    def __init__(self, fill):
        super().__init__()
        self.fill, self.filled, self.rng = fill, 0, np.random.default_rng(0)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.empty, torch.empty_like, torch.Tensor.new_empty):
            memory = torch.tensor([], dtype=torch.uint8).set_(out.untyped_storage())
            garbage = 255 if self.fill == "ones" else self.rng.integers(256, size=memory.numel())
            memory.copy_(torch.as_tensor(garbage))
            self.filled += 1
        return out


@pytest.mark.parametrize("fill", ["ones", "random"])
def test_all_that_is_read_has_been_written(fill, monkeypatch):
    parts(monkeypatch, 64, 2**14, 128)
    with Garbage(fill) as garbage:
        for dtype, min_area in ((torch.uint8, 40), (torch.float32, 20)):
            check_masks((1, 1, 40, 61), dtype, min_area)
            kernels.check_paste_alone((4, 3, 33, 47), dtype)
        kernels.test_draws_are_those_of_the_function()
    assert garbage.filled > 50


@pytest.mark.parametrize("fill", ["ones", "random"])
def test_garbage_is_seen(fill, monkeypatch):
    def launch_others(kernel, *args, **meta):
        if kernel is not otsu.keep_dark_kernel:
            launch.launch(kernel, *args, **meta)

    monkeypatch.setattr(mask_host, "launch", launch_others)
    with Garbage(fill), pytest.raises(AssertionError, match="not equal"):
        check_masks((1, 1, 40, 61), torch.uint8)
