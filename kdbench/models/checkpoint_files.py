"""Files of weights that others have trained. Nothing in a file is ever executed."""

from __future__ import annotations

import pickletools
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kdbench.errors import BadInput
from kdbench.models.torchscript import is_torchscript, read_torchscript


CONTAINERS = ("model", "state_dict")
ACCURACIES = ("accuracy", "best_acc", "acc")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: a state dict, and the accuracy in % that the file states, None where it states none."""

    state: dict[str, Tensor]
    accuracy: float | None


def read_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Read a .safetensors file, a torch file or a TorchScript archive.

    The weights may lie bare or under 'model' or 'state_dict'. Raises BadInput where the file holds no weights, or more than
    weights.
    """
    path = Path(path)
    content = _read(path)
    return Checkpoint(_state(path, content), _accuracy(content))


def published_accuracy(path: str | PathLike[str]) -> float | None:
    """The accuracy in % that a checkpoint states of itself; up to 1 it is taken for a fraction. None: it states none."""
    return read_checkpoint(path).accuracy


def some(names: list[str]) -> str:
    """The first three of many names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _read(path: Path) -> object:
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "no such file"
        raise BadInput(f"{path}: {what}. Give the path of a checkpoint (.safetensors, .pth, .pt, .bin).")
    try:
        with path.open("rb") as file:
            beginning = file.read(512)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}).") from None
    if beginning.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise BadInput(
            f"{path}: a web page, not weights: the server answered the download with a page. "
            "Open the link in a browser and download the file itself."
        )
    try:
        if beginning[8:9] == b"{":  # after the header's length in eight bytes
            return load_file(path)
        return read_torchscript(path) if is_torchscript(path) else _read_torch(path)
    except Exception as error:  # bytes that are no checkpoint make the readers raise almost anything
        raise BadInput(f"{path}: {_refusal(path, str(error))}") from None


def _read_torch(path: Path) -> object:
    """Unpickle tensors and plain data only. RepDistiller's files hold their command line as a Namespace: plain data."""
    with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]), path.open("rb") as file:
        warnings.simplefilter("ignore")  # a refused file is reported once, by us
        return torch.load(file, map_location="cpu", weights_only=True)  # of a path it would look at the suffix


def _refusal(path: Path, error: str) -> str:
    match = re.search(r"GLOBAL ([\w.]+)", error)
    foreign = match.group(1) if match else _foreign_name(path)
    if foreign:
        return (
            f"holds more than weights ({foreign}), and loading that could run code, so it is refused. Where you "
            "trust the file, load it yourself and save the network's state_dict() as .safetensors."
        )
    size = path.stat().st_size
    return f"truncated, damaged or not a checkpoint ({size:,} bytes). Download it again, or save it with safetensors."


def _foreign_name(path: Path) -> str:
    """The first thing that a plain pickle would import and that is neither torch's nor plain data; "" where none is seen."""
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for operation, argument, _ in pickletools.genops(file):
                if operation.name in ("GLOBAL", "INST"):
                    name = str(argument).replace(" ", ".")
                elif operation.name == "STACK_GLOBAL":
                    name = ".".join(strings[-2:])
                else:
                    strings += [argument] if isinstance(argument, str) else []
                    continue
                if name.partition(".")[0] not in ("torch", "collections", "argparse"):
                    return name
    except Exception:  # what is no pickle makes the reader raise almost anything
        return ""
    return ""


def _state(path: Path, content: object) -> dict[str, Tensor]:
    """The state dict inside of what a file holds."""
    inside: Any = content
    if isinstance(content, Mapping):
        inside = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if isinstance(inside, Mapping) and inside and all(isinstance(value, Tensor) for value in inside.values()):
        return {str(key): value for key, value in inside.items()}
    keys = some([str(key) for key in content]) if isinstance(content, Mapping) else ""
    held = f"the keys {keys}" if keys else f"a {type(content).__name__}"
    raise BadInput(
        f"{path}: no weights found: it holds {held}. Expected a state dict, bare or under 'model' or 'state_dict'."
    )


def _accuracy(content: object) -> float | None:
    if not isinstance(content, Mapping):
        return None
    for key in ACCURACIES:
        value = content.get(key)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100:
            return float(value if value > 1 else 100 * value)
    return None
