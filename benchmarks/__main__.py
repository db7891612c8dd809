"""``python -m benchmarks [--quick | --check] [gpu-cost | gpu-host]``.

Without options everything is measured (about ten minutes) and ``results/cpu.json``,
``results/growth.png`` and the CPU section of ``RESULTS.md`` are written. ``--quick`` takes a minute
or two, covers two sizes and writes to the folder named by ``--out``, or nowhere. ``--check`` only
compares the lung mask with the recipe at two sizes and fails if it has become slow. ``gpu-cost``
counts what the batch would cost a GPU, without one (see `benchmarks.gpu_cost`); ``gpu-host``
measures how long the host takes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import cpu
from benchmarks.harness import RESULTS, write_json


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--check", action="store_true", help="fail if the mask has become slow")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)  # one process's share
    what = {"choices": ["gpu-cost", "gpu-host"], "help": "instead of the CPU's times"}
    parser.add_argument("what", nargs="?", **what)
    options = parser.parse_args()
    if options.what:
        from benchmarks import gpu_cost  # needs torch

        if options.what == "gpu-host":
            print(gpu_cost.host_text(gpu_cost.part("host")))
            return 0
        return gpu_cost.main(options.out or (None if options.quick else RESULTS), options.quick)
    if options.check:
        return 0 if cpu.check_speed() else 1
    if options.part:
        sizes = cpu.SIZES[:2] if options.quick else cpu.SIZES
        write_json(options.part, cpu.measure_speed(sizes, 7 if options.quick else 20))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or (Path(scratch) if options.quick else RESULTS)
        folder.mkdir(parents=True, exist_ok=True)
        cpu.run_all(options.quick, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
