"""Masks and operations of the user's own in the pipeline: given, checked, never from files."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from pipeline import PACKAGES, ROOT, need

need(*PACKAGES)

import torch  # noqa: E402

from anatpaste_aug.preview.command import main as preview  # noqa: E402
from examples import head_ct  # noqa: E402
from examples.pretrain_gde import cli, data, given  # noqa: E402
from examples.pretrain_gde.augment import Augmenter  # noqa: E402
from examples.pretrain_gde.detector import Detector  # noqa: E402
from examples.pretrain_gde.errors import PipelineError  # noqa: E402
from examples.pretrain_gde.evaluate import DETECTOR, METRICS  # noqa: E402
from examples.pretrain_gde.readers import read_split  # noqa: E402
from examples.pretrain_gde.settings import MASKS, Settings  # noqa: E402
from examples.pretrain_gde.view import View, find_mask  # noqa: E402

MASK, BLEEDING = "examples.head_ct:brain_mask", "examples.head_ct:Bleeding"
TINY = ["--size", "32", "--batch", "4", "--epochs", "0", "--precision", "fp32"]
SOURCE = """
import pathlib
pathlib.Path({mark!r}).touch()

def bright(image):
    return image > {threshold}

def small(image):
    return image[1:] > 0

def soft(image):
    return image / 255

def picky(image):
    if image.mean() > 250:
        raise KeyError("too bright")
    return image > 0
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch):
    """Let each test begin as a new process does."""
    monkeypatch.setattr(given, "_given", {})


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    folder, counts = tmp_path_factory.mktemp("heads"), head_ct.COUNTS
    few = {"train/normal": 12, **{part: 4 for part in list(counts)[1:]}}
    try:
        head_ct.COUNTS = few
        head_ct.main(str(folder))
    finally:
        head_ct.COUNTS = counts
    return folder


@pytest.fixture
def own(tmp_path):
    """Write functions, and tell by a file whether their module has been imported."""

    def write(threshold=100):
        text = SOURCE.format(mark=str(tmp_path / "imported"), threshold=threshold)
        (tmp_path / "own.py").write_text(text)
        return str(tmp_path / "own.py")

    write()
    yield write
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def main(*arguments):
    return cli.main([*map(str, arguments), "--device", "cpu", "--quiet"])


def load(heads, settings, cache, **options):
    return data.load_dataset(data.Source(heads, cache, **options), read_split(heads), settings)


@pytest.fixture(scope="module")
def trained(heads, tmp_path_factory):
    """Return the folder of a run with a mask and an operation of its own."""
    out = tmp_path_factory.mktemp("trained")
    options = ["--data", heads, "--out", out, *TINY, "--segment", MASK, "--variant", BLEEDING]
    assert main("train", *options) == 0
    return out / "Bleeding" / "seed0"


def test_a_run_of_another_modality(trained, heads, tmp_path, capsys):
    assert sorted(path.name for path in trained.parent.iterdir()) == ["seed0", "summary.json"]
    settings = json.loads((trained / METRICS).read_text())["settings"]
    assert (settings["mask"], settings["variant"]) == (MASK, BLEEDING)
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert ">Bleeding<" in page
    named = ("--mask", MASK, "--variant", BLEEDING)
    assert main("evaluate", trained, *named) == 0
    images = heads / "test" / "abnormal"
    capsys.readouterr()
    assert main("predict", trained, images, "--mask", MASK, "--format", "jsonl") == 0
    captured = capsys.readouterr()
    assert (len(captured.out.splitlines()), captured.err) == (4, "")


def test_files_run_no_code(trained, heads, capsys):
    images = heads / "test"
    for command in (
        ["evaluate", trained],
        ["predict", trained, images / "normal"],
        ["transfer", trained, "--normal", images / "normal", "--abnormal", images / "abnormal"],
    ):
        assert main(*command) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        asked = "--mask" if command[0] == "predict" else "--variant"
        name = MASK if command[0] == "predict" else BLEEDING
        assert captured.err.endswith(f"are made by {name}: {asked} {name} runs it\n")
    assert main("evaluate", trained, "--variant", BLEEDING) == 1
    assert capsys.readouterr().err.endswith(f"--mask {MASK} runs it\n")


