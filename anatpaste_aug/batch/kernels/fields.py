"""The whole numbers of pastes in a table, (B, 10) int64: `anatpaste_aug.PasteParams` in its order.

They are read as 32 bits, which hold all that are in range.
"""

import triton
import triton.language as tl

FIELDS = tl.constexpr(10)


@triton.jit
def read_patch(fields_ptr, b):
    """Return x and y of where a patch is cut, its width and height, and x and y of its center."""
    at = fields_ptr + b * FIELDS
    crop_x, crop_y = tl.load(at).to(tl.int32), tl.load(at + 1).to(tl.int32)
    patch_w, patch_h = tl.load(at + 2).to(tl.int32), tl.load(at + 3).to(tl.int32)
    center_x, center_y = tl.load(at + 4).to(tl.int32), tl.load(at + 5).to(tl.int32)
    return crop_x, crop_y, patch_w, patch_h, center_x, center_y


@triton.jit
def read_shape(fields_ptr, b):
    """Return a shape's kind, the radius of its blur, its opacity and its margin."""
    at = fields_ptr + b * FIELDS
    kind, radius = tl.load(at + 6).to(tl.int32), tl.load(at + 7).to(tl.int32)
    opacity, margin = tl.load(at + 8).to(tl.int32), tl.load(at + 9).to(tl.int32)
    return kind, radius, opacity, margin
