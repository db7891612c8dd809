"""Code of the user's own: imported where a command line names it, never because a file does."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Mapping
from typing import Any

import numpy as np

from anatpaste_aug import functions
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.operations import Operation
from examples.pretrain_gde.errors import PipelineError

TRIED = 64  # pixels of the image that an operation is tried with


class NotGivenError(PipelineError):
    """Code of the user's own is needed, and the user has not named it."""


OPTIONS = {"mask": "masks", "variant": "anomalies", "backbone": "networks"}  # and what they make
_given: dict[tuple[str, str], Any] = {}


def give(option: str, name: str) -> str:
    """Import what the user names for an option: a function for masks or the network, or a class.

    Other names are left to `Settings`.

    Raises
    ------
    ArgumentTypeError
        If there is none of this name.
    """
    if functions.is_function(name):
        load = functions.load_segment if option == "mask" else functions.load_function
        try:
            found = load(name)
        except functions.NoFunctionError as error:
            raise ArgumentTypeError(str(error)) from error
        if option == "variant":
            _try_operation(name, found)
        _given[option, name] = found
    return name


def _try_operation(name: str, found: Any) -> None:
    if not (isinstance(found, type) and issubclass(found, Operation)):
        raise ArgumentTypeError(f"{name} is no class of anatpaste_aug.operations.Operation")
    image = phantom_radiograph(TRIED, rng=0)
    try:
        found()(image, rng=0, mask=np.ones(image.shape, bool) if found.needs_lungs else None)
    except Exception as error:  # before all else takes its time
        told = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ArgumentTypeError(f"{name} cannot be used: {told}") from error


def code_of(named: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the user's own code that options name, of what was given."""
    found = {option: _given.get((option, named.get(option) or "")) for option in OPTIONS}
    return {option: functions.source_of(own) for option, own in found.items() if own is not None}


def given(option: str, name: str) -> Any:
    """Return what the user has named for an option.

    Raises
    ------
    NotGivenError
        If the user has not, but a run's file: its code is not imported for that.
    """
    if (option, name) not in _given:
        made = f"this run's {OPTIONS[option]} are made by {name}"
        raise NotGivenError(f"{made}: --{option} {name} runs it")
    return _given[option, name]
