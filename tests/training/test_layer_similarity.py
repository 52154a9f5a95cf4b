"""How alike students and teachers become: recorded in the last epochs, and without any effect on the rest."""

import pytest
import torch
from safetensors.torch import load_file

from kdbench.evaluation import LayerSimilarity, measure
from kdbench.models.outputs import LayerPair
from kdbench.suite.specs import Preprocessing, StudentOf
from kdbench.training import jobs, trainer
from kdbench.training.build import load_teacher, new_network, student_trainer
from kdbench.training.loop import CachedTeacher, LayerSimilarityMonitor
from kdbench.training.teacher import FrozenTeacher


CPU = torch.device("cpu")
READ_MAPS = {
    "fitnet": {"weight": 1, "layer": 2},
    "at": 100,
    "sp": 300,
    "vid": 1,
    "mgd": 0.0001,
    "semckd": 40,
}
NEW = {"sm_score", "layer_cka"}


def mixed(make_run, names, strategy="pretrained", epochs=2):
    terms = [{"ce": 1}, {"ce": 1, "kd": 1}, *({"ce": 1, name: READ_MAPS[name]} for name in names)]
    return [make_run(each, strategy, {"epochs": epochs}) for each in terms]


def rows(bench, run):
    return bench.store.run(run.id).metrics()


def without(bench, run):
    """All that a run leaves behind, less what tells of likeness."""
    record = bench.store.run(run.id)
    kept = record.result().model_dump(exclude={*NEW, "metrics_sha256"})
    return kept, [{k: v for k, v in row.items() if k not in NEW} for row in record.metrics()]


@pytest.mark.parametrize("strategy", ["pretrained", "simultaneous"])
def test_watching_changes_nothing_and_company_does_not_either(bench, make_run, monkeypatch, strategy):
    names = ["fitnet", "vid", "mgd", "semckd"] if strategy == "pretrained" else ["fitnet"]
    runs = mixed(make_run, names, strategy)
    together, alone, unseen = bench("together"), bench("alone"), bench("unseen")
    together.train(*runs)
    alone.train(runs[-1])
    assert together.files(runs[-1]) == alone.files(runs[-1])
    monkeypatch.setattr(trainer, "LIKENESS_EPOCHS", 0)
    unseen.train(*runs)
    assert [without(together, run) for run in runs] == [without(unseen, run) for run in runs]
    for run in runs:
        recorded = NEW if {use.name for use in run.terms} & READ_MAPS.keys() else set()
        assert all(NEW & row.keys() == recorded for row in rows(together, run))
        result = together.store.run(run.id).result()
        assert (result.sm_score is not None, result.layer_cka is not None) == (bool(recorded),) * 2
        assert NEW.isdisjoint(unseen.store.run(run.id).result().model_dump(exclude_none=True))


