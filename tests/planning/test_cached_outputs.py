"""Where a teacher's outputs are cached: what could be, what it saves, and what the disk holds."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from kdbench.planning import plan as module
from kdbench.planning.cohorts import Cohort
from kdbench.planning.cost import forward
from kdbench.planning.disk import disk_needed
from kdbench.planning.output_cache import cached_outputs
from kdbench.planning.plan import Caching, make_plan
from kdbench.planning.speed import ASSUMED
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.suite.specs import (
    DatasetSpec,
    HeadSpec,
    NewLayers,
    Preprocessing,
    Recipe,
    RunSpec,
    Scenario,
    Supervised,
    WeightedTerm,
)


CIFAR = DatasetSpec(name="cifar100")
RECIPE = Recipe(epochs=240, batch=64, lr=0.1, crop_padding=4, flip=True)
TEACHER = Supervised(network="resnet32x4", dataset=CIFAR, recipe=RECIPE)
HEAD = HeadSpec(width=256, recipe=RECIPE)
VIEWS, SIZE = 162 * 50_000, 162 * 50_000 * (256 + 100) * 4


@pytest.fixture
def free(monkeypatch):
    """Bytes on a disk of its own; tests may change them."""
    disk = SimpleNamespace(bytes=10**12)
    monkeypatch.setattr(module, "free_space", lambda folder: disk.bytes)
    return disk


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def run(*methods, trial=0, given=None, **values):
    terms = tuple(WeightedTerm(name=name, hyperparameters=given or {}) for name in methods or ("kd",))
    spec = {"teacher": TEACHER, "recipe": RECIPE, "dataset": CIFAR, **values}
    return RunSpec(student="resnet8x4", terms=terms, trial=trial, **spec)


def trials(count, *methods, **values):
    return [run(*methods, trial=trial, **values) for trial in range(count)]


@pytest.mark.parametrize(
    ("runs", "possible"),
    [
        ([run("kd"), run("crd"), run("ce", "rkd"), run("ce", teacher=None)], True),
        ([run("kd"), run("fitnet")], False),
        ([run("kd"), run("fitnet", teacher=None)], True),
        ([run("irg")], True),
        ([run("irg", given={"transformations": True})], False),
        ([run("sskd")], False),
        ([run("ce", teacher=None)], False),
        ([run(scenario=Scenario(fraction=0.5))], False),
        ([run(scenario=Scenario(label_noise=0.5))], True),
        ([run(dataset=DatasetSpec(name="imagenet"))], False),
    ],
)
def test_what_could_be_cached(runs, possible):
    assert (cached_outputs(runs) is not None) == possible


def test_what_they_are_and_who_shares_them():
    outputs = cached_outputs([run()])
    assert (outputs.crops, outputs.images, outputs.bytes) == (162, 50_000, SIZE)
    assert outputs.making == forward("resnet32x4", CIFAR, VIEWS, VIEWS / 64)
    same = [
        run("crd", trial=3),
        run(scenario=Scenario(label_noise=0.2)),
        run(recipe=RECIPE.model_copy(update={"lr": 1.0})),
    ]
    assert {cached_outputs([each]).id for each in same} == {outputs.id}
    others = [
        run(teacher=TEACHER.model_copy(update={"checkpoint": "best"})),
        run(teacher_precision="bf16"),
        run(teacher_view=Preprocessing(size=40)),
        run(head=HEAD),
    ]
    assert len({cached_outputs([each]).id for each in others} | {outputs.id}) == 5


def test_below_new_layers_the_embedding_alone_is_kept_for_both_strategies():
    sequential = cached_outputs([run(teacher=NewLayers(parent=TEACHER, dataset=CIFAR, head=HEAD))])
    simultaneous = cached_outputs([run(head=HEAD)])
    assert sequential == simultaneous
    assert sequential.bytes == VIEWS * 256 * 4
    assert cached_outputs([run(head=HEAD, teacher_precision="bf16")]).bytes == VIEWS * 256 * 2


def test_they_take_the_place_of_the_passes_and_are_made_once(store, free):
    one, three = (make_plan(trials(count), store) for count in (1, 3))
    (outputs,) = three.cached
    never = make_plan(trials(3), store, caching=Caching.never)
    passes = 3 * forward("resnet32x4", CIFAR, 240 * 50_000, 1).macs
    assert never.work.macs - passes == pytest.approx(three.work.macs - cached_outputs([run()]).making.macs)
    after, before = (sum(ASSUMED["cpu"].seconds(cohort.work) for cohort in plan.cohorts) for plan in (three, never))
    assert outputs.saved == pytest.approx(1 - after / before)
    assert one.cached[0].saved < outputs.saved
    assert disk_needed(three, 1).outputs == SIZE
    split = three.split_for(8)
    assert split.work.macs == pytest.approx(three.work.macs)
    assert len(split.cohorts) == 3


def test_halves_make_half_each_and_repeat_nothing(store, free):
    plan = make_plan([run(name) for name in ("kd", "rkd", "pkt", "cc")], store, caching=Caching.always)
    halves = plan.split_for(2)
    assert len(halves.cohorts) == 2
    assert halves.work.macs == pytest.approx(plan.work.macs)
    assert plan.cohorts[0].subset({run("kd").id}).cached == plan.cohorts[0].cached


def test_auto_weighs_time_and_disk(store, free):
    few = RECIPE.model_copy(update={"epochs": 100, "milestones": ()})
    assert make_plan(trials(1, recipe=few), store).cached == []  # fewer passes than there are crops
    (forced,) = make_plan(trials(1, recipe=few), store, caching=Caching.always).cached
    assert forced.saved < 0
    assert str(forced) == "resnet32x4 for 162 crops of 50,000 images of cifar100 (11.5 GB)"
    assert forced.effect == "costs 40% more of their cohorts' time"
    assert replace(forced, saved=0.0).effect == "saves 0% of their cohorts' time"
    free.bytes = 2 * SIZE - 1
    assert make_plan(trials(3), store).cached == []
    free.bytes = 2 * SIZE
    other = TEACHER.model_copy(update={"network": "wrn-40-2"})
    both = [*trials(3), *trials(3, teacher=other)]
    best = max(
        (make_plan(trials(3, teacher=each), store).cached[0] for each in (TEACHER, other)), key=lambda o: o.saved
    )
    assert [outputs.teacher for outputs in make_plan(both, store).cached] == [best.teacher]


def test_auto_saves_a_minute_at_least(store, free):
    data, chosen = DatasetSpec(name="digits", train_per_class=1, test_per_class=1), set()
    for epochs in range(100, 400, 2):  # which differ by half a second
        runs = [
            run(
                dataset=data,
                recipe=RECIPE.model_copy(update={"crop_padding": 0, "epochs": epochs, "evaluate_every": 400}),
            )
        ]
        before, after = (
            sum(ASSUMED["cpu"].seconds(cohort.work) for cohort in make_plan(runs, store, caching=when).cohorts)
            for when in (Caching.never, Caching.always)
        )
        chosen.add(bool(make_plan(runs, store).cached))
        assert bool(make_plan(runs, store).cached) == (before - after >= 60)
    assert chosen == {False, True}


def test_what_is_there_need_not_be_made(store, free):
    whole = cached_outputs([run()])
    assert whole.folder(store) is None
    assert whole.as_in(store) == whole
    weights, accuracy = "0123456789abcdef", Accuracy(epoch=1, top1=70.0, top5=90.0)
    facts = {"train_images": 1, "test_images": 1, "weights_sha256": weights}
    result = Result(id=TEACHER.id, kind="teacher", last=accuracy, best=accuracy, **facts)
    store.teacher(TEACHER.id).finish(result, {})
    folder = whole.folder(store)
    assert folder.name == f"{whole.id}-{weights[:12]}"
    folder.mkdir(parents=True)
    for name in ("0000.bin", "0161.bin", "0007.bin.damaged-1", ".0008.bin.0f.tmp"):
        (folder / name).touch()
    plan = make_plan(trials(3), store)
    assert plan.cached[0].missing == 160 / 162
    assert disk_needed(plan, 1).outputs == round(SIZE * 160 / 162)
    free.bytes = 2 * SIZE - 1
    assert make_plan(trials(3), store).cached


def test_a_cohort_on_cached_outputs_stays_on_one_device(store, free):
    (cohort,) = make_plan(trials(1), store).cohorts
    assert cohort.cached
    assert cohort.task(ASSUMED["cpu"], most=8).quicker == ()
    assert Cohort(cohort.runs).task(ASSUMED["cpu"], most=8).quicker
