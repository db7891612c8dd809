"""Where a score comes from: Grad-CAM of the score itself, drawn over the image."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import nn

from examples.pretrain_gde.density import TorchScore
from examples.pretrain_gde.evaluate import Detector
from examples.pretrain_gde.model import prepare

MIN_MAP = 8  # pixels: coarser maps point at nothing
STRIDES = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}


def heat_maps(
    detector: Detector, images: npt.NDArray[np.uint8], batch: int = 16
) -> npt.NDArray[np.float32]:
    """Compute where the score of each image comes from.

    Grad-CAM (Selvaraju et al., ICCV 2017) of the anomaly score, at the deepest stage of the network
    whose map is at least `MIN_MAP` pixels wide.

    Parameters
    ----------
    detector : Detector
        Its chosen estimator is explained.
    images : (N, S, S) uint8 array
        Images of the detector's size.
    batch : int, optional
        Images at a time.

    Returns
    -------
    maps : (N, S, S) float32 array
        0..1 within each image; all 0 where nothing raises the score.
    """
    backbone = detector.backbone.eval()
    device = next(backbone.parameters()).device
    fine = [name for name, stride in STRIDES.items() if detector.size // stride >= MIN_MAP]
    layer = getattr(backbone, fine[-1] if fine else "layer1")
    score = TorchScore(detector.density, detector.estimator).to(device)
    explain = LayerGradCam(nn.Sequential(backbone, score), layer)
    maps = []
    for part in torch.from_numpy(images)[:, None].split(batch):
        cam = explain.attribute(prepare(part.to(device)), relu_attributions=True)
        full = LayerAttribution.interpolate(cam, part.shape[-2:], "bilinear")
        maps.append(full.detach().cpu()[:, 0])
    stack = torch.cat(maps)
    peak = stack.amax((1, 2), keepdim=True)
    return (stack / peak.clamp(min=torch.finfo(torch.float32).tiny)).numpy()


def overlay(image: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Draw a heat map over a grey image: (H, W, 3) uint8."""
    colour = matplotlib.colormaps["inferno"](heat)[..., :3]
    grey = image[..., None] / 255
    weight = 0.65 * heat[..., None]
    blend: npt.NDArray[Any] = grey * (1 - weight) + colour * weight
    return (blend.clip(0, 1) * 255).round().astype(np.uint8)
