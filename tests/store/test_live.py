"""Heartbeats as they are kept: those of dead processes are told from those of living ones."""

import os
import time
from dataclasses import replace

import pytest

from kdbench.store import live
from kdbench.store.live import Heartbeat, JobAt, NetworkAt, beat, forget_the_dead, sightings
from kdbench.store.liveness import Process
from kdbench.store.store import Store


GONE = Process.current()._replace(pid=2**22 + 1)
CONTAINER = GONE._replace(place="another namespace of the same machine")
ELSEWHERE = Process(7, "node7", "another boot", "1")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def of(process, **facts):
    return Heartbeat(**process._asdict(), version="1", batch_job="", suites=["s"], seconds=5.0, **facts)


def age(store, process, seconds):
    then = time.time() - seconds
    os.utime(live.heartbeat_file(store, process), (then, then))


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


@pytest.mark.parametrize(
    ("event", "place", "part", "test"),
    [
        ({"epoch": 0, "epochs": 0}, "waiting", 0, ""),
        ({"epoch": 3, "epochs": 240, "top1": 9.5}, "3/240", 3 / 240, "9.50 @ 3"),
        ({"epoch": 3, "epochs": 240, "share": 0.25, "top1": 9.5, "tested": 2}, "3.25/240", 3.25 / 240, "9.50 @ 2"),
        ({"epoch": -27, "epochs": 240, "initial_epochs": 30}, "3/30 (initial)", 3 / 270, ""),
        ({"epoch": 0, "epochs": 240, "initial_epochs": 30}, "30/30 (initial)", 30 / 270, ""),
        ({"epoch": 1, "epochs": 240, "initial_epochs": 30}, "1/240", 31 / 270, ""),
    ],
)
def test_where_a_network_is_in_its_training(event, place, part, test):
    network = NetworkAt(label="kd")
    network.advance({"initial_epochs": 0, **event})
    assert (network.place, network.part, network.test) == (place, pytest.approx(part), test)
    network.advance({"initial_epochs": 0, **event, "top1": None})
    assert network.test == test


def test_a_heartbeat_is_named_after_machine_and_process_and_the_folder_goes_with_the_last(store):
    files = [live.heartbeat_file(store, process) for process in (GONE, ELSEWHERE)]
    assert files == [
        store.root / "live" / f"{GONE.machine}-{2**22 + 1}.json",
        store.root / "live" / f"{ELSEWHERE.machine}-7.json",
    ]
    for process in (GONE, ELSEWHERE):
        beat(store, of(process))
    live.end_beating(store, GONE)
    assert [*(store.root / "live").iterdir()] == [files[1]]
    live.end_beating(store, ELSEWHERE)
    live.end_beating(store, ELSEWHERE)
    assert not (store.root / "live").exists()


def test_a_heartbeat_without_anything_done_says_so():
    found = of(ELSEWHERE)
    assert (found.done, found.failed, found.left, found.slots, found.process) == (0, 0, 0, {}, ELSEWHERE)


@pytest.mark.parametrize(
    ("age", "ended", "stale", "at_work"),
    [(60.0, False, False, True), (60.1, False, True, False), (0.0, True, False, False), (61.0, True, True, False)],
)
def test_after_a_minute_without_a_heartbeat_a_process_counts_as_gone(tmp_path, age, ended, stale, at_work):
    found = live.Sighting(tmp_path, of(ELSEWHERE), age, ended)
    assert (found.stale, found.at_work) == (stale, at_work)


@pytest.mark.parametrize(("age", "stays"), [(7 * 86400, True), (7 * 86400 + 1, False)])
def test_after_a_week_the_heartbeat_of_another_machine_is_removed(store, monkeypatch, age, stays):
    beat(store, of(ELSEWHERE))
    file = live.heartbeat_file(store, ELSEWHERE)
    os.utime(file, (1000, 1000))
    monkeypatch.setattr(live, "file_system_time", lambda folder: 1000.0 + age)
    forget_the_dead(store)
    assert file.exists() == stays


@pytest.mark.parametrize(("age", "stays"), [(60, True), (61, False)])
def test_after_a_minute_a_half_written_heartbeat_is_removed(store, monkeypatch, age, stays):
    (store.root / "live").mkdir(parents=True)
    file = store.root / "live" / ".x.json.0a.tmp"
    file.touch()
    os.utime(file, (1000, 1000))
    monkeypatch.setattr(live, "file_system_time", lambda folder: 1000.0 + age)
    forget_the_dead(store)
    assert file.exists() == stays


def test_no_heartbeat_is_younger_than_now(store, monkeypatch):
    beat(store, of(ELSEWHERE))
    file = live.heartbeat_file(store, ELSEWHERE)
    os.utime(file, (1000, 1000))
    for now, age in ((990.0, 0.0), (1000.5, 0.5)):
        monkeypatch.setattr(live, "file_system_time", lambda folder, now=now: now)
        assert [sighting.age for sighting in sightings(store)] == [age]


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "17"}, "Slurm job 17"),
        ({"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}, "Slurm job 17_3"),
        ({"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17"}, "Slurm job 17_?"),
    ],
)
def test_a_job_is_known_by_its_number_at_the_batch_system(monkeypatch, environment, name):
    for variable in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert live.batch_job() == name


def test_the_share_of_an_epoch_counts_until_the_epoch_is_over():
    network = NetworkAt(label="kd")
    assert (network.epoch, network.epochs, network.initial_epochs, network.share, network.tested) == (0, 0, 0, 0.0, 0)
    network.advance({"epoch": -28, "epochs": 10, "initial_epochs": 30, "share": 0.5, "loss": 2.0})
    assert (network.place, network.part, network.loss) == ("2.50/30 (initial)", pytest.approx(2.5 / 40), 2.0)
    network.advance({"epoch": 0, "epochs": 10, "initial_epochs": 30, "share": 0.5})
    assert (network.place, network.part, network.loss) == ("0.50/10", pytest.approx(30.5 / 40), 2.0)
    network.advance({"epoch": 1, "epochs": 10, "initial_epochs": 30, "loss": 1.0, "top1": 0.0})
    assert (network.place, network.part, network.loss, network.test) == ("1/10", 31 / 40, 1.0, "0.00 @ 1")
