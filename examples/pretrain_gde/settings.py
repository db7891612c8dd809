"""Every choice that decides a result, and the presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from examples.pretrain_gde.errors import PipelineError
from examples.pretrain_gde.forms import LARGE, check_form
from examples.pretrain_gde.view import TONES, View

VARIANTS = ("anatpaste", "cutpaste", "scar", "union", "3way", "opacity", "mix")
MASKS = ("default", "robust")
PRECISIONS = ("fp32", "bf16")
SCORINGS = ("published", "all")
LIMITS: dict[str, Any] = {
    "variant": VARIANTS,
    "seed": (0, 2**63 - 1),
    "size": (32, 4096),
    "crop": bool,
    "tone": TONES,
    "epochs": (0, 10**6),
    "updates": (1, 10**6),
    "batch": (1, 2**20),
    "validate_every": (1, 10**6),
    "learning_rate": (0.0, LARGE),
    "momentum": (0.0, 1.0),
    "weight_decay": (0.0, LARGE),
    "head_layers": (0, 100),
    "jitter": (0.0, 1.0),
    "reframe": (0.0, 0.5),
    "noise": (0.0, 255.0),
    "map_weight": (0.0, LARGE),
    "mask": MASKS,
    "fresh_masks": bool,
    "imagenet": bool,
    "freeze_epochs": (0, 10**6),
    "precision": PRECISIONS,
    "scores": SCORINGS,
    "adjust": str,
}
MAX_PIXELS = 2**30  # of the originals of an update


@dataclass(frozen=True)
class Settings:
    """The settings of one run; the defaults are the published ones.

    Attributes
    ----------
    variant : str
        Augmentation to tell from the original, one of `VARIANTS`.
    seed : int
        Seed of the initial weights, the order of the images, every draw, and the split.
    size : int
        Side of the square input, in pixels.
    crop, tone
        See `View`.
    epochs, updates : int
        An epoch is `updates` steps of the optimizer. Without epochs the network stays as it was
        drawn.
    batch : int
        Originals per update, over all processes; as many augmented images of each other class are
        added.
    validate_every : int
        Epochs between validations.
    learning_rate, momentum, weight_decay : float
        Of stochastic gradient descent. The rate falls to 0 along a cosine.
    head_layers : int
        Hidden layers of 512 before the last of 128.
    jitter : float
        Color jitter of the whole image before the augmentation.
    reframe : float
        Greatest zoom and shift of the image before the augmentation, as a share of half its side.
    noise : float
        Greatest standard deviation of the noise on every image, original or augmented, in gray
        levels; half of them are blurred before. Above 0 it hides the seams of what was pasted.
    map_weight : float
        Weight in the loss of two heads that say where something was pasted; 0 for none.
    mask : str
        Which lung mask: the published one or the robust one.
    fresh_masks : bool
        Whether to segment at every draw, as published, instead of once per image.
    imagenet : bool
        Whether to start from ImageNet weights, with the backbone frozen for `freeze_epochs`.
    freeze_epochs : int
        See `imagenet`.
    precision : str
        Of the training step: fp32, or bf16 by autocast. Features are always computed in fp32.
    scores : str
        Which scores are fitted, to be chosen from: the two published densities of the trained
        network's features, or all of `examples.pretrain_gde.density`, also of the network as it
        was before training, and of both together.
    adjust : str
        Covariate, of `shortcuts.WORDS` or of the table of groups, that the AUCs are adjusted for
        by which the epoch and the score are chosen on the validation part; "" for none.
    """

    variant: str = "anatpaste"
    seed: int = 0
    size: int = 256
    crop: bool = False
    tone: str = "image"
    epochs: int = 256
    updates: int = 256
    batch: int = 64
    validate_every: int = 10
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 3e-5
    head_layers: int = 1
    jitter: float = 0.1
    reframe: float = 0.0
    noise: float = 0.0
    map_weight: float = 0.0
    mask: str = "default"
    fresh_masks: bool = False
    imagenet: bool = False
    freeze_epochs: int = 20
    precision: str = "fp32"
    scores: str = "published"
    adjust: str = ""

    def __post_init__(self) -> None:
        """Check every setting."""
        for name, form in LIMITS.items():
            try:
                check_form(getattr(self, name), form, name)
            except ValueError as error:
                raise PipelineError(str(error)) from error
        if self.batch * self.size**2 > MAX_PIXELS:
            raise PipelineError(
                f"batch must be at most {MAX_PIXELS // self.size**2} at {self.size} pixels, "
                f"got {self.batch}"
            )
        if self.fresh_masks and self.mask != "default":
            raise PipelineError(
                f"mask {self.mask!r} and fresh_masks cannot be combined: only the default mask is "
                "made in batches, at every draw"
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
        """Whether the augmentation pastes into the lungs."""
        return self.variant in ("anatpaste", "opacity", "mix")

    @property
    def view(self) -> View:
        """What the network sees of a radiograph."""
        return View(self.size, self.crop, self.tone)

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
    "laptop-long": {**_LAPTOP, "size": 128},
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
