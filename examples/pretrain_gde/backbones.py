"""The backbones: classifiers by their names, less the last layer, and where their stages end.

Nothing is listed by hand: a first image shows which modules make the maps smaller, and which one
classifies.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from anatpaste_aug.functions import is_function
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.given import given

STRIDES = {1: 4, 2: 8, 3: 16, 4: 32}  # of the maps that each stage ends with
TRIED = 128  # pixels of the first image, which all strides divide
LARGEST_TRIED = 256  # of another, as it is to be used
LARGEST_FIXED = 1024  # of the images of a network for a fixed size: it may look at all pairs
CLASSIFIER = 10**8  # numbers that a last layer may have
POOLED = "pooled"
SIZED = ("image_size", "img_size", "input_size")  # what networks for one size of images call it


class Backbone(NamedTuple):
    """A network, the width of its features, and those of its stages.

    It gives a dict of both, `POOLED` and ``stage1`` to ``stage4``. One without maps of all
    `STRIDES`, such as a vision transformer, has no stages, and may give the features alone.
    """

    network: nn.Module
    width: int
    stages: dict[int, int]


class _Call(NamedTuple):
    """A module at work: what it gave, and the modules that it called."""

    name: str
    module: nn.Module
    output: Any
    inside: list[_Call]

    def every(self) -> Iterator[_Call]:
        """Return this one and all inside."""
        yield self
        for each in self.inside:
            yield from each.every()


def make_backbone(name: str, size: int, *, imagenet: bool = False) -> Backbone:
    """Make a classifier by its name, for images of `size` pixels, and take off its last layer.

    A function may give one without such a layer: (B, D) features, or (B, D, h, w) maps.

    Raises
    ------
    PipelineError
        If there is none of this name, it gives no features, or its ImageNet weights cannot be had.
    """
    call, side = _try(name, size, imagenet)
    network, output = call.module, call.output
    linear = (each for each in call.every() if isinstance(each.module, nn.Linear))
    last = next((each for each in linear if each.output is output), None)
    if last is not None and last.name:
        width = last.module.in_features
        network.set_submodule(last.name, nn.Identity())
    elif is_function(name) and isinstance(output, torch.Tensor) and output.ndim in (2, 4):
        width = output.shape[1]
    else:
        raise PipelineError(
            f"backbone {name} does not end in a linear layer, or gives no tensor of features"
        )
    stages = _find_stages(call, side)
    before = _random_states()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # evaluation leaves out parts, such as dropout
            end = last.name if last is not None else get_graph_node_names(network)[1][-1]
            nodes = {each.name: f"stage{stage}" for stage, each in stages.items()}
            traced = create_feature_extractor(network, {**nodes, end: POOLED})
        if _random_states() != before:
            raise ValueError("what is drawn anew at each image would be the same for all")
        network = traced
    except Exception:  # the tracer raises whatever it likes; the features are there without it
        stages = {}
    return Backbone(network, width, {stage: c.output.shape[1] for stage, c in stages.items()})


def _random_states() -> str:
    return repr((random.getstate(), torch.get_rng_state().tolist()))


def _try(name: str, size: int, imagenet: bool) -> tuple[_Call, int]:
    """Make a network and let it see an image; return all that was called, and the image's side."""
    make, reasons = _maker(name, imagenet), []
    for option in (None,) if is_function(name) else (None, *SIZED):
        given_size = {} if option is None else {option: (size, size) if "input" in option else size}
        try:
            network = make(**given_size)
            # One for a fixed size fails in others; each pixel costs it more than the last.
            with contextlib.suppress(*([Exception] if size <= LARGEST_FIXED else [])):
                _record(network, min(size, LARGEST_TRIED))
                return _record(network, TRIED), TRIED
            return _record(network, size), size
        except Exception as error:  # networks raise whatever they like
            if imagenet and isinstance(error, OSError):
                raise PipelineError(f"ImageNet weights cannot be had: {error}") from error
            reasons.append(error)
    told = f"{type(reasons[0]).__name__}: {str(reasons[0])[:300]}"
    raise PipelineError(f"backbone {name} cannot take images of {size} pixels: {told}")


def check_size(name: str, count: int) -> None:
    """Refuse weights of `count` numbers that are far too few for a network, before it is made.

    Raises
    ------
    PipelineError
        If they are: a small file must not fill the memory.
    """
    if is_function(name):
        return
    with contextlib.suppress(NotImplementedError, RuntimeError), torch.device("meta"):
        needed = sum(each.numel() for each in _maker(name, False)().parameters())
        if needed > 2 * count + CLASSIFIER:
            raise PipelineError(f"it holds {count} numbers, and {name} needs {needed}")


def is_torchvisions(name: str) -> bool:
    """Tell whether a network is one of torchvision's classifiers."""
    return name in torchvision.models.list_models(torchvision.models)


def _maker(name: str, imagenet: bool) -> Callable[..., nn.Module]:
    """Return what makes a network of a name; its options are those for a size of images."""
    if is_function(name):
        return given("backbone", name)  # type: ignore[no-any-return]
    if is_torchvisions(name):
        weights = "DEFAULT" if imagenet else None
        return functools.partial(torchvision.models.get_model, name, weights=weights)
    names = set(torchvision.models.list_models(torchvision.models))
    if importlib.util.find_spec("timm") is not None:
        import timm

        names.update(timm.list_models())
        if name in names:  # none of a hub, whose files nobody here knows
            return functools.partial(timm.create_model, name, pretrained=imagenet)
    close = ", ".join(difflib.get_close_matches(name, sorted(names))) or "resnet18, for instance"
    raise PipelineError(
        "backbone must be a classifier of torchvision, or of timm where it is installed, or "
        f"MODULE:FUNCTION, got {name!r}: there is {close}"
    )


@torch.no_grad()
def _record(network: nn.Module, side: int) -> _Call:
    """Let a network see an image, and write down all that is called."""
    stack: list[list[_Call]] = [[]]

    def after(name: str, module: nn.Module, given: Any, output: Any) -> None:
        inside = stack.pop()
        stack[-1].append(_Call(name, module, output, inside))

    with contextlib.ExitStack() as undone:
        undone.callback(network.train, network.training)
        for name, each in network.named_modules():
            undone.enter_context(each.register_forward_pre_hook(lambda *given: stack.append([])))
            undone.enter_context(each.register_forward_hook(functools.partial(after, name)))
        network.eval()(torch.zeros(1, 3, side, side))
    return stack[0][0]


def _find_stages(call: _Call, side: int) -> dict[int, _Call]:
    """Find the last module that ends at each stride; one that halves maps twice is looked into."""
    names = Counter(each.name for each in call.every())
    ends: dict[int, _Call] = {}

    def walk(calls: list[_Call], stride: int) -> None:
        for each in calls:
            shape = getattr(each.output, "shape", ())
            if len(shape) != 4 or shape[2] != shape[3] or names[each.name] > 1:
                continue
            after = round(side / shape[2])
            if after > 2 * stride:
                walk(each.inside, stride)
            ends[after], stride = each, after

    walk(call.inside, 1)
    if not all(stride in ends for stride in STRIDES.values()):
        return {}
    return {stage: ends[stride] for stage, stride in STRIDES.items()}
