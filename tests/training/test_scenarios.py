"""Who sees which labels and images: students the noisy ones, teachers, their heads and parts the clean ones."""

import pytest
import torch
from safetensors.torch import load_file

from kdbench.data.batch import VIEWS_PER_IMAGE
from kdbench.data.image_sets import ImageSet
from kdbench.evaluation import measure
from kdbench.suite.specs import Adapter, DatasetSpec, Scenario
from kdbench.training import jobs
from kdbench.training.build import new_network
from kdbench.training.trainer import Trainer


NOISY = Scenario(label_noise=0.5, noise="all")
FEW = Scenario(fraction=0.5, label_noise=0.5)


@pytest.fixture
def seen(monkeypatch):
    """What every network was shown: (id of its record, labels, clean labels, places in its training set)."""
    found = []
    step = Trainer.step

    def watched(self, batch, *rest):
        found.append((self.record.id, batch))
        return step(self, batch, *rest)

    monkeypatch.setattr(Trainer, "step", watched)
    return found


@pytest.fixture
def sskd(make_run, recipe):
    """A run with SSKD's loss, whose head on the teacher is trained first."""

    def make(**fields):
        run = make_run({"ce": 1, "kd": 1}, recipe={"epochs": 1}, **fields)
        how = recipe.model_copy(update={"epochs": 1})
        spec = Adapter(parent=run.teacher, dataset=run.dataset, term="sskd", recipe=how)
        uses = make_run({"ce": 1, "kd": 1, "sskd": 0.1}).terms
        return run.model_validate(run.model_copy(update={"terms": uses, "adapters": (spec,)}).model_dump())

    return make


def labels_of(seen, id):
    """The label of each image that a network was shown, by its place in the training set."""
    batches = [batch for record, batch in seen if record == id]
    return {
        place: label
        for batch in batches
        for place, label in zip(batch.indices.tolist(), batch.labels.tolist(), strict=True)
    }


@pytest.mark.parametrize("scenario", [NOISY, FEW])
def test_students_learn_from_noisy_labels_teachers_and_their_parts_from_clean_ones(bench, sskd, seen, scenario):
    shop, run = bench(), sskd(scenario=scenario)
    shop.train(run)
    clean = dict(enumerate(shop.data.sets(run.dataset)[0].labels.tolist()))
    samples = shop.data.samples(run.dataset, scenario, run.trial)
    assert labels_of(seen, run.id) == dict(enumerate(samples.given.tolist()))
    assert samples.changed > 0
    for stage in run.stages:
        assert labels_of(seen, stage.id) == clean
    result = shop.store.run(run.id).result()
    assert (result.changed_labels, result.samples_sha256) == (samples.changed, samples.sha256)
    assert result.train_images == len(samples.given)


def test_sskd_ranks_by_the_labels_that_the_student_is_given(bench, sskd, seen, monkeypatch):
    from kdbench.methods import sskd as module

    ranked = []
    loss = module.transfer_loss

    def watched(student, teacher, labels, *rest):
        ranked.append(labels)
        return loss(student, teacher, labels, *rest)

    monkeypatch.setattr(module, "transfer_loss", watched)
    shop, run = bench(), sskd(scenario=NOISY)
    shop.train(run)
    own = [batch for id, batch in seen if id == run.id]
    assert len(ranked) == 2 * len(own) > 0  # of classes, then of transforms
    for labels, batch in zip(ranked[::2], own, strict=True):
        assert torch.equal(labels, batch.labels.repeat_interleave(VIEWS_PER_IMAGE))
    assert any((batch.labels != batch.clean_labels).any() for batch in own)


@pytest.mark.parametrize("scenario", [NOISY, FEW])
def test_crds_class_lists_are_made_of_the_labels_that_the_student_is_given(bench, make_run, scenario, monkeypatch):
    built = []
    build = jobs.student_trainer

    def watched(*arguments):
        built.append(build(*arguments))
        return built[-1]

    monkeypatch.setattr(jobs, "student_trainer", watched)
    shop, run = bench(), make_run({"ce": 1, "crd": {"weight": 0.8, "negatives": 16}}, scenario=scenario)
    shop.train(run)
    assert shop.store.run(run.id).done()
    samples = shop.data.samples(run.dataset, scenario, run.trial)
    (trainer,) = built
    assert torch.equal(trainer.terms["crd"].negatives.labels, samples.given)
    assert not torch.equal(samples.given, samples.true)


def test_a_result_names_its_samples_alone_and_in_company_and_only_under_a_scenario(bench, make_run):
    methods = [{"ce": 1}, {"ce": 1, "kd": 1}, {"ce": 1, "at": 100}]
    runs = [make_run(terms, scenario=FEW, recipe={"epochs": 1}) for terms in methods]
    plain = make_run({"ce": 1}, recipe={"epochs": 1})
    together, alone = bench("together"), bench("alone")
    together.train(*runs)
    for run in (plain, *reversed(runs)):
        alone.train(run)
    assert together.files(*runs) == alone.files(*runs)
    results = [together.store.run(run.id).result() for run in runs]
    assert len({(result.changed_labels, result.samples_sha256) for result in results}) == 1
    assert results[0].changed_labels == 10  # of 2 images of each of 10 classes, one
    written = (alone.store.run(plain.id).folder / "result.json").read_text()
    assert "changed_labels" not in written
    assert "samples_sha256" not in written
    other = make_run({"ce": 1}, scenario=FEW, recipe={"epochs": 1}, trial=1)
    together.train(other)
    assert together.store.run(other.id).result().samples_sha256 != results[0].samples_sha256
    few = make_run({"ce": 1}, scenario=Scenario(fraction=0.5), recipe={"epochs": 1})
    together.train(few)
    assert together.store.run(few.id).result().changed_labels == 0


def test_under_a_validation_split_the_test_set_changes_nothing(bench, make_run, teacher, monkeypatch):
    from kdbench.data import image_sets

    whole = DatasetSpec(name="digits", train_per_class=4, test_per_class=3)
    data = whole.model_copy(update={"val_split": 0.1})
    run, plain = (
        make_run(
            {"ce": 1, "kd": 1}, teacher=teacher.model_copy(update={"dataset": each}), dataset=each, recipe={"epochs": 1}
        )
        for each in (data, whole)
    )
    before = bench("before")
    before.train(run)
    before.train(plain)
    load = image_sets._digits

    def spoilt():
        train, test = load()
        noise = torch.randint(0, 256, test.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        return train, ImageSet(noise, torch.zeros_like(test.labels), test.classes)  # even chance fares otherwise on it

    monkeypatch.setattr(image_sets, "_digits", spoilt)
    after = bench("after")
    after.train(run)
    after.train(plain)
    assert before.files(run, run.teacher) == after.files(run, run.teacher)
    assert before.files(plain) != after.files(plain)
    result = before.store.run(run.id).result()
    assert (result.train_images, result.test_images) == (40, 30)
    network = new_network(run.student, data, None, "student", 0)
    network.load_state_dict(load_file(before.store.run(run.id).weights_file))
    held_out = before.data.test(data, run.recipe)
    assert measure([network], held_out)[0].top1 == pytest.approx(result.last.top1)
    assert torch.equal(held_out.images, before.data.sets(data)[1].images)
