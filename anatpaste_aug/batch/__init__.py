"""AnatPaste and CutPaste on a batch of images, on the device where the batch lies.

Element *i* of every result is what the functional form gives for image *i* with the same
parameters. Nothing here waits for the device: no value is ever read back to steer the work.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "anatpaste_aug.batch needs PyTorch: pip install 'anatpaste-aug[torch]'"
    ) from error

from anatpaste_aug.batch.mask import lung_mask
from anatpaste_aug.batch.modules import AnatPaste, CutPaste, CutPasteScar, CutPasteUnion
from anatpaste_aug.batch.params import (
    CutPasteParams,
    PasteParams,
    sample_cutpaste,
    sample_paste,
    sample_scar,
)
from anatpaste_aug.batch.paste import apply_cutpaste, apply_paste, paste_alpha

__all__ = [
    "AnatPaste",
    "CutPaste",
    "CutPasteParams",
    "CutPasteScar",
    "CutPasteUnion",
    "PasteParams",
    "apply_cutpaste",
    "apply_paste",
    "lung_mask",
    "paste_alpha",
    "sample_cutpaste",
    "sample_paste",
    "sample_scar",
]
