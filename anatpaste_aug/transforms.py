"""torchvision v2 transforms, one image at a time: they draw with torch and call the functions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

try:
    import torch
    from torch.utils._pytree import tree_flatten
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ImportError as error:
    raise ImportError(
        "anatpaste_aug.transforms needs torch and torchvision: pip install 'anatpaste-aug[torch]'"
    ) from error

from anatpaste_aug.baselines import apply_cutpaste
from anatpaste_aug.checks import Range, check_flag, check_number
from anatpaste_aug.images import Array, Mask, as_array, as_mask
from anatpaste_aug.paste import Segment, apply_paste, check_segment, find_lungs
from anatpaste_aug.sampling import (
    BLUR,
    JITTER,
    MARGIN,
    OPACITY,
    RATIO,
    SCALE,
    PasteRanges,
    draw_cutpaste,
    draw_paste,
    draw_scar,
)

__all__ = ["AnatPaste", "CutPaste", "CutPasteScar", "CutPasteUnion", "LungField", "LungMask"]


class LungField(tv_tensors.Mask):
    """The lung mask of the image in the same sample, (1, H, W) bool.

    Geometric transforms move it with the image, as any `tv_tensors.Mask`; its own type keeps it
    apart from the sample's label masks.
    """


class LungMask(v2.Transform):
    """Segment the lungs and add them to the sample as a `LungField`.

    An image becomes ``(image, field)``, a tuple or list (no named tuple) gets the field appended, a
    dict gets it under the key ``"lung_field"``. A sample that has a `LungField` already is passed
    through. Segment once, before the random transforms, and `AnatPaste` need not do it again.

    Parameters
    ----------
    segment : callable, optional
        Makes the (H, W) mask from the image's (H, W) or (H, W, 3) array instead of
        `anatpaste_aug.lung_mask`.

    Raises
    ------
    TypeError, ValueError
        At construction, if `segment` is not callable; when called, if the sample holds no image,
        or one that `anatpaste_aug.anatpaste` does not take, or a dict's key is in use.

    Examples
    --------
    >>> from PIL import Image
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> from anatpaste_aug.transforms import LungMask
    >>> image, field = LungMask()(Image.fromarray(phantom_radiograph(128, rng=0)))
    >>> type(field).__name__, tuple(field.shape)
    ('LungField', (1, 128, 128))
    """

    def __init__(self, segment: Segment | None = None):
        super().__init__()
        self.segment = check_segment(segment)

    def forward(self, *inputs: Any) -> Any:
        """Add the field to the sample."""
        sample = inputs if len(inputs) > 1 else inputs[0]
        flat, _ = tree_flatten(sample)
        if _find_field(flat) is not None:
            return sample
        lungs = find_lungs(_to_array(_find_image(flat)), None, self.segment)
        field = LungField(torch.from_numpy(lungs)[None])
        if isinstance(sample, dict):
            if "lung_field" in sample:
                raise ValueError("the sample's key 'lung_field' must be free or hold a LungField")
            sample = copy.copy(sample)
            sample["lung_field"] = field
            return sample
        if hasattr(sample, "_fields"):
            raise TypeError(f"a named tuple has no place for a LungField, got {sample!r}")
        if isinstance(sample, (tuple, list)):
            return type(sample)([*sample, field])
        return sample, field


Paste = Callable[[Array], tuple[Array, Mask]]  # an image to the pasted one and the region


class _Paste(v2.Transform):
    """What the pasting transforms share: p, return_mask, and the way in and out of NumPy."""

    def __init__(self, p: float, return_mask: bool, ranges: PasteRanges):
        super().__init__()
        self.p = check_number("p", p, 0, 1)
        self.return_mask = check_flag("return_mask", return_mask)
        self.ranges = ranges

    def extra_repr(self) -> str:
        """Give the settings for ``repr``."""
        return f"p={self.p}, {self.ranges}, return_mask={self.return_mask}"

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Decide whether to paste, and draw one paste for the sample, from torch's generator."""
        image = _find_image(flat_inputs)
        if torch.rand(()) >= self.p:
            return {"paste": None}
        # A seed from torch's generator: workers and epochs differ as torch's own draws do.
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        return {"paste": self._draw(_to_array(image), _find_field(flat_inputs), rng)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Paste into the images; pass everything else through as the same object."""
        if not _is_image(inpt):
            return inpt
        if params["paste"] is None:
            if not self.return_mask:
                return inpt
            empty = torch.zeros(1, *v2.functional.get_size(inpt), dtype=torch.bool)
            return inpt, tv_tensors.Mask(empty)
        out, region = params["paste"](_to_array(inpt))
        image = _like(inpt, out)
        if not self.return_mask:
            return image
        return image, tv_tensors.Mask(torch.from_numpy(region)[None])

    def _draw(self, array: Array, field: LungField | None, rng: np.random.Generator) -> Paste:
        raise NotImplementedError


class AnatPaste(_Paste):
    """Paste a blurred patch of the radiograph into its lungs, with probability `p`.

    Takes what torchvision's v2 transforms take: a Pillow image, a (1, H, W), (3, H, W) or (H, W)
    CPU tensor or `tv_tensors.Image` of uint8, uint16, int16, int32, float32 or float64, or any
    nesting of tuples, lists and dicts with one in it; everything else in the sample is passed
    through as the same object. A `LungField` in the sample is used as the lung mask. Gradients are
    not followed. Several images
    in one sample must have the same size and get the same paste. Draws come from torch's global
    generator alone.

    Parameters
    ----------
    p : float, optional
        Probability of a paste, 0..1.
    scale, ratio, blur, opacity, margin, jitter
        As for `anatpaste_aug.sample_paste`, with the published defaults.
    segment : callable, optional
        Makes the (H, W) mask from the image's (H, W) or (H, W, 3) array instead of
        `anatpaste_aug.lung_mask`, where the sample has no `LungField`.
    return_mask : bool, optional
        Whether the image is replaced by the pair (image, `tv_tensors.Mask` of the changed region,
        (1, H, W) bool), as anomalib's generators do.

    Raises
    ------
    TypeError, ValueError
        At construction, if an argument has another type or leaves its range; when called, if the
        sample holds no image, or one that `anatpaste_aug.anatpaste` does not take.

    References
    ----------
    Sato et al., arXiv:2205.04282, section "AnatPaste augmentation".

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> from anatpaste_aug.transforms import AnatPaste
    >>> image = torch.from_numpy(phantom_radiograph(256, rng=0))[None]
    >>> out, region = AnatPaste(p=1, return_mask=True)(image)
    >>> tuple(out.shape), out.dtype, tuple(region.shape)
    ((1, 256, 256), torch.uint8, (1, 256, 256))
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
        return_mask: bool = False,
    ):
        super().__init__(p, return_mask, PasteRanges(scale, ratio, blur, opacity, margin, jitter))
        self.segment = check_segment(segment)

    def _draw(self, array: Array, field: LungField | None, rng: np.random.Generator) -> Paste:
        if field is None:
            lungs = find_lungs(array, None, self.segment)
        else:
            mask = field.as_subclass(torch.Tensor).cpu().numpy()
            if mask.ndim == 3 and len(mask) == 1:
                mask = mask[0]
            lungs = as_mask(mask, array.shape, "the sample's LungField")
        params = draw_paste(lungs, rng, self.ranges)
        return partial(apply_paste, params=params, mask=lungs, return_mask=True)


