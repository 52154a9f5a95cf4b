"""Teachers whose weights come from elsewhere: found, checked, measured, kept; or refused with nothing left behind."""

from dataclasses import replace

import pytest
import torch

from kdbench.catalogue.networks import networks
from kdbench.errors import BadInput
from kdbench.evaluation import measure
from kdbench.files import file_hash
from kdbench.models import build
from kdbench.suite.specs import (
    DatasetSpec,
    FineTuned,
    HeadSpec,
    Imported,
    NewLayers,
    Preprocessing,
    Weights,
    trained_stages,
)
from kdbench.training import jobs
from kdbench.training.build import load_encoder, load_teacher


CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(bench, teacher, tmp_path):
    """A trained network in RepDistiller's layout: the file, its weights, and its accuracy."""
    shop = bench("elsewhere")
    jobs.train_teacher(teacher, shop.shop)
    network = load_teacher(teacher, shop.store, CPU)
    path = tmp_path / "resnet8_best.pth"
    torch.save({"epoch": 240, "model": network.state_dict(), "best_acc": torch.tensor(61.5)}, path)
    return path, network.state_dict(), shop.store.teacher(teacher.id).result().last


def imported(teacher, path, **changes):
    spec = Imported(network="resnet8", dataset=teacher.dataset, weights=Weights(source="file", sha256=file_hash(path)))
    return spec.model_copy(update=changes)


def test_an_imported_file_is_measured_again_beside_what_it_says(bench, teacher, checkpoint):
    path, weights, accuracy = checkpoint
    spec = imported(teacher, path)
    shop = bench(files_given={spec.weights.sha256: path})
    jobs.train_teacher(spec, shop.shop)
    result = shop.store.teacher(spec.id).result()
    assert (result.last.top1, result.last.top5) == (accuracy.top1, accuracy.top5)
    assert result.last.epoch == 0
    assert (result.published_top1, result.published_best) == (None, 61.5)
    assert shop.store.teacher(spec.id).metadata()["file"] == path.name
    loaded = load_teacher(spec, shop.store, CPU).state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


@pytest.mark.parametrize("points", [0.9, 1.1])
@pytest.mark.parametrize("key", ["acc", "best_acc"])
def test_a_stated_accuracy_that_is_not_the_measured_one_is_a_warning(bench, teacher, checkpoint, tmp_path, points, key):
    _, weights, accuracy = checkpoint
    torch.save({"model": weights, key: accuracy.top1 + points}, path := tmp_path / "theirs.pth")
    spec, said = imported(teacher, path), []
    shop = bench(files_given={spec.weights.sha256: path}).shop
    jobs.train_teacher(spec, replace(shop, emit=lambda event, **fields: said.append(fields.get("text", ""))))
    text, apart = "".join(said), points > 1
    assert ("WARNING resnet8 (file weights) on digits: its file states" in text) == apart
    assert ("as the best of its training, perhaps of another epoch" in text) == (apart and key == "best_acc")
    assert (f"and {accuracy.top1:.2f} % is measured here: check mean and std" in text) == apart


def test_it_teaches_from_the_record_alone(bench, teacher, checkpoint, make_run):
    path, *_ = checkpoint
    spec = imported(teacher, path)
    run, shop = make_run({"ce": 1, "kd": 1}, teacher=spec), bench(files_given={spec.weights.sha256: path})
    jobs.train_teacher(spec, shop.shop)
    path.unlink()
    again = shop.again(files_given={})
    again.train(run)
    assert again.store.run(run.id).done()


def test_new_layers_on_an_imported_backbone(bench, teacher, checkpoint, make_run, recipe):
    path, *_ = checkpoint
    backbone = imported(teacher, path)
    spec = NewLayers(parent=backbone, dataset=backbone.dataset, head=HeadSpec(width=16, recipe=recipe))
    run = make_run({"ce": 1, "kd": 1}, teacher=spec, recipe={"node_embedding": 16})
    shop = bench(files_given={backbone.weights.sha256: path})
    shop.train(run)
    assert shop.store.run(run.id).done()


