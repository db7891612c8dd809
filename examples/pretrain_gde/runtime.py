"""Where a run computes: the device, and the other processes if there are several."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from threadpoolctl import threadpool_limits

import anatpaste_aug
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import check_form

PATIENCE = timedelta(hours=2)  # the first process decodes and scores while the others wait
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-image", "scikit-learn", "pillow")


@dataclass(frozen=True)
class Runtime:
    """What computes, and what is shown meanwhile; nothing here changes what is computed.

    Attributes
    ----------
    device : torch.device
        Where the network lives.
    rank, world : int
        This process among all; the first one alone writes files.
    compiled : bool
        Whether `torch.compile` compiles the network.
    tensorboard : bool
        Whether logs for TensorBoard are written.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    compiled: bool = False
    tensorboard: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all other processes."""
        if self.world > 1:
            torch.distributed.barrier()

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Average a value over all processes."""
        if self.world > 1:
            torch.distributed.all_reduce(value)
            value /= self.world
        return value


@contextlib.contextmanager
def start(
    device: str = "auto",
    threads: int | None = None,
    compiled: bool | None = None,
    tensorboard: bool = False,
) -> Iterator[Runtime]:
    """Choose the device, and join the other processes when started by ``torchrun``.

    Raises
    ------
    PipelineError
        If the device is not there, `threads` is out of range, or another of the processes ended.
    """
    if threads is not None:
        check_form(threads, (1, 1024), "threads")
        torch.set_num_threads(threads)
        threadpool_limits(threads)  # of NumPy's and SciPy's linear algebra
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and world > 1:
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        elif chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PipelineError(f"device {device!r} cannot be used: {reason}") from error
    gpu = chosen.type == "cuda"
    compiled = gpu if compiled is None else compiled
    if gpu:
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    if world > 1:
        torch.distributed.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
    try:
        yield Runtime(chosen, rank, world, compiled, tensorboard)
    except RuntimeError as error:
        if world > 1 and (isinstance(error, torch.distributed.DistError) or "peer" in str(error)):
            raise PipelineError("another of the processes has ended; it says why") from error
        raise
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()


def default_precision(device: torch.device) -> str:
    """Choose bf16 where the hardware computes in it, fp32 elsewhere."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capable = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capable.get("avx512_bf16") or capable.get("amx_bf16") else "fp32"


def describe(runtime: Runtime) -> dict[str, Any]:
    """Describe the hardware and the versions, for the record."""
    versions = {"anatpaste_aug": anatpaste_aug.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    gpu = runtime.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(runtime.device) if gpu else _processor(),
        "processes": runtime.world,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "compiled": runtime.compiled,
        "platform": platform.platform(terse=True),
        "versions": versions,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
