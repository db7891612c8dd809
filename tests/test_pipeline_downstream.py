"""What pretrained weights are for: the file for other libraries, and learning from few labels."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from pipeline import PACKAGES, ROOT, need

need(*PACKAGES)

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from examples.pretrain_gde import cli, commands, finetune  # noqa: E402
from examples.pretrain_gde.detector import Detector  # noqa: E402
from examples.pretrain_gde.errors import PipelineError  # noqa: E402
from examples.pretrain_gde.model import embed, prepare  # noqa: E402
from examples.pretrain_gde.readers import Entry, Split  # noqa: E402

COUNTS = {
    ("train", "normal"): 8,
    ("valid", "normal"): 4,
    ("valid", "abnormal"): 4,
    ("test", "normal"): 6,
    ("test", "abnormal"): 6,
    ("labeled", "normal"): 6,
    ("labeled", "abnormal"): 5,
}
TINY = ["--preset", "quick", "--size", "32", "--batch", "4", "--updates", "2", "--quiet"]
TINY += ["--precision", "fp32"]
FEW = ["--draws", "2", "--updates", "2", "--quiet"]


pytestmark = pytest.mark.usefixtures("one_thread")


def train(phantoms, out, epochs):
    options = ["--data", phantoms, "--out", out, *TINY, "--epochs", epochs]
    assert main("train", *options) == 0
    return out / "anatpaste" / "seed0"


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    return train(phantoms, tmp_path_factory.mktemp("trained"), 1)


@pytest.fixture(scope="module")
def untrained(phantoms, tmp_path_factory):
    return train(phantoms, tmp_path_factory.mktemp("untrained"), 0)


def main(*arguments):
    return cli.main([str(argument) for argument in (*arguments, "--device", "cpu")])


def labels(phantoms):
    folder = phantoms / "labeled"
    return ["--normal", folder / "normal", "--abnormal", folder / "abnormal"]


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The file for other libraries.


@pytest.fixture(scope="module")
def weights(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    assert main("export", trained, "-o", path) == 0
    return path


@pytest.fixture(scope="module")
def features(trained, phantoms):
    """Return inputs of three phantoms, and what the run's network makes of them."""
    paths = sorted((phantoms / "test" / "abnormal").iterdir())[:3]
    images = np.stack([np.array(Image.open(path).resize((32, 32))) for path in paths])
    network = Detector.load(trained / "detector.safetensors").networks["trained"]
    return prepare(torch.from_numpy(images)[:, None]), embed(network, images, {"pool4"})["pool4"]


