"""Tasks on several devices: what they wait for, which are worth it, and how many they get."""

import pytest

from kdbench.planning.cohorts import Cohort, Task, _chains, by_depth, makespan, recipes_of, tasks, widened
from kdbench.planning.cost import teacher_work
from kdbench.planning.speed import Speed
from kdbench.suite.specs import (
    DatasetSpec,
    Pretraining,
    Recipe,
    RunSpec,
    SelfSupervised,
    StudentOf,
    Supervised,
    WeightedTerm,
)


RECIPE = Recipe(epochs=4, batch=64, lr=0.1)
CIFAR = DatasetSpec(name="cifar100")
TEACHER = Supervised(network="vgg13", dataset=CIFAR, recipe=RECIPE)
RUN = RunSpec(student="vgg8", teacher=TEACHER, terms=(WeightedTerm(name="kd"),), dataset=CIFAR, recipe=RECIPE)
ARITHMETIC, LAUNCHES = Speed("gpu", (1e-12, 0, 0, 0, 0)), Speed("gpu", (0, 0, 1e-5, 0, 0))


def task(seconds, gives, *needs, **fields):
    return Task(seconds, (gives,), frozenset(needs), **fields)


def test_a_task_on_several_devices_waits_until_so_many_are_free():
    assert makespan([task(3, "a", devices=2), task(1, "b"), task(1, "c")], 2) == 4
    assert makespan([task(3, "a", devices=2), task(1, "b")], 3) == 3
    assert makespan([task(3, "a", devices=4)], 2) == 3, "more than there are, but it does not wait for ever"


def test_a_task_that_all_would_wait_for_gets_as_many_devices_as_that_takes():
    quicker = ((2, 6.0), (4, 3.0))
    long, short = task(10, "a", quicker=quicker), task(1, "b")
    assert [each.devices for each in widened([long, short], 4)] == [4, 1]
    assert [each.seconds for each in widened([long, short], 4)] == [3, 1]
    chain = [task(5, "a", quicker=((2, 2.5),)), task(5, "b", "a", quicker=((2, 2.5),)), task(2, "c")]
    assert [each.devices for each in widened(chain, 2)] == [2, 2, 1]
    many = [task(1, f"{at}", quicker=((2, 0.5),)) for at in range(8)]
    assert widened(many, 2) == many, "all slots are busy anyway"
    rigid = [task(10, "a"), short]
    assert widened(rigid, 4) == rigid


def test_several_devices_are_worthwhile_up_to_twice_the_time_in_all():
    (made,) = tasks([TEACHER], (), ARITHMETIC, 4)
    alone = ARITHMETIC.seconds(teacher_work(TEACHER))
    assert (made.seconds, made.gives, made.needs) == (alone, (TEACHER.id,), frozenset())
    assert made.quicker == ((2, pytest.approx(alone / 2)), (4, pytest.approx(alone / 4)))
    one, two = (Cohort((RUN, RUN.model_copy(update={"trial": 1}))[:count]) for count in (1, 2))
    assert [each for each, _ in one.task(LAUNCHES, 4).quicker] == [2]
    assert two.task(LAUNCHES, 4).quicker == (), "two runs can be split instead"
    assert [each for each, _ in two.task(ARITHMETIC, 4).quicker] == [2, 4]
    assert one.task(ARITHMETIC).quicker == ()
    assert one.task(ARITHMETIC).needs == {TEACHER.id}


def test_views_without_labels_are_not_divided():
    encoder = SelfSupervised(network="resnet8", dataset=CIFAR, pretraining=Pretraining(recipe=RECIPE))
    assert (recipes_of(encoder), recipes_of(TEACHER), recipes_of(None, [RUN])) == ([], [RECIPE], [RECIPE])
    assert tasks([encoder], (), ARITHMETIC, 4)[0].quicker == ()


def test_students_that_teach_come_before_those_that_learn_from_them():
    learner = RUN.model_copy(update={"teacher": StudentOf(run=RUN)})
    groups = by_depth([Cohort((learner,)), Cohort((RUN,))])
    assert [[cohort.runs for cohort in each] for each in groups] == [[(RUN,)], [(learner,)]]


def test_the_longest_chain_through_a_task_counts_it_once():
    jobs = [task(4, "teacher"), task(2, "head", "teacher"), task(1, "run", "head"), task(3, "other", "teacher")]
    jobs += [task(9, "alone")]
    assert _chains(jobs) == [7, 7, 7, 7, 9]
    assert _chains([task(4, "a"), task(5, "b"), task(1, "c", "a", "b"), task(2, "d", "a")]) == [6, 6, 6, 6]
