"""Cached outputs of a teacher: the bytes of its passes, made once by whoever comes, looked up by image and crop."""

import threading

import pytest

from kdbench.catalogue.terms import term, term_names
from kdbench.planning.output_cache import cached_outputs
from kdbench.suite.specs import Preprocessing, Scenario


TERMS = sorted(name for name in term_names() if term(name).needs_teacher and not term(name).needs_maps({}))
OWN_VIEW = Preprocessing(crop_padding=1, flip=True, size=12)


def readers(make_run, strategy, terms=("kd", "rkd"), recipe=None, **fields):
    """Runs on 9 or 18 crops."""
    how = {"epochs": 2, "milestones": (1,), "crop_padding": 1, **(recipe or {})}
    return [make_run({"ce": 1, name: 1}, strategy, how, **fields) for name in terms]


@pytest.mark.parametrize("strategy", ["pretrained", "sequential", "simultaneous"])
@pytest.mark.parametrize(
    "fields",
    [
        {"terms": TERMS},
        {"teacher_view": OWN_VIEW, "recipe": {"flip": True}},
        {"teacher_precision": "bf16", "scenario": Scenario(label_noise=0.5)},
        {"recipe": {"precision": "bf16"}},
    ],
    ids=["students' view", "own view", "bf16 teacher, wrong labels", "bf16"],
)
def test_runs_with_cached_outputs_equal_runs_beside_the_teacher(bench, make_run, strategy, fields):
    runs = readers(make_run, strategy, **fields)
    beside = bench("beside")
    beside.train(*runs)
    cached = bench("cached")
    cached.train(*runs, cached=True)
    assert not cached.count("failed")
    assert cached.files(*runs) == beside.files(*runs)
    outputs = cached_outputs(runs)
    assert {record.metadata()["cached_outputs"] for record in map(cached.record, runs)} == {outputs.id}
    assert len([*outputs.folder(cached.store).iterdir()]) == outputs.crops


def test_an_interrupted_cache_is_continued_and_damaged_files_are_made_again(bench, make_run):
    runs = readers(make_run, "simultaneous")
    start = bench("start")
    start.teachers(*runs)
    beside = start.copy("beside")
    beside.cohort(*runs)
    cached = start.copy("cached")
    stopped = cached.again(stop_at_call=6)
    assert stopped.cohort(*runs, cached=True).stopped
    folder = cached_outputs(runs).folder(cached.store)
    first = {path: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}
    assert len(first) == 5
    flipped, short, *kept = first
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    short.write_bytes(short.read_bytes()[:-1])
    cached.cohort(*runs, cached=True)
    assert cached.files(*runs) == beside.files(*runs)
    assert [path.stat().st_mtime_ns for path in kept] == [first[path] for path in kept]
    assert sorted(path.name for path in folder.glob("*.damaged-*")) == ["0000.bin.damaged-1", "0001.bin.damaged-1"]
    assert sum("not what was stored there" in text for text in cached.texts()) == 2


def test_a_crop_that_another_process_makes_is_waited_for(bench, make_run, monkeypatch):
    monkeypatch.setattr("kdbench.training.jobs.POLL_SECONDS", 0.01)
    runs = readers(make_run, "pretrained")
    cached = bench("cached")
    cached.teachers(*runs)
    folder = cached_outputs(runs).folder(cached.store)
    lock = cached.store.outputs_lock(folder.name, 7).acquire(timeout=0)
    worker = threading.Thread(target=cached.cohort, args=runs, kwargs={"cached": True})
    worker.start()
    worker.join(1.0)
    assert worker.is_alive()
    assert not (folder / "0007.bin").exists()
    lock.release()
    worker.join(60.0)
    assert {cached.record(run).done() for run in runs} == {True}
