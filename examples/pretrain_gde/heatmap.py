"""Where a score comes from, drawn over the image."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from examples.pretrain_gde.density import SCORES, Scorer
from examples.pretrain_gde.detector import Detector
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.model import MAPPED, STRIDES, Network, prepare

Explain = Callable[[Network, torch.Tensor], torch.Tensor]
SURE = 0.5  # of a map head, where a heat map is brightest
MIN_MAP = 8  # pixels: coarser maps point at nothing
NO_CAPTUM = "heat maps of this detector are made by captum, which is missing: pip install captum"


def heat_maps(
    detector: Detector, images: npt.NDArray[np.uint8], batch: int = 16
) -> npt.NDArray[np.float32]:
    """Compute where the score of each image comes from.

    What the finest head says that was trained to tell where something was pasted, if there is one:
    how sure it is, from 0 to `SURE`.
    Else Grad-CAM (Selvaraju et al., ICCV 2017) of the chosen score, at the deepest stage that it
    depends on whose map is at least `MIN_MAP` pixels wide. Of two networks, the trained one's.

    Parameters
    ----------
    detector : Detector
        Its chosen score is explained.
    images : (N, S, S) uint8 array
        What the detector sees of images.
    batch : int, optional
        Images at a time.

    Returns
    -------
    maps : (N, S, S) float32 array
        0..1. Grad-CAM is scaled to its maximum within each image, and all 0 where nothing raises
        the score.

    Raises
    ------
    PipelineError
        If captum is missing, and needed.
    """
    if lacks_captum(detector):
        raise PipelineError(NO_CAPTUM)
    name = detector.choice.networks[0]
    network = detector.networks[name].eval()
    device = next(network.parameters()).device
    explain = (
        _map_head
        if has_map(detector)
        else _grad_cam(
            network, detector.scorers[name], detector.choice.score, detector.settings.size
        )
    )
    maps = []
    for part in torch.from_numpy(images)[:, None].split(batch):
        found = explain(network, prepare(part.to(device)))
        full = nn.functional.interpolate(found, part.shape[-2:], mode="bilinear")
        maps.append(full.detach().cpu()[:, 0])
    stack = torch.cat(maps)
    if has_map(detector):
        return (stack / SURE).clamp(max=1).numpy()
    peak = stack.amax((1, 2), keepdim=True)
    return (stack / peak.clamp(min=torch.finfo(torch.float32).tiny)).numpy()


def has_map(detector: Detector) -> bool:
    """Tell whether heat maps come from a head that was trained to say where."""
    network = detector.networks[detector.choice.networks[0]]
    return detector.choice.networks[0] == "trained" and len(network.map_heads) > 0


def lacks_captum(detector: Detector) -> bool:
    """Tell whether heat maps need captum, as Grad-CAM does, and it is missing."""
    if has_map(detector):
        return False
    try:
        importlib.import_module("captum.attr")
    except ImportError:
        return True
    return False


@torch.no_grad()
def _map_head(network: Network, inputs: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(network.map_heads[0](network.stages(inputs)[MAPPED[0]]))


class _Explained(nn.Module):
    """One score of a network's images, for Grad-CAM; the scorer stays where it is, on the CPU."""

    def __init__(self, network: Network, scorer: Scorer, name: str) -> None:
        super().__init__()
        self.network, self.scorer, self.name = network, scorer, name

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        feature = SCORES[self.name][0]
        home = self.scorer.centers.device
        return self.scorer({feature: self.network.features(inputs)[feature].to(home)}, self.name)


def _grad_cam(network: Network, scorer: Scorer, name: str, size: int) -> Explain:
    from captum.attr import LayerGradCam  # here, so that all else runs without it

    feature = SCORES[name][0]
    deepest = 4 if feature == "logit" else int(feature[-1])
    fine = [s for s, stride in STRIDES.items() if s <= deepest and size // stride >= MIN_MAP]
    layer = getattr(network.backbone, f"layer{fine[-1] if fine else 1}")
    cam = LayerGradCam(_Explained(network, scorer, name), layer)
    return lambda network, inputs: cam.attribute(inputs, relu_attributions=True)


def overlay(image: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Draw a heat map over a gray image: (H, W, 3) uint8."""
    color = matplotlib.colormaps["inferno"](heat)[..., :3]
    gray = image[..., None] / 255
    weight = 0.65 * heat[..., None]
    blend: npt.NDArray[Any] = gray * (1 - weight) + color * weight
    return (blend.clip(0, 1) * 255).round().astype(np.uint8)
