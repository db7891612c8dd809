"""The classes to tell apart: originals, and what the library makes of them."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

import anatpaste_aug as ap
from anatpaste_aug import batch
from examples.pretrain_gde.given import given
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.view import NATIVE_SIZE

MIN_AREA = 400  # pixels of a 256 x 256 image: `lung_mask` removes smaller regions
KINDS = ("consolidation", "haze")  # what pneumonia looks like
MOST = 3  # opacities on one image
OTHER_FRAME = 0.1  # zoom and shift of the normals' second view, as a share of half the side
OTHER_GAMMA = 0.3  # of the logarithm
OTHER_JITTER = 0.15
PIECE = 2**26  # pixels to make something of at a time: some 2 GB in between


Pasted = tuple[Tensor, Tensor]  # images and alpha
Paste = Callable[[Tensor, "Tensor | None", Generator], Pasted]


class Classes(NamedTuple):
    """A batch of all classes.

    Attributes
    ----------
    inputs : (C B, 1, H, W) uint8 tensor
        The originals after reframing and color jitter, then each augmented class, in this order.
    labels : (C B,) int64 tensor
        0 for the originals, 1 (and 2) for the augmented.
    alpha : (C B, 1, H, W) uint8 tensor
        How opaque what was pasted is, 0 where nothing was. Where the library gives a region only,
        255 inside.
    """

    inputs: Tensor
    labels: Tensor
    alpha: Tensor


class Augmenter:
    """Turns originals into a batch of all classes.

    The library scales lengths to the images' size; the smallest lung is scaled here.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pastes = PASTES.get(settings.variant) or {settings.label: _own(settings.variant)}
        # What abnormal images are like is told by opacities where there are any.
        one = next(iter(self.pastes.values()))
        self.contrast = paste_opacities if settings.variant == "mix" else one

    def __call__(self, images: Tensor, masks: Tensor | None, generator: Generator) -> Classes:
        """Augment one batch.

        Parameters
        ----------
        images : (B, 1, H, W) uint8 tensor
            Originals.
        masks : (B, 1, H, W) bool tensor or None
            Their lung masks; None segments afresh where the variant needs masks.
        generator : Generator
            Source of every draw.
        """
        settings = self.settings
        if settings.reframe:
            images, masks = reframe(images, masks, settings.reframe, generator)
        originals = jitter(images, settings.jitter, generator)
        masks = self.find_masks(originals, masks)
        made = [(originals, torch.zeros_like(originals))]
        made += [paste(originals, masks, generator) for paste in self.pastes.values()]
        labels = torch.arange(len(made), device=images.device).repeat_interleave(len(images))
        inputs, alpha = map(torch.cat, zip(*made, strict=True))
        if settings.noise:
            inputs = roughen(inputs, settings.noise, generator)
        return Classes(inputs, labels, alpha)

    def find_masks(self, images: Tensor, masks: Tensor | None) -> Tensor | None:
        """Segment images, if the variant needs masks and there are none."""
        if masks is not None or not self.settings.needs_masks:
            return masks
        least = round(MIN_AREA * (self.settings.size / NATIVE_SIZE) ** 2)
        return batch.lung_mask(images, min_area=least)

    def abnormal(self, images: Tensor, masks: Tensor | None, generator: Generator) -> Tensor:
        """Make of each normal image one to stand for the abnormal: (B, 1, H, W) uint8."""
        made = []
        for part, inside in _pieces(images, masks):
            pasted, _ = self.contrast(part, self.find_masks(part, inside), generator)
            made.append(pasted)
        return torch.cat(made)


