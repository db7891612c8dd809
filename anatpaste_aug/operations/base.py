"""What an operation is: options, a draw, params, a paste; and its form as a function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any, Generic, TypeVar

import numpy as np

from anatpaste_aug import checks
from anatpaste_aug.images import Array, ImageLike, Mask, MaskLike, as_array, as_kind_of, as_mask
from anatpaste_aug.lungs import Segment, find_lungs
from anatpaste_aug.operations.draws import Draws, Fields

LENGTHS_FOR = 256  # pixels: the published lengths are meant for images of 256 x 256

P = TypeVar("P")


def option(
    default: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    integer: bool = False,
    above: bool = False,
    single: bool = False,
    optional: bool = False,
    words: Sequence[str] = (),
) -> Any:
    """Declare an option of an operation, as a dataclass field with a default and legal values.

    Parameters
    ----------
    default : number or (low, high)
        The default.
    low, high : float, optional
        Legal values, both limits included.
    integer : bool, optional
        Whether they are whole numbers.
    above : bool, optional
        Whether `low` itself is not legal.
    single : bool, optional
        Whether it is a number. Otherwise it is a range to draw from; a number is taken as well, as
        a fixed value, and kept as a pair.
    optional : bool, optional
        Whether None is legal.
    words : sequence of str, optional
        Legal words, for an option that is no number but one or several of them; kept as a tuple.
    """
    limits: dict[str, Any] = {"low": low, "high": high}
    check: Any = checks.check_integer if integer else checks.check_number
    if words:
        check, limits = checks.check_words, {"words": words}
    elif not single:
        check, limits = checks.check_range, {**limits, "integer": integer, "above": above}
    return field(default=default, metadata={"check": check, "limits": limits, "none": optional})


def lengths_for_option() -> Any:
    """Declare `lengths_for`, the option of every operation that has lengths."""
    return option(LENGTHS_FOR, 1, checks.LARGEST, single=True, optional=True)


class Operation(Generic[P]):
    """One kind of paste, described once for its three forms: function, transform and module.

    A subclass is a frozen dataclass: its fields are the options, each declared with `option`. It
    sets `params` and, where it takes no interest in the lungs, `needs_lungs`, and it gives `draw`
    and `apply`. An instance can be called: that is its form as a function. For the others:

        class Transform(anatpaste_aug.transforms.OperationTransform): operation = MyOperation
        class Module(anatpaste_aug.batch.OperationModule): operation = MyOperation

    Attributes
    ----------
    params : type
        A frozen dataclass of what is drawn for one paste, in pixels of the image. Fields are int,
        float, or a `Literal` of some words, so that they can be stacked into tensors.
    needs_lungs : bool
        Whether `draw` and `apply` are given a lung mask.

    Raises
    ------
    TypeError, ValueError
        If an option has another type or leaves its limits.
    """

    params: type[P]
    needs_lungs = True

    def __post_init__(self) -> None:
        """Check every option; keep plain numbers and pairs of them."""
        for one in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value, rule = getattr(self, one.name), one.metadata
            if "check" not in rule:
                raise TypeError(f"{one.name} must be declared with option(...), got {value!r}")
            if not (value is None and rule["none"]):
                value = rule["check"](one.name, value, **rule["limits"])
                object.__setattr__(self, one.name, value)

    def draw(self, draws: Draws, shape: tuple[int, int], lungs: Any) -> Fields:
        """Draw the fields of `params`, from `draws` alone and with its arithmetic.

        Parameters
        ----------
        draws : Draws
            The distributions.
        shape : (int, int)
            Height and width of the image, or of each image of a batch.
        lungs : (H, W) bool array, (B, H, W) bool tensor, or None
            Lung masks, for `draws.pixel`; None where `needs_lungs` is False.
        """
        raise NotImplementedError

    @staticmethod
    def apply(image: Array, params: Any, lungs: Mask | None) -> tuple[Array, Mask]:
        """Apply one paste: return a new image, and the (H, W) bool region that may differ.

        Parameters
        ----------
        image : (H, W) or (H, W, 3) ndarray
            Checked, of any of the dtypes that `anatpaste_aug.anatpaste` takes; must not be changed.
        params : instance of the operation's `params`
            What to paste.
        lungs : (H, W) ndarray of bool, or None
            The lung mask, if there is one.
        """
        raise NotImplementedError

    def scaled(self, length: Any, shape: tuple[int, int], least: int = 0) -> Any:
        """Scale a length, or the ends of a range of lengths, from `lengths_for` to an image's size.

        Whole pixels, scaled down to no less than `least`. The option `lengths_for` is the side of
        the square image that the operation's lengths are meant for; where it is None they are taken
        as they are.
        """
        meant_for: float | None = self.lengths_for  # type: ignore[attr-defined]
        factor = math.sqrt(shape[0] * shape[1]) / meant_for if meant_for else 1
        if factor == 1:
            return length
        if isinstance(length, tuple):
            return tuple(self.scaled(end, shape, least) for end in length)
        return min(max(round(length * factor), min(length, least)), checks.LARGEST)

    def sample(self, shape: tuple[int, int], lungs: Mask | None, rng: checks.Rng = None) -> P:
        """Draw the parameters of one paste for an image of this shape, and its lung mask."""
        if self.needs_lungs:
            lungs = as_mask(lungs, shape)
        return self.params(**self.draw(Draws(checks.as_generator(rng)), shape, lungs))

    def __call__(
        self,
        image: ImageLike,
        rng: checks.Rng = None,
        *,
        mask: MaskLike | None = None,
        segment: Segment | None = None,
        return_mask: bool = False,
    ) -> Any:
        """Draw and apply one paste: the operation as a function.

        Parameters, result and errors are those of `anatpaste_aug.anatpaste`.
        """
        array, lungs = as_array(image), None
        if self.needs_lungs:
            lungs = find_lungs(array, mask, segment)
        elif not (mask is None and segment is None):
            raise ValueError("mask and segment must be None where no lungs are needed")
        params = self.sample(array.shape[:2], lungs, rng)
        return _finish(image, *self.perform(array, params, lungs), return_mask)

    @classmethod
    def replay(
        cls, image: ImageLike, params: P, mask: MaskLike | None = None, *, return_mask: bool = False
    ) -> Any:
        """Apply one paste; deterministic.

        Parameters, result and errors are those of `anatpaste_aug.apply_paste`.
        """
        return _finish(image, *cls.perform(as_array(image), params, mask), return_mask)

    @classmethod
    def perform(cls, image: Array, params: Any, mask: MaskLike | None) -> tuple[Array, Mask]:
        """Apply one paste to a checked image; check params and mask, and what comes back.

        Raises
        ------
        TypeError, ValueError
            If `params` are of another operation, the mask has another size, or `apply` returns
            something else than it should.
        """
        if not isinstance(params, cls.params):
            raise TypeError(f"params must be {cls.params.__name__}, got {type(params).__name__}")
        untouched = image.view()
        untouched.flags.writeable = False
        lungs = None if mask is None else as_mask(mask, image.shape)
        out, region = cls.apply(untouched, params, lungs)
        got = (out.dtype, out.shape, region.dtype, region.shape)
        if got != (image.dtype, image.shape, np.dtype(bool), image.shape[:2]):
            raise TypeError(
                f"{cls.__name__}.apply must return an image of {image.dtype} and {image.shape}, "
                f"and a bool region of its height and width, got {', '.join(map(str, got))}"
            )
        return (image.copy() if out is untouched else out), region


def describe(options: dict[str, Any]) -> str:
    """Return options as they are written in a call; functions by their names."""
    return ", ".join(
        f"{name}={getattr(value, '__name__', None) or repr(value)}"
        for name, value in options.items()
    )


def _finish(image: ImageLike, out: Array, region: Mask, return_mask: bool) -> Any:
    """Return the result as the caller's kind of image, with its region if asked for."""
    kind = as_kind_of(image, out)
    return (kind, region) if checks.check_flag("return_mask", return_mask) else kind
