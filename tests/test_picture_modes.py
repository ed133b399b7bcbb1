"""Pictures and label maps in every encoding people have: read for what they mean, or refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from eomt_exp.contracts import DataError
from eomt_exp.data.files.decode import decode_image, decode_labels
from eomt_exp.data.files.file_set import AnomalySet
from eomt_exp.data.files.layout_search import SearchPaths, find_layout
from eomt_exp.data.files.layouts import Layout
from eomt_exp.data.outlier_folder import OutlierFolder
from tests.data_files import grey_png, save

COLOURED = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")
MODES = ("1", "L", "LA", *COLOURED, "I", "I;16", "F")
FORMATS = {"PNG": {}, "TIFF": {}, "JPEG": {"quality": 95, "subsampling": 0},
           "WEBP": {"lossless": True}}  # fmt: skip
WRITTEN = {  # what Pillow can write of them; WebP holds all of them as RGB
    "PNG": "1 L LA P RGB RGBA I;16", "TIFF": "1 L LA P PA RGB RGBA CMYK YCbCr LAB I I;16 F",
    "JPEG": "1 L RGB CMYK YCbCr", "WEBP": " ".join(MODES),
}  # fmt: skip
UNSCALED = "no file says how bright"
NOT_PICTURES = {("I", "TIFF"): UNSCALED, ("F", "TIFF"): UNSCALED}
LABELS = {"PNG": "1 L P I;16", "TIFF": "1 L P I I;16 F"}  # of which label maps are read
VALUES = np.arange(12, dtype=np.uint8).repeat(8).reshape(8, 12)  # 0 to 11
RAMP = np.arange(0, 240, 10, dtype=np.uint8)
PICTURE = np.dstack([*np.meshgrid(RAMP, RAMP), np.full((24, 24), 90, np.uint8)])  # in colour
TOLERANCE = {"JPEG": 6, "LAB": 4, "YCbCr": 4, "HSV": 4}  # grey levels


def picture(mode: str) -> tuple[Image.Image, np.ndarray]:
    """A picture of the mode, and the RGB that it shows."""
    colours, grey = Image.fromarray(PICTURE), Image.fromarray(PICTURE).convert("L")
    if mode in ("I", "I;16", "F"):
        kind = {"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]
        made = Image.fromarray(np.asarray(grey).astype(kind) * (257 if mode == "I;16" else 1))
    elif mode in ("LA", "RGBA"):
        made = (grey if mode == "LA" else colours).convert(mode)
        made.putalpha(120)  # dropped: the colours below it are the picture's
    elif mode in ("P", "PA"):
        made = colours = colours.quantize(16)
        made = made.convert(mode)
    else:
        made = colours.convert(mode)
    shown = made if mode == "1" else colours if mode in COLOURED else grey
    return made, np.asarray(shown.convert("RGB"))


def label_map(mode: str) -> tuple[Image.Image, np.ndarray]:
    """A label map of the mode, and its values."""
    kinds = {"1": bool, "I": np.int32, "I;16": np.uint16, "F": np.float32}
    made = Image.fromarray(VALUES.astype(kinds.get(mode, np.uint8)))
    if mode == "P":
        made.putpalette([200, 100, 50] * 256)
    elif mode not in kinds and mode != "L":
        made = (made if mode in ("LA", "PA") else made.convert("RGB")).convert(mode)
    return made, VALUES > 0 if mode == "1" else VALUES


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **(FORMATS[form] | options))
    return file.getvalue()


def as_picture(mode: str, form: str) -> str:
    """How it was read: "right", or why not."""
    made, shown = picture(mode)
    try:
        data = saved(made, form)
        got = decode_image(data, "x").astype(int)
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"Pillow: {error}"
    if (mode, form) == ("I;16", "WEBP"):  # cut by Pillow when it was written
        shown = np.asarray(made.convert("RGB"))
    allowed = max(TOLERANCE.get(form, 0), TOLERANCE.get(mode, 0))
    share = 90 if mode in ("LAB", "HSV") else 100  # in 8 bits these are coarse for some colours
    return "right" if np.percentile(np.abs(got - shown), share) <= allowed else "WRONG"


def as_labels(mode: str, form: str) -> str:
    made, values = label_map(mode)
    try:
        got = decode_labels(saved(made, form), "x")
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"Pillow: {error}"
    return "right" if got.dtype == np.uint8 and np.array_equal(got, values) else "WRONG"


def test_every_mode_in_every_format_is_read_right_or_refused_by_name() -> None:
    for form, written in WRITTEN.items():
        for mode in MODES:
            read, labels = as_picture(mode, form), as_labels(mode, form)
            print(f"{form:5} {mode:6} picture: {read[:60]:60}  labels: {labels[:60]}")
            if mode not in written.split():
                assert read == labels == f"Pillow: cannot write mode {mode} as {form}"
                continue
            reason = NOT_PICTURES.get((mode, form), "right")
            assert reason in read
            assert ("allowed are 1, L" in read) == (reason != "right")
            if mode in LABELS.get(form, "").split():
                assert labels == "right"
            else:
                assert ("holds JPEG data" if form == "JPEG" else "has") in labels
                assert form == "JPEG" or "channels" in labels


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_packed_values_are_the_values_and_packed_pictures_reach_white(bits: int) -> None:
    values = (np.arange(5 * 13, dtype=np.uint8) % 2**bits).reshape(5, 13)
    packed = grey_png(values, bits)
    assert np.array_equal(decode_labels(packed, "x"), values)
    assert decode_image(packed, "x").max() == 255
    palette = Image.fromarray(values)
    palette.putpalette([9, 8, 7] * 256)
    assert np.array_equal(decode_labels(saved(palette, "PNG", bits=bits), "x"), values)


def test_sixteen_bits_are_read_by_their_scale_and_fewer_in_them_are_refused() -> None:
    grey = np.tile(np.linspace(0, 255, 256).astype(np.uint16), (8, 1))
    for form in ("PNG", "TIFF"):
        assert decode_image(saved(Image.fromarray(grey * 257), form), "x").mean() == 127.5
        for few in (grey, grey * 16):  # 8 and 12 bits
            with pytest.raises(DataError, match=r"x has 16 bits .* values of 8 to 12 bits"):
                decode_image(saved(Image.fromarray(few), form), "x")


@pytest.mark.parametrize("value", [300, -1, 0.5, np.nan])
def test_label_values_that_are_no_bytes_are_named(value: float) -> None:
    values = VALUES.astype(np.int32 if float(value).is_integer() else np.float32)
    values[0, 0] = value
    with pytest.raises(DataError, match="whole numbers from 0 to 255 can be read"):
        decode_labels(saved(Image.fromarray(values), "TIFF"), "x")


def turned(array: np.ndarray, form: str, orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return saved(Image.fromarray(array), form, exif=exif)


@pytest.mark.parametrize("form", FORMATS)
def test_all_files_are_turned_as_exif_says(form: str) -> None:
    stored = decode_image(saved(Image.fromarray(PICTURE[:16]), form), "x")
    assert np.array_equal(decode_image(turned(PICTURE[:16], form), "x"), np.rot90(stored, -1))
    assert np.array_equal(decode_image(turned(PICTURE[:16], form, 3), "x"), stored[::-1, ::-1])
    if form in LABELS:
        assert np.array_equal(decode_labels(turned(VALUES, form), "x"), np.rot90(VALUES, -1))


def test_cut_outs_are_turned_too(tmp_path: Path) -> None:
    rgba = np.dstack([PICTURE[:16], np.full((16, 24), 255, np.uint8)])
    (tmp_path / "0.png").write_bytes(turned(rgba, "PNG"))
    assert np.array_equal(OutlierFolder(tmp_path)[0], np.rot90(rgba, -1))


def test_damaged_exif_turns_nothing_and_a_label_map_that_lies_says_why(tmp_path: Path) -> None:
    whole = turned(PICTURE, "JPEG")
    damaged = whole.replace(b"Exif\0\0MM", b"Exif\0\0XX").replace(b"Exif\0\0II", b"Exif\0\0XX")
    assert damaged != whole
    upright = decode_image(saved(Image.fromarray(PICTURE), "JPEG"), "x")
    assert np.array_equal(decode_image(damaged, "x"), upright)
    save(tmp_path / "labels" / "0.png", VALUES)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(turned(PICTURE[:8, :12], "JPEG"))
    layout = {"x": Layout("images/{id}", "labels/{id}")}
    found = find_layout(layout, SearchPaths(tmp_path, None, [""], "x", "benchmark.x"), {})
    with pytest.raises(DataError, match=r"0\.png is 12x8 .*0\.jpg is 8x12.*as EXIF says"):
        AnomalySet(found, {0: 0}, "error", "benchmark.x")[0]
