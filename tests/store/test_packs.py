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
from kdbench.store import packs
from kdbench.store.merge import merge
from kdbench.store.packs import _Metered, check_pack, opened, pack, unpack
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
     f"sources/{'0' * 64}/a//b.py", "runs/0123456789ab/state.pt", "runs/0123456789a/spec.json",
     "runs/0123456789abc/spec.json", "logs/0123456789ab/spec.json", f"sources/{'0' * 63}/b.py", f"sources/{'0' * 65}/b.py",
     "suites/0123456789abc/s.yaml", f"suites/0123456789ab/{'a/' * 30}b", f"suites/0123456789ab/{'a' * 252}",
     "suites/0123456789ab", "suites/0123456789ab/a\nb"],
)  # fmt: skip
def test_paths_that_lead_elsewhere_are_refused(forged, tmp_path, path):
    with pytest.raises(BadInput, match="is no path of a file in a pack"):
        unpack(forged([(path, b"x")], [(member(path), b"x")]), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_paths_of_a_suite_may_be_thirty_deep_and_names_251_characters_long(forged, tmp_path):
    paths = [f"suites/0123456789ab/{'a/' * 29}b", f"suites/0123456789ab/{'b' * 251}", f"sources/{'0' * 64}/a/b.py"]
    unpack(forged([(path, b"x") for path in sorted(paths)], [(member(path), b"x") for path in sorted(paths)]), tmp_path)
    assert all((tmp_path / path).read_bytes() == b"x" for path in paths)


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
        ([(SPEC, b"a"), ("runs/0123456789ab/result.json", b"a")], [], "lists files twice, or out of order$"),
        ([(SPEC, b"")], [(member(SPEC, tarfile.DIRTYPE), b"")], f"holds {SPEC}, no plain file, of 0 bytes where its"),
        (
            [(SPEC, bytes(1234))],
            [(member(SPEC), bytes(1235))],
            f"holds {SPEC} of 1,235 bytes where its manifest lists {SPEC} of 1,234 bytes$",
        ),
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


def test_a_file_is_not_unpacked_where_there_is_not_room_for_all(forged, tmp_path, monkeypatch):
    content = bytes(3 * 2**19)
    file, folder = forged([(SPEC, content)], [(member(SPEC), content)]), tmp_path / "to"
    monkeypatch.setattr(packs, "_LARGEST_MANIFEST", 2**14)
    folder.mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=len(content) - 1))
    with pytest.raises(BadInput) as caught:
        unpack(file, folder)
    assert str(caught.value) == f"{file}: unpacks to 1.5 MiB, and {tmp_path} has room for 1.5 MiB"
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=len(content)))
    unpack(file, folder)
    assert (folder / SPEC).read_bytes() == content


@pytest.mark.parametrize(
    ("size", "message"), [(64 * 2**20, "is no whole pack of results"), (64 * 2**20 + 1, "is no pack")]
)
def test_a_manifest_has_64_mebibytes_at_most(tmp_path, size, message):
    first = member("manifest.json")
    first.size = size
    (tmp_path / "p.tar").write_bytes(first.tobuf(tarfile.USTAR_FORMAT) + bytes(10 * 512))
    with pytest.raises(KdbenchError, match=rf"p\.tar: {message}"):
        check_pack(tmp_path / "p.tar")


@pytest.mark.parametrize("first", [member("other.json"), member("manifest.json", tarfile.DIRTYPE), None])
def test_an_archive_without_a_manifest_is_no_pack(tmp_path, first):
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        if first:
            archive.addfile(first)
    with pytest.raises(BadInput, match=r"p\.tar: is no pack of results, which kdbench results pack writes$"):
        check_pack(tmp_path / "p.tar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes": -1}, "files.0.bytes '-1': Input should be greater than or equal to 0"),
        ({"sha256": "0"}, "files.0.sha256 '0': String should match pattern '^[0-9a-f]{64}$'"),
        ({"more": 1}, "files.0.more '1': Extra inputs are not permitted"),
    ],
)
def test_a_manifest_that_lists_what_cannot_be_is_refused_with_the_place(tmp_path, change, message):
    entry = {"path": SPEC, "bytes": 0, "sha256": "0" * 64, **change}
    manifest = json.dumps({"format": "kdbench results 1", "kdbench": "0.2.0", "files": [entry]}).encode()
    first = member("manifest.json")
    first.size = len(manifest)
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        archive.addfile(first, io.BytesIO(manifest))
    with pytest.raises(BadInput) as caught:
        check_pack(tmp_path / "p.tar")
    assert str(caught.value) == f"{tmp_path / 'p.tar'}: its manifest cannot be read: {message}"


