import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.plots.style import styled
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.suite.load import load_suite


BASELINE = Path(__file__).parent / "baseline"
TOLERANCE = {True: 0.2, False: 6.0}
"""Root mean square of the difference in levels of 255: by the baseline's version of matplotlib, and by another one."""


def pixels(figure, path):
    """A figure as it looks at a low resolution, [H, W, 3]."""
    with styled():
        figure.savefig(path, dpi=60)
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


def distance(a, b):
    return float(np.sqrt(np.square(a - b).mean())) if a.shape == b.shape else float("inf")


@pytest.fixture
def differ(tmp_path):
    """Whether two figures look different."""
    return lambda a, b: distance(pixels(a, tmp_path / "a.png"), pixels(b, tmp_path / "b.png")) > TOLERANCE[False]


@pytest.fixture
def looks_as_before(tmp_path):
    """Compare a figure with the picture of a name in baseline/; one that is not there is written, to be looked at."""

    def compare(figure, name):
        file = BASELINE / f"{name}.png"
        now = pixels(figure, tmp_path / "now.png")
        if not file.exists():
            shutil.copy(tmp_path / "now.png", file)
            pytest.fail(f"{file} is new: look at it, and run the test again")
        with Image.open(file) as image, Image.open(tmp_path / "now.png") as drawn:
            same = image.info["Software"] == drawn.info["Software"]
            before = np.asarray(image.convert("RGB"), dtype=float)
        assert distance(now, before) < TOLERANCE[same]

    return compare


SUITE = """\
protocol: semckd
trials: 2
methods:
  "kd[temperature=2]": {ce: 1, kd: {weight: 1, temperature: 2}}
  "kd[temperature=8]": {ce: 1, kd: {weight: 1, temperature: 8}}
  "semckd[pair=S1-T1]": {ce: 1, kd: 1, semckd: {weight: 400, student_layer: 1, teacher_layer: 1}}
  "semckd[pair=S1-T3]": {ce: 1, kd: 1, semckd: {weight: 400, student_layer: 1, teacher_layer: 3}}
  "semckd[pair=S2-T3]": {ce: 1, kd: 1, semckd: {weight: 400, student_layer: 2, teacher_layer: 3}}
grid:
  - teacher: resnet32x4
    student: [vgg8, resnet8x4]
    dataset: cifar100
    method: [ce, kd, at, semckd, "kd[temperature=2]", "kd[temperature=8]",
             "semckd[pair=S1-T1]", "semckd[pair=S1-T3]", "semckd[pair=S2-T3]"]
"""
VGG8 = {
    "ce": 70.0, "kd": 75.0, "at": 72.0, "semckd": 76.0, "kd[temperature=2]": 73.0, "kd[temperature=8]": 71.0,
    "semckd[pair=S1-T1]": 72.5, "semckd[pair=S1-T3]": 75.5, "semckd[pair=S2-T3]": 73.5,
}  # fmt: skip
"""Mean accuracy of two trials, one less and one more by one. A resnet8x4 has 68 alone, and gains half as much. The teacher
has 80."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The suite, and the store that holds its runs and its teacher."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "own.yaml").write_text(SUITE)
    suite, store = load_suite(folder / "own.yaml"), Store(folder / "results")
    for number, run in enumerate(suite.runs):
        record, mean = store.run(run.id), VGG8[run.method]
        if str(run.spec.student) == "resnet8x4":
            mean = 68 + (mean - 70) / 2
        last = Accuracy(epoch=240, top1=mean + (-1, 1)[run.spec.trial], top5=90.0)
        record.begin(run.spec.canonical())
        epochs = [
            {"epoch": epoch, "loss": 240 / epoch, "top1": last.top1 - 10 + epoch / 24} for epoch in (60, 120, 240)
        ]
        if run.method == "semckd":
            epochs[-1]["attention"] = [[0.7, 0.2, 0.1], [0.3, 0.3, 0.4 + 0.1 * run.spec.trial]]
        record.write_metrics(epochs)
        record.weights_file.touch()
        about = {"device": {"kind": "cpu"}, "macs": 1e9 * (1 + number % 7), "seconds": 100.0 + number}
        record.finish(Result(id=run.id, kind="run", last=last, best=last, weights_sha256=""), about)
    teacher = next(run.spec.teacher for run in suite.runs if run.spec.teacher)
    known = Accuracy(epoch=240, top1=80.0, top5=95.0)
    record = store.teacher(teacher.id)
    record.begin(teacher.canonical())
    record.finish(Result(id=teacher.id, kind="teacher", last=known, best=known, weights_sha256=""), {})
    return suite, store
