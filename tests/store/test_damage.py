"""What is not what was stored: noticed, told, quarantined; and what killed processes leave is removed."""

import errno
import os
import subprocess

import pytest
from typer.testing import CliRunner

from kdbench.cli.app import app
from kdbench.errors import BadInput, BadRecord, KdbenchError, UnreadableRecord
from kdbench.files import file_hash
from kdbench.store import reading
from kdbench.store.liveness import Process
from kdbench.store.reading import check_size
from kdbench.store.record import NO_WEIGHTS
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store, log_name
from kdbench.store.verify import label_of, verify
from kdbench.suite.load import load_suite
from kdbench.suite.specs import WeightedTerm, digest


HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + b"\0" * 4
SUITE = """\
protocol: smoke
dataset: digits
trials: 1
grid: [{teacher: resnet8, student: resnet8, method: [kd, ft], measure: {similarity: digits}}]
"""


@pytest.fixture
def suite(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(SUITE)
    return load_suite(file)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture
def finish(store):
    """Store a finished record of a spec."""

    def act(spec, kind, about=None, **facts):
        record = {"run": store.run, "teacher": store.teacher, "measurement": store.measurement}[kind](spec.id)
        record.begin(spec.canonical())
        record.weights_file.write_bytes(WEIGHTS)
        accuracy = Accuracy(epoch=2, top1=50.0, top5=90.0)
        facts = {"metrics_sha256": record.write_metrics([{"epoch": 1}, {"epoch": 2}]), **facts}
        facts["weights_sha256"] = file_hash(record.weights_file)
        (record.folder / "result.json").unlink(missing_ok=True)
        record.finish(Result(id=record.id, kind=kind, last=accuracy, best=accuracy, **facts), about or {})
        return record

    return act


@pytest.fixture
def records(suite, finish):
    """All that the suite needs, finished, by kind: its runs; teacher and part; measurements."""
    (teacher, part) = {stage.id: stage for run in suite.runs for stage in run.spec.stages}.values()
    below = finish(teacher, "teacher")
    sha256 = file_hash(below.weights_file)
    return {
        "run": [
            finish(run.spec, "run", parent_sha256="+".join([sha256] * len(run.spec.dependencies))) for run in suite.runs
        ],
        "teacher": [below, finish(part, "teacher", parent_sha256=sha256)],
        "measurement": [
            finish(each.spec, "measurement", parent_sha256=f"{sha256}+{sha256}") for each in suite.measurements
        ],
    }


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def overwrite(path):
    path.write_bytes(b"{")


def folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = [flip, os.unlink, pipe, folder, lambda path: path.write_bytes(b""), lambda path: os.truncate(path, 10 * 2**30)]


FILES = ["spec.json", "metrics.jsonl", "weights.safetensors", "result.json"]


@pytest.mark.parametrize("kind", ["run", "teacher", "measurement"])
@pytest.mark.parametrize("name", FILES)
def test_every_file_of_every_record_is_verified(store, records, kind, name):
    whole = verify(store)
    assert (whole.checked, whole.damaged, whole.notes) == (6, [], [])
    path = records[kind][0].folder / name
    content = path.read_bytes()
    for damage in DAMAGE if name != "result.json" else [flip, pipe, folder]:
        damage(path)
        found = verify(store).damaged
        assert [(each.kind, each.id) for each in found if str(path) in each.problem] == [(kind, records[kind][0].id)]
        assert all(each.next_step for each in found)
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(content)


def test_weights_that_were_not_kept_are_no_damage(store, suite, finish):
    finish(suite.runs[0].spec, "run", about=NO_WEIGHTS).weights_file.unlink()
    assert not verify(store).damaged


def test_what_was_made_on_other_weights_is_told(store, suite, records, finish):
    finish(suite.measurements[0].spec, "measurement", parent_sha256="0")
    part = next(stage for run in suite.runs for stage in run.spec.stages if stage.kind == "adapter")
    finish(part, "teacher", parent_sha256="0")
    finish(suite.runs[0].spec, "run", parent_sha256="0")
    assert sorted(each.problem.partition(": ")[2] for each in verify(store).damaged) == [
        "was made on other weights of resnet8 on digits than are there now",
        "was measured on other weights than are there now",
        "was taught by other weights than are there now",
    ]


def test_a_spec_that_this_version_does_not_understand_is_told(store, finish):
    class Foreign:
        id = digest({"kind": "of tomorrow"})

        def canonical(self):
            return {"kind": "of tomorrow"}

    for kind in ("run", "teacher", "measurement"):
        finish(Foreign(), kind)
    assert [each.problem.rpartition("/")[2] for each in verify(store).damaged] == [
        "spec.json: says nothing that this version of kdbench understands"
    ] * 3


def test_damage_has_a_label_in_words(store, records):
    for kind in records:
        flip(records[kind][0].folder / "metrics.jsonl")
    labels = {each.kind: each.label for each in verify(store).damaged if each.problem.endswith("SHA-256 has changed)")}
    assert labels["run"] == "resnet8 → resnet8, 0.1·ce + 0.9·kd, trial 0"
    assert labels["teacher"] == "resnet8 on digits"
    assert labels["measurement"].startswith("similarity ")


def test_a_measurement_of_other_weights_does_not_count(store, suite, records, finish):
    spec = suite.measurements[0].spec
    assert store.measured(spec).id == spec.id
    finish(spec, "measurement", parent_sha256="0")
    assert store.measured(spec) is None


def test_leftovers_are_mentioned(store, records):
    (run, *_), (teacher, part) = records["run"], records["teacher"]
    for name in ("state.pt", ".weights.safetensors.ab.tmp", "result.json.damaged-1", "notes.txt"):
        (run.folder / name).write_text("")
    teacher.folder.with_name(f"{teacher.id}.damaged-1").mkdir()
    (part.folder / "result.json").unlink()
    found = verify(store)
    assert not found.damaged
    endings = {note.rpartition("/")[2].partition(": ")[0]: note.partition(": ")[2] for note in found.notes}
    assert {name: endings[name].partition(".")[0].partition(",")[0] for name in endings} == {
        "state.pt": "is of no use beside a result; the next kdbench run removes it",
        ".weights.safetensors.ab.tmp": "was left by a process that was killed",
        "result.json.damaged-1": "was quarantined as damaged",
        "notes.txt": "is no file of kdbench's",
        f"{teacher.id}.damaged-1": "was quarantined as damaged",
        "weights.safetensors": "there is no result beside it; the next kdbench run that needs it makes both",
    }


def test_the_command(tmp_path, store, records, suite):
    there = ["--results", str(store.root)]
    assert CliRunner().invoke(app, ["verify", *there]).output == "6 finished records, 0 damaged.\n"
    flip(records["run"][0].weights_file)
    done = CliRunner().invoke(app, ["verify", *there])
    assert done.exit_code == 1
    line, last = done.output.splitlines()
    assert line.startswith(f"BAD run {records['run'][0].id}, resnet8 → resnet8, 0.1·ce + 0.9·kd, trial 0: ")
    assert "Remove " in line
    assert last == "6 finished records, 1 damaged."
    (tmp_path / "other.yaml").write_text(SUITE.replace("[kd, ft]", "at"))
    other = CliRunner().invoke(app, ["verify", str(tmp_path / "other.yaml"), *there])
    assert (other.exit_code, other.output) == (0, "1 finished records, 0 damaged.\n")
    missing = CliRunner().invoke(app, ["verify", "--results", str(tmp_path / "nowhere")])
    assert isinstance(missing.exception, BadInput)


@pytest.mark.parametrize("kind", ["run", "measurement"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [*((name, overwrite) for name in FILES), ("spec.json", os.unlink), ("metrics.jsonl", os.unlink)],
)
def test_damaged_runs_and_measurements_are_set_aside(store, records, kind, name, damage):
    everything = [*records["run"], *records["measurement"]]
    assert store.quarantine_damaged(everything) == []
    record = records[kind][0]
    damage(record.folder / name)
    (message,) = store.quarantine_damaged(everything)
    assert f"the {kind} is quarantined ({record.id}.damaged-1) and redone" in message
    assert not record.folder.exists()
    assert store.quarantine_damaged(everything) == []


def test_students_whose_weights_were_removed_are_left_alone(store, records):
    records["run"][0].weights_file.unlink()
    assert store.quarantine_damaged(records["run"]) == []


def test_what_is_in_use_elsewhere_is_not_set_aside(store, records):
    record = records["run"][0]
    (record.folder / "spec.json").write_text("{}")
    with record.lock():
        assert store.quarantine_damaged([record]) == []
    assert record.folder.exists()


def test_a_resume_state_beside_a_result_is_removed(store, records):
    for record in (records["run"][0], records["teacher"][0]):
        record.state_file.write_text("")
    store.quarantine_damaged(records["run"])
    store.quarantine_damaged_teachers(
        stage for stage in load_suite(store.root.with_name("own.yaml")).runs[0].spec.stages
    )
    assert not list(store.root.glob("*/*/state.pt"))


@pytest.fixture
def lock(monkeypatch):
    """Let the system refuse to open files below a folder; tests may run as root, who may read everything."""

    def act(locked):
        opened = os.open

        def refuse(path, *arguments, **options):
            if str(path).startswith(str(locked)):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opened(path, *arguments, **options)

        monkeypatch.setattr(reading.os, "open", refuse)

    return act


def test_a_locked_record_has_a_line_and_the_others_follow(store, records, lock):
    lock(records["run"][0].folder)
    listed = CliRunner().invoke(app, ["list", "runs", "--results", str(store.root)], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    assert listed.output.count("Permission denied") == 1
    assert listed.output.count("50.00 / 50.00") == 1
    planned = CliRunner().invoke(app, ["plan", str(store.root.with_name("own.yaml")), "--results", str(store.root)])
    assert planned.output.count("Permission denied") == 1
    (found,) = verify(store).damaged
    assert found.next_step == "Make it readable."
    with pytest.raises(UnreadableRecord):
        records["run"][0].result()
    with pytest.raises(KdbenchError, match=r"Permission denied\. Make it readable"):
        store.quarantine_damaged(records["run"])
    assert records["run"][0].folder.exists()


def test_locked_weights_have_a_line(store, records, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(reading, "file_hash", refuse)
    done = CliRunner().invoke(app, ["teachers", "verify", "--results", str(store.root)])
    assert done.exit_code == 1
    assert done.output.count("cannot be read: Permission denied") == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, WEIGHTS[:-1], WEIGHTS + b"\0", WEIGHTS.replace(b"[0,4]", b'"04"'), b"\x05" + WEIGHTS[1:]],
)
def test_sizes(tmp_path, content):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(WEIGHTS)
    check_size(file)
    file.write_bytes(content)
    with pytest.raises(BadRecord, match="is not the file that was stored"):
        check_size(file)


def test_empty_logs_of_processes_that_are_gone_are_removed(store):
    with subprocess.Popen(["true"]) as gone:
        pass
    logs = store.root / "logs"
    logs.mkdir(parents=True)
    killed = Process.current()._replace(pid=gone.pid)
    staying = {
        log_name("cpu:1", killed): "a message",
        log_name("cpu:0"): "",
        log_name("cpu:0", killed._replace(host="elsewhere")): "",
        log_name("cpu:0", killed._replace(place="a container with the same host name")): "",
    }
    for name, content in {log_name("cpu:0", killed): "", **staying}.items():
        (logs / name).write_text(content)
    store.remove_empty_logs()
    assert {*os.listdir(logs)} == staying.keys()


def test_metadata_that_cannot_be_read_may_be_removed(store, suite, finish):
    path = finish(suite.runs[0].spec, "run").folder / "metadata.json"
    path.write_text("{")
    (damage,) = verify(store).damaged
    assert damage.next_step.startswith("Remove this file")
    path.unlink()
    found = verify(store)
    assert (found.damaged, len(found.notes)) == ([], 1)


def test_records_of_the_first_version_are_mentioned_and_not_used(store, suite, finish):
    assert store.outdated() == ""
    for spec in list(suite.specs.values())[:2]:
        record = finish(spec, "run")
        (record.folder / "metadata.json").rename(record.folder / "about.json")
    expected = (
        f"{store.root}: 2 records were written by kdbench 0.1 and are not used. Report them with that version, or "
    )
    assert store.outdated() == expected + "run their suites again"
    found = verify(store)
    assert (found.checked, found.damaged, found.notes) == (0, [], [store.outdated()])
    assert list(store.records("runs")) == []


def test_only_the_wanted_records_are_verified_and_then_nothing_of_suites(store, records):
    run, (teacher, _) = records["run"][0], records["teacher"]
    run.folder.with_name(f"{run.id}.damaged-1").mkdir()
    teacher.folder.with_name(f"{teacher.id}.damaged-1").mkdir()
    (store.root / "suites" / "abc").mkdir(parents=True)
    quarantined = [
        f"{record.folder}.damaged-1: was quarantined as damaged. Remove it when it is of no interest any more"
        for record in (teacher, run)
    ]
    unknown = f"{store.root / 'suites' / 'abc'}: its about.json cannot be read, so the suite is not known"
    assert verify(store).notes == [*quarantined, unknown]
    some = verify(store, {"teachers": {teacher.id}, "runs": (), "measurements": ()})
    assert (some.checked, some.damaged, some.notes) == (1, [], quarantined[:1])


@pytest.mark.parametrize("kind", ["run", "teacher", "measurement"])
def test_each_kind_of_record_has_its_next_step(store, records, kind):
    record = records[kind][0]
    (record.folder / "metrics.jsonl").write_text("")
    (damage,) = verify(store).damaged
    assert (damage.kind, damage.id) == (kind, record.id)
    assert damage.next_step == (
        "The next kdbench run that uses it sets it aside and makes it again."
        if kind == "teacher"
        else f"Remove {record.folder}, and the next kdbench run of its suite makes it again."
    )


def test_on_what_other_weights_a_record_rests_is_said_of_that_record(store, suite, records, finish):
    measurement, run = suite.measurements[0].spec, suite.runs[0].spec
    finish(measurement, "measurement", parent_sha256="0")
    finish(run, "run", parent_sha256="0")
    found = {each.kind: each.problem for each in verify(store).damaged}
    assert found == {
        "measurement": f"{store.measurement(measurement.id).folder}: was measured on other weights than are there now",
        "run": f"{store.run(run.id).folder}: was taught by other weights than are there now",
    }


def test_what_rests_on_a_record_that_cannot_be_read_has_no_problem_of_its_own(store, records):
    teacher = records["teacher"][0]
    (teacher.folder / "result.json").write_text("{")
    assert [(each.kind, each.id) for each in verify(store).damaged] == [("teacher", teacher.id)]
    (teacher.folder / "result.json").unlink()
    assert [each.problem.rpartition("/")[2].partition(" (")[0] for each in verify(store).damaged] == [
        f"{records['teacher'][1].id}: what it was made on"
    ]


@pytest.mark.parametrize(
    ("name", "finished", "note"),
    [
        ("state.pt", True, "is of no use beside a result; the next kdbench run removes it"),
        ("state.pt", False, ""),
        ("failure.json", True, ""),
        ("teacher_head.safetensors", True, ""),
        (".nfs0001", True, ""),
        ("x.tmp", False, "was left by a process that was killed"),
        ("notes", False, "is no file of kdbench's"),
    ],
)
def test_what_else_lies_in_a_record_is_noted_unless_it_may(store, suite, finish, name, finished, note):
    record = finish(suite.runs[0].spec, "run")
    if not finished:
        (record.folder / "result.json").unlink()
        record.weights_file.unlink()
    (record.folder / name).touch()
    assert verify(store).notes == ([f"{record.folder / name}: {note}"] if note else [])


@pytest.mark.parametrize("state", [False, True])
def test_weights_without_a_result_are_noted_unless_the_training_can_go_on(store, suite, finish, state):
    record = finish(suite.runs[0].spec, "run")
    (record.folder / "result.json").unlink()
    (record.folder / "metadata.json").unlink()
    record.state_file.touch() if state else None
    note = f"{record.weights_file}: there is no result beside it; the next kdbench run that needs it makes both"
    assert verify(store).notes == ([] if state else [note])


def test_a_finished_record_without_metadata_is_noted(store, suite, finish):
    record = finish(suite.runs[0].spec, "run")
    (record.folder / "metadata.json").unlink()
    assert verify(store).notes == [
        f"{record.folder}: has no metadata.json, so machine, versions and time are not known"
    ]


def test_labels_of_runs_without_a_teacher_and_of_unreadable_specs(store, suite, finish):
    alone = suite.runs[0].spec.model_copy(update={"teacher": None, "terms": (WeightedTerm(name="ce"),)})
    assert label_of(finish(alone, "run"), "runs") == "resnet8, 1·ce, trial 0"
    assert label_of(store.run("0" * 12), "runs") == "(spec.json cannot be read)"
