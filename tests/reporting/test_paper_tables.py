"""The papers' tables, filled with measured numbers."""

import pytest

from kdbench.errors import BadSuite, KdbenchError
from kdbench.reporting.captions import empty_cells
from kdbench.reporting.keys import tuples
from kdbench.reporting.options import ReportOptions, View
from kdbench.reporting.rendered import Emphasis
from kdbench.reporting.report import measured_report
from kdbench.store.result import Failure
from kdbench.store.store import Store
from kdbench.suite.selection import select


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def lines(table):
    """The texts of a table's lines below the header, by label."""
    return {
        line[0].text: [entry.text for entry in line[1:]]
        for band in table.sections
        for part in band.parts
        for line in part
    }


FEW = """
protocol: semckd
dataset: cifar100
trials: 2
tables: [semckd-7, semckd-8]
grid:
  - teacher: resnet32x4
    student: vgg8
    method: [ce, kd, at]
    scenario: [{fraction: 1.0}, {fraction: 0.25}, {label_noise: 0.3, noise: all}]
  - {teacher: resnet32x4, student: vgg8, method: [kd], protocol: {base: semckd, epochs: 20}}
"""

SSKD_3 = """
protocol: sskd
dataset: cifar100
tables: sskd-3
trials: {}
grid: {{teacher: vgg13, student: vgg8, method: [{}]}}
"""


@pytest.fixture
def few(load, store, finish):
    """A suite of which KD is done without scenario and with a quarter of the labels."""
    suite = load(FEW)
    for run in suite.runs[:18]:
        if run.method == "kd" and run.spec.scenario.label_noise == 0:
            best = 72.8 if run.spec.scenario.fraction == 1 else 50.0
            finish(store.run(run.id), best=best + run.spec.trial / 10, versions={"kdbench": "0.1.0"})
    return suite


def test_plain_runs_fill_the_columns_without_scenario(few, store):
    shot, noise, _ = measured_report([few], [store]).tables(ReportOptions(View.both))
    assert (shot.id, noise.id) == ("semckd-7", "semckd-8")
    assert lines(shot)["KD"][0] == "50.05 ± 0.07 (2) | 59.23 ± 0.23"
    assert lines(shot)["KD"][3] == "72.85 ± 0.07 (2) | 72.73 ± 0.15"
    assert lines(noise)["KD"][0] == "72.85 ± 0.07 (2) | 72.73 ± 0.15"
    assert lines(noise)["KD"][1] == "– | 71.39 ± 0.33"


def test_every_view(few, store):
    report = measured_report([few], [store])
    shown = {view: lines(report.tables(ReportOptions(view))[0]).get("KD") for view in View}
    assert shown[View.measured] == ["50.05 ± 0.07 (2)", "–", "–", "72.85 ± 0.07 (2)"]
    assert lines(report.tables(ReportOptions(View.published))[0])["KD [9]"][0] == "59.23 ± 0.23"
    assert shown[View.difference] == ["-9.18", "–", "–", "+0.12"]
    assert shown[View.verdict] == ["lower", "–", "–", "agrees"]


def test_what_a_suite_ran_beyond_its_tables_stands_in_generic_ones(few, store):
    *_, generic = measured_report([few], [store]).tables()
    assert generic.id == ""
    assert "epochs 20" in generic.caption
    assert list(lines(generic)) == ["kd"]


def test_a_suite_without_tables_has_generic_ones_only(load, store):
    suite = load(FEW.replace("tables: [semckd-7, semckd-8]\n", ""))
    assert {table.id for table in measured_report([suite], [store]).tables()} == {""}


def test_the_runs_of_one_suite_stay_in_the_generic_table_of_another(few, load, store, tmp_path):
    other = load(FEW.replace("tables: [semckd-7, semckd-8]\n", "name: other\n"))
    titles = [table.title for table in measured_report([few, other], [store]).tables()]
    assert [title for title in titles if title.startswith("other: ")] == [
        "other: cifar100, pretrained teacher",
        "other: cifar100, 25% of the images, pretrained teacher",
        "other: cifar100, 30% label noise (over all classes), pretrained teacher",
        "other: cifar100, pretrained teacher",
    ]


