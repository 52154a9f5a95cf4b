"""What a training step costs in kdbench, against the least that it can cost, measured in this process on random images.

The floor of a run is the student's forward, backward and SGD step on a batch that lies ready, and the teacher's forward pass
under inference mode. kdbench's time is a pass of its training loop over a stream: cropping, flipping, normalising, losses and
bookkeeping included, tests of accuracy not. What is compared is measured in turn; every time is a median over the repeats.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from kdbench.catalogue.networks import network
from kdbench.catalogue.terms import term
from kdbench.data.batch import Batch, Batches
from kdbench.data.file_stream import FileStream
from kdbench.data.image_sets import ImageFiles, ImageSet
from kdbench.data.output_cache import OutputCache
from kdbench.data.stream import Stream
from kdbench.data.views import TRANSFORMS, TwoViews
from kdbench.methods import Part, TermContext, build_part
from kdbench.models.outputs import measure_shapes
from kdbench.store.store import Store
from kdbench.suite.methods import auxiliary_method, reads_teacher
from kdbench.suite.protocol import Recipe, bundled_protocol
from kdbench.suite.specs import Adapter, DatasetSpec, Preprocessing, Pretraining, RunSpec, Supervised, WeightedTerm
from kdbench.training.build import new_network, on_device, student_trainer
from kdbench.training.checkpoint import Snapshot, as_safetensors
from kdbench.training.loop import Callbacks, EpochTimer, train_epoch
from kdbench.training.replay import Replay, batches_at_once, why_eager
from kdbench.training.teacher import FrozenTeacher
from kdbench.training.trainer import Trainer


PROTOCOLS = ("crd", "sskd", "semckd", "ega", "smoke")
CIFAR = DatasetSpec(name="cifar100")
TRAIN_IMAGES = 50_000
Row = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What is measured: a pair of networks, the batch, the batches of a pass, and how often each pass is repeated.

    ``eager``: kdbench's steps are not replayed as graphs where the device could.
    """

    device: torch.device
    teacher: str = "resnet32x4"
    student: str = "resnet8x4"
    batch: int = 64
    steps: int = 6
    repeats: int = 5
    precision: str = "fp32"
    eager: bool = False

    @property
    def recipe(self) -> Recipe:
        """CRD's recipe for the student."""
        return self.adapted(bundled_protocol("crd").recipe(self.student, CIFAR))

    def adapted(self, recipe: Recipe) -> Recipe:
        """A recipe with this batch size and precision."""
        return recipe.model_copy(update={"batch": self.batch, "precision": self.precision})

    def images(self, count: int) -> ImageSet:
        """Random images with random labels."""
        draw = torch.Generator().manual_seed(2)
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
        return ImageSet(pixels, torch.randint(0, 100, (count,), generator=draw), 100)

    def stream(self, count: int | None = None, view: Preprocessing | None = None) -> Stream:
        """A stream of as many images; those of one pass unless a number is given."""
        images = self.images(count or self.batch * self.steps)
        return Stream(images, self.recipe, CIFAR, ("benchmark",), self.device, view)

    def medians(self, actions: Sequence[Callable[[], object]]) -> list[float]:
        """Median seconds of each action; the actions take turns, after one round to warm up."""
        times: list[list[float]] = [[] for _ in actions]
        for number in range(self.repeats + 1):
            for action, record in zip(actions, times, strict=True):
                self.synchronise()
                started = time.perf_counter()
                action()
                self.synchronise()
                if number:
                    record.append(time.perf_counter() - started)
        return [statistics.median(record) for record in times]

    def replay(self) -> Replay | None:
        """What replays the steps of trainers that train together, as it does in a worker; None where nothing does."""
        if self.eager or why_eager(self.device):
            return None
        shapes = measure_shapes(new_network(self.teacher, CIFAR, None, "teacher"), CIFAR.image_size)
        at_once = min(self.steps, batches_at_once(shapes, self.batch))
        return Replay(self.device, self.batch, partial(print, file=sys.stderr), at_once)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def pass_over(
    trainers: list[Trainer],
    teacher: FrozenTeacher | None,
    stream: Batches,
    epoch: int = 1,
    replay: Replay | None = None,
) -> None:
    """Train an epoch that does not count: it can be repeated."""
    callbacks = Callbacks(lambda *_: None, lambda *_: None, lambda _: None, lambda: False, checkpoint_seconds=1e9)
    train_epoch(trainers, teacher, stream, epoch, callbacks, EpochTimer(trainers), replay)
    for trainer in trainers:
        trainer.progress.batches = trainer.progress.images = 0


