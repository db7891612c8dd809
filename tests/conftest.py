"""Where the real data is, and the strategies that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from anatpaste_aug import OpacityParams, PasteParams
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.operations.opacity import KINDS

# Without a GPU, Triton's kernels are tested in its interpreter, which must be said before anything
# imports Triton.
if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# No progress bars, as with `--quiet`; tqdm, which torch imports, reads that when it is imported.
os.environ["TQDM_DISABLE"] = "1"

SHARED = Path(
    os.environ.get("ANATPASTE_AUG_SHARED", Path(__file__).resolve().parents[2] / "shared")
)
DTYPES = ("uint8", "uint16", "int16", "int32", "float32", "float64")

# Timings vary on shared machines; the same examples on every run keep failures reproducible.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=60)
# Other examples every time (--hypothesis-profile), with many for the fuzz test (FUZZ_SECONDS).
settings.register_profile("random", deadline=None, derandomize=False, max_examples=200)
settings.register_profile("weekly", deadline=None, derandomize=False, max_examples=50_000)
settings.load_profile("repeatable")


def real_data(folder: str) -> Path:
    """Return a folder of real data, or skip the test."""
    path = SHARED / folder
    if not path.exists():
        pytest.skip(f"needs the real data in ../shared/{folder}")
    return path


def assert_in_range(out, image):
    """Check that a result stays in the range that is promised for the image's dtype."""
    low = 0 if image.dtype.kind == "u" else image.min()
    high = 255 if image.dtype == np.uint8 else image.max()
    assert low <= out.min()
    assert out.max() <= high


@pytest.fixture(scope="session")
def phantom() -> np.ndarray:
    image = phantom_radiograph(256, rng=0)
    image.flags.writeable = False
    return image


@pytest.fixture
def compiler():
    """Let `torch.compile` forget what other tests compiled: it does not go on for ever."""
    compiler = pytest.importorskip("torch", reason="needs torch").compiler
    compiler.reset()
    yield
    compiler.reset()


@st.composite
def images(draw, dtypes=DTYPES, channels=(1, 3), max_side=80):
    """Draw a legal image: noise, blobs, few values, or constant; any dtype, size and contrast."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    height = draw(st.integers(16, max_side))
    width = draw(st.integers(16, max_side))
    shape = (height, width) if draw(st.sampled_from(channels)) == 1 else (height, width, 3)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["noise", "smooth", "steps", "constant"]))
    unit = np.full(shape, rng.random()) if kind == "constant" else rng.random(shape)
    if kind == "smooth":
        for axis in (0, 1):
            unit = np.cumsum(unit - unit.mean(), axis=axis)
        unit = (unit - unit.min()) / np.ptp(unit)
    if kind == "steps":
        unit = np.floor(unit * 3) / 2
    low, high = {
        "uint8": (0, 255),
        "uint16": (0, 65535),
        "int16": (-1024, 3000),
        "int32": (-70000, 70000),
        "float32": (0, 1),
        "float64": (-1000, 1000),
    }[dtype.name]
    image = (low + unit * (high - low)).astype(dtype)
    image.flags.writeable = False
    return image


@st.composite
def any_params(draw, height, width):
    """Draw legal params of an opacity."""
    return OpacityParams(
        draw(st.sampled_from(KINDS)),
        draw(st.integers(0, width - 1)),
        draw(st.integers(0, height - 1)),
        draw(st.integers(1, 2 * width)),
        draw(st.sampled_from([1, 3, height // 3, height, 2**20])),
        draw(st.integers(-90, 90)),
        draw(st.integers(0, 255)),
        draw(st.sampled_from([0, 120, 255])),
        draw(st.integers(0, 2**31 - 1)),
    )


def any_paste(draw, height, width):
    """Draw legal params of AnatPaste."""
    w, h = draw(st.integers(1, width)), draw(st.integers(1, height))
    factor = st.sampled_from([0.0, 0.9, 1.0, 1.1, 2.5])
    return PasteParams(
        crop_x=draw(st.integers(0, width - w)),
        crop_y=draw(st.integers(0, height - h)),
        width=w,
        height=h,
        center_x=draw(st.integers(0, width - 1)),
        center_y=draw(st.integers(0, height - 1)),
        shape=draw(st.sampled_from(["ellipse", "rectangle"])),
        blur_radius=draw(st.sampled_from([0, 1, 2, 3, 7, 14, 40])),
        opacity=draw(st.integers(0, 255)),
        margin=draw(st.sampled_from([0, 1, 10])),
        brightness=draw(factor),
        contrast=draw(factor),
    )


def any_mask(seed, height, width):
    """Make an empty, a full, a scattered or a compact mask."""
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.choice([0, 0.01, 0.5, 1])
    if seed % 2:
        mask[height // 4 : height // 2, width // 5 : width // 3] = True
    return mask


@pytest.fixture(scope="module")
def phantoms(request, tmp_path_factory):
    """Return a folder of small phantoms, as many of each kind as the test file's COUNTS say."""
    from examples.pretrain_gde.phantoms import write_phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 64, counts=request.module.COUNTS)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return an empty folder, for the decoded images of a test file's runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def one_thread():
    """Let the pipeline compute in one thread: with more, small networks wait for each other."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)
