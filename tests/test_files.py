"""Reading radiographs: every format, both DICOM polarities, and files that are no images."""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import types
import zlib

import hostile
import numpy as np
import pytest
from conftest import real_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from anatpaste_aug.data import read_image
from anatpaste_aug.images import as_array

tifffile = pytest.importorskip("tifffile", reason="needs tifffile")


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".png", "uint8"),
        (".png", "uint16"),
        (".tiff", "uint8"),
        (".tiff", "uint16"),
        (".tiff", "float32"),
        (".bmp", "uint8"),
    ],
)
def test_lossless_formats(tmp_path, phantom, suffix, dtype):
    image = phantom.astype(dtype) * (1 if dtype == "uint8" else 200)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(image).save(path)
    read = read_image(str(path))
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, image)


def test_jpeg_and_color(tmp_path, phantom):
    path = tmp_path / "image.jpg"
    Image.fromarray(phantom).save(path, quality=95)
    assert np.abs(read_image(path).astype(int) - phantom).mean() < 2
    for mode, ndim in (("RGB", 3), ("RGBA", 3), ("P", 3), ("LA", 2), ("1", 2)):
        path = tmp_path / f"{mode}.png"
        Image.fromarray(phantom).convert(mode).save(path)
        read = read_image(path)
        assert read.dtype == np.uint8
        assert read.ndim == ndim


def test_what_pillow_would_misread(tmp_path, phantom):
    wide = phantom.astype(np.uint16) * 100
    path = tmp_path / "image.tiff"

    tifffile.imwrite(path, wide, byteorder=">")
    assert read_image(path).dtype == np.uint16
    np.testing.assert_array_equal(read_image(path), wide)

    tifffile.imwrite(path, wide, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(path), wide.max() - wide)
    tifffile.imwrite(path, phantom, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(path), 255 - phantom)

    for bad, message in (
        (np.stack([wide] * 3), "one frame, got 3"),
        (wide.astype(np.uint32) * 60000, "got uint32"),
    ):
        tifffile.imwrite(path, bad, photometric="minisblack")
        with pytest.raises(ValueError, match=message):
            read_image(path)

    color = tmp_path / "color.png"
    color.write_bytes(png(np.repeat(wide[..., None], 3, axis=2), color_type=2))
    with pytest.raises(ValueError, match="16-bit color"):
        read_image(color)
    color.write_bytes(png(np.repeat(wide[..., None], 2, axis=2), color_type=4))
    with pytest.raises(ValueError, match="16-bit color and transparency"):
        read_image(color)


TIFF_TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32"]
TIFF_TYPES += ["float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", TIFF_TYPES)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_gray_tiffs_of_every_kind_are_read_right_or_refused(photometric, dtype, tmp_path):
    """Byte orders, sizes, tiles, compressions: none may change what is read."""
    rng = np.random.default_rng(TIFF_TYPES.index(dtype))
    path = tmp_path / "image.tif"
    kinds = itertools.product("<>", (None, "deflate", "lzw", "packbits"), (None, 32, 160), (0, 1))
    for order, compression, tile, big in kinds:
        if compression in ("lzw", "packbits") and not has_imagecodecs():
            continue
        image = rng.random(tuple(rng.integers(40, 300, 2))) * 250
        if "int" in dtype:
            image = image + np.iinfo(dtype).min
        image = image.astype(dtype)
        options = {"byteorder": order, "compression": compression, "bigtiff": bool(big)}
        options["tile"] = tile and (tile, tile)
        tifffile.imwrite(path, image, photometric=photometric, **options)
        if dtype in ("int8", "uint32"):
            with pytest.raises(ValueError, match=f"got {dtype}"):
                read_image(path)
            continue
        difference = read_image(path) - image.astype(float) * (-1) ** (photometric == "miniswhite")
        assert np.ptp(difference) <= 0.004 * (dtype[0] == "f"), options  # gray levels: an offset


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64"])
def test_tiffs_that_do_not_say_take_black_for_zero(dtype, phantom, tmp_path):
    path = write(tmp_path, "image.tif", hostile.tiff(phantom.astype(dtype), {262: None}))
    np.testing.assert_array_equal(read_image(path), phantom)


