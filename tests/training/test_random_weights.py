"""Random weights in the place of published ones, and digits in the place of a data set's images."""

import torch

from kdbench.data.image_sets import load_images
from kdbench.suite.specs import DatasetSpec, Imported, Weights, stage_label
from kdbench.training.build import load_teacher


DATA = DatasetSpec(name="imagenet", classes=10, train_per_class=2, test_per_class=1, size=32, stand_in=True)


def test_random_weights_are_a_function_of_the_teacher(bench):
    spec = Imported(network="resnet20", dataset=DATA, weights=Weights(source="random"))
    cpu, states = torch.device("cpu"), []
    for name in "ab":
        torch.rand(1)  # what was drawn before does not matter
        shop = bench(name)
        shop.teacher(spec)
        states.append(load_teacher(spec, shop.store, cpu).state_dict())
    result = shop.record(spec).result()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert result.test_images == 10
    assert result.published_top1 is None
    assert shop.record(spec).spec()["weights"] == {"source": "random"}
    assert "random weights" in stage_label(spec)


def test_digits_stand_in_at_the_size_of_the_data_set(tmp_path):
    for spec, side in ((DATA, 32), (DatasetSpec(name="stl10", train_per_class=2, test_per_class=1, stand_in=True), 96)):
        train, test = load_images(spec, tmp_path / "empty")
        assert train.images.shape == (20, 3, side, side)
        assert test.images.shape == (10, 3, side, side)
        assert train.labels.bincount().tolist() == [2] * 10
        assert len(train.images.float().mean((1, 2, 3)).unique()) > 10
    assert spec.whole == spec
