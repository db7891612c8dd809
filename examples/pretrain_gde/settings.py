"""Every choice that decides a result, and the presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from anatpaste_aug.functions import is_function
from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import LARGE, OWN, check_form
from examples.pretrain_gde.given import given
from examples.pretrain_gde.view import TONES, View

VARIANTS = ("anatpaste", "cutpaste", "scar", "union", "3way", "opacity", "mix")
MASKS = ("published", "robust")
PRECISIONS = ("fp32", "bf16")
SCORINGS = ("published", "all")
EPOCHS = (0, 10**6)
MAX_PIXELS = 2**30  # of the originals of an update


def _setting(default: Any, form: Any, text: str) -> Any:
    """Make a field of `Settings`: its published default, the form of its values, what it means."""
    return field(default=default, metadata={"form": form, "help": text})


@dataclass(frozen=True)
class Settings:
    """The settings of one run: the published default of each, its limits, and what it means.

    An epoch is `updates` steps of the optimizer. Features are always computed in fp32. Where
    `noise` is above 0, half of the images are blurred before, so that no seams are seen of what was
    pasted. The published `scores` are the two densities of the network's features. All are those of
    `density`, also of the network as it was before training and of both, and the mean of them.
    """

    variant: str = _setting("anatpaste", (*VARIANTS, OWN), "augmentation to tell from originals")
    seed: int = _setting(0, (0, 2**63 - 1), "of initial weights, order, every draw, and the split")
    size: int = _setting(256, (32, 4096), "side of the square input in pixels")
    crop: bool = _setting(False, bool, "whether to cut images to the mask")
    tone: str = _setting("image", TONES, "whose gray values decide the tone")
    backbone: str = _setting("resnet18", str, "of torchvision or timm, or MODULE:FUNCTION")
    epochs: int = _setting(256, EPOCHS, "epochs; 0: no training")
    updates: int = _setting(256, (1, 10**6), "updates per epoch")
    batch: int = _setting(64, (1, 2**20), "originals per update, over all processes")
    validate_every: int = _setting(10, (1, 10**6), "epochs between validations")
    learning_rate: float = _setting(0.03, (0.0, LARGE), "rate at the start of the cosine")
    momentum: float = _setting(0.9, (0.0, 1.0), "momentum")
    weight_decay: float = _setting(3e-5, (0.0, LARGE), "weight decay")
    head_layers: int = _setting(1, (0, 100), "hidden layers of 512 in the head, before one of 128")
    jitter: float = _setting(0.1, (0.0, 1.0), "color jitter before the augmentation")
    reframe: float = _setting(0.0, (0.0, 0.5), "zoom and shift before it, in half sides")
    noise: float = _setting(0.0, (0.0, 255.0), "greatest deviation of noise, in gray levels")
    map_weight: float = _setting(0.0, (0.0, LARGE), "weight of the heads that say where it pasted")
    mask: str = _setting("published", (*MASKS, OWN), "of the lungs, or your own function's")
    fresh_masks: bool = _setting(False, bool, "segment at every draw (preset paper with kernels)")
    imagenet: bool = _setting(False, bool, "start from ImageNet weights")
    freeze_epochs: int = _setting(20, (0, 10**6), "epochs with a frozen backbone, with --imagenet")
    precision: str = _setting("fp32", PRECISIONS, "of training (bf16 where the hardware has it)")
    scores: str = _setting("published", SCORINGS, "which scores to fit")
    code: dict[str, str] = field(
        default_factory=dict, metadata={"form": {str: str}, "help": "digests of your own code"}
    )
    adjust: str = _setting("", str, "covariate to adjust the AUC for that chooses the epoch")

    def __post_init__(self) -> None:
        """Check every setting."""
        for each in fields(self):
            check_form(getattr(self, each.name), each.metadata["form"], each.name)
        if self.batch * self.size**2 > MAX_PIXELS:
            raise PipelineError(
                f"batch must be at most {MAX_PIXELS // self.size**2} at {self.size} pixels, "
                f"got {self.batch}"
            )
        if self.imagenet and is_function(self.backbone):
            raise PipelineError("imagenet is not for functions: they give weights of their own")
        if self.fresh_masks and self.mask != "published":
            raise PipelineError(
                f"mask {self.mask!r} and fresh_masks cannot be combined: only the published mask "
                "is made in batches, at every draw"
            )

    @property
    def classes(self) -> int:
        """Number of classes to tell apart."""
        return 3 if self.variant == "3way" else 2

    @property
    def steps(self) -> int:
        """Number of updates in all."""
        return self.epochs * self.updates

    @property
    def needs_masks(self) -> bool:
        """Whether the augmentation pastes into the mask."""
        if is_function(self.variant):
            return bool(given("variant", self.variant).needs_lungs)
        return self.variant in ("anatpaste", "opacity", "mix")

    @property
    def view(self) -> View:
        """What the network sees of an image."""
        return View(self.size, self.crop, self.tone, self.mask)

    @property
    def view_with_mask(self) -> View:
        """What the network sees of an image that is pasted into."""
        return replace(self.view, masked=self.needs_masks)

    @property
    def label(self) -> str:
        """The variant in a word: of an operation of one's own, the class."""
        return self.variant.rpartition(":")[2]

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON can hold them."""
        return asdict(self)


_LAPTOP: dict[str, Any] = {
    "variant": "mix",
    "size": 64,
    "crop": True,
    "tone": "lungs",
    "batch": 24,
    "epochs": 4,
    "updates": 100,
    "validate_every": 4,
    "reframe": 0.05,
    "noise": 6.0,
    "map_weight": 1.0,
    "mask": "robust",
    "scores": "all",
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": _LAPTOP,
    "laptop-long": {**_LAPTOP, "epochs": 20, "validate_every": 20},
    "paper": {},
    "quick": {"size": 64, "batch": 24, "epochs": 30, "updates": 100, "validate_every": 3},
    "demo": {**_LAPTOP, "updates": 50},
}


def default_precision(device: torch.device) -> str:
    """Choose bf16 where the hardware computes in it, fp32 elsewhere."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capable = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capable.get("avx512_bf16") or capable.get("amx_bf16") else "fp32"


def derive_seed(*parts: int) -> int:
    """Make one seed out of several numbers, well apart from that of any others."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
