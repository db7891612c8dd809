"""A chest radiograph without data: a procedural phantom for examples, tests and demos.

Attenuation is added up part by part, each part one function, then developed into a film. All of it
lives in normalized patient coordinates: ``u`` runs across the chest and ``v`` down it, each about
-1..1 over the image, and ``s = abs(u)`` is the distance from the midline. The patient's left is at
positive ``u``, on the viewer's right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anatpaste_aug.checks import as_generator, check_size

Field = NDArray[np.floating]  # (H, W) float32
Table = Sequence[float] | NDArray[np.float64]
Rng = np.random.Generator


def phantom_radiograph(
    size: int | tuple[int, int] = 256,
    rng: int | np.random.Generator | None = None,
    abnormal: bool = False,
) -> NDArray[np.uint8]:
    """Draw a procedural frontal chest radiograph.

    Lungs, heart, mediastinum, spine, ribs, clavicles, vessels and soft tissue vary from draw to
    draw, as do position, slight rotation, exposure and grain. No pixel comes from a patient. It
    is a stand-in for examples and tests, no substitute for real radiographs.

    Parameters
    ----------
    size : int or (int, int), default 256
        Height and width in pixels, each at least 16; one int for a square. The anatomy is
        stretched to the frame and is the same at every size; only the grain differs.
    rng : int, numpy.random.Generator or None, default None
        Source of randomness. The same int gives the same image; None gives a new one each call;
        a Generator is advanced by the same amount at each call.
    abnormal : bool, default False
        Add a soft opacity in one lung, sometimes in both. All else stays as it is without, so
        the two images of one seed differ only around the opacity, where this one is brighter.

    Returns
    -------
    (H, W) uint8 array
        Gray values 0..255, air dark and bone bright.

    Raises
    ------
    TypeError
        If `size` is neither an int nor a pair of ints, or `rng` none of the above.
    ValueError
        If `size` is below 16 or not one or two numbers, or `rng` is a negative int.

    Examples
    --------
    >>> import numpy as np
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> normal = phantom_radiograph((96, 128), rng=0)
    >>> normal.shape, normal.dtype
    ((96, 128), dtype('uint8'))
    >>> abnormal = phantom_radiograph((96, 128), rng=0, abnormal=True)
    >>> bool(np.all(abnormal >= normal)), bool(np.any(abnormal > normal))
    (True, True)
    """
    height, width = check_size(size)
    # One child per concern, so that an opacity or another size leaves the anatomy's draws alone.
    body, lesion, grain = (
        np.random.default_rng(seed) for seed in as_generator(rng).integers(2**63, size=3)
    )
    chest = _position_patient(height, width, body)
    attenuation = _attenuation(chest, body)
    if abnormal:
        attenuation += _opacity(chest, lesion)
    return _expose(attenuation, body, grain)


# --- Drawing tools -------------------------------------------------------------------------------


def _edge(depth: Field, softness: float | Field) -> Field:
    """Rise smoothly from 0 to 1 as `depth` crosses zero, within `softness`."""
    t = np.clip(depth / softness + 0.5, 0, 1)
    return (3 - 2 * t) * t * t


def _bell(offset: Field, width: float) -> Field:
    """Return exp(-(offset / width)^2)."""
    return np.exp(-((offset * (1 / width)) ** 2))


def _blob(chest: _Chest, u: float, v: float, width: float, height: float) -> Field:
    """Return 1 - r^2 of an ellipse: 1 at its center, 0 on its outline, negative outside."""
    across, down = chest.u * (1 / width) - u / width, chest.v * (1 / height) - v / height
    return 1 - (across * across + down * down)


def _lookup(at: Field, start: float, stop: float, table: Table) -> Field:
    """Read a function sampled evenly over start..stop at every point of a field."""
    scale = (len(table) - 1) / (stop - start)
    index = at * scale + (0.5 - start * scale)
    return np.asarray(table, np.float32).take(index.astype(np.intp), mode="clip")


def _curve(at: Field, knots: Table, values: Table, smooth: float) -> Field:
    """Evaluate a smoothed polyline, over -1.6..1.6, at every point of a field."""
    table = np.interp(np.linspace(-1.6, 1.6, 2049), knots, values)
    return _lookup(at, -1.6, 1.6, ndimage.gaussian_filter1d(table, smooth * 640, truncate=2.5))


def _texture(shape: tuple[int, int], rng: Rng, cells: int) -> Field:
    """Smooth noise of unit spread: a coarse grid of normals, spread by separable Gaussians."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    nodes = np.linspace(-0.05, 1.05, cells)
    rows, columns = (
        np.exp(-0.5 * (((np.arange(n)[:, None] + 0.5) / n - nodes) * (cells - 1) / 0.75) ** 2)
        for n in shape
    )
    rows, columns = (w / np.linalg.norm(w, axis=1, keepdims=True) for w in (rows, columns))
    return (rows.astype(np.float32) @ grid) @ columns.astype(np.float32).T


