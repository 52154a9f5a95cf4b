"""Observations: the tidy values of runs and teachers, and the key by which they are compared."""

import csv
import io
import json

import pandas as pd
import pytest

from kdbench.catalogue.terms import term, term_names
from kdbench.reporting.csv_json import json_text, observations_csv
from kdbench.reporting.keys import KEY, canonical, canonical_setting, grouped, split_method, terms_text, tuples
from kdbench.reporting.observations import collect, comparable, run_observations, teacher_observations
from kdbench.reporting.report import measured_report
from kdbench.store.result import Accuracy, Failure, Result
from kdbench.store.store import Store
from kdbench.suite.specs import WeightedTerm


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("kd", ("kd", "")),
        ("ega-no-edge[node_weight=1.2]", ("ega-no-edge", "node_weight=1.2")),
        ("sskd[topk=50,ss_task=jigsaw]", ("sskd", "topk=50,ss_task=jigsaw")),
        ("[a=1]", ("[a=1]", "")),
        ("kd[mine]", ("kd[mine]", "")),
        ("kd[a=1", ("kd[a=1", "")),
    ],
)
def test_a_name_carries_what_is_varied(name, parts):
    assert split_method(name) == parts


@pytest.mark.parametrize(
    ("setting", "canonical"),
    [
        ("", ""), ("fewshot=1.0", ""), ("noise=0.0", ""), ("noise=0.10", "noise=0.1"), ("node_weight=2.0", "node_weight=2"),
        ("noise=0.1,fewshot=0.25", "fewshot=0.25,noise=0.1"), ("ss_task=jigsaw", "ss_task=jigsaw"), ("odd", "odd="),
    ],
)  # fmt: skip
def test_settings_have_one_spelling(setting, canonical):
    assert canonical_setting(setting) == canonical


def matched_to(*parts):
    (key,) = tuples(canonical(pd.DataFrame([parts], columns=KEY)))
    return key


def test_the_plain_student_has_no_teacher_and_the_teacher_no_student():
    plain = {
        matched_to("p", method, teacher, "s", "d", strategy, "", "top1")
        for method in ("student", "ce", "baseline")
        for teacher, strategy in (("t", "pretrained"), ("", "simultaneous"))
    }
    assert len(plain) == 1
    teachers = {matched_to("p", "teacher", "t", student, "d", "pretrained", "", "top1") for student in ("s", "r", "")}
    assert len(teachers) == 1
    assert matched_to("p", "kd", "t", "s", "d", "", "", "top1") != matched_to("p", "kd", "u", "s", "d", "", "", "top1")


TWO = """
protocol: smoke
dataset: digits
trials: 2
grid: {teacher: resnet8x4, student: resnet8, method: [ce, {name: mine, terms: {ce: 1, kd: {weight: 0.5, temperature: 2}}}]}
"""


def test_a_run_that_several_suites_name_is_one_value_with_all_of_them(load, tmp_path, finish):
    suites = [load(f"name: {name}\n{TWO}") for name in ("first suite", "second")]
    suites.append(load("name: third\n" + TWO.replace("resnet8,", "resnet14,")))
    store = Store(tmp_path / "results")
    for number, run in enumerate(suites[0].runs):
        finish(store.run(run.id), last=50.0 + number)
    report = measured_report(suites, [store])
    lines = [
        line for line in csv.DictReader(io.StringIO(observations_csv(report.observations))) if line["metric"] == "top1"
    ]
    students = [(line["suites"], line["method"], line["student"], line["value"]) for line in lines if line["student"]]
    assert students[:4] == [
        ("first suite; second", "ce", "resnet8", "50.0"), ("first suite; second", "ce", "resnet8", "51.0"),
        ("first suite; second", "mine", "resnet8", "52.0"), ("first suite; second", "mine", "resnet8", "53.0"),
    ]  # fmt: skip
    assert [line[0] for line in students[4:]] == ["third"] * 4
    (teacher,) = [line for line in lines if line["method"] == "teacher"]
    assert (teacher["suites"], teacher["terms"]) == ("first suite; second; third", "")
    terms = {"ce": {"weight": 1.0}, "kd": {"weight": 0.5, "temperature": 2.0}}
    assert json.loads(lines[2]["terms"]) == terms
    content = json.loads(json_text(report, 0.5))
    assert [(run["run_id"], run["suites"]) for run in content["runs"]] == [
        *((run.id, ["first suite", "second"]) for run in suites[0].runs),
        *((run.id, ["third"]) for run in suites[2].runs),
    ]
    assert content["runs"][2]["terms"] == terms == content["facts"][6]["terms"]
    assert content["facts"][0]["suites"] == ["first suite", "second"]


