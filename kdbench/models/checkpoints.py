"""Load weights that others have trained into the networks."""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.catalogue.networks import NetworkInfo, networks
from kdbench.catalogue.plugins import locating_modules
from kdbench.catalogue.text import nearest
from kdbench.errors import BadInput
from kdbench.models.backbone import Backbone
from kdbench.models.build import build
from kdbench.models.external import ExternalNetwork
from kdbench.models.layouts import in_timms_layout
from kdbench.suite.components import NetworkSpec
from kdbench.weightfiles.read import (
    State,
    StatedAccuracy,
    is_averaged,
    is_named,
    opened,
    some,
    stated_accuracy,
    tensors_in,
    without_wrappers,
)
from kdbench.weightfiles.tensors import Stored


Found = dict[str, Stored | Tensor]
"""A network's tensors by its own names: the file's, and those of its own that stay."""


def load_checkpoint(
    net: nn.Module, path: str | PathLike[str], *, classifier: bool = True, key: str | None = None
) -> None:
    """Fill the network with the weights of a .safetensors file, a torch file or a TorchScript archive.

    The weights may lie anywhere in the file, under a prefix that their names share; other content is ignored. The
    classifier may have another name or lie beside the rest, and batch counters may be absent. Of a whole CLIP, an encoder
    takes the vision tower. Values become the network's own type. Raises BadInput, leaving the network as it was, where the
    file holds no weights that fit it exactly, or several and ``key`` does not say which.

    classifier: False leaves the file's classifier out, and the network's own as it is
    key:        the place of the weights in the file, such as ``student`` or ``state_dict_ema``
    """
    with opened(Path(path)) as content:
        there = tensors_in(content)
        fitting = _fitting(net, there, classifier=classifier) or _converted(net, there, classifier=classifier)
        if not fitting:
            raise BadInput(_mismatch_of(net, there, classifier=classifier))
        found = fitting[_chosen(list(fitting), key)]
        if problem := _other_classes(net, found) or _unusual(net, found):
            raise BadInput(problem)
        values = _values(found)
        if problem := _unusable(net, values):
            raise BadInput(problem)
    net.load_state_dict(values)


def published_accuracy(path: str | PathLike[str]) -> StatedAccuracy:
    """The accuracies in % that a checkpoint states of itself."""
    with opened(Path(path)) as content:
        return stated_accuracy(content)


def _fitting(net: nn.Module, there: State, *, classifier: bool = True) -> dict[str, Found]:
    """The weights in a file that fit this network, with any class count, by the prefix of their names in the file."""
    own = net.state_dict()
    root = net.prefix if isinstance(net, Backbone) else ""
    bare = _bare(there, net.module_aliases if isinstance(net, Backbone) else {})
    names = sorted(bare)
    prefixes = _prefixes(bare, next(iter(own)).removeprefix(root))
    final = {name: value for name, value in own.items() if _is_classifier(net, name)}
    layers = _layers_like(final, bare, prefixes)
    rest = [name.removeprefix(root) for name in own if name not in final and not name.endswith(_COUNTER)]
    fitting: dict[str, Found] = {}
    for prefix, place in prefixes.items():
        if not all(prefix + name in bare for name in rest):
            continue
        first, last = bisect_left(names, prefix), bisect_left(names, prefix + chr(0x10FFFF))
        inside = {root + name.removeprefix(prefix): bare[name][1] for name in names[first:last]}
        found = _own_tensors(net, own, inside, classifier=classifier)
        if final and own.keys() - found.keys() == final.keys():
            layer = _classifier_elsewhere(final, layers, prefix)
            taken = {id(value) for value in layer.values()}
            found = {**{name: value for name, value in found.items() if id(value) not in taken}, **layer}
        if _architecture_mismatch(net, found) is None:
            fitting[place] = found
    exact = {place: found for place, found in fitting.items() if _other_classes(net, found) is None}
    return exact or fitting


def _converted(net: nn.Module, there: State, *, classifier: bool) -> dict[str, Found]:
    """The weights of one of timm's networks in another layout."""
    tensors = in_timms_layout(net.net, _values(dict(there))) if isinstance(net, ExternalNetwork) else None
    if tensors is None:
        return {}
    own = net.state_dict()
    found: Found = {f"{net.prefix}{name}": tensor for name, tensor in tensors.items()}
    if not classifier:
        found = {name: value for name, value in found.items() if not _is_classifier(net, name)}
        found |= {name: value for name, value in own.items() if _is_classifier(net, name)}
    return {} if _architecture_mismatch(net, found) else {"": found}


def _bare(there: State, aliases: Mapping[str, str]) -> dict[str, tuple[str, Stored]]:
    """A file's names and tensors by the name without wrappers and aliases, where that leaves the names distinct."""
    bare: dict[str, tuple[str, Stored]] = {}
    for name, tensor in there.items():
        short = ".".join(aliases.get(part, part) for part in without_wrappers(name).split("."))
        bare[name if short in bare else short] = name, tensor
    return bare