class Floor:
    """The plainest passes there are, on one batch."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.ready: Batch = next(setup.stream(setup.batch).epoch(1))

    def student(self, layout: torch.memory_format = torch.channels_last) -> Callable[[], None]:
        """A pass of training steps."""
        net = new_network(self.setup.student, CIFAR, None, "student").to(self.setup.device, memory_format=layout)
        images = self.ready.images.contiguous(memory_format=layout)
        recipe = self.setup.recipe
        optimiser = torch.optim.SGD(net.parameters(), recipe.lr, momentum=0.9, weight_decay=5e-4, fused=True)

        def steps() -> None:
            for _ in range(self.setup.steps):
                optimiser.zero_grad()
                with self.setup.autocast():
                    loss = F.cross_entropy(net(images).logits, self.ready.labels)
                loss.backward()
                optimiser.step()

        return steps

    def teacher(self, net: nn.Module) -> Callable[[], None]:
        """A pass of a teacher's forwards."""

        def steps() -> None:
            for _ in range(self.setup.steps):
                with torch.inference_mode(), self.setup.autocast():
                    net(self.ready.images)

        return steps


@dataclass
class Case:
    """A method on its way through a pass of training steps; ``label`` is the teacher's name, "none" without one."""

    trainer: Trainer
    guide: FrozenTeacher | None
    label: str
    stream: Stream
    replay: Replay | None

    def __call__(self, epoch: int = 2) -> None:
        """Train a pass. Even epochs are without mgd's choice of channels; epochs up to 0 are an initial stage."""
        self.trainer.progress.epoch = epoch - 1
        pass_over([self.trainer], self.guide, self.stream, epoch, self.replay)


@contextmanager
def built(setup: Setup, methods: Sequence[str]) -> Iterator[dict[str, Case]]:
    """A case of each method, with fresh weights throughout and the memory of 50,000 images where a term keeps one."""
    with tempfile.TemporaryDirectory() as folder:
        yield {name: _case(setup, terms_of(name), Store(Path(folder))) for name in methods}


def _case(setup: Setup, terms: tuple[WeightedTerm, ...], store: Store) -> Case:
    label = network(setup.student).auxiliary if auxiliary_method(terms) else setup.teacher
    recipe = setup.recipe
    teacher = Supervised(network=label, dataset=CIFAR, recipe=recipe) if reads_teacher(terms) else None
    guide = teacher and FrozenTeacher(_teacher(label, setup.device), bf16=setup.precision == "bf16")
    labels = torch.randint(0, 100, (TRAIN_IMAGES,), generator=torch.Generator().manual_seed(1))
    stages = tuple(_stage(use, teacher, recipe) for use in terms if teacher and term(use.name).part is not None)
    parts = [_part(stage, guide.network, setup) for stage in stages] if guide else []
    run = RunSpec(student=setup.student, teacher=teacher, terms=terms, dataset=CIFAR, recipe=recipe, adapters=stages)
    trainer = student_trainer(
        run, store, guide.network if guide else None, labels.to(setup.device), setup.device, parts
    )
    return Case(trainer, guide or None, label if teacher else "none", setup.stream(), setup.replay())


def _teacher(name: str, device: torch.device) -> Any:
    return on_device(new_network(name, CIFAR, None, "teacher"), device)


def _stage(use: WeightedTerm, teacher: Supervised, recipe: Recipe) -> Adapter:
    options = {key: use.hyperparameters[key] for key in term(use.name).part or () if key in use.hyperparameters}
    return Adapter(parent=teacher, dataset=CIFAR, term=use.name, hyperparameters=options, recipe=recipe)


def _part(stage: Adapter, teacher: nn.Module, setup: Setup) -> Part:
    shapes = measure_shapes(teacher, 32)
    context = TermContext(shapes, shapes, 100, TRAIN_IMAGES, setup.batch)
    return build_part(stage.term, context, **stage.hyperparameters).to(setup.device).eval().requires_grad_(False)


@cache
def method_names() -> tuple[str, ...]:
    """Every method once, kd first; no sums of methods, whose costs add up, nor what leaves a part of a loss out."""
    names = dict.fromkeys(name for protocol in PROTOCOLS for name in bundled_protocol(protocol).terms)
    return ("kd", *(name for name in names if name != "kd" and "+" not in name and not name.startswith("ega-")))


