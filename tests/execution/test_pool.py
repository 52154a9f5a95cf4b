"""The pool's order of work, with workers that only pretend."""

import contextlib
import dataclasses
import io
import json
import os
import queue
import re
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from kdbench.errors import BadInput, CannotSave, KdbenchError, NoDevice
from kdbench.execution import scheduler, worker_handle
from kdbench.execution import worker_handle as watch_module
from kdbench.execution.devices import NO_GPUS, Slot
from kdbench.execution.jobs import Backlog, jobs_of
from kdbench.execution.pool import Pool
from kdbench.execution.worker_handle import RunOptions, WorkerHandle
from kdbench.planning.plan import Cohort, Plan, make_plan
from kdbench.store.record import Record
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.suite.specs import (
    Adapter,
    DatasetSpec,
    HeadSpec,
    NewLayers,
    Recipe,
    RunSpec,
    StudentOf,
    Supervised,
    WeightedTerm,
    stage_from,
)


DIGITS = DatasetSpec(name="digits", train_per_class=4)
RECIPE = Recipe(epochs=2, batch=16, lr=0.1)


def teacher(network="resnet20", head=False):
    plain = Supervised(network=network, dataset=DIGITS, recipe=RECIPE)
    return NewLayers(parent=plain, dataset=DIGITS, head=HeadSpec(width=8, recipe=RECIPE)) if head else plain


def student(of=None, trial=0, weight=1.0):
    terms = (WeightedTerm(name="kd" if of else "ce", weight=weight),)
    return RunSpec(student="resnet8", teacher=of, terms=terms, dataset=DIGITS, recipe=RECIPE, trial=trial)


def finish(record):
    accuracy = Accuracy(epoch=2, top1=50.0, top5=90.0)
    kind = record.folder.parent.name.removesuffix("s")
    record.finish(
        Result(id=record.id, kind=kind, last=accuracy, best=accuracy, train_images=1, test_images=1, weights_sha256=""),
        {},
    )


@dataclass
class Stage:
    """A results folder, what workers were sent, and what they answer.

    ``starts``: slot name → the first events of the workers that are started on it, one by one, in place of "ready".
    ``answers``: id → list of answers, taken one by one; an answer is "crash", "hangs", "never", or a dictionary that is sent
    as "done" event. Without an answer, a job is done as it should be.
    """

    root: object
    answers: dict = field(default_factory=dict)
    starts: dict = field(default_factory=dict)
    sent: list = field(default_factory=list)
    heard: list = field(default_factory=list)

    def __post_init__(self):
        self.store = Store(self.root)
        self.stops = []
        self.beside = []
        self.closed = []

    def run(self, *runs, slots=1, plan=None, per_run=1, holding=False):
        """``per_run`` slots each are on one host."""
        named = [Slot(f"cpu:{n}", "cpu", {}, host=f"host {n // per_run}") for n in range(slots)]
        options = RunOptions(self.root, self.root, devices_per_run=per_run)
        listen = lambda slot, event: self.heard.append(event)  # noqa: E731
        self.pool = Pool(named, options, listen, self.worker, holding=holding)
        return self.pool.run(plan or make_plan(runs, self.store))

    def said(self, kind="message"):
        return [event.get("text", event.get("reason")) for event in self.heard if event["event"] == kind]


class Pretender:
    """Takes the place of a WorkerHandle."""

    stage: Stage
    pid = os.getpid()
    deaf = False

    def __init__(self, slot, options, inbox):
        self.slot, self.inbox = slot, inbox
        starts = self.stage.starts.get(slot.name)
        event = starts.pop(0) if starts else {"event": "ready"}
        self.mute = event["event"] != "ready"
        self.tell(event)

    def send(self, message, job=None, beside=()):
        if self.mute:
            return
        self.stage.beside += [worker.slot.name for worker in beside]
        if message.get("stop"):
            if self.deaf:
                return
            self.stage.stops.append(self.slot.name)
            self.tell({"event": "done", "busy": [], "stopped": True})
            return
        runs = [RunSpec.model_validate(spec) for spec in message.get("runs", [])]
        spec = stage_from(message["teacher"]) if "teacher" in message else None
        records = [self.stage.store.teacher(spec.id)] if spec else [self.stage.store.run(run.id) for run in runs]
        ids = [record.id for record in records]
        self.stage.sent.append(ids if runs else ids[0])
        answers = next((self.stage.answers[id] for id in ids if self.stage.answers.get(id)), None)
        answer = answers.pop(0) if answers else {"busy": []}
        if answer == "never":
            return
        if answer == "hangs":
            self.deaf = True
            self.tell({"event": "alive"})
            return
        if answer == "crash":
            self.tell({"event": "exit", "code": -11})
            return
        for event in answer.pop("events", []):
            self.tell(event)
        if "exit" in answer:
            self.tell({"event": "exit", "code": answer["exit"]})
            return
        skipped = {*answer.get("busy", []), *answer.get("failed", [])}
        if not {"error", "lost_teacher"} & set(answer):
            for record in records:
                if record.id not in skipped:
                    finish(record)
        self.tell({"event": "done", **answer})

    def tell(self, event):
        self.inbox.put((self.slot.name, event))
        if event["event"] == "held":
            threading.Timer(0.3, self.start_after_all).start()

    def start_after_all(self):
        self.mute = False
        self.tell({"event": "placed"})

    def stderr_tail(self):
        return "Segmentation fault"

    def close(self):
        self.stage.closed.append(self.slot.name)
        return True


