"""The bundled suites fill every cell of every printed table, each with exactly the runs that it needs."""

import pytest

from kdbench.catalogue.tables import layouts
from kdbench.reporting.keys import KEY, grouped, printed, tuples
from kdbench.reporting.observations import comparable, observations
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
            values = grouped(comparable(observations([suite], [])), KEY)
            for table in suite.tables:
                found.setdefault(table, []).append((values, {r.protocol.trials for r in suite.runs}))
    return found


@pytest.mark.parametrize("table", list(layouts().tables))
def test_every_cell_has_the_runs_of_one_suite(filled, table):
    assert len(filled[table]) == 1, "one suite fills a table"
    ((values, trials),) = filled[table]
    (count,) = trials
    layout = layouts().tables[table]
    numbers = printed(table)
    keys = tuples(numbers[KEY])
    for place, key, text in zip(layout.places, keys, numbers["printed"], strict=True):
        trials = sorted(values[key]["trial"]) if key in values else []
        if (table, place.row_name) in NO_RUN or text == layouts().dash:
            assert not trials, place.name
        else:
            expected = 1 if "teacher" in key else count
            assert trials == list(range(expected)), (place.name, key)
