"""The steps of first_hour.sh, which says what they are for. `first_hour.py todo | run STEP | ended STEP CODE | page`"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hour import Hour, Row, Skipped, main, step

from kdbench.files import write_text


ROOT = Path(__file__).parents[1]

BAD_TERM = """\
import torch
from kdbench import Term

class BadIndex(Term):
    def forward(self, student, teacher, batch):
        where = torch.full((len(student.logits), 1), 1000, device=student.logits.device)
        return student.logits.gather(1, where).mean()
"""


@step
def doctor(hour: Hour) -> None:
    """`kdbench doctor` finds no fault."""
    done = subprocess.run([sys.executable, "-m", "kdbench", "doctor"], capture_output=True, text=True, cwd=hour.out)
    hour.expect(done.returncode == 0, f"exit code {done.returncode}: {done.stderr}")
    hour.rows = [{"doctor": line} for line in done.stdout.splitlines() if "data set" not in line]


@step
def tests(hour: Hour) -> None:
    """The CPU's tests of methods, networks and steps pass on this machine."""
    where = ["tests/methods/test_registry.py"] if hour.tiny else ["tests/methods", "tests/models", "tests/training"]
    command = [sys.executable, "-m", "pytest", "-m", "not slow", *where]
    if not hour.tiny:
        command += ["--numprocesses", "auto"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **hidden})
    hour.expect(done.returncode == 0, done.stdout[-1500:])
    hour.rows = [{"pytest": done.stdout.strip().splitlines()[-1]}]


@step
def smoke(hour: Hour) -> None:
    """The suite smoke trains on the device without a failure."""
    hour.train("")


@step
def same_numbers(hour: Hour) -> None:
    """In float32, smoke's first losses are the CPU's within 0.1 %, as graphs and without (crd has other negatives)."""
    hour.train("cpu", "--devices", "cpu")
    hour.train("deterministic", "--deterministic")
    hour.train("eager", "--deterministic", "--eager")
    for name in ("deterministic", "eager"):
        found = loss_differences(hour.results("cpu"), hour.results(name))
        hour.rows += found[:10]
        for row in found:
            alike = row["difference"] <= 1e-3 or "crd" in row["terms"]
            hour.expect(alike, f"{name}, run {row['run']} ({row['terms']}): loss {row['loss']:g}, not {row['first']:g}")


@step
def tf32(hour: Hour) -> None:
    """How far TF32 moves the losses of smoke's first epoch. Needs the steps smoke and same_numbers."""
    found = loss_differences(hour.out / "same_numbers-deterministic", hour.out / "smoke")
    hour.expect(bool(found), "there is nothing to compare: run the steps smoke and same_numbers first")
    hour.rows = found[:10]


def loss_differences(first: Path, second: Path) -> list[Row]:
    """The relative difference of the first epoch's loss for each run of both folders, largest first."""
    from kdbench.store.store import Store

    rows = []
    for record in Store(first).records("runs"):
        metrics = [each.metrics()[:1] for each in (record, Store(second).run(record.id))]
        if not all(metrics):
            continue
        (one,), (two,) = metrics
        rows.append(
            {
                "run": record.id,
                "terms": " + ".join(one["terms"]),
                "first": one["loss"],
                "loss": two["loss"],
                "difference": abs(one["loss"] - two["loss"]) / max(abs(one["loss"]), 1e-12),
            }
        )
    return sorted(rows, key=lambda row: -row["difference"])


@step
def waits(hour: Hour) -> None:
    """No student's step and no teacher's forward makes the host wait for the GPU (torch's sync debug mode)."""
    import device
    from steps import method_names

    hour.rows = [*device.waits(hour.setup(), ("kd", "crd") if hour.tiny else method_names())]
    for row in hour.rows:
        hour.expect(not row.pop("waited"), f"{row['method']}: {row['waits']}")


@step
def launches(hour: Hour) -> None:
    """Kernels (on the CPU: operations) of a step, and the share of time in which the GPU is busy, over 20 steps."""
    import device

    names = ("kd",) if hour.tiny else ("ce", "kd", "vid", "crd", "sskd", "semckd")
    for eager in (True, False) if hour.device == "cuda" else (True,):
        hour.rows += device.launches(hour.setup(steps=2 if hour.tiny else 20, eager=eager), names)


@step
def speed(hour: Hour) -> None:
    """Methods and cohorts over their floor: benchmarks/bench.py."""
    _bench(hour, "cohorts", "methods")