# --- The patient ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chest:
    """The patient's frame and lungs, which every part is placed by."""

    u: Field
    v: Field
    s: Field  # distance from the midline
    cage: Field  # s of the inner chest wall at this height
    below: Field  # height below the diaphragm; negative above it
    tissue: Field  # thickness of the body, 0 in the air around it, up to 1
    silhouette: Field  # 1 inside heart and mediastinum, 0 outside
    air: Field  # depth of aerated lung, 0..1
    corner: NDArray[np.float64]  # (v, u) of pixel (0, 0)
    to_pixels: NDArray[np.float64]  # (v, u) from there @ this = (row, column)


def _position_patient(height: int, width: int, rng: Rng) -> _Chest:
    """Place the patient before the film and outline what bounds the lungs."""
    y = ((np.arange(height, dtype=np.float32) + 0.5) * (2 / height) - 1)[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) * (2 / width) - 1)[None, :]
    tilt, zoom = rng.normal(0, 0.025), rng.uniform(0.88, 1.04)
    x, y = x - rng.uniform(-0.05, 0.05), y - rng.uniform(-0.06, 0.06)
    wide = zoom * rng.uniform(0.94, 1.06)
    u, v = wide * (x + tilt * y), zoom * (y - tilt * x)
    s, left = np.abs(u), u > 0

    apex, broad = rng.uniform(-0.78, -0.68), rng.uniform(0.92, 1.06)
    drop = np.array([0, 0.025, 0.07, 0.15, 0.28, 0.5, 0.8, 1.1, 1.5])
    wall = np.array([0.22, 0.31, 0.375, 0.45, 0.53, 0.615, 0.67, 0.70, 0.70]) * broad
    inner = np.array([0.22, 0.15, 0.12, 0.10, 0.08, 0.06, 0.05, 0.05, 0.05]) * broad
    cage = _curve(v, apex + drop, wall, 0.012)
    medial = _curve(v, apex + drop, inner, 0.012)

    right_dome, lag = rng.uniform(0.36, 0.5), rng.uniform(0.02, 0.09)
    top = right_dome + lag * _edge(u, 0.3)
    across = np.minimum(s / (0.7 * broad), 1.02)
    below = v - top - rng.uniform(0.3, 0.5) * (across - 0.5) ** 2 - 0.1 * ((across**2) ** 2) ** 2

    tissue = _trunk(v, s, rng)
    silhouette = _mediastinum(v, s, left, right_dome, rng)
    depth = np.minimum(np.minimum(cage - s, s - medial), -below).clip(0)
    air = (1 - np.exp(depth * (-1 / 0.055))) * (1 - 0.9 * silhouette)
    corner = np.array([v[0, 0], u[0, 0]], dtype=float)
    to_patient = np.array([[zoom, -zoom * tilt], [wide * tilt, wide]])
    to_pixels = np.linalg.inv(to_patient).T * (np.array([height, width]) / 2)
    # One block, not eight arrays: the allocator then keeps its pages from one call to the next.
    planes = np.stack([u, v, s, cage, below, tissue, silhouette, air], dtype=np.float32)
    return _Chest(*planes, corner=corner, to_pixels=to_pixels)  # type: ignore[misc]


