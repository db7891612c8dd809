"""Fit and measure what tells a pair of lungs that the robust mask has found from an imagined one.

``python -m benchmarks.lung_quality --data DIR`` prints the weights that stand in
``anatpaste_aug/masks/robust.py``, and how they do on pictures they were not fitted to. DIR holds
``montgomery256`` and ``zhanglab224`` (CC BY 4.0), each picture used upright and changed as
radiographs differ, and turned in six ways. What is no chest is drawn here, or comes with
scikit-image and scikit-learn. No lateral radiograph was at hand: two kinds are drawn, and halves
of frontal ones, which hold one lung, stand in.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image, ImageDraw
from scipy import ndimage
from sklearn.linear_model import LogisticRegression

from anatpaste_aug.images import to_gray
from anatpaste_aug.masks import robust

SIDE = 256
FALSE_ALARMS = 0.004  # share of the upright pictures of the fit that lie below the line
STRENGTH = 0.01  # C of the regression

TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "transposed": lambda a: a.T,
    "transposed the other way": lambda a: np.rot90(a, 2).T,
    "turned by 90": lambda a: np.rot90(a),
    "turned by 180": lambda a: np.rot90(a, 2),
    "turned by 270": lambda a: np.rot90(a, 3),
    "upside down": lambda a: a[::-1],
}


def upright(image: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Change a radiograph as radiographs differ; it stays upright."""
    top, bottom, left, right = rng.integers(0, int(0.09 * min(image.shape)) + 1, 4)
    tilted = Image.fromarray(image).rotate(rng.uniform(-8, 8), Image.Resampling.BILINEAR)
    return {
        "as it is": image,
        "mirrored": image[:, ::-1],
        "inverted": 255 - image,
        "tilted by up to 8 degrees": np.asarray(tilted),
        "cropped by up to 9 %": image[top : image.shape[0] - bottom, left : image.shape[1] - right],
        "with bars": np.pad(image, ((0, 0), tuple(rng.integers(5, 70, 2)))),
        "gamma 0.6 to 1.6": (255 * (image / 255) ** rng.uniform(0.6, 1.6)).astype(np.uint8),
    }