def refused(shop, spec):
    with pytest.raises(BadInput) as error:
        jobs.train_teacher(spec, shop.shop)
    assert not shop.store.teacher(spec.id).folder.exists()
    return str(error.value)


def test_files_that_are_not_there_or_have_changed(bench, teacher, checkpoint):
    path, *_ = checkpoint
    spec = imported(teacher, path)
    assert "kdbench teachers import FILE" in refused(bench(), spec)
    path.write_bytes(path.read_bytes() + b"x")
    assert "is not the file any more" in refused(bench(files_given={spec.weights.sha256: path}), spec)


def test_another_class_count_is_refused(bench, teacher, checkpoint):
    path, *_ = checkpoint
    spec = imported(teacher, path, dataset=DatasetSpec(name="digits", classes=5, train_per_class=4, test_per_class=3))
    assert "trained for 10 classes, but 5 are expected" in refused(bench(files_given={spec.weights.sha256: path}), spec)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Weights of ShuffleNetV2×0.5 in torchvision's layout, 1,000 classes, that take the place of the published ones."""
    torch.manual_seed(3)
    network = build("shufflenetv2x0.5", 1000)
    network(torch.randn(4, 3, 64, 64))
    facts = networks()["shufflenetv2x0.5"]
    path = tmp_path / "results" / "weights" / facts.public.file
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    public = replace(facts.public, sha256=file_hash(path)[:8], size=64)
    monkeypatch.setitem(networks(), facts.name, replace(facts, public=public))
    return path, network.state_dict()


def test_published_weights_lose_their_classifier_and_are_fine_tuned(bench, teacher, published, make_run):
    _, weights = published
    start = Weights(source="torchvision", classifier=False)
    recipe = teacher.recipe.model_copy(update={"epochs": 1, "size": 64})
    spec = FineTuned(parent=Imported(network="shufflenetv2x0.5", weights=start), dataset=teacher.dataset, recipe=recipe)
    run = make_run({"ce": 1, "kd": 1}, teacher=spec, teacher_view=Preprocessing(size=64))
    shop = bench()
    shop.train(run)
    assert shop.store.run(run.id).done()
    encoder, tuned = (load_teacher(stage, shop.store, CPU).state_dict() for stage in trained_stages(spec))
    assert all(torch.equal(encoder[key], weights[key]) for key in encoder)
    assert {key for key in weights if key not in encoder} == {"fc.weight", "fc.bias"}
    assert tuned["fc.weight"].shape == (10, 1024)
    result = shop.store.teacher(spec.parent.id).result()
    assert result.last is None


def test_published_weights_that_are_missing_or_wrong(bench, teacher, published):
    path, _ = published
    spec = Imported(network="shufflenetv2x0.5", weights=Weights(source="torchvision", classifier=False))
    path.write_bytes(path.read_bytes() + b"x")
    assert "is not the published file" in refused(bench(), spec)
    path.unlink()
    message = refused(bench(), spec)
    assert str(path) in message
    assert networks()["shufflenetv2x0.5"].public.url in message


@pytest.fixture
def clip_file(tmp_path):
    """CLIP's ViT-B/32 with random weights, as the encoder alone."""
    torch.manual_seed(0)
    path = tmp_path / "clip.safetensors"
    from safetensors.torch import save_file

    save_file(build("clip-vit-b32").state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["sequential", "simultaneous"])