@pytest.mark.parametrize("name", [*term_names(), "kdbench.methods.kd:KD"])
def test_every_term_has_its_hyperparameters_in_csv_and_json(name):
    usual = {key: each.default for key, each in term(name).hyperparameters.items()}
    (found,) = json.loads(terms_text([WeightedTerm(name=name, weight=2.0)])).values()
    assert found == json.loads(json.dumps({"weight": 2.0, **usual}))


TEXT = """
protocol: semckd
dataset: cifar100
trials: 2
grid:
  - teacher: resnet32x4
    student: vgg8
    method: [ce, kd]
    scenario: [{fraction: 1.0}, {fraction: 0.25}, {label_noise: 0.1, noise: all}]
"""


def test_the_values_of_runs(load, tmp_path, finish):
    suite, store = load(TEXT), Store(tmp_path / "results")
    finish(store.run(suite.runs[0].id), versions={"kdbench": "0.1.0"})
    values = run_observations(collect([suite], [store]))
    assert len(values) == 3 * len(suite.runs) == 36
    shown = tuples(values[["metric", "value", "status", "version", "score"]])
    assert shown[:3] == [
        ("top1", 60.0, "done", "0.1.0", "best"),
        ("top1_error", 40.0, "done", "0.1.0", "best"),
        ("top5_error", 9.0, "done", "0.1.0", "best"),
    ]
    assert list(values.loc[3, ["trial", "reason"]]) == [1, "not run"]
    assert values["value"].notna().sum() == 3
    about = tuples(values[["paper", "teacher", "student", "dataset", "strategy"]])
    assert set(about) == {("semckd", "resnet32x4", "vgg8", "cifar100", "pretrained")}
    assert list(values["setting"].unique()) == ["", "fewshot=0.25", "noise=0.1"]


def test_the_teacher_counts_as_it_taught(load, tmp_path, finish):
    suite, store = load(TEXT), Store(tmp_path / "results")
    teacher = next(run.spec.teacher for run in suite.runs if run.spec.teacher)
    runs = collect([suite], [store])

    def state():
        return tuple(teacher_observations(runs, [store]).loc[0, ["status", "reason"]])

    record = store.teacher(teacher.id)
    states = [state()]
    for change in (
        lambda: record.state_file.write_bytes(b""),
        lambda: record.fail(Failure(kind="error", epoch=3, reason="out of\nmemory")),
        lambda: (record.folder / "result.json").write_text("{"),
    ):
        record.write_metrics([{"epoch": 1}])
        change()
        states.append(state())
    assert states == [
        ("missing", "teacher not trained"),
        ("started", "teacher in training, 1 epochs so far"),
        ("failed", "teacher out of memory"),
        ("failed", states[3][1]),
    ]
    assert states[3][1].startswith(f"teacher damaged record: {record.folder / 'result.json'}")
    finish(record, kind="teacher", last=79.0, best=80.0)
    values = teacher_observations(runs, [store])
    shown = tuples(values[["method", "teacher", "student", "metric", "value"]])
    assert shown == [
        ("teacher", "resnet32x4", "", "top1", 79.0),
        ("teacher", "resnet32x4", "", "top1_error", 21.0),
        ("teacher", "resnet32x4", "", "top5_error", 10.0),
    ]
    assert set(values["paper"]) == {"semckd"}


