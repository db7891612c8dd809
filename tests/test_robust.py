import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anatpaste_aug import anatpaste
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.masks import robust
from anatpaste_aug.masks.robust import lung_mask_robust

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
DTYPES = ("uint8", "uint16", "int16", "int32", "float32", "float64")


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def chest(height, width=None):
    """A drawn chest, 0..1, and its lungs: body, two blunt half-ellipses, spine, ribs, stomach."""
    width = width or height
    y, x = np.mgrid[:height, :width]
    y, x = (y + 0.5) / height, (x + 0.5) / width

    def soft(inside):
        return 1 / (1 + np.exp(np.clip(-inside / 0.006, -50, 50)))

    image = soft(0.46 - np.abs(x - 0.5)) * (0.7 + 0.2 * np.exp(-(((x - 0.5) / 0.06) ** 2)))
    across = (np.abs(x - 0.5) - 0.2) / np.where(np.abs(x - 0.5) > 0.2, 0.17, 0.13)
    along = (y - 0.62) / 0.47
    lungs = 0.15 * (1 - (np.abs(across) ** 2.6 + np.abs(along) ** 2.6) ** (1 / 2.6))
    diaphragm = 0.68 + 2.5 * (np.abs(x - 0.5) - 0.15) ** 2 - y
    lungs = soft(np.minimum(lungs, diaphragm))
    ribs = 0.06 * np.sin(40 * y + 12 * np.abs(x - 0.5))
    stomach = soft(0.05 - np.hypot(x - 0.68, y - 0.88))
    return (image + ribs * lungs) * (1 - 0.65 * lungs) * (1 - 0.5 * stomach), lungs > 0.5


