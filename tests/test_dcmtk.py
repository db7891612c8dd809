"""DICOM files at random, which `read_image` must show as DCMTK's `dcm2pnm` does."""

from __future__ import annotations

import reprlib
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import hostile
import numpy as np
import pytest

from anatpaste_aug.data import read_image

pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
codecs = pytest.importorskip("pydicom.pixels", reason="needs pydicom 3")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="needs DCMTK's dcm2pnm"),
    pytest.mark.filterwarnings("ignore"),  # pydicom warns of odd values, which are meant here
]

SEED, FILES = 0, 24  # of each kind
BITS = 24  # of what dcm2pnm writes: the finer, the less hides in its steps
SHAPE = (33, 35)  # odd; JPEG 2000 needs 32
VOI = ("none", "linear", "exact", "sigmoid", "table")
MODALITY = ("none", "rescale", "incomplete", "table", "both")
CONVERTERS = (None, ["dcmconv", "+ti"], ["dcmconv", "+tb"], ["dcmconv", "+td"], ["dcmcrle"])
RESCALE, WINDOW = ("RescaleSlope", "RescaleIntercept"), ("WindowCenter", "WindowWidth")
PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
JPEG2000 = """if True:  # DCMTK has no encoder
    import sys, pydicom
    data = pydicom.dcmread(sys.argv[1])
    data.compress(pydicom.uid.JPEG2000Lossless)
    data.save_as(sys.argv[2])
"""
PACKERS = {
    "JPEGLosslessSV1": ["dcmcjpeg", "+e1"],
    "JPEGLSLossless": ["dcmcjpls"],
    "JPEG2000Lossless": [sys.executable, "-c", JPEG2000],
}
BRIEF = reprlib.Repr()
BRIEF.maxdict, BRIEF.maxlevel = 99, 9


def encode(elements):
    """Encode elements; a value of another representation than the first is a tuple of the two."""
    whole = b""
    for tag, value in sorted((pydicom.datadict.tag_for_keyword(n), v) for n, v in elements.items()):
        kind = pydicom.datadict.dictionary_VR(tag)[:2]
        kind, value = value if isinstance(value, tuple) else (kind, value)
        if kind == "SQ":
            value = b"".join(hostile.item(encode(item)) for item in value)
        elif isinstance(value, str):
            value += " " * (len(value) % 2)
        elif not isinstance(value, bytes):
            value = (np.atleast_1d(value) & 0xFFFF).astype("<u2").tobytes()
        whole += hostile.element(tag >> 16, tag & 0xFFFF, kind.encode(), value)
    return whole


def write(path, elements, converter=None):
    """Write a file, as it is or converted by one of DCMTK's tools."""
    meta = hostile.dicom().partition(struct.pack("<HH", 0x08, 0x16))[0]
    path.write_bytes(meta + encode(elements))
    if converter is not None:
        plain = path.rename(path.with_suffix(".plain"))
        subprocess.run([*converter, plain, path], check=True, capture_output=True)
    return path


def pick(rng, *choices):
    return choices[rng.integers(len(choices))]


def between(rng, low, high):
    return int(rng.integers(low, high + 1))


def draw_pixels(rng, allocated, most):
    """Draw pixels, and the elements that say how they are stored."""
    stored = between(rng, 2, 8) if allocated == 8 else between(rng, 7, min(allocated, most))
    high = pick(rng, stored - 1, allocated - 1, between(rng, stored - 1, allocated - 1))
    signed = pick(rng, 0, 1)
    least = -(signed << (stored - 1))
    low = least + pick(rng, 0, between(rng, 0, (1 << stored) - 2))
    top = pick(rng, least + (1 << stored) - 1, between(rng, low + 1, least + (1 << stored) - 1))
    values = rng.integers(low, top + 1, SHAPE)
    values.flat[:2] = low, top
    mask = ((1 << stored) - 1) << (high + 1 - stored)
    words = values << (high + 1 - stored)  # whose sign is in the unused high bits, too
    unused = pick(rng, words, np.zeros_like(words), rng.integers(0, 1 << allocated, SHAPE))
    words = ((words & mask) | (unused & ~mask)) & ((1 << allocated) - 1)
    data = words.astype(f"<u{allocated // 8}").tobytes()
    return values, {
        "BitsAllocated": allocated,
        "BitsStored": stored,
        "HighBit": high,
        "PixelRepresentation": signed,
        "PixelData": (pick(rng, "OB", "OW") if allocated == 8 else "OW", data),
    }


