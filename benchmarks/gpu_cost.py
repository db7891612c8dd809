"""What the batch would cost a GPU, without one: ``python -m benchmarks gpu-cost``.

Counts launches and bytes of the plain form and of the Triton kernels, for mask, draw and paste of
128 grey images of 256 x 256, uint8, and compiles every kernel for NVIDIA's sm_80, sm_90 and sm_100:
registers, and bytes of stack, where a register that does not fit would be spilled.

- A torch operation counts as one launch, though some take more, and as the bytes of the tensors
  that it takes and makes, once each.
- A kernel's bytes are those of its loads and stores, counted where they happen, in Triton's
  interpreter; caches would save some of them. It runs on a few images, and its bytes are scaled to
  all. The results are compared with the functional form's on the way.
- The time is an estimate: 4 microseconds a launch, and 2.8 TB/s.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import anatpaste_aug as ap
from anatpaste_aug import batch
from anatpaste_aug.batch import PasteParams, TorchDraws, anatpaste, kernels, lungs, tensors
from anatpaste_aug.data import phantom_radiograph
from benchmarks.harness import HERE, RESULTS, commit, markdown_table, replace_section, write_json

COUNT, SIZE = 128, 256
INTERPRETED = 8  # images
LAUNCH, BANDWIDTH = 4e-6, 2.8e12  # seconds, bytes a second
TARGETS = (80, 90, 100)
RADIOGRAPHS = HERE.parents[1] / "shared" / "data" / "zhanglab224"
POINTERS = {
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.uint16: "*u16",
    torch.uint32: "*u32",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}


class Launch(NamedTuple):
    """A kernel and what it was to be launched with."""

    kernel: Any
    args: tuple[Any, ...]
    meta: dict[str, Any]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Note the launches of kernels, and launch nothing."""
    from anatpaste_aug.batch.kernels import draw as draw_host
    from anatpaste_aug.batch.kernels import mask as mask_host
    from anatpaste_aug.batch.kernels import paste as paste_host

    launches: list[Launch] = []

    def note(kernel: Any, grid: Any, *args: Any, **meta: Any) -> None:
        launches.append(Launch(kernel, args, meta))

    with ExitStack() as stack:
        for host in (mask_host, draw_host, paste_host):
            stack.enter_context(mock.patch.object(host, "launch", note))
        yield launches


def run(images: Tensor) -> tuple[Tensor, PasteParams, Tensor]:
    """Run the Triton form: masks, parameters and pastes."""
    forms, chosen = kernels.forms(), tensors.everyone(images)
    masks = forms["lung_mask"](images, 400, chosen)
    with (
        mock.patch.object(anatpaste, "_draw", forms["draw_paste"]),
        mock.patch.object(TorchDraws, "whole_on", (images.device.type,)),
    ):
        drawn = batch.sample_paste(masks, torch.Generator().manual_seed(0))
    return masks, drawn, forms["paste"](images, drawn.tensors(), masks, chosen)[0]


def record(
    size: tuple[int, int], dtype: torch.dtype, channels: int, count: int = 2
) -> tuple[list[Launch], Operations]:
    """Note what mask, draw and paste of a batch launch: kernels, and torch operations."""
    images = torch.zeros((count, channels, *size), dtype=dtype)
    with recorded() as launches, Operations() as operations:
        run(images)
    return launches, operations


class Operations(TorchDispatchMode):
    """Count torch operations that would launch something, and their bytes."""

    FREE = ("empty", "new_empty", "detach", "alias", "lift", "resize", "set_")

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        returns = func._schema.returns
        view = returns and all(r.alias_info and not r.alias_info.is_write for r in returns)
        if not view and not name.startswith(self.FREE):
            self.launches[name] += 1
            made = [result] if isinstance(result, Tensor) else list(result or [])
            flat = torch.utils._pytree.tree_leaves((args, kwargs, made))
            self.bytes += sum(held(value) for value in flat if isinstance(value, Tensor))
        return result


