"""torchvision v2 transforms: which parts of a sample are images, and a paste into each."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from PIL import Image

try:
    import torch
    from torch.utils._pytree import tree_flatten, tree_unflatten
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ImportError as error:
    raise ImportError(
        "anatpaste_aug.transforms needs torch and torchvision: pip install 'anatpaste-aug[torch]'"
    ) from error

from anatpaste_aug.checks import Range, check_flag, check_number
from anatpaste_aug.crop import CROP_MARGIN, check_crop, crop_window, cut
from anatpaste_aug.images import Array, Mask, as_array, as_kind_of, as_mask
from anatpaste_aug.lungs import Segment, check_segment, find_lungs
from anatpaste_aug.operations import anatpaste, cutpaste, opacity
from anatpaste_aug.operations.anatpaste import BLUR, JITTER, MARGIN, OPACITY, RATIO, SCALE
from anatpaste_aug.operations.base import LENGTHS_FOR, Operation, describe
from anatpaste_aug.operations.cutpaste import ANGLE, HEIGHT, WIDTH
from anatpaste_aug.operations.opacity import KINDS, Kinds
from anatpaste_aug.robust import lung_mask_robust

__all__ = [
    "AnatPaste",
    "CutPaste",
    "CutPasteScar",
    "CutPasteUnion",
    "LungCrop",
    "LungField",
    "LungMask",
    "Opacity",
    "OperationTransform",
]


class LungField(tv_tensors.Mask):  # type: ignore[misc]  # torchvision has no types
    """The lung mask of the image in the same sample, (1, H, W) bool.

    Geometric transforms move it with the image, as any `tv_tensors.Mask`; its own type keeps it
    apart from the sample's label masks.
    """


class LungMask(v2.Transform):  # type: ignore[misc]
    """Segment the lungs and add them to the sample as a `LungField`.

    An image becomes ``(image, field)``, a tuple or list (no named tuple) gets the field appended, a
    dict gets it under the key ``"lung_field"``; of several images, a list of their fields. A sample
    that has a `LungField` already is passed through. Segment once, before the random transforms,
    and `AnatPaste` need not do it again.

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
        if any(isinstance(part, LungField) for part in flat):
            return sample
        images = [flat[index] for index in find_images(flat)]
        fields = [self.field(image) for image in images]
        # Images in a list, as Hugging Face's rows come, get a list of fields, be it of one.
        outer = sample.values() if isinstance(sample, dict) else flat
        alone = len(fields) == 1 and any(images[0] is part for part in outer)
        added = fields[0] if alone else fields
        if isinstance(sample, dict):
            if "lung_field" in sample:
                raise ValueError("the sample's key 'lung_field' must be free or hold a LungField")
            sample = copy.copy(sample)
            sample["lung_field"] = added
            return sample
        if hasattr(sample, "_fields"):
            raise TypeError(f"a named tuple has no place for a LungField, got {sample!r}")
        if isinstance(sample, (tuple, list)):
            return type(sample)([*sample, added])
        return sample, added

    def field(self, image: Any) -> LungField:
        """Segment one image."""
        # A copy: the segmenter may keep its mask, or give a view that torch cannot take.
        return LungField(
            torch.from_numpy(find_lungs(to_array(image), None, self.segment).copy())[None]
        )

    def extra_repr(self) -> str:
        """Return the settings for ``repr``."""
        return describe({"segment": self.segment})


