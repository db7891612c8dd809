"""The operations, one file each, and what one is made of.

`base` says what an operation is, `sampling` owns the distributions, `patch` what pastes of a patch
share, `alpha` what is blended in through an alpha; `anatpaste`, `cutpaste` and `opacity` are the
operations. docs/own_operation.md adds another.
"""

from anatpaste_aug.operations.anatpaste import AnatPaste
from anatpaste_aug.operations.base import Operation, lengths_for_option, option
from anatpaste_aug.operations.cutpaste import CutPaste, CutPasteScar, CutPasteUnion
from anatpaste_aug.operations.opacity import Opacity
from anatpaste_aug.operations.sampling import Sampler

__all__ = [
    "AnatPaste",
    "CutPaste",
    "CutPasteScar",
    "CutPasteUnion",
    "Opacity",
    "Operation",
    "Sampler",
    "lengths_for_option",
    "option",
]
