"""Compose AnatPaste with torchvision's transforms: ``python -m examples.compose``.

Writes compose.png: four views of one radiograph, and below each what was pasted.
"""

from __future__ import annotations

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.utils import save_image

from anatpaste_aug.data import phantom_radiograph
from anatpaste_aug.transforms import AnatPaste, LungMask


def main() -> None:
    """Draw four views of a phantom and save them as one picture."""
    torch.manual_seed(0)
    segment = LungMask()  # once for each image, before anything is random
    augment = v2.Compose(
        [
            v2.RandomAffine(5, translate=(0.02, 0.02), scale=(1, 1.1)),  # moves the lungs along
            AnatPaste(p=1, return_mask=True),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        ]
    )
    sample = segment({"image": tv_tensors.Image(phantom_radiograph(256, rng=0)), "label": 0})
    views = [augment(sample)["image"] for _ in range(4)]  # pairs: (image, region)
    pictures = [image for image, _ in views] + [region.float() for _, region in views]
    save_image(torch.stack(pictures), "compose.png", nrow=4)
    print("wrote compose.png: four views, and below where each was changed")


if __name__ == "__main__":
    main()
