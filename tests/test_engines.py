"""Which engine a batch's operators take, the way over the CPU, and the names of operations."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from conftest import any_mask

from anatpaste_aug import operations
from anatpaste_aug.data import phantom_radiograph

torch = pytest.importorskip("torch", reason="needs torch")

from batches import draw, random_images  # noqa: E402
from devices import Device  # noqa: E402

from anatpaste_aug import batch  # noqa: E402
from anatpaste_aug.batch import functions, operators  # noqa: E402

GPU = torch.device("cuda", 0)


class Kernels:
    """Stands for the files of the kernels: every function is there, and says that it was run."""

    def __init__(self, error=None):
        self.error, self.runs = error, []

    def __getattr__(self, name):
        def run(*args):
            if self.error:
                raise self.error
            self.runs.append((name, *args))
            return name

        return run


@pytest.fixture
def card(monkeypatch):
    """Pretend that there is a GPU with kernels; return what replaces the kernels."""

    def use(error=None, capability=(9, 0)):
        kernels = Kernels(error)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(operators, "import_kernels", lambda file: kernels)
        # What the smallest kernel is tried with would lie on the card.
        monkeypatch.setattr(torch, "zeros", lambda *args, device=None, **kw: zeros(*args, **kw))
        operators.find_fault.cache_clear()
        return kernels

    zeros = torch.zeros
    monkeypatch.delenv(operators.SWITCH, raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    yield use
    operators.find_fault.cache_clear()


class OnCard:
    """Stands for images on the GPU, of which there is none here."""

    def __init__(self, height=16, width=16):
        self.device, self.shape = GPU, (1, 1, height, width)


def find(height=16, width=16, name="lung_mask", operation=None):
    """Ask for the kernels of an operator."""
    return operators.find_kernels(name, (OnCard(height, width), operation))


# --- which engine ---------------------------------------------------------------------------------


def test_operators_know_the_devices_that_have_kernels(monkeypatch):
    asked = set()
    monkeypatch.setattr(operators, "find_kernels", lambda name, args: asked.add(name))
    for module in (torch.cuda, torch.xpu):
        monkeypatch.setattr(module, "_lazy_init", lambda: None)
    for kind, expected in (("xpu", set()), ("cuda", set(operators.KERNELS))):
        device = Device(kind)
        with device:
            images = device.put(random_images((2, 1, 32, 32), torch.uint8))
            batch.AnatPaste(1)(images)
            masks = batch.lung_mask_robust(images)
            batch.apply_paste(images, batch.sample_paste(masks), masks)
            batch.LungCrop(32)(images, masks=masks)
        assert asked == expected
    for name in operators.KERNELS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"anatpaste_aug::{name}", "CUDA")


@pytest.mark.parametrize("name", sorted(operators.KERNELS))
def test_kernels_are_taken_where_they_serve(card, name):
    kernels = card()
    known = operations.AnatPaste(margin=3)
    given, got = (400, 400) if name == "lung_mask" else (operators.register(known), known)
    images, run = OnCard(), getattr(operators, name)._backend_fns["cuda"]
    assert run(images, given) == name
    assert kernels.runs.pop(0)[0] == "sample"  # the smallest one, to see whether it can
    assert kernels.runs == [(name, images, got)]  # kernels get the operation itself
    run(images, given)
    assert len(kernels.runs) == 2  # what was seen is remembered


def test_other_operations_have_no_kernels(card):
    kernels = card()

    @dataclasses.dataclass(frozen=True)
    class Own(operations.AnatPaste):
        pass

    assert find(name="paste", operation=functions.PASTE)
    for operation in (operations.CutPaste(), operations.Opacity(), Own()):
        assert find(name="paste", operation=operators.register(operation)) is None
    assert len(kernels.runs) == 1


def test_images_that_are_too_large_go_over_the_cpu_in_silence(card):
    card()
    side = operators.LARGEST_SIDE
    assert find(2**11, side)
    for height, width in ((16, side + 1), (side + 1, 16), (2**12, 2**12 + 1)):
        assert find(height, width) is None


def test_the_switch_sends_batches_over_the_cpu(card, monkeypatch):
    card()
    assert find()
    monkeypatch.setenv(operators.SWITCH, "0")
    assert find() is None
    monkeypatch.setenv(operators.SWITCH, "1")
    assert find()


def test_old_cards_go_over_the_cpu_and_are_told(card, monkeypatch):
    card(capability=(7, 5))
    with pytest.warns(UserWarning, match=r"cuda:0 go over the CPU, .* capability is below 8\.0"):
        assert find() is None
    monkeypatch.setattr(torch.version, "hip", "6.4")  # AMD's have no such number
    operators.find_fault.cache_clear()
    assert find()


def test_a_broken_triton_is_told_and_remembered(card):
    kernels = card(RuntimeError("no C compiler"))
    with pytest.warns(UserWarning, match="cannot run Triton kernels: RuntimeError: no C compiler"):
        assert find() is None
    kernels.error = None  # whatever has become of it, it is not tried again
    with pytest.warns(UserWarning, match="no C compiler"):
        assert find() is None
    assert not kernels.runs


def test_want_of_memory_is_told_and_not_remembered(card):
    kernels = card(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.warns(UserWarning, match="out of memory, for the moment"):
        assert find() is None
    kernels.error = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find()


def test_a_warning_comes_once_for_all_batches():
    code = """
        import torch
        from anatpaste_aug.batch import operators
        torch.version.hip = None
        torch.cuda.get_device_capability = lambda device: (7, 5)
        class OnCard:
            device, shape = torch.device("cuda", 0), (1, 1, 16, 16)
        for _ in range(3):
            assert operators.find_kernels("lung_mask", (OnCard, 400)) is None
    """
    done = run_python(code)
    assert done.stderr.count("UserWarning: batches on cuda:0 go over the CPU") == 1, done.stderr


def test_without_triton_the_package_works():
    code = """
        import sys; sys.modules['triton'] = None
        import torch
        from anatpaste_aug import batch
        from anatpaste_aug.batch import operators
        print(batch.AnatPaste(1)(torch.zeros(1, 1, 16, 16)).labels.tolist())
        operators.import_kernels("draw")
    """
    done = run_python(code)
    assert done.stdout == "[1]\n"
    assert "ModuleNotFoundError: import of triton halted" in done.stderr


def run_python(code, *args):
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.run(command, capture_output=True, text=True)


# --- over the CPU ---------------------------------------------------------------------------------


@pytest.fixture(params=["cuda", "xpu", "mps"])
def device(request, monkeypatch):
    """A device without kernels, simulated; inside it torch works there."""
    for module in (torch.cuda, torch.xpu):
        monkeypatch.setattr(module, "_lazy_init", lambda: None)
    monkeypatch.setenv(operators.SWITCH, "0")
    return Device(request.param)


def here(part):
    return part.here


MODULES = [
    *(kind(0.7) for kind in (batch.AnatPaste, batch.Opacity, batch.CutPaste, batch.CutPasteScar)),
    batch.CutPasteUnion(1),
    batch.OneOf([batch.AnatPaste(1), batch.Opacity(1), batch.CutPasteScar(1)], 1),
    batch.AnatPaste(1, segment=batch.lung_mask_robust),
]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.float32])
def test_modules_over_the_cpu_give_what_the_cpu_gives(device, module, dtype):
    images = random_images((4, 3, 64, 80), dtype).to(memory_format=torch.channels_last)
    torch.manual_seed(1)
    expected = module(images)
    torch.manual_seed(1)
    with device:
        got = module(device.put(images))
    for one, other in zip(got, expected, strict=True):
        assert one.device == device.device
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        if device.device.type == "mps" and other.dtype == dtype != torch.uint8:
            step = 1e-3 if dtype.is_floating_point else 1  # params are float32 there
            torch.testing.assert_close(one.here, other, rtol=0, atol=step)
        else:
            assert torch.equal(one.here, other)


def test_functions_over_the_cpu(device):
    images = torch.from_numpy(np.stack([phantom_radiograph(96, rng=i) for i in range(3)]))[:, None]
    masks = batch.lung_mask(images)
    torch.manual_seed(2)
    drawn = batch.sample_paste(masks)
    real = torch.float32 if device.device.type == "mps" else torch.float64
    with device:
        there, lungs = device.put(images), batch.lung_mask(device.put(images))
        assert torch.equal(lungs.here, masks)
        torch.manual_seed(2)
        moved = batch.sample_paste(lungs)
        for name in ("width", "shape", "brightness"):
            field, expected = getattr(moved, name), getattr(drawn, name)
            assert field.device == device.device
            assert field.dtype == (real if name == "brightness" else torch.int64)
            assert torch.equal(field.here, expected.to(field.dtype))
        robust, crop = batch.lung_mask_robust(there), batch.LungCrop((40, 50))(there)
        pasted = batch.apply_paste(there, moved, lungs, return_mask=True)
    expected = [batch.lung_mask_robust(images), *batch.LungCrop((40, 50))(images)]
    expected += batch.apply_paste(images, drawn, masks, return_mask=True)
    for one, other in zip([robust, *crop, *pasted], expected, strict=True):
        assert one.device == device.device
        assert torch.equal(one.here, other)


def test_what_moves_to_mps_is_never_float64():
    moved = []

    class Spy(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.to:
                moved.append((args[0].dtype, args[1]))
                return args[0]
            return super().__torch_function__(func, types, args, kwargs or {})

    for name, wide in (("mps", torch.float32), ("cuda", torch.float64)):
        for dtype in (torch.float64, torch.float32, torch.int64, torch.bool):
            operators.move(torch.zeros(2, dtype=dtype).as_subclass(Spy), torch.device(name))
            expected = wide if dtype == torch.float64 else dtype
            assert moved.pop() == (expected, torch.device(name))


# --- names of operations --------------------------------------------------------------------------


def make_class(default):
    """Make a class of the same name every time, as a notebook's cell that is run again does."""

    @dataclasses.dataclass(frozen=True)
    class Again(operations.CutPaste):
        size: int = operations.option(default, 1, 99, integer=True, single=True)

        def draw(self, sampler, shape, lungs):
            one = operations.CutPaste.draw(self, sampler, shape, lungs)
            return dataclasses.replace(one, paste_x=default, paste_y=default)

    return Again


