"""The form of what is read from JSON, checked before anything of it is used.

A form is ``str`` or ``bool``; ``(low, high)``, a number between, whole if `low` is an int; a tuple
of texts, one of them; ``[form]``, a list, and ``[form, form]``, one of this length; or an object,
``{name: form}``, with no other names, where one that ends in ``?`` may be missing or null and
``str`` stands for all. ``{}`` is any object, checked by whoever uses it.
"""

from __future__ import annotations

from typing import Any

LARGE = 1e38  # a float's limit, as float32 holds it
COUNT = (0, 2**32)


def check_form(value: Any, form: Any, name: str) -> None:
    """Check a value against a form.

    Raises
    ------
    ValueError
        If it has another: the message names the place, the rule and the value.
    """
    if isinstance(form, dict):
        _check_object(value, form, name)
    elif isinstance(form, list):
        if not isinstance(value, list) or len(form) not in (1, len(value)):
            of = f" of {len(form)}" if len(form) > 1 else ""
            raise ValueError(f"{name} must be a list{of}, got {_shown(value)}")
        for index, item in enumerate(value):
            check_form(item, form[index % len(form)], f"{name}[{index}]")
    elif form in (str, bool):
        if not isinstance(value, form):
            kind = "a text" if form is str else "true or false"
            raise ValueError(f"{name} must be {kind}, got {_shown(value)}")
    elif isinstance(form[0], str):
        if not isinstance(value, str) or value not in form:
            raise ValueError(f"{name} must be one of {', '.join(form)}, got {_shown(value)}")
    else:
        low, high = form
        whole = isinstance(low, int)
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high:  # nor is NaN
            kind = "an integer" if whole else "a number"
            raise ValueError(f"{name} must be {kind} in {low}..{high}, got {_shown(value)}")


def _check_object(value: Any, form: dict[Any, Any], name: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {_shown(value)}")
    if str in form:
        for key, item in value.items():
            check_form(item, form[str], f"{name}.{key}")
        return
    known = {key.removesuffix("?"): key for key in form}
    for unknown in value.keys() - known.keys() if known else ():
        raise ValueError(f"{name} must not hold {_shown(unknown)}")
    for bare, key in known.items():
        if value.get(bare) is not None:
            check_form(value[bare], form[key], f"{name}.{bare}")
        elif bare == key:
            raise ValueError(f"{name} lacks {key}")


def _shown(value: Any) -> str:
    """Show a value in one short line; one that holds others may be too deep to be shown."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    huge = isinstance(value, int) and abs(value) >= 10**30  # thousands of digits raise in `repr`
    text = f"an integer of {value.bit_length()} bits" if huge else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