def draw_table(rng, values, limits):
    """Draw a look-up table for values, which could be as wide as the limits; look them up."""
    count = pick(rng, 2, 200, 256, 1023, 4096, 40000, 65536)
    first = int(pick(rng, values.min(), rng.choice(values.ravel())))
    first += between(rng, -3, 3) - pick(rng, 0, 0, count // 2)
    # The 16 bits of the first value have the sign of the values, whatever their representation.
    # DCMTK asks whether one of the values is negative: what depends on that is left out.
    top = 65535 if limits[0] >= 0 else 32767
    first = int(np.clip(first, *((-32768, 32767) if values.min() < 0 else (0, top))))
    bits = pick(rng, 8, 8, 10, 12, 16, between(rng, 8, 16))
    table = rng.integers(0, 1 << bits, count)
    data = table.astype("<u2").tobytes()
    if bits == 8 and pick(rng, False, True):  # two to a word
        data = table.astype(np.uint8).tobytes() + b"\0" * (count % 2)
    item = {
        "LUTDescriptor": (pick(rng, "US", "SS"), [count, first, bits]),
        "LUTData": (pick(rng, "US", "OW") if len(data) < 65536 else "OW", data),
    }
    return item, table[np.clip(values - first, 0, count - 1)]


def draw_rescale(rng, values, limits, fine):
    """Draw a slope and an intercept; return values and limits times a scale, and the elements."""
    bits = int(np.ptp(limits)).bit_length()
    # DCMTK cuts all values to integers: its copy of the file gives it them times the scale.
    # What becomes of fractions that are looked up in a table is not defined, and left out.
    scale = pick(rng, 1, 1, 4, 10, 1000) if fine else 1
    steepest = min(pick(rng, 3, scale, 3000) if fine else 3, max(1, 2**29 >> bits))
    slope = pick(rng, -1, 1) * between(rng, 1, steepest)
    reach = abs(slope) << bits if fine else 20000  # tables cannot begin anywhere
    intercept = between(rng, -reach, reach) - int((slope * values).min())
    copy = dict(zip(RESCALE, (str(slope), str(intercept)), strict=True))
    ours = {name: f"{int(value) / scale:.14g}" for name, value in copy.items()}
    values, limits = slope * values + intercept, np.sort(slope * limits + intercept)
    return values, limits, scale, ours, copy


def draw_window(rng, kind, low, top, scale):
    """Draw a window; return its elements, and those for DCMTK's copy, where all is scaled."""
    center = float(f"{rng.uniform(low, top):.10g}")
    width = float(f"{(top - low) * 10 ** rng.uniform(-3, 3) + 0.01:.6g}")
    if kind == "linear" and scale == 1 and rng.random() < 0.3:
        center, width = round(center * 2) / 2, pick(rng, 1.0, 1.5, 2.0)
    elif kind != "exact":  # DCMTK has no windows under 1; that of 1 is too sharp for fractions
        width = max(width, 1.01)
    more = pick(rng, ("", ""), ("\\7", "\\9"), ("\\7", ""), ("\\-1\\2", "\\5\\3"))
    ours = dict(zip(WINDOW, (f"{center:.10g}{more[0]}", f"{width:.10g}{more[1]}"), strict=True))
    functions = {"exact": ("LINEAR_EXACT",), "sigmoid": ("SIGMOID",)}
    function = pick(rng, *functions.get(kind, (None, "", "LINEAR")))
    ours.update({} if function is None else {"VOILUTFunction": function})
    if kind == "sigmoid":
        copy = scale * center, scale * width
    else:  # DCMTK does not know LINEAR_EXACT, which is LINEAR moved and widened: PS3.3 C.11.2.1
        moved = 0.5 * (kind == "linear")
        copy = scale * (center - moved) + 0.5, scale * (width - 2 * moved) + 1
    copy = {name: f"{value:.14g}" for name, value in zip(WINDOW, copy, strict=True)}
    return ours, {**copy, **({"VOILUTFunction": "LINEAR"} if kind == "exact" else {})}


def draw_file(rng, modality, voi, allocated=(8, 16, 16, 32)):
    """Draw a file: its elements, DCMTK's copy of them and options, pixels, where padding is."""
    # DCMTK ignores modality tables for more than 16 bits, and VOI tables cannot reach that far.
    most = 16 if modality in ("table", "both") or voi == "table" else 24
    pixels, ours = draw_pixels(rng, pick(rng, *allocated), most)
    bits, signed = ours["BitsStored"], ours["PixelRepresentation"]
    values, limits, scale = pixels, np.array([0, (1 << bits) - 1]) - (signed << (bits - 1)), 1
    photometric = pick(rng, "MONOCHROME1", "MONOCHROME2")
    ours["SOPClassUID"], ours["SOPInstanceUID"] = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    ours["SamplesPerPixel"], ours["PhotometricInterpretation"] = 1, photometric
    ours["Rows"], ours["Columns"] = SHAPE
    shape = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}[photometric]
    ours.update(pick(rng, {}, {"PresentationLUTShape": shape}))
    copy, options = {}, {"none": [], "table": ["+Wl", "1"]}.get(voi, ["+Wi", "1"])
    if modality == "rescale":
        values, limits, scale, more, copy = draw_rescale(rng, values, limits, voi != "table")
        ours.update(more)
    elif modality == "incomplete":  # counts for nothing
        pair = pick(rng, ("-2", None), (None, "-50"), ("", "-50"), ("-2", ""), ("", ""))
        ours.update((n, v) for n, v in zip(RESCALE, pair, strict=True) if v is not None)
    elif modality in ("table", "both"):
        item, values = draw_table(rng, values, limits)
        ours["ModalityLUTSequence"], limits = [item], (0, 65535)
        if modality == "both":  # the table counts
            ours.update(zip(RESCALE, ("-2", "100"), strict=True))
    if voi == "table":
        count = pick(rng, 1, 1, 2)  # the first of which counts, as it does before a window
        ours["VOILUTSequence"] = [draw_table(rng, values, limits)[0] for _ in range(count)]
        ours.update(pick(rng, {}, dict(zip(WINDOW, ("50", "20"), strict=True))))
    elif voi != "none":
        window = draw_window(rng, voi, values.min() / scale, values.max() / scale, scale)
        ours, copy = {**ours, **window[0]}, {**copy, **window[1]}
    return ours, {**ours, **copy}, options, pixels, np.zeros(SHAPE, bool)


