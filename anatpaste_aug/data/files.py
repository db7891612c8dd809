"""Radiographs from files: PNG, JPEG, TIFF and DICOM, with the polarity that the file states."""

import contextlib
import errno
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from anatpaste_aug.images import PILLOW_MODES, Array, as_array, check_finite

NO_PREAMBLE = (b"\x02\0", b"\x08\0")  # how a DICOM begins that has none: with group 2 or 8
GRAY_MODES = {"1": "L", "LA": "L"}  # what is not gray becomes RGB
ODD_TIFFS = "of int8, uint32, float16, float64 or packed bits, or big-endian"
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # Pillow knows more: that of EPS starts a program
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm", ".dicom")  # usual ones
MAX_SCANS = 100  # of a JPEG, as in libtiff
BAND = 64  # rows of a DICOM that are transformed at a time
BYTES_PER_PIXEL = 4  # of the limit, that a DICOM may hold, packed and unpacked
PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
SHAPE = "PresentationLUTShape"
SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}
INSTALL = "pip install 'anatpaste-aug[dicom]'"
TRANSFORM = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction")


def read_image(path: str | os.PathLike[str]) -> Array:
    """Read a radiograph as an array that `anatpaste_aug.anatpaste` takes.

    Parameters
    ----------
    path : path
        A PNG, JPEG, TIFF or BMP file: gray of 8 or 16 bits or float, which is kept as it is, or
        8-bit color; transparency is dropped. TIFFs that Pillow does not know, as of float64, need
        tifffile. Or a DICOM file, also without a preamble or with one frame of functional groups
        (needs the extra ``dicom``: pydicom, and decoders for what is compressed). The content
        decides, not the name.

    Returns
    -------
    image : (H, W) or (H, W, 3) ndarray
        DICOM: float32, with the modality and VOI transforms (LUT, else the first window) of
        PS3.3 C.11.1 and C.11.2 applied, padding set to black and MONOCHROME1 inverted, so that air
        is dark; so is TIFF's WhiteIsZero. 16-bit signed TIFFs become int32.

    Raises
    ------
    OSError
        If the file cannot be read, is not a regular file, or is of another format.
    ImportError
        If it is a DICOM file and pydicom or the decoder of its compression is missing.
    MemoryError
        If there is not enough memory, which says nothing about the file.
    ValueError
        If it is not a picture that can be used: damaged, several frames, 16-bit color, under 16
        pixels, more pixels than Pillow's limit against decompression bombs
        (``PIL.Image.MAX_IMAGE_PIXELS``), a run-length encoded BMP, a JPEG of more than 100 scans,
        int8 or uint32; or a DICOM file that holds no image, contradicts itself (its
        PresentationLUTShape its photometric interpretation) or whose transforms leave a single
        gray value. All messages name the file.

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
            if start[128:] == b"DICM" or start[:2] in NO_PREAMBLE:
                image = as_array(_read_dicom(file))
            else:
                try:
                    if start[:4] == b"MM\0+":  # BigTIFF; of it Pillow knows the little-endian
                        raise UnidentifiedImageError
                    with Image.open(file, formats=FORMATS) as opened:
                        _check_cost(opened, file)
                        image = as_array(_read_pillow(opened))
                except UnidentifiedImageError:
                    if start[:2] not in (b"II", b"MM"):
                        raise
                    image = _read_tiff(file)
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
    tiles = getattr(opened, "tile", [])
    raw = str([args if isinstance(args, str) else args[0] for *_, args in tiles])
    if mode in "1L" and tags and 262 not in tags:  # Pillow takes white for zero, others black
        raise ValueError("TIFF lacks a PhotometricInterpretation")
    if ("16" in raw or 16 in tags.get(258, ())) and not mode.startswith("I"):
        raise ValueError(f"16-bit color and transparency cannot be read, got {mode}")
    kind = mode, tags.get(258), tags.get(339, (1,))
    swapped = mode in "IF" and tiles[0][0] == "libtiff" and getattr(tags, "prefix", b"") == b"MM"
    if swapped or kind in (("L", (8,), (2,)), ("I", (32,), (1,))):
        raise UnidentifiedImageError
    turned = ImageOps.exif_transpose(opened)
    kept = mode in (*PILLOW_MODES, "I;16B", "I;16L")
    image = np.asarray(turned if kept else turned.convert(GRAY_MODES.get(mode, "RGB")))
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    # TIFF's WhiteIsZero: Pillow inverts 8-bit pixels itself, and no others.
    return image.max() - image if tags.get(262) == 0 and image.dtype != np.uint8 else image


def _read_tiff(file: BinaryIO) -> Array:
    """Return the pixels of a gray TIFF that Pillow does not know or misreads."""
    try:
        import tifffile
    except ImportError as error:
        raise ValueError(f"damaged, or a TIFF ({ODD_TIFFS}) that needs tifffile") from error
    file.seek(0)
    with tifffile.TiffFile(file) as opened:
        page = opened.pages[0]
        photometric = page.tags.valueof(262, 1)
        if (len(opened.pages), page.samplesperpixel) != (1, 1) or photometric > 1:
            raise ValueError(f"TIFF must hold one gray frame, got {len(opened.pages)}: {page}")
        if page.tags.valueof(274, 1) != 1:
            raise ValueError("TIFF of this kind must be upright (Orientation 1)")
        _check_size(max(page.size, page.tilewidth * page.tilelength), 1)
        if page.compression in (8, 32946):  # deflated, without a limit
            for at, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                file.seek(at)
                _check_inflated(file.read(size)[2:])  # behind zlib's header
        image = as_array(page.asarray())
    if photometric == 1:
        return image
    return ~image if image.dtype.kind == "i" else image.max() - image


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
        from pydicom import uid
        from pydicom.pixels import get_decoder, pixel_array
    except ImportError as error:
        raise ImportError(f"reading DICOM needs pydicom: {INSTALL}") from error
    try:
        _check_size(os.fstat(file.fileno()).st_size, BYTES_PER_PIXEL)  # it may be full of holes
        data = pydicom.dcmread(_Inflating(file), force=True)
        if "PixelData" not in data:
            kind = data.file_meta.get("MediaStorageSOPClassUID", data.get("SOPClassUID"))
            raise ValueError(f"it holds no image ({getattr(kind, 'name', kind)})")
        for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            for group in data.get(groups) or ():  # one frame's, in an enhanced file
                for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                    data.update((group.get(name) or [{}])[0])
        photometric, shape = _first(data, "PhotometricInterpretation"), _first(data, SHAPE)
        frames, samples = _first(data, "NumberOfFrames") or 1, _first(data, "SamplesPerPixel") or 1
        if (frames, samples) != (1, 1) or photometric not in SHAPES:
            raise ValueError(f"not one gray frame but {photometric}, {frames} x {samples} channels")
        if shape in SHAPES.values() and shape != SHAPES[photometric]:
            raise ValueError(f"{photometric} and {SHAPE} {shape} contradict each other")
        _check_size(int(data.Rows) * int(data.Columns), 1)
        # Room for what follows: pydicom's decoders turn a lack of memory into other errors.
        np.empty((2, int(data.Rows), int(data.Columns)))
        native = "ExplicitVRLittleEndian" if data.original_encoding[1] else "ExplicitVRBigEndian"
        syntax = data.file_meta.get("TransferSyntaxUID") or getattr(uid, native)
        data.file_meta.TransferSyntaxUID = syntax
        if data["PixelData"].is_undefined_length and not syntax.is_encapsulated:
            raise ValueError(f"compressed pixels contradict the transfer syntax {syntax.name}")
        if syntax in uid.JPEGTransferSyntaxes:
            _check_scans(data.PixelData)
        # The last by name is the best, pylibjpeg; GDCM ends the process on a damaged frame.
        useless = {"gdcm", "pillow"} if syntax == uid.JPEGExtended12Bit else {"gdcm"}
        plugin = max(set(get_decoder(syntax).available_plugins) - useless, default="")
        if syntax.is_encapsulated and not plugin:
            raise ImportError(f"{syntax.name} needs a decoder: {INSTALL}")
        sides = (">II", data.Columns, data.Rows), (">HH", data.Rows, data.Columns)  # in its header
        size = struct.pack(*sides["2000" not in syntax.name])
        if syntax.is_encapsulated and syntax != uid.RLELossless and size not in data.PixelData:
            raise ValueError(f"the frame is not of {data.Rows} x {data.Columns} pixels")
        cells = pixel_array(data, decoding_plugin=plugin, correct_unused_bits=False)
        if cells.ndim != 2:
            raise ValueError(f"not one gray frame but {photometric} of shape {cells.shape}")
        pixels = _stored_values(cells, data)
        image = np.empty(pixels.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # refused then by `check_finite`
            for at in range(0, len(pixels), BAND):  # in float64 they take eight times the room
                image[at : at + BAND] = _transform(pixels[at : at + BAND].astype(float), data)
        if photometric == "MONOCHROME1":
            np.subtract(image.max(), image, out=image)
        padding = _find_padding(cells, pixels, data)
        shown = pixels
        if padding.any() and not padding.all():
            shown = pixels[~padding]
            image[padding] = image[~padding].min()
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # pydicom raises a dozen kinds on damaged files
        raise ValueError(f"damaged or unsupported DICOM: {error}") from error
    if image.min() == image.max() and shown.min() != shown.max():
        told = ", ".join(f"{name} {data[name].value}" for name in TRANSFORM if name in data)
        raise ValueError(
            f"all pixels are alike after the transforms that the DICOM asks for: {told}"
        )
    return image


def _first(data: Any, name: str) -> Any:
    """Return the first value of a DICOM element, None if it is missing or empty."""
    value = np.array(data.get(name), object).ravel()[:1].tolist()
    return None if value in ([], [None], [""]) else value[0]


def _table(data: Any, name: str) -> Any:
    """Return the first table of a DICOM sequence, None if it is missing or empty."""
    item = (data.get(name) or [{}])[0]
    empty = any(item.get(part) in (None, "", b"") for part in ("LUTDescriptor", "LUTData"))
    return None if empty else item


def _stored_values(cells: Array, data: Any) -> Array:
    """Return what pixels hold between the highest and the lowest bit that belongs to them."""
    bits = cells.dtype.itemsize * 8
    above = max(bits - 1 - int(data.get("HighBit", data.BitsStored - 1)), 0)
    below = max(bits - data.BitsStored, 0) - above
    if below < 0:
        raise ValueError(f"HighBit {data.HighBit} is too low for BitsStored {data.BitsStored}")
    return cells << above >> above + below


def _find_padding(cells: Array, pixels: Array, data: Any) -> Array:
    """Tell which pixels hold a value of the padding, or of its range, written with either sign."""
    first, last = (np.ravel(data.get(name)) for name in PADDING)
    is_range = last.dtype.kind == "i"
    ends = np.append(first[:1], last[:1]) if is_range else first
    if ends.dtype.kind == "i" and pixels.dtype.kind == "i":
        ends = ends.astype(np.int16).astype(int)  # an element of 16 bits
    if ends.dtype.kind != "i" or abs(ends).max() >= 256**pixels.dtype.itemsize:
        return np.zeros(pixels.shape, bool)
    ends = ends.astype(pixels.dtype)  # modulo
    unused = max(pixels.dtype.itemsize * 8 - data.BitsStored, 0)
    if (ends << unused >> unused != ends).any():  # more than the bits stored: the whole cell
        pixels = cells
    return (ends.min() <= pixels) & (pixels <= ends.max()) if is_range else np.isin(pixels, ends)


def _transform(values: Array, data: Any) -> Array:
    """Apply the modality and VOI transforms of a DICOM to stored values (PS3.3 C.11.1, C.11.2)."""
    signed = data.PixelRepresentation == 1
    ends = np.array([0.0, 2.0**data.BitsStored - 1]) - signed * 2.0 ** (data.BitsStored - 1)
    slope, intercept, center, width, function = (_first(data, name) for name in TRANSFORM)
    if table := _table(data, "ModalityLUTSequence"):
        values = _look_up(values, table, signed, data)
        ends = np.array([0.0, 2.0 ** table.LUTDescriptor[2] - 1])
    elif None not in (slope, intercept):
        values, ends = values * slope + intercept, ends * slope + intercept
    low, high = ends.min(), ends.max()
    if table := _table(data, "VOILUTSequence"):
        return _look_up(values, table, low < 0, data)
    if None in (center, width):
        return values
    function = (function or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"VOILUTFunction {function} is not known")
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if not (width > 0 or (width == 0 and function == "LINEAR")):
        raise ValueError(f"WindowWidth {data.WindowWidth} is too small for {function}")
    share = (values - center) / width if width else (values > center) - 0.5
    share = np.tanh(2 * share) / 2 if function == "SIGMOID" else np.clip(share, -0.5, 0.5)
    return (share + 0.5) * (high - low) + low


def _look_up(values: Array, item: Any, signed: bool, data: Any) -> Array:
    """Look up values in a table of a DICOM; beyond its ends they are those of the ends."""
    if np.size(item.LUTDescriptor) != 3:
        raise ValueError(f"LUTDescriptor must hold 3 values, got {item.LUTDescriptor}")
    count, first, _ = item.LUTDescriptor
    count = count % 2**16 or 2**16
    first = (first + 2**15) % 2**16 - 2**15 if signed else first % 2**16
    table = item.LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "<u2" if data.original_encoding[1] else ">u2")
    table = np.ravel(table).astype("<u2")  # 16 bits, whatever the sign they are written with
    if len(table) < count <= 2 * len(table) <= count + 1:  # two to a word
        table = table.view(np.uint8)
    if len(table) < count:
        raise ValueError(f"LUTData must hold {count} entries, got {len(table)}")
    return table[np.clip(values - first, 0, count - 1).astype(int)].astype(float)


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
