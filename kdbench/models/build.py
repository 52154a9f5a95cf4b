"""Builds any network, and measures those that do not come with kdbench."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kdbench.catalogue.networks import network as catalogue_network
from kdbench.catalogue.plugins import locating_modules
from kdbench.errors import BadInput, reason_of
from kdbench.models.backbone import Backbone
from kdbench.models.external import SIDES, ExternalNetwork, build_external
from kdbench.models.outputs import Outputs, Shapes, count_operations, count_parameters, probe
from kdbench.suite.components import Network, NetworkSpec
from kdbench.suite.networks import network_named


CLASSES = 100
"""The classes with which a network is measured, unless it has another number that cannot be changed."""


def build(network: Network, classes: int = 100) -> Backbone:
    """Build a network with fresh weights: one of kdbench's by name or alias, or another by its builder or its spec.

    Images [B, 3, H, W] of any size give Outputs with logits [B, classes]. An encoder has no use for ``classes`` and takes
    images of its own size alone. Raises BadInput for an unknown name, and for code that makes no such network.
    """
    if isinstance(network, NetworkSpec):
        return build_external(network, classes)
    try:
        known = catalogue_network(network)
    except BadInput:
        external = network_named(network)
        if external is None:
            raise
        return build_external(external, classes)
    builder = import_module(f"kdbench.models.{known.builder}")
    return cast(Backbone, builder.build(classes=classes, **known.arguments))


def report_networks() -> None:
    """Read networks' specs and where their modules are; write a list of what was measured, or of {error: message}."""
    request = json.load(sys.stdin)
    with locating_modules({top: Path(folder) for top, folder in request["beside"].items()}.get):
        facts = [_facts_or_error(NetworkSpec(**each)) for each in request["networks"]]
    print(json.dumps(facts))


def _facts_or_error(spec: NetworkSpec) -> dict[str, Any]:
    try:
        return measured(spec)
    except BadInput as error:
        return {"error": str(error)}
    except Exception as error:  # a network's own code may raise anything
        return {"error": f"{spec} cannot be used: {reason_of(error)}"}


def measured(spec: NetworkSpec) -> dict[str, Any]:
    """The fields of a network's NetworkInfo. Raises BadInput for one that cannot be trained."""
    network, classes = _first_build(spec)
    size = network.size if isinstance(network, ExternalNetwork) else None
    side = size or SIDES[0]
    smallest = next((small for small in range(8, side, 4) if _takes(network, small)), side) if size is None else side
    if size is None and smallest == side and not _takes(network, 2 * side):
        size = side
    outputs = probe(network, side)
    shapes = Shapes.of(outputs)
    _check_outputs(spec, network, outputs, side)
    again = _first_build(spec)[0].state_dict()
    if any(not torch.equal(tensor, again[name]) for name, tensor in network.state_dict().items()):
        raise BadInput(f"{spec} has other weights after each build: draw them from torch's random numbers alone")
    operations = count_operations(network, side)
    per_image = 1.0 if size else (32 / side) ** 2
    return {
        "embedding": shapes.embedding,
        "features": [[channels, round(side / width)] for channels, _, width in shapes.features],
        "parameters": count_parameters(network),
        "macs": round(operations.macs * per_image),
        "activations": round(operations.activations * per_image),
        "layers": operations.layers,
        "size": size,
        "smallest": smallest,
        "classes": None if classes == CLASSES else classes,
        "maps": network.maps if isinstance(network, ExternalNetwork) else (),
        "preactivations": len(outputs.preactivations) == len(outputs.features) - 1 > 0,
    }


def _takes(network: Backbone, side: int) -> bool:
    """Whether a network gives outputs for images of so many pixels a side."""
    try:
        probe(network, side)
    except Exception:  # its own code may raise anything
        return False
    return True


def _first_build(spec: NetworkSpec) -> tuple[Backbone, int]:
    """A network and its number of classes: CLASSES, or the one that its builder insists on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_external(spec, None)
    return network, network.classes if isinstance(network, ExternalNetwork) else CLASSES


def _check_outputs(spec: NetworkSpec, network: Backbone, outputs: Outputs, side: int) -> None:
    """Raise BadInput for outputs of a wrong shape, that are no numbers, or that are others in training."""
    batch = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        trained: Outputs = deepcopy(network).train()(batch)
    except Exception as error:
        raise BadInput(f"{spec} cannot be trained on two images: {reason_of(error)}") from None
    if not isinstance(trained.logits, Tensor) or trained.logits.shape != (2, outputs.logits.shape[1]):
        kind = type(trained.logits).__name__
        raise BadInput(
            f"{spec} gives a {kind} in training where it gives logits in a test: switch that off in 'arguments'"
        )
    for tensor in (trained.logits, trained.embedding, *trained.features):
        if not tensor.isfinite().all():
            raise BadInput(f"{spec} gives values that are no numbers with its first weights")
