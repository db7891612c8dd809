"""How many labels pretraining saves: probes and fine-tuning from several starts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm import tqdm

from anatpaste_aug.functions import is_function
from examples.pretrain_gde.augment import jitter, reframe
from examples.pretrain_gde.compare import mean_and_sd
from examples.pretrain_gde.data import Dataset, Images
from examples.pretrain_gde.detector import Detector
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.evaluate import describe_data
from examples.pretrain_gde.forms import check_form
from examples.pretrain_gde.metrics import Values, auc_between, by_score, summary
from examples.pretrain_gde.model import Network, full_precision, prepare, prepared, seeded_network
from examples.pretrain_gde.readers import Entry, Split, shared_patients
from examples.pretrain_gde.report import BELOW, BLUE, GRAY, ORANGE, PAGES, plot
from examples.pretrain_gde.settings import PLAN, Settings, derive_seed
from examples.pretrain_gde.storage import first, warn, write_json, write_text
from examples.pretrain_gde.transfer import see_all

FINETUNED = "finetune.html"
WAYS = {"probe": "linear probe", "whole": "whole network"}
BATCH = 16  # images per update
JITTER, REFRAME = 0.1, 0.05
COLORS = (BLUE, GRAY, ORANGE, "#2f855a", "#6b46c1", "#b83280")

Plan = dict[str, Any]  # `labels`, and what `PLAN` names
Model = Callable[[torch.Tensor], torch.Tensor]


def check_plan(plan: Plan) -> Plan:
    """Check what can be chosen, and order the numbers of labels."""
    check_form(plan["labels"], [(1, 10**6)], "labels")
    for name, (_, form, _) in PLAN.items():
        check_form(plan[name], form, name)
    return {**plan, "labels": sorted(set(plan["labels"]))}


def read_labeled(
    settings: Settings, normal: Sequence[Path], abnormal: Sequence[Path], run: Dataset
) -> Dataset:
    """Return a data set to train on labeled images, and to test on the test part of a run.

    Of several files with the same image, the first is kept.

    Raises
    ------
    PipelineError
        If there is no test part with both classes, or an image cannot be read, is given twice, is
        given as normal and as abnormal, or is in the test part.
    """
    if not run.has_labels("test"):
        raise PipelineError("the run has no test part with both classes")
    given = [*normal, *abnormal]
    seen, truth = see_all(settings, normal, abnormal)
    labeled = np.stack([each.image for each in seen])
    tested = {image.tobytes() for image in run.images["test"]}
    known: dict[bytes, int] = {}
    firsts = [known.setdefault(image.tobytes(), row) for row, image in enumerate(labeled)]
    leaking = [image.tobytes() in tested for image in labeled] | (truth[firsts] != truth)
    if refused := [str(given[row]) for row in np.flatnonzero(leaking)]:
        raise PipelineError(
            "labeled images must not be in the test part, nor both normal and abnormal, got "
            f"{len(refused)} that are: {first(refused, 5)}"
        )
    rows = list(known.values())
    entries = tuple(Entry(given[row].name, bool(truth[row])) for row in rows)
    split = Split("plain", entries, (), run.split.test)
    if copies := len(given) - len(rows):
        warn(f"copies of labeled images left out: {copies}")
    if shared := shared_patients(split)["images"]["train"]:
        warn(f"labeled images of patients of the test part, by file names: {shared}")
    images = {"train": labeled[rows], "valid": labeled[:0]}
    return Dataset(split, {**images, "test": run.images["test"]}, {}, ())


def starts(detector: Detector, beside: Sequence[str] = ()) -> dict[str, Network]:
    """Return the networks to begin with, by name.

    Raises
    ------
    PipelineError
        If the run was not trained, or there is no such network.
    """
    found = {"pretrained": detector.trained, "untrained": detector.networks["untrained"]}
    for name in beside:
        imagenet = not is_function(name)  # which brings its own weights
        other = seeded_network(replace(detector.settings, backbone=name, imagenet=imagenet))
        found[f"beside: {name}"] = other.to(next(found["untrained"].parameters()).device)
    return found


def finetune(
    networks: dict[str, Network], dataset: Dataset, plan: Plan, seed: int
) -> dict[str, Any]:
    """Learn from few labels, starting from each network, and score the test part.

    Returns
    -------
    dict
        The plan; ``data``, as of `describe_data`; ``auc``, by start, by way (`WAYS`) and by number
        of labels of either kind: ``mean`` and ``sd`` of the test AUC over draws, and ``values``.
        All starts have the same draws, and those of few labels are part of those of more.

    Raises
    ------
    PipelineError
        If there are fewer labels than asked for, or training diverges.
    """
    images, test = dataset.images["train"], dataset.images["test"]
    abnormal, truth = dataset.labels("train"), dataset.labels("test")
    most = min(int(abnormal.sum()), int((~abnormal).sum()))
    if plan["labels"][-1] > most:
        raise PipelineError(
            f"labels must be at most {most}, of which there are as many normal and abnormal "
            f"images, got {plan['labels'][-1]}"
        )
    tries = [(count, number) for count in plan["labels"] for number in range(plan["draws"])]
    shown = len(images) + len(test) + len(tries) * (plan["updates"] * BATCH + len(test))
    total = len(networks) * shown
    aucs: dict[str, Any] = {}
    with tqdm(total=total, desc="fine-tuning", unit="img") as bar:
        for start, network in networks.items():
            network.eval()
            features = _apply(network.pooled, images, network, bar)
            tested = _apply(network.pooled, test, network, bar)
            found: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
            for count, number in tries:
                rows = draw(abnormal, count, derive_seed(seed, 4, number))
                probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000))
                probe.fit(features[rows], abnormal[rows])
                of_draw = derive_seed(seed, 5, number, count)
                model = _tune(network, images[rows], abnormal[rows], plan, of_draw, bar)
                whole = _apply(model, test, network, bar)
                for way, scores in zip(WAYS, (probe.decision_function(tested), whole), strict=True):
                    auc = auc_between(scores[~truth], scores[truth])
                    found[way].setdefault(str(count), []).append(auc)
            aucs[start] = by_score(summary, found)
    return {**plan, "data": describe_data(dataset), "auc": aucs}


def draw(abnormal: Values, count: int, seed: int) -> Values:
    """Draw `count` images of either kind; what fewer would be drawn are among them."""
    rng = np.random.default_rng(seed)
    kinds = [rng.permutation(np.flatnonzero(abnormal == kind)) for kind in (False, True)]
    return np.concatenate([kind[:count] for kind in kinds])


def _tune(
    network: Network, images: Images, abnormal: Values, plan: Plan, seed: int, bar: tqdm[Any]
) -> Model:
    """Train a copy of a network with a new last layer on a few images; return what scores."""
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    inputs = torch.from_numpy(images)[:, None].to(device)
    truth = torch.from_numpy(abnormal).to(device).float()
    turns = math.ceil(plan["updates"] * BATCH / len(inputs))
    order = [torch.randperm(len(inputs), generator=generator, device=device) for _ in range(turns)]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), full_precision():
        torch.manual_seed(seed)
        tuned, last = copy.deepcopy(network).train(), nn.Linear(network.width, 1).to(device)
        optimizer = torch.optim.AdamW([*tuned.parameters(), *last.parameters()], plan["rate"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan["updates"])
        for rows in torch.cat(order).split(BATCH)[: plan["updates"]]:
            seen, _ = reframe(inputs[rows], None, REFRAME, generator)
            logits = last(tuned.pooled(prepare(jitter(seen, JITTER, generator))))[:, 0]
            optimizer.zero_grad(set_to_none=True)
            nn.functional.binary_cross_entropy_with_logits(logits, truth[rows]).backward()
            optimizer.step()
            schedule.step()
            bar.update(BATCH)
    tuned.eval()
    return lambda inputs: last(tuned.pooled(inputs))[:, 0]


@torch.no_grad()
def _apply(model: Model, images: Images, network: Network, bar: tqdm[Any]) -> Values:
    """Return what a model makes of (N, S, S) uint8 images, where `network` is."""
    found = []
    with full_precision():
        for inputs in prepared(images, network):
            found.append(model(inputs).cpu())
            bar.update(len(inputs))
    values = torch.cat(found)
    if not values.isfinite().all():
        raise PipelineError("the network gives values that are not finite: lower --rate")
    return values.numpy()


def write_finetuned(path: Path, result: dict[str, Any]) -> list[list[str]]:
    """Write a page, and beside it the same as JSON; return the page's table.

    It has a row of test AUCs, means and deviations, for each start and way, below a head.
    """
    rows = [["start", "trained", *(f"{count} + {count}" for count in result["labels"])]]
    for start, ways in result["auc"].items():
        for way, found in ways.items():
            rows.append([start, WAYS[way], *map(mean_and_sd, found.values())])
    page = PAGES.get_template("finetune.html.jinja")
    write_json(path.with_suffix(".json"), result)
    write_text(path, page.render(result=result, rows=rows, plot=plot(_draw_aucs, result)))
    return rows


def _draw_aucs(axes: Axes, result: dict[str, Any]) -> None:
    labels = np.array(result["labels"])
    for index, (start, ways) in enumerate(result["auc"].items()):
        for whole, found in enumerate(ways.values()):
            axes.errorbar(
                labels * 1.01 ** (2 * index + whole),  # side by side
                [one["mean"] for one in found.values()],
                [one["sd"] or 0 for one in found.values()],
                fmt=".-" if whole else ".--",
                color=COLORS[index % len(COLORS)],
                capsize=2,
                label=start if whole else None,
            )
    axes.set(xscale="log", xlabel="labeled images of either kind", ylabel="AUC")
    axes.set_title("AUC on the test part")
    axes.set_xticks(labels, [str(count) for count in labels])
    axes.minorticks_off()
    told = "solid: whole network, dashed: linear probe"
    axes.legend(**BELOW, fontsize=8, title=told, title_fontsize=8)
