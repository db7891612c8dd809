"""The scores: how far an image's features lie from those of normal images.

The published ones are densities of the pooled features after the last stage: a Gaussian kernel
density (the released default), and a single Gaussian with Ledoit-Wolf covariance. A *relative*
score is the distance to the normals less that to the same normals with something pasted in (as
Ren et al., arXiv:2106.09022, with the pasted as the other class): density tells what is unusual,
the difference in which direction. All is kept as plain arrays, and can be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from sklearn.covariance import LedoitWolf
from torch import nn

from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.model import CELLS, Features

PUBLISHED = ("kde", "gaussian")
SCORES = {  # by name: the features, whether the pasted are needed too, and the words for it
    "kde": ("pool4", False, "kernel density"),
    "gaussian": ("pool4", False, "single Gaussian"),
    "nearest": ("pool4", False, "nearest normals"),
    "plain1": ("cells1", False, "Gaussians by place, stage 1"),
    "plain2": ("cells2", False, "Gaussians by place, stage 2"),
    "plain3": ("cells3", False, "Gaussians by place, stage 3"),
    "pooled2": ("pool2", True, "relative, stage 2"),
    "pooled3": ("pool3", True, "relative, stage 3"),
    "pooled4": ("pool4", True, "relative, stage 4"),
    "places1": ("cells1", True, "relative by place, stage 1"),
    "places2": ("cells2", True, "relative by place, stage 2"),
    "places3": ("cells3", True, "relative by place, stage 3"),
    "logit": ("logit", False, "the head's logit"),
}
MEAN = "mean"  # of these, each standardized: what is unusual, and mostly in which direction
AVERAGED = ("gaussian", *(name for name, (_, relative, _) in SCORES.items() if relative))
NAMES = {MEAN: "mean of Gaussian and relative"}
NAMES |= {name: words for name, (_, _, words) in SCORES.items()}
NO_GAUSSIAN = ("kde", "nearest", "logit")  # scores that need none
BANDWIDTH = 1.0
NEIGHBORS = 5

Scores = dict[str, npt.NDArray[np.float64]]


def needed_features(names: Collection[str]) -> set[str]:
    """Tell which features some scores need."""
    return {SCORES[name][0] for name in names}


def count_places(feature: str) -> int:
    """Count the places that a feature is computed in."""
    return CELLS**2 if feature.startswith("cells") else 1


class Gaussians(nn.Module):
    """A Gaussian for each place: (K, D) means and (K, D, D) inverse covariances, as doubles."""

    mean: torch.Tensor
    precision: torch.Tensor

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(places, width, dtype=torch.double))
        self.register_buffer("precision", torch.empty(places, width, width, dtype=torch.double))

    def fit(self, values: torch.Tensor) -> None:
        """Fit (N, D) or (N, K, D) features with Ledoit-Wolf covariances.

        Raises
        ------
        PipelineError
            If all features are alike, as those of a network that has collapsed.
        """
        cells = values.reshape(len(values), -1, values.shape[-1]).double().numpy()
        for place in range(cells.shape[1]):
            fitted = LedoitWolf(store_precision=False).fit(cells[:, place])
            try:  # scikit-learn's own inverse is general, and many times slower
                factor = cho_factor(fitted.covariance_)
            except LinAlgError as error:
                raise PipelineError("the features of all normal images are the same") from error
            self.mean[place] = torch.from_numpy(fitted.location_)
            self.precision[place] = torch.from_numpy(cho_solve(factor, np.eye(cells.shape[2])))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the Mahalanobis distance at each place: (N, K)."""
        cells = values.reshape(len(values), -1, values.shape[-1]).double()
        offset = (cells - self.mean).transpose(0, 1)
        squares = ((offset @ self.precision) * offset).sum(-1)
        return squares.sqrt().T


class Scorer(nn.Module):
    """Scores of features, by name; higher is less normal.

    Parameters
    ----------
    names : collection of str
        The scores to give, out of `SCORES`.
    widths : dict of str to int
        Of the features, as of `Network.widths`.
    count : int, optional
        Of the normals whose fit a state holds that is to be loaded.

    Attributes
    ----------
    centers : (N, D) double tensor
        ``pool4`` of the normals: the kernels' centers, and the neighbors.
    normal, pasted : dict of str to Gaussians
        By feature: of the normals, and of the same with something pasted in.
    """

    centers: torch.Tensor

    def __init__(self, names: Collection[str], widths: Mapping[str, int], count: int = 0) -> None:
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("centers", torch.empty(count, widths["pool4"], dtype=torch.double))
        self.normal, self.pasted = nn.ModuleDict(), nn.ModuleDict()
        for feature, relative, _ in (SCORES[name] for name in names if name not in NO_GAUSSIAN):
            places = count_places(feature)
            for kind in (self.normal, self.pasted) if relative else (self.normal,):
                kind[feature] = Gaussians(places, widths[feature])

    @classmethod
    def fit(cls, normal: Features, pasted: Features | None, names: Collection[str]) -> Scorer:
        """Fit to the features of normals, and of the same normals with something pasted in."""
        scorer = cls(names, {feature: values.shape[-1] for feature, values in normal.items()})
        scorer.centers = normal["pool4"].double()
        for modules, features in ((scorer.normal, normal), (scorer.pasted, pasted or {})):
            for feature, gaussians in modules.items():
                gaussians.fit(features[feature])
        return scorer

    def forward(self, features: Features, name: str) -> torch.Tensor:
        """Score features by name: (N,)."""
        return self.by_place(features, name).mean(1)

    def by_place(self, features: Features, name: str) -> torch.Tensor:
        """Score each place, whose mean is the score: (N, K); K is 1 where it has no places."""
        feature, relative, _ = SCORES[name]
        values = features[feature]
        if name == "kde":
            return self._kernel_density(values)[:, None]
        if name == "nearest":
            likeness = nn.functional.normalize(values.double()) @ self.centers.T
            most = min(NEIGHBORS, len(self.centers))
            return 1 - likeness.topk(most).values.mean(1, keepdim=True)
        if name == "logit":
            return values[:, None]
        distance: torch.Tensor = self.normal[feature](values)
        return distance - self.pasted[feature](values) if relative else distance

    def _kernel_density(self, values: torch.Tensor) -> torch.Tensor:
        """Return the negative log-density of a sum of Gaussians of one width, as scikit-learn."""
        count, width = self.centers.shape
        exact = "donot_use_mm_for_euclid_dist"
        squares = torch.cdist(values.double(), self.centers, compute_mode=exact).square()
        total = torch.logsumexp(-squares / (2 * BANDWIDTH**2), 1)
        return math.log(count) + width / 2 * math.log(2 * math.pi * BANDWIDTH**2) - total

    @torch.no_grad()
    def score(
        self, features: Features, names: Collection[str] = (), *, by_place: bool = False
    ) -> Scores:
        """Score features by some names, or by all: (N,) float64 arrays, or (N, K) by place."""
        how = self.by_place if by_place else self
        return {name: how(features, name).double().numpy() for name in names or self.names}
