"""Batches that several test files share, and the comparison of one with each image alone."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import binary_dilation, label

from anatpaste_aug.batch import functions, operators
from anatpaste_aug.batch.params import stack, unstack
from anatpaste_aug.masks.regions import clear_small_boxes

INTEGERS = (torch.uint8, torch.uint16, torch.int16, torch.int32)
FLOATS = (torch.float16, torch.float32, torch.float64)


def random_images(shape, dtype, seed=0):
    """Make images with large dark and bright parts, and negative ones where the dtype has them."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((shape[0], 1, -(-shape[-2] // 8), -(-shape[-1] // 8)))
    blobs = np.kron(coarse, np.ones((1, 1, 8, 8)))[..., : shape[-2], : shape[-1]]
    unit = 0.8 * blobs + 0.2 * rng.random(shape)
    low, high = {
        torch.uint8: (0, 255),
        torch.uint16: (0, 65535),
        torch.int16: (-1024, 3000),
        torch.int32: (-70000, 70000),
        torch.float16: (-1, 1),
        torch.float32: (0, 1),
        torch.float64: (-1000, 1000),
    }[dtype]
    values = low + unit * (high - low)
    return torch.from_numpy(values if dtype.is_floating_point else values.astype(np.int64)).to(
        dtype
    )


def random_masks(count, height, width):
    """Make one empty mask, and rectangles."""
    masks = torch.zeros(count, 1, height, width, dtype=torch.bool)
    for i in range(1, count):
        masks[i, :, i : height // 2 + i, width // 4 : width - i] = True
    return masks


def alone(image):
    """Return one image of a batch as the functional form takes it."""
    array = (image if image.ndim == 3 else image[None]).numpy()
    array = array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def assert_alone(out, images, function):
    """Replay every element alone and compare: integers exactly, floats within 1e-6."""
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    for i in range(len(images)):
        expected, got = function(alone(images[i]), i), alone(out[i])
        if images.dtype == torch.float16:
            expected = expected.astype(np.float16).astype(np.float32)
        if images.dtype.is_floating_point:
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
        else:
            np.testing.assert_array_equal(got, expected)


def batch_of(*arrays):
    """Make a batch of images that are (H, W) or (H, W, 3) arrays."""
    images = np.stack(arrays)
    images = images[..., None] if images.ndim == 3 else images
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def draw(operation, batch, lungs=None, generator=None):
    """Draw for each image of a batch, and return the functional params."""
    name = operators.register(operation)
    return unstack(operation.params, *functions.sample(name, batch, lungs, generator))


def paste(operation, images, params, lungs=None):
    """Paste with functional params into each image; return images and regions."""
    name, chosen = operators.register(operation), functions.all_of(images)
    lungs = lungs if lungs is None or lungs.ndim == 3 else lungs[:, 0]
    fields = list(stack(operation.params, params))
    return operators.paste(images, fields, lungs, chosen, name)


def spiral(size, width=1, gap=1):
    """Draw a line that winds to the middle; `gap` pixels lie between its turns."""
    out = np.zeros((size, size), bool)
    y = x = 1
    dy, dx, steps, turns = 0, 1, size - 2 - width, 0
    while steps > 0:
        for _ in range(steps):
            out[y : y + width, x : x + width] = True
            y, x = y + dy, x + dx
        out[y : y + width, x : x + width] = True
        dy, dx, turns = dx, -dy, turns + 1
        steps -= (width + gap) if turns >= 3 and turns % 2 else 0
    return out


def hard_masks(size=96):
    """Draw what takes many rounds to label."""
    y, x = np.mgrid[:size, :size]
    rng = np.random.default_rng(0)
    comb = (x % 2 == 0) | (y == size - 1)
    serpentine = (y % 2 == 0) | ((x == 0) & (y % 4 == 1)) | ((x == size - 1) & (y % 4 == 3))
    masks = [
        spiral(size),
        comb,
        comb[::-1],
        comb.T,
        serpentine,
        serpentine.T,
        (y + x) % 2 == 0,
        (y % 2 == 0) & (x % 2 == 0),
        np.ones_like(comb),
        np.zeros_like(comb),
        (y - x) % 3 == 0,
    ]
    return np.stack(masks + [rng.random((size, size)) < share for share in (0.2, 0.4, 0.5, 0.7)])


def functional_boxes(inside, min_area):
    """Remove the boxes of small regions as the functional form does."""
    return clear_small_boxes(inside, min_area)


def hooks(rng, size=90):
    """Draw hooks of 5 pixels' width that do not touch: their boxes hold parts of other hooks."""
    inside, areas = np.zeros((size + 2, size + 2), bool), []
    for _ in range(60):
        height, width = rng.integers(8, 45, 2)
        hook = np.zeros((height, width), bool)
        hook[:, :5] = hook[-5:] = True
        hook[: rng.integers(5, height), -5:] |= rng.random() < 0.3
        hook = np.rot90(hook, rng.integers(4))
        y, x = rng.integers(1, size + 2 - np.array(hook.shape))  # up to the border
        window = slice(y - 1, y + hook.shape[0] + 1), slice(x - 1, x + hook.shape[1] + 1)
        room = binary_dilation(np.pad(hook, 1), np.ones((3, 3)))
        if not (inside[window] & room).any():
            inside[y : y + hook.shape[0], x : x + hook.shape[1]] |= hook
            areas.append(np.count_nonzero(hook))
    return inside[1:-1, 1:-1], areas


def without_order(inside, min_area):
    """Remove the boxes of what is small from the start, then of what is small after that."""
    labels, _ = label(inside, np.ones((3, 3)))
    left = labels.copy()
    for _ in range(2):
        for number in np.flatnonzero(np.bincount(left.ravel(), minlength=1) < min_area):
            y, x = np.nonzero(labels == number)
            if y.size:
                left[y.min() : y.max() + 1, x.min() : x.max() + 1] = 0
    return left > 0
