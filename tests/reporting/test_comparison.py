"""Two results folders side by side."""

import csv
import io
import json
from dataclasses import replace

import pytest

from kdbench.errors import KdbenchError
from kdbench.reporting.comparison import changed_teachers, compare, conflicts
from kdbench.reporting.csv_json import comparison_csv, comparison_json
from kdbench.reporting.observations import collect
from kdbench.reporting.options import ReportOptions, View
from kdbench.reporting.paired_tests import complete_block
from kdbench.reporting.report import measured_report
from kdbench.reporting.tables import grid_tables
from kdbench.store.result import Result
from kdbench.store.store import Store
from kdbench.suite.load import bundled_suites, load_suite
from kdbench.suite.specs import stage_label


@pytest.fixture
def suite(load):
    return load("""
protocol: smoke
dataset: digits
trials: 2
grid: {teacher: resnet8x4, student: resnet8, method: [ce, kd, at, sp]}
""")


@pytest.fixture
def stores(suite, tmp_path, finish):
    """Both hold ce (one trial of it with the same accuracy), each one more method; sp is in neither."""
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    ce, kd, at = [[run for run in suite.runs if run.method == name] for name in ("ce", "kd", "at")]
    for store, values in ((first, (50.0, 60.0)), (second, (50.0, 62.0))):
        for run, value in zip(ce, values, strict=True):
            finish(store.run(run.id), last=value)
    finish(first.run(kd[0].id), last=70.0)
    finish(second.run(at[0].id), last=80.0)
    return first, second


def tables(suites, stores):
    return [each.table for each in compare(suites, *stores)]


def test_cell_by_cell(suite, stores):
    (table,) = tables([suite], stores)
    lines = [[entry.text for entry in line] for line in table.lines]
    assert lines[0] == ["method, networks", str(stores[0].root), str(stores[1].root), "difference"]
    assert lines[1:] == [
        ["ce, resnet8x4 → resnet8", "55.00 ± 7.07 (2)", "56.00 ± 8.49 (2)", "+1.00 (2)"],
        ["kd, resnet8x4 → resnet8", "70.00 (1 of 2)", "–", "–"],
        ["at, resnet8x4 → resnet8", "–", "80.00 (1 of 2)", "–"],
    ]
    assert table.notes == (
        f"kd on resnet8x4 → resnet8: only in {stores[0].root}",
        f"at on resnet8x4 → resnet8: only in {stores[1].root}",
    )


@pytest.fixture
def uneven(suite, stores, finish):
    """The difference of two cells of which the folders share one trial or none, and a third."""
    first, second = stores
    kd, at, sp = [[run for run in suite.runs if run.method == name] for name in ("kd", "at", "sp")]
    finish(first.run(kd[1].id), last=90.0)
    finish(second.run(kd[0].id), last=70.0)
    finish(first.run(at[1].id), last=81.0)
    for store in stores:
        finish(store.run(sp[0].id), last=60.0)
    return compare([suite], first, second)


def test_differences_are_over_shared_trials(uneven, stores):
    table = uneven[0].table
    assert {line[0].text.partition(",")[0]: line[3].text for line in table.lines[1:]} == {
        "ce": "+1.00 (2)", "kd": "+0.00 (1)", "at": "–", "sp": "+0.00 (1)",
    }  # fmt: skip
    assert table.notes == (
        f"kd on resnet8x4 → resnet8: 1 trial only in {stores[0].root}: left out of the difference",
        "at on resnet8x4 → resnet8: no trial is in both folders, so nothing is compared",
    )
    found = {cell["method"]: cell for cell in uneven[0].records()}
    assert {name: [cell[key] for key in ("difference", "shared", "a_alone", "b_alone")] for name, cell in found.items()} == {
        "ce": [1.0, 2, 0, 0], "kd": [0.0, 1, 1, 0], "at": [None, 0, 1, 1], "sp": [0.0, 1, 0, 0],
    }  # fmt: skip


