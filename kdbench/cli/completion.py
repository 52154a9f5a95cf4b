"""The values that a shell completes. Each function imports what it looks up: most commands complete nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from glob import escape, glob

from kdbench.catalogue.datasets import datasets
from kdbench.catalogue.networks import networks
from kdbench.suite.selection import VALUES


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def complete_suites(incomplete: str) -> list[str]:
    """Bundled suites, and YAML files."""
    from kdbench.suite.load import bundled_suites

    return _starting(incomplete, bundled_suites()) + sorted(glob(f"{escape(incomplete)}*.yaml"))


def complete_methods(incomplete: str) -> list[str]:
    """The methods of the bundled protocols."""
    from kdbench.suite.protocol import bundled_protocol, protocol_names

    return _starting(incomplete, (method for name in protocol_names() for method in bundled_protocol(name).terms))


def complete_networks(incomplete: str) -> list[str]:
    """The networks."""
    return _starting(incomplete, networks())


def complete_datasets(incomplete: str) -> list[str]:
    """The data sets."""
    return _starting(incomplete, datasets())


def complete_tables(incomplete: str) -> list[str]:
    """The papers' tables."""
    from kdbench.catalogue.tables import TABLES

    return _starting(incomplete, TABLES)


def complete_pictures(incomplete: str) -> list[str]:
    """The kinds of pictures, and suites."""
    from kdbench.catalogue.pictures import KINDS

    return _starting(incomplete, KINDS) + complete_suites(incomplete)


def complete_figures(incomplete: str) -> list[str]:
    """The papers' figures."""
    from kdbench.catalogue.pictures import paper_figures

    return _starting(incomplete, paper_figures())


def complete_names(incomplete: str) -> list[str]:
    """All that `kdbench show` knows by name."""
    from kdbench.catalogue.terms import term_names
    from kdbench.suite.load import bundled_suites
    from kdbench.suite.protocol import protocol_names

    others = [*complete_networks(incomplete), *complete_datasets(incomplete), *complete_tables(incomplete)]
    return _starting(incomplete, [*term_names(), *others, *protocol_names(), *bundled_suites()])


def complete_only(incomplete: str) -> list[str]:
    """The keys of --only, and after the equals sign their values."""
    values: dict[str, Callable[[str], list[str]]] = {
        "method": complete_methods,
        "student": complete_networks,
        "teacher": complete_networks,
        "dataset": complete_datasets,
        "strategy": lambda text: _starting(text, ("pretrained", "sequential", "simultaneous")),
    }
    key, equals, value = incomplete.partition("=")
    if not equals:
        return _starting(key, (f"{each}=" for each in VALUES))
    complete = values.get(key)
    return [f"{key}={each}" for each in complete(value)] if complete else []
