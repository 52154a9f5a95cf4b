"""Curves in TensorBoard, Weights & Biases or MLflow: `kdbench export-logs` afterwards, `kdbench run --track` meanwhile."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from kdbench.errors import BadInput, message_of
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.suite.specs import Stage, stage_label
from kdbench.suite.suite import Run, Suite


class Tool(StrEnum):
    """What shows curves; each is an extra of the same name."""

    tensorboard = "tensorboard"
    wandb = "wandb"
    mlflow = "mlflow"


@dataclass(frozen=True)
class Curve:
    """Whose curve it is: a run's or a teacher's id and label, and what tells it from others."""

    id: str
    name: str
    settings: dict[str, str | int] = field(compare=False)


class Tracker(Protocol):
    """A tool that curves are handed to, several at the same time."""

    def log(self, curve: Curve, epoch: int, values: Mapping[str, float]) -> None:
        """One epoch of a curve."""

    def end(self, curve: Curve, *, failed: bool = False) -> None:
        """A curve ends here."""

    def close(self) -> None:
        """No more curves come."""


class TensorBoard:
    """A folder of event files for each curve."""

    def __init__(self, folder: Path, live: bool) -> None:
        from tensorboard.summary import Writer

        self.folder, self.writer = folder, Writer
        self.writers: dict[Curve, Any] = {}

    def log(self, curve: Curve, epoch: int, values: Mapping[str, float]) -> None:
        """Write the epoch's scalars."""
        if curve not in self.writers:
            name = re.sub(r"[^\w.#+-]+", "-", curve.name).strip("-")
            make: Any = self.writer
            self.writers[curve] = make(str(self.folder / f"{name}-{curve.id}"))
        for name, value in values.items():
            self.writers[curve].add_scalar(name, value, epoch)
        self.writers[curve].flush()

    def end(self, curve: Curve, *, failed: bool = False) -> None:
        """Close the file."""
        if writer := self.writers.pop(curve, None):
            writer.close()

    def close(self) -> None:
        """Close all files."""
        for curve in [*self.writers]:
            self.end(curve)


class Wandb:
    """A run of the project kdbench for each curve; live as the user's settings of wandb say, afterwards offline."""

    def __init__(self, folder: Path, live: bool) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.library, self.folder, self.mode = wandb, folder, None if live else "offline"
        self.runs: dict[Curve, Any] = {}

    def log(self, curve: Curve, epoch: int, values: Mapping[str, float]) -> None:
        """Log the epoch; it is a value, for initial epochs are not positive."""
        if curve not in self.runs:
            self.runs[curve] = self.library.init(
                project="kdbench",
                id=curve.id,
                name=curve.name,
                config=curve.settings,
                dir=str(self.folder),
                mode=self.mode,
                resume="allow",
                reinit="create_new",
                settings=self.library.Settings(silent=True, console="off"),
            )
        self.runs[curve].log({"epoch": epoch, **values})

    def end(self, curve: Curve, *, failed: bool = False) -> None:
        """Finish the run."""
        if run := self.runs.pop(curve, None):
            run.finish(exit_code=int(failed))

    def close(self) -> None:
        """Finish all runs."""
        for curve in [*self.runs]:
            self.end(curve, failed=True)


class MLflow:
    """A run of the experiment kdbench for each curve, in a folder, or live where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, live: bool) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        uri = (live and os.environ.get("MLFLOW_TRACKING_URI")) or folder.resolve().as_uri()
        self.client, self.metric, self.param = MlflowClient(uri), Metric, Param
        known = self.client.get_experiment_by_name("kdbench")
        self.experiment = known.experiment_id if known else self.client.create_experiment("kdbench")
        self.runs: dict[Curve, str] = {}

    def log(self, curve: Curve, epoch: int, values: Mapping[str, float]) -> None:
        """Log the epoch's metrics."""
        if curve not in self.runs:
            tags = {"mlflow.runName": curve.name, "kdbench.id": curve.id}
            self.runs[curve] = self.client.create_run(self.experiment, tags=tags).info.run_id
            settings = [self.param(name, str(value)) for name, value in curve.settings.items()]
            self.client.log_batch(self.runs[curve], params=settings)
        metrics = [self.metric(name, value, 0, epoch) for name, value in values.items()]
        self.client.log_batch(self.runs[curve], metrics=metrics)

    def end(self, curve: Curve, *, failed: bool = False) -> None:
        """Finish the run."""
        if run := self.runs.pop(curve, None):
            self.client.set_terminated(run, "FAILED" if failed else "FINISHED")

    def close(self) -> None:
        """Those that have not ended were stopped."""
        for run in self.runs.values():
            self.client.set_terminated(run, "KILLED")
        self.runs.clear()


