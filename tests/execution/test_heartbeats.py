"""Heartbeats: left while a run goes on, of what it is at, and never in the way."""

import time
from types import SimpleNamespace

import pytest

from kdbench.execution.heartbeats import Heartbeats, label_of, title_of
from kdbench.planning.plan import make_plan
from kdbench.store import live
from kdbench.store.live import beat, sightings
from kdbench.store.liveness import Process
from kdbench.store.store import Store
from kdbench.suite.load import load_suite
from kdbench.suite.measurements import ProbeSpec
from kdbench.suite.specs import DatasetSpec, Recipe, RunSpec, Supervised, WeightedTerm


RECIPE = Recipe(epochs=4, batch=64, lr=0.1)
DIGITS = DatasetSpec(name="digits")
TEACHER = Supervised(network="resnet20", dataset=DIGITS, recipe=RECIPE)
RUN = RunSpec(
    student="resnet8", teacher=TEACHER, terms=(WeightedTerm(name="kd"),), dataset=DIGITS, recipe=RECIPE, trial=2
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture
def suite(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("protocol: smoke\ndataset: digits\ntrials: 1\ngrid: {student: resnet8, method: ce}\n")
    return load_suite(file)


def test_a_run_tells_what_it_is_at_and_takes_its_leave(store, suite, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    seen, now, run = [], [100.0], suite.runs[0]
    where = {"epochs": 4, "initial_epochs": 0, "images_per_second": 50.0}
    with Heartbeats(store, [suite], lambda slot, event: seen.append(event["event"]), clock=lambda: now[0]) as beats:
        beats.listen("", {"event": "planned", "plan": make_plan([run.spec], store)})
        now[0] += 10
        job = {"event": "started", "teacher": None, "runs": (run.spec,), "measurement": None, "waited": False}
        beats.listen("cpu", job)
        beats.listen("cpu", {"event": "epoch", "id": run.id, "epoch": 1, "loss": 1.0, "top1": 9.0, **where})
        beats.listen("cpu", {"event": "under way", "id": run.id, "epoch": 1, "share": 0.5, **where})
        now[0] += 7
        beat(store, beats.heartbeat())
        (found,) = sightings(store)
        assert found.at_work
        beats.listen("cpu", {"event": "finished", "id": run.id, "top1": 9.0})
        beats.listen("cpu", {"event": "done", "busy": []})
        after = beats.heartbeat()
    heartbeat = found.heartbeat
    assert (heartbeat.process, heartbeat.batch_job, heartbeat.suites) == (Process.current(), "Slurm job 17_3", ["own"])
    assert (heartbeat.seconds, heartbeat.done, heartbeat.left) == (17.0, 0, 1)
    work = heartbeat.slots["cpu"]
    assert (work.title, work.seconds, work.images_per_second) == ("1 student without teacher, trial 0", 7.0, 50.0)
    network = work.networks[run.id]
    assert (network.label, network.place, network.top1) == (run.label, "1.50/4", 9.0)
    assert (after.done, after.left, after.slots) == (1, 0, {})
    assert seen == ["planned", "started", "epoch", "under way", "finished", "done"]
    assert not (store.root / "live").exists()


def test_heartbeats_come_by_themselves(store, suite, monkeypatch):
    monkeypatch.setattr("kdbench.execution.heartbeats.PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("kdbench.execution.heartbeats.BEAT_SECONDS", 0.01)
    with Heartbeats(store, [suite]) as beats:
        file = live.heartbeat_file(store, beats.process)
        first, end = None, time.monotonic() + 30
        while time.monotonic() < end:
            number = file.stat().st_ino if file.exists() else None
            if first and number not in (None, first):
                break
            first = first or number
        else:
            pytest.fail("was not renewed")


def test_a_full_disk_stops_nothing(store, suite):
    store.root.write_text("no folder")
    with Heartbeats(store, [suite]) as beats:
        beat(store, beats.heartbeat())
    assert store.root.read_text() == "no folder"


def started(*runs, teacher=None):
    return {"event": "started", "teacher": teacher, "runs": runs, "measurement": None, "waited": False}


def test_jobs_and_networks_have_a_line_each():
    assert label_of(RUN, {RUN.id: "kd of own"}) == "kd of own"
    assert label_of(RUN, {}) == "auxiliary resnet8 #2"
    assert label_of(TEACHER, {}) == "teacher resnet20 on digits"
    assert title_of(started(teacher=TEACHER), {}) == "teacher resnet20 on digits"
    alone = RUN.model_copy(update={"teacher": None})
    assert title_of(started(alone, RUN), {}) == "2 students of resnet20, trial 2"


def test_a_job_is_forgotten_when_it_or_its_worker_ends_and_failures_are_counted(store):
    beats = Heartbeats(store, [], clock=lambda: 5.0)
    plan = make_plan([RUN, RUN.model_copy(update={"trial": 3})], store)
    beats.listen("", {"event": "planned", "plan": plan})
    assert beats.heartbeat().left == 3
    for slot in "abc":
        beats.listen(slot, started(RUN))
    beats.listen("a", {"event": "resumed", "id": RUN.id, "epoch": 2, "epochs": 4, "initial_epochs": 0})
    beats.listen("a", {"event": "epoch", "id": "another", "epoch": 3})
    beats.listen("a", {"event": "failed", "id": RUN.id, "reason": "loss is nan"})
    for slot, event in zip("bc", ("unusable", "exit"), strict=True):
        beats.listen(slot, {"event": event})
    now = beats.heartbeat()
    assert (now.done, now.failed, now.left, [*now.slots]) == (0, 1, 2, ["a"])
    assert now.slots["a"].networks[RUN.id].epoch == 2


def test_a_heartbeat_is_left_every_ten_seconds_and_twice_a_second_at_most(store, monkeypatch):
    waited, beats = [], Heartbeats(store, [])
    left = iter([False, False, True])
    monkeypatch.setattr("kdbench.execution.heartbeats.beat", lambda *_: waited.append("beat"))
    beats._ending = SimpleNamespace(wait=waited.append, is_set=lambda: next(left))
    beats._due = SimpleNamespace(wait=waited.append, clear=lambda: waited.append("clear"))
    beats._beat()
    assert waited == [0.5, "clear", "beat", 10.0] * 2 + [0.5, "clear"]


@pytest.mark.parametrize(
    ("event", "due"),
    [("planned", True), ("started", True), ("done", True), ("exit", True), ("epoch", False), ("ready", False)],
)
def test_a_heartbeat_is_due_when_a_job_starts_or_ends(store, event, due):
    heard = []
    beats = Heartbeats(store, [], lambda slot, event: heard.append((slot, event["event"])))
    facts = {"plan": make_plan([RUN], store), "id": RUN.id, "epoch": 1}
    beats.listen("a", {**started(RUN), **facts, "event": event})
    assert (beats._due.is_set(), heard) == (due, [("a", event)])


def test_a_heartbeat_names_the_one_thing_that_a_teacher_or_a_measurement_is(store):
    probe = ProbeSpec(source=TEACHER, dataset=DIGITS, recipe=RECIPE)
    beats = Heartbeats(store, [], clock=lambda: 5.0)
    beats.listen("a", started(teacher=TEACHER))
    beats.listen("b", {**started(), "measurement": probe})
    slots = beats.heartbeat().slots
    assert {name: ([*at.networks], at.title, at.images_per_second, at.seconds) for name, at in slots.items()} == {
        "a": ([TEACHER.id], "teacher resnet20 on digits", 0.0, 0.0),
        "b": ([probe.id], probe.label, 0.0, 0.0),
    }
    beats.listen("a", {"event": "epoch", "id": TEACHER.id, "epoch": 2, "epochs": 4, "initial_epochs": 0})
    assert beats.heartbeat().slots["a"].networks[TEACHER.id] == live.NetworkAt("teacher resnet20 on digits", 2, 4)
    beats.listen("c", {"event": "epoch", "id": TEACHER.id, "epoch": 3})
    assert [*beats.heartbeat().slots] == ["a", "b"]


def test_one_student_is_no_students():
    assert title_of(started(RUN), {}) == "1 student of resnet20, trial 2"
