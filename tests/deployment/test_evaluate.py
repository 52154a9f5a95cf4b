"""kdbench evaluate: numbers of other libraries, what is measured on what, and what it says of bad input."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

import kdbench
from kdbench.cli.app import app
from kdbench.data.stream import DataSource
from kdbench.deployment.evaluate import calibrate, classify, expected_calibration_error, fit_temperature, time_passes
from kdbench.errors import BadInput, BadRecord, KdbenchError
from kdbench.models.outputs import count_macs


TORCHMETRICS = 0.2527311
"""multiclass_calibration_error of torchmetrics 1.9.0 for ``example``, with 15 bins and norm l1, in float64."""


def example():
    """Logits [300, 7] of an overconfident classifier, and labels."""
    rng = torch.Generator().manual_seed(5)
    labels = torch.randint(7, (300,), generator=rng)
    return 4 * (torch.randn(300, 7, generator=rng) + 1.5 * F.one_hot(labels, 7)), labels


def test_the_calibration_error_is_that_of_torchmetrics():
    assert expected_calibration_error(*example()) == pytest.approx(TORCHMETRICS, abs=1e-6)


def test_a_confidence_of_one_is_in_the_last_bin():
    logits = torch.tensor([[500.0, 0.0], [500.0, 0.0]])
    assert expected_calibration_error(logits, torch.tensor([0, 1])) == 0.5


def test_the_temperature_minimises_the_cross_entropy():
    logits, labels = example()
    found = fit_temperature(logits, labels)
    loss = [F.cross_entropy(logits / t, labels) for t in (0.98 * found, found, 1.02 * found)]
    assert loss[1] == min(loss)
    assert fit_temperature(logits / found, labels) == pytest.approx(1, abs=1e-4)


def test_the_temperature_is_fitted_on_other_images_than_it_is_tested_on():
    logits, labels = example()
    measured = calibrate(logits, labels)
    assert measured.temperature == fit_temperature(logits[::2], labels[::2])
    assert (measured.fitted_on, measured.reported_on) == (150, 150)
    rest, right = logits[1::2], labels[1::2]
    assert measured.before == expected_calibration_error(rest, right)
    assert measured.after == expected_calibration_error(rest / measured.temperature, right) < measured.before
    assert measured.ece == expected_calibration_error(logits, labels)
    assert calibrate(logits[:2], labels[:2]).reported_on == 1
    with pytest.raises(BadInput, match="the test set has one image"):
        calibrate(logits[:1], labels[:1])


def test_a_classifier_that_is_always_right_has_a_finite_temperature():
    assert 0.01 <= fit_temperature(5 * torch.eye(4), torch.arange(4)) < 1


def test_a_classifier_that_is_always_wrong_has_the_highest_temperature():
    assert fit_temperature(5 * torch.eye(4), torch.arange(4).roll(1)) == 100


def test_latency_is_the_median_after_three_passes_to_warm_up(monkeypatch):
    seconds = [9.0, 9.0, 9.0, 0.001, 0.002, 0.006]
    clock = iter([time for length in seconds for time in (100.0, 100.0 + length)])
    monkeypatch.setattr("kdbench.deployment.evaluate.time.perf_counter", lambda: next(clock))
    seen = []
    found = time_passes(lambda images: seen.append(images.shape), 2, 8, torch.device("cpu"), passes=3)
    assert (found.batch, found.milliseconds, found.passes) == (2, pytest.approx(2), 3)
    assert seen == [(2, 3, 8, 8)] * 6


def test_logits_that_are_no_numbers_are_refused(shelf):
    spec = shelf.specs["run"]
    broken = SimpleNamespace(
        dataset=spec.dataset, view=spec.recipe.preprocessing, sources={}, label="a network",
        network=lambda images: SimpleNamespace(logits=torch.full((len(images), 10), float("nan"))),
    )  # fmt: skip
    with pytest.raises(KdbenchError, match="a network gives logits that are no numbers"):
        classify(broken, shelf.root, torch.device("cpu"))


@pytest.mark.parametrize("name", ["run", "teacher", "layers"])
def test_the_numbers_are_scikit_learns(shelf, name):
    from sklearn import metrics

    spec, network = shelf.specs[name], shelf.networks[name]
    found = kdbench.evaluate(spec.id[:8], shelf.root)
    (images, labels), *_ = DataSource(shelf.root, torch.device("cpu")).test(spec.dataset, spec.recipe)
    with torch.no_grad():
        logits = network(images).logits
    predicted = logits.argmax(1)
    assert found.images == len(labels) == 60
    assert found.top1 == pytest.approx(100 * metrics.accuracy_score(labels, predicted))
    assert found.top5 == pytest.approx(100 * metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(10)))
    assert found.confusion == metrics.confusion_matrix(labels, predicted, labels=range(10)).tolist()
    recall = metrics.recall_score(labels, predicted, average=None, labels=range(10), zero_division=0)
    precision = metrics.precision_score(labels, predicted, average=None, labels=range(10), zero_division=0)
    assert [each.recall for each in found.classes] == pytest.approx(100 * recall)
    assert [each.precision or 0 for each in found.classes] == pytest.approx(100 * precision)
    assert found.parameters == sum(each.numel() for each in network.parameters())
    assert found.macs == count_macs(network, 32)
    assert [(each.batch, each.passes) for each in found.latency] == [(1, 30), (64, 30)]


@pytest.mark.slow
def test_the_command_prints_json_or_tables_of_runs_and_files(shelf, tmp_path):
    teacher = shelf.specs["teacher"]
    common = ["--results", str(shelf.root), "--data", str(tmp_path)]
    done = CliRunner().invoke(app, ["evaluate", teacher.id, *common, "--json"])
    by_id = json.loads(done.stdout)
    assert by_id["top1"] == kdbench.evaluate(teacher.id, shelf.root).top1
    file = tmp_path / "net.pth"
    torch.save(shelf.networks["teacher"].state_dict(), file)
    done = CliRunner().invoke(app, ["evaluate", str(file), "--network", "resnet8", "--dataset", "digits", *common])
    assert "Test images: 797 of digits, seen at 32 × 32 pixels" in done.stdout
    assert "true \\ predicted" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net.pth"], "net.pth: --network is missing"),
        (["net.pth", "--network", "resnet8"], "net.pth: --dataset is missing"),
        (["net.pth", "--network", "resnet8x5", "--dataset", "digits"], "Did you mean 'resnet8x4'"),
        (
            ["net.pth", "--network", "resnet8", "--dataset", "digits", "--std", "0,1,1"],
            "--std 0,1,1: give three numbers",
        ),
        (["abcdef", "--network", "resnet8"], "abcdef: no such file, and --network describes a checkpoint"),
    ],
)
def test_wrong_options(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pth").touch()
    done = CliRunner().invoke(app, ["evaluate", *arguments])
    assert isinstance(done.exception, BadInput)
    assert message in str(done.exception)


def test_networks_that_cannot_be_evaluated(shelf):
    with pytest.raises(BadInput, match="no run 'abcdef'"):
        kdbench.evaluate("abcdef", shelf.root)
    with pytest.raises(BadInput, match="is an encoder without classes"):
        kdbench.evaluate(shelf.specs["encoder"].id, shelf.root)
    with pytest.raises(BadInput, match="device 'gpuu' cannot be used"):
        kdbench.evaluate(shelf.specs["run"].id, shelf.root, device="gpuu")
    file = shelf.store.run(shelf.specs["run"].id).weights_file
    whole = file.read_bytes()
    file.write_bytes(b"damaged")
    try:
        with pytest.raises(BadRecord, match=r"weights\.safetensors"):
            kdbench.evaluate(shelf.specs["run"].id, shelf.root)
    finally:
        file.write_bytes(whole)
