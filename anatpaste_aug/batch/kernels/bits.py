"""What kernels share about masks of one bit a pixel: 32 pixels of a row to a word.

A block is 2 x 2 pixels; its True pixels always touch each other. A word and the one below it hold
16 blocks, each at an even bit. A *window* is a word with two more pixels on either side, in 64
bits: bit `j` is the pixel ``32 * col - 2 + j`` of the row, if the word is the row's number `col`,
so that block `i` of the word lies at bit ``2 * i + 2``, and its left and right neighbors are there
too.
"""

import triton
import triton.language as tl

BLOCKS = tl.constexpr(16)  # in a word
EVEN = tl.constexpr(0x55555555)


@triton.jit
def sizes(height, width):
    """Return how many words a row has, and how many nodes an image has: see `labels`."""
    across = (width + 31) // 32
    return across, 1 + (height + 1) // 2 * across * BLOCKS


@triton.jit
def inside_window(col, width):
    """Return the window's bits that lie inside the image."""
    count = tl.minimum(width - 32 * col + 2, 36)  # bits up to the right border
    one = tl.full(col.shape, 1, tl.int64)
    right = (one << count.to(tl.int64)) - 1
    return tl.where(col == 0, right & ~(one * 3), right)


@triton.jit
def window(words_ptr, y, col, active, height, across):
    """Load the window of word `col` in row `y`; zeros outside the image and where not active.

    `words_ptr` points to an image's words, `across` to the row. Bits beyond the right border are
    False in every stored word.
    """
    active = active & (y >= 0) & (y < height)
    at = words_ptr + y * across + col
    word = tl.load(at, mask=active, other=0).to(tl.int64)
    before = tl.load(at - 1, mask=active & (col > 0), other=0).to(tl.int64)
    after = tl.load(at + 1, mask=active & (col + 1 < across), other=0).to(tl.int64)
    return (before >> 30) | (word << 2) | ((after & 3) << 34)


@triton.jit
def filled_window(words_ptr, y, col, active, height, across, inner):
    """Load a window; ones outside the image, whose own bits are `inner`."""
    outside = (y < 0) | (y >= height)
    return tl.where(outside, -1, window(words_ptr, y, col, active, height, across) | ~inner)


@triton.jit
def load_pair(words_ptr, row, col, height, across):
    """Load word `col` of both rows of block row `row`; zeros below the image."""
    at = words_ptr + 2 * row * across + col
    upper = tl.load(at, mask=2 * row < height, other=0)
    lower = tl.load(at + across, mask=2 * row + 1 < height, other=0)
    return upper.to(tl.int64), lower.to(tl.int64)


@triton.jit
def store_pair(words_ptr, row, col, height, across, upper, lower):
    """Store word `col` of both rows of block row `row`, where they lie inside the image."""
    at = words_ptr + 2 * row * across + col
    tl.store(at, upper.to(tl.uint32), mask=2 * row < height)
    tl.store(at + across, lower.to(tl.uint32), mask=2 * row + 1 < height)


@triton.jit
def blocks_of(word):
    """Tell, at even bits, which blocks hold a pixel of a word or window."""
    return (word | (word >> 1)) & 0x555555555


@triton.jit
def each_block(bits, block):
    """Tell of each block, (1, 16) or (1, 1), whether its even bit is set in words, (n,)."""
    return ((bits[:, None] >> (2 * block).to(tl.int64)) & 1) != 0


@triton.jit
def links_left(word):
    """Tell, at even bits, which blocks touch their left neighbor, given both rows in one."""
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
