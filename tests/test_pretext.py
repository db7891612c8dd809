"""The pretext task's dataset: views and labels for two and three classes."""

from __future__ import annotations

import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("torchvision", reason="needs torchvision")

from torch.utils.data import DataLoader  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from anatpaste_aug.data import phantom_radiograph  # noqa: E402
from anatpaste_aug.pretext import PretextDataset, pretext_collate  # noqa: E402
from anatpaste_aug.transforms import AnatPaste, CutPaste, CutPasteScar  # noqa: E402


@pytest.fixture(scope="module")
def normals():
    return [Image.fromarray(phantom_radiograph(128, rng=i)) for i in range(6)]


def test_two_classes(normals):
    views = PretextDataset(normals, AnatPaste(p=1, blur=(0, 5), margin=4))
    assert len(views) == 6
    images, labels = next(iter(DataLoader(views, batch_size=6, collate_fn=pretext_collate)))
    assert images.shape == (12, 1, 128, 128)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert labels.tolist() == [0, 1] * 6
    after = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    originals = torch.stack([after(image) for image in normals])
    assert torch.equal(images[0::2], originals)
    assert (images[1::2] != originals).flatten(1).any(dim=1).all()


def test_three_classes_and_labeled_datasets(normals):
    labeled = [(image, 5) for image in normals]
    views = PretextDataset(labeled, [CutPaste(p=1), CutPasteScar(p=1)])
    images, labels = next(iter(DataLoader(views, batch_size=2, collate_fn=pretext_collate)))
    assert images.shape == (6, 1, 128, 128)
    assert labels.tolist() == [0, 1, 2] * 2


def test_classes_follow_the_order_of_the_augmentations(normals):
    views = PretextDataset(
        normals, [v2.functional.invert, v2.functional.horizontal_flip], after=v2.functional.to_image
    )
    images, labels = views[2]
    assert labels.tolist() == [0, 1, 2]
    assert torch.equal(images[1], 255 - images[0])
    assert torch.equal(images[2], images[0].flip(-1))


def test_before_is_shared_by_the_views_and_after_is_not(normals):
    calls = []
    views = PretextDataset(
        normals,
        lambda image: image,
        before=v2.Compose([v2.Resize(32), v2.ColorJitter(0.5, 0.5)]),
        after=lambda image: calls.append(image) or v2.functional.to_image(image),
    )
    images, _ = views[0]
    assert images.shape == (2, 1, 32, 32)
    assert torch.equal(images[0], images[1])
    assert len(calls) == 2


def test_bad_arguments(normals):
    with pytest.raises(TypeError, match="augment must be callable, got 3"):
        PretextDataset(normals, [3])
    with pytest.raises(ValueError, match="at least one transform"):
        PretextDataset(normals, [])
    with pytest.raises(TypeError, match="augment must be callable, got None"):
        PretextDataset(normals, None)
    with pytest.raises(ValueError, match=r"augment must have p=1, got 0.5 in CutPaste"):
        PretextDataset(normals, [CutPaste()])
    with pytest.raises(ValueError, match=r"augment must have return_mask=False, got True"):
        PretextDataset(normals, AnatPaste(p=1, return_mask=True))
    for name in ("before", "after"):
        with pytest.raises(TypeError, match=f"{name} must be callable, got 'x'"):
            PretextDataset(normals, AnatPaste(p=1), **{name: "x"})
