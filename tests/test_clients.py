"""The package in other libraries: every snippet of docs/clients.md, and more.

Run with the extra `clients`; what is not installed is skipped.
"""

from __future__ import annotations

import random
import re
import runpy
from importlib.metadata import requires
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.version import Version
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
    """One for each section, that the metadata allows, no newer than what is here."""
    sections()  # skips without the page
    rows = re.findall(r"^\| \[(.*?)\]\(#(.*?)\) \| ([\d.]+) \|", PAGE.read_text(), re.M)
    assert [place for _, place, _ in rows] == [head.lower().replace(" ", "-") for head in NEEDS]
    needed = {each.name: each.specifier for each in map(Requirement, requires("anatpaste-aug"))}
    for (_, _, version), module in zip(rows, NEEDS.values(), strict=True):
        name = {"cv2": "opencv-python-headless"}.get(module, module)
        assert version in needed[name]
        if all(map(find_spec, NEEDS.values())):  # not where the lowest versions are tested
            assert Version(version) <= Version(installed(name)), f"{name} is older than the page's"


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


def test_torchxrayvision_s_range_makes_no_difference():
    """Nor do lungs: black is the image's minimum, here that of the range."""
    xrv = need("torchxrayvision")
    film = phantom_radiograph(256, rng=0)
    assert film.min() == 0
    film[:8] = 255  # a marker: what is white is the image's maximum, here 255
    scaled = xrv.datasets.normalize(film, 255, reshape=True)
    lungs = ap.lung_mask(film)
    np.testing.assert_array_equal(ap.lung_mask(scaled), lungs)
    for seed in range(8):
        params = ap.sample_paste(lungs, rng=seed)
        flat = ap.apply_paste(film, params, lungs)
        out = ap.apply_paste(scaled, params, lungs)
        assert abs((out[0] / 1024 + 1) * 127.5 - flat).max() < 3
        assert (flat != film).any()


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
    A, own, film = names["A"], names["AnatPaste"], names["film"]
    assert 0 < names["out"]["mask"].mean() < 1

    def run(seed):
        return A.Compose([own(p=1)], seed=seed)(image=film, mask=np.zeros_like(film))

    first, again, other = run(1), run(1), run(2)
    for key in ("image", "mask"):
        np.testing.assert_array_equal(first[key], again[key])
        assert (first[key] != other[key]).any()
    assert not ((first["image"] != film) & (first["mask"] == 0)).any()

    replay = A.ReplayCompose([A.HorizontalFlip(p=0.5), own(p=0.5, label=2)])
    replay.set_random_seed(3)
    for _ in range(4):
        out = replay(image=film, mask=np.zeros_like(film))
        again = A.ReplayCompose.replay(out["replay"], image=film, mask=np.zeros_like(film))
        for key in ("image", "mask"):
            np.testing.assert_array_equal(again[key], out[key])

    with pytest.raises(ValueError, match="missing keys"):
        own(p=1)(volume=film[None])

    # As the page says: a pipeline's seed goes to each of its transforms.
    def tied(augment):  # whether the same images are flipped and pasted into
        even = (film + film[:, ::-1]) // 2
        outs = [augment(image=even, mask=np.eye(256, dtype=np.uint8) * 5) for _ in range(30)]
        both = [((o["mask"][0, -1] == 5), (o["image"] != even).any()) for o in outs]
        return len({flipped == pasted for flipped, pasted in both}) == 1

    steps = [A.HorizontalFlip(p=0.5), own(label=None, p=0.5)]
    free = A.Compose(steps)
    free.set_random_state(np.random.default_rng(0), random.Random(0))
    assert not tied(free)
    assert tied(A.Compose(steps, seed=0))  # as the page warns
    twice = A.Compose([own(p=1), own(p=1)], seed=0)
    twice(image=film)
    pastes = [vars(each.params["paste"]) for each in twice]
    assert all(pastes[0][key] == pastes[1][key] for key in ("crop_x", "crop_y", "shape", "opacity"))


