"""Pictures whose metadata is damaged or large are read, and turned as their orientation says."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from repaint_jax.pictures.images import open_image

PIXELS = np.random.default_rng(0).integers(0, 255, (20, 28, 3), dtype=np.uint8)


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data with these (tag, type, count, value) entries."""
    offset = 8 + 2 + 12 * len(entries) + 4
    table, values = struct.pack("<H", len(entries)), b""
    for tag, kind, count, value in entries:
        if len(value) > 4:
            values += value
            value = struct.pack("<I", offset + len(values) - len(value))
        table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + table + struct.pack("<I", 0) + values


def orientation(number: int) -> tuple[int, int, int, bytes]:
    return (0x0112, 3, 1, struct.pack("<H", number))


DAMAGED = {
    "rational of -1/0": (0x011A, 10, 1, struct.pack("<ii", -1, 0)),
    "negative short": (0x0128, 8, 1, struct.pack("<h", -2)),
}


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("number", range(1, 9))
def test_damaged_exif_data_does_not_hide_the_orientation(tmp_path: Path, suffix, damage, number) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    good, bad = tmp_path / f"good.{suffix}", tmp_path / f"bad.{suffix}"
    Image.fromarray(PIXELS).save(good, exif=exif(orientation(number)), **options)
    Image.fromarray(PIXELS).save(bad, exif=exif(orientation(number), damage), **options)
    expected, found = open_image(good), open_image(bad)
    np.testing.assert_array_equal(found, expected)
    assert found.size == ((28, 20) if number < 5 else (20, 28))
    assert found.getexif().get(0x0112, 1) == 1


def test_truncated_picture_with_exif_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(PIXELS).resize((280, 200)).save(path, exif=exif(orientation(6)))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"cut\.jpg is not a picture that can be read"):
        open_image(path)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "many"])
def test_pictures_with_long_texts_are_read_and_the_limit_stays(tmp_path: Path, kind) -> None:
    texts, path = PngImagePlugin.PngInfo(), tmp_path / "workflow.png"
    if kind == "many":
        for number in range(90):
            texts.add_text(f"text {number}", "x" * 1_000_000, zip=True)
    elif kind == "zTXt":
        texts.add_text("workflow", "x" * 3_000_000, zip=True)
    else:
        texts.add_itxt("workflow", "ö" * 3_000_000, zip=True)
    Image.fromarray(PIXELS).save(path, pnginfo=texts)
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    np.testing.assert_array_equal(open_image(path), PIXELS)
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
