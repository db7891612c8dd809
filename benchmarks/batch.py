"""Time the batch against the functional form, kornia and cuCIM: ``python -m benchmarks.batch``.

Checks first that every mask and paste equals the function's, on phantoms and on Zhanglab's
radiographs where they are. Then times batches of 1 to 1,024 images of 256 x 256 (on a CPU to 64,
for time), and images of 128 to 1,024 pixels; measures the peak of the extra memory, and the share
of every stage. On a GPU the module takes the Triton kernels, where they can be made, and there is
the floor: the bytes that must be read and written over the bandwidth that a copy reaches. Writes
``batch-cpu.json`` or ``batch-gpu.json`` and a section of ``RESULTS.md``; with ``--quick`` it takes
fewer sizes, and writes nothing unless ``--out`` names a folder.

On the CPU run it with OMP_NUM_THREADS=1: it is compared with a form that has one thread. Times are
then processor time, which leaves out what others do on a shared machine.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
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
from anatpaste_aug.batch import operators
from anatpaste_aug.batch.tensors import to_numpy
from anatpaste_aug.data import phantom_radiograph
from benchmarks.gpu_cost import Peak
from benchmarks.harness import (
    HERE,
    RESULTS,
    environment,
    markdown_table,
    measure,
    replace_section,
    write_json,
)

GIB = 2**30
ORIGINALS = 16
ZHANGLAB = HERE.resolve().parents[1] / "shared/data/zhanglab224"
TRITON = {
    True: "The module took the Triton kernels.",
    False: "The module went over the CPU: no Triton kernels could be made here.",
}
Calls = dict[str, Callable[[], object]]


def make_images(count: int, size: int, device: str) -> Tensor:
    """Repeat a few phantoms, rolled, so that no two images are the same."""
    originals = [phantom_radiograph(size, rng=i) for i in range(min(count, ORIGINALS))]
    images = [np.roll(originals[i % ORIGINALS], i // ORIGINALS, axis=1) for i in range(count)]
    return torch.from_numpy(np.stack(images))[:, None].to(device)


def check(device: str) -> dict[str, int]:
    """Compare the batch on the device with the functions; count what is equal."""
    found = {"masks": 0, "masks_equal": 0, "pixels": 0, "pixels_different": 0}
    for size, count, channels in ((96, 8, 3), (96, 8, 1), (128, 8, 1), (224, 8, 1), (256, 16, 1)):
        for dtype in (torch.uint8, torch.uint16, torch.float32):
            images = make_images(count, size, "cpu").to(torch.int32).repeat(1, channels, 1, 1)
            images[:, 1:2] //= 2
            scale = {torch.uint8: 1, torch.uint16: 257, torch.float32: 1 / 255}[dtype]
            images = (images * scale).to(dtype)
            there = images.to(device)
            masks = batch.lung_mask(there)
            drawn = batch.sample_paste(masks)
            out = batch.apply_paste(there, drawn, masks).cpu()
            for image, mask, params, got in zip(images, masks.cpu(), drawn, out, strict=True):
                array, lungs = to_numpy(image), mask[0].numpy()
                expected, result = ap.apply_paste(array, params, lungs), to_numpy(got)
                same = np.isclose(result, expected, rtol=1e-6, atol=1e-6)
                same = same if dtype.is_floating_point else result == expected
                found["masks"] += 1
                found["masks_equal"] += bool((lungs == ap.lung_mask(array)).all())
                found["pixels"] += same.size
                found["pixels_different"] += int((~same).sum())
    return found


def check_real(device: str, most: int | None) -> dict[str, int] | None:
    """Compare masks with the function's on Zhanglab's images at 224, if they are there."""
    paths = sorted(ZHANGLAB.rglob("*.jp*g"))[:most]
    if not paths:
        return None
    found = {"masks": 0, "masks_equal": 0}
    for start in range(0, len(paths), 16):
        gray = [Image.open(path).convert("L") for path in paths[start : start + 16]]
        arrays = [np.array(image.resize((224, 224), Image.Resampling.BILINEAR)) for image in gray]
        there = torch.from_numpy(np.stack(arrays))[:, None].to(device)
        masks = batch.lung_mask(there)[:, 0].cpu().numpy()
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
    square = torch.ones(3, 3, device=images.device)

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


def cucim_calls(images: Tensor) -> Calls:
    """Take cuCIM's CLAHE, threshold, morphology and labels, image by image."""
    try:
        cupy, skimage = importlib.import_module("cupy"), importlib.import_module("cucim.skimage")
    except ImportError:
        return {}
    if images.device.type != "cuda":
        return {}

    def one(image: Any) -> Any:
        equal = skimage.exposure.equalize_adapthist(image)
        dark = (equal > 0) & (equal <= skimage.filters.threshold_otsu(equal))
        dark = skimage.morphology.binary_opening(dark, cupy.ones((3, 3)))
        dark = skimage.segmentation.clear_border(dark)
        dark = skimage.morphology.binary_dilation(dark, cupy.ones((3, 3)))
        return skimage.morphology.remove_small_objects(dark, 400)

    return {"cuCIM, mask only": lambda: [one(cupy.asarray(image)) for image in images[:, 0]]}


