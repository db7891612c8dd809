"""torchvision v2 transforms: which parts of a sample are images, and a paste into each."""

import copy
import functools
from collections.abc import Callable
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

from anatpaste_aug.checks import check_flag, check_number
from anatpaste_aug.crop import CROP_MARGIN, check_crop, crop_window, cut
from anatpaste_aug.images import Array, Mask, as_array, as_kind_of, as_mask, check_finite
from anatpaste_aug.masks import Segment, check_segment, find_lungs, lung_mask_robust
from anatpaste_aug.operations.anatpaste import AnatPasteForm
from anatpaste_aug.operations.base import OperationForm, format_options
from anatpaste_aug.operations.cutpaste import CutPasteForm, CutPasteScarForm, CutPasteUnionForm
from anatpaste_aug.operations.opacity import OpacityForm

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


def not_traced(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Keep `torch.compile` out of a method that works in NumPy, at no cost to all other calls."""
    apart: Callable[..., Any] = torch.compiler.disable(forward)  # type: ignore[no-untyped-call]

    @functools.wraps(forward)
    def run(*args: Any) -> Any:
        return (apart if torch.compiler.is_compiling() else forward)(*args)

    return run


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

    @not_traced
    def forward(self, *inputs: Any) -> Any:
        """Add the field to the sample."""
        sample = inputs if len(inputs) > 1 else inputs[0]
        flat, _ = tree_flatten(sample)
        if any(isinstance(part, LungField) for part in flat):
            return sample
        images = [flat[index] for index in find_images(flat)]
        fields = [self.field(image) for image in images]
        # Images in a list, as Hugging Face's rows come, get a list of fields, even of one.
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
        lungs = find_lungs(to_array(image), None, self.segment)
        # A copy: the segmenter may keep its mask, or give a view that torch cannot take.
        return LungField(torch.from_numpy(lungs.copy())[None])

    def extra_repr(self) -> str:
        """Return the settings for ``repr``."""
        return format_options({"segment": self.segment})


class SampleTransform(v2.Transform):  # type: ignore[misc]
    """A transform that treats each image of a sample by itself, with its own `LungField`."""

    moves_others = False  # such as boxes and masks, which then must belong to one image, or to all

    def __init__(self, segment: Segment | None, shared: bool, needs_lungs: bool = True):
        super().__init__()
        self.needs_lungs = needs_lungs
        self.segment = check_segment(segment, needs_lungs)
        self.shared = check_flag("shared", shared)

    @not_traced
    def forward(self, *inputs: Any) -> Any:
        """Draw for each image of the sample, or once if `shared`, and transform."""
        flat, structure = tree_flatten(inputs if len(inputs) > 1 else inputs[0])
        images = find_images(flat)
        fields = [i for i, part in enumerate(flat) if isinstance(part, LungField)]
        typed = {i for i, part in enumerate(flat) if isinstance(part, tv_tensors.TVTensor)}
        others = sorted(typed - {*images, *fields}) if self.moves_others else []
        counts = f"got {len(images)} images, {len(fields)} fields, {len(others)} others"
        alone = len(images) == 1 or self.shared
        strict = self.needs_lungs and not (alone and self.moves_others)
        if strict and len(fields) not in (0, len(images)):
            raise ValueError(f"the sample must hold a LungField for each image, or none, {counts}")
        if alone:
            check_same_size([flat[i] for i in images])
            groups = [[*images, *fields, *others]]
        elif others:  # whose they are is not guessed
            raise ValueError(f"several images take no boxes or masks unless shared=True, {counts}")
        else:
            groups = [[image, *fields[i : i + 1]] for i, image in enumerate(images)]
        for group in groups:
            params = self.make_params([flat[i] for i in group])
            for i in group:
                flat[i] = self.transform(flat[i], params)
        return tree_unflatten(flat, structure)


class LungCrop(SampleTransform):
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

    moves_others = True

    def __init__(
        self,
        segment: Segment | None = None,
        *,
        margin: float = CROP_MARGIN,
        square: bool = False,
        shared: bool = False,
    ):
        super().__init__(segment, shared)
        self.margin, self.square = check_crop(margin, square)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``, so that it can be pasted back."""
        names = ("segment", "margin", "square", "shared")
        return format_options({name: getattr(self, name) for name in names})

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Find the box: its ``"window"``, slices of rows and columns.

        Parameters
        ----------
        flat_inputs : list
            An image, and perhaps its `LungField`.
        """
        array = to_array(flat_inputs[find_images(flat_inputs)[0]])
        check_finite(array)
        lungs = find_field(flat_inputs, array)
        if lungs is None:
            lungs = find_lungs(array, None, self.segment or lung_mask_robust)
        return {"window": crop_window(lungs, self.margin, self.square)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut an image, or what torchvision can cut; anything else is passed through."""
        rows, columns = params["window"]
        if isinstance(inpt, np.ndarray):
            return cut(inpt, params["window"])
        sizes = (rows.stop - rows.start, columns.stop - columns.start)
        return self._call_kernel(v2.functional.crop, inpt, rows.start, columns.start, *sizes)


class OperationTransform(OperationForm, SampleTransform):
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
        (1, H, W) bool), as anomalib's generators do, but for their masks of floats.
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

    def __init__(
        self,
        p: float = 0.5,
        *,
        segment: Segment | None = None,
        return_mask: bool = False,
        shared: bool = False,
        **options: Any,
    ):
        super().__init__(segment, shared, self.operation.needs_lungs)
        self.p = check_number("p", p, 0, 1)
        self.return_mask = check_flag("return_mask", return_mask)
        self.op = self.operation(**options)

    def extra_repr(self) -> str:
        """Return the settings for ``repr``, so that it can be pasted back."""
        segment = {"segment": self.segment} if self.needs_lungs else {}
        settings = {"p": self.p, **vars(self.op), **segment}
        return format_options({**settings, "return_mask": self.return_mask, "shared": self.shared})

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
        # A wrong kind, dtype, shape or field is told even where nothing will be pasted.
        array, lungs = to_array(flat_inputs[find_images(flat_inputs)[0]]), None
        if self.needs_lungs:
            lungs = find_field(flat_inputs, array)
        if torch.rand(()) >= self.p:
            return {"params": None, "lungs": None}
        # A seed from torch's generator: workers and epochs differ as torch's own draws do.
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        if self.needs_lungs and lungs is None:
            lungs = find_lungs(array, None, self.segment)
        return {"params": self.op.sample(array.shape[:2], lungs, rng), "lungs": lungs}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Repeat a paste that `make_params` has drawn; what is not an image is passed through."""
        if not is_image(inpt) or (params["params"] is None and not self.return_mask):
            return inpt
        array = to_array(inpt)
        out, region = inpt, np.zeros(array.shape[:2], bool)
        if params["params"] is not None:
            pasted, region = self.op.perform(array, params["params"], params["lungs"])
            out = from_array(inpt, pasted)
        return (out, tv_tensors.Mask(torch.from_numpy(region)[None])) if self.return_mask else out


class AnatPaste(AnatPasteForm, OperationTransform):
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


class CutPaste(CutPasteForm, OperationTransform):
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


class CutPasteScar(CutPasteScarForm, OperationTransform):
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


class CutPasteUnion(CutPasteUnionForm, OperationTransform):
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


class Opacity(OpacityForm, OperationTransform):
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


def find_field(parts: list[Any], array: Array) -> Mask | None:
    """Return the `LungField` among some parts of a sample, checked, if there is one."""
    fields = [part for part in parts if isinstance(part, LungField)]
    return as_mask(fields[0], array.shape, "the sample's LungField").copy() if fields else None


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
            "anatpaste_aug.batch takes batches (B, C, H, W); no form takes volumes"
        )
    if image.dtype == torch.bfloat16:
        raise TypeError(f"image must have a dtype that NumPy has, got {image.dtype}")
    if image.requires_grad or type(image) is not torch.Tensor:
        image = image.detach().as_subclass(torch.Tensor)
    return as_array(image.numpy())


def from_array(image: Any, array: Array) -> Any:
    """Return an array as the kind of `image`."""
    if not isinstance(image, torch.Tensor):
        return as_kind_of(image, array)
    planes = np.ascontiguousarray(array.transpose(2, 0, 1) if array.ndim == 3 else array)
    tensor = torch.from_numpy(planes).reshape(image.shape).to(image.dtype)
    if isinstance(image, tv_tensors.TVTensor):
        return tv_tensors.wrap(tensor, like=image)
    if type(image) is torch.Tensor:
        return tensor
    return image.detach().clone().copy_(tensor)  # with what a subclass carries, as MONAI's meta
