"""Opacity: lesion-like brightenings of the lungs: options, draw, alpha and paste, its functions.

All that is random lies in the params. Alpha is computed in whole numbers, on a grid of about 128
cells a side, and enlarged linearly at the end, so that every machine computes the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from anatpaste_aug.checks import LARGEST, Rng, check_integers
from anatpaste_aug.crop import bounding_box, true_range
from anatpaste_aug.images import Array, ImageLike, Mask, MaskLike, Window, as_mask
from anatpaste_aug.operations.alpha import Alpha, AlphaOperation, check_center, meet
from anatpaste_aug.operations.base import CallOptions, lengths_for_option, option, show_options
from anatpaste_aug.operations.sampling import Sampler

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["OpacityParams", "apply_opacity", "opacity", "opacity_alpha", "sample_opacity"]

Kind: TypeAlias = Literal["consolidation", "haze", "nodule", "effusion"]
Kinds: TypeAlias = "str | Sequence[str]"
KINDS: tuple[Kind, ...] = ("consolidation", "haze", "nodule", "effusion")

# What is drawn: half axes in pixels of a 256 x 256 image, how much they differ, alpha, brightness.
RADIUS = {"consolidation": (22, 75), "haze": (55, 130), "nodule": (5, 14)}
STRETCH = {"consolidation": 0.45, "haze": 0.45, "nodule": 0.18}
DENSITY = {
    "consolidation": (100, 215),
    "haze": (60, 150),
    "nodule": (60, 140),
    "effusion": (150, 225),
}
LEVEL = (90, 200)
# Of an effusion: how high its surface stands and its meniscus rises, as shares of the lung; tilt.
SURFACE = (0.04, 0.38)
MENISCUS = (0.05, 0.16)
TILT = (0, 15)

CELLS = 128  # cells on a side of the grid, about; a cell is a whole number of pixels
OCTAVES = (7, 15, 31)  # spans of the texture's three octaves across the image, and their weights
WEIGHTS = (4, 2, 1)
TONES = 64  # pixels on a side, about, that the bright level is read from
ONE = 1024  # fixed-point 1
FAR = 8191  # in 1024ths: from eight half axes on, coordinates are all alike
LOW31 = 0x7FFFFFFF


@dataclass(frozen=True)
class OpacityParams:
    """One opacity: what kind of lesion, where, how large, how dense and how bright.

    Parameters
    ----------
    kind : {"consolidation", "haze", "nodule", "effusion"}
        Haze is ground glass: ribs and vessels show through.
    center_x, center_y : int
        Middle of the lesion, in pixels; of an effusion, middle of the fluid's surface.
    radius_x, radius_y : int
        Half axes, in pixels, at least 1; of an effusion, half the width of the fluid, and how far
        its meniscus rises at the sides.
    angle : int
        Turns the axes, clockwise, in whole degrees, -90..90; of an effusion, tilts the surface.
    density : int
        Alpha where the lesion is densest, 0..255.
    level : int
        How bright it is: as many 256ths of the soft tissue around the lungs are darker, 0..255.
    seed : int
        Of the texture, 0..2**31 - 1.

    Raises
    ------
    TypeError, ValueError
        If a field has another type or leaves its range.
    """

    kind: Kind
    center_x: int
    center_y: int
    radius_x: int
    radius_y: int
    angle: int
    density: int
    level: int
    seed: int

    def __post_init__(self) -> None:
        """Check every field, and keep plain Python numbers."""
        if self.kind not in KINDS:
            raise ValueError(f"kind must be out of {KINDS}, got {self.kind!r}")
        check_integers(self, ("center_x", "center_y"), 0)
        check_integers(self, ("radius_x", "radius_y"), 1)
        check_integers(self, ("angle",), -90, 90)
        check_integers(self, ("density", "level"), 0, 255)
        check_integers(self, ("seed",), 0, LOW31)


@dataclass(frozen=True)
class Opacity(AlphaOperation[OpacityParams]):
    """The options of Opacity, and what is done with them; see `opacity` and `sample_opacity`."""

    kinds: Kinds = option(KINDS, words=KINDS)
    size: float = option(1, 0.01, 100, single=True)
    density: float = option(1, 0, 255, single=True)
    lengths_for: float | None = lengths_for_option()

    params = OpacityParams

    def draw(self, sampler: Sampler, shape: tuple[int, int], lungs: Any) -> OpacityParams:
        """Draw a kind, a pixel of the lungs to put it on, and its size, density and brightness."""
        y, x = sampler.pixel(lungs)
        kind: Any = sampler.choice(self.kinds)
        density = sampler.integer([min(round(end * self.density), 255) for end in DENSITY[kind]])
        if kind == "effusion":
            place = self.draw_fluid(sampler, lungs, x)
        else:
            place = {"center_x": x, "center_y": y, **self.draw_lesion(sampler, shape, kind)}
        level, seed = sampler.integer(LEVEL), sampler.integer((0, LOW31))
        return OpacityParams(kind, **place, density=density, level=level, seed=seed)

    def draw_lesion(self, sampler: Sampler, shape: tuple[int, int], kind: str) -> dict[str, int]:
        """Draw the half axes of an ellipse, and its angle."""
        low, high = RADIUS[kind]
        radius = sampler.log_uniform(self.scaled((low * self.size, high * self.size), shape, 1))
        stretch = math.exp(sampler.uniform((-STRETCH[kind], STRETCH[kind])))
        x, y = (min(max(round(end), 1), LARGEST) for end in (radius * stretch, radius / stretch))
        return {"radius_x": x, "radius_y": y, "angle": sampler.integer((-90, 89))}

    def draw_fluid(self, sampler: Sampler, lungs: Mask, x: int) -> dict[str, int]:
        """Draw the surface of fluid at the base of a lung, higher at the chest wall."""
        (rows, columns), side = one_lung(lungs, x)
        tall = (rows.stop - rows.start) * self.size
        surface = rows.stop - 1 - round(tall * sampler.uniform(SURFACE))
        return {
            "center_x": (columns.start + columns.stop - 1) // 2,
            "center_y": min(max(surface, 0), len(lungs) - 1),
            "radius_x": max((columns.stop - columns.start) // 2, 1),
            "radius_y": min(max(round(tall * sampler.uniform(MENISCUS)), 1), LARGEST),
            "angle": sampler.integer(TILT) * side,
        }

    @staticmethod
    def alpha_window(params: OpacityParams, lungs: Mask) -> tuple[Window, Alpha]:
        """Draw the lesion's profile, with a texture, times the softened lungs, on a grid."""
        height, width = lungs.shape
        check_center(params, lungs.shape)
        # The side of a cell in pixels: 2 for 256 x 256.
        cell = max(1, (math.isqrt(height * width) + CELLS // 2) // CELLS)
        reach = 2 * max(params.radius_x, params.radius_y) + cell  # no profile goes on from two axes
        columns = meet(params.center_x, reach, cell, width)
        rows = meet(params.center_y, reach, cell, height)
        if params.kind == "effusion":
            rows = slice(0, -(-height // cell))  # down to the base
        soft: Any = 64
        if lungs.any():
            y, x = (middles(np.arange(-2, -(-n // cell) + 2), n, cell) for n in (height, width))
            grid = soften(lungs.view(np.int8).take(y, 0).take(x, 1))
            columns = extent(grid[rows].any(0), columns)
            rows = extent(grid[:, columns].any(1), rows)
            soft = grid[rows, columns]
        x, y = (
            np.arange(part.start, part.stop) * (2 * cell) + (cell - 1) for part in (columns, rows)
        )
        level = params.angle * (params.kind != "effusion")
        u, v = axes(params, level, x, y[:, None])
        noise = texture(params.seed, lungs.shape, cell, rows, columns)
        dense, within = profile(params.kind, u, v, noise)
        density = (smooth(dense) * within.clip(0, ONE) >> 10) * params.density
        alpha = enlarge((density * soft + (1 << 15)) >> 16, cell)
        top, left = rows.start * cell, columns.start * cell
        alpha = alpha[: height - top, : width - left]
        return (slice(top, top + alpha.shape[0]), slice(left, left + alpha.shape[1])), alpha

    @staticmethod
    def canvas(
        image: Array, params: OpacityParams, window: Window, lungs: Mask
    ) -> tuple[Array, Array, Array]:
        """Return the image, raised to the bright level."""
        pixels = image[window]
        canvas = np.maximum(pixels, bright_level(image, params.level, lungs))
        return canvas, pixels, canvas


class OpacityOptions(TypedDict, total=False):
    """The options of Opacity."""

    kinds: Kinds
    size: float
    density: float
    lengths_for: float | None


class OpacityArguments(CallOptions, OpacityOptions, total=False):
    """What forms of Opacity take."""


class OpacityForm:
    """What the transform and the module of Opacity share: what they do and take."""

    operation: Any = Opacity

    if TYPE_CHECKING:

        def __init__(self, p: float = 0.5, **options: Unpack[OpacityArguments]) -> None: ...


@show_options(Opacity, like=Opacity.__call__)
def opacity(image: ImageLike, rng: Rng = None, **options: Unpack[OpacityArguments]) -> Any:
    """Brighten a part of the lungs as disease does: an opacity with soft, irregular borders.

    A bright level, read from the soft tissue around the lungs, is blended in through the alpha of
    a consolidation, a haze (ground glass), a nodule, or an effusion that fills the base with a
    meniscus. No pixel gets darker, and ribs stay brighter than the lesion. Pneumonia is mostly in
    several places: apply it one to three times.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image
        As for `anatpaste`. Lungs must be dark.
    rng : int, numpy.random.Generator or None, optional
        Seed or source of the draws.
    mask, segment
        As for `anatpaste`. `lung_mask_robust` finds whole lungs, with borders that fit; if the mask
        is empty, the opacity may go anywhere.
    return_mask : bool, optional
        Whether to return the changed region too.
    kinds, size, density, lengths_for
        As for `sample_opacity`.

    Returns
    -------
    out : same type, shape and dtype as `image`
        Nowhere darker than `image`, and no brighter than its maximum.
    region : (H, W) ndarray of bool
        Where alpha > 0. Only with ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        If the image, the mask or an option is not as above, or both `mask` and `segment` are given.

    Examples
    --------
    >>> from anatpaste_aug import lung_mask_robust, opacity
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> image = phantom_radiograph(256, rng=0)
    >>> out, region = opacity(image, rng=0, segment=lung_mask_robust, return_mask=True)
    >>> bool((out >= image).all()), bool((out != image)[~region].any())
    (True, False)
    """
    return Opacity.call(image, rng, options)


@show_options(Opacity)
def sample_opacity(
    mask: MaskLike, rng: Rng = None, **options: Unpack[OpacityOptions]
) -> OpacityParams:
    """Draw the parameters of one opacity.

    Parameters
    ----------
    mask : (H, W) ndarray of bool or integer, or Pillow image of mode 1 or L
        Lung mask of the image. A lesion lies on one of its pixels, drawn uniformly, or anywhere in
        the image if the mask is empty; an effusion at the base of that pixel's lung.
    rng : int, numpy.random.Generator or None, optional
        Seed or source of the draws.
    kinds : str or sequence of str, optional
        Kinds to choose from, each equally likely: consolidation (half axes of 22-75 pixels), haze
        (55-130), nodule (5-14), all log-uniform and for 256 x 256, and effusion (4-38 % of the
        lung's height, uniform).
    size : float, optional
        Factor of these lengths, 0.01..100.
    density : float, optional
        Factor of alpha, 0..255; alpha ends at 255. It is uniform over 100-215 in a consolidation,
        60-150 in haze, 60-140 in a nodule, 150-225 in an effusion.
    lengths_for : float or None, optional
        The half axes are lengths for an image of this height and width, and are scaled by
        sqrt(H W) over it, to whole pixels. None: pixels of the image as it is.

    Returns
    -------
    params : OpacityParams
        In pixels of the image.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type or leaves its limits.

    Examples
    --------
    >>> import numpy as np
    >>> from anatpaste_aug import sample_opacity
    >>> sample_opacity(np.ones((256, 256), bool), rng=0, kinds="nodule").kind
    'nodule'
    """
    lungs = as_mask(mask)
    return Opacity(**options).sample(lungs.shape, lungs, rng)


def opacity_alpha(params: OpacityParams, mask: MaskLike) -> Alpha:
    """Draw the alpha of an opacity: its profile, with a texture, times the softened lungs.

    Parameters
    ----------
    params : OpacityParams
        What to draw.
    mask : (H, W) ndarray of bool or integer
        Lung mask; an empty one confines nothing. Alpha is full up to the lungs' border and fades
        outside of it, within three cells of sqrt(H W) / 128 pixels: a fade inside would leave a
        dark rim between the lesion and heart or diaphragm, which no disease has.

    Returns
    -------
    alpha : (H, W) ndarray of uint8
        0 (image) to 255 (bright level).

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, or the center lies outside the image.
    """
    return Opacity.alpha(params, mask)


def apply_opacity(
    image: ImageLike, params: OpacityParams, mask: MaskLike = None, *, return_mask: bool = False
) -> Any:
    """Apply one opacity; deterministic.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) ndarray, or Pillow image
        As for `opacity`.
    params : OpacityParams
        What to paste.
    mask : (H, W) ndarray of bool or integer, optional
        Lung mask. Without one, or with an empty one, the opacity goes anywhere.
    return_mask : bool, optional
        Whether to return the changed region too.

    Returns
    -------
    out : same type, shape and dtype as `image`
        ``image * (1 - alpha / 255) + canvas * alpha / 255``, rounded to nearest for integers, where
        the canvas is the image, raised to the bright level where it is darker.
    region : (H, W) ndarray of bool
        Where alpha > 0. Only with ``return_mask=True``.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, or the center lies outside the image.
    """
    return Opacity.replay(image, params, mask, return_mask=return_mask)


def one_lung(lungs: Mask, x: int) -> tuple[Window, int]:
    """Return the box of the lung that holds column `x`; and 1 for the left half, -1 for the right.

    The halves are those of the box of both lungs; without lungs, of the image.
    """
    columns = true_range(lungs.any(0))
    middle = (columns.start + columns.stop) // 2
    rows, part = bounding_box(lungs[:, :middle] if x < middle else lungs[:, middle:])
    before = 0 if x < middle else middle
    return (rows, slice(before + part.start, before + part.stop)), 1 if x < middle else -1


def extent(flags: Mask, part: slice) -> slice:
    """Return the cells of a part from the first to the last flag, and one more on each side."""
    here = np.flatnonzero(flags[part])
    if not here.size:
        return slice(part.start, part.start + 1)
    first, last = part.start + int(here[0]), part.start + int(here[-1])
    return slice(max(first - 1, part.start), min(last + 2, part.stop))


def middles(cells: Array, length: int, cell: int) -> Array:
    """Return the middle pixels of cells along a side; beyond its ends, those are repeated."""
    return (cells.clip(0, (length - 1) // cell) * cell + cell // 2).clip(0, length - 1)


def soften(lungs: Array) -> Any:
    """Soften lungs of 0 and 1 on the grid: 64 inside, 0 from about two cells outside; int8.

    They come with two more cells on each side. Weights 1 2 2 2 1 both ways, doubled and cut.
    """
    for _ in range(2):  # down, then across
        pairs = lungs[:-1] + lungs[1:]
        threes = pairs[:-1] + pairs[1:]
        lungs = (threes[:-2] + threes[2:]).T
    return lungs.clip(0, 32) << 1


def sine(degrees: int) -> int:
    """Return the sine of whole degrees, -90..90, times 2**14: Bhaskara's formula, within 0.002."""
    turn = abs(degrees) * (180 - abs(degrees))
    return (turn << 16) // (40500 - turn) * ((degrees > 0) * 2 - 1)


def axes(params: OpacityParams, level: int, x: Array, y: Array) -> tuple[Array, Array]:
    """Turn doubled coordinates of pixels into 1024ths of the half axes, within +-FAR.

    `level` is the angle of the first axis: that of an effusion stays level when its surface tilts.
    """
    x, y = x - 2 * params.center_x, y - 2 * params.center_y
    along, across = params.radius_x << 5, params.radius_y << 5
    u = np.int32(x * sine(90 - abs(level)) // along) + np.int32(y * sine(level) // along)
    v = np.int32(x * -sine(params.angle) // across)
    v = v + np.int32(y * sine(90 - abs(params.angle)) // across)
    return u.clip(-FAR, FAR), v.clip(-FAR, FAR)


def smooth(values: Array) -> Array:
    """Return the smoothstep of 1024ths."""
    values = values.clip(0, ONE)
    return (values * values >> 10) * (3 * ONE - 2 * values) >> 10


def profile(kind: Kind, u: Array, v: Array, noise: Array) -> tuple[Array, Array]:
    """Return how dense a lesion is and its mottling, both to be cut to 0..1, in 1024ths.

    The lesion is the smoothstep of the one times the other. Nothing is left from two axes on, but
    below the surface of an effusion: a parabola.
    """
    squares = u * u
    if kind == "effusion":
        depth = v + (squares >> 10) + (noise >> 2)
        return (depth >> 1) + 300, (1400 - abs(u)) * 4
    t = (squares + v * v) >> 10
    if kind == "consolidation":
        return ONE - (t * 3 >> 2) + noise, 860 + (noise >> 1)
    if kind == "haze":
        return ONE - t + (noise >> 1), 700 + noise
    return (ONE - t) + ((ONE - t) >> 1) + (noise >> 2), np.full_like(t, ONE)


def white_noise(seed: int, y: Array, x: Array) -> Array:
    """Hash rows, columns and a seed to -128..127; int64 products stay below 2**63."""
    h = (x * 0x1B873593 + y * 0x2545F491 + seed) & LOW31
    h = ((h ^ h >> 16) * 0x21F0AAAD) & LOW31
    h = ((h ^ h >> 15) * 0x735A2D97) & LOW31
    return ((h ^ h >> 15) >> 8 & 255) - 128


@lru_cache(maxsize=32)
def spline_table(cells: int, length: int, cell: int, count: int) -> npt.NDArray[np.float64]:
    """Return quadratic B-splines, (cells, count + 2), at the middles of all cells along a side.

    Whole numbers, 2**17 in each row.
    """
    position = (np.arange(cells)[:, None] * (2 * cell) + cell) * (count * 128) // length
    part, knot = position & 255, (position >> 8).clip(0, count - 1)  # a cell may reach past the end
    place = np.arange(count + 2) - knot
    pieces = [(256 - part) ** 2, 65536 + 2 * part * (256 - part), part**2]
    table = np.select([place == 0, place == 1, place == 2], pieces, 0).astype(np.float64)
    table.flags.writeable = False
    return table


def texture(seed: int, shape: tuple[int, ...], cell: int, rows: slice, columns: slice) -> Array:
    """Return smooth noise around 0, within +-896, in those cells; int32.

    Partial sums of the matrix products are whole and below 2**53: exact in any order.
    """
    (height, width), side = shape, math.isqrt(shape[0] * shape[1])
    # Spans of each octave along both sides, as long in either direction.
    counts = [[max(1, (n * length + side // 2) // side) for length in shape] for n in OCTAVES]
    y, x = np.arange(counts[-1][0] + 2)[:, None], np.arange(sum(nx + 2 for _, nx in counts))
    white = white_noise(seed, y, x).astype(np.float64)
    left, right, start = [], [], 0
    for weight, (ny, nx) in zip(WEIGHTS, counts, strict=True):
        down = spline_table(-(-height // cell), height, cell, ny)[rows]
        left.append(down @ (white[: ny + 2, start : start + nx + 2] * weight))
        right.append(spline_table(-(-width // cell), width, cell, nx)[columns])
        start += nx + 2
    total = np.concatenate(left, 1) @ np.concatenate(right, 1).T
    return (total * 2.0**-34).astype(np.int32)


def enlarge(alpha: Array, cell: int) -> Alpha:
    """Enlarge the grid linearly, the border repeated, rounded once."""
    dtype = np.uint16 if cell <= 8 else np.uint32

    def down(values: Array) -> Array:
        before, after = np.concatenate((values[:1], values)), np.concatenate((values, values[-1:]))
        rows = np.empty((len(values), cell, values.shape[1]), dtype)
        for i, weight in enumerate(range(1 - cell, cell, 2)):  # of the neighbor, of 2 * cell
            other = before[:-1] if weight < 0 else after[1:]
            rows[:, i] = values * (2 * cell - abs(weight)) + other * abs(weight)
        return rows.reshape(-1, values.shape[1])

    total = down(down(alpha.astype(dtype).T).T)
    return ((total + 2 * cell**2) // (4 * cell**2)).astype(np.uint8)


def bright_level(image: Array, level: int, lungs: Mask) -> Array:
    """Return the gray value, one per channel, that is brighter than `level` / 256 of soft tissue.

    Soft tissue is what the box around the lungs holds beside them: heart, mediastinum, chest wall;
    without lungs, the image. Of about 64 x 64 pixels; an order statistic, so exact in any dtype.
    """
    step = max(1, math.isqrt(lungs.size) // TONES)
    some, inside = image[::step, ::step], lungs[::step, ::step]
    window = bounding_box(inside)
    some, tissue = some[window], ~inside[window]
    values = some[tissue] if tissue.any() else some.reshape(-1, *some.shape[2:])
    place = level * len(values) >> 8
    return np.partition(values, place, axis=0)[place]
