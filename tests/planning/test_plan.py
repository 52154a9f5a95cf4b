"""Plans: what runs together, what is done already, and how the rest is spread over slots."""

from pathlib import Path

import pytest

from kdbench.planning.cohorts import Cohort, Task, auxiliaries_of, by_path, cap_size, group, makespan, split, tasks
from kdbench.planning.cost import Work, student_work
from kdbench.planning.plan import make_plan
from kdbench.planning.speed import Speed
from kdbench.store.result import Accuracy, Failure, Result
from kdbench.store.store import Store
from kdbench.suite.load import find_suite, load_suite
from kdbench.suite.specs import (
    Adapter,
    DatasetSpec,
    HeadSpec,
    NewLayers,
    Recipe,
    RunSpec,
    StudentOf,
    Supervised,
    WeightedTerm,
)


SPEED = Speed("cpu", (1.0, 0.0, 0.0, 0.0, 0.0))
"""One multiply-accumulate a second."""

RECIPE = Recipe(epochs=4, batch=64, lr=0.1)
CIFAR = DatasetSpec(name="cifar100")


def teacher(network="vgg13", **values):
    return Supervised(network=network, dataset=CIFAR, recipe=RECIPE, **values)


def run(student="vgg8", method="kd", trial=0, **values):
    spec = {"teacher": teacher() if method != "ce" else None, "recipe": RECIPE, "dataset": CIFAR, **values}
    return RunSpec(student=student, terms=(WeightedTerm(name=method),), trial=trial, **spec)


def finish(record, kind):
    accuracy = Accuracy(epoch=4, top1=50.0, top5=80.0)
    result = Result(
        id=record.id, kind=kind, last=accuracy, best=accuracy, train_images=1, test_images=1, weights_sha256=""
    )
    record.finish(result, {})


def test_runs_of_one_stream_and_teacher_train_together():
    cohorts = group([run(), run(method="at"), run("resnet8"), run(teacher=teacher("vgg19"))])
    assert sorted(len(cohort.runs) for cohort in cohorts) == [1, 3]


def test_runs_without_a_teacher_join_a_cohort_of_their_stream():
    (cohort,) = group([run(method="ce"), run(), run("resnet8", "ce")])
    assert len(cohort.runs) == 3
    assert cohort.teacher == teacher()
    (alone,) = group([run(method="ce"), run("resnet8", "ce")])
    assert alone.teacher is None


@pytest.mark.parametrize(
    "values",
    [
        {"trial": 1},
        {"recipe": RECIPE.model_copy(update={"precision": "bf16"})},
        {"recipe": RECIPE.model_copy(update={"flip": True})},
        {"teacher": teacher(checkpoint="best")},
        {"head": HeadSpec(width=8, recipe=RECIPE)},
    ],
)
def test_what_trains_apart(values):
    assert len(group([run(), run(**values)])) == 2


def test_different_epochs_may_train_together():
    assert len(group([run(), run(recipe=RECIPE.model_copy(update={"epochs": 2, "lr": 0.2}))])) == 1


def task(name, seconds, *needs):
    return Task(seconds, (name,), frozenset(needs))


def test_the_longest_chain_of_tasks_starts_first():
    jobs = [task("long", 5), task("head", 3, "teacher"), task("teacher", 1), task("student", 4, "head")]
    assert [jobs[number].gives[0] for number in by_path(jobs)] == ["teacher", "head", "long", "student"]


@pytest.mark.parametrize(
    ("jobs", "slots", "end"),
    [
        ([], 2, 0),
        ([task(str(n), seconds) for n, seconds in enumerate((2, 3, 2, 3, 2))], 2, 7),
        ([task("a", 3), task("b", 1)], 5, 3),
        ([task("teacher", 2), task("a", 3, "teacher"), task("b", 3, "teacher"), task("other", 2)], 2, 5),
        ([task("other", 9), task("a", 1), task("b", 9, "a")], 2, 10),
        ([task("a", 1, "made before")], 1, 1),
    ],
)
def test_the_makespan_of_tasks_by_hand(jobs, slots, end):
    assert makespan(jobs, slots) == end


def runs_of(cohorts):
    return sorted(spec.id for cohort in cohorts for spec in cohort.runs)


def ends(cohorts, slots):
    return makespan(tasks((), cohorts, SPEED), slots)


def test_one_slot_needs_no_split():
    cohorts = group([run(method=m) for m in ("kd", "at", "sp", "vid")])
    assert split(cohorts, 1, SPEED) == cohorts
    assert split([], 4, SPEED) == []


@pytest.mark.parametrize("slots", [2, 3, 8, 64])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_splitting_brings_the_end_nearer_and_loses_nothing(slots, count):
    cohorts = group(
        [run(m, t, trial) for m in ("vgg8", "resnet8") for t in ("kd", "at", "sp") for trial in range(count)]
    )
    result = split(cohorts, slots, SPEED)
    assert runs_of(result) == runs_of(cohorts)
    assert ends(result, slots) <= ends(cohorts, slots)
    if 2 * len(cohorts) <= slots:
        assert ends(result, slots) < 0.98 * ends(cohorts, slots)
    costs = [cohort.work.macs for cohort in result]
    assert costs == sorted(costs, reverse=True)


