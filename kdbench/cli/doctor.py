"""kdbench doctor: what works on this machine, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import typer

from kdbench.cli.options import Data, Results


PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "pydantic", "safetensors", "scikit-learn")


def doctor(results: Results = Path("results"), data: Data = Path("data")) -> None:
    """Check versions, devices, data and permissions: what works here, and what to do about the rest."""
    from kdbench import __version__
    from kdbench.catalogue.datasets import datasets
    from kdbench.errors import KdbenchError
    from kdbench.execution.devices import probe
    from kdbench.execution.worker_handle import temporary_folder
    from kdbench.store.store import Store

    problems = 0
    _line(True, f"kdbench {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        version = _version(package)
        problems += not version
        _line(
            bool(version), f"{package} {version}" if version else f"{package} is not installed: pip install {package}"
        )
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
        todo = f"kdbench data {'download' if entry.archives else 'status'} {entry.name}"
        lacking = f"{data / entry.folder} is not there or lacks files: {todo}"
        _line(ready, f"data set {entry.name}: {'ready' if ready else lacking}", optional=True)
    if problems:
        raise typer.Exit(1)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _line(good: bool, text: str, *, optional: bool = False) -> None:
    typer.echo(f"{'ok  ' if good else '–   ' if optional else 'BAD '} {text}")
