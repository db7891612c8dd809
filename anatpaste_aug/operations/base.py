"""What an operation is: options, a draw, params, a paste; and its form as a function."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from typing import Any, Generic, TypedDict, TypeVar

import numpy as np

from anatpaste_aug import checks, images
from anatpaste_aug.images import Array, ImageLike, Mask, MaskLike
from anatpaste_aug.masks import Segment, find_lungs
from anatpaste_aug.operations.sampling import Sampler

LENGTHS_FOR = 256  # pixels: the published lengths are meant for images of 256 x 256

FOR_LUNGS = ("mask", "segment", "mask_key")

P = TypeVar("P")
Shown = TypeVar("Shown")


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
        Legal words, for an option that is one or several of them, not a number; kept as a tuple.
    """
    limits: dict[str, Any] = {"low": low, "high": high}
    check: Any = checks.check_integer if integer else checks.check_number
    if words:
        check, limits = checks.check_words, {"words": words}
    elif not single:
        check, limits = checks.check_range, {**limits, "check": check, "above": above}
    return field(default=default, metadata={"check": check, "limits": limits, "none": optional})


def lengths_for_option() -> Any:
    """Declare `lengths_for`, the option of every operation that has lengths."""
    return option(LENGTHS_FOR, 1, checks.LARGEST, single=True, optional=True)


class Operation(Generic[P]):
    """One kind of paste, described once for its three forms: function, transform and module.

    A subclass is a frozen dataclass: its fields are the options, each declared with `option`. It
    sets `params` and, where it does not use lungs, `needs_lungs`, and defines `draw` and `apply`.
    An instance can be called: that is its form as a function. For the others::

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

    def draw(self, sampler: Sampler, shape: tuple[int, int], lungs: Any) -> P:
        """Draw the params of one paste, from `sampler` alone.

        Parameters
        ----------
        sampler : Sampler
            The distributions.
        shape : (int, int)
            Height and width of the image.
        lungs : (H, W) ndarray of bool, or None
            The lung mask, empty where none were found; None where `needs_lungs` is False.

        Returns
        -------
        params : instance of the operation's `params`
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
        the square image that the operation's lengths are meant for; where it is None they are
        pixels of the image.
        """
        if isinstance(length, tuple):
            return tuple(self.scaled(end, shape, least) for end in length)
        meant_for: float | None = self.lengths_for  # type: ignore[attr-defined]
        factor = math.sqrt(shape[0] * shape[1]) / meant_for if meant_for else 1
        return min(max(round(length * factor), min(math.ceil(length), least)), checks.LARGEST)

    def sample(self, shape: tuple[int, int], lungs: MaskLike, rng: checks.Rng = None) -> P:
        """Draw the parameters of one paste for an image of this shape, and its lung mask."""
        if self.needs_lungs:
            lungs = images.as_mask(lungs, shape)
        return self.draw(Sampler(checks.as_generator(rng)), shape, lungs)

    def __call__(
        self,
        image: ImageLike,
        rng: checks.Rng = None,
        *,
        mask: MaskLike = None,
        segment: Segment | None = None,
        return_mask: bool = False,
    ) -> Any:
        """Draw and apply one paste: the operation as a function.

        Parameters, result and errors are those of `anatpaste_aug.anatpaste`.
        """
        array, lungs = images.as_array(image), None
        if self.needs_lungs:
            lungs = find_lungs(array, mask, segment)
        elif not (mask is None and segment is None):
            raise ValueError("mask and segment must be None where no lungs are needed")
        params = self.sample(array.shape[:2], lungs, rng)
        return as_result(image, *self.perform(array, params, lungs), return_mask)

    @classmethod
    def call(cls, image: ImageLike, rng: checks.Rng, options: Any) -> Any:
        """Make the operation and call it: `options` are its own and those of its call."""
        own = {name: options.pop(name) for name in CallOptions.__annotations__ if name in options}
        return cls(**options)(image, rng, **own)

    @classmethod
    def replay(
        cls, image: ImageLike, params: P, mask: MaskLike = None, *, return_mask: bool = False
    ) -> Any:
        """Apply one paste; deterministic.

        Parameters, result and errors are those of `anatpaste_aug.apply_paste`.
        """
        return as_result(image, *cls.perform(images.as_array(image), params, mask), return_mask)

    @classmethod
    def perform(cls, image: Array, params: Any, mask: MaskLike) -> tuple[Array, Mask]:
        """Apply one paste to an array that `as_array` gave; check all else, and what comes back.

        Raises
        ------
        TypeError, ValueError
            If the image is not finite, `params` are of another operation, the mask has another
            size, or `apply` returns something else than it should.
        """
        cls.check_params(params)
        images.check_finite(image)
        untouched = image.view()
        untouched.flags.writeable = False
        lungs = None if mask is None else images.as_mask(mask, image.shape)
        out, region = cls.apply(untouched, params, lungs)
        got = (out.dtype, out.shape, region.dtype, region.shape)
        if got != (image.dtype, image.shape, np.dtype(bool), image.shape[:2]):
            raise TypeError(
                f"{cls.__name__}.apply must return an image of {image.dtype} and {image.shape}, "
                f"and a bool region of its height and width, got {', '.join(map(str, got))}"
            )
        return (image.copy() if out is untouched else out), region

    @classmethod
    def check_params(cls, params: Any) -> None:
        """Check that params are those of this operation."""
        if not isinstance(params, cls.params):
            raise TypeError(f"params must be {cls.params.__name__}, got {type(params).__name__}")


def as_result(image: ImageLike, out: Array, region: Mask, return_mask: bool) -> Any:
    """Return the result as the caller's kind of image, with its region if asked for."""
    kind = images.as_kind_of(image, out)
    return (kind, region) if checks.check_flag("return_mask", return_mask) else kind


