"""From networks to a detector: fitting the scores, choosing among them, keeping all in a file."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from examples.pretrain_gde.augment import Augmenter, second_view
from examples.pretrain_gde.data import Dataset, Images
from examples.pretrain_gde.density import (
    NO_LABELS,
    PUBLISHED,
    SCORES,
    Scorer,
    Scores,
    count_places,
    needed_features,
)
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import LARGE
from examples.pretrain_gde.metrics import auc_between, best_threshold, measure_adjusted
from examples.pretrain_gde.model import Features, Network, embed
from examples.pretrain_gde.settings import Settings, derive_seed
from examples.pretrain_gde.storage import load_tensors, save_tensors

NETWORKS = ("trained", "untrained")
BOTH = "both"
VIEWS = {"published": 1, "all": 2}  # of each normal that scores are fitted to
FOLDS = 5
MOST_FITTED = 4096  # normals, where pasted ones are needed too: a bound for the memory of features
CALLED = 0.95  # share of the normals below the threshold, where no abnormal image tells more

AllScores = dict[str, Scores]  # by network, then by score
AUCs = dict[str, dict[str, float]]

_RATE = (0.0, 1.0)
CHOICE_FORM = {
    "network": (*NETWORKS, BOTH),
    "score": tuple(SCORES),
    "by": ("labels", "pasted"),
    "auc": _RATE,
}
DETECTOR_FORM = {
    "settings": {},
    "choice": CHOICE_FORM,
    "threshold": (-LARGE, LARGE),
    "standards": {str: {str: [(-LARGE, LARGE)] * 2}},
}


@dataclass(frozen=True)
class Choice:
    """The score that is used, and why.

    Attributes
    ----------
    network : str
        "trained", "untrained", or "both": the sum of either's score, each standardized by those of
        the validation normals.
    score : str
        Out of `SCORES`.
    by : str
        "labels": it had the greatest AUC on the validation part. "pasted": the validation part has
        no abnormal images, and of the by-place scores it told its normals best from themselves with
        something pasted in. The network is not chosen so: a trained one was trained to tell these.
    auc : float
        That AUC.
    """

    network: str
    score: str
    by: str
    auc: float

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that it needs."""
        return NETWORKS if self.network == BOTH else (self.network,)


def score_names(settings: Settings, network: str) -> tuple[str, ...]:
    """Name the scores of a network; that of an untrained head says nothing."""
    if settings.scores == "published":
        return PUBLISHED
    return tuple(name for name in SCORES if network == "trained" or name != "logit")