def test_a_detector_s_module_is_not_imported(trained, heads, own, tmp_path, capsys):
    detector = Detector.load(trained / DETECTOR)
    name = f"{own()}:bright"
    changed = Settings(**{**detector.settings.as_dict(), "mask": name})
    folder = tmp_path / "run"
    folder.mkdir()
    Detector(changed, *list(vars(detector).values())[1:]).save(folder / DETECTOR)
    assert main("predict", folder, heads / "test" / "normal") == 1
    assert f"this run's masks are made by {name}: --mask {name} runs it" in capsys.readouterr().err
    for use in (changed.view.made_by, lambda: find_mask(np.zeros((256, 256), np.uint8), name)):
        with pytest.raises(PipelineError, match="runs it"):
            use()
    path = next((heads / "test" / "normal").iterdir())
    with pytest.raises(PipelineError, match="runs it"):
        data.attempt(path, changed.view)
    assert not (tmp_path / "imported").exists()
    assert main("predict", folder, heads / "test" / "normal", "--mask", name) == 0
    assert (tmp_path / "imported").exists()


def test_another_name_than_the_run_s_is_refused(trained, heads, capsys):
    images = heads / "test" / "normal"
    assert main("predict", trained, images, "--mask", "robust") == 1
    told = f"{trained} was made with --mask {MASK}, not robust"
    assert told in capsys.readouterr().err
    assert main("evaluate", trained, "--mask", MASK, "--variant", "mix") == 1
    assert f"was made with --variant {BLEEDING}, not mix" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--mask", "no_such:find", "no_such:find: ModuleNotFoundError: No module named 'no_such'"),
        (
            "--segment",
            "examples.head_ct:brain",
            "module 'examples.head_ct' has no attribute 'brain'",
        ),
        ("--variant", MASK, f"{MASK} is no class of anatpaste_aug.operations.Operation"),
        ("--variant", "examples.head_ct:COUNTS", "it is no function, but dict"),
    ],
)
def test_a_name_that_leads_nowhere_is_told_when_it_is_read(option, name, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main("train", "--data", "data", option, name)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_word_that_is_none_is_told(tmp_path, capsys):
    assert main("train", "--data", tmp_path, "--mask", "best") == 1
    told = "mask must be one of published, robust, MODULE:FUNCTION, got 'best'"
    assert told in capsys.readouterr().err


def test_settings_from_before_are_refused_clearly():
    with pytest.raises(PipelineError, match=r"mask must be one of published, .*, got 'default'"):
        Settings(mask="default")


def test_a_view_that_needs_no_mask_needs_no_function(heads, tmp_path):
    settings = Settings(size=32, variant="cutpaste", mask="nowhere:find")
    assert settings.view == View(32, mask="nowhere:find")
    images = load(heads, settings, tmp_path).images["test"]
    plain = load(heads, Settings(size=32, variant="cutpaste"), tmp_path).images["test"]
    np.testing.assert_array_equal(images, plain)
    assert len(list(tmp_path.glob("*.npy"))) == 3  # from the same cache
    with pytest.raises(PipelineError, match="masks are made by nowhere:find"):
        load(heads, Settings(size=32, mask="nowhere:find"), tmp_path)


def test_crop_and_tone_go_by_the_mask_that_is_named(heads, own):
    name = f"{own()}:bright"
    given.give("mask", name)
    image = np.zeros((256, 256), np.uint8)
    image[64:128, 32:96] = 200
    seen, fine, mask = View(64, crop=True, mask=name, masked=True).see(image)
    assert fine
    assert mask[8:-8, 8:-8].all()
    assert (seen[8:-8, 8:-8] == 200).all()
    toned = View(256, tone="lungs", mask=name).see(image)[0]
    assert set(np.unique(toned[64:128, 32:96])) == {64}  # the mask's own values, all the same


def test_a_mask_is_one_of_the_library_s_or_a_function(heads):
    path = next((heads / "train" / "normal").iterdir())
    image = np.array(Image.open(path).resize((256, 256)))
    given.give("mask", MASK)
    masks = [find_mask(image, name)[0] for name in (*MASKS, MASK)]
    np.testing.assert_array_equal(masks[2], head_ct.brain_mask(image))
    assert all(mask.dtype == bool for mask in masks)
    assert (masks[0] != masks[2]).any()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("small", "ValueError: the mask returned by {} must have the image's shape (256, 256)"),
        ("soft", "TypeError: the mask returned by {} must be a bool or integer array, got float"),
    ],
)
def test_a_result_that_is_no_mask_is_told_by_file(function, reason, heads, own, tmp_path):
    name = f"{own()}:{function}"
    given.give("mask", name)
    with pytest.raises(PipelineError) as caught:
        load(heads, Settings(size=32, mask=name), tmp_path / "cache")
    assert "normal/head000.png: " + reason.format(name) in str(caught.value)


