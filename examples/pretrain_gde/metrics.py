"""Image-level AUC, plain and adjusted for a covariate, with DeLong's interval."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve

LEAST = 5  # normals to place an abnormal image among, where a covariate is adjusted for
Values = npt.NDArray[Any]


def measure(
    scores: npt.ArrayLike, abnormal: npt.ArrayLike, strata: Values | None = None
) -> dict[str, Any]:
    """Measure the area under the ROC curve, ties included, and its 95 % interval.

    The AUC is the mean placement of the abnormal images: the share of the normals that score lower.
    The interval is that of DeLong et al., *Biometrics* 1988.

    Parameters
    ----------
    scores : (N,) float array
        Higher is less normal.
    abnormal : (N,) bool array
        The truth.
    strata : (N,) array, optional
        Groups to place each abnormal image in; the variance is that of all placements then, and of
        the normals of each.

    Returns
    -------
    dict
        ``auc``, within 0..1, and ``auc_interval``.

    Raises
    ------
    ValueError
        If one class is missing, from a group of abnormal images too.
    """
    values, truth = np.asarray(scores), np.asarray(abnormal, bool)
    groups = np.zeros(truth.size) if strata is None else strata
    places, variance = [], 0.0
    for group in np.unique(groups[truth]) if truth.any() else [0]:
        normal, ill = values[~truth & (groups == group)], values[truth & (groups == group)]
        if not normal.size or not ill.size:
            raise ValueError("an AUC needs normal and abnormal images")
        places.append(placements(normal, ill))
        share = ill.size / truth.sum()
        variance += share**2 * _variance_of_mean(placements(-ill, -normal))
    placed = np.concatenate(places)
    auc = float(placed.mean())
    half = 1.96 * float(np.sqrt(variance + _variance_of_mean(placed)))
    return {"auc": auc, "auc_interval": [max(auc - half, 0.0), min(auc + half, 1.0)]}


def placements(normal: Values, others: Values) -> Values:
    """Return for each of others the share of the normals below it, those alike by half.

    Their mean is the AUC of the others against the normals.
    """
    ordered = np.sort(normal)
    ranks = np.searchsorted(ordered, others, "left") + np.searchsorted(ordered, others, "right")
    return ranks / (2 * normal.size)


def _variance_of_mean(values: Values) -> float:
    return float(values.var(ddof=min(values.size - 1, 1)) / values.size)


def measure_adjusted(scores: Values, abnormal: Values, covariate: Values) -> dict[str, Any]:
    """Measure the AUC among images that are alike in a covariate (Janes and Pepe, 2009).

    Each abnormal image is placed among normals of the same covariate: those of its group, or, for a
    number, all of them after a location and scale model of the scores, linear in the covariate and
    fitted to the normals. The interval takes that model as given.

    Parameters
    ----------
    scores, abnormal
        As for `measure`.
    covariate : (N,) float or str array
        A number or a group for each image; NaN or "" where it is not known.

    Returns
    -------
    dict
        ``auc`` and ``auc_interval``, None where nothing can be compared; ``counted``, abnormal
        images that were placed, and ``left_out``, those without normals like them: of unknown
        covariate, outside the normals' range, or in groups of fewer than `LEAST` normals;
        ``groups``: of each group with abnormal images its ``normal`` and ``abnormal`` counts and
        its ``auc``, None where it was left out.
    """
    truth = np.asarray(abnormal, bool)
    groups: dict[str, Any] = {}
    if covariate.dtype.kind == "f":
        normals = covariate[~truth & np.isfinite(covariate)]
        kept = np.zeros(truth.size, bool)
        if normals.size >= LEAST:
            kept = (covariate >= normals.min()) & (covariate <= normals.max())
            scores = np.full(truth.size, np.nan) if not kept.any() else scores.astype(float)
            scores[kept] = _standardized(scores[kept], covariate[kept], ~truth[kept])
        strata = np.zeros(truth.size)
    else:
        strata, kept = covariate, covariate != ""
        for group in np.unique(covariate[truth & kept]):
            inside = covariate == group
            normal, ill = int((inside & ~truth).sum()), int((inside & truth).sum())
            fine = normal >= LEAST
            kept &= ~inside | fine
            auc = measure(scores[inside], truth[inside])["auc"] if fine else None
            groups[str(group)] = {"normal": normal, "abnormal": ill, "auc": auc}
    counted = int((truth & kept).sum())
    found: dict[str, Any] = {"auc": None, "auc_interval": None}
    if counted:
        found = measure(scores[kept], truth[kept], strata[kept])
    return {**found, "counted": counted, "left_out": int(truth.sum()) - counted, "groups": groups}


def _standardized(scores: Values, covariate: Values, normal: Values) -> Values:
    """Return scores less what normals of the same covariate have, by these normals' spread."""
    scale = covariate[normal].std() or 1.0
    design = np.stack([np.ones(len(scores)), (covariate - covariate[normal].mean()) / scale], 1)

    def fitted(values: Values) -> Values:
        return design @ np.linalg.lstsq(design[normal], values, rcond=None)[0]

    offset = scores - fitted(scores[normal])
    offset[np.abs(offset) < 1e-9 * np.abs(scores).max()] = 0  # rounding: a number itself, adjusted
    sizes = np.abs(offset[normal])
    return offset / np.maximum(fitted(sizes), 0.1 * sizes.mean() or 1.0)


def best_threshold(scores: npt.ArrayLike, abnormal: npt.ArrayLike) -> float:
    """Return the threshold with the greatest Youden index; a score at or above it is abnormal."""
    false, true, thresholds = roc_curve(abnormal, scores, drop_intermediate=False)
    return float(thresholds[1:][np.argmax((true - false)[1:])])


def summary(values: list[Any]) -> dict[str, Any] | None:
    """Return mean and standard deviation of some figures, and these; None if one is missing."""
    if None in values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"values": values, "mean": statistics.fmean(values), "sd": sd}
