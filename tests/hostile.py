"""Files that mean harm, or have met it: made here byte by byte, so that no library mends them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
IMPLICIT, RLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.5"
LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")  # value representations with a length of 32 bits


def element(group, number, kind, value):
    """Encode one DICOM element, explicit and little-endian."""
    value = value.encode() if isinstance(value, str) else value
    value += b"\0" * (len(value) % 2)
    length = struct.pack("<2xI" if kind in LONG else "<H", len(value))
    return struct.pack("<HH", group, number) + kind + length + value


def short(value):
    return struct.pack("<H", value)


def dicom(pixels=None, syntax=EXPLICIT, photometric="MONOCHROME2", rows=None, more=(), data=None):
    """Encode a DICOM file; `more` are elements of group 28 after the usual ones."""
    pixels = np.zeros((32, 32), np.uint16) if pixels is None else pixels
    bits = pixels.dtype.itemsize * 8
    body = element(8, 0x16, b"UI", "1.2.840.10008.5.1.4.1.1.7") + element(8, 0x18, b"UI", "1.2.3")
    for number, kind, value in (
        (0x02, b"US", short(1)),
        (0x04, b"CS", photometric),
        (0x10, b"US", short(rows or pixels.shape[0])),
        (0x11, b"US", short(rows or pixels.shape[1])),
        (0x100, b"US", short(bits)),
        (0x101, b"US", short(bits)),
        (0x102, b"US", short(bits - 1)),
        (0x103, b"US", short(0)),
        *more,
    ):
        body += element(0x28, number, kind, value)
    body += element(0x7FE0, 0x10, b"OW", pixels.tobytes() if data is None else data)
    if syntax == DEFLATED:
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = packer.compress(body) + packer.flush()
    meta = element(2, 2, b"UI", "1.2.840.10008.5.1.4.1.1.7") + element(2, 3, b"UI", "1.2.3")
    meta += element(2, 0x10, b"UI", syntax)
    size = element(2, 0, b"UL", struct.pack("<I", len(meta)))
    return b"\0" * 128 + b"DICM" + size + meta + body


def window(center, width):
    return ((0x1050, b"DS", str(center)), (0x1051, b"DS", str(width)))


def picture(pixels, form, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def nested(depth):
    """Encode sequences within sequences, `depth` of them, in a DICOM file."""
    inner = b""
    for _ in range(depth):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
        inner = element(0x40, 0xA730, b"SQ", item)
    whole = dicom()
    end = whole.index(struct.pack("<HH", 0x28, 2))
    return whole[:end] + inner + whole[end:]


def valid(pixels):
    """Give one file of each kind that is read."""
    wide = pixels.astype(np.uint16) * 257
    return {
        "grey.png": picture(pixels, "PNG"),
        "deep.png": picture(wide, "PNG"),
        "colour.png": picture(np.stack([pixels] * 3, -1), "PNG"),
        "grey.jpg": picture(pixels, "JPEG"),
        "progressive.jpg": picture(pixels, "JPEG", progressive=True),
        "grey.bmp": picture(pixels, "BMP"),
        "grey.tif": picture(pixels, "TIFF"),
        "packed.tif": picture(wide, "TIFF", compression="tiff_lzw"),
        "float.tif": picture(pixels.astype(np.float32) / 255, "TIFF"),
        "plain.dcm": dicom(wide, more=window(32768, 65536)),
        "deflated.dcm": dicom(wide, DEFLATED),
        "inverted.dcm": dicom(pixels, photometric="MONOCHROME1"),
        "nested.dcm": nested(3000),
        "padding.dcm": dicom(wide, more=((0x120, b"LO", "black"),)),
    }


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


def bad(pixels):
    """Give files that must be refused, each with a part of the reason."""
    ramp = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
    png = picture(pixels, "PNG")
    return {
        "empty.png": (b"", "cannot identify"),
        "eps.png": (EPS, "cannot identify"),
        "gif.png": (picture(pixels, "GIF"), "cannot identify"),
        "webp.png": (picture(pixels, "WEBP"), "cannot identify"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "checksum.png": (png.replace(b"IDAT", b"IDAT\0", 1), "damaged|broken|truncated"),
        "small.png": (picture(pixels[:8], "PNG"), "at least 16 pixels"),
        "frames.tif": (
            picture(pixels, "TIFF", save_all=True, append_images=[Image.fromarray(pixels)]),
            "one frame, got 2",
        ),
        "text.dcm": (b"text", "DICM"),
        "header.dcm": (b"\0" * 128 + b"DICM", "damaged"),
        "cut.dcm": (dicom(ramp)[:-100], "damaged"),
        "colour.dcm": (dicom(ramp, photometric="RGB"), "not one grey frame but RGB"),
        "frames.dcm": (dicom(ramp, more=((0x08, b"IS", "9999999"),)), "not one grey frame"),
        "huge.dcm": (dicom(ramp, RLE, rows=65535), "decompression bomb"),
        "window.dcm": (dicom(ramp, more=window("1e9", 2)), "all pixels are alike"),
        "slope.dcm": (
            dicom(ramp, more=((0x1052, b"DS", "0"), (0x1053, b"DS", "0"))),
            "all pixels are alike",
        ),
        "infinite.dcm": (
            dicom(ramp, more=((0x1052, b"DS", "0"), (0x1053, b"DS", "1e300"))),
            "finite",
        ),
        "nan.dcm": (dicom(ramp, more=window("nan", 2)), "damaged|finite"),
    }
