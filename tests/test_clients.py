"""The package in other libraries: every snippet of docs/clients.md, and more.

Run with the extra `clients`; what is not installed is skipped.
"""

from __future__ import annotations

import re
import runpy
from importlib.metadata import requires
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("torchvision", reason="needs torchvision")

from anatpaste_aug import batch, transforms  # noqa: E402

PAGE = Path(__file__).resolve().parents[1] / "docs" / "clients.md"
NEEDS = {
    "MONAI": "monai",
    "torchxrayvision": "torchxrayvision",
    "albumentations": "albumentations",
    "anomalib": "anomalib",
    "kornia": "kornia",
    "TorchIO": "torchio",
    "Lightning": "lightning",
    "Hugging Face datasets": "datasets",
    "torchvision datasets": "torchvision",
    "OpenCV": "cv2",
}
# What other libraries warn about is theirs to mend.
pytestmark = pytest.mark.filterwarnings("default")


def need(module):
    return pytest.importorskip(module, reason=f"needs {module}: the extra `clients`")


def sections():
    """Return the page's Python by its headings, and what stands before the first under ''."""
    if not PAGE.exists():
        pytest.skip("needs the source tree: the snippets stand in docs")
    heads = re.split(r"^## (.*)$", "## \n" + PAGE.read_text(), flags=re.M)[1:]
    pairs = zip(heads[::2], heads[1::2], strict=True)
    return {head: re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) for head, text in pairs}


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Run a section of the page as a script, in a folder of its own; return its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")

    def run(heading):
        need(NEEDS[heading])
        parts = sections()
        script = tmp_path / "snippet.py"
        script.write_text("\n".join(parts[""] + parts[heading]))
        torch.manual_seed(0)
        return runpy.run_path(str(script), run_name="__main__")

    return run


def films(count=4, size=128):
    return torch.stack([torch.from_numpy(phantom_radiograph(size, rng=i)) for i in range(count)])


def test_every_section_of_the_page_is_tested_here():
    assert list(sections()) == ["", *NEEDS]


def test_the_page_says_which_versions_it_was_run_with():
    """One for each section, no older than the metadata asks for, no newer than what is here."""
    sections()  # skips without the page
    rows = re.findall(r"^\| \[(.*?)\]\(#(.*?)\) \| ([\d.]+) \|", PAGE.read_text(), re.M)
    assert [place for _, place, _ in rows] == [head.lower().replace(" ", "-") for head in NEEDS]
    floors = {}
    for line in requires("anatpaste-aug"):
        if found := re.match(r"([\w-]+)>=([\d.]+)", line):
            floors[found[1].lower()] = found[2]
    for (_, _, version), module in zip(rows, NEEDS.values(), strict=True):
        name = {"cv2": "opencv-python-headless"}.get(module, module)
        assert parts(floors[name]) <= parts(version)
        if find_spec(module):
            assert parts(version) <= parts(installed(name)), f"{name} is older than the page's"


def parts(version):
    return [int(part) for part in re.match(r"[\d.]*\d", version)[0].split(".")]


def test_monai(page):
    names = page("MONAI")
    sample = names["sample"]
    assert sample["image"].shape == sample["region"].shape == (4, 1, 256, 256)
    changed = names["pasted"].numpy() != names["film"]
    assert changed.any()
    assert not (changed & ~names["region"].numpy()).any()


def test_torchxrayvision(page, tmp_path):
    names = page("torchxrayvision")
    xrv, film = names["xrv"], names["film"]
    assert film.shape == (1, 512, 512)
    out = transforms.AnatPaste(p=1)(film)
    assert (out.shape, out.dtype) == (film.shape, film.dtype)
    assert -1024 <= out.min() <= out.max() <= 1024
    assert (out != film).any()

    # A dataset of its own, with `data_aug`, and with masks.
    index = xrv.datasets.NIH_Dataset(str(tmp_path), pathology_masks=True)
    chosen = int(np.flatnonzero(index.csv["has_masks"])[0])
    image = Image.fromarray(phantom_radiograph(1024, rng=0))
    image.save(tmp_path / index.csv["Image Index"][chosen])
    plain = index[chosen]
    index.data_aug = transforms.AnatPaste(p=1)
    assert (index[chosen]["img"] != plain["img"]).any()
    index.data_aug = None
    pasted = names["Pasted"](index, transforms.AnatPaste(p=1, return_mask=True))[chosen]
    changed = (pasted["img"] != plain["img"])[0]
    assert changed.any()
    assert not (changed & ~pasted["region"][0].numpy()).any()
    for key, mask in plain["pathology_masks"].items():
        np.testing.assert_array_equal(pasted["pathology_masks"][key], mask)