def test_named_tables_come_alone(few, store):
    (table,) = measured_report([few], [store], ["semckd-2"]).tables()
    assert lines(table)["KD"][0] == "72.85 ± 0.07 (2) | 72.73 ± 0.15"


def test_named_tables_come_with_their_runs_alone(few, store):
    report = measured_report([few], [store], ["semckd-2"])
    shown = tuples(report.runs[["method", "setting"]])
    assert set(shown) == {("ce", ""), ("kd", ""), ("at", "")}
    assert set(report.observations["setting"]) == {""}
    assert set(report.observations["metric"]) == {"top1"}
    assert len(report.runs) == 6


def test_empty_cells_say_why(few, store):
    (failed,) = [
        run for run in few.runs[:18] if run.method == "at" and run.spec.scenario.label_noise and not run.spec.trial
    ]
    store.run(failed.id).fail(Failure(kind="diverged", epoch=3, reason="loss is nan"))
    shot, noise, _ = measured_report([few], [store]).tables(ReportOptions(View.measured))
    assert shot.notes == (
        "Student / 25%, Student / 100% and 2 more: not run (2 of 2)",
        "Student / 50%, Student / 75% and 10 more: not part of this suite",
    )
    assert "AT / 30%: loss is nan (1 of 2); not run (1 of 2)" in noise.notes


def test_reasons_of_one_kind_share_a_line(few, store):
    for run in few.runs[:18]:
        if run.method == "ce":
            store.run(run.id).folder.mkdir(parents=True)
            (store.run(run.id).folder / "result.json").write_text("{" if run.spec.trial else "")
        if run.method == "at":
            store.run(run.id).state_file.parent.mkdir(parents=True)
            store.run(run.id).state_file.write_bytes(b"")
            store.run(run.id).write_metrics([{"epoch": 1}] * (1 + round(4 * run.spec.scenario.fraction)))
    shot, *_ = measured_report([few], [store]).tables(ReportOptions(View.measured))
    damaged, absent, training = shot.notes
    assert damaged.startswith("Student / 25%, Student / 100%: damaged record, for example damaged record: ")
    assert training == "AT / 25%, AT / 100%: in training"
    assert "not part" in absent


def test_many_kinds_of_reasons_are_counted():
    found = empty_cells((f"cell {n}", f"failed like {'x' * n}") for n in range(1, 9))
    assert len(found) == 6
    assert found[-1] == "and 3 more reasons"


def test_what_only_leaves_out_and_what_is_trained_otherwise_is_told_apart(load, store):
    suite = load("""
protocol: semckd
dataset: cifar100
trials: 1
tables: [semckd-7]
grid:
  - {teacher: resnet32x4, student: vgg8, method: [ce, kd], scenario: {fraction: 0.25}}
  - {teacher: resnet32x4, student: vgg8, method: [at, sp], scenario: {fraction: 0.25}, protocol: {base: semckd, epochs: 20}}
""")
    shot, *_ = measured_report(select([suite], ["method=kd,at"]), [store]).tables()
    assert "Student / 25%: left out by --only" in shot.notes
    (line,) = [note for note in shot.notes if "trained otherwise" in note]
    assert line.startswith("AT / 25%: trained otherwise than in the paper (protocol semckd")
    (line,) = [note for note in measured_report([suite], [store]).tables()[0].notes if "trained otherwise" in note]
    assert line.startswith("AT / 25%, SP / 25%: ")


def test_the_provenance_line(few, store):
    shot, *_ = measured_report([few], [store]).tables(ReportOptions(View.verdict, 0.7))
    assert shot.caption == (
        "In %, measured against published; protocol semckd; best epoch, chosen by test accuracy; 2 trials; kdbench 0.1.0. "
        "Agrees: within two published standard deviations, or 0.7 points where none is printed. "
        "Fewer than two trials are too few. A teacher is trained once: one is enough."
    )


