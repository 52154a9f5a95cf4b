"""Files of weights that no trainer has written: refused in one sentence, within limits, with nothing executed."""

import os
import pickle
import random
import sys
import warnings
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from kdbench.errors import KdbenchError
from kdbench.models import build, load_checkpoint
from kdbench.models.checkpoints import published_accuracy


@pytest.fixture(scope="module", autouse=True)
def nothing_is_executed():
    """Fails where a file has started anything."""
    started = []

    def listen(event, arguments):
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork"):
            started.append((event, arguments))

    sys.addaudithook(listen)
    yield
    assert not started


class Command:
    def __reduce__(self):
        return os.system, ("touch kdbench_fuzz_mark",)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One small file of each kind."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    net = build("resnet8", 10)
    state = {key: value.clone() for key, value in net.state_dict().items() if value.numel() < 500}
    content = {"model": state, "best_acc": torch.tensor(70.5), "log": [1.5, "text", {"a": (1, 2)}], "evil": None}
    torch.save(content, folder / "zip")
    torch.save(content, folder / "legacy", _use_new_zipfile_serialization=False)
    torch.save({**content, "evil": Command()}, folder / "hostile")
    (folder / "plain").write_bytes(pickle.dumps({key: value.numpy() for key, value in state.items()}, protocol=4))
    save_file(state, folder / "safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())).save(str(folder / "script"))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


NETWORK = build("resnet8", 10)


def read(path):
    """Read a file as import does; it is taken, or refused in one line that names it."""
    for attempt in (lambda: load_checkpoint(NETWORK, path), lambda: published_accuracy(path)):
        try:
            attempt()
        except KdbenchError as error:
            text = str(error)
            assert text.startswith(f"{path}: "), text
            assert text.removeprefix(f"{path}: ").isprintable(), text
            assert "Traceback" not in text


def mutated(content, draw):
    """Some bytes changed, moved, repeated, left out or made extreme."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(data) + 1)
        length = min(draw.choice([1, 1, 2, 4, 8, 64]), len(data) - place)
        kind = draw.randrange(5)
        if kind == 0:
            data[place : place + length] = draw.randbytes(length)
        elif kind == 1:
            data[place : place + length] = draw.choice([b"\xff", b"\0", b"\x7f"]) * length
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            start = draw.randrange(len(data) + 1)
            data[place:place] = data[start : start + draw.choice([8, 64, 512])]
        else:
            data[place:place] = draw.choice(OPERATIONS)
    return bytes(data)


OPERATIONS = [
    b"cos\nsystem\n",
    b"(S'touch kdbench_fuzz_mark'\ntR.",
    b"r\xff\xff\xff\x7f",
    b"\x96" + b"\xff" * 7 + b"\x0f",
    b"\x8b\xff\xff\xff\x7f",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"\x81", b"R", b"b", b"s", b"u", b"a", b"e", b"Q", b"2", b"(", b"t", b"}", b"]", b"0", b".",
]  # fmt: skip


def repacked(content, draw):
    """An archive of the same members with one of them mutated: what a checksum would have hidden."""
    from io import BytesIO

    source, target = zipfile.ZipFile(BytesIO(content)), BytesIO()
    names = source.namelist()
    chosen = draw.choice([name for name in names if name.endswith("data.pkl")] * 3 + names)
    with zipfile.ZipFile(target, "w", draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name in names:
            inside = source.read(name)
            archive.writestr(name, mutated(inside, draw) if name == chosen else inside)
    return target.getvalue()


@given(kind=st.sampled_from(["zip", "legacy", "hostile", "plain", "safetensors", "script"]), seed=st.integers(0, 2**32))
def test_mutated_files(files, tmp_path_factory, within_limits, kind, seed):
    draw = random.Random(seed)
    content = files[kind]
    path = tmp_path_factory.getbasetemp() / "mutated.pth"
    path.write_bytes(repacked(content, draw) if content[:2] == b"PK" and seed % 4 else mutated(content, draw))
    with within_limits():
        read(path)


PIECES = st.sampled_from(
    [*OPERATIONS, b"K\x01", b"X\x01\0\0\0a", b"q\0", b"h\0", b"N", b")", b"\x85", b"ccollections\nOrderedDict\n"]
)


@given(operations=st.lists(PIECES, max_size=30))
def test_made_up_pickles(tmp_path_factory, within_limits, operations):
    path = tmp_path_factory.getbasetemp() / "made.pth"
    path.write_bytes(b"\x80\x02" + b"".join(operations) + b".")
    with within_limits():
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"".join(operations) + b".")
    with within_limits():
        read(path)


def refusal(path):
    with pytest.raises(KdbenchError) as error:
        load_checkpoint(build("resnet8", 10), path)
    return str(error.value)


BOMBS = {
    "a table for two billion things": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "an array of a terabyte": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
    "a million lists": b"\x80\x02" + b"]" * 10**6 + b".",
    "a text, encoded ten thousand times": b"\x80\x02c_codecs\nencode\nq\x00X\x40\x42\x0f\x00"
    + b"x" * 10**6
    + b"\x85q\x01"
    + b"h\x00h\x01R" * 10**4
    + b".",
    "a list within a list, over and over": b"\x80\x02]" + b"q\x002h\x00e" * 3 + b"(" + b"2" * 100 + b"l.",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("zipped", [False, True])
def test_what_swells_is_refused_before_it_does(tmp_path, name, zipped, within_limits):
    path = tmp_path / "weights.pth"
    path.write_bytes(BOMBS[name])
    if zipped:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", BOMBS[name])
    with within_limits():
        refusal(path)


def test_an_archive_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path, within_limits):
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a/constants.pkl", b"x")
        with archive.open("a/data.pkl", "w") as member:
            for _ in range(17):
                member.write(bytes(2**24))
    content = path.read_bytes()
    with within_limits():
        assert "unpacked they would be 285,212,673" in refusal(path)
    path.write_bytes((2**40).to_bytes(8, "little") + b'{"a": 1}')
    assert "its header claims 1,099,511,627,776 bytes" in refusal(path)
    header = b'{"a":{"dtype":"F32","shape":[99,99],"data_offsets":[0,99999999999]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "a claims 99,999,999,999 bytes" in refusal(path)
    assert len(content) < 2**24
