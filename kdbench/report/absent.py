"""Why a cell of a paper's table has no run at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from kdbench.report.facts import Fact, run_facts, teacher_facts
from kdbench.report.keys import Key, matched
from kdbench.report.measurements import likeness_facts, measurement_facts
from kdbench.report.rows import collect
from kdbench.suite.suite import Suite


def why_absent(suites: Sequence[Suite], facts: Sequence[Fact]) -> Callable[[Key], str]:
    """For what a cell is about: whether --only left it out, or the suite trains it otherwise than the paper."""

    @cache
    def otherwise() -> dict[Key, str]:
        protocols = {fact.about: fact.protocol for fact in facts}
        return {_anyone(matched(key)): protocol for key, protocol in protocols.items()}

    left_out: set[Key] = set()
    whole = [suite.whole for suite in suites if suite.whole]
    if whole:
        rows = collect(whole, ())
        planned = (*run_facts(rows), *teacher_facts(rows, ()), *likeness_facts(rows), *measurement_facts(whole, ()))
        left_out = {matched(fact.about) for fact in planned if fact.about.paper}

    def reason(key: Key) -> str:
        if key in left_out:
            return "left out by --only"
        if protocol := otherwise().get(_anyone(key)):
            return f"trained otherwise than in the paper (protocol {protocol})"
        return "not part of this suite"

    return reason


def _anyone(key: Key) -> Key:
    """The same under whosever training."""
    return key._replace(paper="")
