"""Opacity: lesion-like brightenings of the lungs: options, draw, alpha and paste, its functions.

All that is random lies in the params. Alpha is computed in whole numbers, on a grid of about 128
cells a side, and enlarged linearly at the end, so that every form and device gives the same bits.
What only adds, multiplies and shifts serves NumPy arrays and torch tensors alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, overload

import numpy as np
import numpy.typing as npt

from anatpaste_aug.checks import LARGEST, Rng, check_integer
from anatpaste_aug.images import Array, ImageT, Mask, MaskLike, Window, as_mask, box
from anatpaste_aug.lungs import Segment
from anatpaste_aug.operations.base import LENGTHS_FOR, Operation, lengths_for_option, option
from anatpaste_aug.operations.draws import Drawn, Draws, Fields
from anatpaste_aug.operations.patch import blend, check_center

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
        for name, low, high in (
            ("center_x", 0, LARGEST),
            ("center_y", 0, LARGEST),
            ("radius_x", 1, LARGEST),
            ("radius_y", 1, LARGEST),
            ("angle", -90, 90),
            ("density", 0, 255),
            ("level", 0, 255),
            ("seed", 0, LOW31),
        ):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), low, high))


@dataclass(frozen=True)
class Opacity(Operation[OpacityParams]):
    """The options of Opacity, and what is done with them; see `opacity` and `sample_opacity`."""

    kinds: Kinds = option(KINDS, words=KINDS)
    size: float = option(1, 0.01, 100, single=True)
    density: float = option(1, 0, 255, single=True)
    lengths_for: float | None = lengths_for_option()

    params = OpacityParams

    def draw(self, draws: Draws, shape: tuple[int, int], lungs: Any) -> Fields:
        """Draw a kind, a pixel of the lungs to put it on, and its size, density and brightness."""
        y, x = draws.pixel(lungs)
        forms: dict[str, Any] = {k: partial(self.lesion, draws, shape, k, y, x) for k in RADIUS}
        forms["effusion"] = partial(self.fluid, draws, shape, lungs, x)
        return {
            **draws.either(*(partial(self.form, draws, kind, forms[kind]) for kind in self.kinds)),
            "level": draws.integer(LEVEL),
            "seed": draws.integer((0, LOW31)),
        }

    def form(self, draws: Draws, kind: str, shape: Any) -> Fields:
        """Draw what depends on the kind."""
        ends = tuple(min(round(end * self.density), 255) for end in DENSITY[kind])
        return {"kind": kind, "density": draws.integer(ends), **shape()}

    def lesion(self, draws: Draws, shape: tuple[int, int], kind: str, y: Drawn, x: Drawn) -> Fields:
        """Draw an ellipse about a pixel."""
        low, high = RADIUS[kind]
        radius = draws.log_uniform(self.scaled((low * self.size, high * self.size), shape, 1))
        stretch = draws.math.exp(draws.uniform((-STRETCH[kind], STRETCH[kind])))
        return {
            "center_x": x,
            "center_y": y,
            "radius_x": draws.clip(draws.whole(radius * stretch), 1, LARGEST),
            "radius_y": draws.clip(draws.whole(radius / stretch), 1, LARGEST),
            "angle": draws.integer((-90, 89)),
        }

    def fluid(self, draws: Draws, shape: tuple[int, int], lungs: Any, x: Drawn) -> Fields:
        """Draw the surface of fluid at the base of a lung, higher at the chest wall."""
        top, bottom, left, right, side = draws.half(lungs, x)
        tall = (bottom - top) * self.size
        surface = bottom - 1 - draws.whole(tall * draws.uniform(SURFACE))
        return {
            "center_x": (left + right - 1) // 2,
            "center_y": draws.clip(surface, 0, shape[0] - 1),
            "radius_x": draws.clip((right - left) // 2, 1, LARGEST),
            "radius_y": draws.clip(draws.whole(tall * draws.uniform(MENISCUS)), 1, LARGEST),
            "angle": draws.integer(TILT) * side,
        }

    @staticmethod
    def apply(image: Array, params: OpacityParams, lungs: Mask | None) -> tuple[Array, Mask]:
        """Blend a brighter level in, through alpha."""
        if lungs is None:
            lungs = np.zeros(image.shape[:2], bool)
        window, alpha = alpha_window(params, lungs)
        region = np.zeros(image.shape[:2], bool)
        np.greater(alpha, 0, out=region[window])
        return blend_level(image, params, window, alpha, lungs), region


class OpacityArgs(TypedDict, total=False):
    """What `opacity` takes besides `return_mask`, for its overloads."""

    mask: MaskLike | None
    segment: Segment | None
    kinds: Kinds
    size: float
    density: float
    lengths_for: float | None


@overload
def opacity(
    image: ImageT,
    rng: Rng = None,
    *,
    return_mask: Literal[False] = False,
    **own: Unpack[OpacityArgs],
) -> ImageT: ...
@overload
def opacity(
    image: ImageT, rng: Rng = None, *, return_mask: Literal[True], **own: Unpack[OpacityArgs]
) -> tuple[ImageT, Mask]: ...
def opacity(
    image: ImageT,
    rng: Rng = None,
    *,
    mask: MaskLike | None = None,
    segment: Segment | None = None,
    return_mask: bool = False,
    kinds: Kinds = KINDS,
    size: float = 1,
    density: float = 1,
    lengths_for: float | None = LENGTHS_FOR,
) -> Any:
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
    operation = Opacity(kinds, size, density, lengths_for)
    return operation(image, rng, mask=mask, segment=segment, return_mask=return_mask)


def sample_opacity(
    mask: MaskLike,
    rng: Rng = None,
    *,
    kinds: Kinds = KINDS,
    size: float = 1,
    density: float = 1,
    lengths_for: float | None = LENGTHS_FOR,
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
        sqrt(H W) over it. None: pixels of the image as it is.

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
    return Opacity(kinds, size, density, lengths_for).sample(lungs.shape, lungs, rng)


def opacity_alpha(params: OpacityParams, mask: MaskLike) -> npt.NDArray[np.uint8]:
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
        If an argument has another type, or the centre lies outside the image.
    """
    lungs = as_mask(mask)
    if not isinstance(params, OpacityParams):
        raise TypeError(f"params must be OpacityParams, got {type(params).__name__}")
    alpha = np.zeros(lungs.shape, np.uint8)
    window, part = alpha_window(params, lungs)
    alpha[window] = part
    return alpha


