"""Radiographs from files: PNG, JPEG, TIFF and DICOM, with the polarity that the file states."""

import contextlib
import errno
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from anatpaste_aug.images import PILLOW_MODES, Array, as_array, check_finite

GRAY_MODES = {"1": "L", "LA": "L"}  # what is not gray becomes RGB
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # Pillow knows more: that of EPS starts a program
MAX_SCANS = 100  # of a JPEG, as in libtiff
BAND = 64  # rows of a DICOM that are transformed at a time
BYTES_PER_PIXEL = 4  # of the limit, that a DICOM may hold, packed and unpacked
PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
TRANSFORM = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction")


def read_image(path: str | os.PathLike[str]) -> Array:
    """Read a radiograph as an array that `anatpaste_aug.anatpaste` takes.

    Parameters
    ----------
    path : path
        A PNG, JPEG, TIFF or BMP file: gray of 8 or 16 bits or float, which is kept as it is, or
        8-bit color; transparency is dropped. Or a DICOM file (needs pydicom, the extra ``dicom``).
        The content decides, not the name.

    Returns
    -------
    image : (H, W) or (H, W, 3) ndarray
        DICOM: float32, with the modality and VOI transforms (LUT, else window) applied, padding
        set to black and MONOCHROME1 inverted, so that air is dark; so is TIFF's WhiteIsZero.

    Raises
    ------
    OSError
        If the file cannot be read, is not a regular file, or is of another format.
    ImportError
        If it is a DICOM file and pydicom is missing.
    MemoryError
        If there is not enough memory, which says nothing about the file.
    ValueError
        If it is not a picture that can be used: damaged, several frames, 16-bit color, under 16
        pixels, more pixels than Pillow's limit against decompression bombs
        (``PIL.Image.MAX_IMAGE_PIXELS``), a run-length encoded BMP, a JPEG of more than 100 scans,
        or a DICOM file whose transforms leave a single gray value. All messages name the file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from PIL import Image, ImageOps
    >>> from anatpaste_aug.data import phantom_radiograph
    >>> from anatpaste_aug.data import read_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "phantom.png")
    ...     Image.fromarray(phantom_radiograph(64, rng=0)).save(path)
    ...     read_image(path).shape
    (64, 64)
    """
    path = Path(path)
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device might never end
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            start = file.read(132)
            file.seek(0)
            if start[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom"):
                image = as_array(_read_dicom(file))
            else:
                with Image.open(file, formats=FORMATS) as opened:
                    _check_cost(opened, file)
                    image = as_array(_read_pillow(opened))
            check_finite(image)
            return image
    except ImportError as error:
        raise ImportError(f"{path}: {error}") from error
    except MemoryError as error:
        raise MemoryError(f"{path}: out of memory") from error
    except UnidentifiedImageError as error:
        kinds = f"{', '.join(FORMATS)} and DICOM"
        raise OSError(f"{path}: cannot identify image file: only {kinds} are read") from error
    except OSError as error:
        if "out of memory" in str(error):  # Pillow's own decoders
            raise MemoryError(f"{path}: {error}") from error
        if error.filename is not None:
            raise
        raise OSError(f"{path}: {error}") from error
    except (ValueError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # Pillow raises half a dozen other kinds on damaged files
        raise ValueError(f"{path}: damaged image: {error or type(error).__name__}") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting, where it is a pipe, for somebody at its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_pillow(opened: Image.Image) -> Array:
    """Return the pixels of an opened file; refuse what Pillow would cut down or misread."""
    frames = _count_frames(opened)
    if frames != 1:
        raise ValueError(f"image must hold one frame, got {frames}")
    mode, tags = opened.mode, getattr(opened, "tag_v2", {})
    raw = str([tile[3] for tile in getattr(opened, "tile", [])])
    if "16" in raw and not mode.startswith("I;16"):
        raise ValueError(f"16-bit color and transparency cannot be read, got {mode}")
    if mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,):
        raise ValueError("unsigned 32-bit pixels cannot be read")
    if mode in ("I;16B", "I;16L"):
        image = np.asarray(opened).astype(np.uint16)
    elif mode in PILLOW_MODES:
        image = np.asarray(ImageOps.exif_transpose(opened))
    else:
        image = np.asarray(ImageOps.exif_transpose(opened).convert(GRAY_MODES.get(mode, "RGB")))
    # TIFF's WhiteIsZero: Pillow inverts 8-bit pixels itself, and no others.
    return image.max() - image if tags.get(262) == 0 and image.dtype != np.uint8 else image


def _check_cost(opened: Image.Image, file: BinaryIO) -> None:
    """Refuse small files that take Pillow long: it looks at their pixels alone, and not at once."""
    _check_size(opened.width * opened.height, 1)
    if any(tile[0] == "bmp_rle" for tile in getattr(opened, "tile", [])):
        raise ValueError("run-length encoded BMP cannot be read")  # row by row, in Python
    tags = getattr(opened, "tag_v2", {})
    _check_size(int(tags.get(322, 1)) * int(tags.get(323, 1)), 1)  # a TIFF's tiles
    if opened.format in ("JPEG", "MPO"):
        _check_scans(file.read())  # Pillow seeks what it needs


def _check_scans(data: bytes) -> None:
    """Check in how many passes over all its pixels a JPEG is coded; ten are usual."""
    if (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"JPEG must have at most {MAX_SCANS} scans, got {scans}")


def _count_frames(opened: Image.Image) -> int:
    """Count up to ten frames: Pillow takes minutes for all of a TIFF that is made for it."""
    for frame in range(1, 10):
        try:
            opened.seek(frame)
        except EOFError:
            opened.seek(0)
            return frame
    return 10


def _read_dicom(file: BinaryIO) -> Array:
    """Return the pixels of a DICOM file, as they are to be shown, with air dark."""
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
        from pydicom.uid import JPEGTransferSyntaxes
    except ImportError as error:
        raise ImportError(
            "reading DICOM needs pydicom: pip install 'anatpaste-aug[dicom]'"
        ) from error
    try:
        _check_size(os.fstat(file.fileno()).st_size, BYTES_PER_PIXEL)  # it may be full of holes
        data = pydicom.dcmread(_Inflating(file))
        photometric = str(data.PhotometricInterpretation)
        frames, samples = int(data.get("NumberOfFrames") or 1), int(data.SamplesPerPixel)
        if (frames, samples) != (1, 1) or not photometric.startswith("MONOCHROME"):
            raise ValueError(f"not one gray frame but {photometric}, {frames} x {samples} channels")
        _check_size(int(data.Rows) * int(data.Columns), 1)
        # Room for what follows: pydicom's decoders turn a lack of memory into other errors.
        np.empty((2, int(data.Rows), int(data.Columns)))
        if data.file_meta.get("TransferSyntaxUID") in JPEGTransferSyntaxes:
            _check_scans(data.PixelData)
        pixels = data.pixel_array
        if pixels.ndim != 2:
            raise ValueError(f"not one gray frame but {photometric} of shape {pixels.shape}")
        image = np.empty(pixels.shape, np.float32)
        with np.errstate(over="ignore"):  # what is infinite then is refused by `check_finite`
            for at in range(0, len(pixels), BAND):  # pydicom makes several copies in float64
                rows = slice(at, at + BAND)
                image[rows] = apply_voi_lut(apply_modality_lut(pixels[rows], data), data)
        if photometric == "MONOCHROME1":
            np.subtract(image.max(), image, out=image)
        padding = _find_padding(pixels, *(data.get(name) for name in PADDING))
        shown = pixels
        if padding.any() and not padding.all():
            shown = pixels[~padding]
            image[padding] = image[~padding].min()
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises a dozen kinds on damaged files
        raise ValueError(f"damaged or unsupported DICOM: {error}") from error
    if image.min() == image.max() and shown.min() != shown.max():
        told = ", ".join(f"{name} {data[name].value}" for name in TRANSFORM if name in data)
        raise ValueError(
            f"all pixels are alike after the transforms that the DICOM asks for: {told}"
        )
    return image


def _find_padding(pixels: Array, first: object, last: object) -> Array:
    """Tell which pixels hold the padding's value, or one of its range of values."""
    if isinstance(first, int) and isinstance(last, int):
        return (min(first, last) <= pixels) & (pixels <= max(first, last))
    return np.asarray(pixels == first)


class _Inflating:
    """A file that pydicom inflates, if it is deflated, only after a look at how much it becomes.

    pydicom, which has no limit, reads all that is left of a file for this alone.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1, /) -> bytes:
        packed = self.file.read(size)
        if size < 0:
            _check_inflated(packed)
        return packed


def _check_inflated(packed: bytes) -> None:
    """Check how large deflated data become; data that are damaged are left to whoever inflates."""
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with contextlib.suppress(zlib.error):
        for start in range(0, len(packed), 2**16):
            part = packed[start : start + 2**16]
            while part:
                size += len(inflate.decompress(part, 2**20))
                _check_size(size, BYTES_PER_PIXEL)
                part = inflate.unconsumed_tail


def _check_size(size: int, per_pixel: int) -> None:
    """Check a number of pixels, or of bytes, against Pillow's limit, which users can set."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size > limit * per_pixel:
        raise ValueError(
            f"it could be a decompression bomb: more than {limit} pixels (Image.MAX_IMAGE_PIXELS)"
        )
