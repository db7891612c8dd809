"""
What happens to an image
========================

From the radiograph to the paste, stage by stage. The stages of the mask are the package's own; they
equal the published method bit for bit (:doc:`/exact`).
"""

# %%
# The lung mask
# -------------
#
# Local contrast is equalized, what is darker than Otsu's threshold is kept, thin bridges are opened,
# what touches the border (the air around the body) is removed, and what is left is dilated. At last
# the bounding box of every small region is emptied, with all that lies in it.

import dataclasses

import matplotlib.pyplot as plt
import numpy as np

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.masks import clahe, regions


def show(pictures, columns=3):
    """Show images in rows."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, 3.3 * rows), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, picture) in zip(axes.flat, pictures.items()):
        axis.imshow(picture, cmap="gray")
        axis.set_title(title)


image = phantom_radiograph(256, rng=1)
levels = clahe.clahe(clahe.quantize(image))
dark = clahe.dark_side(levels, np.float64)
opened = regions.opening(dark)  # with a frame of one pixel, here and below
inner = regions.clear_border(opened.copy())
dilated = regions.combine_squares(np.logical_or, inner)
mask = regions.clear_small_boxes(dilated[1:-1, 1:-1].copy(), 400)
assert (mask == ap.lung_mask(image)).all()
show(
    {
        "image": image,
        "equalized": levels,
        "dark, not black": dark,
        "opened": opened,
        "border cleared": inner,
        "dilated, small boxes emptied": mask,
    }
)

# %%
# What is drawn
# -------------
#
# A patch, anywhere in the image; a pixel of the mask, to center it on; a shape, its opacity, its
# blur; how the patch is jittered. All draws are independent.

params = ap.sample_paste(mask, rng=4)
for name, value in vars(params).items():
    print(f"{name:12} {value}")

# %%
# Alpha
# -----
#
# The shape is smaller than the patch by a margin, blurred, and multiplied by the mask.

everywhere = np.ones_like(mask)
sharp = ap.paste_alpha(dataclasses.replace(params, blur_radius=0), everywhere)
blurred = ap.paste_alpha(params, everywhere)
alpha = ap.paste_alpha(params, mask)
show({"shape": sharp, "blurred": blurred, "in the lungs: alpha": alpha})

# %%
# The paste
# ---------
#
# The patch lies on black. Where alpha reaches past the patch, the paste darkens: that is the
# published behavior. ``region`` is where alpha is above 0; nothing else changes.

left, top = params.center_x - params.width // 2, params.center_y - params.height // 2
crop = image[params.crop_y :, params.crop_x :][: params.height, : params.width]
canvas = np.zeros_like(image)
part = canvas[max(top, 0) : top + params.height, max(left, 0) : left + params.width]
part[:] = crop[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]]
pasted, region = ap.apply_paste(image, params, mask, return_mask=True)
assert (pasted == image)[~region].all()
show({"patch on black, before jitter": canvas, "result": pasted, "region": region})
