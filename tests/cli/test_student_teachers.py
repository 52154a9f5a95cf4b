"""A teacher that is a finished run's student: found in the results folder, or said why it is not."""

import json

import pytest

from kdbench.files import file_hash
from kdbench.store.result import Result
from kdbench.store.store import Store
from kdbench.store.suites import teaching_runs
from kdbench.suite.load import load_suite


@pytest.fixture
def second(tmp_path, finished):
    """A suite whose teacher is the finished run's student, and is named by the beginning of the run's id."""
    file = tmp_path / "second.yaml"
    file.write_text(f"""\
protocol: smoke
dataset: digits
trials: 1
teachers: {{small: {{run: "{finished.id[:6]}"}}}}
grid: {{teacher: small, student: resnet8, method: kd}}
""")
    return file


def test_it_is_found_by_the_beginning_of_the_runs_id(kdbench, second, finished):
    assert kdbench("validate", second).returncode == 0
    planned = json.loads(kdbench("plan", second, "--json").stdout)
    assert (planned["runs"], planned["teachers"], planned["cohorts"][0]["teacher"]) == (1, [], "resnet8")
    (row,) = [line for line in kdbench("report", second).stdout.splitlines() if line.startswith("(teacher)")]
    assert row.split() == ["(teacher)", "43.21"]


def unusable(kdbench, second):
    """What validate and plan say, which is the same."""
    said = {kdbench(command, second).stderr for command in ("validate", "plan")}
    assert len(said) == 1
    return said.pop()


def test_a_run_that_is_not_there(kdbench, second, finished):
    elsewhere = kdbench("validate", second, "--results", "none")
    assert f"no run's id in none begins with '{finished.id[:6]}'" in elsewhere.stderr
    finished.folder.rename(f"{finished.folder}.damaged-1")
    assert f"was damaged and is quarantined (results/runs/{finished.id}.damaged-1)" in unusable(kdbench, second)


def test_a_run_that_is_not_finished(kdbench, second, finished):
    (finished.folder / "result.json").unlink()
    assert f"run {finished.id} is not finished (2 epochs so far): run its suite first" in unusable(kdbench, second)


def test_a_run_whose_weights_were_not_kept(kdbench, second, finished):
    (finished.folder / "metadata.json").write_text('{"weights": "not kept"}')
    assert f"the weights of run {finished.id} were not kept" in unusable(kdbench, second)


def test_a_run_whose_result_is_damaged(kdbench, second, finished):
    (finished.folder / "result.json").write_text("{")
    assert "result.json: " in (said := unusable(kdbench, second))
    assert "makes it again" in said


def test_what_is_made_on_it_is_not_exported_alone(kdbench, tmp_path, second, finished):
    store = Store(tmp_path / "results")
    second.write_text(
        second.read_text().replace("smoke", "{base: smoke, node_embedding: 16}") + "strategy: sequential\n"
    )
    (run,) = load_suite(second, known=teaching_runs([store])).runs
    record = store.teacher(run.spec.teacher.id)
    record.begin(run.spec.teacher.canonical())
    record.weights_file.write_bytes(b"the new layers'")
    sha256 = file_hash(record.weights_file)
    record.finish(Result(id=record.id, kind="teacher", weights_sha256=sha256), {})
    done = kdbench("teachers", "export", record.id, "out")
    assert f"is made on the student of run {finished.id}, which an export does not hold" in done.stderr
    assert not (tmp_path / "out").exists()
