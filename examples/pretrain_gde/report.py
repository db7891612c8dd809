"""One HTML file that shows a run: figures inline, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from sklearn.metrics import roc_curve

from examples.pretrain_gde.augment import Augmenter
from examples.pretrain_gde.data import Dataset, Images
from examples.pretrain_gde.density import NAMES
from examples.pretrain_gde.detector import CALLED, AllScores, Detector
from examples.pretrain_gde.evaluate import DETECTOR, SCORE_TABLE, load_metrics, read_scores
from examples.pretrain_gde.heatmap import NO_MAP, has_map, has_places, heat_maps, overlay
from examples.pretrain_gde.readers import PUBLISHED_AUC
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.storage import write_text

REPORT = "report.html"
CHANGED = (
    "Warning: these numbers are of other images or labels than the run was made with "
    "(evaluate --changed-images)."
)
SHOWN = 6  # images in a row
DRAWN = 4  # curves of validation
PARTS = {"test": "test", "valid": "validation"}
BLUE, ORANGE, GRAY, GREEN = "#2b6cb0", "#c05621", "#718096", "#2f855a"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a202c; background: #fff; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.lead { font-size: 1.1rem; margin-top: .2rem; } p.note { color: #4a5568; font-size: .9rem; }
p.warning { border-left: .3rem solid #c05621; padding-left: .6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #e2e8f0;
         vertical-align: top; }
.wide { overflow-x: auto; } .wide table { font-size: .85rem; }
.plots { display: grid; gap: 1rem;
         grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.plots img { width: 100%; }
.row { display: grid; grid-template-columns: repeat(6, 1fr); gap: .5rem; margin: .5rem 0; }
figure { margin: 0; } figure img { width: 100%; display: block; background: #000; }
figcaption { font-size: .78rem; color: #4a5568; overflow-wrap: anywhere; line-height: 1.3; }
"""


def write_report(folder: Path, dataset: Dataset, published: str | None = None) -> None:
    """Write `REPORT` beside the results of a finished run.

    Parameters
    ----------
    folder : Path
        Of the run.
    dataset : Dataset
        What it was trained and tested on.
    published : str, optional
        Data set whose published AUC is marked; by default that of the layout, if it has one.
    """
    metrics = load_metrics(folder)
    detector = Detector.load(folder / DETECTOR)
    settings = Settings(**metrics["settings"])
    tested = metrics["test"] is not None
    part = "test" if tested else "valid"
    truth = dataset.labels(part)
    plots = []
    if tested:
        scores = read_scores(folder / SCORE_TABLE, truth, metrics["test"])
        chosen = scores[detector.choice.network][detector.choice.score]
        known = PUBLISHED_AUC.get(published or dataset.split.layout)
        plots.append(_plot(lambda axes: _draw_roc(axes, truth, scores, metrics, known)))
    else:
        chosen = detector.score(dataset.images[part])
    plots.append(_plot(lambda axes: _draw_histogram(axes, truth, chosen, metrics, part)))
    if metrics["epochs"]:
        plots.append(_plot(lambda axes: _draw_losses(axes, metrics["epochs"])))
        if sum("valid" in record for record in metrics["epochs"]) > 1:
            plots.append(_plot(lambda axes: _draw_validation(axes, metrics["epochs"])))
    title = f"{settings.variant}, seed {settings.seed}: {_headline(metrics)}"
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        _paragraph("lead", _lead(metrics)),
        _paragraph("note", "For research, not for diagnosis."),
        *([_paragraph("warning", CHANGED)] if metrics["evaluated"] else []),
        '<div class="plots">',
        *plots,
        "</div>",
        "<h2>All scores, and the choice</h2>",
        _paragraph("note", _reason(metrics)),
        _results_table(metrics),
        "<h2>What was pasted</h2>",
        *_gallery(settings, dataset),
        f"<h2>Images of the {PARTS[part]} part with the highest scores</h2>",
        *_ranked(detector, dataset, part, chosen, highest=True),
        f"<h2>Images of the {PARTS[part]} part with the lowest scores</h2>",
        *_ranked(detector, dataset, part, chosen, highest=False),
        _paragraph("note", _explain_maps(detector)),
        "<h2>Settings</h2>",
        _settings_table(metrics),
    ]
    body = "\n".join(sections)
    write_text(
        folder / REPORT,
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n",
    )