def test_the_values_of_cells(suite, stores):
    found = compare([suite], *stores)
    ce, kd, _ = csv.DictReader(io.StringIO(comparison_csv(found)))
    assert (ce["suite"], ce["method"], ce["teacher"], ce["student"]) == ("suite", "ce", "resnet8x4", "resnet8")
    assert [ce[key] for key in ("a_mean", "a_n", "a_planned", "b_mean", "difference")] == [
        "55.0",
        "2",
        "2",
        "56.0",
        "1.0",
    ]
    assert [kd[key] for key in ("a_mean", "a_sd", "b_mean", "b_n", "b_note", "difference")] == [
        "70.0", "", "", "0", "not run (2 of 2)", "",
    ]  # fmt: skip
    content = json.loads(comparison_json(found, ["a", "b"]))
    assert (content["a"], content["b"]) == ("a", "b")
    assert [cell["difference"] for cell in content["cells"]] == [1.0, None, None]
    assert content["cells"][0]["b_sd"] == pytest.approx(8.485281)


def test_the_caption_says_how_and_by_which_versions(suite, stores, finish, load):
    for run in suite.runs[:2]:
        finish(stores[0].run(run.id), versions={"kdbench": "0.1.0"})
    (table,) = tables([suite], stores)
    assert table.caption == (
        "Top-1 test accuracy in %, mean ± sd (n); protocol smoke; accuracy after the last epoch; "
        f"{stores[0].root}: 1-2 trials, kdbench 0.1.0; version unknown (1); "
        f"{stores[1].root}: 1-2 trials, version unknown (3); "
        "difference: second minus first, mean over the trials that both have (n)."
    )
    part = load(
        "protocol: smoke\ndataset: {name: digits, val_split: 0.1}\ntrials: 1\ngrid: {student: resnet8, method: ce}\n"
    )
    finish(stores[0].run(part.runs[0].id))
    (table,) = tables([part], stores)
    assert table.caption.startswith("Top-1 validation accuracy")


def test_incompatible_versions_are_refused(suite, stores, finish):
    for store, version in zip(stores, ("0.1.0", "0.2.0"), strict=True):
        finish(store.run(suite.runs[0].id), versions={"kdbench": version})
    with pytest.raises(KdbenchError, match=r"kdbench 0.1.0 \(1\) and 0.2.0 \(1\)"):
        compare([suite], *stores)
    assert compare([suite], *stores, mix_versions=True)


def test_what_suites_share_is_shown_once(suite, stores, tmp_path):
    again = replace(suite, name="again", runs=tuple(replace(run, suite="again") for run in suite.runs))
    assert len(compare([suite, again], *stores)) == 1


def test_nothing_to_compare(suite, tmp_path):
    assert compare([suite], Store(tmp_path / "x"), Store(tmp_path / "y")) == []


def test_conflicts_are_told(suite, stores):
    (message,) = conflicts([suite], stores)
    run = suite.runs[1]
    assert message == (
        f"resnet8 ce #1 ({run.id}): 60.00 in {stores[0].root}, 62.00 in {stores[1].root}; the first is shown"
    )
    assert list(conflicts([suite], stores[:1])) == []
    assert list(conflicts([suite], [stores[0], stores[0]])) == []


def test_teachers_that_differ_are_told_and_part_their_trials(suite, stores, finish):
    first, second = stores
    teacher = next(run.spec.teacher for run in suite.runs if run.spec.teacher)
    for store, last, weights in ((first, 90.0, "a" * 64), (second, 80.0, "b" * 64)):
        finish(store.teacher(teacher.id), last=last, kind="teacher", weights=weights)
        for record in (store.run(run.id) for run in suite.runs if run.spec.teacher):
            if result := record.result():
                record.finish(result.model_copy(update={"parent_sha256": weights}), {})
    text = f"90.00 in {first.root}, 80.00 in {second.root}"
    found = conflicts([suite], stores)
    assert found[0].startswith(f"teacher {stage_label(teacher)} ({teacher.id}): {text}; the first is shown")
    (samples,) = [table.samples for table in grid_tables(collect([suite], stores))]
    pair = samples.pairs[0]
    assert samples.differences("kd", "at", pair) == []  # kd comes from the first folder, at from the second
    assert samples.differences("kd", "ce", pair) == [20.0]  # ce reads no teacher
    assert samples.paired_means(["kd", "at", "ce"], pair) == []  # so ranks and improvements leave them out, too
    assert complete_block(samples) == ([], [])
    (table,) = measured_report([suite], stores).tables(ReportOptions(View.measured))
    assert table.notes[0].startswith(f"Teachers differ between results folders: resnet8x4 ({text}); ")
    assert not any("differ" in note for note in measured_report([suite], stores[:1]).tables()[0].notes)


