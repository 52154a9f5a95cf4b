"""In any cohort, and stopped after any step, training ends byte for byte where it ends alone and uninterrupted.

A run is trained alone, in its cohort, and in its cohort with stops; a teacher's stage and a probe without and with stops.
"""

import pytest
import torch

from kdbench.planning.plan import make_plan
from kdbench.suite.measurements import ProbeProtocol, probe
from kdbench.suite.specs import (
    DatasetSpec,
    FineTuned,
    Preprocessing,
    Pretraining,
    Scenario,
    SelfSupervised,
    StudentOf,
    lineage,
)
from kdbench.training import jobs


STRATEGIES = ("pretrained", "sequential", "simultaneous")


@pytest.fixture
def make_cohort(make_run, with_adapter):
    """make_cohort(name): runs that share a stream and a teacher and differ in all else."""
    kd, short = {"ce": 1, "kd": 1}, {"epochs": 2}

    def sees(kind, strategy="pretrained", **fields):
        run = make_run(kd, strategy, short, **fields)
        return run.model_copy(update={"terms": make_run({**kd, "part_terms:Seeing": {"kind": kind}}).terms})

    def students_lengths_and_rates():
        return [
            make_run(kd),
            make_run(kd, student="wrn-16-1", recipe={"epochs": 1}),
            make_run({"ce": 1}, student="resnet14", recipe={"lr": 0.005, "evaluate_every": 2, "epochs": 4}),
            make_run({"ce": 1, "faulty_terms:Random": 0.1}),
        ]

    def transformed_views():
        kinds = ({"transforms": "four"}, {"pretext": "jigsaw"})
        return [make_run(kd, recipe=short), *(with_adapter("sskd", kind, recipe=short) for kind in kinds), sees("four")]

    def adapters_of_new_layers():
        coded = (with_adapter("part_terms:Coded", {"inner": inner}, "sequential", recipe=short) for inner in (3, 4))
        return [*coded, make_run(kd, "sequential", short)]

    def a_view_of_the_teachers_own():
        view = Preprocessing(crop_padding=1, flip=True, size=12)
        runs = [make_run(terms, "simultaneous", short, teacher_view=view) for terms in (kd, {"ce": 1, "semckd": 1})]
        return [*runs, sees("rotations", "simultaneous", teacher_view=view), make_run({"ce": 1}, "simultaneous", short)]

    def few_and_noisy_labels():
        few = Scenario(fraction=0.5, label_noise=0.5)
        terms = ({"ce": 1}, kd, {"ce": 1, "crd": {"negatives": 8}})
        return [make_run(each, "simultaneous", short, scenario=few) for each in terms]

    def half_precision():
        half = {**short, "precision": "bf16"}
        return [make_run(terms, recipe=half) for terms in (kd, {"ce": 1, "at": 100, "sp": 300})]

    def a_teacher_in_half_precision():
        half = {"teacher_precision": "bf16"}
        return [make_run(terms, "simultaneous", short, **half) for terms in (kd, {"ce": 1, "at": 100, "sp": 300})]

    def a_folded_teacher():
        folded = {"teacher_inference": "folded"}
        return [make_run(kd, strategy, short, **folded) for strategy in ("pretrained", "simultaneous")]

    cohorts = {make.__name__: make for make in (
        students_lengths_and_rates, transformed_views, adapters_of_new_layers, a_view_of_the_teachers_own,
        few_and_noisy_labels, half_precision, a_teacher_in_half_precision, a_folded_teacher,
    )}  # fmt: skip
    return lambda name: cohorts[name]()


def in_pieces(work, folder, calls):
    """Do a job in visits, each of which is told to stop at its ``calls``-th question; the number of visits."""
    visits = 1
    while work(folder.again(stop_at_call=calls)).stopped:
        visits += 1
        assert visits < 40, "it never ends"
    return visits


def name_of(run):
    return f"{run.student}: {' + '.join(use.name for use in run.terms)}"


def differences(runs, left, right):
    """The runs and files that differ."""
    names = {run.id: name_of(run) for run in runs}
    ours, theirs = left.files(*runs), right.files(*runs)
    return [(names[id], file) for id, file in ours if ours[id, file] != theirs[id, file]]


def agree_in_any_company_and_after_stops(runs, bench, calls):
    """Train each run alone, then all in their cohorts, then these stopping after every ``calls`` steps; the first folder."""
    start = bench("start")
    for run in runs:
        if run.teacher and run.teacher.source_run:
            start.train(run.teacher.source_run)
        start.teachers(run)
    alone, together, pieces = map(start.copy, ("alone", "together", "pieces"))
    for run in reversed(runs):
        alone.cohort(run)
    for cohort in make_plan(runs, start.store).cohorts:
        together.cohort(*cohort.runs)
        assert in_pieces(lambda folder, cohort=cohort: folder.cohort(*cohort.runs), pieces, calls) >= 3
    assert all(alone.record(run).done() for run in runs)
    assert differences(runs, alone, together) == []
    assert differences(runs, alone, pieces) == []
    return alone


