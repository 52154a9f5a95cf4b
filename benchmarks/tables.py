"""The tables of benchmarks/README.md, and kdbench/catalogue/costs.yaml, from what bench.py has measured."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from steps import method_names, terms_of

from kdbench.catalogue.terms import term
from kdbench.suite.methods import auxiliary_method


Document = dict[str, Any]

COLUMNS = {
    "what": ("", ""),
    "method": ("method", ""),
    "stream": ("stream", ""),
    "runs": ("runs", ","),
    "ms": ("ms per step", ",.1f"),
    "floor": ("× floor", ".2f"),
    "alone": ("the same runs one by one", ".2f"),
    "memory_mib": ("memory, MiB", ",.0f"),
    "parameters": ("trains", ","),
    "note": ("", ""),
    "images_per_second": ("images per second", ",.0f"),
    "snapshot_ms": ("snapshot, ms", ",.1f"),
    "checkpoint_ms": ("checkpoint, ms", ",.1f"),
    "checkpoint_mib": ("checkpoint, MiB", ",.1f"),
    "weights_ms": ("weights, ms", ",.1f"),
    "weights_mib": ("weights, MiB", ",.1f"),
    "seconds": ("seconds", ".2f"),
    "peer_ms": ("RepDistiller, ms", ",.1f"),
    "of_peer": ("kdbench : RepDistiller", ".3f"),
}
"""Heading and number format of each column; what is not here is left out."""


FEWER = {"grid": {"steps": 2, "repeats": 2}}
"""Parts whose steps take seconds: with at most so many of them."""


def write_tables(text: str, document: Document) -> str:
    """Replace what stands between ``<!-- PART -->`` and ``<!-- end -->`` for each part that was measured."""
    for part, content in document["parts"].items():
        text = write_part(text, part, conditions(document, part), table(part, content["rows"]))
    return text


def write_part(text: str, part: str, caption: str, rows: str) -> str:
    """Replace what stands between ``<!-- PART -->`` and ``<!-- end -->`` by a caption and a table."""
    begin, end = f"<!-- {part} -->\n", "<!-- end -->"
    if text.count(begin) != 1:
        raise ValueError(f"there must be one line {begin.strip()}")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{caption}\n\n{rows}\n{end}{after}"


def settings_of(part: str, settings: Document) -> Document:
    """The settings with which a part is measured."""
    return settings | {key: min(most, settings[key]) for key, most in FEWER.get(part, {}).items()}


def conditions(document: Document, part: str) -> str:
    """What was measured, on what, and when, in one line."""
    machine, settings = document["machine"], settings_of(part, document["settings"])
    device, versions = machine["device"], machine["versions"]
    name = f"{device['name']}, {device['threads']} threads" if device["kind"] == "cpu" else device["name"]
    cuda = f", CUDA {versions['cuda']}" if "cuda" in versions else ""
    line = (
        f"{name}, torch {versions['torch']}{cuda}; {document['parts'][part]['date']}; medians of {settings['repeats']}"
    )
    if part not in ("startup", "scale"):
        networks = "clip-vit-b32 → resnet8x4" if part == "grid" else f"{settings['teacher']} → {settings['student']}"
        pair = f"{networks}, batch {settings['batch']}, {settings['precision']}"
        line = f"{pair}; {line} passes of {settings['steps']} steps"
    return f"{line}." + (" Tried with `--quick`: the numbers mean nothing." if settings["quick"] else "")


def table(part: str, rows: list[dict[str, Any]]) -> str:
    """A part's rows as a table in Markdown."""
    if part == "methods":
        rows = [row | {"note": note(row)} for row in rows]
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    lines = [[COLUMNS[key][0] for key in keys], ["---"] * len(keys)]
    lines += [[format(row[key], COLUMNS[key][1]) if key in row else "" for key in keys] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def note(row: dict[str, Any]) -> str:
    """What must be known to read a method's cost."""
    terms = terms_of(row["method"])
    known = [term(use.name) for use in terms]
    notes = ["no teacher"] if row["teacher"] == "none" else []
    notes += ["teacher: the auxiliary"] if auxiliary_method(terms) else []
    notes += ["the part on the teacher is not in it"] if any(each.part is not None for each in known) else []
    epochs = sum(each.initial_epochs(use.hyperparameters) for each, use in zip(known, terms, strict=True))
    notes += [f"mean over {epochs} initial epochs and 240 others"] if epochs else []
    notes += ["with the choice of channels, spread over the steps for which it holds"] if row["method"] == "mgd" else []
    return "; ".join(notes)


def costs_yaml(document: Document, *, whole: bool = True) -> str:
    """The content of costs.yaml; "" where ``whole`` and not every method was measured in earnest."""
    rows = {row["method"]: row for row in document["parts"].get("methods", {"rows": []})["rows"]}
    if whole and (document["settings"]["quick"] or set(method_names()) - rows.keys()):
        return ""
    kd, settings, machine = rows["kd"], document["settings"], document["machine"]
    threads = re.sub(r"^1 threads$", "one thread", f"{machine['device']['threads']} threads")
    lines = [
        "# What each method's step costs, as a multiple of kd's. Written by benchmarks/bench.py, which says how.",
        f'machine: "{machine["device"]["name"]}, {threads}, torch {machine["versions"]["torch"]}"',
        f"date: {document['parts']['methods']['date']}",
        f"student: {settings['student']}",
        f"batch: {settings['batch']}",
        f"kd: {{seconds: {kd['ms'] / 1000:.2f}, mebibytes: {kd['memory_mib']:.0f}}}   # of one step",
        "methods:",
    ]
    for name, row in rows.items():
        ratio, peak = row["ms"] / kd["ms"], row["memory_mib"] / kd["memory_mib"]
        facts = f"time: {ratio:.2f}, memory: {peak:.2f}, parameters: {row['parameters']}, teacher: {row['teacher']}"
        lines.append(f"  {name}: {{{facts}}}")
    return "\n".join(lines) + "\n"


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as tables in Markdown, one for each run of rows that have the same keys."""
    tables = []
    for keys, group in groupby(rows, key=tuple):
        lines = [keys, ["---"] * len(keys), *([_cell(value) for value in row.values()] for row in group)]
        tables.append("".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(tables)


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
