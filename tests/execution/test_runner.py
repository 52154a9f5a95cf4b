"""Before and after the devices work: what is checked, how signals stop a run, and what is said of what failed earlier."""

import signal
from types import SimpleNamespace

import pytest

from kdbench.errors import BadInput
from kdbench.execution.devices import Gpu, Slot
from kdbench.execution.runner import _check_files, _check_precision, _stopping_on_signals, run_suites
from kdbench.execution.worker_handle import RunOptions
from kdbench.planning.cohorts import Cohort
from kdbench.planning.plan import Plan
from kdbench.store.result import Accuracy, Failure, Result
from kdbench.store.store import Store
from kdbench.suite.load import load_suite
from kdbench.suite.specs import DatasetSpec, HeadSpec, Imported, Recipe, RunSpec, Supervised, WeightedTerm, Weights


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
    ],
)
def test_bf16_needs_a_gpu_that_has_it(plan):
    _check_precision(plan, [NEW, Slot("cpu", "cpu")])
    _check_precision(plan_of(TEACHER), [OLD])
    with pytest.raises(BadInput, match=r"needs GPUs of compute capability 8\.0 or above, and here is gpu:0, A card"):
        _check_precision(plan, [NEW, OLD])


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
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with _stopping_on_signals(pool):
        for number in signals:
            signal.raise_signal(number)
    assert called == calls
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


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