class LungCrop(v2.Transform):  # type: ignore[misc]
    """Cut the image of a sample to the box around its lungs, and a margin.

    Boxes, masks, the `LungField` and all else that is a `tv_tensors` kind are cut along, as
    torchvision's own crops do. Where no lungs are found, the sample stays whole.

    Of several images, each is cut to its own lungs, with the `LungField` of its own if there are as
    many; results may differ in size. To which of them a box or a mask belongs is not guessed: such
    a sample is refused, unless `shared`.

    Parameters
    ----------
    segment : callable, optional
        Makes the (H, W) mask from the image's (H, W) or (H, W, 3) array instead of
        `anatpaste_aug.lung_mask_robust`, where the sample has no `LungField`.
    margin, square
        As for `anatpaste_aug.lung_crop`.
    shared : bool, optional
        Whether all images of a sample are cut to the box of the first; they must then have the same
        size.

    Raises
    ------
    TypeError, ValueError
        At construction, if an argument has another type or leaves its limits; when called, if the
        sample holds no image, one that `anatpaste_aug.anatpaste` does not take, or boxes or masks
        beside several images.

    Examples
    --------
    >>> from torchvision.transforms import v2
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> from anatpaste_aug.transforms import LungCrop, Opacity
    >>> augment = v2.Compose([v2.ToImage(), LungCrop(), v2.Resize((256, 256)), Opacity(p=0.5)])
    >>> augment(phantom_radiograph(512, rng=0)).shape
    torch.Size([1, 256, 256])
    """

    def __init__(
        self,
        segment: Segment | None = None,
        *,
        margin: float = CROP_MARGIN,
        square: bool = False,
        shared: bool = False,
    ):
        super().__init__()
        self.segment = check_segment(segment)
        self.margin, self.square = check_crop(margin, square)
        self.shared = check_flag("shared", shared)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``, so that it can be pasted back."""
        names = ("segment", "margin", "square", "shared")
        return describe({name: getattr(self, name) for name in names})

    def forward(self, *inputs: Any) -> Any:
        """Find the lungs of each image, and cut what belongs to it."""
        flat, structure = tree_flatten(inputs if len(inputs) > 1 else inputs[0])
        images = find_images(flat)
        fields = [i for i, part in enumerate(flat) if isinstance(part, LungField)]
        moved = [i for i, part in enumerate(flat) if isinstance(part, tv_tensors.TVTensor)]
        others = sorted({*moved} - {*images, *fields})
        if len(images) == 1 or self.shared:
            check_same_size([flat[i] for i in images])
            groups = [[*images, *fields, *others]]
        elif others or len(fields) not in (0, len(images)):
            raise ValueError(
                "a sample of several images must hold a LungField for each or none, and no boxes "
                f"or masks unless shared=True, got {len(images)} images, {len(fields)} fields, "
                f"{len(others)} others"
            )
        else:
            groups = [[*images[i : i + 1], *fields[i : i + 1]] for i in range(len(images))]
        for group in groups:
            params = self.make_params([flat[i] for i in group])
            for i in group:
                flat[i] = self.transform(flat[i], params)
        return tree_unflatten(flat, structure)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Find the box: its ``top``, ``left``, ``height`` and ``width``.

        Parameters
        ----------
        flat_inputs : list
            An image, and perhaps its `LungField`.
        """
        array = to_array(flat_inputs[find_images(flat_inputs)[0]])
        lungs = field_or_lungs(flat_inputs, array, self.segment or lung_mask_robust)
        rows, columns = crop_window(lungs, self.margin, self.square)
        return {
            "top": rows.start,
            "left": columns.start,
            "height": rows.stop - rows.start,
            "width": columns.stop - columns.start,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut an image, or what torchvision can cut; anything else is passed through."""
        if isinstance(inpt, np.ndarray):
            top, left = params["top"], params["left"]
            return cut(
                inpt, (slice(top, top + params["height"]), slice(left, left + params["width"]))
            )
        return self._call_kernel(v2.functional.crop, inpt, **params)


class OperationTransform(v2.Transform):  # type: ignore[misc]
    """Apply an operation to the images of a sample, each with probability `p`.

    The base of all pasting transforms here, and of your own: a subclass names its `operation`, and
    that is enough. Images are Pillow images, `tv_tensors.Image`, and, where the sample has none of
    those, its one plain CPU tensor or NumPy array of two or more dimensions: (H, W), (1, H, W),
    tensors also (3, H, W), arrays (H, W, 3) or (H, W, 1). They may be nested in tuples, lists and
    dicts; all else is passed through as the same object. Tensor subclasses come back as such.
    Gradients are not followed. Draws come from torch's global generator alone, so that
    `torch.manual_seed` and DataLoader workers behave as with torchvision's own.

    Each image gets a mask and a paste of its own. Where the sample holds `LungField` masks, one for
    each image and in the same order, they are used.

    Parameters
    ----------
    p : float, optional
        Probability of a paste, 0..1.
    segment : callable, optional
        Makes the (H, W) mask from the image's (H, W) or (H, W, 3) array instead of
        `anatpaste_aug.lung_mask`, where the sample has no `LungField`. Only for operations that
        need lungs.
    return_mask : bool, optional
        Whether an image is replaced by the pair (image, `tv_tensors.Mask` of the changed region,
        (1, H, W) bool), as anomalib's generators do.
    shared : bool, optional
        Whether all images of a sample get the mask and the paste of the first; they must then have
        the same size.
    **options
        Those of the operation.

    Raises
    ------
    TypeError, ValueError
        At construction, if an argument has another type or leaves its range; when called, if the
        sample holds no image, several plain tensors of which one is to be guessed, or an image that
        `anatpaste_aug.anatpaste` does not take.

    Examples
    --------
    What was drawn can be seen, and repeated:

    >>> from anatpaste_aug.data import phantom_radiograph
    >>> from anatpaste_aug.transforms import AnatPaste
    >>> image, paste = phantom_radiograph(256, rng=0), AnatPaste(p=1)
    >>> drawn = paste.make_params([image])  # params and lungs
    >>> bool((paste.transform(image, drawn) == paste.transform(image, drawn)).all())
    True
    """

    operation: type[Operation[Any]]

    def __init__(
        self,
        p: float = 0.5,
        *,
        segment: Segment | None = None,
        return_mask: bool = False,
        shared: bool = False,
        **options: Any,
    ):
        super().__init__()
        self.p = check_number("p", p, 0, 1)
        self.segment = check_segment(segment, self.operation.needs_lungs)
        self.return_mask = check_flag("return_mask", return_mask)
        self.shared = check_flag("shared", shared)
        self.paste = self.operation(**options)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``, so that it can be pasted back."""
        segment = {"segment": self.segment} if self.paste.needs_lungs else {}
        settings = {"p": self.p, **vars(self.paste), **segment}
        return describe({**settings, "return_mask": self.return_mask, "shared": self.shared})

    def forward(self, *inputs: Any) -> Any:
        """Draw for each image of the sample, and paste."""
        flat, structure = tree_flatten(inputs if len(inputs) > 1 else inputs[0])
        images = find_images(flat)
        fields = [part for part in flat if isinstance(part, LungField)]
        if self.paste.needs_lungs and fields and len(fields) != len(images):
            raise ValueError(
                "the sample must hold a LungField for each image, or none, "
                f"got {len(fields)} for {len(images)} images"
            )
        if self.shared:
            check_same_size([flat[index] for index in images])
        params: dict[str, Any] = {}
        for number, index in enumerate(images):
            if not (params and self.shared):
                params = self.make_params([flat[index], *fields[number : number + 1]])
            flat[index] = self.transform(flat[index], params)
        return tree_unflatten(flat, structure)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Decide whether to paste, and draw one paste, from torch's generator.

        Parameters
        ----------
        flat_inputs : list
            An image, and perhaps its `LungField`.

        Returns
        -------
        params : dict
            ``"params"``: what was drawn, an instance of the operation's params, or None: no paste.
            ``"lungs"``: the (H, W) bool array that it was drawn for, or None.
        """
        image = flat_inputs[find_images(flat_inputs)[0]]
        if torch.rand(()) >= self.p:
            return {"params": None, "lungs": None}
        # A seed from torch's generator: workers and epochs differ as torch's own draws do.
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        array, lungs = to_array(image), None
        if self.paste.needs_lungs:
            lungs = field_or_lungs(flat_inputs, array, self.segment)
        return {"params": self.paste.sample(array.shape[:2], lungs, rng), "lungs": lungs}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Repeat a paste that `make_params` has drawn; what is no image is passed through."""
        if not is_image(inpt):
            return inpt
        if params["params"] is not None:
            pasted, region = self.paste.perform(to_array(inpt), params["params"], params["lungs"])
            out = from_array(inpt, pasted)
        elif self.return_mask:
            out, region = inpt, np.zeros(to_array(inpt).shape[:2], bool)
        else:
            return inpt
        return (out, tv_tensors.Mask(torch.from_numpy(region)[None])) if self.return_mask else out


class AnatPaste(OperationTransform):
    """Paste a blurred patch of the radiograph into its lungs, with probability `p`.

    Samples, images and randomness: see `OperationTransform`.

    Parameters
    ----------
    p : float, optional
        Probability of a paste, 0..1.
    scale, ratio, blur, opacity, margin, jitter, lengths_for
        As for `anatpaste_aug.sample_paste`, with the published defaults.
    segment, return_mask, shared
        As for `OperationTransform`.

    Raises
    ------
    TypeError, ValueError
        As `OperationTransform`.

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

    operation = anatpaste.AnatPaste

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
        return_mask: bool = False,
        shared: bool = False,
    ):
        own = anatpaste.AnatPaste(scale, ratio, blur, opacity, margin, jitter, lengths_for)
        super().__init__(p, segment=segment, return_mask=return_mask, shared=shared, **vars(own))


class CutPaste(OperationTransform):
    """Paste a patch whole at a random place (CutPaste *normal*), with probability `p`.

    Samples, images and randomness: see `OperationTransform`.

    Parameters
    ----------
    p : float, optional
        Probability of a paste, 0..1.
    scale, ratio, jitter
        As for `anatpaste_aug.sample_paste`.
    return_mask, shared
        As for `OperationTransform`.

    Raises
    ------
    TypeError, ValueError
        As `OperationTransform`.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015.
    """

    operation = cutpaste.CutPaste

    def __init__(
        self,
        p: float = 0.5,
        *,
        scale: Range = SCALE,
        ratio: Range = RATIO,
        jitter: float = JITTER,
        return_mask: bool = False,
        shared: bool = False,
    ):
        own = vars(cutpaste.CutPaste(scale, ratio, jitter))
        super().__init__(p, return_mask=return_mask, shared=shared, **own)


class CutPasteScar(OperationTransform):
    """Paste a thin rotated patch at a random place (CutPaste *scar*), with probability `p`.

    Samples, images and randomness: see `OperationTransform`.

    Parameters
    ----------
    p : float, optional
        Probability of a paste, 0..1.
    width, height, angle, jitter, lengths_for
        As for `anatpaste_aug.sample_scar`.
    return_mask, shared
        As for `OperationTransform`.

    Raises
    ------
    TypeError, ValueError
        As `OperationTransform`.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015.
    """

    operation = cutpaste.CutPasteScar

    def __init__(
        self,
        p: float = 0.5,
        *,
        width: Range = WIDTH,
        height: Range = HEIGHT,
        angle: Range = ANGLE,
        jitter: float = JITTER,
        lengths_for: float | None = LENGTHS_FOR,
        return_mask: bool = False,
        shared: bool = False,
    ):
        own = vars(cutpaste.CutPasteScar(width, height, angle, jitter, lengths_for))
        super().__init__(p, return_mask=return_mask, shared=shared, **own)


class CutPasteUnion(OperationTransform):
    """Paste as `CutPaste` or as `CutPasteScar`, each half of the time, with probability `p`.

    Samples, images and randomness: see `OperationTransform`.

    Parameters
    ----------
    p : float, optional
        Probability of a paste, 0..1.
    scale, ratio, jitter, width, height, angle, lengths_for
        As for `anatpaste_aug.cutpaste_union`.
    return_mask, shared
        As for `OperationTransform`.

    Raises
    ------
    TypeError, ValueError
        As `OperationTransform`.

    References
    ----------
    Li et al., CutPaste, CVPR 2021, arXiv:2104.04015.
    """

    operation = cutpaste.CutPasteUnion

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
        return_mask: bool = False,
        shared: bool = False,
    ):
        paste = cutpaste.CutPasteUnion(scale, ratio, jitter, width, height, angle, lengths_for)
        super().__init__(p, return_mask=return_mask, shared=shared, **vars(paste))


class Opacity(OperationTransform):
    """Brighten a part of the lungs as disease does, with probability `p`.

    Samples, images and randomness: see `OperationTransform`.

    Parameters
    ----------
    p : float, optional
        Probability of an opacity, 0..1.
    kinds, size, density, lengths_for
        As for `anatpaste_aug.sample_opacity`.
    segment, return_mask, shared
        As for `OperationTransform`.

    Raises
    ------
    TypeError, ValueError
        As `OperationTransform`.

    Examples
    --------
    An opacity or an AnatPaste, each half of the time:

    >>> from torchvision.transforms import v2
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> from anatpaste_aug.transforms import AnatPaste, Opacity
    >>> augment = v2.RandomChoice([AnatPaste(p=1), Opacity(p=1)])
    >>> augment(phantom_radiograph(256, rng=0)).shape
    (256, 256)
    """

    operation = opacity.Opacity

    def __init__(
        self,
        p: float = 0.5,
        *,
        kinds: Kinds = KINDS,
        size: float = 1,
        density: float = 1,
        lengths_for: float | None = LENGTHS_FOR,
        segment: Segment | None = None,
        return_mask: bool = False,
        shared: bool = False,
    ):
        own = opacity.Opacity(kinds, size, density, lengths_for)
        super().__init__(p, segment=segment, return_mask=return_mask, shared=shared, **vars(own))


def is_image(part: Any) -> bool:
    """Tell whether a part of a sample is, or may be, an image."""
    if isinstance(part, tv_tensors.TVTensor):
        return isinstance(part, tv_tensors.Image)
    plain = isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim >= 2
    return plain or isinstance(part, Image.Image)


def find_images(flat: list[Any]) -> list[int]:
    """Return the places of a sample's images; a plain tensor or array, if nothing else is one."""
    images = [index for index, part in enumerate(flat) if is_image(part)]
    typed = [i for i in images if isinstance(flat[i], (Image.Image, tv_tensors.Image))]
    if not images:
        raise ValueError(
            "the sample must hold a Pillow image, a tv_tensors.Image, or a tensor or array of two "
            f"or more dimensions, got {[type(part).__name__ for part in flat]}"
        )
    if not typed and len(images) > 1:
        shapes = ", ".join(str(tuple(flat[index].shape)) for index in images)
        raise ValueError(
            "the sample must say which of its tensors and arrays are images: wrap them in "
            f"tv_tensors.Image, and masks in tv_tensors.Mask; got {shapes}"
        )
    return typed or images


def check_same_size(images: list[Any]) -> None:
    """Check that images which share a paste or a box are of one size."""
    sizes = {to_array(image).shape[:2] for image in images}
    if len(sizes) > 1:
        raise ValueError(f"images that share a paste must have one size, got {sorted(sizes)}")


def field_or_lungs(parts: list[Any], array: Array, segment: Segment | None) -> Mask:
    """Return the `LungField` among some parts of a sample, or segment the image."""
    fields = [part for part in parts if isinstance(part, LungField)]
    if fields:
        lungs: Mask = as_mask(fields[0], array.shape, "the sample's LungField").copy()
        return lungs
    return find_lungs(array, None, segment)


def to_array(image: Any) -> Array:
    """View an image as a checked (H, W) or (H, W, 3) array."""
    if not isinstance(image, torch.Tensor):
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


def from_array(image: Any, array: Array) -> Any:
    """Return an array as the kind of `image`."""
    if not isinstance(image, torch.Tensor):
        return as_kind_of(image, array)
    if array.ndim == 3:
        array = np.ascontiguousarray(array.transpose(2, 0, 1))
    tensor = torch.from_numpy(array).reshape(image.shape).to(image.dtype)
    if isinstance(image, tv_tensors.TVTensor):
        return tv_tensors.wrap(tensor, like=image)
    if type(image) is torch.Tensor:
        return tensor
    return image.detach().clone().copy_(tensor)  # with what a subclass carries, as MONAI's meta