def test_operations_of_equal_names_are_kept_apart():
    one, other = make_class(3), make_class(7)
    names = [operators.register(kind(size=5)) for kind in (one, other, one, other)]
    assert names[0] == names[2] != names[1] == names[3]
    assert type(operators.registered[names[0]]) is one
    assert type(operators.registered[names[1]]) is other
    images = torch.rand(3, 1, 32, 32)
    for kind, place in ((one, 3), (other, 7)):
        module = type("M", (batch.OperationModule,), {"operation": kind})(1, size=5)
        assert [params.paste_x for params in draw(module.ops[0], images)] == [place] * 3
        assert module.names == [operators.register(module.ops[0])]
    assert operators.register(operations.Opacity()) != operators.register(
        operations.Opacity(size=2)
    )
    assert operators.register(operations.CutPaste()) != operators.register(
        operations.CutPaste(jitter=0)
    )


MADE = """
    import pickle, sys, torch
    from anatpaste_aug import batch
    torch.manual_seed(4)
    module = batch.AnatPaste(1, margin=2, opacity=(199, 211))
    several = batch.OneOf([batch.Opacity(1, size=0.77), batch.CutPasteScar(1, width=5)], 1)
    images = torch.randint(256, (5, 1, 64, 64), dtype=torch.uint8)
    torch.manual_seed(9)
    results = [module(images), several(images)]
    torch.save({"modules": [module, several], "images": images,
                "results": [[*r] for r in results]}, sys.argv[1])
"""
LOADED = """
    import sys, torch
    saved = torch.load(sys.argv[1], weights_only=False)
    torch.manual_seed(9)
    for module, expected in zip(saved["modules"], saved["results"]):
        got = module(saved["images"])
        assert all(torch.equal(a, b) for a, b in zip(got, expected))
    print("same")
"""


def test_modules_are_pickled_and_saved(tmp_path):
    images = torch.randint(256, (4, 1, 64, 64), dtype=torch.uint8)
    masks = torch.from_numpy(np.stack([any_mask(seed, 64, 64) for seed in range(4)]))
    for module in (*MODULES, batch.Select(batch.AnatPaste(1), "images"), batch.LungCrop(32)):
        copies = [pickle.loads(pickle.dumps(module))]
        torch.save(module, tmp_path / "module.pt")
        copies.append(torch.load(tmp_path / "module.pt", weights_only=False))
        more = {"masks": masks} if getattr(module, "segment", None) is None else {}
        for one in copies:
            assert repr(one) == repr(module)
            torch.manual_seed(0)
            expected = module(images, **more)
            torch.manual_seed(0)
            torch.testing.assert_close(one(images, **more), expected, rtol=0, atol=0)
        assert module.state_dict() == {}


def test_modules_go_to_other_processes(tmp_path):
    path = str(tmp_path / "modules.pt")
    for code in (MADE, LOADED):
        done = run_python(code, path)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"
