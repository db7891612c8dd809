"""The classes to tell apart: originals, and what the library makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional

from anatpaste_aug import batch
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.view import NATIVE_SIZE

MIN_AREA = 400  # pixels of a 256 x 256 image: `lung_mask` removes smaller regions
KINDS = ("consolidation", "haze")  # what pneumonia looks like
MOST = 3  # opacities on one image
OTHER_FRAME = 0.1  # zoom and shift of the normals' second view, as a share of the side
OTHER_GAMMA = 0.3  # of the logarithm
OTHER_JITTER = 0.15


Paste = Callable[
    [torch.Tensor, "torch.Tensor | None", torch.Generator], tuple[torch.Tensor, torch.Tensor]
]


class Classes(NamedTuple):
    """A batch of all classes.

    Attributes
    ----------
    inputs : (C B, 1, H, W) uint8 tensor
        The originals after reframing and colour jitter, then each augmented class, in this order.
    labels : (C B,) int64 tensor
        0 for the originals, 1 (and 2) for the augmented.
    alpha : (C B, 1, H, W) uint8 tensor
        How opaque what was pasted is, 0 where nothing was. Where the library gives a region only,
        255 inside.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    alpha: torch.Tensor


class Augmenter:
    """Turns originals into a batch of all classes.

    The library scales lengths to the images' size; the smallest lung is scaled here.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pastes = {
            "anatpaste": (_module(batch.AnatPaste(p=1.0)),),
            "cutpaste": (_module(batch.CutPaste(p=1.0)),),
            "scar": (_module(batch.CutPasteScar(p=1.0)),),
            "union": (_module(batch.CutPasteUnion(p=1.0)),),
            "3way": (_module(batch.CutPaste(p=1.0)), _module(batch.CutPasteScar(p=1.0))),
            "opacity": (paste_opacities,),
            "mix": (paste_mixed,),
        }[settings.variant]
        # What abnormal images are like is told by opacities where there are any.
        self.contrast = paste_opacities if settings.variant == "mix" else self.pastes[0]

    def __call__(
        self, images: torch.Tensor, masks: torch.Tensor | None, generator: torch.Generator
    ) -> Classes:
        """Augment one batch.

        Parameters
        ----------
        images : (B, 1, H, W) uint8 tensor
            Originals.
        masks : (B, 1, H, W) bool tensor or None
            Their lung masks; None segments afresh where the variant needs masks.
        generator : torch.Generator
            Source of every draw.
        """
        settings = self.settings
        if settings.reframe:
            images, masks = reframe(images, masks, settings.reframe, generator)
        originals = jitter(images, settings.jitter, generator)
        masks = self.find_masks(originals, masks)
        inputs, alphas = [originals], [torch.zeros_like(originals)]
        for paste in self.pastes:
            pasted, alpha = paste(originals, masks, generator)
            inputs.append(pasted)
            alphas.append(alpha)
        labels = torch.arange(len(inputs), device=images.device).repeat_interleave(len(images))
        mixed = torch.cat(inputs)
        if settings.noise:
            mixed = roughen(mixed, settings.noise, generator)
        return Classes(mixed, labels, torch.cat(alphas))

    def find_masks(self, images: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor | None:
        """Segment images, if the variant needs masks and there are none."""
        if masks is not None or not self.settings.needs_masks:
            return masks
        return batch.lung_mask(
            images, min_area=round(MIN_AREA * (self.settings.size / NATIVE_SIZE) ** 2)
        )

    def abnormal(
        self, images: torch.Tensor, masks: torch.Tensor | None, generator: torch.Generator
    ) -> torch.Tensor:
        """Make of each normal image one to stand for the abnormal: (B, 1, H, W) uint8."""
        pasted, _ = self.contrast(images, self.find_masks(images, masks), generator)
        return pasted


def _module(operation: batch.OperationModule) -> Paste:
    """Let a module of the library give images and alpha."""

    def paste(
        images: torch.Tensor, masks: torch.Tensor | None, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        result = operation(images, masks=masks, generator=generator)
        return result.images, 255 * result.regions.to(torch.uint8)

    return paste


def paste_opacities(
    images: torch.Tensor, masks: torch.Tensor | None, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste 1 to `MOST` opacities into each image, one after the other; give the greatest alpha."""
    assert masks is not None
    shape = (len(images), 1, 1, 1)
    counts = torch.randint(1, MOST + 1, shape, generator=generator, device=images.device)
    alpha = torch.zeros_like(images)
    for number in range(MOST):
        params = batch.sample_opacity(masks, generator, kinds=KINDS)
        wanted = number < counts
        pasted = batch.apply_opacity(images, params, masks)
        images = torch.where(wanted, pasted, images)
        alpha = torch.where(wanted, torch.maximum(alpha, batch.opacity_alpha(params, masks)), alpha)
    return images, alpha


def paste_mixed(
    images: torch.Tensor, masks: torch.Tensor | None, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste opacities into half of the images, and AnatPaste into the others."""
    shape = (len(images), 1, 1, 1)
    soft = torch.rand(shape, generator=generator, device=images.device) < 0.5
    opacities, alpha = paste_opacities(images, masks, generator)
    patched, opaque = _module(batch.AnatPaste(p=1.0))(images, masks, generator)
    return torch.where(soft, opacities, patched), torch.where(soft, alpha, opaque)


def jitter(images: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """Jitter brightness, then contrast, of each grey uint8 image by up to `amount`.

    As torchvision's `ColorJitter` does image by image: factors uniform in [1 - amount, 1 + amount],
    contrast about the image's mean.
    """
    draws = torch.rand(2, len(images), 1, 1, 1, generator=generator, device=images.device)
    brightness, contrast = 1 + amount * (2 * draws - 1)
    bright = (images.float() * brightness).clamp(0, 255)
    mean = bright.mean((1, 2, 3), keepdim=True)
    return ((bright - mean) * contrast + mean).clamp(0, 255).round().to(torch.uint8)


def reframe(
    images: torch.Tensor,
    masks: torch.Tensor | None,
    amount: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Zoom each image along either axis, and shift it, by up to `amount` of its side."""
    draws = torch.rand(len(images), 4, generator=generator, device=images.device)
    zoom, shift = (amount * (2 * draws - 1)).split(2, 1)
    theta = torch.cat([torch.diag_embed(1 + zoom), shift[..., None]], 2)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    if masks is not None:
        masks = functional.grid_sample(masks.float(), grid, "nearest", align_corners=False) > 0.5
    return moved.round().to(torch.uint8), masks


def roughen(images: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
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
    images: torch.Tensor, masks: torch.Tensor | None, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Show images in another frame and another tone, as another hospital might."""
    images, masks = reframe(images, masks, OTHER_FRAME, generator)
    draws = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    gamma = torch.exp(OTHER_GAMMA * (2 * draws - 1))
    toned = (255 * (images.float() / 255) ** gamma).round().to(torch.uint8)
    return jitter(toned, OTHER_JITTER, generator), masks
