"""Loading of weights that others have trained into the networks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from kdbench.catalogue.networks import Network, networks
from kdbench.errors import BadInput
from kdbench.models.backbone import Backbone
from kdbench.models.checkpoint_files import Checkpoint, published_accuracy, read_checkpoint, some
from kdbench.models.clip import ClipEncoder


__all__ = ["Checkpoint", "load_checkpoint", "published_accuracy", "read_checkpoint"]

PREFIXES = ("module.", "backbone.")


def load_checkpoint(net: nn.Module, path: str | PathLike[str], *, classifier: bool = True) -> None:
    """Fill the network with the weights of a .safetensors file, a torch file or a TorchScript archive.

    The weights may lie bare or under 'model' or 'state_dict', their names may begin with 'module.' or 'backbone.' or be
    one of the network's key_aliases, and batch counters may be absent. Of a whole CLIP, an encoder takes the vision tower.
    Values become the network's own type. Raises BadInput, leaving the network as it was, where they do not fit it exactly.

    classifier: False leaves the file's classifier out, and the network's own as it is
    """
    path = Path(path)
    state = read_checkpoint(path).state
    found = _adapt(net, state)
    if not classifier:
        found = {key: value for key, value in found.items() if not _is_classifier(net, key)}
        found |= {key: value for key, value in net.state_dict().items() if _is_classifier(net, key)}
    problem = _misfit(net, found)
    if problem:
        raise BadInput(f"{path}: {problem}{_advice(state)}")
    problem = _other_classes(net, found) or _unusable(net, found)
    if problem:
        raise BadInput(f"{path}: {problem}")
    net.load_state_dict(found)


def _adapt(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the network's own names, without SSKD's projection head, with all batch counters."""
    expected = net.state_dict()
    aliases = net.key_aliases if isinstance(net, Backbone) else {}
    found = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    theirs = {_strip(key, expected): value for key, value in state.items()}
    if isinstance(net, ClipEncoder):
        theirs = _vision_tower(theirs)
    for key, value in theirs.items():
        if key not in expected:
            key = aliases.get(key, key)
        if key in expected or not key.startswith("proj_head."):
            found[key] = value
    return found


def _strip(key: str, expected: Mapping[str, Tensor]) -> str:
    while key not in expected and key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _vision_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a whole CLIP the vision tower; of a bare tower everything."""
    tower = {key: value for key, value in state.items() if key.startswith("visual.")}
    return tower or {f"visual.{key}": value for key, value in state.items()}


def _misfit(net: nn.Module, found: Mapping[str, Tensor]) -> str | None:
    """Why these weights are of another architecture than the network, or None where they are not."""
    expected = net.state_dict()
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = {key: (found[key].shape, expected[key].shape) for key in expected if key in found}
    wrong = {key: (a, b) for key, (a, b) in shapes.items() if a != b}
    classes_alone = all(_is_classifier(net, key) and a[1:] == b[1:] for key, (a, b) in wrong.items())
    if classes_alone and not (missing or unexpected):
        return None
    differences = [f"{key} is {[*a]} instead of {[*b]}" for key, (a, b) in wrong.items()]
    lists = {"missing": missing, "unexpected": unexpected, "other shapes": differences}
    parts = [f"{what}: {some(names)}" for what, names in lists.items() if names]
    return f"weights of another architecture ({'; '.join(parts)}). "


def _other_classes(net: nn.Module, found: Mapping[str, Tensor]) -> str | None:
    """The sentence for a classifier of another class count, or None where the counts are equal."""
    expected = net.state_dict()
    counts = [(len(found[key]), len(expected[key])) for key in expected if _is_classifier(net, key)]
    for there, here in counts:
        if there != here:
            return f"trained for {there} classes, but {here} are expected. Give a checkpoint of {here} classes."
    return None


def _unusable(net: nn.Module, found: Mapping[str, Tensor]) -> str | None:
    """The sentence for values that no trained network has, or None where there are none."""
    for key, expected in net.state_dict().items():
        value = found[key]
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            kind = "without values" if value.is_meta else "quantised or sparse"
            return f"{key} is {kind}. Save the network's plain state_dict()."
        if value.is_complex() or (expected.is_floating_point() and not value.is_floating_point()):
            there, here = (str(tensor.dtype).removeprefix("torch.") for tensor in (value, expected))
            return f"{key} holds {there} instead of {here}."
        if value.is_floating_point() and not value.isfinite().all():
            return f"{key} holds values that are no numbers: its training diverged, or the file is damaged."
    return None


def _is_classifier(net: nn.Module, key: str) -> bool:
    name = net.classifier_name if isinstance(net, Backbone) else None
    return name is not None and key.startswith(f"{name}.")


def _advice(state: Mapping[str, Tensor]) -> str:
    owners = _owners(state)
    if not owners:
        return "Name the network that they belong to."
    return f"These are the weights of {' or '.join(owners)}: name that network, or give another file."


def _owners(state: Mapping[str, Tensor]) -> list[str]:
    """The networks of the catalogue, of whatever class count, that the weights fit."""
    values = sum(value.numel() for value in state.values())
    candidates = [known for known in networks().values() if _least_parameters(known) <= values]
    nets = {known.name: _without_memory(known.name) for known in candidates}
    return [name for name, net in nets.items() if _misfit(net, _adapt(net, state)) is None]


def _least_parameters(known: Network) -> int:
    return known.parameters - (100 * (known.embedding + 1) if known.classifier else 0)


@cache
def _without_memory(name: str) -> Backbone:
    """The network with the names and shapes of its tensors alone."""
    from kdbench.models import build  # that module offers this one's functions, too

    with torch.device("meta"):
        return build(name)
