"""What plug-ins have changed since runs were finished with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from kdbench.store.store import Store
from kdbench.suite.specs import RunSpec, digest


def changed_plugins(specs: Iterable[RunSpec], store: Store) -> list[str]:
    """One line for each plug-in with other code of which runs are finished. Only where some are to do are records read."""
    planned = {
        digest(_bare(spec.canonical())): spec for spec in specs if spec.plugins and not store.run(spec.id).done()
    }
    changed: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for record in store.records("runs") if planned else ():
        stored = record.spec()
        spec = planned.get(digest(_bare(stored)))
        if spec is None or not record.done():
            continue
        before = hashes_of_plugins(stored)
        for name, sha256 in spec.plugins.items():
            if name not in before:
                unknown[name] += 1
            elif before[name] != sha256:
                changed[name] += 1
    lines = [f"{name} has changed since {_runs(n)}: not reused." for name, n in changed.items()]
    return lines + [
        f"{name} may have changed since {_runs(n)}, for which its code was not recorded: not reused."
        for name, n in unknown.items()
    ]


def _runs(count: int) -> str:
    return f"{count} finished run{'s' if count > 1 else ''}"


def _bare(value: Any) -> Any:
    """A spec without the hashes of plug-ins' code."""
    if isinstance(value, dict):
        return {key: _bare(each) for key, each in value.items() if key != "source_sha256"}
    return [_bare(each) for each in value] if isinstance(value, list) else value


def hashes_of_plugins(value: Any) -> dict[str, str]:
    """The hashes of plug-ins' code in a stored spec, by the names of the terms."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {}
    own = {str(value.get("name", value.get("term"))): str(value["source_sha256"])} if "source_sha256" in value else {}
    return {**own, **{name: each for inner in value.values() for name, each in hashes_of_plugins(inner).items()}}
