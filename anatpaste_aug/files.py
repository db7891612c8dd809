"""Radiographs from files: PNG, JPEG, TIFF and DICOM, always with dark lungs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from anatpaste_aug.images import PILLOW_MODES, Array, as_array

DISPLAY_MODES = {"1": "L", "LA": "L", "I;16B": "I", "I;16L": "I"}  # all others become RGB


def read_image(path: str | os.PathLike[str]) -> Array:
    """Read a radiograph as an array that `anatpaste_aug.anatpaste` takes.

    Parameters
    ----------
    path : path
        A DICOM file (needs pydicom, the extra ``dicom``), or anything that Pillow opens. 16-bit and
        float pixels are kept; transparency is dropped.

    Returns
    -------
    image : (H, W) or (H, W, 3) ndarray
        DICOM: float32, with the modality and VOI transforms (LUT, else window) applied and
        MONOCHROME1 inverted, so that air is dark.

    Raises
    ------
    OSError
        If the file cannot be read.
    ImportError
        If it is a DICOM file and pydicom is missing.
    ValueError
        If it is not a picture that can be used: damaged, several frames, under 16 pixels.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from PIL import Image
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
        image = _read_dicom(path)
    else:
        try:
            with Image.open(path) as opened:
                mode = DISPLAY_MODES.get(opened.mode, "RGB")
                image = np.asarray(opened if opened.mode in PILLOW_MODES else opened.convert(mode))
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error
        except SyntaxError as error:  # Pillow's word for a broken PNG
            raise ValueError(f"damaged image: {error}") from error
    return as_array(image)


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
    except Exception as error:  # pydicom raises a dozen kinds on damaged files
        raise ValueError(f"damaged or unsupported DICOM: {error}") from error
    if pixels.ndim != 2 or not photometric.startswith("MONOCHROME"):
        raise ValueError(
            f"DICOM must hold one grey frame, got {photometric} with the shape {pixels.shape}"
        )
    image = apply_voi_lut(apply_modality_lut(pixels, data), data).astype(np.float32)
    return image.max() - image if photometric == "MONOCHROME1" else image
