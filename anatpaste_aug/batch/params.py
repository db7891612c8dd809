"""The parameters of a batch: what the functional form has as numbers, as tensors of (B,)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from anatpaste_aug import operations
from anatpaste_aug.batch.tensors import check_device

Params = TypeVar("Params", bound="StackedParams")


class StackedParams:
    """The params of one paste for each image of a batch: a (B,) tensor for each field.

    ``params[i]`` are the functional params of one image. A subclass names them: `single`. Whole
    numbers are kept as int64, real ones as float64, because what is computed from them must not
    depend on their precision. Words are kept as their index: of the shape, 0 is "ellipse" and 1
    "rectangle". Values are not checked when params are made, because that would wait for the
    device; on the CPU they are when they are used.

    Parameters
    ----------
    **tensors : (B,) Tensor
        The fields.

    Raises
    ------
    TypeError, ValueError
        If a field is missing, or has another dtype or shape.
    """

    single: ClassVar[Any]
    kinds: ClassVar[dict[str, torch.dtype]]  # of the fields, in order
    words: ClassVar[dict[str, tuple[str, ...]]]  # fields that are words, and which there are
    defaults: ClassVar[dict[str, Any]]
    known: ClassVar[dict[Any, Any]] = {}  # the subclass for each kind of functional params

    def __init_subclass__(cls) -> None:
        """Learn the fields from the functional params."""
        hints = get_type_hints(cls.single)
        names = [one.name for one in fields(cls.single)]
        cls.kinds = {n: torch.float64 if hints[n] is float else torch.int64 for n in names}
        cls.words = {n: get_args(hints[n]) for n in names if get_origin(hints[n]) is Literal}
        cls.defaults = {
            one.name: one.default for one in fields(cls.single) if one.default is not MISSING
        }
        StackedParams.known.setdefault(cls.single, cls)

    def __init__(self, *values: Tensor, **tensors: Tensor) -> None:
        if len(values) == len(self.kinds) and not tensors:
            tensors, values = dict(zip(self.kinds, values, strict=True)), ()
        if values or set(tensors) != set(self.kinds):
            got = f"{len(values)} values and {(*tensors,)}"
            raise TypeError(f"params must have the fields {(*self.kinds,)}, each once, got {got}")
        first = tensors[next(iter(self.kinds))]
        for name, kind in self.kinds.items():
            value, real = tensors[name], kind.is_floating_point
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
            if value.is_floating_point() != real or value.is_complex():
                wanted = "floating-point" if real else "integer"
                raise TypeError(f"{name} must be a tensor of {wanted} dtype, got {value.dtype}")
            if value.ndim != 1 or value.shape != first.shape:
                raise ValueError(
                    f"{name} must have the shape (B,) = {tuple(first.shape[:1])}, "
                    f"got {tuple(value.shape)}"
                )
            setattr(self, name, value.to(kind))

    def __getattr__(self, name: str) -> Tensor:
        # The fields are attributes; this tells type checkers so.
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return restack, (self.single, self.tensors())

    def __repr__(self) -> str:
        return f"{type(self).__name__}(B={len(self)}, fields={', '.join(self.kinds)})"

    def tensors(self) -> list[Tensor]:
        """Return the fields, in order."""
        return [getattr(self, name) for name in self.kinds]

    def to(self: Params, device: torch.device | str) -> Params:
        """Return the same parameters on another device."""
        return type(self)(*(value.to(device) for value in self.tensors()))

    def __len__(self) -> int:
        return self.tensors()[0].shape[0]

    def __getitem__(self, index: int) -> Any:
        """Return the functional parameters of one element; this reads them back to the host."""
        return self.one([value[index].item() for value in self.tensors()])

    def unstack(self) -> list[Any]:
        """Return the functional parameters of all elements; this reads them back to the host."""
        columns = [value.tolist() for value in self.tensors()]
        return [self.one(values) for values in zip(*columns, strict=True)]

    def one(self, values: Iterable[Any]) -> Any:
        """Return functional parameters from their values in order, words by their index."""
        named = dict(zip(self.kinds, values, strict=True))
        for name, words in self.words.items():
            if not 0 <= named[name] < len(words):
                raise ValueError(f"{name} must lie in 0..{len(words) - 1}, got {named[name]}")
            named[name] = words[named[name]]
        return self.single(**named)

    @classmethod
    def stack(
        cls: type[Params], items: Iterable[Any], device: torch.device | str = "cpu"
    ) -> Params:
        """Make the parameters of a batch from functional ones, one for each element."""
        items = list(items)
        tensors = {}
        for name, kind in cls.kinds.items():
            column = [getattr(item, name) for item in items]
            if name in cls.words:
                column = [cls.words[name].index(word) for word in column]
            tensors[name] = torch.tensor(column, dtype=kind, device=device)
        return cls(**tensors)


class PasteParams(StackedParams):
    """One AnatPaste for each image of a batch; fields as in `anatpaste_aug.PasteParams`.

    Parameters
    ----------
    **tensors : (B,) Tensor
        The fields, see `StackedParams`.

    Raises
    ------
    TypeError, ValueError
        If a field is missing, or has another dtype or shape.

    Examples
    --------
    Element 3 alone, in the functional form:

    >>> import torch
    >>> import anatpaste_aug as ap
    >>> from anatpaste_aug import batch
    >>> images = torch.randint(256, (4, 1, 64, 64), dtype=torch.uint8)
    >>> masks = batch.lung_mask(images)
    >>> params = batch.sample_paste(masks)
    >>> alone = ap.apply_paste(images[3, 0].numpy(), params[3], masks[3])
    >>> bool((batch.apply_paste(images, params, masks)[3, 0].numpy() == alone).all())
    True
    """

    single = operations.anatpaste.PasteParams


class OpacityParams(StackedParams):
    """One opacity for each image of a batch; fields as in `anatpaste_aug.OpacityParams`.

    Of the kinds, 0 is "consolidation", 1 "haze", 2 "nodule" and 3 "effusion".

    Parameters
    ----------
    **tensors : (B,) Tensor
        The fields, see `StackedParams`.

    Raises
    ------
    TypeError, ValueError
        If a field is missing, or has another dtype or shape.
    """

    single = operations.opacity.OpacityParams


class CutPasteParams(StackedParams):
    """One CutPaste for each image of a batch; fields as in `anatpaste_aug.CutPasteParams`.

    Parameters
    ----------
    **tensors : (B,) Tensor
        The fields, see `StackedParams`.

    Raises
    ------
    TypeError, ValueError
        If a field is missing, or has another dtype or shape.
    """

    single = operations.cutpaste.CutPasteParams


def stacked(single: Any) -> Any:
    """Return the class that stacks functional params of this class; make one if none is known."""
    known = StackedParams.known.get(single)
    return known or type(single.__name__, (StackedParams,), {"single": single})


def restack(single: Any, tensors: list[Tensor]) -> Any:
    """Stack again what was pickled: the class may be one that `stacked` has made."""
    return stacked(single)(*tensors)


def check_params(params: Any, kind: type[StackedParams], images: Tensor) -> None:
    """Check parameters against the number and the device of the images."""
    if not isinstance(params, kind):
        raise TypeError(
            f"params must be anatpaste_aug.batch.{kind.__name__}, got {type(params).__name__}"
        )
    if len(params) != images.shape[0]:
        raise ValueError(
            f"params must be as many as the images, {images.shape[0]}, got {len(params)}"
        )
    check_device("params", params.tensors()[0], images.device)