@pytest.fixture
def teachers_seen(monkeypatch):
    """Each teacher that a cohort has loaded, with its tensors at that time."""
    found, make = [], jobs.open_teacher

    def spy(*arguments):
        teacher = make(*arguments)
        if teacher:
            found.append((teacher.network, {key: value.clone() for key, value in teacher.network.state_dict().items()}))
        return teacher

    monkeypatch.setattr(jobs, "open_teacher", spy)
    return found


@pytest.mark.parametrize(
    "strategy", [*(pytest.param(each, marks=pytest.mark.slow) for each in STRATEGIES[:2]), STRATEGIES[2]]
)
def test_every_term_under_every_strategy(bench, every_term, strategy, teachers_seen):
    """What each term adds is recorded; a finished teacher stays as it was, and if pretrained lowers the loss."""
    runs = every_term(strategy, size=16 if strategy == "pretrained" else 8)  # on 8 pixels the loss of ab rises
    alone = agree_in_any_company_and_after_stops(runs, bench, calls=3)
    for run in runs:
        rows = alone.record(run).metrics()
        assert {use.name for use in run.terms} == rows[-1]["terms"].keys()
        losses = [row["loss"] for row in rows if row["epoch"] > 0]
        assert losses[-1] < losses[0] or strategy != "pretrained", name_of(run)
    assert teachers_seen
    if strategy == "simultaneous":
        return
    for network, before in teachers_seen:
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("students_lengths_and_rates", 4),
        ("transformed_views", 3),
        ("adapters_of_new_layers", 3),
        ("a_view_of_the_teachers_own", 2),
        ("few_and_noisy_labels", 1),
        ("half_precision", 3),
        ("a_teacher_in_half_precision", 3),
        ("a_folded_teacher", 3),
    ],
)
def test_a_cohort_of(bench, make_cohort, name, calls):
    runs = make_cohort(name)
    alone = agree_in_any_company_and_after_stops(runs, bench, calls)
    assert len({alone.record(run).result().weights_sha256 for run in runs}) == len(runs)


@pytest.fixture
def stages(make_run, with_adapter, recipe, teacher):
    """Kinds of a teacher's last stage, with those before it."""
    layers = make_run({"ce": 1, "kd": 1}, "sequential").teacher
    fast = recipe.model_copy(update={"lr": 0.3})
    encoder = SelfSupervised(network="resnet8", dataset=teacher.dataset, pretraining=Pretraining(recipe=recipe))
    return {
        "supervised": teacher,
        "best epoch": teacher.model_copy(update={"checkpoint": "best", "recipe": fast}),
        "new layers": layers,
        "new layers, best epoch": layers.model_copy(
            update={"checkpoint": "best", "head": layers.head.model_copy(update={"recipe": fast})}
        ),
        "SimCLR": encoder,
        "fine-tuned": FineTuned(parent=encoder, dataset=teacher.dataset, recipe=recipe),
        "adapter": with_adapter("part_terms:Coded", {"inner": 4}, "sequential").adapters[0],
        "adapter on transformed views": with_adapter("sskd", {}).adapters[0],
    }


def test_a_teachers_stage(bench, stages):
    for number, (name, spec) in enumerate(stages.items()):
        *earlier, last = lineage(spec)
        start = bench(f"start{number}")
        for stage in earlier:
            start.teacher(stage)
        whole, pieces = (start.copy(f"{kind}{number}") for kind in ("whole", "pieces"))
        whole.teacher(last)
        assert in_pieces(lambda folder, last=last: folder.teacher(last), pieces, 3) >= 2, name
        assert pieces.files(last) == whole.files(last), name


def test_a_probe(bench, make_run):
    """Trained on cached features, and through the network; the measured run is left as it was."""
    run, start = make_run({"ce": 1, "kd": 1}), bench("start")
    start.train(run)
    before = start.files(run, run.teacher)
    other = DatasetSpec(name="digits", classes=5, train_per_class=6, test_per_class=4, size=8)
    for changes in ({}, {"batch_norm": "batch", "crop_padding": 2, "flip": True}):
        how = ProbeProtocol(title="quick", epochs=4, batch=8, lr=0.1, momentum=0.9, **changes)
        spec = probe(StudentOf(run=run), other, how)
        name = "frozen" if not changes else "through the network"
        whole, pieces = (start.copy(f"{kind} {name}") for kind in ("whole", "pieces"))
        whole.measure(spec)
        assert in_pieces(lambda folder, spec=spec: folder.measure(spec), pieces, 3) >= 3
        assert pieces.files(spec) == whole.files(spec)
        assert whole.files(run, run.teacher) == before
