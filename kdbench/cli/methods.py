"""What `kdbench list methods` and `kdbench show METHOD` print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from kdbench.catalogue.terms import TermInfo
    from kdbench.suite.methods import Terms


PAPERS = ("crd", "sskd", "semckd", "ega")
"""The protocols of papers, whose weights are listed."""


def method_lines() -> list[dict[str, Any]]:
    """All that is known of each method, for programs: its measured cost and its part in the papers' protocols."""
    from kdbench.catalogue.costs import costs
    from kdbench.catalogue.terms import term, term_names
    from kdbench.suite.methods import formula

    lines = []
    for name in term_names():
        info, cost, under = term(name), costs().of(name), _methods_with(name)
        chosen = {p: _representative(name, under[p]) for p in PAPERS if under.get(p)}
        weights = {p: next(use.weight for use in terms if use.name == name) for p, (_, terms) in chosen.items()}
        lines.append(
            {
                "method": name,
                "summary": info.summary,
                "paper": info.paper,
                "reads": info.reads,
                "stages": _stages(info),
                "parameters": cost.parameters if cost else None,
                "time": cost.time if cost else None,
                "memory": cost.memory if cost else None,
                "weights": weights,
                "losses": {p: {m: formula(terms) for m, terms in under[p].items()} for p in chosen},
            }
        )
    return lines


def brief(lines: list[dict[str, Any]]) -> tuple[list[dict[str, str]], list[int | None]]:
    """The same for a table on 120 columns, and how wide each column may be (None: as wide as it is).

    "first" is what is trained before the main training, "trains" how many parameters are trained beside the student's.
    """
    rows = []
    for line in lines:
        measured = line["time"] is not None
        rows.append(
            {
                "method": line["method"],
                "paper": short_citation(line["paper"]),
                "reads": line["reads"],
                "first": line["stages"],
                "trains": _count(line["parameters"]) if measured else "",
                "× kd": f"{line['time']:.2f}" if measured else "",
                **{p: f"{line['weights'][p]:g}" if p in line["weights"] else "" for p in PAPERS},
            }
        )
    return rows, [None, 18, 22, 11, None, None, *(None for _ in PAPERS)]


def _count(number: int) -> str:
    """A number of parameters, short."""
    if number < 1000:
        return str(number)
    return f"{number / 1e3:.0f} k" if number < 1e6 else f"{number / 1e6:.1f} M"


def short_citation(paper: str) -> str:
    """First author, venue and year of "A, B. Title. Venue Year"; of two papers the first."""
    authors, _, rest = paper.partition("; ")[0].partition(". ")
    first, *others = authors.split(", ")
    return f"{first}{' et al.' if others else ''}, {rest.rpartition('. ')[2]}" if rest else paper


def method_page(name: str) -> str:
    """A method in full: what its source says, its hyper-parameters, what the protocols make of it, and its cost."""
    from kdbench.catalogue.costs import costs
    from kdbench.catalogue.terms import term
    from kdbench.suite.methods import formula

    info, cost = term(name), costs().of(name)
    options = [f"  {key}: {h.annotation} = {h.default!r}" for key, h in info.hyperparameters.items()]
    under = _methods_with(name)
    chosen = {p: _representative(name, methods) for p, methods in under.items()}
    weights = [f"  {p}: {formula(terms)}" + _called(method, name) for p, (method, terms) in chosen.items()]
    variants = [
        f"  {p}: {method} = {formula(terms)}" + _step(method)
        for p, methods in under.items()
        for method, terms in methods.items()
        if name not in ("ce", "kd") and method != chosen[p][0]
    ]
    lines = [f"method {name}", "", info.description, "", f"Paper: {info.paper}", f"Reads: {info.reads}"]
    lines += [f"Stages before the main training: {_stages(info) or 'none'}"]
    lines += ["", "Hyper-parameters:", *(options or ["  none"]), "", "Under the protocols:", *(weights or ["  none"])]
    lines += ["", "Variants and sums in the protocols:", *variants] if variants else []
    if cost:
        lines += ["", f"Cost of a step: {cost.time:.2f} × the time and {cost.memory:.2f} × the memory of kd's"]
        lines += [f"It trains {cost.parameters:,} parameters beside the student's", f"Measured: {costs().how(cost)}"]
    return "\n".join(lines)


def _methods_with(name: str) -> dict[str, dict[str, Terms]]:
    """The methods of each protocol that contain a term."""
    from kdbench.suite.protocols import bundled_protocol, protocol_names

    every = {p: bundled_protocol(p).methods for p in protocol_names()}
    found = {
        p: {method: terms for method, terms in methods.items() if any(use.name == name for use in terms)}
        for p, methods in every.items()
    }
    return {p: methods for p, methods in found.items() if methods}


def _representative(name: str, methods: dict[str, Terms]) -> tuple[str, Terms]:
    """The method that stands for a term: that of its name, or the first that contains it."""
    from kdbench.catalogue.names import normalise

    return next((each for each in methods.items() if normalise(each[0]) == name), next(iter(methods.items())))


def _stages(info: TermInfo) -> str:
    if info.initial:
        return f"initial, {info.initial_epochs({})} epochs"
    if info.auxiliary:
        return f"auxiliary, by {info.auxiliary}"
    return "part on the teacher" if info.part is not None else ""


def _called(method: str, name: str) -> str:
    from kdbench.catalogue.names import normalise

    return "" if normalise(method) == name else f"   (as the method '{method}')"


def _step(method: str) -> str:
    from kdbench.catalogue.costs import costs

    cost = costs().of(method)
    return f"   (step: {cost.time:.2f} × time, {cost.memory:.2f} × memory)" if cost else ""