def test_no_more_is_read_than_was_allowed_in_whole_blocks():
    raw = io.BytesIO(bytes(10_000))
    stream = _Metered(raw)
    stream.allow(1)
    stream.allow(512)
    assert stream.read(1000) == bytes(1000)
    assert stream.read(24) == bytes(24)
    assert stream.read(0) == b""
    with pytest.raises(tarfile.ReadError, match="a header is larger than any that was written"):
        stream.read(5000)
    assert raw.tell() == 1025


def test_archived_suites_go_with_their_records_or_those_that_are_named(made, suite, tmp_path):
    store = made("store", ["ce"])
    (folder,) = (store.root / "suites").iterdir()
    broken = store.root / "suites" / "0123456789ab"
    broken.mkdir()
    line = f"{broken}: its about.json cannot be read, so the suite is not known"
    for suites, packed_suites, left_out in (
        (None, {folder.name}, [line]),
        ([folder.name], {folder.name}, []),
        ([broken.name], set(), [line]),
        ([], set(), []),
    ):
        assert pack(store, tmp_path / "p.tar", suites=suites).left_out == left_out
        with tarfile.open(tmp_path / "p.tar") as archive:
            names = [name.split("/") for name in archive.getnames()]
        assert {name[1] for name in names if name[0] == "suites"} == packed_suites


def test_records_that_have_not_ended_and_files_of_other_names_are_not_packed(made, suite, tmp_path):
    store = made("store", ["ce"])
    unfinished, finished = store.run(suite.runs[0].id), store.run(suite.runs[1].id)
    (unfinished.folder / "result.json").unlink()
    finished.state_file.write_bytes(b"state")
    (store.root / "sources" / "notes").mkdir(parents=True)
    (store.root / "sources" / "notes" / "a.py").write_text("")
    packed = pack(store, tmp_path / "p.tar", {"runs": {unfinished.id, finished.id}, "teachers": (), "measurements": ()})
    assert (packed.records["runs"], packed.left_out) == (1, [])
    with tarfile.open(tmp_path / "p.tar") as archive:
        assert sorted(name.rpartition("/")[2] for name in archive.getnames() if name.startswith("runs/")) == [
            "metadata.json", "metrics.jsonl", "result.json", "spec.json", "weights.safetensors",
        ]  # fmt: skip
        assert not [name for name in archive.getnames() if name.startswith("sources")]
        assert {(each.mtime, each.uid, each.uname) for each in archive.getmembers()} == {(0, 0, "")}


def test_what_stays_behind_of_a_record_is_noted_in_its_metadata(made, suite, tmp_path):
    store = made("store", ["ce"])
    pack(store, tmp_path / "p.tar", without_weights={suite.runs[0].id})
    with opened(tmp_path / "p.tar") as unpacked:
        records = {record.id: record for record in unpacked.records("runs")}
        without, whole = (records[run.id] for run in suite.runs if run.method == "ce")
        assert without.metadata() == {**store.run(without.id).metadata(), "weights": "not kept"}
        assert (without.weights_file.exists(), whole.weights_file.exists()) == (False, True)
        assert whole.metadata() == store.run(whole.id).metadata()


def test_a_folder_is_opened_as_it_is(tmp_path):
    with opened(tmp_path) as store:
        assert store.root == tmp_path
    assert tmp_path.is_dir()
