"""The networks that kdbench can build, read from networks.yaml. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from kdbench.catalogue.text import normalise, unknown
from kdbench.errors import BadInput


@dataclass(frozen=True)
class PublicWeights:
    """Weights that a network's makers publish.

    sha256:    of the file: whole, the leading digits that torchvision puts into the file's name, or "" if unknown
    size:      the side of the images, in pixels, that they were trained on
    mean, std: the normalisation of the images' channels, for values from 0 to 1
    classes:   of the classifier in the file; 0 where it holds an encoder
    """

    source: Literal["openai", "torchvision", "timm"]
    file: str
    sha256: str
    url: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: int

    def how_to_get(self, folder: Path) -> str:
        """The sentence for a file that is not in its folder."""
        return f"{folder / self.file} is missing: download {self.url} to there, or add --download."


@dataclass(frozen=True)
class NetworkInfo:
    """One network.

    builder:    the module of kdbench.models whose ``build(classes=…, **arguments)`` makes it
    embedding:  D, the width of the classifier's input
    features:   (channels, total stride) of f0 … fL
    parameters: learnable, with 100 classes
    macs:       multiply-accumulates for one image of 32 × 32 pixels, or of its own size, with 100 classes
    activations: elements that convolutions and linear layers give for such an image
    layers:     how many convolutions and linear layers it has
    size:       the only side of image, in pixels, that it takes; None: any
    smallest:   the least side of image, in pixels, that it takes
    classes:    the only number of classes that it takes; None: any
    maps:       the modules whose outputs are the feature maps; () for those that come with kdbench
    preactivations: whether it gives each stage's map before its last activation
    bundled:    whether it comes with kdbench, which then knows its stages
    classifier: False for an encoder, whose logits are its embedding
    public:     weights that its makers publish
    auxiliary:  the network of about twice its channels that stands between it and a teacher in HKD; "" where none is known
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
    activations: int = 0
    layers: int = 0
    size: int | None = None
    classifier: bool = True
    public: PublicWeights | None = None
    auxiliary: str = ""
    smallest: int = 1
    classes: int | None = None
    maps: tuple[str, ...] = ()
    preactivations: bool = True
    bundled: bool = True


@cache
def networks() -> dict[str, NetworkInfo]:
    """All networks by name, in the order of the file."""
    text = files("kdbench.catalogue").joinpath("networks.yaml").read_text(encoding="utf-8")
    entries = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {name: network_info(name, **entry) for name, entry in entries.items()}


def network(name: str) -> NetworkInfo:
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


def network_info(name: str, **entry: Any) -> NetworkInfo:
    """A network from the values of its entry as YAML or JSON has them."""
    features = tuple((channels, stride) for channels, stride in entry.pop("features"))
    public = _public_weights(**entry.pop("public")) if "public" in entry else None
    aliases, maps = (tuple(entry.pop(key, ())) for key in ("aliases", "maps"))
    return NetworkInfo(name=name, aliases=aliases, features=features, public=public, maps=maps, **entry)


def _public_weights(*, mean: list[float], std: list[float], **rest: Any) -> PublicWeights:
    return PublicWeights(mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]), **rest)
