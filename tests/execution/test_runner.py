"""Before and after the devices work: what is checked, how signals stop a run, and what is said of what failed earlier."""

import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kdbench.errors import BadInput, BadSuite, CannotSave, Interrupted, Problem
from kdbench.execution import runner
from kdbench.execution.devices import Gpu, Slot
from kdbench.execution.runner import _check_files, _check_precision, _stopping_on_signals, run_suites
from kdbench.execution.scheduler import Outcome
from kdbench.execution.worker_handle import RunOptions
from kdbench.planning.cohorts import Cohort
from kdbench.planning.plan import Plan
from kdbench.store.result import Accuracy, Failure, Result
from kdbench.store.store import Store
from kdbench.suite.load import load_suite
from kdbench.suite.measurements import ProbeSpec
from kdbench.suite.specs import (
    DatasetSpec,
    HeadSpec,
    Imported,
    Recipe,
    RunSpec,
    StudentOf,
    Supervised,
    WeightedTerm,
    Weights,
)


DIGITS = DatasetSpec(name="digits")
RECIPE = Recipe(epochs=4, batch=64, lr=0.1)
BF16 = RECIPE.model_copy(update={"precision": "bf16"})
TEACHER = Supervised(network="resnet20", dataset=DIGITS, recipe=RECIPE)
RUN = RunSpec(student="resnet8", teacher=TEACHER, terms=(WeightedTerm(name="kd"),), dataset=DIGITS, recipe=RECIPE)
OLD, NEW = (Slot(f"gpu:{n}.1", "gpu", gpu=Gpu("A card", capability)) for n, capability in enumerate([(7, 5), (8, 0)]))


def plan_of(*teachers, **changes):
    return Plan(teachers, (Cohort((RUN.model_copy(update=changes),)),), 0, 0)


@pytest.mark.parametrize(
    "plan",
    [
        plan_of(recipe=BF16),
        plan_of(teacher_precision="bf16"),
        plan_of(head=HeadSpec(width=8, recipe=BF16)),
        plan_of(TEACHER.model_copy(update={"recipe": BF16})),
        Plan((), (), 0, 0, measurements=(ProbeSpec(source=TEACHER, dataset=DIGITS, recipe=BF16),)),
    ],
)
def test_bf16_needs_a_gpu_that_has_it(plan):
    _check_precision(plan, [NEW, Slot("cpu", "cpu")])
    _check_precision(plan_of(TEACHER), [OLD])
    _check_precision(plan, [])
    with pytest.raises(BadInput) as caught:
        _check_precision(plan, [NEW, OLD, replace(OLD, name="gpu:0.2")])
    assert str(caught.value) == (
        "precision bf16 needs GPUs of compute capability 8.0 or above, and here is gpu:0, A card (compute capability 7.5): "
        "choose others with --devices, or write 'precision: fp32' in the protocol. Nothing was run."
    )


def test_weights_that_nothing_here_was_made_from_are_named(tmp_path):
    weights = Weights(source="file", sha256="5" * 64)
    imported = Imported(network="resnet20", weights=weights, dataset=DIGITS)
    encoder = Imported(network="resnet20", weights=Weights(**{**weights.model_dump(), "classifier": False}))
    for teacher, known in ((imported, "--dataset digits"), (encoder, "--classes …")):
        with pytest.raises(BadInput, match=f"weights sha256:{'5' * 64}: no teacher here .* --network resnet20 {known}"):
            _check_files(plan_of(teacher), RunOptions(tmp_path))


@pytest.mark.parametrize(
    ("signals", "calls"),
    [
        ([signal.SIGINT], ["stop"]),
        ([signal.SIGINT, signal.SIGINT], ["stop", "kill"]),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGTERM], ["stop"] * 3),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGINT], ["stop", "stop", "kill"]),
        ([signal.SIGHUP], ["stop"]),
    ],
)
def test_the_second_interrupt_ends_at_once_what_the_first_stops(signals, calls):
    called = []
    pool = SimpleNamespace(stop=lambda: called.append("stop"), kill=lambda: called.append("kill"))
    outside = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    try:
        with _stopping_on_signals(pool):
            for number in signals:
                signal.raise_signal(number)
        assert called == calls
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    finally:
        signal.signal(signal.SIGHUP, outside)


