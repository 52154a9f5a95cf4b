"""The network of the documentation, in a process of its own: validated, trained, reported, and changed."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from kdbench import build_model


PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "own-network.md").read_text(encoding="utf-8")


def block(language, word):
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if word in text]
    return found


@pytest.mark.slow
def test_the_documented_network(kdbench, kdbench_process, tmp_path):
    (tmp_path / "nets.py").write_text(block("python", "SmallNet"))
    suite = yaml.safe_load(block("yaml", "grid:"))
    suite["dataset"] = {"name": "digits", "train_per_class": 4, "test_per_class": 2}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(suite))
    valid = kdbench_process("validate", "own.yaml")
    assert (valid.returncode, valid.stdout) == (0, "own.yaml: 10 table entries, 10 runs. No problem found.\n")
    done = kdbench_process("run", "own.yaml", "--devices", "cpu", "--jobs-per-device", 1)
    assert done.returncode == 0, done.stderr
    header = next(line for line in done.stdout.splitlines() if line.startswith("method"))
    assert re.split(" {2,}", header)[1:] == [
        "timm:resnet10t → small",
        "timm:resnet10t → torchvision:shufflenet_v2_x0_5",
    ]
    assert "0 runs to do in 0 cohorts, 10 settled already" in kdbench("plan", "own.yaml").stdout
    assert "→ small" in kdbench("report", "own.yaml", "--format", "html").stdout
    page = kdbench("show", "nets:SmallNet", "--results", "nowhere")
    assert page.returncode != 0  # a module is looked for beside a suite
    (tmp_path / "nets.py").write_text(block("python", "SmallNet").replace("16", "17"))
    assert "nets:SmallNet has changed since 5 finished runs: not reused." in kdbench("plan", "own.yaml").stdout


@pytest.mark.slow
def test_code_that_ends_its_process(kdbench, tmp_path):
    (tmp_path / "deadly.py").write_text("import os\n\n\ndef net(classes):\n    os._exit(7)\n")
    (tmp_path / "nets.py").write_text(block("python", "SmallNet"))
    (tmp_path / "own.yaml").write_text(
        "protocol: smoke\ndataset: digits\nnetworks: {good: nets:SmallNet, bad: deadly:net}\n"
        "grid: {teacher: resnet8, student: [good, bad], method: kd}\n"
    )
    done = kdbench("validate", "own.yaml")
    assert done.returncode == 2
    assert "own.yaml:3  networks.bad: bad cannot be built: its code ends the process (exit code 7)" in done.stderr
    assert "1 problem" in done.stderr


@pytest.mark.slow
def test_a_network_of_a_library_in_full(kdbench):
    page = kdbench("show", "vit-tiny-32").stdout
    assert "f4: 192 channels at 1/4, blocks.11" in page
    assert "Takes images of 32 × 32 pixels only" in page
    wrong = kdbench("show", "timm:resnet18x")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "timm has no network 'resnet18x'. Did you mean 'timm:resnet18'?" in wrong.stderr


@pytest.mark.slow
def test_weights_of_a_network_of_a_library(kdbench, one_process, tmp_path):
    network = build_model("timm:resnet10t", classes=10)
    torch.save(network.net.state_dict(), tmp_path / "mine.pth")
    done = kdbench("teachers", "import", "mine.pth", "--network", "timm:resnet10t", "--dataset", "digits")
    assert "timm:resnet10t (file weights) on digits, top-1 " in done.stdout, done.stderr
    (line,) = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("mine:")]
    suite = (
        f"protocol: smoke\ndataset: digits\nteachers: {{{line}}}\ngrid: {{teacher: mine, student: resnet8, method: kd}}"
    )
    (tmp_path / "suite.yaml").write_text(suite)
    assert "Teachers to train: none; 1 at hand." in kdbench("plan", "suite.yaml").stdout
    measured = kdbench("evaluate", "mine.pth", "--network", "timm:resnet10t", "--dataset", "digits", "--json")
    assert json.loads(measured.stdout)["images"] == 797
