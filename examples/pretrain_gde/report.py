"""One HTML file that shows a run: figures inline, nothing fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from sklearn.metrics import roc_curve

from examples.pretrain_gde.augment import Augmenter
from examples.pretrain_gde.data import Dataset, Images
from examples.pretrain_gde.density import NAMES
from examples.pretrain_gde.detector import CALLED, AllScores, Detector, as_tensors
from examples.pretrain_gde.evaluate import DETECTOR, caution, load_metrics, worth
from examples.pretrain_gde.heatmap import NO_MAP, has_map, has_places, heat_maps, overlay
from examples.pretrain_gde.metrics import Values, is_number
from examples.pretrain_gde.readers import PUBLISHED_AUC
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.shortcuts import MOST_GROUPS, WORDS, in_words, strongest
from examples.pretrain_gde.storage import write_text

REPORT = "report.html"
SHOWN = 6  # images in a row
DRAWN = 4  # curves of validation
PARTS = {"test": "test", "valid": "validation"}
# Of a legend. Matplotlib warns where it takes long to find the best place by itself.
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
BLUE, ORANGE, GRAY = "#2b6cb0", "#c05621", "#718096"

PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

Picture = tuple[str, str]  # where it comes from, and what it shows


def write_report(
    folder: Path, dataset: Dataset, published: str | None, scores: AllScores | None
) -> None:
    """Write `REPORT` beside the results of a finished run.

    Parameters
    ----------
    folder : Path
        Of the run.
    dataset : Dataset
        What it was trained and tested on.
    published : str or None
        Data set whose published AUC is marked, if not that of the layout.
    scores : dict of str to Scores, or None
        Of the test part, where they are at hand.
    """
    metrics = load_metrics(folder)
    detector = Detector.load(folder / DETECTOR)
    part = "valid" if metrics["test"] is None else "test"
    truth, images = dataset.labels(part), dataset.images[part]
    network, score = detector.scored
    scores = scores or detector.score_all(images)
    chosen = scores[network][score]
    plots = []
    if part == "test":
        known = PUBLISHED_AUC.get(published or dataset.split.layout)
        plots.append(plot(_draw_roc, truth, scores, detector.scored, known))
    plots.append(plot(_draw_scores, truth, chosen, detector, part))
    if metrics["epochs"]:
        plots.append(plot(_draw_losses, metrics["epochs"]))
        if sum("valid" in record for record in metrics["epochs"]) > 1:
            plots.append(plot(_draw_validation, metrics["epochs"], score))
    shortcut, _ = strongest(metrics["shortcuts"]) or ("", None)
    values = dataset.covariates["test"].get(shortcut)
    if values is not None and is_number(values):
        plots.append(plot(_draw_shortcut, truth, values, chosen, shortcut))
    page = PAGES.get_template("report.html.jinja").render(
        metrics=metrics,
        names=NAMES,
        shortcuts=WORDS,
        strongest=shortcut,
        worth=worth(metrics),
        caution=caution(metrics),
        called=CALLED,
        most=MOST_GROUPS,
        part=PARTS[part],
        plots=plots,
        pasted=_gallery(detector.settings, dataset),
        highest=_ranked(detector, dataset, part, chosen, np.argsort(-chosen, kind="stable")),
        lowest=_ranked(detector, dataset, part, chosen, np.argsort(chosen, kind="stable")),
        places=len(detector.usual_shares) if has_places(detector) else 0,
        no_map="" if has_map(detector) else NO_MAP,
    )
    write_text(folder / REPORT, page)


def _draw_roc(
    axes: Axes, truth: Values, scores: AllScores, scored: tuple[str, str], published: float | None
) -> None:
    counted, score = scored
    for network, color in {"untrained": GRAY, counted: BLUE}.items():
        false, true, _ = roc_curve(truth, scores[network][score])
        told = f"{network} {score}: {np.trapezoid(true, false):.3f}"
        axes.plot(false, true, color=color, label=told)
    if published is not None:  # the paper gives the area, not the curve
        axes.plot([], [], " ", label=f"AnatPaste as published: {published:.3f}")
    axes.plot([0, 1], [0, 1], color="#cbd5e0", linewidth=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.set_title("ROC on the test part")
    axes.legend(**BELOW, fontsize=8, title="area under the curve", title_fontsize=8)


def _draw_scores(axes: Axes, truth: Values, scores: Values, detector: Detector, part: str) -> None:
    # The tail of a few outliers would squeeze all the others into one bar.
    low, high = np.quantile(scores, (0.005, 0.995))
    edges = np.linspace(low, high, 31)
    for kind, label, color in ((False, "normal", BLUE), (True, "abnormal", ORANGE)):
        values = scores[truth == kind].clip(low, high)
        if len(values):
            told = f"{label} ({len(values)})"
            axes.hist(values, edges.tolist(), color=color, alpha=0.6, label=told)
    axes.axvline(detector.threshold, color="#1a202c", linestyle=":", label="threshold")
    xlabel = f"score ({' '.join(detector.scored)})"
    axes.set(title=f"Scores of the {PARTS[part]} part", xlabel=xlabel, ylabel="images")
    axes.legend(loc="upper right", fontsize=8)


def _draw_shortcut(axes: Axes, truth: Values, values: Values, scores: Values, name: str) -> None:
    for kind, label, color in ((True, "abnormal", ORANGE), (False, "normal", BLUE)):
        axes.scatter(values[truth == kind], scores[truth == kind], 8, color, alpha=0.6, label=label)
    xlabel = in_words(name).replace("$", r"\$")
    axes.set(title="The strongest shortcut", xlabel=xlabel, ylabel="score")
    axes.legend(**BELOW, fontsize=8, ncols=2)


def _draw_losses(axes: Axes, epochs: list[dict[str, Any]]) -> None:
    axes.plot([r["epoch"] for r in epochs], [r["loss"] for r in epochs], color=BLUE, marker=".")
    axes.set(title="Training loss", xlabel="epoch", ylabel="loss", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_validation(axes: Axes, epochs: list[dict[str, Any]], score: str) -> None:
    """Draw the validation AUC of the score that counts, and of the best, of the trained network."""
    measured = [record for record in epochs if "valid" in record]
    last = measured[-1]["valid"]
    numbers = [record["epoch"] for record in measured]
    for name in sorted(last, key=lambda name: (name != score, -last[name]))[:DRAWN]:
        aucs = [record["valid"][name] for record in measured]
        axes.plot(numbers, aucs, marker=".", label=NAMES[name])
    axes.set(title="Validation", xlabel="epoch", ylabel="AUC")
    axes.legend(loc="lower right", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot(draw: Callable[..., None], *arguments: Any) -> Picture:
    """Draw a plot as an SVG image."""
    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, *arguments)
    text = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return _uri("svg+xml", text), axes.get_title()


def _gallery(settings: Settings, dataset: Dataset) -> Iterator[list[Picture]]:
    """Show originals, every class that is made of them, and how opaque what was pasted is."""
    images, masks = dataset.images["train"][:SHOWN], dataset.masks.get("train")
    shown = as_tensors(images, None if masks is None else masks[:SHOWN])
    augmenter = Augmenter(settings)
    inputs, labels, alpha = augmenter(*shown, torch.Generator().manual_seed(settings.seed))
    yield _row((image, "original") for image in inputs[labels == 0][:, 0].numpy())
    for number, title in enumerate(augmenter.pastes, 1):
        yield _row((image, title) for image in inputs[labels == number][:, 0].numpy())
        yield _row((image, "alpha") for image in alpha[labels == number][:, 0].numpy())


def _ranked(
    detector: Detector, dataset: Dataset, part: str, scores: Values, order: Values
) -> Iterator[list[Picture]]:
    order = order[:SHOWN]
    images = np.array(dataset.images[part][order])
    captions = []
    for index, share in zip(order, detector.share_below(scores[order]), strict=True):
        entry = dataset.split[part][index]
        kind = "abnormal" if entry.abnormal else "normal"
        told = f"{kind}, {scores[index]:.7g}, above {100 * share:.0f} %"
        captions.append(f"{told}\n{Path(entry.path).name}")
    yield _row(zip(images, captions, strict=True))
    if has_map(detector):
        maps = heat_maps(detector, images)
        yield _row((overlay(image, heat), "") for image, heat in zip(images, maps, strict=True))


def _row(images: Iterable[tuple[Images, str]]) -> list[Picture]:
    row = []
    for image, caption in images:
        data = io.BytesIO()
        Image.fromarray(image).save(data, "png")
        row.append((_uri("png", data), caption))
    return row


def _uri(kind: str, data: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
