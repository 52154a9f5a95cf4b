"""Factor transfer and SSKD from teacher to student: parts, copies and neighbours together."""

import pytest
import torch
from safetensors.torch import load_file

from kdbench.planning.cost import student_work
from kdbench.planning.plan import make_plan
from kdbench.suite.specs import Adapter, Scenario, StudentOf
from kdbench.training import jobs
from kdbench.training.build import load_teacher, student_trainer
from kdbench.training.teacher import load_adapter


CPU = torch.device("cpu")


@pytest.fixture
def make(make_run, recipe):
    """make(term, {options}, …): a run of 1·ce + 1·kd and the term, with its part."""

    def build(name, options=None, epochs=2, **fields):
        uses = make_run({"ce": 1, "kd": 1, name: {"weight": 0.1, **(options or {})}}).terms
        run = make_run({"ce": 1, "kd": 1}, recipe={"epochs": epochs}, **fields)
        own = {key: value for key, value in (options or {}).items() if key in ("pretext", "transforms", "share")}
        how = recipe.model_copy(update={"epochs": epochs, "lr": 0.05})
        adapter = Adapter(parent=run.teacher, dataset=run.dataset, term=name, hyperparameters=own, recipe=how)
        return run.model_validate(run.model_copy(update={"terms": uses, "adapters": (adapter,)}).model_dump())

    return build


@pytest.mark.parametrize(
    "options",
    [{"pretext": "exemplar", "transforms": "four"}, {"pretext": "rotation"}, {"transforms": "four"}],
)
def test_every_task_trains_from_end_to_end(bench, make, options):
    run, shop = make("sskd", options), bench()
    shop.train(run)
    assert shop.store.run(run.id).done()
    record = shop.store.teacher(run.adapters[0].id)
    assert all(row["terms"].keys() == {"sskd"} for row in record.metrics())
    outputs = load_file(record.weights_file)["part.head.2.bias"].shape[0]
    assert outputs == {"exemplar": 40, "rotation": 4}.get(options.get("pretext"), 64)


def test_the_teachers_head_never_trains_beside_the_student(bench, make):
    run, shop = make("sskd"), bench()
    shop.teachers(run)
    guide = jobs.open_teacher(run, shop.shop)
    part = load_adapter(run.adapters[0], shop.store, guide.network, CPU)
    before = {key: value.clone() for key, value in part.state_dict().items()}
    stream = shop.data.stream(run.dataset, run.scenario, run.recipe, 0)
    trainer = student_trainer(run, shop.store, guide.network, stream.labels, CPU, [part])
    mine = [p.clone() for p in trainer.terms["sskd"].parameters()]
    trainer.begin_epoch(1)
    for batch in stream.epoch(1, transforms=["rotations"]):
        trainer.step(batch, guide.forward(batch), guide.forward_views(batch)["rotations"])
    assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())
    assert all(parameter.grad is None for parameter in part.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(mine, trainer.terms["sskd"].parameters(), strict=True))


def test_the_head_learns_on_copies_in_the_frozen_teachers_eval_mode(bench, make, monkeypatch):
    from kdbench.methods.pretext import SelfSupervised

    run, shop, seen = make("sskd"), bench(), []
    shop.teachers(run.model_copy(update={"adapters": ()}))
    teacher = load_teacher(run.teacher, shop.store, CPU).eval()
    loss = SelfSupervised.loss

    def spy(self, outputs, batch):
        images = batch.views["rotations"].images
        alike = torch.allclose(outputs.embedding.view(len(batch), 4, -1)[:, 1:].flatten(0, 1),
                               teacher(images).embedding, atol=1e-4)  # fmt: skip
        seen.append(alike and len(outputs.embedding) == 4 * len(batch))
        return loss(self, outputs, batch)

    monkeypatch.setattr(SelfSupervised, "loss", spy)
    jobs.train_teacher(run.adapters[0], shop.shop)
    assert seen == [True] * 6


def test_exemplar_with_fewer_images_says_so_and_fails_alone(bench, make):
    few = Scenario(fraction=0.5)
    run, good, shop = make("sskd", {"pretext": "exemplar"}, scenario=few), make("sskd", scenario=few), bench()
    shop.train(run, good)
    assert "tells 40 training images apart, and the student has 20" in shop.store.run(run.id).failure().reason
    assert shop.store.run(good.id).done()


def test_an_initial_stage_looks_at_no_copies(bench, make, make_run):
    looking = make("sskd", epochs=1)
    uses = make_run({"ab": {"initial_epochs": 1}}).terms
    run = looking.model_copy(update={"terms": (*uses, *looking.terms)})
    run, shop = run.model_validate(run.model_dump()), bench()
    shop.train(run)
    rows = shop.store.run(run.id).metrics()
    assert [(row["epoch"], sorted(row["terms"])) for row in rows] == [(0, ["ab"]), (1, ["ab", "ce", "kd", "sskd"])]
    assert student_work(run).macs > student_work(looking).macs
    assert student_work(run).macs - student_work(looking).macs < student_work(looking).macs / 3


def test_a_runs_student_has_parts_like_any_teacher(bench, make, make_run):
    between = make_run({"ce": 1, "kd": 1}, recipe={"epochs": 1})
    spec = StudentOf(run=between)
    usual = make("ft", epochs=1)
    part = usual.adapters[0].model_copy(update={"parent": spec})
    run = usual.model_validate(usual.model_copy(update={"teacher": spec, "adapters": (part,)}).model_dump())
    shop = bench()
    plan = make_plan([run], shop.store)
    assert [stage.id for stage in plan.teachers] == [between.teacher.id, part.id]
    shop.train(between)
    shop.train(run)
    assert shop.store.run(run.id).done()
    assert shop.store.record_of(part).folder == shop.store.teacher(part.id).folder
    assert shop.store.record_of(spec).folder == shop.store.run(between.id).folder
