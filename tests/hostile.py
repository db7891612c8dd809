"""Files that mean harm, or have met it: made here byte by byte, so that no library mends them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
IMPLICIT, RLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.5"
JPEG, J2K = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")  # value representations with a length of 32 bits


def element(group, number, kind, value):
    """Encode one DICOM element, explicit and little-endian."""
    value = value.encode() if isinstance(value, str) else value
    value += b"\0" * (len(value) % 2)
    length = struct.pack("<2xI" if kind in LONG else "<H", len(value))
    return struct.pack("<HH", group, number) + kind + length + value


def short(*values):
    return struct.pack(f"<{len(values)}H", *(value % 2**16 for value in values))


def item(content, number=0xE000):
    """Encode an item of a sequence, or one of the fragments of compressed pixels."""
    return struct.pack("<HHI", 0xFFFE, number, len(content)) + content


def sequence(number, *elements):
    """Encode a sequence of one item, as `more` of `dicom` takes it."""
    inside = b"".join(element(n >> 16, n & 0xFFFF, kind, value) for n, kind, value in elements)
    return number, b"SQ", item(inside)


def table(number, entries, first=0, bits=16, kind=b"OW"):
    """Encode a modality table (0x3000) or VOI table (0x3010), as `more` of `dicom` takes it."""
    return sequence(
        number,
        (0x283002, b"US", short(len(entries), first, bits)),
        (0x283006, kind, entries.tobytes()),
    )


def dicom(pixels=None, syntax=EXPLICIT, photometric="MONOCHROME2", rows=None, more=(), data=None):
    """Encode a DICOM file; `more` are elements, of group 28 if no other is named."""
    pixels = np.zeros((32, 32), np.uint16) if pixels is None else pixels
    bits = pixels.dtype.itemsize * 8
    body = element(8, 0x16, b"UI", "1.2.840.10008.5.1.4.1.1.7") + element(8, 0x18, b"UI", "1.2.3")
    usual = (
        (0x02, b"US", short(1)),
        (0x04, b"CS", photometric),
        (0x10, b"US", short(rows or pixels.shape[0])),
        (0x11, b"US", short(rows or pixels.shape[1])),
        (0x100, b"US", short(bits)),
        (0x101, b"US", short(bits)),
        (0x102, b"US", short(bits - 1)),
        (0x103, b"US", short(pixels.dtype.kind == "i")),
    )
    elements = {(n if n > 0xFFFF else 0x280000 + n): rest for n, *rest in (*usual, *more)}
    for number, (kind, value) in sorted(elements.items()):
        body += element(number >> 16, number & 0xFFFF, kind, value)
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
        inner = element(0x40, 0xA730, b"SQ", item(inner))
    whole = dicom()
    end = whole.index(struct.pack("<HH", 0x28, 2))
    return whole[:end] + inner + whole[end:]


def encapsulated(pixels, syntax, frame):
    """Encode a DICOM file whose one frame is compressed."""
    frame += b"\0" * (len(frame) % 2)
    parts = item(b"") + item(frame) + item(b"", 0xE0DD)
    whole = dicom(pixels, syntax, data=b"")
    return whole[:-12] + b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" + parts


def scans(width, height, count):
    """Encode a gray progressive JPEG of very many scans, each of which codes that nothing is."""
    blocks = -(-width // 8) * -(-height // 8)
    bits = ("0" + "1" * 14) * -(-blocks // 32767)  # runs of 32767 empty blocks
    bits += "0" * (-len(bits) % 8)
    empty = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = b"\xff\xda" + struct.pack(">H6B", 8, 1, 1, 0, 1, 63, 0) + empty
    return (
        b"\xff\xd8\xff\xdb" + struct.pack(">HB", 67, 0) + b"\1" * 64
        + b"\xff\xc2" + struct.pack(">HBHH4B", 11, 8, height, width, 1, 1, 0x11, 0)
        + b"\xff\xc4" + struct.pack(">HBB", 20, 0x00, 1) + bytes(15) + b"\0"
        + b"\xff\xc4" + struct.pack(">HBB", 20, 0x10, 1) + bytes(15) + b"\xe0"
        + b"\xff\xda" + struct.pack(">H6B", 8, 1, 1, 0, 0, 0, 0) + bytes(-(-blocks // 8))
        + scan * count + b"\xff\xd9"
    )  # fmt: skip


def tiff(pixels, other=(), data=None):
    """Encode a TIFF of any type of number, which Pillow does not write, and of `other` tags."""
    formats = {"u": 1, "i": 2, "f": 3}
    data = pixels.tobytes() if data is None else data
    tags = {256: pixels.shape[1], 257: pixels.shape[0], 258: pixels.dtype.itemsize * 8, 259: 1}
    tags |= {262: 1, 273: 0, 277: 1, 278: pixels.shape[0], 279: len(data)}
    tags |= {339: formats[pixels.dtype.kind], **dict(other)}
    tags = {tag: value for tag, value in sorted(tags.items()) if value is not None}
    end = 8 + 2 + 12 * len(tags) + 4
    table, lists = b"", b""
    for tag, value in tags.items():
        if isinstance(value, tuple):
            table += struct.pack("<HHII", tag, 3, len(value), end + len(lists))
            lists += short(*value)
        else:
            table += struct.pack("<HHII", tag, 4, 1, value or end + 64)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + table + bytes(4)
    return head + lists.ljust(64, b"\0") + data


def tiled(side):
    """Encode a TIFF of 32 x 32 pixels in one tile of `side` x `side`."""
    tile = zlib.compress(bytes(1000))
    tags = [(256, 32), (257, 32), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    tags += [(324, 8 + 2 + 12 * 10 + 4), (325, len(tile))]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + table + bytes(4) + tile


def run_length(width, height):
    """Encode a BMP whose every row is one pixel and "the rest is empty", as Pillow fills it."""
    data = b"\1\5\0\0" * height + b"\0\1"
    start = 14 + 40 + 4 * 256
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + bytes(1024) + data


def valid(pixels):
    """Return one file of each kind that is read."""
    wide = pixels.astype(np.uint16) * 257
    return {
        "gray.png": picture(pixels, "PNG"),
        "deep.png": picture(wide, "PNG"),
        "color.png": picture(np.stack([pixels] * 3, -1), "PNG"),
        "gray.jpg": picture(pixels, "JPEG"),
        "progressive.jpg": picture(pixels, "JPEG", progressive=True),
        "scans.jpg": scans(64, 64, 90),
        "frame.dcm": encapsulated(pixels, JPEG, scans(64, 64, 90)),
        "gray.bmp": picture(pixels, "BMP"),
        "gray.tif": picture(pixels, "TIFF"),
        "packed.tif": picture(wide, "TIFF", compression="tiff_lzw"),
        "float.tif": picture(pixels.astype(np.float32) / 255, "TIFF"),
        "plain.dcm": dicom(wide, more=window(32768, 65536)),
        "deflated.dcm": dicom(wide, DEFLATED),
        "inverted.dcm": dicom(pixels, photometric="MONOCHROME1"),
        "nested.dcm": nested(3000),
        "slope.dcm": dicom(wide, more=((0x1052, b"DS", "9"), (0x1053, b"DS", "-2"), *window(9, 9))),
        "voi.dcm": dicom(wide, more=(table(0x3010, np.arange(256, dtype="<u2"), 99, 8),)),
        "bytes.dcm": dicom(pixels, more=(table(0x3010, np.arange(256, dtype=np.uint8)[::-1]),)),
        "modality.dcm": dicom(
            wide.astype("<i2"), more=(table(0x3000, np.arange(4096, dtype="<u2"), -2000),)
        ),
        "shared.dcm": dicom(
            wide,
            more=(
                sequence(
                    0x52009229, sequence(0x289145, (0x281052, b"DS", "1"), (0x281053, b"DS", "2"))
                ),
            ),
        ),
        "shifted.dcm": dicom(wide, more=((0x101, b"US", short(12)),)),
        "bare.dcm": dicom(wide)[132:],
        "range.dcm": dicom(wide, more=((0x120, b"SS", short(-9)), (0x121, b"SS", short(-1)))),
        "j2k.dcm": encapsulated(pixels, J2K, picture(pixels, "JPEG2000", no_jp2=True)),
        "int16.tif": tiff(wide.astype(np.int16)),
        "double.tif": tiff(pixels.astype(float)),
        "padding.dcm": dicom(wide, more=((0x120, b"LO", "black"),)),
    }


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


def bad(pixels):
    """Return files that must be refused, each with a part of the reason."""
    ramp = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
    wide = pixels.astype(np.uint16)
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
        "scans.jpg": (scans(64, 64, 101), "at most 100 scans"),
        "scans.dcm": (encapsulated(pixels, JPEG, scans(64, 64, 101)), "at most 100 scans"),
        "tile.tif": (tiled(40_000), "decompression bomb"),
        "rows.bmp": (run_length(64, 64), "run-length encoded BMP"),
        "text.dcm": (b"text", "cannot identify"),
        "header.dcm": (b"\0" * 128 + b"DICM", "damaged"),
        "cut.dcm": (dicom(ramp)[:-100], "damaged"),
        "color.dcm": (dicom(ramp, photometric="RGB"), "not one gray frame but RGB"),
        "frames.dcm": (dicom(ramp, more=((0x08, b"IS", "9999999"),)), "not one gray frame"),
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
        "report.dcm": (dicom(ramp).replace(b"\xe0\x7f\x10\0", b"\xe0\x7f\x11\0"), "holds no image"),
        "shape.dcm": (dicom(ramp, more=((0x20500020, b"CS", "INVERSE"),)), "contradict"),
        "width.dcm": (dicom(ramp, more=window(500, 0)), "WindowWidth 0 is too small"),
        "function.dcm": (
            dicom(ramp, more=(*window(500, 100), (0x1056, b"CS", "CUBIC"))),
            "VOILUTFunction CUBIC is not known",
        ),
        "table.dcm": (
            dicom(
                ramp,
                more=(
                    sequence(
                        0x3010, (0x283002, b"US", short(9, 0, 16)), (0x283006, b"OW", bytes(4))
                    ),
                ),
            ),
            "must hold 9 entries, got 2",
        ),
        "high.dcm": (dicom(ramp, more=((0x102, b"US", short(9)),)), "HighBit 9 is too low"),
        "size.dcm": (encapsulated(pixels, JPEG, scans(80, 64, 9)), "not of 64 x 64 pixels"),
        "j2k.dcm": (
            encapsulated(pixels, J2K, picture(pixels.reshape(32, 128), "JPEG2000", no_jp2=True)),
            "not of 64 x 64 pixels",
        ),
        "native.dcm": (encapsulated(pixels, EXPLICIT, scans(64, 64, 9)), "contradict"),
        "turned.tif": (tiff(pixels.astype(float), {274: 6}), "upright|tifffile"),
        "planes.tif": (tiff(wide, {258: (16, 16, 16), 277: 3, 262: 2, 284: 2}), "16-bit color"),
        "polarity.tif": (tiff(pixels, {262: None}), "PhotometricInterpretation"),
        "int8.tif": (tiff(pixels.astype(np.int8)), "int8|tifffile"),
        "uint32.tif": (tiff(pixels.astype(np.uint32)), "uint32|tifffile"),
        "nan.dcm": (dicom(ramp, more=window("nan", 2)), "damaged|finite"),
    }
