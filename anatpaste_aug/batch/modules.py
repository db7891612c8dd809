"""The operations as modules, for use behind a DataLoader: which images, and with which masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anatpaste_aug import operations
from anatpaste_aug.batch import anatpaste, cutpaste, opacity
from anatpaste_aug.batch.draws import TorchDraws
from anatpaste_aug.batch.lungs import find_lungs
from anatpaste_aug.batch.patch import apply_each
from anatpaste_aug.batch.tensors import as_images, as_masks
from anatpaste_aug.checks import Range, check_number
from anatpaste_aug.lungs import Segment, check_segment
from anatpaste_aug.operations.anatpaste import BLUR, JITTER, MARGIN, OPACITY, RATIO, SCALE
from anatpaste_aug.operations.base import LENGTHS_FOR, Operation, describe
from anatpaste_aug.operations.cutpaste import ANGLE, HEIGHT, WIDTH
from anatpaste_aug.operations.opacity import KINDS, Kinds


class Augmented(NamedTuple):
    """What a module returns: images, (B, 1, H, W) changed regions, (B,) labels 0 or 1."""

    images: Tensor
    regions: Tensor
    labels: Tensor


class OperationModule(nn.Module):
    """Apply an operation to each image of a batch, with probability `p`.

    The base of all modules here, and of your own: a subclass names its `operation`, and that is
    enough. It then pastes image by image on the CPU, where it brings the images if they lie
    elsewhere; `paste_chosen` may do better.

    Parameters
    ----------
    p : float, optional
        Probability of the paste for each image, 0..1.
    segment : callable, optional
        Makes (B, 1, H, W) or (B, H, W) masks of bool or integer from the (B, C, H, W) images,
        instead of `anatpaste_aug.batch.lung_mask`: `anatpaste_aug.batch.lung_mask_robust`, or one
        of your own. Only for operations that need lungs.
    **options
        Those of the operation.

    Raises
    ------
    TypeError, ValueError
        If an option has another type or leaves its limits.
    """

    operation: type[Operation[Any]]

    def __init__(self, p: float = 0.5, *, segment: Segment | None = None, **options: Any):
        super().__init__()
        self.p = check_number("p", p, 0, 1)
        self.segment = check_segment(segment, self.operation.needs_lungs)
        self.paste = self.operation(**options)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``, so that it can be pasted back."""
        segment = {"segment": self.segment} if self.paste.needs_lungs else {}
        return describe({"p": self.p, **vars(self.paste), **segment})

    def forward(
        self,
        images: Tensor,
        *,
        masks: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Augmented:
        """Augment a batch.

        Parameters
        ----------
        images : (B, C, H, W) Tensor
            As for `anatpaste_aug.batch.apply_paste`.
        masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer, optional
            Lung masks that are already there; not together with `segment`. Operations that need no
            lungs have no use for them.
        generator : torch.Generator, optional
            Source of the draws, on the device of `images`; default is torch's global one. A module
            compiled whole (``fullgraph=True``) takes none: there, seed with `torch.manual_seed`.

        Returns
        -------
        images : Tensor, same shape, dtype, device and memory layout as `images`
        regions : (B, 1, H, W) Tensor of bool
            What may have changed: where alpha > 0, or the patch lies; nowhere in images without a
            paste.
        labels : (B,) Tensor of int64
            1 where a paste was drawn, else 0. A faint one may change nothing: see its region.

        Raises
        ------
        TypeError, ValueError
            If an argument has another type, shape or device.
        """
        images = as_images(images)
        draws = TorchDraws(images, generator)
        chosen = draws.uniform((0, 1)) < self.p
        lungs = None
        if self.paste.needs_lungs:
            lungs = find_lungs(images, masks, self.segment, chosen)
        elif masks is not None:
            as_masks(masks, images)  # of no use, but not anything goes
        params = draws.sample(self.paste, images.shape[2:], lungs)
        out, regions = self.paste_chosen(images, params, lungs, chosen)
        return Augmented(out, regions, chosen.long())

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it works in NumPy
    def paste_chosen(
        self, images: Tensor, params: Any, lungs: Tensor | None, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Paste into the chosen images of a checked batch; return images and regions.

        Parameters
        ----------
        images : (B, C, H, W) Tensor
        params : StackedParams
            What was drawn.
        lungs : (B, H, W) Tensor of bool, or None
        chosen : (B,) Tensor of bool
        """
        masks = None if lungs is None else lungs.cpu()
        out, regions = apply_each(self.paste.perform, images.cpu(), params, masks, chosen.cpu())
        return out.to(images.device), regions.to(images.device)


class AnatPaste(OperationModule):
    """Paste a blurred patch into the lungs of each image of a batch, with a probability.

    Parameters
    ----------
    p : float, optional
        Probability of the paste for each image, 0..1.
    scale, ratio, blur, opacity, margin, jitter, lengths_for
        As for `anatpaste_aug.sample_paste`, with the published defaults.
    segment
        As for `OperationModule`.

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

    operation = operations.AnatPaste
    paste_chosen = staticmethod(anatpaste.paste_chosen)

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
        lengths_for: float | None = LENGTHS_FOR,
        segment: Segment | None = None,
    ):
        paste = operations.AnatPaste(scale, ratio, blur, opacity, margin, jitter, lengths_for)
        super().__init__(p, segment=segment, **vars(paste))


class Opacity(OperationModule):
    """Brighten a part of the lungs of each image of a batch, as disease does, with a probability.

    Parameters
    ----------
    p : float, optional
        Probability of the opacity for each image, 0..1.
    kinds, size, density, lengths_for
        As for `anatpaste_aug.sample_opacity`.
    segment
        As for `OperationModule`.

    Raises
    ------
    TypeError, ValueError
        If an option has another type or leaves its limits.
    """

    operation = operations.Opacity
    paste_chosen = staticmethod(opacity.paste_chosen)

    def __init__(
        self,
        p: float = 0.5,
        *,
        kinds: Kinds = KINDS,
        size: float = 1,
        density: float = 1,
        lengths_for: float | None = LENGTHS_FOR,
        segment: Segment | None = None,
    ):
        own = operations.Opacity(kinds, size, density, lengths_for)
        super().__init__(p, segment=segment, **vars(own))


class OneOf(nn.Module):
    """Apply one of several modules to each image of a batch, with probability `p`.

    Each is as likely as the others, and draws for itself. Lung masks are made once for all.

    Parameters
    ----------
    modules : sequence of OperationModule
        With ``p=1`` and without `segment`, which are matters of this module.
    p : float, optional
        Probability of a paste for each image, 0..1.
    segment
        As for `OperationModule`.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or leaves its limits.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> augment = batch.OneOf([batch.AnatPaste(p=1), batch.Opacity(p=1)], p=0.5)
    >>> augment(torch.randint(256, (8, 1, 64, 64), dtype=torch.uint8)).labels.shape
    torch.Size([8])
    """

    choices: Any  # nn.ModuleList, whose items have no type of their own

    def __init__(
        self,
        modules: Sequence[OperationModule],
        p: float = 0.5,
        *,
        segment: Segment | None = None,
    ):
        super().__init__()
        modules = list(modules)
        if not modules:
            raise ValueError("modules must be at least one, got none")
        for one in modules:
            if not isinstance(one, OperationModule):
                raise TypeError(f"modules must be OperationModules, got {type(one).__name__}")
            if one.p != 1 or one.segment is not None:
                raise ValueError(f"modules must have p=1 and no segment, got {one}")
        self.choices = nn.ModuleList(modules)
        self.p = check_number("p", p, 0, 1)
        needed = any(one.paste.needs_lungs for one in modules)
        self.needs_lungs, self.segment = needed, check_segment(segment, needed)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``."""
        return describe({"p": self.p, "segment": self.segment})

    def forward(
        self,
        images: Tensor,
        *,
        masks: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Augmented:
        """Augment a batch; parameters, results and errors are those of `OperationModule`."""
        images = as_images(images)
        draws = TorchDraws(images, generator)
        chosen = draws.uniform((0, 1)) < self.p
        which = draws.integer((0, len(self.choices) - 1))
        lungs = None
        if self.needs_lungs:
            lungs = find_lungs(images, masks, self.segment, chosen)
        regions = torch.zeros_like(images[:, :1], dtype=torch.bool)
        for i, one in enumerate(self.choices):
            own = lungs if one.paste.needs_lungs else None
            params = draws.sample(one.paste, images.shape[2:], own)
            images, pasted = one.paste_chosen(images, params, own, chosen & (which == i))
            regions = regions | pasted
        return Augmented(images, regions, chosen.long())


class Only(nn.Module):
    """Run a module of this package, and return only some of its results.

    For containers that hand on whatever comes out, as `torch.nn.Sequential` and kornia's do, and
    for callers that want a pair of images and masks, as anomalib's models do.

    Parameters
    ----------
    module : nn.Module
        One that returns a named tuple.
    *names : str
        Of one result, which comes as it is, or of several, which come as a tuple: ``"images"``,
        ``"regions"``, ``"labels"``, for `LungCrop` ``"images"``, ``"masks"``.

    Raises
    ------
    TypeError, ValueError
        If `module` is no module, or no name is given; AttributeError, when called, if a result of
        that name is not there.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> augment = torch.nn.Sequential(batch.Only(batch.AnatPaste(p=0.5), "images"))
    >>> augment(torch.randint(256, (8, 1, 64, 64), dtype=torch.uint8)).shape
    torch.Size([8, 1, 64, 64])
    """

    def __init__(self, module: nn.Module, *names: str):
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
        if not names:
            raise ValueError("names must be at least one, got none")
        self.module, self.names = module, names

    def extra_repr(self) -> str:
        """Return the names for ``repr``."""
        return f"names={self.names}"

    def forward(self, images: Tensor, **options: Any) -> Any:
        """Run the module, and return what is named."""
        out = self.module(images, **options)
        parts = tuple(getattr(out, name) for name in self.names)
        return parts if len(parts) > 1 else parts[0]


class CutPaste(OperationModule):
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

    operation = operations.CutPaste
    paste_chosen = staticmethod(cutpaste.paste_chosen)

    def __init__(
        self, p: float = 0.5, *, scale: Range = SCALE, ratio: Range = RATIO, jitter: float = JITTER
    ):
        super().__init__(p, **vars(operations.CutPaste(scale, ratio, jitter)))


class CutPasteScar(OperationModule):
    """Paste a thin rotated patch of each image at a random place, with a probability: *scar*.

    Parameters
    ----------
    p : float, optional
        Probability of the paste for each image, 0..1.
    width, height, angle, jitter, lengths_for
        As for `anatpaste_aug.sample_scar`.

    Raises
    ------
    TypeError, ValueError
        If an option has another type or leaves its limits.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015, section 2.2.
    """

    operation = operations.CutPasteScar
    paste_chosen = staticmethod(cutpaste.paste_chosen)

    def __init__(
        self,
        p: float = 0.5,
        *,
        width: Range = WIDTH,
        height: Range = HEIGHT,
        angle: Range = ANGLE,
        jitter: float = JITTER,
        lengths_for: float | None = LENGTHS_FOR,
    ):
        scar = operations.CutPasteScar(width, height, angle, jitter, lengths_for)
        super().__init__(p, **vars(scar))


class CutPasteUnion(OperationModule):
    """Paste as `CutPaste` or as `CutPasteScar`, each half of the time, with a probability.

    Parameters
    ----------
    p : float, optional
        Probability of a paste for each image, 0..1.
    scale, ratio, jitter, width, height, angle, lengths_for
        As for `anatpaste_aug.cutpaste_union`.

    Raises
    ------
    TypeError, ValueError
        If an option has another type or leaves its limits.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015, section 2.2.
    """

    operation = operations.CutPasteUnion
    paste_chosen = staticmethod(cutpaste.paste_chosen)

    def __init__(
        self,
        p: float = 0.5,
        *,
        scale: Range = SCALE,
        ratio: Range = RATIO,
        jitter: float = JITTER,
        width: Range = WIDTH,
        height: Range = HEIGHT,
        angle: Range = ANGLE,
        lengths_for: float | None = LENGTHS_FOR,
    ):
        union = operations.CutPasteUnion(scale, ratio, jitter, width, height, angle, lengths_for)
        super().__init__(p, **vars(union))
