"""
Sizes from 64 to 1024
=====================

The published lengths, blur and margin, are pixels of a 256 x 256 image. Here they scale with the
image (``lengths_for=256``), so that a paste looks the same at every size. With ``lengths_for=None``
they are pixels of the image as it is, which is what the released code does: at 64 pixels next to
nothing is pasted, at 1024 edges are hard.
"""

# %%

import matplotlib.pyplot as plt

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph

SIZES = (64, 128, 256, 512, 1024)


def rows(**options):
    """Paste at every size, with the lengths scaled, and as they are."""
    figure, axes = plt.subplots(2, len(SIZES), figsize=(9, 4.4), layout="constrained")
    for row, lengths_for in zip(axes, (256, None)):
        for axis, size in zip(row, SIZES):
            image = phantom_radiograph(size, rng=2)
            mask = ap.lung_mask_robust(image)
            pasted, region = ap.anatpaste(
                image, rng=17, mask=mask, lengths_for=lengths_for, return_mask=True, **options
            )
            axis.imshow(pasted, cmap="gray", vmin=0, vmax=255)
            axis.set_title(f"{size}: {region.mean():.1%}", fontsize=10)
            axis.axis("off")
        place = {"rotation": 90, "va": "center", "transform": row[0].transAxes}
        row[0].text(-0.16, 0.5, f"lengths_for={lengths_for}", **place)


rows(scale=0.06, ratio=1, blur=6, opacity=240)

# %%
# The numbers are the share of the image that changed. What is drawn at one size is not what is drawn
# at another, as another mask has other pixels: compare how the pastes look, not where they are.
#
# ``min_area`` of `anatpaste_aug.lung_mask` stays in pixels, as published: regions of fewer than 400
# pixels are removed. Below 256 pixels give a smaller one, in proportion.

for size in SIZES:
    image = phantom_radiograph(size, rng=2)
    scaled = round(400 * (size / 256) ** 2)
    masks = ap.lung_mask(image), ap.lung_mask(image, min_area=scaled)
    print(f"{size:5}: {masks[0].mean():6.1%} of the image, {masks[1].mean():6.1%} with {scaled}")

# %%
# Sides need not be equal, nor multiples of anything; 16 pixels are the least.

wide = phantom_radiograph((200, 317), rng=2)
plt.figure(figsize=(6, 3.9), layout="constrained")
plt.imshow(ap.opacity(wide, rng=3, segment=ap.lung_mask_robust, kinds="consolidation"), cmap="gray")
plt.axis("off")
