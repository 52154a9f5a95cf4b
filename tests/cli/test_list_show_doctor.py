"""kdbench list, show and doctor."""

import json
import re
from functools import cache

import pytest
from typer.testing import CliRunner

from kdbench.cli import checks, listing
from kdbench.cli.app import app
from kdbench.cli.listing import table
from kdbench.execution import devices
from kdbench.execution.devices import Gpu, Machine
from kdbench.suite.load import load_suite


KINDS = ["methods", "models", "datasets", "protocols", "suites", "tables", "teachers", "runs"]


@pytest.fixture(scope="module")
def loading():
    """Loads each bundled suite once."""
    return cache(load_suite)


@pytest.fixture(autouse=True)
def suites_loaded_once(monkeypatch, loading):
    monkeypatch.setattr(listing, "load_suite", loading)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_listed(kdbench, finished, kind):
    text = kdbench("list", kind).stdout
    lines = json.loads(kdbench("list", kind, "--json").stdout)
    if kind == "teachers":
        assert text == "no teachers in results\n"
        assert lines == []
    else:
        assert len([line for line in text.splitlines() if line[0] != " "]) == len(lines) + 2  # other lines are wrapped
    known = {"methods": "pkt", "models": "resnet32x4", "datasets": "digits", "protocols": "semckd", "suites": "smoke"}
    assert known.get(kind, "") in text


def test_methods_are_whole_in_json(kdbench):
    lines = {line["method"]: line for line in json.loads(kdbench("list", "methods", "--json").stdout)}
    assert all(line["paper"] and line["time"] > 0 and line["memory"] > 0 for line in lines.values())
    assert lines["semckd"]["weights"] == {"semckd": 400}
    assert lines["semckd"]["losses"]["semckd"]["semckd-no-mlp"] == "1·ce + 1·kd + 400·semckd(variant=no-mlp)"
    assert lines["embedding-mse"]["weights"] == {"ega": 100}
    assert lines["kd"]["weights"] == {"crd": 0.9, "sskd": 0.9, "semckd": 1, "ega": 0.9}
    assert [lines[name]["stages"] for name in ("ab", "ft", "hkd", "at")] == [
        "initial, 30 epochs",
        "part on the teacher",
        "auxiliary, by pkt",
        "",
    ]
    text = kdbench("list", "methods").stdout
    (row,) = [line for line in text.splitlines() if line.startswith("online-kd ")]
    assert row.split()[1:4] == ["Lan", "et", "al.,"]


def test_an_unknown_kind(kdbench):
    done = kdbench("list", "method")
    assert done.returncode == 2
    assert "methods" in done.stderr


def test_runs_are_listed_whatever_their_state(kdbench, finished):
    (run,) = json.loads(kdbench("list", "runs", "--json").stdout)
    assert (run["student"], run["loss"], run["status"], run["last / best"]) == (
        "resnet8",
        "1·ce",
        "done",
        "43.21 / 43.21",
    )
    for content in ("[]", "{", '{"terms": 5}', '{"student": {}}', '{"teacher": "x"}'):
        (finished.folder / "spec.json").write_text(content)
        assert "spec.json cannot be read" in kdbench("list", "runs").stdout
    (finished.folder / "result.json").write_text("{")
    assert "damaged" in kdbench("list", "runs").stdout
    (finished.folder / "result.json").unlink()
    assert "not finished" in kdbench("list", "runs").stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pkt", ["method pkt", "Equation", "crd: 1·ce + 30000·pkt"]),
        ("KD", ["method kd", "temperature", "semckd: 1·ce + 1·kd"]),
        (
            "semckd",
            ["Departures:", "TKDE 2022", "variant: Literal", "semckd: semckd-no-mlp = 1·ce", "Cost of a step: "],
        ),
        ("ab", ["Stages before the main training: initial, 30 epochs", "Measured: resnet32x4 → resnet8x4, batch 64"]),
        ("embedding-mse", ["ega: 1·ce + 100·embedding-mse   (as the method 'fitnet')"]),
        ("online_kd", ["method online-kd", "sskd: 1·online-kd", "resnet8x4 without a teacher"]),
        ("resnet8x4", ["model resnet8x4", "Parameters"]),
        ("ResNet_8x4", ["model resnet8x4"]),
        ("cifar100", ["dataset cifar100", "100 classes, 50,000 training"]),
        ("digits", ["dataset digits"]),
        ("crd", ["title: CRD benchmark"]),
        ("EGA_1", ["table ega-1", "Same student different teacher", "*77.68*", "printed twice", "evidence: caption"]),
        ("sskd-2", ["Exemplar [8]", "No number is marked"]),
        ("smoke", ["title: smoke test", "grid:"]),
        ("demo", ["title: kdbench demo", "grid:"]),
    ],
)
def test_show(kdbench, name, words):
    done = kdbench("show", name)
    assert done.returncode == 0
    for word in words:
        assert word in done.stdout


