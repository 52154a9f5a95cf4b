"""Packs: equal content gives equal bytes, and no file can write outside its folder or fill the memory."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import time
from types import SimpleNamespace

import pytest

from kdbench.errors import BadInput, KdbenchError
from kdbench.store.merge import merge
from kdbench.store.packs import opened, pack, unpack
from kdbench.store.store import Store
from kdbench.store.verify import verify


@pytest.fixture
def forged(tmp_path):
    """forged(listed, held): a pack whose manifest lists files of these names and contents, and that holds these members."""

    def forge(listed, held=()):
        entries = [
            {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for path, content in listed
        ]
        manifest = json.dumps({"format": "kdbench results 1", "kdbench": "0.2.0", "files": entries}).encode()
        first = tarfile.TarInfo("manifest.json")
        first.size = len(manifest)
        with tarfile.open(tmp_path / "forged.tar.gz", "w:gz") as archive:
            archive.addfile(first, io.BytesIO(manifest))
            for member, content in held:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return tmp_path / "forged.tar.gz"

    return forge


SPEC = "runs/0123456789ab/spec.json"


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("name", ["p.tar", "p.tar.gz"])
def test_a_pack_is_what_was_packed_and_equal_each_time(made, content, tmp_path, name):
    store = made("store")
    packed = pack(store, tmp_path / name)
    first = (tmp_path / name).read_bytes()
    for path in store.root.rglob("*.json"):
        os.utime(path, (time.time() + 60,) * 2)
    pack(store, tmp_path / f"again-{name}")
    assert (tmp_path / f"again-{name}").read_bytes() == first
    assert (packed.records, packed.bytes) == ({"teachers": 1, "runs": 4, "measurements": 0}, len(first))
    assert str(tmp_path).encode() not in (gzip.decompress(first) if name.endswith("gz") else first)
    with opened(tmp_path / name, tmp_path) as unpacked:
        assert content(unpacked) == content(store)
        assert unpacked.root.parent == tmp_path
    assert not unpacked.root.exists()


def test_weights_stay_behind_and_damaged_records_do_not_come(made, suite, tmp_path):
    store = made("store")
    first, second = (store.run(run.id) for run in suite.runs[:2])
    second.weights_file.write_bytes(b"others")
    packed = pack(store, tmp_path / "p.tar", without_weights={first.id})
    assert [line.split(",")[0] for line in packed.left_out] == [f"run {second.id}"]
    target = Store(tmp_path / "target")
    with opened(tmp_path / "p.tar") as unpacked:
        merge({"p.tar": unpacked}, target)
    assert not target.run(first.id).weights_file.exists()
    assert target.run(first.id).result() == first.result()
    assert not verify(target).damaged


def test_a_part_has_only_what_is_wanted(made, suite, tmp_path):
    run = suite.runs[-1]
    wanted = {"runs": {run.id}, "teachers": {run.spec.teacher.id}, "measurements": set()}
    assert pack(made("store"), tmp_path / "p.tar", wanted, suites=()).records == {
        "runs": 1, "teachers": 1, "measurements": 0
    }  # fmt: skip
    with tarfile.open(tmp_path / "p.tar") as archive:
        assert {name.split("/")[0] for name in archive.getnames()} == {"manifest.json", "runs", "teachers"}


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "runs/../../x", "suites/0123456789ab/../../x", "suites/0123456789ab/.hidden", "runs/x/y",
     f"sources/{'0' * 64}/a//b.py", "runs/0123456789ab/state.pt"],
)  # fmt: skip
def test_paths_that_lead_elsewhere_are_refused(forged, tmp_path, path):
    with pytest.raises(BadInput, match="is no path of a file in a pack"):
        unpack(forged([(path, b"x")], [(member(path), b"x")]), tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("listed", "held", "message"),
    [
        ([(SPEC, b"")], [(member(SPEC, tarfile.SYMTYPE, "/etc/passwd"), b"")], "no plain file"),
        ([(SPEC, b"")], [(member(SPEC, tarfile.LNKTYPE, "manifest.json"), b"")], "no plain file"),
        ([(SPEC, b"a")], [(member(SPEC), b"b")], "its SHA-256 has changed"),
        ([(SPEC, b"a")], [(member("runs/0123456789ab/x"), b"a")], "holds runs/0123456789ab/x of 1 bytes where"),
        ([(SPEC, b"a")], [], "holds nothing where its manifest lists"),
        ([], [(member(SPEC), b"a")], "holds more files than its manifest lists"),
        ([(SPEC, b"a"), (SPEC, b"a")], [], "lists files twice"),
    ],
)
def test_what_is_not_as_the_manifest_says_is_refused(forged, tmp_path, listed, held, message):
    (tmp_path / "to").mkdir()
    with pytest.raises(KdbenchError, match=message):
        unpack(forged(listed, held), tmp_path / "to")


def test_headers_and_files_that_unpack_to_more_than_there_is_room_for(forged, tmp_path, monkeypatch):
    """A header of 80 MB is not read into memory; a file is not written unless the disk has room for it."""
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", 1) as stream:
        header = tarfile.TarInfo("x")
        header.type, header.size = tarfile.XHDTYPE, 80 * 2**20
        stream.write(header.tobuf(tarfile.USTAR_FORMAT) + bytes(header.size))
    with pytest.raises(KdbenchError, match="a header is larger than any that was written"):
        unpack(tmp_path / "bomb.tar.gz", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3))
    with pytest.raises(BadInput, match=r"unpacks to 0\.0 MiB, and .* has room for 0\.0 MiB"):
        unpack(forged([(SPEC, b"aaaa")]), tmp_path)


def test_truncated_packs_and_other_files(made, tmp_path):
    pack(made("store"), tmp_path / "p.tar.gz")
    whole = (tmp_path / "p.tar.gz").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive" * 100, whole[:200] + b"\0" + whole[201:]):
        (tmp_path / "p.tar.gz").write_bytes(content)
        with pytest.raises(KdbenchError, match=r"p\.tar\.gz: "), opened(tmp_path / "p.tar.gz", tmp_path):
            pass
    with pytest.raises(BadInput, match="nowhere: no such results folder or pack"), opened(tmp_path / "nowhere"):
        pass
