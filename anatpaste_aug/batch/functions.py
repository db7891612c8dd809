"""The functions of the batch: masks, draws and pastes of (B, C, H, W) tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anatpaste_aug import masks as functional
from anatpaste_aug import operations
from anatpaste_aug.batch import operators
from anatpaste_aug.batch.params import PasteParams, check_params
from anatpaste_aug.batch.tensors import as_images, as_masks, check_device
from anatpaste_aug.checks import check_flag, check_integer
from anatpaste_aug.masks import Segment
from anatpaste_aug.masks.published import MIN_AREA
from anatpaste_aug.operations.anatpaste import PasteOptions
from anatpaste_aug.operations.base import show_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["apply_paste", "lung_mask", "lung_mask_robust", "sample_paste"]

PASTE = operators.register(operations.AnatPaste())  # what is applied does not depend on options


def lung_mask(images: Tensor, *, min_area: int = MIN_AREA) -> Tensor:
    """Segment the lungs on each radiograph of a batch, as `anatpaste_aug.lung_mask` does.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        As for `anatpaste_aug.batch.apply_paste`. Lungs are dark.
    min_area : int, optional
        Regions of fewer pixels are removed, together with everything in their bounding boxes.

    Returns
    -------
    masks : (B, 1, H, W) Tensor of bool
        Equal to `anatpaste_aug.lung_mask` of every image, bit for bit.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or shape, or `min_area` is negative; where no kernels run,
        if an image is not finite.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> batch.lung_mask(torch.randint(256, (4, 1, 64, 64), dtype=torch.uint8)).shape
    torch.Size([4, 1, 64, 64])
    """
    min_area = min(check_integer("min_area", min_area, 0), 2**63 - 1)  # as torch takes integers
    images = as_images(images)
    return operators.lung_mask(images, min_area, all_of(images))[:, None]


def lung_mask_robust(images: Tensor) -> Tensor:
    """Outline both lungs on each radiograph of a batch, as `anatpaste_aug.lung_mask_robust` does.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        As for `anatpaste_aug.batch.apply_paste`. Upright; of either polarity.

    Returns
    -------
    masks : (B, 1, H, W) Tensor of bool
        Equal to `anatpaste_aug.lung_mask_robust` of every image; empty where one is constant.

    Warns
    -----
    UserWarning
        As `anatpaste_aug.lung_mask_robust`.

    Raises
    ------
    TypeError, ValueError
        If `images` has another type or shape, or one is not finite.

    Notes
    -----
    It works on the CPU, wherever the images lie: a mask needs to be made once per image.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> image = torch.from_numpy(phantom_radiograph(64, rng=0))
    >>> batch.lung_mask_robust(image[None, None]).shape
    torch.Size([1, 1, 64, 64])
    """
    images = as_images(images)
    return operators.lung_mask_robust(images, all_of(images))[:, None]


def all_of(batch: Tensor) -> Tensor:
    """Choose every element of a batch."""
    return torch.ones(batch.shape[0], dtype=torch.bool, device=batch.device)


def find_lungs(
    images: Tensor, masks: Tensor | None, segment: Segment | None, chosen: Tensor
) -> Tensor:
    """Return the masks that are given, or make those of the chosen images: (B, H, W) bool."""
    if masks is not None:
        if segment is not None:
            raise ValueError("masks and segment must not be given together")
        return as_masks(masks, images)
    # The functions of this package stand for their batched forms.
    if segment is None or segment is functional.lung_mask or segment is lung_mask:
        return operators.lung_mask(images, MIN_AREA, chosen)
    if segment is functional.lung_mask_robust or segment is lung_mask_robust:
        return operators.lung_mask_robust(images, chosen)
    return as_masks(segment(images), images, "the masks returned by segment")


# --- draws ----------------------------------------------------------------------------------------


def random_options(batch: Tensor, generator: torch.Generator | None) -> dict[str, Any]:
    """Check a generator; return what a random function of torch takes for a batch."""
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            got = type(generator).__name__
            raise TypeError(f"generator must be a torch.Generator or None, got {got}")
        check_device("generator", generator, batch.device)
    # torch.compile refuses a generator, even None, where the batch's size varies.
    source = {} if generator is None else {"generator": generator}
    return {"device": batch.device, **source}


def sample(
    operation: str, batch: Tensor, lungs: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw one paste for each of the images or masks of a batch, by an operation's name."""
    size = (operators.NUMBERS, batch.shape[0])
    # Whole numbers of 53 bits, as much as there is in one from [0, 1): MPS has no float64.
    numbers = torch.randint(2**53, size, **random_options(batch, generator))
    return operators.sample(lungs, numbers, batch.shape[-2:], operation)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def register_paste(**options: Any) -> str:
    """Make AnatPaste with checked options, and return its name for operators."""
    return operators.register(operations.AnatPaste(**options))