def _headline(metrics: dict[str, Any]) -> str:
    if metrics["test"] is None:
        return f"AUC {metrics['selected']['auc']:.3f} on validation, nothing tested"
    return f"test AUC {_result(metrics, 'selected')['auc']:.3f}"


def _result(metrics: dict[str, Any], which: str) -> dict[str, Any]:
    """Return what a choice reached on the test part."""
    choice = metrics[which]
    result: dict[str, Any] = metrics["test"][choice["network"]][choice["score"]]
    return result


def _name(choice: dict[str, Any]) -> str:
    network = {"both": "both networks", "trained": "the trained network"}
    words = network.get(choice["network"], "the untrained network")
    return f"{words}, {NAMES[choice['score']]}"


def _lead(metrics: dict[str, Any]) -> str:
    chosen = metrics["selected"]
    told = f"Scored by {_name(chosen)}"
    if chosen.get("epoch"):
        told += f" (epoch {chosen['epoch']})"
    if metrics["test"] is None:
        return f"{told}. There is no test part with both classes."
    result = _result(metrics, "selected")
    return (
        f"95 % interval {_interval(result['auc_interval'])}, average precision "
        f"{result['ap']:.3f}. {told}. Before training: "
        f"{_result(metrics, 'without_training')['auc']:.3f}."
    )


def _reason(metrics: dict[str, Any]) -> str:
    chosen, other = metrics["selected"], metrics["without_labels"]
    if chosen["by"] == "pasted":
        return (
            f"There are no abnormal images to validate on. Of the by-place scores, if there are "
            f"any, the chosen one told the validation normals best from themselves with something "
            f"pasted in (AUC {chosen['auc']:.3f}); the threshold is the value that "
            f"{100 * CALLED:.0f} % of them stay below."
        )
    text = (
        f"Chosen: {_name(chosen)}, whose AUC on the validation part was the greatest "
        f"({chosen['auc']:.3f}). Without its labels, {_name(other)} would have been chosen "
        f"({other['auc']:.3f} between its normals and themselves with something pasted in)"
    )
    if metrics["test"] is None:
        return text + "."
    return (
        f"{text}, which reaches {_result(metrics, 'without_labels')['auc']:.3f} on the test part."
    )


def _explain_maps(detector: Detector) -> str:
    percent = "The percentage is that of the training normals that score lower."
    if not has_map(detector):
        return f"{NO_MAP[0].upper()}{NO_MAP[1:]}. {percent}"
    what = "Grad-CAM of its score, scaled to its own maximum"
    if has_places(detector):
        what = (
            f"where its score comes from. It is the sum of {len(detector.usual_shares)} places' "
            "shares. A place is the redder, the more its share lies above the mean of the "
            "validation normals, and half red, in every image alike, where by a standard deviation "
            "of the training normals' scores; what lies below is not shown. All together make what "
            "the score lies above or below that of these normals"
        )
    return f"Below each image, as the network sees it: {what}. {percent}"


