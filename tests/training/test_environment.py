"""A process's setup for a GPU, what is recorded of it, what its errors mean. No GPU is there: torch's answers are made up."""

import os

import pytest
import torch

from kdbench.training import gpus
from kdbench.training.environment import Settings, describe, device_lost, out_of_memory, prepare


ENGINE = "GET was unable to find an engine to execute this computation"
NO_HANDLE = "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"


@pytest.fixture
def free(monkeypatch):
    """free(share): so much of the GPU's memory is free."""

    def make(share):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (share * 80e9, 80e9))

    return make


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other call"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("HIP error: out of memory"),
    ],
    ids=str,
)
def test_errors_for_want_of_memory(error):
    assert out_of_memory(error)
    assert not device_lost(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("words that are not known"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA driver error: unknown error"),
        RuntimeError("HIP error: the operation cannot be performed in the present state"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED, when calling `cusolverDnSgesvd(...)`"),
    ],
    ids=str,
)
@pytest.mark.parametrize("share", [0.01, 0.9])
def test_errors_that_lose_the_device_whatever_memory_is_free(error, share, free):
    free(share)
    assert device_lost(error)
    assert not out_of_memory(error)


@pytest.mark.parametrize(
    "text",
    [
        ENGINE,
        ENGINE.replace("GET", "FIND"),
        NO_HANDLE,
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
    ],
)
def test_a_library_that_fails_lacks_memory_where_little_is_free_and_has_lost_the_device_elsewhere(
    text, free, monkeypatch
):
    error = RuntimeError(text)
    for share in (0.0, 0.09):
        free(share)
        assert (out_of_memory(error), device_lost(error)) == (True, False)
    free(0.11)
    assert (out_of_memory(error), device_lost(error)) == (False, True)

    def lost():
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    assert (out_of_memory(error), device_lost(error)) == (False, True)


@pytest.mark.parametrize(
    "error", [ValueError("shapes do not fit"), IndexError("an index of a CUDA tensor"), SystemExit(1)]
)
def test_a_runs_own_errors(error, free):
    free(0.01)
    assert not out_of_memory(error)
    assert not device_lost(error)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that answers what it is; torch's settings are put back afterwards."""
    settings = Settings()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * 2**30)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    yield
    settings.put_back()


def test_fp32_on_a_gpu_means_tf32_convolutions_and_float32_products_and_is_recorded(gpu):
    torch.backends.cuda.matmul.allow_tf32 = True
    facts = describe(prepare("cuda", 0))
    assert facts["settings"] == {
        "tf32_convolutions": True,
        "tf32_matmul": False,
        "cudnn_benchmark": True,
        "deterministic": False,
    }
    assert {"cuda": "12.8", "cudnn": 91002}.items() <= facts["versions"].items()
    assert {"kind": "gpu", "name": "H100", "capability": "9.0"}.items() <= facts["device"].items()
    assert facts["peak_memory"] == 5 * 2**30


def test_deterministic_means_float32_throughout_and_one_algorithm(gpu, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    facts = describe(prepare("cuda", 0, deterministic=True))
    assert facts["settings"] == {
        "tf32_convolutions": False,
        "tf32_matmul": False,
        "cudnn_benchmark": False,
        "deterministic": True,
    }
    assert torch.backends.cudnn.deterministic
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_cpu_keeps_torchs_settings_and_records_none_of_a_gpu():
    before = Settings()
    facts = describe(prepare("cpu", 0, deterministic=True))
    assert before.put_back() == []
    assert facts["device"]["kind"] == "cpu"
    assert not {"settings", "peak_memory"} & facts.keys()


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9")
def test_a_run_that_sets_the_precision_of_cudnns_convolutions_is_noticed_and_undone():
    before = Settings()
    kept = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    assert before.put_back() == ["float32 matmul precision"]
    assert torch.backends.cudnn.conv.fp32_precision == kept


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        ((9, 0), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 6), ["sm_75", "sm_80"], True),
        ((8, 0), ["sm_75", "sm_86"], False),
        ((7, 0), ["sm_75", "sm_80", "compute_120"], False),
        ((6, 0), ["sm_75"], False),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((12, 0), ["sm_80", "sm_90a", "compute_90a"], False),
        ((9, 0), ["sm_90a"], True),
        ((12, 1), ["sm_120"], True),
        ((9, 0), ["gfx90a"], True),
        ((9, 0), [], True),
    ],
)
def test_which_gpus_a_build_of_torch_has_kernels_for(capability, archs, runs):
    assert gpus.has_kernels(capability, archs) is runs


@pytest.fixture
def several(monkeypatch):
    """Three GPUs: one in order, one too old for this torch, one that does not even say its name (a part of a MIG mix)."""
    capabilities = [(9, 0), (6, 0)]

    def name(number):
        if number == 2:
            raise RuntimeError(
                "CUDA error: invalid device ordinal\nCUDA kernel errors might be asynchronously reported"
            )
        return ["H100", "P100"][number]

    class Properties:
        total_memory = 2**34

    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: capabilities[number])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)


def test_what_torch_can_do_with_each_gpu(several):
    facts = gpus.machine()
    assert (facts["archs"], facts["cudnn"]) == (["sm_80", "sm_90"], 91002)
    assert facts["gpus"] == [
        {"name": "H100", "capability": [9, 0], "memory": 2**34, "trouble": "", "eager": ""},
        {
            "name": "P100",
            "capability": [6, 0],
            "memory": 2**34,
            "trouble": "this torch has kernels for sm_80, sm_90 only",
            "eager": "",
        },
        {
            "name": "GPU 2",
            "capability": [0, 0],
            "memory": 0,
            "trouble": "CUDA error: invalid device ordinal",
            "eager": "",
        },
    ]


def test_a_gpu_that_is_tried_says_what_its_convolution_says(several, monkeypatch):
    def fail(*arguments):
        raise RuntimeError(f"{ENGINE}\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1")

    monkeypatch.setattr(gpus.torch, "device", lambda kind, number: "cpu")
    monkeypatch.setattr(gpus, "eager_because", lambda device: f"{device} has no graphs")
    first = gpus.machine(tried=True)["gpus"][0]
    assert (first["trouble"], first["eager"]) == ("", "cpu has no graphs")
    monkeypatch.setattr(gpus.F, "conv2d", fail)
    assert [gpu["trouble"] for gpu in gpus.machine(tried=True)["gpus"]][:2] == [
        ENGINE,
        "this torch has kernels for sm_80, sm_90 only",
    ]


def test_trying_a_device_draws_no_random_numbers():
    before = torch.get_rng_state()
    assert gpus.trouble_of(torch.device("cpu")) == ""
    assert torch.equal(torch.get_rng_state(), before)