@pytest.fixture
def stage(tmp_path, monkeypatch):
    stage = Stage(tmp_path)
    stage.worker = type("Bound", (Pretender,), {"stage": stage})
    monkeypatch.setattr(scheduler, "RETRY_SECONDS", 0.0)
    return stage


def test_teachers_come_before_the_cohorts_that_need_them(stage):
    headed = teacher(head=True)
    runs = [student(headed), student(teacher("resnet8")), student()]
    result = stage.run(*runs)
    assert not result.failed
    order = [entry if isinstance(entry, str) else sorted(entry) for entry in stage.sent]
    assert order.index(teacher().id) < order.index(headed.id) < next(i for i, e in enumerate(order) if runs[0].id in e)
    assert order.index(teacher("resnet8").id) < next(i for i, e in enumerate(order) if runs[1].id in e)
    assert all(stage.store.run(run.id).done() for run in runs)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_slot_whose_resources_are_held_gives_its_job_back_until_it_has_them(stage, slots):
    """Another slot takes the job; where there is none, it waits."""
    stage.starts["cpu:0"] = [{"event": "held", "reason": "by another job"}]
    assert not stage.run(student(), slots=slots).failed
    assert stage.said() == ["cpu:0 is waited for: by another job. Its job goes to the next slot that is free"]
    assert [e["event"] for e in stage.heard if e["event"] in ("exit", "started")][-2:] == ["exit", "started"]
    assert len(stage.sent) == 1
    assert sorted(stage.closed) == [f"cpu:{n}" for n in range(slots)], "the worker that waits is kept"


@pytest.mark.parametrize(("holding", "beside"), [(False, []), (True, ["cpu:1"])])
def test_a_slot_that_is_lent_has_a_worker_only_where_that_holds_it(stage, holding, beside):
    assert not stage.run(student(), slots=2, per_run=2, holding=holding).failed
    assert stage.beside == beside
    assert sorted(stage.closed) == ["cpu:0", *beside]


@pytest.mark.parametrize(
    ("event", "said", "again"),
    [
        (
            {"event": "exit", "code": 1, "reason": "Ray lost it"},
            "Ray lost it; starting it again from the last",
            "cpu:1",
        ),
        ({"event": "held", "reason": "by another job"}, "cpu:1 is waited for: by another job. Its job goes", "cpu:3"),
        ({"event": "left", "reason": "lost"}, "cpu:1 cannot be used any longer: lost", "cpu:3"),
    ],
)
def test_the_worker_of_a_job_ends_with_a_slot_that_it_has_beside_and_the_job_goes_on(stage, event, said, again):
    run = student()
    stage.answers[run.id] = ["never"]
    stage.starts["cpu:1"] = [event]
    assert not stage.run(run, slots=4, per_run=2, holding=True).failed
    assert stage.said()[0].startswith(said)
    assert stage.closed[0] == "cpu:0"
    assert stage.beside == ["cpu:1", again]


def test_several_slots_that_a_job_loses_at_once_are_one_crash(stage):
    run = student()
    stage.answers[run.id] = ["never"]
    lost = {"event": "exit", "code": 1, "reason": "Ray lost it"}
    stage.starts |= {f"cpu:{number}": [lost] for number in (1, 2, 3)}
    assert not stage.run(run, slots=4, per_run=4, holding=True).failed
    assert stage.said() == ["Ray lost it; starting it again from the last checkpoint"]


def test_what_needs_no_teacher_does_not_wait_for_one(stage):
    """While the only teacher trains on one slot, the plain student trains on the other."""
    plain = student(trial=5)
    stage.answers[teacher().id] = [{"busy": [teacher().id]}, {"busy": [teacher().id]}]
    stage.run(student(teacher()), plain, slots=2)
    assert stage.sent[:2] == [teacher().id, [plain.id]]


def test_busy_is_tried_again_until_the_other_process_is_done(stage):
    runs = [student(trial=0), student(trial=0, weight=2.0)]
    stage.answers[runs[0].id] = [{"busy": [runs[1].id]}, {"busy": [runs[1].id]}]
    stage.answers[runs[1].id] = [{"busy": [runs[1].id]}]
    result = stage.run(*runs)
    assert [sorted(entry) for entry in stage.sent] == [sorted(r.id for r in runs), [runs[1].id], [runs[1].id]]
    assert not result.failed