def as_type(picture, dtype):
    """The picture over a fair part of the range of this dtype."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return (picture * 3 - 1).astype(kind)
    low, high = {"int16": (-1024, 3071), "int32": (-(2**30), 2**30)}.get(
        dtype, (0, np.iinfo(kind).max)
    )
    return np.round(low + picture * (high - low)).astype(kind)


@pytest.fixture(scope="module")
def drawn():
    picture, lungs = chest(256)
    return as_type(picture, "uint8"), lungs


def test_finds_both_lungs_and_nothing_else(drawn):
    image, lungs = drawn
    mask = lung_mask_robust(image)
    assert mask.shape == image.shape
    assert mask.dtype == bool
    assert dice(mask, lungs) > 0.88
    assert not mask[:, 122:134].any()  # spine
    assert not mask[215:, 160:190].any()  # stomach
    assert not mask[:, :10].any()  # air
    assert not mask[:, -10:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_channel_count_gives_the_same_mask(drawn, dtype):
    picture, _ = chest(256)
    image = as_type(picture, dtype)
    before = image.copy()
    mask = lung_mask_robust(image)
    assert dice(mask, lung_mask_robust(drawn[0])) > 0.98
    np.testing.assert_array_equal(image, before)
    assert dice(lung_mask_robust(np.stack([image] * 3, -1)), mask) > 0.99


def in_every_dtype(image):
    """The same picture on other scales, each without rounding."""
    return {
        "uint16": image.astype(np.uint16) * 257,
        "int16": image.astype(np.int16) * 9 - 1024,
        "int32": image.astype(np.int32) * 1_000_003 - 2**27,
        "float32": image.astype(np.float32),
        "float64": image.astype(np.float64) * 2.0**-80 - 2.0**-75,
    }


@pytest.mark.parametrize("size", [(256, 256), (600, 520), (40, 64)])
def test_one_picture_gives_one_mask_in_every_dtype(size):
    image = (20 + 200 * chest(*size)[0]).astype(np.uint8)  # not from 0 to 255
    mask = lung_mask_robust(image)
    assert mask.any()
    for other in in_every_dtype(image).values():
        np.testing.assert_array_equal(lung_mask_robust(other), mask)


def test_one_radiograph_gives_one_mask_in_every_dtype(montgomery):
    for image in montgomery[0][::10]:
        mask = lung_mask_robust(image)
        for other in in_every_dtype(image).values():
            np.testing.assert_array_equal(lung_mask_robust(other), mask)
        rounded = (image / 255).astype(np.float32) * 2 - 1
        assert dice(lung_mask_robust(rounded), mask) > 0.995


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "I", "F"])
def test_pillow_images(drawn, mode):
    image = Image.fromarray(drawn[0])
    if mode == "I;16":
        image = Image.fromarray(drawn[0].astype(np.uint16) * 257)
    image = image if image.mode == mode else image.convert(mode)
    assert dice(lung_mask_robust(image), lung_mask_robust(drawn[0])) > 0.98


def test_same_anatomy_at_any_scale():
    masks = {size: lung_mask_robust(as_type(chest(size)[0], "uint8")) for size in (128, 512, 1024)}
    for size in (128, 512):
        step = 1024 // size
        assert dice(masks[1024][step // 2 :: step, step // 2 :: step], masks[size]) > 0.97
    tiny, lungs = chest(16)
    assert dice(lung_mask_robust(as_type(tiny, "uint8")), lungs) > 0.75


@pytest.mark.parametrize("shape", [(200, 400), (400, 200), (301, 257)])
def test_stretched(shape):
    picture, lungs = chest(*shape)
    assert dice(lung_mask_robust(as_type(picture, "uint8")), lungs) > 0.88


@pytest.mark.parametrize(
    "change",
    [
        lambda a: 255 - a,
        lambda a: (255 * (a / 255) ** 0.6).astype(np.uint8),
        lambda a: (255 * (a / 255) ** 1.6).astype(np.uint8),
        lambda a: (100 + a // 3).astype(np.uint8),
    ],
    ids=["inverted", "gamma 0.6", "gamma 1.6", "low contrast"],
)
def test_gray_scale_does_not_matter(drawn, change):
    image, _ = drawn
    assert dice(lung_mask_robust(change(image)), lung_mask_robust(image)) > 0.95


def test_mirrored(drawn):
    image, lungs = drawn
    mask = lung_mask_robust(image[:, ::-1])
    assert dice(mask, lungs[:, ::-1]) > 0.88


@pytest.mark.parametrize("value", [0, 255])
def test_letterbox_bars(drawn, value):
    image, _ = drawn
    alone = lung_mask_robust(image)
    sides = np.pad(image, ((0, 0), (90, 60)), constant_values=value)
    mask = lung_mask_robust(sides)
    assert dice(mask[:, 90:-60], alone) > 0.91
    assert not mask[:, :90].any()
    mask = lung_mask_robust(np.pad(image, ((40, 110), (0, 0)), constant_values=value))
    assert dice(mask[40:-110], alone) > 0.91


def test_burned_in_letters(drawn):
    image, lungs = drawn[0].copy(), drawn[1]
    image[8:30, 10:60:2] = 255
    image[230:250, 5:90:3] = 255
    assert dice(lung_mask_robust(image), lungs) > 0.85


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0, 7])
def test_constant_image_gives_an_empty_mask(dtype, value):
    mask = lung_mask_robust(np.full((40, 70), value, dtype))
    assert mask.shape == (40, 70)
    assert not mask.any()


def hostile():
    rng = np.random.default_rng(0)
    dot = np.zeros((900, 700), np.uint8)
    dot[300, 200] = 255
    huge = rng.normal(size=(50, 60))
    hand = np.zeros((256, 256), np.uint8)
    hand[120:] = 150
    for x in range(20, 230, 45):
        hand[20:140, x : x + 25] = 200
    ramp = np.arange(2**14, dtype=np.int32).reshape(128, 128)
    return {
        "noise": rng.integers(0, 256, (256, 256), np.uint8),
        "dot": dot,
        "two values": np.tile(np.array([[0, 1], [1, 0]], np.uint8), (40, 40)),
        "half": np.repeat(np.array([[0, 255]], np.uint8), 100, 1).repeat(90, 0),
        "hand": hand,
        "ramp": ramp,
        "lateral": as_type(chest(256)[0], "uint8")[:, :128],
        "line": rng.random((16, 3000), np.float32),
        "column": rng.random((3000, 16)),
        "smallest": rng.random((16, 16)),
        "largest floats": np.clip(huge, -1, 1) * 1e30,
        "smallest floats": np.abs(huge) * 5e-324,
        "far from zero": 1e15 + huge,
        "integer extremes": np.where(huge > 0, 2**31 - 1, -(2**31)).astype(np.int32),
        "reversed strides": rng.random((64, 80))[::-1, ::2],
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile_images_are_answered_quietly(name):
    image = hostile()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "lung_mask_robust found no upright pair of lungs")
        mask = lung_mask_robust(image)
    assert mask.shape == image.shape
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, lung_mask_robust(image))


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(16, 300),
    width=st.integers(16, 300),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
    blocks=st.integers(1, 60),
)
def test_any_legal_image_gives_a_mask(height, width, dtype, seed, blocks):
    rows, columns = np.arange(height) // blocks, np.arange(width) // blocks
    picture = np.random.default_rng(seed).random((rows[-1] + 1, columns[-1] + 1))
    image = as_type(picture[np.ix_(rows, columns)], dtype)
    image.setflags(write=False)
    mask = lung_mask_robust(image)
    assert mask.shape == image.shape
    assert mask.dtype == bool


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((40, 40), bool), TypeError, "dtype.*bool"),
        (np.zeros((40, 40), np.complex64), TypeError, "dtype.*complex64"),
        ([[0, 1], [1, 0]], TypeError, "list"),
        (Image.new("P", (40, 40)), TypeError, "mode.*'P'"),
        (np.zeros(40), ValueError, r"shape.*\(40,\)"),
        (np.zeros((40, 40, 4)), ValueError, r"shape.*\(40, 40, 4\)"),
        (np.zeros((2, 40, 40, 3)), ValueError, "shape"),
        (np.zeros((0, 40)), ValueError, "16 pixels"),
        (np.zeros((15, 40)), ValueError, "16 pixels"),
        (np.full((40, 40), np.nan), ValueError, "finite"),
        (np.full((40, 40), np.inf, np.float32), ValueError, "finite"),
    ],
)
def test_errors(image, error, message):
    with pytest.raises(error, match=message):
        lung_mask_robust(image)


TURNS = {
    "transposed": lambda a: a.T,
    "turned by 90": lambda a: np.rot90(a),
    "turned by 180": lambda a: np.rot90(a, 2),
    "turned by 270": lambda a: np.rot90(a, 3),
    "upside down": lambda a: a[::-1],
}
NO_LUNGS = "found no upright pair of lungs: .* neither turned nor transposed"


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_upright_lungs_are_found_quietly(size):
    for seed in range(3):
        image = phantom_radiograph(size, rng=seed, abnormal=seed == 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mask = lung_mask_robust(image)
            for other in (image[:, ::-1], 255 - image, np.pad(image, ((0, 0), (size // 5, 0)))):
                lung_mask_robust(other)
        same, quality = lung_mask_robust(image, return_quality=True)
        np.testing.assert_array_equal(same, mask)
        assert 0.5 < quality <= 1


@pytest.mark.parametrize("turn", TURNS)
def test_turned_radiographs_are_warned_about(turn):
    for seed in range(3):
        image = TURNS[turn](phantom_radiograph(256, rng=seed))
        with pytest.warns(UserWarning, match=NO_LUNGS):
            mask = lung_mask_robust(image)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            same, quality = lung_mask_robust(image, return_quality=True)
        np.testing.assert_array_equal(same, mask)
        assert 0 <= quality < 0.5


@pytest.mark.parametrize("name", ["noise", "two values", "half", "ramp", "lateral"])
def test_other_pictures_are_warned_about(name):
    with pytest.warns(UserWarning, match=NO_LUNGS):
        lung_mask_robust(hostile()[name])


def test_an_empty_mask_is_warned_about():
    with pytest.warns(UserWarning, match=NO_LUNGS):
        lung_mask_robust(np.zeros((64, 64)))
    assert lung_mask_robust(np.zeros((64, 64)), return_quality=True)[1] < 0.01


def test_each_place_warns_once_by_python_s_own_filter():
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(5):
            lung_mask_robust(rng.random((64, 64)))
        lung_mask_robust(rng.random((64, 64)))
    assert [one.filename for one in seen] == [__file__, __file__]
    with warnings.catch_warnings(record=True) as seen:  # as a segmenter: once for all images
        warnings.simplefilter("default")
        for seed in range(5):
            anatpaste(rng.random((64, 64)), seed, segment=lung_mask_robust)
    assert len(seen) == 1


def test_return_quality_must_be_a_flag(drawn):
    with pytest.raises(TypeError, match="return_quality"):
        lung_mask_robust(drawn[0], return_quality=1)


def test_radiographs_are_warned_about_when_turned_and_hardly_ever_upright(montgomery):
    """The set of the fit is left out: every first adult, and all but the children's test set."""
    images = montgomery[0][1::2]
    children = sorted((DATA / "zhanglab224" / "test").glob("*/*"))[::4]
    images += [np.asarray(Image.open(file).convert("L")) for file in children]

    def share(change):
        results = [lung_mask_robust(change(a), return_quality=True)[1] for a in images]
        return np.mean(np.array(results) < 0.5)

    assert share(lambda a: a) <= 0.01
    for turn in TURNS.values():
        assert share(turn) >= 0.95


