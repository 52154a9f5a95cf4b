"""Standard streams that are closed or full: one message, an exit code, and nothing in a file that took a stream's number."""

import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.catalogue.text import command


WRITE = """
from kdbench.cli.options import open_streams, say
from kdbench.errors import KdbenchError
open_streams()
file = open("file", "w")
try:
    print("results", flush=True)
except KdbenchError as error:
    say(error)
    exit(1)
say("written")
"""


@pytest.mark.parametrize(
    ("streams", "ends"),
    [
        ("", (0, "results\n", "written\n")),
        (">&-", (1, "", "standard output cannot be written: Bad file descriptor\n")),
        (">/dev/full", (1, "", "standard output cannot be written: No space left on device\n")),
        ("2>&-", (0, "results\n", "")),
        ("<&- >&- 2>/dev/full", (1, "", "")),
    ],
)
def test_a_stream_that_cannot_be_written(tmp_path, streams, ends):
    line = f'exec "$0" -c "$1" {streams}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, WRITE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == ends
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    "name", ["-r", "my 'r'", "$HOME`id`", "a\nb", "\x1b[8m'\\", "\udcff\udcfe", "\u202e\U0001f600"]
)
def test_commands_that_are_told_can_be_typed(name):
    line = command("show", "ID", results=Path(name))
    assert line.isprintable()
    typed = subprocess.run(
        ["bash", "-c", f'kdbench() {{ printf "%s\\0" "$@"; }}; {line}'], capture_output=True, check=True
    )
    words = typed.stdout.decode(errors="surrogateescape").split("\0")
    assert words == ["show", "ID", "--results", name, ""]
