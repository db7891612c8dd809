"""The batch's operators as Triton kernels, for GPUs of NVIDIA and AMD.

Loaded when the first batch on a GPU comes. Each file holds one idea: `bits` masks of one bit a
pixel; `pixels` reading and rounding; `tiles` CLAHE; `otsu` the threshold; `labels` morphology and
regions; `boxes` the bounding-box rule; `draw` the draw; `alpha` and `patch` the paste. `mask` and
`paste` put them in order. Kernels are launched in turn, and none reads what another program of its
own launch writes, but by atomics whose order does not matter.

An image's number, and all that a stride multiplies, has 64 bits. Numbers inside an image have 32,
which hold its at most 2**24 pixels, 2**23 nodes, and their 5 measures. Places follow from the grid
and are masked, or from counts of the image itself, or they are limited to the image: parameters
are not checked. Every loop is over a part of the image, over its regions, or up a tree.

None of this has run on a card yet: it was run in Triton's interpreter, one program after the other,
and compiled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

FORMS = ("lung_mask", "draw_paste", "paste")  # operators that have a Triton form
SWITCH = "ANATPASTE_AUG_TRITON"  # an environment variable: 0 leaves GPUs to the plain form
LARGEST_AREA = 2**24  # pixels: float32 counts no further
LARGEST_SIDE = 2**13  # pixels: the ellipse's products stay within 64 bits
OLDEST = (8, 0)  # compute capability


def forms() -> dict[str, Callable[..., Any]]:
    """Return the operators' Triton forms by name; raise ImportError where Triton is not."""
    from anatpaste_aug.batch.kernels.draw import draw_triton
    from anatpaste_aug.batch.kernels.mask import mask_triton
    from anatpaste_aug.batch.kernels.paste import paste_triton

    return {"lung_mask": mask_triton, "draw_paste": draw_triton, "paste": paste_triton}


@cache
def forms_for(device: torch.device) -> dict[str, Callable[..., Any]]:
    """Return the forms that a GPU can take: none if it is old, or kernels can't be made here.

    Triton may be missing, too old for the kernels, or without a compiler for what it needs on the
    host: the smallest kernel tells.
    """
    if os.environ.get(SWITCH) == "0":
        return {}
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST:
        return {}
    try:
        known = forms()
        mask = torch.zeros((1, 16, 16), dtype=torch.bool, device=device)
        unit = torch.zeros(1, dtype=torch.float64, device=device)
        known["draw_paste"](mask, [unit] * 10, [0.1, 0.2, 1.0, 1.0, 0.1], [0, 1, 0, 1, 1], 0.0)
    except Exception:  # whatever an unknown Triton raises: the plain form does without it
        return {}
    return known


def covers(images: Tensor) -> bool:
    """Tell whether the kernels take images of this size; all dtypes and strides are covered."""
    height, width = images.shape[-2:]
    return height * width <= LARGEST_AREA and max(height, width) <= LARGEST_SIDE


def on_gpu(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operator that takes the Triton form where that can be, and `plain` elsewhere.

    Its first argument is a batch of images or masks.
    """

    def run(images: Tensor, *args: Any) -> Any:
        with torch.cuda.device(images.device):
            form = forms_for(images.device).get(name, plain) if covers(images) else plain
            return form(images, *args)

    return run
