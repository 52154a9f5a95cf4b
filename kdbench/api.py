"""The public functions of ``import kdbench``. Heavy imports happen when a function is called."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kdbench.catalogue.text import listed, nearest
from kdbench.errors import BadInput
from kdbench.planning.plan import Caching, Plan, make_plan
from kdbench.store.store import Store
from kdbench.store.suites import ArchivedFiles
from kdbench.suite.load import load_suites
from kdbench.suite.suite import Run, Suite, measurement_specs, run_specs


if TYPE_CHECKING:
    import pandas as pd

    from kdbench.deployment.evaluate import Evaluation
    from kdbench.reporting.report import Report
    from kdbench.training.build import Student


AnyChoice = TypeVar("AnyChoice", bound=StrEnum)
AnyPath = str | Path
AnySuites = str | Path | Suite | Sequence[str | Path | Suite]
"""One suite or several: a bundled suite's name, the path of a suite file, or a loaded suite."""


def load_suite(suite: AnyPath, *, trials: int | None = None, tiny: bool = False) -> Suite:
    """Load and validate a suite.

    suite:  a bundled suite's name, or the path of a suite file
    trials: the trials of each run, instead of the suite's number
    tiny:   the tiny counterpart: the whole grid on a few digits, with one trial of one epoch

    Raises BadSuite (a BadInput) with every problem of the file, each with its line and key.
    """
    (loaded,) = _load([suite], trials=trials, tiny=tiny)
    return loaded


def plan(suites: AnySuites, results: AnyPath = "results", *, slots: int = 1) -> Plan:
    """Plan what is left to train in a results folder. Nothing is trained or written, and torch is not imported.

    slots: jobs that run at the same time

    ``Plan.teachers`` and ``Plan.cohorts`` are in the order of training; ``Plan.work`` counts what is left, such as
    ``Plan.work.macs``, multiply-accumulates. Raises BadInput for a suite that cannot be used, KdbenchError for a folder that
    cannot be read.
    """
    loaded, store = _load(suites, results), Store(Path(results))
    return make_plan(run_specs(loaded), store, measurements=measurement_specs(loaded)).split_for(slots)


def run(
    suites: AnySuites,
    results: AnyPath = "results",
    *,
    data: AnyPath = "data",
    devices: str = "auto",
    jobs_per_device: int | None = None,
    download: bool = False,
    checkpoint_seconds: float = 30.0,
    retry_diverged: bool = False,
    deterministic: bool = False,
    eager: bool = False,
    cache_outputs: str = "auto",
    progress: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, str]:
    """Train what is missing of suites, in worker processes. Returns the reason of each failure by the id of its record.

    results:            the results folder, made if absent; runs that it holds are not trained again
    data:               the folder of the data sets
    devices:            "auto", "cpu", or GPU numbers such as "0,1"
    jobs_per_device:    workers that share a device; default: 1 on a GPU, one per core, at most 4, on a CPU
    download:           fetch missing data sets and published weights
    checkpoint_seconds: save a checkpoint when the last one is this old
    retry_diverged:     train runs again whose loss diverged
    deterministic:      on a GPU: the same bits each time, in float32 throughout, more slowly
    eager:              on a GPU: launch kernel by kernel, instead of replaying steps as graphs
    cache_outputs:      "always", "never" or "auto": keep a frozen teacher's outputs for all crops of the training images on
                        disk, for methods that read no maps; auto: where that saves a tenth of the time and fills at most
                        half of the free space
    progress:           called in this process with the slot ("cpu:0", or "" for none) and an event, a dict whose "event" is
                        "planned", "started", "epoch" (with "id", "epoch", "loss" and "top1" in %), "finished", "failed" (with
                        "reason"), "message" (with "text"), …

    Kill the process at any time; the same call resumes. Raises BadInput before anything starts, Interrupted after Ctrl-C,
    and KdbenchError where the results cannot be saved or no device can be used.
    """
    from kdbench.execution.runner import run_suites
    from kdbench.execution.worker_handle import RunOptions

    options = RunOptions(
        Path(results),
        Path(data),
        devices,
        jobs_per_device,
        download,
        checkpoint_seconds,
        retry_diverged=retry_diverged,
        deterministic=deterministic,
        eager=eager,
        caching=_choice("cache_outputs", cache_outputs, Caching),
    )
    return run_suites(_load(suites, results), options, progress or (lambda slot, event: None))


def results(folder: AnyPath, suites: AnySuites) -> pd.DataFrame:
    """Every value of suites in a results folder, one row per run (or teacher, or measurement) and metric.

    Columns: suite, paper, protocol, method, teacher, student, dataset, strategy, setting, metric, trial, value (float, NaN if
    there is none; accuracies in %), run_id, status ("done", "failed", "started" or "missing"), reason, version, score (the
    "last" or the "best" epoch), trained_on, terms (JSON).

    Raises BadInput for a folder or suite that does not exist, BadRecord for a damaged record.
    """
    from kdbench.reporting.observations import observations

    return observations(_load(suites, folder), [_existing(folder)])