def held(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements, once each where they are repeated."""
    sizes = [size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
    return int(np.prod(sizes, dtype=np.int64)) * tensor.element_size()


def signature(launch: Launch) -> dict[str, Any]:
    """Say what a launch compiles, as Triton does: types, constants, multiples of 16, options."""
    types, constants, multiples = {}, {}, {}
    for i, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.args, strict=False)):
        if isinstance(value, Tensor):
            types[name] = POINTERS[value.dtype]
        elif value == 1:
            types[name], constants[name] = "constexpr", 1
        else:
            types[name] = "i32"
        if isinstance(value, Tensor) or (value != 1 and value % 16 == 0):
            multiples[(i,)] = [["tt.divisibility", 16]]
    meta = dict(launch.meta)
    options = {"num_warps": meta.pop("num_warps", 4), "enable_fp_fusion": False}
    for name, value in meta.items():
        types[name], constants[name] = "constexpr", value
    return {"types": types, "constants": constants, "multiples": multiples, "options": options}


def compile_kernels(
    cases: list[tuple[tuple[int, int], torch.dtype, int]], targets: tuple[int, ...] = TARGETS
) -> list[dict[str, Any]]:
    """Compile what the cases launch, each kernel once a kind; give registers and bytes of stack."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    rows, seen = [], set()
    for size, dtype, channels in cases:
        for launch in record(size, dtype, channels)[0]:
            what = signature(launch)
            for target in targets:
                key = (launch.kernel.__name__, target, str(what))
                if key in seen:
                    continue
                seen.add(key)
                source = ASTSource(
                    fn=launch.kernel,
                    signature=what["types"],
                    constexprs=what["constants"],
                    attrs=what["multiples"],
                )
                gpu = GPUTarget("cuda", target, 32)
                made = triton.compile(source, target=gpu, options=what["options"])
                with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                    file.write(made.asm["cubin"])
                    file.flush()
                    command = [str(tool), "-res-usage", file.name]
                    told = subprocess.run(command, capture_output=True, text=True, check=True)
                used = re.search(r"REG:(\d+) STACK:(\d+)", told.stdout)
                assert used, told.stdout + told.stderr
                rows.append(
                    {
                        "kernel": launch.kernel.__name__,
                        "target": target,
                        "size": list(size),
                        "dtype": str(dtype).removeprefix("torch."),
                        "channels": channels,
                        "registers": int(used[1]),
                        "stack": int(used[2]),
                        "shared": made.metadata.shared,
                        "warps": what["options"]["num_warps"],
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
    for path in paths[:: len(paths) // count][:count]:
        with Image.open(path) as image:
            grey = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pictures.append(np.asarray(grey))
    return torch.from_numpy(np.stack(pictures))[:, None], "Zhanglab's radiographs"


def interpret(count: int = INTERPRETED) -> dict[str, Any]:
    """Run the kernels in the interpreter; count their bytes, and compare with the functions."""
    from benchmarks.interpreter import Watch, patch_once

    patch_once()
    images, kind = radiographs(count)
    with Watch() as watch:
        masks, drawn, out = run(images)
    wrong_masks = wrong_pastes = 0
    for image, mask, single, got in zip(images, masks, drawn.unstack(), out, strict=True):
        array = image[0].numpy()
        wrong_masks += bool((ap.lung_mask(array) != mask.numpy()).any())
        expected = ap.apply_paste(array, single, mask.numpy())
        wrong_pastes += bool((expected != got[0].numpy()).any())
    return {
        "images": count,
        "kind": kind,
        "wrong_masks": wrong_masks,
        "wrong_pastes": wrong_pastes,
        "bytes": {name: total / count for name, total in watch.bytes.items()},
    }


def count_plain(count: int) -> Operations:
    """Count what the plain form launches and moves."""
    images = torch.from_numpy(np.stack([phantom_radiograph(SIZE, rng=0)] * count))[:, None]
    chosen = tensors.everyone(images)
    with Operations() as operations:
        masks = lungs.mask_plain(images, 400, chosen)
        drawn = batch.sample_paste(masks)
        anatpaste.paste_plain(images, drawn.tensors(), masks, chosen)
    return operations


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
    elif name == "quick":
        print(json.dumps(compile_kernels([((SIZE, SIZE), torch.uint8, 1)])))
    else:
        sizes = ((SIZE, SIZE), (224, 224), (200, 333), (1024, 1024))
        cases = [(size, dtype, n) for size in sizes for dtype in tensors.DTYPES for n in (1, 3)]
        print(json.dumps(compile_kernels(cases)))


def launches_of_kernels() -> dict[str, int]:
    """Count kernels and torch operations of the Triton form, and the bytes of the latter."""
    launches, operations = record((SIZE, SIZE), torch.uint8, 1, COUNT)
    total = sum(operations.launches.values())
    return {"kernels": len(launches), "operations": total, "bytes": operations.bytes}


def describe(found: dict[str, Any]) -> str:
    """Lay the results out as Markdown."""
    compiled, ran = found["compiled"], found["interpreted"]
    rows = []
    for name, launches, moved in (
        ("plain torch", found["plain"]["launches"], found["plain"]["bytes"]),
        ("Triton", found["triton"]["launches"], found["triton"]["bytes"]),
    ):
        time = seconds(launches, moved)
        rows.append([name, launches, moved / 1e9, time * 1e3, round(COUNT / time)])
    header = ["form", "launches", "GB", "estimate, ms", "estimate, images/s"]
    lines = [
        "## The batch on a GPU: an estimate",
        "",
        "By `python -m benchmarks gpu-cost`, without a GPU; "
        f"torch {torch.__version__}, commit {commit()}. **Not measured**: the kernels have not run "
        f"on a card. Mask, draw and paste of {COUNT} images of {SIZE} x {SIZE}, uint8, one "
        "channel. Bytes of kernels: of every load and store, on "
        f"{ran['images']} of {ran['kind']}, whose masks and pastes differ from the functions' in "
        f"{ran['wrong_masks']} and {ran['wrong_pastes']} cases. The estimate is 4 us a launch and "
        "2.8 TB/s.",
        "",
        markdown_table(header, rows),
        "",
        f"Of the Triton form's launches {found['triton']['kernels']} are kernels of this package, "
        "the others torch operations: zeros, random numbers, and views' copies.",
        "",
        f"Bytes a pixel, and the most that any of {found['cases']} compilations needs (sizes 256², "
        "224², 200 x 333 and 1024², all dtypes, 1 and 3 channels): registers a thread, and bytes "
        "of stack, where spilled registers would be:",
        "",
    ]
    rows = []
    for kernel in dict.fromkeys(row["kernel"] for row in compiled):
        row: list[Any] = [kernel, ran["bytes"].get(kernel, 0) / SIZE**2]
        for target in TARGETS:
            these = [r for r in compiled if r["kernel"] == kernel and r["target"] == target]
            row.append(max(r["registers"] for r in these))
        row.append(max(r["stack"] for r in compiled if r["kernel"] == kernel))
        rows.append(row)
    names = [f"registers, sm_{target}" for target in TARGETS]
    lines += [markdown_table(["kernel", "bytes", *names, "stack"], rows), ""]
    return "\n".join(lines)


def main(folder: Path | None, quick: bool) -> int:
    """Count, compile, print and write."""
    compiled = part("quick" if quick else "compile")
    interpreted = part("interpret")
    plain = count_plain(COUNT)
    launched = part("launches")
    found = {
        "commit": commit(),
        "torch": torch.__version__,
        "plain": {"launches": sum(plain.launches.values()), "bytes": plain.bytes},
        "triton": {
            "launches": launched["kernels"] + launched["operations"],
            "kernels": launched["kernels"],
            "bytes": launched["bytes"] + COUNT * sum(interpreted["bytes"].values()),
        },
        "interpreted": interpreted,
        "cases": len(compiled),
        "compiled": compiled,
    }
    text = describe(found)
    print(text)
    if folder:
        write_json(folder / "gpu-cost.json", found)
    if folder == RESULTS:
        replace_section(HERE / "RESULTS.md", "batch, GPU, estimate", text)
    wrong = interpreted["wrong_masks"] + interpreted["wrong_pastes"]
    return 1 if wrong or any(row["stack"] for row in compiled) else 0