def test_the_failure_of_a_teacher_is_that_of_its_students(stage):
    headed = teacher(head=True)
    runs = [student(headed), student(headed, trial=1), student()]
    failed = {"event": "failed", "id": teacher().id, "reason": "loss is not finite in epoch 1"}
    stage.answers[teacher().id] = [{"events": [failed], "busy": [], "failed": [teacher().id]}]
    result = stage.run(*runs)
    assert set(result.failed) == {teacher().id, headed.id, runs[0].id, runs[1].id}
    reason = stage.store.run(runs[1].id).failure().reason
    assert reason == "its teacher failed: loss is not finite in epoch 1"
    assert stage.store.run(runs[2].id).done()
    assert len(stage.said("failed")) == 4


def test_a_lost_teacher_is_trained_again_before_its_cohort(stage):
    headed, run = teacher(head=True), student(teacher(head=True))
    for spec in (teacher(), headed):
        finish(stage.store.teacher(spec.id))
    stage.answers[run.id] = [{"lost_teacher": "weights.safetensors: is not the file that was stored"}]
    send = Pretender.send

    def losing(self, message, *_):
        send(self, message)
        if len(stage.sent) == 1:
            stage.store.teacher(headed.id).folder.rename(stage.root / "aside")

    stage.worker.send = losing
    result = stage.run(run)
    assert not result.failed
    assert stage.sent == [[run.id], headed.id, [run.id]]
    assert stage.said() == ["weights.safetensors: is not the file that was stored"]


def from_auxiliary(weight=1.0):
    between = student(teacher(), weight=2.0)
    return student(StudentOf(run=between), weight=weight)


def test_what_learns_from_a_runs_student_waits_for_it(stage):
    runs = [from_auxiliary(), from_auxiliary(3.0)]
    between = runs[0].teacher.run
    stage.answers[between.id] = [{"busy": [between.id]}]
    assert not stage.run(*runs, slots=2).failed
    assert stage.sent[:3] == [teacher().id, [between.id], [between.id]]
    assert sorted(stage.sent[3:]) == sorted([run.id] for run in runs)


def test_the_failure_of_an_auxiliary_is_that_of_what_it_would_teach(stage):
    run, plain = from_auxiliary(), student()
    between = run.teacher.run
    failed = {"event": "failed", "id": between.id, "reason": "the loss is not finite in epoch 1"}
    stage.answers[between.id] = [{"events": [failed], "busy": [], "failed": [between.id]}]
    result = stage.run(run, plain)
    assert set(result.failed) == {between.id, run.id}
    assert stage.store.run(run.id).failure().reason == "its auxiliary failed: the loss is not finite in epoch 1"
    assert stage.store.run(plain.id).done()


def test_a_lost_auxiliary_is_trained_again_with_all_that_it_needs(stage):
    run = from_auxiliary()
    between = run.teacher.run
    finish(stage.store.run(between.id))
    stage.answers[run.id] = [{"lost_teacher": "weights.safetensors: is not the file that was stored"}]
    send = Pretender.send

    def losing(self, message, *_):
        send(self, message)
        if len(stage.sent) == 1:
            stage.store.run(between.id).folder.rename(stage.root / "aside")

    stage.worker.send = losing
    assert not stage.run(run).failed
    assert stage.sent == [[run.id], teacher().id, [between.id], [run.id]]


def test_a_teacher_that_vanishes_while_others_work_is_trained_here(stage):
    """Another process had it when the plan was made, and set it aside."""
    finish(stage.store.teacher(teacher().id))
    plan = make_plan([student(teacher())], stage.store)
    assert not plan.teachers
    stage.store.teacher(teacher().id).folder.rename(stage.root / "aside")
    assert not stage.run(plan=plan).failed
    assert stage.sent == [teacher().id, [student(teacher()).id]]


def test_a_crash_loop_halves_the_cohort_until_the_culprit_is_alone(stage):
    runs = [student(trial=0, weight=float(n)) for n in range(1, 6)]
    stage.answers[runs[3].id] = ["crash"] * 20
    result = stage.run(*runs)
    assert result.failed == {runs[3].id: "the worker process ended (killed by SIGSEGV): Segmentation fault"}
    assert stage.store.run(runs[3].id).failure().kind == "error"
    assert all(stage.store.run(run.id).done() for run in runs if run is not runs[3])
    assert sum(runs[3].id in entry for entry in stage.sent) <= 3 + 3


def unusable(reason):
    return {"event": "unusable", "reason": reason}


