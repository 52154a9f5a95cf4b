"""kdbench doctor: what works on this machine, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import typer

from kdbench.cli.options import Data, Results


PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "pydantic", "safetensors", "scikit-learn")

MODULES = {"open_clip_torch": "open_clip", "scikit-learn": "sklearn"}
"""What packages are called in Python, where that is not their name."""


def doctor(results: Results = Path("results"), data: Data = Path("data")) -> None:
    """Check versions, devices, data and permissions: what works here, and what to do about the rest."""
    from kdbench import __version__
    from kdbench.catalogue.commands import command
    from kdbench.catalogue.datasets import datasets
    from kdbench.errors import KdbenchError
    from kdbench.execution.devices import probe
    from kdbench.execution.worker_handle import temporary_folder
    from kdbench.store.store import Store

    problems = 0
    _line(True, f"kdbench {__version__}, Python {platform.python_version()}, {platform.platform()}")
    broken = _not_importable()
    for package in PACKAGES:
        version = _version(package)
        problems += not version
        if not version:
            _line(False, f"{package} is not installed: pip install {package}")
        elif package in broken:
            reason, here = broken[package]
            problems += not here
            use = "kdbench gets round that, other programs cannot" if here else "what needs it fails"
            _line(False, f"{package} {version} cannot be imported ({reason}): {use}", optional=here)
        else:
            _line(True, f"{package} {version}")
    try:
        facts = probe()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = ", ".join(facts["gpus"]) or "none visible" + (
            f" (CUDA_VISIBLE_DEVICES='{visible}')" if visible is not None else ""
        )
        _line(True, f"GPUs: {gpus}; CPU threads: {facts['threads']}; torch built for CUDA {facts['cuda'] or '–'}")
    except KdbenchError as error:
        problems += 1
        _line(False, str(error))
    try:
        temporary_folder()
        for trouble in Store(results).check_writable():
            _line(False, trouble, optional=True)
        _line(True, f"results go to {results.resolve()} ({shutil.disk_usage(results).free / 2**30:,.0f} GiB free)")
    except KdbenchError as error:
        problems += 1
        _line(False, str(error))
    for entry in datasets().values():
        ready = not entry.missing(data)
        todo = command("data", "download" if entry.archives else "status", entry.name, data=data)
        lacking = f"{data / entry.folder} is not there or lacks files: {todo}"
        _line(ready, f"data set {entry.name}: {'ready' if ready else lacking}", optional=True)
    if problems:
        raise typer.Exit(1)


_IMPORTS = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
def reason(module):
    try:
        importlib.import_module(module)
    except BaseException as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
modules = json.loads(sys.argv[1])
found = {module: why for module in modules if (why := reason(module))}
if "torchvision" in found:
    from kdbench.data.vision import import_torchvision
    try:
        import_torchvision()
    except Exception:
        pass
print(json.dumps({module: [why, reason(module) is None] for module, why in found.items()}))
"""


def _not_importable() -> dict[str, tuple[str, bool]]:
    """The packages that are installed but cannot be imported: why, and whether kdbench gets round that."""
    from kdbench.execution.child import interpreter

    modules = {MODULES.get(package, package): package for package in PACKAGES if _version(package)}
    command = [*interpreter(_IMPORTS), json.dumps([*modules])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {}  # torch itself ends the process: the devices' line says so
    return {modules[name]: (why, here) for name, (why, here) in json.loads(done.stdout.splitlines()[-1]).items()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _line(good: bool, text: str, *, optional: bool = False) -> None:
    typer.echo(f"{'ok  ' if good else '–   ' if optional else 'BAD '} {text}")
