"""kdbench slurm: what it refuses, how its script acts where Slurm's commands are made up, and an array in a real Slurm."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

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
        (["--devices", "gpu"], "--devices gpu: write auto, cpu, or GPU numbers"),
        (["--cluster", "2", "--devices", "0"], "--devices 0: with --cluster write auto or cpu"),
        (["--cluster", "2", "--devices-per-run", "2", "--jobs-per-device", "2"], "--jobs-per-device 2: runs that take"),
        (["--cluster", "2", "--array", "2"], "--array and --cluster exclude each other"),
        (["--devices-per-run", "half"], "--devices-per-run half: "),
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


def test_the_script_of_a_ray_cluster(kdbench, suite_file, tmp_path):
    """Its nodes get what a task would get, and one run is told where they are."""
    options = ["--cluster", 4, "--gpus-per-task", 2, "--cpus-per-task", 8, "--devices-per-run", 2, "--results", "my 5%"]
    assert kdbench("slurm", "own.yaml", *options, "-o", "job.sh").returncode == 0
    script = (tmp_path / "job.sh").read_text()
    shape = {"nodes=4", "ntasks-per-node=1", "gpus-per-node=2", "cpus-per-task=8"}
    assert {f"#SBATCH --{option}" for option in shape} <= {*script.splitlines()}
    assert f"--output='{tmp_path}/my 5%%/logs/ray-%j.log'" in script
    assert "start_ray 3 1 " in script
    assert f" -m kdbench run {suite_file} --results '{tmp_path}/my 5%' " in script
    assert ' --devices-per-run 2 --cluster "$address" &\n' in script
    subprocess.run(["bash", "-n", "job.sh"], cwd=tmp_path, check=True)


def test_tasks_get_the_options_of_run(kdbench, suite_file):
    """All that say how to train; the others show something, or are of one machine alone."""
    passed = ["--devices", "0,1", "--jobs-per-device", "2", "--devices-per-run", "2", "--download", "--retry-diverged"]
    passed += ["--checkpoint-seconds", "60.0", "--deterministic", "--eager", "--cache-outputs", "never"]
    script = kdbench("slurm", "own.yaml", *passed).stdout
    (run,) = (line for line in script.splitlines() if line.endswith(" &"))
    words = {word for word in run.split() if word.startswith("--")}
    known = set(re.findall(r"--[a-z-]+", kdbench("run", "--help").stdout))
    assert words >= {word for word in passed if word.startswith("--")}
    assert " --checkpoint-seconds 60.0 " in run
    assert known - words - set(re.findall(r"--[a-z-]+", kdbench("slurm", "--help").stdout)) == {
        "--shard",
        "--dry-run",
        "--track",
        "--quick",
        "--format",
    }


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


DAEMONS = ("munged", "slurmctld", "slurmd")
SUITE = """\
protocol: {base: smoke, epochs: 6}
dataset: {name: digits, train_per_class: 40, test_per_class: 10}
trials: 3
grid:
  - teacher: resnet8
    student: resnet8
    method: [ce, kd]
"""


@pytest.fixture
def slurm(monkeypatch):
    """A Slurm of three nodes with one core each, all on this machine; ``slurm(COMMAND…)`` gives what a command prints."""
    if missing := [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]:
        pytest.skip(f"{', '.join(missing)}: not installed (make test-cluster installs Slurm)")
    if os.geteuid():
        pytest.skip("Slurm's daemons are started as root")
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # munged wants everybody to reach its socket
    (folder / "state").mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    controller, *nodes = free_ports(4)
    host, config = socket.gethostname(), folder / "slurm.conf"
    config.write_text(f"""\