def test_prior_is_small_and_sound():
    file = Path(robust.__file__).with_name("lung_prior.npz")
    assert file.stat().st_size < 8000
    prior = robust.default_prior()
    np.testing.assert_allclose(prior.mean.mean(0), 0, atol=1e-3)
    flat = prior.modes.reshape(len(prior.modes), -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(len(flat)), atol=5e-3)
    assert (np.diff(prior.deviations) <= 0).all()
    mirrored = np.roll(prior.mean * [-1, 1], 40, axis=0)
    np.testing.assert_allclose(mirrored, prior.mean, atol=2e-3)


@pytest.fixture(scope="module")
def montgomery():
    folder = DATA / "montgomery256"
    if not folder.is_dir():
        pytest.skip("the Montgomery County radiographs are not in ../shared")
    files = sorted((folder / "images").glob("*.png"))
    images = [np.array(Image.open(f).convert("L")) for f in files]
    masks = [np.array(Image.open(folder / "masks" / f.name).convert("L")) > 127 for f in files]
    return images, masks


@pytest.fixture(scope="module")
def make_lung_prior():
    if not (ROOT / "benchmarks").exists():
        pytest.skip("needs the source tree: the prior is made by a script in benchmarks")
    pytest.importorskip("skimage", reason="needs scikit-image: the prior is made with it")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from benchmarks import make_lung_prior

        yield make_lung_prior