@overload
def apply_opacity(
    image: ImageT,
    params: OpacityParams,
    mask: MaskLike | None = None,
    *,
    return_mask: Literal[False] = False,
) -> ImageT: ...
@overload
def apply_opacity(
    image: ImageT,
    params: OpacityParams,
    mask: MaskLike | None = None,
    *,
    return_mask: Literal[True],
) -> tuple[ImageT, Mask]: ...
def apply_opacity(
    image: ImageT, params: OpacityParams, mask: MaskLike | None = None, *, return_mask: bool = False
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
        If an argument has another type, or the centre lies outside the image.
    """
    return Opacity.replay(image, params, mask, return_mask=return_mask)


def alpha_window(params: OpacityParams, lungs: Mask) -> tuple[Window, npt.NDArray[np.uint8]]:
    """Return the part of the image that alpha may reach, and alpha there."""
    height, width = lungs.shape
    check_center(params, lungs.shape)
    cell = cell_size(height, width)
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
    x, y = (np.arange(part.start, part.stop) * (2 * cell) + (cell - 1) for part in (columns, rows))
    level = params.angle * (params.kind != "effusion")
    u, v = axes(params, level, x, y[:, None], np.int32)
    noise = texture(params.seed, lungs.shape, cell, rows, columns)
    dense, within = profile(params.kind, u, v, noise)
    alpha = (smooth(dense) * unit(within) >> 10) * params.density
    alpha = enlarge((alpha * soft + (1 << 15)) >> 16, cell)
    top, left = rows.start * cell, columns.start * cell
    alpha = alpha[: height - top, : width - left]
    return (slice(top, top + alpha.shape[0]), slice(left, left + alpha.shape[1])), alpha


def cell_size(height: int, width: int) -> int:
    """Return the side of a cell of the grid, in pixels: 2 for 256 x 256."""
    return max(1, (math.isqrt(height * width) + CELLS // 2) // CELLS)


def meet(center: int, reach: int, cell: int, length: int) -> slice:
    """Return the cells that lie within `reach` pixels of a centre; at least one."""
    count = -(-length // cell)
    first = min(max((center - reach) // cell, 0), count - 1)
    return slice(first, max(min((center + reach) // cell + 1, count), first + 1))


def extent(flags: Mask, part: slice) -> slice:
    """Return the cells of a part from the first to the last flag, and one more on each side."""
    here = np.flatnonzero(flags[part])
    if not here.size:
        return slice(part.start, part.start + 1)
    first, last = part.start + int(here[0]), part.start + int(here[-1])
    return slice(max(first - 1, part.start), min(last + 2, part.stop))


def middles(cells: Any, length: int, cell: int) -> Any:
    """Return the middle pixels of cells along a side; beyond its ends, those are repeated."""
    return (cells.clip(0, (length - 1) // cell) * cell + cell // 2).clip(0, length - 1)


def soften(lungs: Any) -> Any:
    """Soften lungs of 0 and 1 on the grid: 64 inside, 0 from about two cells outside; int8.

    They come with two more cells on each side. Weights 1 2 2 2 1 both ways, doubled and cut.
    """
    for _ in range(2):  # down, then across
        pairs = lungs[..., :-1, :] + lungs[..., 1:, :]
        threes = pairs[..., :-1, :] + pairs[..., 1:, :]
        lungs = (threes[..., :-2, :] + threes[..., 2:, :]).swapaxes(-1, -2)
    return lungs.clip(0, 32) << 1


def sine(degrees: Any) -> Any:
    """Return the sine of whole degrees, -90..90, times 2**14: Bhaskara's formula, within 0.002."""
    turn = abs(degrees) * (180 - abs(degrees))
    return (turn << 16) // (40500 - turn) * ((degrees > 0) * 2 - 1)


def axes(params: Any, level: Any, x: Any, y: Any, narrow: Any) -> tuple[Any, Any]:
    """Turn doubled coordinates of pixels into 1024ths of the half axes, within +-FAR.

    `level` is the angle of the first axis: that of an effusion stays level when its surface tilts.
    """
    x, y = x - 2 * params.center_x, y - 2 * params.center_y
    along, across = params.radius_x << 5, params.radius_y << 5
    u = narrow(x * sine(90 - abs(level)) // along) + narrow(y * sine(level) // along)
    v = narrow(x * -sine(params.angle) // across)
    v = v + narrow(y * sine(90 - abs(params.angle)) // across)
    return u.clip(-FAR, FAR), v.clip(-FAR, FAR)


def unit(values: Any) -> Any:
    """Cut 1024ths to 0..1."""
    return values.clip(0, ONE)


def smooth(values: Any) -> Any:
    """Return the smoothstep of 1024ths."""
    values = unit(values)
    return (values * values >> 10) * (3 * ONE - 2 * values) >> 10


def profile(kind: str, u: Any, v: Any, noise: Any) -> tuple[Any, Any]:
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
    return (ONE - t) + ((ONE - t) >> 1) + (noise >> 2), t * 0 + ONE


def spans(length: int, side: int) -> list[int]:
    """Return the spans of each octave along a side of the image, as long in both directions."""
    return [max(1, (count * length + side // 2) // side) for count in OCTAVES]


def white_noise(seed: Any, y: Any, x: Any) -> Any:
    """Hash rows, columns and a seed to -128..127; int64 products stay below 2**63."""
    h = (x * 0x1B873593 + y * 0x2545F491 + seed) & LOW31
    h = ((h ^ h >> 16) * 0x21F0AAAD) & LOW31
    h = ((h ^ h >> 15) * 0x735A2D97) & LOW31
    return ((h ^ h >> 15) >> 8 & 255) - 128


def splines(cells: Any, knots: Any, length: int, cell: int, count: int) -> Any:
    """Return quadratic B-splines at the cells' middles: whole numbers, 2**17 in each row.

    `cells` and `knots` are (n, 1) and (count + 2,) of numbers from 0 on.
    """
    position = (cells * (2 * cell) + cell) * (count * 128) // length
    part, knot = position & 255, (position >> 8).clip(0, count - 1)  # a cell may reach past the end
    place = knots - knot
    middle = 65536 + 2 * part * (256 - part)
    ends = (place == 0) * (256 - part) ** 2 + (place == 2) * part**2
    return ends + (place == 1) * middle


@lru_cache(maxsize=32)
def spline_table(cells: int, length: int, cell: int, count: int) -> npt.NDArray[np.float64]:
    """Return the B-splines of all cells along a side, (cells, count + 2)."""
    rows, knots = np.arange(cells)[:, None], np.arange(count + 2)
    table: npt.NDArray[np.float64] = splines(rows, knots, length, cell, count).astype(np.float64)
    table.flags.writeable = False
    return table


def texture(seed: int, shape: tuple[int, ...], cell: int, rows: slice, columns: slice) -> Array:
    """Return smooth noise around 0, within +-896, in those cells; int32.

    Partial sums of the matrix products are whole and below 2**53: exact in any order.
    """
    (height, width), side = shape, math.isqrt(shape[0] * shape[1])
    counts = list(zip(spans(height, side), spans(width, side), strict=True))
    y, x = np.arange(counts[-1][0] + 2)[:, None], np.arange(sum(nx + 2 for _, nx in counts))
    white = white_noise(seed, y, x).astype(np.float64)
    left, right, start = [], [], 0
    for weight, (ny, nx) in zip(WEIGHTS, counts, strict=True):
        down = spline_table(-(-height // cell), height, cell, ny)[rows]
        left.append(down @ (white[: ny + 2, start : start + nx + 2] * weight))
        right.append(spline_table(-(-width // cell), width, cell, nx)[columns])
        start += nx + 2
    total = np.concatenate(left, 1) @ np.concatenate(right, 1).T
    noise: Array = (total * 2.0**-34).astype(np.int32)
    return noise


def enlarge(alpha: Array, cell: int) -> npt.NDArray[np.uint8]:
    """Enlarge the grid linearly, the border repeated, rounded once."""
    dtype = np.uint16 if cell <= 8 else np.uint32

    def down(values: Array) -> Array:
        before, after = np.concatenate((values[:1], values)), np.concatenate((values, values[-1:]))
        rows = np.empty((len(values), cell, values.shape[1]), dtype)
        for i, weight in enumerate(range(1 - cell, cell, 2)):  # of the neighbour, of 2 * cell
            other = before[:-1] if weight < 0 else after[1:]
            rows[:, i] = values * (2 * cell - abs(weight)) + other * abs(weight)
        return rows.reshape(-1, values.shape[1])

    total = down(down(alpha.astype(dtype).T).T)
    return ((total + 2 * cell**2) // (4 * cell**2)).astype(np.uint8)


def blend_level(
    image: Array,
    params: OpacityParams,
    window: Window,
    alpha: npt.NDArray[np.uint8],
    lungs: Mask,
) -> Array:
    """Raise a copy of the image to the bright level, through alpha, inside the window."""
    pixels = image[window]
    canvas = np.maximum(pixels, bright_level(image, params.level, lungs))
    mixed = blend(pixels, canvas, alpha if image.ndim == 2 else alpha[..., None])
    if image.dtype.kind == "f":  # a weighted mean may leave the range of its terms by a last bit
        np.clip(mixed, pixels, canvas, out=mixed)
    out: Array = image.copy()
    out[window] = mixed
    return out


def bright_level(image: Array, level: int, lungs: Mask) -> Array:
    """Return the grey value, one per channel, that is brighter than `level` / 256 of soft tissue.

    Soft tissue is what the box around the lungs holds beside them: heart, mediastinum, chest wall;
    without lungs, the image. Of about 64 x 64 pixels; an order statistic, so exact in any dtype.
    """
    step = max(1, math.isqrt(lungs.size) // TONES)
    some, inside = image[::step, ::step], lungs[::step, ::step]
    window = box(inside)
    some, tissue = some[window], ~inside[window]
    values = some[tissue] if tissue.any() else some.reshape(-1, *some.shape[2:])
    place = level * len(values) >> 8
    bright: Array = np.partition(values, place, axis=0)[place]
    return bright