def test_a_split_that_does_not_help_is_not_made():
    cohorts = group([run(method=method, trial=trial) for method in ("kd", "at") for trial in range(4)])
    assert len(split(cohorts, 2, SPEED)) == 4
    assert len(split(cohorts, 4, SPEED)) == 4
    assert len(split(cohorts, 8, SPEED)) == 8


def test_more_slots_than_jobs_bring_nothing_and_cost_nothing(tmp_path):
    plan = make_plan(
        [run(method=method, trial=trial) for method in ("kd", "at") for trial in range(4)], Store(tmp_path)
    )
    assert len(split(list(plan.cohorts), 10**15, SPEED)) == 8


def test_halves_are_balanced():
    (cohort,) = group(
        [run(student, "kd") for student in ("vgg13", "vgg8", "resnet8", "resnet8x4", "resnet20", "resnet32")]
    )
    result = split([cohort], 2, SPEED)
    assert len(result) == 2
    assert max(each.work.macs for each in result) < 0.75 * cohort.work.macs


def test_done_runs_are_left_out(tmp_path):
    store, specs = Store(tmp_path), [run(), run(method="at"), run(method="ce")]
    plan = make_plan([*specs, *specs], store)
    assert (plan.runs, plan.runs_done, len(plan.teachers)) == (3, 0, 1)
    finish(store.run(specs[0].id), "run")
    finish(store.teacher(specs[0].teacher.id), "teacher")
    plan = make_plan(specs, store)
    assert (plan.runs, plan.runs_done, len(plan.teachers), plan.teachers_done) == (2, 1, 0, 1)
    for spec in specs:
        finish(store.run(spec.id), "run")
    plan = make_plan(specs, store)
    assert (plan.runs, plan.runs_done, plan.work) == (0, 3, Work())
    assert plan.teachers_done == 0


def test_a_damaged_result_is_trained_again(tmp_path):
    store = Store(tmp_path)
    finish(store.run(run().id), "run")
    (store.run(run().id).folder / "result.json").write_text("{")
    assert make_plan([run()], store).runs == 1


def test_failures(tmp_path):
    store = Store(tmp_path)
    store.run(run().id).fail(Failure(kind="diverged", epoch=1, reason="nan"))
    store.run(run(method="at").id).fail(Failure(kind="error", epoch=1, reason="no memory"))
    plan = make_plan([run(), run(method="at")], store)
    assert (plan.runs, plan.runs_done) == (1, 1)
    assert make_plan([run(), run(method="at")], store, retry_diverged=True).runs == 2


def test_a_backbone_comes_before_its_head():
    head = NewLayers(parent=teacher(), dataset=CIFAR, head=HeadSpec(width=8, recipe=RECIPE))
    plan = make_plan([run(teacher=head)], Store(Path("/nowhere")))
    assert plan.teachers == (teacher(), head)


def test_cohorts_save_teacher_passes():
    plan = make_plan([run(), run(method="at")], Store(Path("/nowhere")))
    assert plan.work_alone.macs > plan.work.macs
    assert Cohort(()).work == Work()


@pytest.mark.parametrize("slots", [1, 8, 64])
def test_three_thousand_runs_are_planned_within_two_seconds(slots, processor_time_below):
    teachers = [teacher(name) for name in ("vgg13", "vgg16", "vgg19", "resnet110", "resnet56")]
    students = [
        "vgg8",
        "vgg11",
        "resnet8",
        "resnet14",
        "resnet20",
        "resnet32",
        "wrn-16-1",
        "wrn-16-2",
        "wrn-40-1",
        "resnet8x4",
    ]
    methods = ["kd", "at", "sp", "vid", "rkd", "pkt", "fitnet", "ce", "nst", "cc", "crd", "irg"]
    specs = [run(s, m, t, teacher=teach) for s in students for m in methods for teach in teachers for t in range(5)]
    assert len(specs) == 3000
    with processor_time_below(2.0):  # half of it on an idle machine
        plan = make_plan(specs, Store(Path("/nowhere"))).split_for(slots)
    assert plan.runs == 3000


def test_a_diverged_teacher_settles_its_students_until_it_is_tried_again(tmp_path):
    store = Store(tmp_path)
    lost, fine = run(), run(method="at", teacher=teacher("vgg19"))
    record = store.teacher(lost.teacher.id)
    record.folder.mkdir(parents=True)
    record.fail(Failure(kind="diverged", epoch=3, reason="the loss is not finite"))
    plan = make_plan([lost, fine], store)
    assert [spec.network for spec in plan.teachers] == ["vgg19"]
    assert plan.runs == 1
    assert make_plan([lost, fine], store, retry_diverged=True).runs == 2


def part(of, name="ft"):
    return Adapter(parent=of, dataset=CIFAR, term=name, recipe=RECIPE)


