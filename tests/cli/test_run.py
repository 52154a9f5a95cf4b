"""kdbench run: what it refuses, what it reports, and what it hands to the pool. The pool itself is made up."""

import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from kdbench.cli.app import app
from kdbench.cli.run import Session, closing_summary
from kdbench.errors import BadInput, BadSuite, CannotSave, Interrupted, KdbenchError, NoDevice
from kdbench.execution import devices, runner
from kdbench.execution.scheduler import Outcome
from kdbench.planning.plan import make_plan
from kdbench.reporting.report import measured_report
from kdbench.store.result import Accuracy, Failure, Result
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

    def finish(self, run, top1=50.0):
        accuracy = Accuracy(epoch=2, top1=top1, top5=90.0)
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


@pytest.mark.parametrize(
    ("options", "cached"),
    [
        ([], False),
        (["--cache-outputs", "always"], True),
        (["--cache-outputs", "always", "--devices-per-run", "auto"], True),
        (["--cache-outputs", "always", "--devices-per-run", "2"], False),
        (["--cache-outputs", "always", "--only", "method=ce"], False),
    ],
)
def test_teachers_outputs_are_cached_where_that_is_wished_and_possible(place, options, cached):
    place.run(*options)
    (plan,) = place.plans
    assert bool(plan.cached) == cached
    text = place.run(*options, "--dry-run").stdout
    assert ("Cached outputs: resnet8 for" in text) == cached
    assert ("of teachers' outputs" in text) == cached


def test_hosts_that_may_share_no_disk_cache_nothing(place):
    suites = [load_suite(place.suite)]
    assert runner.caches(suites, None, "")
    assert not runner.caches(suites, None, "auto")


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
    with pytest.raises(Interrupted) as caught:
        place.run()
    assert caught.value.exit_code == 130
    assert str(caught.value).splitlines() == [
        "Reached 0%, 0 of 2 runs in 0 s.",
        f"Stopped. What was trained up to the last checkpoint is saved in {place.results}; resume with the same command:",
        "  kdbench run 'my suite.yaml' --devices cpu",
    ]


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


class Clock:
    """Stands still until it is moved."""

    now = 1000.0

    def __call__(self):
        return self.now


def summary(place, session=None, **changes):
    suite = load_suite(place.suite)
    report = measured_report([replace(suite, **changes)], [Store(place.results)])
    return list(closing_summary(session or Session(), report, place.results))


def test_the_summary_tells_what_ran_how_long_and_where_it_is(place):
    runs, session = place.runs(), Session(Clock())
    place.finish(runs["ce"])
    plan = make_plan(load_suite(place.suite).specs.values(), Store(place.results))
    session.listen("", {"event": "planned", "plan": plan})
    for id, count in ((plan.teachers[0].id, 1), (runs["kd"].id, 4)):
        session.listen("gpu:0", {"event": "started", "devices": count})
        session.clock.now += 90
        session.listen("gpu:0", {"event": "finished", "id": id})
        session.listen("gpu:0", {"event": "done"})
    place.finish(runs["kd"])
    assert summary(place, session)[:2] == [
        "tiny: 1 run and 1 teacher finished in 3 min (8 min of device time); 1 run reused",
        f"Results: {place.results}",
    ]


def test_the_summary_counts_what_is_not_done(place):
    runs = place.runs()
    Store(place.results).run(runs["kd"].id).fail(Failure(kind="diverged", epoch=3, reason="x"))
    assert summary(place)[0] == "tiny: nothing was trained; 1 failed; 1 not finished"


def test_the_best_methods_are_those_of_the_tables(place):
    """at is within noise of kd, ce is not."""
    accuracies = {"ce": (70.0, 71.0, 70.5), "kd": (80.0, 81.2, 80.4), "at": (79.9, 81.3, 80.1)}
    place.write({**SUITE, "trials": 3, "grid": [{**SUITE["grid"][0], "method": [*accuracies]}]})
    for run in load_suite(place.suite).runs:
        place.finish(run, accuracies[run.method][run.spec.trial])
    best = "resnet8 → resnet8  best: kd 80.53 ± 0.61 (3); not significantly different: at"
    assert summary(place)[2:] == [best]
    assert summary(place, tiny=True)[2:] == [], "numbers of tiny runs mean nothing"


def test_single_trials_make_no_method_the_best(place):
    for run, top1 in zip(place.runs().values(), (70.0, 80.0), strict=True):
        place.finish(run, top1)
    assert summary(place)[2:] == ["resnet8 → resnet8  kd 80.00 (1), ce 70.00 (1); too few shared trials to rank them"]


def test_of_many_pairs_the_first_are_named(place):
    students = ["resnet8", "resnet14", "resnet20", "vgg8", "wrn-10-1", "wrn-16-1"]
    place.write({**SUITE, "grid": [{"teacher": "resnet8", "student": students, "method": "kd"}]})
    for run in load_suite(place.suite).runs:
        place.finish(run)
    lines = summary(place)[2:]
    assert lines[0] == "resnet8 → resnet8  kd 50.00 (1)"
    assert lines[4:] == ["… and more pairs in the tables"]


def test_a_run_ends_with_the_commands_that_come_next(place):
    place.work = lambda plan: [place.finish(run) for run in place.runs().values()]
    done = place.run("--only", "method=kd")
    chosen = f"{place.suite} --only method=kd"
    assert done.stderr.splitlines()[-2:] == [
        f"Next: kdbench report {chosen} --results {place.results} -f html -o report.html",
        f"      kdbench plot bars {chosen} -o bars.png --results {place.results}",
    ]


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


def test_failures_of_now_and_before_end_with_exit_code_1(place, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kdbench", "run", "tiny.yaml"])
    runs = place.runs()
    store = Store(place.results)
    store.run(runs["ce"].id).fail(Failure(kind="diverged", epoch=3, reason="loss is not finite in epoch 3"))
    place.result.failed = {runs["kd"].id: "ValueError in epoch 1: no", "0123456789ab": "broken teacher"}
    with pytest.raises(KdbenchError) as caught:
        place.run()
    assert str(caught.value).splitlines() == [
        "3 failed:",
        "  teacher 0123456789ab: broken teacher",
        f"  {runs['kd'].label} ({runs['kd'].id}): ValueError in epoch 1: no",
        f"  {runs['ce'].label} ({runs['ce'].id}): loss is not finite in epoch 3",
        f"More: kdbench show 0123456789ab --results {place.results}",
        "Try again: kdbench run tiny.yaml --retry-diverged",
    ]
    assert [run.id for cohort in place.plans[0].cohorts for run in cohort.runs] == [runs["kd"].id]


def test_a_diverged_run_is_tried_again_when_asked(place):
    runs = place.runs()
    Store(place.results).run(runs["ce"].id).fail(Failure(kind="diverged", epoch=3, reason="x"))
    place.work = lambda plan: [place.finish(run) for run in runs.values()]
    assert place.run("--retry-diverged").exit_code == 0, "a failure that a result has overtaken does not count"
    assert place.plans[0].runs == 2
