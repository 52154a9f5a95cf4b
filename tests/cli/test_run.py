"""kdbench run: what it refuses, what it reports, and what it hands to the pool. The pool itself is made up."""

import signal
import sys
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from kdbench.cli.app import app
from kdbench.errors import BadInput, BadSuite, CannotSave, Interrupted, KdbenchError, NoDevice
from kdbench.execution import devices, runner
from kdbench.execution.scheduler import Outcome
from kdbench.store.record import Accuracy, Failure, Result
from kdbench.store.store import Store
from kdbench.suite.load import find_suite, load_suite


SUITE = {
    "protocol": "smoke",
    "dataset": {"name": "digits", "train_per_class": 4, "test_per_class": 2},
    "grid": [{"teacher": "resnet8", "student": "resnet8", "method": ["ce", "kd"]}],
}


class Place:
    """A folder with a suite; ``result`` is what the pool gives back, ``plans`` what it was given."""

    def __init__(self, root):
        self.root, self.results = root, root / "results"
        self.plans, self.options, self.result, self.work = [], [], Outcome(), lambda plan: None
        self.write(SUITE)

    def write(self, content):
        self.suite = self.root / "tiny.yaml"
        self.suite.write_text(yaml.safe_dump(content))

    def runs(self):
        return {run.method: run for run in load_suite(self.suite).runs}

    def run(self, *arguments):
        command = ["run", str(self.suite), "--results", str(self.results), "--data", str(self.root), *arguments]
        done = CliRunner().invoke(app, command)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def finish(self, run):
        accuracy = Accuracy(epoch=2, top1=50.0, top5=90.0)
        facts = {"train_images": 1, "test_images": 1, "weights_sha256": ""}
        record = Store(self.results).run(run.id)
        record.begin(run.spec.canonical())
        record.finish(Result(id=run.id, kind="run", last=accuracy, best=accuracy, **facts), {})


@pytest.fixture
def place(tmp_path, monkeypatch):
    place = Place(tmp_path)

    class Pretender:
        def __init__(self, slots, options, listen):
            place.options.append((slots, options))

        def run(self, plan):
            place.plans.append(plan)
            place.work(plan)
            return place.result

        def stop(self):
            place.result.interrupted = True

        def kill(self):
            place.result.fatal = "killed"

    monkeypatch.setattr(runner, "Pool", Pretender)
    monkeypatch.setattr(devices, "query_devices", lambda **_: devices.Machine(threads=2))
    return place


def test_the_plan_the_slots_and_the_options_reach_the_pool(place):
    place.run("--jobs-per-device", "2", "--checkpoint-seconds", "7", "--trials", "3", "--only", "method=kd")
    (plan,), ((slots, options),) = place.plans, place.options
    assert plan.runs == 3
    assert len(plan.teachers) == 1
    assert [slot.name for slot in slots] == ["cpu:0", "cpu:1"]
    assert (options.checkpoint_seconds, options.download, options.results) == (7.0, False, place.results)


def test_tables_are_printed_at_the_end(place):
    place.work = lambda plan: [place.finish(run) for run in place.runs().values()]
    done = place.run("--format", "csv")
    assert done.exit_code == 0
    assert "kd" in done.stdout
    assert "50" in done.stdout


def test_the_quick_demo_is_a_part_of_the_demo_with_a_picture(place):
    def finish_all(plan):
        for run in (run for cohort in plan.cohorts for run in cohort.runs):
            place.finish(SimpleNamespace(id=run.id, spec=run))

    place.work = finish_all
    done = CliRunner().invoke(app, ["run", "demo", "--quick", "--results", str(place.results)])
    assert done.exit_code == 0, done.output
    (plan,) = place.plans
    assert {run.id for cohort in plan.cohorts for run in cohort.runs} < load_suite(find_suite("demo")).specs.keys()
    assert sorted(run.terms[-1].name for cohort in plan.cohorts for run in cohort.runs) == ["ce", "ega", "kd"]
    assert (place.results / "demo.png").stat().st_size > 1000
    with pytest.raises(BadInput, match="kdbench run demo --quick"):
        place.run("--quick")


def test_with_nothing_left_no_pool_is_made(place, monkeypatch):
    for run in place.runs().values():
        place.finish(run)
    monkeypatch.setattr(devices, "query_devices", lambda **_: pytest.fail("no device is needed"))
    assert place.run().exit_code == 0
    assert not place.plans


def test_dry_run_writes_nothing(place):
    assert place.run("--dry-run").exit_code == 0
    assert not place.results.exists()
    assert not place.plans


def test_results_that_cannot_be_written_are_refused_before_any_work(place):
    place.results.write_text("a file")
    with pytest.raises(BadInput, match="is no folder of results"):
        place.run()
    assert not place.plans