def test_a_process_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _stopping_on_signals(SimpleNamespace(stop=lambda: pytest.fail("stopped"))):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_where_nothing_is_left_to_do_the_reasons_of_what_diverged_are_given(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("protocol: smoke\ndataset: digits\ntrials: 2\ngrid: {student: resnet8, method: ce}\n")
    suite, options = load_suite(file), RunOptions(tmp_path / "results")
    done, diverged = (Store(options.results).run(run.id) for run in suite.runs)
    for record, run in zip((done, diverged), suite.runs, strict=True):
        record.begin(run.spec.canonical())
    score, metrics = Accuracy(epoch=2, top1=50.0, top5=90.0), done.write_metrics([])
    done.finish(Result(id=done.id, kind="run", last=score, best=score, weights_sha256="", metrics_sha256=metrics), {})
    diverged.fail(Failure(kind="diverged", epoch=1, reason="loss is nan"))
    assert run_suites([suite], options) == {diverged.id: "loss is nan"}
    assert [path.name for path in (options.results / "suites").glob("*/*.yaml")] == ["own.yaml"]


@pytest.mark.parametrize(
    ("per_run", "of_suite", "cluster", "cached"),
    [
        (None, 1, "", True), (None, 2, "", False), (None, 0, "", True), (1, 2, "", True), (2, 1, "", False),
        (0, 2, "", True), (None, 1, "auto", False), (1, 1, "auto", False),
    ],
)  # fmt: skip
def test_outputs_are_cached_for_runs_on_one_device_of_this_machine(monkeypatch, per_run, of_suite, cluster, cached):
    monkeypatch.setattr(runner, "devices_per_run", lambda suites: of_suite)
    assert runner.caches([], per_run, cluster) == cached


@pytest.fixture
def rounds(tmp_path, monkeypatch):
    """rounds(damaged, measured, failed, stages): how often the work is planned where each round finds the same."""

    def count(damaged=(), measured=(), failed=None, stages=(TEACHER,)):
        planned = []
        store = SimpleNamespace(
            remove_empty_logs=lambda: None,
            quarantine_damaged=lambda records: [],
            quarantine_damaged_teachers=lambda used: list(damaged),
            measurement=lambda id: id,
            measured=lambda spec: spec.there,
        )
        monkeypatch.setattr(runner, "Store", lambda root: store)
        monkeypatch.setattr(runner, "run_specs", lambda suites: [])
        monkeypatch.setattr(runner, "measurement_specs", lambda suites: list(measured))
        monkeypatch.setattr(runner, "make_plan", lambda *_, **__: planned.append(1) or plan_of())
        monkeypatch.setattr(runner, "_prepare", lambda *_: None)
        monkeypatch.setattr(runner, "_execute", lambda *_: failed or {})
        found = runner._run_until_consistent((), (), stages, RunOptions(tmp_path), lambda slot, event: None)
        assert found == (failed or {})
        return len(planned)

    return count


def test_the_work_is_planned_again_until_nothing_rests_on_what_was_replaced(rounds):
    there, missing = (SimpleNamespace(id="m", there=result) for result in ("a result", None))
    assert rounds() == 1
    assert rounds(measured=[there]) == 1
    assert rounds(damaged=["the teacher is redone"], failed={"a": "broke"}) == 1
    assert rounds(damaged=["the teacher is redone"]) == 3
    assert rounds(measured=[there, missing]) == 3
    assert rounds(damaged=["the teacher is redone"], stages=()) == 2


def test_a_failure_that_is_known_from_earlier_is_told_unless_the_record_is_done(tmp_path, monkeypatch):
    file = tmp_path / "own.yaml"
    file.write_text("protocol: smoke\ndataset: digits\ntrials: 3\ngrid: {student: resnet8, method: ce}\n")
    suite, store = load_suite(file), Store(tmp_path / "results")
    now, earlier, done = (store.run(run.id) for run in suite.runs)
    for record, run in zip((now, earlier, done), suite.runs, strict=True):
        record.begin(run.spec.canonical())
    score = Accuracy(epoch=2, top1=50.0, top5=90.0)
    done.finish(Result(id=done.id, kind="run", last=score, best=score, weights_sha256=""), {})
    for record in (now, earlier, done):
        record.fail(Failure(kind="error", epoch=1, reason="earlier"))
    monkeypatch.setattr(runner, "_run_until_consistent", lambda *_: {now.id: "now"})
    assert run_suites([suite], RunOptions(store.root)) == {now.id: "now", earlier.id: "earlier"}


def test_weights_are_looked_at_only_where_there_are_any(monkeypatch):
    monkeypatch.setattr(runner, "answer", lambda *_: pytest.fail("asked"))
    encoder = Imported(network="resnet20", weights=Weights(source="file", sha256="5" * 64, classifier=False))
    assert runner.misfits([TEACHER], {}) == runner.misfits([encoder], {}) == []


def test_the_process_that_looks_at_weights_is_told_all_of_them_and_says_each_misfit_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        runner, "answer", lambda code, request, what: asked.append(request) or 'noise\n["", "a", "a", "b"]'
    )
    weights = [Weights(source="file", sha256=digit * 64, classifier=digit == "5") for digit in "56"]
    teachers = [
        Imported(network="resnet20", weights=weights[0], dataset=DIGITS),
        Imported(network="resnet8", weights=weights[1]),
    ]
    files = {each.sha256: tmp_path / f"{number}.pth" for number, each in enumerate(weights)}
    assert runner.misfits(teachers, files) == ["a", "b"]
    common = {"key": None}
    assert asked == [
        {
            "files": [
                {"file": str(tmp_path / "0.pth"), "network": "resnet20", "classes": 10, "classifier": True, **common},
                {"file": str(tmp_path / "1.pth"), "network": "resnet8", "classes": 1, "classifier": False, **common},
            ],
            "beside": {},
        }
    ]


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """execute(outcome, …): what the pool was made of, what failed and what was said; it does nothing but to end so."""

    def act(outcome=None, warning="", **options):
        made, said = [], []

        class Pool:
            inbox = None
            stop = kill = None

            def __init__(self, slots, options, listen):
                made.append((slots, options.devices_per_run))

            def run(self, plan):
                return outcome or Outcome()

        monkeypatch.setattr(runner, "Pool", Pool)
        monkeypatch.setattr(runner, "make_slots", lambda devices, jobs, tell: [Slot("cpu", "cpu")])
        needed = SimpleNamespace(warning=lambda results: warning)
        monkeypatch.setattr(runner, "disk_needed", lambda plan, slots: needed)
        monkeypatch.setattr(runner, "known_speeds", lambda store: None)
        monkeypatch.setattr(runner, "devices_per_run", lambda suites: 7)
        failed = runner._execute(
            plan_of(), (), RunOptions(tmp_path / "r", **options), lambda slot, event: said.append(event)
        )
        return made, failed, [event.get("text", event["event"]) for event in said]

    return act


