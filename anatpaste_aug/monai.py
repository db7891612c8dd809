"""MONAI transforms: the lung mask, the crop to the lungs, and a paste, of arrays and under keys.

Images are channel first, (1, H, W) or (3, H, W), on the CPU, and upright: rows run down, which
MONAI's readers give only if told so, see ``docs/clients.md``. They may be tensors, `MetaTensor` or
arrays; as with MONAI's own transforms, tensors come out, and what a `MetaTensor` carries is kept.
Input is never changed in place, so that MONAI's caches can be used.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

try:
    import torch
    from monai.config import KeysCollection
    from monai.data import MetaTensor, get_track_meta
    from monai.transforms import Crop, Cropd, MapTransform, RandomizableTransform, Transform
    from monai.utils import convert_to_tensor, ensure_tuple
except ImportError as error:
    raise ImportError(
        "anatpaste_aug.monai needs MONAI: pip install 'anatpaste-aug[torch]' monai"
    ) from error

from anatpaste_aug import operations
from anatpaste_aug.checks import check_flag, check_number
from anatpaste_aug.crop import CROP_MARGIN, check_crop, crop_window
from anatpaste_aug.images import Array, Mask, Window, as_mask, check_finite
from anatpaste_aug.masks import Segment, check_segment, find_lungs, lung_mask_robust
from anatpaste_aug.operations.base import OperationForm
from anatpaste_aug.transforms import check_same_size, from_array, to_array

__all__ = [
    "LungCrop",
    "LungCropd",
    "LungMask",
    "LungMaskd",
    "RandAnatPaste",
    "RandAnatPasted",
    "RandOpacity",
    "RandOpacityd",
    "RandOperation",
    "RandOperationd",
]


class LungMask(Transform):  # type: ignore[misc]  # monai may be missing
    """Segment the lungs of an image: (1, H, W) bool, with a copy of what the image carries.

    Parameters
    ----------
    segment : callable, optional
        Makes the (H, W) mask from the image's (H, W) or (H, W, 3) array instead of
        `anatpaste_aug.lung_mask`.

    Raises
    ------
    TypeError, ValueError
        At construction, if `segment` is not callable; when called, for an image that
        `anatpaste_aug.anatpaste` does not take.
    """

    def __init__(self, segment: Segment | None = None):
        self.segment = check_segment(segment)

    def __call__(self, img: Any) -> Any:
        """Return the mask."""
        image = as_tensor(img)
        return mask_like(image, find_lungs(to_array(image), None, self.segment))


class LungMaskd(MapTransform):  # type: ignore[misc]
    """Segment the lungs of the images under `keys`, as `LungMask` does.

    Deterministic: a `CacheDataset` keeps the masks, if no random transform stands before it.

    Parameters
    ----------
    keys : key or sequence of keys
        Where the images are.
    mask_key : key or sequence of keys, optional
        Where their masks go, one for each of `keys`: (1, H, W) bool. Name it in the `keys` of later
        geometric transforms, and as `mask_key` of `RandAnatPasted`.
    segment : callable, optional
        As for `LungMask`.
    allow_missing_keys : bool, optional
        Whether samples may lack some of `keys`.

    Raises
    ------
    TypeError, ValueError
        At construction, if `segment` is not callable or there are fewer or more mask keys than
        keys; when called, for an image that `anatpaste_aug.anatpaste` does not take.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: KeysCollection = "lung_mask",
        *,
        segment: Segment | None = None,
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        self.mask_key = ensure_tuple(mask_key)
        if len(self.mask_key) != len(self.keys):
            wanted = f"mask_key must name one key for each of {self.keys}"
            raise ValueError(f"{wanted}, got {self.mask_key}")
        self.masker = LungMask(segment)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the masks to a copy of the sample."""
        sample = dict(data)
        for key, mask_key in self.key_iterator(sample, self.mask_key):
            sample[mask_key] = self.masker(sample[key])
        return sample


class LungCrop(Crop):  # type: ignore[misc]
    """Cut an image to the box around its lungs, and a margin.

    Deterministic, and invertible as MONAI's other crops; affine and applied operations are kept up
    to date. Where no lungs are found, the image stays whole.

    Parameters
    ----------
    segment : callable, optional
        Makes the (H, W) mask from the image's (H, W) or (H, W, 3) array instead of
        `anatpaste_aug.lung_mask_robust`, where the call gets no mask.
    margin, square
        As for `anatpaste_aug.lung_crop`.
    lazy : bool, optional
        Whether the crop waits for MONAI's next resampling. The lungs are found at once.

    Raises
    ------
    TypeError, ValueError
        At construction, if an argument has another type or leaves its limits; when called, for an
        image that `anatpaste_aug.anatpaste` does not take, or a mask of another size.
    """

    requires_current_data = True  # tells MONAI that the box depends on the pixels

    def __init__(
        self,
        *,
        segment: Segment | None = None,
        margin: float = CROP_MARGIN,
        square: bool = False,
        lazy: bool = False,
    ):
        super().__init__(check_flag("lazy", lazy))
        self.segment = check_segment(segment)
        self.margin, self.square = check_crop(margin, square)

    def __call__(self, img: Any, mask: Any = None, lazy: bool | None = None) -> Any:
        """Find the lungs, if there is no `mask` of them, and cut."""
        return super().__call__(img, self.window(img, mask), lazy)

    def window(self, img: Any, mask: Any, name: str = "mask") -> Window:
        """Return the rows and columns of the box."""
        array = to_array(as_tensor(img))
        check_finite(array)
        given = given_mask(mask, array, name)
        segment = lung_mask_robust if given is None and self.segment is None else self.segment
        return crop_window(find_lungs(array, given, segment), self.margin, self.square)


class LungCropd(Cropd):  # type: ignore[misc]
    """Cut what is under `keys` to the box around the lungs, and a margin, as `LungCrop` does.

    Parameters
    ----------
    keys : key or sequence of keys
        What is cut: images, in whose first one the lungs are found, and what lies on it, of its
        size. Where no image is there, nothing is cut.
    mask_key : key, optional
        Where a lung mask is. It gives the box, and is cut along.
    segment, margin, square, lazy
        As for `LungCrop`.
    allow_missing_keys : bool, optional
        Whether samples may lack some of `keys`.

    Raises
    ------
    TypeError, ValueError
        At construction, if an argument has another type or leaves its limits, or both `mask_key`
        and `segment` are given; when called, for an image that `anatpaste_aug.anatpaste` does not
        take.
    """

    requires_current_data = True

    def __init__(
        self,
        keys: KeysCollection,
        *,
        mask_key: Hashable | None = None,
        segment: Segment | None = None,
        margin: float = CROP_MARGIN,
        square: bool = False,
        lazy: bool = False,
        allow_missing_keys: bool = False,
    ):
        crop = LungCrop(segment=segment, margin=margin, square=square, lazy=lazy)
        check_source(mask_key, segment)
        own = ensure_tuple(keys)
        if mask_key is not None and mask_key not in own:
            own = (*own, mask_key)
        super().__init__(own, crop, allow_missing_keys, lazy)
        self.mask_key = mask_key

    def __call__(
        self, data: Mapping[Hashable, Any], lazy: bool | None = None
    ) -> dict[Hashable, Any]:
        """Find the lungs, and cut a copy of the sample."""
        sample = dict(data)
        keys = list(self.key_iterator(sample))
        images = [key for key in keys if key != self.mask_key]
        if images:
            window = self.cropper.window(sample[images[0]], *mask_of(sample, self.mask_key))
            for key in keys:
                sample[key] = Crop.__call__(self.cropper, sample[key], window, lazy)
        return sample


class RandPaste(OperationForm, RandomizableTransform):  # type: ignore[misc]
    """What pastes of arrays and under keys share: the draw, and the paste into images of a size."""

    def __init__(self, prob: float, segment: Segment | None, **options: Any):
        # Without a draw there is nothing to repeat.
        super().__init__(check_number("prob", prob, 0, 1), do_transform=False)
        self.segment = check_segment(segment, self.operation.needs_lungs)
        self.op = self.operation(**options)

    def randomize(self, data: Any = None) -> None:
        """Decide whether to paste, and draw the seed of the paste."""
        super().randomize(data)
        self.seed = int(self.R.randint(2**32, dtype="uint32"))

    def paste(self, images: list[Any], mask: Any, name: str = "mask") -> tuple[Any, Any]:
        """Return the images with what was drawn, and the changed region."""
        images = [as_tensor(image) for image in images]
        check_same_size(images)
        arrays = [to_array(image) for image in images]
        region = np.zeros(arrays[0].shape[:2], bool)
        given = given_mask(mask, arrays[0], name)  # a wrong one is told whatever was drawn
        if self._do_transform:
            lungs = find_lungs(arrays[0], given, self.segment) if self.op.needs_lungs else None
            params = self.op.sample(arrays[0].shape[:2], lungs, self.seed)
            for i, array in enumerate(arrays):
                pasted, region = self.op.perform(array, params, lungs)
                images[i] = from_array(images[i], pasted)
        return images, mask_like(images[0], region)


class RandOperation(RandPaste):
    """Apply an operation to an image, with a probability.

    The base of `RandAnatPaste` and `RandOpacity`, and of your own: a subclass names its
    `operation`, and that is enough. The random state is MONAI's, set by `set_random_state` of it or
    its `Compose`, and by MONAI's `DataLoader` in workers.

    Parameters
    ----------
    prob : float, optional
        Probability of a paste, 0..1.
    segment : callable, optional
        Makes the (H, W) mask from the image's (H, W) or (H, W, 3) array instead of
        `anatpaste_aug.lung_mask`, where the call gets no mask.
    return_mask : bool, optional
        Whether to return the changed region too, (1, H, W) bool, empty where nothing was pasted.
    **options
        Those of the operation.

    Raises
    ------
    TypeError, ValueError
        At construction, if an argument has another type or leaves its limits; when called, for an
        image that `anatpaste_aug.anatpaste` does not take, or a mask of another size.
    """

    def __init__(
        self,
        prob: float = 0.5,
        *,
        segment: Segment | None = None,
        return_mask: bool = False,
        **options: Any,
    ):
        super().__init__(prob, segment, **options)
        self.return_mask = check_flag("return_mask", return_mask)

    def __call__(self, img: Any, mask: Any = None, randomize: bool = True) -> Any:
        """Paste into an image; with ``randomize=False`` what was drawn last."""
        check_source(mask, self.segment, self.op.needs_lungs, "mask")
        if randomize:
            self.randomize()
        (image,), region = self.paste([img], mask)
        return (image, region) if self.return_mask else image


class RandOperationd(RandPaste, MapTransform):  # type: ignore[misc]
    """Apply an operation to the images under `keys`, with a probability.

    The base of `RandAnatPasted` and `RandOpacityd`, and of your own: a subclass names its
    `operation`, and that is enough. As with MONAI's other random transforms all keys share one
    decision and one draw, so they must have the same size; the random state is MONAI's, set by
    `set_random_state` of it or its `Compose`, and by MONAI's `DataLoader` in workers.

    Parameters
    ----------
    keys : key or sequence of keys
        Where the images are.
    prob : float, optional
        Probability of a paste, 0..1.
    mask_key : key, optional
        Where a lung mask is, as `LungMaskd` makes it: (1, H, W) or (H, W). Of floats, which
        interpolation leaves, what is over a half is lung.
    region_key : key, optional
        Where the changed region goes: (1, H, W) bool, empty where nothing was pasted.
    segment : callable, optional
        Makes the (H, W) mask from the first image's (H, W) or (H, W, 3) array instead of
        `anatpaste_aug.lung_mask`, where there is no `mask_key`.
    allow_missing_keys : bool, optional
        Whether samples may lack some of `keys`.
    **options
        Those of the operation.

    Raises
    ------
    TypeError, ValueError
        At construction, if an argument has another type or leaves its limits, or both `mask_key`
        and `segment` are given; when called, for an image that `anatpaste_aug.anatpaste` does not
        take, or a mask of another size.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        *,
        mask_key: Hashable | None = None,
        region_key: Hashable | None = None,
        segment: Segment | None = None,
        allow_missing_keys: bool = False,
        **options: Any,
    ):
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandPaste.__init__(self, prob, segment, **options)
        check_source(mask_key, segment, self.op.needs_lungs)
        self.mask_key, self.region_key = mask_key, region_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Paste into the images of a copy of the sample."""
        sample = dict(data)
        keys = list(self.key_iterator(sample))
        self.randomize()
        if not keys:
            return sample
        images, region = self.paste([sample[key] for key in keys], *mask_of(sample, self.mask_key))
        sample.update(zip(keys, images, strict=True))
        if self.region_key is not None:
            sample[self.region_key] = region
        return sample


class RandAnatPaste(RandOperation):
    """Paste a blurred patch of the radiograph into its lungs, with a probability.

    Parameters and errors are those of `RandOperation`; the options `scale`, `ratio`, `blur`,
    `opacity`, `margin`, `jitter` and `lengths_for` those of `anatpaste_aug.sample_paste`.

    References
    ----------
    Sato et al., arXiv:2205.04282, section "AnatPaste augmentation".
    """

    operation = operations.AnatPaste


class RandOpacity(RandOperation):
    """Brighten a part of the lungs as disease does, with a probability.

    Parameters and errors are those of `RandOperation`; the options `kinds`, `size`, `density` and
    `lengths_for` those of `anatpaste_aug.sample_opacity`.
    """

    operation = operations.Opacity


class RandAnatPasted(RandOperationd):
    """`RandAnatPaste` of the images under `keys`; `RandOperationd` has the other parameters."""

    operation = operations.AnatPaste


class RandOpacityd(RandOperationd):
    """`RandOpacity` of the images under `keys`; `RandOperationd` has the other parameters."""

    operation = operations.Opacity


def as_tensor(image: Any) -> Any:
    """Return an image as a tensor, with meta data where MONAI tracks them, as its transforms do."""
    return convert_to_tensor(image, track_meta=get_track_meta())


def mask_like(image: Any, mask: Mask) -> Any:
    """Return a mask as a (1, H, W) bool tensor, with a copy of what the image carries."""
    out = torch.from_numpy(mask[None].copy())
    return MetaTensor(out).copy_meta_from(image) if isinstance(image, MetaTensor) else out


def mask_of(sample: Any, mask_key: Hashable | None) -> tuple[Any, str]:
    """Return what is under the mask's key, if there is one, and its name in messages."""
    return None if mask_key is None else sample[mask_key], f"the mask under {mask_key!r}"


def given_mask(mask: Any, array: Array, name: str) -> Mask | None:
    """Return a lung mask that is given, perhaps of floats, checked, for an image's array."""
    return None if mask is None else as_mask(as_tensor(mask) > 0.5, array.shape, name)


def check_source(mask: Any, segment: Any, needed: bool = True, name: str = "mask_key") -> None:
    """Check that lung masks come from one place, and from none where they are not used."""
    if mask is not None and segment is not None:
        raise ValueError(f"{name} and segment must not be given together")
    if mask is not None and not needed:
        raise ValueError(f"{name} must be None where no lungs are needed, got {mask!r}")