def test_torchxrayvision_segments(page, tmp_path):
    """The trained weights cannot be had everywhere: the real network with random ones, and one that
    answers with the published mask through the same interface."""
    names = page("torchxrayvision")
    from torchxrayvision.baseline_models import chestx_det

    image = names["film"][0][::4, ::4]
    weights = {f"module.{name}": part for name, part in chestx_det.pspnet(14).state_dict().items()}
    torch.save(weights, tmp_path / "pspnet_chestxray_best_model_4.pth")
    segment = names["XrvLungs"](chestx_det.PSPNet(cache_dir=str(tmp_path)))
    assert segment(image).shape == image.shape
    assert segment(image).dtype == torch.bool

    class Published:
        targets = chestx_det.PSPNet.targets

        def __call__(self, images):
            mask = torch.from_numpy(ap.lung_mask(images[0, 0].numpy()))
            logits = torch.full((1, 14, *mask.shape), -9.0)
            logits[0, 4] = torch.where(mask, 9.0, -9.0)
            return torch.nn.functional.interpolate(logits, (512, 512))

    segment = names["XrvLungs"](Published())
    agree = segment(image).numpy() == ap.lung_mask(image)
    assert agree.mean() > 0.99
    out = transforms.AnatPaste(p=1, segment=segment)(image[None])
    assert (out != image).any()


def test_albumentations(page):
    names = page("albumentations")
    A, own, film = names["albumentations"], names["AnatPaste"], names["film"]
    assert 0 < names["out"]["mask"].mean() < 1

    def run(seed):
        return A.Compose([own(p=1)], seed=seed)(image=film, mask=np.zeros_like(film))

    first, again, other = run(1), run(1), run(2)
    for key in ("image", "mask"):
        np.testing.assert_array_equal(first[key], again[key])
        assert (first[key] != other[key]).any()
    assert not ((first["image"] != film) & (first["mask"] == 0)).any()

    replay = A.ReplayCompose([A.HorizontalFlip(p=0.5), own(p=0.5)])
    replay.set_random_seed(3)
    for _ in range(4):
        out = replay(image=film, mask=np.zeros_like(film))
        again = A.ReplayCompose.replay(out["replay"], image=film, mask=np.zeros_like(film))
        for key in ("image", "mask"):
            np.testing.assert_array_equal(again[key], out[key])


def test_anomalib(page):
    names = page("anomalib")
    assert names["pasted"].shape == (2, 3, 256, 256)
    masks = names["regions"]
    assert (masks.shape, masks.dtype) == ((2, 1, 256, 256), torch.float32)
    assert ((1 - masks) * masks == 0).all()  # as its own masks are used


def test_anomalib_validates_on_normals_alone(page):
    names = page("anomalib")
    assert names["found"].keys() == {"image_AUROC", "pixel_AUROC"}
    assert all(0 <= value <= 1 for value in names["found"].values())
    read = {folder.name: sorted(folder.glob("*.png")) for folder in Path("split").iterdir()}
    assert {name: len(files) for name, files in read.items()} == {
        "train": 6, "good": 2, "pasted": 2, "regions": 2,
    }  # fmt: skip
    assert not {file.name for file in read["train"]} & {file.name for file in read["good"]}
    batches = list(names["films"].val_dataloader())
    labels = torch.cat([batch.gt_label for batch in batches])
    masks = torch.cat([batch.gt_mask for batch in batches])
    assert labels.sum() == 2
    assert torch.equal(masks.flatten(1).any(1), labels.bool())
    for good, pasted, region in zip(read["good"], read["pasted"], read["regions"], strict=True):
        changed = np.asarray(Image.open(good)) != np.asarray(Image.open(pasted))
        assert changed.any()
        assert not (changed & ~np.asarray(Image.open(region))).any()