def tables(folder: AnyPath, suites: AnySuites) -> dict[str, pd.DataFrame]:
    """The tables of suites as DataFrames, by title; those of the papers by their id, such as "ega-1".

    One row per cell: method, teacher and student (a paper's table: cell), mean and sd in % over n of the planned trials,
    note, published, published_sd, difference (mean - published) and verdict. Raises what ``results`` raises.
    """
    return _report(folder, suites).frames()


def report(
    folder: AnyPath,
    suites: AnySuites,
    format: str = "markdown",
    *,
    view: str = "both",
    statistics: bool = False,
    baseline: str | None = None,
) -> str:
    """The tables of suites as text.

    format:     "terminal", "markdown", "latex", "csv", "json" or "html"
    view:       what the cells show: "measured", "published", "both", "difference" or "verdict"
    statistics: add paired tests of all methods with the baseline, Holm-corrected, and the methods' ranks
    baseline:   the method to compare with; default: kd, else ce

    Raises BadInput for another format, view or baseline, and what ``results`` raises.
    """
    from kdbench.reporting.options import Format, ReportOptions, View
    from kdbench.reporting.writers import write_report

    chosen = _choice("format", format, Format)
    options = ReportOptions(view=_choice("view", view, View), statistics=statistics, baseline=baseline)
    return write_report(_report(folder, suites), chosen, options)


def load_student(run: str | Run, results: AnyPath = "results", data: AnyPath = "data", device: str = "cpu") -> Student:
    """Load the trained student of a finished run.

    run:  a run's id (column ``run_id`` of ``results``) or a run of a suite
    data: the folder of the data sets, for class names that are the names of its folders

    The module is in eval mode. It takes images [B, 3, H, W] (uint8, or float from 0 to 1), resizes and normalises them as in
    its test, and returns Outputs; ``class_names``, ``size``, ``mean`` and ``std`` say how.

    Raises BadInput for an unknown or unfinished run, BadRecord where the weights are damaged or were not kept.
    """
    from kdbench.training.build import load

    return load(run if isinstance(run, str) else run.id, _existing(results), Path(data), device)


def evaluate(run: str | Run, results: AnyPath = "results", data: AnyPath = "data", device: str = "auto") -> Evaluation:
    """Measure the student of a finished run, or a teacher, on the test images of its own data set.

    run:    a run's or teacher's id, or how it begins, or a run of a suite
    data:   the folder of the data sets
    device: where it is measured: "cpu", "cuda" or "cuda:NUMBER"; "auto": on the first GPU, if there is one

    Accuracies are in %, the calibration error is between 0 and 1, latencies are in milliseconds. Raises BadInput for an
    unknown or unfinished network, missing data or another device, BadRecord where weights are damaged or were not kept.
    """
    from kdbench.deployment.evaluate import evaluate as measure
    from kdbench.deployment.evaluate import usable_device
    from kdbench.deployment.finished import find_network

    on = usable_device(device)
    id = run if isinstance(run, str) else run.id
    return measure(find_network(id, _existing(results), Path(data), on), Path(data), on)


def export(
    run: str | Run,
    folder: AnyPath,
    formats: Sequence[str] = (),
    results: AnyPath = "results",
    data: AnyPath = "data",
) -> list[str]:
    """Write the student of a finished run, or a teacher, into a new folder that is used without kdbench.

    run:     a run's or teacher's id, or how it begins, or a run of a suite
    folder:  new or empty; it is written whole or not at all
    formats: files beside the weights, their Python source and the model card: "torchscript", "pt2", "onnx"
    data:    the folder of the data sets, for class names that are the names of its folders

    Returns the names of the files. Raises BadInput for an unknown or unfinished network, another folder or format, BadRecord
    where weights are damaged or were not kept, KdbenchError where a written file does not give the network's logits.
    """
    import torch

    from kdbench.deployment.export import export as write
    from kdbench.deployment.finished import find_network

    id = run if isinstance(run, str) else run.id
    found = find_network(id, _existing(results), Path(data), torch.device("cpu"))
    return write(found, Path(folder), Path(data), formats)


def _load(
    suites: AnySuites, results: AnyPath = "results", *, trials: int | None = None, tiny: bool = False
) -> list[Suite]:
    """The suites; missing weight files and modules are taken from the copies archived with the results."""
    given = [suites] if isinstance(suites, str | Path | Suite) else list(suites)
    store = Store(Path(results))
    archived = ArchivedFiles([store])
    loaded: list[Suite] = []
    for suite in given:
        loaded += (
            [suite] if isinstance(suite, Suite) else load_suites([str(suite)], trials, tiny=tiny, known=archived.tell)
        )
    for message in filter(None, [*archived.messages, store.outdated()]):
        warnings.warn(message, stacklevel=3)
    return loaded


def _choice(key: str, value: str, choices: type[AnyChoice]) -> AnyChoice:
    if value in list(choices):
        return choices(value)
    near = nearest(value, list(choices))
    raise BadInput(f"{key} '{value}': " + (f"did you mean '{near}'?" if near else f"choose {listed(list(choices))}"))


def _existing(folder: AnyPath) -> Store:
    if not Path(folder).is_dir():
        raise BadInput(f"{folder}: no such results folder")
    return Store(Path(folder))


def _report(folder: AnyPath, suites: AnySuites) -> Report:
    from kdbench.reporting.report import measured_report

    return measured_report(_load(suites, folder), [_existing(folder)])
