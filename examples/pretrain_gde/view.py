"""What a network sees of an image: all of it, or the lungs (or what is masked), in their tones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

import anatpaste_aug as ap
from anatpaste_aug.functions import is_function, source_of
from examples.pretrain_gde.given import given

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
        Whether an image is cut to the box around its mask (`anatpaste_aug.lung_crop`).
    tone : str
        "image": gray values as they are; "lungs": scaled linearly so that `TONE_PERCENTILES` of
        those inside the mask become `TONE_LEVELS`, and cut at 0 and 255.
    mask : str
        Which mask that is, by its name in the settings.
    masked : bool
        Whether the mask is wanted, too.
    """

    size: int
    crop: bool = False
    tone: str = "image"
    mask: str = "published"
    masked: bool = False

    @property
    def needs_mask(self) -> bool:
        """Whether the mask must be found to make an input."""
        return self.crop or self.tone == "lungs"

    @property
    def finds_mask(self) -> bool:
        """Whether the mask is found at all."""
        return self.needs_mask or self.masked

    def made_by(self) -> tuple[object, ...]:
        """Return what decides, beside an image, what is seen of it; its function must be given."""
        if not self.finds_mask:
            return (self.size,)
        own = is_function(self.mask)
        return self, ap.__version__, source_of(given("mask", self.mask)) if own else ""

    def see(self, image: Gray) -> tuple[Gray, bool, Lungs | None]:
        """Make the network's input from a gray image of any size: (S, S) uint8.

        Tell, too, whether the mask is fine, where it is looked for, and return what is seen of it,
        (S, S) bool, if it is wanted. It is found once, at `NATIVE_SIZE`.
        """
        if not self.finds_mask:
            return resize(image, self.size), True, None
        native = resize(image, NATIVE_SIZE)
        lungs, fine = find_mask(native, self.mask)
        box = self._box(lungs)
        way = Image.Resampling.BILINEAR if self.needs_mask else Image.Resampling.BICUBIC
        seen = resize(image, self.size, box, way)
        if self.tone == "lungs":
            seen = scale_tone(seen, self._cut(lungs, box))
        return seen, fine, self._cut(lungs, box) if self.masked else None

    def _cut(self, mask: Lungs, box: Box) -> Lungs:
        """Cut a mask to its box; a pixel is in it if at least half of it is."""
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


def find_mask(native: Gray, name: str) -> tuple[Lungs, bool]:
    """Find a mask by its name, and tell whether it is fine: of the robust one, an upright pair.

    Not by the library's warning: it names no image, and Python shows it for the first one alone.
    """
    if name == "robust":
        lungs, quality = ap.lung_mask_robust(native, return_quality=True)
        return lungs, quality >= UPRIGHT
    lungs = ap.lung_mask(native) if name == "published" else given("mask", name)(native)
    return lungs, bool(lungs.any())


def resize(
    image: Gray, size: int, box: Box = WHOLE, method: Image.Resampling = Image.Resampling.BICUBIC
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
