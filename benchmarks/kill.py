"""Kill a small suite again and again, and look whether it still ends where it ends undisturbed, byte for byte.

    python benchmarks/kill.py --kills 200 --seed 0

The suite passes through hkd, ft, sskd, a sequential and a simultaneous teacher, probes and similarities. It is trained once
undisturbed. Then, in rounds, it is started in an empty folder, or in a copy of the finished one in which a file is damaged;
worker, parent or both are killed (SIGKILL, sometimes SIGTERM, SIGHUP or SIGINT to the parent) at random moments; then it is
let finish. Every file must be what the undisturbed run has left (but for metadata.json), tables included. Nothing else may
remain but locks and, where something was damaged, what was set aside: the record, and what was made on a teacher. Exit code 1
where that is not so. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


SUITE = """\
name: kill
protocol: {base: smoke, node_embedding: 16}
dataset: {name: digits, train_per_class: 5, test_per_class: 2}
trials: 1
grid:
  - teacher: resnet8
    student: resnet8
    method: [kd, ft, sskd]
    measure:
      probe: {name: digits, train_per_class: 3, test_per_class: 2}
      similarity: {name: digits, test_per_class: 2}
  - teacher: resnet8
    student: mobilenetv2
    method: hkd
  - teacher: resnet8
    student: resnet8
    method: ega
    strategy: [sequential, simultaneous]
    protocol: {base: smoke, node_embedding: 16, teacher_view: own}
