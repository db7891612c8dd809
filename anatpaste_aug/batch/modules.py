"""The operations as modules, for use behind a DataLoader: which images, and with which masks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anatpaste_aug.batch import functions, operators
from anatpaste_aug.batch.tensors import as_images, as_masks
from anatpaste_aug.checks import check_number, check_size
from anatpaste_aug.crop import CROP_MARGIN, check_crop
from anatpaste_aug.masks import Segment, check_segment
from anatpaste_aug.operations.anatpaste import AnatPasteForm
from anatpaste_aug.operations.base import Operation, OperationForm, format_options
from anatpaste_aug.operations.cutpaste import CutPasteForm, CutPasteScarForm, CutPasteUnionForm
from anatpaste_aug.operations.opacity import OpacityForm

__all__ = [
    "AnatPaste",
    "Augmented",
    "Cropped",
    "CutPaste",
    "CutPasteScar",
    "CutPasteUnion",
    "LungCrop",
    "OneOf",
    "Opacity",
    "OperationModule",
    "Select",
]


class Augmented(NamedTuple):
    """What a module returns: images, (B, 1, H, W) changed regions, (B,) labels 0 or 1."""

    images: Tensor
    regions: Tensor
    labels: Tensor


class Cropped(NamedTuple):
    """What `LungCrop` returns: (B, C, h, w) images and (B, 1, h, w) lung masks."""

    images: Tensor
    masks: Tensor


class BatchModule(nn.Module):
    """Apply one of some operations to each image of a batch, with probability `p`."""

    def __init__(self, ops: Sequence[Operation[Any]], p: float, segment: Segment | None):
        super().__init__()
        self.ops, self.p = tuple(ops), check_number("p", p, 0, 1)
        self.needs_lungs = any(op.needs_lungs for op in self.ops)
        self.segment = check_segment(segment, self.needs_lungs)
        self.names = [operators.register(op) for op in self.ops]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.names = [operators.register(op) for op in self.ops]  # in a new process they are not

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
            lungs do not use them.
        generator : torch.Generator, optional
            Source of the draws, on the device of `images`; default is torch's global one. A module
            compiled whole (``fullgraph=True``) takes none: there, seed with `torch.manual_seed`.

        Returns
        -------
        images : Tensor, same shape, dtype, device and memory layout as `images`
            No gradient flows through it.
        regions : (B, 1, H, W) Tensor of bool
            What may have changed: where alpha > 0, or where the patch of CutPaste lies; empty in
            images without a paste.
        labels : (B,) Tensor of int64
            1 where a paste was drawn, else 0. A faint one may change nothing: see its region.

        Raises
        ------
        TypeError, ValueError
            If an argument has another type, shape or device; where no kernels run, if an image that
            is worked on is not finite.
        """
        images = as_images(images)
        options = functions.random_options(images, generator)
        chosen = torch.rand(len(images), **options) < self.p
        lungs, choice = None, torch.zeros_like(chosen, dtype=torch.int64)
        if len(self.ops) > 1:
            choice = torch.randint(len(self.ops), (len(images),), **options)
        if self.needs_lungs:
            lungs = functions.find_lungs(images, masks, self.segment, chosen)
        elif masks is not None:
            as_masks(masks, images)  # not used, but not anything goes
        regions = images.new_zeros((len(images), 1, *images.shape[2:]), dtype=torch.bool)
        for i, (op, name) in enumerate(zip(self.ops, self.names, strict=True)):
            op_lungs = lungs if op.needs_lungs else None
            op_chosen = chosen & (choice == i)
            fields = functions.sample(name, images, op_lungs, generator)
            images, changed = operators.paste(images, list(fields), op_lungs, op_chosen, name)
            regions = regions | changed
        return Augmented(images, regions, chosen.long())


