"""Anatomy-aware synthetic anomalies for chest radiographs.

`anatpaste_aug` needs NumPy, SciPy and Pillow. `anatpaste_aug.transforms` and `anatpaste_aug.batch`
need torch too, and are imported on their own.
"""

from anatpaste_aug._version import __version__
from anatpaste_aug.crop import lung_crop
from anatpaste_aug.lungs import lung_mask
from anatpaste_aug.operations.anatpaste import (
    PasteParams,
    anatpaste,
    apply_paste,
    paste_alpha,
    sample_paste,
)
from anatpaste_aug.operations.cutpaste import (
    CutPasteParams,
    apply_cutpaste,
    cutpaste,
    cutpaste_scar,
    cutpaste_union,
    sample_cutpaste,
    sample_scar,
)
from anatpaste_aug.operations.opacity import (
    OpacityParams,
    apply_opacity,
    opacity,
    opacity_alpha,
    sample_opacity,
)
from anatpaste_aug.robust import lung_mask_robust

__all__ = [
    "CutPasteParams",
    "OpacityParams",
    "PasteParams",
    "__version__",
    "anatpaste",
    "apply_cutpaste",
    "apply_opacity",
    "apply_paste",
    "cutpaste",
    "cutpaste_scar",
    "cutpaste_union",
    "lung_crop",
    "lung_mask",
    "lung_mask_robust",
    "opacity",
    "opacity_alpha",
    "paste_alpha",
    "sample_cutpaste",
    "sample_opacity",
    "sample_paste",
    "sample_scar",
]
