"""Anatomy-aware synthetic anomalies for chest radiographs.

`anatpaste_aug` needs NumPy, SciPy, scikit-image and Pillow. `anatpaste_aug.transforms` and
`anatpaste_aug.batch` need torch too, and are imported on their own.
"""

from anatpaste_aug._version import __version__
from anatpaste_aug.baselines import apply_cutpaste, cutpaste, cutpaste_scar
from anatpaste_aug.mask import lung_mask
from anatpaste_aug.paste import anatpaste, apply_paste, paste_alpha
from anatpaste_aug.robust import lung_mask_robust
from anatpaste_aug.sampling import (
    CutPasteParams,
    PasteParams,
    sample_cutpaste,
    sample_paste,
    sample_scar,
)

__all__ = [
    "CutPasteParams",
    "PasteParams",
    "__version__",
    "anatpaste",
    "apply_cutpaste",
    "apply_paste",
    "cutpaste",
    "cutpaste_scar",
    "lung_mask",
    "lung_mask_robust",
    "paste_alpha",
    "sample_cutpaste",
    "sample_paste",
    "sample_scar",
]
