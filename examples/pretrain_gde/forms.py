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
            raise ValueError(f"{name} must be a list{_of(form)}, got {_shown(value)}")
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
    known = {key if key is str else key.rstrip("?") for key in form}
    for unknown in value.keys() - known if known and str not in known else ():
        raise ValueError(f"{name} must not hold {_shown(unknown)}")
    for key, inner in form.items():
        if key is str:
            for each, item in value.items():
                check_form(item, inner, f"{name}.{each}")
        elif value.get(key.rstrip("?")) is not None:
            check_form(value[key.rstrip("?")], inner, f"{name}.{key.rstrip('?')}")
        elif not key.endswith("?"):
            raise ValueError(f"{name} lacks {key}")


def _of(form: list[Any]) -> str:
    return f" of {len(form)}" if len(form) > 1 else ""


def _shown(value: Any) -> str:
    """Show a value in one short line; one that holds others may be too deep to be shown."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = f"an integer of {value.bit_length()} bits" if _huge(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _huge(value: Any) -> bool:
    return isinstance(value, int) and abs(value) >= 10**30  # thousands of digits raise in `repr`
