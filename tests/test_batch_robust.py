"""The batch's robust lung mask against the function, image by image."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import real_data
from PIL import Image, ImageDraw
from test_robust import as_type, chest, dice

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("skimage", reason="needs scikit-image")

from test_batch import FLOATS, INTEGERS, Steering, alone, random_images  # noqa: E402

from anatpaste_aug import batch  # noqa: E402
from anatpaste_aug.batch import robust, tensors  # noqa: E402


def plain(images):
    return robust.robust_plain(images, tensors.everyone(images)).numpy()


def differing(images):
    """Compare the plain form with the function; return for how many images they differ."""
    count = 0
    for image, got in zip(images, plain(images), strict=True):
        expected, _ = ap.lung_mask_robust(alone(image), return_quality=True)
        assert dice(expected, got) >= 0.99
        count += bool((expected != got).any())
    return count


@pytest.mark.parametrize("size", [(256, 256), (300, 411), (97, 64), (64, 150), (31, 40)])
def test_sizes(size):
    pictures = [chest(*size)[0], 1 - chest(*size)[0][:, ::-1], np.zeros(size)]
    pictures[2][size[0] // 10 : -size[0] // 9] = chest(*size)[0][size[0] // 10 : -size[0] // 9]
    arrays = np.stack([as_type(picture, "uint8") for picture in pictures])
    assert differing(torch.from_numpy(arrays)[:, None]) == 0


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_dtypes_and_colours(dtype):
    grey = torch.from_numpy(chest(128)[0])[None, None].expand(2, 3, 128, 128).clone()
    grey[:, 1] *= torch.rand(128, 128, generator=torch.Generator().manual_seed(0))
    images = (grey * (1 if dtype.is_floating_point else 200)).to(dtype)
    assert differing(images) == differing(images[:, :1]) == 0


def test_phantoms_noise_and_constants():
    phantoms = np.stack([phantom_radiograph(160, rng=i, abnormal=i > 1) for i in range(4)])
    assert differing(torch.from_numpy(phantoms)[:, None]) == 0
    flat = torch.zeros(2, 1, 32, 40)
    flat[1] = 7
    assert not plain(flat).any()
    assert plain(flat[:0]).shape == (0, 32, 40)
    noise = random_images((3, 1, 90, 80), torch.float32)
    assert differing(noise) == 0
    noise[0] = torch.nan  # on a GPU nobody looks for it; it must not lead out of the tensors
    assert plain(noise).shape == (3, 90, 80)


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 256])
def test_radiographs(size):
    paths = sorted(real_data("data/zhanglab224").rglob("*.jp*g"))[::6][:300]
    assert len(paths) == 300
    count = 0
    for start in range(0, 300, 20):
        grey = [Image.open(path).convert("L") for path in paths[start : start + 20]]
        arrays = [np.array(image.resize((size, size), Image.Resampling.BILINEAR)) for image in grey]
        count += differing(torch.from_numpy(np.stack(arrays))[:, None])
    assert count <= 3


def test_polygons_are_pillows():
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    wrong = total = 0
    for _ in range(20):
        radius = rng.uniform(10, 30) * (1 + 0.3 * np.sin(rng.integers(1, 6) * angle + rng.random()))
        x, y = rng.uniform(-5, 85) + radius * np.cos(angle), 30 + radius * np.sin(angle) * 0.9
        corners = np.stack([x, y], 1).astype(np.int64)
        canvas = Image.new("L", (80, 60))
        ImageDraw.Draw(canvas).polygon(corners.ravel().tolist(), fill=1)
        expected = np.asarray(canvas) > 0
        rows = torch.arange(60)
        got = robust.fill_polygons(torch.from_numpy(corners)[None], rows, 60, 80)[0].numpy()
        wrong += (got != expected).sum()
        total += expected.sum()
    assert wrong <= total / 10_000


def test_operator_segmenter_and_crop():
    images = torch.from_numpy(np.stack([phantom_radiograph(96, rng=i) for i in range(2)]))[:, None]
    expected = np.stack([ap.lung_mask_robust(image[0].numpy()) for image in images])
    masks = batch.lung_mask_robust(images)
    assert masks.shape == (2, 1, 96, 96)
    np.testing.assert_array_equal(masks[:, 0], expected)
    chosen = torch.tensor([True, False])
    assert robust.robust_masks(images, chosen).any((1, 2)).tolist() == [True, False]
    for segment in (ap.lung_mask_robust, batch.lung_mask_robust):
        torch.manual_seed(0)
        given = batch.AnatPaste(1.0, margin=2)(images, masks=masks)
        torch.manual_seed(0)
        made = batch.AnatPaste(1.0, margin=2, segment=segment)(images)
        assert torch.equal(given.images, made.images)
    crop = batch.LungCrop(40)
    got = crop(images)
    assert all(torch.equal(a, b) for a, b in zip(got, crop(images, masks=masks), strict=True))
    with pytest.raises(ValueError, match="masks and segment must not be given together"):
        batch.LungCrop(40, segment=batch.lung_mask_robust)(images, masks=masks)


def test_no_operation_depends_on_values_and_it_compiles_whole():
    images = random_images((2, 3, 40, 50), torch.uint8)
    expected = plain(images)
    with Steering():
        assert (plain(images) == expected).all()
    augment = batch.AnatPaste(1.0, segment=batch.lung_mask_robust)
    torch.manual_seed(0)
    whole = augment(images)
    torch.manual_seed(0)
    compiled = torch.compile(augment, fullgraph=True, backend="aot_eager")(images)
    assert all(torch.equal(a, b) for a, b in zip(whole, compiled, strict=True))
