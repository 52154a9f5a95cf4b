"""Slots: one device each, counted within CUDA_VISIBLE_DEVICES. The GPUs are made up; torch's view of them is faked."""

import pytest

from kdbench.errors import BadInput, KdbenchError
from kdbench.execution import devices
from kdbench.execution.devices import make_slots, query_devices


@pytest.fixture
def machine(monkeypatch):
    """machine(gpus, visible=None, threads=8): what torch sees."""

    def make(gpus, visible=None, threads=8):
        monkeypatch.setattr(devices, "query_devices", lambda: {"gpus": ["GPU"] * gpus, "threads": threads})
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


def seen(slots):
    return [(slot.name, slot.environment.get("CUDA_VISIBLE_DEVICES")) for slot in slots]


def test_all_visible_gpus_one_slot_each(machine):
    machine(3)
    assert seen(make_slots("auto", 1)) == [("gpu:0", "0"), ("gpu:1", "1"), ("gpu:2", "2")]
    assert {slot.kind for slot in make_slots("auto", 1)} == {"gpu"}


def test_numbers_count_within_what_is_visible(machine):
    machine(2, visible="5,3")
    assert seen(make_slots("auto", 1)) == [("gpu:0", "5"), ("gpu:1", "3")]
    assert seen(make_slots("1", 1)) == [("gpu:1", "3")]
    assert seen(make_slots("1, 0,1", 1)) == [("gpu:1", "3"), ("gpu:0", "5")]


def test_devices_may_have_names_instead_of_numbers(machine):
    machine(2, visible="GPU-8932f937-d72c, MIG-GPU-4f1e/1/0")
    assert seen(make_slots("auto", 1)) == [("gpu:0", "GPU-8932f937-d72c"), ("gpu:1", "MIG-GPU-4f1e/1/0")]


def test_cuda_stops_reading_at_the_first_number_that_is_not_there(machine):
    machine(1, visible="1,-1,0")
    assert seen(make_slots("auto", 1)) == [("gpu:0", "1")]


@pytest.mark.parametrize("visible", ["", "-1"])
def test_no_visible_gpu_means_the_cpu(machine, visible):
    machine(0, visible=visible)
    (slot,) = make_slots("auto", 1)
    assert (slot.name, slot.kind, slot.threads, slot.environment) == ("cpu", "cpu", 8, {})


def test_the_cpu_has_a_slot_for_each_core_up_to_a_limit(machine):
    machine(0, threads=2)
    assert [(slot.name, slot.threads) for slot in make_slots("cpu")] == [("cpu:0", 1), ("cpu:1", 1)]
    machine(0, threads=1)
    assert [(slot.name, slot.threads) for slot in make_slots("auto")] == [("cpu", 1)]
    machine(0, threads=32)
    assert [slot.threads for slot in make_slots("cpu")] == [8] * 4
    machine(1, threads=32)
    assert [slot.name for slot in make_slots("auto")] == ["gpu:0"]


def test_jobs_on_one_device_share_it(machine):
    machine(2)
    assert seen(make_slots("auto", 2)) == [("gpu:0.0", "0"), ("gpu:1.0", "1"), ("gpu:0.1", "0"), ("gpu:1.1", "1")]
    assert [slot.threads for slot in make_slots("cpu", 3)] == [2, 2, 2]
    assert [slot.name for slot in make_slots("cpu", 2)] == ["cpu:0", "cpu:1"]
    machine(0, threads=2)
    assert [slot.threads for slot in make_slots("cpu", 5)] == [1] * 5


@pytest.mark.parametrize(
    ("gpus", "wanted", "jobs", "message"),
    [
        (2, "2", 1, "there is no GPU 2; the visible GPUs are 0 to 1"),
        (2, "0,-1", 1, "there is no GPU -1"),
        (0, "0", 1, "torch sees no GPU here"),
        (2, "gpu", 1, "write auto, cpu, or GPU numbers"),
        (2, "0,,1", 1, "write auto, cpu, or GPU numbers"),
        (2, "auto", 0, "must be 1 or more"),
    ],
)
def test_what_is_not_there_is_refused(machine, gpus, wanted, jobs, message):
    machine(gpus)
    with pytest.raises(BadInput, match=message):
        make_slots(wanted, jobs)


def test_the_query_asks_torch_in_another_process(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    facts = query_devices()
    assert facts["gpus"] == []
    assert facts["threads"] == 1


@pytest.mark.parametrize(
    ("code", "seconds", "message"),
    [
        ("os.kill(os.getpid(), 9)", 30.0, "devices was killed by SIGKILL: out of memory, or a batch"),
        ("os.kill(os.getpid(), 15)", 30.0, "was killed by SIGTERM$"),
        ("os._exit(3)", 30.0, r"torch cannot be imported here \(exit code 3\)"),
        ("import time; time.sleep(60)", 0.2, "torch has not said within 0 s which devices there are: the GPU's driver"),
    ],
)
def test_a_query_that_ends_or_hangs_is_said_so(monkeypatch, code, seconds, message):
    monkeypatch.setattr(devices, "_QUERY", f"import os; {code}")
    monkeypatch.setattr(devices, "QUERY_SECONDS", seconds)
    with pytest.raises(KdbenchError, match=message):
        query_devices()


def test_a_torch_that_cannot_be_imported_is_said_so(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart is not there')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KdbenchError, match=r"(?s)torch cannot be imported here.*libcudart is not there"):
        query_devices()
