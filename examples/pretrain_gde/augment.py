"""The classes to tell apart: originals, and what the library makes of them."""

from __future__ import annotations

import torch

from anatpaste_aug import batch
from examples.pretrain_gde.settings import NATIVE_SIZE, Settings

MIN_AREA = 400  # pixels of a 256 x 256 image: `lung_mask` removes smaller regions


class Augmenter:
    """Turns originals into a batch of all classes.

    The library scales lengths to the images' size; the smallest lung is scaled here.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.operations = {
            "anatpaste": (batch.AnatPaste(p=1.0),),
            "cutpaste": (batch.CutPaste(p=1.0),),
            "scar": (batch.CutPasteScar(p=1.0),),
            "union": (batch.CutPasteUnion(p=1.0),),
            "3way": (batch.CutPaste(p=1.0), batch.CutPasteScar(p=1.0)),
        }[settings.variant]

    def __call__(
        self, images: torch.Tensor, masks: torch.Tensor | None, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment one batch.

        Parameters
        ----------
        images : (B, 1, H, W) uint8 tensor
            Originals.
        masks : (B, 1, H, W) bool tensor or None
            Their lung masks; None segments afresh where the variant needs masks.
        generator : torch.Generator
            Source of every draw.

        Returns
        -------
        inputs : (C B, 1, H, W) uint8 tensor
            The originals after colour jitter, then each augmented class, in the same order.
        labels : (C B,) int64 tensor
            0 for the originals, 1 (and 2) for the augmented.
        """
        originals = jitter(images, self.settings.jitter, generator)
        if self.settings.needs_masks and masks is None:
            min_area = round(MIN_AREA * (self.settings.size / NATIVE_SIZE) ** 2)
            masks = batch.lung_mask(originals, min_area=min_area)
        inputs = [originals]
        for operation in self.operations:
            inputs.append(operation(originals, masks=masks, generator=generator).images)
        labels = torch.arange(len(inputs), device=images.device).repeat_interleave(len(images))
        return torch.cat(inputs), labels


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