def test_a_device_that_cannot_be_used_is_one_message_and_the_others_go_on(stage):
    stage.starts["cpu:1"] = [unusable("CUDA error: no kernel image is available")]
    runs = [student(trial=n) for n in range(6)]
    result = stage.run(*runs, slots=2)
    assert not result.failed
    assert result.fatal is None
    assert all(stage.store.run(run.id).done() for run in runs)
    assert stage.said() == [
        "cpu:1 cannot be used any longer: CUDA error: no kernel image is available. The work goes on without it"
    ]


def test_without_any_device_the_work_ends_and_nothing_has_failed(stage):
    stage.starts.update({"cpu:0": [unusable("out of memory")], "cpu:1": [unusable("the driver is too old")]})
    runs = [student(trial=n) for n in range(6)]
    result = stage.run(*runs, slots=2)
    assert isinstance(result.fatal, NoDevice)
    lines = str(result.fatal).splitlines()
    assert sorted(lines[:2]) == ["cpu:0 cannot be used: out of memory", "cpu:1 cannot be used: the driver is too old"]
    assert lines[2] == "No device is left (kdbench doctor looks at each)"
    assert (result.failed, stage.sent) == ({}, [])
    assert all(stage.store.run(run.id).failure() is None for run in runs)


def test_three_workers_in_a_row_that_end_before_they_are_ready_cost_the_slot_and_no_job(stage):
    stage.starts["cpu:0"] = [{"event": "exit", "code": -4}] * 3
    result = stage.run(student())
    assert str(result.fatal).startswith(
        "cpu:0 cannot be used: the worker process ended (killed by SIGILL): Segmentation fault, 3 times in a row\n"
    )
    assert (result.failed, stage.sent) == ({}, [])
    stage.starts["cpu:0"] = [{"event": "exit", "code": -4}] * 2
    assert not stage.run(student()).failed
    assert stage.sent == [[student().id]]


def test_three_jobs_in_a_row_that_only_crash_cost_the_slot_and_those_with_progress_between_do_not(stage):
    runs = [student(trial=n) for n in range(6)]
    for run in runs[:2] + runs[3:5]:
        stage.answers[run.id] = ["crash"] * 3
    result = stage.run(*runs)
    assert set(result.failed) == {run.id for run in runs[:2] + runs[3:5]}
    assert result.fatal is None
    more = [student(trial=n) for n in range(6, 12)]
    stage.answers = {run.id: ["crash"] * 3 for run in more}
    result = stage.run(*more)
    assert set(result.failed) == {run.id for run in more[:3]}
    assert isinstance(result.fatal, NoDevice)


def test_a_worker_that_leaves_in_peace_unasked_has_its_job_started_again(stage):
    stage.answers[student().id] = [{"exit": 0}]
    assert not stage.run(student()).failed
    assert stage.sent == [[student().id]] * 2


def test_crashes_with_progress_between_them_are_no_loop(stage):
    run = student()
    epochs = [{"events": [{"event": "epoch", "id": run.id, "epoch": n}], "exit": 1} for n in range(1, 8)]
    stage.answers[run.id] = epochs
    assert not stage.run(run).failed
    assert stage.store.run(run.id).done()
    stage.answers[student(trial=1).id] = [
        {"events": [{"event": "epoch", "id": student(trial=1).id, "epoch": 1}], "exit": 1} for _ in range(9)
    ]
    assert set(stage.run(student(trial=1)).failed) == {student(trial=1).id}


def test_crashes_within_an_epoch_are_no_loop_while_each_checkpoint_is_further(stage):
    def crashes(id, places):
        events = [{"event": "resumed", "id": id, "epoch": 0, "batches": n} for n in places]
        return [{"events": [event], "exit": 1} for event in events]

    run, stuck = student(), student(trial=1)
    stage.answers[run.id] = crashes(run.id, range(100, 800, 100))
    stage.answers[stuck.id] = crashes(stuck.id, [100] * 9)
    assert set(stage.run(run, stuck).failed) == {stuck.id}
    assert stage.store.run(run.id).done()


def test_an_error_of_a_job_spares_what_is_done_and_what_others_are_at(stage):
    done, taken, wrong = student(weight=1.0), student(weight=2.0), student(weight=3.0)
    finish(stage.store.run(done.id))
    plan = make_plan([taken, wrong], stage.store)
    stage.answers[wrong.id] = [{"error": "cifar100: lacks one of the files", "detail": "Traceback …"}]
    with stage.store.run(taken.id).lock():
        result = stage.run(plan=plan)
    assert set(result.failed) == {wrong.id}
    assert stage.store.run(wrong.id).failure().detail == "Traceback …"
    assert stage.store.run(taken.id).failure() is None
    assert stage.sent[1:] == [[taken.id]]