def test_a_function_that_fails_on_an_image_makes_it_a_bad_file(heads, own, tmp_path):
    name, folder = f"{own()}:picky", tmp_path / "heads"
    given.give("mask", name)
    shutil.copytree(heads, folder)
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(folder / "train/normal/head000.png")
    settings = Settings(size=32, mask=name)
    told = f"train/normal/head000.png: ValueError: {name} raised KeyError: 'too bright'"
    with pytest.raises(PipelineError) as caught:
        load(folder, settings, tmp_path / "cache")
    assert told in str(caught.value)
    dataset = load(folder, settings, tmp_path / "cache", skip_bad=True)
    assert dataset.skipped == (told,)
    assert len(dataset.split.train) == 11


@pytest.mark.parametrize("kind", ["published", "own"])
def test_empty_masks_are_named_in_a_line(kind, heads, own, tmp_path, capsys):
    name = f"{own()}:bright" if kind == "own" else kind
    given.give("mask", name)
    folder = tmp_path / "heads" / "train" / "normal"
    folder.mkdir(parents=True)
    for path in sorted((heads / "train" / "normal").iterdir())[:9]:
        (folder / path.name).write_bytes(path.read_bytes())
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "blank.png")
    dataset = load(folder.parents[1], Settings(size=32, mask=name), tmp_path / "cache")
    assert [path for path, fine in dataset.upright.items() if not fine]
    data.tell_of_masks(dataset.upright, name)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: empty mask ({name}) in ")
    assert "blank.png" in line


def test_an_edited_function_makes_the_cache_anew(heads, own, tmp_path):
    shares = []
    for threshold in (100, 250, 100):
        name = f"{own(threshold)}:bright"
        given.give("mask", name)
        masks = load(heads, Settings(size=32, mask=name), tmp_path / "cache").masks["train"]
        shares.append((masks.mean(), len(list((tmp_path / "cache").glob("*.npy")))))
    assert shares[0][0] > shares[1][0]
    assert shares[2] == (shares[0][0], shares[1][1])
    # Images of the test part, of which no mask is needed, are kept.
    assert [count for _, count in shares[:2]] == [3, 5]


def test_an_operation_of_one_s_own_is_pasted(heads, tmp_path):
    given.give("mask", MASK)
    given.give("variant", BLEEDING)
    settings = Settings(size=64, variant=BLEEDING, mask=MASK, jitter=0.0)
    dataset = load(heads, settings, tmp_path)
    images = torch.from_numpy(np.array(dataset.images["train"]))[:, None]
    masks = torch.from_numpy(np.array(dataset.masks["train"]))[:, None] > 0
    inputs, labels, alpha = Augmenter(settings)(images, masks, torch.Generator().manual_seed(0))
    assert torch.equal(inputs[labels == 0], images)
    changed = inputs[labels == 1] != images
    assert changed.any((1, 2, 3)).all()
    assert not changed[~masks].any()
    assert ((alpha[labels == 1] > 0) >= changed).all()
    assert settings.label == "Bleeding"


def test_two_variants_of_one_folder_are_refused(heads, tmp_path, capsys):
    (tmp_path / "other.py").write_text("from examples.head_ct import Bleeding\n")
    other = f"{tmp_path / 'other.py'}:Bleeding"
    options = ("--data", heads, "--out", tmp_path, *TINY, "--mask", MASK)
    assert main("compare", *options, "--variants", BLEEDING, other) == 1
    assert "variant Bleeding, seed 0 is given twice" in capsys.readouterr().err


