"""AnatPaste, CutPaste and Opacity on a batch of images, on the device where the batch lies.

Element *i* of every result is what the functional form gives for image *i* with the same
parameters. Nothing here waits for the device: no value is ever read back to steer the work.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "anatpaste_aug.batch needs PyTorch: pip install 'anatpaste-aug[torch]'"
    ) from error

from anatpaste_aug.batch.anatpaste import apply_paste, paste_alpha, sample_paste
from anatpaste_aug.batch.crop import Cropped, LungCrop, lung_crop
from anatpaste_aug.batch.cutpaste import apply_cutpaste, sample_cutpaste, sample_scar
from anatpaste_aug.batch.draws import TorchDraws
from anatpaste_aug.batch.lungs import lung_mask
from anatpaste_aug.batch.modules import (
    AnatPaste,
    Augmented,
    CutPaste,
    CutPasteScar,
    CutPasteUnion,
    OneOf,
    Only,
    Opacity,
    OperationModule,
)
from anatpaste_aug.batch.opacity import apply_opacity, opacity_alpha, sample_opacity
from anatpaste_aug.batch.params import CutPasteParams, OpacityParams, PasteParams, StackedParams
from anatpaste_aug.batch.robust import lung_mask_robust

__all__ = [
    "AnatPaste",
    "Augmented",
    "Cropped",
    "CutPaste",
    "CutPasteParams",
    "CutPasteScar",
    "CutPasteUnion",
    "LungCrop",
    "OneOf",
    "Only",
    "Opacity",
    "OpacityParams",
    "OperationModule",
    "PasteParams",
    "StackedParams",
    "TorchDraws",
    "apply_cutpaste",
    "apply_opacity",
    "apply_paste",
    "lung_crop",
    "lung_mask",
    "lung_mask_robust",
    "opacity_alpha",
    "paste_alpha",
    "sample_cutpaste",
    "sample_opacity",
    "sample_paste",
    "sample_scar",
]
