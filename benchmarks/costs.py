"""What each method's training step costs, as a multiple of kd's, on resnet32x4 -> resnet8x4 at batch 64.

    python benchmarks/costs.py [--repeats 3] [--methods kd at …]

Writes kdbench/catalogue/costs.yaml, which `kdbench list methods` and `kdbench show` read. Every method of the protocols crd,
sskd, semckd, ega and smoke is measured as the first of them defines it, but no sum of two, on random images, with the memory
of 50,000 training images where a term keeps one. A hkd student has its auxiliary, resnet8x4-double, for a teacher. What a
term trains on the teacher beforehand is not in it.

time:    CPU time of the process, one thread, of a pass of the training loop over one batch, median over the repeats, in which
         the methods take turns. ab and fsp: the mean over 30 initial epochs and 240 others. mgd: with the choice of channels,
         whose cost for 20,000 images is spread over the 2 · 782 steps for which it holds.
memory:  by how much the resident set of a fresh process grows from before student and teacher are built to the peak of the
         first step.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from passes import pass_over
from torch import nn

from kdbench.catalogue.networks import network
from kdbench.catalogue.terms import term
from kdbench.data.image_sets import ImageSet
from kdbench.data.stream import Stream
from kdbench.files import write_text
from kdbench.methods import Part, TermContext, build_part
from kdbench.models.outputs import measure_shapes
from kdbench.store.store import Store
from kdbench.suite.methods import auxiliary_method, reads_teacher
from kdbench.suite.protocol import Recipe, bundled_protocol
from kdbench.suite.specs import Adapter, DatasetSpec, RunSpec, Supervised, WeightedTerm
from kdbench.training.build import new_network, on_device, student_trainer
from kdbench.training.environment import cpu_name, prepare
from kdbench.training.teacher import FrozenTeacher
from kdbench.training.trainer import Trainer


STUDENT, TEACHER = "resnet8x4", "resnet32x4"
PROTOCOLS = ("crd", "sskd", "semckd", "ega", "smoke")
IMAGES, BATCH = 50_000, 64
STEPS = -(-IMAGES // BATCH)
CIFAR = DatasetSpec(name="cifar100")
CPU = torch.device("cpu")
OUTPUT = Path(__file__).parents[1] / "kdbench" / "catalogue" / "costs.yaml"


@dataclass
class Case:
    """A method on its way through a training step."""

    trainer: Trainer
    guide: FrozenTeacher | None
    teacher: str
    stream: Stream

    def seconds(self, epoch: int) -> float:
        """CPU time of one step. Even epochs are without mgd's choice of channels; epochs up to 0 are an initial stage."""
        self.trainer.progress.epoch = epoch - 1
        started = time.process_time()
        pass_over([self.trainer], self.guide, self.stream, epoch)
        return time.process_time() - started

    def step(self) -> float:
        """The mean step of a run."""
        before = self.trainer.initial_epochs
        main = self.seconds(2)
        return (before * self.seconds(0) + 240 * main) / (before + 240) if before else main


def main() -> None:
    options = _options()
    prepare("cpu", 1)
    methods = {name: _terms(name) for name in options.methods or _names()}
    memory = {name: grown(terms) for name, terms in methods.items()}
    with tempfile.TemporaryDirectory() as folder:
        cases = {name: build(terms, Path(folder)) for name, terms in methods.items()}
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(options.repeats):
            for name, case in cases.items():
                times[name].append(case.step())
                print(f"{name}: {times[name][-1]:.2f} s", flush=True)
        seconds = {name: statistics.median(each) for name, each in times.items()}
        if "mgd" in cases:
            seconds["mgd"] += choice_of_channels(cases["mgd"])
    lines = [
        "# What each method's step costs, as a multiple of kd's. Written by benchmarks/costs.py, which says how.",
        f'machine: "{cpu_name()}, one thread, torch {torch.__version__}"',
        f"date: {datetime.date.today()}",
        f"student: {STUDENT}",
        f"batch: {BATCH}",
        f"kd: {{seconds: {seconds['kd']:.2f}, mebibytes: {memory['kd'] / 2**20:.0f}}}   # of one step",
        "methods:",
    ]
    for name, case in cases.items():
        own = sum(p.numel() for p in case.trainer.terms.parameters() if p.requires_grad)
        ratio, peak = seconds[name] / seconds["kd"], memory[name] / memory["kd"]
        lines.append(f"  {name}: {{time: {ratio:.2f}, memory: {peak:.2f}, parameters: {own}, teacher: {case.teacher}}}")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if not options.methods:
        write_text(OUTPUT, text)


