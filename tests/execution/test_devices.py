"""Slots: one device each, counted within CUDA_VISIBLE_DEVICES. The GPUs are made up; torch's view of them is faked."""

import json
import re
from types import SimpleNamespace

import pytest

from kdbench.errors import BadInput, KdbenchError
from kdbench.execution import devices
from kdbench.execution.devices import NO_GPUS, Gpu, Machine, Slot, make_slots, query_devices


@pytest.fixture
def machine(monkeypatch):
    """machine(gpus, visible=None, threads=8, **facts): what torch sees; ``gpus`` are a number, or Gpus."""

    def make(gpus, visible=None, threads=8, **facts):
        found = gpus if isinstance(gpus, list) else [Gpu("H100", (9, 0))] * gpus
        hidden = Machine(threads)
        seen = Machine(threads, gpus=tuple(found), **facts)
        monkeypatch.setattr(devices, "query_devices", lambda *, gpus=True: seen if gpus else hidden)
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
    assert (slot.name, slot.kind, slot.threads, slot.environment) == ("cpu", "cpu", 8, NO_GPUS)


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
        (2, "auto", 0, "^--jobs-per-device must be 1 or more$"),
        (2, "auto", -1, "^--jobs-per-device must be 1 or more$"),
        (1, "1", 1, "^--devices 1: there is no GPU 1; the visible GPUs are 0 to 0$"),
        (3, "1,5,7", 1, "^--devices 1,5,7: there is no GPU 5; the visible GPUs are 0 to 2$"),
        (0, "0", 1, r"^--devices 0: there is no GPU 0; torch sees no GPU here \(kdbench doctor\)$"),
    ],
)
def test_what_is_not_there_is_refused(machine, gpus, wanted, jobs, message):
    machine(gpus)
    with pytest.raises(BadInput, match=message):
        make_slots(wanted, jobs)


OLD = Gpu("Tesla P100", (6, 0), trouble="this torch has kernels for sm_75 only")
OLD_IN_WORDS = r"GPU 1, Tesla P100 \(compute capability 6\.0\), cannot be used: this torch has kernels for sm_75 only"


def test_a_gpu_that_torch_cannot_use_is_left_out_with_its_reason(machine):
    machine([Gpu("H100", (9, 0)), OLD, Gpu("H100", (9, 0))])
    warnings = []
    assert [slot.name for slot in make_slots("auto", 1, warnings.append)] == ["gpu:0", "gpu:2"]
    assert len(warnings) == 1
    assert re.fullmatch(rf"{OLD_IN_WORDS} \(kdbench doctor\)", warnings[0])
    with pytest.raises(BadInput, match=rf"--devices 0,1: {OLD_IN_WORDS}"):
        make_slots("0,1", 1, warnings.append)
    assert len(warnings) == 1


def test_a_driver_that_torch_cannot_use_means_the_cpu_and_a_warning(machine):
    warnings = []
    machine(0, trouble="The NVIDIA driver on your system is too old (found version 11040).")
    assert make_slots("auto", 1, warnings.append)[0].kind == "cpu"
    (said,) = warnings
    assert said.startswith("no GPU can be used: The NVIDIA driver on your system is too old (found version 11040).")
    assert said.endswith("; training on the CPU")
    with pytest.raises(
        BadInput, match=r"--devices 0: there is no GPU 0; .*: The NVIDIA driver on your system is too old"
    ):
        make_slots("0")


@pytest.mark.parametrize(
    ("wanted", "facts"),
    [("auto", {"trouble": "No CUDA GPUs are available", "absent": True}), ("cpu", {"trouble": "x"})],
)
def test_the_cpu_is_taken_without_a_word_where_there_is_no_gpu_or_none_is_wanted(machine, wanted, facts):
    machine(0, **facts)
    assert make_slots(wanted, 1, lambda text: pytest.fail(text))[0].environment == {"CUDA_VISIBLE_DEVICES": ""}


STUB = """
import os
__version__ = "2.9.stub"
class version:
    cuda, hip = "13.0", None
class cuda:
    @staticmethod
    def init():
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            raise RuntimeError("No CUDA GPUs are available")
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\\nPlease update")
    get_device_name = device_count = init
def get_num_threads():
    return 3
"""


@pytest.fixture
def stub_torch(tmp_path, monkeypatch):
    """A torch for CUDA, in the process that asks, whose driver is too old."""
    (tmp_path / "torch" / "nn").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text(STUB)
    (tmp_path / "torch" / "nn" / "__init__.py").write_text("functional = None")
    monkeypatch.syspath_prepend(tmp_path)


