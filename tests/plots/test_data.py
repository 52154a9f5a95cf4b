"""What is made of results before it is drawn."""

import pandas as pd

from kdbench.plots.comparisons import pareto_front
from kdbench.plots.data import records, tidy, titled
from kdbench.reporting.report import measured_report
from kdbench.store.store import Store


def test_values_of_trials_become_text():
    frame = pd.DataFrame({"method": ["kd"], "mean": [2.0], "values": [{0: 1.5, 2: 2.5}]})
    assert tidy(frame, ["method", "mean", "values"]).to_dict("records") == [
        {"method": "kd", "mean": 2.0, "trials": "0:1.5 2:2.5"}
    ]


def test_each_panel_has_a_front_of_its_own_however_rows_are_ordered():
    rows = [
        ("a", 1.0, 70.0),
        ("b", 1.0, 60.0),
        ("a", 2.0, 69.0),
        ("b", 2.0, 65.0),
        ("a", 2.0, 71.0),
        ("b", 3.0, 65.0),
        ("b", 2.0, 64.0),
    ]
    data = pd.DataFrame(rows, columns=["panel", "cost", "mean"], index=[9, 8, 7, 6, 5, 4, 3])
    assert pareto_front(data).sort_index().to_dict() == {
        9: True,
        8: True,
        7: False,
        6: True,
        5: True,
        4: False,
        3: False,
    }


def test_titles_say_what_tells_panels_apart():
    columns = ["suite", "teacher", "student", "dataset", "scenario", "strategy", "protocol"]
    rows = [
        ("s", "a", "b", "digits", "", "pretrained", "demo"),
        ("s", "a", "b", "digits", "20% of the images", "pretrained", "demo"),
    ]
    found = titled(pd.DataFrame(rows, columns=columns))
    assert found["panel"].tolist() == ["a → b", "a → b, 20% of the images"]
    other = ("s", "a", "b", "stl10", "", "pretrained", "ega")
    found = titled(pd.DataFrame([rows[0], other], columns=columns))
    assert found["panel"].tolist() == ["a → b, digits", "a → b, stl10"]  # each has one protocol
    found = titled(pd.DataFrame([rows[0], other, (*rows[0][:-1], "crd")], columns=columns))
    assert found["panel"].tolist() == ["a → b, digits, demo", "a → b, stl10, ega", "a → b, digits, crd"]


def test_of_several_folders_that_counts_in_which_a_run_is_finished(finished, tmp_path):
    suite, store = finished
    run = suite.runs[0]
    begun = Store(tmp_path / "begun").run(run.id)
    begun.begin(run.spec.canonical())
    begun.write_metrics([{"epoch": 1, "loss": 9.0, "terms": {"ce": 9.0}}])
    stores = [Store(tmp_path / "begun"), store]
    assert records(measured_report([suite], stores))[run.id].folder == store.run(run.id).folder
