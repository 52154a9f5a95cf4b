"""Texts from elsewhere do nothing to a terminal."""

import json

import pytest
from typer.testing import CliRunner

from kdbench import __main__
from kdbench.catalogue.text import CONTROL, one_line, printable
from kdbench.cli import app as commands
from kdbench.cli.progress import RunProgress
from kdbench.errors import KdbenchError


HOSTILE = "\x1b]0;owned\x07\x1b[8mhidden\x9b31m \u202ereversed\u2066 \udc80 end"


def test_escapes():
    assert printable("a\x1b[8mb\nc\u202e") == "a\\x1b[8mb\nc\\u202e"
    assert one_line("  a\n\tb\x07 ") == "a b\\x07"
    assert one_line("x" * 100, 10) == "x" * 9 + "…"
    assert not CONTROL.search(printable(HOSTILE))


@pytest.mark.parametrize("place", ["failure", "spec", "metadata", "metrics"])
def test_commands_escape_what_records_say(tmp_path, place):
    folder = tmp_path / "runs" / "aaaaaaaaaaaa"
    folder.mkdir(parents=True)
    hostile = HOSTILE.replace("\udc80", "")
    contents = {"failure": {"kind": "error", "epoch": 1, "reason": hostile}, "metrics": {"epoch": 1, hostile: hostile}}
    name = f"{place}.jsonl" if place == "metrics" else f"{place}.json"
    (folder / name).write_text(json.dumps(contents.get(place, {hostile: hostile})))
    for command in (["list", "runs"], ["show", "aaaaaaaaaaaa"]):
        done = CliRunner().invoke(commands.app, [*command, "--results", str(tmp_path)])
        assert done.exit_code == 0
        assert not CONTROL.search(done.output.replace("\n", ""))
    listed = CliRunner().invoke(commands.app, ["list", "runs", "--json", "--results", str(tmp_path)])
    assert not CONTROL.search(listed.output.replace("\n", ""))
    if place == "failure":
        assert json.loads(listed.output)[0]["status"] == f"failed: {hostile}"


def test_errors_and_progress_escape_what_they_say(monkeypatch, capsys):
    def fail():
        raise KdbenchError(HOSTILE)

    monkeypatch.setattr(commands, "app", fail)
    with pytest.raises(SystemExit):
        __main__.main()
    RunProgress([]).say(HOSTILE)
    lines = capsys.readouterr().err
    assert lines.count("\\x1b[8mhidden") == 2
    assert not CONTROL.search(lines.replace("\n", ""))
