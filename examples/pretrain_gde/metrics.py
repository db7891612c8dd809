"""Image-level AUC, plain and adjusted for a covariate, and the figures of several."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtri
from sklearn.metrics import roc_curve

LEFT_OUT = 40  # parts of the normals, in turn, for the variance
LEAST = 5  # normals of a group to place abnormal images among
LEAST_FITTED = 20  # normals to fit a model to
Values = npt.NDArray[Any]
Placed = tuple[Values, float, dict[str, Any]]  # abnormal images, the variance, what of groups


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
    normal, ill = values[~truth], values[truth]
    return _result(placements(normal, ill), _of_normals(values, truth), normal.size)


def placements(normal: Values, others: Values) -> Values:
    """Return for each of others the share of the normals below it, those alike by half."""
    ordered = np.sort(normal)
    ranks = np.searchsorted(ordered, others, "left") + np.searchsorted(ordered, others, "right")
    return ranks / (2 * normal.size)


def auc_between(normal: Values, others: Values) -> float:
    """Return the AUC of others against the normals."""
    return float(placements(normal, others).mean())


def is_number(covariate: Values) -> bool:
    """Tell a covariate of numbers from one of groups."""
    return covariate.dtype.kind == "f"


def _of_normals(scores: Values, truth: Values) -> float:
    """Return the part of an AUC's variance that comes from which normals there are."""
    return _variance_of_mean(placements(-scores[truth], -scores[~truth]))


def _variance_of_mean(values: Values) -> float:
    return float(values.var(ddof=1) / values.size) if values.size > 1 else 0.25  # at the most


def _result(placed: Values, of_normals: float, normals: int) -> dict[str, Any]:
    auc = float(placed.mean())
    if auc in (0, 1):  # exact, for the rarer class
        edge = 0.025 ** (1 / min(placed.size, normals))
        return {"auc": auc, "auc_interval": [edge, 1.0] if auc else [0.0, 1 - edge]}
    half = 1.96 * np.sqrt(_variance_of_mean(placed) + of_normals) / (auc * (1 - auc))
    return {"auc": auc, "auc_interval": [float(expit(logit(auc) + d)) for d in (-half, half)]}


def measure_adjusted(scores: Values, abnormal: Values, covariate: Values) -> dict[str, Any]:
    """Measure the AUC among images that are alike in a covariate (Janes and Pepe, 2009).

    Each abnormal image is placed among normals of the same covariate: those of its group, or, for a
    number, all of them after a location and scale model that is fitted to the normals: a cubic in
    the covariate, as scores that are distances rise to both sides, and a spread linear in it, of
    the scores in a shape in which the normals' are normally distributed. The interval is as for
    `measure`; with a model the normals' part of the variance is got by leaving parts of them out.

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
    place = _by_number if is_number(covariate) else _by_group
    placed, variance, groups = place(scores, abnormal, covariate)
    found: dict[str, Any] = {"auc": None, "auc_interval": None}
    if placed.size:
        found = _result(placed, variance, int((~abnormal).sum()))
    left_out = int(abnormal.sum()) - placed.size
    return {**found, "counted": placed.size, "left_out": left_out, "groups": groups}


def _by_group(scores: Values, abnormal: Values, covariate: Values) -> Placed:
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


def _by_number(scores: Values, abnormal: Values, covariate: Values) -> Placed:
    normals = covariate[~abnormal & np.isfinite(covariate)]
    if normals.size < LEAST_FITTED:
        return np.zeros(0), 0.0, {}
    kept = (covariate >= normals.min()) & (covariate <= normals.max())
    if not abnormal[kept].any():
        return np.zeros(0), 0.0, {}
    x = (covariate[kept] - normals.mean()) / (normals.std() or 1.0)
    ill, normal = np.flatnonzero(abnormal[kept]), np.flatnonzero(~abnormal[kept])
    y = _shaped(scores[kept], scores[kept][normal])

    def place(among: Values) -> Values:
        offset = y - _fitted(x, y, among, 3)
        offset[np.abs(offset) < 1e-9] = 0  # rounding
        sizes = np.abs(offset)
        spread = np.maximum(_fitted(x, sizes, among, 1), sizes[among].mean() / 4)
        those = offset / np.maximum(spread, 1e-9)
        return placements(those[among], those[ill])

    drawn = np.random.default_rng(0).permutation(normal)  # whatever the order of files
    parts = np.array_split(drawn, min(normal.size, LEFT_OUT))
    without = [place(np.setdiff1d(normal, part)).mean() for part in parts]
    return place(normal), float(np.var(without) * (len(without) - 1)), {}


def _shaped(scores: Values, normal: Values) -> Values:
    """Give scores a shape in which the normals' are normally distributed, straight beyond them.

    Scores that are distances may have long tails, which no polynomial follows.
    """
    level, count = np.unique(normal, return_counts=True)
    if level.size == 1:
        return scores - level
    shape = ndtri((np.cumsum(count) - count / 2) / normal.size)
    inner = max(level.size // 10, 1)
    low = (shape[inner] - shape[0]) / (level[inner] - level[0])
    high = (shape[-1] - shape[-1 - inner]) / (level[-1] - level[-1 - inner])
    beyond = np.minimum(scores - level[0], 0) * low + np.maximum(scores - level[-1], 0) * high
    return np.interp(scores, level, shape) + beyond


def _fitted(x: Values, y: Values, among: Values, degree: int) -> Values:
    """Return a polynomial at all places that is fitted to some of the points."""
    powers = np.vander(x, degree + 1)
    return powers @ np.linalg.lstsq(powers[among], y[among], rcond=None)[0]


def by_score(how: Callable[..., Any], *scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return by network and score what becomes of the values there, of one record or of several."""
    return {
        network: {name: how(*(each[network][name] for each in scores)) for name in named}
        for network, named in scores[0].items()
    }


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
