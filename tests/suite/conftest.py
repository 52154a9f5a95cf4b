import pytest

from kdbench.suite.load import load_suite


@pytest.fixture
def load(tmp_path):
    """Load a suite from its text."""

    def from_text(text, trials=None):
        file = tmp_path / "suite.yaml"
        file.write_text(text, encoding="utf-8")
        return load_suite(file, trials)

    return from_text


@pytest.fixture
def grid(load):
    """The suite of one grid under CRD's protocol on CIFAR-100, with single keys changed (None: left out)."""

    def from_keys(**changes):
        keys = {"protocol": "crd", "dataset": "cifar100", "teacher": "resnet32x4", "student": "resnet8x4"}
        keys |= {"method": "[ce, kd]", "trials": 1} | changes
        return load("grid:\n  -\n" + "".join(f"    {k}: {v}\n" for k, v in keys.items() if v is not None))

    return from_keys
