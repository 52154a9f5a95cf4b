"""Loading of weights that others have trained. Nothing in a file is ever executed."""

from __future__ import annotations

import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.errors import BadInput
from kdbench.models.backbone import Backbone


CONTAINERS = ("model", "state_dict")
PREFIXES = ("module.", "backbone.")


def load_checkpoint(net: nn.Module, path: str | PathLike[str]) -> None:
    """Fill the network with the weights of a .safetensors file or of a torch file.

    The weights may lie bare or under 'model' or 'state_dict', their names may begin with 'module.' or 'backbone.' or be
    one of the network's key_aliases, and batch counters may be absent. Raises BadInput, leaving the network as it was,
    where they do not fit it exactly.
    """
    path = Path(path)
    found = _adapt(net, _state(path, _read(path)))
    problem = _misfit(net, found)
    if problem:
        raise BadInput(f"{path}: {problem}")
    net.load_state_dict(found)


def _read(path: Path) -> object:
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "no such file"
        raise BadInput(f"{path}: {what}. Give the path of a checkpoint (.safetensors, .pth, .pt).")
    try:
        with path.open("rb") as file:
            beginning = file.read(512).lstrip().lower()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}).") from None
    if beginning.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise BadInput(
            f"{path}: a web page, not weights: the server answered the download with a page. "
            "Open the link in a browser and download the file itself."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _read_torch(path)
    except Exception as error:  # bytes that are no checkpoint make the readers raise almost anything
        raise BadInput(f"{path}: {_refusal(path, str(error))}") from None


def _read_torch(path: Path) -> object:
    """Unpickle tensors and plain data only. RepDistiller's files hold their command line as a Namespace: plain data."""
    with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
        warnings.simplefilter("ignore")  # a refused file is reported once, by us
        return torch.load(path, map_location="cpu", weights_only=True)


def _refusal(path: Path, error: str) -> str:
    foreign = re.search(r"GLOBAL ([\w.]+)", error)
    if foreign or "TorchScript" in error:
        held = foreign.group(1) if foreign else "a TorchScript program"
        return (
            f"holds more than weights ({held}), and loading that could run code, so it is refused. Where you trust the "
            "file, load it yourself and save the network's state_dict() as .safetensors."
        )
    size = path.stat().st_size
    return f"truncated, damaged or not a checkpoint ({size:,} bytes). Download it again, or save it with safetensors."


def _state(path: Path, content: object) -> dict[str, Tensor]:
    """The state dict inside of what a file holds."""
    inside: Any = content
    if isinstance(content, Mapping):
        inside = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if isinstance(inside, Mapping) and inside and all(isinstance(value, Tensor) for value in inside.values()):
        return {str(key): value for key, value in inside.items()}
    keys = _some([str(key) for key in content]) if isinstance(content, Mapping) else ""
    held = f"the keys {keys}" if keys else f"a {type(content).__name__}"
    raise BadInput(
        f"{path}: no weights found: it holds {held}. Expected a state dict, bare or under 'model' or 'state_dict'."
    )


def _adapt(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the network's own names, without SSKD's projection head, with all batch counters."""
    expected = net.state_dict()
    aliases = net.key_aliases if isinstance(net, Backbone) else {}
    found = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    for key, value in state.items():
        while key not in expected and key.startswith(PREFIXES):
            key = key.split(".", 1)[1]
        if key not in expected:
            key = aliases.get(key, key)
        if key in expected or not key.startswith("proj_head."):
            found[key] = value
    return found


def _misfit(net: nn.Module, found: dict[str, Tensor]) -> str | None:
    """Why these weights are not the network's, or None where they are."""
    expected = net.state_dict()
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = {key: (found[key].shape, expected[key].shape) for key in expected if key in found}
    wrong = {key: pair for key, pair in shapes.items() if pair[0] != pair[1]}
    if not (missing or unexpected or wrong):
        return None
    if not (missing or unexpected) and all(
        _is_classifier(net, key) and a[1:] == b[1:] for key, (a, b) in wrong.items()
    ):
        there, here = next((a[0], b[0]) for a, b in wrong.values())
        return f"trained for {there} classes, but {here} are expected. Give a checkpoint of {here} classes."
    differences = [f"{key} is {[*a]} instead of {[*b]}" for key, (a, b) in wrong.items()]
    lists = {"missing": missing, "unexpected": unexpected, "other shapes": differences}
    parts = [f"{what}: {_some(names)}" for what, names in lists.items() if names]
    return f"weights of another architecture ({'; '.join(parts)}). Name the network that they belong to."


def _is_classifier(net: nn.Module, key: str) -> bool:
    name = net.classifier_name if isinstance(net, Backbone) else None
    return name is not None and key.startswith(f"{name}.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
