"""Radiographs from files: PNG, JPEG, TIFF and DICOM, with the polarity that the file states."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from anatpaste_aug.images import PILLOW_MODES, Array, as_array

GREY_MODES = {"1": "L", "LA": "L"}  # what is not grey becomes RGB


def read_image(path: str | os.PathLike[str]) -> Array:
    """Read a radiograph as an array that `anatpaste_aug.anatpaste` takes.

    Parameters
    ----------
    path : path
        A DICOM file (needs pydicom, the extra ``dicom``), or anything that Pillow opens: grey of 8
        or 16 bits or float, which is kept as it is, or 8-bit colour. Transparency is dropped.

    Returns
    -------
    image : (H, W) or (H, W, 3) ndarray
        DICOM: float32, with the modality and VOI transforms (LUT, else window) applied, padding
        set to black and MONOCHROME1 inverted, so that air is dark; so is TIFF's WhiteIsZero.

    Raises
    ------
    OSError
        If the file cannot be read.
    ImportError
        If it is a DICOM file and pydicom is missing.
    ValueError
        If it is not a picture that can be used: damaged, several frames, 16-bit colour, under 16
        pixels.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from PIL import Image, ImageOps
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> from anatpaste_aug.files import read_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "phantom.png")
    ...     Image.fromarray(phantom_radiograph(64, rng=0)).save(path)
    ...     read_image(path).shape
    (64, 64)
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom"):
        return as_array(_read_dicom(path))
    try:
        with Image.open(path) as opened:
            return as_array(_read_pillow(opened))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    except SyntaxError as error:  # Pillow's word for a broken PNG
        raise ValueError(f"damaged image: {error}") from error


def _read_pillow(opened: Image.Image) -> Array:
    """Return the pixels of an opened file; refuse what Pillow would cut down or misread."""
    frames = getattr(opened, "n_frames", 1)
    if frames != 1:
        raise ValueError(f"image must hold one frame, got {frames}")
    mode, tags = opened.mode, getattr(opened, "tag_v2", {})
    raw = str([tile[3] for tile in getattr(opened, "tile", [])])
    if "16" in raw and not mode.startswith("I;16"):
        raise ValueError(f"16-bit colour and transparency cannot be read, got {mode}")
    if mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,):
        raise ValueError("unsigned 32-bit pixels cannot be read")
    if mode in ("I;16B", "I;16L"):
        image = np.asarray(opened).astype(np.uint16)
    elif mode in PILLOW_MODES:
        image = np.asarray(ImageOps.exif_transpose(opened))
    else:
        image = np.asarray(ImageOps.exif_transpose(opened).convert(GREY_MODES.get(mode, "RGB")))
    # TIFF's WhiteIsZero: Pillow inverts 8-bit pixels itself, and no others.
    return image.max() - image if tags.get(262) == 0 and image.dtype != np.uint8 else image


def _read_dicom(path: Path) -> Array:
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError as error:
        raise ImportError(
            "reading DICOM needs pydicom: pip install 'anatpaste-aug[dicom]'"
        ) from error
    try:
        data = pydicom.dcmread(path)
        pixels = data.pixel_array
        photometric = str(data.PhotometricInterpretation)
        if pixels.ndim != 2 or not photometric.startswith("MONOCHROME"):
            raise ValueError(f"not one grey frame but {photometric} of shape {pixels.shape}")
        image = apply_voi_lut(apply_modality_lut(pixels, data), data).astype(np.float32)
    except Exception as error:  # pydicom raises a dozen kinds on damaged files
        raise ValueError(f"damaged or unsupported DICOM: {error}") from error
    if photometric == "MONOCHROME1":
        image = image.max() - image
    padding = pixels == data.get("PixelPaddingValue")
    if padding.any() and not padding.all():
        image[padding] = image[~padding].min()
    return image
