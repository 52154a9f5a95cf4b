"""Heartbeats: left while a run goes on, told from those of dead processes, and never in the way."""

import os
import time
from dataclasses import replace

import pytest

from kdbench.execution.heartbeats import Heartbeats
from kdbench.planning.plan import make_plan
from kdbench.store import live
from kdbench.store.live import Heartbeat, JobAt, NetworkAt, beat, forget_the_dead, sightings
from kdbench.store.liveness import Process
from kdbench.store.store import Store
from kdbench.suite.load import load_suite


GONE = Process.current()._replace(pid=2**22 + 1)
CONTAINER = GONE._replace(place="another namespace of the same machine")
ELSEWHERE = Process(7, "node7", "another boot", "1")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture
def suite(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("protocol: smoke\ndataset: digits\ntrials: 1\ngrid: {student: resnet8, method: ce}\n")
    return load_suite(file)


def of(process, **facts):
    return Heartbeat(**process._asdict(), version="1", batch_job="", suites=["s"], seconds=5.0, **facts)


def age(store, process, seconds):
    then = time.time() - seconds
    os.utime(live.heartbeat_file(store, process), (then, then))


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


def test_a_loss_that_is_no_number_is_left_out(store):
    network = NetworkAt(label="kd", epoch=1, epochs=4, loss=float("nan"), top1=10.0)
    job = JobAt(title="1 student", seconds=1.0, images_per_second=1.0, networks={"a": network})
    beat(store, of(Process.current(), slots={"cpu": job}))
    (found,) = sightings(store)
    assert found.heartbeat.slots["cpu"].networks["a"] == replace(network, loss=None)


def test_what_a_killed_process_was_just_writing_is_removed(store):
    (store.root / "live").mkdir(parents=True)
    old, new = (store.root / "live" / f".{name}.json.0a.tmp" for name in ("old", "new"))
    for file in (old, new):
        file.write_text("{")
    os.utime(old, (0, 0))
    forget_the_dead(store)
    assert [*(store.root / "live").iterdir()] == [new]


def test_the_dead_are_told_from_the_living(store):
    for process in (Process.current(), GONE, CONTAINER, ELSEWHERE):
        beat(store, of(process))
    age(store, ELSEWHERE, live.STALE_SECONDS + 30)
    (store.root / "live" / "broken.json").write_text("{")
    found = {sighting.heartbeat.process: sighting for sighting in sightings(store)}
    assert {process: sighting.at_work for process, sighting in found.items()} == {
        Process.current(): True, GONE: False, CONTAINER: True, ELSEWHERE: False,
    }  # fmt: skip
    assert found[GONE].ended
    assert found[ELSEWHERE].stale
    assert not found[ELSEWHERE].ended
    forget_the_dead(store)
    assert {sighting.heartbeat.process for sighting in sightings(store)} == {Process.current(), CONTAINER, ELSEWHERE}
    age(store, ELSEWHERE, live.FORGOTTEN_SECONDS + 30)
    forget_the_dead(store)
    assert {sighting.heartbeat.process for sighting in sightings(store)} == {Process.current(), CONTAINER}