def calls(images: Tensor, peers: bool) -> Calls:
    """Return what is compared: mask and paste of a whole batch."""
    module = batch.AnatPaste(1.0)
    compared: Calls = {"AnatPaste module": lambda: module(images)}
    if images.device.type == "cpu":
        arrays = [image.numpy() for image in images[:, 0]]
        compared = {"functional": lambda: [ap.anatpaste(array) for array in arrays]} | compared
    return compared | (kornia_calls(images) | cucim_calls(images) if peers else {})


def peak_memory(images: Tensor) -> int:
    """Return the most bytes that a call of the module has in tensors, its results included."""
    call = calls(images, peers=False)["AnatPaste module"]
    if images.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with Peak() as peak:
        peak.seen.add(images.untyped_storage()._cdata)
        call()
    return peak.most


def stages(images: Tensor, wait: Callable[[], object]) -> dict[str, float]:
    """Time each stage once warm; milliseconds per batch."""
    found: dict[str, float] = {}

    def lap(name: str, function: Callable[..., Any], *args: Any) -> Any:
        wait()
        start = time.perf_counter()
        result = function(*args)
        wait()
        found[name] = (time.perf_counter() - start) * 1e3
        return result

    for _ in range(2):  # the first pass warms up
        masks = lap("mask", batch.lung_mask, images)
        drawn = lap("draw", batch.sample_paste, masks)
        lap("paste", batch.apply_paste, images, drawn, masks)
    return found


