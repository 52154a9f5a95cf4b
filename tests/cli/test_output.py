"""Paths as options: -o writes whole files and keeps links, modes, devices and pipes; `~` is the home folder."""

import io
import os
import stat
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdbench.cli.app import app
from kdbench.cli.options import answer_of, print_text
from kdbench.errors import BadInput


@pytest.fixture
def write(capfd):
    """Print a text to a path; returns what came to standard output."""

    def call(output, text="new\n"):
        print_text(text, output)
        return capfd.readouterr().out

    return call


def node(path, kind, device):
    try:
        os.mknod(path, kind | 0o600, device)
        path.open("wb").close()
    except PermissionError:
        pytest.skip("devices cannot be made here")
    return path


def test_a_dash_is_standard_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["report", "--published", "--table", "ega-1", "-f", "csv", "-o", "-"])
    assert (done.exit_code, done.stdout.partition(",")[0]) == (0, "table")
    assert list(tmp_path.iterdir()) == []


def test_a_device_stays_one(write, tmp_path):
    null = node(tmp_path / "null", stat.S_IFCHR, os.makedev(1, 3))
    write(null)
    assert stat.S_ISCHR(null.stat().st_mode)


def test_a_full_device_is_one_message(tmp_path):
    full = node(tmp_path / "full", stat.S_IFCHR, os.makedev(1, 7))
    with pytest.raises(BadInput, match=r"--output .*full: cannot be written: No space left on device"):
        print_text("new\n", full)
    assert stat.S_ISCHR(full.stat().st_mode)


def test_a_pipe_is_written_to(write, tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join(10)
    assert (read, stat.S_ISFIFO(pipe.stat().st_mode)) == (["new\n"], True)


@pytest.mark.parametrize("there", [True, False])
def test_the_target_of_a_link_is_replaced_and_the_link_stays(write, tmp_path, there):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "real.csv", tmp_path / "link.csv"
    if there:
        target.write_text("old\n")
    link.symlink_to("folder/real.csv")
    write(link)
    assert (os.readlink(link), target.read_text()) == ("folder/real.csv", "new\n")
    assert [entry.name for entry in target.parent.iterdir()] == ["real.csv"]


def test_a_file_keeps_its_mode(write, tmp_path):
    file = tmp_path / "private.csv"
    file.write_text("old\n")
    file.chmod(0o600)
    write(file)
    assert (stat.S_IMODE(file.stat().st_mode), file.read_text()) == (0o600, "new\n")


def test_standard_output_under_another_name_keeps_what_it_holds(write):
    assert write(Path("/dev/stdout")) == "new\n"


@pytest.mark.parametrize("name", [".", "file/x", "loop", "x" * 300])
def test_what_cannot_be_written_is_one_message_and_leaves_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("old\n")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BadInput, match="cannot be written: "):
        print_text("new\n", tmp_path / name)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "loop"]
    assert (tmp_path / "file").read_text() == "old\n"


def test_text_that_is_no_unicode_is_written_all_the_same(write, tmp_path):
    write(tmp_path / "x.csv", "folder \udcff\n")
    assert (tmp_path / "x.csv").read_text(encoding="utf-8") == "folder ?\n"


def test_a_terminal_shows_what_takes_long_and_then_nothing_of_it(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert answer_of("print(input())", [7], "not answered", "[7] is read") == [7]
    assert "[7] is read \x1b[33m0:00:00" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[1A\x1b[2K")


def test_the_home_folder_in_options_and_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    call = CliRunner().invoke
    assert f"no runs in {tmp_path}/r" in call(app, ["list", "runs", "--results=~/r"]).stdout
    assert f"no runs in {tmp_path}/e" in call(app, ["list", "runs"], env={"KDBENCH_RESULTS": "~/e"}).stdout
    assert call(app, ["report", "--published", "--table", "ega-1", "-f", "csv", "--output=~/t.csv"]).exit_code == 0
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").startswith("table,")
    assert call(app, ["list", "runs", "--results="]).exit_code == 2
