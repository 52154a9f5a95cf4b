"""kdbench plan and kdbench report."""

import csv
import io
import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from kdbench.cli import plan
from kdbench.execution.devices import Slot


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No speeds that another test has measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_plan(kdbench, suite_file, tmp_path):
    text = kdbench("plan", suite_file).stdout
    assert "2 runs to do in 1 cohorts, 0 settled already." in text
    assert "Teachers to train: resnet8x4 on digits" in text
    assert not (tmp_path / "results").exists()


def test_plan_as_json(kdbench, suite_file, finished):
    facts = json.loads(kdbench("plan", suite_file, "--json", "--devices", 2, "--on", "gpu").stdout)
    assert (facts["runs"], facts["runs_settled"], facts["devices"], facts["device"]) == (1, 1, 2, "gpu")
    assert facts["teachers"] == ["resnet8x4 on digits"]
    assert (facts["estimate"], facts["speed"]["records"]) == ("assumed for a GPU", 0)
    assert 0 < facts["makespan_hours"] <= facts["device_hours"] < facts["device_hours_without_cohorts"] * 1.001
    assert facts["idle_share"] == pytest.approx(1 - facts["device_hours"] / (2 * facts["makespan_hours"]))
    assert facts["disk_bytes"].pop("outputs") == 0
    assert set(facts["disk_bytes"]) == {"weights", "checkpoints", "logs"}
    assert min(facts["disk_bytes"].values()) > 0


def test_plan_with_several_devices_in_a_run(kdbench, suite_file):
    """By the option, or by the suite itself, which the option overrides. A dry run plans for enough devices."""

    def plan(*options):
        return json.loads(kdbench("plan", suite_file, "--json", "--devices", 2, "--on", "gpu", *options).stdout)

    alone, both = plan(), plan("--devices-per-run", "2")
    assert (alone["devices_per_run"], alone["jobs_on_several_devices"]) == (1, {})
    assert (both["devices_per_run"], both["jobs_on_several_devices"]) == (2, {"2": 2})
    assert both["makespan_hours"] < alone["makespan_hours"]
    assert both["idle_share"] == pytest.approx(0)
    suite_file.write_text(f"devices_per_run: auto\n{suite_file.read_text()}")
    assert (plan()["devices_per_run"], plan("--devices-per-run", "1")) == ("auto", alone)
    dry = kdbench("run", suite_file, "--dry-run", "--devices-per-run", "2").stdout
    assert "on 2 devices" in dry
    assert "Jobs on several devices: 2 on 2; the others on one." in dry


def test_plan_on_what_a_cluster_has_now(kdbench, suite_file, tmp_path, monkeypatch):
    @contextmanager
    def connected(options, tell, *, writing):
        tell(f"node n of {options.cluster} is looked at")
        assert not writing
        yield SimpleNamespace(slots=lambda: [Slot(f"n{n}", "gpu", host=host) for n, host in enumerate("noo")])

    monkeypatch.setattr(plan, "connected", connected)
    on_cluster = kdbench("plan", suite_file, "--json", "--cluster", "head:6379")
    assert on_cluster.stderr == "node n of head:6379 is looked at\n"
    assert on_cluster.stdout == kdbench("plan", suite_file, "--json", "--devices", 3, "--on", "gpu").stdout
    several = kdbench("plan", suite_file, "--json", "--cluster", "head:6379", "--devices-per-run", 4).stdout
    assert json.loads(several)["jobs_on_several_devices"] == {"2": 2}, "no node has more"
    assert not (tmp_path / "results").exists()
    refused = kdbench("plan", suite_file, "--cluster", "auto", "--devices", 2)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--devices and --cluster exclude each other" in refused.stderr


def test_plan_with_a_measured_speed(kdbench, suite_file, finished):
    """A GPU that takes a second for 5 billion multiply-accumulates; what else there is stays in proportion."""
    work = {"macs": 5e9, "activations": 0, "layers": 0, "updates": 0, "files": 0}
    about = {"device": {"kind": "gpu", "name": "NVIDIA H100"}, "macs": 5e9, "work": work, "seconds": 1}
    (finished.folder / "metadata.json").write_text(json.dumps(about))
    facts = json.loads(kdbench("plan", suite_file, "--json").stdout)
    assert (facts["device"], facts["device_name"], facts["speed"]["records"]) == ("gpu", "NVIDIA H100", 1)
    assumed = json.loads(kdbench("plan", suite_file, "--json", "--on", "cpu").stdout)
    assert assumed["device_name"] == ""
    assert facts["device_hours"] > assumed["device_hours"]
    for junk in ('{"device": {"kind": "tpu"}, "macs": 1, "seconds": 1}', '{"device": "x"}', "{", '{"macs": "a"}'):
        (finished.folder / "metadata.json").write_text(junk)
        assert kdbench("plan", suite_file).returncode == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--on", "tpu"], "write cpu, gpu, or part of the name"),
        (["--devices", "0"], "--devices"),
        (["--devices-per-run", "many"], "--devices-per-run many: write auto, or a number from 1 to 64"),
        (["--slots", "1000000000"], "--slots"),
        (["--trials", "0"], "--trials"),
        (["--only", "kd"], "write KEY=VALUE"),
        (["--only", "colour=red"], "write KEY=VALUE"),
        (["--only", "method="], "write KEY=VALUE"),
        (["--only", "method=kdd"], "no run has the method 'kdd'. Did you mean 'kd'?"),
        (["--only", "student=vgg8"], "no run has the student 'vgg8'. There are resnet8."),
        (["--only", "trial=1"], "no run has the trial '1'"),
        (["--colour"], "No such option"),
    ],
)
def test_options_that_cannot_be_used(kdbench, suite_file, options, word):
    done = kdbench("plan", suite_file, *options)
    assert done.returncode == 2
    assert word in done.stderr