def _trunk(v: Field, s: Field, rng: Rng) -> Field:
    """Outline neck, shoulders and trunk; the arms leave the film at its sides."""
    neck, flank, arm = rng.uniform(0.2, 0.27), rng.uniform(0.88, 0.98), rng.uniform(1.05, 1.3)
    heights = np.array([-1.3, -0.95, -0.85, -0.76, -0.64, -0.5, -0.25, 0.0, 0.3, 0.6, 1.2])
    widths = [neck, neck + 0.03, neck + 0.2, 0.72, 0.98, arm, arm, 0.93 * arm, flank, flank, flank]
    skin = np.maximum(_curve(v, heights + rng.uniform(-0.08, 0.05), widths, 0.05) - s, 0)
    return 1 - np.exp(skin * (-1 / rng.uniform(0.05, 0.09)))


def _mediastinum(v: Field, s: Field, left: NDArray[np.bool_], dome: float, rng: Rng) -> Field:
    """Outline great vessels and heart: a narrow band above, bulging to the patient's left below."""
    heart, knob = rng.uniform(0.82, 1.18), rng.uniform(0.155, 0.2)
    lift = dome - 0.43
    heights = np.array([-1.0, -0.6, -0.42, -0.34, -0.2, -0.1, 0.05, 0.2, 0.35, 0.5, 0.7]) + lift
    right_half = [0.10, 0.12, 0.13, 0.13, 0.14, 0.16, 0.2, 0.23, 0.225, 0.17, 0.15]
    left_half = [0.10, 0.11, 0.14, knob, 0.15, 0.2, 0.28, 0.385, 0.445, 0.44, 0.36]
    scale = np.where(heights > lift - 0.12, heart, 1)
    halves = (_curve(v, heights, half * scale, 0.025) for half in (left_half, right_half))
    return _edge(np.where(left, *halves) - s, 0.035)


def _attenuation(chest: _Chest, rng: Rng) -> Field:
    """Add up everything the beam passes through."""
    total = _soft_tissue(chest, rng)
    total -= rng.uniform(0.40, 0.50) * chest.air
    for part in (_spine, _ribs, _shoulder_girdle, _airways):
        total += part(chest, rng)
    total += _vessels(chest, rng) * chest.air
    grain = _texture(total.shape, rng, 24) + 0.7 * _texture(total.shape, rng, 60)
    total += rng.uniform(0.005, 0.014) * (0.4 + chest.air) * grain
    return total


def _soft_tissue(chest: _Chest, rng: Rng) -> Field:
    """Trunk wall, heart, abdomen, breasts and the stomach's gas bubble."""
    total = rng.uniform(0.48, 0.58) * chest.tissue
    total += rng.uniform(0.01, 0.03) * chest.tissue * _texture(total.shape, rng, 7)
    heart = chest.silhouette * _edge(chest.v + 0.35, 1.3) * _edge(0.12 - chest.below, 0.35)
    total += rng.uniform(0.16, 0.28) * heart
    middle = _bell(chest.s, 0.2)  # the domes fade where the heart rests on them
    outside = 0.6 * _edge(chest.s - chest.cage - 0.05, 0.2)  # and outside the ribs
    abdomen = _edge(chest.below - 0.5 * outside, 0.02 + 0.25 * middle + outside)
    abdomen *= 0.7 + 0.5 * _edge(chest.below - 0.1, 0.5)
    total += rng.uniform(0.2, 0.3) * chest.tissue * abdomen
    if rng.random() < 0.5:
        fullness, hang = rng.uniform(0.04, 0.12), rng.uniform(0.25, 0.42)
        for side in (-1, 1):
            breast = _blob(chest, side * rng.uniform(0.44, 0.52), hang, 0.36, 0.32)
            total += fullness * np.sqrt(np.maximum(breast, 0)) * _edge(breast, 0.25)
    if rng.random() < 0.6:
        width = rng.uniform(0.08, 0.16)
        bubble = _blob(chest, rng.uniform(0.3, 0.42), rng.uniform(0.68, 0.76), width, 0.07)
        total -= rng.uniform(0.08, 0.2) * _edge(bubble, 0.7) * _edge(chest.below - 0.05, 0.05)
    return total


