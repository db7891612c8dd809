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

if sys.platform != "win32":
    import fcntl

PART = ".part~"  # what the names of unfinished files end with
LOCK = ".lock"
# Neither wait for a pipe's other end, nor follow a link that somebody put in a file's place.
CAUTIOUS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
BINARY = getattr(os, "O_BINARY", 0)


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
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the name `path` only when it is complete and on the disk.

    It has the permissions of any new file. Where that fails, what was there stays untouched. What a
    process leaves that dies meanwhile is removed by the next one that writes into the folder.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a folder; or a device, gone for all if it were moved
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    _remove_abandoned_once(path.parent)
    descriptor, part = _open_part(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # an open file cannot be moved there; elsewhere the lock is still held
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
    for part in folder.glob(f".*.{'[0-9a-f]' * 16}{PART}"):  # as `_open_part` names them
        with contextlib.suppress(OSError):  # another is faster, or no locks here: it stays
            if sys.platform == "win32":
                part.unlink()  # fails while it is open
                continue
            descriptor = os.open(part, os.O_WRONLY | CAUTIOUS)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
            finally:
                os.close(descriptor)


_remove_abandoned_once = functools.cache(remove_abandoned)  # per process: a folder may hold many


def _open_part(path: Path) -> tuple[int, Path]:
    """Create an unfinished file, locked until it is closed or its process dies."""
    while True:
        # The start of the name alone, as the whole may be as long as names can be.
        part = path.parent / f".{path.name[:40]}.{secrets.token_hex(8)}{PART}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY
        descriptor = os.open(part, flags, 0o666)
        if _lock(descriptor):
            return descriptor, part
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock an open file; tell whether it is ours and still there."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system knows no locks
        return True
    return os.fstat(descriptor).st_nlink > 0  # else it was removed between opening and locking


@contextlib.contextmanager
def locking(folder: Path) -> Iterator[None]:
    """Keep out of a folder all others that lock it; free it even when the process is killed.

    Where the system or the file system knows no locks (Windows among them), nothing is kept out.

    Raises
    ------
    OSError
        If another holds the lock, or the folder cannot be written to.
    """
    if sys.platform == "win32":
        yield
        return
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | CAUTIOUS, 0o666)
        if _lock(descriptor):
            break
        held = os.fstat(descriptor).st_nlink > 0
        os.close(descriptor)
        if held:
            raise BlockingIOError(errno.EWOULDBLOCK, "another process is at work here", str(folder))
    try:
        remove_abandoned(folder)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