def half(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stretch one half of a radiograph, with one lung, to a square."""
    middle = image.shape[1] // 2
    part = image[:, :middle] if rng.random() < 0.5 else image[:, middle:]
    return np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize((SIDE, SIDE)))


# Drawing: x and y run from 0 to 1.
Y, X = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE


def soft(inside: np.ndarray, width: float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(inside / width, -50, 50)))


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0) -> np.ndarray:
    across = (X - x) * np.cos(angle) + (Y - y) * np.sin(angle)
    along = (Y - y) * np.cos(angle) - (X - x) * np.sin(angle)
    return 1 - np.hypot(across / rx, along / ry)


def clouds(rng: np.random.Generator, power: float) -> np.ndarray:
    """Noise of standard deviation 1 whose spectrum falls with this power."""
    frequency = np.fft.fftfreq(SIDE)
    radius = np.hypot(frequency[:, None], frequency)
    radius[0, 0] = np.inf if power else 1
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIDE, SIDE))) * radius**-power).real
    return noise / noise.std()


def finish(picture: np.ndarray, rng: np.random.Generator, grain: float = 0.02) -> np.ndarray:
    picture = picture + grain * rng.normal(size=picture.shape)
    return (255 * (picture - picture.min()) / np.ptp(picture)).astype(np.uint8)


def lateral(rng: np.random.Generator) -> np.ndarray:
    """Draw a chest from the side: one lung field, the heart in it, the spine behind."""
    x = X + rng.uniform(-0.15, 0.15) * (Y - 0.5)
    body = soft(ellipse(0.5, 0.6, rng.uniform(0.38, 0.5), rng.uniform(0.6, 0.8)), 0.03)
    field = ellipse(rng.uniform(0.45, 0.55), 0.45, rng.uniform(0.25, 0.36), rng.uniform(0.33, 0.45))
    diaphragm = rng.uniform(0.7, 0.82) - Y - rng.uniform(0.1, 0.4) * (X - 0.3).clip(0)
    lung = soft(np.minimum(field, 3 * diaphragm), 0.02)
    picture = 0.75 * body * (1 - rng.uniform(0.4, 0.65) * lung)
    heart = ellipse(
        rng.uniform(0.36, 0.44), rng.uniform(0.58, 0.66), rng.uniform(0.1, 0.16), 0.16, 0.5
    )
    picture += 0.3 * soft(heart, 0.1) * lung
    spine = np.exp(-(((x - rng.uniform(0.66, 0.76) - 0.08 * np.sin(3 * Y)) / 0.035) ** 2))
    picture += 0.2 * spine * (0.7 + 0.3 * np.sign(np.sin(70 * Y))) * body
    for rib in range(9):
        slope = 0.35 if rib % 2 else -0.1
        picture += (
            0.06 * lung * np.exp(-(((Y - 0.05 - 0.1 * rib - slope * (X - 0.2)) / 0.012) ** 2))
        )
    picture = finish(picture + rng.uniform(0.01, 0.05) * clouds(rng, 1.5), rng)
    return picture[:, ::-1] if rng.random() < 0.5 else picture


def lateral_outlined(rng: np.random.Generator) -> np.ndarray:
    """Draw a chest from the side in another way, from polygons."""

    def polygon(*points: tuple[float, float], spread: float = 0.02, blur: float = 3) -> np.ndarray:
        canvas = Image.new("L", (SIDE, SIDE))
        moved = np.array(points) + rng.normal(0, spread, (len(points), 2))
        ImageDraw.Draw(canvas).polygon((moved * SIDE).ravel().tolist(), fill=255)
        return ndimage.gaussian_filter(np.asarray(canvas) / 255.0, blur)

    body = polygon((0.3, 0), (0.75, 0), (0.92, 0.3), (0.9, 1), (0.12, 1), (0.15, 0.4), blur=5)
    chest = polygon(
        (0.45, 0.08), (0.62, 0.1), (0.8, 0.35), (0.82, 0.8), (0.6, 0.68), (0.35, 0.72), (0.25, 0.45)
    )
    heart = polygon((0.33, 0.45), (0.5, 0.42), (0.6, 0.6), (0.52, 0.7), (0.32, 0.7), blur=7)
    spine = polygon((0.68, 0.05), (0.75, 0.05), (0.82, 0.5), (0.76, 1), (0.68, 1), (0.74, 0.5))
    arms = polygon((0.2, 0), (0.5, 0), (0.45, 0.15), (0.25, 0.2), blur=6)
    picture = body * (0.8 - 0.5 * chest) + 0.25 * heart * chest + 0.15 * spine + 0.15 * arms
    picture = finish(picture + rng.uniform(0.01, 0.04) * clouds(rng, 1.3), rng)
    return picture[:, ::-1] if rng.random() < 0.5 else picture


def brain(rng: np.random.Generator) -> np.ndarray:
    angle, rx, ry = rng.uniform(-0.3, 0.3), rng.uniform(0.3, 0.4), rng.uniform(0.36, 0.46)
    inner = ellipse(0.5, 0.5, rx * 0.92, ry * 0.92, angle)
    picture = soft(ellipse(0.5, 0.5, rx, ry, angle), 0.01) - 0.6 * soft(inner, 0.01)
    picture += 0.08 * clouds(rng, 1.2) * (inner > 0)
    for side in (-1, 1):
        x, y = 0.5 + side * rng.uniform(0.05, 0.09), rng.uniform(0.44, 0.52)
        rx, ry = rng.uniform(0.03, 0.06), rng.uniform(0.08, 0.16)
        picture -= rng.uniform(0.15, 0.35) * soft(ellipse(x, y, rx, ry, 0.3 * side), 0.03)
    return finish(picture, rng)


def axial(rng: np.random.Generator) -> np.ndarray:
    """Draw an axial slice through a chest: two lungs, but not from the front."""
    body = ellipse(0.5, 0.5, rng.uniform(0.42, 0.48), rng.uniform(0.28, 0.36))
    picture = 0.6 * soft(body, 0.02)
    for side in (-1, 1):
        x, rx, ry = 0.5 + side * rng.uniform(0.19, 0.23), rng.uniform(0.13, 0.17), 0.2
        picture -= 0.5 * soft(ellipse(x, 0.48, rx, ry * rng.uniform(0.8, 1.1), 0.15 * side), 0.02)
    picture += 0.5 * soft(ellipse(0.5, 0.68, 0.06, 0.07), 0.03)
    picture += 0.1 * soft(ellipse(0.5, 0.45, 0.1, 0.1), 0.05)
    return finish(picture + 0.02 * clouds(rng, 1.2), rng)


def hand(rng: np.random.Generator) -> np.ndarray:
    canvas = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(canvas)
    draw.rounded_rectangle((70, 130, 190, 255), 30, fill=120)
    for finger in range(5):
        angle, length = np.deg2rad(-50 + 25 * finger + rng.uniform(-5, 5)), rng.uniform(70, 110)
        start = np.array([75 + 26 * finger, 150])
        reach = length * np.array([np.sin(angle), -np.cos(angle)])
        draw.line((*start, *(start + reach)), fill=120, width=24)
        for joint in (0, 0.4, 0.7):
            bone = start + reach * joint, start + reach * (joint + 0.25)
            draw.line((*bone[0], *bone[1]), fill=230, width=9)
    blurred = ndimage.gaussian_filter(np.asarray(canvas, float), 1.5)
    return finish(ndimage.rotate(blurred, rng.uniform(-180, 180), reshape=False), rng, 4)


def pelvis(rng: np.random.Generator) -> np.ndarray:
    picture = 0.5 * soft(ellipse(0.5, 0.5, 0.6, 0.7), 0.05)
    for side in (-1, 1):
        wing = ellipse(0.5 + side * rng.uniform(0.2, 0.26), 0.35, 0.15, 0.2, 0.5 * side)
        picture += 0.3 * soft(wing, 0.05)
        picture -= 0.2 * soft(ellipse(0.5 + side * 0.1, 0.75, 0.06, 0.08, 0.6 * side), 0.05)
        picture += 0.35 * soft(ellipse(0.5 + side * 0.32, 0.75, 0.07, 0.3, -0.2 * side), 0.04)
    picture += 0.25 * np.exp(-(((X - 0.5) / 0.05) ** 2)) * (Y < 0.55)
    return finish(picture + 0.06 * clouds(rng, 1.5), rng)


def knee(rng: np.random.Generator) -> np.ndarray:
    width, away = rng.uniform(0.12, 0.2), np.abs(X - 0.5 - rng.uniform(-0.05, 0.05))
    bone = width * (1 + 0.3 * np.exp(-(((Y - 0.5) / 0.12) ** 2))) - away
    picture = 0.4 * soft(2 * width - away, 0.0125) + 0.4 * soft(bone, 0.0125)
    return finish(picture - 0.4 * np.exp(-(((Y - 0.5) / 0.015) ** 2)), rng, 0.03)


def ellipses(rng: np.random.Generator) -> np.ndarray:
    picture = np.zeros((SIDE, SIDE))
    for _ in range(rng.integers(3, 14)):
        place, size, angle = rng.uniform(0.1, 0.9, 2), rng.uniform(0.05, 0.4, 2), rng.uniform(0, 3)
        picture += rng.uniform(-0.5, 0.5) * soft(ellipse(*place, *size, angle), 0.02)
    return finish(picture, rng, 0.01)


def stripes(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, np.pi)
    along = np.cos(angle) * X + np.sin(angle) * Y
    return finish(np.sin(along * rng.uniform(10, 120)), rng)


def ramp(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    bowl = rng.uniform(0, 0.3) * ((X - 0.5) ** 2 + (Y - 0.5) ** 2)
    return finish(np.cos(angle) * X + np.sin(angle) * Y + bowl, rng, 0)


def checks(rng: np.random.Generator) -> np.ndarray:
    count = rng.uniform(3, 30)
    cells = np.floor(X * count) + np.floor(Y * count * rng.uniform(0.5, 2))
    return finish(cells % 2, rng, 0.05)


def text(rng: np.random.Generator) -> np.ndarray:
    canvas = Image.new("L", (SIDE, SIDE), 255)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz     "))
    for line in range(20):
        ImageDraw.Draw(canvas).text((8, 8 + 12 * line), "".join(rng.choice(letters, 38)), fill=0)
    return np.asarray(canvas)


FITTED = {
    "drawn lateral": lateral,
    "hand": hand,
    "ellipses": ellipses,
    "stripes": stripes,
    "text": text,
    "clouds": lambda rng: finish(clouds(rng, rng.uniform(0.7, 2)), rng, 0),
    "blobs": lambda rng: finish(clouds(rng, 2) > rng.normal(0, 0.5), rng, 0),
    "disc": lambda rng: finish(soft(ellipse(*rng.uniform(0.3, 0.6, 4)), 0.02), rng),
}
HELD_OUT = {
    "drawn lateral, other way": lateral_outlined,
    "axial slice": axial,
    "brain": brain,
    "pelvis": pelvis,
    "knee": knee,
    "ramp": ramp,
    "checks": checks,
    "white noise": lambda rng: rng.integers(0, 256, (SIDE, SIDE), np.uint8),
}


def natural() -> list[Path]:
    """List the pictures that come with scikit-image and scikit-learn."""
    left_out = ("chessboard", "logo", "color", "motorcycle_right", "microaneurysms")
    folders = Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"
    files = (file for folder in folders for file in sorted(folder.iterdir()))
    suffixes = (".png", ".jpg")
    return [f for f in files if f.suffix in suffixes and not f.stem.startswith(left_out)]


def crops(file: Path, rng: np.random.Generator, count: int = 25) -> Iterator[np.ndarray]:
    """Return a picture whole, and random square parts of it."""
    image = Image.open(file).convert("L")
    yield np.asarray(image)
    for _ in range(count):
        side = rng.uniform(0.35, 0.9) * min(image.size)
        x, y = (rng.uniform(0, length - side) for length in image.size)
        yield np.asarray(image.crop((x, y, x + side, y + side)).resize((SIDE, SIDE)))


def radiographs(data: Path, fit: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Return the radiographs of the fit, or the others: every second adult, the test set."""
    adults = sorted((data / "montgomery256" / "images").glob("*.png"))[0 if fit else 1 :: 2]
    splits = ("train", "valid") if fit else ("test",)
    children = (sorted((data / "zhanglab224" / split).glob("*/*")) for split in splits)
    for name, files in (("adults", adults), ("children", [f for part in children for f in part])):
        for file in files:
            yield name, np.asarray(Image.open(file).convert("L"))


Finds = dict[tuple[bool, str], list[np.ndarray]]  # (is it upright, kind) -> descriptions


def find(image: np.ndarray) -> np.ndarray:
    gray = to_gray(np.ascontiguousarray(image))
    return robust.outline_lungs(gray, robust.default_prior())[1]


def collect(data: Path, fit: bool, rng: np.random.Generator) -> Finds:
    """Describe what is found in all pictures of the fit, or in all others."""
    out: Finds = defaultdict(list)
    for name, image in radiographs(data, fit):
        for change, changed in upright(image, rng).items():
            if name == "adults" or change == "as it is" or rng.random() < 0.33:
                out[True, f"{name}, {change}"].append(find(changed))
        for turn, turned in TURNS.items():
            if name == "adults" or rng.random() < 0.5:
                out[False, turn].append(find(turned(image)))
        if name == "adults" or rng.random() < 0.5:
            out[False, "one half"].append(find(half(image, rng)))
    for name, drawn in (FITTED if fit else HELD_OUT).items():
        out[False, name] = [find(drawn(rng)) for _ in range(100)]
    for file in natural()[0 if fit else 1 :: 2]:
        out[False, "pictures of other things"] += [find(part) for part in crops(file, rng)]
    return out


def fit_weights(finds: Finds) -> tuple[np.ndarray, float]:
    """Fit a logistic regression in which frequent kinds do not drown the others."""
    features = np.concatenate([np.array(part) for part in finds.values()])
    features[:, -1] /= 10  # the agreement, to the scale of the others
    labels = np.concatenate([np.full(len(part), up) for (up, _), part in finds.items()])
    weights = np.concatenate(
        [np.full(len(part), 1 if up else len(part) ** -0.5) for (up, _), part in finds.items()]
    )
    for up in (True, False):
        weights[labels == up] *= 2000 / weights[labels == up].sum()
    model = LogisticRegression(C=STRENGTH, max_iter=3000).fit(features, labels, weights)
    found = model.coef_[0] / np.r_[np.ones(features.shape[1] - 1), 10]
    features[:, -1] *= 10
    return found, -float(np.quantile((features @ found)[labels], FALSE_ALARMS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fit", action="store_true", help="fit anew instead of using the stored")
    args = parser.parse_args()
    weights, offset = np.array(robust.WEIGHTS), robust.OFFSET
    if args.fit:
        weights, offset = fit_weights(collect(args.data, True, np.random.default_rng(0)))
        weights, offset = weights.round(3), round(offset, 2)
        print("WEIGHTS =", tuple(weights.tolist()))
        print("OFFSET =", offset)
    print("| kind | pictures | warned about |\n| --- | --- | --- |")
    finds = collect(args.data, False, np.random.default_rng(1))
    for (_, kind), part in finds.items():
        share = (np.array(part) @ weights + offset < 0).mean()
        print(f"| {kind} | {len(part)} | {100 * share:.1f} % |")


if __name__ == "__main__":
    main()
