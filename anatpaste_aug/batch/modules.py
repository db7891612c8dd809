"""AnatPaste and the CutPaste baselines as modules, for use after the DataLoader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anatpaste_aug.batch.mask import segment_chosen
from anatpaste_aug.batch.params import (
    CutPasteParams,
    Draws,
    draw_paste,
    sample_cutpaste,
    sample_scar,
)
from anatpaste_aug.batch.paste import _cutpaste, _paste
from anatpaste_aug.batch.tensors import as_images, as_masks, like
from anatpaste_aug.checks import check_number
from anatpaste_aug.sampling import (
    BLUR,
    JITTER,
    MARGIN,
    OPACITY,
    RATIO,
    SCALE,
    PasteRanges,
    Range,
)

Segment = Callable[[Tensor], Tensor]
Augmented = tuple[Tensor, Tensor, Tensor]


def choose(p: float, images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Choose each element of a batch with probability `p`."""
    return Draws(images.shape[0], images.device, generator).uniform(0, 1) < p


class AnatPaste(nn.Module):
    """Paste a blurred patch into the lungs of each image of a batch, with a probability.

    Parameters
    ----------
    p : float, optional
        Probability of the paste for each image, 0..1.
    scale, ratio, blur, opacity, margin, jitter
        As for `anatpaste_aug.sample_paste`, with the published defaults.
    segment : callable, optional
        Makes (B, 1, H, W) or (B, H, W) masks of bool or integer from the images, instead of
        `anatpaste_aug.batch.lung_mask`.

    Raises
    ------
    TypeError, ValueError
        If an option has another type or leaves its limits.

    References
    ----------
    Sato et al., Anatomy-aware self-supervised learning for anomaly detection in chest radiographs,
    iScience 2023, arXiv:2205.04282, section "AnatPaste augmentation".

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> augment = batch.AnatPaste(p=0.5)
    >>> images = torch.randint(256, (8, 1, 64, 64), dtype=torch.uint8)
    >>> out, regions, labels = augment(images)
    >>> out.shape == images.shape, regions.shape, labels.shape
    (True, torch.Size([8, 1, 64, 64]), torch.Size([8]))
    """

    def __init__(
        self,
        p: float = 0.5,
        *,
        scale: Range = SCALE,
        ratio: Range = RATIO,
        blur: Range = BLUR,
        opacity: Range = OPACITY,
        margin: int = MARGIN,
        jitter: float = JITTER,
        segment: Segment | None = None,
    ):
        super().__init__()
        check_number("p", p, 0, 1)
        if segment is not None and not callable(segment):
            raise TypeError(f"segment must be callable, got {type(segment).__name__}")
        self.p = p
        self.ranges = PasteRanges(scale, ratio, blur, opacity, margin, jitter)
        self.segment = segment

    def forward(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Augmented:
        """Augment a batch.

        Parameters
        ----------
        images : (B, C, H, W) or (B, H, W) Tensor
            As for `anatpaste_aug.batch.apply_paste`.
        masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer, optional
            Lung masks that are already there; not together with `segment`.
        generator : torch.Generator, optional
            Source of the draws, on the device of `images`; default is torch's global one. A module
            compiled whole (``fullgraph=True``) takes none: there, seed with `torch.manual_seed`.

        Returns
        -------
        out : Tensor, same shape, dtype, device and memory layout as `images`
        regions : (B, 1, H, W) Tensor of bool
            Where alpha > 0; nowhere in images without a paste.
        labels : (B,) Tensor of int64
            1 where a paste was drawn, else 0. On small images the blur may round alpha to 0
            everywhere: the label is then 1 though nothing changed. `margin` and `blur` are pixels
            of 256 x 256 images; scale them with the size.

        Raises
        ------
        TypeError, ValueError
            If an argument has another type, shape or device.
        """
        checked = as_images(images)
        chosen = choose(self.p, checked, generator)
        if masks is not None and self.segment is not None:
            raise ValueError("masks and segment must not be given together")
        if masks is not None:
            lungs = as_masks(masks, checked)
        elif self.segment is not None:
            lungs = as_masks(self.segment(images), checked, "the masks returned by segment")
        else:
            lungs = segment_chosen(checked, chosen)
        params = draw_paste(lungs, generator, self.ranges)
        out, alpha = _paste(checked, params.tensors(), lungs, chosen)
        return like(images, out), alpha > 0, chosen.long()

    def extra_repr(self) -> str:
        """Show the options."""
        return f"p={self.p}, {self.ranges}"


class _CutPaste(nn.Module):
    """What the three CutPaste modules share; each says how its parameters are drawn."""

    def __init__(self, p: float, ranges: PasteRanges):
        super().__init__()
        check_number("p", p, 0, 1)
        self.p = p
        self.ranges = ranges

    def draw(self, images: Tensor, generator: torch.Generator | None) -> CutPasteParams:
        """Draw the parameters of one batch."""
        raise NotImplementedError

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Augmented:
        """Augment a batch.

        Parameters
        ----------
        images : (B, C, H, W) or (B, H, W) Tensor
            As for `anatpaste_aug.batch.apply_paste`.
        generator : torch.Generator, optional
            Source of the draws, on the device of `images`; default is torch's global one. A module
            compiled whole (``fullgraph=True``) takes none: there, seed with `torch.manual_seed`.

        Returns
        -------
        out : Tensor, same shape, dtype, device and memory layout as `images`
        regions : (B, 1, H, W) Tensor of bool
            Where the patch lies; nowhere in images without one.
        labels : (B,) Tensor of int64
            1 where a patch was pasted, else 0.

        Raises
        ------
        TypeError, ValueError
            If an argument has another type, shape or device.
        """
        checked = as_images(images)
        chosen = choose(self.p, checked, generator)
        params = self.draw(checked, generator)
        out, regions = _cutpaste(checked, params.tensors(), chosen)
        return like(images, out), regions, chosen.long()

    def normal(self, images: Tensor, generator: torch.Generator | None) -> CutPasteParams:
        """Draw CutPaste *normal*."""
        ranges = self.ranges
        return sample_cutpaste(
            images, generator, scale=ranges.scale, ratio=ranges.ratio, jitter=ranges.jitter
        )

    def scar(self, images: Tensor, generator: torch.Generator | None) -> CutPasteParams:
        """Draw CutPaste *scar*."""
        return sample_scar(images, generator, jitter=self.ranges.jitter)

    def extra_repr(self) -> str:
        """Show the options."""
        ranges = self.ranges
        return f"p={self.p}, scale={ranges.scale}, ratio={ranges.ratio}, jitter={ranges.jitter}"


class CutPaste(_CutPaste):
    """Paste a patch of each image whole at a random place, with a probability: *normal*.

    Parameters
    ----------
    p : float, optional
        Probability of the paste for each image, 0..1.
    scale, ratio, jitter
        As for `anatpaste_aug.sample_paste`.

    Raises
    ------
    TypeError, ValueError
        If an option has another type or leaves its limits.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015, section 2.2.
    """

    def __init__(
        self,
        p: float = 0.5,
        *,
        scale: Range = SCALE,
        ratio: Range = RATIO,
        jitter: float = JITTER,
    ):
        super().__init__(p, PasteRanges(scale, ratio, jitter=jitter))

    def draw(self, images: Tensor, generator: torch.Generator | None) -> CutPasteParams:
        """Draw the parameters of one batch."""
        return self.normal(images, generator)


class CutPasteScar(_CutPaste):
    """Paste a thin rotated patch of each image at a random place, with a probability: *scar*.

    Parameters
    ----------
    p : float, optional
        Probability of the paste for each image, 0..1.
    jitter : float, optional
        As for `anatpaste_aug.sample_paste`.

    Raises
    ------
    TypeError, ValueError
        If an option has another type or leaves its limits.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015, section 2.2.
    """

    def __init__(self, p: float = 0.5, *, jitter: float = JITTER):
        super().__init__(p, PasteRanges(jitter=jitter))

    def draw(self, images: Tensor, generator: torch.Generator | None) -> CutPasteParams:
        """Draw the parameters of one batch."""
        return self.scar(images, generator)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"p={self.p}, jitter={self.ranges.jitter}"


class CutPasteUnion(CutPaste):
    """CutPaste *normal* or *scar*, half of the pastes each.

    Parameters
    ----------
    p : float, optional
        Probability of a paste for each image, 0..1.
    scale, ratio, jitter
        As for `anatpaste_aug.sample_paste`; *scar* has its own sizes.

    Raises
    ------
    TypeError, ValueError
        If an option has another type or leaves its limits.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015, section 2.2.
    """

    def draw(self, images: Tensor, generator: torch.Generator | None) -> CutPasteParams:
        """Draw the parameters of one batch."""
        normal, scar = self.normal(images, generator), self.scar(images, generator)
        scars = choose(0.5, images, generator)
        pairs: dict[str, Any] = {
            name: torch.where(scars, getattr(scar, name), getattr(normal, name))
            for name in CutPasteParams.names
        }
        return CutPasteParams(**pairs)