def test_no_room_stops_the_pool(stage):
    runs = [student(trial=n) for n in range(4)]
    stage.answers[runs[1].id] = [{"error": "No space left on device: results", "fatal": True}]
    stage.answers[runs[0].id] = ["never"]
    result = stage.run(*runs, slots=2)
    assert isinstance(result.fatal, CannotSave)
    assert str(result.fatal).startswith("No space left on device: results\n")
    assert not result.failed
    assert not result.interrupted
    assert len(stage.sent) == 2
    assert stage.stops


def test_stop_lets_workers_save_and_starts_nothing_more(stage):
    runs = [student(trial=n) for n in range(3)]
    stage.answers[runs[0].id] = ["never"]
    stage.heard = heard = _Listener(lambda: stage.pool.stop())
    result = stage.run(*runs)
    assert result.interrupted
    assert stage.sent == [[runs[0].id]]
    assert stage.stops == ["cpu:0"]
    assert any("Saving and stopping" in event.get("text", "") for event in heard)


class _Listener(list):
    """Hears events, and does something as soon as the first job has started."""

    def __init__(self, react):
        super().__init__()
        self.react = react

    def append(self, event):
        super().append(event)
        if event["event"] == "started":
            self.react()


def test_kill_waits_for_nobody(stage):
    stage.answers[student().id] = ["never"]
    stage.heard = _Listener(lambda: stage.pool.kill())
    result = stage.run(student())
    assert result.interrupted
    assert stage.stops == []


@pytest.fixture
def impatient(monkeypatch):
    """Silence counts at once."""
    monkeypatch.setattr(watch_module, "HUNG_SECONDS", 0.0)
    monkeypatch.setattr(watch_module, "STOP_SECONDS", 0.0)


def test_a_worker_that_hangs_is_killed_and_its_job_started_again(stage, impatient):
    run = student()
    stage.answers[run.id] = ["hangs"]
    assert not stage.run(run).failed
    assert stage.sent == [[run.id], [run.id]]
    (said,) = stage.said()
    assert re.fullmatch(
        rf"worker cpu:0 \(PID {os.getpid()}\) has said nothing for 0 s and was killed; starting it again from .*", said
    )


def test_a_worker_that_hangs_does_not_hold_up_the_end(stage, impatient):
    stage.answers[student().id] = ["hangs"]
    stage.heard = _Listener(lambda: stage.pool.stop())
    assert stage.run(student()).interrupted
    assert stage.said()[-1].endswith("was killed; what it has trained since its last checkpoint is lost")


def test_whom_a_long_wait_is_for_is_said_once(stage, monkeypatch):
    monkeypatch.setattr(scheduler, "PATIENCE_SECONDS", 0.0)
    run = student()
    stage.answers[run.id] = [{"busy": [run.id]}, {"busy": [run.id]}, {"busy": [run.id]}]
    with stage.store.run(run.id).lock():
        assert not stage.run(run).failed
    (said,) = stage.said()
    assert said.startswith(f"waiting for what other processes are at: {run.id}, held by process {os.getpid()} on ")


def test_the_cost_of_a_job_does_not_grow_with_the_plan(stage, monkeypatch):
    """Counted in records that are read and jobs that are looked at."""
    counts = {"result": 0, "needs": 0}
    result, lacking = Record.result, Backlog._lacking

    def counted(name, function, *arguments):
        counts[name] += 1
        return function(*arguments)

    monkeypatch.setattr(Record, "result", lambda self: counted("result", result, self))
    monkeypatch.setattr(Backlog, "_lacking", lambda self, job: counted("needs", lacking, self, job))
    monkeypatch.setattr(Pretender, "send", lambda self, message, *_: self.tell({"event": "done", "busy": []}))
    teachers = [teacher(), teacher(head=True)]
    cohorts = [Cohort((student(teachers[1], trial=n),)) for n in range(300)]
    for spec in teachers:
        finish(stage.store.teacher(spec.id))
    spent = []
    for number in (30, 300):
        counts.update(result=0, needs=0)
        stage.run(plan=Plan((), tuple(cohorts[:number]), 0, 0))
        spent.append((counts["result"] / number, counts["needs"] / number))
    assert spent[1][0] <= spent[0][0] <= 3
    assert spent[1][1] <= spent[0][1] <= 3


def test_what_waits_is_looked_at_when_something_has_ended_and_not_before(stage, monkeypatch):
    """One teacher is busy elsewhere for long: those who wait for it cost nothing."""
    looked = []
    lacking = Backlog._lacking
    monkeypatch.setattr(Backlog, "_lacking", lambda self, job: looked.append(job) or lacking(self, job))
    stage.answers[teacher().id] = [{"busy": [teacher().id]} for _ in range(50)]
    plan = Plan((teacher(),), tuple(Cohort((student(teacher(), trial=n),)) for n in range(20)), 0, 0)
    assert not stage.run(plan=plan).failed
    assert sum(bool(job.runs) for job in looked) <= 3 * 20


