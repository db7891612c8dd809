"""The network: a ResNet-18 whose pooled features are kept, and the head that pretraining needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
import torchvision
from torch import nn

from examples.pretrain_gde.errors import PipelineError

FEATURES = 512


class Network(nn.Module):
    """ResNet-18, then a head of fully connected layers.

    Parameters
    ----------
    classes : int
        Number of classes to tell apart.
    head_layers : int
        Hidden layers of 512 before the last of 128.
    imagenet : bool
        Whether the backbone starts from ImageNet weights (downloaded by torchvision).
    """

    def __init__(self, classes: int, head_layers: int, imagenet: bool = False) -> None:
        super().__init__()
        self.channels_last = True  # the memory layout that inputs are given
        self.backbone = make_backbone(imagenet)
        layers: list[nn.Module] = []
        for width in (*[FEATURES] * head_layers, 128):
            layers += [nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*layers, nn.Linear(128, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify (B, 1, H, W) uint8 images: (B, classes) logits."""
        inputs = prepare(images, channels_last=self.channels_last)
        return cast(torch.Tensor, self.head(self.backbone(inputs)))


def make_backbone(imagenet: bool = False) -> nn.Module:
    """Make a ResNet-18 that gives its 512 pooled features."""
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1 if imagenet else None
    try:
        backbone = torchvision.models.resnet18(weights=weights)
    except OSError as error:  # no network, and not in torch's cache
        raise PipelineError(f"ImageNet weights cannot be had: {error}") from error
    backbone.fc = nn.Identity()
    return backbone


def prepare(images: torch.Tensor, *, channels_last: bool = True) -> torch.Tensor:
    """Scale (B, 1, H, W) uint8 to [-1, 1] and repeat grey to (B, 3, H, W)."""
    scaled = images.float() / 127.5 - 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return scaled.expand(-1, 3, -1, -1).contiguous(memory_format=layout)


def seeded_network(seed: int, classes: int, head_layers: int, imagenet: bool = False) -> Network:
    """Make the network whose initial weights a seed stands for; torch's own seed is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(classes, head_layers, imagenet)


@torch.no_grad()
def embed(backbone: nn.Module, images: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Give the L2-normalised features of (N, 1, H, W) uint8 images: (N, 512) float32, on the CPU.

    Always in fp32 without TF32, whatever the training's precision, so that scores agree between
    machines but for rounding.
    """
    device = next(backbone.parameters()).device
    training = backbone.training
    backbone.eval()
    with full_precision(device):
        parts = [
            nn.functional.normalize(backbone(prepare(part.to(device)))).cpu()
            for part in images.split(batch)
        ]
    backbone.train(training)
    return torch.cat(parts)


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
