"""How fast training is, and how much of it is augmentation.

``python -m benchmarks.training --data DIR [--steps N] [--output FILE]``, and the options of the
pipeline's ``train``. Threads wait as ``OMP_WAIT_POLICY`` says: the pipeline sets PASSIVE.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import write_json
from examples.pretrain_gde.cli import make_parser
from examples.pretrain_gde.commands import make_settings, make_source, obey
from examples.pretrain_gde.data import Source
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.run import load
from examples.pretrain_gde.runtime import Runtime, describe
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.train import Clock, Trainer

WARM_UP = 5  # steps
BLOCKS = 5  # of steps, each timed as a whole


def benchmark(settings: Settings, source: Source, steps: int, runtime: Runtime) -> dict[str, float]:
    """Time training steps, in blocks: after each the device is waited for, as after an epoch.

    Parameters
    ----------
    settings : Settings
        Of the run that is timed.
    source : Source
        The images.
    steps : int
        Steps to time, after `WARM_UP` more.
    runtime : Runtime
        Where to compute.

    Returns
    -------
    dict of str to float
        ``median``, ``low`` and ``high``: seconds a step, of the median, the fastest and the slowest
        block; ``images_per_second`` over all processes, of the median; ``augmentation_share`` of
        the whole time, 0..1; ``warm_up`` seconds of the first steps, in which all is compiled.
    """
    if not 1 <= steps <= 10**6:
        raise PipelineError(f"steps must lie in 1..1000000, got {steps}")
    with tempfile.TemporaryDirectory() as folder:
        dataset = load(settings, source, Path(folder), runtime)
        trainer = Trainer(settings, dataset, Path(folder), runtime)
    model = trainer.model(frozen=False)
    trainer.network.train()

    def time_block(block: range, clock: Clock) -> float:
        begin = time.perf_counter()
        for step in block:
            with clock:
                classes = trainer.augment(*trainer.source(step))
            trainer.update(model, classes)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    warm_up = time_block(range(WARM_UP), Clock(runtime.device))
    clock = Clock(runtime.device)
    edges = np.linspace(WARM_UP, WARM_UP + steps, min(BLOCKS, steps) + 1).round().astype(int)
    blocks = [range(first, last) for first, last in itertools.pairwise(edges.tolist())]
    spent = [time_block(block, clock) for block in blocks]
    each = [seconds / len(block) for seconds, block in zip(spent, blocks, strict=True)]
    median = statistics.median(each)
    return {
        "median": median,
        "low": min(each),
        "high": max(each),
        "images_per_second": settings.classes * settings.batch / median,
        "augmentation_share": clock.seconds() / sum(spent),
        "warm_up": warm_up,
    }


def main() -> int:
    """Time what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="steps to time (50)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    own, others = parser.parse_known_args()
    options = make_parser().parse_args(["train", *others])

    def command(options: argparse.Namespace, runtime: Runtime) -> None:
        settings = make_settings(options, runtime, options.variant)
        result = benchmark(settings, make_source(options), own.steps, runtime)
        if runtime.leads:
            print(_told(settings, runtime, result))
            if own.output is not None:
                write_json(own.output, result)

    return obey(options, command)


def _told(settings: Settings, runtime: Runtime, result: dict[str, float]) -> str:
    return (
        f"{settings.variant}, {settings.size} px, {settings.batch} originals an update, "
        f"{settings.precision}, {describe(runtime)['device']}, "
        f"{torch.get_num_threads()} threads, {runtime.world} processes:\n"
        f"{1000 * result['median']:.1f} ms a step (median of blocks of steps, which took "
        f"{1000 * result['low']:.1f}-{1000 * result['high']:.1f}), "
        f"{result['images_per_second']:.0f} images/s, "
        f"{100 * result['augmentation_share']:.1f} % of a step for augmentation; "
        f"the first {WARM_UP} steps took {result['warm_up']:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