def has_imagecodecs():
    return importlib.util.find_spec("imagecodecs") is not None


def test_pillows_own_8_bit_files_of_any_size(tmp_path):
    """Offsets, lengths and strides in a file say nothing of its number of bits."""
    rng = np.random.default_rng(0)
    forms = [("bmp", {}), *(("tif", {"compression": c}) for c in (None, "tiff_lzw", "packbits"))]
    for form, options in forms:
        for width in range(16, 200, 7):
            image = rng.integers(0, 256, (rng.integers(16, 99), width), np.uint8)
            Image.fromarray(image).save(tmp_path / f"image.{form}", **options)
            np.testing.assert_array_equal(read_image(tmp_path / f"image.{form}"), image)


def test_tiffs_that_pillow_cannot_read_name_tifffile_where_it_is_missing(tmp_path, monkeypatch):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, np.zeros((32, 32)))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"image\.tif: .*float64.*needs tifffile"):
        read_image(path)


@pytest.mark.parametrize("odd", ["frames", "color", "palette"])
def test_tiffs_beyond_pillow_of_several_frames_or_channels(odd, tmp_path):
    pixels = np.zeros(
        (2, 32, 32) if odd == "frames" else (32, 32, 3) if odd == "color" else (32, 32)
    )
    path = tmp_path / "image.tif"
    if odd == "palette":
        table = np.zeros((3, 2**16), np.uint16)
        tifffile.imwrite(path, pixels.astype(np.uint16), photometric="palette", colormap=table)
    else:
        tifffile.imwrite(path, pixels, photometric="rgb" if odd == "color" else "minisblack")
    with pytest.raises(ValueError, match="one gray frame"):
        read_image(path)


