"""The networks against values that the reference implementations give (tests/golden/models)."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench import build_model
from kdbench.models import load_checkpoint
from kdbench.models.outputs import count_parameters


FOLDER = Path(__file__).parents[1] / "golden" / "models"


NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    return json.loads((FOLDER / f"{request.param}.json").read_text())


@pytest.fixture(scope="module")
def net(golden):
    return build_model(golden["name"]).eval()


@pytest.fixture(scope="module")
def state(golden):
    """The weights that the rule gives."""
    return {key: draw(key, shape, golden["seed"]) for key, shape in golden["state"].items()}


def test_has_the_reference_parameters_and_keys(golden, net):
    assert count_parameters(net) == golden["parameters"]
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == golden["state"]


def test_gives_the_reference_values(golden, net, state, tmp_path):
    """With weights that are imported from a file in RepDistiller's layout."""
    seed = golden["seed"]
    torch.save({"epoch": 240, "model": state, "accuracy": torch.tensor(75.0)}, tmp_path / "weights.pth")
    load_checkpoint(net, tmp_path / "weights.pth")
    images = np.random.RandomState(seed).randn(2, 3, 32, 32).astype(np.float32)
    with torch.no_grad():
        outputs = net(torch.from_numpy(images))

    taps = [*outputs.features, outputs.embedding]
    before = [outputs.features[0], *outputs.preactivations, outputs.embedding]
    assert [list(tap.shape[1:]) for tap in taps] == golden["feature_shapes"]
    close([tap.abs().mean().item() for tap in taps], golden["feature_mean_abs"])
    close([tap.abs().mean().item() for tap in before], golden["preact_mean_abs"])
    close(outputs.logits.tolist(), golden["logits"])


LAYOUTS = {
    "sskd": lambda state: {
        "epoch": 240,
        "state_dict": {_sskd_name(key): value for key, value in state.items()},
        "acc": 0.75,
    },
    "sskd student": lambda state: {
        "state_dict": {f"backbone.{_sskd_name(key)}": value for key, value in state.items()}
        | {"proj_head.0.weight": torch.zeros(2, 2)}
    },
    "mdistiller": lambda state: {"epoch": 240, "model": {f"module.{key}": value for key, value in state.items()}},
    "bare, without counters": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
}


def _sskd_name(key):
    """SSKD's MobileNetV2 has a bare linear layer as its classifier."""
    return key.replace("classifier.0.", "classifier.")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "golden",
    [pytest.param(name, marks=() if name == "MobileNetV2" else pytest.mark.slow) for name in NAMES],
    indirect=True,
)
def test_gives_the_reference_logits_after_import_from_a_file(golden, net, state, layout, tmp_path):
    for value in net.state_dict().values():
        value.zero_()
    torch.save(LAYOUTS[layout](state), tmp_path / "weights.pth")
    load_checkpoint(net, tmp_path / "weights.pth")
    images = np.random.RandomState(golden["seed"]).randn(2, 3, 32, 32).astype(np.float32)
    with torch.no_grad():
        close(net(torch.from_numpy(images)).logits.tolist(), golden["logits"])


def close(measured, expected):
    expected = np.asarray(expected)
    np.testing.assert_allclose(measured, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def draw(key, shape, seed):
    """The rule that fills one tensor: random, but the same in every implementation with the same names."""
    values = np.random.RandomState((zlib.crc32(key.encode()) ^ seed) & 0xFFFFFFFF).randn(*shape)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("running_var"):
        values = 1 + 0.5 * np.abs(values)
    elif key.endswith("running_mean"):
        values = 0.1 * values
    elif len(shape) >= 2:
        values = values * np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(values.astype(np.float32))