def assert_gives(features, model):
    inputs, expected = features
    with torch.no_grad():
        found = torch.nn.functional.normalize(model(inputs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def loaded(package, weights, monkeypatch):
    """Return the model that the snippet of the README makes in a library."""
    pytest.importorskip(package, reason=f"needs {package}")
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    found = [part for part in re.findall(r"```python\n(.*?)```", text, re.S) if package in part]
    assert len(found) == 1
    monkeypatch.chdir(weights.parent)
    names = {}
    exec(found[0], names)
    return names["model"]


def test_torchvision_loads_all_but_the_classifier(weights, features, monkeypatch):
    model = loaded("torchvision", weights, monkeypatch)
    lacking, unknown = model.load_state_dict(load_file(weights), strict=False)
    assert (lacking, unknown) == (["fc.weight", "fc.bias"], [])
    model.fc = torch.nn.Identity()
    assert_gives(features, model.eval())


@pytest.mark.filterwarnings("default")  # what others warn about is theirs to mend
def test_monai_loads_all_but_the_classifier(weights, features, monkeypatch):
    model = loaded("monai", weights, monkeypatch)
    lacking, unknown = model.load_state_dict(load_file(weights), strict=False)
    assert (lacking, unknown) == (["fc.weight", "fc.bias"], [])
    model.fc = None
    assert_gives(features, model.eval())


@pytest.mark.filterwarnings("default")
def test_segmentation_models_load_it(weights, features, monkeypatch):
    model = loaded("segmentation_models_pytorch", weights, monkeypatch).eval()
    assert model(features[0]).shape == (3, 1, 32, 32)
    assert_gives(features, lambda inputs: model.encoder(inputs)[-1].mean((2, 3)))


def test_the_file_says_what_it_holds(weights):
    with safe_open(weights, "pt") as file:
        told = file.metadata()
    assert told["architecture"] == "resnet18"
    assert "[-1, 1]" in told["inputs"]
    assert told["view"].startswith("32 pixels")


def test_export_refuses(trained, untrained, tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    assert main("export", untrained, "-o", path) == 1
    assert "the run was not trained" in capsys.readouterr().err
    assert not path.exists()
    before = files_of(trained)
    for name in ("detector.safetensors", "checkpoint.safetensors", "metrics.json"):
        assert main("export", trained, "-o", trained / name) == 1
        assert "--output must be none of the files" in capsys.readouterr().err
    assert files_of(trained) == before


# Learning from few labels.


@pytest.fixture(scope="module")
def tuned(trained, phantoms, tmp_path_factory):
    """Return the page that one command has written."""
    page = tmp_path_factory.mktemp("tuned") / "page.html"
    assert main("finetune", trained, *labels(phantoms), "--labels", 2, 4, *FEW, "-o", page) == 0
    return page


def test_a_page_and_its_figures(tuned, trained, phantoms, capsys):
    result = json.loads(tuned.with_suffix(".json").read_text())
    assert result["auc"].keys() == {"pretrained", "untrained"}
    text = tuned.read_text()
    for ways in result["auc"].values():
        for found in ways.values():
            assert list(found) == ["2", "4"]
            for one in found.values():
                assert one["mean"] == pytest.approx(np.mean(one["values"]))
                assert f"{one['mean']:.3f} ± {one['sd']:.3f}" in text
    assert result["data"]["images"] == {"train": 11, "valid": 0, "test": 12}
    assert "data:image/svg+xml" in text
    assert "http" not in re.sub('src="data:[^"]*"', "", text)
    # Again, in the run's own folder: the same figures, and these may be replaced.
    (trained / "finetune.html").write_text("old")
    before = files_of(trained)
    del before[trained / "finetune.html"]
    assert main("finetune", trained, *labels(phantoms), "--labels", 4, 2, *FEW) == 0
    again = json.loads((trained / "finetune.json").read_text())
    assert {**again, "environment": 0} == {**result, "environment": 0}
    assert (trained / "finetune.html").read_text() == text
    told = capsys.readouterr().out
    mean = result["auc"]["untrained"]["whole"]["4"]["mean"]
    assert re.search(rf"untrained +whole network .* {mean:.3f} ±", told)
    after = files_of(trained)
    assert {path: after[path] for path in before} == before


def read(trained, phantoms):
    """Return a detector, and labeled images beside its run's test part."""
    options = cli.make_parser().parse_args(
        ["finetune", str(trained), *map(str, labels(phantoms)), "--labels", "2", "--quiet"]
    )
    detector = Detector.load(trained / "detector.safetensors")
    with commands.start("cpu"):
        _, _, dataset = commands.load_run(trained, options)
    given = [sorted((phantoms / "labeled" / kind).iterdir()) for kind in ("normal", "abnormal")]
    return detector, finetune.read_labeled(detector.settings, *given, dataset)


def test_a_probe_is_a_logistic_regression_on_standardized_features(trained, phantoms, tuned):
    detector, dataset = read(trained, phantoms)
    network = detector.networks["trained"]
    abnormal, truth = dataset.labels("train"), dataset.labels("test")

    def pooled(images):
        inputs = prepare(torch.from_numpy(images)[:, None])
        with torch.no_grad():
            return network.eval().pooled(inputs).double().numpy()

    features, tested = pooled(dataset.images["train"]), pooled(dataset.images["test"])
    found = json.loads(tuned.with_suffix(".json").read_text())["auc"]["pretrained"]["probe"]["4"]
    for number, auc in enumerate(found["values"]):
        rows = finetune.draw(abnormal, 4, finetune.derive_seed(0, 4, number))
        assert np.bincount(abnormal[rows]).tolist() == [4, 4]
        mean, deviation = features[rows].mean(0), features[rows].std(0)
        deviation[deviation < 1e-12] = 1
        probe = LogisticRegression(max_iter=10_000)
        probe.fit((features[rows] - mean) / deviation, abnormal[rows])
        scores = probe.decision_function((tested - mean) / deviation)
        assert roc_auc_score(truth, scores) == pytest.approx(auc, abs=0.03)  # one pair in 36


def test_fewer_labels_are_among_more():
    abnormal = np.arange(50) % 3 == 0
    drawn = [set(finetune.draw(abnormal, count, 7).tolist()) for count in (3, 8, 16)]
    assert drawn[0] < drawn[1] < drawn[2]
    assert [len(rows) for rows in drawn] == [6, 16, 32]
    assert set(finetune.draw(abnormal, 3, 8).tolist()) != drawn[0]


def test_all_starts_see_the_same(trained, phantoms):
    """The same network under two names gets the same figures; it is itself left alone."""
    detector, dataset = read(trained, phantoms)
    network = detector.networks["trained"]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    networks = {"one": network, "other": network}
    plan = {"labels": [3], "draws": 2, "updates": 3, "rate": 0.01}
    seed = torch.get_rng_state()
    aucs = finetune.finetune(networks, dataset, plan, 5)["auc"]
    assert torch.equal(torch.get_rng_state(), seed)
    assert aucs["one"] == aucs["other"]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_what_is_learned_can_be_told(trained, phantoms):
    """Bright images against dark ones: the whole network is trained, to tell them apart."""
    detector, dataset = read(trained, phantoms)
    for part in ("train", "test"):
        bright = dataset.labels(part)[:, None, None]
        dataset.images[part] = np.where(bright, 200, 50).astype(np.uint8) + (
            np.random.default_rng(0).integers(0, 20, (len(bright), 32, 32), np.uint8)
        )
    networks = {"pretrained": detector.networks["trained"]}
    plan = {"labels": [4], "draws": 1, "updates": 20, "rate": 1e-3}
    aucs = finetune.finetune(networks, dataset, plan, 0)["auc"]
    assert aucs["pretrained"]["whole"]["4"] == {"values": [1.0], "mean": 1.0, "sd": None}
    assert aucs["pretrained"]["probe"]["4"]["mean"] == 1


def refused(capsys, *arguments):
    assert main("finetune", *arguments) == 1
    return capsys.readouterr().err


def test_no_label_is_of_the_test_part(trained, phantoms, tmp_path, capsys):
    copy = tmp_path / "another_name.bmp"
    Image.open(phantoms / "test" / "normal" / "phantom0002.png").save(copy)
    normal, abnormal = labels(phantoms)[1], labels(phantoms)[3]
    leaking = ["--normal", normal, copy, "--abnormal", abnormal, "--labels", 2, *FEW]
    told = refused(capsys, trained, *leaking)
    assert re.search(r"not be in the test part, .* got 1 that are: .*another_name\.bmp$", told)


def test_copies_and_patients_are_told(trained, phantoms, tmp_path, capsys):
    normal, abnormal = labels(phantoms)[1], labels(phantoms)[3]
    copy = tmp_path / "copy.png"
    shutil.copy(normal / "phantom0000.png", copy)
    page = ["--labels", 2, *FEW, "--draws", 1, "-o", tmp_path / "page.html"]
    options = ["--normal", normal, copy, "--abnormal", abnormal, *page]
    assert main("finetune", trained, *options) == 0
    assert "warning: copies of labeled images left out: 1" in capsys.readouterr().err
    both = ["--normal", normal, "--abnormal", abnormal, copy, *page]
    assert "nor both normal and abnormal, got 1" in refused(capsys, trained, *both)
    twice = ["--normal", normal, normal / "phantom0001.png", "--abnormal", abnormal, *page]
    assert "an image is given twice" in refused(capsys, trained, *twice)


def test_patients_of_the_test_part_are_counted(trained, phantoms, tuned, tmp_path, capsys):
    detector, dataset = read(trained, phantoms)
    entries = [Entry(f"test/person{n}_virus_1.png", n > 5) for n in range(12)]
    run = dataclasses.replace(dataset, split=Split("plain", (), (), tuple(entries)))
    given = {}
    for kind, first in (("normal", 10), ("abnormal", 20)):
        given[kind] = []
        for number, path in enumerate(sorted((phantoms / "labeled" / kind).iterdir()), first):
            given[kind].append(tmp_path / f"person{number}_bacteria_7.png")
            shutil.copy(path, given[kind][-1])
    labeled = finetune.read_labeled(detector.settings, *given.values(), run)
    assert len(labeled.images["train"]) == 11
    told = "labeled images of patients of the test part, by file names: 2"  # 10 and 11
    assert told in capsys.readouterr().err
    result = json.loads(tuned.with_suffix(".json").read_text())
    result["data"]["shared_patients"]["images"]["train"] = 2
    finetune.write_finetuned(tmp_path / "page.html", result)
    assert "2 of the labeled images show patients" in (tmp_path / "page.html").read_text()
    assert "show patients" not in tuned.read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--labels", 2, 6], "labels must be at most 5, .* got 6"),
        (["--labels", 0], r"labels\[0\] must be an integer in 1"),
        (["--labels", 2, "--draws", 0], "draws must be an integer in 1"),
        (["--labels", 2, "--rate", 0], "rate must be a number in"),
        (["--labels", 2, "-o", "page.txt"], "--output must end in .html"),
        (["--labels", 2, "-o", "RUN/report.html"], "must be none of the files"),
        (["--labels", 2, "-o", "RUN/metrics.html"], "must be none of the files"),
    ],
)
def test_finetune_refuses(trained, phantoms, capsys, options, told):
    options = [str(option).replace("RUN", str(trained)) for option in options]
    before = files_of(trained)
    assert re.search(told, refused(capsys, trained, *labels(phantoms), "--quiet", *options))
    assert files_of(trained) == before


def test_what_was_not_trained_saves_nothing(untrained, phantoms, capsys):
    options = [*labels(phantoms), "--labels", 2, *FEW]
    assert "the run was not trained" in refused(capsys, untrained, *options)


def test_another_test_part_is_refused(trained, phantoms, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(phantoms, moved)
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(moved / "test" / "normal" / "phantom0000.png")
    options = ["--labels", 2, *FEW, "--data", moved, "--cache", tmp_path / "cache"]
    told = refused(capsys, trained, *labels(phantoms), *options)
    assert "made with other test images" in told


def test_diverging_is_told(trained, phantoms):
    detector, dataset = read(trained, phantoms)
    network = detector.networks["trained"]
    torch.nn.init.constant_(network.backbone.conv1.weight, float("nan"))
    plan = {"labels": [2], "draws": 1, "updates": 1, "rate": 0.1}
    with pytest.raises(PipelineError, match="not finite: lower --rate"):
        finetune.finetune({"one": network}, dataset, plan, 0)


def test_a_lack_of_memory_is_told(trained, phantoms, capsys, monkeypatch):
    def fail(*arguments, **named):
        raise MemoryError

    monkeypatch.setattr(finetune, "finetune", fail)
    told = refused(capsys, trained, *labels(phantoms), "--labels", 2, *FEW)
    assert "out of memory" in told
