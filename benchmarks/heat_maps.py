"""Whether heat maps point at opacities that were pasted into the test's normals of a run.

python -m benchmarks.heat_maps RUN --data DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from examples.pretrain_gde.augment import paste_opacities
from examples.pretrain_gde.data import Images, Source, load_dataset, load_images
from examples.pretrain_gde.detector import Detector
from examples.pretrain_gde.evaluate import DETECTOR, SPLIT
from examples.pretrain_gde.heatmap import enlarge, grad_cam, heat_maps
from examples.pretrain_gde.model import CELLS, MAPPED, prepare
from examples.pretrain_gde.readers import SPLIT_FORM, Split
from examples.pretrain_gde.storage import read_json

INSIDE = 26  # least opacity, of 255, of what counts as pasted

Maps = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    detector = Detector.load(options.run / DETECTOR)
    split = Split.from_dict(read_json(options.run / SPLIT, SPLIT_FORM))
    source = Source(options.data, options.run / "cache")
    dataset = load_dataset(source, split, detector.settings)
    reddest = heat_maps(detector, np.array(dataset.images["test"])).max((1, 2))
    for kind in (False, True):
        half, tenth = np.quantile(reddest[dataset.labels("test") == kind], (0.5, 0.9))
        print(f"abnormal {kind}: reddest pixel {half:.2f} (median), 90 % below {tenth:.2f}")
    view = detector.settings.view_with_mask  # the data set has no masks of the test part
    normal = [entry for entry in dataset.split.test if not entry.abnormal]
    stored = load_images(source, normal, view)
    images, masks = stored.images, stored.masks
    pasted, alpha = paste_opacities(
        torch.from_numpy(images)[:, None],
        torch.from_numpy(masks)[:, None].bool(),
        torch.Generator().manual_seed(0),
    )
    found = (alpha >= INSIDE).any(3).any(2)[:, 0]
    inside, lungs = (alpha[found, 0] >= INSIDE).numpy(), masks[found].astype(bool)
    print(f"{inside.mean():.3f} of the area pasted, {inside[lungs].mean():.3f} of the lungs")
    print("| map | pixel AUC | mean by image | in the lungs | red inside |\n" + "| --- " * 5 + "|")
    usual, _ = dataset.normals("valid")
    for name, maps in all_maps(detector, usual, pasted[found, 0].numpy(), inside):
        pooled = roc_auc_score(inside.ravel(), maps.ravel())
        pairs = zip(inside, maps, strict=True)
        each = np.mean([roc_auc_score(truth.ravel(), one.ravel()) for truth, one in pairs])
        within = roc_auc_score(inside[lungs], maps[lungs])
        red = 100 * maps[inside].clip(0).sum() / maps.clip(0).sum()
        print(f"| {name} | {pooled:.3f} | {each:.3f} | {within:.3f} | {red:.1f} % |")


def all_maps(
    detector: Detector, usual: Images, images: Images, inside: npt.NDArray[np.bool_]
) -> Iterator[tuple[str, Maps]]:
    """Make maps in every way: of the score, by Grad-CAM of places2, and what to compare with."""
    _, score = detector.scored
    inputs = prepare(torch.from_numpy(images)[:, None])
    for network in dict.fromkeys((*detector.networks, detector.scored[0])):
        one = replace(detector, scored=(network, score))
        one = replace(one, usual_shares=one.shares(usual).mean(0))
        yield f"{score}, {network}", heat_maps(one, images)
        bare = replace(one, usual_shares=np.zeros_like(one.usual_shares))
        yield f"{score}, {network}, shares as they are", heat_maps(bare, images)
    for network, scorer in detector.scorers.items():
        cam = grad_cam(detector.networks[network], scorer, "places2", inputs)
        most = cam.amax((1, 2, 3), True).clamp(min=1e-12)  # it may point at nothing
        yield f"places2, {network}, Grad-CAM", enlarge(cam / most, images)
    if "trained" in detector.networks and len(detector.networks["trained"].map_heads):
        trained = detector.networks["trained"]
        with torch.no_grad():
            logits = trained.map_heads[0](trained.see(inputs)[1][MAPPED[0]])
        yield "the map head", enlarge(torch.sigmoid(logits), images)
    yield "how often a pixel was pasted", np.broadcast_to(inside.mean(0), images.shape)
    truth = functional.adaptive_avg_pool2d(torch.from_numpy(inside)[:, None].float(), CELLS)
    yield "the truth, by place", enlarge(truth, images)


if __name__ == "__main__":
    main()
