"""The published method against golden results of the recipe on phantoms, beside this file.

They need neither radiographs nor scikit-image, so that anyone can check what "bit for bit" means.
`python tests/test_golden.py` makes them anew from the recipe: only where the recipe itself changes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from recipe import recipe_alpha, recipe_mask, recipe_paste

from anatpaste_aug import PasteParams, apply_paste, lung_mask, paste_alpha
from anatpaste_aug.masks import published
from anatpaste_aug.operations import alpha, anatpaste

GOLDEN = Path(__file__).parent / "phantom_golden.npz"


def views(image):
    """Cut, repeat and convert the phantom in the file, exactly: name and image."""
    yield "256", image
    yield "224", image[16:240, 16:240]
    yield "odd", image[:201, 30:161]
    yield "128", image[::2, ::2]
    yield "enlarged", image.repeat(2, 0).repeat(2, 1)[: 2 * 180]
    yield "uint16", image.astype(np.uint16) * 256 + image
    yield "float32", image.astype(np.float32) / np.float32(255)
    yield "color", np.stack([image, image // 2, image // 4], axis=-1)


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def write_golden():
    """Write the golden file anew, from the recipe alone."""
    from PIL import Image

    from anatpaste_aug import sample_paste
    from anatpaste_aug.data import phantom_radiograph

    phantom, rng = phantom_radiograph(256, rng=0), np.random.default_rng(0)
    masks, cases = {}, []
    for name, image in views(phantom):
        gray = np.asarray(Image.fromarray(image).convert("L")) if image.ndim == 3 else image
        mask = recipe_mask(gray)
        assert mask.any()
        masks[f"mask_{name}"] = np.packbits(mask, axis=-1)
        for lungs in [mask] * 6 + [np.zeros_like(mask)] * 2 if image.dtype == np.uint8 else []:
            params = sample_paste(lungs, rng)
            drawn, out = recipe_alpha(params, lungs), recipe_paste(image, params, lungs)
            pasted = {"image": name, "lungs": bool(lungs.any()), "params": vars(params)}
            cases.append({**pasted, "alpha": digest(drawn), "out": digest(out)})
    np.savez_compressed(GOLDEN, phantom=phantom, cases=json.dumps(cases), **masks)


@pytest.fixture(scope="module")
def golden():
    """Images and lung masks by name, and the pastes."""
    with np.load(GOLDEN) as file:
        images = dict(views(file["phantom"]))
        packed = {name: file[f"mask_{name}"] for name in images}
        cases = json.loads(str(file["cases"]))
    masks = {
        name: np.unpackbits(packed[name], axis=-1)[:, : images[name].shape[1]].astype(bool)
        for name in images
    }
    return images, masks, cases


def test_masks_bit_for_bit(golden):
    images, masks, _ = golden
    assert len(masks) == 8
    for name, image in images.items():
        np.testing.assert_array_equal(lung_mask(image), masks[name], err_msg=name)


def test_pastes_byte_for_byte(golden):
    images, masks, cases = golden
    assert len(cases) == 6 * 8
    for case in cases:
        image, lungs = images[case["image"]], masks[case["image"]] & case["lungs"]
        params = PasteParams(**case["params"])
        assert digest(paste_alpha(params, lungs)) == case["alpha"], case
        assert digest(apply_paste(image, params, lungs)) == case["out"], case


# Stages of the published method, and how they might go wrong.
WRONG = {
    "clahe": (published, lambda levels: 16000 - levels),
    "dark_side": (published, lambda dark: ~dark),
    "opening": (published, lambda mask: np.roll(mask, 1, 1)),
    "clear_border": (published, lambda kept: np.roll(kept, 1, 0)),
    "clear_small_boxes": (published, lambda mask: mask & (mask.cumsum(0) > 1)),
    "draw_shape": (anatpaste, lambda alpha: (alpha + (alpha > 0)).clip(0, 255).astype(np.uint8)),
    "cut_patch": (anatpaste, lambda patch: patch ^ 1),
    "blend": (alpha, lambda mixed: mixed ^ (mixed > 99)),
}


@pytest.mark.parametrize("stage", WRONG)
def test_a_wrong_stage_is_seen(stage, monkeypatch, golden):
    module, spoil = WRONG[stage]
    right = getattr(module, stage)
    monkeypatch.setattr(module, stage, lambda *args: spoil(right(*args)))
    compare = test_masks_bit_for_bit if module is published else test_pastes_byte_for_byte
    with pytest.raises(AssertionError):
        compare(golden)


def test_batches_equal_them_too(golden):
    torch = pytest.importorskip("torch", reason="needs torch")
    from anatpaste_aug import batch

    images, masks, cases = golden
    for name in ("256", "224", "128"):
        some = [case for case in cases if case["image"] == name]
        image = torch.from_numpy(images[name].copy()).expand(len(some), 1, -1, -1)
        lungs = batch.lung_mask(image)
        np.testing.assert_array_equal(lungs[0, 0], masks[name])
        lungs &= torch.tensor([case["lungs"] for case in some])[:, None, None, None]
        drawn = batch.PasteParams.stack([PasteParams(**case["params"]) for case in some])
        out = batch.apply_paste(image, drawn, lungs)
        assert [digest(one.numpy()) for one in out] == [case["out"] for case in some]


if __name__ == "__main__":
    write_golden()
