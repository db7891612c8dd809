"""What tests of the pipeline need: the examples beside the tests, and the pipeline's packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "sklearn", "safetensors", "tqdm", "matplotlib")


def need(*packages: str) -> None:
    """Skip a module of tests where something is missing; else make the examples importable."""
    for package in packages:
        pytest.importorskip(package)
    if not (ROOT / "examples").is_dir():
        pytest.skip("the examples are not beside the tests", allow_module_level=True)
    sys.path.insert(0, str(ROOT))
