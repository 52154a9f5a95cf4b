"""Stopped or killed at any time, a run ends bit for bit where the uninterrupted one ends."""

import random

import pytest

from kdbench.store.record import Record
from kdbench.training import checkpoint, jobs
from kdbench.training.checkpoint import Snapshot


def mixed(make_run, strategy):
    return [make_run(t, strategy) for t in ({"ce": 1}, {"ce": 1, "kd": 1}, {"ce": 1, "vid": 1})]


def test_a_stop_leaves_checkpoints_and_the_next_session_says_where_it_goes_on(bench, make_run):
    runs, shop = mixed(make_run, "simultaneous"), bench()
    shop.teachers(*runs)
    assert shop.again(stop_after=2 * len(runs)).cohort(*runs).stopped
    assert all(shop.record(run).has_checkpoint() and not shop.record(run).done() for run in runs)
    second = shop.again()
    second.cohort(*runs)
    assert second.texts("resumed") == ["resumes after epoch 2"] * 3
    assert second.count("epoch") == 3
    assert not any(shop.record(run).has_checkpoint() for run in runs)
    assert {shop.record(run).metadata()["sessions"] for run in runs} == {2}


def test_new_layers_keep_step_when_the_run_that_lags_fails(bench, make_run):
    good = make_run({"ce": 1, "kd": 1}, "simultaneous", recipe={"epochs": 4})
    bad = make_run({"ce": 1, "kd": 1, "faulty_terms:Broken": {"after": 3}}, "simultaneous", recipe={"epochs": 4})
    alone, shop = bench("alone"), bench("together")
    alone.train(good)
    shop.teachers(good)
    jobs.train_cohort([good], shop.again(stop_after=3).shop)
    jobs.train_cohort([bad], shop.again(stop_after=1).shop)
    jobs.train_cohort([bad, good], shop.again().shop)
    assert shop.store.run(bad.id).failure().epoch == 2
    assert shop.files(good) == alone.files(good)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("strategy", ["pretrained", "simultaneous"])
def test_killed_between_the_writes_of_a_checkpoint(bench, make_run, strategy, monkeypatch):
    """Learners are left at different batches and epochs; those behind catch up, and all end as if nothing had been."""
    runs = mixed(make_run, strategy)
    whole = bench("whole")
    whole.train(*runs)
    write = Snapshot.write
    for fatal in (2, 8, 11):
        hurt = bench(f"hurt{fatal}", checkpoint_seconds=0)
        hurt.teachers(*runs)
        calls = iter(range(1, 100))

        def dying(snapshot, calls=calls, fatal=fatal):
            if next(calls) == fatal:
                raise Killed
            write(snapshot)

        monkeypatch.setattr(Snapshot, "write", dying)
        with pytest.raises(Killed):
            jobs.train_cohort(runs, hurt.shop)
        monkeypatch.setattr(Snapshot, "write", write)
        jobs.train_cohort(runs, hurt.again(checkpoint_seconds=1e9).shop)
        assert hurt.files(*runs) == whole.files(*runs)


@pytest.mark.parametrize("fatal", [2, 3])
def test_killed_while_the_results_are_written(bench, make_run, fatal, monkeypatch):
    runs = [make_run({"ce": 1}), make_run({"ce": 2})]
    whole, hurt = bench("whole"), bench("hurt", checkpoint_seconds=0)
    whole.train(*runs)
    hurt.teachers(*runs)
    finish, calls = Record.finish, iter(range(1, 100))

    def dying(record, result, about, **how):
        if next(calls) == fatal:
            raise Killed
        finish(record, result, about, **how)
        if next(calls) == fatal:
            raise Killed

    monkeypatch.setattr(Record, "finish", dying)
    with pytest.raises(Killed):
        jobs.train_cohort(runs, hurt.shop)
    monkeypatch.setattr(Record, "finish", finish)
    jobs.train_cohort(runs, hurt.shop)
    assert hurt.files(*runs) == whole.files(*runs)


def test_other_company_after_a_stop(bench, make_run):
    """A plain student that starts late does not disturb a teacher that is learning."""
    runs = mixed(make_run, "simultaneous")
    whole, apart = bench("whole"), bench("apart")
    whole.train(*runs)
    apart.teachers(*runs)
    jobs.train_cohort(runs[1:], apart.again(stop_after=4).shop)
    jobs.train_cohort(runs, apart.shop)
    assert apart.files(*runs) == whole.files(*runs)


def test_a_damaged_state_is_set_aside_and_the_run_starts_again(bench, make_run):
    """A flipped bit, an empty file and half a file."""
    runs = mixed(make_run, "simultaneous")[:2]
    whole, stopped = bench("whole"), bench("stopped")
    whole.train(*runs)
    stopped.teachers(*runs)
    stopped.again(stop_after=4).cohort(*runs)
    for seed in range(4):
        hurt = stopped.copy(f"hurt{seed}")
        path = hurt.record(runs[1]).state_file
        content = bytearray(path.read_bytes())
        draw = random.Random(seed)
        if seed < 2:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            del content[0 if seed == 2 else len(content) // 2 :]
        path.write_bytes(content)
        hurt.cohort(*runs)
        assert any("quarantined as state.pt.damaged-1" in text for text in hurt.texts("resumed")), seed
        assert (path.parent / "state.pt.damaged-1").exists()
        assert hurt.files(*runs) == whole.files(*runs), seed


def test_a_state_of_another_version_is_set_aside_and_its_message_says_why(bench, make_run, monkeypatch):
    run, whole, shop = make_run({"ce": 1, "kd": 1}, "simultaneous"), bench("whole"), bench("other")
    whole.train(run)
    shop.teachers(run)
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    jobs.train_cohort([run], shop.again(stop_after=1).shop)
    monkeypatch.undo()
    last = shop.again()
    jobs.train_cohort([run], last.shop)
    assert "cannot be used (another version of kdbench stored it); quarantined" in last.texts("resumed")[0]
    assert shop.files(run) == whole.files(run)


def test_a_state_that_does_not_fit_in_memory_is_kept(bench, make_run, monkeypatch):
    import torch

    run = make_run({"ce": 1})
    shop = bench()
    jobs.train_cohort([run], shop.again(stop_after=1).shop)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "load", full)
    jobs.train_cohort([run], shop.shop)
    assert shop.store.run(run.id).failure().reason == "out of memory: CUDA out of memory"
    assert shop.store.run(run.id).has_checkpoint()


def test_what_a_killed_process_was_writing_is_removed(bench, make_run):
    run = make_run({"ce": 1})
    shop = bench()
    folder = shop.store.run(run.id).folder
    folder.mkdir(parents=True)
    (folder / ".state.pt.abc123.tmp").write_bytes(b"half")
    shop.train(run)
    assert not list(folder.glob(".*"))


def test_a_damaged_result_is_set_aside_and_the_run_repeated(bench, make_run):
    run = make_run({"ce": 1})
    shop = bench()
    shop.train(run)
    before = shop.files(run)
    (shop.store.run(run.id).folder / "result.json").write_text("{}")
    shop.train(run)
    assert shop.files(run) == before
    assert any("quarantined as result.json.damaged-1" in text for text in shop.texts())
