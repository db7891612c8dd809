"""Writing whole files, and locks: what is left by processes that are killed at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import need

need()

from examples.pretrain_gde.disk import (  # noqa: E402  # needs no torch
    is_among,
    locking,
    reading,
    remove_abandoned,
    replacing,
)
from examples.pretrain_gde.errors import PipelineError  # noqa: E402

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")

WRITES = """
import sys, pathlib
from examples.pretrain_gde.disk import locking, replacing
path = pathlib.Path(sys.argv[1])
with locking(path.parent), replacing(path) as file:
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """Return a process that is in the midst of writing a file, its folder locked."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(tmp_path / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.communicate()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "new" / "file"
    with replacing(path) as file:
        file.write(b"one")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"%d" % (1 // 0))
    assert path.read_bytes() == b"one"
    assert names(path.parent) == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs permissions")
@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_new_files_obey_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "file") as file:
            file.write(b"private")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_name_as_long_as_names_can_be(tmp_path):
    for name in ("a" * 255, "é" * 127):
        with replacing(tmp_path / name) as file:
            file.write(b"long")
        assert (tmp_path / name).read_bytes() == b"long"


def test_a_file_is_known_by_any_name(tmp_path):
    path, link, other = (tmp_path / name for name in ("file", "link", "other"))
    path.touch()
    other.touch()
    link.hardlink_to(path)
    assert is_among(link, [other, tmp_path / "none", path])
    assert not is_among(link, [other, tmp_path / "none"])
    assert not is_among(tmp_path / "none", [path, tmp_path / "none"])
    assert not is_among(path, [Path("nul\0")])


@needs_locks
def test_what_a_killed_process_leaves_is_removed_and_what_a_living_one_writes_is_not(
    writer, tmp_path
):
    (tmp_path / ".other").touch()
    (tmp_path / ".notes.part~").touch()  # somebody's own
    during = names(tmp_path)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == during
    assert len(during) == 4  # the other files, the lock, and the one that is being written
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with locking(tmp_path):
        pass
    assert names(tmp_path) == [".notes.part~", ".other"]


@needs_locks
def test_the_first_write_into_a_folder_removes_what_is_left(writer, tmp_path):
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with replacing(tmp_path / "another") as file:
        file.write(b"whole")
    assert names(tmp_path) == [".lock", "another"]


@needs_locks
def test_a_folder_is_locked_until_its_process_ends(writer, tmp_path):
    with pytest.raises(PipelineError, match="another process is at work here"):
        locking(tmp_path).__enter__()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with locking(tmp_path), pytest.raises(PipelineError), locking(tmp_path):
        pass
    with locking(tmp_path):
        pass


@needs_locks
def test_links_in_the_place_of_the_lock_lead_nowhere(tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    folder.mkdir()
    (folder / ".lock").symlink_to(outside)
    with pytest.raises(PipelineError, match="symbolic link"), locking(folder):
        pass
    assert not outside.exists()
    (folder / "file").symlink_to(outside)
    with replacing(folder / "file") as file:
        file.write(b"inside")
    assert not outside.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / ".pipe.0123456789abcdef.part~")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"), reading(path):
            pass
    with pytest.raises(IsADirectoryError), reading(tmp_path):
        pass
    remove_abandoned(tmp_path)  # does not wait
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(PipelineError, match="not a regular file"), replacing(path):
            pass
    assert names(tmp_path) == [".pipe.0123456789abcdef.part~", "pipe"]
