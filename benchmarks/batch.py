"""Time the batch on a CPU against the functions and kornia: ``python -m benchmarks.batch``.

Checks first that every mask and paste equals the function's, on phantoms and on Zhanglab's
radiographs where they are. Then times batches of 1 to 64 images of 256 x 256, and images of 128 to
1,024 pixels; measures the peak of the extra memory, and the share of every stage. Writes
``batch-cpu.json`` and a section of ``RESULTS.md``; with ``--quick`` it takes fewer sizes, and
writes nothing unless ``--out`` names a folder. For a GPU there is `benchmarks.card`.

Run it with OMP_NUM_THREADS=1: it is compared with a form that has one thread. Times are processor
time, which leaves out what others do on a shared machine.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import anatpaste_aug as ap
from anatpaste_aug import batch
from anatpaste_aug.batch.tensors import to_numpy
from anatpaste_aug.data import phantom_radiograph
from benchmarks.gpu_cost import Peak
from benchmarks.harness import (
    HERE,
    RESULTS,
    SHARED,
    environment,
    markdown_table,
    measure,
    replace_section,
    write_json,
)

ORIGINALS = 16
ZHANGLAB = SHARED / "data/zhanglab224"
Calls = dict[str, Callable[[], object]]


def make_images(count: int, size: int) -> Tensor:
    """Repeat a few phantoms, rolled, so that no two images are the same."""
    originals = [phantom_radiograph(size, rng=i) for i in range(min(count, ORIGINALS))]
    images = [np.roll(originals[i % ORIGINALS], i // ORIGINALS, axis=1) for i in range(count)]
    return torch.from_numpy(np.stack(images))[:, None]


def check() -> dict[str, int]:
    """Compare the batch with the functions; count what is equal."""
    found = {"masks": 0, "masks_equal": 0, "pixels": 0, "pixels_different": 0}
    for size, count, channels in ((96, 8, 3), (96, 8, 1), (128, 8, 1), (224, 8, 1), (256, 16, 1)):
        for dtype in (torch.uint8, torch.uint16, torch.float32):
            images = make_images(count, size).to(torch.int32).repeat(1, channels, 1, 1)
            images[:, 1:2] //= 2
            scale = {torch.uint8: 1, torch.uint16: 257, torch.float32: 1 / 255}[dtype]
            images = (images * scale).to(dtype)
            masks = batch.lung_mask(images)
            drawn = batch.sample_paste(masks)
            out = batch.apply_paste(images, drawn, masks)
            for image, mask, params, got in zip(images, masks, drawn, out, strict=True):
                array, lungs = to_numpy(image), mask[0].numpy()
                expected, result = ap.apply_paste(array, params, lungs), to_numpy(got)
                same = np.isclose(result, expected, rtol=1e-6, atol=1e-6)
                same = same if dtype.is_floating_point else result == expected
                found["masks"] += 1
                found["masks_equal"] += bool((lungs == ap.lung_mask(array)).all())
                found["pixels"] += same.size
                found["pixels_different"] += int((~same).sum())
    return found


def check_real(most: int | None) -> dict[str, int] | None:
    """Compare masks with the function's on Zhanglab's images at 224, if they are there."""
    paths = sorted(ZHANGLAB.rglob("*.jp*g"))[:most]
    if not paths:
        return None
    found = {"masks": 0, "masks_equal": 0}
    for start in range(0, len(paths), 16):
        gray = [Image.open(path).convert("L") for path in paths[start : start + 16]]
        arrays = [np.array(image.resize((224, 224), Image.Resampling.BILINEAR)) for image in gray]
        masks = batch.lung_mask(torch.from_numpy(np.stack(arrays))[:, None])[:, 0].numpy()
        expected = np.stack([ap.lung_mask(array) for array in arrays])
        found["masks"] += len(arrays)
        found["masks_equal"] += int((masks == expected).all((1, 2)).sum())
    return found


def kornia_calls(images: Tensor) -> Calls:
    """Compose kornia's operations to the same job, which is near it, not equal to it."""
    try:
        kornia = importlib.import_module("kornia")
    except ImportError:
        return {}
    square = torch.ones(3, 3)

    def whole() -> Tensor:
        floats = images.float() / 255
        equal = kornia.enhance.equalize_clahe(floats, clip_limit=2.56, grid_size=(8, 8))
        dark, _ = kornia.filters.otsu_threshold(1 - equal, nbins=256)
        opened = kornia.morphology.opening((dark > 0).float(), square)
        labels = kornia.contrib.connected_components(opened, num_iterations=100)
        grown = kornia.morphology.dilation((labels > 0).float(), square)
        alpha = kornia.filters.gaussian_blur2d(grown * 0.8, (43, 43), (7.0, 7.0)) * grown
        return floats * (1 - alpha) + floats.roll((40, 40), (2, 3)) * alpha

    return {"kornia, mask and paste": whole}


def calls(images: Tensor, peers: bool) -> Calls:
    """Return what is compared: mask and paste of a whole batch."""
    module = batch.AnatPaste(1.0)
    arrays = [image.numpy() for image in images[:, 0]]
    own: Calls = {
        "functional": lambda: [ap.anatpaste(array) for array in arrays],
        "AnatPaste module": lambda: module(images),
    }
    return own | (kornia_calls(images) if peers else {})