@pytest.mark.parametrize(("given", "taken"), [(None, 7), (1, 1), (0, 0)])
def test_a_run_is_on_as_many_devices_as_the_options_say_or_else_the_suites(execute, given, taken):
    assert execute(devices_per_run=given) == ([([Slot("cpu", "cpu")], taken)], {}, ["planned"])


def test_what_failed_is_returned_and_a_disk_that_may_be_too_small_is_told(execute):
    assert execute(Outcome(failed={"a": "broke"}), "the disk is small")[1:] == (
        {"a": "broke"}, ["the disk is small", "planned"],
    )  # fmt: skip


def test_who_was_interrupted_or_cannot_save_ends_so(execute, tmp_path):
    with pytest.raises(Interrupted) as caught:
        execute(Outcome(interrupted=True, fatal=CannotSave("no room")))
    assert str(caught.value) == f"Stopped. What was trained up to the last checkpoint is saved in {tmp_path / 'r'}"
    with pytest.raises(CannotSave, match="no room"):
        execute(Outcome(fatal=CannotSave("no room")))


def test_files_that_are_missing_are_named_unless_they_may_be_downloaded_or_none_is(tmp_path, monkeypatch):
    missing = []
    monkeypatch.setattr(runner, "missing_files", lambda plan, data: missing)
    monkeypatch.setattr(runner, "misfits", lambda teachers, files: [])
    _check_files(plan_of(), RunOptions(tmp_path))
    missing.append("digits: lacks its file")
    _check_files(plan_of(), RunOptions(tmp_path, download=True))
    with pytest.raises(BadSuite) as caught:
        _check_files(plan_of(), RunOptions(tmp_path))
    assert caught.value.problems == [Problem("--data", 0, "", "digits: lacks its file")]


def test_weights_whose_file_is_known_are_looked_at_and_misfits_stop_the_run(tmp_path, monkeypatch):
    wrong = []
    monkeypatch.setattr(runner, "misfits", lambda teachers, files: wrong)
    imported = Imported(network="resnet20", weights=Weights(source="file", sha256="5" * 64), dataset=DIGITS)
    options = RunOptions(tmp_path, download=True, weights={"5" * 64: tmp_path / "w.pth"})
    _check_files(plan_of(imported, TEACHER), options)
    wrong += ["one", "two"]
    with pytest.raises(BadInput) as caught:
        _check_files(plan_of(imported), options)
    assert str(caught.value) == "one\ntwo\nNothing was run."


@pytest.mark.parametrize("done", [False, True])
def test_the_runs_whose_students_teach_are_checked_until_the_last_of_them_is_done(tmp_path, monkeypatch, done):
    below = RUN.model_copy(update={"student": "resnet14"})
    taught = RUN.model_copy(update={"teacher": StudentOf(run=below)})
    used = []
    monkeypatch.setattr(runner, "run_specs", lambda suites: [taught])
    monkeypatch.setattr(runner, "measurement_specs", lambda suites: [])
    monkeypatch.setattr(runner, "_run_until_consistent", lambda suites, wanted, stages, *_: used.extend(stages) or {})
    store = Store(tmp_path)
    if done:
        score, record = Accuracy(epoch=2, top1=50.0, top5=90.0), store.run(taught.id)
        record.finish(Result(id=taught.id, kind="run", last=score, best=score, weights_sha256=""), {})
    assert run_suites([], RunOptions(tmp_path)) == {}
    assert [stage for stage in used if stage.source_run] == ([] if done else [taught.teacher])
