"""What kernels share about masks of one bit a pixel: 32 pixels of a row to a word.

A block is 2 x 2 pixels; its True pixels always touch each other. A word and the one below it hold
16 blocks, each at an even bit. A *window* is a word with two more pixels on either side, in 64
bits: bit `j` is the pixel ``32 * w - 2 + j`` of the row, so that block `c` of the word lies at bit
``2 * c + 2``, and its left and right neighbours are there too.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCKS = tl.constexpr(16)  # in a word
EVEN = tl.constexpr(0x55555555)


@triton.jit
def inside_window(w, width):
    """Return the window's bits that lie inside the image."""
    count = tl.minimum(width - 32 * w + 2, 36)  # bits up to the right border
    one = tl.full(w.shape, 1, tl.int64)
    right = (one << count.to(tl.int64)) - 1
    return tl.where(w == 0, right & ~(one * 3), right)


@triton.jit
def window(words, y, w, active, height, across):
    """Load the window of word `w` in row `y`; zeros outside the image and where not active.

    `words` points to an image's words, `across` to the row. Bits beyond the right border are False
    in every stored word.
    """
    active = active & (y >= 0) & (y < height)
    at = words + y * across + w
    word = tl.load(at, mask=active, other=0).to(tl.int64)
    before = tl.load(at - 1, mask=active & (w > 0), other=0).to(tl.int64)
    after = tl.load(at + 1, mask=active & (w + 1 < across), other=0).to(tl.int64)
    return (before >> 30) | (word << 2) | ((after & 3) << 34)


@triton.jit
def filled_window(words, y, w, active, height, across, inner):
    """Load a window; ones outside the image, whose own bits are `inner`."""
    outside = (y < 0) | (y >= height)
    return tl.where(outside, -1, window(words, y, w, active, height, across) | ~inner)


@triton.jit
def blocks_of(word):
    """Tell, at even bits, which blocks hold a pixel of a word or window."""
    return (word | (word >> 1)) & 0x555555555


@triton.jit
def links_left(word):
    """Tell, at even bits, which blocks touch their left neighbour, given both rows in one."""
    return word & (word << 1) & 0x555555555


@triton.jit
def highest(word):
    """Return the place of the highest bit of words below 2**52, not 0: a float64's exponent."""
    return ((word.to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1023).to(tl.int32)


@triton.jit
def lowest(word):
    """Return the place of the lowest bit of words below 2**52, not 0."""
    return highest(word & (~word + 1))


@triton.jit
def count_bits(word):
    """Count the bits of uint32 words, by sums of pairs, of fours, of eights and so on."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    word += word >> 8
    return ((word + (word >> 16)) & 63).to(tl.int32)
