"""Steps that are replayed as graphs give, byte for byte, what steps give whose operations are launched one by one."""

import time

import pytest
import torch
from fakegpu import Graph

from kdbench.data.batch import UNDIVIDED
from kdbench.data.image_sets import ImageSet
from kdbench.data.stream import Stream
from kdbench.models import build
from kdbench.models.outputs import Shapes, measure_shapes
from kdbench.suite.specs import DatasetSpec, Recipe
from kdbench.training import replay as module
from kdbench.training.build import new_network, on_device
from kdbench.training.checkpoint import Snapshot
from kdbench.training.gpus import eager_because
from kdbench.training.replay import WARM_UP, Captured, FixedMemory, Replay, _tensors, batches_at_once, lessons
from kdbench.training.teacher import FrozenTeacher


DIGITS = DatasetSpec(name="digits", size=16)
THREE_BATCHES = {"batch": 12, "epochs": 2, "milestones": [1]}
"""And a short one in each epoch; the second epoch is trained at another rate."""
FEW = {"ce", "kd", "ab", "crd", "semckd", "online_kd", "sskd"}
"""Terms with all that a graph must hold: an initial stage, banks, random numbers, views, a weight for each epoch."""


@pytest.fixture
def captures(monkeypatch):
    """All captures. One call comes before the first of each function."""
    found, capture = [], Captured._capture
    monkeypatch.setattr(module, "WARM_UP", 1)
    monkeypatch.setattr(module, "AT_ONCE", 2)

    def spy(self, *arguments):
        found.append(self)
        return capture(self, *arguments)

    monkeypatch.setattr(Captured, "_capture", spy)
    return found


@pytest.mark.parametrize(
    ("strategy", "all_terms"),
    [
        ("pretrained", False),
        *(pytest.param(each, True, marks=pytest.mark.slow) for each in ("pretrained", "simultaneous")),
    ],
)
def test_terms_are_replayed_and_end_where_they_end_on_the_cpu(gpu, bench, every_term, strategy, all_terms, captures):
    runs = every_term(strategy, THREE_BATCHES)
    runs = runs if all_terms else [run for run in runs if {term.name for term in run.terms} <= FEW]
    on_cpu, replayed = bench("cpu"), bench("gpu", device=gpu, eager=False)
    on_cpu.train(*runs)
    replayed.train(*runs)
    assert not [text for text in replayed.texts() if "kernel" in text]
    assert len(set(captures)) >= len(runs)
    assert replayed.files(*runs) == on_cpu.files(*runs)


@pytest.mark.parametrize("strategy", ["pretrained", "simultaneous"])
def test_steps_on_cached_outputs_are_replayed(gpu, bench, make_run, strategy, captures):
    runs = [make_run(terms, strategy, {"batch": 12}) for terms in ({"ce": 1, "kd": 1}, {"ce": 1, "rkd": 1})]
    on_cpu, replayed = bench("cpu"), bench("gpu", device=gpu, eager=False)
    on_cpu.train(*runs)
    replayed.train(*runs, cached=True)
    assert len(set(captures)) == 3  # steps of the teacher as it was trained, and of the students
    assert replayed.files(*runs) == on_cpu.files(*runs)


def test_stopped_and_replayed_is_uninterrupted_and_eager(gpu, bench, make_run, captures, monkeypatch):
    """The thread that saves copies from the device: never while a graph is captured, however long it takes."""
    write = Snapshot.write
    monkeypatch.setattr(Snapshot, "write", lambda snapshot: (time.sleep(0.05), write(snapshot)))
    runs = [
        make_run(terms, "simultaneous", {"batch": 12})
        for terms in ({"ce": 1, "kd": 1}, {"ce": 1, "crd": {"negatives": 8}})
    ]
    whole, hurt = bench("whole"), bench("hurt", device=gpu, eager=False, checkpoint_seconds=0)
    whole.train(*runs)
    hurt.teachers(*runs)
    assert hurt.again(stop_at_call=4).cohort(*runs).stopped
    assert hurt.again(stop_at_call=6).cohort(*runs).stopped
    hurt.again().cohort(*runs)
    assert hurt.files(*runs) == whole.files(*runs)
    assert captures


def test_a_loss_of_ones_own_is_not_captured(gpu, bench, make_run, captures):
    run, shop = make_run({"ce": 1, "faulty_terms:Random": 0.1}), bench(device=gpu, eager=False)
    shop.train(run)
    assert not captures
    assert shop.record(run).done()


