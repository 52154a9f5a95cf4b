"""What is read of a results folder: in bounded size, and again where another machine has just replaced it."""

import errno
import os

import pytest

from kdbench.errors import BadRecord, UnreadableRecord
from kdbench.store import reading
from kdbench.store.exchange import check_plain
from kdbench.store.reading import differences, read, read_mapping, stored_mapping
from kdbench.store.record import Record


MIB = 2**20


@pytest.fixture
def sized(tmp_path):
    """sized(bytes, name): a file of so many bytes, all zero, which takes no room on the disk."""

    def make(size, name="x"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        return tmp_path / name

    return make


def test_files_of_more_than_four_mebibytes_are_not_read(sized):
    assert read(str(sized(4 * MIB))) == bytes(4 * MIB)
    with pytest.raises(BadRecord, match=r"x: is far larger than what was stored$"):
        read(str(sized(4 * MIB + 1)))
    assert read(str(sized(10)), 10) == bytes(10)
    with pytest.raises(BadRecord):
        read(str(sized(11)), 10)


def test_a_file_that_grows_while_it_is_read_is_read_to_its_end(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"abc")
    parts, asked = [b"ab", b"c", b"d", b""], []

    def slow(descriptor, count):
        asked.append(count)
        return parts.pop(0)

    monkeypatch.setattr(reading.os, "read", slow)
    assert read(str(tmp_path / "x")) == b"abcd"
    assert asked == [65536] * 4


def test_metrics_of_more_than_32_mebibytes_are_refused(sized, tmp_path):
    sized(32 * MIB, "metrics.jsonl")
    sized(100 * MIB, "weights.safetensors")
    check_plain(Record(tmp_path))
    sized(32 * MIB + 1, "metrics.jsonl")
    with pytest.raises(BadRecord, match=r"metrics\.jsonl: has 33,554,433 bytes, more than any record$"):
        check_plain(Record(tmp_path))
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 1}\n' + bytes(4 * MIB))
    assert Record(tmp_path).metrics() == [{"epoch": 1}], "metrics may be larger than other files"


@pytest.mark.parametrize(("lines", "read_of_them"), [(10**6, 2), (10**6 + 1, 0)])
def test_metrics_of_more_than_a_million_epochs_are_not_read(tmp_path, lines, read_of_them):
    (tmp_path / "metrics.jsonl").write_bytes(b"{}\n" * lines)
    assert Record(tmp_path).metrics(every=lines) == [{}] * read_of_them


@pytest.mark.parametrize(
    ("failures", "number", "content"), [(1, errno.ESTALE, b"new"), (2, errno.ESTALE, None), (1, errno.EIO, None)]
)
def test_a_file_that_another_machine_has_replaced_is_read_once_more(tmp_path, monkeypatch, failures, number, content):
    (tmp_path / "x").write_bytes(b"new")
    left, fstat = [number] * failures, os.fstat

    def stale(descriptor):
        if left:
            raise OSError(left.pop(), "gone")
        return fstat(descriptor)

    monkeypatch.setattr(reading.os, "fstat", stale)
    if content is None:
        with pytest.raises(OSError, match="gone"):
            read(str(tmp_path / "x"))
    else:
        assert read(str(tmp_path / "x")) == content


@pytest.mark.parametrize(
    ("name", "size", "problem"),
    [
        ("metrics.jsonl", 2**30, ""),
        ("metrics.jsonl", 2**30 + 1, "is far larger than what was stored"),
        ("weights.safetensors", 2**30, ""),
        ("weights.safetensors", 2**30 + 1, "is not the file that was stored (its header cannot be read)"),
    ],
)
def test_what_cannot_be_the_file_is_not_hashed_where_that_takes_long(sized, monkeypatch, name, size, problem):
    path = sized(size, name)
    monkeypatch.setattr(reading, "file_hash", lambda path: "5" * 64)
    assert [str(each) for each in differences(path, "5" * 64)] == ([f"{path}: {problem}"] if problem else [])


def test_every_difference_is_named(tmp_path, monkeypatch):
    path = tmp_path / "x"
    assert [str(each) for each in differences(path, "0")] == [f"{path}: is missing"]
    path.write_bytes(b"")
    assert [str(each) for each in differences(path, "0")] == [
        f"{path}: is not the file that was stored (its SHA-256 has changed)"
    ]

    def refuse(path):
        raise OSError("of no number")

    monkeypatch.setattr(reading, "file_hash", refuse)
    (found,) = differences(path, "0")
    assert isinstance(found, UnreadableRecord)
    assert str(found) == f"{path}: cannot be read: of no number"


def test_of_a_mapping_every_problem_is_named_or_it_is_empty(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(BadRecord, match=r"x\.json: is missing$"):
        stored_mapping(path)
    for content in (b"{", b'{"a": NaN}', b"\xff"):
        path.write_bytes(content)
        assert read_mapping(str(path)) == {}
        with pytest.raises(BadRecord, match=r"x\.json: is not what was stored \("):
            stored_mapping(path)
    path.write_bytes(b"[1]")
    assert stored_mapping(path) == read_mapping(str(path)) == {}
    path.write_bytes(b'{"a": 1}')
    assert stored_mapping(path) == read_mapping(str(path)) == {"a": 1}
