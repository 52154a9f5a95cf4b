"""kdbench show: one thing in full."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from tabulate import tabulate

from kdbench.catalogue.datasets import dataset, datasets
from kdbench.catalogue.networks import network, networks
from kdbench.catalogue.tables import TABLES, layouts
from kdbench.catalogue.terms import costs, term, term_names
from kdbench.catalogue.text import nearest, normalise, one_line, printable
from kdbench.cli.completion import complete_names
from kdbench.cli.listing import methods_with, representative, stages
from kdbench.cli.options import Results
from kdbench.errors import BadInput, BadRecord
from kdbench.planning.plan import hashes_of_plugins
from kdbench.store.store import Store
from kdbench.suite.components import NetworkSpec
from kdbench.suite.load import bundled_suites
from kdbench.suite.methods import formula
from kdbench.suite.networks import info, network_named
from kdbench.suite.protocol import protocol_names


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|ID",
            autocompletion=complete_names,
            help="A method, model, data set, protocol, suite, printed table, or run id.",
        ),
    ],
    results: Results = Path("results"),
) -> None:
    """Show one thing in full: a method, a network, a suite, a run and its curve."""
    spellings = {normalise(s): normalise(n.name) for n in networks().values() for s in (n.name, *n.aliases)}
    kinds: list[tuple[list[str], Callable[[str], str]]] = [
        (term_names(), _method),
        (list(networks()), _model),
        (list(datasets()), _dataset),
        (protocol_names(), _protocol),
        (list(bundled_suites()), _suite),
        (list(TABLES), _table),
    ]
    wanted = spellings.get(normalise(name), normalise(name))
    pages = [describe(known) for names, describe in kinds for known in names if normalise(known) == wanted]
    pages += [_external(other)] if not pages and (other := network_named(name)) else []
    pages += [page for kind in ("runs", "teachers", "measurements") if (page := _record(Store(results), kind, name))]
    if not pages:
        near = nearest(name, [n for names, _ in kinds for n in names])
        hint = f" Did you mean '{near}'?" if near else ""
        raise BadInput(
            f"nothing is called '{name}', and no run, teacher or measurement in {results} has this id.{hint}"
        )
    typer.echo("\n\n".join(pages))


def _method(name: str) -> str:
    """What the source says, the hyper-parameters, what the protocols make of the method, and its cost."""
    info, cost = term(name), costs().of(name)
    options = [f"  {key}: {h.annotation} = {h.default!r}" for key, h in info.hyperparameters.items()]
    uses, variants = [], []
    for protocol, methods in methods_with(name).items():
        main, _ = representative(name, methods)
        called = "" if normalise(main) == name else f"   (as the method '{main}')"
        uses.append(f"  {protocol}: {formula(methods.pop(main))}{called}")
        for method, terms in methods.items():
            step = costs().of(method)
            price = f"   (step: {step.time:.2f} × time, {step.memory:.2f} × memory)" if step else ""
            variants.append(f"  {protocol}: {method} = {formula(terms)}{price}")
    lines = [f"method {name}", "", info.description, "", f"Paper: {info.paper}", f"Reads: {info.reads}"]
    lines += [f"Stages before the main training: {stages(info) or 'none'}"]
    lines += ["", "Hyper-parameters:", *(options or ["  none"]), "", "Under the protocols:", *(uses or ["  none"])]
    if variants and name not in ("ce", "kd"):  # which are in nearly all of them
        lines += ["", "Variants and sums in the protocols:", *variants]
    if cost:
        lines += ["", f"Cost of a step: {cost.time:.2f} × the time and {cost.memory:.2f} × the memory of kd's"]
        lines += [f"It trains {cost.parameters:,} parameters beside the student's", f"Measured: {costs().how(cost)}"]
    return "\n".join(lines)


def _model(name: str) -> str:
    net = network(name)
    side = net.size or 32
    maps = "  ".join(f"f{i}: {channels} × {-(-side // stride)}²" for i, (channels, stride) in enumerate(net.features))
    lines = [
        f"model {name}",
        net.summary,
        f"Parameters{' (100 classes)' if net.classifier else ''}: {net.parameters:,}",
        f"Multiply-accumulates ({side} × {side}): {net.macs:,}",
        f"Feature maps ({side} × {side}): {maps or 'none'}",
        f"Embedding: {net.embedding}" + ("" if net.classifier else "; an encoder, without classes of its own"),
        f"Takes images of {f'{side} × {side} pixels only' if net.size else 'any size'}",
    ]
    if net.public:
        lines.append(f"As a teacher it starts from {net.public.source}'s weights: {net.public.file}, {net.public.url}")
    return "\n".join([*lines, f"Also known as: {', '.join(net.aliases) or '–'}"])


def _external(network: NetworkSpec) -> str:
    """What is measured on a network that does not come with kdbench, and how a suite would set it up."""
    net = info(network)
    stages = zip(net.maps or net.features, net.features, strict=True)
    maps = [f"  f{i}: {channels} channels at 1/{stride}, {name}" for i, (name, (channels, stride)) in enumerate(stages)]
    takes = f"{net.size} × {net.size} pixels only" if net.size else f"{net.smallest} × {net.smallest} pixels or more"
    return "\n".join(
        [
            f"model {network}",
            net.summary + "".join(f", {key}: {value}" for key, value in network.arguments.items()),
            f"Parameters (100 classes): {net.parameters:,}",
            f"Multiply-accumulates ({net.size or 32} × {net.size or 32}): {net.macs:,}",
            "Feature maps, and the modules that give them:",
            *maps,
            f"Embedding: {net.embedding}",
            f"Takes images of {takes}",
            "Pre-activations: " + ("yes" if net.preactivations else "none: ab and mgd need them"),
        ]
    )


def _dataset(name: str) -> str:
    d = dataset(name)
    lines = [f"dataset {name}", d.summary, f"{d.classes} classes, {d.train:,} training and {d.test:,} test images"]
    lines.append(f"{d.size} × {d.size} pixels, mean {list(d.mean)}, std {list(d.std)}")
    return "\n".join(lines + ([f"Files: {d.folder}/ with {', '.join(d.files)}"] if d.files else []))


def _protocol(name: str) -> str:
    return files("kdbench.suite").joinpath(f"protocols/{name}.yaml").read_text(encoding="utf-8").rstrip()


def _suite(name: str) -> str:
    path = bundled_suites()[name]
    return f"# {path}\n{path.read_text(encoding='utf-8').rstrip()}"


def _table(name: str) -> str:
    from kdbench.reporting.options import Format, ReportOptions, View
    from kdbench.reporting.report import published_report
    from kdbench.reporting.writers import write_report

    layout = layouts().tables[name]
    rules = {"best": layout.highlight.best, "second best": layout.highlight.second}
    marked = [
        f"The {rank} of each {rule.axis}: {rule.style} (evidence: {rule.evidence})"
        for rank, rule in rules.items()
        if rule
    ]
    text = write_report(published_report([name]), Format.terminal, ReportOptions(View.published)).rstrip()
    return "\n".join([f"table {name}", "", text, "", *(marked or ["No number is marked"])])


def _record(store: Store, kind: str, id: str) -> str | None:
    record = store.find(kind, id)
    if record is None:
        return None
    parts: dict[str, Any] = {"spec": record.spec(), "about": record.metadata()}
    if plugins := hashes_of_plugins(parts["spec"]):
        parts["code"] = {name: str(store.source_folder(sha256)) for name, sha256 in plugins.items()}
    try:
        result, failure = record.result(), record.failure()
        parts |= {"result": result.model_dump()} if result else {}
        parts |= {"failure": failure.model_dump()} if failure else {}
    except BadRecord as error:
        parts["damaged"] = str(error)
    epochs = record.metrics()
    rows = [_flat(row) for row in epochs[-_EPOCHS:]]
    columns = list(dict.fromkeys(key for row in rows for key in row))[:_COLUMNS]
    lines = [[_number(row.get(column, "")) for column in columns] for row in rows]
    header = [one_line(column, 40) for column in columns]
    table = tabulate(lines, header, tablefmt="simple", disable_numparse=True, stralign="right")
    cut = f"the last {_EPOCHS:,} of {len(epochs):,} epochs\n" if len(epochs) > _EPOCHS else ""
    text = f"{kind[:-1]} {record.id}\n{json.dumps(parts, indent=1, ensure_ascii=False)}\n\n{cut}{table}"
    return printable(text)


_EPOCHS, _COLUMNS = 10_000, 50
"""Limits of the curve that is shown, against files that hold far more."""


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One epoch's values side by side, those of the terms among them."""
    values, terms = {key: value for key, value in row.items() if key != "terms"}, row.get("terms")
    return values | terms if isinstance(terms, dict) else values


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value), 40)
