"""How fast training is, and how much of it is augmentation."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.run import Source, load
from examples.pretrain_gde.runtime import Runtime
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.train import Clock, Trainer

WARM_UP = 5  # steps


def benchmark(settings: Settings, source: Source, steps: int, runtime: Runtime) -> dict[str, float]:
    """Time training steps.

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
        ``median``, ``low`` and ``high`` (5th and 95th percentile) seconds a step, with the device
        waited for after each; ``images_per_second`` over all processes; ``augmentation_share`` of
        the whole time, 0..1.
    """
    if not 1 <= steps <= 10**6:
        raise PipelineError(f"steps must lie in 1..1000000, got {steps}")
    with tempfile.TemporaryDirectory() as folder:
        dataset = load(settings, source, Path(folder), runtime)
        trainer = Trainer(settings, dataset, Path(folder), runtime)
    model = trainer.model(frozen=False)
    trainer.network.train()
    clock = Clock(runtime.device)
    times = []
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            clock = Clock(runtime.device)
        begin = time.perf_counter()
        with clock:
            classes = trainer.augment(*trainer.source(step))
        trainer.update(model, classes)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    timed = np.array(times[WARM_UP:])
    low, median, high = (float(value) for value in np.quantile(timed, (0.05, 0.5, 0.95)))
    return {
        "median": median,
        "low": low,
        "high": high,
        "images_per_second": settings.classes * settings.batch / median,
        "augmentation_share": clock.seconds() / timed.sum(),
    }