def test_a_teacher_that_was_made_again_is_told_and_parts_the_trials(suite, tmp_path, finish):
    store = Store(tmp_path / "store")
    teacher = next(run.spec.teacher for run in suite.runs if run.spec.teacher)
    finish(store.teacher(teacher.id), kind="teacher", weights="b" * 64)
    for run in suite.runs:
        taught = {"ce": None, "kd": "a" * 64, "at": "b" * 64, "sp": "b" * 64}[run.method]
        finish(store.run(run.id), parent=taught)
    runs = collect([suite], [store])
    assert changed_teachers(runs) == [
        "2 runs of suite learned from other weights of resnet8x4 than are stored now, which the line (teacher) describes: "
        "kdbench verify names them"
    ]
    (samples,) = [table.samples for table in grid_tables(runs)]
    assert samples.differences("kd", "at", samples.pairs[0]) == []
    assert samples.differences("sp", "at", samples.pairs[0]) == [0.0, 0.0]


def test_equal_teachers_pair_their_trials(suite, stores, finish):
    teacher = next(run.spec.teacher for run in suite.runs if run.spec.teacher)
    for store in stores:
        finish(store.teacher(teacher.id), kind="teacher")
    (samples,) = [table.samples for table in grid_tables(collect([suite], stores))]
    assert samples.differences("kd", "at", samples.pairs[0]) == [-10.0]


def test_measurements_that_differ_are_told(load, tmp_path):
    suite = load("""
protocol: smoke
dataset: digits
trials: 1
grid: {teacher: resnet8x4, student: resnet8, method: kd, measure: {similarity: digits}}
""")
    stores = [Store(tmp_path / name) for name in "ab"]
    spec = suite.measurements[0].spec
    for store, cka in zip(stores, (0.5, 0.75), strict=True):
        result = Result(id=spec.id, kind="measurement", values={"cka": cka}, weights_sha256="")
        store.measurement(spec.id).finish(result, {})
    (message,) = conflicts([suite], stores)
    assert f"cka 0.5000 in {stores[0].root}, cka 0.7500 in {stores[1].root}" in message


def test_many_conflicts_are_counted(load, tmp_path, finish):
    suite = load("protocol: smoke\ndataset: digits\ntrials: 14\ngrid: {student: resnet8, method: ce}\n")
    stores = [Store(tmp_path / name) for name in "ab"]
    for run in suite.runs:
        finish(stores[0].run(run.id), last=50.0)
        finish(stores[1].run(run.id), last=51.0)
    found = conflicts([suite], stores)
    assert len(found) == 11
    assert found[-1] == "and 4 more on which the results folders disagree"


def test_versions_of_teachers_count(suite, stores, finish):
    teacher = next(run.spec.teacher for run in suite.runs if run.spec.teacher)
    finish(stores[0].teacher(teacher.id), kind="teacher", versions={"kdbench": "0.1.0"})
    finish(stores[0].run(suite.runs[0].id), versions={"kdbench": "0.2.0"})
    with pytest.raises(KdbenchError, match=r"0.1.0 \(1\) and 0.2.0 \(1\)"):
        measured_report([suite], stores[:1])


def test_conflicts_of_every_kind_of_run_and_teacher(tmp_path, finish):
    suite = load_suite(bundled_suites()["smoke"])
    stores = [Store(tmp_path / name) for name in "ab"]
    assert conflicts([suite], stores) == []
    part = next(spec.adapters[0] for spec in suite.specs.values() if spec.adapters)
    for store, last in zip(stores, (50.0, 51.0), strict=True):
        finish(store.teacher(part.id), last=last, kind="teacher")
    (message,) = conflicts([suite], stores)
    assert message.startswith(f"teacher {stage_label(part)} ({part.id}): 50.00 in {stores[0].root}, 51.00 in")
