"""What a training step costs beside other busy processes, by how torch's threads wait.

``python -m benchmarks.neighbors [--steps N] [--rounds N] [--busy N]``: steps of the preset
``laptop`` on phantoms, in fp32, alone and beside busy processes, in turn. Threads that spin while
they wait for one another are OpenMP's own choice; those that sleep (``OMP_WAIT_POLICY=PASSIVE``)
are the pipeline's; and there is one thread, which has none to wait for. For POSIX systems.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import environment, markdown_table
from examples.pretrain_gde.settings import PRESETS, Settings

WAYS = {"spin": (None, None), "sleep": ("PASSIVE", None), "one thread": (None, 1)}
WARM_UP = 3  # steps
BUSY = "while True: pass"


def serve(threads: int | None) -> None:
    """Train as many steps as each line of standard input says, and print the seconds of one."""
    from examples.pretrain_gde.data import Source
    from examples.pretrain_gde.phantoms import write_phantoms
    from examples.pretrain_gde.run import load
    from examples.pretrain_gde.runtime import start
    from examples.pretrain_gde.train import Trainer

    settings = Settings(**PRESETS["laptop"])
    with tempfile.TemporaryDirectory() as name, start("cpu", threads) as runtime:
        folder = Path(name)
        write_phantoms(folder / "phantoms", 128)
        dataset = load(settings, Source(folder / "phantoms", folder / "cache"), folder, runtime)
        trainer = Trainer(settings, dataset, folder, runtime)
        model, step = trainer.model(frozen=False), 0
        trainer.network.train()
        for line in sys.stdin:
            begin = time.perf_counter()
            for _ in range(int(line)):
                trainer.update(model, trainer.augment(*trainer.source(step)))
                step += 1
            print((time.perf_counter() - begin) / int(line), flush=True)


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep busy processes, stopped at first."""
    made = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        for process in made:
            process.send_signal(signal.SIGSTOP)
        yield made
    finally:
        for process in made:
            process.kill()
            process.wait()


def measure(steps: int, rounds: int, busy: int) -> dict[tuple[str, bool], list[float]]:
    """Time steps of each way to wait, alone and beside busy processes, in turn.

    Returns
    -------
    dict of (str, bool) to list of float
        Seconds a step, by way and by whether others were busy, one for each round.
    """
    found: dict[tuple[str, bool], list[float]] = {}
    with contextlib.ExitStack() as stack:
        neighbors = stack.enter_context(busy_processes(busy))
        servers = {}
        for way, (policy, threads) in WAYS.items():
            chosen = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
            chosen |= {"OMP_WAIT_POLICY": policy} if policy else {}
            command = [sys.executable, "-m", "benchmarks.neighbors", "--serve", str(threads or 0)]
            server = subprocess.Popen(
                command, env=chosen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            servers[way] = stack.enter_context(server)
            _ask(server, WARM_UP)
        for _ in range(rounds):
            for others in (False, True):
                for process in neighbors:
                    process.send_signal(signal.SIGCONT if others else signal.SIGSTOP)
                for way, server in servers.items():
                    found.setdefault((way, others), []).append(_ask(server, steps))
        for server in servers.values():
            server.stdin.close()
    return found


def _ask(server: subprocess.Popen[str], steps: int) -> float:
    assert server.stdin is not None
    assert server.stdout is not None
    print(steps, file=server.stdin, flush=True)
    if not (answer := server.stdout.readline()):
        raise RuntimeError("the process that trains has ended; it says why")
    return float(answer)


def tell(found: dict[tuple[str, bool], list[float]]) -> str:
    """Make a Markdown table: medians, and medians of the ratios within a round, with the range."""
    header = ["threads", "alone, s a step", "of spinning", "beside busy ones", "of alone"]
    rows = []
    for way in WAYS:
        alone, beside = found[way, False], found[way, True]
        ratios = _ratio(alone, found["spin", False]), _ratio(beside, alone)
        rows.append([way, _spread(alone), ratios[0], _spread(beside), ratios[1]])
    return markdown_table(header, rows)


def _spread(values: list[float], digits: int = 3) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _ratio(these: list[float], those: list[float]) -> str:
    return _spread([one / other for one, other in zip(these, those, strict=True)], 2)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbors", description=__doc__)
    parser.add_argument("--steps", type=int, default=5, help="steps in a row (5)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of all, in turn (9)")
    parser.add_argument("--busy", type=int, default=2, help="busy processes (2)")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)  # threads; 0: torch's choice
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve or None)
        return
    found = measure(options.steps, options.rounds, options.busy)
    print(environment())
    print(f"{options.steps} steps in a row, {options.rounds} rounds, {options.busy} busy processes")
    print(tell(found))


if __name__ == "__main__":
    main()
