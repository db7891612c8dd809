"""What is measured on the CPU: time, memory, data loading, import; and how it is written down."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import anatpaste_aug as ap
from anatpaste_aug.masks import clahe, regions
from benchmarks.harness import (
    HERE,
    SHARED,
    environment,
    markdown_table,
    measure,
    replace_section,
    write_json,
)
from benchmarks.others import kornia_mask, load, opencv_clahe
from benchmarks.recipe import recipe, recipe_mask, recipe_paste

RADIOGRAPHS = SHARED / "data" / "zhanglab_fullres"
SIZES = (128, 256, 512, 1024)
KORNIA_SIZES = (128, 256)  # its labeling takes one pooling pass for every row: minutes above
FLOORS = {256: 4.0, 1024: 6.0}  # least ratios to the recipe, by size: well below those measured
BATCH = 16
Calls = dict[str, Callable[[], object]]


def load_images(size: int) -> tuple[list[np.ndarray], str]:
    """Return (size, size) uint8 radiographs, else phantoms, and what they are."""
    files = sorted(RADIOGRAPHS.glob("*.jpeg"))
    if files:
        pictures = [Image.open(file).convert("L") for file in files]
        side = (size, size)
        images = [
            np.asarray(picture.resize(side, Image.Resampling.BICUBIC)) for picture in pictures
        ]
        return images, f"{len(files)} pediatric chest radiographs (Kermany et al., 2018), resized"
    from anatpaste_aug.data import phantom_radiograph

    return [phantom_radiograph(size, rng=seed) for seed in range(12)], "12 procedural phantoms"


def over(function: Callable[..., object], *items: list[Any]) -> Callable[[], object]:
    """Return a call that takes the next arguments every time, round and round."""
    turns = itertools.cycle(list(zip(*items, strict=True)))
    return lambda: function(*next(turns))


def mask_calls(images: list[np.ndarray], skipped: dict[str, str]) -> Calls:
    """Return the calls that make a lung mask."""
    calls: Calls = {
        "recipe": over(recipe_mask, images),
        "lung_mask": over(ap.lung_mask, images),
    }
    torch, why = load("torch")
    kornia, missing = load("kornia")
    size = images[0].shape[0]
    if torch is None or kornia is None:
        skipped["kornia"] = why or missing
    elif size not in KORNIA_SIZES:
        skipped[f"kornia at {size}"] = "one pooling pass per row in each labeling: too slow"
    else:
        tensors = [torch.from_numpy(image.copy())[None, None] / 255 for image in images]
        calls["kornia"] = over(kornia_mask(kornia), tensors)
    batch, why = load("anatpaste_aug.batch")
    if batch is None:
        skipped["batch"] = why
    else:
        calls["batch.lung_mask"] = over(batch.lung_mask, stacks(torch, images))
    return calls


def whole_calls(images: list[np.ndarray], skipped: dict[str, str]) -> Calls:
    """Return the calls that segment, draw and paste."""
    rng = np.random.default_rng(0)
    calls: Calls = {
        "recipe": over(lambda image: recipe(image, rng), images),
        "anatpaste": over(lambda image: ap.anatpaste(image, rng), images),
    }
    transforms, why = load("anatpaste_aug.transforms")
    if transforms is None:
        skipped["transforms"] = why
    else:
        pictures = [Image.fromarray(image) for image in images]
        calls["transforms.AnatPaste"] = over(transforms.AnatPaste(p=1), pictures)
    batch, why = load("anatpaste_aug.batch")
    if batch is None:
        skipped["batch"] = why
    else:
        paste = batch.AnatPaste(p=1.0)
        calls["batch.AnatPaste"] = over(paste, stacks(importlib.import_module("torch"), images))
    return calls


def given_calls(images: list[np.ndarray], skipped: dict[str, str]) -> Calls:
    """Return the calls that draw and paste with a mask that is already there."""
    rng = np.random.default_rng(0)
    masks = [ap.lung_mask(image) for image in images]
    calls: Calls = {
        "whole recipe": over(lambda image: recipe(image, rng), images),
        "recipe": over(lambda image, mask: recipe_paste(image, mask, rng), images, masks),
        "anatpaste": over(lambda image, mask: ap.anatpaste(image, rng, mask=mask), images, masks),
        "opacity": over(lambda image, mask: ap.opacity(image, rng, mask=mask), images, masks),
    }
    transforms, why = load("anatpaste_aug.transforms")
    if transforms is None:
        skipped["transforms"] = why
    else:
        torch = importlib.import_module("torch")
        fields = [transforms.LungField(torch.from_numpy(mask[None])) for mask in masks]
        samples = [(Image.fromarray(image), f) for image, f in zip(images, fields, strict=True)]
        calls["transforms.AnatPaste"] = over(transforms.AnatPaste(p=1), samples)
    return calls


def clahe_calls(images: list[np.ndarray], skipped: dict[str, str]) -> Calls:
    """Return the calls that equalize the histogram locally, the costliest stage of the recipe."""
    exposure = importlib.import_module("skimage.exposure")
    calls: Calls = {
        "scikit-image": over(exposure.equalize_adapthist, images),
        "this package (14 bits)": over(lambda im: clahe.clahe(clahe.quantize(im)), images),
    }
    albumentations, why = load("albumentations")
    if albumentations is None:
        skipped["albumentations"] = why
    else:
        calls["albumentations (OpenCV, 8 bits)"] = over(opencv_clahe(albumentations), images)
    torch, why = load("torch")
    kornia, missing = load("kornia")
    if torch is None or kornia is None:
        skipped["kornia"] = why or missing
    else:
        tensors = [torch.from_numpy(image.copy())[None, None] / 255 for image in images]
        equalize = kornia.enhance.equalize_clahe
        calls["kornia (float32)"] = over(lambda t: equalize(t, 2.56, (8, 8)), tensors)
    return calls


def stacks(torch: Any, images: list[np.ndarray]) -> list[Any]:
    """Return batches of 16 images, (16, 1, H, W) uint8."""
    turns = itertools.cycle(images)
    rows = [[next(turns) for _ in range(BATCH)] for _ in range(2)]
    return [torch.from_numpy(np.stack(row))[:, None] for row in rows]


JOBS = {
    "mask": mask_calls,
    "whole": whole_calls,
    "given mask": given_calls,
    "CLAHE": clahe_calls,
}


def measure_speed(sizes: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Time every job at every size, in processor time on one thread."""
    torch, _ = load("torch")
    if torch is not None:
        torch.set_num_threads(1)
    skipped: dict[str, str] = {}
    found: dict[str, Any] = {"clock": "processor time of the process, one thread", "jobs": {}}
    for job, calls_of in JOBS.items():
        found["jobs"][job] = {}
        for size in sizes:
            images, found["images"] = load_images(size)
            calls = calls_of(images, skipped)
            timings = measure(
                calls, rounds=rounds, sample_time=0.04, budget=6, clock=time.process_time
            )
            reference = next(iter(timings.values()))
            found["jobs"][job][str(size)] = rows = {}
            for name, timing in timings.items():
                share = BATCH if name.startswith("batch") else 1  # per image
                ratio = timing.times_as_fast_as(reference) * share
                rows[name] = timing.as_dict(share) | {"times_as_fast": float(f"{ratio:.3g}")}
            print(job, size, {name: row["times_as_fast"] for name, row in rows.items()}, flush=True)
    found["skipped"] = skipped
    found["stages"] = {str(size): measure_stages(size, rounds) for size in sizes}
    found["environment"] = environment()
    return found