class Reference:
    """What scores are fitted to, and what stands for the abnormal where there is none.

    Attributes
    ----------
    normal, pasted : (N, S, S) uint8 arrays
        The training normals, and as many with something pasted in. If all scores are wanted, each
        normal is in it twice: as it is, then all again in another frame and tone. For the published
        scores nothing is pasted.
    valid_pasted : (M, S, S) uint8 array
        The validation normals with something pasted in.
    """

    normal: Images
    pasted: Images | None

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        self.settings, self.dataset = settings, dataset
        self.augmenter = Augmenter(settings)
        images, masks = dataset.normals("train")
        self.normal, self.pasted = images, None
        if settings.scores == "all":
            generator = torch.Generator().manual_seed(derive_seed(settings.seed, 2))
            if len(images) > MOST_FITTED:
                kept = torch.randperm(len(images), generator=generator)[:MOST_FITTED].numpy()
                images, masks = images[kept], None if masks is None else masks[kept]
            first, lungs = as_tensors(images, masks)
            second, moved = second_view(first, lungs, generator)
            both = torch.cat([first, second])
            inside = None if lungs is None or moved is None else torch.cat([lungs, moved])
            self.normal = both[:, 0].numpy()
            self.pasted = self.augmenter.abnormal(both, inside, generator)[:, 0].numpy()
        generator = torch.Generator().manual_seed(derive_seed(settings.seed, 3))
        held_out = as_tensors(*dataset.normals("valid"))
        self.valid_pasted = self.augmenter.abnormal(*held_out, generator)[:, 0].numpy()

    def embed(self, network: Network, names: Collection[str]) -> tuple[Features, Features | None]:
        """Return the features of the normal and of the pasted that some scores need."""
        needed = needed_features(names) | {"pool4"}
        relative = any(SCORES[name][1] for name in names)
        normal = embed(network, self.normal, needed)
        if self.pasted is None or not relative:
            return normal, None
        return normal, embed(network, self.pasted, needed)

    def fit(self, network: Network, name: str) -> Fitted:
        """Fit the scores of a network, and score the validation part."""
        names = score_names(self.settings, name)
        features = self.embed(network, names)
        scorer = Scorer.fit(*features, names)
        needed = needed_features(names)
        valid = scorer.score(embed(network, self.dataset.images["valid"], needed))
        pasted = scorer.score(embed(network, self.valid_pasted, needed))
        return Fitted(scorer, features, valid, pasted)

    def measure(self, scores: AllScores, pasted: AllScores) -> dict[str, AUCs]:
        """Return the scores' AUCs on the validation part: "labels", if it has any, and "pasted".

        Those of labels are adjusted as the settings say.
        """
        labels, found = self.dataset.labels("valid"), {}
        if self.dataset.has_labels("valid"):
            found["labels"] = {
                network: {name: self._auc(values, labels) for name, values in named.items()}
                for network, named in scores.items()
            }
        found["pasted"] = {
            network: {
                name: auc_between(values[~labels], pasted[network][name])
                for name, values in named.items()
            }
            for network, named in scores.items()
        }
        return found

    def _auc(self, values: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> float:
        if not self.settings.adjust:
            return auc_between(values[~labels], values[labels])
        covariate = self.dataset.covariates["valid"][self.settings.adjust]
        return float(measure_adjusted(values, labels, covariate)["auc"])

    def validate(self, network: Network) -> dict[str, float]:
        """Return the AUC of each score of a trained network: of the labels, or of the pasted."""
        fitted = self.fit(network, "trained")
        aucs = self.measure({"trained": fitted.valid}, {"trained": fitted.pasted})
        return aucs["labels" if "labels" in aucs else "pasted"]["trained"]


class Fitted(NamedTuple):
    """A scorer, the features that it was fitted to, and scores of the validation part.

    `pasted` are those of its normals with something pasted in.
    """

    scorer: Scorer
    features: tuple[Features, Features | None]
    valid: Scores
    pasted: Scores


def as_tensors(images: Images, masks: Images | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return images and masks as the augmentation takes them."""
    lungs = None if masks is None else torch.from_numpy(np.array(masks))[:, None].bool()
    return torch.from_numpy(np.array(images))[:, None], lungs


def choose(aucs: dict[str, AUCs], by: str, among: Collection[str]) -> Choice:
    """Choose a score of some networks, by the AUCs of `Reference.measure`; see `Choice`."""
    found = [
        Choice(network, score, by, auc)
        for network in among
        for score, auc in aucs[by][network].items()
    ]
    if by == "pasted":
        if BOTH in among:
            found = [one for one in found if one.network == BOTH]
        if any(one.score in NO_LABELS for one in found):
            found = [one for one in found if one.score in NO_LABELS]
    return max(found, key=lambda one: one.auc)


@dataclass(frozen=True)
class Detector:
    """Networks, the scores fitted to their features of normals, and what a score means.

    Attributes
    ----------
    settings : Settings
        Of the run.
    networks : dict of str to Network
        By name, out of `NETWORKS`.
    scorers : dict of str to Scorer
        One for each network.
    standards : dict of str to dict of str to (float, float)
        Mean and standard deviation of each network's scores of the validation normals.
    choice : Choice
        The score that is used.
    normal_scores : (N,) float array
        Sorted scores of the training normals, for percentiles. See `cross_scores`.
    threshold : float
        At or above is abnormal: the greatest Youden index on the validation part, or without
        abnormal images there, the value that `CALLED` of its normals stay below.
    usual_shares : (K,) float array
        Mean of the validation normals' `shares`.
    """

    settings: Settings
    networks: dict[str, Network]
    scorers: dict[str, Scorer]
    standards: dict[str, dict[str, tuple[float, float]]]
    choice: Choice
    normal_scores: npt.NDArray[np.float64]
    threshold: float
    usual_shares: npt.NDArray[np.float64]

    def score_all(self, images: Images) -> AllScores:
        """Score (N, S, S) uint8 images with every network by every score.

        Raises
        ------
        PipelineError
            If a score is not finite: the weights or what was fitted are of no use.
        """
        scores = {}
        for name, scorer in self.scorers.items():
            features = embed(self.networks[name], images, needed_features(scorer.names))
            scores[name] = scorer.score(features)
        return check_scores(combine(scores, self.standards))

    def score(self, images: Images) -> npt.NDArray[np.float64]:
        """Score (N, S, S) uint8 images by the chosen score alone: (N,).

        Raises
        ------
        PipelineError
            As for `score_all`.
        """
        return self._chosen(images, Scorer.forward)

    def shares(self, images: Images) -> npt.NDArray[np.float64]:
        """Split the chosen score of (N, S, S) uint8 images by place: (N, K), which sum to it."""
        values = self._chosen(images, Scorer.by_place)
        return values / values.shape[1]

    def _chosen(
        self, images: Images, how: Callable[[Scorer, Features, str], torch.Tensor]
    ) -> npt.NDArray[np.float64]:
        name = self.choice.score
        scores = {}
        for network in self.choice.networks:
            features = embed(self.networks[network], images, needed_features([name]))
            with torch.no_grad():
                values = how(self.scorers[network], features, name)
            scores[network] = {name: values.double().numpy()}
        return check_scores(combine(scores, self.standards))[self.choice.network][name]

    def share_below(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the share of the training normals that score lower, 0..1."""
        below = np.searchsorted(self.normal_scores, scores, side="left")
        return below / len(self.normal_scores)

    def save(self, path: Path) -> None:
        """Write everything into one file."""
        tensors = _modules(self.networks, self.scorers).state_dict()
        tensors["normal_scores"] = torch.from_numpy(self.normal_scores)
        tensors["usual_shares"] = torch.from_numpy(self.usual_shares)
        info = {
            "settings": self.settings.as_dict(),
            "choice": asdict(self.choice),
            "threshold": self.threshold,
            "standards": self.standards,
        }
        save_tensors(path, tensors, info)

    @classmethod
    def load(cls, path: Path, device: torch.device | None = None) -> Detector:
        """Read what `save` wrote.

        Raises
        ------
        PipelineError
            If the file is missing, damaged or of another kind.
        """
        tensors, info = load_tensors(path, DETECTOR_FORM)
        try:
            settings, choice = Settings(**info["settings"]), Choice(**info["choice"])
            normal = tensors.pop("normal_scores").numpy()
            if normal.ndim != 1 or not normal.size or (np.diff(normal) < 0).any():
                raise ValueError("normal_scores must be sorted, one at least")
            usual = tensors.pop("usual_shares").numpy()
            networks, scorers = {}, {}
            for name in NETWORKS if settings.epochs else ("untrained",):
                networks[name] = Network(settings)
                count = len(normal) * VIEWS[settings.scores]
                scorers[name] = Scorer(score_names(settings, name), count)
            _modules(networks, scorers).load_state_dict(tensors)
            standards = info["standards"]
            for name in networks if standards or choice.network == BOTH else ():
                standards[name] = {score: standards[name][score] for score in scorers[name].names}
            if any(choice.score not in scorers[name].names for name in choice.networks):
                raise ValueError(f"it has no {choice.score}")
            if usual.shape != (count_places(SCORES[choice.score][0]),):
                raise ValueError("usual_shares must be one for each place")
        except (KeyError, TypeError, ValueError, RuntimeError, PipelineError) as error:
            reason = textwrap.shorten(str(error), 300)
            raise PipelineError(f"{path} holds no detector: {reason}") from error
        for network in networks.values():
            network.eval().to(device)
        threshold = info["threshold"]
        return cls(settings, networks, scorers, standards, choice, normal, threshold, usual)


def _modules(networks: dict[str, Network], scorers: dict[str, Scorer]) -> nn.ModuleDict:
    """Put together what a file keeps, to give each tensor a name."""
    return nn.ModuleDict(
        {
            name: nn.ModuleDict({"network": network, "scorer": scorers[name]})
            for name, network in networks.items()
        }
    )


def combine(
    scores: AllScores, standards: Mapping[str, Mapping[str, tuple[float, float]]]
) -> AllScores:
    """Add the sum of both networks' standardized scores, if there are two that may be summed."""
    if len(scores) < len(NETWORKS) or not standards:
        return scores
    total = {}
    for name in scores["trained"].keys() & scores["untrained"].keys():
        parts = []
        for network in NETWORKS:
            mean, deviation = standards[network][name]
            parts.append((scores[network][name] - mean) / deviation)
        total[name] = parts[0] + parts[1]
    ordered = {name: total[name] for name in SCORES if name in total}
    return {**scores, BOTH: ordered}


def check_scores(scores: AllScores) -> AllScores:
    """Check that all scores are finite."""
    for network, found in scores.items():
        for name, values in found.items():
            if not np.isfinite(values).all():
                raise PipelineError(
                    f"the detector gives scores that are not finite ({network}, {name})"
                )
    return scores


class Selection(NamedTuple):
    """What was chosen, and from what.

    Attributes
    ----------
    aucs : dict
        Of the validation part: "pasted", and "labels" if there are any; see `Reference.measure`.
    choice : Choice
        What is used.
    without_training, without_labels : Choice
        What would have been, of the untrained network, and by the pasted.
    """

    aucs: dict[str, AUCs]
    choice: Choice
    without_training: Choice
    without_labels: Choice


def fit_detector(
    networks: dict[str, Network], settings: Settings, dataset: Dataset
) -> tuple[Detector, Selection]:
    """Fit all scores of some networks, choose among them on the validation part, set the threshold.

    For the published scores, only those of the trained network are chosen from.
    """
    reference = Reference(settings, dataset)
    fitted = {name: reference.fit(network.eval(), name) for name, network in networks.items()}
    normal = ~dataset.labels("valid")
    standards = {}
    if settings.scores == "all":
        standards = {
            network: {name: standard(values[normal]) for name, values in fit.valid.items()}
            for network, fit in fitted.items()
        }
    valid = combine({name: fit.valid for name, fit in fitted.items()}, standards)
    pasted = combine({name: fit.pasted for name, fit in fitted.items()}, standards)
    aucs = reference.measure(check_scores(valid), check_scores(pasted))
    by = "labels" if "labels" in aucs else "pasted"
    among = [name for name in valid if settings.scores == "all" or name == "trained"] or [*valid]
    choice = choose(aucs, by, among)
    selection = Selection(
        aucs, choice, choose(aucs, by, ("untrained",)), choose(aucs, "pasted", among)
    )
    scores = valid[choice.network][choice.score]
    if by == "labels":
        threshold = best_threshold(scores, ~normal)
    else:
        threshold = float(np.quantile(scores, CALLED))
    detector = Detector(
        settings,
        networks,
        {name: fit.scorer for name, fit in fitted.items()},
        standards,
        choice,
        cross_scores(fitted, VIEWS[settings.scores], standards, choice),
        threshold,
        np.empty(0),
    )
    usual = detector.shares(dataset.images["valid"][normal]).mean(0)
    return replace(detector, usual_shares=usual), selection


def standard(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and standard deviation, the latter above 0."""
    return float(values.mean()), float(values.std()) or 1.0


def cross_scores(
    fitted: dict[str, Fitted],
    views: int,
    standards: Mapping[str, Mapping[str, tuple[float, float]]],
    choice: Choice,
) -> npt.NDArray[np.float64]:
    """Score training normals by the chosen score, fitted without their fifth of them; sorted.

    What was fitted to an image scores it too low: hardly any other image would score lower. All
    `views` of an image are left out together.
    """
    scores: AllScores = {}
    for network in choice.networks:
        normal, pasted = fitted[network].features
        count = len(normal["pool4"]) // views
        parts = []
        for fold in np.array_split(np.arange(count), min(FOLDS, count)):
            rest = torch.from_numpy(~np.isin(np.arange(views * count) % count, fold))
            scorer = Scorer.fit(_take(normal, rest), pasted and _take(pasted, rest), [choice.score])
            parts.append(scorer.score(_take(normal, torch.from_numpy(fold)))[choice.score])
        scores[network] = {choice.score: np.concatenate(parts)}
    return np.sort(combine(scores, standards)[choice.network][choice.score])


def _take(features: Features, rows: torch.Tensor) -> Features:
    return {name: values[rows] for name, values in features.items()}
