"""kdbench results: its messages and exit codes, in this process."""

import json
import shutil

import pytest

from kdbench.cli import results
from kdbench.files import file_hash, write_json
from kdbench.store import packs
from kdbench.store.store import Store
from kdbench.store.suites import keep_suites
from kdbench.suite.load import find_suite, load_suite


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
        (["merge", "results", "--into", "results"], "--into results: is results, which is merged, or lies in it"),
        (
            ["merge", "results", "--into", "results/runs/new"],
            "--into results/runs/new: is results, which is merged, or",
        ),
        (["merge", "runs", "--into", "new"], "runs: no such results folder or pack"),
        (["merge", "results/runs", "--into", "new"], "results/runs: holds no results: no folder runs, teachers or"),
        (["merge", "own.yaml", "--into", "new"], "own.yaml: is no whole pack of results"),
        (["pack", "results", "-o", "x.zip"], "--output x.zip: name a file that ends in .tar.gz or .tar"),
        (["pack", "results", "-o", "x.tar", "--only", "method=kd"], "--only: name the suites"),
        (["pack", "results", "-o", "own.yaml/x.tar"], "--output own.yaml/x.tar: cannot be written: "),
        (["pack", "nowhere", "-o", "x.tar"], "nowhere: no such results folder"),
        (["pack", ".", "-o", "x.tar"], ".: holds no results: no folder runs, teachers or measurements"),
        (["verify", "."], ".: holds no results: no folder runs, teachers or measurements"),
        (["prune", "."], ".: holds no results: no folder runs, teachers or measurements"),
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
    assert {path.name for path in tmp_path.iterdir()} == {"own.yaml", "results"}
    assert record.state_file.exists()


def test_unused_is_what_no_known_suite_has(kdbench, record, suite_file, monkeypatch):
    monkeypatch.setattr(results, "bundled_suites", lambda: {"demo": find_suite("demo")})
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


@pytest.mark.parametrize("damaged", ["about.json", "own.yaml"])
def test_a_damaged_suite_is_told_and_nothing_is_called_unused(kdbench, record, suite_file, tmp_path, damaged):
    keep_suites([load_suite(suite_file)], Store(tmp_path / "results"))
    (suite,) = (tmp_path / "results" / "suites").iterdir()
    (suite / damaged).write_text("{")
    assert f"note results/suites/{suite.name}" in kdbench("results", "verify", "results").stdout
    done = kdbench("results", "merge", "results", "--into", "new")
    assert f"note results/suites/{suite.name}" in done.stdout
    assert done.stdout.endswith(": it is left out\nnew: took 1 run.\n")
    done = kdbench("results", "pack", "results", "-o", "x.tar")
    assert (done.returncode, done.stdout[:13]) == (1, "x.tar: 1 run,")
    assert f"LEFT OUT results/suites/{suite.name}" in done.stderr
    done = kdbench("results", "prune", "results", "--what", "unused", "--yes")
    assert done.returncode == 2
    assert "Run the suite again, or remove its folder: until then, leave out weights and unused" in done.stderr
    assert record.done()


def test_a_record_that_goes_while_it_is_packed_is_named(kdbench, record, tmp_path, monkeypatch):
    (tmp_path / "x.tar").write_text("before")

    def removed(path):
        shutil.rmtree(record.folder)
        return file_hash(path)

    monkeypatch.setattr(packs, "file_hash", removed)
    done = kdbench("results", "pack", "results", "-o", "x.tar")
    assert done.stderr.startswith(f"results/runs/{record.id}/")
    assert done.stderr.endswith(": was removed while it was packed. Pack once more\n")
    assert (tmp_path / "x.tar").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"own.yaml", "results", "x.tar"}


def test_what_the_system_refuses_is_named_with_its_place(kdbench, record, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", "results/teachers")

    monkeypatch.setattr("kdbench.cli.results._check_results", refuse)
    done = kdbench("results", "verify", "results")
    assert (done.returncode, done.stderr) == (1, "results/teachers: Permission denied\n")


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
