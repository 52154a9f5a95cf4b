"""torchvision can be imported also where its compiled operators do not load."""

import subprocess
import sys

import pytest


STUB = """
import sys, types, importlib.abc, importlib.machinery
attempts = []
import torch

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    '''A torchvision whose import needs the operator nms, as the real one does.'''
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "torchvision" else None
    def exec_module(self, module):
        attempts.append(1)
        torch.library.register_fake("torchvision::nms")(lambda *a: None)
        module.ready = True

sys.meta_path.insert(0, Finder())
from kdbench.data.preprocess import import_torchvision
assert import_torchvision().ready
print(len(attempts))
"""


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_installed_torchvision_loads():
    done = python(
        "from kdbench.data.preprocess import import_torchvision as f; v = f(); assert f() is v; print(v.datasets.CIFAR100)"
    )
    assert done.returncode == 0, done.stderr
    assert "CIFAR100" in done.stdout


@pytest.mark.slow
def test_missing_operators_are_declared_and_the_import_tried_again():
    done = python(STUB)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"
