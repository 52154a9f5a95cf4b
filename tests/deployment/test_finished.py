"""Finding finished networks: by which id, with which weights and accuracy, and what cannot be found."""

from types import SimpleNamespace

import pytest
import torch

from kdbench.deployment.finished import FinishedNetwork, _accuracy, find_network, find_teacher_of
from kdbench.errors import BadInput
from kdbench.models import build
from kdbench.suite.specs import DatasetSpec, Preprocessing


CPU = torch.device("cpu")


def test_the_accuracy_is_that_of_the_weights_that_are_kept(shelf):
    record = shelf.store.run(shelf.specs["run"].id)
    assert (_accuracy(record, "last"), _accuracy(record, "best")) == (10, 20)
    assert find_network(record.id, shelf.store, shelf.root, CPU).top1 == 10


def test_the_teacher_of_a_run_is_the_one_it_learned_from(shelf):
    found = find_teacher_of(shelf.specs["taught"].id, shelf.store, shelf.root, CPU)
    assert found.id == shelf.specs["teacher"].id
    with torch.no_grad():
        assert torch.equal(found.network(shelf.images).logits, shelf.networks["teacher"](shelf.images).logits)
    assert not found.network.training


def test_an_id_that_begins_two_records_is_ambiguous(tmp_path):
    store = SimpleNamespace(find=lambda kind, id: SimpleNamespace(id=f"{id}-{kind}"))
    with pytest.raises(
        BadInput, match="'ab' begins the ids of run ab-runs and of teacher ab-teachers: give more digits"
    ):
        find_network("ab", store, tmp_path, CPU)


def test_a_teacher_in_training_is_not_finished(shelf):
    stage = shelf.specs["teacher"].model_copy(update={"network": "resnet14"})
    shelf.store.teacher(stage.id).begin(stage.canonical())
    with pytest.raises(BadInput, match=f"teacher {stage.id} in .* is not finished"):
        find_network(stage.id, shelf.store, shelf.root, CPU)


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (DatasetSpec(name="cifar10"), ("airplane", "automobile", "bird")),
        (DatasetSpec(name="tinyimagenet"), ("0", "1", "2")),
        (DatasetSpec(name="stl10", classes=2), ("airplane", "bird")),
    ],
)
def test_classes_have_their_names_or_else_their_numbers(tmp_path, dataset, names):
    network = build("resnet8", dataset.class_count)
    view = Preprocessing()
    found = FinishedNetwork("a" * 12, "a network", network, None, "resnet8", dataset, view)
    assert found.class_names(tmp_path)[:3] == names
    assert len(found.class_names(tmp_path)) == dataset.class_count
