"""Files are written whole or not at all."""

import contextlib
import errno
import os
import stat

import pytest

from kdbench.files import quarantine, remove_folder, write_atomically, write_json, write_text


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "→ x\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "→ x\n".encode()
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_json_keeps_its_order_and_refuses_nan(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": [1.5]})
    assert (tmp_path / "x.json").read_text() == '{\n "b": 1,\n "a": [\n  1.5\n ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert '"b": 1' in (tmp_path / "x.json").read_text()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_content(tmp_path, error):
    file = tmp_path / "x"
    write_text(file, "old")

    def write(handle):
        handle.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(file, write)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_at_the_end_leaves_the_old_content(tmp_path, monkeypatch, step):
    write_text(tmp_path / "x", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", full) if step == "fsync" else ("pathlib.Path.replace", full)))
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_flushed_is_no_failure_but_a_broken_disk_is(tmp_path, monkeypatch, number):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output") if number == errno.EIO else contextlib.nullcontext():
        write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "x", "y")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


def test_below_a_file_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "x", "y")


def test_damaged_files_are_set_aside_one_by_one(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / "x.json").write_text(str(number))
        assert quarantine(tmp_path / "x.json").name == f"x.json.damaged-{number}"
    assert [(tmp_path / f"x.json.damaged-{n}").read_text() for n in (1, 2, 3)] == ["1", "2", "3"]
    assert not (tmp_path / "x.json").exists()


def test_a_folder_is_removed_but_for_what_nfs_keeps_of_open_files(tmp_path, monkeypatch):
    folder, unlink = tmp_path / "record", os.unlink
    folder.mkdir()
    for name in (".nfs0001", "a", "z"):
        (folder / name).write_text("x")

    def busy(path, **where):
        if os.path.basename(path).startswith(".nfs"):
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        unlink(path, **where)

    with monkeypatch.context() as nfs:
        nfs.setattr(os, "unlink", busy)
        remove_folder(folder)
    assert not folder.exists()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".nfs0001"]
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".record.")
    remove_folder(left)
    assert not list(tmp_path.iterdir())
