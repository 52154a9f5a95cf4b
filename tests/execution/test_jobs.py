"""Jobs and the backlog that they are taken from: what a worker is sent, who is first, and who waits for what."""

import pytest

from kdbench.execution.jobs import Backlog, Job, cohort_job, job_for, spread
from kdbench.planning.cohorts import Cohort
from kdbench.planning.speed import ASSUMED
from kdbench.suite.measurements import ProbeSpec
from kdbench.suite.specs import Adapter, DatasetSpec, Recipe, RunSpec, StudentOf, Supervised, WeightedTerm


DIGITS = DatasetSpec(name="digits", train_per_class=4)
RECIPE = Recipe(epochs=2, batch=16, lr=0.1)
TEACHER = Supervised(network="resnet20", dataset=DIGITS, recipe=RECIPE)
PART = Adapter(parent=TEACHER, dataset=DIGITS, term="ft", recipe=RECIPE)
PROBE = ProbeSpec(source=TEACHER, dataset=DIGITS, recipe=RECIPE)


def student(trial=0, teacher=None, **values):
    terms = (WeightedTerm(name="kd" if teacher else "ce"),)
    return RunSpec(
        student="resnet8", teacher=teacher, terms=terms, dataset=DIGITS, recipe=RECIPE, trial=trial, **values
    )


def test_a_new_job_has_not_waited_or_crashed_and_is_for_one_device():
    job = Job(teacher=TEACHER)
    assert (job.not_before, job.waited, job.waits_since, job.holders) == (0.0, False, 0.0, {})
    assert (job.crashes, job.furthest, job.devices, job.discard_weights, job.cached) == (0, {}, 1, frozenset(), None)
    assert (job.ids, job.recipes) == ([TEACHER.id], [RECIPE])


def test_a_worker_is_sent_what_it_is_to_make():
    runs = (student(), student(1))
    first, second = (run.model_dump(mode="json") for run in runs)
    assert Job(teacher=TEACHER).message() == {
        "teacher": TEACHER.model_dump(mode="json"), "waited": False, "discard_weights": [],
    }  # fmt: skip
    job = cohort_job(Cohort(runs), frozenset({runs[1].id, "another"}))
    assert job.message() == {"runs": [first, second], "cached": False, "waited": False, "discard_weights": [runs[1].id]}
    again = job.subset([runs[0].id], waited=True)
    assert again.message() == {"runs": [first], "cached": False, "waited": True, "discard_weights": []}


@pytest.mark.parametrize(("count", "halves"), [(2, (1, 1)), (3, (1, 2)), (8, (4, 4))])
def test_a_cohort_is_halved(count, halves):
    job = Job(runs=tuple(student(trial) for trial in range(count)))
    parts = job.split(crashes=2)
    assert tuple(len(part.runs) for part in parts) == halves
    assert [run for part in parts for run in part.runs] == [*job.runs]
    assert [part.crashes for part in parts] == [2, 2]


def test_only_who_gets_further_than_ever_before_is_in_no_crash_loop():
    job = Job(runs=(student(),), crashes=2)
    for id, place, further in (
        ("a", (0, 0), True), ("a", (0, 0), False), ("a", (0, 1), True), ("a", (1, 0), True), ("a", (0, 9), False),
        ("b", (0, 0), True), ("a", (1, 0), False),
    ):  # fmt: skip
        job.crashes = 2
        assert job.record_progress(id, *place) == further
        assert job.crashes == (0 if further else 2)
    assert job.furthest == {"a": (1, 0), "b": (0, 0)}
    assert Job().record_progress("a", 3)


def test_what_a_job_needs_is_known_by_the_ids_of_the_records():
    below = student(5, TEACHER)
    taught = student(teacher=StudentOf(run=below))
    assert Job(teacher=TEACHER).dependencies == {}
    assert [*Job(teacher=PART).dependencies] == [TEACHER.id]
    assert [*Job(runs=(student(), student(1, TEACHER, adapters=(PART,)))).dependencies] == [TEACHER.id, PART.id]
    assert [*Job(runs=(taught,)).dependencies][-1] == below.id
    assert job_for(StudentOf(run=below)).ids == [below.id]
    assert job_for(PART).ids == [PART.id]


def test_what_trains_nothing_is_for_one_device():
    run = student()
    jobs = [Job(runs=(run,)), Job(measurement=PROBE)]
    assert [job.devices for job in spread(jobs, 2, 4, 4, ASSUMED["gpu"])] == [2, 1]
    jobs = [Job(runs=(run,)), Job(runs=(student(1),))]
    assert [job.devices for job in spread(jobs, 8, 4, 2, ASSUMED["gpu"])] == [2, 2], "as many as the host has"
    jobs = [Job(runs=(run,), devices=7)]
    assert spread(jobs, 1, 4, 4, ASSUMED["gpu"])[0].devices == 7, "for one device nothing is asked"


