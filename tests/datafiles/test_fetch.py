"""From archives to a data set's folder: only what belongs there, whole, and by one process at a time."""

import io
import itertools
import os
import stat
import tarfile
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from kdbench.datafiles.download import exclusive_lock
from kdbench.datafiles.fetch import fetch, status
from kdbench.datafiles.readers import read_splits
from kdbench.errors import BadInput, KdbenchError


def offered(server, official, facts, content, name="/set.tar.gz"):
    server.files[name] = content
    return official.published(facts, server.url + name, content)


def tree(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def cifar(official, server):
    """CIFAR-100 on the server, in an archive with more files than are needed."""
    facts, files, _ = official.cifar100()
    content = official.tar_gz({**files, "meta": b"names", "file.txt~": b""}, facts.folder)
    return offered(server, official, facts, content), files


def test_the_files_with_sums_are_unpacked_and_no_others(cifar, server, tmp_path, heard):
    facts, files = cifar
    assert facts.missing(tmp_path)
    assert fetch(facts, tmp_path, heard)
    assert tree(tmp_path) == {"set.tar.gz", ".cifar100.lock"} | {f"cifar-100-python/{name}" for name in files}
    assert not facts.missing(tmp_path)
    assert len(read_splits(facts, tmp_path)[0].labels) == 200
    assert not fetch(facts, tmp_path, heard)
    assert len(server.asked) == 1


def test_a_damaged_file_is_replaced_from_the_archive_that_is_there(cifar, server, tmp_path):
    facts, files = cifar
    fetch(facts, tmp_path)
    (tmp_path / facts.folder / "test").write_bytes(b"damaged")
    (tmp_path / facts.folder / "meta").write_bytes(b"mine")
    assert fetch(facts, tmp_path)
    assert (tmp_path / facts.folder / "test").read_bytes() == files["test"]
    assert (tmp_path / facts.folder / "meta").read_bytes() == b"mine"
    assert len(server.asked) == 1


def test_a_damaged_packed_file_is_set_aside(cifar, tmp_path, heard):
    facts, _ = cifar
    facts.npz(tmp_path).write_bytes(b"damaged")
    assert fetch(facts, tmp_path, heard)
    assert (tmp_path / "cifar100.npz.damaged-1").is_file()
    assert "does not hold cifar100" in heard.notes[0]
    assert len(read_splits(facts, tmp_path)[0].labels) == 200


def test_an_archive_put_there_by_hand_is_used(cifar, server, tmp_path):
    facts, _ = cifar
    (tmp_path / "set.tar.gz").write_bytes(server.files["/set.tar.gz"])
    assert fetch(facts, tmp_path)
    assert not server.asked
    assert not facts.missing(tmp_path)


def test_files_that_are_no_archives_go_to_the_folder(official, server, tmp_path):
    facts, files, _ = official.svhn()
    for name, content in files.items():
        server.files[f"/{name}"] = content
    made = [official.published(facts, f"{server.url}/{name}", content).archives[0] for name, content in files.items()]
    assert fetch(replace(facts, archives=tuple(made)), tmp_path)
    assert tree(tmp_path) == {".svhn.lock", "svhn/train_32x32.mat", "svhn/test_32x32.mat"}


def test_a_zip_is_unpacked_whole_and_takes_the_place_of_a_damaged_folder(official, server, tmp_path):
    facts, files = official.tiny()
    facts = offered(server, official, facts, official.zipped(files, facts.folder), "/tiny.zip")
    assert fetch(facts, tmp_path)
    folder = tmp_path / facts.folder
    assert tree(folder) == set(files)
    assert not fetch(facts, tmp_path)
    (folder / "train" / "n10" / "images" / "n10_0.JPEG").unlink()
    assert fetch(facts, tmp_path)
    assert tree(folder) == set(files)
    assert len(tree(tmp_path / f"{facts.folder}.damaged-1")) == len(files) - 1
    assert not list(tmp_path.glob(".*unpacking*"))


def test_what_a_killed_process_was_unpacking_is_swept_away(cifar, tmp_path):
    facts, _ = cifar
    (tmp_path / ".cifar100.unpacking" / facts.folder).mkdir(parents=True)
    (tmp_path / ".cifar100.unpacking" / facts.folder / "train").write_bytes(b"half")
    assert fetch(facts, tmp_path)
    assert not facts.missing(tmp_path)
    assert not (tmp_path / ".cifar100.unpacking").exists()


def test_nothing_to_fetch(official, tmp_path):
    from kdbench.catalogue.datasets import dataset

    assert not fetch(dataset("digits"), tmp_path)
    with pytest.raises(BadInput, match=r"imagenet lacks .*account at image-net.org.*imagenet/train/WNID"):
        fetch(dataset("imagenet"), tmp_path)
    assert not list(tmp_path.iterdir())


def evil_tar(name="x", kind=tarfile.REGTYPE, link=""):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
        tar.addfile(entry, io.BytesIO(b"evil"))
    return file.getvalue()


def evil_zip(name, mode=stat.S_IFREG):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (mode | 0o644) << 16
        archive.writestr(entry, "/etc")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (evil_tar("../evil"), "leads out"),
        (evil_tar("cifar-100-python/../../evil"), "leads out"),
        (evil_tar("/tmp/evil"), "leads out"),
        (evil_tar("cifar-100-python/train", tarfile.SYMTYPE, "/etc/passwd"), "is not a plain file"),
        (evil_tar("cifar-100-python/train", tarfile.LNKTYPE, "../../evil"), "is not a plain file"),
        (evil_tar("cifar-100-python/train", tarfile.FIFOTYPE), "is not a plain file"),
        (evil_tar("cifar-100-python/train", tarfile.CHRTYPE), "is not a plain file"),
        (evil_tar("cifar-100-python/train"), "does not hold cifar100: test, train missing or not the official one"),
        (evil_tar("something/else"), "does not hold cifar100"),
        (b"no archive at all", "cannot be unpacked"),
        (b"", "cannot be unpacked"),
    ],
    ids=itertools.count(),
)
def test_archives_that_are_not_used(official, server, content, message, tmp_path):
    facts, _, _ = official.cifar100()
    with pytest.raises(KdbenchError, match=message):
        fetch(offered(server, official, facts, content), tmp_path / "root")
    assert tree(tmp_path) == {"root/set.tar.gz", "root/.cifar100.lock"}


