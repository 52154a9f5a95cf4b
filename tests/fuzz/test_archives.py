"""Archives and packed files that nobody has made on purpose: refused in one sentence, within limits."""

import io
import random
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdbench.catalogue.datasets import dataset
from kdbench.datafiles.folders import read_picture
from kdbench.datafiles.readers import read_npz
from kdbench.errors import BadInput, KdbenchError
from kdbench.weightfiles.read import opened


def packed(shape, kind=np.uint8, claimed=None):
    """One of NumPy's files, whose header may claim another shape than it has."""
    content = io.BytesIO()
    np.save(content, np.zeros(shape, kind))
    if claimed is None:
        return content.getvalue()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": claimed})
    return header.getvalue() + bytes(100)


def test_an_array_that_claims_terabytes_takes_no_memory(tmp_path, within_limits):
    facts = dataset("cifar10")
    for content in (
        packed(1, claimed=(2**40, 32, 32, 3)),
        packed(1, claimed=(2**40,)),
        packed(0, "V1000000"),
        b"\x93NUMPY\x02\0" + b"\xff" * 9,
    ):
        with zipfile.ZipFile(facts.npz(tmp_path), "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("train_images", "train_labels", "test_images", "test_labels"):
                archive.writestr(f"{name}.npy", content)
        with within_limits(), pytest.raises(BadInput, match=r"cifar10\.npz"):
            read_npz(facts, tmp_path)


def test_a_compressed_archive_is_unpacked_no_further_than_its_names_need(tmp_path, within_limits):
    path = tmp_path / "weights.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name in ("a.pth", "b.pth"):
            member = tarfile.TarInfo(name)
            member.size = 2**26
            archive.addfile(member, Zeros())
    with (
        within_limits(),
        pytest.raises(BadInput, match=r"an archive of many files \(a\.pth …\): unpack it"),
        opened(path),
    ):
        pass


class Zeros:
    def read(self, length):
        return bytes(length)


def kinds():
    """A small tar, tar.gz, zip and npz."""
    found = {}
    for name, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode=mode) as archive:
            for number in range(3):
                member = tarfile.TarInfo(f"{number}.pth")
                member.size = 100
                archive.addfile(member, Zeros())
        found[name] = content.getvalue()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.pth", bytes(100))
    found["zip"] = content.getvalue()
    content = io.BytesIO()
    np.savez_compressed(content, train_images=np.zeros((3, 32, 32, 3), np.uint8), train_labels=np.zeros(3, int))
    found["npz"] = content.getvalue()
    return found


KINDS = kinds()


@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32))
def test_mutated_archives(tmp_path_factory, within_limits, kind, seed):
    draw, data = random.Random(seed), bytearray(KINDS[kind])
    for _ in range(draw.randint(0, 6)):
        place = draw.randrange(len(data))
        data[place : place + 4] = draw.choice([draw.randbytes(4), b"\xff" * 4, b"", b"\0" * 8])
    folder = tmp_path_factory.getbasetemp()
    facts = dataset("cifar10")
    facts.npz(folder).write_bytes(data)
    with within_limits():
        with pytest.raises(KdbenchError), opened(facts.npz(folder)):
            pass
        with pytest.raises(KdbenchError):
            read_npz(facts, folder)


def pictures():
    found = []
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16"):
        content = io.BytesIO()
        Image.new(mode, (20, 10)).save(content, "JPEG" if mode == "CMYK" else "PNG")
        found.append(content.getvalue())
    return found


PICTURES = pictures()


@given(number=st.integers(0, len(PICTURES) - 1), seed=st.integers(0, 2**32))
def test_mutated_pictures(tmp_path_factory, within_limits, number, seed):
    draw, data = random.Random(seed), bytearray(PICTURES[number])
    for _ in range(draw.randint(0, 4)):
        place = draw.randrange(len(data))
        data[place : place + 4] = draw.choice([draw.randbytes(4), b"\xff" * 4, b""])
    path = tmp_path_factory.getbasetemp() / "picture.png"
    path.write_bytes(data)
    with within_limits():
        try:
            mode = read_picture(path).mode
        except BadInput as error:
            mode = str(error).removeprefix(f"{path}: ")
    assert mode == "RGB" or mode.startswith("is not an image")
