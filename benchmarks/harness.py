"""Time callables side by side, and write what was measured down with what it was measured on.

Only ratios of times from the same run mean much: on a shared machine the clock of one minute is not
that of the next. `measure` therefore interleaves what it compares.
"""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.pretrain_gde.disk import replacing

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SHARED = Path(os.environ.get("ANATPASTE_AUG_SHARED", HERE.resolve().parents[1] / "shared"))
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "LD_PRELOAD")
PACKAGES = (
    "numpy",
    "scipy",
    "scikit-image",
    "pillow",
    "torch",
    "torchvision",
    "kornia",
    "albumentations",
    "numba",
)


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one callable, one sample for each round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the samples."""
        if len(self.samples) == 1:
            return self.samples * 2
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high

    def times_as_fast_as(self, other: Timing) -> float:
        """Return the median, over the rounds, of the other's time divided by this one's."""
        return statistics.median(
            theirs / ours for ours, theirs in zip(self.samples, other.samples, strict=True)
        )

    def as_dict(self, share: int = 1) -> dict[str, Any]:
        """Return median, quartiles and number of samples, ready for JSON.

        Times are milliseconds for one of the `share` images that a call takes.
        """
        low, high = (end * 1e3 / share for end in self.quartiles)
        return {
            "median_ms": _digits(self.median * 1e3 / share),
            "quartiles_ms": [_digits(low), _digits(high)],
            "rounds": len(self.samples),
        }


def measure(
    callables: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    warmup: int = 2,
    sample_time: float = 0.005,
    budget: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time callables in turn, round by round, each round starting with another one.

    Parameters
    ----------
    callables : mapping of str to callable
        What to compare. Results are dropped.
    rounds : int, optional
        Samples for each callable; fewer, but at least 3, if they would exceed `budget`.
    warmup : int, optional
        Untimed calls of each before anything is timed.
    sample_time : float, optional
        Seconds: calls shorter than this are repeated until a sample takes about as long.
    budget : float, optional
        Seconds that all the samples together may take, roughly.
    clock : callable, optional
        Gives the time in seconds. ``time.process_time`` counts the processor time of all threads,
        and so leaves out what others do on a shared machine: for work that stays on the CPU and
        in this process.
    synchronize : callable, optional
        Waits for the device, for example ``torch.cuda.synchronize``: called before the clock is
        read, at both ends of a sample.

    Returns
    -------
    timings : dict of str to Timing
        In the order of `callables`.
    """
    wait = synchronize if synchronize is not None else lambda: None
    names = list(callables)
    repeats = {}
    expected = 0.0
    for name in names:
        for _ in range(warmup):
            callables[name]()
        once = _sample(callables[name], 1, clock, wait)
        repeats[name] = max(1, round(sample_time / max(once, 1e-7)))
        expected += once * repeats[name]
    rounds = max(3, min(rounds, int(budget / expected)))
    samples: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(_sample(callables[name], repeats[name], clock, wait))
    return {name: Timing(tuple(times)) for name, times in samples.items()}


def _sample(
    function: Callable[[], object],
    repeats: int,
    clock: Callable[[], float],
    wait: Callable[[], object],
) -> float:
    collecting = gc.isenabled()
    gc.disable()
    try:
        wait()
        start = clock()
        for _ in range(repeats):
            function()
        wait()
        return (clock() - start) / repeats
    finally:
        if collecting:
            gc.enable()


def environment() -> dict[str, Any]:
    """Say what the numbers were measured on: versions, processor, threads, allocator, commit."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": {name: os.environ.get(name, "not set") for name in THREADS},
        "allocator": {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
        or "default",
        "versions": {},
    }
    for package in PACKAGES:
        try:
            found["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found["versions"][package] = None
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"]["torch"] = torch.get_num_threads()
        found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.processor()


def commit() -> str:
    """Return the commit, with "+" behind it if the package's or the benchmarks' code differs."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "../anatpaste_aug", "*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_json(path: Path, data: Any) -> None:
    """Write `data` under a temporary name, then move it: a reader never sees half a file."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def replace_section(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers of section `name` of a Markdown file, or behind its end."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    old = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    section = f"{begin}\n\n{text.strip()}\n\n{end}"
    if begin in old:
        head, rest = old.split(begin, 1)
        new = head + section + rest.split(end, 1)[1]
    else:
        new = old.rstrip() + "\n\n" + section + "\n"
    write_text(path, new)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a Markdown table; floats get three digits, None becomes a dash."""
    lines = ["| " + " | ".join(header) + " |", "| --- " + "| ---: " * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{_digits(value):g}" if isinstance(value, float) else str(value)


def _digits(value: float, count: int = 3) -> float:
    return float(f"{value:.{count}g}") if value < 10**count else round(value)
