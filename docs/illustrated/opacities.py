"""
Opacities that look like disease
================================

`anatpaste_aug.opacity` brightens a part of the lungs with soft, irregular borders: no pixel gets
darker, and none brighter than the tissue around the lungs.
"""

# %%
# ``kinds``
# ---------

import matplotlib.pyplot as plt

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph


def show(pictures, columns):
    """Show images in rows."""
    rows = len(pictures) // columns
    figure, axes = plt.subplots(
        rows, columns, figsize=(9, 9.6 / columns * rows), layout="constrained", squeeze=False
    )
    for axis, (title, picture) in zip(axes.flat, pictures):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title)
        axis.axis("off")


before, after = [], []
for kind, seed in {"consolidation": 3, "haze": 4, "nodule": 7, "effusion": 22}.items():
    image = phantom_radiograph(384, rng=seed)
    mask = ap.lung_mask_robust(image)
    before.append(("before", image))
    after.append((kind, ap.opacity(image, rng=seed, mask=mask, kinds=kind)))
show(before + after, columns=4)

# %%
# ``size``: factor of all lengths
# -------------------------------

image = phantom_radiograph(256, rng=3)
mask = ap.lung_mask_robust(image)


def lesion(**options):
    return ap.opacity(image, rng=3, mask=mask, kinds="consolidation", **options)


show([(f"size={size}", lesion(size=size)) for size in (0.4, 1, 1.6)], columns=3)

# %%
# ``density``: factor of alpha
# ----------------------------

show([(f"density={density}", lesion(density=density)) for density in (0.4, 1, 1.6)], columns=3)

# %%
# Alpha is soft ground truth
# --------------------------
#
# It is what a segmentation or a heat map can be compared with. Outside the mask it fades within a few
# pixels, so masks that follow the lungs' borders look best: use `anatpaste_aug.lung_mask_robust`.

drawn = ap.sample_opacity(mask, rng=3, kinds="consolidation")
print(drawn)
pasted = ap.apply_opacity(image, drawn, mask)
show([("before", image), ("after", pasted), ("alpha", ap.opacity_alpha(drawn, mask))], columns=3)