def test_a_worker_that_cannot_be_started_is_one_message(stage):
    def broken(*_):
        raise OSError(28, "No space left on device", "results/logs")

    stage.worker = broken
    with pytest.raises(KdbenchError, match="no worker process can be started: No space left on device: results/logs"):
        stage.run(student())


def test_a_real_worker_answers_in_json_lines_and_ends_with_its_input(tmp_path):
    """No training: a job whose data set is not there, signals that are for the parent, and a stop."""
    inbox = queue.Queue()
    worker = WorkerHandle(Slot("cpu", "cpu", {"OMP_NUM_THREADS": "1"}, 1), RunOptions(tmp_path, tmp_path), inbox)
    run = student().model_copy(update={"dataset": DatasetSpec(name="cifar100")})
    worker.send({"runs": [json.loads(run.model_dump_json())], "waited": False, "discard_weights": [], "cached": False})

    def hear():
        while (heard := inbox.get(timeout=60))[1]["event"] == "alive":
            pass
        return heard

    assert hear() == ("cpu", {"event": "ready"})
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert "--data" in hear()[1]["error"]
    worker.send({"stop": True})
    assert hear() == ("cpu", {"event": "exit", "code": 0})
    worker.close()
    assert not list((tmp_path / "logs").iterdir())


@pytest.mark.slow
def test_a_real_worker_whose_device_cannot_be_used_says_why_and_ends(tmp_path):
    inbox = queue.Queue()
    worker = WorkerHandle(Slot("gpu:0", "gpu", NO_GPUS), RunOptions(tmp_path, tmp_path), inbox)
    events = []
    while not events or events[-1]["event"] != "exit":
        events.append(inbox.get(timeout=60)[1])
    said, ended = (event for event in events if event["event"] != "alive")
    assert said["event"] == "unusable"
    assert re.fullmatch("Torch not compiled with CUDA enabled|No CUDA GPUs are available.*", said["reason"])
    assert ended["code"] == 0
    worker.close()


def test_sockets_get_a_short_folder_where_the_temporary_one_has_a_long_name(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/home/somebody/tmp")
    assert worker_handle.temporary_folder() == {}
    monkeypatch.setattr(tempfile, "tempdir", "/home/somebody/" + "x" * 60)
    assert worker_handle.temporary_folder() == {"TMPDIR": "/tmp"}
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadInput, match=r"TMPDIR=/home/somebody/x+ is too long .*Set TMPDIR to a shorter folder"):
        worker_handle.temporary_folder()


def with_part(of, name="ft", **values):
    """A run whose term trains a part on its teacher."""
    part = Adapter(parent=of, dataset=DIGITS, term=name, recipe=RECIPE)
    return student(of, **values).model_copy(update={"adapters": (part,)})


def test_a_cohort_waits_for_its_teacher_and_all_parts_of_it(stage):
    runs = [with_part(teacher()), with_part(teacher(), "sskd"), student(teacher())]
    result = stage.run(*runs, slots=3)
    assert not result.failed
    parts = [run.adapters[0].id for run in runs[:2]]
    assert stage.sent[0] == teacher().id
    assert sorted(stage.sent[1:3]) == sorted(parts)
    assert sorted(run for entry in stage.sent[3:] for run in entry) == sorted(run.id for run in runs)


def test_a_part_that_fails_takes_its_own_runs_along_and_no_others(stage):
    good, bad = student(teacher()), with_part(teacher(), weight=2.0)
    id = bad.adapters[0].id
    stage.answers[id] = [{"busy": [], "failed": [id], "events": [{"event": "failed", "id": id, "reason": "broke"}]}]
    result = stage.run(good, bad)
    assert result.failed == {id: "broke", bad.id: "its teacher failed: broke"}
    assert stage.store.run(good.id).done()


def test_a_part_that_is_gone_is_trained_again_before_its_runs(stage):
    run = with_part(teacher())
    plan = make_plan([run], stage.store)
    finish(stage.store.teacher(teacher().id))
    stage.run(plan=dataclasses.replace(plan, teachers=()))
    assert stage.sent == [run.adapters[0].id, [run.id]]


def test_a_part_of_a_runs_student_waits_for_that_run(stage):
    between = student(teacher())
    made = StudentOf(run=between)
    run = with_part(made)
    result = stage.run(run)
    assert not result.failed
    assert stage.sent == [teacher().id, [between.id], run.adapters[0].id, [run.id]]


