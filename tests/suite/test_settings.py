"""--set: every protocol of a suite is changed, and messages name the option."""

import pytest
import yaml

from kdbench.errors import BadSuite
from kdbench.suite.load import load_suite


@pytest.fixture
def load(tmp_path):
    def load(text, *settings):
        file = tmp_path / "own.yaml"
        file.write_text(text)
        return load_suite(file, settings=settings)

    return load


GRID = "{teacher: resnet8x4, student: resnet8, method: kd}"
TOP = f"protocol: smoke\ndataset: digits\ngrid: {GRID}\n"
GRIDS = f"""\
protocol: {{base: smoke, lr: 0.5}}
dataset: digits
grid:
  - {GRID}
  - {GRID[:-1]}, protocol: demo}}
"""


def test_all_protocols_of_a_suite_change_as_if_it_stood_in_the_file(load):
    suite = load(GRIDS, "protocol.epochs=25", "protocol.teacher.lr=0.25")
    assert {run.spec.recipe.epochs for run in suite.runs} == {25}
    assert {run.spec.teacher.recipe.lr for run in suite.runs} == {0.25}
    assert {run.spec.recipe.lr for run in suite.runs} == {0.5, 0.05}
    assert yaml.safe_load(suite.text)["grid"][1]["protocol"] == {"base": "demo", "epochs": 25, "teacher": {"lr": 0.25}}
    written = load("protocol: {base: smoke, epochs: 25, teacher: {lr: 0.25}}\n" + TOP.partition("\n")[2])
    assert load(TOP, "protocol.epochs=25", "protocol.teacher.lr=0.25").runs == written.runs


def test_the_last_of_two_counts(load):
    assert load(TOP, "protocol.epochs=3", "protocol.epochs=4").runs[0].spec.recipe.epochs == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("protocol.epocs=5", "unknown key. Did you mean 'epochs'?"),
        ("protocol.epochs=abc", "must be a whole number, not 'abc'"),
        ("protocol.teacher={epochs: x}", "epochs: must be a whole number, not 'x'"),
        ("protocol.lr=1e-3", "'1e-3' is text in YAML 1.1: write 1.0e-3."),
        ("protocol.lr=[", "is not valid YAML"),
        ("protocol.base=crrd", "unknown protocol 'crrd'. Did you mean 'crd'?"),
        ("protocol=crd", "write protocol.KEY=VALUE"),
        ("protocol.=5", "write protocol.KEY=VALUE"),
        ("dataset=cifar10", "write protocol.KEY=VALUE"),
        ("protocol.epochs", "write protocol.KEY=VALUE"),
        ("epochs=5", "write protocol.KEY=VALUE, such as protocol.epochs=5. Did you mean 'protocol.epochs=5'?"),
        ("protocl.epochs=5", "write protocol.KEY=VALUE, such as protocol.epochs=5. Did you mean 'protocol.epochs=5'?"),
        ("protocol.base.x=1", "protocol.base is 'smoke' and has no keys: write protocol.base=VALUE"),
    ],
)
def test_a_message_names_the_option_once(load, setting, message):
    with pytest.raises(BadSuite) as caught:
        load(GRIDS, setting)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"--set {setting}  {message}")


def test_other_problems_keep_their_line(load):
    with pytest.raises(BadSuite, match=r"own.yaml:4  grid\[0\].student"):
        load(GRIDS.replace("student: resnet8", "student: resnet5", 1), "protocol.epochs=5")
