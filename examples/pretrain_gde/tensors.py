"""Tensors with a JSON value in one file: written whole or not at all, checked when read.

Nothing is pickled, so that a file from a stranger can hold numbers and text only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import check_form
from examples.pretrain_gde.storage import parse_json, reading, replacing

Tensors = dict[str, torch.Tensor]


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], info: Any) -> None:
    """Write tensors and a JSON value into one safetensors file, atomically."""
    text = json.dumps(info, allow_nan=False)
    write_tensors(path, tensors, {"info": text, "sha256": _digest(tensors, text)})


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as a file holds it."""
    return tensor.detach().cpu().contiguous()


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    """Write tensors and some texts into one safetensors file, atomically."""
    copies = {name: _plain(tensor).clone() for name, tensor in tensors.items()}  # no memory shared
    data = safetensors.torch.save(copies, metadata)
    with replacing(path) as file:
        file.write(data)


def load_tensors(path: Path, form: Any) -> tuple[Tensors, Any]:
    """Read what `save_tensors` wrote, where the JSON value is of a certain form.

    Raises
    ------
    PipelineError
        If the file is missing, cut short, altered, of another kind, or holds NaN or infinity.
    """
    with reading(path) as file:
        data = file.read()
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = parse_json(data[8 : 8 + length])["__metadata__"]
        info = parse_json(metadata["info"])
        if metadata["sha256"] != _digest(tensors, metadata["info"]):
            raise ValueError("its checksum differs")
        check_form(info, form, "info")
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} holds NaN or infinity")
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise PipelineError(f"{path} is damaged or not one of the pipeline's: {error}") from error
    return tensors, info


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_plain(tensors[name]).reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