def test_students_of_stand_in_images_keep_their_weights_only_where_the_plan_needs_them(tmp_path):
    from kdbench.suite.load import load_suites

    file = tmp_path / "own.yaml"
    file.write_text("""\
protocol: crd
dataset: cifar100
trials: 1
grid:
  - {student: vgg8, method: ce}
  - {student: resnet8x4, method: ce, measure: {probe: stl10}}
""")
    for tiny in (True, False):
        (suite,) = load_suites([str(file)], tiny=tiny)
        measured = [each.spec for each in suite.measurements]
        jobs = jobs_of(make_plan(suite.specs.values(), Store(tmp_path), measurements=measured))
        spare = {id for job in jobs for id in job.discard_weights}
        probes = {spec.id for spec in measured if tiny}
        assert spare == probes | {id for id, spec in suite.specs.items() if tiny and spec.student == "vgg8"}
        assert spare == {id for job in jobs for id in job.message()["discard_weights"]}
        assert not {need.source_run.id for spec in measured for need in spec.dependencies if need.source_run} & spare


@pytest.fixture
def pool(stage):
    """A pool of two slots, of which the first is given a run that is never done."""
    stage.answers[student().id] = ["never"]
    slots = [Slot(f"cpu:{n}", "cpu", {}, host="host") for n in range(2)]
    pool = Pool(slots, RunOptions(stage.root, stage.root), lambda slot, event: stage.heard.append(event), stage.worker)
    pool.scheduler.add(make_plan([student()], stage.store))
    for assignment in pool.scheduler.assign():
        pool._send(assignment)
    stage.heard.clear()
    return pool


def test_a_slot_that_left_takes_its_worker_along_and_an_unknown_one_nothing(stage, pool):
    pool._handle("cpu:7", {"event": "left", "reason": "its node is lost"})
    assert (stage.heard, stage.closed) == ([], [])
    pool._handle("cpu:0", {"event": "left", "reason": "its node is lost"})
    assert (stage.closed, [*pool.workers], [*pool.scheduler.slots]) == (["cpu:0"], [], ["cpu:1"])
    assert [event["event"] for event in stage.heard] == ["message", "exit"]


def test_a_slot_that_joined_is_told_and_gets_a_job(stage, pool):
    pool._handle("cpu:9", {"event": "joined", "slot": Slot("cpu:9", "cpu")})
    assert stage.said() == ["cpu:9 has joined"]
    assert [*pool.scheduler.slots] == ["cpu:0", "cpu:1", "cpu:9"]


def test_signs_of_life_are_not_passed_on(stage, pool):
    pool._handle("cpu:0", {"event": "alive"})
    assert stage.heard == []
    pool._handle("cpu:0", {"event": "epoch", "id": student().id, "epoch": 1})
    assert [event["event"] for event in stage.heard] == ["epoch"]


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (
            {"code": 1},
            "the worker process ended (exit code 1): Segmentation fault; starting it again from the last checkpoint",
        ),
        ({"code": 1, "reason": "Ray lost it"}, "Ray lost it; starting it again from the last checkpoint"),
    ],
)
def test_the_end_of_a_worker_is_told_with_its_last_words_or_its_reason(stage, pool, event, said):
    pool._handle("cpu:0", {"event": "ready"})
    pool._handle("cpu:0", {"event": "exit", **event})
    assert stage.said() == [said]
    assert (stage.closed, [*pool.workers]) == (["cpu:0"], [])


@pytest.mark.parametrize(("code", "said"), [(0, []), (1, ["what it has trained since its last checkpoint is lost"])])
def test_a_worker_that_was_told_to_stop_may_end_in_peace(stage, pool, code, said):
    pool._handle("cpu:0", {"event": "ready"})
    pool.stop()
    pool._handle("cpu:0", {"event": "exit", "code": code})
    assert [text.rpartition("; ")[2] for text in stage.said()] == said


@pytest.mark.parametrize("ended", [True, False])
def test_alarms_are_told_and_whoever_hangs_is_killed(stage, pool, monkeypatch, ended):
    pool.inbox = queue.Queue()
    alarms = [[watch_module.Alarm("cpu:0", "it is slow")], [watch_module.Alarm("cpu:0", "it hangs", fatal=True)]]
    monkeypatch.setattr(pool.watchdog, "check", lambda workers: alarms.pop(0))
    monkeypatch.setattr(Pretender, "close", lambda self: ended)
    pool._handle("cpu:0", {"event": "ready"})
    pool._check_workers()
    assert (stage.said(), [*pool.workers]) == (["it is slow"], ["cpu:0"])
    pool._check_workers()
    still = "" if ended else ", but the system does not let it end"
    assert stage.said()[1:] == [f"it hangs and was killed{still}; starting it again from the last checkpoint"]
    assert (stage.heard[-1], [*pool.workers]) == ({"event": "exit"}, [])


def test_workers_are_not_looked_at_while_there_is_something_to_hear(stage, pool, monkeypatch):
    monkeypatch.setattr(pool.watchdog, "check", lambda workers: pytest.fail("looked"))
    assert not pool.inbox.empty()
    pool._check_workers()