@pytest.mark.parametrize("size", [64])
def test_anomalib_s_draem_trains_on_it(page, tmp_path, size):
    models = need("anomalib.models")
    from anomalib.data import ImageBatch

    model = models.Draem(dtd_dir=tmp_path, evaluator=False, visualizer=False)
    model.augmenter = page("anomalib")["Pastes"](batch.AnatPaste(p=1))
    model.log = lambda *args, **kwargs: None  # a step alone, without a trainer
    images = (films(2, size)[:, None] / 255).expand(-1, 3, -1, -1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    before = [p.detach().clone() for p in model.model.parameters()]
    loss = model.training_step(ImageBatch(image=images))["loss"]
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    after = model.model.parameters()
    assert any((old != new).any() for old, new in zip(before, after, strict=True))


def test_kornia(page):
    names = page("kornia")
    K, images = names["K"], names["images"] / 255
    assert names["out"].shape == images.shape
    assert names["masks"].shape == images.shape
    only = batch.Select(batch.AnatPaste(p=1), "images")
    flip = K.AugmentationSequential(K.RandomHorizontalFlip(p=1), only, data_keys=["input", "mask"])
    marks = (images > 0.5).float()
    out, moved = flip(images, marks)
    assert (out != images.flip(-1)).flatten(1).any(1).all()
    torch.testing.assert_close(moved, marks.flip(-1))
    alone = K.AugmentationSequential(only, data_keys=["input"])(images)
    assert isinstance(alone, torch.Tensor)


def test_torchio(page):
    names = page("TorchIO")
    tio, upright = names["tio"], phantom_radiograph(256, rng=0)
    film = tio.ScalarImage("films/normal/0.png")
    np.testing.assert_array_equal(film.data[0, ..., 0].T, upright)
    marks = tio.LabelMap(tensor=torch.ones(film.shape))
    subject = tio.Subject(film=film, marks=marks)
    seen = []

    def segment(image):
        seen.append(image)
        return ap.lung_mask(image)

    names["paste_film"].__globals__["paste"] = transforms.AnatPaste(p=1, segment=segment)
    step = tio.Lambda(names["paste_film"], types_to_apply=[tio.INTENSITY])
    torch.manual_seed(3)
    out = step(subject)
    changed = out.film.data[0, ..., 0].T.numpy() != upright
    assert changed.any()
    assert not (changed & ~ap.lung_mask(upright)).any()
    np.testing.assert_array_equal(seen[0], upright)
    assert out.film.shape == film.shape
    assert (out.marks.data == 1).all()
    torch.manual_seed(3)
    assert torch.equal(step(subject).film.data, out.film.data)
    with pytest.raises(ValueError, match="shape"):
        step(tio.Subject(film=tio.ScalarImage(tensor=torch.rand(1, 32, 32, 32))))


def test_lightning(page):
    assert page("Lightning")["trainer"].global_step == 2


def test_hugging_face_datasets(page):
    names = page("Hugging Face datasets")
    rows = names["films"]
    rows.set_transform(transforms.AnatPaste(p=1))
    torch.manual_seed(0)
    pasted = rows[:3]
    assert pasted["name"] == names["files"][:3]
    originals = [phantom_radiograph(256, rng=i) for i in range(3)]
    changes = [np.asarray(new) != old for new, old in zip(pasted["image"], originals, strict=True)]
    assert all(change.any() for change in changes)
    assert (changes[0] != changes[1]).any()
    loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=list)
    assert len(list(loader)) == 4


def test_torchvision_datasets(page):
    names = page("torchvision datasets")
    assert names["old"][0][0].shape == (1, 256, 256)
    images = names["images"]
    assert images.shape == (4, 1, 256, 256)
    assert images.dtype == torch.float32


def test_opencv(page):
    names = page("OpenCV")
    film, out, region = names["film"], names["out"], names["region"]
    assert film.shape == out.shape == (256, 256, 1)
    assert ((film != out)[..., 0] <= region).all()
    written = names["cv2"].imread("pasted.png", names["cv2"].IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written, out[..., 0])


@pytest.mark.parametrize(
    "name", ["AnatPaste", "CutPaste", "CutPasteScar", "CutPasteUnion", "Opacity", "LungCrop"]
)
def test_opencv_s_shape_goes_through_every_transform(name):
    image = phantom_radiograph(128, rng=0)[..., None]
    if name == "LungCrop":
        out, flat = (transforms.LungCrop()(a) for a in (image, image[..., 0]))
    else:
        transform = getattr(transforms, name)(p=1)
        drawn = transform.make_params([image])
        out, flat = (transform.transform(a, drawn) for a in (image, image[..., 0]))
    assert (out.ndim, out.dtype) == (3, np.uint8)
    np.testing.assert_array_equal(out[..., 0], flat)
    assert transforms.LungMask()(image)[1].shape == (1, 128, 128)
