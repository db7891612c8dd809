"""What a network sees of a radiograph: all of it, or the lungs, in their own tones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

import anatpaste_aug as ap

NATIVE_SIZE = 256  # pixels: the size that the method's lengths were published for
UPRIGHT = 0.5  # the quality below which `lung_mask_robust` warns
TONES = ("image", "lungs")
TONE_PERCENTILES = (5, 95)  # of the lungs' gray values
TONE_LEVELS = (64, 192)  # where these percentiles go

Gray = npt.NDArray[np.uint8]
Lungs = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class View:
    """Size, framing and tone of the network's input.

    Attributes
    ----------
    size : int
        Side in pixels; the aspect ratio is not kept.
    crop : bool
        Whether an image is cut to the box around its lungs (`anatpaste_aug.lung_crop`).
    tone : str
        "image": gray values as they are; "lungs": scaled linearly so that `TONE_PERCENTILES` of
        those inside the lungs become `TONE_LEVELS`, and cut at 0 and 255.
    mask : str
        The lung mask to find as well, by its name in the settings, or "" for none.
    """

    size: int
    crop: bool = False
    tone: str = "image"
    mask: str = ""

    @property
    def needs_lungs(self) -> bool:
        """Whether the lungs must be found to make an input."""
        return self.crop or self.tone == "lungs"

    @property
    def finds_lungs(self) -> bool:
        """Whether an upright pair of lungs is looked for."""
        return self.needs_lungs or self.mask == "robust"

    def see(self, image: Gray) -> tuple[Gray, bool, Lungs | None]:
        """Make the network's input from a gray image of any size: (S, S) uint8.

        Tell, too, whether the lungs are an upright pair, where they are looked for, and return what
        is seen of the mask, (S, S) bool, if one is wanted. Both are found once, at `NATIVE_SIZE`.
        """
        if not (self.finds_lungs or self.mask):
            return resize(image, self.size), True, None
        native = resize(image, NATIVE_SIZE)
        lungs, upright = find_lungs(native) if self.finds_lungs else (ap.lung_mask(native), True)
        box = self._box(lungs)
        way = Image.Resampling.BILINEAR if self.needs_lungs else Image.Resampling.BICUBIC
        seen = resize(image, self.size, box, way)
        if self.tone == "lungs":
            seen = scale_tone(seen, self._cut(lungs, box))
        if not self.mask:
            return seen, upright, None
        published = self.mask == "default" and self.finds_lungs
        return seen, upright, self._cut(ap.lung_mask(native) if published else lungs, box)

    def _cut(self, mask: Lungs, box: Box) -> Lungs:
        """Cut a mask to the lungs; a pixel is in it if at least half of it is."""
        if not self.crop and mask.shape == (self.size, self.size):
            return mask
        gray = mask.astype(np.uint8) * 255
        return resize(gray, self.size, box, Image.Resampling.BOX) >= 128

    def _box(self, lungs: Lungs) -> Box:
        """Return the part that is seen: left, top, right and bottom, in shares of the image."""
        if not self.crop:
            return WHOLE
        height, width = lungs.shape
        places = np.arange(lungs.size, dtype=np.int32).reshape(lungs.shape)  # each pixel's number
        seen = ap.lung_crop(places, mask=lungs)
        top, left = divmod(int(seen[0, 0]), width)
        bottom, right = top + seen.shape[0], left + seen.shape[1]
        return left / width, top / height, right / width, bottom / height


def find_lungs(native: Gray) -> tuple[Lungs, bool]:
    """Find the lungs, and tell whether they are an upright pair.

    Not by the library's warning: it names no image, and Python shows it for the first one alone.
    """
    lungs, quality = ap.lung_mask_robust(native, return_quality=True)
    return lungs, quality >= UPRIGHT


def resize(
    image: Gray,
    size: int,
    box: Box = WHOLE,
    method: Image.Resampling = Image.Resampling.BICUBIC,
) -> Gray:
    """Resize a part of an image to `size` x `size` pixels."""
    height, width = image.shape
    left, top, right, bottom = box
    pixels = (left * width, top * height, right * width, bottom * height)
    return np.array(Image.fromarray(image).resize((size, size), method, pixels))


def scale_tone(image: Gray, lungs: Lungs) -> Gray:
    """Scale gray values by those inside the lungs, or by all where there are none."""
    values = image[lungs] if lungs.any() else image
    low, high = np.percentile(values, TONE_PERCENTILES)
    first, last = TONE_LEVELS
    scaled = (image - low) * ((last - first) / max(high - low, 1)) + first
    return np.rint(scaled).clip(0, 255).astype(np.uint8)