def build(terms: tuple[WeightedTerm, ...], folder: Path) -> Case:
    """A trainer, its teacher and its stream, with fresh weights throughout."""
    teacher_name = network(STUDENT).auxiliary if auxiliary_method(terms) else TEACHER
    recipe = bundled_protocol("crd").recipe(STUDENT, "cifar100")
    teacher = Supervised(network=teacher_name, dataset=CIFAR, recipe=recipe) if reads_teacher(terms) else None
    guide = FrozenTeacher(on_device(new_network(teacher_name, CIFAR, None, "teacher"), CPU)) if teacher else None
    labels = torch.randint(0, 100, (IMAGES,), generator=torch.Generator().manual_seed(1))
    stages = tuple(_stage(use, teacher, recipe) for use in terms if teacher and term(use.name).part is not None)
    parts = [_part(stage, guide.network) for stage in stages] if guide else []
    run = RunSpec(student=STUDENT, teacher=teacher, terms=terms, dataset=CIFAR, recipe=recipe, adapters=stages)
    trainer = student_trainer(run, Store(folder), guide.network if guide else None, labels, CPU, parts)
    return Case(trainer, guide, teacher_name if teacher else "none", stream_of(BATCH, recipe))


def stream_of(count: int, recipe: Recipe) -> Stream:
    draw = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    train = ImageSet(images, torch.randint(0, 100, (count,), generator=draw), 100)
    return Stream(train, recipe, CIFAR, ("benchmark",), CPU)


def _stage(use: WeightedTerm, teacher: Supervised, recipe: Recipe) -> Adapter:
    options = {key: use.hyperparameters[key] for key in term(use.name).part or () if key in use.hyperparameters}
    return Adapter(parent=teacher, dataset=CIFAR, term=use.name, hyperparameters=options, recipe=recipe)


def _part(stage: Adapter, teacher: nn.Module) -> Part:
    shapes = measure_shapes(teacher, 32)
    part = build_part(stage.term, TermContext(shapes, shapes, 100, IMAGES, BATCH), **stage.hyperparameters)
    return part.eval().requires_grad_(False)


def choice_of_channels(case: Case) -> float:
    """CPU seconds per step of mgd's choice for 20,000 images, extrapolated from one and from three batches."""
    spent = []
    for batches in (1, 3):
        stream = stream_of(batches * BATCH, case.trainer.recipe)
        started = time.process_time()
        case.trainer.begin_epoch(1, case.guide.network, stream)
        spent.append(time.process_time() - started)
    each = (spent[1] - spent[0]) / 2
    return (spent[0] + each * (-(-20_000 // BATCH) - 1)) / (2 * STEPS)


def grown(terms: tuple[WeightedTerm, ...]) -> int:
    """Bytes by which a forked process grows from nothing built to the peak of its first step."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with tempfile.TemporaryDirectory() as folder:
                before = _status("VmRSS")
                case = build(terms, Path(folder))
                case.seconds(0 if case.trainer.initial_epochs else 2)
                os.write(writing, str(_status("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return int(answer)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def _names() -> list[str]:
    """Every method once, kd first; no sums of methods, whose costs add up, nor what leaves a part of a loss out."""
    names = dict.fromkeys(name for protocol in PROTOCOLS for name in bundled_protocol(protocol).terms)
    return ["kd", *(name for name in names if name != "kd" and "+" not in name and not name.startswith("ega-"))]


def _terms(name: str) -> tuple[WeightedTerm, ...]:
    known = [bundled_protocol(protocol).terms for protocol in PROTOCOLS]
    return next(methods[name] for methods in known if name in methods)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="*", help="only these, kd among them; nothing is written")
    return parser.parse_args()


if __name__ == "__main__":
    main()