class CutPaste(_Paste):
    """Paste a patch whole at a random place (CutPaste *normal*), with probability `p`.

    Takes the same samples as `AnatPaste`.

    Parameters
    ----------
    p : float, optional
        Probability of a paste, 0..1.
    scale, ratio, jitter
        As for `anatpaste_aug.sample_paste`.
    return_mask : bool, optional
        As for `AnatPaste`.

    Raises
    ------
    TypeError, ValueError
        As `AnatPaste`.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015.
    """

    def __init__(
        self,
        p: float = 0.5,
        *,
        scale: Range = SCALE,
        ratio: Range = RATIO,
        jitter: float = JITTER,
        return_mask: bool = False,
    ):
        super().__init__(p, return_mask, PasteRanges(scale, ratio, jitter=jitter))

    def _draw(self, array: Array, field: LungField | None, rng: np.random.Generator) -> Paste:
        params = draw_cutpaste(array.shape[:2], rng, self.ranges)
        return partial(apply_cutpaste, params=params, return_mask=True)


class CutPasteScar(CutPaste):
    """Paste a thin rotated patch at a random place (CutPaste *scar*), with probability `p`.

    Takes the same samples as `AnatPaste`.

    Parameters
    ----------
    p : float, optional
        Probability of a paste, 0..1.
    jitter : float, optional
        As for `anatpaste_aug.sample_paste`.
    return_mask : bool, optional
        As for `AnatPaste`.

    Raises
    ------
    TypeError, ValueError
        As `AnatPaste`.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015.
    """

    def __init__(self, p: float = 0.5, *, jitter: float = JITTER, return_mask: bool = False):
        super().__init__(p, jitter=jitter, return_mask=return_mask)

    def _draw(self, array: Array, field: LungField | None, rng: np.random.Generator) -> Paste:
        params = draw_scar(array.shape[:2], rng, self.ranges)
        return partial(apply_cutpaste, params=params, return_mask=True)


