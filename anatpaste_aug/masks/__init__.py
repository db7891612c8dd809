"""Where a lung mask comes from: given, made by the caller's segmenter, or the published one."""

from collections.abc import Callable
from typing import Any, TypeAlias

from anatpaste_aug.images import Array, Mask, MaskLike, as_mask, check_finite
from anatpaste_aug.masks.published import lung_mask
from anatpaste_aug.masks.robust import lung_mask_robust

__all__ = ["Segment", "check_segment", "find_lungs", "lung_mask", "lung_mask_robust"]

Segment: TypeAlias = Callable[[Any], Any]


def find_lungs(array: Array, mask: MaskLike = None, segment: Segment | None = None) -> Mask:
    """Return the mask that is given, or make one with `segment` or `lung_mask`."""
    if mask is not None:
        if segment is not None:
            raise ValueError("mask and segment must not be given together")
        return as_mask(mask, array.shape)
    if segment is None:
        return lung_mask(array)
    check_finite(array)
    return as_mask(check_segment(segment)(array), array.shape, "the mask returned by segment")


def check_segment(segment: Any, needed: bool = True) -> Any:
    """Check that a segmenter, if there is one, can be called and is needed."""
    if segment is not None and not callable(segment):
        raise TypeError(f"segment must be callable, got {type(segment).__name__}")
    if segment is not None and not needed:
        raise ValueError(f"segment must be None where no lungs are needed, got {segment}")
    return segment
