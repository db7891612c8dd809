"""Files that are whole or absent: atomic writes, JSON, and tensors with JSON in one file.

Nothing is pickled, so that a file from a stranger can hold numbers and text only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError

from examples.pretrain_gde.errors import PipelineError

Tensors = dict[str, torch.Tensor]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the name `path` only when it is complete and on the disk.

    Raises
    ------
    PipelineError
        If it cannot be written, for want of space for instance; what was there stays untouched.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise PipelineError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    PipelineError
        If it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PipelineError(f"cannot read {path}: {error}") from error


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], info: Any) -> None:
    """Write tensors and a JSON value into one safetensors file, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(info)
    metadata = {"info": text, "sha256": _digest(plain, text)}
    data = safetensors.torch.save(plain, metadata)
    with replacing(path) as file:
        file.write(data)


def load_tensors(path: Path) -> tuple[Tensors, Any]:
    """Read what `save_tensors` wrote.

    Raises
    ------
    PipelineError
        If the file is missing, cut short, altered, or of another kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PipelineError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        tensors = safetensors.torch.load(data)
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        info = json.loads(metadata["info"])
        # Files of before the text was part of the checksum are read, too.
        if metadata["sha256"] not in (_digest(tensors, metadata["info"]), _digest(tensors)):
            raise ValueError("its checksum differs")
    except (SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
        raise PipelineError(f"{path} is damaged or not one of the pipeline's: {error}") from error
    return tensors, info


def _digest(tensors: Mapping[str, torch.Tensor], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
