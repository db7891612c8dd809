"""A GPU that is not there, for Triton: kernels are compiled for it, and launched into nothing.

Tensors stay on the CPU. What is compiled lies in Triton's cache, where the same versions on a
machine with such a GPU find it: ``python -m benchmarks.pretend`` compiles what `gpu.sh` needs
there, for sm_90, into ``TRITON_CACHE_DIR``.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from anatpaste_aug.batch.kernels.launch import plan_of

HOPPER = GPUTarget("cuda", 90, 32)


class Driver:
    """Stands for Triton's: of one GPU."""

    def __init__(self, target: GPUTarget, launcher: Callable[[Any, Any], Any]) -> None:
        self.target, self.launcher_cls = target, launcher
        self.utils = types.SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 2**30},
            load_binary=lambda *args: (object(), 0, 0, 0, 2**10),
        )

    def get_current_target(self) -> GPUTarget:
        """Return what kernels are compiled for."""
        return self.target

    def get_current_device(self) -> GPUTarget:
        """Return what Triton keeps the kernels apart by that it has compiled."""
        return self.target

    def get_current_stream(self, device: GPUTarget) -> int:
        """Return the default one."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return where tensors lie, really."""
        return torch.device("cpu")


def launch_nothing(source: Any, metadata: Any) -> Any:
    """Return what launches a compiled kernel: nothing."""
    return lambda *args: None


@contextmanager
def gpu(
    target: GPUTarget = HOPPER, launcher: Callable[[Any, Any], Any] = launch_nothing
) -> Iterator[None]:
    """Let Triton take a GPU for the active one.

    Raises
    ------
    RuntimeError
        If kernels are interpreted in this process.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, not launched")
    before = driver._active
    driver.set_active(Driver(target, launcher))  # type: ignore[arg-type]
    plan_of.cache_clear()  # of what was launched on another
    try:
        yield
    finally:
        driver._active = before
        plan_of.cache_clear()


def count_compilations() -> list[int]:
    """Return how many kernels Triton compiles from now on, and finds in its cache: it counts on."""
    counts = [0, 0]

    def count(cache_hit: bool, **_: Any) -> None:
        counts[cache_hit] += 1

    triton.knobs.compilation.listener = count
    return counts


# --- what gpu.sh compiles -------------------------------------------------------------------------


class OnCpu(TorchFunctionMode):
    """Let tensors that are meant for the GPU lie on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function with another device."""
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        args = ("cpu" if isinstance(arg, str) and arg.startswith("cuda") else arg for arg in args)
        return func(*args, **kwargs)


class Functions:
    """A plugin of pytest: what kernels would compute is computed by the functions."""

    def pytest_collection_finish(self) -> None:
        """Put the functions behind the kernels' launches, once the tests are imported."""
        import anatpaste_aug as ap
        from anatpaste_aug.batch import operators
        from anatpaste_aug.batch.kernels import mask, paste
        from anatpaste_aug.batch.params import unstack

        def behind(kernels: Any, name: str, function: Callable[..., Any]) -> None:
            launched = getattr(kernels, name)

            def both(*args: Any) -> Any:
                result = launched(*args)
                try:
                    return function(*args)
                except ValueError:  # parameters that are none
                    return result

            setattr(kernels, name, both)

        def register(function: Any) -> Callable[..., Any]:
            known = operators.register(operators.operations.AnatPaste())
            return lambda *args: function(*args[:-1], known)

        def alpha(whole: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
            drawn = unstack(ap.PasteParams, whole, torch.ones(len(whole), 2))
            each = zip(drawn, lungs.numpy(), strict=True)
            return torch.stack([torch.from_numpy(ap.paste_alpha(*pair)) for pair in each])

        behind(mask, "lung_mask", operators.lung_mask)
        behind(paste, "draw_alpha", alpha)
        behind(paste, "paste", register(operators.paste))


def launcher_of_triton() -> Callable[[Any, Any], Any]:
    """Return Triton's own launcher, which older versions compile for each form of arguments.

    It is linked to the driver's library: to an empty one of that name where there is none.
    """
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime import build

    folder = Path(tempfile.mkdtemp())
    source = folder / "empty.c"
    source.write_text("void cuGetErrorString(void) {}")  # without a symbol it is not linked
    name = "libcuda.so.1"
    command = ["gcc", "-shared", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
    subprocess.run(command, check=True)
    (folder / "libcuda.so").symlink_to(name)
    triton.knobs.nvidia.libcuda_path = str(folder)
    ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    sys.setdlopenflags(os.RTLD_LAZY)  # what it calls is not there
    # What they are filed under ends in what the program `file` says, where that is installed.
    platform = build.platform_key().rpartition(",")[0]

    def compile_both(make: Callable[..., Any], *args: Any) -> None:
        for form in ("ELF", ""):
            with mock.patch.object(build, "platform_key", lambda form=form: f"{platform},{form}"):
                make(*args)

    def launcher(source: Any, metadata: Any) -> Any:
        compile_both(nvidia.CudaLauncher, source, metadata)
        return launch_nothing(source, metadata)

    compile_both(nvidia.CudaUtils)
    return launcher


def main() -> int:
    """Compile what `gpu.sh` launches on a card: its batches, and the tests of the kernels."""
    import pytest

    compiled = count_compilations()
    with gpu(launcher=launcher_of_triton()):
        from benchmarks import card as steps

        for batch, size in (*steps.BATCHES, (1, 16), (1, 64), (64, 256)):
            steps.run(torch.zeros((batch, 1, size, size), dtype=torch.uint8))
        torch.cuda.is_available = lambda: True
        with OnCpu():
            tests = ["tests/test_kernels.py", "-q", "-m", "not compiles", "-p", "no:cacheprovider"]
            pytest.main([*tests, *sys.argv[1:]], plugins=[Functions()])
    print(f"{compiled[0]} kernels compiled for sm_90, {compiled[1]} were in Triton's cache")
    return 0


if __name__ == "__main__":
    sys.exit(main())
