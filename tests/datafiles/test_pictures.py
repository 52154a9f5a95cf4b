"""Pictures of every kind become RGB with 8 bits, and what is none is named."""

import numpy as np
import pytest
from PIL import Image

from kdbench.datafiles.folders import is_picture, read_picture
from kdbench.errors import BadInput


VALUES = {
    "RGB": ((10, 20, 30), (10, 20, 30)),
    "RGBA": ((10, 20, 30, 0), (10, 20, 30)),
    "L": (77, (77, 77, 77)),
    "LA": ((77, 128), (77, 77, 77)),
    "1": (1, (255, 255, 255)),
    "I;16": (0x4D80, (77, 77, 77)),
}


@pytest.mark.parametrize("mode", VALUES)
def test_every_mode_keeps_its_brightness(tmp_path, mode):
    value, expected = VALUES[mode]
    Image.new(mode, (4, 2), value).save(tmp_path / "a.png")
    assert np.asarray(read_picture(tmp_path / "a.png")).tolist() == [[list(expected)] * 4] * 2


def test_palettes_cmyk_and_turned_ones(tmp_path):
    Image.new("RGB", (4, 2), (10, 20, 30)).quantize(4).save(tmp_path / "palette.png")
    assert read_picture(tmp_path / "palette.png").getpixel((0, 0)) == (10, 20, 30)
    Image.new("CMYK", (4, 2), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red, green, blue = read_picture(tmp_path / "cmyk.jpg").getpixel((0, 0))
    assert red > 200 > 50 > max(green, blue)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "turned.jpg", exif=turned)
    assert read_picture(tmp_path / "turned.jpg").size == (4, 2)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, None])
def test_what_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 40)).save(path)
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(BadInput, match=r"a\.png: is not an image"):
        read_picture(path)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (10_000, 9_000)).save(path)
    with pytest.raises(BadInput, match="10000 × 9000 pixels are too many"):
        read_picture(path)


def test_names_with_a_dot_in_front_are_no_pictures():
    assert [name for name in ("a.JPEG", "b.png", "._a.JPEG", ".b.png", "notes.txt") if is_picture(name)] == [
        "a.JPEG",
        "b.png",
    ]
