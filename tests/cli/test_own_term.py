"""The term of the README, in a package of its own: named by its import path, and announced by an installed package."""

import json
import os
import re
from pathlib import Path

import pytest


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SUITE = """\
protocol: {{base: smoke, epochs: 1, teacher: {{epochs: 1}}}}
dataset: {{name: digits, train_per_class: 4, test_per_class: 2}}
grid:
  - teacher: resnet8x4
    student: resnet8
    {method}
"""


def block(language, word):
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in text]
    return found


@pytest.fixture
def site(tmp_path):
    """A folder on PYTHONPATH that holds the README's package."""
    package = tmp_path / "site" / "mypackage"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "losses.py").write_text(block("python", "CosineEmbedding"))
    return package.parent


@pytest.fixture
def trained(kdbench_process, tmp_path, site):
    """trained(method): trains a suite with this line; the finished run's spec and its last epoch's losses."""

    def run(method):
        (tmp_path / "own.yaml").write_text(SUITE.format(method=method))
        path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
        done = kdbench_process("run", "own.yaml", "--jobs-per-device", 1, PYTHONPATH=path, CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / "results" / "runs").iterdir()
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        return json.loads((folder / "spec.json").read_text()), json.loads(rows[-1])["terms"]

    return run


def test_by_its_import_path(trained):
    spec, losses = trained(block("yaml", "CosineEmbedding").strip())
    (own,) = [use for use in spec["terms"] if use["name"] != "ce"]
    assert (own["name"], own["weight"]) == ("mypackage.losses:CosineEmbedding", 2.0)
    assert own["hyperparameters"] == {"power": 2.0}
    assert 0 < losses["mypackage_losses:CosineEmbedding"] < 4


def test_announced_by_an_installed_package(trained, kdbench_process, site):
    section = block("toml", "kdbench.terms").splitlines()
    (group,) = [line for line in section if line.startswith("[")]
    (entry,) = [line for line in section if line.startswith("cosine")]
    info = site / "mypackage-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n")
    assert group == '[project.entry-points."kdbench.terms"]'
    (info / "entry_points.txt").write_text("[kdbench.terms]\n" + entry.replace('"', "") + "\n")
    spec, losses = trained("method: {name: mine, terms: {ce: 1, cosine: 2.0}}")
    assert [use["name"] for use in spec["terms"]] == ["ce", "cosine"]
    assert 0 < losses["cosine"] < 2
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    lines = json.loads(kdbench_process("list", "methods", "--json", PYTHONPATH=path).stdout)
    (line,) = [line for line in lines if line["method"] == "cosine"]
    assert (line["reads"], line["time"], line["weights"]) == ("embedding", None, {})
    assert "Angle between" in kdbench_process("show", "cosine", PYTHONPATH=path).stdout
    assert "cosine" in kdbench_process("list", "methods", PYTHONPATH=path).stdout
