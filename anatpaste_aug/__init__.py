"""Anatomy-aware synthetic anomalies for chest radiographs.

`anatpaste_aug` needs NumPy, SciPy and Pillow. `anatpaste_aug.transforms` and `anatpaste_aug.batch`
need torch too, and are imported on their own.
"""

from anatpaste_aug import operations
from anatpaste_aug._version import __version__
from anatpaste_aug.crop import lung_crop
from anatpaste_aug.masks import lung_mask, lung_mask_robust
from anatpaste_aug.operations.anatpaste import *
from anatpaste_aug.operations.cutpaste import *
from anatpaste_aug.operations.opacity import *

__all__ = ["__version__", "lung_crop", "lung_mask", "lung_mask_robust"]
__all__ += operations.anatpaste.__all__
__all__ += operations.cutpaste.__all__
__all__ += operations.opacity.__all__