def _prefixes(bare: Mapping[str, tuple[str, Stored]], anchor: str) -> dict[str, str]:
    """The prefixes of a name among those in a file, without wrappers, and each as it is in the file."""
    prefixes = {}
    for name, (written, _) in bare.items():
        if f".{name}".endswith(f".{anchor}"):
            parts = written.split(".")
            start = next(n for n in reversed(range(len(parts))) if without_wrappers(".".join(parts[n:])) == anchor)
            prefixes[name.removesuffix(anchor)] = ".".join(parts[:start])
    return prefixes


def _own_tensors(net: nn.Module, own: Mapping[str, Tensor], inside: State, *, classifier: bool = True) -> Found:
    """A file's tensors that are part of the network or might be, and all its batch counters.

    What lies in modules that the network does not have is left out: projection heads, losses, normalisation constants.
    """
    root = net.prefix if isinstance(net, Backbone) else ""
    stems = {_stem(name.removeprefix(root)) for name in own}
    found: Found = {name: value for name, value in own.items() if name.endswith(_COUNTER)}
    found |= {
        name: value
        for name, value in inside.items()
        if name in own or (_stem(name.removeprefix(root)) in stems and not name.endswith(_PROFILE))
    }
    if not classifier:
        found = {name: value for name, value in found.items() if not _is_classifier(net, name)}
        found |= {name: value for name, value in own.items() if _is_classifier(net, name)}
    return found


_COUNTER = "num_batches_tracked"
"""A batch norm's counter, which no file needs to hold."""

_PROFILE = ("total_ops", "total_params")
"""What the profiler thop leaves in the modules that it has counted."""


def _stem(name: str) -> str:
    """A tensor's outermost module without its number, so that a further stage is seen as part of the network."""
    return name.partition(".")[0].rstrip("0123456789")


class _Layer(NamedTuple):
    """A layer in a file: its name, the innermost prefix of a network that it lies behind, and its tensors."""

    name: str
    network: str
    tensors: dict[str, Stored]


def _layers_like(
    own: Mapping[str, Tensor], bare: Mapping[str, tuple[str, Stored]], prefixes: Collection[str]
) -> list[_Layer]:
    """The layers in a file that have the shape of a network's ``own`` classifier, with any class count."""
    layers = []
    for name in (name.removesuffix("weight") for name in bare if own and name.endswith("weight")):
        tensors = {key: bare[at][1] for key in own if (at := name + key.rpartition(".")[2]) in bare}
        same = all(value.shape[1:] == own[key].shape[1:] for key, value in tensors.items())
        if same and tensors.keys() == own.keys() and len({value.shape[:1] for value in tensors.values()}) == 1:
            ends = [place + 1 for place, letter in enumerate(name) if letter == "."]
            network = next((name[:end] for end in reversed(ends) if name[:end] in prefixes), "")
            layers.append(_Layer(name, network, tensors))
    return layers


def _classifier_elsewhere(own: Mapping[str, Tensor], layers: Sequence[_Layer], prefix: str) -> Mapping[str, Stored]:
    """The classifier of the network behind a prefix, under another name or beside it: the only such layer, or the only one
    with the network's ``own`` class count; empty if there is none.
    """
    around = "".join(prefix[:-1].rpartition(".")[:2])
    near = [layer.tensors for layer in layers if layer.name.startswith(around) and prefix.startswith(layer.network)]
    exact = [tensors for tensors in near if all(value.shape == own[key].shape for key, value in tensors.items())]
    return next((found[0] for found in (exact, near) if len(found) == 1), {})


def _chosen(places: list[str], key: str | None) -> str:
    """The place that a key names. Without one, the only place whose weights are no running average of others'."""
    plain = [place for place in places if not is_averaged(place)] or places
    matches = plain if key is None else [p for p in places if p == key] or [p for p in places if is_named(p, key)]
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(place or "(bare)" for place in places)
    if key is None:
        raise BadInput(
            f"holds {len(places)} networks of this kind: {names}. Name one of them as its key: {matches[0]}."
        )
    near = nearest(key, places)
    hint = f" Did you mean '{near}'?" if near else ""
    raise BadInput(f"the key '{key}' names {len(matches) or 'none'} of its networks: {names}.{hint}")


def _architecture_mismatch(net: nn.Module, found: Mapping[str, Stored | Tensor]) -> str | None:
    """Why these weights are of another architecture than the network, or None where they are not."""
    expected = net.state_dict()
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = {key: (tuple(found[key].shape), tuple(expected[key].shape)) for key in expected if key in found}
    wrong = {key: (a, b) for key, (a, b) in shapes.items() if a != b}
    classes_alone = all(_is_classifier(net, key) and a[1:] == b[1:] for key, (a, b) in wrong.items())
    if classes_alone and not (missing or unexpected):
        return None
    differences = [f"{key} is {[*a]} instead of {[*b]}" for key, (a, b) in wrong.items()]
    lists = {"missing": missing, "unexpected": unexpected, "other shapes": differences}
    parts = [f"{what}: {some(names)}" for what, names in lists.items() if names]
    return f"weights of another architecture ({'; '.join(parts)}). "