def measure_stages(size: int, rounds: int) -> dict[str, float]:
    """Time the stages of `lung_mask` one after the other; median milliseconds over the images."""
    images, _ = load_images(size)
    samples: dict[str, list[float]] = {}
    last = 0.0

    def lap(name: str) -> None:
        nonlocal last
        now = time.process_time()
        samples.setdefault(name, []).append(now - last)
        last = time.process_time()

    for image in images * max(rounds // 8, 2):
        last = time.process_time()
        bins = clahe.quantize(image)
        lap("quantize")
        levels = clahe.clahe(bins)
        lap("CLAHE")
        dark = clahe.dark_side(levels, np.float64)
        lap("Otsu and comparison")
        opened = regions.opening(dark)
        lap("opening")
        cleared = regions.clear_border(opened)
        lap("border clearing")
        dilated = regions.combine_squares(np.logical_or, cleared)
        lap("dilation")
        regions.clear_small_boxes(dilated[1:-1, 1:-1], 400)
        lap("bounding-box rule")
    return {name: float(f"{statistics.median(t) * 1e3:.3g}") for name, t in samples.items()}


def measure_memory(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Return the peak of what Python and NumPy allocate in one call, in multiples of the image."""
    found: dict[str, Any] = {}
    for size in sizes:
        image = load_images(size)[0][0]
        rng = np.random.default_rng(0)
        mask = ap.lung_mask(image)
        calls: Calls = {
            "recipe, mask": lambda image=image: recipe_mask(image),
            "lung_mask": lambda image=image: ap.lung_mask(image),
            "anatpaste": lambda image=image, rng=rng: ap.anatpaste(image, rng),
            "anatpaste, given mask": lambda image=image, rng=rng, mask=mask: ap.anatpaste(
                image, rng, mask=mask
            ),
        }
        found[str(size)] = {}
        for name, call in calls.items():
            call()
            tracemalloc.start()
            call()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            found[str(size)][name] = round(peak / 1024)
    return found


class Radiographs:
    """A data set of Pillow images that are augmented when fetched."""

    def __init__(self, augment: Callable[[Any], Any] | None, length: int, size: int = 256):
        self.images = [Image.fromarray(image) for image in load_images(size)[0]]
        self.augment = augment
        self.length = length

    def __len__(self) -> int:
        """Return the number of images."""
        return self.length

    def __getitem__(self, index: int) -> Any:
        """Fetch one image as a (1, H, W) tensor."""
        image = self.images[index % len(self.images)]
        if self.augment is not None:
            image = self.augment(image)
        return importlib.import_module("torch").from_numpy(np.array(image))[None]


def augment_by_recipe(image: Any) -> Any:
    """Do what a user of the recipe does, for workers that must import it."""
    return recipe(np.asarray(image), np.random.default_rng())


def measure_loading(length: int) -> dict[str, Any]:
    """Return images per second of wall time of a DataLoader, 256 x 256, batches of 16."""
    torch, why = load("torch")
    transforms, missing = load("anatpaste_aug.transforms")
    if torch is None or transforms is None:
        return {"skipped": why or missing}
    torch.set_num_threads(1)
    augmentations = {
        "none": None,
        "recipe": augment_by_recipe,
        "transforms.AnatPaste": transforms.AnatPaste(p=1),
    }
    found: dict[str, Any] = {}
    for workers in (0, 1, 2):
        found[str(workers)] = {}
        for name, augment in augmentations.items():
            data = Radiographs(augment, length if name != "recipe" else max(length // 8, 32))
            loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=workers)
            rates = []
            for _ in range(3):
                turns = iter(loader)
                next(turns)  # the workers have started
                start, count = time.perf_counter(), 0
                for batch in turns:
                    count += len(batch)
                rates.append(count / (time.perf_counter() - start))
            found[str(workers)][name] = round(statistics.median(rates))
        print("workers", workers, found[str(workers)], flush=True)
    return found


def measure_import(rounds: int = 5) -> dict[str, Any]:
    """Return the seconds that an import takes in a fresh interpreter, by itself."""
    modules = {
        "numpy": "numpy",
        "the recipe's imports": "benchmarks.recipe",
        "anatpaste_aug": "anatpaste_aug",
        "torch and torchvision": "torchvision.transforms.v2",
        "anatpaste_aug.transforms": "anatpaste_aug.transforms",
    }
    found: dict[str, Any] = {}
    for name, module in modules.items():
        code = (
            f"import time; t = time.process_time(); import {module}; print(time.process_time()-t)"
        )
        times = []
        for _ in range(rounds):
            run = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parent
            )
            if run.returncode:
                break
            times.append(float(run.stdout))
        found[name] = float(f"{statistics.median(times):.3g}") if times else None
    return found


def check_speed() -> bool:
    """Tell whether `lung_mask` is as many times as fast as the recipe as FLOORS; a second try."""
    return all(_is_fast(size, floor) for size, floor in FLOORS.items())


def _is_fast(size: int, floor: float) -> bool:
    images, _ = load_images(size)
    calls = {name: mask_calls(images, {})[name] for name in ("recipe", "lung_mask")}
    for _ in range(2):
        timings = measure(calls, rounds=20, sample_time=0.04, clock=time.process_time)
        ratio = timings["lung_mask"].times_as_fast_as(timings["recipe"])
        print(f"lung_mask at {size}: {ratio:.2f} times as fast as the recipe, at least {floor:g}")
        if ratio >= floor:
            return True
    return False


def plot_growth(speed: dict[str, Any], path: Path) -> bool:
    """Plot time against image size, logarithmically; tell whether matplotlib was there."""
    matplotlib, _ = load("matplotlib")
    if matplotlib is None:
        return False
    matplotlib.use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(6.4, 3.6), dpi=90)
    lines = {
        ("whole", "recipe"): "recipe, whole",
        ("mask", "kornia"): "kornia, mask",
        ("whole", "anatpaste"): "anatpaste, whole",
        ("mask", "lung_mask"): "lung_mask",
        ("given mask", "anatpaste"): "anatpaste, given mask",
    }
    for (job, name), label in lines.items():
        times = {int(n): rows[name] for n, rows in speed["jobs"][job].items() if name in rows}
        if times:
            axes.plot(list(times), [row["median_ms"] for row in times.values()], "o-", label=label)
    axes.set(xscale="log", yscale="log", xlabel="image side, pixels", ylabel="ms per image")
    sizes = sorted(map(int, speed["jobs"]["mask"]))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    return True


def describe(results: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    default, tuned = results["speed"], results["speed_tuned_allocator"]
    env = default["environment"]
    versions = ", ".join(f"{name} {v}" for name, v in env["versions"].items() if v)
    parts = [
        "## CPU",
        f"Measured {env['date']} at commit {env['commit']} by `python -m benchmarks` on "
        f"{env['cpu']} ({env['cores']} cores, shared with other work), {env['system']}, "
        f"Python {env['python']}, {versions}. Images: {default['images']}. One thread; "
        "milliseconds of processor time per image, medians of interleaved rounds (quartiles in "
        "`results/cpu.json`). *x* is how many "
        "times as fast as the first row, in the same rounds. Malloc hands large blocks back to the "
        "system by default, and the recipe then pays for page faults that are no work of its own: "
        "the second *x* is with `MALLOC_MMAP_THRESHOLD_` and `MALLOC_TRIM_THRESHOLD_` set to "
        "1 GB, which spares both sides those faults.",
    ]
    titles = {
        "mask": "Lung mask",
        "whole": "Mask, draw and paste",
        "given mask": "Draw and paste, with a mask that is already there",
        "CLAHE": "Local histogram equalization alone (outputs of the last two differ)",
    }
    for job, by_size in default["jobs"].items():
        names = list(dict.fromkeys(name for rows in by_size.values() for name in rows))
        rows = []
        for name in names:
            row: list[object] = [name]
            for size, timings in by_size.items():
                if name not in timings:
                    row += [None, None, None]
                    continue
                other = tuned["jobs"][job].get(size, {}).get(name, {})
                row += [timings[name]["median_ms"], timings[name]["times_as_fast"]]
                row.append(other.get("times_as_fast"))
            rows.append(row)
        header = [titles[job]]
        for size in by_size:
            header += [f"{size}: ms", "x", "x, tuned"]
        parts.append(markdown_table(header, rows))
    sizes = list(default["stages"])
    parts.append(
        markdown_table(
            ["Stages of `lung_mask`, ms", *sizes],
            [
                [name, *(default["stages"][size][name] for size in sizes)]
                for name in default["stages"][sizes[0]]
            ],
        )
    )
    sizes = list(results["memory_kib"])
    parts.append(
        markdown_table(
            ["Peak memory of a call, KiB", *sizes],
            [
                [name, *(results["memory_kib"][size][name] for size in sizes)]
                for name in results["memory_kib"][sizes[0]]
            ],
        )
    )
    loading = results["loading"]
    if "skipped" not in loading:
        parts.append(
            markdown_table(
                [
                    "DataLoader, 256 x 256, images/s of wall time",
                    *(f"{n} workers" for n in loading),
                ],
                [[name, *(row[name] for row in loading.values())] for name in loading["0"]],
            )
        )
    parts.append(
        markdown_table(["Import, seconds of processor time", ""], results["import_s"].items())
    )
    if results["plot"]:
        parts.append(f"![Time against image size]({results['plot']})")
    if default["skipped"]:
        reasons = "; ".join(f"{name}: {why}" for name, why in default["skipped"].items())
        parts.append(f"Not measured: {reasons}.")
    return "\n\n".join(parts)


def run_all(quick: bool, folder: Path) -> None:
    """Measure everything, each allocator setting in a process of its own, and write it down."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    tuned = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(10**9))
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | one_thread
    results: dict[str, Any] = {}
    for name, variables in (("speed", plain), ("speed_tuned_allocator", plain | tuned)):
        path = folder / f"{name}.part.json"
        command = [sys.executable, "-m", "benchmarks", "--part", str(path)]
        subprocess.run(command + ["--quick"] * quick, check=True, env=variables, cwd=HERE.parent)
        results[name] = json.loads(path.read_text())
        path.unlink()
    sizes = SIZES[:2] if quick else SIZES
    results["memory_kib"] = measure_memory(sizes)
    results["loading"] = measure_loading(64 if quick else 512)
    results["import_s"] = measure_import(2 if quick else 7)
    plot = folder / "growth.png"
    results["plot"] = f"results/{plot.name}" if plot_growth(results["speed"], plot) else None
    write_json(folder / "cpu.json", results)
    text = describe(results)
    if folder == HERE / "results":
        replace_section(HERE / "RESULTS.md", "CPU", text)
    print(text)
