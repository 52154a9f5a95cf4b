"""kdbench data: status, download and prepare, as a user sees them."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.__main__ import main
from kdbench.catalogue import datasets as catalogue
from kdbench.cli.progress import BarProgress, PlainProgress


OFFICIAL = runpy.run_path(str(Path(__file__).parents[1] / "datafiles" / "official.py"))


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A catalogue of digits, a CIFAR-100 that lies in a folder, and TinyImageNet; the data go to ``shelf``."""
    facts, files, _ = OFFICIAL["cifar100"]()
    archive = tmp_path / "published" / "set.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(OFFICIAL["tar_gz"](files, facts.folder))
    facts = OFFICIAL["published"](facts, archive.as_uri(), archive.read_bytes())
    known = {each.name: each for each in (catalogue.dataset("digits"), facts, OFFICIAL["tiny"]()[0])}
    monkeypatch.setattr("kdbench.cli.data.datasets", lambda: known)
    monkeypatch.setattr(catalogue, "_spellings", lambda: known)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "shelf"


@pytest.fixture
def command(shelf, monkeypatch, capsys):
    """Run ``kdbench data …`` here; gives exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["kdbench", "data", *arguments, "--data", str(shelf)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return call


def test_status_before_and_after_a_download(command, shelf):
    code, out, _ = command("status")
    lines = {line.split()[0]: line for line in out.splitlines()[2:] if line[0] != " "}
    assert code == 0
    assert lines["digits"].split() == ["digits", "ready"]
    for word in ("missing", "cifar-100-python/train", "kdbench data download cifar100"):
        assert word in lines["cifar100"]
    code, out, err = command("download", "cifar100", "digits", "cifar100")
    assert (code, out) == (0, "")
    assert err.splitlines() == [
        "set.tar.gz: 100 % of {:,} bytes".format((shelf / "set.tar.gz").stat().st_size),
        f"unpacking {shelf / 'set.tar.gz'}",
        f"cifar100: ready in {shelf}",
        "digits: needs no download: it comes with scikit-learn",
    ]
    assert command("download", "cifar100")[2] == "cifar100: is there already\n"
    (seen,) = json.loads(command("status", "cifar100", "--json")[1])
    size = sum(file.stat().st_size for file in (shelf / "cifar-100-python").iterdir())
    assert seen == {"name": "cifar100", "state": "ready", "bytes": size, "missing": [], "todo": ""}


def test_status_verifies_when_asked(command, shelf):
    command("download", "cifar100")
    (shelf / "cifar-100-python" / "test").write_bytes(b"damaged")
    assert command("status", "cifar100")[0] == 0
    code, out, _ = command("status", "--verify")
    assert code == 1
    assert "not the official file: test" in out
    assert command("download", "cifar100")[0] == 0
    assert command("status", "--verify")[0] == 0


def test_prepare(command, shelf):
    assert command("prepare")[:2] == (0, "digits: 1,000 training and 797 test images of 10 classes\n")
    facts, files = OFFICIAL["tiny"]()
    OFFICIAL["write"](shelf, facts, files)
    code, out, err = command("prepare")
    assert code == 0
    assert "tinyimagenet: 12 training and 6 test images of 3 classes" in out
    assert "decoding the images of" in err
    assert facts.npz(shelf).is_file()
    code, out, err = command("prepare", "cifar100", "digits")
    assert code == 2
    assert "digits: 1,000" in out
    assert "kdbench data download cifar100" in err


def test_names_that_are_wrong_or_lacking(command):
    code, _, err = command("download")
    assert code == 2
    assert "name the data sets to fetch, of cifar100, tinyimagenet" in err
    for what in ("status", "download", "prepare"):
        code, _, err = command(what, "cifar1000")
        assert code == 2
        assert "unknown dataset 'cifar1000'. Did you mean 'cifar100'?" in err


def test_a_failed_download_says_what_to_do(command, shelf, tmp_path):
    (tmp_path / "published" / "set.tar.gz").unlink()
    code, _, err = command("download", "cifar100")
    assert code == 1
    assert f"at {shelf / 'set.tar.gz'} and give the same command again" in err
    assert "Traceback" not in err


def test_real_catalogue_and_doctor(kdbench, tmp_path):
    done = kdbench("data", "status", "--json")
    seen = {line["name"]: line for line in json.loads(done.stdout)}
    assert seen["imagenet"]["missing"] == ["imagenet/train", "imagenet/val"]
    assert "image-net.org" in seen["imagenet"]["todo"]
    done = kdbench("data", "download", "imagenet")
    assert done.returncode == 2
    assert "imagenet/train/WNID" in done.stderr
    assert not (tmp_path / "data").exists()
    assert kdbench("data").returncode == 2
    assert "download" in kdbench("data", "--help").stdout


def test_status_imports_nothing_heavy(tmp_path):
    program = """
import sys
from kdbench.__main__ import main
try:
    main()
except SystemExit:
    print({"torch", "numpy", "PIL", "scipy"} & set(sys.modules) or "nothing")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "data", "status"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.stdout.endswith("nothing\n"), done.stdout + done.stderr


def test_plain_lines_come_at_every_tenth(capsys):
    lines = PlainProgress()
    for done in range(0, 1001, 7):
        lines.progress("a.zip", done, 1000)
    assert [line.split(" %")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"a.zip: {n}" for n in range(10, 100, 10)
    ]
    for done in (0, 99_000_000, 100_000_000, 150_000_000, 250_000_000):
        lines.progress("b.zip", done, None)
    assert capsys.readouterr().err == "b.zip: 100,000,000 bytes\nb.zip: 250,000,000 bytes\n"


def test_bars_on_a_terminal():
    import io

    from rich.console import Console
    from rich.progress import Progress

    text = io.StringIO()
    with Progress(console=Console(file=text, force_terminal=True, width=100)) as progress:
        bars = BarProgress(progress)
        for done in (0, 500, 1000):
            bars.progress("a.zip", done, 1000)
        bars.note("unpacking [a.zip]")
    assert "unpacking [a.zip]" in text.getvalue()
    assert "100%" in text.getvalue()
