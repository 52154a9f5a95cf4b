"""kdbench report's printed tables, and kdbench compare."""

import csv
import io
import json
import shutil

import pytest


def test_published_tables(kdbench):
    done = kdbench("report", "--published", "--table", "EGA_1", "--table", "semckd-6")
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if line.startswith(("ega-", "semckd-"))] == [
        "ega-1: CIFAR100 top-1 of the student, self-supervised (CLIP) teacher, simultaneous training",
        "semckd-6: Ablation of the attention allocation, VGG-8 & ResNet-32x4",
    ]
    rows = list(csv.DictReader(io.StringIO(kdbench("report", "--published", "-f", "csv").stdout)))
    assert len(rows) == 873
    assert (rows[0]["table"], rows[0]["cell"], rows[0]["printed"]) == ("ega-1", "KD / ViT-B/32", "71.55")
    cells = json.loads(kdbench("report", "--published", "-f", "json").stdout)["cells"]
    assert len(cells) == 873
    assert cells[0]["published"] == {"value": 71.55, "sd": None, "text": "71.55"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--published", "demo"], "--published prints the papers' numbers alone"),
        (["--published", "--results", "x"], "--published prints the papers' numbers alone"),
        (["--table", "ega-9"], "unknown table 'ega-9'"),
        (["--published", "--standalone"], "--standalone is for --format latex, not terminal"),
        (["--view", "sum"], "measured"),
        (["--published", "--view", "verdict"], "leave out --view, --bold, --tolerance and --mix-versions"),
        (["--published", "--bold", "separable"], "leave out --view, --bold"),
        (["--published", "--mix-versions"], "leave out --view, --bold"),
        (["demo", "-f", "csv", "--view", "verdict"], "--format csv holds measured values: leave out --view"),
        (["demo", "-f", "json", "--view", "published"], "--format json holds both numbers"),
        (["demo", "-f", "json", "--bold", "separable"], "nothing is bold in --format json"),
        (["demo", "--view", "difference", "--bold", "separable"], "nothing is bold in --format terminal"),
        (["demo", "--tolerance", "1"], "only --view verdict and --format json judge"),
        (["--tolerance", "-1"], "--tolerance"),
    ],
)
def test_options_that_cannot_be_used(kdbench, options, word):
    done = kdbench("report", *options)
    assert done.returncode == 2
    assert word in done.stderr


def test_a_suite_fills_its_table(kdbench, tmp_path):
    file = tmp_path / "few.yaml"
    file.write_text(
        "protocol: semckd\ndataset: cifar100\ntrials: 1\ntables: semckd-2\n"
        "grid: {teacher: resnet32x4, student: vgg8, method: [ce, kd]}\n"
    )
    done = kdbench("report", file, "--view", "verdict")
    assert "semckd-2: Feature-map distillation" in done.stdout
    assert "KD / VGG-8 & ResNet-32x4: not run (1 of 1)" in done.stdout
    assert "few: " not in done.stdout


def test_versions(kdbench, suite_file, finished, tmp_path):
    from kdbench.store.result import Result
    from kdbench.store.store import Store
    from kdbench.suite.load import load_suite

    run = load_suite(suite_file).runs[1]
    values = finished.result().model_dump() | {"id": run.id}
    Store(tmp_path / "results").run(run.id).finish(Result(**values), {"versions": {"kdbench": "0.2.0"}})
    done = kdbench("report", suite_file)
    assert done.returncode == 1
    assert "come from kdbench 0.1 (1) and 0.2.0 (1)" in done.stderr
    assert "kdbench 0.1, 0.2.0" in kdbench("report", suite_file, "--mix-versions").stdout


def test_folders_that_disagree(kdbench, suite_file, finished, tmp_path):
    from kdbench.store.result import Accuracy, Result
    from kdbench.store.store import Store

    other = Accuracy(epoch=2, top1=44.0, top5=90.0)
    result = Result(id=finished.id, kind="run", last=other, best=other, weights_sha256="")
    Store(tmp_path / "other").run(finished.id).finish(result, {})
    done = kdbench("report", suite_file, "--results", "results", "--results", "other")
    assert "43.21 (1)" in done.stdout
    assert f"({finished.id}): 43.21 in results, 44.00 in other; the first is shown" in done.stderr
    done = kdbench("compare", "results", "other", suite_file)
    assert done.returncode == 0
    assert "43.21 (1)  44.00 (1)   +0.79 (1)" in done.stdout
    assert "| ce, resnet8x4 → resnet8" in kdbench("compare", "results", "other", suite_file, "-f", "markdown").stdout
    lines = kdbench("compare", "results", "other", suite_file, "-f", "csv").stdout.splitlines()
    assert lines[1].startswith("own,smoke,digits,,pretrained,ce,resnet8x4,resnet8,43.21,,1,1,,44.0,,1,1,,0.78")
    (cell,) = json.loads(kdbench("compare", "results", "other", suite_file, "-f", "json").stdout)["cells"]
    assert (cell["a_mean"], cell["b_mean"]) == (43.21, 44.0)


def test_what_cannot_be_compared(kdbench, suite_file, finished, tmp_path):
    shutil.copytree(tmp_path / "results", tmp_path / "other")
    done = kdbench("compare", "results", "nowhere")
    assert (done.returncode, "nowhere: no such results folder" in done.stderr) == (2, True)
    done = kdbench("compare", "results", "other")
    assert (done.returncode, "holds no run of a bundled suite" in done.stderr) == (2, True)
    done = kdbench("compare", "results", "other", suite_file, "-f", "html")
    assert (done.returncode, "there is no page of a comparison" in done.stderr) == (2, True)
    (tmp_path / "empty").mkdir()
    done = kdbench("compare", "empty", "empty", suite_file)
    assert (done.returncode, "hold no finished run of own" in done.stderr) == (2, True)
