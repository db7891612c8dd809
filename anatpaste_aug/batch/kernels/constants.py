"""The numbers that kernels, their launches, and the choice of an engine share; without Triton."""

LARGEST_AREA = 2**24  # pixels: float32 counts no further
LARGEST_SIDE = 2**13  # pixels: the ellipse's products stay within 64 bits
CHUNK_PIXELS = 2**26  # 1,024 images of 256 x 256 are worked through at a time
# Pixels of every region that the bounding-box rule sees: each holds a 5 x 5 square. The opening
# leaves at least a 3 x 3 square in each region, clearing the border keeps the whole region off the
# border, and the dilation adds a pixel on every side.
SMALLEST = 25
PASSES = 3  # Pillow's GaussianBlur is an extended box blur, run three times each way

# What a program does at a time, or how many there are.
ROWS, COLS = 8, 128  # pixels, of the pixel-wise kernels
EXTREMES = 64  # programs that find an image's extremes, at most
