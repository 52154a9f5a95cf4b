"""Measurements on finished networks: they train and change nothing else, go on after a stop, and know what they saw."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from kdbench.data.stream import DataSource, embed
from kdbench.errors import LostTeacher
from kdbench.evaluation import class_correlation, kl_divergence, linear_cka
from kdbench.files import file_hash
from kdbench.planning.plan import make_plan
from kdbench.suite.measurements import ProbeProtocol, probe, similarity, view_of
from kdbench.suite.specs import DatasetSpec, StudentOf
from kdbench.training import measuring
from kdbench.training.build import load_teacher
from kdbench.training.checkpoint import write_tensors
from kdbench.training.measuring import take_measurement


OTHER = DatasetSpec(name="digits", classes=5, train_per_class=6, test_per_class=4, size=8)
HOW = ProbeProtocol(title="quick", epochs=4, batch=8, lr=0.1, momentum=0.9)
CPU = torch.device("cpu")
KEPT = ("spec.json", "metrics.jsonl", "result.json", "weights.safetensors")


@pytest.fixture
def done(bench, make_run):
    """A results folder with a finished run, and the run."""
    run, shop = make_run({"ce": 1, "kd": 1}), bench()
    shop.train(run)
    return shop, run


def files(shop, spec):
    folder = shop.store.measurement(spec.id).folder
    return {name: (folder / name).read_bytes() for name in KEPT}


def quick(**changes):
    return HOW.model_copy(update=changes)


def test_fixed_features_give_what_the_frozen_network_gives(done, monkeypatch):
    shop, run = done
    spec = probe(StudentOf(run=run), OTHER, HOW)
    take_measurement(spec, shop.shop)
    images, labels = embed(load_teacher(spec.source, shop.store, CPU), shop.data.test(spec.dataset, spec.recipe))
    state = load_file(shop.store.measurement(spec.id).weights_file)
    logits = images @ state["fc.weight"].T + state["fc.bias"]
    accuracy = 100 * (logits.argmax(1) == labels).double().mean()
    result = shop.store.measured(spec)
    assert result.last.top1 == pytest.approx(float(accuracy))
    assert (result.train_images, result.test_images) == (30, 20)
    assert sorted(state) == ["fc.bias", "fc.weight"]


def test_batch_norms_drift_only_where_they_may(done):
    shop, run = done
    trained = load_file(shop.store.run(run.id).weights_file)
    spec = probe(StudentOf(run=run), OTHER, quick(batch_norm="batch"))
    take_measurement(spec, shop.shop)
    probed = load_file(shop.store.measurement(spec.id).weights_file)
    changed = {key for key in trained if key in (f"{k.removeprefix('backbone.')}" for k in probed)}
    moved = {key for key in changed if not torch.equal(trained[key], probed[f"backbone.{key}"])}
    assert moved
    assert all("running" in key or "batches_tracked" in key for key in moved)
    with_crops = probe(StudentOf(run=run), OTHER, quick(flip=True))
    take_measurement(with_crops, shop.shop)
    assert sorted(load_file(shop.store.measurement(with_crops.id).weights_file)) == ["fc.bias", "fc.weight"]


def test_a_probe_starts_alike_for_all_networks_of_a_width(done, make_run):
    shop, run = done
    other = make_run({"ce": 1})
    shop.train(other)
    first = [probe(StudentOf(run=each), OTHER, quick(epochs=1, lr=1e-12)) for each in (run, other)]
    for spec in first:
        take_measurement(spec, shop.shop)
    left, right = (load_file(shop.store.measurement(spec.id).weights_file) for spec in first)
    assert torch.allclose(left["fc.weight"], right["fc.weight"], atol=1e-9)


def test_the_images_come_in_the_size_and_with_the_constants_of_the_network(done):
    _, run = done
    source = StudentOf(run=run)
    spec = probe(source, DatasetSpec(name="stl10"), HOW)
    assert spec.dataset.size == run.dataset.size == 8
    assert spec.recipe.size is None
    assert spec.recipe.mean == view_of(source).mean == view_of(run.teacher).mean


def test_a_network_is_like_itself(done):
    shop, run = done
    source = StudentOf(run=run)
    spec = similarity(source, source, None, DatasetSpec(name="digits", test_per_class=5))
    take_measurement(spec, shop.shop)
    values = shop.store.measured(spec).values
    assert values["kl_t4"] == values["kl_t1"] == values["class_correlation_difference"] == 0
    assert values["cka"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("value", "reason"), [(0.0, "the same embedding for all images"), (torch.nan, "not a finite number")]
)
def test_why_a_likeness_is_not_defined_is_stored(done, monkeypatch, value, reason):
    shop, run = done
    white = [(torch.full((6, 3, 32, 32), value), torch.zeros(6, dtype=torch.long))]
    monkeypatch.setattr(DataSource, "test", lambda *_: white)
    spec = similarity(StudentOf(run=run), run.teacher, None, OTHER)
    take_measurement(spec, shop.shop)
    result = shop.store.measured(spec)
    assert result.undefined["cka"] == reason
    assert "cka" not in result.values


def test_similarity_is_that_of_the_outputs_on_the_whole_test_set(done):
    shop, run = done
    spec = similarity(StudentOf(run=run), run.teacher, None, DatasetSpec(name="digits"))
    take_measurement(spec, shop.shop)
    result = shop.store.measured(spec)
    student, teacher = (load_teacher(each, shop.store, CPU).eval() for each in spec.dependencies)
    test = list(shop.data.test(spec.dataset, spec.student_view))
    images = torch.cat([each for each, _ in test])
    with torch.no_grad():
        ours, theirs = student(images), teacher(images)
    assert result.test_images == len(images) == 797
    assert result.values["kl_t4"] == pytest.approx(float(kl_divergence(ours.logits, theirs.logits, 4.0)), rel=1e-5)
    assert result.values["cka"] == pytest.approx(linear_cka(ours.embedding, theirs.embedding), rel=1e-5)
    kept = load_file(shop.store.measurement(spec.id).weights_file)
    assert torch.allclose(kept["student"], class_correlation(student.fc.weight.detach()))
    assert kept["teacher"].shape == (10, 10)


def test_a_finished_suite_trains_nothing_for_a_measurement(done):
    shop, run = done
    spec = similarity(StudentOf(run=run), run.teacher, None, OTHER)
    plan = make_plan([run], shop.store, measurements=[spec, spec])
    assert (plan.runs, plan.teachers, plan.measurements) == (0, (), (spec,))
    take_measurement(spec, shop.shop)
    after = make_plan([run], shop.store, measurements=[spec])
    assert (after.measurements, after.measurements_done) == ((), 1)
    again = shop.again()
    take_measurement(spec, again.shop)
    assert again.count("finished") == 1
    assert again.count("epoch") == 0


def test_what_is_to_be_measured_is_trained_first(bench, make_run):
    run = make_run({"ce": 1, "kd": 1})
    plan = make_plan([], bench().store, measurements=[probe(StudentOf(run=run), OTHER, HOW)])
    assert [each.id for cohort in plan.cohorts for each in cohort.runs] == [run.id]
    assert plan.teachers == (run.teacher,)


def test_what_was_measured_on_other_weights_is_measured_again(done):
    shop, run = done
    spec = probe(StudentOf(run=run), OTHER, quick(epochs=1))
    take_measurement(spec, shop.shop)
    record = shop.store.run(run.id)
    result = record.result()
    record.finish(result.model_copy(update={"weights_sha256": "0" * 64}), {})
    assert shop.store.measured(spec) is None
    assert make_plan([run], shop.store, measurements=[spec]).measurements == (spec,)
    record.finish(result, {})
    assert shop.store.measured(spec) is not None


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
@pytest.mark.parametrize("name", ["weights.safetensors", "result.json"])
def test_a_damaged_network_is_told_and_not_measured(done, name, batch_norm):
    shop, run = done
    spec = probe(run.teacher, OTHER, quick(batch_norm=batch_norm))
    path = shop.store.teacher(run.teacher.id).folder / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(LostTeacher, match="quarantined"):
        take_measurement(spec, shop.shop)
    assert not shop.store.measurement(spec.id).done()


def test_nobody_measures_twice_at_once(done):
    shop, run = done
    spec = probe(StudentOf(run=run), OTHER, HOW)
    with shop.store.measurement(spec.id).lock():
        assert take_measurement(spec, replace(shop).shop).busy == [spec.id]


def test_layers_that_learned_beside_the_student_are_compared_as_they_were_in_the_end(bench, make_run):
    run, shop = make_run({"ce": 1, "kd": 1}, "simultaneous"), bench()
    shop.train(run)
    spec = similarity(StudentOf(run=run), None, None, DatasetSpec(name="digits", test_per_class=5))
    take_measurement(spec, shop.shop)
    layers = load_file(shop.store.run(run.id).teacher_head_file)
    kept = load_file(shop.store.measurement(spec.id).weights_file)
    assert torch.allclose(kept["teacher"], class_correlation(layers["fc.weight"]))
    assert shop.store.measured(spec).values["kl_t4"] > 0


def made_again(shop, run):
    """Store other weights of a run's student, as a machine that counts otherwise would."""
    record = shop.store.run(run.id)
    weights = {
        key: value + 0.01 if value.is_floating_point() else value
        for key, value in load_file(record.weights_file).items()
    }
    write_tensors(record.weights_file, weights)
    record.finish(record.result().model_copy(update={"weights_sha256": file_hash(record.weights_file)}), {})


