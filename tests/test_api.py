"""The public API: what `import kdbench` gives, what it costs, and what it says of bad input."""

import inspect
import json
import subprocess
import sys

import pytest
import torch

import kdbench
from kdbench import api
from kdbench.data.stream import DataSource
from kdbench.errors import BadInput, BadRecord
from kdbench.execution import devices
from kdbench.methods import build_term
from kdbench.models import Shapes
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.training.build import new_network
from kdbench.training.checkpoint import write_tensors


SUITE = """\
name: two
protocol: demo
dataset: {name: digits, classes: 4, train_per_class: 5, test_per_class: 5}
trials: 1
grid: {teacher: resnet20, student: resnet8, method: [ce, kd]}
"""
NAMES = {
    "Batch", "Outputs", "Term", "TermContext", "build_model", "evaluate", "export", "load_student", "load_suite", "plan",
    "report", "results", "run", "tables",
}  # fmt: skip


@pytest.fixture
def suite(tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(SUITE)
    return kdbench.load_suite(file)


@pytest.fixture
def trained(tmp_path, suite):
    """A results folder in which the suite's first run is finished, with the weights that it starts from."""
    run = suite.runs[0]
    record = Store(tmp_path / "results").run(run.id)
    record.begin(run.spec.canonical())
    network = new_network(run.spec.student, run.spec.dataset, None, "student", 0)
    sha256 = write_tensors(record.weights_file, network.state_dict())
    accuracy = Accuracy(epoch=20, top1=75.0, top5=100.0)
    counts = {"train_images": 20, "test_images": 20, "metrics_sha256": record.write_metrics([])}
    record.finish(Result(id=run.id, kind="run", last=accuracy, best=accuracy, weights_sha256=sha256, **counts), {})
    return tmp_path / "results", network.eval()


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_these_names_and_no_others_are_public():
    assert set(kdbench.__all__) == NAMES
    assert set(dir(kdbench)) == NAMES | {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'run_suites'"):
        _ = kdbench.run_suites


def test_the_import_loads_nothing_else():
    names = "sorted(set(sys.modules) - before)"
    loaded = python(f"import json, sys; before = set(sys.modules); import kdbench; print(json.dumps({names}))")
    assert [name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names] == ["kdbench"]


def test_a_plan_needs_neither_torch_nor_pandas():
    code = "import json, sys, kdbench; kdbench.plan('demo', 'none'); print(json.dumps(list(sys.modules)))"
    assert not {"torch", "pandas"} & set(python(code))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_is_documented_and_typed(name):
    value = getattr(api, name, None) or getattr(kdbench, name)
    assert len(value.__doc__.splitlines()) > 3
    if inspect.isfunction(value):
        assert "Raises" in value.__doc__
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())


def test_results_have_a_row_for_each_value(trained, suite):
    folder, _ = trained
    df = kdbench.results(folder, suite)
    students = df[(df["metric"] == "top1") & (df["method"] != "teacher")]
    assert list(students["method"]) == ["ce", "kd"]
    assert list(students["status"]) == ["done", "missing"]
    assert students["value"].iloc[0] == 75.0
    assert list(students["run_id"]) == [run.id for run in suite.runs]


def test_suites_are_named_or_loaded_one_or_several(trained, suite):
    folder, _ = trained
    by_name = kdbench.results(folder, suite.file)
    assert by_name.equals(kdbench.results(folder, suite))
    assert set(kdbench.results(folder, [suite, "smoke"])["suite"]) == {"two", "smoke"}


def test_the_plan_counts_what_is_left(trained, suite):
    folder, _ = trained
    assert (kdbench.plan(suite, folder).runs, kdbench.plan(suite, folder / "empty").runs) == (1, 2)


def test_tables_hold_the_published_numbers(tmp_path):
    tables = kdbench.tables(tmp_path, "semckd_cifar100")
    cells = tables["semckd-3"].set_index(["method", "teacher", "student"])
    cell = cells.loc[("kd", "resnet32x4", "resnet8x4")]
    assert (cell["published"], cell["published_sd"], cell["n"], cell["planned"]) == (74.42, 0.05, 0, 4)


@pytest.mark.parametrize("format", ["markdown", "csv", "latex", "json", "html", "terminal"])
def test_a_report_is_text(trained, suite, format):
    folder, _ = trained
    assert "75.00" in (text := kdbench.report(folder, suite, format)) or "75.0" in text


def test_a_student_sees_images_as_in_its_test(trained, suite, tmp_path):
    folder, network = trained
    run = suite.runs[0]
    student = kdbench.load_student(run, folder)
    data = DataSource(tmp_path, torch.device("cpu"))
    raw = data.sets(run.spec.dataset)[1].images[:8]
    (images, _), *_ = data.test(run.spec.dataset, run.spec.recipe)
    with torch.no_grad():
        expected = network(images[:8]).logits
    torch.testing.assert_close(student(raw).logits, expected)
    torch.testing.assert_close(student(raw / 255).logits, expected, rtol=1e-4, atol=1e-4)
    assert student.class_names == ("0", "1", "2", "3")
    assert (student.size, len(student.mean), student.training) == (32, 3, False)
    assert student(raw[:, :, ::4, ::4]).logits.shape == (8, 4)
    for wrong in (raw[0], raw[:, :1], raw.long()):
        with pytest.raises(BadInput, match=r"a student takes images \[B, 3, H, W\]"):
            student(wrong)


def test_a_student_that_cannot_be_loaded(trained, suite):
    folder, _ = trained
    first, second = (run.id for run in suite.runs)
    with pytest.raises(BadInput, match=f"no run '{second}'"):
        kdbench.load_student(second, folder)
    with pytest.raises(BadInput, match=f"Did you mean '{first}'"):
        kdbench.load_student(first[:-1] + "x", folder)
    with pytest.raises(BadInput, match="no such results folder"):
        kdbench.load_student(first, folder / "elsewhere")
    Store(folder).run(first).weights_file.write_bytes(b"damaged")
    with pytest.raises(BadRecord, match=r"weights\.safetensors"):
        kdbench.load_student(first, folder)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: kdbench.load_suite("demp"), "Did you mean 'demo'"),
        (lambda folder: kdbench.results(folder / "none", "demo"), "no such results folder"),
        (lambda folder: kdbench.report(folder, "demo", "markdwn"), "format 'markdwn': did you mean 'markdown'"),
        (lambda folder: kdbench.report(folder, "demo", view="publishd"), "view 'publishd': did you mean 'published'"),
        (lambda folder: kdbench.build_model("resnet8x5"), "Did you mean 'resnet8x4'"),
        (lambda folder: kdbench.run("demo", folder, devices="gpuu"), "gpuu"),
    ],
)
def test_bad_input_is_refused_in_one_message(tmp_path, monkeypatch, call, message):
    monkeypatch.setattr(devices, "query_devices", lambda **_: devices.Machine(threads=1))
    with pytest.raises(BadInput, match=message):
        call(tmp_path)


def test_an_own_term_needs_the_public_names_alone(tmp_path, monkeypatch):
    (tmp_path / "own_loss.py").write_text(
        "import torch\n"
        "from kdbench import Batch, Outputs, Term, TermContext\n"
        "class Own(Term):\n"
        "    def __init__(self, context: TermContext, *, power: float = 1.0) -> None:\n"
        "        super().__init__(context)\n"
        "        self.power = power\n"
        "    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> torch.Tensor:\n"
        "        return (student.logits - teacher.logits).abs().pow(self.power).mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    outputs = kdbench.build_model("resnet8", classes=4).eval()(images)
    shapes = Shapes.of(outputs)
    term = build_term("own_loss:Own", kdbench.TermContext(shapes, shapes, 4, 20, 2), power=2.0)
    shifted = outputs._replace(logits=outputs.logits + 3)
    batch = kdbench.Batch(images, torch.zeros(2).long(), torch.arange(2))
    assert term(shifted, outputs, batch).item() == pytest.approx(9.0)


def test_losses_written_for_0_1_find_their_context():
    from kdbench.methods import Setting

    assert Setting is kdbench.TermContext
