"""What a training step waits for on a GPU, seen on a simulated one: nothing."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest
from pipeline import PACKAGES, need

need("triton", *PACKAGES)

import torch  # noqa: E402
from devices import Device  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._pytree import tree_map_only  # noqa: E402

from anatpaste_aug.batch import operators  # noqa: E402
from anatpaste_aug.batch.kernels import draw, mask, paste  # noqa: E402
from examples.pretrain_gde import cli, commands  # noqa: E402
from examples.pretrain_gde.augment import segments_quickly  # noqa: E402
from examples.pretrain_gde.data import Dataset  # noqa: E402
from examples.pretrain_gde.readers import Entry, Split  # noqa: E402
from examples.pretrain_gde.runtime import Runtime  # noqa: E402
from examples.pretrain_gde.settings import Settings  # noqa: E402
from examples.pretrain_gde.train import Trainer  # noqa: E402

IMAGES = 6


class Generator(torch.Generator):
    """One that says that it is on the device."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")

    def __init__(self, device="cpu"):
        self.where = torch.device(device)

    @property
    def device(self):
        return self.where


class Autocast(TorchFunctionMode):
    """Stands for torch's, which does not know the simulated device; bf16 is slow on a CPU."""

    def __init__(self, kind, dtype, enabled):
        super().__init__()
        self.dtype = dtype if enabled else torch.float32

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("conv2d", "linear"):
            args = tree_map_only(torch.Tensor, lambda tensor: tensor.to(self.dtype).float(), args)
        return func(*args, **(kwargs or {}))


class Event:
    """A moment on the device."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def elapsed_time(self, end):
        return 1.0


@pytest.fixture
def card(monkeypatch):
    """Pretend that there is a GPU with kernels, whose launches do nothing."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "autocast", Autocast)
    # As by itself on a GPU.
    monkeypatch.setattr(torch.optim, "SGD", functools.partial(torch.optim.SGD, foreach=True))
    monkeypatch.setattr(operators, "find_fault", lambda device: None)
    monkeypatch.delenv(operators.SWITCH, raising=False)
    for file in (mask, draw, paste):
        monkeypatch.setattr(file, "launch", lambda *args, **meta: None)
    return Device("cuda")


class Bar:
    """A progress bar that sees after each step whether it has waited."""

    disable = True

    def __init__(self, card):
        self.card, self.waits = card, []

    def update(self):
        self.waits.append(list(self.card.waits))


@pytest.mark.parametrize(("fresh", "memory"), [(True, 2**30), (False, 0)])
def test_an_epoch_waits_for_the_gpu_once_at_its_end(fresh, memory, card, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory, memory))
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32), np.uint8)
    entries = tuple(Entry(f"{index}.png", False) for index in range(IMAGES))
    masks = {} if fresh else {"train": images // 128}
    split = Split("plain", entries, entries, entries)
    dataset = Dataset(split, {"train": images, "valid": images}, masks, ())
    form = {"size": 32, "batch": 4, "epochs": 1, "updates": 2}  # into a second turn of the images
    settings = Settings(**form, fresh_masks=fresh, precision="bf16")
    with card:
        trainer = Trainer(settings, dataset, tmp_path, Runtime(card.device))
        assert trainer.source.images.device == (card.device if memory else torch.device("cpu"))
        card.waits.clear()
        bar = Bar(card)
        trainer._epoch(0, bar)
    assert bar.waits == [[], []]
    assert card.waits == ["_local_scalar_dense"]  # the loss is read


def test_masks_are_found_afresh_where_the_kernels_do_it(card, monkeypatch):
    with card:
        assert segments_quickly(card.device)
        monkeypatch.setattr(operators, "find_fault", lambda device: "no compiler")
        assert not segments_quickly(card.device)
        monkeypatch.setenv(operators.SWITCH, "0")
        assert not segments_quickly(card.device)
    assert not segments_quickly(torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "fresh"),
    [
        ("--preset paper", True),
        ("--preset paper --mask published --size 128", True),
        ("--preset paper --no-fresh-masks", False),
        ("--preset paper --crop", False),
        ("--preset paper --mask robust", False),
        ("--preset quick", False),
        ("--preset quick --fresh-masks", True),
        ("", False),
    ],
)
def test_the_preset_paper_segments_at_every_draw(options, fresh, monkeypatch):
    given = ["train", "--data", "data", "--precision", "bf16", *options.split()]
    parsed = cli.make_parser().parse_args(given)
    runtime = Runtime(torch.device("cuda", 0))
    for quickly in (True, False):
        monkeypatch.setattr(commands, "segments_quickly", lambda device, quickly=quickly: quickly)
        settings = commands.make_settings(parsed, runtime, None)
        assert settings.fresh_masks == (fresh and (quickly or "--fresh-masks" in given))


WAITS = {
    "item": lambda x: x.sum().item(),
    "a condition": lambda x: bool(x.any()),
    "equal": lambda x: torch.equal(x, x + 1),
    "an index": lambda x: range(3)[x[1].long()],
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "a mask": lambda x: x[x > 1],
    "writing by a mask": lambda x: x.index_put_((x > 1,), torch.zeros((), device=x.device)),
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "repeats": lambda x: x.repeat_interleave(x.long()),
    "to the CPU": lambda x: x.cpu(),
    "to the CPU without blocking": lambda x: x.to("cpu", non_blocking=True),
    "to a list": lambda x: x.cpu().tolist(),
    "from the CPU": lambda x: torch.ones(3).to(x.device),
    "from the CPU without pinning": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "from pinned memory, blocking": lambda x: torch.ones(3).pin_memory().to(x.device),
    "copying in": lambda x: x.copy_(torch.ones(3)),
    "copying out": lambda x: torch.ones(3).copy_(x),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_the_simulated_gpu_knows_what_waits(wait, card):
    with card:
        there = card.put(torch.arange(3.0))
        assert not card.waits
        wait(there)
    assert len(card.waits) == 1


def test_the_simulated_gpu_knows_what_does_not_wait(card):
    with card:
        there = card.put(torch.arange(3.0))
        there += torch.ones(3).pin_memory().to(there.device, non_blocking=True)
        there[torch.zeros(2, dtype=torch.int64, device=there.device)] *= 2
        torch.where(there > 1, there, there.bfloat16().float()).to(there.device)
    assert not card.waits
    with card, pytest.raises(AssertionError, match="mixes"):
        there[torch.zeros(2, dtype=torch.int64)]
