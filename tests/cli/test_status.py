"""kdbench status and watch: who works at what, what has stopped, and what is left."""

import json

import pytest

from kdbench.cli.cluster import watch
from kdbench.planning.shards import shard
from kdbench.store.live import Heartbeat, JobAt, NetworkAt, beat, end_beating
from kdbench.store.liveness import Process
from kdbench.store.result import Accuracy, Failure, Result
from kdbench.store.store import Store
from kdbench.store.suites import keep_suites
from kdbench.suite.load import load_suite


@pytest.fixture
def at_work(finished, suite_file, tmp_path):
    """Results with one run done, one that this process trains, and a process that is gone."""
    suite, store = load_suite(suite_file), Store(tmp_path / "results")
    keep_suites([suite], store)
    run = suite.runs[1]
    network = NetworkAt(label=run.label, epoch=1, epochs=4, share=0.5, top1=80.0, tested=1)
    job = JobAt(
        title="1 student of resnet8x4, trial 0", seconds=120, images_per_second=1234, networks={run.id: network}
    )
    here = Process.current()
    for process, number in ((here, "Slurm job 17_3"), (here._replace(pid=2**22 + 1), "")):
        facts = {**process._asdict(), "version": "0.2.0", "batch_job": number, "suites": ["own"], "seconds": 300}
        beat(store, Heartbeat(**facts, done=1, left=1, slots={"cpu": job}))
    return run, here


def test_who_works_at_what_and_what_is_left(kdbench, at_work):
    run, here = at_work
    lines = kdbench("status", "results").stdout.splitlines()
    assert lines[0] == "1 process at work."
    assert f"process {here.pid} on {here.host}, Slurm job 17_3, own, for 5 min" in lines
    assert "  [cpu] 1 student of resnet8x4, trial 0, for 2 min, 1,234 images/s" in lines
    assert f"    {run.label}: epoch 1.50/4, top-1 80.00" in lines
    assert any(f"process {2**22 + 1} on {here.host}, own, ENDED" in line for line in lines)
    assert lines[-1] == "own: 1 of 2 runs done, 1 left (1 of them in training)"


def test_a_process_that_is_stopped_is_called_so(kdbench, at_work, monkeypatch):
    _, here = at_work
    monkeypatch.setattr(Process, "state", lambda self: "stopped" if self == here else "gone")
    lines = kdbench("status", "results").stdout.splitlines()
    assert f"process {here.pid} on {here.host}, which is stopped, Slurm job 17_3, own, for 5 min" in lines
    assert sum("which is" in line for line in lines) == 1


def test_the_same_for_programs(kdbench, at_work):
    run, here = at_work
    facts = json.loads(kdbench("status", "results", "own.yaml", "--json").stdout)
    assert [(each["pid"], each["state"]) for each in facts["processes"]] == [
        (here.pid, "at work"), (2**22 + 1, "ended"),
    ]  # fmt: skip
    assert facts["processes"][0]["slots"]["cpu"]["networks"][run.id]["epoch"] == 1
    assert facts["suites"] == [
        {"name": "own", "tiny": False, "all": 2, "runs": 2, "done": 1, "left": 1, "at_work": 1, "failed": []}
    ]


def test_what_is_counted_is_what_was_started(kdbench, finished, suite_file, tmp_path):
    store = Store(tmp_path / "results")

    def line(*arguments):
        return kdbench("status", "results", *arguments).stdout.splitlines()[-1]

    keep_suites([load_suite(suite_file, tiny=True)], store)
    assert line() == "own, tiny: 0 of 2 runs done, 2 left"
    keep_suites([load_suite(suite_file, trials=3)], store)
    assert line() == "own: 1 of 6 runs done, 5 left"
    keep_suites(shard([load_suite(suite_file, trials=3)], 1, 3), store)
    assert line() == "own, a part of 6: 1 of 2 runs done, 1 left"
    assert line("--only", "method=kd") == "own, a part of 6: 0 of 3 runs done, 3 left"
    assert line(suite_file) == "own: 1 of 2 runs done, 1 left"


@pytest.mark.parametrize(("kind", "word"), [("diverged", "DIVERGED"), ("error", "FAILED")])
def test_what_failed_is_told(kdbench, finished, suite_file, tmp_path, kind, word):
    run = load_suite(suite_file).runs[1]
    record = Store(tmp_path / "results").run(run.id)
    record.begin(run.spec.canonical())
    record.fail(Failure(kind=kind, epoch=3, reason="loss is not finite"))
    lines = kdbench("status", "results", "own.yaml").stdout.splitlines()
    assert lines[0] == "No process at work."
    assert lines[1] == f"own: 1 of 2 runs done, 0 left, 1 {word.lower()}"
    assert lines[2] == f"  {word} {run.label} ({run.id}): loss is not finite"


def test_a_run_whose_teacher_diverged_is_not_left(kdbench, finished, suite_file, tmp_path):
    run = load_suite(suite_file).runs[1]
    teacher = run.spec.stages[0]
    record = Store(tmp_path / "results").teacher(teacher.id)
    record.begin(teacher.canonical())
    record.fail(Failure(kind="diverged", epoch=3, reason="loss is not finite"))
    (record.folder / "result.json").unlink(missing_ok=True)
    lines = kdbench("status", "results", "own.yaml").stdout.splitlines()
    assert lines[1] == "own: 1 of 2 runs done, 0 left, 1 diverged"
    assert "its teacher" in lines[2]


def test_a_folder_that_is_not_there(kdbench):
    for command in ("status", "watch"):
        done = kdbench(command, "nowhere")
        assert (done.returncode, done.stderr) == (2, "nowhere: no such results folder\n")


def test_watch_shows_what_goes_on_elsewhere_to_its_end(kdbench, at_work, tmp_path, monkeypatch):
    run, here = at_work
    store = Store(tmp_path / "results")

    def finish(seconds):
        accuracy = Accuracy(epoch=4, top1=91.5, top5=99.0)
        result = Result(
            id=run.id, kind="run", last=accuracy, best=accuracy, train_images=1, test_images=1, weights_sha256=""
        )
        store.run(run.id).begin(run.spec.canonical())
        store.run(run.id).finish(result, {})
        end_beating(store, here)

    monkeypatch.setattr(watch.time, "sleep", finish)
    slot = f"[{here.host} {here.pid} cpu] 1 student of resnet8x4, trial 0"
    lines = kdbench("watch", "results").stderr.splitlines()
    assert lines[0] == f"{slot}: starts"
    assert lines[1].startswith(f"{slot}: epoch 1.50/4, top-1 80.00 @ 1, 1,234 images/s; 2%, 0 of 1 runs, 5 min elapsed")
    assert lines[2] == f"finished {run.label}: top-1 91.50"
    assert lines[3:] == ["Nothing works any more in results.", "own: 2 of 2 runs done, 0 left"]


def test_watch_tells_of_failures(kdbench, at_work, tmp_path, monkeypatch):
    run, here = at_work
    store = Store(tmp_path / "results")

    def fail(seconds):
        store.run(run.id).begin(run.spec.canonical())
        store.run(run.id).fail(Failure(kind="diverged", epoch=3, reason="loss is not finite"))
        end_beating(store, here)

    monkeypatch.setattr(watch.time, "sleep", fail)
    assert f"FAILED {run.label}: loss is not finite" in kdbench("watch", "results").stderr.splitlines()


def test_ctrl_c_leaves_the_runs_alone(kdbench, at_work, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupt)
    done = kdbench("watch", "results")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "The runs go on.")
