"""Networks that do not come with kdbench: what a suite says of them, and what a process with torch measures on them."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from kdbench import __version__
from kdbench.catalogue.networks import NetworkInfo, network_info
from kdbench.catalogue.networks import network as catalogue_network
from kdbench.catalogue.networks import networks as catalogue_networks
from kdbench.catalogue.plugins import MODULE_LOCATOR, SOURCES, read_source, source_file
from kdbench.catalogue.text import normalise, unknown
from kdbench.child import ask, exit_reason
from kdbench.errors import BadInput
from kdbench.files import remember, remembered
from kdbench.suite.components import LIBRARIES, Network, NetworkSpec


PLUGINS = "kdbench.networks"
"""The group of entry points with which another package gives its networks short names."""

MOST_SECONDS = 300.0
"""So long may the building and measuring of networks take."""

_MEASURED: dict[str, NetworkInfo] = {}
"""What is known of networks that do not come with kdbench, by the id of their spec."""


def network_spec(name: str, build: str, **fields: Any) -> NetworkSpec:
    """A network from elsewhere under the name that a suite gives it. Raises BadInput where its code cannot be read."""
    module, _, attribute = build.partition(":")
    if not module or not attribute:
        raise BadInput(f"'{build}' names no builder: write package.module:name, timm:NAME or torchvision:NAME")
    if module not in LIBRARIES:
        source_file(module)
        fields["source_sha256"] = read_source(module, [module]).sha256
    return NetworkSpec(name=name, build=build, **fields)


@cache
def short_names() -> dict[str, dict[str, Any]]:
    """The networks from elsewhere that have short names: some of timm's, and those that installed packages announce.

    Each has a ``build``, perhaps ``arguments``, and a ``summary``; those of timm also what is measured on them.
    """
    text = files("kdbench.catalogue").joinpath("external.yaml").read_text(encoding="utf-8")
    announced = {
        normalise(each.name): {"build": each.value, "summary": f"of the package {each.dist.name if each.dist else '?'}"}
        for each in importlib.metadata.entry_points(group=PLUGINS)
    }
    return {**announced, **yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))}


def network_named(name: str) -> NetworkSpec | None:
    """The network from elsewhere that a name stands for by itself: a short name, or a builder. None if it is neither.

    Raises BadInput where its code cannot be read.
    """
    if ":" in name:
        return network_spec(name, name)
    entry = short_names().get(normalise(name))
    return network_spec(name, entry["build"], arguments=entry.get("arguments", {})) if entry else None


def find_network(name: str) -> Network:
    """The network that a name stands for outside a suite: the catalogue's, a short name, or a builder.

    Raises BadInput where there is none, or where it cannot be used.
    """
    try:
        return catalogue_network(name).name
    except BadInput:
        if (spec := network_named(name)) is None:
            raise
    info(spec)
    return spec


def info(network: Network) -> NetworkInfo:
    """What is known of a network. Raises BadInput for a name that does not exist, or what cannot be built or measured."""
    if isinstance(network, str):
        return catalogue_network(network)
    if network.id not in _MEASURED and (message := measure([network]).get(network.id)):
        raise BadInput(message)
    return _MEASURED[network.id]


def measure(networks: Iterable[NetworkSpec]) -> dict[str, str]:
    """Build networks in a process of their own and measure them. Returns what is wrong with some, by id."""
    unknown = []
    for network in networks:
        if network.id in _MEASURED:
            continue
        if facts := _shipped().get(network.id) or remembered("networks", _key(network)):
            learn(network, facts)
        else:
            unknown.append(network)
    wrong = {}
    for network, facts in zip(unknown, _ask(unknown) if unknown else (), strict=True):
        if "error" in facts:
            wrong[network.id] = str(facts["error"])
        else:
            remember("networks", _key(network), facts)
            learn(network, facts)
    return wrong


def learn(network: NetworkSpec, facts: dict[str, Any]) -> None:
    """Take note of what was measured on a network: the fields of its NetworkInfo."""
    own = {"name": str(network), "summary": f"built by {network.build}", "builder": network.build}
    entry = {"preactivations": False, **own, **facts, "arguments": network.arguments, "bundled": False}
    _MEASURED[network.id] = network_info(**entry)


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    """What is known of the networks with short names without building them, by the id of their spec."""
    kept: dict[str, dict[str, Any]] = {}
    for entry in short_names().values():
        facts = (
            {key: value for key, value in entry.items() if key not in ("build", "arguments")} if "macs" in entry else {}
        )
        spec = NetworkSpec(build=entry["build"], arguments=entry.get("arguments", {}))
        kept |= {spec.id: facts} if facts else {}
    return kept


def _ask(networks: list[NetworkSpec]) -> list[dict[str, Any]]:
    locate = MODULE_LOCATOR.get()
    tops = {network.build.partition(":")[0].partition(".")[0] for network in networks if network.source_sha256}
    tops |= {top for network in networks if (code := SOURCES.get(network.source_sha256 or "")) for top in code.beside}
    request = {
        "networks": [{**network.canonical(), "name": network.name} for network in networks],
        "beside": {top: str(folder) for top in tops if (folder := locate(top))},
    }
    try:
        done = ask("from kdbench.models.build import report_networks\nreport_networks()", request, MOST_SECONDS)
    except TimeoutError:
        reason = f"its code does not end within {MOST_SECONDS:.0f} s"
    else:
        if not done.returncode:
            answer: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
            return answer
        reason = (done.stderr.strip().splitlines() or [f"its code ends the process ({exit_reason(done.returncode)})"])[
            -1
        ]
    if len(networks) > 1:  # one of them did it
        return [facts for network in networks for facts in _ask([network])]
    return [{"error": f"{networks[0]} cannot be built: {reason}"}]


class SuiteNetworks:
    """The networks that a suite may name: those of its key ``networks``, the catalogue's, and builders written in place."""

    def __init__(self) -> None:
        self.own: dict[str, Network] = {}
        self._wrong: dict[str, str] = {}

    def name(self, given: str) -> str:
        """The one spelling of a name. Raises BadInput for one that stands for no network, or for one that cannot be used."""
        if given in self.own:
            return given
        try:
            return catalogue_network(given).name
        except BadInput:
            self.prepare([given])
        if given in self._wrong:
            raise BadInput(self._wrong[given])
        if given not in self.own:
            known = [*self.own, *catalogue_networks(), *short_names()]
            raise BadInput(unknown("model", given, known, "models"))
        return given

    def prepare(self, names: Iterable[str]) -> None:
        """Build and measure those networks that the names stand for by themselves, all in one process."""
        specs: dict[str, NetworkSpec] = {}
        for name in names:
            try:
                spec = None if name in self._wrong else network_named(name)
            except BadInput as error:
                self._wrong[name] = str(error)
                continue
            specs |= {name: spec} if spec else {}
        self.take(specs)

    def take(self, specs: Mapping[str, NetworkSpec]) -> dict[str, str]:
        """Measure networks and know them by their names. Returns what is wrong with some."""
        wrong = measure(specs.values())
        self._wrong |= {name: wrong[spec.id] for name, spec in specs.items() if spec.id in wrong}
        self.own |= {name: spec for name, spec in specs.items() if spec.id not in wrong}
        return {name: wrong[spec.id] for name, spec in specs.items() if spec.id in wrong}

    def network(self, name: str) -> Network:
        """The network of a name in its one spelling."""
        return self.own.get(name, name)


def _key(network: NetworkSpec) -> str:
    """All that a measurement depends on."""
    packages = ["torch", *([network.library] if network.library else [])]
    return " ".join([network.id, __version__, *map(_version, packages)])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise BadInput(f"{package} is not installed: pip install {package}") from None