def test_who_stops_says_so_once_and_only_if_somebody_asked(stage, pool):
    pool.stop()
    for _ in range(2):
        pool._stop_workers()
    assert stage.said() == ["Saving and stopping; Ctrl-C again stops at once."]
    assert stage.stops == ["cpu:0"]
    assert not pool.killed
    pool.kill()
    assert (pool.killed, pool.outcome.interrupted) == (True, True)


@pytest.mark.parametrize(("length", "moved"), [(70, {}), (71, {"TMPDIR": "/tmp"})])
def test_a_temporary_folder_may_have_seventy_bytes(monkeypatch, length, moved):
    monkeypatch.setattr(tempfile, "tempdir", "/home/ä/".ljust(length - 1, "x"))
    assert worker_handle.temporary_folder() == moved


def test_a_worker_has_what_the_user_has_set_and_defaults_besides(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.setattr(os, "environ", {"A": "1", "B": "1", "GOMP_SPINCOUNT": "5", "PYTHONUNBUFFERED": ""})
    assert worker_handle._environment(Slot("cpu", "cpu", {"B": "2"})) == {
        "A": "1", "B": "2", "GOMP_SPINCOUNT": "5", "PYTHONUNBUFFERED": "1",
        "MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_THRESHOLD_": "1073741824",
    }  # fmt: skip
    monkeypatch.setattr(os, "environ", {})
    assert worker_handle._environment(Slot("cpu", "cpu"))["GOMP_SPINCOUNT"] == "10000"


def test_without_options_everything_is_found_out():
    options = RunOptions()
    assert (str(options.results), str(options.data), options.devices, options.cluster) == (
        "results",
        "data",
        "auto",
        "",
    )
    assert (options.jobs_per_device, options.devices_per_run, options.checkpoint_seconds) == (None, None, 30.0)
    assert not any([options.download, options.retry_diverged, options.deterministic, options.eager])


@pytest.mark.parametrize(("content", "words"), [(None, ""), ("", ""), ("\n", ""), ("one\ntwo\n\n", "two")])
def test_the_last_words_of_a_worker_are_the_last_line_of_its_log(tmp_path, content, words):
    worker = WorkerHandle.__new__(WorkerHandle)
    worker.log = tmp_path / "x.log"
    if content is not None:
        worker.log.write_text(content)
    assert worker.stderr_tail() == words


def bare_worker(tmp_path, wait=lambda timeout=None: 0, lines=(), content=""):
    """A handle whose process only pretends; what was done to it, and its inbox."""
    done, inbox = [], queue.Queue()
    worker = WorkerHandle.__new__(WorkerHandle)
    worker.slot, worker.closed, worker.threads, worker.outbox = Slot("cpu", "cpu"), False, [], queue.SimpleQueue()
    worker.log = tmp_path / "x.log"
    worker.log.write_text(content)
    stdout = contextlib.nullcontext(lines)
    worker.process = SimpleNamespace(kill=lambda: done.append("kill"), wait=wait, stdout=stdout)
    return worker, done, inbox


@pytest.mark.parametrize(("content", "stays"), [("", False), ("x", True)])
def test_a_worker_is_killed_and_its_log_stays_if_it_says_something(tmp_path, content, stays):
    waits = []
    worker, done, inbox = bare_worker(tmp_path, lambda timeout: waits.append(timeout), content=content)
    assert worker.close()
    assert (done, waits, worker.log.exists(), worker.closed) == (["kill"], [5.0], stays, True)
    worker._pass_on(inbox, {"event": "epoch"})
    assert inbox.empty()


def test_a_worker_that_the_system_does_not_let_end_is_told_from_others(tmp_path):
    def wait(timeout):
        raise subprocess.TimeoutExpired("x", timeout)

    worker, _, _ = bare_worker(tmp_path, wait)
    assert not worker.close()


def test_what_a_worker_says_in_json_is_passed_on_and_then_how_it_ended(tmp_path):
    worker, _, inbox = bare_worker(tmp_path, lambda: -9, ['{"event": "ready"}\n', "noise\n", '{"event": "alive"}\n'])
    worker._listen(inbox)
    assert [inbox.get_nowait() for _ in range(inbox.qsize())] == [
        ("cpu", {"event": "ready"}), ("cpu", {"event": "alive"}), ("cpu", {"event": "exit", "code": -9}),
    ]  # fmt: skip


def test_what_is_sent_to_a_worker_is_written_line_by_line_until_it_is_closed(tmp_path):
    worker, _, _ = bare_worker(tmp_path)
    written = io.StringIO()
    written.close = lambda: None
    worker.process.stdin = written
    worker.send({"a": 1})
    worker.send({"path": tmp_path})
    worker.close()
    worker._talk()
    assert written.getvalue() == f'{{"a": 1}}\n{{"path": "{tmp_path}"}}\n'
