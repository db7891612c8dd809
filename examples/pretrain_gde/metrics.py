"""Image-level AUC, plain and adjusted for a covariate, and the figures of several."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtri
from scipy.stats import rankdata
from sklearn.metrics import roc_curve

PARTS = 40  # of the normals, left out in turn
LEAST = 5  # normals of a group to place abnormal images among
LEAST_FITTED = 20  # normals to fit a model to
Values = npt.NDArray[Any]


def measure(scores: npt.ArrayLike, abnormal: npt.ArrayLike) -> dict[str, Any]:
    """Measure the area under the ROC curve, ties included, and its 95 % interval.

    The AUC is the mean placement of the abnormal images: the share of the normals that score lower.
    Its variance is that of DeLong et al., *Biometrics* 1988; the interval, of its logit.

    Parameters
    ----------
    scores : (N,) float array
        Higher is less normal.
    abnormal : (N,) bool array
        The truth.

    Returns
    -------
    dict
        ``auc``, within 0..1, and ``auc_interval``.

    Raises
    ------
    ValueError
        If one class is missing.
    """
    values, truth = np.asarray(scores), np.asarray(abnormal, bool)
    if truth.all() or not truth.any():
        raise ValueError("an AUC needs normal and abnormal images")
    return _result(placements(values[~truth], values[truth]), _of_normals(values, truth))


def placements(normal: Values, others: Values) -> Values:
    """Return for each of others the share of the normals below it, those alike by half.

    Their mean is the AUC of the others against the normals.
    """
    ordered = np.sort(normal)
    ranks = np.searchsorted(ordered, others, "left") + np.searchsorted(ordered, others, "right")
    return ranks / (2 * normal.size)


def _of_normals(scores: Values, truth: Values) -> float:
    """Return the part of an AUC's variance that comes from which normals there are."""
    return _variance_of_mean(placements(-scores[truth], -scores[~truth]))


def _variance_of_mean(values: Values) -> float:
    return float(values.var(ddof=min(values.size - 1, 1)) / values.size)


def _result(placed: Values, of_normals: float) -> dict[str, Any]:
    auc = float(placed.mean())
    deviation = np.sqrt(_variance_of_mean(placed) + of_normals)
    slope = auc * (1 - auc)  # of the inverse of the logit
    half = 1.96 * deviation / slope if slope else 0.0
    return {"auc": auc, "auc_interval": [float(expit(logit(auc) + d)) for d in (-half, half)]}


def measure_adjusted(scores: Values, abnormal: Values, covariate: Values) -> dict[str, Any]:
    """Measure the AUC among images that are alike in a covariate (Janes and Pepe, 2009).

    Each abnormal image is placed among normals of the same covariate: those of its group, or, for a
    number, all of them after a location and scale model that is fitted to the normals: a cubic in
    the covariate, as scores that are distances rise to both sides, and a spread linear in it. Of
    the scores it takes the ranks alone, as an AUC does, in the shape of a normal distribution:
    their tails may be long. The interval is as for `measure`; with a model the normals' part of the
    variance is got by leaving parts of them out.

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
        covariate, outside the normals' range, or in groups of fewer than `LEAST` normals (for a
        number, `LEAST_FITTED`);
        ``groups``: of each group with abnormal images its ``normal`` and ``abnormal`` counts and
        its ``auc``, None where it was left out.
    """
    place = _by_number if covariate.dtype.kind == "f" else _by_group
    placed, variance, groups = place(scores, abnormal, covariate)
    found = _result(placed, variance) if placed.size else {"auc": None, "auc_interval": None}
    left_out = int(abnormal.sum()) - placed.size
    return {**found, "counted": placed.size, "left_out": left_out, "groups": groups}


def _by_group(
    scores: Values, abnormal: Values, covariate: Values
) -> tuple[Values, float, dict[str, Any]]:
    placed, variances, groups = [np.zeros(0)], [], {}
    for group in np.unique(covariate[abnormal & (covariate != "")]):
        values, truth = scores[covariate == group], abnormal[covariate == group]
        told = {"normal": int((~truth).sum()), "abnormal": int(truth.sum()), "auc": None}
        if told["normal"] >= LEAST:
            placed.append(placements(values[~truth], values[truth]))
            variances.append(truth.sum() ** 2 * _of_normals(values, truth))
            told["auc"] = float(placed[-1].mean())
        groups[str(group)] = told
    every = np.concatenate(placed)
    return every, sum(variances) / max(every.size, 1) ** 2, groups


def _by_number(
    scores: Values, abnormal: Values, covariate: Values
) -> tuple[Values, float, dict[str, Any]]:
    normals = covariate[~abnormal & np.isfinite(covariate)]
    if normals.size < LEAST_FITTED:
        return np.zeros(0), 0.0, {}
    kept = (covariate >= normals.min()) & (covariate <= normals.max())
    x = (covariate[kept] - normals.mean()) / (normals.std() or 1.0)
    y = ndtri((rankdata(scores[kept]) - 0.5) / kept.sum())
    ill, normal = np.flatnonzero(abnormal[kept]), np.flatnonzero(~abnormal[kept])

    def place(among: Values) -> Values:
        offset = y - _fitted(x, y, among, 3)
        offset[np.abs(offset) < 1e-9] = 0  # rounding
        sizes = np.abs(offset)
        spread = np.maximum(_fitted(x, sizes, among, 1), sizes[among].mean() / 4)
        those = offset / np.maximum(spread, 1e-9)
        return placements(those[among], those[ill])

    if not ill.size:
        return np.zeros(0), 0.0, {}
    without = [
        place(np.setdiff1d(normal, part)).mean()
        for part in np.array_split(normal, min(normal.size, PARTS))
    ]
    return place(normal), float(np.var(without) * (len(without) - 1)), {}


def _fitted(x: Values, y: Values, among: Values, degree: int) -> Values:
    """Return a polynomial at all places that is fitted to some of the points."""
    powers = np.vander(x, degree + 1)
    return powers @ np.linalg.lstsq(powers[among], y[among], rcond=None)[0]


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