@pytest.mark.parametrize("name", ["fitnet", "mgd", "semckd"])
def test_watching_changes_no_statistics_and_draws_nothing(bench, make_run, teacher, name):
    run, shop = make_run({"ce": 1, name: READ_MAPS[name]}), bench()
    jobs.train_teacher(teacher, shop.shop)
    guide = FrozenTeacher(load_teacher(teacher, shop.store, CPU))
    student = student_trainer(run, shop.store, guide.network, torch.zeros(40, dtype=torch.long), CPU)
    student.network.train()
    student.terms.train()
    parts = (student.network, student.terms, guide.network)
    before = [{key: value.clone() for key, value in part.state_dict().items()} for part in parts]
    drawn = torch.get_rng_state()
    watched = LayerSimilarityMonitor(student, CachedTeacher(guide), epoch=1)
    measure([watched], shop.data.test(run.dataset, run.recipe))
    assert watched.similarity.scores().keys() == NEW
    for part, state in zip(parts, before, strict=True):
        assert all(torch.equal(state[key], value) for key, value in part.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_only_the_last_epochs_and_of_these_the_tested_ones(bench, make_run, monkeypatch):
    monkeypatch.setattr(trainer, "LIKENESS_EPOCHS", 3)
    run, shop = make_run({"ce": 1, "sp": 300}, recipe={"epochs": 5, "evaluate_every": 2}), bench()
    shop.train(run)
    recorded = {row["epoch"]: row for row in rows(shop, run) if NEW & row.keys()}
    assert recorded.keys() == {4, 5}
    result = shop.store.run(run.id).result()
    for key in NEW:
        assert getattr(result, key) == pytest.approx(sum(row[key] for row in recorded.values()) / 2)


def test_ten_epochs_are_the_last():
    assert trainer.LIKENESS_EPOCHS == 10


def test_the_recorded_values_are_those_of_the_stored_networks(bench, make_run):
    run, shop = make_run({"ce": 1, "sp": 300}, recipe={"epochs": 1}), bench()
    shop.train(run)
    student = new_network(run.student, run.dataset, None).eval()
    student.load_state_dict(load_file(shop.store.run(run.id).weights_file))
    teacher = load_teacher(run.teacher, shop.store, CPU).eval()
    similarity = LayerSimilarity()
    with torch.no_grad():
        for images, _ in shop.data.test(run.dataset, run.recipe):
            similarity.add([LayerPair(student(images).features[-1], teacher(images).features[-1])])
    (row,) = rows(shop, run)
    for key, value in similarity.scores().items():
        assert row[key] == pytest.approx(value, rel=1e-4)


@pytest.fixture
def counted(monkeypatch):
    """How many images the teachers see in one pass, for each pass without training."""
    seen, make = [], jobs.open_teacher

    def counting(*arguments):
        guide = make(*arguments)
        guide.network.register_forward_pre_hook(lambda _, images: seen.append(tuple(images[0].shape)))
        return guide

    monkeypatch.setattr(jobs, "open_teacher", counting)
    return seen


def test_the_teacher_runs_once_per_test_batch_and_only_if_asked(bench, make_run, counted):
    shop = bench()
    runs = mixed(make_run, ["fitnet", "at", "sp", "vid"], epochs=1)
    shop.teachers(*runs)
    jobs.train_cohort(runs[:2], shop.shop)
    assert [shape[0] for shape in counted if shape[0] > 1] == [16, 16, 8]  # kd: the training batches alone
    counted.clear()
    jobs.train_cohort(runs[2:], shop.shop)
    assert [shape[0] for shape in counted if shape[0] > 1] == [16, 16, 8, 30]


def test_a_teacher_with_a_view_of_its_own_sees_the_test_images_so(bench, make_run, counted):
    run, shop = make_run({"ce": 1, "sp": 300}, recipe={"epochs": 1}, teacher_view=Preprocessing(size=40)), bench()
    shop.train(run)
    assert counted[-1] == (30, 3, 40, 40)
    assert rows(shop, run)[0].keys() >= NEW


def test_test_batches_are_cut_into_slices(bench, make_run, monkeypatch):
    sizes = []
    monkeypatch.setattr(LayerSimilarity, "add", lambda self, pairs: sizes.append(len(pairs[0].student)))
    dataset = make_run({"ce": 1}).dataset.model_copy(update={"test_per_class": 15})
    runs = [
        make_run({"ce": 1, name: READ_MAPS[name]}, recipe={"epochs": 1}, dataset=dataset) for name in ("at", "semckd")
    ]
    bench().train(*runs)
    assert sizes == [16] * 9 + [64, 64, 22] or sizes == [64, 64, 22] + [16] * 9


def test_a_term_that_fails_there_ends_its_own_run_alone(bench, make_run, monkeypatch):
    import faulty_terms

    def fail(self, student, teacher):
        raise ValueError("nothing fits")

    monkeypatch.setattr(faulty_terms.Broken, "layer_pairs", fail, raising=False)
    good = make_run({"ce": 1, "sp": 300})
    bad = make_run({"ce": 1, "kd": 1, "faulty_terms:Broken": {"after": 10**6}})
    shop, alone = bench(), bench("alone")
    shop.train(bad, good)
    alone.train(good)
    assert shop.files(good) == alone.files(good)
    failure = shop.store.run(bad.id).failure()
    assert (failure.kind, failure.epoch) == ("error", 1)
    assert "nothing fits" in failure.reason
    assert rows(shop, bad) == []


def test_bf16_runs_are_compared_in_float32(bench, make_run, monkeypatch):
    kinds, add = set(), LayerSimilarity.add

    def noting(self, pairs):
        kinds.update(maps.dtype for pair in pairs for maps in (*pair[:2], *(pair.compared or ())))
        add(self, pairs)

    monkeypatch.setattr(LayerSimilarity, "add", noting)
    run, shop = make_run({"ce": 1, "vid": 1}, recipe={"epochs": 1, "precision": "bf16"}), bench()
    shop.train(run)
    assert kinds == {torch.float32}
    assert rows(shop, run)[0].keys() >= NEW


# SemCKD's attention


def test_attention_is_the_mean_over_each_epochs_training_images(bench, make_run, teacher):
    still = {"epochs": 2, "lr": 1e-30, "weight_decay": 0.0}  # changes no weight
    run, shop = make_run({"ce": 1, "semckd": 40}, recipe=still), bench()
    shop.train(run)
    recorded = [row["attention"] for row in rows(shop, run)]
    assert [len(recorded[0]), *map(len, recorded[0])] == [3, 3, 3, 3]
    assert recorded[0] != recorded[1]
    guide = FrozenTeacher(load_teacher(teacher, shop.store, CPU))
    stream = shop.data.stream(run.dataset, run.scenario, run.recipe, run.trial)
    student = student_trainer(run, shop.store, guide.network, stream.labels, CPU)
    for epoch in (1, 2):
        student.begin_epoch(epoch, guide.network, stream)
        means = []
        with torch.no_grad():
            for batch in stream.epoch(epoch):
                if len(batch) == run.recipe.batch:
                    maps = student.network(batch.images).stages, guide.forward(batch).stages
                    means.append(student.terms["semckd"].allocation(*maps).mean(0))
        for line, expected in zip(recorded[epoch - 1], torch.stack(means).mean(0).tolist(), strict=True):
            assert line == pytest.approx(expected, abs=2e-6)
            assert sum(line) == pytest.approx(1, abs=2e-6)


def test_hkd_is_compared_with_its_auxiliary(bench, make_run):
    helper = make_run({"ce": 1, "kd": 1}, student="resnet14", recipe={"epochs": 1})
    auxiliary = StudentOf(run=helper)
    run, shop = make_run({"ce": 1, "hkd": 1}, recipe={"epochs": 1}, teacher=auxiliary), bench()
    shop.train(helper)
    jobs.train_cohort([run], shop.shop)
    assert rows(shop, run)[0].keys() >= NEW
