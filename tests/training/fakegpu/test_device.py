"""The device for tests itself: what it refuses, what it notes, what its graphs replay."""

import copy
import io

import pytest
import torch
from fakegpu import Recorder
from torch import nn
from torch.nn import functional as F


def ones(gpu, *shape):
    return torch.ones(shape, device=gpu)


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(1)], ids=["row", "single"])
def test_tensors_of_two_devices_are_refused_with_the_line(gpu, other):
    with pytest.raises(RuntimeError, match=r"two devices, \[2, 3\] on fakegpu.* at .*test_device.py:\d+: ones"):
        ones(gpu, 2, 3) * other


def test_a_number_on_the_cpu_passes(gpu):
    assert (ones(gpu, 2) * torch.tensor(3.0)).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
        (lambda x: x.cpu(), "device to host"),
        (lambda x: x.tolist(), "device to host"),
        (lambda x: x.copy_(torch.zeros(3, 2)), "host to device"),
        (lambda x: torch.tensor([1.0], device=x.device), "host to device"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "by a mask"),
        (lambda x: x[torch.tensor([0])], "by indices on the CPU"),
        (lambda x: x.unique(), "unique"),
        (lambda x: torch.linalg.inv(x[:2] + torch.eye(2, device=x.device)), "linalg"),
        (lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long, device=x.device), 0), "repeat_interleave"),
    ],
)
def test_what_makes_the_host_wait_is_noted_with_its_line(gpu, ask, reason):
    x = ones(gpu, 3, 2)
    with Recorder() as found:
        ask(x)
    (wait,) = found.waits
    assert reason in wait
    assert "test_device.py:" in wait


@pytest.mark.parametrize(
    "launch",
    [
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x.copy_(torch.zeros(3, 2), non_blocking=True),
        lambda x: torch.where(x > 0, x, 0),
        lambda x: x[torch.zeros(1, dtype=torch.long, device=x.device)],
    ],
)
def test_what_runs_on_while_the_host_goes_on_is_no_wait(gpu, launch):
    x = ones(gpu, 3, 2)
    with Recorder() as found:
        launch(x)
    assert not found.waits


def test_operations_are_counted_but_not_views(gpu):
    x = ones(gpu, 4, 3)
    with Recorder() as found:
        y = x.view(3, 4).t().unsqueeze(0) + 1
        torch.empty_like(y).copy_(y)
    assert found.operations == {"aten.add.Tensor": 1, "aten.copy_.default": 1}


def test_values_gradients_and_random_numbers_are_the_cpus(gpu):
    def train(device):
        torch.manual_seed(1)
        layer = nn.Linear(3, 4)
        layer.to(device)
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, fused=True)
        for _ in range(3):
            x = torch.rand(5, 3, device=device)
            F.cross_entropy(layer(x), torch.randint(4, (5,), device=device)).backward()
            optimiser.step()
            optimiser.zero_grad()
        return layer.weight.detach().cpu()

    assert torch.equal(train(gpu), train(torch.device("cpu")))


def test_tensors_are_copied_and_stored(gpu):
    x = torch.rand(2, 3).to(gpu)
    file = io.BytesIO()
    torch.save({"x": x, "copy": copy.deepcopy(x)}, file)
    file.seek(0)
    loaded = torch.load(file, map_location=gpu, weights_only=True)
    assert loaded["x"].device == loaded["copy"].device == gpu
    assert loaded["x"].tolist() == loaded["copy"].tolist() == x.tolist()


class Steps:
    """Steps of a linear layer with random noise, eager or from a graph."""

    def __init__(self, gpu):
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4).to(gpu)
        self.optimiser = torch.optim.SGD(self.layer.parameters(), lr=0.1, momentum=0.9, fused=True)
        self.x, self.sum = ones(gpu, 5, 3), torch.zeros((), device=gpu)

    def take(self):
        noise = torch.rand(4, device=self.x.device)
        loss = (self.layer(self.x) + noise).square().mean()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.sum.add_(loss.detach())
        self.loss = loss.detach()

    def state(self):
        return [value.tolist() for value in (*self.layer.parameters(), self.sum)]


def test_a_captured_graph_replays_what_eager_steps_do(gpu):
    eager, graphed, graph = Steps(gpu), Steps(gpu), torch.fakegpu.CUDAGraph()
    for number in range(3):
        torch.manual_seed(number)
        eager.take()
    torch.manual_seed(0)
    graphed.take()
    before, random = graphed.state(), torch.get_rng_state()
    with torch.fakegpu.graph(graph):
        graphed.take()
    assert graphed.state() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert graphed.loss.isnan().item()
    for number in (1, 2):
        torch.manual_seed(number)
        graph.replay()
    assert graphed.state() == eager.state()
    assert graphed.loss.item() == eager.loss.item()


def test_a_graph_reads_the_memory_that_it_captured(gpu):
    steps, graph = Steps(gpu), torch.fakegpu.CUDAGraph()
    steps.take()
    with torch.fakegpu.graph(graph):
        steps.take()
    steps.x.fill_(torch.nan)
    graph.replay()
    assert steps.loss.isnan().item()


def test_what_makes_the_host_wait_cannot_be_captured(gpu):
    x, graph = ones(gpu, 2), torch.fakegpu.CUDAGraph()
    with (
        pytest.raises(RuntimeError, match=r"while a graph is captured, at .*test_device.py"),
        torch.fakegpu.graph(graph),
    ):
        x.sum().item()
    assert (x + 1).tolist() == [2, 2]