def test_albumentations_takes_every_image(page):
    names = page("albumentations")
    A, own, gray = names["A"], names["AnatPaste"], phantom_radiograph(128, rng=0)
    for image in (gray, gray[..., None], np.stack([gray] * 3, -1)):
        for film in (image, (image / 255).astype(np.float32)):
            before = film.copy()
            out = A.Compose([own(p=1)], seed=0)(image=film)["image"]
            assert (out.shape, out.dtype, out.flags.c_contiguous) == (film.shape, film.dtype, True)
            assert (out != film).any()
            assert film.min() <= out.min() <= out.max() <= film.max()
            np.testing.assert_array_equal(film, before)
            same = A.Compose([own(p=0)])(image=film)["image"]
            np.testing.assert_array_equal(same, before)


@pytest.mark.parametrize(
    ("dtype", "label"), [("uint8", 255), ("bool", 1), ("int32", 7), ("float32", 1), ("int64", None)]
)
def test_albumentations_marks_every_mask(page, dtype, label):
    names = page("albumentations")
    A, own, film = names["A"], names["AnatPaste"], phantom_radiograph(128, rng=0)
    plain = A.Compose([own(p=1)], seed=0)(image=film, mask=np.zeros_like(film))
    region = plain["mask"] == 1
    augment = A.Compose([own(label=label, p=1)], seed=0)
    for channels in ((), (1,), (2,), (128,)):
        mask = np.random.default_rng(0).integers(0, 2, (128, 128, *channels)).astype(dtype)
        before, expected = mask.copy(), mask.copy()
        if label is not None:
            expected[region] = label
        augment.set_random_seed(0)
        out = augment(image=film, mask=mask)
        np.testing.assert_array_equal(out["image"], plain["image"])
        assert (out["mask"].dtype, out["mask"].flags.c_contiguous) == (mask.dtype, True)
        np.testing.assert_array_equal(out["mask"], expected)
        for several in ([mask, mask], np.stack([mask, mask])):
            augment.set_random_seed(0)
            masks = augment(image=film, masks=several)["masks"]
            assert type(masks) is type(several)
            np.testing.assert_array_equal(masks, [expected, expected])
        np.testing.assert_array_equal(mask, before)
    assert augment(image=film, masks=[])["masks"] == []


def test_albumentations_moves_neither_boxes_nor_key_points(page):
    names = page("albumentations")
    A, film = names["A"], names["film"]
    boxes, points = [[3, 4, 50, 60], [0, 0, 256, 256]], [[3.5, 7], [200, 100]]
    augment = A.Compose(
        [names["AnatPaste"](p=1)],
        bbox_params=A.BboxParams("pascal_voc", label_fields=["classes"]),
        keypoint_params=A.KeypointParams("xy"),
        seed=0,
        strict=True,
    )
    out = augment(image=film, bboxes=boxes, classes=[1, 2], keypoints=points)
    assert (out["image"] != film).any()
    np.testing.assert_allclose(out["bboxes"], boxes)
    np.testing.assert_allclose(out["keypoints"], points)
    assert out["classes"] == [1, 2]


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_albumentations_saves_it(page, form):
    names = page("albumentations")
    A, own, film = names["A"], names["AnatPaste"], names["film"]

    class Everywhere(own):
        segment = staticmethod(lambda image: np.ones(image.shape[:2], bool))

    for kind in (own, Everywhere):
        augment = A.Compose([A.HorizontalFlip(p=0.5), kind(label=3, p=0.9)])
        A.save(augment, f"pipeline.{form}", data_format=form)
        for again in (
            A.load(f"pipeline.{form}", data_format=form),
            A.from_dict(A.to_dict(augment)),
        ):
            assert type(again[1]) is kind
            assert A.to_dict(again) == A.to_dict(augment)
            outs = []
            for one in (augment, again):
                one.set_random_seed(1)
                outs.append(one(image=film, mask=np.zeros_like(film)))
            assert (outs[0]["mask"] == 3).any()
            assert again[1].params["lungs"].all() == (kind is Everywhere)
            for key in ("image", "mask"):
                np.testing.assert_array_equal(outs[0][key], outs[1][key])
    with pytest.raises(TypeError, match="segment"):  # which could not be saved
        own(segment=ap.lung_mask)


