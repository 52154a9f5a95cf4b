"""What limits a device: waits, launches, memory layouts, batch sizes, CUDA graphs. Measured in this process."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from steps import CIFAR, Case, Floor, Row, Setup, built, cohort, file_stream, pass_over

from kdbench.training.build import new_network, on_device


PRECISIONS = ("fp32", "bf16")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def waits(setup: Setup, names: Sequence[str]) -> Iterator[Row]:
    """Where a student's step or a teacher's forward makes the host wait for the GPU, by torch's sync debug mode."""
    nothing = "none" if setup.device.type == "cuda" else "none, for a CPU has no such mode"
    with built(replace(setup, steps=2), names) as cases:
        for name, case in cases.items():
            case()  # warms up
            wait = _wait_of(case)
            yield {"method": name, "waits": wait or nothing, "waited": bool(wait)}


def _wait_of(case: Case) -> str:
    trainer, guide = case.trainer, case.guide
    batches = case.stream.epoch(2, transforms=[trainer.transforms] if trainer.transforms else [])
    trainer.begin_epoch(2, guide.network if guide else None, case.stream)
    batch = next(batches)
    try:
        with _waits_are_errors(trainer.device):
            shown, copies = guide.look(batch) if guide else (None, {})
            trainer.step(batch, shown, copies.get(trainer.transforms))
    except RuntimeError as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{place.filename}:{place.lineno} {place.line}: {error}"
    return ""


@contextmanager
def _waits_are_errors(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def launches(setup: Setup, names: Sequence[str]) -> Iterator[Row]:
    """Kernels (on the CPU: operations) of a step with its batch and teacher, and the share of time that the GPU is busy."""
    cuda = setup.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    with built(setup, names) as cases:
        for name, case in cases.items():
            case()
            setup.synchronise()
            started = time.perf_counter()
            with torch.profiler.profile(activities=activities) as found:
                case()
                setup.synchronise()
            seconds = time.perf_counter() - started
            events = [event for event in found.events() if (event.device_type.name == "CUDA") == cuda]
            row = {"method": name, "launched": "as a graph" if case.replay else "one by one"}
            row |= {"per step": len(events) / setup.steps, "profiled ms": 1000 * seconds / setup.steps}
            busy = sum(event.time_range.elapsed_us() for event in events) / 1e6 / seconds
            yield row | ({"busy share": busy} if cuda else {})


def layouts(setup: Setup, students: Sequence[str]) -> Iterator[Row]:
    """A plain training step of each student, with channels first and last, in fp32 and bf16."""
    for student in students:
        row: Row = {"student": student}
        for precision in PRECISIONS:
            floor = Floor(replace(setup, student=student, precision=precision))
            times = floor.setup.medians([floor.student(layout) for layout in LAYOUTS.values()])
            row |= {f"{name} {precision}, ms": 1000 * t / setup.steps for name, t in zip(LAYOUTS, times, strict=True)}
        yield row


def teacher_batches(setup: Setup, batches: Sequence[int]) -> Iterator[Row]:
    """The images per second of a teacher's forward passes."""
    network = on_device(new_network(setup.teacher, CIFAR, None, "teacher"), setup.device)
    for batch in batches:
        for precision in PRECISIONS:
            floor = Floor(replace(setup, batch=batch, precision=precision))
            (seconds,) = floor.setup.medians([floor.teacher(network)])
            yield {"batch": batch, "precision": precision, "images per second": batch * setup.steps / seconds}


def graphs(setup: Setup, counts: Sequence[int]) -> Iterator[Row]:
    """A step of cohorts of kd, eager and replayed; and plain steps of as many students, eager, as graphs, and on streams."""
    floor, most, replay = Floor(replace(setup, steps=1)), max(counts), setup.replay()
    eager = [floor.student() for _ in range(most)]
    captured = [_captured(floor.student()) for _ in range(most)]
    streams = [torch.cuda.Stream() for _ in range(most)]

    def steps(students: Sequence[Callable[[], None]], on: Sequence[torch.cuda.Stream] = ()) -> None:
        current = torch.cuda.current_stream()
        for _ in range(setup.steps):
            for number, student in enumerate(students):
                with torch.cuda.stream(on[number] if on else current):
                    student()

    with cohort(setup, most) as (trainers, guide, stream, cached):
        for count in counts:
            ways = {
                "kdbench eager, ms": partial(pass_over, trainers[:count], guide, stream),
                "kdbench replayed, ms": partial(pass_over, trainers[:count], guide, stream, replay=replay),
                "kdbench replayed, outputs cached, ms": partial(
                    pass_over, trainers[:count], guide, cached, replay=replay
                ),
                "plain eager, ms": partial(steps, eager[:count]),
                "plain graphs, ms": partial(steps, captured[:count]),
                "plain graphs on streams, ms": partial(steps, captured[:count], streams[:count]),
            }
            times = setup.medians([*ways.values()])
            yield {"students": count, **{way: 1000 * t / setup.steps for way, t in zip(ways, times, strict=True)}}


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """The replay of a step as a CUDA graph, after three eager ones on the side, which make the momentum and warm cuDNN."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


def files(setup: Setup, size: int) -> Iterator[Row]:
    """A pass of kd's training over images that stay files, cut to ``size`` pixels."""
    with built(setup, ("kd",)) as cases, file_stream(setup, size) as stream:
        case = cases["kd"]
        (seconds,) = setup.medians([partial(pass_over, [case.trainer], case.guide, stream)])
        yield {"images per second": len(stream) / seconds, "failure": case.trainer.failure}