def test_the_page_s_commands(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs/other_modalities.md"
    if not page.exists():
        pytest.skip("needs the source tree")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    commands = [shlex.split(line) for line in lines]
    assert [command[2] for command in commands] == [
        "examples.head_ct",
        "anatpaste_aug",
        *["examples.pretrain_gde"] * 3,
    ]
    monkeypatch.setattr(head_ct, "COUNTS", dict.fromkeys(head_ct.COUNTS, 10))
    head_ct.main(commands[0][3])
    assert preview(commands[1][3:]) == 0
    for _, _, _, *arguments in commands[2:]:
        monkeypatch.setattr(given, "_given", {})
        assert main(*arguments, *(TINY if arguments[0] == "train" else ())) == 0
    assert "heads/test/abnormal/head009.png," in capsys.readouterr().out


def test_brains_are_found_inside_drawn_heads():
    rng = np.random.default_rng(0)
    for size in (128, 256):
        image = head_ct.head_slice(size, rng)
        mask = head_ct.brain_mask(image)
        assert 0.3 < mask.mean() < 0.6
        assert (image[mask] < 200).mean() > 0.99
        assert mask[size // 2, size // 2]
    for blank in (0, 255):
        assert not head_ct.brain_mask(np.full((64, 64), blank, np.uint8)).any()


def test_brains_are_found_in_real_heads():
    files = sorted((ROOT.parent / "shared/data/headct256").rglob("*.*"))
    if not files:
        pytest.skip("needs ../shared/data/headct256")
    shares = []
    for path in files[::10]:
        with Image.open(path) as picture:
            image = np.array(picture.convert("L").resize((256, 256)))
        shares.append(head_ct.brain_mask(image).mean())
    assert min(shares) > 0.25
    assert max(shares) < 0.75


@pytest.mark.parametrize("epochs", ["0", "2"])
def test_edited_code_is_noticed(epochs, heads, own, tmp_path, capsys):
    name = f"{own()}:bright"
    out = ("--data", heads, "--out", tmp_path, *TINY, "--epochs", epochs, "--updates", "1")
    train = ("train", *out, "--variant", "anatpaste", "--mask", name, "--validate-every", "1")
    assert main(*train) == 0
    run = tmp_path / "anatpaste" / "seed0"
    own(threshold=120)
    capsys.readouterr()
    images = heads / "test" / "normal"
    for command in ("predict", run, images), ("evaluate", run, "--changed-images"):
        assert main(*command, "--mask", name) == 0
        assert f"warning: {name} was edited since {run} was made" in capsys.readouterr().err
    assert main(*train, "--resume") == 1
    assert "was made with another code" in capsys.readouterr().err
    if epochs != "0":
        (run / METRICS).unlink()
        assert main(*train, "--resume") == 1
        assert "was made with other settings: code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("anatpaste_aug.operations:Operation", "anatpaste_aug.operations:Operation cannot be used"),
        ("examples.head_ct:BleedingParams", "is no class of anatpaste_aug.operations.Operation"),
        ("Failing", "Failing cannot be used: KeyError: 'draw'"),
    ],
)
def test_an_operation_is_tried_before_all_else(name, message, heads, tmp_path, capsys):
    code = """
from examples.head_ct import Bleeding
class Failing(Bleeding):
    def draw(self, sampler, shape, lungs):
        raise KeyError("draw")
"""
    (tmp_path / "failing.py").write_text(code)
    name = f"{tmp_path / 'failing.py'}:{name}" if name == "Failing" else name
    with pytest.raises(SystemExit, match="2"):
        main("train", "--data", heads, "--out", tmp_path / "out", "--variant", name)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_drawn_heads_go_into_a_new_folder(tmp_path):
    (tmp_path / "there.txt").touch()
    for folder in ("--help", str(tmp_path)):
        with pytest.raises(SystemExit, match="usage"):
            head_ct.main(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["there.txt"]


def test_where_all_masks_are_poor_another_is_suggested(capsys):
    data.tell_of_masks({"a": False, "b": False}, "robust")
    assert "lungs in 2 of 2 images: is --mask the right one?" in capsys.readouterr().err


def test_an_operation_that_needs_no_lungs_is_taken(heads, tmp_path):
    code = """
from anatpaste_aug.operations import CutPaste
class Whole(CutPaste):
    pass
"""
    (tmp_path / "whole.py").write_text(code)
    name = f"{tmp_path / 'whole.py'}:Whole"
    options = ("--data", heads, "--out", tmp_path / "out", *TINY, "--mask", MASK)
    assert main("train", *options, "--variant", name) == 0
    assert (tmp_path / "out" / "Whole" / "seed0" / "report.html").exists()