def terms_of(method: str) -> tuple[WeightedTerm, ...]:
    """A method's terms in the first protocol that has it."""
    known = [bundled_protocol(protocol).terms for protocol in PROTOCOLS]
    return next(methods[method] for methods in known if method in methods)


def methods(setup: Setup, names: Sequence[str]) -> Iterator[Row]:
    """One step of each method, and by how much a process grows up to the peak of its first.

    ab and fsp: the mean over 30 initial epochs and 240 others. mgd: with the choice of channels, whose cost for 20,000
    images is spread over the two epochs of 50,000 images for which it holds.
    """
    memory = {name: grown(setup, name) for name in names}
    floor = Floor(setup)
    with built(setup, names) as cases:
        guides = {case.label: case.guide for case in cases.values() if case.guide}
        initial = [name for name, case in cases.items() if case.trainer.initial_epochs]
        plain, *times = setup.medians(
            [
                floor.student(),
                *(floor.teacher(guide.network) for guide in guides.values()),
                *(partial(cases[name], 0) for name in initial),
                *cases.values(),
            ]
        )
        forward = {"none": 0.0} | dict(zip(guides, times, strict=False))
        before = dict(zip(initial, times[len(guides) :], strict=False))
        for (name, case), spent in zip(cases.items(), times[len(guides) + len(initial) :], strict=True):
            if name in before:
                spent = (before[name] * case.trainer.initial_epochs + spent * 240) / (case.trainer.initial_epochs + 240)
            seconds = spent / setup.steps + (_choice_of_channels(case, setup) if name == "mgd" else 0.0)
            least = (plain + forward[case.label]) / setup.steps
            trained = sum(p.numel() for p in case.trainer.terms.parameters() if p.requires_grad)
            yield {
                "method": name,
                "ms": 1000 * seconds,
                "floor": seconds / least,
                "memory_mib": memory[name] / 2**20,
                "parameters": trained,
                "teacher": case.label,
            }


