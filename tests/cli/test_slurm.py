"""kdbench slurm: what it refuses, and how its script acts in a shell where Slurm's commands are made up."""

import os
import signal
import subprocess
import sys
import time

import pytest


SLURM = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}
"""The last task of an array has the array's own number as its job's: Slurm's commands would take it for all tasks."""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Write programs that stand in for those on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name, *lines):
        file = folder / name
        file.write_text("\n".join(["#!/bin/bash", *lines, ""]))
        file.chmod(0o755)
        return str(file)

    return write


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--time", "1h"], "'1h': write MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS"),
        (["--partition", "my gpus"], "'my gpus': write a name"),
        (["--account", "a\n#SBATCH --array=1-9999"], "write a name"),
        (["--mem", "32 GB"], "'32 GB': write a number with K, M, G or T"),
        (["--results", 'a"b'], "Slurm takes no path with quotes"),
    ],
)
def test_what_slurm_would_not_take_is_refused(kdbench, suite_file, tmp_path, options, said):
    done = kdbench("slurm", "own.yaml", *options)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == [suite_file]


def test_a_suite_must_be_there_when_the_tasks_read_it(kdbench):
    assert "own.yaml  no such file" in kdbench("slurm", "own.yaml").stderr
    assert "write it to a file" in kdbench("slurm", "-").stderr


def test_the_script_names_everything_from_the_root(kdbench, suite_file, tmp_path):
    options = ["--array", 16, "--partition", "gpu,long", "--time", "1-12", "--mem", "32G", "--cpus-per-task", 8]
    chosen = ["--trials", 2, "--only", "method=kd, ce", "--set", "protocol.epochs=3", "--tiny"]
    script = kdbench("slurm", "own.yaml", *options, *chosen, "--results", "my 5%").stdout.splitlines()
    assert {line for line in script if line.startswith("#SBATCH")} == {
        "#SBATCH --job-name=kdbench-own",
        "#SBATCH --array=1-16",
        "#SBATCH --partition=gpu,long",
        "#SBATCH --time=1-12",
        "#SBATCH --ntasks=1",
        "#SBATCH --gpus-per-task=1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=32G",
        f'#SBATCH --output="{tmp_path}/my 5%%/logs/slurm-%A_%a.log"',
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@120",
    }
    (run,) = (line for line in script if line.endswith(" &"))
    assert run == (
        f"{sys.executable} -m kdbench run {suite_file} --results '{tmp_path}/my 5%' --data {tmp_path}/data --trials 2 "
        "--only 'method=kd, ce' --set protocol.epochs=3 --tiny &"
    )
    assert (tmp_path / "my 5%" / "logs").is_dir(), "Slurm starts no task whose log has no folder"


@pytest.mark.parametrize(
    ("signalled", "state", "code", "requeued"),
    [(True, "RUNNING", 130, True), (True, "COMPLETING", 130, False), (False, "RUNNING", 1, False)],
)
def test_an_interrupted_task_saves_and_is_queued_again(
    kdbench, suite_file, tmp_path, monkeypatch, programs, signalled, state, code, requeued
):
    """The run takes its time to save, and must hear of SIGTERM once: a second one may come while it saves."""
    run = ["trap 'echo told >> told; sleep 0.3; kill $!; exit 130' TERM", "sleep 20 &", "touch started", "wait; exit 1"]
    programs("squeue", f'[[ "$@" = *--jobs=17_3* ]] && echo {state}')
    programs("scontrol", 'echo "$@" > requeued')
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", programs("python", *(run if signalled else ["exit 1"])))
        assert kdbench("slurm", "own.yaml", "-o", "job.sh").returncode == 0
    with subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env={**os.environ, **SLURM}) as task:
        while signalled and not (tmp_path / "started").exists():
            time.sleep(0.01)
        for _ in range(2 * signalled):
            task.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert task.wait(timeout=30) == code
    assert not signalled or (tmp_path / "told").read_text() == "told\n"
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 17_3\n"


def test_submit(kdbench, suite_file, programs):
    programs("sbatch", "grep -c array=1-3", "echo Submitted batch job 17")
    done = kdbench("slurm", "own.yaml", "--array", 3, "--submit")
    assert done.stdout == "1\nSubmitted batch job 17\n"
    assert done.stderr == "Who works at what: kdbench status results\n"
    programs("sbatch", "echo invalid partition >&2", "exit 1")
    done = kdbench("slurm", "own.yaml", "--submit")
    assert (done.returncode, done.stderr) == (2, "sbatch refuses it: invalid partition\n")


def test_submit_without_slurm(kdbench, suite_file, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = kdbench("slurm", "own.yaml", "--submit")
    assert done.returncode == 2
    assert "there is no sbatch on this machine" in done.stderr
