"""Paste into batches, on a GPU if there is one: ``python -m examples.batches``.

The DataLoader's workers do nothing but load; masks and pastes are made of whole batches.
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset

from anatpaste_aug import batch
from anatpaste_aug.data import phantom_radiograph


def main() -> None:
    """Paste into two batches of phantoms and say what was done."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    phantoms = torch.stack(
        [torch.from_numpy(phantom_radiograph(128, rng=seed))[None] for seed in range(16)]
    )  # (16, 1, 128, 128) uint8
    paste = batch.OneOf([batch.AnatPaste(p=1), batch.Opacity(p=1)], p=0.5)
    for (images,) in DataLoader(TensorDataset(phantoms), batch_size=8):
        images = images.to(device)
        masks = batch.lung_mask(images, min_area=100)  # (8, 1, 128, 128) bool
        pasted, regions, labels = paste(images, masks=masks)
        changed = (pasted != images).flatten(1).any(1)
        print(f"on {device}: labels {labels.tolist()}, changed {changed.int().tolist()}")
        assert not (pasted != images)[~regions].any()  # nothing outside the regions


if __name__ == "__main__":
    main()