class Line:
    """A backlog, what is there, and what was given up."""

    def __init__(self):
        self.there, self.failed, self.given_up, self.now = set(), {}, [], 0.0
        self.backlog = Backlog(
            lambda stage: (stage.source_run or stage).id in self.there,
            self.failed,
            lambda job, ids, lost: self.given_up.append((ids, lost)),
            lambda jobs: jobs,
            lambda: self.now,
        )

    def take(self):
        job = self.backlog.take()
        return job and job.ids


@pytest.fixture
def line():
    return Line()


def test_teachers_come_before_cohorts_and_the_rest_last(line):
    line.there.add(TEACHER.id)
    measurement = Job(measurement=PROBE)
    cohorts, again = [Job(runs=(student(trial),)) for trial in (1, 2)], Job(runs=(student(3),))
    line.backlog.add([measurement, *cohorts, Job(teacher=TEACHER)])
    line.backlog.ended(Job(), [again])
    line.backlog.add_first([Job(runs=(student(4),)), Job(runs=(student(5),))])
    assert line.backlog
    order = [line.take() for _ in range(7)]
    assert order == [
        [student(4).id], [student(5).id], [TEACHER.id], cohorts[0].ids, cohorts[1].ids, [PROBE.id], again.ids,
    ]  # fmt: skip
    assert line.take() is None
    assert not line.backlog


def test_a_job_is_taken_from_its_time_on(line):
    line.backlog.add([Job(runs=(student(),), not_before=2.0), Job(runs=(student(1),), not_before=1.0)])
    assert line.take() is None
    line.now = 1.0
    assert line.take() == [student(1).id]
    line.now = 1.9
    assert line.take() is None
    assert line.backlog
    line.now = 2.0
    assert line.take() == [student().id]


def test_a_job_waits_for_what_it_lacks_and_what_nobody_is_at_is_made_first(line):
    run = student(teacher=TEACHER)
    line.backlog.add([Job(runs=(run,)), Job(runs=(student(9),))])
    assert line.take() == [TEACHER.id]
    assert line.take() == [student(9).id]
    assert line.take() is None
    line.there.add(TEACHER.id)
    assert line.take() is None, "nobody has said that it is there"
    line.backlog.settle(TEACHER.id)
    assert line.take() == [run.id]


def test_what_waits_goes_on_when_the_job_that_was_at_it_ends_but_not_while_that_is_tried_again(line):
    run, making = student(teacher=TEACHER), Job(teacher=TEACHER)
    line.backlog.add([making, Job(runs=(run,))])
    assert line.take() == [TEACHER.id]
    assert line.take() is None
    line.there.add(TEACHER.id)
    line.backlog.ended(making, [making], first=True)
    assert line.take() == [TEACHER.id]
    line.backlog.ended(making)
    assert line.take() == [run.id]


def test_what_needs_something_that_failed_is_given_up_and_the_rest_of_its_cohort_is_not(line):
    needs, plain = student(teacher=TEACHER, adapters=(PART,)), student(1, TEACHER)
    line.there.add(TEACHER.id)
    line.failed[PART.id] = "broke"
    line.backlog.add([Job(runs=(needs, plain))])
    assert line.take() == [plain.id]
    assert line.given_up == [([needs.id], PART.id)]
    line.failed[TEACHER.id] = "broke"
    line.backlog.add([Job(runs=(needs, plain)), Job(teacher=PART)])
    assert line.take() is None
    assert sorted(line.given_up[1:]) == sorted([([PART.id], TEACHER.id), ([needs.id, plain.id], TEACHER.id)])


def test_cohorts_are_withdrawn_wherever_they_are_and_nothing_else(line):
    waiting, later, lined, again = (
        Job(runs=(student(teacher=TEACHER),)), Job(runs=(student(1),), not_before=9.0), Job(runs=(student(2),)),
        Job(runs=(student(3),)),
    )  # fmt: skip
    line.backlog.add([Job(teacher=TEACHER), waiting])
    assert line.take() == [TEACHER.id]
    assert line.take() is None
    line.backlog.add([later, lined])
    line.backlog.ended(Job(), [again])
    withdrawn = line.backlog.withdraw_cohorts()
    assert sorted(job.ids for job in withdrawn) == sorted(job.ids for job in (waiting, later, lined))
    assert line.backlog.coming == {TEACHER.id, *again.ids}
    assert line.take() == again.ids
    assert not line.backlog
