"""`kdbench validate`, `verify` and `doctor`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kdbench import __version__
from kdbench.catalogue.datasets import datasets
from kdbench.catalogue.text import command, one_line, printable
from kdbench.child import interpreter
from kdbench.cli.completion import complete_suites
from kdbench.cli.options import Data, Json, Results, Set, Suites
from kdbench.errors import BadInput, BadSuite, KdbenchError, Problem
from kdbench.execution import devices
from kdbench.execution.runner import BF16_CAPABILITY, misfits
from kdbench.execution.worker_handle import temporary_folder
from kdbench.planning.cohorts import auxiliaries_of
from kdbench.planning.plan import all_stages
from kdbench.store.store import Store
from kdbench.store.suites import teaching_runs
from kdbench.store.verify import Verification
from kdbench.store.verify import verify as compare
from kdbench.suite.load import load_suites
from kdbench.suite.suite import Suite


def validate(
    suites: Suites, results: Results = Path("results"), settings: Set = None, json_output: Json = False
) -> None:
    """Check suite files and report every problem at once, with file, line and the nearest right name.

    The results folder is where runs are looked for whose students teach.
    """
    try:
        loaded = load_suites(suites, known=teaching_runs([Store(results)]), settings=settings or ())
        if problems := [problem for suite in loaded for problem in _misfits(suite)]:
            raise BadSuite(problems)
    except BadSuite as error:
        if not json_output:
            raise
        typer.echo(json.dumps({"problems": [problem.__dict__ for problem in error.problems]}, indent=1))
        raise typer.Exit(error.exit_code) from None
    if json_output:
        typer.echo(json.dumps({"problems": []}))
        return
    for suite in loaded:
        text = f"{suite.file}: {len(suite.runs)} table entries, {len(suite.specs)} runs. No problem found."
        typer.echo(printable(text))


def _misfits(suite: Suite) -> Iterator[Problem]:
    """Where a file of weights does not hold the network that the suite takes from it."""
    needs = [need for spec in suite.specs.values() for need in spec.dependencies]
    for message in misfits(needs, suite.weight_files):
        yield Problem(suite.file, 0, "teachers", message)


def verify(
    suites: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SUITE…]", autocompletion=complete_suites, help="Default: every record."),
    ] = None,
    results: Results = Path("results"),
    json_output: Json = False,
) -> None:
    """Compare the files of finished records with their checksums. Exit code 1 if one is damaged."""
    if not results.is_dir():
        raise BadInput(f"{results}: no such results folder")
    store = Store(results)
    print_verification(
        compare(store, ids_of(load_suites(suites, known=teaching_runs([store]))) if suites else None), json_output
    )


def print_verification(checked: Verification, json_output: bool) -> None:
    """Print what was found. Exit code 1 if a record is damaged."""
    if json_output:
        typer.echo(json.dumps(asdict(checked), indent=1))
    else:
        for file in checked.damaged:
            what = f"BAD  {file.kind} {file.id}, {file.label}: {file.problem.removesuffix('.')}. {file.next_step}"
            typer.echo(one_line(what, 2000))
        for note in checked.notes:
            typer.echo(one_line(f"note {note}", 2000))
        records = len({(file.kind, file.id) for file in checked.damaged})
        typer.echo(f"{checked.checked} finished records, {records} damaged.")
    if checked.damaged:
        raise typer.Exit(1)


def ids_of(suites: Sequence[Suite]) -> dict[str, set[str]]:
    """The ids of all that suites need, by kind of record."""
    specs = [spec for suite in suites for spec in suite.specs.values()]
    measured = [measurement.spec for suite in suites for measurement in suite.measurements]
    runs = [run for spec in specs for run in (*auxiliaries_of(spec), spec)]
    runs += [need.source_run for spec in measured for need in spec.dependencies if need.source_run]
    return {
        "teachers": {stage.id for stage in all_stages(specs, measured)},
        "runs": {run.id for run in runs},
        "measurements": {spec.id for spec in measured},
    }


PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "pydantic", "safetensors", "scikit-learn")

MODULES = {"open_clip_torch": "open_clip", "scikit-learn": "sklearn"}
"""Import names of packages that differ from their distribution names."""


def doctor(results: Results = Path("results"), data: Data = Path("data")) -> None:
    """Check versions, devices, data and permissions. Says what works, and how to repair the rest."""
    problems = 0
    _line(True, f"kdbench {__version__}, Python {platform.python_version()}, {platform.platform()}")
    broken = _not_importable()
    for package, version in _versions().items():
        problems += not version
        if not version:
            _line(False, f"{package} is not installed: pip install {package}")
        elif package in broken:
            reason, here = broken[package]
            problems += not here
            use = "kdbench works around it, other programs fail" if here else "what needs it fails"
            _line(False, f"{package} {version} cannot be imported ({reason}): {use}", optional=here)
        else:
            _line(True, f"{package} {version}")
    problems += _check_devices()
    try:
        temporary_folder()
        store = Store(results)
        store.check_writable()
        for trouble in store.leases():
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


def _check_devices() -> int:
    """Print what torch can do with each device; a kernel is run on every GPU. Returns how many problems there are."""
    try:
        machine = devices.query_devices(tried=True)
    except KdbenchError as error:
        _line(False, str(error))
        return 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    setting = f"; CUDA_VISIBLE_DEVICES='{visible}'" if visible is not None else ""
    built = f"torch is built for CUDA {machine.cuda}" if machine.cuda else "torch is built without CUDA"
    built += f", cuDNN {machine.cudnn}" if machine.cudnn else ""
    _line(True, f"CPU threads: {machine.threads}; {built}{setting}")
    for number in machine.usable:
        gpu = machine.gpus[number]
        bf16 = "fp32 and bf16" if gpu.capability >= BF16_CAPABILITY else "fp32 (bf16 needs compute capability 8.0)"
        graphs = f"kernel by kernel ({gpu.eager})" if gpu.eager else "as graphs"
        _line(True, f"GPU {number}: {gpu}, {gpu.memory / 2**30:.0f} GiB, trains in {bf16}; steps are launched {graphs}")
    for text in machine.unusable():
        archs = f" It is built for {', '.join(machine.archs)}." if machine.archs else ""
        _line(False, f"{text}. Install a torch for this GPU and driver.{archs} --devices cpu leaves the GPUs alone")
    if not machine.gpus and machine.absent:
        _line(False, f"no GPU is visible ({machine.trouble}): training uses the CPU, without graphs", optional=True)
    return len(machine.unusable())


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
    from kdbench.data.preprocess import import_torchvision
    try:
        import_torchvision()
    except Exception:
        pass
print(json.dumps({module: [why, reason(module) is None] for module, why in found.items()}))
"""


def _not_importable() -> dict[str, tuple[str, bool]]:
    """Installed packages that fail to import: the reason, and whether kdbench works around it."""
    modules = {MODULES.get(package, package): package for package, version in _versions().items() if version}
    program = [*interpreter(_IMPORTS), json.dumps([*modules])]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        return {}  # torch itself ends the process: the devices' line says so
    return {modules[name]: (why, here) for name, (why, here) in json.loads(done.stdout.splitlines()[-1]).items()}


def _versions() -> dict[str, str]:
    """The version of each package; "" if it is not installed."""
    installed = {package: [*importlib.metadata.distributions(name=package)] for package in PACKAGES}
    return {package: found[0].version if found else "" for package, found in installed.items()}


def _line(good: bool, text: str, *, optional: bool = False) -> None:
    typer.echo(f"{'ok  ' if good else '–   ' if optional else 'BAD '} {text}")