def _bench(hour: Hour, *parts: str) -> None:
    file = hour.out / "bench.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "--device", hour.device, "--output", str(file)]
    command += [
        *(["--quick"] if hour.tiny else []),
        *(["--peer", str(hour.peer)] if hour.peer else []),
        "--only",
        *parts,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    hour.expect(done.returncode == 0, done.stderr[-1500:])
    if done.returncode == 0:
        document = json.loads(file.read_text())
        hour.rows = [{"part": part, **row} for part in parts for row in document["parts"][part]["rows"]]


@step
def layouts(hour: Hour) -> None:
    """A plain training step of each student with channels first and last, in fp32 and bf16."""
    import device

    students = ("resnet8x4", "resnet20", "wrn-16-2", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2")
    hour.rows = [*device.layouts(hour.setup(), ("resnet8", "shufflenetv1") if hour.tiny else students)]


@step
def teacher_batches(hour: Hour) -> None:
    """The teacher's images per second in batches of 64 and 512."""
    import device

    hour.rows = [*device.teacher_batches(hour.setup(), (4, 8) if hour.tiny else (64, 512))]


@step
def graphs(hour: Hour) -> None:
    """What graphs bring: steps of 1, 3 and 9 students, eager, as graphs, and as graphs on streams of their own."""
    hour.gpu_only("CUDA graphs")
    import device

    hour.rows = [*device.graphs(hour.setup(), (1, 3, 9))]


@step
def peer(hour: Hour) -> None:
    """RepDistiller's steps, kdbench's alone, and the cohort."""
    if hour.peer is None:
        raise Skipped("PEER names no checkout of RepDistiller")
    _bench(hour, "peer")


@step
def jobs(hour: Hour) -> None:
    """How long the same runs take with 1, 2 and 3 workers on the device."""
    hour.clear()
    suite = hour.suite(epochs=2 if hour.tiny else 40, trials=2 if hour.tiny else 6)
    for count in ("1", "2") if hour.tiny else ("1", "2", "3"):
        hour.train(count, "--jobs-per-device", count, suite=suite)


@step
def memory(hour: Hour) -> None:
    """Beside a neighbour that has taken the GPU's memory, runs fail with one message each or the slot is given up."""
    hour.gpu_only("memory of its own")
    hour.clear()
    take = "free, _ = torch.cuda.mem_get_info(); held = torch.empty(free - 2**29, dtype=torch.uint8, device='cuda')"
    take = f"import sys, torch; {take}; print('taken', flush=True); sys.stdin.read()"
    neighbour = subprocess.Popen([sys.executable, "-c", take], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        hour.expect(neighbour.stdout.readline() == "taken\n", "the neighbour could not take the memory")
        said = hour.train("", suite=hour.suite(), code=1)
        hour.expect("out of memory" in said.lower(), f"nothing is said of memory: {said[-1500:]}")
    finally:
        neighbour.communicate()
    hour.train("", suite=hour.suite())


@step
def bad_index(hour: Hour) -> None:
    """A term that reads outside a tensor, which ends the process on a GPU, costs its own run alone."""
    write_text(hour.out / "bad_term.py", BAD_TERM)
    more = "  - {teacher: resnet8, student: resnet8, method: bad}\nmethods:\n  bad: {'bad_term:BadIndex': 1}\n"
    hour.clear()
    hour.train("", suite=hour.suite(more), code=1)
    hour.expect(hour.rows[-1]["runs"] == 3, f"{hour.rows[-1]['runs']} of the 3 other runs are finished")


@step
def kill(hour: Hour) -> None:
    """A worker that is killed is started again, and the command ends well."""
    with _started(hour) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        _, said = process.communicate()
    hour.expect(process.returncode == 0, f"exit code {process.returncode}: {said[-1500:]}")
    hour.expect("killed by SIGKILL" in said, f"nothing is said of it: {said[-1500:]}")
    hour.rows.append({"what": "killed", "workers": len(children), "exit code": process.returncode})


@step
def interrupt(hour: Hour) -> None:
    """Ctrl-C saves and ends with 130, and the same command resumes."""
    with _started(hour) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    hour.expect(process.returncode == 130, f"exit code {process.returncode}, not 130: {said[-1500:]}")
    said = hour.train("", suite=hour.suite(epochs=20))
    hour.expect("resumes after" in said, f"it does not resume: {said[-1500:]}")


@contextlib.contextmanager
def _started(hour: Hour) -> Iterator[subprocess.Popen[str]]:
    """A command that has trained the first epochs of a student, and has others before it."""
    hour.clear()
    command = hour.command("", "--checkpoint-seconds", "0", "--jobs-per-device", "1", suite=hour.suite(epochs=20))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and not list(hour.results().glob("runs/*/metrics.jsonl")):
            time.sleep(0.02)
        yield process
    finally:
        process.kill()


@step
def visible(hour: Hour) -> None:
    """CUDA_VISIBLE_DEVICES is respected when it is empty and when it names a GPU by its UUID."""
    hour.clear()
    suite = hour.suite(epochs=2)
    wanted = {"": "cpu"}
    if hour.device == "cuda":
        import torch

        wanted[f"GPU-{torch.cuda.get_device_properties(0).uuid}"] = "gpu"
    for value, kind in wanted.items():
        hour.train(kind, "--devices", "auto", suite=suite, CUDA_VISIBLE_DEVICES=value)
        metadata = [json.loads(file.read_text()) for file in hour.results(kind).glob("runs/*/metadata.json")]
        kinds = {each["device"]["kind"] for each in metadata}
        hour.expect(kinds == {kind}, f"CUDA_VISIBLE_DEVICES='{value}' trains on {kinds}, not on {kind}")


@step
def bf16(hour: Hour) -> None:
    """A suite under bfloat16 autocast trains without a failure."""
    hour.train("", suite=hour.suite(precision="bf16"))


@step
def files(hour: Hour) -> None:
    """A pass of training over images that stay files."""
    import device

    hour.rows = [*device.files(hour.setup(), 32)]
    hour.expect(hour.rows[0]["failure"] is None, f"it failed: {hour.rows[0]['failure']}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
