"""A plan that is played: its makespan by hand, and nothing lost with the devices."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from kdbench.execution import simulation
from kdbench.execution.simulation import Conditions, play
from kdbench.planning.cohorts import Cohort
from kdbench.planning.cost import Work, cohort_work, measurement_work, teacher_work
from kdbench.planning.plan import Plan, make_plan
from kdbench.planning.speed import Speed
from kdbench.store.store import Store
from kdbench.suite.measurements import ProbeSpec
from kdbench.suite.specs import Adapter, DatasetSpec, Recipe, RunSpec, Supervised, WeightedTerm


RECIPE = Recipe(epochs=4, batch=64, lr=0.1)
CIFAR = DatasetSpec(name="cifar100")
TEACHER = Supervised(network="vgg13", dataset=CIFAR, recipe=RECIPE)
ADAPTER = Adapter(parent=TEACHER, dataset=CIFAR, term="ft", recipe=RECIPE)
SPEED = Speed("gpu", (1e-12, 0.0, 0.0, 0.0, 0.0))
"""A run takes about a minute and a half."""


def run(method="kd", trial=0, **values):
    spec = {"student": "vgg8", "teacher": TEACHER, "dataset": CIFAR, "recipe": RECIPE, **values}
    return RunSpec(terms=(WeightedTerm(name=method),), trial=trial, **spec)


def seconds(*runs):
    return SPEED.seconds(cohort_work(runs))


MADE = SPEED.seconds(teacher_work(TEACHER))


def plan_of(*runs, teachers=(TEACHER,)):
    """Each run a cohort of its own."""
    return Plan(teachers, tuple(Cohort((each,)) for each in runs), 0, 0)


def test_students_wait_for_their_teacher():
    played = play(plan_of(run(), run(trial=1), run(trial=2)), 2, SPEED)
    assert played.makespan == pytest.approx(MADE + 2 * seconds(run()))
    assert played.idle_share == pytest.approx(1 - (MADE + 3 * seconds(run())) / (2 * played.makespan))
    assert (played.jobs, played.losses, played.repeated) == (4, 0, 0)


def test_what_needs_an_adapter_waits_for_it_and_others_do_not():
    adapted = run("ft", trial=1, adapters=(ADAPTER,))
    played = play(plan_of(run(), adapted, teachers=(TEACHER, ADAPTER)), 2, SPEED)
    chain = SPEED.seconds(teacher_work(ADAPTER)) + seconds(adapted)
    assert played.makespan == pytest.approx(MADE + max(chain, seconds(run())))


def test_what_takes_time_beside_the_work():
    conditions = Conditions(start=10, prepare=5, save=0.5)
    played = play(plan_of(run()), 1, SPEED, conditions)
    assert played.makespan == pytest.approx(10 + 5 + 1.5 * MADE + 5 + 1.5 * seconds(run()))


def test_several_devices_divide_arithmetic_and_each_launches_and_updates():
    speed = Speed("gpu", (1e-12, 0.0, 1e-4, 1e-10, 0.0))
    alone, divided = (play(plan_of(run()), devices, speed, devices_per_run=devices) for devices in (1, 4))
    work = cohort_work([run()]) + teacher_work(TEACHER)
    whole = speed.seconds(replace(work, macs=0)) + speed.seconds(Work(updates=work.updates))  # the gradients' averages
    assert divided.makespan == pytest.approx(SPEED.seconds(work) / 4 + whole)
    assert (alone.widths, divided.widths) == ({1: 2}, {4: 2})
    assert divided.idle_share == pytest.approx(0)


def test_a_run_gets_no_devices_of_another_host():
    """Nine devices are on two hosts, eight and one."""
    assert play(plan_of(run()), 9, SPEED, devices_per_run=16).widths == {8: 2}
    assert play(plan_of(run()), ["a", "b", "b", "c"], SPEED, devices_per_run=4).widths == {2: 2}


def test_what_a_group_of_devices_has_trained_is_lost_together():
    conditions = Conditions(checkpoint=10, loss=30, absence=5, seed=1)
    played = play(plan_of(run()), 4, SPEED, conditions, devices_per_run=4)
    calm = play(plan_of(run()), 4, SPEED, devices_per_run=4)
    assert played.losses >= 2
    assert played.trained - played.repeated == pytest.approx(calm.trained)
    assert 0 < played.repeated <= 4 * 10 * played.losses


def test_nothing_to_do_takes_no_time():
    played = play(Plan((), (), 0, 0), 4, SPEED)
    assert (played.makespan, played.idle_share) == (0, 0)


@pytest.mark.parametrize("devices", [1, 2, 7])
def test_with_devices_that_get_lost_every_job_comes_to_its_end(devices):
    """Losses every minute and a half, of jobs that take as long: most jobs are begun more than once."""
    runs = [run(method, trial) for method in ("kd", "at", "sp", "vid") for trial in range(5)]
    plan = make_plan(runs, Store(Path("/nowhere")))
    conditions = Conditions(start=2, prepare=1, checkpoint=10, loss=90, absence=20, seed=3)
    played = play(plan, devices, SPEED, conditions)
    calm = play(plan, devices, SPEED)
    assert played.losses >= 5
    assert played.makespan > calm.makespan
    assert played.trained - played.repeated == pytest.approx(
        calm.trained, rel=0.15
    )  # other splits, other teacher passes
    assert 0 < played.repeated <= 10 * played.losses


def test_the_same_seed_plays_the_same():
    plan = make_plan([run(trial=trial) for trial in range(6)], Store(Path("/nowhere")))
    first, again, other = (play(plan, 2, SPEED, Conditions(loss=60, absence=30, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.fixture
def losses(monkeypatch):
    """losses(device, *times): this device is lost at these times, whatever the draw; the rates that were drawn from."""

    def at(device, *times):
        gaps = iter([later - earlier for earlier, later in pairwise((0.0, *times, float("inf")))])
        rates = []

        class Drawn:
            def __init__(self, seed):
                pass

            def expovariate(self, rate):
                rates.append(rate)
                return next(gaps)

            def choice(self, names):
                return device

        monkeypatch.setattr(simulation.random, "Random", Drawn)
        return rates

    return at


ALONE = run("ce", teacher=None)
LOSSES = Conditions(start=2, prepare=1, checkpoint=10, loss=50, absence=7)


def test_the_only_device_comes_back_and_goes_on_from_the_last_checkpoint(losses):
    rates = losses("device 0", 25)
    played = play(plan_of(ALONE, teachers=()), 1, SPEED, LOSSES)
    whole = seconds(ALONE)
    assert played.makespan == pytest.approx((25 + 7 + 2) + 1 + whole - 20)
    assert (played.trained, played.repeated) == (pytest.approx(whole + 2), pytest.approx(2))
    assert (played.losses, played.jobs, played.widths, rates) == (1, 1, {1: 1}, [1 / 50] * 2)


def test_another_device_goes_on_from_the_last_checkpoint_of_one_that_is_lost(losses):
    losses("device 0", 25)
    played = play(plan_of(ALONE, teachers=()), 2, SPEED, LOSSES)
    whole = seconds(ALONE)
    assert played.makespan == pytest.approx(25 + 2 + 1 + whole - 20)
    assert played.trained - played.repeated == pytest.approx(whole)


@pytest.mark.parametrize(("time", "counted"), [(1.0, 0), (1.999, 0), (2.0, 1)])
def test_a_device_that_is_not_there_yet_cannot_be_lost(losses, time, counted):
    losses("device 0", time)
    played = play(plan_of(ALONE, teachers=()), 1, SPEED, LOSSES)
    assert played.losses == counted
    assert played.makespan == pytest.approx(3 + seconds(ALONE) + counted * (2 + 7))
    assert (played.trained, played.repeated) == (pytest.approx(seconds(ALONE)), 0)


def test_with_one_device_of_a_group_the_training_of_all_goes_back_to_the_checkpoint(losses):
    losses("device 1", 25)
    played = play(plan_of(ALONE, teachers=()), 2, SPEED, LOSSES, devices_per_run=2)
    whole = seconds(ALONE)
    assert played.makespan == pytest.approx(25 + 1 + whole - 2 * 20)
    assert played.trained == pytest.approx(2 * 22 + whole - 2 * 20)
    assert (played.repeated, played.losses, played.widths) == (pytest.approx(2 * 2), 1, {1: 1})


def test_without_more_conditions_only_the_work_takes_time():
    calm = Conditions()
    assert (calm.start, calm.prepare, calm.save, calm.loss, calm.seed) == (0, 0, 0, 0, 0)
    assert (calm.checkpoint, calm.absence, calm.per_host) == (30, 600, 8)
    assert play(plan_of(ALONE, teachers=()), 1, SPEED).makespan == pytest.approx(seconds(ALONE))


def test_a_measurement_comes_after_what_it_is_of():
    probe = ProbeSpec(source=TEACHER, dataset=CIFAR, recipe=RECIPE)
    plan = replace(plan_of(), teachers=(TEACHER,), measurements=(probe,))
    played = play(plan, 3, SPEED)
    assert played.makespan == pytest.approx(MADE + SPEED.seconds(measurement_work(probe)))
    assert (played.jobs, played.idle_share) == (2, pytest.approx(2 / 3))


def test_what_a_plan_needs_and_does_not_make_is_there():
    assert play(plan_of(run(), teachers=()), 1, SPEED).makespan == pytest.approx(seconds(run()))
