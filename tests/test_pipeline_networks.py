"""Networks: any classifier by its name, its stages found, and what becomes of one without maps."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from pipeline import PACKAGES, ROOT, need

need(*PACKAGES)

import torch  # noqa: E402
import torchvision  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from examples.pretrain_gde import phantoms as phantoms_of_the_demo  # noqa: E402
from examples.pretrain_gde.backbones import STRIDES, make_backbone  # noqa: E402
from examples.pretrain_gde.cli import main as command_line  # noqa: E402
from examples.pretrain_gde.density import SCORES  # noqa: E402
from examples.pretrain_gde.detector import Detector  # noqa: E402
from examples.pretrain_gde.errors import PipelineError  # noqa: E402
from examples.pretrain_gde.given import give  # noqa: E402
from examples.pretrain_gde.model import Network, drawn_channels, prepare  # noqa: E402
from examples.pretrain_gde.settings import PRESETS, Settings  # noqa: E402
from examples.pretrain_gde.tensors import load_tensors, save_tensors, write_tensors  # noqa: E402

COUNTS = {("train", "normal"): 10, ("valid", "normal"): 4}
VALID = (("valid", "normal"), ("valid", "abnormal"))
COUNTS |= {("test", "normal"): 4, ("test", "abnormal"): 4}
TINY = "--preset laptop --size 32 --batch 4 --epochs 2 --updates 2 --validate-every 1"
TINY += " --precision fp32 --quiet --device cpu --threads 1"
WIDTHS = {  # of torchvision's classifiers: after each stage, and of what the last layer takes
    "resnet18": ((64, 128, 256, 512), 512),
    "resnet50": ((256, 512, 1024, 2048), 2048),
    "densenet121": ((256, 512, 1024, 1024), 1024),
    "efficientnet_b0": ((24, 40, 112, 1280), 1280),
    "convnext_tiny": ((96, 192, 384, 768), 768),
    "vit_b_16": ((), 768),
}
OWN = """
import random
import torch
from torch import nn
def maps():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
def nothing():
    return nn.Sequential(nn.Flatten(0))
def refuses():
    raise KeyError("weights")
class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, 10)
    def forward(self, inputs):
        values = self.conv(inputs)
        if values.sum() > 0:  # which no tracer can follow
            values = values + 1
        return self.fc(values.mean((2, 3)))
class Chance(Branching):
    def forward(self, inputs):
        values = self.conv(inputs)
        if random.random() < 0.5:
            values = values + 1
        return self.fc(values.mean((2, 3)))
