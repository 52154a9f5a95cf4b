"""The page on checkpoints as teachers: its commands work as printed, on files such as it names."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from kdbench.models import build


PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "own-checkpoint.md").read_text("utf-8")
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def files(tmp_path):
    """The files that the page names."""
    whole, other, average, hundred = (build("resnet8", classes).state_dict() for classes in (10, 10, 10, 100))
    content = {
        "resnet8": {"model": whole, "best_acc": 97.1},
        "both": {"student": whole, "teacher": other, "state_dict_ema": average},
        "hundred": hundred,
        "backbone": {f"module.encoder_q.{key}": each for key, each in whole.items() if not key.startswith("fc.")},
    }
    for name, each in content.items():
        torch.save(each, tmp_path / f"{name}.pth")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_works(kdbench, one_process, files, command):
    done = kdbench(*shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    (entry,) = yaml.safe_load(done.stdout[done.stdout.index("  teachers:") :])["teachers"].values()
    assert ("fine_tune" in entry) == ("--classes" in command)


def test_a_student_of_the_page_teaches(kdbench, tmp_path, finished):
    (block,) = [each for each in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "run:" in each]
    grid = "protocol: smoke\ndataset: digits\ngrid: {teacher: small, student: resnet8, method: kd}\n"
    (tmp_path / "second.yaml").write_text(block.replace("3fa2c81b90de", f"'{finished.id}'") + grid)
    assert kdbench("validate", "second.yaml").returncode == 0
