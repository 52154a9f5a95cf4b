"""Parts of a teacher: trained once, cached, checked, resumable, frozen in the run and not saved with it."""

import pytest
import torch
from safetensors.torch import load_file

from kdbench.errors import BadInput, LostTeacher
from kdbench.methods import TermContext, build_part, build_term
from kdbench.models import Shapes
from kdbench.suite.specs import Adapter, stage_label
from kdbench.training import jobs
from kdbench.training.build import load_teacher, student_trainer
from kdbench.training.teacher import load_adapter


CPU = torch.device("cpu")
CODED = "part_terms:Coded"


@pytest.fixture
def make_parted(make_run, teacher, recipe):
    """make_parted({hyper-parameters of the part}, other terms …): a run whose term has trained a part."""

    def make(inner=None, name=CODED, strategy="sequential", epochs=3, **fields):
        run = make_run({"ce": 1, "kd": 1}, strategy, **fields)
        options = {} if inner is None else {"inner": inner}
        own = recipe.model_copy(update={"epochs": epochs})
        adapter = Adapter(parent=run.teacher, dataset=run.dataset, term=name, hyperparameters=options, recipe=own)
        uses = make_run({"ce": 1, name: {"weight": 1, **options}}).terms
        return run.model_validate(run.model_copy(update={"terms": uses, "adapters": (adapter,)}).model_dump())

    return make


@pytest.mark.parametrize("strategy", ["pretrained", "sequential"])
def test_a_part_is_trained_once_and_kept_beside_its_teacher(bench, make_parted, strategy):
    runs = [make_parted(strategy=strategy, trial=trial) for trial in range(2)]
    shop, spec = bench(), runs[0].adapters[0]
    shop.train(*runs[:1])
    shop.train(*runs[1:])
    taught_by = "+".join(shop.store.teacher(id).result().weights_sha256 for id in (runs[0].teacher.id, spec.id))
    assert [shop.store.run(run.id).result().parent_sha256 for run in runs] == [taught_by] * 2
    assert sum(e["event"] == "epoch" and e["id"] == spec.id for e in shop.events) == 3
    record = shop.store.teacher(spec.id)
    assert stage_label(spec).endswith(" + the adapter of part_terms:Coded")
    assert stage_label(make_parted(2).adapters[0]).endswith(" + the adapter of part_terms:Coded (inner=2)")
    assert record.result().last is None
    assert record.result().train_images == 40
    assert record.metrics()[-1]["loss"] < record.metrics()[0]["loss"]
    stored = load_file(record.weights_file)
    assert sorted(key for key in stored if "norm" not in key) == [
        f"part.{side}.{kind}" for side in ("down", "up") for kind in ("bias", "weight")
    ]


def test_the_teacher_is_what_it_was_and_in_eval_while_its_part_learns(bench, make_parted, monkeypatch):
    import part_terms

    run, shop, seen = make_parted(), bench(), []
    shop.teachers(make_parted().model_copy(update={"adapters": ()}))
    before = load_teacher(run.teacher, shop.store, CPU).eval()
    loss = part_terms.Coder.loss

    def spy(self, teacher, batch):
        expected = before(batch.images)
        seen.append(torch.equal(teacher.embedding, expected.embedding) and not teacher.embedding.requires_grad)
        return loss(self, teacher, batch)

    monkeypatch.setattr(part_terms.Coder, "loss", spy)
    jobs.train_teacher(run.adapters[0], shop.shop)
    assert seen == [True] * 9


def test_it_is_handed_to_the_term_frozen_and_is_not_saved_with_the_run(bench, make_parted):
    run, shop = make_parted(), bench()
    shop.teachers(run)
    guide = load_teacher(run.teacher, shop.store, CPU)
    part = load_adapter(run.adapters[0], shop.store, guide, CPU)
    before = {key: value.clone() for key, value in part.state_dict().items()}
    labels = torch.zeros(40, dtype=torch.long)
    trainer = student_trainer(run, shop.store, guide, labels, CPU, [part])
    trainer.begin_epoch(1)
    term = next(term for term in trainer.terms.values() if hasattr(term, "coder"))
    assert term.coder[0] is part
    assert not any(module.training for module in part.modules())
    assert not any(parameter.requires_grad for parameter in part.parameters())
    assert sorted(term.state_dict()) == ["project.bias", "project.weight"]
    inside = {id(p) for group in trainer.optimiser.param_groups for p in group["params"]}
    assert not inside & {id(p) for p in part.parameters()}
    (batch,) = [next(iter(shop.data.stream(run.dataset, run.scenario, run.recipe, 0).epoch(1)))]
    trainer.step(batch, guide.eval()(batch.images))
    assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())


def test_the_run_reads_what_was_trained_and_not_something_fresh(bench, make_parted):
    short, long = make_parted(epochs=1), make_parted(epochs=3)
    assert short.id != long.id
    shop = bench()
    shop.train(short, long)
    weights = [shop.store.run(run.id).result().weights_sha256 for run in (short, long)]
    assert weights[0] != weights[1]


@pytest.mark.parametrize("damage", ["flip", "gone", "result"])
def test_a_damaged_part_is_made_again_alone(bench, make_parted, damage):
    run, shop = make_parted(), bench()
    shop.teachers(run)
    before = shop.files(*run.stages)
    record = shop.store.teacher(run.adapters[0].id)
    if damage == "flip":
        content = bytearray(record.weights_file.read_bytes())
        content[-10] ^= 1
        record.weights_file.write_bytes(content)
    elif damage == "gone":
        record.weights_file.unlink()
    else:
        (record.folder / "result.json").write_text("{}")
    with pytest.raises(LostTeacher, match=r"quarantined \(.*damaged-1\) and redone"):
        jobs.train_cohort([run], shop.shop)
    assert not record.folder.exists()
    assert shop.store.run(run.id).failure() is None
    later = shop.again()
    later.train(run)
    assert {e["id"] for e in later.events if e["event"] == "epoch"} == {run.id, run.adapters[0].id}
    assert shop.files(*run.stages) == before


def test_a_part_that_diverges_is_a_failure(bench, make_parted):
    run, shop = make_parted(name="part_terms:Exploding"), bench()
    shop.teachers(run)
    assert shop.store.teacher(run.adapters[0].id).failure().kind == "diverged"


def test_only_what_the_part_depends_on_tells_parts_apart(make_parted):
    assert make_parted().adapters[0].id != make_parted(2).adapters[0].id
    assert make_parted().adapters[0].parent == make_parted().teacher


def test_a_part_of_another_teacher_is_refused(make_parted, teacher):
    run = make_parted()
    with pytest.raises(ValueError, match="belong to its own teacher"):
        run.model_validate({**run.model_dump(), "teacher": teacher.model_dump()})


def test_a_term_without_its_part_says_so():
    shapes = Shapes(10, 8, ())
    context = TermContext(shapes, shapes, 10, 40, 16)
    with pytest.raises(BadInput, match="Coded needs the Coder trained on the teacher"):
        build_term(CODED, context)
    with pytest.raises(BadInput, match="kd trains nothing on the teacher first"):
        build_part("kd", context)
    assert build_part(CODED, context, inner=3).down.out_features == 3
