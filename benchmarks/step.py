"""What a training step costs in kdbench, against the least that it can cost.

    python benchmarks/step.py [--teacher resnet32x4] [--student resnet8x4] [--batch 64] [--steps 6] [--repeats 5]

The floor of a run is the student's forward, backward and SGD step on a batch that lies ready; the floor of a teacher its
forward pass under inference mode. kdbench's time is one pass of its training loop over a stream of --steps batches: cropping,
flipping, normalising, losses and bookkeeping included, tests of accuracy not. Both are measured in turn in one process; the
figures are medians over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from passes import pass_over
from torch import nn
from torch.nn import functional as F

from kdbench.data.batch import Batch
from kdbench.data.image_sets import ImageSet
from kdbench.data.stream import Stream
from kdbench.store.store import Store
from kdbench.suite.protocol import bundled_protocol
from kdbench.suite.specs import DatasetSpec, RunSpec, Supervised
from kdbench.training.build import new_network, on_device, student_trainer
from kdbench.training.environment import cpu_name, prepare
from kdbench.training.teacher import FrozenTeacher


def main() -> None:
    options = _options()
    device = prepare(options.device, options.threads)
    dataset = DatasetSpec(name="cifar100")
    protocol = bundled_protocol("crd")
    recipe = protocol.recipe(options.student, "cifar100").model_copy(update={"batch": options.batch})
    teacher = Supervised(network=options.teacher, dataset=dataset, recipe=recipe)
    runs = [
        RunSpec(
            student=options.student,
            teacher=teacher,
            terms=protocol.terms["kd"],
            dataset=dataset,
            recipe=recipe,
            trial=n,
        )
        for n in range(options.runs)
    ]
    count = options.batch * options.steps
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    train = ImageSet(images, torch.randint(0, 100, (count,)), 100)
    stream = Stream(train, recipe, dataset, ("benchmark",), device)
    batch = next(stream.epoch(1))
    with tempfile.TemporaryDirectory() as folder:
        guide = FrozenTeacher(on_device(new_network(options.teacher, dataset, None, "teacher"), device))
        trainers = [student_trainer(run, Store(Path(folder)), guide.network, stream.labels, device) for run in runs]
        plain = on_device(new_network(options.student, dataset, None, "student"), device)
        teacher_floor, student_floor, one, many = medians(
            [
                lambda: repeat(options.steps, teacher_pass, guide.network, batch),
                floor_of(plain, batch, recipe.lr, options.steps),
                lambda: pass_over(trainers[:1], guide, stream, 1),
                lambda: pass_over(trainers, guide, stream, 1),
            ],
            options.repeats,
            device,
        )
    steps = options.steps
    floor_one, floor_many = teacher_floor + student_floor, teacher_floor + options.runs * student_floor
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{cpu_name()}, {torch.get_num_threads()} threads"
    )
    print(f"{options.teacher} -> {options.student}, kd, batch {options.batch}; torch {torch.__version__}; {name}")
    print(f"teacher forward        {teacher_floor / steps * 1e3:8.1f} ms")
    print(f"student step           {student_floor / steps * 1e3:8.1f} ms")
    print(f"kdbench, 1 run         {one / steps * 1e3:8.1f} ms  {one / floor_one:.3f} x floor")
    print(f"kdbench, {options.runs} runs        {many / steps * 1e3:8.1f} ms  {many / floor_many:.3f} x floor")
    print(f"{options.runs} runs one by one would take {options.runs * one / many:.2f} x the cohort's time")


def teacher_pass(network: nn.Module, batch: Batch) -> None:
    with torch.inference_mode():
        network(batch.images)


def floor_of(network: nn.Module, batch: Batch, lr: float, steps: int) -> Callable[[], None]:
    """The plainest training step there is, on one batch."""
    optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(network(batch.images).logits, batch.labels).backward()
        optimiser.step()

    return lambda: repeat(steps, step)


def repeat(count: int, action: Callable[..., None], *arguments: object) -> None:
    for _ in range(count):
        action(*arguments)


def medians(actions: list[Callable[[], None]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each action; the actions take turns, after one warm-up each."""
    times: list[list[float]] = [[] for _ in actions]
    for number in range(repeats + 1):
        for action, record in zip(actions, times, strict=True):
            _synchronise(device)
            started = time.perf_counter()
            action()
            _synchronise(device)
            if number:
                record.append(time.perf_counter() - started)
    return [statistics.median(record) for record in times]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