def test_a_clip_encoder_teaches_at_its_own_size(bench, make_run, recipe, clip_file, strategy):
    few = DatasetSpec(name="digits", train_per_class=1, test_per_class=1)
    weights = Weights(source="file", sha256=file_hash(clip_file), classifier=False)
    view = Preprocessing(size=224, crop_padding=2, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    head = HeadSpec(width=16, recipe=recipe.model_copy(update={"epochs": 1, **view.model_dump()}))
    spec = Imported(network="clip-vit-b32", weights=weights)
    if strategy == "sequential":
        spec = NewLayers(parent=spec, dataset=few, head=head)
    run = make_run(
        {"ce": 1, "kd": 1}, teacher=spec, head=head if strategy == "simultaneous" else None, teacher_view=view, dataset=few,
        recipe={"node_embedding": 16, "epochs": 1},
    )  # fmt: skip
    shop = bench(files_given={weights.sha256: clip_file})
    shop.train(run)
    assert shop.store.run(run.id).done(), shop.events
    encoder = Imported(network="clip-vit-b32", weights=weights)
    result = shop.store.teacher(encoder.id).result()
    assert result.last is None
    stored = load_teacher(encoder, shop.store, CPU)
    images = torch.randn(1, 3, 224, 224)
    fresh = build("clip-vit-b32")
    from kdbench.models import load_checkpoint

    load_checkpoint(fresh, clip_file)
    with torch.no_grad():
        assert torch.equal(stored.eval()(images).embedding, fresh.eval()(images).embedding)


def test_an_encoder_with_a_classifier_can_bring_it():
    encoder, without, complete = (build("resnet8", classes=10) for _ in range(3))
    before = without.fc.weight.clone()
    load_encoder(complete, encoder)
    assert torch.equal(complete.fc.weight, encoder.fc.weight)
    encoder.remove_classifier()
    load_encoder(without, encoder)
    assert torch.equal(without.fc.weight, before)
    assert torch.equal(without.conv1.weight, encoder.conv1.weight)


OTHERWISE = Preprocessing(mean=(0.0, 0.0, 0.0), std=(0.05, 0.05, 0.05))


def test_a_teachers_accuracy_is_that_of_the_view_in_which_it_teaches(bench, teacher, checkpoint, make_run):
    path, _, own = checkpoint
    spec = imported(teacher, path)
    shop = bench(files_given={spec.weights.sha256: path})
    seen = {"mean": OTHERWISE.mean, "std": OTHERWISE.std}
    same = make_run({"ce": 1, "kd": 1}, teacher=spec)
    other = make_run({"ce": 1, "kd": 1}, teacher=spec, recipe=seen)
    shop.train(same)
    shop.train(other)
    assert shop.store.teacher(spec.id).result().last.top1 == own.top1
    assert not same.teacher_seen_elsewhere
    assert shop.store.run(same.id).result().teacher is None
    taught = shop.store.run(other.id).result().teacher
    (expected,) = measure([load_teacher(spec, shop.store, CPU)], shop.data.test(other.dataset, OTHERWISE))
    assert (taught.epoch, taught.top1, taught.top5) == (0, expected.top1, expected.top5)
    assert taught.top1 != own.top1

    told = imported(teacher, path, weights=Weights(source="file", sha256=file_hash(path), **seen))
    assert told.id != spec.id
    jobs.train_teacher(told, shop.shop)
    assert shop.store.teacher(told.id).result().last.top1 == taught.top1


@pytest.mark.parametrize(
    ("changes", "elsewhere"),
    [
        ({}, False),
        ({"recipe": {"crop_padding": 4, "flip": True}}, False),
        ({"recipe": {"size": 8}}, False),
        ({"recipe": {"size": 12}}, True),
        ({"teacher_view": Preprocessing(size=12)}, True),
        ({"recipe": {"size": 12}, "teacher_view": Preprocessing()}, False),
        ({"dataset": {"train_per_class": 9}}, False),
        ({"dataset": {"test_per_class": 2}}, True),
        ({"dataset": {"val_split": 0.5}}, True),
    ],
)
def test_what_makes_an_accuracy_another_one(teacher, make_run, changes, elsewhere):
    if "dataset" in changes:
        changes = {"dataset": teacher.dataset.model_copy(update=changes["dataset"])}
    assert make_run({"ce": 1, "kd": 1}, teacher=teacher, **changes).teacher_seen_elsewhere == elsewhere