ClusterName=kdbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
KillWait=120
NodeName=n[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{",".join(map(str, nodes))}] CPUs=1
PartitionName=main Nodes=n[1-3] Default=YES State=UP
""")
    monkeypatch.setenv("SLURM_CONF", str(config))
    files = [
        f"--{name}={folder}/munge.{name.partition('-')[0]}"
        for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")
    ]

    def call(*words):
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    commands = [["munged", "--foreground", *files], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", f"n{number}"] for number in (1, 2, 3)]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"daemon-{number}.log").open("w"))
            daemon = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(daemon.terminate)
            if number == 0:
                wait_until((folder / "munge.socket").exists, 20)
        wait_until(lambda: answers(call, "sinfo", "-h", "-o", "%D %t") == "3 idle", 60)
        stack.callback(wait_until, lambda: not call("squeue", "-h"), 60)
        stack.callback(call, "scancel", "--user=root", "--signal=KILL", "--full")
        stack.callback(call, "scancel", "--user=root")
        yield call


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return sorted(each.getsockname()[1] for each in sockets)


def answers(call, *words):
    try:
        return call(*words).strip()
    except subprocess.CalledProcessError:
        return ""


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "took too long"
        time.sleep(0.5)
    return found


def records(results):
    """What does not depend on who trained it when, of all records."""
    names = ("spec.json", "metrics.jsonl", "weights.safetensors", "result.json")
    return {
        str(file.relative_to(results)): file.read_bytes()
        for kind in ("teachers", "runs")
        for name in names
        for file in results.glob(f"{kind}/*/{name}")
    }


def in_training(kdbench):
    """The Slurm jobs that train students, each as often as it trains on a slot."""
    facts = json.loads(kdbench("status", "results", "--json").stdout)
    return [
        process["batch_job"].removeprefix("Slurm job ")
        for process in facts["processes"]
        for job in process["slots"].values()
        if any("#" in network["label"] for network in job["networks"].values())
    ]


def ended(slurm, job):
    facts = dict(word.partition("=")[::2] for word in slurm("scontrol", "show", "job", job, "--oneliner").split())
    return facts["JobState"], facts["Restarts"]


@pytest.mark.slow
def test_an_array_with_a_cancelled_and_a_preempted_task_gives_the_same_records(
    slurm, kdbench, kdbench_process, tmp_path
):
    (tmp_path / "own.yaml").write_text(SUITE)
    options = ["--array", 4, "--gpus-per-task", 0, "--jobs-per-device", 1, "--time", 60, "--submit"]
    job = kdbench("slurm", "own.yaml", *options).stdout.split()[-1]

    cancelled, preempted = wait_until(lambda: len(found := in_training(kdbench)) >= 2 and found[:2], 300)
    said = kdbench("status", "results").stdout
    assert f"Slurm job {cancelled}, own, for " in said
    assert f"Slurm job {preempted}, own, for " in said
    assert "own: 0 of 6 runs done, 6 left" in said
    slurm("scancel", cancelled)
    slurm("scancel", "--signal=TERM", "--batch", preempted)
    wait_until(lambda: not slurm("squeue", "-h"), 400)

    tasks = {task: ended(slurm, task) for task in (f"{job}_{number}" for number in range(1, 5))}
    others = tasks.keys() - {cancelled, preempted}
    assert tasks == {cancelled: ("CANCELLED", "0"), preempted: ("COMPLETED", "1")} | dict.fromkeys(
        others, ("COMPLETED", "0")
    )
    assert "No process at work.\nown: 6 of 6 runs done, 0 left\n" in kdbench("status", "results").stdout
    alone = kdbench_process("run", "own.yaml", "--results", "alone", "--jobs-per-device", 1)
    assert alone.returncode == 0, alone.stderr
    assert records(tmp_path / "results") == records(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (pip install 'kdbench[cluster]')")
def test_a_ray_cluster_in_a_preempted_job_gives_the_same_records(
    slurm, kdbench, kdbench_process, tmp_path, monkeypatch
):
    """A token in the home folder is asked for by Ray's head alone; nodes and driver would not send it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as many as a node has cores
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(64 * "7")
    (tmp_path / "own.yaml").write_text(SUITE)
    job = kdbench("slurm", "own.yaml", "--cluster", 2, "--gpus-per-task", 0, "--trials", 2, "--submit").stdout.split()[
        -1
    ]

    def log():
        return (tmp_path / "results" / "logs" / f"slurm-{job}.log").read_text()

    def on_both_nodes():
        assert slurm("squeue", "-h"), log()
        return in_training(kdbench) == [job] * 2

    wait_until(on_both_nodes, 300)
    slurm("scancel", "--signal=TERM", "--batch", job)
    wait_until(lambda: not slurm("squeue", "-h"), 400)
    assert ended(slurm, job) == ("COMPLETED", "1"), log()
    assert "Stopped. What was trained up to the last checkpoint is saved" in log()
    alone = kdbench_process("run", "own.yaml", "--results", "alone", "--jobs-per-device", 1, "--trials", 2)
    assert alone.returncode == 0, alone.stderr
    assert records(tmp_path / "results") == records(tmp_path / "alone")