class CutPasteUnion(CutPaste):
    """Paste as `CutPaste` or as `CutPasteScar`, each half of the time, with probability `p`.

    Takes the same samples as `AnatPaste`.

    Parameters
    ----------
    p : float, optional
        Probability of a paste, 0..1.
    scale, ratio, jitter
        As for `anatpaste_aug.sample_paste`.
    return_mask : bool, optional
        As for `AnatPaste`.

    Raises
    ------
    TypeError, ValueError
        As `AnatPaste`.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015.
    """

    def _draw(self, array: Array, field: LungField | None, rng: np.random.Generator) -> Paste:
        draw = (draw_cutpaste, draw_scar)[rng.integers(2)]
        params = draw(array.shape[:2], rng, self.ranges)
        return partial(apply_cutpaste, params=params, return_mask=True)


def _is_image(part: Any) -> bool:
    return isinstance(part, (Image.Image, tv_tensors.Image)) or (
        isinstance(part, torch.Tensor) and not isinstance(part, tv_tensors.TVTensor)
    )


def _find_image(flat: list[Any]) -> Any:
    """Give the sample's first image: as in torchvision, a plain tensor only if nothing else is."""
    images = [part for part in flat if _is_image(part)]
    typed = [part for part in images if isinstance(part, (Image.Image, tv_tensors.Image))]
    if not images:
        raise ValueError("the sample must hold a Pillow image, a tensor or a tv_tensors.Image")
    return (typed or images)[0]


def _find_field(flat: list[Any]) -> LungField | None:
    return next((part for part in flat if isinstance(part, LungField)), None)


def _to_array(image: Any) -> Array:
    """View an image as a checked (H, W) or (H, W, 3) array."""
    if isinstance(image, Image.Image):
        return as_array(image)
    if image.device.type != "cpu":
        raise ValueError(
            f"image must be on the CPU, got {image.device}; anatpaste_aug.batch takes any device"
        )
    if image.ndim == 3 and image.shape[0] in (1, 3):
        image = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    elif image.ndim != 2:
        raise ValueError(
            f"image must have the shape (1, H, W), (3, H, W) or (H, W), got {tuple(image.shape)}; "
            "anatpaste_aug.batch takes batches"
        )
    if image.dtype == torch.bfloat16:
        raise TypeError(f"image must have a dtype that NumPy has, got {image.dtype}")
    return as_array(image.detach().as_subclass(torch.Tensor).numpy())


def _like(image: Any, array: Array) -> Any:
    """Give an array the kind of `image`."""
    if isinstance(image, Image.Image):
        return Image.fromarray(array)
    if array.ndim == 3:
        array = np.ascontiguousarray(array.transpose(2, 0, 1))
    tensor = torch.from_numpy(array).reshape(image.shape)
    return tv_tensors.wrap(tensor, like=image) if isinstance(image, tv_tensors.Image) else tensor
