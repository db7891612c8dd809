"""
One picture for each option
===========================

The same draw of AnatPaste on the same image, one option changed at a time. Two numbers are a range
to draw from; a single one, as here, is a fixed value. Every option has the same name and meaning in
the function, the transform and the batched module.
"""

# %%

import matplotlib.pyplot as plt

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph

image = phantom_radiograph(256, rng=1)
mask = ap.lung_mask_robust(image)
fixed = {"scale": 0.08, "ratio": 0.7, "blur": 4, "opacity": 220, "jitter": 0}


def vary(option, *values, **others):
    """Show the same paste with several values of one option."""
    figure, axes = plt.subplots(1, len(values), figsize=(9, 3.4), layout="constrained")
    for axis, value in zip(axes, values):
        options = {**fixed, **others, option: value}
        pasted, region = ap.anatpaste(image, rng=21, mask=mask, return_mask=True, **options)
        axis.imshow(pasted, cmap="gray", vmin=0, vmax=255)
        if region.any():
            axis.contour(region, [0.5], colors="tab:orange", linewidths=0.7)
        axis.set_title(f"{option}={value:.3g}" if value is not None else f"{option}=None")
        axis.axis("off")


# %%
# ``scale``: area of the patch, as a share of the image's. Published: 0.02 to 0.15.

vary("scale", 0.02, 0.08, 0.15)

# %%
# ``ratio``: width of the patch over its height. Published: 0.3 to 1/0.3.

vary("ratio", 0.3, 1, 1 / 0.3)

# %%
# ``blur``: radius of the blur of alpha, in pixels of a 256 x 256 image. Published: 0 to 14.

vary("blur", 0, 7, 14)

# %%
# ``opacity``: alpha inside the shape, of 255. Published: 150 to 254.

vary("opacity", 100, 180, 254)

# %%
# ``margin``: by how much the shape is smaller than the patch on every side. Published: 10.

vary("margin", 0, 10, 25)

# %%
# ``jitter``: how far brightness and contrast of the patch are scaled. Published: 0.1.

vary("jitter", 0, 0.1, 0.5)

# %%
# ``lengths_for``: the side of the images that ``blur`` and ``margin`` are meant for; they are scaled
# to the image at hand. Here the image has 256 pixels; lengths meant for 64 grow fourfold. ``None``
# takes them as pixels. See :doc:`sizes`.

vary("lengths_for", 64, 256, None)

# %%
# ``mask`` and ``segment``: where pastes may go: a mask that is already there, or a function that
# makes one. See :doc:`masks` and :doc:`head`. Transforms and modules have ``p`` besides, the
# probability of a paste.
#
# CutPaste
# --------
#
# The baselines do not use lungs. *Normal* has ``scale``, ``ratio`` and ``jitter``, as above;
# *scar* has ``width``, ``height`` and ``angle``; *union* is one or the other.

figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
scars = {"as published": {}, "width=16": {"width": 16}, "angle=45": {"angle": 45, "height": 25}}
for axis, (title, options) in zip(axes, scars.items()):
    pasted, region = ap.cutpaste_scar(image, rng=4, return_mask=True, **options)
    axis.imshow(pasted, cmap="gray", vmin=0, vmax=255)
    axis.contour(region, [0.5], colors="tab:orange", linewidths=0.7)
    axis.set_title(f"scar, {title}")
    axis.axis("off")