def _pieces(images: Tensor, masks: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Cut images and their masks into pieces of at most `PIECE` pixels, but one image at least."""
    count = max(PIECE // images[0].numel(), 1)
    parts = itertools.repeat(None) if masks is None else masks.split(count)
    return zip(images.split(count), parts, strict=False)


def _module(kind: type[batch.OperationModule]) -> Paste:
    """Make a module of the library that pastes into every image, and returns images and alpha."""
    operation = kind(p=1.0)

    def paste(images: Tensor, masks: Tensor | None, generator: Generator) -> Pasted:
        result = operation(images, masks=masks, generator=generator)
        return result.images, 255 * result.regions.to(torch.uint8)

    return paste


def _own(variant: str) -> Paste:
    """Paste by an operation of the user's own."""
    return _module(type("Own", (batch.OperationModule,), {"operation": given("variant", variant)}))


def segments_quickly(device: torch.device) -> bool:
    """Tell whether the library finds masks in kernels on a device; it warns where it cannot."""
    if device.type != "cuda" or os.environ.get("ANATPASTE_AUG_TRITON") == "0":
        return False
    image = torch.zeros(1, 1, NATIVE_SIZE, NATIVE_SIZE, dtype=torch.uint8, device=device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        batch.lung_mask(image)
    return not any("go over the CPU" in str(warning.message) for warning in told)


def paste_opacities(images: Tensor, masks: Tensor | None, generator: Generator) -> Pasted:
    """Paste 1 to `MOST` opacities into each image, one by one; return the greatest alpha."""
    assert masks is not None
    seed = torch.randint(2**62, (), generator=generator, device=images.device)
    rng = np.random.default_rng(int(seed))
    pasted, alphas = [], []
    for image, mask in zip(images[:, 0].cpu().numpy(), masks.cpu().numpy(), strict=True):
        alpha = np.zeros_like(image)
        for _ in range(rng.integers(1, MOST, endpoint=True)):
            params = ap.sample_opacity(mask, rng, kinds=KINDS)
            image = ap.apply_opacity(image, params, mask)
            alpha = np.maximum(alpha, ap.opacity_alpha(params, mask))
        pasted.append(torch.from_numpy(image))
        alphas.append(torch.from_numpy(alpha))
    return torch.stack(pasted)[:, None].to(images), torch.stack(alphas)[:, None].to(images)


def paste_mixed(images: Tensor, masks: Tensor | None, generator: Generator) -> Pasted:
    """Paste opacities into half of the images, and AnatPaste into the others."""
    shape = (len(images), 1, 1, 1)
    soft = torch.rand(shape, generator=generator, device=images.device) < 0.5
    opacities, alpha = paste_opacities(images, masks, generator)
    patched, opaque = _patch(images, masks, generator)
    return torch.where(soft, opacities, patched), torch.where(soft, alpha, opaque)


_patch, _cut, _scar = map(_module, (batch.AnatPaste, batch.CutPaste, batch.CutPasteScar))
PASTES: dict[str, dict[str, Paste]] = {  # by variant: what it makes of the originals, and how
    "anatpaste": {"AnatPaste": _patch},
    "cutpaste": {"CutPaste": _cut},
    "scar": {"CutPaste scar": _scar},
    "union": {"CutPaste, normal or scar": _module(batch.CutPasteUnion)},
    "3way": {"CutPaste normal": _cut, "CutPaste scar": _scar},
    "opacity": {"opacities": paste_opacities},
    "mix": {"opacities, or AnatPaste": paste_mixed},
}


def jitter(images: Tensor, amount: float, generator: Generator) -> Tensor:
    """Jitter brightness, then contrast, of each gray uint8 image by up to `amount`.

    As torchvision's `ColorJitter` does image by image: factors uniform in [1 - amount, 1 + amount],
    contrast about the image's mean.
    """
    draws = torch.rand(2, len(images), 1, 1, 1, generator=generator, device=images.device)
    brightness, contrast = 1 + amount * (2 * draws - 1)
    bright = (images.float() * brightness).clamp(0, 255)
    mean = bright.mean((1, 2, 3), keepdim=True)
    return ((bright - mean) * contrast + mean).clamp(0, 255).round().to(torch.uint8)


def reframe(
    images: Tensor, masks: Tensor | None, amount: float, generator: Generator
) -> tuple[Tensor, Tensor | None]:
    """Zoom each image along either axis, and shift it, by up to `amount` of half its side."""
    draws = torch.rand(len(images), 4, generator=generator, device=images.device)
    zoom, shift = (amount * (2 * draws - 1)).split(2, 1)
    theta = torch.cat([torch.diag_embed(1 + zoom), shift[..., None]], 2)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    if masks is not None:
        masks = functional.grid_sample(masks.float(), grid, "nearest", align_corners=False) > 0.5
    return moved.round().to(torch.uint8), masks


def roughen(images: Tensor, noise: float, generator: Generator) -> Tensor:
    """Blur half of the images a little, and add noise of up to a standard deviation of `noise`."""
    shape, device = (len(images), 1, 1, 1), images.device
    values = images.float()
    blurred = functional.avg_pool2d(functional.pad(values, (1, 1, 1, 1), "replicate"), 3, 1)
    weight = torch.rand(shape, generator=generator, device=device) / 2
    weight *= torch.rand(shape, generator=generator, device=device) < 0.5
    deviation = noise * torch.rand(shape, generator=generator, device=device)
    rough = torch.randn(values.shape, generator=generator, device=device) * deviation
    return (values.lerp(blurred, weight) + rough).clamp(0, 255).round().to(torch.uint8)


def second_view(
    images: Tensor, masks: Tensor | None, generator: Generator
) -> tuple[Tensor, Tensor | None]:
    """Show images in another frame and another tone, as another hospital might."""
    views, moved = [], []
    for part, inside in _pieces(images, masks):
        framed, lungs = reframe(part, inside, OTHER_FRAME, generator)
        draws = torch.rand(len(part), 1, 1, 1, generator=generator, device=images.device)
        gamma = torch.exp(OTHER_GAMMA * (2 * draws - 1))
        toned = (255 * (framed.float() / 255) ** gamma).round().to(torch.uint8)
        views.append(jitter(toned, OTHER_JITTER, generator))
        if lungs is not None:
            moved.append(lungs)
    return torch.cat(views), torch.cat(moved) if moved else None
