"""
Both lung masks, good and bad
=============================

`anatpaste_aug.lung_mask` is the published one: dark regions after equalization. It is rough, and
results that are to equal the paper's need it. `anatpaste_aug.lung_mask_robust` fits a shape model of
both lungs. Against lungs drawn by radiologists on 138 adult radiographs its mean Dice is 0.95, the
published mask's 0.76 (``benchmarks/RESULTS.md`` in the repository says how that was measured).
"""

# %%
# Good cases
# ----------

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph


def show(pictures):
    """Outline both masks in each picture: blue published, orange robust."""
    columns = len(pictures)
    figure, axes = plt.subplots(2, columns, figsize=(9, 18.6 / columns), layout="constrained")
    for column, (title, picture) in zip(axes.T, pictures.items()):
        robust, quality = ap.lung_mask_robust(picture, return_quality=True)
        masks = {
            "published": (ap.lung_mask(picture), "tab:cyan"),
            f"robust, quality {quality:.2f}": (robust, "tab:orange"),
        }
        for axis, (name, (mask, color)) in zip(column, masks.items()):
            axis.imshow(picture, cmap="gray")
            if mask.any():
                axis.contour(mask, [0.5], colors=color, linewidths=0.8)
            axis.set_title(f"{title}\n{name}: {mask.mean():.0%}", fontsize=10)
            axis.axis("off")


show({f"phantom {seed}": phantom_radiograph(256, rng=seed) for seed in (0, 1, 2)})

# %%
# Bad cases for the published mask
# --------------------------------
#
# Ribs cut it up, the more so in noise. Where the lungs touch the border, they are cleared away with
# it. What is bright inside them, disease above all, is left out.

image = phantom_radiograph(320, rng=7)
edge = image[60:300, 58:262]  # the field ends at the lungs
dense = ap.opacity(image, rng=3, segment=ap.lung_mask_robust, kinds="consolidation", density=2)
rng = np.random.default_rng(0)
noisy = np.clip(image + rng.normal(0, 40, image.shape), 0, 255).astype(np.uint8)
show({"tight field": edge, "with a lesion": dense, "noisy": noisy})

# %%
# Bad cases for the robust mask
# -----------------------------
#
# It looks for an upright pair of lungs and always outlines one, wherever it fits best. In an image
# that is turned, transposed or no chest, what it outlines means nothing: it warns where the
# quality of what it found is below 0.5. ``return_quality=True``, as here, returns the quality instead.
# A good quality is no proof of a good mask. Bring images upright first.

tilted = np.asarray(Image.fromarray(image).rotate(25, Image.Resampling.BILINEAR))
y, x = np.mgrid[-1:1:256j, -1:1:256j]
disc = (255 * np.exp(-4 * (np.hypot(x, y) - 0.5) ** 2)).astype(np.uint8)
show({"tilted by 25 degrees": tilted, "on its side": np.rot90(image), "no chest": disc})

# %%
# Either mask plugs in everywhere: ``segment=ap.lung_mask_robust``, or ``mask=`` for one that is
# already there. An empty mask lets the paste go anywhere; nothing is said, so look at your images
# first. The preview counts and names those without lungs::
#
#     python -m anatpaste_aug preview radiographs/ --mask robust