@pytest.mark.parametrize(
    ("name", "near"), [("pkd", "Did you mean"), ("resnet8x5", "'resnet8x4'"), ("ffffffffffff", "no run")]
)
def test_show_what_is_not_there(kdbench, name, near):
    done = kdbench("show", name)
    assert done.returncode == 2
    assert f"nothing is called '{name}'" in done.stderr
    assert near in done.stderr


def test_show_a_run_and_its_curve(kdbench, finished):
    for id in (finished.id, finished.id[:6]):
        done = kdbench("show", id)
        assert done.returncode == 0
        for word in (f"run {finished.id}", '"student": "resnet8"', '"top1": 43.21', "loss", "2.5"):
            assert word in done.stdout
    (finished.folder / "result.json").write_text("{")
    assert '"damaged"' in kdbench("show", finished.id).stdout
    (finished.folder / "metrics.jsonl").write_text('5\n[]\n{"epoch": {}, "terms": []}\n')
    assert kdbench("show", finished.id).returncode == 0


def test_a_prefix_of_two_ids(kdbench, finished):
    twin = finished.folder.with_name(finished.id[:6] + "zzzzzz")
    twin.mkdir()
    done = kdbench("show", finished.id[:6])
    assert done.returncode == 2
    assert "several runs" in done.stderr


def test_doctor(kdbench, monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "_not_importable", dict)
    done = kdbench("doctor", "--results", "new")
    assert done.returncode == 0, done.stdout
    for word in (
        "kdbench 0.",
        "torch 2",
        "CPU threads: 2; torch is built without CUDA",
        "–    no GPU is visible (Torch not compiled",
        "results go to",
        "data set digits: ready",
        "cifar-100-python",
    ):
        assert word in done.stdout
    (tmp_path / "new" / "locks" / "leases").write_text("nfs4 is not known\n")
    assert "–    new: nfs4 is not known. Leases take the place of locks" in kdbench("doctor", "--results", "new").stdout
    (tmp_path / "file").write_text("")
    done = kdbench("doctor", "--results", "file/below")
    assert (done.returncode, done.stderr) == (2, "file/below: cannot be a folder of results: Not a directory\n")


@pytest.mark.slow
def test_every_package_that_is_needed_can_be_imported(kdbench):
    done = kdbench("doctor")
    assert done.returncode == 0, done.stdout
    for package in checks.PACKAGES:
        assert re.search(rf"^(ok  |–   ) {package} [0-9]", done.stdout, re.MULTILINE)


def test_doctor_says_what_each_gpu_can_do_and_why_one_cannot(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    old = Gpu("Tesla P100", (6, 0), 2**34, "this torch has kernels for sm_75, sm_90 only")
    gpus = (Gpu("H100", (9, 0), 80 * 2**30), Gpu("T4", (7, 5), 2**34, eager="no room"), old)
    machine = Machine(8, cuda="12.8", cudnn=91002, archs=("sm_75", "sm_90"), gpus=gpus)
    monkeypatch.setattr(devices, "query_devices", lambda *, tried: machine)
    monkeypatch.setattr(checks, "_not_importable", dict)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    for line in (
        "ok   CPU threads: 8; torch is built for CUDA 12.8, cuDNN 91002",
        "ok   GPU 0: H100 (compute capability 9.0), 80 GiB, trains in fp32 and bf16; steps are launched as graphs\n",
        "ok   GPU 1: T4 (compute capability 7.5), 16 GiB, trains in fp32 (bf16 needs compute capability 8.0); "
        "steps are launched kernel by kernel (no room)\n",
        "BAD  GPU 2, Tesla P100 (compute capability 6.0), cannot be used: this torch has kernels for sm_75, sm_90 only. ",
    ):
        assert line in done.stdout


@pytest.mark.parametrize("command", [["list", "runs"], ["report"], ["plan", "demo"]], ids=" ".join)
@pytest.mark.parametrize("name", ["file", "file/x", "dangling", "x" * 300])
def test_what_can_be_no_results_folder_is_refused(kdbench, tmp_path, command, name):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nothing")
    done = kdbench(*command, "--results", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r".+: (is no|cannot be a) folder of results.*\n", done.stderr)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "teachers"])
def test_lists_fit_the_terminal(finished, monkeypatch, kind, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    done = CliRunner().invoke(app, ["list", kind, "--results", str(finished.folder.parents[1])])
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= columns


def test_tables_wrap_between_words_and_keep_numbers_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    rows = [{"name": "a", "": "words that are wrapped", "extra": "left out", "last / best": "12.34 / 56.78"}]
    assert table(rows, ["extra"]).splitlines() == [
        "name             last / best",
        "----  ---------  -------------",
        "a     words      12.34 / 56.78",
        "      that are",
        "      wrapped",
    ]
