"""The bundled suites fill every cell of every printed table, each with exactly the runs that it needs."""

import pytest

from kdbench.catalogue.tables import layouts
from kdbench.report.measurements import likeness_facts, measurement_facts
from kdbench.report.observations import by_key, collect, run_facts, teacher_facts
from kdbench.report.published import printed
from kdbench.suite.load import bundled_suites, load_suites


NO_RUN = {
    ("sskd-2", "SS performance"): "copied from the pretext tasks' own papers: no distillation",
}


@pytest.fixture(scope="module")
def suites():
    return load_suites(list(bundled_suites()))


@pytest.fixture(scope="module")
def filled(suites):
    """The values, by key, that each table gets from the suites that name it; with the trials that are planned."""
    found = {}
    for suite in suites:
        if suite.tables:
            rows = collect([suite], [])
            facts = [*run_facts(rows), *teacher_facts(rows, []), *measurement_facts([suite], []), *likeness_facts(rows)]
            for table in suite.tables:
                found.setdefault(table, []).append((by_key(facts), {r.protocol.trials for r in suite.runs}))
    return found


@pytest.mark.parametrize("table", list(layouts().tables))
def test_every_cell_has_the_runs_of_one_suite(filled, table):
    assert len(filled[table]) == 1, "one suite fills a table"
    ((facts, trials),) = filled[table]
    (count,) = trials
    layout = layouts().tables[table]
    for place in layout.places:
        number = printed(place)
        found = facts.get(number.key, [])
        if (table, place.row_name) in NO_RUN or number.text == layouts().dash:
            assert not found, place.name
        else:
            expected = 1 if number.key.method == "teacher" else count
            assert len(found) == expected, (place.name, number.key)
            assert sorted(fact.trial for fact in found) == list(range(expected))
