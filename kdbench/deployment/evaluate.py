"""Evaluation of a finished network: accuracy by class, calibration, size and speed."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.stream import DataSource
from kdbench.deployment.finished import FinishedNetwork, find_network, open_checkpoint
from kdbench.errors import BadInput, KdbenchError
from kdbench.evaluation import count_hits
from kdbench.models.outputs import count_macs, count_parameters
from kdbench.store.store import Store
from kdbench.suite.specs import Preprocessing


BINS = 15
"""As in Guo et al. (ICML 2017)."""


@dataclass(frozen=True)
class ClassScores:
    """One class: its test images, and recall and precision in %; None where there is nothing to divide by."""

    name: str
    images: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class Calibration:
    """Temperature scaling (Guo et al., ICML 2017): fitted on the test images at even positions, reported on the others.

    ece:         expected calibration error over 15 equal-width bins of confidence, from 0 to 1, on all test images
    temperature: minimises the cross-entropy on ``fitted_on`` images
    before, after: the ECE of the other ``reported_on`` images
    """

    ece: float
    temperature: float
    fitted_on: int
    reported_on: int
    before: float
    after: float


@dataclass(frozen=True)
class Latency:
    """The median time of a forward pass in milliseconds, on one batch in the device's memory."""

    batch: int
    milliseconds: float
    passes: int


@dataclass(frozen=True)
class Evaluation:
    """What is measured on a finished network, on the test images of its own data set in its own view.

    top1, top5: accuracy in %; with fewer than five classes, top5 counts all of them
    confusion:  [K][K] counts; rows are true classes, columns predicted ones
    parameters: frozen ones included
    macs:       multiply-accumulates of convolutions and linear layers for one image
    """

    id: str
    network: str
    dataset: str
    images: int
    size: int
    top1: float
    top5: float
    classes: list[ClassScores]
    confusion: list[list[int]]
    calibration: Calibration
    parameters: int
    macs: int
    latency: list[Latency]
    device: str
    threads: int
    precision: str = "fp32"


def evaluate(found: FinishedNetwork, data: Path, device: torch.device) -> Evaluation:
    """Evaluate a network on a device. Raises BadInput where its data set is not there."""
    logits, labels = classify(found, data, device)
    count = len(labels)
    first, fifth = count_hits(logits, labels).tolist()
    matrix = confusion_matrix(logits.argmax(1), labels, found.dataset.class_count)
    names = found.class_names(data)
    return Evaluation(
        id=found.id,
        network=found.label,
        dataset=found.dataset.name,
        images=count,
        size=found.size,
        top1=100 * first / count,
        top5=100 * fifth / count,
        classes=class_scores(matrix, names),
        confusion=matrix.tolist(),
        calibration=calibrate(logits, labels),
        parameters=count_parameters(found.network),
        macs=count_macs(found.network, found.size),
        latency=[time_passes(found.network, batch, found.size, device) for batch in (1, 64)],
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
    )


@torch.no_grad()
def classify(found: FinishedNetwork, data: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits [N, K] float32 and labels [N] of all test images, on the CPU."""
    test = DataSource(data, device, sources=found.sources).test(found.dataset, found.view)
    pairs = [(found.network(images).logits.float().cpu(), labels.cpu()) for images, labels in test]
    logits, labels = (torch.cat(each) for each in zip(*pairs, strict=True))
    if not logits.isfinite().all():
        raise KdbenchError(f"{found.label} gives logits that are no numbers: its weights are of no use")
    return logits, labels


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[K, K] int64 counts: rows are true classes, columns predicted ones."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def class_scores(confusion: Tensor, names: tuple[str, ...]) -> list[ClassScores]:
    """Each class's recall and precision from a confusion matrix [K, K]."""
    rows = zip(names, confusion.diag().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist(), strict=True)
    return [ClassScores(name, true, _percent(hits, true), _percent(hits, said)) for name, hits, true, said in rows]


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor, Tensor]:
    """The images, and the sums of confidences and of right answers, of each bin of confidence: [bins] each.

    logits: [N, K], labels: [N]. A bin holds its upper edge.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    index = torch.bucketize(confidence, edges[1:-1])
    sums = torch.zeros(3, bins, dtype=torch.float64)
    for row, values in zip(
        sums, (torch.ones_like(confidence), confidence, (predicted == labels).double()), strict=True
    ):
        row.index_add_(0, index, values)
    return sums[0], sums[1], sums[2]


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Mean over images of |accuracy - confidence| of their bin, between 0 and 1: logits [N, K], labels [N]."""
    _, confidence, right = reliability(logits, labels, bins)
    return float((right - confidence).abs().sum() / len(labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises the cross-entropy of logits [N, K] divided by it, between 0.01 and 100."""
    wide = logits.double()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(wide / log_temperature.exp(), labels)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return min(100.0, max(0.01, math.exp(log_temperature.item())))


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """Fit a temperature on every other image and measure the calibration of the rest. Raises BadInput for one image."""
    if len(labels) < 2:
        raise BadInput(
            "the test set has one image: calibration needs one to fit the temperature on and another to test"
        )
    temperature = fit_temperature(logits[::2], labels[::2])
    rest, right = logits[1::2], labels[1::2]
    return Calibration(
        ece=expected_calibration_error(logits, labels),
        temperature=temperature,
        fitted_on=len(labels) - len(right),
        reported_on=len(right),
        before=expected_calibration_error(rest, right),
        after=expected_calibration_error(rest / temperature, right),
    )


@torch.no_grad()
def time_passes(network: nn.Module, batch: int, size: int, device: torch.device, passes: int = 30) -> Latency:
    """Time forward passes of a batch of images, after three to warm up."""
    images = torch.rand(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    times = []
    for _ in range(3 + passes):
        begin = time.perf_counter()
        network(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return Latency(batch, 1000 * statistics.median(times[3:]), passes)


def usable_device(name: str) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1"; "auto" is the first GPU, or the CPU where there is none.

    Raises BadInput for one that is not there.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"device '{name}' cannot be used ({reason}): choose auto, cpu, cuda or cuda:NUMBER") from None
    return device


def found_of(request: dict[str, Any], device: torch.device) -> FinishedNetwork:
    """The network that a request of the command line names: a checkpoint by ``network``, else a run or teacher."""
    if request.get("network") is None:
        return find_network(request["name"], Store(Path(request["results"])), Path(request["data"]), device)
    view = Preprocessing(**request["view"])
    return open_checkpoint(Path(request["name"]), request["network"], request["dataset"], request["key"], view, device)


def print_evaluation() -> None:
    """Evaluate the network of the request on standard input, and print the evaluation as JSON."""
    request = json.load(sys.stdin)
    try:
        device = usable_device(request["device"])
        print(json.dumps(asdict(evaluate(found_of(request, device), Path(request["data"]), device))))
    except KdbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
