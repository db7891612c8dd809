"""The operations, one file each, and what one is made of.

`base` says what an operation is, `draws` owns the distributions, `patch` what pastes of a patch
share; `anatpaste`, `cutpaste` and `opacity` are the operations. docs/own_operation.md adds another.
"""

from anatpaste_aug.operations.anatpaste import AnatPaste
from anatpaste_aug.operations.base import Operation, lengths_for_option, option
from anatpaste_aug.operations.cutpaste import CutPaste, CutPasteScar, CutPasteUnion
from anatpaste_aug.operations.draws import Draws
from anatpaste_aug.operations.opacity import Opacity

__all__ = [
    "AnatPaste",
    "CutPaste",
    "CutPasteScar",
    "CutPasteUnion",
    "Draws",
    "Opacity",
    "Operation",
    "lengths_for_option",
    "option",
]
