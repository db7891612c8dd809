"""The pipeline's command line: what it says, and how soon; what moves while a run trains."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from pipeline import PACKAGES, ROOT, need

need(*PACKAGES)

import torch  # noqa: E402

from examples.pretrain_gde import cli, commands, train  # noqa: E402
from examples.pretrain_gde.data import Dataset  # noqa: E402
from examples.pretrain_gde.readers import READERS, Entry, Split  # noqa: E402
from examples.pretrain_gde.runtime import Runtime  # noqa: E402
from examples.pretrain_gde.settings import PRESETS, PURPOSES, Settings  # noqa: E402

COMMANDS = ("demo", "train", "compare", "evaluate", "predict", "transfer", "export", "finetune")
SCREENS = 80  # lines: two screens of 40
OUTSIDE = """
import os, sys
class Watch:
    def find_spec(self, name, *rest):
        if name == "torch":
            print("torch", *map(os.environ.get, ("OMP_WAIT_POLICY", "TQDM_DISABLE")))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
from examples.pretrain_gde.cli import main
main(sys.argv[1:])
"""


def read(capsys, *arguments):
    """Return what a command line that ends while it is parsed says, and its exit status."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return capsys.readouterr(), caught.value.code


def outside(*arguments, **environment):
    """Run a command line in a process of its own, up to where it imports torch."""
    return subprocess.run(
        [sys.executable, "-c", OUTSIDE, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("arguments", [("--help",), *((name, "--help") for name in COMMANDS)])
def test_help_is_there_before_torch(arguments):
    done = outside(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m examples.pretrain_gde ")


@pytest.mark.parametrize("arguments", [("train", "--dta", "x"), ("--sede", "1"), ("tain",)])
def test_what_is_mistyped_is_told_before_torch(arguments):
    done = outside(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: " in done.stderr


@pytest.mark.parametrize(
    ("options", "given", "found"),
    [
        ("", {}, "PASSIVE None"),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ("--quiet", {}, "PASSIVE 1"),
        ("--qui", {}, "PASSIVE 1"),
        ("", {"RANK": "0"}, "PASSIVE None"),
        ("", {"RANK": "1"}, "PASSIVE 1"),
        ("--backbone {}:network --quiet", {}, "PASSIVE 1"),
    ],
)
def test_what_torch_and_tqdm_read_is_set_before_anything_imports_them(
    options, given, found, monkeypatch, tmp_path
):
    own = tmp_path / "own.py"
    own.write_text("import torch\ndef network(): ...\n")
    for name in ("OMP_WAIT_POLICY", "TQDM_DISABLE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    done = outside("export", "nowhere", "-o", "weights", *options.format(own).split(), **given)
    assert done.stdout == f"torch {found}\n", done.stderr


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_help_of_training_is_grouped_and_fits_two_screens(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = read(capsys, command, "--help")[0].out
    assert len(said.splitlines()) <= SCREENS
    assert max(map(len, said.splitlines())) <= 80
    groups = re.findall(r"^(\w+):$", said, re.M)
    assert groups == ["options", "data", "recipe", "network", "training", "machine"]
    for name in (*PRESETS, *READERS):
        assert re.search(rf"^  ([\w-]+, )*{name}(, [\w-]+)*: ", said, re.M), name
    assert "--size N                 side of the square input in pixels, 32 to 4096" in said


def test_every_setting_but_the_seed_and_digests_is_an_option_of_training(capsys):
    options = vars(cli.make_parser().parse_args(["train", "--data", "x"]))
    assert set(Settings.__dataclass_fields__) - options.keys() == {"seed", "code"}
    assert all(
        options[name] is None for name in Settings.__dataclass_fields__.keys() & options.keys()
    )


@pytest.mark.parametrize("command", [["train"], ["compare"], []])
def test_presets_are_listed_in_a_table(command, capsys):
    said, status = read(capsys, *command, "--list-presets")
    assert status == 0
    first, *lines = said.out.splitlines()
    assert first.split() == list(PRESETS)
    rows = {line.split()[0]: line.split()[1:] for line in lines[: lines.index("")]}
    assert rows["--epochs"] == [str(Settings(**preset).epochs) for preset in PRESETS.values()]
    assert rows["--mask"] == [Settings(**preset).mask for preset in PRESETS.values()]
    assert {
        f"--{name.replace('_', '-')}" for one in PRESETS.values() for name in one
    } <= rows.keys()
    assert lines[-len(PRESETS) :] == [f"{name}: {PURPOSES[name]}" for name in PRESETS]


@pytest.mark.parametrize("command", ["predict", "transfer", "export", "finetune"])
def test_the_output_has_a_short_name(command):
    kinds = ["--normal", "a", "--abnormal", "b"]
    rest = {"predict": ["a"], "export": [], "finetune": [*kinds, "--labels", "1"]}.get(
        command, kinds
    )
    options = cli.make_parser().parse_args([command, "run", *rest, "-o", "there"])
    assert options.output.name == "there"
    assert callable(getattr(commands, f"{command}_command"))


class Bar:
    """A progress bar that keeps what it shows after each step."""

    def __init__(self, wanted):
        self.disable, self.steps, self.shown = not wanted, [], None

    def set_postfix(self, **shown):
        self.shown = shown

    def update(self):
        self.steps.append(self.shown)


def test_loss_and_rate_move_while_an_epoch_runs(monkeypatch, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32), np.uint8)
    entries = tuple(Entry(f"{index}.png", False) for index in range(6))
    dataset = Dataset(
        Split("plain", entries, entries, ()),
        {"train": images, "valid": images},
        {"train": images > 127},
        (),
    )
    settings = Settings(size=32, batch=2, epochs=1, updates=3, variant="cutpaste")

    def shown(wanted):
        runtime, bar = Runtime(torch.device("cpu")), Bar(wanted)
        record = train.Trainer(settings, dataset, tmp_path, runtime)._epoch(0, bar)
        return bar.steps, record["loss"]

    monkeypatch.setattr(train, "SHOW_EVERY", math.inf)
    assert shown(True)[0] == [None] * 3
    monkeypatch.setattr(train, "SHOW_EVERY", 0.0)
    assert shown(False)[0] == [None] * 3
    steps, loss = shown(True)
    assert len({step["loss"] for step in steps}) > 1
    assert steps[-1]["loss"] == f"{loss:.3f}"
    rates = [float(step["rate"]) for step in steps]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == settings.learning_rate > rates[-1]
