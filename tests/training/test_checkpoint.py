"""Checkpoints are written while training goes on, and nothing comes of that but time."""

import errno
import os
import threading
import time
from concurrent import futures
from itertools import count, pairwise
from types import SimpleNamespace

import pytest

from kdbench.errors import LostLease
from kdbench.store.record import Record
from kdbench.training.checkpoint import CheckpointWriter, Snapshot
from kdbench.training.trainer import Trainer


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("strategy", ["pretrained", "simultaneous"])
def test_what_is_written_after_the_next_step_is_what_was_there_before_it(bench, make_run, monkeypatch, strategy):
    runs = [
        make_run(terms, strategy, {"batch": 8}) for terms in ({"ce": 1, "kd": 1}, {"ce": 1, "crd": {"negatives": 8}})
    ]
    whole, hurt = bench("whole"), bench("hurt", checkpoint_seconds=0)
    whole.train(*runs)
    hurt.teachers(*runs)
    steps, written, step, write = [], [], Trainer.step, Snapshot.write
    taken = threading.Condition()

    def noted(trainer, *arguments):
        step(trainer, *arguments)
        with taken:
            steps.append(threading.current_thread())
            taken.notify()

    def late(snapshot):
        if len(written) == 6:
            raise Killed
        with taken:
            assert taken.wait_for(lambda: len(steps) >= len(runs) * (len(written) // len(runs) + 2), timeout=60)
        write(snapshot)
        written.append(threading.current_thread())

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", noted)
        patched.setattr(Snapshot, "write", late)
        with pytest.raises(Killed):
            hurt.cohort(*runs)
    assert len(steps) == len(runs) * 5, "a step each, and one more while the first writes, and so on"
    assert not {*steps} & {*written}
    last = hurt.again()
    last.cohort(*runs)
    assert last.texts("resumed") == ["resumes after epoch 0 and 3 batches"] * 2
    assert hurt.files(*runs) == whole.files(*runs)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), LostLease("taken over")])
@pytest.mark.parametrize("options", [{"checkpoint_seconds": 0}, {"stop_at_call": 1}])
def test_a_checkpoint_that_cannot_be_written_ends_the_job(bench, make_run, monkeypatch, error, options):
    run, shop, held = make_run({"ce": 1}), bench(**options), []

    def refused(record, name, write, **how):
        time.sleep(0.02)
        held.append(record.lock().held)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Record, "write", refused)
        patched.setattr(Record, "begin", lambda record, spec: [])
        with pytest.raises(type(error), match=str(error.args[-1])):
            shop.cohort(run)
    assert shop.calls <= 2
    assert held == [True]


def test_what_the_thread_raises_is_raised_after_the_next_step(monkeypatch):
    """Not when the next checkpoint is due."""

    def refused():
        raise LostLease("taken over")

    trainer = SimpleNamespace(active=True, saved_at=0.0)
    monkeypatch.setattr(Snapshot, "of", lambda *_: SimpleNamespace(write=refused))
    with CheckpointWriter(1e9) as writer:
        writer.save([trainer], dict, now=True)
        futures.wait([writer._writing])
        with pytest.raises(LostLease):
            writer.save([trainer], dict, now=False)


def test_a_disk_that_fills_up_as_the_state_is_written(bench, make_run, monkeypatch):
    """torch.save would say that its file is at another place than it should be."""
    run, shop, write = make_run({"ce": 1}), bench(stop_at_call=1), Record.write

    class Full:
        """Takes no more than a few bytes."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            if len(data) > 4096:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

    monkeypatch.setattr(
        Record, "write", lambda record, name, act, **how: write(record, name, lambda file: act(Full(file)), **how)
    )
    with pytest.raises(OSError, match="No space left on device"):
        shop.cohort(run)
    assert {path.name for path in shop.record(run).folder.iterdir()} == {"spec.json"}


@pytest.mark.parametrize("terms", [{"ce": 1}, {"ce": 1, "faulty_terms:Broken": {"after": 2}}])
def test_no_checkpoint_comes_after_what_replaces_it(bench, make_run, monkeypatch, terms):
    run, shop, write, order = make_run(terms), bench(checkpoint_seconds=0), Snapshot.write, []

    def slow(snapshot):
        time.sleep(0.02)
        write(snapshot)
        order.append("checkpoint")

    def ended(act):
        return lambda *arguments, **how: order.append("end") or act(*arguments, **how)

    monkeypatch.setattr(Snapshot, "write", slow)
    for name in ("finish", "fail"):
        monkeypatch.setattr(Record, name, ended(getattr(Record, name)))
    shop.cohort(run)
    assert order == ["checkpoint"] * (len(order) - 1) + ["end"]
    assert len(order) > 2


@pytest.mark.slow
def test_checkpoints_take_no_more_than_a_twentieth_of_the_time(bench, make_run, monkeypatch):
    """The clock goes on by a second with each batch. A save stops it for one, and its thread computes for two: 60 s apart."""
    now, saved, copied = [0.0], [], Snapshot.of
    run = make_run({"ce": 1}, recipe={"epochs": 60, "batch": 8})
    shop = bench(checkpoint_seconds=10.0)

    def passes():
        now[0] += 1.0
        return False

    def slow(*arguments):
        now[0] += 1.0
        saved.append(now[0])
        return copied(*arguments)

    shop.stopped = passes
    monkeypatch.setattr(Snapshot, "of", slow)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", count(0.0, 2.0).__next__)
    shop.train(run)
    assert len(saved) > 3
    assert saved[0] == pytest.approx(11.0, abs=1)
    assert all(61 <= later - earlier <= 62 for earlier, later in pairwise(saved))