def format_options(options: dict[str, Any]) -> str:
    """Return options as they are written in a call; functions by their names."""
    return ", ".join(
        f"{name}={getattr(value, '__name__', None) or repr(value)}"
        for name, value in options.items()
    )


class CallOptions(TypedDict, total=False):
    """What forms of operations take besides the operation's options: each some of these."""

    mask: MaskLike
    segment: Segment | None
    return_mask: bool
    shared: bool


def show_options(
    operation: type[Operation[Any]], like: Callable[..., Any] | None = None
) -> Callable[[Shown], Shown]:
    """Let `help` and `inspect.signature` show an operation's options in place of ``**options``.

    Of a function or a class; without what is for lungs where the operation does not use them. The
    other parameters are the form's own, or those of `like`.
    """

    def decorate(form: Shown) -> Shown:
        own = inspect.signature(like or form).parameters.values()  # type: ignore[arg-type]
        unused = {"self"} if operation.needs_lungs else {"self", *FOR_LUNGS}
        shown = {p.name: p for p in own if p.kind != p.VAR_KEYWORD and p.name not in unused}
        for name, one in getattr(operation, "__dataclass_fields__", {}).items():
            kind = inspect.Parameter.KEYWORD_ONLY
            shown.setdefault(name, inspect.Parameter(name, kind, default=one.default))
        form.__signature__ = inspect.Signature([*shown.values()])  # type: ignore[attr-defined]
        return form

    return decorate


class OperationForm:
    """A transform or a module, whose subclasses name their `operation`: its options are shown."""

    operation: type[Operation[Any]]

    def __init_subclass__(cls) -> None:
        """Show the options in the signature, where the subclass takes them."""
        super().__init_subclass__()
        own: Any = cls.__init__
        cls.__signature__ = None  # type: ignore[attr-defined]  # not that of the class it is from
        if hasattr(cls, "operation") and inspect.getfullargspec(own).varkw:
            show_options(cls.operation, like=own)(cls)
