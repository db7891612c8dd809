"""Launches that skip Triton's binder, against those through it, on a GPU that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("triton", reason="needs Triton, which comes with torch on Linux")

HEAD = """
    import threading
    import torch
    from triton.runtime.jit import JITFunction
    from anatpaste_aug.batch.kernels import draw, launch, mask, paste
    from anatpaste_aug.operations import AnatPaste
    from benchmarks.pretend import gpu

    calls, binder = threading.local(), JITFunction.run

    def note(source, metadata):
        def start(*args):
            grid, passed = args[:3], args[9:]
            calls.made.append((metadata.name, metadata.hash, grid, *map(launch.form, passed)))
        return start

    def made(run):
        calls.made = []
        run()
        return calls.made

    def no_binder(*args, **kwargs):
        raise AssertionError("Triton's binder was asked")

    def tensors(shape, dtype, offset=0, layout=torch.contiguous_format):
        count = torch.Size(shape).numel()
        images = torch.zeros(count + offset, dtype=dtype)[offset:].reshape(shape)
        return images.contiguous(memory_format=layout)

    def mask_of(*shape, dtype=torch.uint8, min_area=400, **more):
        chosen = torch.ones(shape[0], dtype=torch.bool)
        return lambda: mask.lung_mask(tensors(shape, dtype, **more), min_area, chosen)

    def draw_of(*shape, **options):
        numbers = torch.zeros((10, shape[0]), dtype=torch.int64)
        lungs = torch.zeros(shape, dtype=torch.bool)
        return lambda: draw.sample(lungs, numbers, shape[1:], AnatPaste(**options))

    def paste_of(*shape, lungs=True, dtype=torch.uint8):
        fields = [torch.zeros((shape[0], 10), dtype=torch.int64)]
        fields += [torch.zeros((shape[0], 2), dtype=torch.float64)]
        lungs = torch.zeros((shape[0], *shape[2:]), dtype=torch.bool) if lungs else None
        chosen = torch.ones(shape[0], dtype=torch.bool)
        return lambda: paste.paste(tensors(shape, dtype), fields, lungs, chosen, AnatPaste())
"""


def run_python(code):
    """Run code in a process that compiles kernels, where this one may interpret them."""
    code = textwrap.dedent(HEAD) + textwrap.dedent(code)
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.compiles
def test_known_launches_are_those_of_the_binder():
    code = """
        cases = [
            mask_of(3, 1, 64, 64),
            mask_of(3, 1, 64, 64, offset=1),  # no address that 16 divides
            mask_of(3, 1, 64, 64, min_area=401),
            mask_of(3, 1, 64, 64, min_area=0),
            mask_of(3, 3, 64, 64, layout=torch.channels_last),
            mask_of(2, 1, 33, 47, dtype=torch.float32),
            draw_of(3, 64, 64),
            draw_of(3, 64, 64, margin=3, blur=(1, 1)),
            draw_of(16, 64, 64),
            paste_of(3, 1, 64, 64),
            paste_of(3, 1, 64, 64, lungs=False),
            paste_of(2, 3, 33, 47, dtype=torch.int16),
        ]
        with gpu(launcher=note):
            asked = [made(run) for run in cases]
            assert launch.plan_of.cache_info().currsize == len(cases)  # each form is another
            JITFunction.run = no_binder
            for run, expected in zip(cases, asked):
                assert expected and made(run) == expected
            JITFunction.run = binder
            launch.plan_of.cache_clear()
            launch.CHUNK_PIXELS = 64 * 64
            asked = made(cases[0])
            JITFunction.run = no_binder
            assert made(cases[0]) == asked
            print(len(asked))
    """
    assert run_python(code) == f"{3 * 15}\n"


@pytest.mark.slow
@pytest.mark.compiles
def test_threads_keep_their_launches_apart_and_a_fault_leaves_nothing():
    code = """
        with gpu(launcher=note):
            lungs = torch.zeros((3, 64, 64), dtype=torch.bool)
            numbers = torch.zeros((10, 3), dtype=torch.int64)
            forms = lungs, numbers, (64, 64), AnatPaste()
            run = lambda: draw.sample(*forms)
            expected = made(run)
            found = []
            for _ in range(50):
                launch.plan_of.cache_clear()
                start = threading.Barrier(2)
                def work():
                    start.wait()
                    found.append(made(run))
                    found.append(made(run))
                threads = [threading.Thread(target=work) for _ in range(2)]
                [thread.start() for thread in threads]
                [thread.join() for thread in threads]
            assert len(found) == 200 and all(one == expected for one in found)

            launch.plan_of.cache_clear()
            real = draw.launch
            def fail(kernel, *args, **meta):
                real(kernel, *args, **meta)
                if kernel is draw.draw_pastes_kernel:
                    raise RuntimeError("out of memory")
            draw.launch = fail
            try:
                run()
            except RuntimeError:
                pass
            draw.launch = real
            plan = launch.plan_of(draw.sample.__wrapped__, *map(launch.form, forms))
            assert not plan and launch.here.known is launch.here.noted is None
            run()
            plan.reverse()
            try:
                run()
            except RuntimeError as error:
                print(error)
    """
    assert "is launched in place of" in run_python(code)
