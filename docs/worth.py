"""Draw the pictures of what a detection figure is worth: ``python docs/worth.py``."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import anatpaste_aug as ap  # noqa: E402
from anatpaste_aug.data import phantom_radiograph  # noqa: E402
from examples.pretrain_gde.data import Dataset  # noqa: E402
from examples.pretrain_gde.detector import fit_detector  # noqa: E402
from examples.pretrain_gde.heatmap import heat_maps, overlay  # noqa: E402
from examples.pretrain_gde.metrics import measure, measure_adjusted  # noqa: E402
from examples.pretrain_gde.model import seeded_network  # noqa: E402
from examples.pretrain_gde.readers import Entry, Split  # noqa: E402
from examples.pretrain_gde.settings import PRESETS, Settings  # noqa: E402
from examples.pretrain_gde.shortcuts import WORDS, describe  # noqa: E402

BLUE, ORANGE = "#2b6cb0", "#c05621"
COUNT = 300
PAPER = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.5}


def save(figure, name):
    """Write a picture in few colors, for a small file."""
    figure.savefig(HERE / f"{name}.png", dpi=110, pil_kwargs={"optimize": True})


def scatter(axes, x, y, truth):
    """Draw normals and abnormal images as points."""
    for kind, label, color in ((True, "abnormal", ORANGE), (False, "normal", BLUE)):
        axes.scatter(x[truth == kind], y[truth == kind], 10, color, alpha=0.6, label=label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xticks=[], yticks=[])


# A shortcut: half of the phantoms show opacities, and these were taken with another exposure.
rng = np.random.default_rng(0)
truth = np.arange(2 * COUNT) >= COUNT
images, brightness = [], []
for ill in truth:
    image = phantom_radiograph(96, rng, abnormal=ill)
    image = (image * (1 + rng.normal(-0.14 if ill else 0.0, 0.06))).clip(0, 255).astype(np.uint8)
    images.append(image)
    brightness.append(dict(zip(WORDS, describe(image, image, 1), strict=True))["brightness"])
brightness = np.array(brightness)
alone = measure(-brightness, truth)["auc"]
figure, axes = plt.subplots(1, 3, figsize=(8, 2.5), layout="constrained", width_ratios=[1, 1, 1.7])
for axis, kind, title in zip(axes, (False, True), ("normal", "abnormal"), strict=False):
    chosen = np.flatnonzero(truth == kind)
    middle = chosen[np.argsort(brightness[chosen])[COUNT // 2]]
    axis.imshow(images[middle], cmap="gray", vmin=0, vmax=255)
    axis.set_title(f"{title}, of median brightness", fontsize=9)
    axis.axis("off")
bins = np.linspace(brightness.min(), brightness.max(), 25)
for kind, label, color in ((False, "normal", BLUE), (True, "abnormal", ORANGE)):
    axes[2].hist(brightness[truth == kind], bins, color=color, alpha=0.6, label=label)
axes[2].set_title(f"brightness alone: AUC {alone:.2f}", fontsize=9)
axes[2].set(yticks=[], xlabel="brightness")
axes[2].spines[["top", "right", "left"]].set_visible(False)
axes[2].legend(fontsize=8)
save(figure, "shortcut")

# An adjusted AUC: of a score that sees the exposure alone, and of one that sees disease too.
exposure = -(brightness - brightness[~truth].mean()) / brightness[~truth].std()
noise = np.random.default_rng(9)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.9), layout="constrained", sharey=True)
for axis, real, title in zip(axes, (0.0, 2.0), ("the exposure alone", "disease, too"), strict=True):
    scores = exposure + noise.normal(size=truth.size) + real * truth
    scatter(axis, brightness, scores, truth)
    line = np.polyfit(brightness[~truth], scores[~truth], 1)  # the scores' are straight here
    ends = np.array([brightness.min(), brightness.max()])
    axis.plot(ends, np.polyval(line, ends), color=BLUE, linewidth=1)
    plain = measure(scores, truth)["auc"]
    adjusted = measure_adjusted(scores, truth, brightness)["auc"]
    axis.set_title(f"sees {title}: AUC {plain:.2f}, adjusted {adjusted:.2f}", fontsize=9)
    axis.set(xlabel="brightness", ylabel="score" if real == 0 else "")
axes[0].legend(fontsize=8)
save(figure, "adjusted")

# A place's share: of an untrained network's score by place, fitted to phantoms.
settings = Settings(**{**PRESETS["laptop"], "epochs": 0})
parts = {"train": range(120), "valid": range(120, 160)}
images, masks = {}, {}
for part, seeds in parts.items():
    films = [phantom_radiograph(256, np.random.default_rng(seed)) for seed in seeds]
    seen, _, lungs = zip(*map(settings.view_with_mask.see, films), strict=True)
    images[part], masks[part] = np.stack(seen), np.stack(lungs).astype(np.uint8)
entries = {part: tuple(Entry(str(seed), False) for seed in seeds) for part, seeds in parts.items()}
dataset = Dataset(Split("normals", **entries, test=()), images, masks, ())
detector, _ = fit_detector({"untrained": seeded_network(settings)}, settings, dataset)
film = phantom_radiograph(256, np.random.default_rng(500))
mask = ap.lung_mask_robust(film)
params = ap.sample_opacity(mask, np.random.default_rng(4), kinds="consolidation", size=1.3)
image = settings.view.see(ap.apply_opacity(film, params, mask))[0][None]
shares = (detector.shares(image)[0] - detector.usual_shares).reshape(4, 4)
above = detector.score(image)[0] - detector.usual_shares.sum()
figure, axes = plt.subplots(1, 3, figsize=(8, 3.1), layout="constrained")
for axis in axes:
    axis.imshow(image[0], cmap="gray", vmin=0, vmax=255)
    axis.axis("off")
axes[0].set_title(f"score: {above:.3f} above that of normals", fontsize=9)
side = image.shape[1] / 4
for (row, column), share in np.ndenumerate(shares):
    center = (side * (column + 0.5) - 0.5, side * (row + 0.5) - 0.5)
    axes[1].annotate(f"{share:+.3f}", center, ha="center", va="center", fontsize=8, bbox=PAPER)
for edge in np.arange(1, 4) * side - 0.5:
    axes[1].axvline(edge, color="yellow", linewidth=0.5)
    axes[1].axhline(edge, color="yellow", linewidth=0.5)
axes[1].set_title(f"16 places' shares of it: sum {shares.sum():.3f}", fontsize=9)
axes[2].imshow(overlay(image[0], heat_maps(detector, image)[0]))
axes[2].set_title("the map", fontsize=9)
save(figure, "shares")
