"""The batch's operators as Triton kernels, for GPUs of NVIDIA and AMD.

Loaded when the first batch on a GPU comes. Each file holds one idea: `bits` masks of one bit a
pixel; `pixels` reading and rounding; `tiles` CLAHE; `otsu` the threshold; `labels` morphology and
regions; `boxes` the bounding-box rule; `draw` the draw; `fields`, `alpha` and `patch` the paste.
`mask` and `paste` put them in order. Names of kernels end in ``_kernel``: they are launched, the
other functions of Triton's are called by them. Kernels are launched in turn, and none reads what
another program of its own launch writes, but by atomics whose order does not matter.

Tensors are contiguous. An image's number, and all that it multiplies, has 64 bits. Numbers inside
an image have 32, which hold its at most 2**24 pixels of 3 channels, 2**23 nodes, and their 5
measures. Places follow from the grid
and are masked, or from counts of the image itself, or they are limited to the image: parameters
are not checked. Every loop is over a part of the image, over its regions, or up a tree.

None of this has run on a card yet: it was run in Triton's interpreter, programs in turn and at the
same time, and compiled.
"""