def test_lessons_made_at_once_are_those_made_one_by_one(gpu):
    """Full ones in fixed memory, wherever the epoch begins; a chunk's passes are captured, the epoch's rest is not."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=draw)
    recipe = Recipe(epochs=1, batch=8, lr=0.1, crop_padding=2)
    stream = Stream(ImageSet(images, torch.arange(40) % 10, 10), recipe, DIGITS, ("seed",), gpu)
    teacher = FrozenTeacher(on_device(new_network("resnet8", DIGITS, None, "teacher"), gpu))
    replay, places = Replay(gpu, 8, pytest.fail, at_once=2), set()
    for epoch, first in ((1, 0), (2, 0), (3, 3)):
        how = {
            "epoch": epoch,
            "first": first,
            "teacher_start": first,
            "transforms": ["rotations"],
            "portion": UNDIVIDED,
        }
        one_by_one = lessons(stream, teacher, None, **how)
        for lesson in lessons(stream, teacher, replay, **how):
            pairs = zip(_tensors(lesson), _tensors(next(one_by_one)), strict=True)
            assert all(torch.equal(one.cpu(), other.cpu()) for one, other in pairs)
            places.add(id(lesson[0]))
        assert next(one_by_one, None) is None
    assert len(places) == 1
    assert replay.teacher.captures == 1


@pytest.mark.parametrize(
    ("network", "side", "batches"), [("resnet32x4", 32, 8), ("ResNet50", 32, 2), ("resnet8", 224, 1)]
)
def test_a_teacher_looks_at_as_many_batches_as_its_outputs_leave_room_for(network, side, batches):
    shapes = measure_shapes(build(network, 100), side)
    assert batches_at_once(shapes, 64) == batches


def test_a_teacher_without_maps_looks_at_the_most_batches():
    assert batches_at_once(Shapes(logits=100, embedding=512, features=()), 64) == 8


class Steps:
    """Steps that add noise to a sum, as ``how`` says."""

    def __init__(self, gpu, how="in place"):
        self.how, self.sum, self.calls, self.told = how, torch.zeros(3, device=gpu), 0, []
        self.captured = Captured(gpu, self.told.append)

    def take(self):
        self.calls += 1
        noise = torch.rand(3, device=self.sum.device)
        if self.how == "asks":
            noise = noise * noise.max().item()
        if self.how == "binds anew":
            self.sum = self.sum + noise
        else:
            self.sum.add_(noise * self.calls if self.how == "counts in Python" else noise)
        return self.sum * 2

    def run(self, count, key=0):
        for number in range(count):
            shown = self.captured(self.take, key, lambda: [self.sum], lambda number=number: torch.manual_seed(number))
        return shown.tolist()


def test_a_replay_asks_nothing_of_python(gpu):
    steps, called = Steps(gpu), Steps(gpu)
    shown = steps.run(WARM_UP + 4)
    assert steps.calls == WARM_UP + 2  # a call to compare with, and the capture
    for number in range(WARM_UP + 4):
        torch.manual_seed(number)
        expected = called.take()
    assert shown == expected.tolist()
    steps.run(1, key=1)
    assert (steps.captured.captures, steps.told) == (2, [])


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("asks", "_local_scalar_dense.default while a graph is captured"),
        ("binds anew", "memory is bound anew in each"),
        ("counts in Python", "the first replay gave other values"),
    ],
)
def test_what_no_graph_can_hold_is_called(gpu, how, reason):
    steps, called = Steps(gpu, how), Steps(gpu, how)
    steps.run(WARM_UP)
    called.run(WARM_UP)
    torch.manual_seed(0)
    called.take()
    steps.run(1)
    assert steps.sum.tolist() == called.sum.tolist()
    assert reason in steps.told[0]
    steps.run(2)
    assert len(steps.told) == 1
    assert steps.captured.captures == 0


def test_doctor_tries_a_graph(gpu, monkeypatch):
    assert eager_because(gpu) == ""
    monkeypatch.setattr(Graph, "replay", lambda self: None)
    assert eager_because(gpu) == "the first replay gave other values"


def test_fixed_memory_moves_for_other_shapes_alone(gpu):
    memory = FixedMemory()
    first = memory.put((torch.ones(2, device=gpu), {"x": torch.zeros(3, device=gpu)}))
    second = memory.put((torch.full((2,), 7.0, device=gpu), {"x": torch.ones(3, device=gpu)}))
    assert first is second
    assert first[0].tolist() == [7, 7]
    assert first[1]["x"].tolist() == [1, 1, 1]
    other = memory.put((torch.ones(4, device=gpu), {}))
    assert (other[0].tolist(), memory.changes) == ([1] * 4, 2)