def test_marks_follow_the_measured_numbers(load, store, finish):
    suite = load(SSKD_3.format(2, "ce, kd, at, sp, vid"))
    values = {"ce": 99.0, "kd": 72.001, "at": 74.0, "sp": 72.004, "vid": 71.0}
    for run in suite.runs:
        finish(store.run(run.id), best=values[run.method])
    (table,) = measured_report([suite], [store]).tables(ReportOptions(View.measured))
    column = [line[5] for part in table.sections[0].parts for line in part]
    assert {entry.text: entry.emphasis for entry in column if entry.text != "–"} == {
        "99.00 ± 0.00 (2)": Emphasis.none,  # the plain student does not compete
        "72.00 ± 0.00 (2)": Emphasis.second,  # equal as they are shown
        "74.00 ± 0.00 (2)": Emphasis.best,
        "71.00 ± 0.00 (2)": Emphasis.none,
    }
    assert [entry.emphasis for entry in column].count(Emphasis.second) == 2


def test_a_single_trial_has_no_mark(load, store, finish):
    suite = load(SSKD_3.format(3, "kd, at, sp"))
    values = {"kd": (70.0, 71.0, 75.0), "at": (71.0, 72.0, None), "sp": (99.0, None, None)}
    for run in suite.runs:
        if (best := values[run.method][run.spec.trial]) is not None:
            finish(store.run(run.id), best=best)
    (table,) = measured_report([suite], [store]).tables(ReportOptions(View.measured))
    column = [line[5] for part in table.sections[0].parts for line in part]
    assert {entry.text: entry.emphasis for entry in column if entry.emphasis or "(" in entry.text} == {
        "72.00 ± 2.65 (3)": Emphasis.second,  # 70.50 over the two trials that AT has, too
        "71.50 ± 0.71 (2 of 3)": Emphasis.best,
        "99.00 (1 of 3)": Emphasis.none,
    }
    assert table.notes[0].startswith("Marks compare means over the trials that all compared cells share")
    (published,) = measured_report([suite], [store]).tables(ReportOptions(View.published))
    assert Emphasis.best in {entry.emphasis for line in published.lines for entry in line}
    assert not any("share" in note for note in published.notes)


def test_a_column_with_one_number_has_no_mark(load, store, finish):
    suite = load(
        "protocol: sskd\ndataset: cifar100\ntables: sskd-3\ntrials: 1\ngrid: {teacher: vgg13, student: vgg8, method: kd}"
    )
    finish(store.run(suite.runs[0].id), best=74.0)
    (table,) = measured_report([suite], [store]).tables(ReportOptions(View.measured))
    assert {entry.emphasis for line in table.lines for entry in line} == {Emphasis.none}


def test_teachers_stand_in_their_row(load, store, finish):
    suite = load(
        "protocol: sskd\ndataset: cifar100\ntables: sskd-3\ntrials: 1\ngrid: {teacher: vgg13, student: vgg8, method: kd}"
    )
    finish(store.teacher(suite.runs[0].spec.teacher.id), kind="teacher", last=74.0, best=75.0)
    (table,) = measured_report([suite], [store]).tables()
    assert lines(table)["Teacher"][4] == "75.00 (1) | 75.38"  # SSKD's students learn from the best epoch's teacher


def test_a_sweep_fills_its_column(load, store, finish):
    suite = load("""
protocol: ega
dataset: cifar100
strategy: simultaneous
tables: ega-B
trials: 1
grid:
  teacher: clip-vit-b32
  student: resnet8x4
  method:
    - {name: "ega-no-edge[node_weight=2]", terms: {ce: 1, ega: {weight: 2.0, edge: 0}}}
    - {name: "ega-no-node[edge_weight=0.2]", terms: {ce: 1, ega: {weight: 0.2, node: 0, edge: 1.0}}}
""")
    for run in suite.runs:
        finish(store.run(run.id), best=74.0)
    (table,) = measured_report([suite], [store]).tables()
    (node,), (edge,) = ([[e.text for e in line[1:]] for part in band.parts for line in part] for band in table.sections)
    assert node[-1] == "74.00 (1) | 74.91"
    assert edge[0] == "74.00 (1) | 74.47"