def ask_dcmtk(path, options):
    """Return what dcm2pnm makes of a file."""
    command = ["dcm2pnm", "-q", *options, "+opn", str(BITS), str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    kind, columns, rows, _, *shades = " ".join(lines).split()
    assert kind == "P2"
    return np.array(shades, np.int64).reshape(int(rows), int(columns))


def find_fault(path, expected, padding):
    """Compare what is read with what DCMTK shows, up to gain and offset; "" if it fits."""
    expected = expected[~padding]
    try:
        image = read_image(path)
    except ValueError as error:
        alike = np.ptp(expected) <= 2 and "all pixels are alike" in str(error)
        return "" if alike else str(error)
    shown = image[~padding].astype(float)
    if image.dtype != np.float32 or not (image[padding] == shown.min()).all():
        darkest = f"{np.unique(image[padding])[-1:]}, others from {shown.min()}"
        return f"{image.dtype}, padding up to {darkest}"
    if (span := np.ptp(shown)) == 0 or np.ptp(expected) == 0:
        return "" if span == 0 and np.ptp(expected) <= 2 else "only one of the two is constant"
    unit = (shown - shown.min()) / span
    gain, offset = np.polyfit(unit, expected, 1)
    worst = np.abs(gain * unit + offset - expected).max()
    rounding = abs(gain) * np.spacing(abs(image).max()) / span
    fits = gain > 0 and worst <= 2 + rounding
    return "" if fits else f"gain {gain:.6g}, off by {worst:.3g} of {np.ptp(expected)}"


def check(folder, kind, draw, converters=CONVERTERS):
    """Draw files of a kind, compare them all, and tell of each that differs."""

    def ask(number):
        rng = np.random.default_rng([SEED, *kind, number])
        ours, copy, options, _, padding = draw(rng)
        converter = pick(rng, *converters)
        if ours["BitsAllocated"] == 32 and "+tb" in (converter or ()):
            converter = None  # dcmconv turns the bytes of 16 bits around, not of 32
        path = write(folder / f"{number}.dcm", ours, converter)
        expected = ask_dcmtk(write(folder / f"{number}.copy", copy), options)
        case = f"seed {[SEED, *kind, number]}, {converter and converter[:2]}, {BRIEF.repr(ours)}"
        return path, expected, padding, case

    with ThreadPoolExecutor() as pool:
        asked = list(pool.map(ask, range(FILES)))
    faults = [(find_fault(*rest), case) for *rest, case in asked]
    faults = [f"{fault}\n    {case}" for fault, case in faults if fault]
    assert not faults, f"{len(faults)} of {FILES} files differ\n" + "\n".join(faults)


@pytest.mark.parametrize("voi", VOI)
@pytest.mark.parametrize("modality", MODALITY)
def test_modality_and_voi_transforms(modality, voi, tmp_path):
    kind = [1, MODALITY.index(modality), VOI.index(voi)]
    check(tmp_path, kind, lambda rng: draw_file(rng, modality, voi))


@pytest.mark.parametrize("kind", ["US", "SS"])
@pytest.mark.parametrize("names", [PADDING[:1], PADDING], ids=["value", "range"])
def test_padding_is_as_dark_as_the_darkest_other_pixel(names, kind, tmp_path):
    def draw(rng):
        file = draw_file(rng, pick(rng, *MODALITY), pick(rng, *VOI), allocated=(8, 16))
        ours, copy, options, pixels, _ = file  # DCMTK ignores padding: others are compared
        ends = [int(end) for end in rng.choice(pixels.ravel(), len(names))]
        if (padding := (min(ends) <= pixels) & (pixels <= max(ends))).all():
            ends[-1] = ends[0]
            padding = pixels == ends[0]
        most = pick(rng, 0xFFFF, (1 << ours["BitsAllocated"]) - 1)  # of a sign that may be lost
        ours.update((name, (kind, end & most)) for name, end in zip(names, ends, strict=True))
        return ours, copy, options, pixels, padding

    check(tmp_path, [2, len(names), int(kind == "SS")], draw)


@pytest.mark.parametrize("modality", ["none", "rescale"])
@pytest.mark.parametrize("voi", ["none", "linear", "exact", "sigmoid"])
def test_transforms_in_functional_groups(modality, voi, tmp_path):
    """Give DCMTK at top level what it ignores in the groups of enhanced files."""
    groups = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
    functions = {
        "PixelValueTransformationSequence": RESCALE,
        "FrameVOILUTSequence": (*WINDOW, "VOILUTFunction"),
    }

    def draw(rng):
        ours, *rest = draw_file(rng, modality, voi)
        ours.update({group: [{}] for group in groups}, NumberOfFrames="1")
        for function, names in functions.items():
            moved = {name: ours.pop(name) for name in names if name in ours}
            ours[pick(rng, *groups)][0].update({function: [moved]} if moved else {})
        return ours, *rest

    check(tmp_path, [3, MODALITY.index(modality), VOI.index(voi)], draw)


@pytest.mark.parametrize("syntax", PACKERS)
def test_compressed_pixels(syntax, tmp_path):
    uid = getattr(pydicom.uid, syntax)
    if not codecs.get_decoder(uid).is_available:
        pytest.skip(f"pydicom has no decoder for {syntax}")
    if syntax == "JPEG2000Lossless" and not codecs.get_encoder(uid).is_available:
        pytest.skip(f"pydicom has no encoder for {syntax}")

    def draw(rng):
        while True:  # pydicom encodes the low bits, whatever HighBit says
            file = draw_file(rng, pick(rng, *MODALITY), pick(rng, *VOI), allocated=(8, 16))
            if "2000" not in syntax or file[0]["HighBit"] == file[0]["BitsStored"] - 1:
                return file

    check(tmp_path, [4, list(PACKERS).index(syntax)], draw, [PACKERS[syntax]])


@pytest.mark.parametrize(
    ("photometric", "more", "reason"),
    [
        ("RGB", {"SamplesPerPixel": 3, "PlanarConfiguration": 0}, "not one gray frame"),
        ("YBR_FULL", {"SamplesPerPixel": 3, "PlanarConfiguration": 1}, "not one gray frame"),
        ("PALETTE COLOR", {}, "not one gray frame"),
        ("MONOCHROME1", {"PresentationLUTShape": "IDENTITY"}, "PresentationLUTShape"),
        ("MONOCHROME2", {"PresentationLUTShape": "INVERSE"}, "PresentationLUTShape"),
    ],
)
def test_color_and_contradictions_are_refused(photometric, more, reason, tmp_path):
    ours = draw_file(np.random.default_rng(SEED), "none", "none", allocated=(8,))[0]
    kind, data = ours["PixelData"]
    more = {**more, "PixelData": (kind, data * more.get("SamplesPerPixel", 1))}
    path = write(tmp_path / "odd.dcm", {**ours, "PhotometricInterpretation": photometric, **more})
    with pytest.raises(ValueError, match=reason):
        read_image(path)
