"""Reading radiographs: every format, both DICOM polarities, and files that are no images."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import tifffile
from conftest import real_data
from PIL import Image

from anatpaste_aug.files import read_image


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


def test_jpeg_and_colour(tmp_path, phantom):
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
        (wide.astype(np.uint32) * 60000, "unsigned 32-bit"),
    ):
        tifffile.imwrite(path, bad, photometric="minisblack")
        with pytest.raises(ValueError, match=message):
            read_image(path)

    colour = tmp_path / "colour.png"
    colour.write_bytes(png(np.repeat(wide[..., None], 3, axis=2), colour_type=2))
    with pytest.raises(ValueError, match="16-bit colour"):
        read_image(colour)
    colour.write_bytes(png(np.repeat(wide[..., None], 2, axis=2), colour_type=4))
    with pytest.raises(ValueError, match="16-bit colour and transparency"):
        read_image(colour)


def png(pixels, colour_type):
    """Write a 16-bit PNG of several channels, which Pillow cannot."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
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
    with pytest.raises(ValueError, match="decompression bomb"):
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


def test_bad_dicoms(tmp_path, phantom):
    write_dicom(tmp_path / "frames.dcm", np.stack([phantom] * 2))
    with pytest.raises(ValueError, match="not one grey frame but MONOCHROME2"):
        read_image(tmp_path / "frames.dcm")
    write_dicom(tmp_path / "cut.dcm", phantom)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "cut.dcm").read_bytes()[:3000])
    with pytest.raises(ValueError, match="damaged or unsupported DICOM"):
        read_image(tmp_path / "cut.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM at all")
    with pytest.raises(ValueError, match="damaged or unsupported DICOM"):
        read_image(tmp_path / "text.dcm")


def test_dicom_without_pydicom_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "image.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"anatpaste-aug\[dicom\]"):
        read_image(path)


def test_real_files():
    pytest.importorskip("pydicom", reason="needs pydicom")
    samples = real_data("data/samples")
    for path in samples.iterdir():
        assert min(read_image(path).shape[:2]) >= 256
    one, two = (read_image(samples / f"rsna_monochrome{i}.dcm") for i in (1, 2))
    # The sample has the same pixels under both names, so that the polarity alone differs.
    np.testing.assert_array_equal(one, two.max() - two)