def _spine(chest: _Chest, rng: Rng) -> Field:
    """Vertebral bodies with their discs and pedicles, seen through the mediastinum."""
    bend = rng.normal(0, 0.012)
    off = (chest.u - bend * np.sin(2.5 * chest.v)) / rng.uniform(0.07, 0.085)
    level = chest.v / rng.uniform(0.115, 0.135) + rng.random()
    level -= np.floor(level) + np.float32(0.5)  # -0.5..0.5 within one vertebra
    column = _edge(1 - np.abs(off), 0.5)
    body = _edge(0.42 - np.abs(level), 0.16)
    pedicles = _bell(np.abs(off) - 0.62, 0.2) * _bell(level, 0.2)
    process = _bell(off, 0.14) * _bell(level - 0.1, 0.28)
    return column * (0.08 + rng.uniform(0.04, 0.08) * (body + pedicles + process))


def _ribs(chest: _Chest, rng: Rng) -> Field:
    """Posterior ribs, arching out from the spine, and the fainter anterior ones crossing them."""
    q = np.minimum(chest.s / chest.cage, 1.3)
    inside = _edge(1.03 - q, 0.08) * _edge(0.25 - chest.below, 0.3)
    gap, first = rng.uniform(0.112, 0.135), rng.uniform(-0.84, -0.78)
    bow, fall = rng.uniform(0.12, 0.26), rng.uniform(0.05, 0.12)
    lean = rng.normal(0, 0.015) * chest.u
    q2 = q * q
    arc = bow * (q - 0.3) ** 2 + fall * q2 * q2 * q2 + lean
    posterior = _rib_series((chest.v - first - arc) / gap, chest.u > 0, rng)
    descent = rng.uniform(0.32, 0.46) * (1 - q) + 0.25 * np.maximum(0.55 - q, 0) ** 2
    front_level = (chest.v - first - 0.16 - descent - lean) / (1.12 * gap)
    anterior = _rib_series(front_level, chest.u > 0, rng)
    rear, front = rng.uniform(0.08, 0.14), rng.uniform(0.03, 0.065)
    edge_on = 1 + 0.25 * (q2 * q2) ** 2  # the beam runs along a rib at the chest wall
    posterior *= rear * edge_on * _edge(chest.s - 0.09, 0.05)
    # Towards the sternum the anterior ribs turn into cartilage.
    posterior += front * anterior * _edge(q - 0.5, 0.35)
    return posterior * inside * chest.tissue * (1 - 0.4 * chest.silhouette)


def _rib_series(level: Field, left: NDArray[np.bool_], rng: Rng, count: int = 12) -> Field:
    """Twelve ribs a side at the whole numbers of `level`, each with its own width and density."""
    place = rng.normal(0, 0.05, 2 * count)
    half_width = rng.uniform(0.2, 0.29, 2 * count)
    density = rng.uniform(0.75, 1.15, 2 * count)
    at = np.linspace(-0.5, 2 * count - 0.5, 4096)
    rib = np.clip(np.rint(at), 0, 2 * count - 1).astype(int)
    across = (at - rib - place[rib]) / half_width[rib]
    # The cortex is denser than the marrow.
    section = np.clip(1 - (across**4) ** 2, 0, 1) * (0.65 + 0.35 * across**2)
    level = np.clip(level, -0.5, count - 0.5) + np.float32(count) * left
    return _lookup(level, -0.5, 2 * count - 0.5, density[rib] * section)


