"""
Another modality: a slice of a head
===================================

Nothing in a paste knows about lungs: it needs a mask of where it may go. ``segment=`` takes any
function from image to mask, a trained segmenter too; ``mask=`` a mask that is already there. Here it
is of the brain, in a slice that is drawn by code, as CT shows it.
"""

# %%

import matplotlib.pyplot as plt
import numpy as np

import anatpaste_aug as ap
from examples.head_ct import brain_mask, head_slice


def show(pictures, outlines):
    """Show images side by side, some with an outline."""
    figure, axes = plt.subplots(1, len(pictures), figsize=(9, 3.4), layout="constrained")
    for axis, (title, picture) in zip(axes, pictures.items()):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title)
        axis.axis("off")
        if title in outlines:
            axis.contour(outlines[title], [0.5], colors="tab:orange", linewidths=1)


image = head_slice(256, np.random.default_rng(0))  # float32, 0 to 255
brain = brain_mask(image)
pasted, region = ap.anatpaste(image, rng=4, segment=brain_mask, return_mask=True)
assert not region[~brain].any()
print(pasted.dtype, pasted.min() >= image.min(), pasted.max() <= image.max())
show({"slice": image, "brain": image, "after": pasted}, {"brain": brain, "after": region})

# %%
# The paste stays float32 and within the image's range. The patch is cut from anywhere, so that scalp
# and air may come along, as with ribs in a chest. To cut from inside the brain alone, fill the rest
# first, or crop: `anatpaste_aug.lung_crop` takes ``segment=`` too.

cropped, inside = ap.lung_crop(image, segment=brain_mask, margin=0, return_mask=True)
draws = {f"draw {seed}": ap.anatpaste(cropped, rng=seed, mask=inside) for seed in (0, 7, 9)}
show(draws, {})

# %%
# The transforms take the same argument, and so do the batched modules (there from a batch of images to
# a batch of masks):

from anatpaste_aug.transforms import AnatPaste

augment = AnatPaste(p=0.5, segment=brain_mask)
print(augment(image).dtype)

# %%
# The pipeline takes it by its name: :doc:`/other_modalities`. Slice and mask are these two functions of
# the repository's ``examples/head_ct.py``:
#
# .. literalinclude:: ../../examples/head_ct.py
#    :language: python
#    :pyobject: brain_mask
#
# .. literalinclude:: ../../examples/head_ct.py
#    :language: python
#    :pyobject: head_slice
