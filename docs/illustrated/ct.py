"""
Another modality: a slice of CT
===============================

Signed 16-bit images in Hounsfield units are taken as they are, and stay so. This slice is drawn by
code: air around the body is -1024, lungs about -850, soft tissue about 40, bone up to 700.
"""

# %%

import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage

import anatpaste_aug as ap


def ct_slice(size, rng):
    """Draw an axial slice of a chest in Hounsfield units, int16."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]

    def oval(center_x, center_y, radius_x, radius_y):
        return np.hypot((x - center_x) / radius_x, (y - center_y) / radius_y)

    image = np.full((size, size), -1024.0)
    image[oval(0, 0, 0.95, 0.72) < 1] = -90  # fat
    image[oval(0, 0, 0.88, 0.65) < 1] = 45  # muscle
    for side in (-1, 1):
        ribs = (abs(oval(side * 0.42, 0, 0.42, 0.58) - 1) < 0.035) & (np.sin(14 * y + side) > 0)
        image[ribs] = 500
        image[oval(side * 0.42, 0.02, 0.37, 0.52) < 1] = -850
    image[oval(-0.08, -0.12, 0.3, 0.3) < 1] = 50  # heart
    image[oval(0, 0.42, 0.13, 0.13) < 1] = 350  # spine
    image[oval(0.12, 0.3, 0.07, 0.07) < 1] = 60  # aorta
    vessels = ndimage.gaussian_filter(rng.standard_normal((size, size)), size / 128)
    image[(image < -800) & (image > -1000) & (vessels > 2 * vessels.std())] = -150
    image = ndimage.gaussian_filter(image, size / 256) + rng.normal(0, 18, image.shape)
    return np.clip(image, -1024, 3071).astype(np.int16)


def lungs(image):
    """Find what is as thin as air, but not the air around the body; fill the vessels in."""
    thin, _ = ndimage.label(ndimage.median_filter(image, 3) < -400)
    outside = np.unique(np.concatenate([thin[0], thin[-1], thin[:, 0], thin[:, -1]]))
    return ndimage.binary_closing((thin > 0) & ~np.isin(thin, outside), iterations=3)


image = ct_slice(256, np.random.default_rng(0))
mask = lungs(image)
results = {
    "slice, lung window": image,
    "AnatPaste": ap.anatpaste(image, rng=4, mask=mask),
    "Opacity, haze": ap.opacity(image, rng=8, mask=mask, kinds="haze"),
}
figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
for axis, (title, picture) in zip(axes, results.items()):
    axis.imshow(picture, cmap="gray", vmin=-1350, vmax=150)
    axis.contour(mask, [0.5], colors="tab:orange", linewidths=0.5)
    axis.set_title(title)
    axis.axis("off")
    print(f"{title:20} {picture.dtype} {picture.min()} to {picture.max()}")

# %%
# What is black where a paste reaches past its patch is the image's minimum, here air; the result never
# leaves the image's range. The opacity reads its bright level from the soft tissue around the lungs.
#
# The published `anatpaste_aug.lung_mask` and the robust one are made for radiographs: on slices bring
# your own, as here.