class OperationModule(OperationForm, BatchModule):
    """Apply an operation to each image of a batch, with probability `p`.

    The base of all modules here, and of your own: a subclass names its `operation`, and that is
    enough. AnatPaste runs in Triton kernels where the images lie on an NVIDIA or AMD GPU. All else
    runs image by image on the CPU: images from another device go there and back. Gradients are cut.

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

    def __init__(self, p: float = 0.5, *, segment: Segment | None = None, **options: Any):
        super().__init__([self.operation(**options)], p, segment)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``, so that it can be pasted back."""
        segment = {"segment": self.segment} if self.needs_lungs else {}
        return format_options({"p": self.p, **vars(self.ops[0]), **segment})


class AnatPaste(AnatPasteForm, OperationModule):
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


class Opacity(OpacityForm, OperationModule):
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


class CutPaste(CutPasteForm, OperationModule):
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


class CutPasteScar(CutPasteScarForm, OperationModule):
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


class CutPasteUnion(CutPasteUnionForm, OperationModule):
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


class OneOf(BatchModule):
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

    def __init__(
        self, modules: Sequence[OperationModule], p: float = 0.5, *, segment: Segment | None = None
    ):
        modules = list(modules)
        if not modules:
            raise ValueError("modules must be at least one, got none")
        for one in modules:
            if not isinstance(one, OperationModule):
                raise TypeError(f"modules must be OperationModules, got {type(one).__name__}")
            if one.p != 1 or one.segment is not None:
                raise ValueError(f"modules must have p=1 and no segment, got {one}")
        super().__init__([one.ops[0] for one in modules], p, segment)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``."""
        return format_options({"operations": self.ops, "p": self.p, "segment": self.segment})


class LungCrop(nn.Module):
    """Cut each image of a batch to the box around its lungs, and bring all to one size.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of the results, at least 16.
    segment : callable, optional
        Makes the masks from the images; default is `anatpaste_aug.batch.lung_mask_robust`.
    margin, square
        As for `anatpaste_aug.lung_crop`; the boxes are the same.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or leaves its limits.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> image = torch.from_numpy(phantom_radiograph((96, 80), rng=0))
    >>> images, masks = batch.LungCrop(64)(image[None, None])
    >>> images.shape, masks.shape
    (torch.Size([1, 1, 64, 64]), torch.Size([1, 1, 64, 64]))
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        segment: Segment | None = None,
        margin: float = CROP_MARGIN,
        square: bool = False,
    ):
        super().__init__()
        self.size = check_size(size)
        self.segment = check_segment(segment)
        self.margin, self.square = check_crop(margin, square)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``, so that it can be pasted back."""
        names = ("size", "segment", "margin", "square")
        return format_options({name: getattr(self, name) for name in names})

    def forward(self, images: Tensor, *, masks: Tensor | None = None) -> Cropped:
        """Crop a batch.

        Parameters
        ----------
        images : (B, C, H, W) Tensor
        masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer, optional
            Lung masks that are already there; not together with `segment`.

        Returns
        -------
        images : (B, C, h, w) Tensor, same dtype and device as `images`
            The boxes, resized linearly and with a wider filter where they shrink: what
            torchvision's ``resize(..., antialias=True)`` gives for `anatpaste_aug.lung_crop` of
            each image, 8-bit values within 1, because that rounds between the two directions.
            Computed in float64, on the CPU. No gradient flows through it. An image whose mask is
            empty is kept whole.
        masks : (B, 1, h, w) Tensor of bool
            The masks, cut and resized in the same way; lung where it is half of it or more.

        Raises
        ------
        TypeError, ValueError
            If an argument has another type, shape or device.
        """
        images, segment = as_images(images), self.segment
        if masks is None and segment is None:
            segment = functions.lung_mask_robust
        lungs = functions.find_lungs(images, masks, segment, functions.all_of(images))
        out = operators.lung_crop(images, lungs, self.size, float(self.margin), self.square)
        return Cropped(*out)


class Select(nn.Module):
    """Run a module of this package, and return only some of its results.

    For containers that pass on whatever comes out, as `torch.nn.Sequential` and kornia's do, and
    for callers that want a pair of images and masks.

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
        If `module` is not a module, or no name is given.
    AttributeError
        When called, if there is no result of a name.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> augment = torch.nn.Sequential(batch.Select(batch.AnatPaste(p=0.5), "images"))
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
