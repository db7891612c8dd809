"""Image-level AUC and average precision, with bootstrap intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve

RESAMPLES = 2000


def auc_and_ap(
    scores: npt.ArrayLike, abnormal: npt.ArrayLike, counts: npt.NDArray[Any] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Compute the area under the ROC curve and the average precision, ties included.

    Parameters
    ----------
    scores : (N,) float array
        Higher is less normal.
    abnormal : (N,) bool array
        The truth.
    counts : (R, N) int array, optional
        How often each image occurs, for R resamples; by default once.

    Returns
    -------
    auc, ap : (R,) float arrays
        Within 0..1.

    Raises
    ------
    ValueError
        If one class is missing.
    """
    truth = np.asarray(abnormal, bool)
    if truth.all() or not truth.any():
        raise ValueError("an AUC needs normal and abnormal images")
    weights = np.ones((1, truth.size)) if counts is None else counts.astype(float)
    _, level = np.unique(np.asarray(scores), return_inverse=True)
    levels = level.max() + 1

    def per_level(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        # The images in the order of their scores, added up level by level.
        order = np.flatnonzero(chosen)[np.argsort(level[chosen], kind="stable")]
        running = np.cumsum(weights[:, order], axis=1)
        ends = np.searchsorted(level[order], np.arange(levels), side="right")
        padded = np.concatenate([np.zeros((len(weights), 1)), running], axis=1)
        return np.diff(padded[:, ends], axis=1, prepend=0)

    positive, negative = per_level(truth), per_level(~truth)
    below = np.cumsum(negative, axis=1) - negative
    total = positive.sum(1)
    auc = (positive * (below + negative / 2)).sum(1) / (total * negative.sum(1))

    hits = np.cumsum(positive[:, ::-1], axis=1)
    called = hits + np.cumsum(negative[:, ::-1], axis=1)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    ap = (positive[:, ::-1] * precision).sum(1) / total
    return auc, ap


def measure(scores: npt.ArrayLike, abnormal: npt.ArrayLike, seed: int = 0) -> dict[str, Any]:
    """Measure scores: AUC, average precision and their bootstrap 95 % intervals.

    Images are resampled within each class, `RESAMPLES` times.
    """
    truth = np.asarray(abnormal, bool)
    auc, ap = auc_and_ap(scores, truth)
    rng = np.random.default_rng(seed)
    counts = np.zeros((RESAMPLES, truth.size), np.int32)
    for kind in (False, True):
        where = np.flatnonzero(truth == kind)
        counts[:, where] = rng.multinomial(
            where.size, np.full(where.size, 1 / where.size), RESAMPLES
        )
    aucs, aps = auc_and_ap(scores, truth, counts)
    return {
        "auc": float(auc[0]),
        "auc_interval": [float(value) for value in np.quantile(aucs, (0.025, 0.975))],
        "ap": float(ap[0]),
        "ap_interval": [float(value) for value in np.quantile(aps, (0.025, 0.975))],
    }


def best_threshold(scores: npt.ArrayLike, abnormal: npt.ArrayLike) -> float:
    """Return the threshold with the greatest Youden index; a score at or above it is abnormal."""
    false, true, thresholds = roc_curve(abnormal, scores, drop_intermediate=False)
    return float(thresholds[1:][np.argmax((true - false)[1:])])
