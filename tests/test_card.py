"""What the script for a card decides by what it has measured."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch", reason="needs torch")
os.environ.setdefault("TRITON_INTERPRET", "1")
card = pytest.importorskip("benchmarks.card", reason="needs the source tree and the pipeline")


def rate(median, warm_up):
    return {"median": median, "warm_up": warm_up}


@pytest.mark.parametrize(
    ("rates", "seconds", "expected"),
    [
        ({}, 512, "--epochs 135 --no-compile"),  # none was measured: 14 ms a step
        ({"plain": rate(0.01, 0), "compiled": rate(0.008, 60)}, 256, "--epochs 95 --no-compile"),
        ({"plain": rate(0.01, 0), "compiled": rate(0.008, 60)}, 512, "--epochs 209 --compile"),
        ({"plain": rate(0.01, 5)}, 0, "--epochs 1 --no-compile"),
    ],
)
def test_as_many_epochs_as_fit(rates, seconds, expected):
    assert card.plan(rates, seconds) == expected