def peak_memory(images: Tensor) -> int:
    """Return the most bytes that a call of the module has in tensors, its results included."""
    call = calls(images, peers=False)["AnatPaste module"]
    with Peak() as peak:
        peak.seen.add(images.untyped_storage()._cdata)
        call()
    return peak.most


def stages(images: Tensor) -> dict[str, float]:
    """Time each stage once warm; milliseconds per batch."""
    found: dict[str, float] = {}

    def lap(name: str, function: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        result = function(*args)
        found[name] = (time.perf_counter() - start) * 1e3
        return result

    for _ in range(2):  # the first pass warms up
        masks = lap("mask", batch.lung_mask, images)
        drawn = lap("draw", batch.sample_paste, masks)
        lap("paste", batch.apply_paste, images, drawn, masks)
    return found


def real_text(real: dict[str, int] | None) -> str:
    """Say how many masks of real radiographs are equal."""
    if real is None:
        return "Real radiographs were not there to compare."
    return f"Zhanglab radiographs at 224²: equal masks {real['masks_equal']} of {real['masks']}."


def describe(results: dict[str, Any]) -> str:
    """Lay the results out as Markdown."""
    found, env = results["exact"], results["environment"]
    lines = [
        f"{env['cpu']}, {env['cores']} cores; torch threads "
        f"{env['threads']['torch']}; torch {env['versions']['torch']}; commit {env['commit']}.",
        "",
        f"Equal masks: {found['masks_equal']} of {found['masks']}; pixels of pastes that differ: "
        f"{found['pixels_different']} of {found['pixels']}.",
        "",
        real_text(results["exact_real"]),
        "",
        "Mask and paste of uint8 images, milliseconds per image (medians):",
        "",
    ]
    names = list(dict.fromkeys(name for row in results["times"] for name in row["ms"]))
    rows = [
        [f"{row['batch']} x {row['size']}²", *(row["ms"].get(name) for name in names)]
        for row in results["times"]
    ]
    lines += [markdown_table(["batch", *names], rows), ""]
    lines += [
        "kornia's operations are composed to a job near this one, not equal to it: it has no "
        "bounding-box rule (small regions go alone or not at all), and its paste is a blurred mask "
        "over a shifted image.",
        "",
        "Images of 256² a second:",
        "",
    ]
    rows = []
    for row in results["times"]:
        if row["size"] == 256:
            speeds = [1e3 / row["ms"][name] if name in row["ms"] else None for name in names]
            rows.append([str(row["batch"]), *speeds])
    lines += [markdown_table(["batch", *names], rows), ""]
    total = sum(results["stages"].values())
    shares = [[name, 100 * ms / total] for name, ms in results["stages"].items()]
    lines += ["Shares:", "", markdown_table(["stage", "%"], shares), ""]
    lines += ["Peak of extra memory of the module, results included:", ""]
    rows = [[f"{m['batch']} x {m['size']}²", m["bytes"] / 2**20] for m in results["memory"]]
    lines += [markdown_table(["batch", "MiB"], rows), ""]
    return "\n".join(lines)


def main() -> int:
    """Check, measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--out", type=Path, help="folder for the results")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "environment": environment(),
        "exact": check(),
        "exact_real": check_real(32 if options.quick else None),
    }
    found = results["exact"]
    real = results["exact_real"]
    print(found, real, flush=True)
    wrong = found["masks"] != found["masks_equal"] or found["pixels_different"]
    if real:
        wrong |= real["masks"] != real["masks_equal"]
    if wrong:
        print("not exact: nothing is timed", file=sys.stderr)
        return 1

    batches, sizes = (1, 4, 16, 64), (128, 512, 1024)
    if options.quick:
        batches, sizes = batches[:2], sizes[:1]
    results["times"] = []
    for count, size in [(n, 256) for n in batches] + [(4, size) for size in sizes]:
        images = make_images(count, size)
        # kornia's labels take a hundred passes: it is timed on the smaller batches only.
        compared = calls(images, peers=count * size**2 <= 4 * 256**2)
        rounds = 3 if options.quick else 10
        timings = measure(compared, rounds=rounds, warmup=1, clock=time.process_time, budget=60)
        ms = {name: timing.median * 1e3 / count for name, timing in timings.items()}
        results["times"].append({"batch": count, "size": size, "ms": ms})
        print(results["times"][-1], flush=True)
    results["stages"] = stages(make_images(8, 256))

    results["memory"] = []
    for count, size in ((1, 256), (128, 256), (256, 256))[: 1 if options.quick else None]:
        images = make_images(min(count, ORIGINALS), size)
        images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
        results["memory"].append({"batch": count, "size": size, "bytes": peak_memory(images)})
        print(results["memory"][-1], flush=True)

    text = describe(results)
    print(text)
    folder = options.out or (None if options.quick else RESULTS)
    if folder:
        write_json(folder / "batch-cpu.json", results)
    if folder == RESULTS:
        replace_section(HERE / "RESULTS.md", "batch, CPU", f"## The batch on a CPU\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