_TRACKERS: dict[Tool, Callable[[Path, bool], Tracker]] = {
    Tool.tensorboard: TensorBoard,
    Tool.wandb: Wandb,
    Tool.mlflow: MLflow,
}


def open_tracker(tool: Tool, folder: Path, *, live: bool) -> Tracker:
    """A tracker that writes to a folder. Raises BadInput where its library is not installed."""
    try:
        return _TRACKERS[tool](folder, live)
    except ImportError as error:
        raise BadInput(f"{tool} cannot be imported ({error}): pip install 'kdbench[{tool}]'") from None


def curve_of(run: Run) -> Curve:
    """The curve of a suite's run."""
    settings: dict[str, str | int] = {
        "suite": run.suite,
        "protocol": run.protocol.name,
        "dataset": run.spec.dataset.name,
        "teacher": run.teacher,
        "student": str(run.spec.student),
        "method": run.method,
        "strategy": run.strategy,
        "trial": run.spec.trial,
    }
    return Curve(run.id, f"{run.spec.dataset.name}, {run.label}", settings)


def teacher_curve(stage: Stage) -> Curve:
    """The curve of a teacher's stage."""
    label = stage_label(stage)
    return Curve(stage.id, f"teacher {label}", {"teacher": label})


def curves_of(suites: Sequence[Suite]) -> dict[str, Curve]:
    """The curves of suites' teachers and runs, by id."""
    stages = {stage.id: stage for suite in suites for spec in suite.specs.values() for stage in spec.stages}
    runs = {run.id: run for suite in suites for run in suite.runs}
    return {id: teacher_curve(stage) for id, stage in stages.items()} | {id: curve_of(run) for id, run in runs.items()}


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch by name, those of terms as ``terms/NAME``."""
    terms = row.get("terms")
    flat = {name: value for name, value in row.items() if name not in ("epoch", "terms")}
    flat |= {f"terms/{name}": value for name, value in (terms if isinstance(terms, dict) else {}).items()}
    return {name: float(value) for name, value in flat.items() if isinstance(value, int | float)}


class Tracking:
    """Hands what workers report to a tracker. Where that fails, ``say`` tells it once, and the training goes on."""

    def __init__(self, tracker: Tracker, suites: Sequence[Suite], say: Callable[[str], None]) -> None:
        self.tracker: Tracker | None = tracker
        self.say = say
        self.curves = curves_of(suites)

    def listen(self, slot: str, event: dict[str, Any]) -> None:
        """Take an event of a run."""
        curve = self.curves.get(event.get("id", ""))
        if self.tracker is None or curve is None:
            return
        try:
            match event["event"]:
                case "epoch":
                    self.tracker.log(
                        curve,
                        event["epoch"],
                        scalars({name: event.get(name) for name in ("loss", "top1", "images_per_second")}),
                    )
                case "finished" | "failed":
                    self.tracker.end(curve, failed=event["event"] == "failed")
        except Exception as error:  # a tool's own trouble is not the run's
            self.tracker = None
            self.say(f"nothing more is tracked: {message_of(error)}")

    def close(self) -> None:
        """No more events come."""
        if self.tracker is not None:
            self.tracker.close()


def stored_curves(
    suites: Sequence[Suite], stores: Sequence[Store]
) -> Iterator[tuple[Curve, Record, list[dict[str, Any]]]]:
    """The curves of suites with their record and epochs, each from the first folder that has some."""
    for id, curve in curves_of(suites).items():
        for record in (record for store in stores for record in (store.run(id), store.teacher(id))):
            if rows := [row for row in record.metrics() if isinstance(row.get("epoch"), int)]:
                yield curve, record, rows
                break
