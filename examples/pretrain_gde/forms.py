"""The form of what is read from JSON, checked before anything of it is used.

A form is ``str`` or ``bool``; ``(low, high)``, a number between, whole if `low` is an int; a tuple
of texts, one of them, where `OWN` stands for any name of that form; ``[form]``, a list, and
``[form, form]``, one of this length; or an object, ``{name: form}``, with no other names, where one
that ends in ``?`` may be missing or null and ``str`` stands for all. ``{}`` is any object, checked
by whoever uses it.
"""

from __future__ import annotations

from typing import Any

from anatpaste_aug.functions import is_function
from examples.pretrain_gde.errors import FormError

OWN = "MODULE:FUNCTION"
LARGE = 1e38  # a float's limit, as float32 holds it
COUNT = (0, 2**32)


def check_form(value: Any, form: Any, name: str) -> None:
    """Check a value against a form.

    Raises
    ------
    FormError
        If it has another: the message names the place, the rule and the value.
    """
    fits, wanted = _fits(value, form)
    if not fits:
        raise FormError(f"{name} must be {wanted}, got {_shown(value)}")
    if isinstance(form, list):
        for index, item in enumerate(value):
            check_form(item, form[index % len(form)], f"{name}[{index}]")
    elif isinstance(form, dict):
        _check_members(value, form, name)


def _fits(value: Any, form: Any) -> tuple[bool, str]:
    """Tell whether a value itself is of a form, whatever it holds, and what it must be."""
    if isinstance(form, dict):
        return isinstance(value, dict), "an object"
    if isinstance(form, list):
        fits = isinstance(value, list) and len(form) in (1, len(value))
        return fits, f"a list of {len(form)}" if len(form) > 1 else "a list"
    if form in (str, bool):
        return isinstance(value, form), "a text" if form is str else "true or false"
    if isinstance(form[0], str):
        own = OWN in form and is_function(str(value))
        return isinstance(value, str) and (own or value in form), f"one of {', '.join(form)}"
    low, high = form
    kind, wanted = (int, "an integer") if isinstance(low, int) else ((int, float), "a number")
    number = isinstance(value, kind) and not isinstance(value, bool)
    return number and low <= value <= high, f"{wanted} in {low}..{high}"  # NaN lies nowhere


def _check_members(value: dict[str, Any], form: dict[Any, Any], name: str) -> None:
    if str in form:
        for key, item in value.items():
            check_form(item, form[str], f"{name}.{key}")
        return
    known = {key.removesuffix("?"): key for key in form}
    for unknown in value.keys() - known.keys() if known else ():
        raise FormError(f"{name} must not hold {_shown(unknown)}")
    for bare, key in known.items():
        if value.get(bare) is not None:
            check_form(value[bare], form[key], f"{name}.{bare}")
        elif bare == key:
            raise FormError(f"{name} lacks {key}")


def _shown(value: Any) -> str:
    """Show a value in one short line; one that holds others may be too deep to be shown."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    huge = isinstance(value, int) and abs(value) >= 10**30  # thousands of digits raise in `repr`
    text = f"an integer of {value.bit_length()} bits" if huge else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
