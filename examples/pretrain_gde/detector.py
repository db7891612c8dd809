"""From networks to a detector: fitting the scores, the one that counts, keeping all in a file."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from examples.pretrain_gde.augment import Augmenter, second_view
from examples.pretrain_gde.backbones import check_size
from examples.pretrain_gde.data import Dataset, Images
from examples.pretrain_gde.density import (
    AVERAGED,
    MEAN,
    PUBLISHED,
    SCORES,
    Scorer,
    Scores,
    count_places,
    needed_features,
)
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import LARGE
from examples.pretrain_gde.given import NotGivenError
from examples.pretrain_gde.metrics import auc_between, best_threshold, by_score, measure_adjusted
from examples.pretrain_gde.model import Features, Network, embed
from examples.pretrain_gde.settings import Settings, derive_seed
from examples.pretrain_gde.tensors import load_tensors, save_tensors, write_tensors

NETWORKS = ("trained", "untrained")
BOTH = "both"
EVERY = (*NETWORKS, BOTH)
MOST_FITTED = 4096  # normals, where pasted ones are needed too: a bound for the memory of features
CALLED = 0.95  # share of the normals below the threshold, where no abnormal image tells more

Networks = dict[str, Network]  # by name
AllScores = dict[str, Scores]  # by network, then by score
AUCs = dict[str, dict[str, float]]
Standards = dict[str, dict[str, tuple[float, float]]]

DETECTOR_FORM = {
    "settings": {},
    "threshold": (-LARGE, LARGE),
    "standards": {str: {str: [(-LARGE, LARGE), (1e-12, LARGE)]}},
}


def scored_by(settings: Settings) -> tuple[str, str]:
    """Name the score that counts, and whose it is: fixed, so that no label is needed to choose."""
    published = settings.scores == "published"
    network = ("trained" if published else BOTH) if settings.epochs else "untrained"
    return network, "gaussian" if published else MEAN


def score_names(settings: Settings, name: str, network: Network) -> tuple[str, ...]:
    """Name the scores of a network; that of an untrained head says nothing."""
    if settings.scores == "published":
        return PUBLISHED
    known = {*network.widths, *(["logit"] if name == "trained" else [])}
    return tuple(score for score, (feature, _, _) in SCORES.items() if feature in known)


class Reference:
    """What scores are fitted to, and what stands for the abnormal where there is none.

    Attributes
    ----------
    normal, pasted : (N, S, S) uint8 arrays
        The training normals, and as many with something pasted in. If all scores are wanted, each
        normal is in it twice: as it is, then all again in another frame and tone. For the published
        scores nothing is pasted.
    """

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        self.settings, self.dataset = settings, dataset
        self.augmenter = Augmenter(settings)
        images, masks = dataset.normals("train")
        self.normal: Images = images
        self.pasted: Images | None = None
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

    def embed(self, network: Network, names: Collection[str]) -> tuple[Features, Features | None]:
        """Return the features of the normal and of the pasted that some scores need."""
        needed = needed_features(names) | {"pool4"}
        pasted = None if self.pasted is None else embed(network, self.pasted, needed)
        return embed(network, self.normal, needed), pasted

    @functools.cached_property
    def valid(self) -> tuple[Images, npt.NDArray[np.bool_]]:
        """The validation part and which images stand for abnormal: its own, or pasted ones."""
        images, labels = self.dataset.images["valid"], self.dataset.labels("valid")
        if labels.any():
            return images, labels
        generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, 3))
        held_out = as_tensors(*self.dataset.normals("valid"))
        pasted = self.augmenter.abnormal(*held_out, generator)[:, 0].numpy()
        return np.concatenate([images, pasted]), np.repeat([False, True], len(images))

    def fit(self, networks: Mapping[str, Network]) -> Fitted:
        """Fit the scores of some networks, and score the validation part."""
        (images, labels), scorers, found = self.valid, {}, {}
        for name, network in networks.items():
            names = score_names(self.settings, name, network)
            scorers[name] = Scorer.fit(*self.embed(network, names), names)
            found[name] = scorers[name].score(embed(network, images, needed_features(names)))
        standards = {}
        if self.settings.scores == "all":
            standards = by_score(lambda values: standard(values[~labels]), found)
        scores = combine(found, standards)
        aucs = by_score(lambda values: self._auc(values, labels), scores)
        return Fitted(scorers, standards, scores, aucs)

    def _auc(self, values: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> float:
        if not (self.settings.adjust and self.dataset.has_labels("valid")):
            return auc_between(values[~labels], values[labels])
        covariate = self.dataset.covariates["valid"][self.settings.adjust]
        return float(measure_adjusted(values, labels, covariate)["auc"])

    def validate(self, network: Network) -> dict[str, float]:
        """Return the AUC of each score of a trained network on the validation part."""
        return self.fit({"trained": network}).aucs["trained"]


class Fitted(NamedTuple):
    """Scorers and standards, and the scores and AUCs of `Reference.valid`, all by network."""

    scorers: dict[str, Scorer]
    standards: Standards
    scores: AllScores
    aucs: AUCs


def as_tensors(images: Images, masks: Images | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return images and masks as the augmentation takes them."""
    lungs = None if masks is None else torch.from_numpy(np.array(masks))[:, None].bool()
    return torch.from_numpy(np.array(images))[:, None], lungs


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
    scored : (str, str)
        The score that counts: of which networks, and its name; see `scored_by`.
    normal_scores : (N,) float array
        Sorted scores of the validation normals, for percentiles.
    threshold : float
        At or above is abnormal: the greatest Youden index on the validation part, or without
        abnormal images there, the value that `CALLED` of its normals stay below.
    usual_shares : (K,) float array
        Mean of the validation normals' `shares`.
    """

    settings: Settings
    networks: Networks
    scorers: dict[str, Scorer]
    standards: Standards
    scored: tuple[str, str]
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
        names = {network: scorer.names for network, scorer in self.scorers.items()}
        return self._score(images, names)

    def score(self, images: Images, *, by_place: bool = False) -> npt.NDArray[np.float64]:
        """Score (N, S, S) uint8 images by the score that counts alone: (N,), or by place: (N, K).

        Raises
        ------
        PipelineError
            As for `score_all`.
        """
        whose, score = self.scored
        networks = self.networks if whose == BOTH else (whose,)
        parts = {network: parts_of(score, self.scorers[network]) for network in networks}
        return self._score(images, parts, by_place)[whose][score]

    def shares(self, images: Images) -> npt.NDArray[np.float64]:
        """Split that score of (N, S, S) uint8 images by place: (N, K), which sum to it.

        What has no places is shared by all alike.
        """
        values = self.score(images, by_place=True)
        return values / values.shape[1]

    def _score(
        self, images: Images, parts: Mapping[str, Collection[str]], by_place: bool = False
    ) -> AllScores:
        scores = {}
        for network, names in parts.items():
            features = embed(self.networks[network], images, needed_features(names))
            scores[network] = self.scorers[network].score(features, names, by_place=by_place)
        return combine(scores, self.standards)

    def share_below(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the share of the validation normals that score lower, 0..1."""
        return np.searchsorted(self.normal_scores, scores) / len(self.normal_scores)

    @property
    def trained(self) -> Network:
        """The trained network.

        Raises
        ------
        PipelineError
            If the run was not trained.
        """
        if "trained" not in self.networks:
            raise PipelineError("the run was not trained (epochs 0): it has no weights of its own")
        return self.networks["trained"]

    def export(self, path: Path) -> None:
        """Write the trained backbone as plain safetensors, by the names of its library.

        The metadata say which architecture it is and what it was shown.

        Raises
        ------
        PipelineError
            If the run was not trained, or the file cannot be written.
        """
        settings = self.settings
        metadata = {
            "architecture": settings.backbone,
            "inputs": "gray repeated to 3 channels, scaled from 0..255 to [-1, 1]",
            "view": f"{settings.size} pixels, crop {settings.crop}, tone {settings.tone}",
        }
        write_tensors(path, self.trained.backbone.state_dict(), metadata)

    def save(self, path: Path) -> None:
        """Write everything into one file."""
        tensors = _modules(self.networks, self.scorers).state_dict()
        tensors["normal_scores"] = torch.from_numpy(self.normal_scores)
        tensors["usual_shares"] = torch.from_numpy(self.usual_shares)
        settings = self.settings.as_dict()
        info = {"settings": settings, "threshold": self.threshold, "standards": self.standards}
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
            settings = Settings(**info["settings"])
            normal = tensors.pop("normal_scores").numpy()
            if normal.ndim != 1 or not normal.size or (np.diff(normal) < 0).any():
                raise ValueError("normal_scores must be sorted, one at least")
            usual = tensors.pop("usual_shares").numpy()
            own = "untrained.network.backbone."
            check_size(settings.backbone, sum(tensors[n].numel() for n in tensors if own in n))
            networks, scorers = {}, {}
            for name in NETWORKS if settings.epochs else ("untrained",):
                networks[name] = Network(settings)
                count = len(tensors[f"{name}.scorer.centers"])
                if not count:
                    raise ValueError("it was fitted to nothing")
                names = score_names(settings, name, networks[name])
                scorers[name] = Scorer(names, networks[name].widths, count)
            _modules(networks, scorers).load_state_dict(tensors)
            standards = {
                each: {name: info["standards"][each][name] for name in scorers[each].names}
                for each in (networks if settings.scores == "all" else ())
            }
            parts = parts_of(scored_by(settings)[1], scorers["untrained"])
            places = max(count_places(SCORES[name][0]) for name in parts)
            if usual.shape != (places,):
                raise ValueError("usual_shares must be one for each place")
        except NotGivenError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, PipelineError) as error:
            reason = textwrap.shorten(str(error), 300)
            raise PipelineError(f"{path} holds no detector: {reason}") from error
        for network in networks.values():
            network.eval().to(device)
        scored, threshold = scored_by(settings), info["threshold"]
        return cls(settings, networks, scorers, standards, scored, normal, threshold, usual)