def _mismatch_of(net: nn.Module, there: State, *, classifier: bool) -> str:
    """The sentence for a file in which nothing fits the network."""
    if classifier and _fitting(net, there, classifier=False):
        return (
            "holds the network without its classifier. As a suite's teacher it needs fine_tune: true, or one of the "
            "strategies sequential and simultaneous, which train new layers on it."
        )
    own = net.state_dict()
    found: Found = {name: value for name, value in own.items() if name.endswith(_COUNTER)}
    found |= _stripped({name: tensor for name, (_, tensor) in _bare(there, {}).items()}, own)
    return f"{_architecture_mismatch(net, found)}{_advice(there)}"


def _stripped(state: State, own: Mapping[str, Tensor]) -> State:
    """The tensors under the prefix where most names are the network's own, without that prefix."""
    count: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        count.update(".".join([*parts[:n], ""]) for n in range(len(parts)) if ".".join(parts[n:]) in own)
    prefix = max(count, key=lambda each: (count[each], -len(each)), default="")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _other_classes(net: nn.Module, found: Mapping[str, Stored | Tensor]) -> str | None:
    """The sentence for a classifier of another class count, or None where the counts are equal."""
    for key, own in net.state_dict().items():
        there, here = found[key].shape[:1], own.shape[:1]
        if _is_classifier(net, key) and tuple(there) != tuple(here):
            return (
                f"trained for {there[0]} classes, but {here[0]} are expected. Give a checkpoint of {here[0]} classes."
            )
    return None


def _unusual(net: nn.Module, found: Mapping[str, Stored | Tensor]) -> str | None:
    """The sentence for tensors that are no plain ones of the network's kind, or None where there are none."""
    for key, own in net.state_dict().items():
        value = found[key]
        if isinstance(value, Stored):
            if value.storage is None:
                return f"{key} is quantised or sparse, or without values. Save the network's plain state_dict()."
            there = getattr(torch, value.storage.dtype)
            if there.is_complex or (own.is_floating_point() and not there.is_floating_point):
                here = str(own.dtype).removeprefix("torch.")
                return f"{key} holds {value.storage.dtype} instead of {here}."
    return None


def _values(found: Found) -> dict[str, Tensor]:
    """The tensors' values. Those that share a storage in the file share it here."""
    storages: dict[int, Tensor] = {}
    values: dict[str, Tensor] = {}
    for key, value in found.items():
        if isinstance(value, Tensor) or value.storage is None:
            assert isinstance(value, Tensor)
            values[key] = value
            continue
        owner = value.storage
        if id(owner) not in storages:
            content = bytearray(owner.read())
            if len(content) != owner.length:
                raise EOFError("a storage is cut off")
            kind = getattr(torch, owner.dtype)
            storages[id(owner)] = torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)
        values[key] = storages[id(owner)].as_strided(value.shape, value.stride, value.offset)
    return values


def _unusable(net: nn.Module, values: Mapping[str, Tensor]) -> str | None:
    """The sentence for values that no trained network has, or None where there are none."""
    for key in net.state_dict():
        if values[key].is_floating_point() and not values[key].isfinite().all():
            return f"{key} holds values that are no numbers: its training diverged, or the file is damaged."
    return None


def _is_classifier(net: nn.Module, key: str) -> bool:
    name = net.classifier_name if isinstance(net, Backbone) else None
    return name is not None and key.startswith(f"{name}.")


def _advice(there: State) -> str:
    owners = _matching_networks(there)
    if not owners:
        return "Name the network that they belong to."
    return f"These are the weights of {' or '.join(owners)}: name that network, or give another file."


def _matching_networks(there: State) -> list[str]:
    """The networks of the catalogue, of whatever class count, that the weights fit."""
    values = sum(min(tensor.count, tensor.storage.length) for tensor in there.values() if tensor.storage)
    candidates = [known.name for known in networks().values() if _least_parameters(known) <= values]
    return [name for name in candidates if _fitting(_meta_network(name), there)]


def _least_parameters(known: NetworkInfo) -> int:
    return known.parameters - (100 * (known.embedding + 1) if known.classifier else 0)


@cache
def _meta_network(name: str) -> Backbone:
    """The network with the names and shapes of its tensors alone."""
    with torch.device("meta"):
        return build(name)


def report_misfits() -> None:
    """Read a list of {file, network, classes, classifier, key} and where modules are; write one of messages, "" if right."""
    request = json.load(sys.stdin)
    with locating_modules({top: Path(folder) for top, folder in request["beside"].items()}.get):
        print(json.dumps([_problem(asked) for asked in request["files"]]))


def _problem(asked: dict[str, Any]) -> str:
    """Why a file cannot fill the network, or ""."""
    named = asked["network"]
    network = build(named if isinstance(named, str) else NetworkSpec(**named), asked["classes"])
    try:
        load_checkpoint(network, asked["file"], classifier=asked["classifier"], key=asked["key"])
    except BadInput as error:
        return str(error)
    return ""
