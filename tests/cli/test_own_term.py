"""The term of the documentation, in a package of its own: named by its import path, and announced by an installed package."""

import json
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdbench.cli.app import app


PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "own-loss.md").read_text(encoding="utf-8")
SUITE = """\
protocol: {{base: smoke, epochs: 1, teacher: {{epochs: 1}}}}
dataset: {{name: digits, train_per_class: 4, test_per_class: 2}}
grid:
  - teacher: resnet8x4
    student: resnet8
    {method}
"""


def block(language, word):
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if word in text]
    return found


def write_package(folder):
    """The documented package in a folder."""
    package = folder / "mypackage"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "losses.py").write_text(block("python", "CosineEmbedding"))


@pytest.fixture
def trained(kdbench_process, tmp_path):
    """trained(file, method): trains a suite with this line; the finished run's spec and its last epoch's losses."""

    def run(file, method, **environment):
        file.write_text(SUITE.format(method=method))
        environment = {"CUDA_VISIBLE_DEVICES": "", **environment}
        done = kdbench_process("run", file, "--jobs-per-device", 1, "--devices", "cpu", **environment)
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / "results" / "runs").iterdir()
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        return json.loads((folder / "spec.json").read_text()), json.loads(rows[-1])["terms"]

    return run


@pytest.mark.slow
def test_beside_the_suite(trained, tmp_path):
    """The modules of the folder from which kdbench is started are neither imported nor in anybody's way."""
    (tmp_path / "suites").mkdir()
    file = tmp_path / "suites" / "own.yaml"
    write_package(file.parent)
    for folder in (tmp_path, file.parent):
        for module in ("random", "torch", "tempfile", "json", "tqdm"):
            (folder / f"{module}.py").write_text(f"open({str(tmp_path / 'EXECUTED')!r}, 'w')")
    (file.parent / "kdbench.py").write_text("a checkout of another version")
    spec, losses = trained(file, block("yaml", "CosineEmbedding").strip())
    assert not (tmp_path / "EXECUTED").exists()
    (own,) = [use for use in spec["terms"] if use["name"] != "ce"]
    assert (own["name"], own["weight"]) == ("mypackage.losses:CosineEmbedding", 2.0)
    assert own["hyperparameters"] == {"power": 2.0}
    assert 0 < losses["mypackage_losses:CosineEmbedding"] < 4

    runner = CliRunner()
    (run,) = (tmp_path / "results" / "runs").iterdir()
    kept = tmp_path / "results" / "sources" / own["source_sha256"]
    assert (kept / "mypackage" / "losses.py").read_text() == block("python", "CosineEmbedding")
    shown = runner.invoke(app, ["show", run.name, "--results", str(tmp_path / "results")]).stdout
    assert f'"mypackage.losses:CosineEmbedding": "{kept}"' in shown
    plan = ["plan", str(file), "--results", str(tmp_path / "results")]
    report = runner.invoke(app, ["report", str(file), "--results", str(tmp_path / "results")])
    assert "cosine" in report.stdout, report.stderr
    assert "0 runs to do" in runner.invoke(app, plan).stdout
    losses = file.parent / "mypackage" / "losses.py"
    losses.write_text(losses.read_text().replace("1 - cosine", "2 - cosine"))
    edited = runner.invoke(app, plan).stdout
    assert "1 runs to do" in edited
    changed = "mypackage.losses:CosineEmbedding has changed since 1 finished run: not reused."
    assert changed in edited
    report = ["report", "--results", str(tmp_path / "results")]
    told = runner.invoke(app, [*report, str(file)])
    assert changed in told.stderr
    assert "cosine on resnet8x4 → resnet8: not run" in told.stdout
    file.rename(tmp_path / "copy.yaml")
    for arguments in (report, [*report, str(tmp_path / "copy.yaml")]):
        elsewhere = runner.invoke(app, arguments)
        assert re.search(r"\ncosine +\d", elsewhere.stdout)
    assert "the modules that were beside" in elsewhere.stderr


@pytest.mark.slow
def test_announced_by_an_installed_package(trained, kdbench_process, tmp_path):
    site = tmp_path / "site"
    write_package(site)
    section = block("toml", "kdbench.terms").splitlines()
    (group,) = [line for line in section if line.startswith("[")]
    (entry,) = [line for line in section if line.startswith("cosine")]
    info = site / "mypackage-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n")
    assert group == '[project.entry-points."kdbench.terms"]'
    (info / "entry_points.txt").write_text("[kdbench.terms]\n" + entry.replace('"', "") + "\n")
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    method = "method: {name: mine, terms: {ce: 1, cosine: 2.0}}"
    spec, losses = trained(tmp_path / "own.yaml", method, PYTHONPATH=path)
    assert [use["name"] for use in spec["terms"]] == ["ce", "cosine"]
    assert len(spec["terms"][1]["source_sha256"]) == 64
    assert 0 < losses["cosine"] < 2
    lines = json.loads(kdbench_process("list", "methods", "--json", PYTHONPATH=path).stdout)
    (line,) = [line for line in lines if line["method"] == "cosine"]
    assert (line["reads"], line["time"], line["weights"]) == ("embedding", None, {})
    assert "Angle between" in kdbench_process("show", "cosine", PYTHONPATH=path).stdout
    assert "cosine" in kdbench_process("list", "methods", PYTHONPATH=path).stdout