def test_a_truncated_archive(cifar, official, server, tmp_path):
    facts, _ = cifar
    cut = server.files["/set.tar.gz"][:-3000]
    with pytest.raises(KdbenchError, match="cannot be unpacked"):
        fetch(offered(server, official, facts, cut), tmp_path)
    assert not (tmp_path / facts.folder).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (evil_zip("../evil"), "leads out"),
        (evil_zip("/tmp/evil"), "leads out"),
        (evil_zip("..\\evil"), "leads out"),
        (evil_zip("C:/evil"), "leads out"),
        (evil_zip("tiny-imagenet-200/train", stat.S_IFLNK), "is not a plain file"),
        (evil_zip("tiny-imagenet-200/train", stat.S_IFCHR), "is not a plain file"),
        (
            evil_zip("tiny-imagenet-200/train"),
            "does not hold tinyimagenet: wnids.txt, images, val_annotations.txt missing",
        ),
        (b"PK no zip", "cannot be unpacked"),
    ],
    ids=itertools.count(),
)
def test_zips_that_are_not_used(official, server, content, message, tmp_path):
    facts, _ = official.tiny()
    with pytest.raises(KdbenchError, match=message):
        fetch(offered(server, official, facts, content, "/tiny.zip"), tmp_path / "root")
    assert tree(tmp_path) == {"root/tiny.zip", "root/.tinyimagenet.lock"}
    assert not (tmp_path / "root" / facts.folder).exists()


def test_two_at_once_fetch_once(cifar, server, tmp_path, heard):
    facts, _ = cifar
    with exclusive_lock(facts, tmp_path, heard):
        second = threading.Thread(target=fetch, args=(facts, tmp_path, heard))
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert "another process is at cifar100" in heard.notes[0]
        assert not server.asked
        (tmp_path / facts.folder).mkdir()
        for name, content in cifar[1].items():
            (tmp_path / facts.folder / name).write_bytes(content)
    second.join(20)
    assert not second.is_alive()
    assert not server.asked


def test_where_nothing_can_be_written(cifar, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KdbenchError, match="nothing can be written there"):
        fetch(cifar[0], tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_ready_set_needs_no_permission_to_write(cifar, official, tmp_path):
    facts, files = cifar
    official.write(tmp_path, facts, files)
    tmp_path.chmod(0o500)
    assert not fetch(facts, tmp_path)


def test_packed_files_are_ready(official, tmp_path):
    facts, _, halves = official.cifar100()
    arrays = {f"{part}_{what}": each[n] for part, each in halves.items() for n, what in enumerate(("images", "labels"))}
    np.savez(facts.npz(tmp_path), **arrays)
    assert not fetch(facts, tmp_path)


def test_the_state_of_a_data_set_and_its_size(official, tmp_path):
    facts, files, _ = official.cifar100()
    folder = tmp_path / facts.folder
    folder.mkdir()
    assert (status(facts, tmp_path).state, status(facts, tmp_path).bytes) == ("missing", 0)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    ready = status(facts, tmp_path, verify=True)
    assert (ready.state, ready.bytes, ready.missing) == ("ready", sum(map(len, files.values())), [])
    first = next(iter(files))
    (folder / first).write_bytes(b"x")
    assert (status(facts, tmp_path).state, status(facts, tmp_path, verify=True).state) == ("ready", "damaged")
    (folder / first).unlink()
    left = status(facts, tmp_path)
    assert (left.state, left.missing) == ("missing", [f"{facts.folder}/{first}"])
    assert left.bytes == sum(len(content) for name, content in files.items() if name != first)
    (folder / first).mkdir()
    assert status(facts, tmp_path).bytes == 0, "whole folders are not measured"
    facts.npz(tmp_path).write_bytes(b"12345")
    assert status(facts, tmp_path).bytes == 5