def _shoulder_girdle(chest: _Chest, rng: Rng) -> Field:
    """Clavicles, and the shoulder blades with their medial borders."""
    high, rise = rng.uniform(-0.55, -0.44), rng.uniform(0.08, 0.2)
    t = (chest.s - 0.07) / 0.7
    middle = high - rise * t - 0.03 * np.sin(6.0 * t) + rng.normal(0, 0.04) * chest.u
    across = np.abs(chest.v - middle) / (rng.uniform(0.026, 0.034) * (1 + 0.5 * (2 * t - 1) ** 2))
    section = _edge(1 - across, 0.6) * (0.6 + 0.4 * np.minimum(across, 1))
    total = rng.uniform(0.12, 0.2) * section * _edge(t, 0.06) * _edge(1 - t, 0.08)

    blade = chest.s - rng.uniform(0.6, 0.74) - 0.35 * (chest.v + 0.35) ** 2
    blade -= 0.18 * np.maximum(chest.v + 0.3, 0)
    blade = (_edge(blade, 0.06) + 0.7 * _bell(blade, 0.025)) * _edge(0.4 - blade, 0.5)
    blade *= rng.uniform(0.02, 0.06) * _edge(0.27 - np.abs(chest.v + 0.35), 0.25)
    return (total + blade) * chest.tissue


def _airways(chest: _Chest, rng: Rng) -> Field:
    """Trachea and main bronchi: a dark column that forks above the heart."""
    carina = rng.uniform(-0.3, -0.2)
    shift = rng.uniform(-0.025, 0.01) * _edge(chest.v + 0.5, 0.5)
    off = np.abs(chest.u - shift) - 0.9 * np.maximum(chest.v - carina, 0)
    tube = _bell((off * (1 / rng.uniform(0.034, 0.046))) ** 2, 1)  # squared: flat in the middle
    return rng.uniform(-0.18, -0.1) * tube * _edge(carina + 0.06 - chest.v, 0.2) * chest.tissue


def _vessels(chest: _Chest, rng: Rng) -> Field:
    """Pulmonary vessels: trees that branch from the hila and thin out towards the periphery."""
    branches = [branch for side in (-1, 1) for branch in _vessel_tree(side, rng)]
    richness, swelling = rng.uniform(0.05, 0.11), rng.uniform(0.08, 0.18)
    thick = np.concatenate([b for b in branches if b[0, 2] > 0.6])
    thin = np.concatenate([b for b in branches if b[0, 2] <= 0.6])
    total = richness * (_strokes(chest, thick, 0.012) + _strokes(chest, thin, 0.006))
    for side, level in ((-1, -0.08), (1, -0.12)):
        total += swelling * (_bell(chest.u - side * 0.17, 0.09) * _bell(chest.v - level, 0.15))
    return total


def _vessel_tree(side: int, rng: Rng) -> list[NDArray[np.float64]]:
    """Grow five generations of branches from one hilum, each an array of points.

    A point is (u, v, calibre, length of path that it stands for).
    """
    count, steps = 8, 18
    angle = np.linspace(-1.35, 1.45, count) + rng.normal(0, 0.12, count)  # from up to down
    tip = np.stack([np.full(count, 0.15), np.linspace(-0.16, 0.0, count)], axis=1)
    calibre, length = 1.0, 0.2
    generations = []
    for _ in range(5):
        pace = length / steps * rng.uniform(0.7, 1.35, (len(angle), 1))
        turn = rng.normal(0, 0.25, (len(angle), 1))
        heading = angle[:, None] + turn * np.linspace(0, 1, steps)
        stride = pace[..., None] * np.stack([np.cos(heading), np.sin(heading)], axis=2)
        path = tip[:, None] + np.cumsum(stride, axis=1)
        size = np.full_like(heading, calibre)
        generation = np.dstack([path * [side, 1], size, size * 0 + pace])
        generations.append(generation.reshape(-1, 4))
        fork = rng.uniform(0.15, 0.5, (len(angle), 2)) * [-1, 1]
        angle = (heading[:, -1:] + fork).ravel()
        tip = np.repeat(path[:, -1], 2, axis=0)
        calibre, length = calibre * 0.75, length * 0.78
    return generations


