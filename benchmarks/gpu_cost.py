"""What the batch would cost a GPU, without one: ``python -m benchmarks gpu-cost``.

Counts launches and bytes of the Triton kernels, for mask, draw and paste of 128 gray images of
256 x 256, uint8, and compiles every kernel for NVIDIA's sm_80, sm_90 and sm_100: registers, and
bytes of stack, where a register that does not fit would be spilled.

- A torch operation counts as one launch, though some take more, and as the bytes of the tensors
  that it takes and makes, once each.
- A kernel's bytes are those of its loads and stores, counted where they happen, in Triton's
  interpreter; caches would save some of them. It runs on a few images, and its bytes are scaled to
  all. The results are compared with the functional form's on the way.
- The time is an estimate: 4 microseconds a launch, and 2.8 TB/s.
- The host's time is measured, with tensors on the CPU, and with Triton's whole way to a launch but
  for the driver's part of it. ``python -m benchmarks gpu-host`` measures it alone. A batch takes
  the longer of the two times.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import anatpaste_aug as ap
from anatpaste_aug.batch.params import unstack
from anatpaste_aug.batch.tensors import DTYPES
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.operations import AnatPaste
from benchmarks.harness import (
    HERE,
    RESULTS,
    SHARED,
    commit,
    markdown_table,
    replace_section,
    write_json,
)

COUNT, SIZE = 128, 256
INTERPRETED = 8  # images
HOST_ROUNDS = 500
LAUNCH, BANDWIDTH = 4e-6, 2.8e12  # seconds, bytes a second
TARGETS = (80, 90, 100)
STAGES = ("mask", "draw", "paste")
SIZES = ((SIZE, SIZE), (224, 224), (200, 333), (1024, 1024))
KINDS = "256², 224², 200 x 333 and 1024², all dtypes, 1 and 3 channels; 16², 2048² and 4096², uint8"
RADIOGRAPHS = SHARED / "data" / "zhanglab224"
Case: TypeAlias = tuple[tuple[int, int], torch.dtype, int]  # a size, and how many channels
# Instructions that do not round each sum, product, quotient and root once.
INEXACT = re.compile(
    r"\b(?:fma|mad)\.\w+\.f\d+|\b\w+\.(?:full|approx)[.\w]*|\b\w+[.\w]*\.ftz[.\w]*"
)


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Note the names of kernels that would be launched, and launch nothing."""
    from anatpaste_aug.batch.kernels import draw, mask, paste

    names: list[str] = []

    def note(kernel: Any, *args: Any, **meta: Any) -> None:
        names.append(kernel.__name__)

    with ExitStack() as stack:
        for host in (mask, draw, paste):
            stack.enter_context(mock.patch.object(host, "launch", note))
        yield names


