"""Every choice that decides a result, and the presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

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


def _setting(default: Any, form: Any, text: str, group: str = "recipe") -> Any:
    """Make a field: its published default, the form of its values, what it means, its kind."""
    return field(default=default, metadata={"form": form, "help": text, "group": group})


@dataclass(frozen=True)
class Settings:
    """The settings of one run: the published default of each, its limits, and what it means.

    An epoch is `updates` steps of the optimizer. Features are always computed in fp32. Where
    `noise` is above 0, half of the images are blurred before, so that no seams are seen of what was
    pasted. The published `scores` are the two densities of the network's features. All are those of
    `density`, also of the network as it was before training and of both, and the mean of them.
    """

    variant: str = _setting("anatpaste", (*VARIANTS, OWN), "what is pasted", "variant")
    seed: int = _setting(0, (0, 2**63 - 1), "of initial weights, split, order and draws", "")
    size: int = _setting(256, (32, 4096), "side of the square input in pixels")
    mask: str = _setting("published", (*MASKS, OWN), f"{' or '.join(MASKS)}, or your own function")
    crop: bool = _setting(False, bool, "cut images to the mask, with a margin")
    tone: str = _setting("image", TONES, "whose gray values set the tone")
    backbone: str = _setting(
        "resnet18", str, "of torchvision, timm, or your own function", "network"
    )
    epochs: int = _setting(256, EPOCHS, "epochs (0: no training)", "training")
    updates: int = _setting(256, (1, 10**6), "updates per epoch", "training")
    batch: int = _setting(64, (1, 2**20), "originals per update, over all processes", "training")
    validate_every: int = _setting(10, (1, 10**6), "epochs between validations", "training")
    learning_rate: float = _setting(0.03, (0.0, LARGE), "at the start of its cosine", "training")
    momentum: float = _setting(0.9, (0.0, 1.0), "of SGD", "training")
    weight_decay: float = _setting(3e-5, (0.0, LARGE), "of all parameters", "training")
    head_layers: int = _setting(1, (0, 100), "hidden layers of 512 in the head", "network")
    jitter: float = _setting(0.1, (0.0, 1.0), "of brightness and contrast, as a share")
    reframe: float = _setting(0.0, (0.0, 0.5), "zoom and shift, in half sides")
    noise: float = _setting(0.0, (0.0, 255.0), "greatest deviation, in gray levels")
    map_weight: float = _setting(
        0.0, (0.0, LARGE), "loss weight of the heads that say where it pasted", "network"
    )
    fresh_masks: bool = _setting(False, bool, "segment at every draw (paper, with kernels)")
    imagenet: bool = _setting(False, bool, "start from ImageNet weights, downloaded", "network")
    freeze_epochs: int = _setting(
        20, (0, 10**6), "epochs of the heads alone, with --imagenet", "network"
    )
    precision: str = _setting("fp32", PRECISIONS, "of training (bf16 where it is fast)", "machine")
    scores: str = _setting("published", SCORINGS, "which scores to fit")
    code: dict[str, str] = field(default_factory=dict, metadata={"form": {str: str}, "group": ""})
    adjust: str = _setting("", str, "covariate that the validation AUC is adjusted for", "data")

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
    "quick": {"size": 64, "batch": 24, "epochs": 30, "updates": 100, "validate_every": 3},
    "paper": {},
    "demo": {**_LAPTOP, "updates": 50},
}
PURPOSES = {  # of the presets
    "laptop": "lungs alone, at 64 pixels; a quarter of an hour on one busy core",
    "laptop-long": "five times as long",
    "quick": "as published, but 64 pixels, 3,000 updates; far longer than laptop",
    "paper": "as published, for a GPU (there with --fresh-masks)",
    "demo": "half of laptop, for phantoms",
}
PLAN = {  # of `finetune`, besides `labels`: default, form and meaning
    "draws": (5, (1, 1000), "of the labeled images, for each number"),
    "updates": (200, (1, 10**6), "of the whole network"),
    "rate": (3e-4, (1e-9, 1.0), "learning rate at the start of the cosine"),
}


def derive_seed(*parts: int) -> int:
    """Make one seed out of several numbers, well apart from that of any others."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
