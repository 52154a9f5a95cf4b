"""From the file of a picture of one's own to its pixels."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from kdbench.datafiles.folders import LARGEST
from kdbench.errors import BadInput, reason_of


def content_of(kind: str, file: Path) -> bytes:
    """The bytes of a picture's file. Raises OSError where they cannot be read."""
    if kind != "huggingface":
        return file.read_bytes()
    rows = saved_splits(file.parent.parent)[file.parent.name].rows
    found: dict[str, Any] = next(iter(rows[int(file.name)].values()))
    return found["bytes"] or Path(found["path"]).read_bytes()


class SavedSplit(NamedTuple):
    """A split of a folder of datasets: its rows with the picture's bytes alone, labels [N], the names of the classes."""

    rows: Any
    labels: list[int]
    class_names: list[str]


@cache
def saved_splits(root: Path) -> dict[str, SavedSplit]:
    """The splits of a data set that Hugging Face's datasets has saved with ``save_to_disk``."""
    try:
        from datasets import Image, load_from_disk
    except ImportError:
        raise BadInput("a folder of datasets needs the package: pip install 'kdbench[huggingface]'") from None
    try:
        content = load_from_disk(str(root))
    except Exception as error:  # what is no such folder makes the package raise almost anything
        raise BadInput(f"{root}: is no folder that datasets has saved: {reason_of(error)}") from None
    found = {}
    for name, split in (dict(content) if isinstance(content, dict) else {"train": content}).items():
        kinds = {column: type(feature).__name__ for column, feature in split.features.items()}
        pictures = [column for column, kind in kinds.items() if kind == "Image"]
        labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
        if not pictures or not labels:
            raise BadInput(f"{root}: {name} has no column of type Image and one of type ClassLabel: {kinds}")
        rows = split.select_columns(pictures[:1]).cast_column(pictures[0], Image(decode=False))
        found[name] = SavedSplit(rows, list(split[labels[0]]), list(split.features[labels[0]].names))
    return found


def read_picture(kind: str, file: Path) -> Image.Image:
    """A picture of a source in RGB, upright, as large as it is. Raises BadInput where it cannot be decoded."""
    try:
        return decode(content_of(kind, file))
    except Exception as error:  # what is no picture makes the decoders raise almost anything
        raise BadInput(f"{file}: cannot be read any more: {reason_of(error)}") from None


def decode(content: bytes) -> Image.Image:
    """A picture's file in RGB, ``upright``. Raises almost anything for what is no picture."""
    image = Image.open(io.BytesIO(content))
    if image.width * image.height > LARGEST:
        raise ValueError(f"{image.width} × {image.height} pixels are too many")
    return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """A picture in RGB, turned as EXIF says; transparent parts become white, grey three equal channels, 16 bits 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def square(image: Image.Image, size: int) -> Image.Image:
    """A picture in RGB as ``size`` × ``size`` pixels: its shorter side is resized (bicubic), and the centre is taken."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
