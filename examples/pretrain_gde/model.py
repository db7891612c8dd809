"""The network: a ResNet-18 whose features are kept, and the heads that pretraining needs."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import nn

from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.settings import Settings

WIDTHS = {1: 64, 2: 128, 3: 256, 4: 512}  # channels after each stage of a ResNet-18
STRIDES = {1: 4, 2: 8, 3: 16, 4: 32}
MAPPED = (2, 3)  # stages after which a head says where
CELLS = 4  # places along each side

Features = dict[str, torch.Tensor]


class Outputs(NamedTuple):
    """What the heads say: (B, classes) logits, and (B, 1, h, w) logits of each map."""

    logits: torch.Tensor
    maps: tuple[torch.Tensor, ...]


class Network(nn.Module):
    """ResNet-18, then a head of fully connected layers, and heads of one convolution for maps.

    Parameters
    ----------
    settings : Settings
        Of the run: they decide the heads.
    imagenet : bool, optional
        Whether the backbone starts from ImageNet weights (downloaded by torchvision).

    Raises
    ------
    PipelineError
        If these weights cannot be had.
    """

    def __init__(self, settings: Settings, *, imagenet: bool = False) -> None:
        super().__init__()
        weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1 if imagenet else None
        try:
            self.backbone = torchvision.models.resnet18(weights=weights)
        except OSError as error:  # no network, and not in torch's cache
            raise PipelineError(f"ImageNet weights cannot be had: {error}") from error
        self.backbone.fc = nn.Identity()
        layers: list[nn.Module] = []
        for width in (*[WIDTHS[4]] * settings.head_layers, 128):
            layers += [nn.Linear(WIDTHS[4], width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*layers, nn.Linear(128, settings.classes))
        mapped = MAPPED if settings.map_weight > 0 else ()
        self.map_heads = nn.ModuleList(nn.Conv2d(WIDTHS[stage], 1, 1) for stage in mapped)
        for head in self.map_heads:
            nn.init.zeros_(cast(nn.Conv2d, head).bias)

    def forward(self, images: torch.Tensor) -> Outputs:
        """Classify (B, 1, H, W) uint8 images."""
        stages = self.stages(prepare(images))
        maps = [head(stages[stage]) for head, stage in zip(self.map_heads, MAPPED, strict=False)]
        return Outputs(self.head(stages[4].mean((2, 3))), tuple(maps))

    def stages(self, inputs: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return what each stage of the backbone makes of (B, 3, H, W) inputs."""
        net = self.backbone
        values = net.maxpool(net.relu(net.bn1(net.conv1(inputs))))
        found = {}
        for stage in WIDTHS:
            found[stage] = values = getattr(net, f"layer{stage}")(values)
        return found

    def features(self, inputs: torch.Tensor) -> Features:
        """Return all that is scored of (B, 3, H, W) inputs.

        Returns
        -------
        dict of str to tensor
            ``pool1`` to ``pool4``, (B, D): the mean of a stage over the image, L2-normalized.
            ``cells1`` to ``cells3``, (B, 16, D): the means over `CELLS` x `CELLS` places.
            ``logit``, (B,): how much sooner the head takes the image for augmented.
        """
        stages = self.stages(inputs)
        found = {}
        for stage, values in stages.items():
            pooled = values.mean((2, 3))
            found[f"pool{stage}"] = nn.functional.normalize(pooled)
            if stage < 4:
                found[f"cells{stage}"] = means_by_place(values)
        logits = self.head(pooled)
        found["logit"] = torch.logsumexp(logits[:, 1:], 1) - logits[:, 0]
        return found


def means_by_place(values: torch.Tensor) -> torch.Tensor:
    """Return the means of (B, D, h, w) maps over `CELLS` x `CELLS` places: (B, 16, D)."""
    return nn.functional.adaptive_avg_pool2d(values, CELLS).flatten(2).transpose(1, 2)


def prepare(images: torch.Tensor) -> torch.Tensor:
    """Scale (B, 1, H, W) uint8 to [-1, 1] and repeat gray to (B, 3, H, W)."""
    scaled = images.float() / 127.5 - 1
    return scaled.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def seeded_network(settings: Settings) -> Network:
    """Make the network whose initial weights a seed stands for; torch's own seed is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Network(settings, imagenet=settings.imagenet)


@torch.no_grad()
def embed(
    network: Network, images: npt.NDArray[np.uint8], names: Collection[str], batch: int = 128
) -> Features:
    """Return the named features of (N, S, S) uint8 images, float32 on the CPU.

    Always in fp32 without TF32, whatever the training's precision, so that scores agree between
    machines but for rounding.

    Raises
    ------
    PipelineError
        If they are not finite: the weights are of no use.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    with full_precision(device):
        for part in torch.from_numpy(images)[:, None].split(batch):
            found = network.features(prepare(part.to(device)))
            for name in names:
                parts[name].append(found[name].cpu())
    network.train(training)
    features = {name: torch.cat(values) for name, values in parts.items()}
    if not all(values.isfinite().all() for values in features.values()):
        raise PipelineError("the network gives features that are not finite: its weights diverged")
    return features


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch TF32 off on a GPU, for convolutions and for matrices."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