"""

DAMAGED = {
    "teachers": ["weights.safetensors", "spec.json", "metrics.jsonl", "result.json"],
    "runs": ["spec.json", "metrics.jsonl", "result.json"],
    "measurements": ["spec.json", "result.json"],
}
"""What `kdbench run` notices. `kdbench verify` is for the rest: the weights of students that nothing reads, and an
auxiliary student whose own students are finished."""

PATIENCE = 300.0
KDBENCH = [sys.executable, "-m", "kdbench"]


class Campaign:
    """Rounds of kills in one folder. ``faults`` are what was found wrong."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.suite = folder / "kill.yaml"
        self.suite.write_text(SUITE)
        self.reference = folder / "reference"
        self.kills: Counter[str] = Counter()
        self.rounds: Counter[str] = Counter()
        self.faults: list[str] = []
        started = time.monotonic()
        process = self.start(self.reference, "30")
        self.tables = process.communicate(timeout=PATIENCE)[0]
        self.length = time.monotonic() - started
        if process.returncode:
            raise SystemExit(f"the undisturbed run has failed:\n{self.error_file(self.reference).read_text()}")
        self.files = contents(self.reference)
        command = [*KDBENCH, "report", str(self.suite), "--results", str(self.reference), "--format", "json"]
        self.report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(f"undisturbed: {self.length:.1f} s, {len(self.files)} files", flush=True)

    def start(self, results: Path, checkpoint_seconds: str) -> subprocess.Popen[str]:
        """Start `kdbench run` on one CPU slot."""
        command = [*KDBENCH, "run", str(self.suite), "--results", str(results)]
        command += ["--devices", "cpu", "--jobs-per-device", "1", "--checkpoint-seconds", checkpoint_seconds]
        with self.error_file(results).open("a") as errors:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)

    def error_file(self, results: Path) -> Path:
        """Where the messages of a folder's runs go."""
        return results.with_name(f"{results.name}.txt")

    def round(self, number: int, kills: int) -> None:
        """Kill several times, let it finish, compare. What went wrong is kept, the rest removed."""
        results = self.folder / f"round-{number}"
        damaged = self.damage(results) if self.random.random() < 0.5 else []
        self.rounds["healing" if damaged else "from nothing"] += 1
        process: subprocess.Popen[str] | None = None
        for _ in range(kills):
            if process is None or process.poll() is not None:
                process = self.start(results, self.random.choice(["0", "0", "0.3", "30"]))
            self.wait(process, results, damaged)
            self.kill(process)
        if process is not None:
            process.communicate(timeout=PATIENCE)
        last = self.start(results, "30")
        tables = last.communicate(timeout=PATIENCE)[0]
        found = [f"exit code {last.returncode}"] if last.returncode else []
        found += ["other tables"] * (tables != self.tables) + compare(contents(results), self.files, damaged)
        self.faults += [f"{results}: {fault}" for fault in found]
        print(f"round {number}: {self.kills.total()} kills, {', '.join(damaged) or 'from nothing'}: "
              f"{'; '.join(found) or 'equal'}", flush=True)  # fmt: skip
        if not found:
            shutil.rmtree(results)
            self.error_file(results).unlink()

    def damage(self, results: Path) -> list[str]:
        """Copy the finished results, and damage one or two files of them. Returns their records."""
        shutil.copytree(self.reference, results)
        damaged = []
        for _ in range(self.random.choice([1, 1, 2])):
            kind = self.random.choice(["teachers", "teachers", "runs", "measurements"])
            records = sorted((results / kind).iterdir())
            record = self.random.choice([each for each in records if kind != "runs" or each.name in self.report])
            file = record / self.random.choice(DAMAGED[kind])
            content = bytearray(file.read_bytes())
            if content and self.random.random() < 0.7:
                content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            else:
                content = content[: len(content) // 2] if content else bytearray(b"{")
            file.write_bytes(content)
            damaged.append(f"{kind}/{record.name}/{file.name}")
        return damaged

    def wait(self, process: subprocess.Popen[str], results: Path, damaged: list[str]) -> None:
        """Wait for a random moment, sometimes the one in which something has just been set aside."""
        until = time.monotonic() + self.random.uniform(0.3, 0.45 * self.length)
        watch = damaged and self.random.random() < 0.5
        while time.monotonic() < until and process.poll() is None:
            if watch and any(results.glob("*/*.damaged-*")):
                time.sleep(self.random.uniform(0.0, 0.05))
                return
            time.sleep(0.005)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Send one signal to worker, parent or both."""
        children = workers(process.pid)
        how = self.random.choice(["worker", "parent", "parent", "both", "both", "SIGTERM", "SIGHUP", "SIGINT"])
        if how == "worker" and not children:
            how = "parent"
        self.kills[how] += 1
        if how in ("worker", "both"):
            for child in children:
                send(child, signal.SIGKILL)
        if how in ("parent", "both"):
            process.kill()
        if how.startswith("SIG"):
            process.send_signal(getattr(signal, how))
        if how != "worker":
            process.communicate(timeout=PATIENCE)
            for child in children:
                wait_for_end(child)


def compare(found: dict[str, bytes], expected: dict[str, bytes], damaged: list[str]) -> list[str]:
    """How the files of a folder differ from those of the undisturbed one."""
    aside = tuple("teachers/" if file.startswith("teachers/") else file.rpartition("/")[0] for file in damaged)
    extra = [name for name in found.keys() - expected.keys() if not (".damaged-" in name and name.startswith(aside))]
    faults = [f"more: {name}" for name in sorted(extra)]
    faults += [f"missing: {name}" for name in sorted(expected.keys() - found.keys())]
    return faults + [
        f"differs: {name}" for name in sorted(expected) if found.get(name, expected[name]) != expected[name]
    ]


def contents(results: Path) -> dict[str, bytes]:
    """All files below a results folder but locks, by name; metadata.json and about.json without their content."""
    files = (path for path in results.rglob("*") if path.is_file() and path.parent.name != "locks")
    return {
        str(path.relative_to(results)): b"" if path.name in ("about.json", "metadata.json") else path.read_bytes()
        for path in files
    }


def workers(parent: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except OSError:
        return []


def send(process: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def wait_for_end(process: int) -> None:
    """Wait until a process is gone. A worker ends by itself when its parent has gone."""
    until = time.monotonic() + PATIENCE
    while Path(f"/proc/{process}").exists():
        if time.monotonic() > until:
            raise SystemExit(f"process {process} does not end")
        time.sleep(0.02)


def main() -> None:
    """Run a campaign and tell what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per-round", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kdbench-kill-"))
    campaign, number = Campaign(folder, options.seed), 0
    while campaign.kills.total() < options.kills:
        number += 1
        campaign.round(number, min(options.per_round, options.kills - campaign.kills.total()))
    counts = ", ".join(f"{count} {how}" for how, count in campaign.kills.most_common())
    print(f"{campaign.kills.total()} kills ({counts}) in {number} rounds ({dict(campaign.rounds)}); "
          f"{len(campaign.faults)} faults")  # fmt: skip
    if campaign.faults:
        print("\n".join(campaign.faults))
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
