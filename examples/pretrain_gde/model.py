"""The network: a backbone whose features are kept, and the heads that pretraining needs."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Collection, Iterator
from typing import NamedTuple, cast

import torch
from torch import nn

from examples.pretrain_gde.backbones import POOLED, make_backbone
from examples.pretrain_gde.data import Images
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.settings import Settings

WIDTH = 512  # of the head's hidden layers
MAPPED = (2, 3)  # stages after which a head says where
CELLS = 4  # places along each side
MOST = 256  # channels by place; of more, as many are drawn once (Defard et al., PaDiM, 2021)

Features = dict[str, torch.Tensor]


class Outputs(NamedTuple):
    """What the heads say: (B, classes) logits, and (B, 1, h, w) logits of each map."""

    logits: torch.Tensor
    maps: tuple[torch.Tensor, ...]


class Network(nn.Module):
    """A backbone, then a head of fully connected layers, and heads of one convolution for maps.

    Parameters
    ----------
    settings : Settings
        Of the run: they name the backbone and decide the heads.
    imagenet : bool, optional
        Whether the backbone starts from ImageNet weights (downloaded by torchvision or timm).

    Attributes
    ----------
    width : int
        Of the features.
    stages : dict of int to int
        The channels after each stage; empty if the backbone has no maps.

    Raises
    ------
    PipelineError
        As of `make_backbone`.
    """

    def __init__(self, settings: Settings, *, imagenet: bool = False) -> None:
        super().__init__()
        made = make_backbone(settings.backbone, settings.size, imagenet=imagenet)
        self.backbone, self.width, self.stages = made
        layers: list[nn.Module] = []
        before = self.width
        for width in (*[WIDTH] * settings.head_layers, 128):
            layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
            before = width
        self.head = nn.Sequential(*layers, nn.Linear(128, settings.classes))
        mapped = MAPPED if settings.map_weight > 0 and self.stages else ()
        self.map_heads = nn.ModuleList(nn.Conv2d(self.stages[stage], 1, 1) for stage in mapped)
        for head in self.map_heads:
            nn.init.zeros_(cast(nn.Conv2d, head).bias)

    def forward(self, images: torch.Tensor) -> Outputs:
        """Classify (B, 1, H, W) uint8 images."""
        pooled, maps = self.see(prepare(images))
        told = [head(maps[stage]) for head, stage in zip(self.map_heads, MAPPED, strict=False)]
        return Outputs(self.head(pooled), tuple(told))

    def pooled(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the backbone's (B, D) features of (B, 3, H, W) inputs."""
        return self.see(inputs)[0]

    def see(self, inputs: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Return the backbone's (B, D) features of (B, 3, H, W) inputs, and each stage's maps."""
        found = self.backbone(inputs)
        found = found if isinstance(found, dict) else {POOLED: found}
        pooled = found[POOLED]
        maps = {stage: found[f"stage{stage}"] for stage in self.stages}
        return pooled.mean((2, 3)) if pooled.ndim == 4 else pooled, maps

    @property
    def widths(self) -> dict[str, int]:
        """The widths of the `features` that Gaussians are fitted to, by name."""
        found = {"pool4": self.width}
        for stage, width in list(self.stages.items())[:-1]:
            found |= {f"pool{stage}": width, f"cells{stage}": min(width, MOST)}
        return found

    def features(self, inputs: torch.Tensor) -> Features:
        """Return all that is scored of (B, 3, H, W) inputs; `describe` what `see` gives of them."""
        return self.describe(*self.see(inputs))

    def describe(self, pooled: torch.Tensor, maps: dict[int, torch.Tensor]) -> Features:
        """Return all that is scored.

        Returns
        -------
        dict of str to tensor
            ``pool4``, (B, D): the backbone's features, L2-normalized; ``pool1`` to ``pool3``: the
            mean of a stage over the image, likewise.
            ``cells1`` to ``cells3``, (B, 16, D): the means over `CELLS` x `CELLS` places.
            ``logit``, (B,): how much sooner the head takes the image for augmented.
        """
        logits = self.head(pooled)
        found = {"pool4": nn.functional.normalize(pooled)}
        found["logit"] = torch.logsumexp(logits[:, 1:], 1) - logits[:, 0]
        for stage, values in list(maps.items())[:-1]:
            found[f"pool{stage}"] = nn.functional.normalize(values.mean((2, 3)))
            found[f"cells{stage}"] = means_by_place(values[:, drawn_channels(values.shape[1])])
        return found


@functools.cache
def drawn_channels(width: int) -> slice | torch.Tensor:
    """Return which channels are scored by place."""
    if width <= MOST:
        return slice(None)
    return torch.randperm(width, generator=torch.Generator().manual_seed(0))[:MOST].sort().values


def means_by_place(values: torch.Tensor) -> torch.Tensor:
    """Return the means of (B, D, h, w) maps over `CELLS` x `CELLS` places: (B, 16, D)."""
    return nn.functional.adaptive_avg_pool2d(values, CELLS).flatten(2).transpose(1, 2)


def prepare(images: torch.Tensor) -> torch.Tensor:
    """Scale (B, 1, H, W) uint8 to [-1, 1] and repeat gray to (B, 3, H, W)."""
    scaled = images.float() / 127.5 - 1
    return scaled.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def prepared(images: Images, network: Network, batch: int = 128) -> Iterator[torch.Tensor]:
    """Prepare (N, S, S) uint8 images where a network lies, `batch` at a time."""
    device = next(network.parameters()).device
    for part in torch.from_numpy(images)[:, None].split(batch):
        yield prepare(part.to(device))


def tell_of_maps(settings: Settings) -> None:
    """Make the network once, so that it fails soon if it does, and say if it has no maps."""
    if not seeded_network(settings).stages:
        told = "gives no maps that can be followed: pooled scores only, none by place"
        print(f"backbone {settings.backbone} {told}", file=sys.stderr)


def seeded_network(settings: Settings) -> Network:
    """Make the network whose initial weights a seed stands for; torch's own seed is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Network(settings, imagenet=settings.imagenet)


@torch.no_grad()
def embed(network: Network, images: Images, names: Collection[str]) -> Features:
    """Return the named features of (N, S, S) uint8 images, float32 on the CPU.

    Always in fp32 without TF32, whatever the training's precision, so that scores agree between
    machines but for rounding.

    Raises
    ------
    PipelineError
        If they are not finite: the weights are of no use.
    """
    training = network.training
    network.eval()
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    with full_precision():
        for inputs in prepared(images, network):
            found = network.features(inputs)
            for name in names:
                parts[name].append(found[name].cpu())
    network.train(training)
    features = {name: torch.cat(values) for name, values in parts.items()}
    if not all(values.isfinite().all() for values in features.values()):
        raise PipelineError("the network gives features that are not finite: its weights diverged")
    return features


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 off, for convolutions and for matrices; the CPU has none."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