def test_agrees_with_radiologists_whom_the_prior_did_not_see(montgomery, make_lung_prior):
    images, masks = montgomery
    scores = []
    for train, test in ((0, 1), (1, 0)):
        prior = make_lung_prior.build_prior(images[train::2], masks[train::2])
        for image, mask in zip(images[test::2], masks[test::2], strict=True):
            scores.append(dice(robust.outline_lungs(image, prior)[0], mask))
    assert np.mean(scores) > 0.945
    assert np.percentile(scores, 5) > 0.9
    assert min(scores) > 0.75


@pytest.mark.parametrize("change", ["inverted", "cropped", "bars"])
def test_agrees_with_radiologists_on_changed_images(montgomery, change):
    scores = []
    for image, mask in zip(*(part[::3] for part in montgomery), strict=True):
        if change == "inverted":
            image = 255 - image
        elif change == "cropped":
            image, mask = (np.ascontiguousarray(a[25:-25, 25:-25]) for a in (image, mask))
        else:
            image, mask = (np.pad(a, ((0, 0), (80, 80))) for a in (image, mask))
        scores.append(dice(lung_mask_robust(image), mask))
    assert np.mean(scores) > 0.93
    assert np.percentile(scores, 5) > 0.84


def test_stored_prior_is_what_the_script_makes(montgomery, make_lung_prior):
    made, stored = make_lung_prior.build_prior(*montgomery), robust.default_prior()
    for name in ("mean", "deviations", "profile"):
        np.testing.assert_allclose(getattr(made, name), getattr(stored, name), atol=2e-3)
    flat = made.modes.reshape(len(made.modes), -1), stored.modes.reshape(len(made.modes), -1)
    np.testing.assert_allclose(np.abs((flat[0] * flat[1]).sum(1)), 1, atol=0.02)


def test_children_are_never_without_lungs():
    files = sorted((DATA / "zhanglab_fullres").glob("*.jpeg"))
    files += sorted((DATA / "zhanglab224" / "valid").glob("*/*.jpeg"))
    if not files:
        pytest.skip("the pediatric radiographs are not in ../shared")
    for file in files:
        mask = lung_mask_robust(Image.open(file).convert("L"))
        half = mask.shape[1] // 2
        assert 0.1 < mask.mean() < 0.6, file.name
        # Both sides hold a lung, though a rotated child may lie off the middle.
        assert min(mask[:, :half].sum(), mask[:, half:].sum()) > 0.15 * mask.sum(), file.name
