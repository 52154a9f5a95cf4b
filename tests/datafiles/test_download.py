"""One file from the net: whole and right, or not at all; and what is said where it cannot be had."""

import errno
from pathlib import Path

import pytest

from kdbench.catalogue.datasets import Archive
from kdbench.datafiles import download as module
from kdbench.datafiles.download import download, fetch_file
from kdbench.errors import KdbenchError


CONTENT = bytes(range(256)) * 9000


@pytest.fixture
def archive(server, official):
    server.files["/a/set.tar.gz"] = CONTENT
    return Archive(f"{server.url}/a/set.tar.gz", official.md5(CONTENT))


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("manner", ["good", "no length", "no ranges"])
def test_a_file_arrives_whole_with_its_progress(archive, server, manner, tmp_path, heard):
    server.manners["/a/set.tar.gz"] = manner
    path = download(archive, tmp_path / "new" / "folder", heard)
    assert path.read_bytes() == CONTENT
    assert files(path.parent) == ["set.tar.gz"]
    total = None if manner == "no length" else len(CONTENT)
    assert heard.steps[0] == ("set.tar.gz", 0, total)
    assert heard.steps[-1] == ("set.tar.gz", len(CONTENT), total)
    assert len(heard.steps) >= 4


def test_a_file_that_is_there_is_not_fetched_again(archive, server, tmp_path, heard):
    (tmp_path / "set.tar.gz").write_bytes(CONTENT)
    assert download(archive, tmp_path, heard) == tmp_path / "set.tar.gz"
    assert not server.asked


def test_another_file_of_its_name_is_set_aside(archive, tmp_path, heard):
    (tmp_path / "set.tar.gz").write_bytes(b"mine")
    assert download(archive, tmp_path, heard).read_bytes() == CONTENT
    assert (tmp_path / "set.tar.gz.damaged-1").read_bytes() == b"mine"
    assert "not the official file" in heard.notes[0]


def test_a_broken_connection_leaves_what_came_and_the_next_try_goes_on_from_there(archive, server, tmp_path, heard):
    server.manners["/a/set.tar.gz"] = "breaks"
    with pytest.raises(
        KdbenchError, match=r"the connection broke after [\d,]+ of 2,304,000 bytes; run the same command to resume"
    ):
        download(archive, tmp_path, heard)
    half = (tmp_path / "set.tar.gz.part").stat().st_size
    assert half == len(CONTENT) // 2
    assert files(tmp_path) == ["set.tar.gz.part"]
    server.manners.clear()
    assert download(archive, tmp_path, heard).read_bytes() == CONTENT
    assert server.asked[-1] == ("/a/set.tar.gz", f"bytes={half}-")
    assert files(tmp_path) == ["set.tar.gz"]
    assert ("set.tar.gz", half, len(CONTENT)) in heard.steps


def test_a_server_that_ignores_ranges_gives_the_file_afresh(archive, server, tmp_path, heard):
    server.manners["/a/set.tar.gz"] = "no ranges"
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT[:1000])
    assert download(archive, tmp_path, heard).read_bytes() == CONTENT
    assert server.asked == [("/a/set.tar.gz", "bytes=1000-")]


def test_a_part_that_is_whole_only_needs_its_name(archive, tmp_path, heard):
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT)
    assert download(archive, tmp_path, heard).read_bytes() == CONTENT
    assert files(tmp_path) == ["set.tar.gz"]


@pytest.mark.parametrize("part", [b"", b"another beginning", CONTENT + b"too long"])
def test_wrong_content_is_deleted(archive, server, part, tmp_path, heard):
    server.files["/a/set.tar.gz"] = CONTENT[:-1] + b"x" if not part else CONTENT
    (tmp_path / "set.tar.gz.part").write_bytes(part)
    with pytest.raises(KdbenchError, match=rf"MD5 sum \w+, not {archive.md5}, and was deleted. Try again") as caught:
        download(archive, tmp_path, heard)
    assert f"put {archive.url} at {tmp_path / 'set.tar.gz'}" in str(caught.value)
    assert not files(tmp_path)


def test_a_file_without_a_known_sum(archive, tmp_path):
    fetch_file(archive.url, tmp_path / "here" / "it.bin")
    assert (tmp_path / "here" / "it.bin").read_bytes() == CONTENT


def test_a_local_file_can_be_named_too(tmp_path):
    (tmp_path / "there.bin").write_bytes(CONTENT)
    fetch_file((tmp_path / "there.bin").as_uri(), tmp_path / "here.bin")
    assert (tmp_path / "here.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "manner", "message"),
    [
        ("/missing.zip", "good", "the server answers 404 Not Found"),
        ("/a/set.tar.gz", "page", "the server answers with a web page, not with the file"),
    ],
)
def test_what_is_said_where_the_server_has_it_not(archive, server, path, manner, message, tmp_path, heard):
    server.manners[path] = manner
    with pytest.raises(KdbenchError, match=message) as caught:
        download(Archive(server.url + path, archive.md5), tmp_path, heard)
    assert f"put {server.url}{path} at {tmp_path / Path(path).name} and give the same command again" in str(
        caught.value
    )
    assert not files(tmp_path)


def test_a_page_does_not_touch_what_has_come(archive, server, tmp_path, heard):
    server.manners["/a/set.tar.gz"] = "page"
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT[:1000])
    with pytest.raises(KdbenchError, match="web page"):
        download(archive, tmp_path, heard)
    assert (tmp_path / "set.tar.gz.part").read_bytes() == CONTENT[:1000]


def test_no_network(tmp_path):
    with pytest.raises(
        KdbenchError, match=r"http://127.0.0.1:9/x.zip: cannot be reached: .*To fetch it by other means"
    ):
        fetch_file("http://127.0.0.1:9/x.zip", tmp_path / "x.zip")


def test_a_silent_server_is_given_up(archive, server, tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        pytest.raises(KdbenchError, match=r"cannot be reached: timed out"),
    ):
        fetch_file(f"http://127.0.0.1:{deaf.getsockname()[1]}/x.zip", tmp_path / "x.zip")


def test_a_full_disk_and_a_file_in_the_way(archive, tmp_path, heard, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_receive", full)
    with pytest.raises(KdbenchError, match=r"set.tar.gz cannot be written: No space left on device"):
        download(archive, tmp_path, heard)
    (tmp_path / "file").write_text("")
    with pytest.raises(KdbenchError, match="cannot be written"):
        download(archive, tmp_path / "file" / "below", heard)