def bandwidth(device: str) -> float:
    """Measure what a copy on the device reads and writes, in bytes a second."""
    source = torch.empty(GIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = measure({"copy": lambda: target.copy_(source)}, synchronize=torch.cuda.synchronize)
    return 2 * GIB / timing["copy"].median


def real_text(real: dict[str, int] | None) -> str:
    """Say how many masks of real radiographs are equal."""
    if real is None:
        return "Real radiographs were not there to compare."
    return f"Zhanglab radiographs at 224²: equal masks {real['masks_equal']} of {real['masks']}."


def describe(results: dict[str, Any]) -> str:
    """Lay the results out as Markdown."""
    found, env = results["exact"], results["environment"]
    lines = [
        f"Device: {results['device']}; {env['cpu']}, {env['cores']} cores; torch threads "
        f"{env['threads']['torch']}; torch {env['versions']['torch']}; commit {env['commit']}.",
        "",
        *([TRITON[results["triton"]], ""] if "triton" in results else []),
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
    lines += [part for reason in results["skipped"] for part in (f"Skipped: {reason}.", "")]
    lines += [
        "kornia and cuCIM are composed to a job near this one, not equal to it: they have no "
        "bounding-box rule (small regions go alone or not at all), kornia's paste is a blurred "
        "mask over a shifted image, and cuCIM pastes nothing.",
        "",
        "Images of 256² a second:",
        "",
    ]
    floor = results["floor"]["images_per_second"] if "floor" in results else None
    header = ["batch", *names] + (["floor / AnatPaste module"] if floor else [])
    rows = []
    for row in results["times"]:
        if row["size"] == 256:
            speeds = [1e3 / row["ms"][name] if name in row["ms"] else None for name in names]
            distance = [floor * row["ms"]["AnatPaste module"] / 1e3] if floor else []
            rows.append([str(row["batch"]), *speeds, *distance])
    lines += [markdown_table(header, rows), ""]
    total = sum(results["stages"].values())
    shares = [[name, 100 * ms / total] for name, ms in results["stages"].items()]
    lines += ["Shares:", "", markdown_table(["stage", "%"], shares), ""]
    lines += ["Peak of extra memory of the module, results included:", ""]
    rows = [[f"{m['batch']} x {m['size']}²", m["bytes"] / 2**20] for m in results["memory"]]
    lines += [markdown_table(["batch", "MiB"], rows), ""]
    if "floor" in results:
        floor = results["floor"]
        lines += [
            f"Floor for uint8 at 256²: {floor['images_per_second']:.4g} images a second at "
            f"{floor['bandwidth'] / 1e9:.0f} GB/s.",
            "",
        ]
    else:
        lines += ["Not run on a GPU: no figure for one is given.", ""]
    return "\n".join(lines)


def main() -> int:
    """Check, measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder for the results")
    options = parser.parse_args()
    device, cuda = options.device, options.device.startswith("cuda")
    wait: Callable[[], object] = torch.cuda.synchronize if cuda else lambda: None

    results: dict[str, Any] = {
        "environment": environment(),
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "exact": check(device),
        "exact_real": check_real(device, 32 if options.quick else None),
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

    batches, sizes = (1, 4, 16, 64, 256, 1024), (128, 512, 1024)
    if options.quick:
        batches, sizes = batches[:2], sizes[:1]
    results["times"], results["skipped"] = [], []
    for count, size in [(n, 256) for n in batches] + [(64 if cuda else 4, s) for s in sizes]:
        if not cuda and count > 64:
            # Minutes a call, and the time per image no longer changes.
            results["skipped"].append(f"{count} x {size}²: too slow for a CPU")
            continue
        images = make_images(count, size, device)
        # kornia's labels take a hundred passes: on a CPU it is timed on the smaller batches only.
        compared = calls(images, peers=cuda or count * size**2 <= 4 * 256**2)
        rounds = 3 if options.quick else 10
        clock = time.perf_counter if cuda else time.process_time
        timings = measure(
            compared, rounds=rounds, warmup=1, clock=clock, synchronize=wait, budget=60
        )
        ms = {name: timing.median * 1e3 / count for name, timing in timings.items()}
        results["times"].append({"batch": count, "size": size, "ms": ms})
        print(results["times"][-1], flush=True)
    results["stages"] = stages(make_images(256 if cuda else 8, 256, device), wait)

    limits = [(1, 256), (128, 256)] + ([(1024, 256), (8, 1024)] if cuda else [(256, 256)])
    results["memory"] = []
    for count, size in limits[: 1 if options.quick else None]:
        images = make_images(min(count, ORIGINALS), size, device)
        images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
        results["memory"].append({"batch": count, "size": size, "bytes": peak_memory(images)})
        print(results["memory"][-1], flush=True)
    if cuda:
        results["triton"] = operators.find_fault(torch.device("cuda", 0)) is None
        speed = bandwidth(device)
        least = 2 * 256**2 + 256**2  # image in; image and region out, a byte a pixel each
        results["floor"] = {"bandwidth": speed, "images_per_second": speed / least}

    text = describe(results)
    print(text)
    folder = options.out or (None if options.quick else RESULTS)
    if folder:
        write_json(folder / f"batch-{'gpu' if cuda else 'cpu'}.json", results)
    if folder == RESULTS:
        name = f"batch, {'GPU' if cuda else 'CPU'}"
        title = "## The batch on a GPU" if cuda else "## The batch on a CPU"
        replace_section(HERE / "RESULTS.md", name, f"{title}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