def _modules(networks: Networks, scorers: dict[str, Scorer]) -> nn.ModuleDict:
    """Put together what a file keeps, to give each tensor a name."""
    parts = {name: {"network": networks[name], "scorer": scorers[name]} for name in networks}
    return nn.ModuleDict({name: nn.ModuleDict(part) for name, part in parts.items()})


def parts_of(score: str, scorer: Scorer) -> tuple[str, ...]:
    """Name the scores that a score is made of."""
    return tuple(n for n in AVERAGED if n in scorer.names) if score == MEAN else (score,)


def combine(scores: AllScores, standards: Standards) -> AllScores:
    """Add `MEAN` to each network's scores, and of two networks the mean of either's.

    What is put together is standardized first, by the validation normals. Without standards,
    nothing is. Scores may be (N,) or by place, (N, K), which a (N, 1) has a part in everywhere.

    Raises
    ------
    PipelineError
        If a score is not finite.
    """
    found = {network: dict(named) for network, named in scores.items()}
    scaled: AllScores = {}
    if standards:
        scaled = by_score(lambda values, fit: (values - fit[0]) / fit[1], scores, standards)
    for network, named in scaled.items():
        if averaged := [named[name] for name in AVERAGED if name in named]:
            found[network][MEAN] = named[MEAN] = _mean(averaged)
    if len(scaled) == len(NETWORKS):
        one, other = scaled.values()
        found[BOTH] = {name: _mean([one[name], other[name]]) for name in one if name in other}
    for network, named in found.items():
        for name, values in named.items():
            if not np.isfinite(values).all():
                raise PipelineError(f"there are scores that are not finite ({network}, {name})")
    return found


def _mean(values: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    return sum(values) / len(values)


def fit_detector(networks: Networks, settings: Settings, dataset: Dataset) -> tuple[Detector, AUCs]:
    """Fit all scores of some networks, and set the threshold; return AUCs of the validation, too.

    These are of its labels, or, if it has normals alone, between them and the same with something
    pasted in.
    """
    reference = Reference(settings, dataset)
    fitted = reference.fit({name: network.eval() for name, network in networks.items()})
    _, labels = reference.valid
    network, score = scored_by(settings)
    scores = fitted.scores[network][score]
    normal = np.sort(scores[~labels])
    threshold = float(np.quantile(normal, CALLED))
    if dataset.has_labels("valid"):
        threshold = best_threshold(scores, labels)
    parts = networks, fitted.scorers, fitted.standards, (network, score)
    detector = Detector(settings, *parts, normal, threshold, usual_shares=np.empty(0))
    usual = detector.shares(dataset.normals("valid")[0]).mean(0)
    return replace(detector, usual_shares=usual), fitted.aucs


def standard(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and standard deviation; of values that are all the same, 1 for the latter."""
    mean, deviation = float(values.mean()), float(values.std())
    return mean, deviation if deviation > 1e-9 * max(abs(mean), 1) else 1.0