def test_albumentations_shares_a_paste_among_images(page):
    names = page("albumentations")
    A, own = names["A"], names["AnatPaste"]
    pair = [phantom_radiograph(128, rng=i) for i in range(2)]
    targets = {"other": "image", "marks": "mask"}
    augment = A.Compose([own(p=1)], additional_targets=targets, seed=0, strict=True)
    zeros = np.zeros_like(pair[0])
    out = augment(image=pair[0], other=pair[1], mask=zeros, marks=zeros[..., None])
    region = out["mask"] == 1
    np.testing.assert_array_equal(out["marks"][..., 0], out["mask"])
    for key, film in zip(("image", "other"), pair, strict=True):
        assert (out[key] != film).any()
        assert not ((out[key] != film) & ~region).any()
    for images in (pair, np.stack(pair), np.stack(pair)[..., None]):
        augment.set_random_seed(0)
        batch_out = augment(images=images, masks=[zeros, zeros])
        assert type(batch_out["images"]) is type(images)
        expected = np.reshape([out["image"], out["other"]], np.shape(images))
        np.testing.assert_array_equal(batch_out["images"], expected)
        np.testing.assert_array_equal(batch_out["masks"], [region, region])


def test_albumentations_composes_it(page):
    names = page("albumentations")
    A, own, film = names["A"], names["AnatPaste"], names["film"]
    inner = A.Sequential([own(p=1)], p=1)
    for outer in (A.OneOf([own(p=1), own(p=1)], p=1), A.SomeOf([own(p=1)] * 2, n=1), inner):
        out = A.Compose([outer], seed=0)(image=film, mask=np.zeros_like(film))
        changed = out["image"] != film
        assert changed.any()
        assert not (changed & (out["mask"] == 0)).any()


@pytest.mark.parametrize("seed", [0, None])
def test_albumentations_seeds_no_workers(page, seed):
    names = page("albumentations")
    A, own, film = names["A"], names["AnatPaste"], phantom_radiograph(64, rng=0)

    class Films(torch.utils.data.Dataset):
        augment = A.Compose([A.HorizontalFlip(p=0.5), own(p=1)], seed=seed)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return self.augment(image=film)["image"]

    def epoch(seed_worker):  # of one image per worker
        options = {"num_workers": 2, "multiprocessing_context": "fork"}
        loader = torch.utils.data.DataLoader(Films(), None, worker_init_fn=seed_worker, **options)
        return list(loader)

    def draw(seed_worker):
        torch.manual_seed(0)
        return epoch(seed_worker) + epoch(seed_worker)

    alike = draw(None)  # what the page says of albumentations: once mended there, mend the page
    assert all((one == alike[0]).all() for one in alike)
    seeded = draw(names["seed_worker"])
    assert len({one.numpy().tobytes() for one in seeded}) == 4
    for one, again in zip(seeded, draw(names["seed_worker"]), strict=True):
        np.testing.assert_array_equal(one, again)


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
    K, own, images = names["K"], names["AnatPaste"], names["images"]
    assert names["out"].shape == names["moved"].shape == images.shape
    torch.testing.assert_close(names["again"], names["out"], rtol=0, atol=0)

    flip = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=1), own(p=1), data_keys=["input", "mask"]
    )
    marks = (images > 0.5).float()
    out, moved = flip(images, marks)
    assert (out != images.flip(-1)).flatten(1).any(1).all()
    torch.testing.assert_close(moved, marks.flip(-1), rtol=0, atol=0)

    # The shorter form.
    only = batch.Select(batch.AnatPaste(p=1), "images")
    alone = K.AugmentationSequential(only, data_keys=["input"])(images)
    assert (alone != images).flatten(1).any(1).all()


