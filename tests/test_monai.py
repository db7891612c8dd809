"""The MONAI transforms, with MONAI."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from PIL import Image

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("torchvision", reason="needs torchvision")
pytest.importorskip("monai", reason="needs monai: the extra `clients`")
pytestmark = pytest.mark.filterwarnings("default")

from monai import transforms as mt  # noqa: E402
from monai.data import (  # noqa: E402
    ArrayDataset,
    CacheDataset,
    DataLoader,
    MetaTensor,
    PersistentDataset,
    ThreadDataLoader,
)

from anatpaste_aug import operations  # noqa: E402
from anatpaste_aug.data import read_image  # noqa: E402
from anatpaste_aug.monai import (  # noqa: E402
    LungCrop,
    LungCropd,
    LungMask,
    LungMaskd,
    RandAnatPaste,
    RandAnatPasted,
    RandOpacity,
    RandOpacityd,
    RandOperation,
    RandOperationd,
)
from tests.hostile import dicom  # noqa: E402

BOTH = ["image", "lungs"]
FORMS = {  # of arrays, and the same under keys
    "mask": (LungMask(), LungMaskd("image", mask_key="image")),
    "crop": (LungCrop(margin=0.02), LungCropd("image", margin=0.02)),
    "paste": (RandAnatPaste(prob=0.8), RandAnatPasted("image", prob=0.8)),
    "opacity": (RandOpacity(prob=0.8), RandOpacityd("image", prob=0.8)),
}
RANDOM = [name for name in FORMS if isinstance(FORMS[name][0], mt.Randomizable)]


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    """Seed the state that MONAI's random transforms share where nobody sets one."""
    monkeypatch.setattr(mt.Randomizable, "R", np.random.RandomState(0))


def sample(size=128, rng=0, **more):
    image = torch.from_numpy(phantom_radiograph(size, rng=rng))[None].float()
    return {"image": MetaTensor(image, meta={"patient": 7, "where": ["ward"]}), "n": rng, **more}


def flat(data):
    return {k: np.asarray(v) for k, v in data.items() if isinstance(v, torch.Tensor)}


def assert_same(one, other):
    assert flat(one).keys() == flat(other).keys()
    for key, value in flat(one).items():
        np.testing.assert_array_equal(value, flat(other)[key])


def of_kind(image, kind):
    return {"meta": image, "tensor": image.as_tensor(), "array": image.numpy()}[kind]


def drawn(transform, image, seed=0, times=4):
    """Return what a transform, seeded, makes of the same image several times."""
    if isinstance(transform, mt.Randomizable):
        transform.set_random_state(seed)
    return [transform(image) for _ in range(times)]