SWEEP = """
protocol: {protocol}
dataset: cifar100
strategy: simultaneous
trials: 1
grid:
  teacher: clip-vit-b32
  student: resnet8x4
  method:
    - {{name: "ega-no-edge[node_weight=1.2]", terms: {terms}}}
"""


@pytest.mark.parametrize(
    ("protocol", "terms", "paper"),
    [
        ("ega", "{ce: 1, ega: {weight: 1.2, edge: 0}}", "ega"),
        ("ega", "{ce: 1, ega: {weight: 1.2, edge: 0}, kd: 1}", ""),
        ("ega", "{ce: 1, nce: 1}", ""),
        ("ega", "{ce: 1, ega: {weight: 0.6, node: 2, edge: 0}}", "ega"),
        ("ega", "{ce: 1, ega: {weight: 1.4, edge: 0}}", ""),  # not the value that its name says
        ("{base: ega, epochs: 20}", "{ce: 1, ega: {weight: 1.2, edge: 0}}", ""),
    ],
)
def test_a_sweep_is_the_papers_but_for_what_it_varies(load, protocol, terms, paper):
    values = run_observations(collect([load(SWEEP.format(protocol=protocol, terms=terms))], []))
    about = tuples(values[["paper", "method", "setting"]])
    assert set(about) == {(paper, "ega-no-edge", "node_weight=1.2")}


def test_an_unknown_method_with_brackets_is_no_papers(load):
    text = SWEEP.replace("ega-no-edge[", "mine[").format(protocol="ega", terms="{ce: 1, ega: {edge: 0}}")
    assert set(run_observations(collect([load(text)], []))["paper"]) == {""}


def test_a_run_that_several_columns_share_counts_once(load):
    suite = load("""
protocol: semckd
dataset: cifar100
trials: 4
grid: {teacher: [resnet32x4, vgg13], student: vgg8, method: ce}
""")
    known = comparable(run_observations(collect([suite], [])))
    (trials,) = [list(values["trial"]) for key, values in grouped(known, KEY).items() if "top1" in key]
    assert trials == [0, 1, 2, 3]
    changed = load("protocol: {base: semckd, epochs: 9}\ndataset: cifar100\ngrid: {student: vgg8, method: ce}")
    assert comparable(run_observations(collect([changed], []))).empty


@pytest.mark.parametrize(
    ("in_the_record", "in_the_run", "noted"),
    [(55.0, None, True), (70.0, None, False), (55.0, 70.2, False), (70.0, 55.0, True)],
)
def test_a_file_that_states_another_accuracy_is_noted(tmp_path, load, in_the_record, in_the_run, noted):
    view = "mean: [0.1, 0.1, 0.1], std: [0.2, 0.2, 0.2]" if in_the_run else "epochs: 2, milestones: []"
    suite = load(f"""
protocol: {{base: smoke, {view}}}
dataset: digits
trials: 1
teachers: {{theirs: {{network: resnet8, weights: 'sha256:{"0" * 64}'}}}}
grid: {{teacher: theirs, student: resnet8, method: kd}}
""")
    (run,), store = suite.runs, Store(tmp_path / "results")
    for record, kind, top1, more in [
        (store.teacher(run.spec.teacher.id), "teacher", in_the_record, {"published_top1": 70.5}),
        (store.run(run.id), "run", 40.0, {"teacher": in_the_run and Accuracy(epoch=0, top1=in_the_run, top5=99.0)}),
    ]:
        accuracy = Accuracy(epoch=0, top1=top1, top5=99.0)
        record.begin((run.spec if kind == "run" else run.spec.teacher).canonical())
        record.finish(Result(id=record.id, kind=kind, last=accuracy, best=accuracy, weights_sha256="", **more), {})
    (table,) = measured_report([suite], [store]).tables()
    text = f"theirs: its file states 70.50 % of its weights, and {in_the_run or in_the_record:.2f} % is measured here"
    assert any(note.startswith(text) for note in table.notes) == noted
