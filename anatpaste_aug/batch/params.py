"""The parameters of a batch: what the functional form has as numbers, as tensors of (B,)."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from anatpaste_aug import operations
from anatpaste_aug.batch.tensors import check_device, move

__all__ = ["PasteParams"]


@cache
def fields_of(single: Any) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the fields of functional params: whole ones, each with its words, and real ones."""
    hints = get_type_hints(single)
    kinds = {field.name: hints[field.name] for field in fields(single)}
    for name, kind in kinds.items():
        if not (kind in (int, float) or get_origin(kind) is Literal):
            raise TypeError(f"{name} must be int, float or a Literal of words, got {kind}")
    whole = {name: get_args(kind) for name, kind in kinds.items() if kind is not float}
    return whole, [name for name in kinds if name not in whole]


def stack(single: type, items: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return functional params, all of this class, as whole and real fields: tensors (B, n)."""
    all_words, real_names = fields_of(single)
    whole, real = [], []
    for item in items:
        if not isinstance(item, single):
            raise TypeError(f"params must be {single.__name__}, got {type(item).__name__}")
        own = vars(item)
        whole.append([words.index(own[n]) if words else own[n] for n, words in all_words.items()])
        real.append([own[name] for name in real_names])
    return (
        torch.tensor(whole, dtype=torch.int64).reshape(len(items), len(all_words)),
        torch.tensor(real, dtype=torch.float64).reshape(len(items), len(real_names)),
    )


def unstack(single: type, whole: Tensor, real: Tensor) -> list[Any]:
    """Return functional params from whole and real fields; this reads them back to the host."""
    all_words, real_names = fields_of(single)
    out = []
    for row, real_row in zip(whole.tolist(), real.tolist(), strict=True):
        values = dict(zip([*all_words, *real_names], row + real_row, strict=True))
        for name, words in all_words.items():
            if words:
                if not 0 <= values[name] < len(words):
                    raise ValueError(f"{name} must lie in 0..{len(words) - 1}, got {values[name]}")
                values[name] = words[values[name]]
        out.append(single(**values))
    return out


FIELDS = fields_of(operations.anatpaste.PasteParams)


class PasteParams:
    """One AnatPaste for each image of a batch; fields as in `anatpaste_aug.PasteParams`.

    Each field is an attribute, a (B,) tensor. Whole numbers are int64, real ones float64 (float32
    on MPS), because what is computed from them must not depend on their precision; of the shape, 0
    is "ellipse" and 1 "rectangle". They are the columns of two tensors, *whole* (B, 10) and *real*
    (B, 2). ``params[i]`` are the functional params of one image. `sample_paste` and
    `PasteParams.stack` make them.

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

    __slots__ = ("real", "whole")  # no field can be set

    def __init__(self, whole: Tensor, real: Tensor):
        got = f"got {tuple(whole.shape)} of {whole.dtype}, {tuple(real.shape)} of {real.dtype}"
        sizes = [tuple(whole.shape), tuple(real.shape)]
        if sizes != [(len(whole), len(names)) for names in FIELDS]:
            raise ValueError(f"whole must have the shape (B, 10) and real (B, 2), {got}")
        if whole.dtype != torch.int64 or not real.is_floating_point():
            raise TypeError(f"whole must be of int64 and real of floating-point dtype, {got}")
        self.whole, self.real = whole, real

    def __getattr__(self, name: str) -> Tensor:
        for names, tensor in zip(FIELDS, ("whole", "real"), strict=True):
            if name in names:
                return getattr(self, tensor)[:, [*names].index(name)]
        raise AttributeError(f"PasteParams has no field {name!r}")

    def __repr__(self) -> str:
        return f"PasteParams(B={len(self)})"

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> operations.anatpaste.PasteParams:
        """Return the functional parameters of one element; this reads them back to the host."""
        whole, real = self.whole[index], self.real[index]
        return unstack(operations.anatpaste.PasteParams, whole[None], real[None])[0]

    def to(self, device: torch.device | str) -> "PasteParams":
        """Return the same parameters on another device."""
        return PasteParams(move(self.whole, device), move(self.real, device))

    @classmethod
    def stack(cls, items: Iterable[Any], device: torch.device | str = "cpu") -> "PasteParams":
        """Make the parameters of a batch from functional ones, one for each element.

        Raises
        ------
        TypeError
            If one of them is something else.
        """
        return cls(*stack(operations.anatpaste.PasteParams, list(items))).to(device)


def check_params(params: Any, images: Tensor) -> None:
    """Check parameters against the number and the device of the images."""
    if not isinstance(params, PasteParams):
        raise TypeError(f"params must be batch.PasteParams, got {type(params).__name__}")
    if len(params) != len(images):
        raise ValueError(f"params must be as many as the images, {len(images)}, got {len(params)}")
    check_device("params", params.whole, images.device)