def png(pixels, color_type):
    """Write a 16-bit PNG of several channels, which Pillow cannot."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_jpegs_are_turned_as_their_camera_says(tmp_path, phantom):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(phantom[:100]).save(path, quality=95, exif=exif)
    assert read_image(path).shape == (256, 100)


def test_images_too_large_to_open(tmp_path, phantom, monkeypatch):
    path = tmp_path / "image.png"
    Image.fromarray(phantom).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"image\.png: .*decompression bomb"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", phantom.size - 1)  # Pillow warns, up to twice it
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="decompression bomb"),
    ):
        read_image(path)


def test_files_that_are_no_images(tmp_path, phantom):
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    broken = tmp_path / "broken.png"
    Image.fromarray(phantom).save(broken)
    broken.write_bytes(broken.read_bytes()[:2000])
    small = tmp_path / "small.png"
    Image.fromarray(phantom[:8]).save(small)
    for path in (text, broken, tmp_path / "missing.png", tmp_path):
        with pytest.raises(OSError, match=r".+"):
            read_image(path)
    with pytest.raises(ValueError, match="at least 16 pixels"):
        read_image(small)


def write_dicom(path, pixels, photometric="MONOCHROME2", **tags):
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = 0
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.PixelData = pixels.tobytes()
    for tag, value in tags.items():
        setattr(data, tag, value)
    data.save_as(path, enforce_file_format=True)


def test_dicom_polarity(tmp_path, phantom):
    pixels = phantom.astype(np.uint16) * 16
    write_dicom(tmp_path / "two.dcm", pixels)
    write_dicom(tmp_path / "one", 4095 - pixels, "MONOCHROME1")  # found by content, not by name
    two, one = read_image(tmp_path / "two.dcm"), read_image(tmp_path / "one")
    np.testing.assert_array_equal(two, pixels)
    np.testing.assert_array_equal(one - one.min(), two - two.min())


def test_dicom_rescale_and_window(tmp_path, phantom):
    pixels = phantom.astype(np.uint16) * 16
    write_dicom(
        tmp_path / "window.dcm",
        pixels,
        RescaleSlope="2",
        RescaleIntercept="-1000",
        WindowCenter="1000",
        WindowWidth="1000",
        VOILUTFunction="LINEAR_EXACT",
    )
    read = read_image(tmp_path / "window.dcm")
    values = pixels * 2.0 - 1000
    low, high = read.min(), read.max()
    np.testing.assert_allclose(
        (read - low) / (high - low), np.clip((values - 500) / 1000, 0, 1), atol=1e-5
    )


def test_dicom_voi_table(tmp_path, phantom):
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
    table = np.round(255 * (np.arange(256) / 255) ** 2).astype(np.uint16)
    item = pydicom.Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = table.tobytes()
    item["LUTData"].VR = "OW"
    write_dicom(
        tmp_path / "table.dcm", phantom, VOILUTSequence=[item], WindowCenter="9", WindowWidth="5"
    )
    np.testing.assert_array_equal(read_image(tmp_path / "table.dcm"), table[phantom])
    item.LUTDescriptor = [4096, 0, 16]
    item["LUTDescriptor"].VR = "US"
    write_dicom(tmp_path / "short.dcm", phantom, VOILUTSequence=[item])
    with pytest.raises(ValueError, match="damaged or unsupported DICOM"):
        read_image(tmp_path / "short.dcm")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_padding_becomes_black(tmp_path, phantom, photometric):
    pixels = phantom.astype(np.uint16) * 16
    if photometric == "MONOCHROME1":
        pixels = 4095 - pixels
    pixels[:20] = 65535
    path = tmp_path / "padded.dcm"
    write_dicom(path, pixels, photometric, PixelPaddingValue=65535)
    read = read_image(path)
    assert (read[:20] == read[20:].min()).all()
    offset = read[20:] - phantom[20:] * np.float32(16)
    assert np.ptp(offset) == 0


@pytest.mark.parametrize("ends", [(100, 120), (120, 100)])
def test_dicom_padding_may_be_a_range(ends, tmp_path):
    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32) + 100
    more = [(0x120 + i, b"US", hostile.short(end)) for i, end in enumerate(ends)]
    image = read_image(write(tmp_path, "range.dcm", hostile.dicom(pixels, more=more)))
    np.testing.assert_array_equal(image, np.maximum(pixels, 121))


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def same_film(image, expected):
    """Tell whether two images are equal up to a positive gain and an offset."""
    image, expected = (each - each.min() for each in (image.astype(float), expected.astype(float)))
    return np.allclose(image / image.max(), expected / expected.max(), atol=1e-5)


def shown(tmp_path, pixels, *more, **options):
    return read_image(write(tmp_path, "image.dcm", hostile.dicom(pixels, more=more, **options)))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", ""])
def test_dicom_negative_slope_with_a_window(function, dtype, photometric, tmp_path):
    transform = (0x1052, b"DS", "1000"), (0x1053, b"DS", "-1.5"), (0x1056, b"CS", function)
    pixels = RAMP.astype(dtype) - (2048 if dtype == "int16" else 0)
    window = hostile.window(-500, 2001)
    image = shown(tmp_path, pixels, *transform, *window, photometric=photometric)
    values = pixels * -1.5 + 1000
    if function == "SIGMOID":
        film = 1 / (1 + np.exp(-4 * (values + 500) / 2001))
    else:
        exact = function == "LINEAR_EXACT"
        film = np.clip((values + 500 + 0.5 * (not exact)) / (2000 + exact), -0.5, 0.5)
    assert same_film(image, film if photometric == "MONOCHROME2" else -film)


@pytest.mark.parametrize(
    ("count", "first", "bits", "kind"),
    [
        (256, 0, 8, "<u2"),
        (4096, 0, 8, "<u2"),
        (256, 2000, 8, "u1"),  # two to a word
        (256, 2000, 12, "<u2"),
        (2001, -2000, 16, "<u2"),
        (30000, -(2**15), 16, "<u2"),
        (1, 7, 16, "<u2"),
    ],
)
@pytest.mark.parametrize("vr", [b"OW", b"OB", b"US"])
def test_dicom_voi_tables_of_any_length_and_depth(vr, count, first, bits, kind, tmp_path):
    table = (np.arange(count) * (2**bits - 1) // max(count - 1, 1)).astype(kind)
    lines = ((0x1052, b"DS", str(-30000 if first < 0 else 0)), (0x1053, b"DS", "20"))
    place = hostile.table(0x3010, table, first, bits, vr)
    if count == 1:
        with pytest.raises(ValueError, match="all pixels are alike"):
            shown(tmp_path, RAMP, place, *lines)
        return
    values = RAMP.astype(int) * 20 - (30000 if first < 0 else 0)
    film = table[np.clip(values - first, 0, count - 1)]
    np.testing.assert_array_equal(shown(tmp_path, RAMP, place, *lines), film)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize(("count", "bits"), [(200, 12), (256, 8), (2**16, 16)])
def test_dicom_modality_tables_on_the_full_range(count, bits, dtype, tmp_path):
    info = np.iinfo(dtype)
    pixels = np.linspace(info.min, info.max, 4096).astype(dtype).reshape(64, 64)
    table = np.random.default_rng(0).integers(0, 2**bits, count, dtype="<u2")
    image = shown(tmp_path, pixels, hostile.table(0x3000, table, info.min // 3, bits))
    index = np.clip(pixels.astype(int) - info.min // 3, 0, count - 1)
    np.testing.assert_array_equal(image, table[index])


@pytest.mark.parametrize(
    ("dtype", "kind", "written"),
    [
        ("int16", b"US", [63536]),
        ("int16", b"SS", [-2000]),
        ("uint16", b"SS", [-1]),
        ("uint16", b"US", [65535, 7]),
        ("int8", b"US", [255]),
    ],
)
def test_dicom_padding_of_either_sign_and_several_values(dtype, kind, written, tmp_path):
    pixels = (RAMP % 100).astype(dtype) + np.array(20, dtype)
    pixels[0] = np.array(written[0]).astype(dtype)
    pixels[1] = np.array(written[-1]).astype(dtype)
    image = shown(tmp_path, pixels, (0x120, kind, hostile.short(*written)))
    assert (image[:2] == image[2:].min()).all()
    np.testing.assert_array_equal(image[2:], pixels[2:])


@pytest.mark.parametrize("beyond", [63536, 65535])
def test_dicom_padding_that_8_bits_cannot_hold_is_none(beyond, tmp_path):
    pixels = RAMP.astype(np.uint8)
    image = shown(tmp_path, pixels, (0x120, b"US", hostile.short(beyond)))
    np.testing.assert_array_equal(image, pixels)


def test_dicom_byte_order_where_no_syntax_is_stated(tmp_path):
    parts = [(0x28, 2, 1), (0x28, 0x10, 64), (0x28, 0x11, 64), (0x28, 0x100, 16)]
    parts += [(0x28, 0x101, 16), (0x28, 0x102, 15), (0x28, 0x103, 0)]
    body = b"\0\x28\0\x04CS\0\x0cMONOCHROME2 "
    elements = [struct.pack(">HH2sHH", group, number, b"US", 2, n) for group, number, n in parts]
    body = elements[0] + body + b"".join(elements[1:])
    body += b"\x7f\xe0\0\x10OW\0\0" + struct.pack(">I", RAMP.nbytes) + RAMP.astype(">u2").tobytes()
    path = write(tmp_path, "big.dcm", bytes(128) + b"DICM" + body)
    np.testing.assert_array_equal(read_image(path), RAMP)


def test_dicom_padding_beyond_the_bits_stored_is_that_of_the_whole_cell(tmp_path):
    cells = RAMP.astype(np.int16)
    cells[:4] = -(2**15)
    stored = (0x101, b"US", hostile.short(13)), (0x102, b"US", hostile.short(12))
    image = shown(tmp_path, cells, *stored, (0x120, b"SS", hostile.short(-(2**15))))
    np.testing.assert_array_equal(image[4:], RAMP[4:])
    assert (image[:4] == 256).all()


@pytest.mark.parametrize("groups", [0x52009229, 0x52009230])
def test_dicom_transforms_of_functional_groups(groups, tmp_path):
    rescale = hostile.sequence(0x289145, (0x281052, b"DS", "100"), (0x281053, b"DS", "-1"))
    window = hostile.sequence(
        0x289132, *((0x280000 + number, *rest) for number, *rest in hostile.window(-1900, 2000))
    )
    image = shown(tmp_path, RAMP, hostile.sequence(groups, rescale, window))
    film = np.clip((100.0 - RAMP + 1900.5) / 1999, -0.5, 0.5)
    assert same_film(image, film)


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
@pytest.mark.parametrize("high", [11, 13, 15])
def test_dicom_bits_beside_those_stored_do_not_count(high, dtype, tmp_path):
    pixels = (RAMP.astype(int) - (2048 if dtype == "int16" else 0)) % 4096
    rest = np.random.default_rng(0).integers(0, 16, RAMP.shape)
    below = high - 11
    cells = (pixels << below) | (rest % 2**below) | (rest >> below << (high + 1))
    stored = (0x101, b"US", hostile.short(12)), (0x102, b"US", hostile.short(high))
    image = shown(tmp_path, (cells % 2**16).astype(np.uint16).view(dtype), *stored)
    np.testing.assert_array_equal(image - image.min(), RAMP)


def test_dicom_elements_that_are_empty_are_as_if_missing(tmp_path):
    empty = [(n, b"DS", "") for n in (0x1050, 0x1052)] + [
        (0x1051, b"DS", "9"),
        (0x1053, b"DS", "-2"),
    ]
    np.testing.assert_array_equal(shown(tmp_path, RAMP, *empty), RAMP)


def test_the_content_decides_not_the_name(tmp_path, phantom):
    content = hostile.picture(phantom, "PNG")
    np.testing.assert_array_equal(read_image(write(tmp_path, "picture.dcm", content)), phantom)
    bare = hostile.dicom(RAMP)[132:]  # without a preamble; and without meta information
    meta = 12 + struct.unpack("<I", bare[8:12])[0]
    for name, content in (("bare.dcm", bare), ("data.png", bare[meta:])):
        np.testing.assert_array_equal(read_image(write(tmp_path, name, content)), RAMP)


@pytest.mark.parametrize("plugins", [(), ("gdcm",)])
def test_a_missing_decoder_is_not_put_down_to_the_file(plugins, tmp_path, monkeypatch):
    content = hostile.encapsulated(RAMP, "1.2.840.10008.1.2.4.80", b"JPEG-LS")
    path = write(tmp_path, "packed.dcm", content)
    only = types.SimpleNamespace(available_plugins=plugins)
    monkeypatch.setattr("pydicom.pixels.get_decoder", lambda syntax: only)
    with pytest.raises(ImportError, match=r"packed\.dcm: JPEG-LS .* pip install .*\[dicom\]"):
        read_image(path)


def test_jpeg_2000_of_16_bits(tmp_path):
    frame = hostile.picture(RAMP * 16, "JPEG2000", no_jp2=True)
    path = write(tmp_path, "packed.dcm", hostile.encapsulated(RAMP * 16, hostile.J2K, frame))
    np.testing.assert_array_equal(read_image(path), RAMP * 16)


def test_bad_dicoms(tmp_path, phantom):
    write_dicom(tmp_path / "frames.dcm", np.stack([phantom] * 2))
    with pytest.raises(ValueError, match="not one gray frame but MONOCHROME2"):
        read_image(tmp_path / "frames.dcm")
    write_dicom(tmp_path / "cut.dcm", phantom)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "cut.dcm").read_bytes()[:3000])
    with pytest.raises(ValueError, match="damaged or unsupported DICOM"):
        read_image(tmp_path / "cut.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM at all")
    with pytest.raises(OSError, match="cannot identify"):
        read_image(tmp_path / "text.dcm")


def test_dicom_without_pydicom_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "image.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"anatpaste-aug\[dicom\]"):
        read_image(path)


@pytest.fixture(scope="module")
def small():
    return np.arange(64 * 64, dtype=np.uint32).reshape(64, 64).astype(np.uint8)


def write(folder, name, content):
    if name.endswith(".dcm"):
        pytest.importorskip("pydicom", reason="needs pydicom")
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", hostile.valid(np.zeros((64, 64), np.uint8)))
def test_files_made_byte_by_byte_are_read(name, small, tmp_path):
    image = read_image(write(tmp_path, name, hostile.valid(small)[name]))
    assert image.shape[:2] == ((32, 32) if name == "nested.dcm" else (64, 64))


@pytest.mark.parametrize("name", hostile.bad(np.zeros((64, 64), np.uint8)))
def test_bad_files_are_refused_with_their_name_and_the_reason(name, small, tmp_path):
    content, reason = hostile.bad(small)[name]
    with pytest.raises((OSError, ValueError), match=reason) as caught:
        read_image(write(tmp_path, name, content))
    assert str(tmp_path / name) in str(caught.value)


def test_no_file_starts_a_program(tmp_path, monkeypatch):
    def run(*arguments):
        pytest.fail("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    with pytest.raises(OSError, match="only PNG, JPEG, TIFF, BMP and DICOM are read"):
        read_image(write(tmp_path, "innocent.png", hostile.EPS))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_at_once(tmp_path):
    def waits(*arguments):
        raise TimeoutError("waited for the other end of the pipe")

    os.mkfifo(tmp_path / "pipe.png")
    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(5)
    try:
        with pytest.raises(OSError, match=r"not a regular file.*pipe\.png"):
            read_image(tmp_path / "pipe.png")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_deflated_dicom_is_not_unpacked_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**20)
    content = hostile.dicom(syntax=hostile.DEFLATED, data=bytes(2**26))
    assert len(content) < 2**17
    path = write(tmp_path, "bomb.dcm", content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb\.dcm: .*decompression bomb"):
        read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as Pillow's, the limit can be lifted
    with pytest.raises(ValueError, match=r"damaged|all pixels"):
        read_image(path)


def test_a_deflated_tiff_is_not_unpacked_beyond_the_limit(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**20)
    content = hostile.tiff(small.astype(float), {259: 8}, zlib.compress(bytes(2**26)))
    with pytest.raises(ValueError, match=r"bomb\.tif: .*decompression bomb"):
        read_image(write(tmp_path, "bomb.tif", content))


def test_a_deflated_dicom_is_found_behind_command_elements(tmp_path, monkeypatch):
    # Read as deflated data, this element is two stored blocks, empty and the last: no bomb at all.
    command = struct.pack("<HHI", 0, 0xFF00, 0xFF) + b"\xff\xff\1\0\0\xff\xff" + bytes(248)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**20)
    whole = hostile.dicom(syntax=hostile.DEFLATED, data=bytes(2**26))
    meta = 144 + struct.unpack("<I", whole[140:144])[0]
    path = write(tmp_path, "bomb.dcm", whole[:meta] + command + whole[meta:])
    with pytest.raises(ValueError, match="decompression bomb"):
        read_image(path)


def test_a_dicom_is_transformed_in_bands(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (2000, 500), np.uint16)
    more = ((0x1052, b"DS", "-7"), (0x1053, b"DS", "0.5"), *hostile.window(900, 1500))
    path = write(tmp_path, "large.dcm", hostile.dicom(pixels, more=more))
    tracemalloc.start()
    image = read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * pixels.size  # bytes; 34, were it done at once
    pydicom = pytest.importorskip("pydicom")
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    data = pydicom.dcmread(path)
    whole = apply_voi_lut(apply_modality_lut(pixels, data), data).astype(np.float32)
    np.testing.assert_array_equal(image, whole)


def test_a_tiff_of_very_many_frames_is_refused_at_once(small, tmp_path):
    one = hostile.picture(small, "TIFF")
    (start,) = struct.unpack("<I", one[4:8])
    (count,) = struct.unpack("<H", one[start : start + 2])
    table = one[start : start + 2 + 12 * count]
    content = bytearray(one[:start])
    for _ in range(20_000):
        content += table + struct.pack("<I", len(content) + len(table) + 4)
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="one frame, got 10"):
        read_image(write(tmp_path, "frames.tif", content))
    assert time.perf_counter() - begin < SLOWEST


def test_a_dicom_full_of_holes_is_not_read(tmp_path):
    path = write(tmp_path, "holes.dcm", hostile.dicom())
    os.truncate(path, 2**40)
    with pytest.raises(ValueError, match=r"holes\.dcm: .*decompression bomb"):
        read_image(path)


@pytest.mark.parametrize("name", ["deep.png", "plain.dcm", "packed.tif"])
def test_a_lack_of_memory_is_not_put_down_to_the_file(name, small, tmp_path, monkeypatch):
    path = write(tmp_path, name, hostile.valid(small)[name])

    def lacks(*arguments, **options):
        raise OSError("out of memory error when reading image file") if tif else MemoryError

    tif = name.endswith("tif")
    if name.endswith("dcm"):
        monkeypatch.setattr("pydicom.dcmread", lacks)
    else:
        monkeypatch.setattr(Image, "open", lacks)
    with pytest.raises(MemoryError, match=name):
        read_image(path)


def test_a_decoder_without_memory_is_not_put_down_to_the_file(tmp_path):
    """Pydicom turns whatever its decoders raise into a RuntimeError."""
    size = 2048
    row = b"".join(bytes([129, value % 256]) for value in range(size // 128))  # 128 alike each
    plane = row * size
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + plane
    encoded = b"\xfe\xff\x00\xe0" + bytes(4)
    encoded += b"\xfe\xff\x00\xe0" + struct.pack("<I", len(frame)) + frame
    encoded += b"\xfe\xff\xdd\xe0" + bytes(4)
    whole = hostile.dicom(np.zeros((16, 16), np.uint8), hostile.RLE, rows=size, data=b"")
    content = whole[:-4] + b"\xff\xff\xff\xff" + encoded
    path = write(tmp_path, "packed.dcm", content)
    assert read_image(path).shape == (size, size)
    code = (
        "import resource, sys\n"
        "from anatpaste_aug.data import read_image\n"
        "import pydicom, pydicom.pixels\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, -1))\n"
        "try:\n    read_image(sys.argv[1])\n"
        "except MemoryError as error:\n    print(error)\n"
    )
    if sys.platform != "linux":
        pytest.skip("needs a limit on memory")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"{path}: out of memory\n", "")


FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", 5))  # in all
SLOWEST = 5.0  # seconds for one small file, on a busy machine


def read_or_complain(path):
    try:
        return read_image(path)
    except (OSError, ValueError) as error:
        return str(error)


@pytest.fixture(scope="module")
def fuzz_end():
    return time.monotonic() + FUZZ_SECONDS


@pytest.mark.filterwarnings("ignore")  # Pillow and pydicom warn of what they mend
@given(data=st.data())
def test_no_change_to_a_file_gives_more_than_a_clear_error(data, small, fuzz_end, tmp_path_factory):
    """Change files of every kind at random: an image that can be used, or an error that says so."""
    pytest.importorskip("pydicom", reason="needs pydicom")
    files = hostile.valid(small)
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    place = st.integers(0, min(len(content), 700) - 1) | st.integers(0, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(place) % len(content)
        change = data.draw(st.sampled_from(["set", "cut", "insert", "drop", "big"]))
        if change == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif change == "big":
            content[at : at + 4] = b"\xff\xff\xff\x7f"
        elif change == "cut" and at > 140:
            del content[at:]
        elif change == "insert":
            content[at:at] = data.draw(st.binary(max_size=20))
        else:
            del content[at : at + data.draw(st.integers(1, 20))]
    if time.monotonic() > fuzz_end:
        return
    path = tmp_path_factory.getbasetemp() / f"changed-{name}"
    path.write_bytes(content)
    begin = time.perf_counter()
    result = read_or_complain(path)
    assert (str(path) in result) if isinstance(result, str) else (as_array(result) is result)
    assert time.perf_counter() - begin < SLOWEST


def test_real_files():
    pytest.importorskip("pydicom", reason="needs pydicom")
    samples = real_data("data/samples")
    for path in samples.iterdir():
        assert min(read_image(path).shape[:2]) >= 256
    one, two = (read_image(samples / f"rsna_monochrome{i}.dcm") for i in (1, 2))
    # The sample has the same pixels under both names, so that the polarity alone differs.
    np.testing.assert_array_equal(one, two.max() - two)
