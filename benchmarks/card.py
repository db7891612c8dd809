"""What only a card can show, step by step; `gpu.sh` calls it: ``python -m benchmarks.card STEP``.

Every step prints its figures as rows of one table, and keeps them in one JSON file. Without a card
the kernels run in Triton's interpreter (``TRITON_INTERPRET=1``) on a few small images, which tries
the steps out and times little.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import anatpaste_aug as ap
from anatpaste_aug import batch
from anatpaste_aug.batch import operators
from benchmarks.gpu_cost import compare, radiographs, run
from benchmarks.harness import commit, write_json

CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CARD else torch.device("cpu")
BATCHES = ((64, 256), (128, 256), (256, 256), (1024, 256), (64, 512))
MANY, REPEATS = (1024, 20) if CARD else (2, 1)
EPOCH = 256  # updates
STEP = 0.014  # seconds that an update may take where none was timed
Found = dict[str, Any]


def row(name: str, text: str) -> None:
    """Print a row of the table that `gpu.sh` shows at the end."""
    print(f"| {name} | {text} |", flush=True)


def images_of(count: int, size: int) -> tuple[Tensor, str]:
    """Return (count, 1, size, size) uint8 radiographs, and what they are."""
    images, kind = radiographs(count)
    if size != images.shape[-1]:
        images = torch.nn.functional.interpolate(images.float(), (size, size), mode="bilinear")
        images = images.round().to(torch.uint8)
    return images, kind


# --- the steps ------------------------------------------------------------------------------------


def versions() -> Found:
    """Say what this is."""
    import triton

    found: Found = {"python": platform.python_version(), "torch": torch.__version__}
    found |= {"triton": triton.__version__, "numpy": np.__version__, "commit": commit()}
    if CARD:
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "multiprocessors": properties.multi_processor_count}
        found |= {"capability": f"{properties.major}.{properties.minor}"}
        found |= {"GiB": round(properties.total_memory / 2**30), "cuda": torch.version.cuda}
    row("versions", ", ".join(f"{name} {value}" for name, value in found.items()))
    return found


def forms() -> Found:
    """Call the kernels directly, then as a user does, and see that they are what ran."""
    found, hits = versions(), [0, 0]
    if CARD:
        from benchmarks.pretend import count_compilations

        hits = count_compilations()
        fault = operators.find_fault(DEVICE)
        if fault is not None:
            raise SystemExit(f"the kernels cannot run here: {fault}")
    images = images_of(64, 256)[0] if CARD else images_of(2, 256)[0][:, :, 64:160, 64:160]
    images = images.to(DEVICE).contiguous()
    start = time.perf_counter()
    results = run(images)
    wrong = compare(images, results)
    seconds = time.perf_counter() - start
    if any(wrong):
        row("kernels, called directly", f"WRONG: masks, pastes, regions {wrong} of {len(images)}")
        raise SystemExit(1)
    told = f"equal to the functions: {len(images)} of {len(images)} masks, pastes and regions"
    row("kernels, called directly", f"{told}; {seconds:.1f} s with the functions")
    taken = []
    if CARD:
        find = operators.find_kernels

        def watch(name: str, args: Any) -> Any:
            kernels = find(name, args)
            if kernels:
                taken.append(name)
            return kernels

        with mock.patch.object(operators, "find_kernels", watch):
            batch.AnatPaste(1)(images)
        if taken != ["lung_mask", "sample", "paste"]:
            raise SystemExit(f"batch.AnatPaste took kernels for {taken} alone")
        row("batch.AnatPaste", f"takes the kernels: {', '.join(taken)}")
        row("compiled", f"{hits[1]} kernels found in Triton's cache, {hits[0]} compiled")
    return found | {"wrong": wrong, "images": len(images), "seconds": seconds, "cache": hits}


def repeats() -> Found:
    """Do the same again and again: what depends on the order of programs would differ."""
    images, kind = images_of(MANY, 256)
    images = (images if CARD else images[:, :, 80:144, 80:144]).to(DEVICE).contiguous()
    first = run(images)
    flat = [first[0], *first[1], *first[2:]]
    differ = 0
    for _ in range(REPEATS):
        again = run(images)
        same = zip(flat, [again[0], *again[1], *again[2:]], strict=True)
        differ += not all(torch.equal(one, other) for one, other in same)
    start = time.perf_counter()
    wrong = compare(images, first)
    seconds = time.perf_counter() - start
    told = f"{differ} of {REPEATS} repeats differ; against the functions: {wrong} masks, pastes "
    told += f"and regions differ of {len(images)} ({kind}; {seconds:.0f} s)"
    row(f"{len(images)} images, repeated", told)
    if differ or any(wrong):
        raise SystemExit("not the same every time, or not what the functions give")
    return {"differ": differ, "repeats": REPEATS, "wrong": wrong, "images": len(images)}


def timed(function: Callable[[], object]) -> tuple[float, float, float]:
    """Time calls: seconds on the card, by the clock, and of the host alone; medians of blocks."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    torch.cuda.synchronize()
    calls = max(int(0.1 / (time.perf_counter() - begin)), 3)
    blocks = []
    for _ in range(7):
        begin, ends = time.perf_counter(), [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        ends[0].record()
        for _ in range(calls):
            function()
        ends[1].record()
        host = time.perf_counter() - begin
        torch.cuda.synchronize()
        clock = time.perf_counter() - begin
        blocks.append((ends[0].elapsed_time(ends[1]) / 1e3, clock, host))
    device, clock, host = np.median(blocks, 0) / calls
    return float(device), float(clock), float(host)


def speed() -> Found:
    """Time mask and paste: on the card, by the host's clock, and the functions on one core."""
    found: Found = {"batches": []}
    torch.set_num_threads(1)
    module = batch.AnatPaste(1.0)
    for count, size in BATCHES if CARD else ((2, 64),):
        images, kind = images_of(count, size)
        some = [image[0].numpy() for image in images[:16]]
        begin = time.perf_counter()
        for array in some:
            ap.anatpaste(array, rng=0)
        alone = (time.perf_counter() - begin) / len(some)
        result: Found = {"batch": count, "size": size, "kind": kind, "function": alone}
        if CARD:
            there = images.to(DEVICE)
            device, clock, host = timed(lambda there=there: module(there))  # type: ignore[misc]
            few = there[:1, :, :64, :64].contiguous()
            _, _, small = timed(lambda few=few: module(few))  # type: ignore[misc]
            result |= {"device": device, "clock": clock, "host": host, "small": small}
            told = f"{count / clock:,.0f} images/s; {1e3 * device:.3g} ms on the card, "
            told += f"{1e3 * host:.3g} to enqueue ({1e3 * small:.3g} for one image of 64²), "
            told += f"{alone * count / clock:,.0f} times the function on one core"
            row(f"batch.AnatPaste, {count} x {size}²", told)
        found["batches"].append(result)
    if CARD:
        images = images_of(128, 256)[0].to(DEVICE)
        masks = batch.lung_mask(images)
        drawn = batch.sample_paste(masks)
        stages: dict[str, Callable[[], object]] = {
            "mask": lambda: batch.lung_mask(images),
            "draw": lambda: batch.sample_paste(masks),
            "paste": lambda: batch.apply_paste(images, drawn, masks),
        }
        try:
            kornia = importlib.import_module("kornia")
            floats = masks.float()
            label = kornia.contrib.connected_components_union_find
            label(floats)
            stages["kornia's labels of the masks"] = lambda: label(floats)
        except Exception as error:  # whatever a version of it raises
            print(f"without kornia: {type(error).__name__}: {error}")
        found["stages"] = {name: timed(function) for name, function in stages.items()}
        for name, (device, clock, _) in found["stages"].items():
            row(f"{name}, 128 x 256²", f"{1e3 * clock:.3g} ms, {1e3 * device:.3g} on the card")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        module(images)
        peak = (torch.cuda.max_memory_allocated() - before) / images.numel()
        source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        moved = 2 * source.numel() / timed(lambda: target.copy_(source))[0]
        found |= {"bytes_a_pixel": peak, "bandwidth": moved}
        row("memory", f"{peak:.3g} bytes a pixel at most; a copy moves {moved / 1e12:.3g} TB/s")
    return found


def rates(data: Path, cache: Path) -> Found:
    """Time the training step of the published protocol, plain and compiled."""
    from benchmarks.training import benchmark
    from examples.pretrain_gde.data import Source
    from examples.pretrain_gde.runtime import default_precision, start
    from examples.pretrain_gde.settings import PRESETS, Settings

    settings = Settings(
        **PRESETS["paper"],
        **({} if CARD else {"size": 32, "batch": 4}),
        fresh_masks=CARD,
        precision=default_precision(DEVICE),
    )
    found: Found = {}
    for name in ("plain", "compiled"):
        compiled = name == "compiled"
        with start(str(DEVICE), compiled=compiled and CARD) as runtime:
            result = benchmark(settings, Source(data, cache), 200 if CARD else 2, runtime)
        torch.compiler.reset()
        found[name] = result
        told = f"{result['images_per_second']:,.0f} images/s, {1e3 * result['median']:.3g} ms each"
        row(f"training steps, {name}", f"{told}; {result['warm_up']:.1f} s to begin")
    return found


def plan(rates: Found, seconds: float) -> str:
    """Return the options of a training that takes so many seconds, by the rates measured."""
    rates = rates or {"plain": {"median": STEP, "warm_up": 0}}
    fit = {name: (seconds - one["warm_up"]) / one["median"] / EPOCH for name, one in rates.items()}
    best = max(fit, key=lambda name: fit[name])
    compiled = "--compile" if best == "compiled" else "--no-compile"
    return f"--epochs {max(int(0.95 * fit[best]), 1)} {compiled}"


def trained(metrics: Found) -> None:
    """Tell how a training went, from its metrics."""
    epochs, settings = metrics["epochs"], metrics["settings"]
    updates = len(epochs) * settings["updates"]
    share = float(np.median([epoch["augmentation_share"] for epoch in epochs]))
    minutes = sum(epoch["wall_seconds"] for epoch in epochs) / 60
    told = f"{len(epochs)} epochs, {updates} updates in {minutes:.1f} min with validations; "
    told += f"{2 * settings['batch'] * updates / metrics['seconds']:,.0f} images/s without, "
    masks = "masks at every draw" if settings["fresh_masks"] else "masks made once"
    told += f"{100 * share:.1f} % of it for pastes; {settings['precision']}, {masks}"
    row("trained", told)
    for network, scores in metrics["test"].items():
        told = ", ".join(f"{name} {found['auc']:.3f}" for name, found in scores.items())
        row(f"test AUC, {network}", told)
    row("the score", f"{metrics['scored']['network']}, {metrics['scored']['score']}")


def read(path: Path) -> Found:
    """Read a JSON file, if it is there."""
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> int:
    """Do one step."""
    steps = {"forms": forms, "repeats": repeats, "speed": speed}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.card", description=__doc__)
    parser.add_argument("step", choices=[*steps, "rates", "plan", "trained"])
    parser.add_argument("--json", type=Path, required=True, help="file of what is found")
    parser.add_argument("--data", type=Path, help="data set that `rates` trains on")
    parser.add_argument("--cache", type=Path, help="its folder of decoded images")
    parser.add_argument("--seconds", type=float, help="that the training of `plan` may take")
    options = parser.parse_args()
    known = read(options.json)
    if options.step == "plan":
        print(plan(known.get("rates", {}), options.seconds))
        return 0
    if options.step == "trained":
        trained(known)
        return 0
    if not CARD and os.environ.get("TRITON_INTERPRET") == "1":
        from benchmarks.interpreter import patch_once

        patch_once()
    steps["rates"] = lambda: rates(options.data, options.cache)
    found = steps[options.step]()
    write_json(options.json, known | {options.step: found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
