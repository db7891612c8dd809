"""Functions of the user's own, by the names that a command line gives them: ``MODULE:FUNCTION``."""

import contextlib
import functools
import hashlib
import importlib
import inspect
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from anatpaste_aug.images import Array, Mask, as_mask
from anatpaste_aug.masks import Segment

__all__ = ["NoFunctionError", "is_function", "load_function", "load_segment", "source_of"]

LONGEST = 300  # characters of a reason
WORD = r"[^\W\d]\w*"
FORM = re.compile(rf"(?P<module>{WORD}(?:\.{WORD})*|[^\0\r\n]*\.py):(?P<function>{WORD})")

# By id: a function, which is kept so that no other has it, and the module that was named.
_named: dict[int, tuple[Any, ModuleType]] = {}
# Of each module's file when it was asked for first: it may change, what was read from it does not.
_digests: "WeakKeyDictionary[ModuleType, str]" = WeakKeyDictionary()


class NoFunctionError(ValueError):
    """A name leads to no function; the message says in a line which, and why."""


def is_function(name: str) -> bool:
    r"""Tell whether a text has the form ``MODULE:FUNCTION``; nothing is looked for.

    Parameters
    ----------
    name : str
        MODULE is a dotted name, or the path of a file that ends in ``.py``. The last colon counts,
        so that a path may begin with a drive.

    Returns
    -------
    fits : bool

    Examples
    --------
    >>> is_function("package.module:brain_mask"), is_function(r"C:\masks.py:brain_mask")
    (True, True)
    >>> is_function("robust"), is_function("masks.py")
    (False, False)
    """
    return FORM.fullmatch(name) is not None


def load_function(name: str) -> Callable[..., Any]:
    """Import a function by its name, ``MODULE:FUNCTION``.

    This runs the module's code: give it names that the user wrote, not those that files hold.

    Parameters
    ----------
    name : str
        As for `is_function`. Modules are looked up in the current folder, too. A file's code runs
        once, and again after it has changed; what it imports from its own folder is not found.

    Returns
    -------
    function : callable

    Raises
    ------
    NoFunctionError
        If there is no such module, file or function, it cannot be called, or the module raises
        while it is imported.

    Examples
    --------
    >>> load_function("anatpaste_aug:lung_mask").__name__
    'lung_mask'
    """
    parts = FORM.fullmatch(name)
    if parts is None:
        raise NoFunctionError(f"{name!r} is not of the form MODULE:FUNCTION")
    place, word = parts["module"], parts["function"]
    importlib.invalidate_caches()  # it may have been written just now
    try:
        with _current_folder():
            module = _run(place) if place.endswith(".py") else importlib.import_module(place)
        found = getattr(module, word)
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise NoFunctionError(f"{name}: {_told(error)}") from error
    if not callable(found):
        raise NoFunctionError(f"{name}: it is no function, but {type(found).__name__}")
    function = inspect.unwrap(found)
    _named[id(function)] = function, module
    source_of(function)  # which is remembered: the files may change while this is in use
    return found


def load_segment(name: str) -> Segment:
    """Import a function from image to mask by its name, for use as ``segment=``.

    Parameters
    ----------
    name : str
        As for `load_function`.

    Returns
    -------
    segment : callable
        Calls the function with a copy, one thread at a time. Where that fails, or gives no bool or
        integer mask of the image's height and width, it raises a ValueError or TypeError that names
        it.

    Raises
    ------
    NoFunctionError
        As for `load_function`.
    """
    function = load_function(name)
    lock = threading.Lock()

    @functools.wraps(function)
    def segment(image: Array) -> Mask:
        with lock:  # until the mask is copied, which may be the function's own
            try:
                mask = function(image.copy())
            except (ImportError, MemoryError):  # not for what the image is
                raise
            except Exception as error:
                raise ValueError(f"{name} raised {_told(error)}") from error
            return as_mask(mask, image.shape, f"the mask returned by {name}").copy()

    return segment


def source_of(function: Callable[..., Any]) -> str:
    """Return a digest of the files that a function comes from, to tell when it has been edited.

    Parameters
    ----------
    function : callable
        One from `load_function` or `load_segment`, of which the file that was named counts and the
        one that defines it, as they were then; or any other. What these files import does not.

    Returns
    -------
    digest : str
        Hexadecimal.

    Examples
    --------
    >>> len(source_of(is_function))
    64
    """
    function = inspect.unwrap(function)
    found, named = _named.get(id(function), (None, None))
    own = sys.modules.get(getattr(function, "__module__", None) or "")
    modules = {module for module in (own, named if found is function else None) if module}
    return hashlib.sha256("".join(sorted(map(_digest, modules))).encode()).hexdigest()


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Put the current folder on the path, as ``python -m`` does."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _run(path: str) -> ModuleType:
    """Run a file's code as a module, named after what it holds, once."""
    with open(path, "rb") as file:
        code = file.read()
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path)) + b"\0" + code).hexdigest()
    name = f"{Path(path).stem}_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = sys.modules[name] = ModuleType(name)  # where dataclasses look
    module.__file__ = path
    try:  # not by the import system, which may take older bytecode
        exec(compile(code, path, "exec"), vars(module))
        _digests[module] = hashlib.sha256(code).hexdigest()  # of what ran, whatever is there now
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _told(error: BaseException) -> str:
    """Say in a line what was raised."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _digest(module: ModuleType) -> str:
    """Digest a module's file; empty where there is none."""
    if module not in _digests:
        file = getattr(module, "__file__", None)
        held = Path(file).read_bytes() if file and os.path.isfile(file) else b""
        _digests[module] = hashlib.sha256(held).hexdigest()
    return _digests[module]