class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(8, 10)
        self.same = self.conv
    def forward(self, inputs):
        values = self.conv(inputs)
        if torch.rand(1).item() < 0.5:  # which a tracer would decide for good
            values = values + 1
        return self.fc(values.mean((2, 3)))
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def own(tmp_path):
    """Return the name of a function in a file of the user's own, which the user has given."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return lambda function: f"{path}:{function}"


def main(*arguments):
    return command_line([str(argument) for argument in arguments])


def train_one(backbone, phantoms, cache, out, *more):
    options = ("--data", phantoms, "--cache", cache, "--out", out, *TINY.split(), *more)
    return main("train", *options, "--backbone", backbone)


@pytest.mark.parametrize("name", WIDTHS)
def test_stages_of_torchvisions_classifiers_are_found(name):
    stages, width = WIDTHS[name]
    network = Network(Settings(backbone=name, size=64, map_weight=1.0))
    assert network.width == width
    assert tuple(network.stages.values()) == stages
    images = torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8)
    pooled, maps = network.eval().see(prepare(images))
    assert pooled.shape == (2, width)
    for stage, values in maps.items():
        side = 64 // STRIDES[stage]
        assert values.shape == (2, network.stages[stage], side, side)
    features = network.features(prepare(images))
    for feature, found in network.widths.items():
        assert features[feature].shape[-1] == found
    assert network.train()(images).logits.shape == (2, 2)
    plain = set(torchvision.models.get_model(name).state_dict())
    kept = set(network.backbone.state_dict())
    assert kept < plain
    assert {key.rpartition(".")[2] for key in plain - kept} == {"weight", "bias"}  # the last layer


def test_the_features_are_what_the_last_layer_takes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = torchvision.models.densenet121().eval()
        torch.manual_seed(0)
        network, width, _ = make_backbone("densenet121", 64)
    inputs = torch.rand(2, 3, 64, 64)
    given = []
    plain.classifier.register_forward_hook(lambda module, args, output: given.append(args[0]))
    blocks = []
    plain.features.denseblock2.register_forward_hook(lambda *called: blocks.append(called[2]))
    plain(inputs)
    found = network.eval()(inputs)
    torch.testing.assert_close(found["pooled"], given[0])
    torch.testing.assert_close(found["stage2"], blocks[0])
    assert width == 1024


def test_of_many_channels_as_many_are_drawn_once():
    assert drawn_channels(256) == slice(None)
    drawn = drawn_channels(1024)
    assert len(set(drawn.tolist())) == 256
    assert drawn.tolist() == sorted(drawn.tolist())
    assert drawn.max() >= 768  # not the first ones


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet8", "there is resnet18"),
        ("", "there is resnet18, for instance"),
        ("hf-hub:timm/resnet18", "must be a classifier of torchvision"),
        ("squeezenet1_0", "squeezenet1_0 does not end in a linear layer"),
        ("inception_v3", "inception_v3 cannot take images of 32 pixels: RuntimeError"),
        ("vit_b_16", "vit_b_16 cannot take images of 33 pixels"),
        ("fcn_resnet50", "must be a classifier"),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_networks_that_there_are_not_are_named(name, message, tmp_path, phantoms, cache, capsys):
    size = "33" if name == "vit_b_16" else "32"
    assert train_one(name, phantoms, cache, tmp_path / "out", "--size", size) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_timms_networks_by_the_same_flag():
    pytest.importorskip("timm")
    found = make_backbone("resnet18d", 64)
    assert tuple(found.stages.values()) == (64, 128, 256, 512)
    assert found.width == 512
    found = make_backbone("vit_tiny_patch16_224", 64)  # of another size than its own
    assert (found.width, found.stages) == (192, {})


@pytest.mark.parametrize(
    "name", [pytest.param("vit_b_16", marks=pytest.mark.slow), "Branching", "mobilenet_v3_small"]
)
def test_a_run_of_another_network(name, own, tmp_path, phantoms, cache, capsys):
    flat = name != "mobilenet_v3_small"
    name = own(name) if name == "Branching" else name
    assert train_one(name, phantoms, cache, tmp_path / "runs", *LITTLE) == 0
    told = capsys.readouterr()
    assert (f"backbone {name} gives no maps that can be followed" in told.err) == flat
    folder = tmp_path / "runs/mix/seed0"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["settings"]["backbone"] == name
    assert name in (folder / "report.html").read_text()
    scores = {"kde", "gaussian", "nearest", "pooled4", "logit", "mean"}
    assert set(metrics["test"]["trained"]) == (scores if flat else {*SCORES, "mean"})
    same = ("--backbone", name)
    detector = Detector.load(folder / "detector.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    scored = detector.score_all(images)["both"]["mean"]
    np.testing.assert_allclose(detector.score(images), scored)
    assert detector.shares(images).shape == (3, 1 if flat else 16)
    heat = ("--heat-maps", tmp_path / "maps")
    assert main("predict", folder, phantoms / "test/normal", *same, *heat) == int(flat)
    assert ("there are no heat maps" in capsys.readouterr().err) == flat
    assert main("predict", folder, phantoms / "test/normal", "--backbone", "resnet18") == 1
    assert f"was made with --backbone {name}, not resnet18" in capsys.readouterr().err


def test_no_code_is_run_because_a_file_names_it(own, tmp_path, phantoms, cache, capsys):
    code = tmp_path / "own.py"
    run = [sys.executable, "-m", "examples.pretrain_gde"]
    options = ["--data", phantoms, "--cache", cache, "--out", tmp_path / "runs", *TINY.split()]
    train = [*run, "train", *options, *LITTLE, "--backbone", own("Branching")]
    subprocess.run([*map(str, train)], cwd=ROOT, check=True, capture_output=True)
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{OWN}")
    folder = tmp_path / "runs/mix/seed0"
    name = own("Branching")
    for command in (["predict", folder, phantoms / "test/normal"], ["evaluate", folder]):
        done = subprocess.run(
            [*map(str, [*run, *command])], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert f"networks are made by {name}: --backbone {name} runs it" in done.stderr
        assert not (tmp_path / "ran").exists()
    subprocess.run(
        [*map(str, [*run, *command, "--backbone", name])], cwd=ROOT, check=True, capture_output=True
    )
    assert (tmp_path / "ran").exists()


LITTLE = ("--epochs", "1", "--updates", "1")


def test_weights_of_another_network_are_refused_by_name(tmp_path, phantoms, cache, capsys):
    out = tmp_path / "runs"
    assert train_one("mobilenet_v3_small", phantoms, cache, out, *LITTLE) == 0
    folder = out / "mix/seed0"
    (folder / "metrics.json").unlink()
    assert train_one("shufflenet_v2_x0_5", phantoms, cache, out, *LITTLE, "--resume") == 1
    assert "other settings: backbone 'mobilenet_v3_small'" in capsys.readouterr().err
    other = tmp_path / "other"
    assert train_one("shufflenet_v2_x0_5", phantoms, cache, other, *LITTLE) == 0
    best = "weights-epoch0001.safetensors"
    capsys.readouterr()
    shutil.copy(folder / best, other / "mix/seed0" / best)
    (other / "mix/seed0/metrics.json").unlink()
    assert train_one("shufflenet_v2_x0_5", phantoms, cache, other, *LITTLE, "--resume") == 1
    assert "holds no weights of shufflenet_v2_x0_5" in capsys.readouterr().err


def test_a_run_with_dropout_goes_on_as_without_a_break(tmp_path, phantoms, cache, monkeypatch):
    from examples.pretrain_gde import train

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_one("mobilenet_v3_small", phantoms, cache, whole) == 0
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    update, done = train.Trainer.update, []

    def interrupted(*arguments):
        done.append(arguments)
        if len(done) == 4:  # in the second epoch
            raise KeyboardInterrupt
        return update(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(train.Trainer, "update", interrupted)
        assert train_one("mobilenet_v3_small", phantoms, cache, broken) == 130
    assert train_one("mobilenet_v3_small", phantoms, cache, broken, "--resume") == 0
    one, other = (
        json.loads((out / "mix/seed0/metrics.json").read_text()) for out in (whole, broken)
    )
    assert [e["loss"] for e in one["epochs"]] == [e["loss"] for e in other["epochs"]]
    assert one["test"] == other["test"]


def test_functions_give_networks(own, monkeypatch):
    for function in ("maps", "nothing", "refuses", "Branching"):
        give("backbone", own(function))
    maps = make_backbone(own("maps"), 32)
    assert (maps.width, maps.stages) == (8, {})
    network = Network(Settings(backbone=own("maps"), size=32))
    assert network.features(torch.rand(2, 3, 32, 32))["pool4"].shape == (2, 8)
    branching = Network(Settings(backbone=own("Branching"), size=32))
    assert (branching.width, branching.stages) == (8, {})
    assert branching.features(torch.rand(2, 3, 32, 32))["pool4"].shape == (2, 8)
    for function, message in (
        ("nothing", "does not end in a linear layer, or gives no tensor of features"),
        ("refuses", "cannot take images of 32 pixels: KeyError: 'weights'"),
    ):
        with pytest.raises(PipelineError, match=message):
            make_backbone(own(function), 32)


def test_weights_that_a_function_gives_are_kept_as_they_are(own, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    name = "examples.imagenet:efficientnet_lite0"
    give("backbone", name)
    one, other = (Network(Settings(backbone=name, size=64, seed=seed)) for seed in (0, 1))
    assert tuple(one.stages.values()) == (24, 40, 112, 1280)
    for key, value in one.backbone.state_dict().items():
        assert torch.equal(value, other.backbone.state_dict()[key]), key
    assert isinstance(one.backbone, nn.Module)


def test_the_page_s_commands(tmp_path, monkeypatch):
    page = ROOT / "docs/other_networks.md"
    if not page.exists():
        pytest.skip("needs the source tree")
    monkeypatch.chdir(tmp_path)
    little = {"size": 32, "batch": 4, "epochs": 1, "updates": 1, "validate_every": 1}
    monkeypatch.setitem(PRESETS, "demo", {**PRESETS["demo"], **little})
    monkeypatch.setattr(phantoms_of_the_demo, "COUNTS", {**COUNTS, **dict.fromkeys(VALID, 11)})
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    commands = [line.split()[3:] for line in lines if line.startswith("python -m examples.pre")]
    assert [command[0] for command in commands] == ["demo", "train", "export", "finetune"]
    for command in commands:
        tiny = (*TINY.split(), *LITTLE) if command[0] == "train" else ("--quiet",)
        assert main(*command, *tiny) == 0
    assert (tmp_path / "weights.safetensors").exists()
    assert (tmp_path / "runs/demo/mix/seed0/finetune.html").exists()


@pytest.mark.parametrize("name", ["Drawing", "Chance"])
def test_what_is_drawn_anew_at_each_image_is_not_traced(name, own, tmp_path):
    give("backbone", own(name))
    network = Network(Settings(backbone=own(name), size=32))
    inputs = torch.rand(1, 3, 32, 32)
    assert len({network.pooled(inputs).sum().item() for _ in range(40)}) == 2
    save_tensors(tmp_path / "x.safetensors", network.state_dict(), {})  # two names for one tensor
    write_tensors(tmp_path / "y.safetensors", network.state_dict(), {})
    tensors, _ = load_tensors(tmp_path / "x.safetensors", {})
    network.load_state_dict(tensors)


def test_small_files_do_not_fill_the_memory(tmp_path):
    pytest.importorskip("timm")
    path = tmp_path / "detector.safetensors"
    settings = Settings(backbone="eva02_enormous_patch14_clip_224").as_dict()
    tensors = {"normal_scores": torch.zeros(1), "usual_shares": torch.zeros(1)}
    save_tensors(path, tensors, {"settings": settings, "threshold": 0.0, "standards": {}})
    with pytest.raises(PipelineError, match="it holds 0 numbers, and eva02_enormous"):
        Detector.load(path)


def test_export_of_another_network_than_the_run_s_is_refused(tmp_path, phantoms, cache, capsys):
    assert train_one("mobilenet_v3_small", phantoms, cache, tmp_path, *LITTLE) == 0
    run, weights = tmp_path / "mix/seed0", tmp_path / "weights.safetensors"
    assert main("export", run, "-o", weights, "--backbone", "resnet18") == 1
    assert "was made with --backbone mobilenet_v3_small, not resnet18" in capsys.readouterr().err
    assert main("export", run, "-o", weights) == 0
    plain = torchvision.models.mobilenet_v3_small()
    lacking, unknown = plain.load_state_dict(load_file(weights), strict=False)
    assert (lacking, unknown) == (["classifier.3.weight", "classifier.3.bias"], [])


def test_imagenet_is_not_of_functions(own):
    with pytest.raises(PipelineError, match="they give weights of their own"):
        Settings(backbone=own("maps"), imagenet=True)
