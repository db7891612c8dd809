"""The robust lung mask for a batch: the steps of `anatpaste_aug.robust`, in its order."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from anatpaste_aug import robust as functional
from anatpaste_aug.batch import tensors
from anatpaste_aug.images import to_grey
from anatpaste_aug.robust import (
    CANDIDATES,
    CELLS,
    FAINT,
    LANDMARKS,
    REACH,
    SIDE,
    SMOOTHING,
    STEPS,
    TRIM,
    default_prior,
)

CHUNK_CROSSINGS = 2**23  # of outlines and rows, at a time


def lung_mask_robust(images: Tensor) -> Tensor:
    """Outline both lungs on each radiograph of a batch, as `anatpaste_aug.lung_mask_robust` does.

    Parameters
    ----------
    images : (B, C, H, W) Tensor
        As for `anatpaste_aug.batch.apply_paste`. Upright; of either polarity.

    Returns
    -------
    masks : (B, 1, H, W) Tensor of bool
        The lung fields; empty where an image is constant. On the CPU equal to
        `anatpaste_aug.lung_mask_robust` of every image. On other devices sums are taken in another
        order, so that now and then an outline may differ by a pixel.

    Raises
    ------
    TypeError, ValueError
        If `images` has another type or shape.

    Notes
    -----
    The device is not waited for, so that no warning comes where there are no lungs: the function's
    ``return_quality=True`` tells. At the first call the prior is copied to the device, 80 MB.

    Examples
    --------
    >>> import torch
    >>> from anatpaste_aug import batch
    >>> batch.lung_mask_robust(torch.randint(256, (4, 1, 64, 64), dtype=torch.uint8)).shape
    torch.Size([4, 1, 64, 64])
    """
    images = tensors.as_images(images)
    return robust_masks(images, tensors.everyone(images))[:, None]


def robust_fake(images: Tensor, chosen: Tensor) -> Tensor:
    """Return an empty tensor for the masks."""
    return images.new_empty((images.shape[0], *images.shape[2:]), dtype=torch.bool)


def robust_plain(images: Tensor, chosen: Tensor) -> Tensor:
    """Outline the lungs on all images with plain torch operations."""
    masks = robust_fake(images, chosen)
    if not len(images):
        return masks
    for part in tensors.chunks(images):
        grey = tensors.to_grey(tensors.working(images[part]))
        picture, frame, seen = make_view(grey)
        outline = find_outline(edge_field(picture), prior_on(images.device))
        masks[part] = draw_outline(outline, frame, grey.shape[1:]) & seen[:, None, None]
    return masks


def robust_cpu(images: Tensor, chosen: Tensor) -> Tensor:
    """Outline the lungs on the chosen images one by one in the functional form."""
    masks = np.zeros((images.shape[0], *images.shape[2:]), bool)
    for i in np.flatnonzero(chosen.numpy()):
        grey = to_grey(tensors.to_numpy(images[i]))
        masks[i], _ = functional.outline_lungs(grey, default_prior())
    return torch.from_numpy(masks)


robust_masks = tensors.make_op(  # of the chosen images of a checked batch, (B, H, W)
    "lung_mask_robust",
    "(Tensor images, Tensor chosen) -> Tensor",
    robust_plain,
    robust_cpu,
    robust_fake,
)


class Prior(NamedTuple):
    """What `anatpaste_aug.robust.ShapePrior` holds, as float64 tensors on a device."""

    basis: Tensor
    profile: Tensor
    stiffness: Tensor
    poses: Tensor
    bonus: Tensor
    table: Tensor
    rounding: Tensor
    gaussian: Tensor


@cache
def prior_on(device: torch.device) -> Prior:
    """Copy the prior to a device, once."""
    prior = default_prior()
    poses, bonus, table = prior.search_table
    x = np.arange(-int(3 * SMOOTHING + 0.5), int(3 * SMOOTHING + 0.5) + 1)
    gaussian = np.exp(-0.5 * (x / SMOOTHING) ** 2)
    arrays = [prior.basis, prior.profile, prior.stiffness, poses, bonus, table.toarray()]
    arrays += [functional.rounding(), gaussian / gaussian.sum()]
    kept = [torch.from_numpy(np.ascontiguousarray(a, np.float64)) for a in arrays]
    return Prior(*(one.to(device, non_blocking=True) for one in kept))


def make_view(grey: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shrink, cut off bars, equalise (B, H, W) images of a working dtype.

    Returns
    -------
    picture : (B, SIDE, SIDE) Tensor of float32
        In 0..1.
    frame : (B, 4) Tensor of float64
        The share (x, y, w, h) of the image that it shows.
    seen : (B,) Tensor of bool
        False where there is nothing to see.
    """
    count, height, width = grey.shape
    grey = grey.double()
    grey = grey - grey.amin((1, 2), keepdim=True)
    highest = grey.amax((1, 2), keepdim=True)
    grey = (grey / highest.masked_fill(highest == 0, 1)).float().double()
    down, across = max(1, height // (2 * SIDE)), max(1, width // (2 * SIDE))
    small = reduce(grey, down, across)
    whole = reduce(small, 2, 2)
    low, high = whole.amin((1, 2)), whole.amax((1, 2))
    (left, right), (top, bottom) = (content(one, high - low) for one in (whole, whole.mT))

    # Rows, then columns, each rounded to float32, as Pillow does.
    columns = resize_weights(left * width / across, right * width / across, small.shape[2])
    rows = resize_weights(top * height / down, bottom * height / down, small.shape[1])
    picture = (rows @ (small @ columns.mT).float().double()).float()
    level = (picture * (STEPS - 1) + 0.501).long().clamp(0, STEPS - 1).flatten(1)
    counts = torch.zeros((count, STEPS), dtype=torch.int32, device=grey.device)
    one = torch.ones((1, 1), dtype=torch.int32, device=grey.device)
    counts.scatter_add_(1, level, one.expand_as(level))
    rank = (counts.cumsum(1, dtype=torch.int64).double() - counts.double() / 2) / SIDE**2
    picture = rank.float().gather(1, level).view(count, SIDE, SIDE)
    return picture, torch.stack([left, top, right - left, bottom - top], 1), high > low


def reduce(images: Tensor, down: int, across: int) -> Tensor:
    """Average boxes of (B, H, W) float64 images, those at the far edges too, as Pillow does."""
    boxes = torch.nn.functional.avg_pool2d(
        images[:, None], (down, across), ceil_mode=True, count_include_pad=False
    )
    return boxes[:, 0].float().double()


def content(whole: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Return first and last column that is not a bar, as shares of the width, (B,) float64."""
    height, width = whole.shape[1:]
    ordered = whole.float().sort(1)[0]
    contrast = ordered[:, -1 - height // 12] - ordered[:, height // 12]
    kept = contrast > (TRIM * spread.float())[:, None]
    first, past = tensors.span(kept)
    found = kept.any(1) & (past - 1 - first >= width // 4)
    share = torch.stack([first, past]).double() / width
    first_share, past_share = torch.where(found, share, torch.tensor([[0.0], [1.0]]).to(share))
    return first_share, past_share


def resize_weights(start: Tensor, stop: Tensor, old: int) -> Tensor:
    """Return the share of each of `old` pixels in each of SIDE ones, (B, SIDE, old) float64.

    A tent around the middle of the new pixel, as wide as one or, where they are smaller, two. The
    new ones lie from `start` to `stop`, which Pillow takes as float32.
    """
    start, stop = start.float(), stop.float()
    scale = (stop - start).double()[:, None, None] / SIDE
    new = torch.arange(SIDE, device=start.device)[:, None].double() + 0.5
    place = torch.arange(old, device=start.device).double()
    middle = start.double()[:, None, None] + new * scale
    tent = (1 - ((place - middle + 0.5) * (1 / scale.clamp(min=1))).abs()).clamp(min=0)
    return tent * (1 / tent.sum(2, keepdim=True))


def edge_field(picture: Tensor) -> Tensor:
    """Return the gradient (B, 2, SIDE, SIDE), x and y; its length saturates at 1; float64."""
    weights = prior_on(picture.device).gaussian
    smooth = blur(blur(picture, weights, 1), weights, 2)
    down, across = torch.gradient(smooth, dim=(1, 2))
    square = across * across + down * down
    ordered = square[:, ::2, ::2].flatten(1).sort(1)[0]
    half = ordered.shape[1] // 2
    median = (ordered[:, half - 1] + ordered[:, half]) / 2
    middle = (FAINT * median.sqrt() + 1e-6)[:, None, None]
    length = (square + middle * middle).sqrt()
    return torch.stack([across / length, down / length], 1).double()


def blur(picture: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Average along an axis with weights, the border repeated: float32, summed in float64."""
    size, reach = picture.shape[axis], len(weights) // 2
    place = torch.arange(-reach, size + reach, device=picture.device).clamp(0, size - 1)
    padded = picture.double().index_select(axis, place)
    total = padded.narrow(axis, reach, size) * weights[reach]
    for step in range(1, reach + 1):
        both = padded.narrow(axis, reach - step, size) + padded.narrow(axis, reach + step, size)
        total = total + both * weights[reach + step]
    return total.float()


def find_outline(edges: Tensor, prior: Prior) -> Tensor:
    """Return the outline (B, 2, 2 * LANDMARKS) of the lungs, as shares of the picture."""
    poses, polarity = search_poses(edges, prior)
    start = poses.new_zeros((*poses.shape[:2], len(prior.basis)))
    start[..., :2] = poses[..., :2] / poses[..., 2:]
    start[..., 2] = start[..., 5] = 1.0
    pixels = poses[..., 2:] * SIDE
    fits = start
    for radius in (12, 8):
        fits = bend(fits, start, pixels, polarity, edges, prior, radius, 2)
    best = agreement(fits, pixels, polarity, edges, prior).argmax(1)[:, None]

    def of_best(values: Tensor) -> Tensor:
        index = best.view(-1, 1, *[1] * (values.ndim - 2))
        return values.take_along_dim(index, 1)

    fits, start, pixels, polarity = map(of_best, (fits, start, pixels, polarity))
    for radius in (8, 6, 4):
        fits = bend(fits, start, pixels, polarity, edges, prior, radius, 1)
    return make_outline(fits, pixels, prior)[0][:, 0] / SIDE


def search_poses(edges: Tensor, prior: Prior) -> tuple[Tensor, Tensor]:
    """Return the likeliest poses (B, n, 4), and whether lungs are dark, (B, n): 1 or -1."""
    count, block = edges.shape[0], SIDE // CELLS
    coarse = edges.view(count, 2, CELLS, block, CELLS, block).mean((3, 5)).float().double()
    score = (coarse.flatten(1) @ prior.table.mT).view(count, *prior.poses.shape[:2])
    score = score * prior.bonus[:, None]
    score, where = torch.stack([score, -score], 1).max(3)
    order = score.flatten(1).sort(stable=True, dim=1, descending=True)[1][:, :CANDIDATES]
    sizes = prior.poses.shape[0]
    place = where.flatten(1).gather(1, order)
    index = order % sizes * prior.poses.shape[1] + place
    poses = prior.poses.flatten(0, 1)[index.flatten()].view(count, CANDIDATES, 4)
    return poses, 1.0 - 2.0 * (order // sizes).double()


def make_outline(fits: Tensor, pixels: Tensor, prior: Prior) -> tuple[Tensor, Tensor]:
    """Return points and outward normals, (B, n, 2, 2 * LANDMARKS) each, of shapes."""
    flat = fits.flatten(0, 1) @ prior.basis.flatten(1)
    points, tangents = flat.view(*fits.shape[:2], 2, -1).chunk(2, 3)
    scaled = tangents * pixels[..., None]
    normals = torch.stack([scaled[:, :, 1], -scaled[:, :, 0]], 2)
    length = (normals**2).sum(2, keepdim=True).sqrt() + 1e-9
    return points * pixels[..., None], normals / length


def edges_across(points: Tensor, normals: Tensor, edges: Tensor, reach: int) -> Tensor:
    """Return edge strength along each normal, (B, n, points, 2 * reach + 1)."""
    offsets = torch.arange(-reach, reach + 1, device=edges.device)
    along = points[..., None] + normals[..., None] * offsets
    column, row = along.long().clamp(0, SIDE - 1).unbind(2)
    index = (row * SIDE + column).flatten(1)
    x, y = (edges[:, axis].flatten(1).gather(1, index).view_as(row) for axis in (0, 1))
    return x * normals[:, :, 0, :, None] + y * normals[:, :, 1, :, None]


def agreement(
    fits: Tensor, pixels: Tensor, polarity: Tensor, edges: Tensor, prior: Prior
) -> Tensor:
    """Tell how well the edges under each outline agree with the learned profiles, (B, n)."""
    strength = edges_across(*make_outline(fits, pixels, prior), edges, REACH)
    return polarity * (strength * prior.profile).sum((2, 3))


def bend(
    fits: Tensor,
    start: Tensor,
    pixels: Tensor,
    polarity: Tensor,
    edges: Tensor,
    prior: Prior,
    radius: int,
    every: int,
) -> Tensor:
    """Make one round: see `anatpaste_aug.robust.bend`."""
    points, normals = (one[..., ::every] for one in make_outline(fits, pixels, prior))
    strength = edges_across(points, normals, edges, radius + REACH)
    windows = strength.unfold(3, 2 * REACH + 1, 1)
    match = (windows * prior.profile[::every, None]).sum(4) * polarity[..., None, None]
    step = torch.arange(-radius, radius + 1, device=edges.device).double()
    weight = (10.0 * match - 0.5 * (step / (0.6 * radius)) ** 2).exp()
    total = weight.sum(3)
    move = (weight * step).sum(3) / total
    trust = ((weight * match).sum(3) / total).clamp(0.05, 1.0) * every
    basis = prior.basis[:, :, : 2 * LANDMARKS : every]
    along = normals * pixels[..., None]
    pull = basis[:, 0] * along[:, :, 0, None] + basis[:, 1] * along[:, :, 1, None]
    pulled = pull * trust[:, :, None]
    left = pulled @ pull.mT + prior.stiffness.diag()
    target = move[:, :, None] + fits[:, :, None] @ pull
    right = (pulled @ target.mT)[..., 0] + prior.stiffness * start
    # Without the check, which would wait for the device: `left` is positive definite.
    solved: Tensor = torch.linalg.solve_ex(left, right[..., None])[0]
    return solved[..., 0]


def draw_outline(outline: Tensor, frame: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Fill both outlines, rounded off, in images of this shape: (B, H, W) bool."""
    height, width = shape
    fine = 2 * (SIDE // max(shape)) + 1  # small images are drawn larger
    size = torch.tensor([width * fine, height * fine], dtype=torch.float64).to(frame)
    loops = (frame[:, None, :2] + outline.mT * frame[:, None, 2:]) * size
    curves = prior_on(frame.device).rounding @ loops.view(-1, 2, LANDMARKS, 2)
    # Pillow drops fractions and fills the rim too, so go half a pixel inwards.
    ahead = curves.roll(-1, 2) - curves.roll(1, 2)
    inwards = torch.stack([ahead[..., 1], -ahead[..., 0]], 3)
    inwards = torch.cat([inwards[:, :1], -inwards[:, 1:]], 1)
    length = (ahead**2).sum(3, keepdim=True).sqrt() + 1e-9
    corners = (curves + 0.5 * inwards / length).long()
    rows = torch.arange(fine // 2, height * fine, fine, device=frame.device)
    masks = torch.empty((len(frame), height, width), dtype=torch.bool, device=frame.device)
    step = max(CHUNK_CROSSINGS // (corners.shape[1] * corners.shape[2] * height), 1)
    for begin in range(0, len(frame), step):
        part = slice(begin, begin + step)
        filled = fill_polygons(corners[part].flatten(0, 1), rows, height * fine, width * fine)
        masks[part] = filled.view(-1, 2, height, width * fine)[..., fine // 2 :: fine].any(1)
    return masks


def fill_polygons(corners: Tensor, rows: Tensor, height: int, width: int) -> Tensor:
    """Fill polygons in some rows of a canvas: (n, rows, width) bool from (n, corners, 2) int64.

    What Pillow's ``ImageDraw.polygon`` fills, but for a pixel at some corners: where a row crosses
    the edges, from every second crossing to the next, and the pixels of the crossings themselves,
    rounded to the nearest; each pixel of level edges. A crossing in the middle between two pixels
    belongs to the one inside.
    """
    x, y = corners[:, :, None].unbind(3)
    next_x, next_y = x.roll(-1, 1), y.roll(-1, 1)
    low, high = torch.minimum(y, next_y), torch.maximum(y, next_y)
    bottom = high.amax(1, keepdim=True).clamp(max=height)
    level = low == high
    slope = (next_x - x).float() / (next_y - y).masked_fill(level, 1).float()
    crossing = (rows - y).float() * slope + x.float()
    meets = (rows >= low) & (rows <= high)
    # Where an edge ends it counts twice, as the next one begins there or turns back.
    twice = (rows == high) & (rows < bottom)
    count = (meets & ~level & ~twice).int()
    # Twice the place of the crossing, in whole numbers: odd ones lie in the middle.
    double = torch.where(
        crossing - crossing.floor() == 0.5, 2 * crossing, 2 * (crossing + 0.5).floor()
    )
    double = double.long().clamp(-4, 2 * width + 4)
    begins = torch.where(level, torch.minimum(x, next_x), (double + 1) // 2)
    ends = torch.where(level, torch.maximum(x, next_x), double // 2)
    shown = (meets & (begins <= ends)).int()

    def collect(place: Tensor, values: Tensor) -> Tensor:
        place = place.clamp(0, width).transpose(1, 2)
        sums = torch.zeros((*place.shape[:2], width + 1), dtype=torch.int32, device=place.device)
        return sums.scatter_add_(2, place, values.transpose(1, 2).expand_as(place))

    passed = collect(double // 2 + 1, count).cumsum(2, dtype=torch.int32)
    covered = (collect(begins, shown) - collect(ends + 1, shown)).cumsum(2, dtype=torch.int32)
    return ((passed % 2 == 1) | (covered > 0))[..., :width]