@pytest.mark.parametrize("generic", [True, False])
def test_incompatible_versions_are_not_mixed(load, store, finish, generic):
    suite = load(FEW.replace("tables: [semckd-7, semckd-8]\n", "") if generic else FEW)
    first, second = [run for run in suite.runs[:18] if run.method == "kd"][:2]
    finish(store.run(first.id), versions={"kdbench": "0.1.0"})
    finish(store.run(second.id), versions={"kdbench": "0.1.9"})
    measured_report([suite], [store])
    finish(store.run(second.id), versions={"kdbench": "0.2.0"})
    with pytest.raises(KdbenchError, match=r"come from kdbench 0\.1\.0 .* and 0\.2\.0 .*--mix-versions"):
        measured_report([suite], [store])
    tables = measured_report([suite], [store], mix_versions=True).tables()
    assert "kdbench 0.1.0, 0.2.0" in tables[0].caption


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("[ega-1, egaa-2]", "tables[1]: unknown table 'egaa-2'. Did you mean 'ega-2'?  (kdbench list tables)"),
        ("5", "tables: must be a name, not 5"),
        ("[]", "tables: is an empty list"),
    ],
)
def test_tables_of_a_suite_are_checked(load, tables, message):
    with pytest.raises(BadSuite) as error:
        load(f"protocol: crd\ndataset: cifar100\ntables: {tables}\ngrid: {{student: vgg8, method: ce}}")
    assert message in str(error.value)


def test_tables_have_one_spelling(load):
    suite = load("protocol: crd\ndataset: cifar100\ntables: [EGA_a, ega-A]\ngrid: {student: vgg8, method: ce}")
    assert suite.tables == ("ega-A",)


def test_a_teacher_goes_by_its_own_rule_and_is_judged_by_its_only_training(load, store, finish):
    suite = load(SSKD_3.format(1, "ce, kd"))
    for run in suite.runs:
        finish(store.run(run.id), best=73.0)
    teacher = next(run.spec.teacher for run in suite.runs if run.spec.teacher)
    finish(store.teacher(teacher.id), last=75.5, best=75.4, kind="teacher")
    (table, *_) = measured_report([suite], [store]).tables(ReportOptions(View.verdict))
    assert "agrees" in lines(table)["Teacher"]
    assert "too few trials" in lines(table)["KD"]
    rule = "best epoch, chosen by test accuracy"
    own = "" if teacher.checkpoint == "best" else "; teachers: accuracy after the last epoch"
    assert f"; {rule}{own}; 1 trial" in table.caption


def test_what_papers_leave_open_stands_beside_their_numbers(few, store):
    report = measured_report([few], [store], ["sskd-5"])
    remark = "Competitors are copied from the CRD paper and trained without KD, but for CRD+KD."
    for view in View:
        (table,) = report.tables(ReportOptions(view))
        assert (remark in table.notes) == (view is not View.measured)


def test_views_that_compare_say_where_nothing_can_be(few, store):
    report = measured_report([few], [store])
    shot, noise, rest = report.tables(ReportOptions(View.difference))
    assert not any("Nothing can be" in note for note in (*shot.notes, *noise.notes))
    assert rest.notes[0].startswith("Nothing can be compared: no cell has both a measured and a published number")
    assert not any(
        "Nothing can be" in note for table in report.tables(ReportOptions(View.both)) for note in table.notes
    )


def test_cells_as_data_frames(few, store):
    frames = measured_report([few], [store]).frames()
    assert list(frames) == ["semckd-7", "semckd-8", "suite: cifar100, pretrained teacher"]
    kd = frames["semckd-7"].set_index("cell").loc["KD / 25%"]
    assert (kd["method"], kd["setting"], kd["n"], kd["planned"]) == ("kd", "fewshot=0.25", 2, 2)
    assert (kd["mean"], kd["published"], kd["verdict"]) == (pytest.approx(50.05), 59.23, "lower")
    assert kd["difference"] == pytest.approx(50.05 - 59.23)
    grid = frames["suite: cifar100, pretrained teacher"]
    assert list(grid["method"] + ": " + grid["note"]) == ["kd: not run (2 of 2)"]
