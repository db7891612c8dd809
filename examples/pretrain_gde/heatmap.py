"""Where a score comes from, drawn over the image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from examples.pretrain_gde.backbones import STRIDES
from examples.pretrain_gde.data import Images
from examples.pretrain_gde.density import SCORES, Scorer
from examples.pretrain_gde.detector import Detector, standard
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.model import CELLS, Network, prepared

RED, OPACITY = np.array([255, 48, 0]), 0.8
BATCH = 16  # images at a time, for Grad-CAM
MIN_MAP = 8  # pixels: coarser maps of Grad-CAM point at nothing
NO_MAP = "there are no heat maps: the score has no places, and the network no maps or no training"


def has_map(detector: Detector) -> bool:
    """Tell whether the score has places, or a trained network for Grad-CAM."""
    whose, _ = detector.scored
    return has_places(detector) or (whose == "trained" and bool(detector.networks[whose].stages))


def has_places(detector: Detector) -> bool:
    """Tell whether the score is a sum over places."""
    return len(detector.usual_shares) > 1


def heat_maps(detector: Detector, images: Images) -> npt.NDArray[np.float32]:
    """Compute where the score of each image comes from.

    Of a score by place, how far each place's share lies above its mean over the validation normals:
    1 is a standard deviation of the scores of these. All places add up to how far the
    score lies above the mean of these.
    Of any other score, Grad-CAM (Selvaraju et al., ICCV 2017) in the trained network, at the
    deepest stage that it depends on whose map is at least `MIN_MAP` pixels wide, scaled to its
    maximum in each image.

    Parameters
    ----------
    detector : Detector
        Its score is explained.
    images : (N, S, S) uint8 array
        What the detector sees of images.

    Returns
    -------
    maps : (N, S, S) float32 array
        Negative where a place lies below its mean.

    Raises
    ------
    PipelineError
        If neither can be had.
    """
    if not has_map(detector):
        raise PipelineError(NO_MAP)
    if has_places(detector):
        above = detector.shares(images) - detector.usual_shares
        above /= standard(detector.normal_scores)[1]
        found = torch.from_numpy(above).float().reshape(-1, 1, CELLS, CELLS)
    else:
        network, scorer = detector.networks["trained"].eval(), detector.scorers["trained"]
        parts = prepared(images, network, BATCH)
        cams = [grad_cam(network, scorer, detector.scored[1], inputs) for inputs in parts]
        found = torch.cat(cams).cpu()
        found /= found.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
    return enlarge(found, images)


def enlarge(maps: torch.Tensor, images: Images) -> npt.NDArray[np.float32]:
    """Bring (N, 1, h, w) maps smoothly to the size of images."""
    return nn.functional.interpolate(maps, images.shape[1:], mode="bicubic")[:, 0].numpy()


def grad_cam(network: Network, scorer: Scorer, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """Return where a stage's output, weighted by its mean slope, raises a score: (B, 1, h, w)."""
    feature = SCORES[name][0]
    deepest = 4 if feature == "logit" else int(feature[-1])
    fine = [s for s in range(2, deepest + 1) if inputs.shape[-1] // STRIDES[s] >= MIN_MAP]
    pooled, maps = network.see(inputs)
    kept = maps[max(fine, default=1)]
    values = network.describe(pooled, maps)[feature]
    # The scorer stays where it is, on the CPU.
    score = scorer({feature: values.to(scorer.centers.device)}, name).sum()
    (slope,) = torch.autograd.grad(score, kept)
    weighted = slope.mean((2, 3), keepdim=True) * kept.detach()
    return weighted.sum(1, keepdim=True).relu()


def overlay(image: Images, heat: npt.NDArray[np.float32]) -> Images:
    """Draw what of a heat map is above 0 over a gray image: (H, W, 3) uint8, half red at 1.

    What is below is not drawn: it would read as an all-clear, which a score that knows only what
    was pasted cannot give.
    """
    red = heat.clip(0)[..., None]
    weight = OPACITY * red / (1 + red)  # so that what is large is still told from the largest
    return (image[..., None] * (1 - weight) + RED * weight).round().astype(np.uint8)
