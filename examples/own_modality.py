"""Another modality needs only its own mask: ``python -m examples.own_modality``.

Writes own_modality.png: a slice of a head, drawn by code, its brain, and a paste inside it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

import anatpaste_aug as ap
from examples.head_ct import brain_mask, head_slice


def main() -> None:
    """Paste into a slice and save slice, brain and result side by side."""
    image = head_slice(256, np.random.default_rng(0))
    pasted, region = ap.anatpaste(image, rng=4, segment=brain_mask, return_mask=True)
    assert not region[~brain_mask(image)].any()
    before, after = (part.astype(np.uint8) for part in (image, pasted))
    brain = brain_mask(image) * np.uint8(255)
    Image.fromarray(np.hstack([before, brain, after])).save("own_modality.png")
    print("wrote own_modality.png: the slice, its brain, and a paste inside it")


if __name__ == "__main__":
    main()
