"""Files on the disk: read only if regular, written whole or not at all, folders locked."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from examples.pretrain_gde.errors import PipelineError

if sys.platform != "win32":
    import fcntl

PART = ".part~"  # what the names of unfinished files end with
# Neither wait for a pipe's other end, nor follow a link that somebody put in a file's place.
CAUTIOUS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to read, if it is a regular one: a pipe or a device might never end.

    Raises
    ------
    OSError
        If it cannot be opened, or is something else.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=opener) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        yield file


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Say what cannot be done, where an OSError comes up."""
    try:
        yield
    except OSError as error:
        raise PipelineError(f"cannot {what}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the name `path` only when it is complete and on the disk.

    It has the permissions of any new file. Where that fails, what was there stays untouched. What a
    process leaves that dies meanwhile is removed by the next one that writes into the folder.

    Raises
    ------
    PipelineError
        If it cannot be written, for want of space for instance.
    """
    # The start of the name alone, as the whole may be as long as names can be.
    part = path.parent / f".{path.name[:40]}.{secrets.token_hex(8)}{PART}"
    with refusing(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a folder; or a device, gone if it were moved
            raise OSError(errno.EINVAL, "not a regular file")
        _remove_abandoned_once(path.parent)
        try:
            with os.fdopen(_open_locked(part, os.O_EXCL, wait=True), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if sys.platform == "win32":
                    file.close()  # an open file cannot be moved there; elsewhere it is still locked
                os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def is_among(path: Path, files: Iterable[Path]) -> bool:
    """Tell whether a path is that of one of some files, under whatever name."""
    for file in files:
        with contextlib.suppress(OSError, ValueError):  # missing, for instance
            if path.samefile(file):
                return True
    return False


def remove_abandoned(folder: Path) -> None:
    """Remove the unfinished files of processes that have died."""
    for part in folder.glob(f".*.{'[0-9a-f]' * 16}{PART}"):  # as `replacing` names them
        with contextlib.suppress(OSError):  # another is faster, or no locks here: it stays
            if sys.platform == "win32":
                part.unlink()  # fails while it is open
                continue
            with os.fdopen(os.open(part, os.O_WRONLY | CAUTIOUS), "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()


_remove_abandoned_once = functools.cache(remove_abandoned)  # per process: a folder may hold many


def _open_locked(path: Path, flags: int = 0, *, wait: bool) -> int:
    """Open a file to write, locked until it is closed or its process dies, where there are locks.

    Raises
    ------
    BlockingIOError
        If another process holds the lock, and it is not to be waited for.
    """
    while True:
        descriptor = os.open(path, flags | os.O_WRONLY | os.O_CREAT | CAUTIOUS, 0o666)
        if sys.platform == "win32":
            return descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            if os.fstat(descriptor).st_nlink:
                os.close(descriptor)
                raise
        except OSError:  # the file system knows no locks
            return descriptor
        if os.fstat(descriptor).st_nlink:  # else it was removed between opening and locking
            return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def locking(folder: Path) -> Iterator[None]:
    """Keep out of a folder all others that lock it; free it even when the process is killed.

    Where the system or the file system knows no locks (Windows among them), nothing is kept out.

    Raises
    ------
    PipelineError
        If another is at work there, or nothing can be written there.
    """
    if sys.platform == "win32":
        yield
        return
    path = folder / ".lock"
    with refusing(f"work in {folder}"):
        try:
            descriptor = _open_locked(path, wait=False)
        except BlockingIOError as error:
            raise OSError(error.errno, "another process is at work here") from error
    try:
        remove_abandoned(folder)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
