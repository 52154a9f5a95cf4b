"""Every method's step on the device: the CPU's bits, no wait, and the operations that `operations.csv` has."""

import pytest
import torch
from fakegpu import Recorder
from lessons import LESSONS, PARTS, Lesson, operations

from kdbench.training.checkpoint import Snapshot


CPU = torch.device("cpu")


@pytest.mark.parametrize("name", LESSONS)
def test_a_step_is_the_cpus_and_makes_nobody_wait(gpu, tmp_path, name):
    here, there = (Lesson.named(name, device, tmp_path) for device in (CPU, gpu))
    for lesson in (here, there):
        lesson.step()
        lesson.step()
    expected, found = here.state(), there.state()
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    kernels = [weight for weight in there.trainer.terms.parameters() if weight.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert {part: dict(seen.waits) for part, seen in there.seen.items() if seen.waits} == {}
    assert {part: dict(seen.copies) for part, seen in there.seen.items() if seen.copies} == {}
    counts = dict.fromkeys(PARTS, 0) | {part: seen.operations.total() for part, seen in there.seen.items()}
    assert counts == operations()[name], "see lessons.py"
    with Recorder() as saving:
        Snapshot.of(there.trainer, {})
    assert saving.waits | saving.copies == {}