def equal(ones, others):
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["meta", "tensor", "array"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_what_monai_asks_of_every_transform(form, kind, dtype):
    array, dictionary = copy.deepcopy(FORMS[form])
    given = sample()["image"].to(dtype)
    before = given.clone()
    image = of_kind(given, kind)
    outs = drawn(array, image)
    np.testing.assert_array_equal(image, before)  # nothing is changed in place
    for out in outs:
        assert type(out) is MetaTensor
        assert out.dtype == (torch.bool if form == "mask" else dtype)
        assert out.ndim == 3
        if kind == "meta":
            assert out.meta["patient"] == 7
    assert equal(outs, drawn(array, image))
    for copied in (copy.deepcopy(array), pickle.loads(pickle.dumps(array))):
        assert equal(outs, drawn(copied, image))
    full = {"image": image, "n": 3}
    under = drawn(dictionary, full)
    assert equal(outs, [one["image"] for one in under])
    assert full == {"image": image, "n": 3}
    assert all(one.keys() == full.keys() and one["n"] == 3 for one in under)
    if form in RANDOM:
        assert not equal(outs, drawn(array, image, seed=1))
        assert not equal(outs[:-1], outs[1:])  # one after the other they differ
    with pytest.raises(ValueError, match="shape"):
        drawn(array, torch.zeros(2, 32, 32))


@pytest.mark.parametrize("form", RANDOM)
@pytest.mark.parametrize("keyed", [False, True])
def test_containers_reach_the_random_state(form, keyed):
    step = copy.deepcopy(FORMS[form][keyed])
    given = sample() if keyed else sample()["image"]
    for around in (mt.Compose, mt.OneOf, mt.RandomOrder, mt.SomeOf):
        outs = drawn(mt.Compose([around([step])]), given, seed=4)
        again = drawn(mt.Compose([around([step])]), given, seed=4)
        other = drawn(mt.Compose([around([step])]), given, seed=5)
        first, same, changed = (
            [o["image"] if keyed else o for o in x] for x in (outs, again, other)
        )
        assert equal(first, same)
        assert not equal(first, changed)


def test_array_forms_of_pastes():
    image = sample()["image"]
    lungs = LungMask(segment=ap.lung_mask_robust)(image)
    paste = RandAnatPaste(prob=0.5, return_mask=True)
    assert torch.equal(paste(image, randomize=False)[0], image)  # nothing has been drawn yet
    pasted = 0
    for _ in range(8):
        out, region = paste(image, lungs.float() * 0.6)
        again, _ = paste(image, lungs, randomize=False)
        assert torch.equal(out, again)
        assert (region.shape, region.dtype) == (image.shape, torch.bool)
        assert not ((out != image) & ~region).any()
        assert not (region & ~lungs).any()
        pasted += bool(region.any())
    assert 0 < pasted < 8
    out, region = RandOpacity(prob=0, return_mask=True)(image)
    assert torch.equal(out, image)
    assert not region.any()

    class RandScar(RandOperation):
        operation = operations.CutPasteScar

    assert not torch.equal(RandScar(prob=1)(image), image)
    for wrong, mask in ((RandScar(prob=0), lungs), (RandOpacity(0, segment=ap.lung_mask), lungs)):
        with pytest.raises(ValueError, match=r"mask (must be None|and segment must not)"):
            wrong(image, mask)
    with pytest.raises(ValueError, match="mask must have the image's shape"):
        RandOpacity(prob=0)(image, torch.zeros(1, 32, 31))  # whatever is drawn
    with pytest.raises(TypeError, match="return_mask must be True or False"):
        RandOpacity(return_mask=1)


def test_the_array_form_of_the_crop():
    image = sample()["image"]
    lungs = LungMask()(image)
    crop = LungCrop(margin=0.1, square=True)
    out = crop(image, lungs)
    wanted = ap.lung_crop(np.asarray(image)[0], mask=np.asarray(lungs)[0], margin=0.1, square=True)
    np.testing.assert_array_equal(out[0], wanted)
    back = crop.inverse(out)
    inside = back != 0
    assert back.shape == image.shape
    np.testing.assert_array_equal(back[inside], image[inside])
    np.testing.assert_array_equal(
        crop(image)[0], ap.lung_crop(np.asarray(image)[0], margin=0.1, square=True)
    )
    with pytest.raises(ValueError, match="mask and segment must not be given together"):
        LungCrop(segment=ap.lung_mask)(image, lungs)


@pytest.mark.parametrize("wanted", [True, None])
def test_lazy_crops_give_the_same(wanted):
    given = LungMaskd("image", mask_key="lungs")(sample())
    plain = LungCropd("image", mask_key="lungs")(given)
    keyed = LungCropd("image", mask_key="lungs", lazy=True)
    waiting = keyed(given)
    for key in BOTH:
        assert len(waiting[key].pending_operations) == 1
        assert waiting[key].shape == given[key].shape
        assert waiting[key].peek_pending_shape() == plain[key].shape[1:]
    # None: what each transform says of itself; True: all that can.
    done = mt.Compose([keyed], lazy=wanted)(given)
    assert_same(done, plain)
    assert_same(mt.Compose([keyed], lazy=False)(given), plain)
    alone = mt.Compose([LungCrop(lazy=True)], lazy=wanted)(given["image"])
    np.testing.assert_array_equal(alone, LungCrop()(given["image"]))
    with pytest.raises(TypeError, match="lazy must be True or False"):
        LungCropd("image", lazy=1)


def test_workers_draw_for_themselves():
    images = [sample()["image"]] * 8
    augment = mt.Compose([RandAnatPaste(prob=1)])
    loader = DataLoader(ArrayDataset(images, augment), batch_size=1, num_workers=2)
    outs = torch.cat(list(loader))
    assert len({out.numpy().tobytes() for out in outs}) == 8


def pipeline(*before):
    return mt.Compose(
        [
            *before,
            LungMaskd("image", mask_key="lungs"),
            LungCropd("image", mask_key="lungs"),
            mt.Resized(BOTH, (96, 96), mode=["bilinear", "nearest"]),
            RandAnatPasted("image", prob=0.7, mask_key="lungs", region_key="region"),
        ]
    )


@pytest.mark.parametrize("kind", ["meta", "tensor", "array"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pastes_equal_the_function_s(kind, channels):
    given = sample()
    given["image"] = image = of_kind(given["image"].repeat(channels, 1, 1), kind)
    before = copy.deepcopy(given)
    masked = LungMaskd("image", mask_key="lungs")(given)
    paste = RandAnatPasted("image", prob=1, mask_key="lungs", region_key="region", blur=3)
    out = paste.set_random_state(5)(masked)
    assert_same(given, before)  # nothing is changed in place
    assert isinstance(out["image"], MetaTensor)  # as MONAI's own transforms give

    plain = np.asarray(image).transpose(1, 2, 0)
    plain = plain[..., 0] if channels == 1 else np.ascontiguousarray(plain)
    lungs = ap.lung_mask(plain)
    np.testing.assert_array_equal(masked["lungs"][0], lungs)
    params = ap.sample_paste(lungs, rng=paste.seed, blur=3)
    wanted, region = ap.apply_paste(plain, params, lungs, return_mask=True)
    np.testing.assert_array_equal(out["image"], wanted.reshape(128, 128, -1).transpose(2, 0, 1))
    np.testing.assert_array_equal(out["region"][0], region)
    assert out["region"].dtype == torch.bool


def test_what_a_meta_tensor_carries_is_kept():
    given = mt.Compose([mt.Flipd("image", 0), mt.Spacingd("image", (0.5, 0.5))])(sample(96))
    out = pipeline()(given)
    for key in ("image", "lungs", "region"):
        assert isinstance(out[key], MetaTensor)
        assert out[key].meta["patient"] == 7
        names = [one["class"] for one in out[key].applied_operations]
        assert names == ["Flip", "SpatialResample", "LungCrop", "Resize"]
    torch.testing.assert_close(out["image"].affine, out["region"].affine)
    out = RandAnatPasted("image", prob=1, region_key="region")(given)
    for key in ("image", "region"):
        out[key].meta["where"].append("changed")
        assert given["image"].meta["where"] == ["ward"]


def test_compose_s_random_state_is_followed():
    augment = pipeline()
    given = sample()
    runs = []
    for seed in (1, 1, 2):
        augment.set_random_state(seed)
        torch.manual_seed(seed * 10)  # of no influence
        runs.append([augment(given) for _ in range(4)])
    for one, other in zip(runs[0], runs[1], strict=True):
        assert_same(one, other)
    assert any((a["image"] != b["image"]).any() for a, b in zip(runs[0], runs[2], strict=True))
    assert 0 < sum(bool(one["region"].any()) for one in runs[0] + runs[2]) < 8


@pytest.mark.parametrize("prob", [0, 1])
def test_the_region_is_empty_where_nothing_is_pasted(prob):
    out = RandOpacityd("image", prob=prob, region_key="region")(sample())
    assert bool(out["region"].any()) == bool(prob)
    changed = (out["image"] != sample()["image"])[0]
    assert not (changed & ~out["region"][0]).any()


def test_keys_share_one_draw():
    image = sample()["image"]
    out = RandAnatPasted(["a", "b", "gone"], prob=1, allow_missing_keys=True)(
        {"a": image, "b": image.clone(), "c": image}
    )
    np.testing.assert_array_equal(out["a"], out["b"])
    assert (out["a"] != image).any()
    assert out["c"] is image
    nothing = RandAnatPasted("gone", prob=1, region_key="region", allow_missing_keys=True)(out)
    assert nothing.keys() == out.keys()


def test_masks_follow_geometric_transforms():
    """After a rotation they are float, between 0 and 1 if interpolated linearly."""
    for mode in ("nearest", "bilinear"):
        augment = mt.Compose(
            [
                LungMaskd("image", mask_key="lungs"),
                mt.Rotated(BOTH, 0.3, mode=["bilinear", mode]),
                RandAnatPasted("image", prob=1, mask_key="lungs", region_key="region"),
            ]
        )
        out = augment(sample())
        assert not (out["region"] & (out["lungs"] <= 0.5)).any()
        assert out["region"].any()


def test_the_crop_cuts_to_the_lungs_and_can_be_undone():
    given = LungMaskd("image", mask_key="lungs", segment=ap.lung_mask_robust)(
        sample(extra=torch.rand(2, 128, 128))
    )
    crop = LungCropd(["image", "extra"], mask_key="lungs", margin=0.1, square=True)
    out = crop(given)
    wanted = ap.lung_crop(np.asarray(given["image"]), margin=0.1, square=True)
    np.testing.assert_array_equal(out["image"], wanted)
    assert out["lungs"].shape == wanted.shape
    assert out["extra"].shape[1:] == wanted.shape[1:]
    assert out["lungs"].sum() == given["lungs"].sum()
    back = crop.inverse(out)
    assert back["image"].shape == given["image"].shape
    np.testing.assert_array_equal(back["lungs"], given["lungs"])

    found = LungCropd("image", margin=0.1, square=True)(given)
    np.testing.assert_array_equal(found["image"], wanted)
    np.testing.assert_array_equal(found["lungs"], given["lungs"])  # not named: not cut
    whole = LungCropd("image", segment=lambda image: np.zeros(image.shape, bool))(given)
    assert whole["image"].shape == given["image"].shape
    assert LungCropd("gone", allow_missing_keys=True)({}) == {}
    turned = LungCropd(["lungs", "image"], mask_key="lungs", margin=0.1, square=True)(given)
    np.testing.assert_array_equal(turned["image"], wanted)  # found in the image, not the mask
    alone = {"lungs": given["lungs"]}
    assert LungCropd("image", mask_key="lungs", allow_missing_keys=True)(alone) == alone


def test_lazy_pipelines_give_the_same():
    augment = pipeline(mt.Flipd("image", 1))
    augment.set_random_state(3)
    eager = augment(sample())
    augment.lazy = True
    augment.set_random_state(3)
    lazy = augment(sample())
    one, other = (part["image"].as_tensor() for part in (lazy, eager))
    assert (one - other).abs().mean() < 2  # resampled once, not twice
    assert lazy["region"].any() == eager["region"].any()


@pytest.mark.parametrize("cache", [CacheDataset, PersistentDataset])
def test_caches_keep_what_is_deterministic_and_nothing_else(cache, tmp_path):
    calls = []

    def segment(image):
        calls.append(image.shape)
        return ap.lung_mask(image)

    films = [sample(rng=i) for i in range(3)]
    before = copy.deepcopy(films)
    augment = mt.Compose(
        [
            LungMaskd("image", mask_key="lungs", segment=segment),
            RandAnatPasted("image", prob=1, mask_key="lungs", region_key="region"),
        ]
    )
    augment.set_random_state(0)
    more = {"progress": False} if cache is CacheDataset else {"cache_dir": tmp_path}
    if cache is PersistentDataset:
        augment.transforms = (LungMaskd("image", "lungs"), augment.transforms[1])
        calls = [None] * 3
    data = cache(films, augment, **more)
    epochs = [[data[i] for i in range(3)] for _ in range(3)]
    assert len(calls) == 3
    for i in range(3):
        assert_same(films[i], before[i])
        assert (epochs[0][i]["image"] != epochs[1][i]["image"]).any()
        np.testing.assert_array_equal(epochs[0][i]["lungs"], epochs[2][i]["lungs"])
        for epoch in epochs:
            changed = epoch[i]["image"] != films[i]["image"]
            assert not (changed & ~epoch[i]["region"]).any()


@pytest.mark.parametrize(
    ("loader", "options"),
    [
        (DataLoader, {}),
        (DataLoader, {"num_workers": 2}),
        (
            DataLoader,  # one worker, once: importing MONAI takes it many seconds
            {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
        ),
        (ThreadDataLoader, {}),
        (ThreadDataLoader, {"num_workers": 2, "use_thread_workers": True}),
    ],
    ids=["alone", "forked", "spawned", "thread", "threads"],
)
def test_loaders(loader, options):
    data = CacheDataset([sample(rng=i) for i in range(4)], pipeline(), progress=False)
    data.transform.set_random_state(0)
    batches = loader(data, batch_size=2, **options)
    epochs = [list(batches) for _ in range(2)]
    for batches in epochs:
        assert len(batches) == 2
        for batch in batches:
            assert isinstance(batch["image"], MetaTensor)
            for key in ("image", "lungs", "region"):
                assert batch[key].shape == (2, 1, 96, 96)
    images = [torch.cat([batch["image"] for batch in batches]) for batches in epochs]
    assert (images[0] != images[1]).any()


def test_transposed_files_are_warned_about(tmp_path):
    Image.fromarray(phantom_radiograph(256, rng=0)).save(tmp_path / "film.png")
    files = {"image": tmp_path / "film.png"}
    mask = LungMaskd("image", segment=ap.lung_mask_robust)
    first = mt.EnsureChannelFirstd("image")
    with pytest.warns(UserWarning, match="neither turned nor transposed .MONAI's readers"):
        mt.Compose([mt.LoadImaged("image"), first, mask])(files)
    good = mt.LoadImaged("image", reader="PILReader", reverse_indexing=False)
    wanted = ap.lung_mask_robust(phantom_radiograph(256, rng=0))
    for steps in (
        [good, first],
        [mt.LoadImaged("image"), first, mt.Transposed("image", (0, 2, 1))],
    ):
        found = mt.Compose([*steps, mask])(files)["lung_mask"]
        np.testing.assert_array_equal(found[0], wanted)


def test_dicom_readers_of_monai_keep_negatives(tmp_path):
    """Why the page reads DICOM with `read_image`: nothing else warns of a negative."""
    pytest.importorskip("pydicom", reason="needs pydicom: the extra `dicom`")
    film = phantom_radiograph(256, rng=0).astype(np.uint16)
    (tmp_path / "film.dcm").write_bytes(dicom(255 - film, photometric="MONOCHROME1"))
    step = [mt.EnsureChannelFirstd("image"), LungMaskd("image", mask_key="lungs")]
    file = {"image": tmp_path / "film.dcm"}
    read = mt.LoadImaged("image", reader="PydicomReader", swap_ij=False)
    negative = mt.Compose([read, *step])(file)
    np.testing.assert_array_equal(negative["image"][0], 255 - film)
    wanted = ap.lung_mask(film.astype(np.float32))
    assert wanted.mean() > 0.1
    assert not (np.asarray(negative["lungs"][0]) & wanted).any()
    cured = mt.Compose([mt.Lambdad("image", lambda path: read_image(path)[None]), step[1]])(file)
    np.testing.assert_array_equal(cured["lungs"][0], wanted)


def test_an_operation_of_one_s_own():
    class RandScard(RandOperationd):
        operation = operations.CutPasteScar

    out = RandScard("image", prob=1, region_key="region", width=(4, 8))(sample())
    assert out["region"].any()
    with pytest.raises(ValueError, match="mask_key must be None where no lungs"):
        RandScard("image", mask_key="lungs")
    with pytest.raises(ValueError, match="segment must be None"):
        RandScard("image", segment=ap.lung_mask)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RandAnatPasted("image", prob=2), ValueError, "prob must lie in 0..1, got 2"),
        (lambda: RandAnatPasted("image", blur=-1), ValueError, "blur must"),
        (lambda: RandAnatPasted("image", segment=3), TypeError, "segment must be callable"),
        (
            lambda: RandAnatPasted("image", mask_key="m", segment=ap.lung_mask),
            ValueError,
            "mask_key and segment must not be given together",
        ),
        (lambda: LungMaskd(["a", "b"]), ValueError, "mask_key must name one key for each"),
        (lambda: LungCropd("image", margin=-1), ValueError, "margin must"),
        (lambda: RandAnatPasted("gone", prob=1)({}), KeyError, "gone"),
        (
            lambda: RandAnatPasted("image", prob=1)({"image": torch.zeros(1, 32, 32, 32)}),
            ValueError,
            "shape",
        ),
        (
            lambda: RandAnatPasted("image", prob=1, mask_key="m")(
                {"image": torch.zeros(1, 32, 32), "m": torch.zeros(1, 32, 31)}
            ),
            ValueError,
            "the mask under 'm' must have the image's shape",
        ),
        (
            lambda: RandAnatPasted(["a", "b"], prob=1)(
                {"a": torch.zeros(1, 32, 32), "b": torch.zeros(1, 32, 31)}
            ),
            ValueError,
            "one size",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