def _choice_of_channels(case: Case, setup: Setup) -> float:
    """Seconds per step of mgd's choice for 20,000 images, extrapolated from one and from three batches."""
    spent = []
    for batches in (1, 3):
        stream = setup.stream(batches * setup.batch)
        setup.synchronise()
        started = time.perf_counter()
        case.trainer.begin_epoch(1, case.guide.network, stream)
        setup.synchronise()
        spent.append(time.perf_counter() - started)
    each = (spent[1] - spent[0]) / 2
    return (spent[0] + each * (-(-20_000 // setup.batch) - 1)) / (2 * -(-TRAIN_IMAGES // setup.batch))


def grown(setup: Setup, method: str) -> int:
    """Bytes by which the resident set of a fresh process, or a GPU's memory in use, grows up to the peak of a first step."""
    if setup.device.type == "cuda":
        return _grow(setup, method)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(_grow, (setup, method))


def _grow(setup: Setup, method: str) -> int:
    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.device)
        before, peak = torch.cuda.memory_allocated(setup.device), torch.cuda.max_memory_allocated
    else:
        before, peak = _resident("VmRSS"), lambda _: _resident("VmHWM")
    with built(setup, [method]) as cases:
        case = cases[method]
        case(0 if case.trainer.initial_epochs else 2)
        return peak(setup.device) - before


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


@contextmanager
def cohort(setup: Setup, size: int) -> Iterator[tuple[list[Trainer], FrozenTeacher, Stream, Stream]]:
    """Trainers of runs of kd, their teacher, their stream, and the same with the teacher's outputs, made up, to look up."""
    recipe, stream = setup.recipe, setup.stream()
    teacher = Supervised(network=setup.teacher, dataset=CIFAR, recipe=recipe)
    lead = RunSpec(student=setup.student, teacher=teacher, terms=terms_of("kd"), dataset=CIFAR, recipe=recipe)
    runs = [lead.model_copy(update={"trial": trial}) for trial in range(size)]
    guide = FrozenTeacher(_teacher(setup.teacher, setup.device), bf16=setup.precision == "bf16")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        trainers = [student_trainer(run, store, guide.network, stream.labels, setup.device) for run in runs]
        yield trainers, guide, stream, with_cache(stream, guide, Path(folder) / "outputs")


def with_cache(stream: Stream, guide: FrozenTeacher, folder: Path) -> Stream:
    """The same stream with the teacher's outputs to look up; they are made up."""
    images, crops = len(stream), stream.shown.view.crops
    like = guide.fixed_outputs(stream.shown.numbered(0, torch.arange(images, device=stream.device)))
    cached = copy(stream)
    cached.cache = OutputCache(folder, images, crops, like)
    for crop in range(crops):
        cached.cache.put(crop, [like])
    if [*cached.cache.open()]:
        raise OSError(f"{folder}: does not keep what is written")
    return cached


def cohorts(setup: Setup, sizes: Sequence[int]) -> Iterator[Row]:
    """One step of cohorts of kd; ``alone`` is how much longer their runs would take one by one, beside the teacher."""
    floor, replay = Floor(setup), setup.replay()
    with cohort(setup, max(sizes)) as (trainers, guide, stream, cached):
        passes = [partial(pass_over, trainers[:size], guide, stream, replay=replay) for size in (1, *sizes)]
        passes += [partial(pass_over, trainers[:size], guide, cached, replay=replay) for size in sizes]
        student, forward, one, *times = setup.medians([floor.student(), floor.teacher(guide.network), *passes])
    beside, looked_up = times[: len(sizes)], times[len(sizes) :]
    yield {"what": "teacher forward (floor)", "ms": 1000 * forward / setup.steps}
    yield {"what": "student step (floor)", "ms": 1000 * student / setup.steps}
    for how, seconds in (("", beside), (", outputs cached", looked_up)):
        for size, spent in zip(sizes, seconds, strict=True):
            yield {
                "what": f"kdbench, {size} run{'s' if size > 1 else ''}{how}",
                "ms": 1000 * spent / setup.steps,
                "floor": spent / (size * student + (0 if how else forward)),
                "alone": size * one / spent,
            }


def streams(setup: Setup, images: int) -> Iterator[Row]:
    """Images per second of each stream, over an epoch with nobody to train."""
    plain, own = setup.stream(images), setup.stream(images, Preprocessing(crop_padding=4, flip=True, size=64))
    pretraining = Pretraining(recipe=setup.recipe)
    passes: dict[str, Callable[[], Iterable[Batch]]] = {
        "plain": partial(plain.epoch, 1),
        "with the teacher's own view, 64 px": partial(own.epoch, 1),
        **{f"with transformed views: {name}": partial(plain.epoch, 1, transforms=[name]) for name in TRANSFORMS},
        "two views (SimCLR)": partial(
            TwoViews(setup.images(images), pretraining, CIFAR, ("benchmark",), setup.device).epoch, 1
        ),
    }
    with file_stream(setup, 224) as files:
        passes["files, JPEG of 256 px cut to 224"] = partial(files.epoch, 1)
        times = setup.medians([partial(_exhaust, act) for act in passes.values()])
        counts = [images] * (len(passes) - 1) + [len(files)]
        for name, spent, count in zip(passes, times, counts, strict=True):
            yield {"stream": name, "images_per_second": count / spent, "images": count}


def _exhaust(batches: Callable[[], Iterable[Batch]]) -> None:
    for _ in batches():
        pass


@contextmanager
def file_stream(setup: Setup, size: int) -> Iterator[FileStream]:
    """A stream over four batches of random pictures, smooth enough that they take as long to decode as photographs."""
    draw, count = np.random.default_rng(3), 4 * setup.batch
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            rough = Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            rough.resize((256, 256), Image.Resampling.BICUBIC).save(Path(folder) / f"{number}.jpg", quality=90)
        names = np.array([f"{number}.jpg".encode() for number in range(count)])
        labels = torch.arange(count) % 100
        files = ImageFiles(Path(folder), names, labels, 100, size)
        yield FileStream(files, setup.recipe, DatasetSpec(name="imagenet"), (), setup.device)


def saves(setup: Setup, names: Sequence[str]) -> Iterator[Row]:
    """A checkpoint, of which the snapshot stops the training, and the final weights, of a run of each method."""
    with built(setup, names) as cases:
        for name, case in cases.items():
            trainer = case.trainer
            case()
            weights = trainer.trainable_state_dict()
            take = partial(Snapshot.of, trainer, {})
            snapshot, writing, final = setup.medians([take, take().write, partial(as_safetensors, weights)])
            yield {
                "method": name,
                "snapshot_ms": 1000 * snapshot,
                "checkpoint_ms": 1000 * (snapshot + writing),
                "checkpoint_mib": trainer.record.state_file.stat().st_size / 2**20,
                "weights_ms": 1000 * final,
                "weights_mib": len(as_safetensors(weights)) / 2**20,
            }
