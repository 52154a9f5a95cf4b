"""TorchScript archives are read as data: their tensors come out, their pickles cannot call anything."""

import os
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from kdbench.errors import BadInput
from kdbench.models import build, load_checkpoint
from kdbench.models.checkpoints import _values
from kdbench.weightfiles.read import opened, tensors_in


class Inner(nn.Module):
    """One of every kind of attribute that a scripted module may have."""

    def __init__(self):
        super().__init__()
        whole = torch.arange(24.0).reshape(4, 6)
        self.linear = nn.Linear(3, 2)
        self.register_buffer("transposed", whole.T)
        self.register_buffer("part", whole[1:3, 2:5])
        self.register_buffer("short", torch.ones(2).half())
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("scalar", torch.tensor(7))
        self.numbers = [1, 2]
        self.table = {"a": 1.5}
        self.text = "words"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "script.pt"
    net = nn.Sequential(Inner(), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(net).save(str(path))
    return net, path


def tensors(path):
    with opened(path) as content:
        return _values(tensors_in(content))


def test_every_tensor_comes_out_as_it_went_in(archive):
    net, path = archive
    found, expected = tensors(path), net.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


def write_archive(path, data, **records):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/constants.pkl", pickle.dumps(()))
        for name, content in records.items():
            archive.writestr(f"archive/data/{name}", content)


class Call:
    """What a hostile file holds: unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_and_does_not_run(tmp_path, protocol):
    path, sentinel = tmp_path / "script.pt", tmp_path / "sentinel"
    write_archive(path, pickle.dumps({"extra": Call(os.system, f"touch '{sentinel}'")}, protocol=protocol))
    with pytest.raises(BadInput, match=r"holds more than weights \(posix\.system\), .* so it is refused"):
        load_checkpoint(build("resnet8"), path)
    assert not sentinel.exists()


@pytest.mark.parametrize("name", ["__builtin__\neval", "torch\nload", "torch.jit._pickle\nos", "kdbench.models\nbuild"])
def test_nothing_beyond_the_list_is_found(tmp_path, name):
    path = tmp_path / "script.pt"
    write_archive(path, b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(BadInput, match=r"holds more than weights"):
        load_checkpoint(build("resnet8"), path)


def test_the_programs_own_classes_are_inert(tmp_path):
    path = tmp_path / "script.pt"
    write_archive(path, b"\x80\x02c__torch__.os\nsystem\n)\x81}X\x01\x00\x00\x00aK\x01sb.")
    with pytest.raises(BadInput, match="no weights found"):
        tensors(path)
    write_archive(path, b"\x80\x02c__torch__.os\nsystem\n(X\x04\x00\x00\x00truetR.")
    with pytest.raises(BadInput, match="no weights found"):
        tensors(path)


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    path = tmp_path / "script.pt"
    pid = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"K\x00K%c\x85K\x01\x85\x89}tR"
    attributes = b"}X\x01\x00\x00\x00w" + tensor + b"sb."
    for length in (4, 5):
        data = b"\x80\x02c__torch__\nM\n)\x81" + attributes.replace(b"%c", bytes([length]))
        write_archive(path, data, **{"0": torch.arange(4.0).numpy().tobytes()})
        if length == 4:
            assert tensors(path)["w"].tolist() == [0, 1, 2, 3]
    with pytest.raises(BadInput, match="damaged"):
        load_checkpoint(build("resnet8"), path)