@show_options(operations.AnatPaste)
def sample_paste(
    masks: Tensor, generator: torch.Generator | None = None, **options: Unpack[PasteOptions]
) -> PasteParams:
    """Draw one AnatPaste for each image of a batch; all draws are independent.

    Parameters
    ----------
    masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer
        Lung masks. Each paste is centered on a pixel of its mask, drawn uniformly, or anywhere in
        the image if the mask is empty.
    generator : torch.Generator, optional
        Source of the draws, on the device of `masks`; default is torch's global one.
    scale, ratio, blur, opacity, margin, jitter, lengths_for
        As for `anatpaste_aug.sample_paste`; in a function that `torch.compile` takes, constants.

    Returns
    -------
    params : PasteParams
        Tensors of (B,) on the device of `masks`.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or shape, or a range is reversed or leaves its limits.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> params = batch.sample_paste(torch.ones(8, 1, 256, 256, dtype=torch.bool))
    >>> len(params), params.width.shape
    (8, torch.Size([8]))
    """
    name, lungs = register_paste(**options), as_masks(masks)
    return PasteParams(*sample(name, lungs, lungs, generator))


# --- pastes ---------------------------------------------------------------------------------------


def apply_paste(
    images: Tensor, params: PasteParams, masks: Tensor | None = None, *, return_mask: bool = False
) -> Any:
    """Apply one paste to each image; deterministic.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        C is 1 or 3; uint8, uint16, int16, int32, float16, float32 or float64; at least 16 pixels
        high and wide, and finite: on GPUs with kernels NaN and infinities are not looked for,
        because that would wait for the device. Any memory layout. float16 is computed in float32.
    params : PasteParams
        What to paste. Patches and centers must lie inside the images; on GPUs with kernels this is
        not checked, because that would wait for the device.
    masks : (B, 1, H, W) or (B, H, W) Tensor of bool or integer, optional
        Lung masks. Without them, and where one is empty, the paste goes anywhere.
    return_mask : bool, optional
        Whether to return the changed regions too.

    Returns
    -------
    out : Tensor, same shape, dtype, device and memory layout as `images`
        What `anatpaste_aug.apply_paste` gives image by image. No gradient flows through it.
    regions : (B, 1, H, W) Tensor of bool
        Where alpha > 0. Only with ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, shape or device; where no kernels run, if an image is not
        finite, or a patch or its center lies outside of it.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> images = torch.rand(4, 3, 64, 64)
    >>> params = batch.sample_paste(torch.zeros(4, 1, 64, 64, dtype=torch.bool))
    >>> batch.apply_paste(images, params).shape
    torch.Size([4, 3, 64, 64])
    """
    images = as_images(images)
    check_params(params, images)
    lungs = None if masks is None else as_masks(masks, images)
    fields = [params.whole, params.real]
    out = operators.paste(images, fields, lungs, all_of(images), PASTE)
    return out if check_flag("return_mask", return_mask) else out[0]