def test_a_part_comes_after_its_teacher_and_before_the_runs(tmp_path):
    store, spec = Store(tmp_path), part(teacher())
    first, second = run(adapters=(spec,)), run(method="at")
    plan = make_plan([first, second], store)
    assert plan.teachers == (teacher(), spec)
    assert len(plan.cohorts) == 1
    assert plan.work.macs > make_plan([run(), second], store).work.macs
    finish(store.teacher(teacher().id), "teacher")
    finish(store.teacher(spec.id), "teacher")
    assert make_plan([first, second], store).teachers == ()


def test_a_diverged_part_settles_the_runs_that_need_it_alone(tmp_path):
    store, spec = Store(tmp_path), part(teacher())
    record = store.teacher(spec.id)
    record.folder.mkdir(parents=True)
    record.fail(Failure(kind="diverged", epoch=3, reason="the loss is not finite"))
    plan = make_plan([run(adapters=(spec,)), run(method="at")], store)
    assert (plan.runs, plan.runs_done) == (1, 1)


def from_auxiliary(trial=0):
    """A run that learns from the student of another, which learns from the usual teacher."""
    between = run("resnet8x4", "pkt", trial)
    return run(trial=trial, teacher=StudentOf(run=between))


def test_what_teaches_is_trained_first():
    specs = [from_auxiliary(0), from_auxiliary(1), run(method="ce"), run(method="at")]
    plan = make_plan(specs, Store(Path("/nowhere"))).split_for(1)
    assert plan.teachers == (teacher(),)
    assert plan.runs == len(specs) + 2
    seen = set()
    for cohort in plan.cohorts:
        assert all(each.id in seen for spec in cohort.runs for each in auxiliaries_of(spec))
        seen |= {spec.id for spec in cohort.runs}
    assert seen >= {spec.id for spec in specs}
    shared = next(cohort for cohort in plan.cohorts if specs[3] in cohort.runs)
    assert specs[0].teacher.run in shared.runs  # it is one more student of the teacher


def test_a_finished_auxiliary_needs_no_teacher(tmp_path):
    store, spec = Store(tmp_path), from_auxiliary()
    finish(store.run(spec.teacher.run.id), "run")
    plan = make_plan([spec], store)
    assert (plan.runs, plan.teachers, plan.runs_done) == (1, (), 0)
    finish(store.run(spec.id), "run")
    assert make_plan([spec], store).runs == 0


def test_a_diverged_auxiliary_settles_what_it_would_teach(tmp_path):
    store, spec = Store(tmp_path), from_auxiliary()
    store.run(spec.teacher.run.id).fail(Failure(kind="diverged", epoch=3, reason="the loss is not finite"))
    assert make_plan([spec], store).runs == 0
    assert make_plan([spec], store, retry_diverged=True).runs == 2


def test_no_cohort_has_more_runs_than_the_largest(tmp_path):
    suite = load_suite(find_suite("crd_different"), trials=1)
    plan = make_plan(suite.specs.values(), Store(tmp_path), largest=10)
    assert max(len(cohort.runs) for cohort in plan.cohorts) <= 10
    assert {run.id for cohort in plan.cohorts for run in cohort.runs} == suite.specs.keys()


def test_more_runs_stay_together_where_their_teacher_costs_more_than_they_do():
    clip, plain = (
        [Cohort(tuple(run(student, trial=trial, teacher=of) for trial in range(9)))]
        for student, of in (("resnet8x4", teacher("clip-vit-b16")), ("vgg8", teacher("vgg8")))
    )
    assert clip[0].work.macs > 2 * sum(student_work(run).macs for run in clip[0].runs)
    assert [len(cohort.runs) for cohort in cap_size(clip, 3)] == [9]
    assert sorted(len(cohort.runs) for cohort in cap_size(clip, 2)) == [4, 5]
    assert max(len(cohort.runs) for cohort in cap_size(plain, 3)) == 3


@pytest.mark.parametrize(
    ("left", "due"),
    [
        ("nothing", 0),
        ("quarantined", 1),
        ("quarantined and begun", 1),
        ("begun", 1),
        ("made again", 0),
        ("diverged", 0),
    ],
)
def test_a_teacher_that_was_set_aside_is_due_until_it_is_there_again(tmp_path, left, due):
    """Also where its runs are done: the process may have been killed before it was made again."""
    store, spec = Store(tmp_path), run()
    finish(store.run(spec.id), "run")
    record = store.teacher(spec.teacher.id)
    if "quarantined" in left or left == "made again":
        record.folder.with_name(f"{record.id}.damaged-2").mkdir(parents=True)
    if "begun" in left or left == "diverged":
        record.begin(spec.teacher.canonical())
    if left == "made again":
        finish(record, "teacher")
    if left == "diverged":
        record.fail(Failure(kind="diverged", epoch=1, reason="loss is nan"))
    plan = make_plan([spec], store)
    assert (plan.runs, len(plan.teachers)) == (0, due)


def test_what_stands_below_a_finished_auxiliary_or_a_measurement_is_due_too(tmp_path):
    store, spec = Store(tmp_path), from_auxiliary()
    below = auxiliaries_of(spec)[0].teacher
    for each in (*auxiliaries_of(spec), spec):
        finish(store.run(each.id), "run")
    store.teacher(below.id).begin(below.canonical())
    assert make_plan([spec], store).teachers == (below,)