@pytest.mark.parametrize("how", ["frozen", "batch"])
def test_a_probe_does_not_go_on_on_other_weights(done, how):
    shop, run = done
    spec = probe(StudentOf(run=run), OTHER, quick(batch_norm=how))
    take_measurement(spec, shop.again(stop_after=2).shop)
    made_again(shop, run)
    again = shop.again()
    take_measurement(spec, again.shop)
    assert "learned on other weights" in again.texts("resumed")[0]
    resumed = files(shop, spec)
    for file in shop.store.measurement(spec.id).folder.iterdir():
        file.unlink()
    take_measurement(spec, shop.shop)
    assert files(shop, spec) == resumed


def test_what_failed_on_new_weights_is_no_result(done, monkeypatch):
    shop, run = done
    spec = similarity(StudentOf(run=run), run.teacher, None, OTHER)
    take_measurement(spec, shop.shop)
    made_again(shop, run)
    monkeypatch.setattr(measuring, "linear_cka", lambda *_: 1 / 0)
    again = shop.again()
    with pytest.raises(ZeroDivisionError):
        take_measurement(spec, again.shop)
    assert "measured on other weights" in again.texts()[0]
    assert not shop.store.measurement(spec.id).done()


def test_a_probe_that_diverged_is_not_planned_again(done):
    shop, run = done
    spec = probe(StudentOf(run=run), OTHER, quick())
    spec = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"lr": 1e38})})  # more than a suite may say
    take_measurement(spec, shop.shop)
    assert shop.store.measurement(spec.id).failure().kind == "diverged"
    assert make_plan([run], shop.store, measurements=[spec]).measurements == ()
    assert make_plan([run], shop.store, measurements=[spec], retry_diverged=True).measurements == (spec,)


def test_a_probe_may_leave_its_weights_behind(done):
    shop, run = done
    spec = probe(StudentOf(run=run), OTHER, quick())
    take_measurement(spec, shop.shop)
    whole, folder = files(shop, spec), shop.store.measurement(spec.id).folder
    for file in folder.iterdir():
        file.unlink()
    take_measurement(spec, shop.context(discard_weights=[spec.id]))
    assert whole.pop("weights.safetensors")
    assert not (folder / "weights.safetensors").exists()
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert shop.store.measured(spec)
