"""Draw the pictures of what a detection figure is worth: ``python docs/worth.py``."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from anatpaste_aug.data import phantom_radiograph  # noqa: E402
from examples.pretrain_gde.metrics import measure, measure_adjusted  # noqa: E402
from examples.pretrain_gde.shortcuts import WORDS, describe  # noqa: E402

BLUE, ORANGE = "#2b6cb0", "#c05621"
COUNT = 300


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
figure, axes = plt.subplots(1, 2, figsize=(8, 2.9), layout="constrained", sharey=True)
for axis, real, title in zip(axes, (0.0, 2.0), ("the exposure alone", "disease, too"), strict=True):
    scores = exposure + rng.normal(size=truth.size) + real * truth
    scatter(axis, brightness, scores, truth)
    line = np.polyfit(brightness[~truth], scores[~truth], 1)
    ends = np.array([brightness.min(), brightness.max()])
    axis.plot(ends, np.polyval(line, ends), color=BLUE, linewidth=1)
    plain = measure(scores, truth)["auc"]
    adjusted = measure_adjusted(scores, truth, brightness)["auc"]
    axis.set_title(f"sees {title}: AUC {plain:.2f}, adjusted {adjusted:.2f}", fontsize=9)
    axis.set(xlabel="brightness", ylabel="score" if real == 0 else "")
axes[0].legend(fontsize=8)
save(figure, "adjusted")
