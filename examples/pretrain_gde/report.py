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
from scipy import ndimage
from sklearn.metrics import roc_curve

from examples.pretrain_gde.augment import Augmenter
from examples.pretrain_gde.data import Dataset, Images
from examples.pretrain_gde.density import ESTIMATORS
from examples.pretrain_gde.evaluate import DETECTOR, SCORES, Detector, load_metrics, read_scores
from examples.pretrain_gde.heatmap import heat_maps, overlay
from examples.pretrain_gde.readers import PUBLISHED_AUC
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.storage import write_text

REPORT = "report.html"
NAMES = {"kde": "kernel density", "gaussian": "single Gaussian"}
CHANGED = (
    "Warning: these numbers are of other images or labels than the run was made with "
    "(evaluate --changed-images)."
)
SHOWN = 6  # images in a row
BLUE, ORANGE, GREY, GREEN = "#2b6cb0", "#c05621", "#718096", "#2f855a"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a202c; background: #fff; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.lead { font-size: 1.1rem; margin-top: .2rem; } p.note { color: #4a5568; font-size: .9rem; }
p.warning { border-left: .3rem solid #c05621; padding-left: .6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #e2e8f0;
         vertical-align: top; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
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
    truth = dataset.labels("test")
    scores = read_scores(folder / SCORES, truth)
    settings = Settings(**metrics["settings"])
    known = PUBLISHED_AUC.get(published or dataset.split.layout)
    chosen = metrics["selected"]["estimator"]
    test = metrics["test"][chosen]
    before = metrics["untrained"]
    title = f"{settings.variant}, seed {settings.seed}: test AUC {test['auc']:.3f}"
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        _paragraph(
            "lead",
            f"95 % interval {_interval(test['auc_interval'])}, average precision "
            f"{test['ap']:.3f}. Scored by the {NAMES[chosen]} after epoch "
            f"{metrics['selected']['epoch']}, both chosen on the validation part. Before training: "
            f"{before['test'][before['estimator']]['auc']:.3f}.",
        ),
        _paragraph("note", "For research, not for diagnosis."),
        *([_paragraph("warning", CHANGED)] if metrics["evaluated"] else []),
        _results_table(metrics),
        '<div class="plots">',
        _plot(lambda axes: _draw_roc(axes, truth, scores, chosen, before["estimator"], known)),
        _plot(lambda axes: _draw_histogram(axes, truth, scores[chosen], metrics, chosen)),
        _plot(lambda axes: _draw_losses(axes, metrics["epochs"])),
        _plot(lambda axes: _draw_validation(axes, metrics["epochs"], metrics["selected"])),
        "</div>",
        "<h2>What the network learnt to tell apart</h2>",
        *_gallery(settings, dataset),
        "<h2>Test images with the highest scores</h2>",
        *_ranked(detector, dataset, scores[chosen], highest=True),
        "<h2>Test images with the lowest scores</h2>",
        *_ranked(detector, dataset, scores[chosen], highest=False),
        '<p class="note">Below each image: Grad-CAM of its score, scaled to its own maximum. The '
        "share is that of the training normals that score lower.</p>",
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


def _results_table(metrics: dict[str, Any]) -> str:
    rows = []
    for label, results in (
        ("trained", metrics["test"]),
        ("untrained", metrics["untrained"]["test"]),
    ):
        for name in ESTIMATORS:
            result = results[name]
            rows.append(
                (
                    label,
                    NAMES[name],
                    f"{result['auc']:.3f} ({_interval(result['auc_interval'])})",
                    f"{result['ap']:.3f} ({_interval(result['ap_interval'])})",
                )
            )
    head = ("network", "estimator", "test AUC (95 %)", "test average precision (95 %)")
    return _table(rows, head)


def _settings_table(metrics: dict[str, Any]) -> str:
    environment = dict(metrics["environment"])
    versions = environment.pop("versions")
    data = metrics["evaluated"] or metrics["data"]
    share = np.mean([record["augmentation_share"] for record in metrics["epochs"]])
    rows = [
        *metrics["settings"].items(),
        ("data", f"{data['layout']} layout"),
        *((f"{part} images", count) for part, count in data["images"].items()),
        ("files skipped", len(data["skipped"])),
        ("minutes of training", f"{metrics['seconds'] / 60:.1f}"),
        ("minutes with validation", f"{metrics['wall_seconds'] / 60:.1f}"),
        ("share of it for augmentation", f"{100 * share:.1f} %"),
        *environment.items(),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return _table([(str(name).replace("_", " "), value) for name, value in rows])


def _draw_roc(
    axes: Axes,
    truth: npt.NDArray[np.bool_],
    scores: dict[str, npt.NDArray[np.float64]],
    chosen: str,
    before: str,
    published: float | None,
) -> None:
    other = next(name for name in ESTIMATORS if name != chosen)
    for column, label, colour in (
        (chosen, f"{NAMES[chosen]} (chosen)", BLUE),
        (other, NAMES[other], ORANGE),
        (f"untrained_{before}", "untrained", GREY),
    ):
        false, true, _ = roc_curve(truth, scores[column])
        axes.plot(false, true, color=colour, label=f"{label}: {np.trapezoid(true, false):.3f}")
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
    axes.legend(loc="lower right", fontsize=8, title="area under the curve", title_fontsize=8)


def _draw_histogram(
    axes: Axes,
    truth: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.float64],
    metrics: dict[str, Any],
    chosen: str,
) -> None:
    # The tail of a few outliers would squeeze all the others into one bar.
    low, high = np.quantile(scores, (0.005, 0.995))
    edges = np.linspace(low, high, 31)
    for kind, label, colour in ((False, "normal", BLUE), (True, "abnormal", ORANGE)):
        values = scores[truth == kind].clip(low, high)
        axes.hist(values, edges.tolist(), color=colour, alpha=0.6, label=f"{label} ({len(values)})")
    threshold = metrics["thresholds"][chosen]
    axes.axvline(threshold, color="#1a202c", linestyle=":", label="threshold from validation")
    axes.set(title="Scores of the test part", xlabel=f"score ({NAMES[chosen]})", ylabel="images")
    axes.legend(fontsize=8)


def _draw_losses(axes: Axes, epochs: list[dict[str, Any]]) -> None:
    axes.plot([r["epoch"] for r in epochs], [r["loss"] for r in epochs], color=BLUE, marker=".")
    axes.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy")
    axes.set_ylim(bottom=0)
    _whole_ticks(axes)


def _draw_validation(axes: Axes, epochs: list[dict[str, Any]], selected: dict[str, Any]) -> None:
    measured = [record for record in epochs if "valid" in record]
    for name, colour in zip(ESTIMATORS, (ORANGE, BLUE), strict=True):
        axes.plot(
            [record["epoch"] for record in measured],
            [record["valid"][name] for record in measured],
            color=colour,
            marker=".",
            label=NAMES[name],
        )
    point = (selected["epoch"], selected["valid_auc"])
    axes.plot(*point, "o", markersize=11, fillstyle="none", color="#1a202c", label="chosen")
    axes.set(title="Validation", xlabel="epoch", ylabel="AUC")
    axes.legend(fontsize=8)
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
    """Show originals, and every class that is made of them, with the change outlined."""
    count = min(SHOWN, len(dataset.images["train"]))
    images = torch.from_numpy(np.array(dataset.images["train"][:count]))[:, None]
    masks = None
    if dataset.masks is not None:
        masks = torch.from_numpy(np.array(dataset.masks[:count]))[:, None].bool()
    generator = torch.Generator().manual_seed(settings.seed)
    inputs, labels = Augmenter(settings)(images, masks, generator)
    originals = inputs[labels == 0][:, 0].numpy()
    titles = {
        "anatpaste": ("AnatPaste",),
        "cutpaste": ("CutPaste",),
        "scar": ("CutPaste scar",),
        "union": ("CutPaste, normal or scar",),
        "3way": ("CutPaste normal", "CutPaste scar"),
    }[settings.variant]
    yield _row((image, "original") for image in originals)
    for number, title in enumerate(titles, 1):
        augmented = inputs[labels == number][:, 0].numpy()
        yield _row((image, title) for image in augmented)
        yield _row(
            (_outlined(image, image != original), "what changed")
            for image, original in zip(augmented, originals, strict=True)
        )


def _outlined(image: Images, changed: npt.NDArray[np.bool_]) -> Images:
    filled = ndimage.binary_closing(np.pad(changed, 2), iterations=2)[2:-2, 2:-2]
    edge = filled & ~ndimage.binary_erosion(filled)
    colour = np.repeat(image[..., None], 3, 2)
    colour[edge] = (255, 140, 0)
    return colour


def _ranked(
    detector: Detector,
    dataset: Dataset,
    scores: npt.NDArray[np.float64],
    *,
    highest: bool,
) -> Iterable[str]:
    order = np.argsort(-scores if highest else scores, kind="stable")[:SHOWN]
    images = np.array(dataset.images["test"][order])
    normal = detector.normal_scores[detector.estimator]
    captions = []
    for index in order:
        percentile = 100 * np.searchsorted(normal, scores[index]) / len(normal)
        entry = dataset.split.test[index]
        kind = "abnormal" if entry.abnormal else "normal"
        told = f"{kind}, {scores[index]:.7g}, above {percentile:.0f} %"
        captions.append(f"{told}\n{Path(entry.path).name}")
    maps = heat_maps(detector, images)
    yield _row(zip(images, captions, strict=True))
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
