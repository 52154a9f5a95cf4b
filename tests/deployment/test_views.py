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
