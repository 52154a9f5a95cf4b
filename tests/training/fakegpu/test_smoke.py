"""Teachers, adapters, every method, probes and similarities end on the device as on the CPU, byte for byte."""

import pytest
from fakegpu import Recorder

from kdbench.planning.plan import make_plan
from kdbench.suite.load import load_suites
from kdbench.training import loop
from kdbench.training.teacher import FrozenTeacher, OnlineTeacher
from kdbench.training.trainer import Trainer


@pytest.fixture
def waits(monkeypatch):
    """What made the host wait within steps and the teachers' forward passes."""
    found = set()

    def recorded(method):
        def call(*arguments):
            with Recorder() as recorder:
                result = method(*arguments)
            found.update(recorder.waits)
            return result

        return call

    for kind, name in (
        (Trainer, "step"),
        *((t, n) for t in (FrozenTeacher, OnlineTeacher) for n in ("forward", "learn")),
    ):
        monkeypatch.setattr(kind, name, recorded(getattr(kind, name)))
    monkeypatch.setattr(FrozenTeacher, "forward_views", recorded(FrozenTeacher.forward_views))
    monkeypatch.setattr(loop, "TELL_SECONDS", 1e9)
    return found


@pytest.mark.slow
def test_the_smoke_suite_ends_as_on_the_cpu(gpu, bench, waits, monkeypatch):
    """On 16 pixels MobileNetV2's last map has one: torch cannot tell its layout then, and rounds otherwise."""
    monkeypatch.setattr("kdbench.suite.suite.SMALL", 32)
    (suite,) = load_suites(["smoke"], tiny=True)
    measurements = [measurement.spec for measurement in suite.measurements]
    here, there = bench("cpu"), bench("gpu", device=gpu)
    for shop in (here, there):
        plan = make_plan(suite.specs.values(), shop.store, measurements=measurements)
        for stage in plan.teachers:
            shop.teacher(stage)
        for cohort in plan.cohorts:
            shop.cohort(*cohort.runs)
        for measurement in plan.measurements:
            shop.measure(measurement)
        assert shop.texts("failed") == []
    specs = [*plan.teachers, *(run for cohort in plan.cohorts for run in cohort.runs), *plan.measurements]
    assert len(specs) > 100
    assert there.files(*specs) == here.files(*specs)
    assert waits == set()


def test_a_run_resumes_on_the_device(gpu, bench, make_run):
    run = make_run({"ce": 1, "vid": 1}, "simultaneous")
    whole, broken = bench("whole"), bench("broken", device=gpu)
    whole.train(run)
    broken.teachers(run)
    broken.again(stop_at_call=2).cohort(run)
    last = broken.again()
    last.cohort(run)
    assert last.texts("resumed") == ["resumes after epoch 0 and 2 batches"]
    assert broken.files(run) == whole.files(run)
