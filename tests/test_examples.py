"""The example runs from end to end, here with fewer images and epochs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = (
    ("epochs: 12, milestones: [8, 10], teacher: {epochs: 6}", "epochs: 1, milestones: [], teacher: {epochs: 1}"),
    ("train_per_class: 50, test_per_class: 30", "train_per_class: 5, test_per_class: 5"),
)  # fmt: skip


@pytest.mark.slow
def test_the_digits_example(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    file = tmp_path / "examples" / "digits.yaml"
    text = file.read_text()
    for long, short in SHORT:
        assert long in text
        text = text.replace(long, short)
    file.write_text(text)
    command = [sys.executable, str(tmp_path / "examples" / "digits.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 3
    assert "the labels are 0 1 2 3 4 5 6 7 8 9" in done.stdout
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
