"""A student and its teacher before their first batch, built as a worker builds them but with random weights everywhere.

    python tests/training/fakegpu/lessons.py > tests/training/fakegpu/operations.csv

writes how many operations each lesson launches for a batch. test_lessons.py holds it to that number, no more and no fewer: a
number that is too high would hide the next operation that is added. With names of lessons as arguments, it prints theirs.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import torch
from fakegpu import Recorder, install
from torch import Tensor

from kdbench.catalogue.terms import term
from kdbench.data.batch import Batch
from kdbench.data.stream import DataSource
from kdbench.methods import Part, TermContext, build_part
from kdbench.models.backbone import Backbone
from kdbench.models.outputs import measure_shapes
from kdbench.store.store import Store
from kdbench.suite.load import load_suites
from kdbench.suite.specs import NewLayers, RunSpec, Scenario
from kdbench.training.build import new_network, on_device, online_layers, student_trainer, with_head
from kdbench.training.teacher import FrozenTeacher, OnlineTeacher
from kdbench.training.trainer import Progress, Trainer


LIGHT = "resnet8"
OTHER_WEIGHTS = {"crd+kd", "ega+kd", "ega-no-node", "ega-no-edge", "ega-no-edge[node_weight=1.2]", "sskd[topk=25]"}
"""Runs that differ from others in their weights alone."""
NEEDS_ITS_STUDENT = {"hkd", "semckd-pair"}


def _lessons() -> dict[str, tuple[RunSpec, int]]:
    """A run of each method and strategy of the suite `smoke`, and one with wrong labels, and the epoch to begin with.

    Runs with an initial stage are there twice. The student is a light one and the images are small where the method
    permits: the number of operations does not depend on the size of batches and maps, but the time of the test does.
    """
    (suite,) = load_suites(["smoke"])
    lessons: dict[str, tuple[RunSpec, int]] = {}
    for run in suite.runs:
        name = run.method if run.strategy in (None, "pretrained") else f"{run.method} {run.strategy}"
        if run.spec.scenario.label_noise:
            name = f"{name} with wrong labels"
        if run.method in OTHER_WEIGHTS or name in lessons or (run.spec.scenario != Scenario() and run.method != "kd"):
            continue
        changes = {"recipe": run.spec.recipe.model_copy(update={"batch": 8})}
        if run.method not in NEEDS_ITS_STUDENT:
            changes |= {"student": LIGHT, "dataset": run.spec.dataset.model_copy(update={"size": 8})}
        spec = run.spec.model_copy(update=changes)
        lessons[name] = spec, 1
        if any(term(use.name).initial for use in spec.terms):
            lessons[f"{name}, initial stage"] = spec, 0
    return lessons


LESSONS = _lessons()


def operations() -> dict[str, dict[str, int]]:
    """The operations that `operations.csv` has, by lesson and part."""
    with OPERATIONS.open(newline="", encoding="utf-8") as file:
        return {row.pop("lesson"): {part: int(count) for part, count in row.items()} for row in csv.DictReader(file)}


OPERATIONS = Path(__file__).with_name("operations.csv")
PARTS = ("stream", "teacher", "step", "teacher's step")


def untrained_teacher(run: RunSpec, device: torch.device) -> FrozenTeacher | None:
    """A run's teacher with random weights."""
    if run.teacher is None:
        return None
    layers = run.teacher if isinstance(run.teacher, NewLayers) else None
    base = layers.parent if layers else run.teacher
    network = new_network(base.network, base.dataset or run.dataset, None, "teacher")
    if run.head is not None:
        return OnlineTeacher(on_device(with_head(network, online_layers(run)), device), run.head.recipe)
    return FrozenTeacher(on_device(with_head(network, layers) if layers else network, device))


def untrained_adapters(run: RunSpec, network: Backbone | None, images: int, device: torch.device) -> list[Part]:
    """What a run's terms would have trained on the teacher, with random weights."""
    adapters = []
    for spec in run.adapters:
        torch.manual_seed(0)
        shapes = measure_shapes(network, run.dataset.image_size)
        context = TermContext(shapes, shapes, shapes.logits, images, run.recipe.batch)
        adapter = build_part(spec.term, context, **spec.hyperparameters)
        adapters.append(adapter.to(device).eval().requires_grad_(False))
    return adapters


@dataclass
class Lesson:
    """The batches of an epoch, over and over, each shown to teacher and student. ``seen`` records what each step asks for."""

    run: RunSpec
    device: torch.device
    root: Path
    epoch: int = 1
    seen: dict[str, Recorder] = field(default_factory=dict)

    @classmethod
    def named(cls, name: str, device: torch.device, root: Path) -> Lesson:
        run, epoch = LESSONS[name]
        return cls(run, device, root, epoch)

    def __post_init__(self) -> None:
        self.stream = DataSource(self.root, self.device).stream(
            self.run.dataset, self.run.scenario, self.run.recipe, self.run.trial, self.run.teacher_view
        )
        self.teacher = untrained_teacher(self.run, self.device)
        network = self.teacher.network if self.teacher else None
        adapters = untrained_adapters(self.run, network, len(self.stream), self.device)
        self.trainer: Trainer = student_trainer(
            self.run, Store(self.root), network, self.stream.labels, self.device, adapters
        )
        self.trainer.seek(Progress(epoch=self.epoch - 1))
        if self.teacher:
            self.teacher.begin_epoch(self.epoch, self.stream)
        self.trainer.begin_epoch(self.epoch, network, self.stream)
        self.batches = self._full_batches()

    def _full_batches(self) -> Iterator[Batch]:
        transforms = [self.trainer.transforms] if self.trainer.transforms else []
        for epoch in cycle([self.epoch]):
            batches = self.stream.epoch(max(1, epoch), with_teacher=self.teacher is not None, transforms=transforms)
            yield from (batch for batch in batches if len(batch) == self.run.recipe.batch)

    def step(self) -> None:
        """Take the next batch, and record what stream, teacher and step ask of the device."""
        shown = copies = None
        with Recorder() as self.seen["stream"]:
            batch = next(self.batches)
        if self.teacher:
            with Recorder() as self.seen["teacher"]:
                copies = self.teacher.forward_views(batch).get(self.trainer.transforms)
                shown = self.teacher.forward(batch)
        with Recorder() as self.seen["step"]:
            self.trainer.step(batch, shown, copies)
        if self.teacher:
            with Recorder() as self.seen["teacher's step"]:
                self.teacher.learn()

    def state(self) -> dict[str, Tensor]:
        """All that the steps have changed, on the CPU."""
        trainer = self.trainer
        values = {**trainer.network.state_dict(prefix="student."), **trainer.terms.state_dict(prefix="terms.")}
        if self.teacher:
            values |= self.teacher.network.state_dict(prefix="teacher.")
        values |= {f"sum of {name}": value for name, value in trainer.sums.items()}
        return {name: value.cpu() for name, value in values.items()}


def main(names: Sequence[str]) -> None:
    """Print the operations of lessons as CSV."""
    device, table = install(), csv.writer(sys.stdout, lineterminator="\n")
    torch.set_num_threads(1)
    table.writerow(["lesson", *PARTS])
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            lesson = Lesson.named(name, device, Path(folder))
            lesson.step()
            lesson.step()
        table.writerow([name, *(lesson.seen[part].operations.total() if part in lesson.seen else 0 for part in PARTS)])


if __name__ == "__main__":
    main(sys.argv[1:] or [*LESSONS])