def test_only(kdbench, suite_file):
    def count(*only):
        return json.loads(kdbench("plan", suite_file, "--json", *(f"--only={each}" for each in only)).stdout)["runs"]

    assert count("method=kd") == 1
    assert count("method=KD,ce") == 2
    assert count("student=ResNet_8", "dataset=Digits", "method=ce", "trial=0", "teacher=resnet8x4") == 1
    suite_file.write_text(suite_file.read_text() + "  - {student: resnet14, method: ce}\n")
    done = kdbench("plan", suite_file, "--only=student=resnet14", "--only=method=kd")
    assert done.returncode == 2
    assert "no run matches all of these" in done.stderr


def test_report_on_nothing(kdbench, suite_file):
    done = kdbench("report")
    assert done.returncode == 2
    assert "holds no run of a bundled suite" in done.stderr
    done = kdbench("report", suite_file)
    assert done.returncode == 0
    assert "not run (1 of 1)" in done.stdout


def test_report_in_every_format(kdbench, suite_file, finished):
    assert "43.21 (1)" in kdbench("report", suite_file).stdout
    assert "| ce" in kdbench("report", suite_file, "--format", "markdown").stdout
    rows = list(csv.DictReader(io.StringIO(kdbench("report", suite_file, "-f", "csv").stdout)))
    assert [(row["method"], row["value"], row["status"]) for row in rows if row["metric"] == "top1"] == [
        ("ce", "43.21", "done"),
        ("kd", "", "missing"),
        ("teacher", "", "missing"),
    ]
    assert "& 43.21 (1)" in kdbench("report", suite_file, "-f", "latex").stdout
    assert "\\documentclass" in kdbench("report", suite_file, "-f", "latex", "--standalone").stdout
    data = json.loads(kdbench("report", suite_file, "-f", "json").stdout)
    assert [cell["mean"] for cell in data["cells"]] == [43.21, None]
    assert kdbench("report", suite_file, "-f", "word").returncode == 2


def test_report_to_a_file(kdbench, suite_file, finished, tmp_path):
    done = kdbench("report", suite_file, "-f", "markdown", "-o", "out/table.md")
    assert (done.returncode, done.stdout) == (0, "")
    assert "43.21" in (tmp_path / "out" / "table.md").read_text()
    done = kdbench("report", suite_file, "-o", suite_file / "x")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert kdbench("report", suite_file, "-o", ".").returncode == 2


def test_report_of_several_results(kdbench, suite_file, finished, tmp_path):
    (tmp_path / "none").mkdir()
    done = kdbench("report", suite_file, "--results", "none", "--results", "results")
    assert "43.21" in done.stdout


@pytest.mark.parametrize(
    ("folder", "words"), [("nowhere", "no such results folder"), ("own.yaml", "is no folder of results")]
)
def test_results_that_are_no_folder(kdbench, suite_file, folder, words):
    done = kdbench("report", suite_file, "--results", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{folder}: {words}" in done.stderr


def test_a_suite_named_twice_counts_once(kdbench, suite_file, finished):
    assert "43.21 (1)" in kdbench("report", suite_file, suite_file).stdout


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "x"}'])
def test_a_damaged_result_is_named(kdbench, suite_file, finished, content):
    (finished.folder / "result.json").write_text(content)
    done = kdbench("report", suite_file)
    assert done.returncode == 0
    assert "damaged record" in done.stdout


def test_folders_that_cannot_be_read(kdbench, suite_file, tmp_path):
    for folder in ("x" * 5000, suite_file):
        assert kdbench("plan", suite_file, "--results", folder).returncode == 2
        assert kdbench("list", "runs", "--results", folder).returncode == 2


def test_a_part_of_the_runs(kdbench, suite_file, tmp_path):
    plans = [json.loads(kdbench("plan", "own.yaml", "--shard", part, "--json").stdout) for part in ("1/2", "2/2")]
    assert [plan["runs"] for plan in plans] == [1, 1]
    nothing = "--shard 3/3: holds no run, for there are fewer runs than parts: there is nothing to do\n"
    for command in ("run", "plan"):
        done = kdbench(command, "own.yaml", "--shard", "3/3")
        assert (done.returncode, done.stderr) == (0, nothing)
    assert not (tmp_path / "results").exists()
    for wrong in ("0/2", "3/2", "1", "a/2", "1/2/3", ""):
        done = kdbench("plan", "own.yaml", "--shard", wrong)
        assert done.returncode == 2
        assert f"'{wrong}': write I/N with I from 1 to N, such as 1/4" in done.stderr
