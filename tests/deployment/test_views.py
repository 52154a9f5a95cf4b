"""What pictures show of networks: Grad-CAM worked out by hand, and the sums behind calibration."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdbench.deployment.evaluate import classify, expected_calibration_error, reliability
from kdbench.deployment.finished import find_teacher_of
from kdbench.deployment.views import Views, _gradcam, compact
from kdbench.errors import BadInput
from kdbench.evaluation import linear_cka
from kdbench.models.outputs import Outputs
from kdbench.suite.specs import DatasetSpec


class Channels(nn.Module):
    """Two maps, the images' first and second channel; class 0 is the mean of the first, class 1 minus that of the second."""

    def __init__(self, reads_maps=True):
        super().__init__()
        self.reads_maps = reads_maps

    def forward(self, images):
        maps = images[:, :2] * 1.0
        means = (maps if self.reads_maps else images[:, :2]).mean((2, 3))
        logits = torch.stack([means[:, 0], -means[:, 1]], 1)
        return Outputs(logits, means, [maps], [maps])


def test_gradcam_is_the_map_that_speaks_for_the_class():
    images = torch.rand(4, 3, 5, 5) + 0.1
    labels = torch.tensor([0, 0, 1, 1])
    maps, predicted = _gradcam(SimpleNamespace(network=Channels()), images.clone(), labels)
    expected = images[:2, 0] / images[:2, 0].amax((1, 2), keepdim=True)
    assert torch.allclose(maps[:2], expected, atol=1e-5)
    assert not maps[2:].any()  # the second channel speaks against class 1 everywhere
    assert predicted.tolist() == [0, 0, 0, 0]


def test_gradcam_needs_a_classifier_that_reads_the_map():
    found = SimpleNamespace(network=Channels(reads_maps=False), label="a network")
    with pytest.raises(BadInput, match="a network: its classifier does not read its last feature map"):
        _gradcam(found, torch.rand(2, 3, 5, 5), torch.tensor([0, 1]))


def test_bins_hold_all_images_and_give_the_calibration_error():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [5.0, 0.0], [0.1, 0.0]])
    labels = torch.tensor([0, 0, 0, 1])
    images, confidence, right = reliability(logits, labels, bins=10)
    assert images.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 2, 1]
    assert right.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert float(confidence.sum()) == pytest.approx(float(logits.double().softmax(1).max(1).values.sum()))
    assert float((right - confidence).abs().sum() / 4) == pytest.approx(expected_calibration_error(logits, labels, 10))


@pytest.mark.parametrize("width", [3, 8, 200])
def test_compact_features_have_the_same_cka(width):
    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(8, size, generator=rng) for size in (width, 50))
    assert compact(x).shape == (8, min(8, width))
    assert linear_cka(compact(x), compact(y)) == pytest.approx(linear_cka(x, y), abs=1e-5)


def test_predictions_and_correlations_of_a_finished_run(shelf):
    one = {"run": shelf.specs["run"].id, "results": str(shelf.root), "of": "student"}
    views = Views({"networks": [one], "data": "data"})
    (found,) = views.predictions()["networks"]
    assert [sum(row) for row in found["confusion"]] == [6] * 10
    assert sum(found["images"]) == 60
    (matrix,) = views.correlations()["matrices"]
    assert torch.tensor(matrix).diag().tolist() == pytest.approx([1.0] * 10)


def test_a_network_that_is_named_twice_is_asked_once(shelf, monkeypatch):
    asked = []
    monkeypatch.setattr("kdbench.deployment.views.classify", lambda *given: asked.append(given) or classify(*given))
    one = {"run": shelf.specs["run"].id, "results": str(shelf.root), "of": "student"}
    first, second = Views({"networks": [one, one], "data": "data"}).predictions()["networks"]
    assert first == second
    assert len(asked) == 1


def test_a_run_without_a_teacher_has_none(shelf, tmp_path):
    with pytest.raises(BadInput, match="learned from no teacher"):
        find_teacher_of(shelf.specs["run"].id, shelf.store, tmp_path, torch.device("cpu"))


@pytest.fixture
def views(shelf):
    """Views of the run's network, of a request's other fields."""
    one = {"run": shelf.specs["run"].id, "results": str(shelf.root), "of": "student"}
    return lambda **fields: Views({"networks": [one, one], "data": "data", "classes": [], "images": [], **fields})


def test_embeddings_of_nine_classes_at_regular_places(views):
    found = views(most=10, seed=0).embeddings()
    images = [at for at, label in enumerate(views().source.sets(views().dataset)[1].labels) if label < 9]
    assert found["positions"] == images[::6]  # 54 images, so every sixth
    assert found["perplexity"] == pytest.approx(8 / 3)
    assert torch.tensor(found["points"]).shape == (2, 9, 2)
    with pytest.raises(BadInput, match="4 test images are too few for t-SNE"):
        views(most=4, seed=0).embeddings()


def test_gradcam_of_the_first_image_of_each_class(views, shelf):
    found = views().gradcam()
    images = views().source.sets(views().dataset)[1]
    assert found["labels"] == [str(digit) for digit in range(10)]
    assert found["positions"] == [images.labels.tolist().index(digit) for digit in range(10)]
    with torch.no_grad():
        answers = shelf.networks["run"](shelf.images[found["positions"]]).logits.argmax(1)
    assert found["networks"][0]["predicted"] == [str(int(answer)) for answer in answers]
    assert views(images=[7, 3], classes=["5"]).gradcam()["positions"] == [7, 3]
    assert views(classes=["5"]).gradcam()["labels"] == ["5"]
    with pytest.raises(BadInput, match="--image 60: there are 60 test images, counted from 0"):
        views(images=[59, 60]).gradcam()


def test_shown_pixels_are_those_of_the_images(views):
    found, images = views(images=[2]), views().source.sets(views().dataset)[1]
    shown = torch.tensor(found.gradcam()["images"][0])
    assert torch.equal(shown, images.select(torch.tensor([2])).images[0].permute(1, 2, 0).long())


def test_layers_are_compared_on_all_images_where_these_are_few(views):
    (matrix,) = views().layers()
    stages = torch.tensor(matrix)
    assert stages.diag().tolist() == pytest.approx([1.0] * len(stages), abs=1e-4)
    assert torch.allclose(stages, stages.T, atol=1e-4)
    assert 0 < float(stages.min()) < 0.99


@pytest.fixture
def views_of(monkeypatch, tmp_path):
    """Views of networks that were trained on these data sets, each found by its run."""

    def make(*datasets):
        found = {
            f"run {at}": SimpleNamespace(dataset=spec, class_names=lambda data, spec=spec: spec.facts.class_names)
            for at, spec in enumerate(datasets)
        }
        monkeypatch.setattr(Views, "_find", lambda self, run, results, of: found[run])
        networks = [{"run": run, "results": "results", "of": "student"} for run in found]
        return Views({"networks": networks, "data": str(tmp_path)})

    return make


def test_networks_of_one_picture_share_a_data_set(views_of):
    digits, resized = DatasetSpec(name="digits"), DatasetSpec(name="digits", size=16)
    assert views_of(digits, DatasetSpec(name="digits")).dataset == digits
    for other in (resized, DatasetSpec(name="cifar10")):
        with pytest.raises(BadInput, match="networks of several data sets cannot share a picture"):
            views_of(digits, other)