def test_missing_data_are_refused_before_any_work(place):
    place.write({**SUITE, "dataset": ["cifar100", "cifar10", "digits"]})
    with pytest.raises(BadSuite, match=r"(?s)cifar100: .*cifar10: .*2 problems. Nothing was run.") as caught:
        place.run()
    assert caught.value.exit_code == 2
    assert f"kdbench data download cifar10 --data {place.root}," in str(caught.value)
    assert not place.plans
    assert not list(place.root.glob("results/*/*"))
    place.run("--download")
    assert place.plans


def test_an_interrupt_says_how_to_go_on(place, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kdbench", "run", "my suite.yaml", "--devices", "cpu"])
    place.result.interrupted = True
    with pytest.raises(
        Interrupted, match=r"resume with the same command:\n  kdbench run 'my suite.yaml' --devices cpu"
    ) as e:
        place.run()
    assert e.value.exit_code == 130


@pytest.fixture
def terminal():
    """A terminal's end is heard, as it is not under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
def test_the_end_of_the_terminal_saves_and_stops_however_often_it_is_told(place):
    def work(plan):
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
        assert place.result.interrupted
        assert not place.result.fatal

    place.work = work
    with pytest.raises(Interrupted):
        place.run()


def test_under_nohup_the_end_of_the_terminal_is_nothing(place):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    place.work = lambda plan: signal.raise_signal(signal.SIGHUP)
    try:
        place.run()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(place.plans) == 1
    assert not place.result.interrupted


@pytest.mark.parametrize(("number", "second"), [(signal.SIGINT, "killed"), (signal.SIGTERM, None)])
def test_the_first_signal_stops_and_a_second_ctrl_c_kills(place, number, second):
    before = signal.getsignal(number)

    def work(plan):
        signal.raise_signal(number)
        assert place.result.interrupted
        assert not place.result.fatal
        signal.raise_signal(number)
        assert place.result.fatal == second

    place.work = work
    with pytest.raises(Interrupted):
        place.run()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    "fatal", [CannotSave("No space left on device: results"), NoDevice("gpu:0 cannot be used: no kernel image")]
)
def test_what_ends_the_work_is_one_message(place, fatal):
    place.result.fatal = fatal
    with pytest.raises(type(fatal), match=rf"{fatal}; resume with the same command:\n  kdbench") as caught:
        place.run()
    assert caught.value.exit_code == 1


@pytest.fixture
def gpus(monkeypatch):
    """gpus(capability, …): the machine has these."""

    def make(*capabilities):
        found = tuple(devices.Gpu(f"GPU of {capability}", capability) for capability in capabilities)
        monkeypatch.setattr(devices, "query_devices", lambda **_: devices.Machine(threads=2, gpus=found))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return make


@pytest.mark.parametrize("key", ["precision", "teacher_precision"])
def test_bf16_is_refused_before_anything_trains_where_a_gpu_has_none(place, gpus, key):
    gpus((8, 0), (7, 5))
    bf16 = ("--set", f"protocol.{key}=bf16")
    with pytest.raises(BadInput, match=r"needs GPUs of compute capability 8\.0 .* here is gpu:1, GPU of .*--devices"):
        place.run(*bf16)
    assert not place.plans
    place.run(*bf16, "--devices", "0")
    place.run()
    assert len(place.plans) == 2


def test_failures_of_now_and_before_end_with_exit_code_1(place):
    runs = place.runs()
    store = Store(place.results)
    store.run(runs["ce"].id).fail(Failure(kind="diverged", epoch=3, reason="loss is not finite in epoch 3"))
    place.result.failed = {runs["kd"].id: "ValueError in epoch 1: no", "0123456789ab": "broken teacher"}
    with pytest.raises(KdbenchError) as caught:
        place.run()
    text = str(caught.value)
    assert text.startswith("3 failed:\n")
    assert "loss is not finite in epoch 3" in text
    assert "ValueError in epoch 1: no" in text
    assert "teacher 0123456789ab: broken teacher" in text
    assert text.endswith(f"More: kdbench show ID --results {place.results}")
    assert [run.id for cohort in place.plans[0].cohorts for run in cohort.runs] == [runs["kd"].id]


def test_a_diverged_run_is_tried_again_when_asked(place):
    runs = place.runs()
    Store(place.results).run(runs["ce"].id).fail(Failure(kind="diverged", epoch=3, reason="x"))
    place.work = lambda plan: [place.finish(run) for run in runs.values()]
    assert place.run("--retry-diverged").exit_code == 0, "a failure that a result has overtaken does not count"
    assert place.plans[0].runs == 2
