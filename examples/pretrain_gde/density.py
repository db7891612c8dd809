"""Gaussian density estimation: how far an image's features lie from those of normal images.

Two estimators, as in the published comparison: a Gaussian kernel density (the released default)
and a single Gaussian with Ledoit-Wolf covariance. Both are kept as plain arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import KernelDensity

from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.model import FEATURES

Floats = npt.NDArray[np.float64]
ESTIMATORS = ("kde", "gaussian")
BANDWIDTH = 1.0


@dataclass(frozen=True)
class Density:
    """A density of normal features.

    Attributes
    ----------
    features : (N, D) float array
        L2-normalised features of the training normals: the kernels' centres.
    mean : (D,) float array
        Of the single Gaussian.
    precision : (D, D) float array
        Inverse of its Ledoit-Wolf covariance.
    """

    features: Floats
    mean: Floats
    precision: Floats

    @classmethod
    def fit(cls, features: npt.ArrayLike) -> Density:
        """Fit both estimators to L2-normalised features.

        Raises
        ------
        PipelineError
            If all features are alike, as those of a network that has collapsed.
        """
        values = np.asarray(features, np.float64)
        gaussian = LedoitWolf(store_precision=False).fit(values)
        try:  # scikit-learn's own inverse is general, and many times slower
            factor = cho_factor(gaussian.covariance_)
        except LinAlgError as error:
            raise PipelineError("the features of all normal images are the same") from error
        return cls(values, gaussian.location_, cho_solve(factor, np.eye(values.shape[1])))

    def score(self, features: npt.ArrayLike, estimator: str) -> Floats:
        """Score (N, D) features: higher is less normal.

        Parameters
        ----------
        features : (N, D) float array
            L2-normalised.
        estimator : {"kde", "gaussian"}
            Negative log-likelihood of the kernel density, or Mahalanobis distance.
        """
        values = np.asarray(features, np.float64)
        if estimator == "kde":
            return np.asarray(-self._kernels.score_samples(values))
        if estimator == "gaussian":
            offset = values - self.mean
            return np.sqrt(np.einsum("nd,de,ne->n", offset, self.precision, offset, optimize=True))
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")

    @cached_property
    def _kernels(self) -> KernelDensity:
        return KernelDensity(kernel="gaussian", bandwidth=BANDWIDTH).fit(self.features)

    def as_tensors(self) -> dict[str, torch.Tensor]:
        """Give the arrays as tensors, to be stored."""
        return {
            "density.features": torch.from_numpy(self.features),
            "density.mean": torch.from_numpy(self.mean),
            "density.precision": torch.from_numpy(self.precision),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Density:
        """Read what `as_tensors` gave.

        Raises
        ------
        ValueError
            If an array is missing or has another shape.
        """
        names = ("features", "mean", "precision")
        features, mean, precision = (tensors[f"density.{name}"].numpy() for name in names)
        size = FEATURES
        if features.shape != (len(features), size) or not len(features):
            raise ValueError(f"density.features must be (N, {size}), got {features.shape}")
        if mean.shape != (size,) or precision.shape != (size, size):
            raise ValueError(f"the Gaussian must have {size} dimensions, got {mean.shape}")
        return cls(features, mean, precision)


class TorchScore(torch.nn.Module):
    """The score of a density as a differentiable module, for heat maps.

    Parameters
    ----------
    density : Density
        What to score with.
    estimator : {"kde", "gaussian"}
        As for `Density.score`.
    """

    features: torch.Tensor
    mean: torch.Tensor
    precision: torch.Tensor

    def __init__(self, density: Density, estimator: str) -> None:
        super().__init__()
        self.estimator = estimator
        for name in ("features", "mean", "precision"):
            self.register_buffer(name, torch.from_numpy(getattr(density, name)).float())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Score (N, D) features that are not normalised yet: (N,)."""
        values = torch.nn.functional.normalize(features)
        if self.estimator == "kde":
            squares = torch.cdist(values, self.features) ** 2
            return -torch.logsumexp(-squares / (2 * BANDWIDTH**2), dim=1)
        offset = values - self.mean
        return ((offset @ self.precision) * offset).sum(1).sqrt()
