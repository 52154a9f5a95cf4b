"""The networks that kdbench can build, read from networks.yaml. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from kdbench.catalogue.names import normalise, unknown
from kdbench.errors import BadInput


@dataclass(frozen=True)
class Network:
    """One network.

    builder:    the module of kdbench.models whose ``build(classes=…, **arguments)`` makes it
    embedding:  D, the width of the classifier's input
    features:   (channels, total stride) of f0 … fL at 32 × 32 pixels
    parameters: learnable, with 100 classes
    macs:       multiply-accumulates of convolutions and linear layers for one image of 32 × 32, with 100 classes
    """

    name: str
    summary: str
    builder: str
    arguments: Mapping[str, Any] = field(hash=False)
    aliases: tuple[str, ...]
    embedding: int
    features: tuple[tuple[int, int], ...]
    parameters: int
    macs: int


@cache
def networks() -> dict[str, Network]:
    """All networks by name, in the order of the file."""
    text = files("kdbench.catalogue").joinpath("networks.yaml").read_text(encoding="utf-8")
    entries = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {name: _network(name, entry) for name, entry in entries.items()}


def network(name: str) -> Network:
    """One network by name or alias, whatever the case, '_' and '-' being equal. Raises BadInput for an unknown name."""
    spellings = _spellings()
    try:
        return networks()[spellings[normalise(name)]]
    except KeyError:
        raise BadInput(unknown("model", name, networks(), "models")) from None


@cache
def _spellings() -> dict[str, str]:
    return {
        normalise(spelling): known.name for known in networks().values() for spelling in (known.name, *known.aliases)
    }


def _network(name: str, entry: dict[str, Any]) -> Network:
    features = tuple((channels, stride) for channels, stride in entry.pop("features"))
    return Network(name=name, aliases=tuple(entry.pop("aliases")), features=features, **entry)