def run(
    images: Tensor, begin: Callable[[str], None] = lambda stage: None
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Run the kernels, and say which stage begins: masks, fields of params, pastes and regions."""
    from anatpaste_aug.batch.kernels import draw, mask, paste

    device, operation = images.device, AnatPaste()
    chosen = torch.ones(len(images), dtype=torch.bool, device=device)
    generator = torch.Generator(device).manual_seed(0)
    begin("mask")
    masks = mask.lung_mask(images, 400, chosen)
    begin("draw")
    numbers = torch.randint(2**53, (10, len(images)), generator=generator, device=device)
    fields = list(draw.sample(masks, numbers, tuple(images.shape[2:]), operation))
    begin("paste")
    out, regions = paste.paste(images, fields, masks, chosen, operation)
    begin("")
    return masks, fields, out, regions


def compare(images: Tensor, results: tuple[Tensor, list[Tensor], Tensor, Tensor]) -> list[int]:
    """Count the masks, the pastes and the regions of `run` that are not what the functions give."""
    masks, fields, pasted, regions = results
    wrong = [0, 0, 0]
    drawn = unstack(ap.PasteParams, *(field.cpu() for field in fields))
    each = zip(images.cpu(), masks.cpu(), drawn, pasted.cpu(), regions.cpu(), strict=True)
    for image, mask, params, got, region in each:
        array, lungs = image[0].numpy(), mask.numpy()
        expected, changed = ap.apply_paste(array, params, lungs, return_mask=True)
        wrong[0] += not np.array_equal(lungs, ap.lung_mask(array))
        wrong[1] += not np.array_equal(got[0].numpy(), expected)
        wrong[2] += not np.array_equal(region[0].numpy(), changed)
    return wrong


class Operations(TorchDispatchMode):
    """Count torch operations that would launch something, and their bytes."""

    FREE = ("empty", "new_empty", "detach", "alias", "lift", "resize", "set_")

    def __init__(self) -> None:
        super().__init__()
        self.stage = ""
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        returns = func._schema.returns
        view = returns and all(r.alias_info and not r.alias_info.is_write for r in returns)
        if not view and not name.startswith(self.FREE):
            self.launches[self.stage] += 1
            made = [result] if isinstance(result, Tensor) else list(result or [])
            flat = torch.utils._pytree.tree_leaves((args, kwargs, made))
            self.bytes[self.stage] += sum(
                held(value) for value in flat if isinstance(value, Tensor)
            )
        return result


def held(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements, once each where they are repeated."""
    sizes = [size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
    return int(np.prod(sizes, dtype=np.int64)) * tensor.element_size()


def tools() -> Path | None:
    """Return the path of cuobjdump in Triton's wheel, if it is there, with ptxas beside it."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    there = all((folder / name).exists() for name in ("ptxas", "cuobjdump"))
    return folder / "cuobjdump" if there else None


def compile_cases(target: Any, cases: list[Case]) -> list[tuple[str, Any]]:
    """Compile what the cases launch on a GPU: names of kernels, each with what was made of it."""
    from benchmarks.pretend import gpu, launch_nothing

    kernels = {}

    def note(source: Any, metadata: Any) -> Any:
        kernels[source.fn.__name__] = source.fn
        return launch_nothing(source, metadata)

    with gpu(target, note):
        for size, dtype, channels in cases:
            run(torch.zeros((2, channels, *size), dtype=dtype))
    return [
        (name, made)
        for name, kernel in kernels.items()
        for made in kernel.device_caches[target][0].values()
    ]


def compile_for_amd() -> list[str]:
    """Compile the kernels for one of AMD's GPUs; return their names."""
    from triton.backends.compiler import GPUTarget

    made = compile_cases(GPUTarget("hip", "gfx942", 64), [((SIZE, SIZE), torch.uint8, 1)])
    return sorted({name for name, _ in made})


def compile_kernels(cases: list[Case]) -> list[dict[str, Any]]:
    """Compile what the cases launch, each kernel once a kind: registers and bytes of stack."""
    from triton.backends.compiler import GPUTarget

    tool, rows = tools(), []
    for target in TARGETS:
        for name, made in compile_cases(GPUTarget("cuda", target, 32), cases):
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(made.asm["cubin"])
                file.flush()
                command = [str(tool), "-res-usage", file.name]
                told = subprocess.run(command, capture_output=True, text=True, check=True)
            used = re.search(r"REG:(\d+) STACK:(\d+)", told.stdout)
            assert used, told.stdout + told.stderr
            rows.append(
                {
                    "kernel": name,
                    "target": target,
                    "arguments": list(made.src.signature.values()),
                    "registers": int(used[1]),
                    "stack": int(used[2]),
                    "shared": made.metadata.shared,
                    "warps": made.metadata.num_warps,
                    "inexact": sorted(set(INEXACT.findall(made.asm["ptx"]))),
                }
            )
    return rows


def radiographs(count: int) -> tuple[Tensor, str]:
    """Return uint8 images of 256 x 256: Zhanglab's radiographs where they are, else phantoms."""
    paths = sorted(RADIOGRAPHS.rglob("*.jp*g"))
    if not paths:
        pictures = [phantom_radiograph(SIZE, rng=i) for i in range(count)]
        return torch.from_numpy(np.stack(pictures))[:, None], "phantoms"
    pictures = []
    for path in paths[:: max(len(paths) // count, 1)][:count]:
        with Image.open(path) as image:
            gray = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pictures.append(np.asarray(gray))
    return torch.from_numpy(np.stack(pictures))[:, None], "Zhanglab's radiographs"


def interpret(count: int = INTERPRETED) -> dict[str, Any]:
    """Run the kernels in the interpreter; count their bytes, and compare with the functions."""
    from benchmarks.interpreter import Watch, patch_once

    patch_once()
    images, kind = radiographs(count)
    kept: dict[str, Counter[str]] = {}
    with Watch() as watch:

        def begin(stage: str) -> None:
            watch.bytes = kept.setdefault(stage, Counter())

        results = run(images, begin)
    wrong_masks, wrong_pastes, _ = compare(images, results)
    return {
        "images": count,
        "kind": kind,
        "wrong_masks": wrong_masks,
        "wrong_pastes": wrong_pastes,
        "bytes": {
            stage: {name: round(total / count) for name, total in kept[stage].items()}
            for stage in STAGES
        },
    }


def seconds(launches: float, moved: float) -> float:
    """Estimate the time of launches and bytes."""
    return launches * LAUNCH + moved / BANDWIDTH


def part(name: str) -> Any:
    """Run one part in a process of its own: what Triton does is settled when it is imported."""
    code = f"from benchmarks import gpu_cost; gpu_cost.print_part({name!r})"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if name == "interpret":
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
        cwd=HERE.parent,
    )
    return json.loads(done.stdout.splitlines()[-1])


def print_part(name: str) -> None:
    """Print what one part gives, for `part`."""
    if name == "interpret":
        print(json.dumps(interpret()))
    elif name == "launches":
        print(json.dumps(launches_of_kernels()))
    elif name == "memory":
        print(json.dumps(memory()))
    elif name == "host":
        print(json.dumps(host_times()))
    elif name == "amd":
        print(json.dumps(compile_for_amd()))
    elif name == "quick":
        print(json.dumps(compile_kernels([((SIZE, SIZE), torch.uint8, 1)])))
    else:
        cases = [(size, dtype, n) for size in SIZES for dtype in DTYPES for n in (1, 3)]
        cases += [((side, side), torch.uint8, 1) for side in (16, 2048, 4096)]
        print(json.dumps(compile_kernels(cases)))


def launches_of_kernels() -> dict[str, dict[str, int]]:
    """Count kernels and torch operations, and the bytes of the latter."""
    images = torch.zeros((COUNT, 1, SIZE, SIZE), dtype=torch.uint8)
    begun: list[int] = []
    with recorded() as names, Operations() as operations:

        def begin(stage: str) -> None:
            operations.stage = stage
            begun.append(len(names))

        run(images, begin)
    kernels = dict(zip(STAGES, np.diff(begun).tolist(), strict=True))
    return {
        stage: {
            "kernels": kernels[stage],
            "operations": operations.launches[stage],
            "bytes": operations.bytes[stage],
        }
        for stage in STAGES
    }


def summary(compiled: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the most that any compilation of each kernel needs, by target."""
    found: dict[str, dict[str, Any]] = {}
    for row in compiled:
        mine = found.setdefault(row["kernel"], {"cases": 0, "shared": 0, "stack": 0})
        mine["cases"] += 1
        for name in ("shared", "stack"):
            mine[name] = max(mine[name], row[name])
        name = f"registers_{row['target']}"
        mine[name] = max(mine.get(name, 0), row["registers"])
    return found


class Peak(TorchDispatchMode):
    """Count the bytes of all tensors that are alive, and remember the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it made."""
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.seen:
                    self.seen.add(key)
                    self.now += size
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._free, key, size)
        return result


def memory() -> float:
    """Return the most bytes a pixel that the batch has in tensors, its results included."""
    images = torch.zeros((COUNT, 1, SIZE, SIZE), dtype=torch.uint8)
    with recorded(), Peak() as peak:
        run(images)
    return peak.most / images.numel()


def host_times(rounds: int = HOST_ROUNDS) -> dict[str, list[float]]:
    """Measure the host's time for each stage, the driver's left out: quartiles, in microseconds."""
    from benchmarks.pretend import gpu

    # As many launches as for large ones. There the CPU's allocator, unlike a GPU's, would ask the
    # system for memory each time.
    images = torch.zeros((COUNT, 1, 64, 64), dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    laps: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "all")}
    with gpu():
        for _ in range(rounds + rounds // 10):
            ends: list[float] = []
            run(images, lambda _, ends=ends: ends.append(time.perf_counter()))  # type: ignore[misc]
            for stage, start, end in zip(STAGES, ends[:-1], ends[1:], strict=True):
                laps[stage].append((end - start) * 1e6)
            laps["all"].append((ends[-1] - ends[0]) * 1e6)
    torch.set_num_threads(threads)
    # The first rounds warm up.
    return {
        stage: np.percentile(times[-rounds:], (25, 50, 75)).tolist()
        for stage, times in laps.items()
    }


def host_text(times: dict[str, list[float]]) -> str:
    """Lay the host's times out as Markdown."""
    rows = [
        [stage, round(median), f"{low:.0f} to {high:.0f}"]
        for stage, (low, median, high) in times.items()
    ]
    return markdown_table(["stage", "microseconds, median", "quartiles"], rows)


def describe(found: dict[str, Any]) -> str:
    """Lay the results out as Markdown."""
    compiled, ran = found["compiled"], found["interpreted"]
    rows = []
    for stage in (*STAGES, "all"):
        some = found["stages"].values() if stage == "all" else [found["stages"][stage]]
        launches = sum(part["launches"] for part in some)
        moved = sum(part["bytes"] for part in some)
        card, host = seconds(launches, moved), found["host"][stage][1] / 1e6
        rows.append([stage, launches, moved / 1e9, card * 1e3, host * 1e3])
    longer = max(card, host)
    low, high = (found["host"]["all"][i] / 1e3 for i in (0, 2))
    binds = "the host" if host > card else "the card"
    own = sum(part["kernels"] for part in found["stages"].values())
    lines = [
        "## The batch on a GPU: an estimate",
        "",
        "By `python -m benchmarks gpu-cost`, without a GPU; "
        f"torch {torch.__version__}, commit {commit()}. **Not measured**: the kernels have not run "
        f"on a card. Mask, draw and paste of {COUNT} images of {SIZE} x {SIZE}, uint8, one "
        f"channel: at most {float(f'{COUNT / longer:.2g}'):,.0f} images a second, and {binds} "
        "binds. Bytes of kernels: of every load and store, counted in Triton's interpreter on "
        f"{ran['images']} of {ran['kind']}; the masks and pastes differ from the functions' in "
        f"{ran['wrong_masks']} and {ran['wrong_pastes']} of them. The card's time is 4 us a launch "
        "and 2.8 TB/s: it leaves out arithmetic, waiting for memory, and atomics that meet. The "
        "host's is measured in one thread, on images of 64 x 64, without the driver's part of a "
        f"launch; quartiles of all: {low:.3g} to {high:.3g} ms. "
        "The driver takes some microseconds a launch on top of it. While the card works on one "
        "batch, the host prepares the next.",
        "",
        markdown_table(["stage", "launches", "GB", "card, estimate, ms", "host, ms"], rows),
        "",
        f"{own} of the launches are of {len(compiled)} kernels, the others torch operations: "
        f"zeros, random numbers, and a stack of parameters. Tensors take at most "
        f"{found['memory']:.3g} bytes a pixel, results included.",
        "",
        f"Bytes a pixel, and the most that any of {found['cases']} compilations needs "
        f"({found['kinds']}): registers a thread, and bytes of stack, where spilled registers "
        "would be:",
        "",
    ]
    moved = {name: n for stage in STAGES for name, n in ran["bytes"][stage].items()}
    rows = []
    for kernel, most in compiled.items():
        registers = [most[f"registers_{target}"] for target in TARGETS]
        bytes_a_pixel = f"{moved.get(kernel, 0) / SIZE**2:.3g}"
        rows.append([kernel, bytes_a_pixel, *registers, most["stack"]])
    names = [f"registers, sm_{target}" for target in TARGETS]
    lines += [markdown_table(["kernel", "bytes", *names, "stack"], rows), ""]
    return "\n".join(lines)


def main(folder: Path | None, quick: bool) -> int:
    """Count, compile, print and write."""
    compiled = part("quick" if quick else "compile")
    interpreted = part("interpret")
    launched = part("launches")
    found: dict[str, Any] = {
        "commit": commit(),
        "torch": torch.__version__,
        "stages": {
            stage: {
                "launches": launched[stage]["kernels"] + launched[stage]["operations"],
                "kernels": launched[stage]["kernels"],
                "bytes": launched[stage]["bytes"]
                + COUNT * sum(interpreted["bytes"][stage].values()),
            }
            for stage in STAGES
        },
        "memory": part("memory"),
        "host": part("host"),
        "interpreted": interpreted,
        "cases": len(compiled),
        "kinds": "256², uint8, one channel" if quick else KINDS,
        "compiled": summary(compiled),
    }
    text = describe(found)
    print(text)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "gpu-cost.json", found)
    if folder == RESULTS:
        replace_section(HERE / "RESULTS.md", "batch, GPU, estimate", text)
    wrong = interpreted["wrong_masks"] + interpreted["wrong_pastes"]
    return 1 if wrong or any(row["stack"] for row in compiled) else 0
