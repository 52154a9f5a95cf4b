"""The frame of first_hour.py: what a step works with, how it is run and stored, and the page of all."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tables import markdown

from kdbench.files import write_text


Row = dict[str, Any]

SUITE = """\
protocol: {{base: smoke, epochs: {epochs}, milestones: [], precision: {precision}}}
dataset: {{name: digits, train_per_class: {images}, test_per_class: 4}}
trials: {trials}
grid:
  - teacher: resnet8
    student: resnet8
    method: [ce, kd, at]
{more}"""


class Skipped(Exception):
    """What a step says that does not apply here."""


@dataclass
class Hour:
    """The settings, and what the current step has found: rows for the page, and what is not as it should be.

    The folders of results and the suites that a step writes into OUT begin with its name.
    """

    device: str
    tiny: bool
    out: Path
    peer: Path | None = None
    step: str = ""
    rows: list[Row] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def devices(self) -> str:
        """The value of --devices."""
        return "0" if self.device == "cuda" else "cpu"

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)

    def gpu_only(self, why: str) -> None:
        if self.device != "cuda":
            raise Skipped(f"on a GPU only: {why}")

    def results(self, name: str = "") -> Path:
        """A folder of results of the current step."""
        return self.out / f"{self.step}{name and '-'}{name}"

    def clear(self) -> None:
        """Remove what an earlier try of the step has trained."""
        for folder in (self.results(), *self.out.glob(f"{self.step}-*/")):
            shutil.rmtree(folder, ignore_errors=True)

    def command(self, results: str, *arguments: str, suite: str = "smoke") -> list[str]:
        """The command that trains a suite on the device, if ``arguments`` name no other."""
        where = [] if "--devices" in arguments else ["--devices", self.devices]
        short = ["--tiny", "--only", "method=ce,kd,crd"] if self.tiny and suite == "smoke" else []
        command = [sys.executable, "-m", "kdbench", "run", suite, "--results", str(self.results(results))]
        return [*command, *where, *short, *arguments]

    def train(self, results: str, *arguments: str, suite: str = "smoke", code: int = 0, **environment: str) -> str:
        """Train a suite to its end, which must have this exit code. Returns standard error."""
        started = time.monotonic()
        command = self.command(results, *arguments, suite=suite)
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        self.expect(done.returncode == code, f"exit code {done.returncode}, not {code}: {done.stderr[-1500:]}")
        self.expect("Traceback" not in done.stderr, "a traceback reached the user")
        folder, seconds = self.results(results), round(time.monotonic() - started, 1)
        runs = len(list(folder.glob("runs/*/result.json")))
        self.rows.append({"results": folder.name, "runs": runs, "seconds": seconds, "exit code": done.returncode})
        return done.stderr

    def suite(self, more: str = "", *, epochs: int = 3, trials: int = 1, precision: str = "fp32") -> str:
        """Write a small suite; returns its path."""
        images, path = 4 if self.tiny else 64, self.out / f"{self.step}.yaml"
        write_text(path, SUITE.format(epochs=epochs, images=images, trials=trials, precision=precision, more=more))
        return str(path)

    def setup(self, **changes: Any) -> Any:
        """What the measurements of this process are made with."""
        from steps import Setup

        from kdbench.training.environment import prepare

        small = {"batch": 4, "steps": 1, "repeats": 1} if self.tiny else {}
        return Setup(prepare(self.device, 0), **(small | changes))


Step = Callable[[Hour], None]
STEPS: dict[str, Step] = {}
"""All steps by name, in their order."""


def step(act: Step) -> Step:
    """Register a step; its docstring says what holds where it passes."""
    STEPS[act.__name__] = act
    return act


def passed(hour: Hour, name: str) -> bool:
    """Whether a step has passed, or been left out, at an earlier start of the script."""
    try:
        return json.loads((hour.out / f"{name}.json").read_text())["status"] != "failed"
    except FileNotFoundError:
        return False


def run(hour: Hour, name: str) -> None:
    """Run a step and store what it has found."""
    print(f"{name}: {STEPS[name].__doc__}", flush=True)
    hour.step, started, status = name, time.monotonic(), "passed"
    if passed(hour, name):
        hour.clear()
    try:
        STEPS[name](hour)
    except Skipped as reason:
        status = "left out"
        hour.rows = [{"why": str(reason)}]
    except Exception:
        hour.wrong.append(traceback.format_exc())
    store(hour, name, "failed" if hour.wrong else status, time.monotonic() - started)


def ended(hour: Hour, name: str, code: str) -> None:
    """Store that a step's process has ended before it could say anything."""
    hour.wrong.append("it took too long" if code in ("124", "137") else f"its process has ended with exit code {code}")
    store(hour, name, "failed", 0.0)


def store(hour: Hour, name: str, status: str, seconds: float) -> None:
    print(f"  {status}, {seconds:.0f} s{''.join(f'{chr(10)}  {text}' for text in hour.wrong)}", flush=True)
    found = {"step": name, "status": status, "seconds": round(seconds, 1), "date": str(datetime.date.today())}
    found |= {"device": hour.device, "tiny": hour.tiny, "wrong": hour.wrong, "rows": hour.rows}
    write_text(hour.out / f"{name}.json", json.dumps(found, indent=1) + "\n")


def page(hour: Hour) -> int:
    """Write page.md; returns the exit code."""
    files = {name: hour.out / f"{name}.json" for name in STEPS}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    parts = [f"# The first hour on {'a GPU' if hour.device == 'cuda' else 'the CPU'}\n"]
    parts += ["Tried with tiny settings: the numbers mean nothing.\n"] if hour.tiny else []
    parts.append(
        markdown(
            [
                {"step": name, "": each["status"], "seconds": each["seconds"], "what holds": _doc(name)}
                for name, each in found.items()
            ]
        )
    )
    for name, each in found.items():
        parts.append(f"## {name}: {each['status']}\n\n{_doc(name)}\n")
        parts += [markdown(each["rows"])] if each["rows"] else []
        parts += [f"```\n{text}\n```\n" for text in each["wrong"]]
    write_text(hour.out / "page.md", "\n".join(parts))
    print(hour.out / "page.md")
    return int(any(each["status"] == "failed" for each in found.values()))


def _doc(name: str) -> str:
    return (STEPS[name].__doc__ or "").strip()


def main(arguments: list[str]) -> int:
    """Do what the script asks for; the settings are in the environment."""
    peer = os.environ.get("PEER")
    out = Path(os.environ["OUT"]).resolve()
    hour = Hour(os.environ["DEVICE"], bool(os.environ.get("TINY")), out, Path(peer).resolve() if peer else None)
    match arguments:
        case ["todo"]:
            print(*(name for name in STEPS if not passed(hour, name)))
        case ["run", name] if name in STEPS:
            run(hour, name)
        case ["ended", name, code] if name in STEPS:
            ended(hour, name, code)
        case ["page"]:
            return page(hour)
        case _:
            print(f"{' '.join(arguments)}: a step is one of {', '.join(STEPS)}", file=sys.stderr)
            return 2
    return 0