def test_kornia_replays_it(page):
    names = page("kornia")
    K, own, images = names["K"], names["AnatPaste"], films(6)[:, None] / 255
    augment = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5), K.RandomRotation(10, p=0.5), own(p=0.5), data_keys=["input"]
    )
    torch.manual_seed(0)
    drawn = [(augment(images), augment._params) for _ in range(2)]
    assert (drawn[0][0] != drawn[1][0]).any()
    for out, params in drawn:
        assert 0 < params[-1].data["batch_prob"].sum() < 6
        torch.testing.assert_close(augment(images, params=params), out, rtol=0, atol=0)
        assert (augment(images) != out).any()
    torch.manual_seed(0)
    torch.testing.assert_close(augment(images), drawn[0][0], rtol=0, atol=0)

    # Seeds, not places: on other images the pastes land in their lungs.
    alone = own(p=1)
    alone(images)
    mirrored = images.flip(-1)
    changed = alone(mirrored, params=alone._params) != mirrored
    assert changed.flatten(1).any(1).all()
    assert not (changed & ~batch.lung_mask(mirrored)).any()


def test_kornia_pastes_alike_or_not(page):
    names = page("kornia")
    images = (films(1)[:, None] / 255).expand(4, -1, -1, -1)
    own = names["AnatPaste"]
    for same in (True, False):
        out = own(p=1, same_on_batch=same)(images)
        assert (out != images).flatten(1).any(1).all()
        assert len({one.numpy().tobytes() for one in out}) == (1 if same else 4)


def test_kornia_pastes_with_probability_p(page):
    names = page("kornia")
    own, images = names["AnatPaste"], films(8, 64)[:, None] / 255
    augment = own(p=0.5)
    torch.manual_seed(0)
    images[0, 0, 0, 0] = float("nan")  # what is skipped may be anything
    gate = torch.tensor([0.0, 1, 0, 1, 1, 0, 1, 1])
    params = augment.forward_parameters(images.shape) | {"batch_prob": gate}
    inputs = images.clone().requires_grad_()
    out = augment(inputs, params=params)
    same = torch.isclose(out, images, rtol=0, atol=0, equal_nan=True).flatten(1).all(1)
    assert same.tolist() == [not pasted for pasted in gate.tolist()]

    # As the page says: gradients flow where nothing is pasted, and there alone.
    out.nan_to_num().sum().backward()
    assert inputs.grad[5].eq(1).all()
    assert inputs.grad[gate > 0].eq(0).all()
    assert not own(p=1)(inputs[1:]).requires_grad


def test_kornia_moves_no_annotation(page):
    names = page("kornia")
    K, images = names["K"], films(2)[:, None] / 255
    boxes = torch.tensor([[[3.0, 4, 50, 60]], [[0.0, 0, 127, 127]]])
    points = torch.rand(2, 5, 2) * 100
    for p in (0.5, 1):
        keys = ["input", "mask", "bbox_xyxy", "keypoints", "class"]
        augment = K.AugmentationSequential(names["AnatPaste"](p=p), data_keys=keys)
        given = (images, (images > 0.5).float(), boxes, points, torch.tensor([0, 1]))
        for before, after in zip(given[1:], augment(*given)[1:], strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_kornia_takes_every_image(page, dtype, channels):
    own = page("kornia")["AnatPaste"]
    images = (films(2).to(dtype) / 255)[:, None].expand(-1, channels, -1, -1)
    before = images.clone()
    out = own(p=1)(images)
    assert (out.shape, out.dtype) == (images.shape, dtype)
    assert (out != images).flatten(1).any(1).all()
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(images, before)
    assert own(p=1, keepdim=True)(images[0]).shape == images.shape[1:]
    assert own(p=1)(images[0]).shape == (1, *images.shape[1:])


def test_kornia_crops_in_front(page):
    """A crop inside of kornia's container leaves the mask behind, one in front does not."""
    names = page("kornia")
    K = names["K"]

    def agree(images, masks):
        return ((images > 0.5) == (masks > 0.5)).float().mean()

    flip = K.AugmentationSequential(K.RandomHorizontalFlip(p=1), data_keys=["input", "mask"])
    assert agree(*flip(names["images"], names["masks"])) > 0.95
    crop = batch.Select(batch.LungCrop(128), "images")
    inside = K.AugmentationSequential(crop, data_keys=["input", "mask"])
    images = films(2)[:, None] / 255
    assert agree(*inside(images, (images > 0.5).float())) < 0.9


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
    raised = tio.ToCanonical()(subject).film.data[0, ..., 0].T
    np.testing.assert_array_equal(raised, upright[::-1, ::-1])  # as the page warns
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
