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
