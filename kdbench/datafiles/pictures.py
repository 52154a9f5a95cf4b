"""Picture files, read as RGB."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from kdbench.errors import BadInput


ENDINGS = (".jpeg", ".jpg", ".png")
LARGEST = 89_000_000
"""Pixels of the largest picture that is decoded: half a gigabyte."""


def is_picture(name: str) -> bool:
    """Whether a file's name is a picture's: those that begin with a dot are what other programs leave behind."""
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def read_picture(path: Path) -> Image.Image:
    """One picture in RGB with 8 bits, as it is stored: transparency is left out, and nothing is turned as EXIF says.

    Grey becomes three equal channels, 16 bits are scaled to 8. Raises BadInput, which names the file, where that is
    impossible.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                if image.width * image.height > LARGEST:
                    raise ValueError(f"{image.width} × {image.height} pixels are too many")
                if image.mode.startswith("I"):
                    return image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
                return image.convert("RGB")
    except Exception as error:  # what is no picture makes the decoders raise almost anything
        raise BadInput(f"{path}: is not an image: {error}. Replace it by the official file.") from None