def _results_table(metrics: dict[str, Any]) -> str:
    """Return, for each score and network, the AUC on the test and on the validation part."""
    networks = list(metrics["validation"]["pasted"])
    kind = "labels" if "labels" in metrics["validation"] else "pasted"
    measured = [("valid", metrics["validation"][kind])]
    if metrics["test"] is not None:
        tested = {
            network: {
                s: f"{r['auc']:.3f} ({_interval(r['auc_interval'])})" for s, r in found.items()
            }
            for network, found in metrics["test"].items()
        }
        measured.insert(0, ("test", tested))
    head = ["score"] + [f"{network}: {part}" for network in networks for part, _ in measured]
    chosen = metrics["selected"]
    rows = []
    for name, words in NAMES.items():
        cells = [found.get(network, {}).get(name) for network in networks for _, found in measured]
        if any(cell is not None for cell in cells):
            mark = " (chosen)" if name == chosen["score"] else ""
            shown = ["" if c is None else c if isinstance(c, str) else f"{c:.3f}" for c in cells]
            rows.append([words + mark, *shown])
    return f'<div class="wide">{_table(rows, head)}</div>'


def _settings_table(metrics: dict[str, Any]) -> str:
    environment = dict(metrics["environment"])
    versions = environment.pop("versions")
    data = metrics["evaluated"] or metrics["data"]
    shares = [record["augmentation_share"] for record in metrics["epochs"]]
    rows = [
        *metrics["settings"].items(),
        ("data", f"{data['layout']} layout"),
        *((f"{part} images", count) for part, count in data["images"].items()),
        ("files skipped", len(data["skipped"])),
        ("minutes of training", f"{metrics['seconds'] / 60:.1f}"),
        ("minutes with validation", f"{metrics['wall_seconds'] / 60:.1f}"),
        *([("share of it for augmentation", f"{100 * np.mean(shares):.1f} %")] if shares else []),
        *environment.items(),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return _table([(str(name).replace("_", " "), value) for name, value in rows])


def _draw_roc(
    axes: Axes,
    truth: npt.NDArray[np.bool_],
    scores: AllScores,
    metrics: dict[str, Any],
    published: float | None,
) -> None:
    for which, label, color in (
        ("selected", "chosen", BLUE),
        ("without_labels", "chosen without labels", ORANGE),
        ("without_training", "untrained", GRAY),
    ):
        choice = metrics[which]
        false, true, _ = roc_curve(truth, scores[choice["network"]][choice["score"]])
        told = f"{label} ({choice['network']} {choice['score']})"
        axes.plot(false, true, color=color, label=f"{told}: {np.trapezoid(true, false):.3f}")
    if published is not None:
        # A binormal curve of that area: the paper gives the area, not the points.
        normal = NormalDist()
        shift = math.sqrt(2) * normal.inv_cdf(published)
        false = [index / 200 for index in range(1, 200)]
        true = [normal.cdf(shift + normal.inv_cdf(value)) for value in false]
        label = f"AnatPaste, published area {published:.3f}; shape assumed binormal"
        axes.plot(false, true, color=GREEN, linestyle="--", label=label)
    axes.plot([0, 1], [0, 1], color="#cbd5e0", linewidth=1)
    axes.set(
        title="ROC on the test part", xlabel="false positive rate", ylabel="true positive rate"
    )
    axes.set_aspect("equal")
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
    axes.legend(**below, fontsize=8, title="area under the curve", title_fontsize=8)


def _draw_histogram(
    axes: Axes,
    truth: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    metrics: dict[str, Any],
    part: str,
) -> None:
    # The tail of a few outliers would squeeze all the others into one bar.
    low, high = np.quantile(scores, (0.005, 0.995))
    edges = np.linspace(low, high, 31)
    for kind, label, color in ((False, "normal", BLUE), (True, "abnormal", ORANGE)):
        values = scores[truth == kind].clip(low, high)
        if len(values):
            label = f"{label} ({len(values)})"
            axes.hist(values, edges.tolist(), color=color, alpha=0.6, label=label)
    axes.axvline(metrics["threshold"], color="#1a202c", linestyle=":", label="threshold")
    chosen = metrics["selected"]
    axes.set(
        title=f"Scores of the {PARTS[part]} part",
        xlabel=f"score ({chosen['network']} {chosen['score']})",
        ylabel="images",
    )
    axes.legend(loc="upper right", fontsize=8)


def _draw_losses(axes: Axes, epochs: list[dict[str, Any]]) -> None:
    axes.plot([r["epoch"] for r in epochs], [r["loss"] for r in epochs], color=BLUE, marker=".")
    axes.set(title="Training loss", xlabel="epoch", ylabel="loss")
    axes.set_ylim(bottom=0)
    _whole_ticks(axes)


def _draw_validation(axes: Axes, epochs: list[dict[str, Any]]) -> None:
    """Draw the validation AUC of the best scores of the trained network."""
    measured = [record for record in epochs if "valid" in record]
    last = measured[-1]["valid"]
    for name in sorted(last, key=lambda name: -last[name])[:DRAWN]:
        axes.plot(
            [record["epoch"] for record in measured],
            [record["valid"][name] for record in measured],
            marker=".",
            label=NAMES[name],
        )
    axes.set(title="Validation", xlabel="epoch", ylabel="AUC")
    axes.legend(loc="lower right", fontsize=8)
    _whole_ticks(axes)


def _whole_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _plot(draw: Callable[[Axes], None]) -> str:
    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    text = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return f'<img alt="{html.escape(axes.get_title())}" src="{_uri("svg+xml", text.getvalue())}">'


def _gallery(settings: Settings, dataset: Dataset) -> Iterable[str]:
    """Show originals, every class that is made of them, and how opaque what was pasted is."""
    count = min(SHOWN, len(dataset.images["train"]))
    images = torch.from_numpy(np.array(dataset.images["train"][:count]))[:, None]
    masks = None
    if "train" in dataset.masks:
        masks = torch.from_numpy(np.array(dataset.masks["train"][:count]))[:, None].bool()
    generator = torch.Generator().manual_seed(settings.seed)
    inputs, labels, alpha = Augmenter(settings)(images, masks, generator)
    titles = {
        "anatpaste": ("AnatPaste",),
        "cutpaste": ("CutPaste",),
        "scar": ("CutPaste scar",),
        "union": ("CutPaste, normal or scar",),
        "3way": ("CutPaste normal", "CutPaste scar"),
        "opacity": ("opacities",),
        "mix": ("opacities, or AnatPaste",),
    }[settings.variant]
    yield _row((image, "original") for image in inputs[labels == 0][:, 0].numpy())
    for number, title in enumerate(titles, 1):
        yield _row((image, title) for image in inputs[labels == number][:, 0].numpy())
        yield _row((image, "alpha") for image in alpha[labels == number][:, 0].numpy())


def _ranked(
    detector: Detector,
    dataset: Dataset,
    part: str,
    scores: npt.NDArray[np.float64],
    *,
    highest: bool,
) -> Iterable[str]:
    order = np.argsort(-scores if highest else scores, kind="stable")[:SHOWN]
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


def _row(images: Iterable[tuple[Images, str]]) -> str:
    figures = []
    for image, caption in images:
        data = io.BytesIO()
        Image.fromarray(image).save(data, "png")
        text = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
        alt = html.escape(caption.partition("\n")[0] or "heat map")
        figures.append(
            f'<figure><img alt="{alt}" src="{_uri("png", data.getvalue())}">{text}</figure>'
        )
    return f'<div class="row">{"".join(figures)}</div>'


def _paragraph(kind: str, text: str) -> str:
    return f'<p class="{kind}">{_text(text)}</p>'


def _text(text: str) -> str:
    """Turn a text into HTML: all that reaches a page goes through here or through `html.escape`."""
    return html.escape(text).replace("\n", "<br>")


def _table(rows: Iterable[Iterable[Any]], head: Iterable[str] = ()) -> str:
    def line(cells: Iterable[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(str(c))}</{tag}>" for c in cells) + "</tr>"

    top = line(head, "th")
    return f"<table>{top if head else ''}{''.join(line(row, 'td') for row in rows)}</table>"


def _interval(pair: list[float]) -> str:
    return f"{pair[0]:.3f}-{pair[1]:.3f}"


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