def _strokes(chest: _Chest, points: NDArray[np.float64], sigma: float) -> Field:
    """Draw points as strokes `calibre` high with a Gaussian profile of width `sigma`."""
    shape = np.array(chest.u.shape)
    place = np.rint((points[:, 1::-1] - chest.corner) @ chest.to_pixels).astype(int)
    inside = np.all((place >= 0) & (place < shape), axis=1)
    index, (calibre, pace) = place[inside] @ [shape[1], 1], points[inside, 2:].T
    spread = np.maximum(sigma * shape / 2, 0.5)
    mass = calibre * pace * (np.sqrt(2 * np.pi) * spread.mean() * shape.mean() / 2)  # peak: calibre
    canvas = np.bincount(index, mass, shape.prod()).reshape(shape).astype(np.float32)
    return ndimage.gaussian_filter(canvas, spread, truncate=3)


# --- The finding and the film --------------------------------------------------------------------


def _opacity(chest: _Chest, rng: Rng) -> Field:
    """Consolidations: soft, ragged, mottled; some with air bronchograms, some diffuse."""
    total = np.zeros_like(chest.u)
    sides = (-1, 1) if rng.random() < 0.5 else (1, -1)
    for side in sides[: 2 if rng.random() < 0.25 else 1]:
        diffuse = rng.random() < 0.3
        low, high = (0.3, 0.5) if diffuse else (0.16, 0.34)
        u, v = side * rng.uniform(0.26, 0.5), rng.uniform(-0.45, 0.3)
        blob = _blob(chest, u, v, rng.uniform(low, high), rng.uniform(low, high))
        ragged = blob + rng.uniform(0.3, 0.55) * _texture(blob.shape, rng, 14)
        patch = _edge(ragged - 0.35, 0.9) * _edge(blob + 0.5, 1.0)
        patch *= np.clip(0.8 + 0.25 * _texture(blob.shape, rng, 30), 0, None)
        if rng.random() < 0.4:  # air-filled bronchi, fanning out from the hilum
            bearing = np.arctan2(chest.v + 0.1, side * chest.u - 0.1)
            comb = np.cos(bearing * rng.uniform(14, 22) + rng.uniform(0, 6))
            patch *= 1 - 0.3 * _edge(comb - 0.8, 0.3)
        strength = rng.uniform(0.1, 0.2) if diffuse else rng.uniform(0.16, 0.36)
        total += strength * patch * ((chest.u > 0) == (side > 0))
    return total * np.minimum(3 * chest.air, 1)


def _expose(attenuation: Field, body: Rng, grain: Rng) -> NDArray[np.uint8]:
    """Develop the film: blur, tone curve, vignetting, grain."""
    blur = body.uniform(0.0015, 0.003) * np.array(attenuation.shape)
    film = ndimage.gaussian_filter(attenuation, blur, truncate=3)
    contrast, exposure = body.uniform(1.2, 2.4), body.uniform(0.88, 1.12)
    film = np.expm1(np.maximum(film, 0) * (-contrast * exposure))
    film *= body.uniform(225, 250) / np.expm1(-contrast).item()
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) ** 2 for n in film.shape)
    film *= 1 - body.uniform(0.02, 0.08) * (y[:, None] + x)
    film += body.uniform(1, 7)
    film += body.uniform(1.0, 3.0) * grain.standard_normal(film.shape, dtype=np.float32)
    return np.clip(np.rint(film), 0, 255).astype(np.uint8)
