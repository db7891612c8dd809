"""
First steps
===========

Five minutes, without any data: a chest radiograph drawn by code, an anomaly pasted into its lungs,
and a detector that has learned from such anomalies. With Python 3.10 or newer, in a checkout::

    python3 -m venv .venv
    .venv/bin/pip install '.[torch]' matplotlib
    .venv/bin/python

On Windows write ``.venv\\Scripts`` for ``.venv/bin``. For research, not for diagnosis.
"""

# %%
# A radiograph and its lungs
# --------------------------
#
# Images are NumPy arrays of height and width, or Pillow images, in 8 bits, 16 bits or floats.
# ``rng`` is a seed: the same number gives the same image everywhere.

import matplotlib.pyplot as plt

import anatpaste_aug as ap
from anatpaste_aug.data import phantom_radiograph

image = phantom_radiograph(256, rng=5)
mask = ap.lung_mask(image)
print(image.shape, image.dtype, mask.shape, mask.dtype)

# %%
# An anomaly
# ----------
#
# AnatPaste cuts a patch out of the image, anywhere, and blends it into the lungs. ``return_mask``
# asks for the region that was changed.

pasted, region = ap.anatpaste(image, rng=5, return_mask=True)


def show(pictures, outlines=None):
    """Show images side by side, some with the outline of a mask."""
    figure, axes = plt.subplots(1, len(pictures), figsize=(9, 3.4), layout="constrained")
    for axis, (title, picture) in zip(axes, pictures.items()):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title)
        axis.axis("off")
        if outlines and title in outlines:
            axis.contour(outlines[title], [0.5], colors="tab:orange", linewidths=1)


show({"before": image, "lung mask": image, "after": pasted}, {"lung mask": mask, "after": region})

# %%
# What was drawn can be seen, kept, and done again. It, not the seed, reproduces a paste in later
# versions.

params = ap.sample_paste(mask, rng=5)
print(params)
assert (ap.apply_paste(image, params, mask) == pasted).all()

# %%
# While a network trains
# ----------------------
#
# In a torchvision pipeline the same is a transform, and randomness is torch's:

import torch
from torchvision.transforms import v2

from anatpaste_aug.transforms import AnatPaste, Opacity

torch.manual_seed(0)
augment = v2.Compose(
    [
        v2.ToImage(),
        v2.RandomAffine(5, scale=(1, 1.1)),
        v2.RandomChoice([AnatPaste(p=1), Opacity(p=1)]),
    ]
)
show({f"draw {number}": augment(image)[0] for number in (1, 2, 3)})

# %%
# A network that tells original from pasted views has to learn what lungs look like: that is the
# pretext task. This dataset returns both views of every image, and their labels.

from torch.utils.data import DataLoader

from anatpaste_aug.pretext import PretextDataset, pretext_collate

normals = [v2.functional.to_image(phantom_radiograph(256, rng=seed)) for seed in range(4)]
views = PretextDataset(normals, AnatPaste(p=1), before=v2.ColorJitter(0.1, 0.1))
images, labels = next(iter(DataLoader(views, batch_size=2, collate_fn=pretext_collate)))
print(images.shape, labels)

# %%
# Your own images
# ---------------
#
# One picture shows what a network will train on: the images, squeezed to its size, their lung masks,
# and pastes. Of a folder it takes some, spread evenly over all; without an image it shows the phantom.
# ``--help`` lists every option of every operation.
#
# .. code-block:: bash
#
#     .venv/bin/python -m anatpaste_aug preview
#     .venv/bin/python -m anatpaste_aug preview radiographs/ --mask robust --operation opacity -o out.png
#
# A detector
# ----------
#
# The repository holds the paper's whole protocol. From its root, in a few minutes on two CPU cores,
# this draws normal and abnormal phantoms, pretrains a network, fits a density to the features of normal
# radiographs, scores the others, and writes a report:
#
# .. code-block:: bash
#
#     python3 -m venv .venv && .venv/bin/pip install '.[pipeline]' && .venv/bin/python -m examples.pretrain_gde
#
# On Windows write this in Git's shell. It ends with a table of all scores, trained and untrained,
# and the report, ``runs/demo/mix/seed0/report.html``, which opens in any browser. New radiographs,
# here four of the test's, get their scores in a table, and a map each of what the score comes from:
#
# .. code-block:: bash
#
#     .venv/bin/python -m examples.pretrain_gde predict runs/demo/mix/seed0 \
#       runs/demo/phantoms/test/*/phantom000[01].png --heat-maps maps
#
# :doc:`Reproduce the paper </reproduce>` says how to do that with real data, and :doc:`/results` what
# came out.
#
# Further
# -------
#
# - :doc:`stages`: what happens to an image.
# - :doc:`/batches`: whole batches, on a GPU.
# - :doc:`head`: other modalities.
