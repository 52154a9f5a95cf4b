"""What the README promises works as printed."""

import re
from pathlib import Path

import pytest
import torch

from kdbench.catalogue.terms import term
from kdbench.data.batch import Batch
from kdbench.methods import TermContext, build_term
from kdbench.models import Outputs, Shapes
from kdbench.suite.load import bundled_suites, load_suite


README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_suite_is_valid(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(blocks("yaml")[0])
    suite = load_suite(file)
    assert {run.method for run in suite.runs} == {"ce", "kd", "at", "sp", "kd+at"}
    assert {run.spec.scenario.fraction for run in suite.runs} == {0.25, 1.0}


def test_the_example_term_trains(tmp_path, monkeypatch):
    package = tmp_path / "readme_example"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "losses.py").write_text(blocks("python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    name = "readme_example.losses:CosineEmbedding"
    assert term(name).hyperparameters["power"].default == 1.0
    shapes = Shapes(logits=5, embedding=6, features=((4, 2, 2),))
    loss = build_term(name, TermContext(shapes, shapes, 5, 100, 3), power=2.0)
    outputs = Outputs(torch.randn(3, 5), torch.randn(3, 6), [torch.randn(3, 4, 2, 2)], [])
    value = loss(outputs, outputs, Batch(torch.zeros(3, 3, 8, 8), torch.zeros(3).long(), torch.arange(3)))
    value.backward()
    assert value.shape == ()
    assert loss.project.weight.grad.abs().sum() > 0


def test_every_bundled_suite_is_in_the_table():
    first = [line.split("|")[1] for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    missing = [name for name in bundled_suites() if not any(f"`{name}`" in names for names in first)]
    assert not missing


@pytest.mark.parametrize("name", bundled_suites())
def test_every_bundled_suite_is_valid(name):
    assert load_suite(bundled_suites()[name]).runs
