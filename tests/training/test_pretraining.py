"""SimCLR teachers: the loss, and their use under every strategy."""

import math

import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import LostTeacher
from kdbench.methods.term import TermContext
from kdbench.models import Outputs, Shapes
from kdbench.suite.specs import FineTuned, HeadSpec, NewLayers, Pretraining, SelfSupervised, lineage
from kdbench.training import jobs
from kdbench.training.build import NTXent, load_teacher, nt_xent


CPU = torch.device("cpu")


def test_nt_xent_is_the_papers_sum():
    projections = torch.randn(10, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = 0.0
    for i in range(10):
        j = (i + 5) % 10
        similarity = [math.exp(F.cosine_similarity(projections[i], projections[k], dim=0) / 0.3) for k in range(10)]
        total -= math.log(similarity[j] / (sum(similarity) - similarity[i]))
    assert nt_xent(projections, 0.3).item() == pytest.approx(total / 10, rel=1e-9)


def test_nt_xent_of_dead_embeddings_has_finite_gradients():
    projections = torch.zeros(6, 4, requires_grad=True)
    loss = nt_xent(projections, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(5))
    assert projections.grad.isfinite().all()


def test_the_projection_trains_and_half_precision_agrees():
    shapes = Shapes(16, 16, ())
    term = NTXent(TermContext(shapes, shapes, 16, 0, 8), temperature=0.5, projection=4)
    embedding = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    outputs = Outputs(embedding, embedding, [], [])
    loss = term(outputs, outputs, None)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in (embedding, *term.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert term(outputs, outputs, None).item() == pytest.approx(loss.item(), abs=0.02)


@pytest.fixture
def simclr(teacher, recipe):
    """A SimCLR encoder of a handful of digits."""
    return SelfSupervised(
        network="resnet8",
        dataset=teacher.dataset,
        pretraining=Pretraining(recipe=recipe.model_copy(update={"epochs": 2})),
    )


def strategies(simclr, teacher, recipe):
    """A run's teacher, new layers, and the width of its node embedding, by strategy."""
    head = HeadSpec(width=16, recipe=recipe)
    return {
        "pretrained": (FineTuned(parent=simclr, dataset=simclr.dataset, recipe=teacher.recipe), None),
        "sequential": (NewLayers(parent=simclr, dataset=simclr.dataset, head=head), None),
        "simultaneous": (simclr, head),
    }


def test_the_record_of_an_encoder(bench, simclr):
    shop = bench()
    jobs.train_teacher(simclr, shop.shop)
    result = shop.store.teacher(simclr.id).result()
    assert result.measure == "neighbours"
    assert result.train_images == 40
    assert 0 <= result.last.top1 <= 100
    network = load_teacher(simclr, shop.store, CPU)
    assert not [key for key in network.state_dict() if key.startswith("fc.")]
    images = torch.randn(2, 3, 32, 32)
    outputs = network(images)
    assert torch.equal(outputs.logits, outputs.embedding)


@pytest.mark.parametrize("strategy", ["pretrained", "sequential", "simultaneous"])
def test_an_encoder_teaches_under_every_strategy(bench, make_run, simclr, teacher, recipe, strategy):
    spec, head = strategies(simclr, teacher, recipe)[strategy]
    run = make_run({"ce": 1, "kd": 1}, teacher=spec, head=head, recipe={"node_embedding": 16})
    shop = bench()
    shop.train(run)
    assert shop.store.run(run.id).done()
    assert all(shop.store.teacher(stage.id).done() for stage in lineage(spec))
    assert (len(lineage(spec)) == 1) == (strategy == "simultaneous")


def test_fine_tuning_starts_from_the_encoders_weights(bench, simclr, teacher):
    still = teacher.recipe.model_copy(update={"epochs": 1, "lr": 1e-30})
    tuned = FineTuned(parent=simclr, dataset=simclr.dataset, recipe=still)
    shop = bench()
    for stage in lineage(tuned):
        jobs.train_teacher(stage, shop.shop)
    before, after = (load_teacher(stage, shop.store, CPU).state_dict() for stage in lineage(tuned))
    weights = [key for key in before if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.equal(before[key], after[key]) for key in weights)
    assert {key for key in after if key not in before} == {"fc.weight", "fc.bias"}


def test_new_layers_are_stored_without_the_backbone(bench, simclr, teacher, recipe):
    spec, _ = strategies(simclr, teacher, recipe)["sequential"]
    shop = bench()
    for stage in lineage(spec):
        jobs.train_teacher(stage, shop.shop)
    sizes = [shop.store.teacher(stage.id).weights_file.stat().st_size for stage in lineage(spec)]
    assert sizes[1] < sizes[0] / 10


@pytest.mark.parametrize("stage", [0, 1])
def test_a_damaged_stage_is_set_aside_alone(bench, make_run, simclr, teacher, recipe, stage):
    spec, _ = strategies(simclr, teacher, recipe)["sequential"]
    run, shop = make_run({"ce": 1, "kd": 1}, teacher=spec, head=None, recipe={"node_embedding": 16}), bench()
    shop.teachers(run)
    before = shop.files(*lineage(spec))
    damaged, other = (shop.store.teacher(lineage(spec)[n].id) for n in (stage, 1 - stage))
    content = bytearray(damaged.weights_file.read_bytes())
    content[-1] ^= 1
    damaged.weights_file.write_bytes(content)
    with pytest.raises(LostTeacher, match=rf"quarantined \({damaged.id}.damaged-1\)"):
        jobs.train_cohort([run], shop.shop)
    assert not damaged.folder.exists()
    assert other.done()
    shop.train(run)
    assert shop.files(*lineage(spec)) == before


def test_new_layers_belong_to_the_weights_that_they_were_made_on(bench, make_run, simclr, teacher, recipe):
    spec, _ = strategies(simclr, teacher, recipe)["sequential"]
    run, shop = make_run({"ce": 1, "kd": 1}, teacher=spec, head=None, recipe={"node_embedding": 16}), bench()
    shop.teachers(run)
    below, above = (shop.store.teacher(stage.id) for stage in lineage(spec))
    other = bench("other")
    changed = simclr.model_copy(update={"pretraining": simclr.pretraining.model_copy(update={"temperature": 0.4})})
    jobs.train_teacher(changed, other.shop)
    made_elsewhere = other.store.teacher(changed.id)
    below.weights_file.write_bytes(made_elsewhere.weights_file.read_bytes())
    result = below.result().model_copy(update={"weights_sha256": made_elsewhere.result().weights_sha256})
    below.finish(result, below.metadata())
    below.check()  # as if it had been made again, with another outcome

    with pytest.raises(LostTeacher, match="was made on other weights of resnet8"):
        jobs.train_cohort([run], shop.shop)
    assert below.done()
    assert not above.done()
    assert not shop.store.run(run.id).done()
    shop.train(run)
    assert above.result().parent_sha256 == result.weights_sha256


@pytest.mark.parametrize("file", ["spec.json", "result.json"])
def test_a_record_that_was_changed_is_damaged(bench, make_run, teacher, file):
    run, shop = make_run({"ce": 1, "kd": 1}), bench()
    shop.teachers(run)
    record = shop.store.teacher(teacher.id)
    path = record.folder / file
    text = path.read_text()
    changed = text.replace("0.02", "0.03") if file == "spec.json" else text.replace('"epoch": 2', '"epoch": 1')
    assert changed != text
    path.write_text(changed)
    with pytest.raises(LostTeacher, match="is not what was stored"):
        jobs.train_cohort([run], shop.shop)
    assert not record.folder.exists()
