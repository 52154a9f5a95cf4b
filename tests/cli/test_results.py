"""kdbench results: its messages and exit codes, in this process."""

import json
import shutil

import pytest

from kdbench.files import write_json
from kdbench.store.store import Store
from kdbench.store.suites import keep_suites
from kdbench.suite.load import load_suite


@pytest.fixture
def record(finished):
    """A finished run whose weights were not kept, in results/."""
    write_json(finished.folder / "metadata.json", {"versions": {"kdbench": "0.2.0"}, "weights": "not kept"})
    return finished


def test_a_pack_is_verified_merged_and_reported_elsewhere(kdbench, record, suite_file):
    assert kdbench("results", "pack", "results", "-o", "some.tar.gz").stdout.startswith("some.tar.gz: 1 run, 0.0 MiB")
    done = kdbench("results", "verify", "some.tar.gz")
    assert done.stdout.endswith("1 finished records, 0 damaged.\n")
    assert kdbench("results", "merge", "some.tar.gz", "--into", "there").stdout == "there: took 1 run.\n"
    report = kdbench("report", suite_file, "--results", "there", "-f", "csv").stdout
    assert "43.21" in report
    assert report == kdbench("report", suite_file, "-f", "csv").stdout
    again = json.loads(kdbench("results", "merge", "some.tar.gz", "--into", "there", "--json").stdout)
    assert (again["same"], again["taken"]["runs"]) == (1, 0)


def test_what_was_left_out_is_named_and_is_an_error(kdbench, record, tmp_path):
    shutil.copytree(tmp_path / "results", tmp_path / "there")
    spec = tmp_path / "there" / "runs" / record.id / "spec.json"
    spec.write_text("{}")
    done = kdbench("results", "merge", "there", "--into", "new")
    assert done.returncode == 1
    assert done.stdout.startswith(f"LEFT OUT run {record.id} of there, ")
    assert done.stdout.endswith("spec.json: is not what was stored\nnew: took nothing; 1 left out.\n")
    assert kdbench("results", "verify", "there").returncode == 1
    done = kdbench("results", "pack", "there", "-o", "bad.tar")
    assert (done.returncode, done.stdout) == (1, "bad.tar: no records, 0.0 MiB.\n")
    assert f"LEFT OUT run {record.id}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge", "results", "--into", "results"], "--into results: is one of the folders that are merged"),
        (["merge", "runs", "--into", "new"], "runs: is no pack, and holds no results"),
        (["merge", "own.yaml", "--into", "new"], "own.yaml: is no whole pack of results"),
        (["pack", "results", "-o", "x.zip"], "--output x.zip: name a file that ends in .tar.gz or .tar"),
        (["pack", "results", "-o", "x.tar", "--only", "method=kd"], "--only: name the suites"),
        (["pack", "results", "-o", "own.yaml/x.tar"], "--output own.yaml/x.tar: cannot be written: "),
        (["pack", "nowhere", "-o", "x.tar"], "nowhere: no such results folder"),
        (["prune", "results", "--what", "log"], "--what log: is none of tmp, logs, "),
        (["prune", "results", "--older-than", "5"], "--older-than 5: write a number of hours, days or weeks"),
        (
            ["prune", "results", "--what", "checkpoints"],
            "nothing was removed: confirm with --yes, or look with --dry-run",
        ),
    ],
)
def test_wrong_words_are_named_and_nothing_is_written(kdbench, record, tmp_path, arguments, message):
    record.state_file.write_text("state")
    done = kdbench("results", *arguments)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert not (tmp_path / "x.tar").exists()
    assert record.state_file.exists()


def test_unused_is_what_no_known_suite_has(kdbench, record, suite_file):
    assert (
        "There is nothing to remove"
        in kdbench("results", "prune", "results", "--keep", suite_file, "--what", "unused").stdout
    )
    done = kdbench("results", "prune", "results", "--what", "unused,weights", "--dry-run")
    assert record.id in done.stdout
    assert record.folder.exists()
    done = kdbench("results", "prune", "results", suite_file, "--what", "unused", "--yes")
    assert done.stdout.endswith("are free.\n")
    assert not record.folder.exists()


def test_what_nfs_keeps_of_removed_files_is_in_nobodys_way(kdbench, record, suite_file, tmp_path):
    results = tmp_path / "results"
    keep_suites([load_suite(suite_file)], Store(results))
    for folder in ("live", "logs", "teachers", "measurements", f"sources/{'0' * 64}"):
        (results / folder).mkdir(parents=True, exist_ok=True)
    commands = [
        ("status", "results"), ("list", "runs"), ("report", suite_file), ("plan", suite_file),
        ("results", "verify", "results"), ("results", "prune", "results", "--dry-run"),
        ("results", "pack", "results", "-o", "a.tar"), ("results", "merge", "results", "--into", "new", "--dry-run"),
    ]  # fmt: skip
    before = [kdbench(*command) for command in commands]
    for folder in (results, *(path for path in results.rglob("*") if path.is_dir())):
        (folder / ".nfs000000000012d687").write_text("removed while open")
    for command, then in zip(commands, before, strict=True):
        now = kdbench(*command)
        assert (now.returncode, now.stdout, now.stderr) == (then.returncode, then.stdout, then.stderr)