def test_the_query_hears_from_torch_why_it_can_use_no_gpu(stub_torch, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    facts = {"threads": 3, "torch": "2.9.stub", "cuda": "13.0"}
    reason = "The NVIDIA driver on your system is too old (found version 11040). Please update"
    assert query_devices() == Machine(**facts, trouble=reason)
    assert query_devices(gpus=False) == Machine(**facts, trouble="No CUDA GPUs are available", absent=True)


def test_the_query_asks_torch_in_another_process(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = query_devices()
    assert found.gpus == ()
    assert found.threads == 1
    assert found.absent


@pytest.mark.parametrize(
    ("code", "seconds", "message"),
    [
        ("os.kill(os.getpid(), 9)", 30.0, "devices was killed by SIGKILL: out of memory, or a batch"),
        ("os.kill(os.getpid(), 15)", 30.0, "was killed by SIGTERM. With --devices cpu"),
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


def test_what_is_not_known_of_a_device_is_nothing():
    assert (Gpu("A").capability, Gpu("A").memory, Gpu("A").trouble, Gpu("A").eager) == ((0, 0), 0, "", "")
    machine = Machine(4)
    assert (machine.cudnn, machine.archs, machine.gpus, machine.absent, machine.usable) == (0, (), (), False, [])
    assert (Slot("a", "cpu").threads, Slot("a", "cpu").gpu, Slot("a", "cpu").host) == (0, None, "")


def test_slots_that_share_a_gpu_have_one_device_and_those_of_the_cpu_have_their_own(machine):
    machine(2, visible="5,3")
    assert [slot.device for slot in make_slots("auto", 2)] == ["5", "3", "5", "3"]
    assert [slot.gpu.name for slot in make_slots("1", 1)] == ["H100"]
    machine(0, threads=2)
    assert [slot.device for slot in make_slots("cpu")] == ["cpu:0", "cpu:1"]


@pytest.mark.parametrize(
    ("gpus", "facts", "sentences"),
    [
        ([], {}, []),
        ([], {"trouble": "too old"}, ["no GPU can be used: too old"]),
        ([], {"trouble": "none", "absent": True}, []),
        ([OLD], {"trouble": "too old"}, ["GPU 0, Tesla P100 (compute capability 6.0), cannot be used: " + OLD.trouble]),
        ([Gpu("A")], {"trouble": "too old"}, []),
    ],
)
def test_a_sentence_says_of_each_gpu_or_of_all_why_it_cannot_be_used(gpus, facts, sentences):
    assert Machine(4, gpus=tuple(gpus), **facts).unusable() == sentences


@pytest.mark.parametrize(
    ("gpus", "hint"),
    [(True, " With --devices cpu, or an empty CUDA_VISIBLE_DEVICES, no GPU is asked for."), (False, "")],
)
def test_who_asks_for_no_gpu_is_not_told_to_ask_for_none(monkeypatch, gpus, hint):
    def hang(code, request, *, seconds, environment):
        assert (request, seconds, environment) == ({"try": False}, 300.0, {} if gpus else NO_GPUS)
        raise TimeoutError

    monkeypatch.setattr(devices, "ask", hang)
    with pytest.raises(KdbenchError) as caught:
        query_devices(gpus=gpus)
    assert str(caught.value) == (
        "torch has not said within 300 s which devices there are: the GPU's driver hangs (does nvidia-smi?), or the file "
        f"system of the installation.{hint}"
    )


def test_the_answer_is_the_last_line_and_of_an_error_the_last_two_thousand_characters(monkeypatch):
    facts = {"threads": 3, "archs": ["sm_75"], "gpus": [{"name": "A", "capability": [9, 0], "memory": 5}], "torch": "2"}
    answers = [
        SimpleNamespace(returncode=0, stdout=f"noise\n{json.dumps(facts)}\n", stderr=""),
        SimpleNamespace(returncode=3, stdout="", stderr="x" * 3000 + "\n"),
    ]
    monkeypatch.setattr(devices, "ask", lambda *_, **__: answers.pop(0))
    assert query_devices() == Machine(3, torch="2", archs=("sm_75",), gpus=(Gpu("A", (9, 0), 5),))
    with pytest.raises(KdbenchError) as caught:
        query_devices()
    assert str(caught.value) == "torch cannot be imported here (exit code 3):\n" + "x" * 2000
