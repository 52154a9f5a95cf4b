"""`kdbench slurm`: writes a batch script whose tasks share the runs of suites, or one that starts a Ray cluster for them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kdbench.catalogue.text import command, shell_line, shorten
from kdbench.cli.options import Data, Only, Output, Results, Set, Suites, Tiny, Trials, load, print_text, say
from kdbench.cli.plan import CacheOutputs, DevicesPerRun, parse_devices_per_run
from kdbench.cli.run import (
    CheckpointSeconds,
    Deterministic,
    Devices,
    Download,
    Eager,
    Jobs,
    RetryDiverged,
)
from kdbench.errors import BadInput
from kdbench.execution.cluster import check_options
from kdbench.execution.worker_handle import RunOptions
from kdbench.suite.load import bundled_suites
from kdbench.suite.suite import Suite, devices_per_run
from kdbench.suite.yaml_reader import STDIN


_TIME = r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}"
_NAME = r"[\w.,@+-]+"


def _matching(pattern: str, wanted: str) -> Callable[[str | None], str | None]:
    """What checks the text of an option."""

    def check(text: str | None) -> str | None:
        if text is not None and not re.fullmatch(pattern, text, re.ASCII):
            raise typer.BadParameter(f"{shorten(text)!r}: write {wanted}")
        return text

    return check


def slurm(
    suites: Suites,
    array: Annotated[
        int | None, typer.Option("--array", min=1, max=10_000, help="How many tasks share the work. Default: 1.")
    ] = None,
    cluster: Annotated[
        int | None,
        typer.Option(
            "--cluster",
            min=2,
            max=10_000,
            metavar="NODES",
            help="Instead of an array, one job with a Ray cluster of so many nodes, each with what a task has.",
        ),
    ] = None,
    partition: Annotated[
        str | None, typer.Option("--partition", callback=_matching(_NAME, "a name, or several with commas"))
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            "--time",
            callback=_matching(_TIME, "MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS, such as 24:00:00"),
            help="The limit of a task, which is queued again there.",
        ),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus-per-task", min=0, max=64, help="GPUs of a task.")] = 1,
    cpus: Annotated[int | None, typer.Option("--cpus-per-task", min=1, max=1024, help="Cores of a task.")] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--mem", callback=_matching(r"\d+[KMGT]?", "a number with K, M, G or T"), help="Memory of a task."
        ),
    ] = None,
    account: Annotated[str | None, typer.Option("--account", callback=_matching(_NAME, "a name"))] = None,
    results: Results = Path("results"),
    data: Data = Path("data"),
    devices: Devices = "auto",
    jobs_per_device: Jobs = None,
    per_run: DevicesPerRun = None,
    trials: Trials = None,
    only: Only = None,
    settings: Set = None,
    tiny: Tiny = False,
    download: Download = False,
    retry_diverged: RetryDiverged = False,
    checkpoint_seconds: CheckpointSeconds = RunOptions.checkpoint_seconds,
    deterministic: Deterministic = False,
    eager: Eager = False,
    caching: CacheOutputs = RunOptions.caching,
    output: Output = None,
    submit: Annotated[bool, typer.Option("--submit", help="Give it to sbatch as well.")] = False,
) -> None:
    """Write a Slurm batch script: an array of tasks that share the runs of suites in one results folder, or a Ray cluster.

    A task that reaches its time limit, or gets SIGTERM otherwise, saves and is queued again; it ends when nothing is left.
    """
    if cluster and array:
        raise BadInput("--array and --cluster exclude each other: tasks of their own, or nodes of one job")
    if submit and not shutil.which("sbatch"):
        raise BadInput(
            "--submit: there is no sbatch on this machine. Write the script with -o FILE, and submit it where there is"
        )
    if STDIN in suites:
        raise BadInput("a suite on standard input cannot be read again by the tasks: write it to a file")
    loaded = load(suites, [results], trials, only, tiny=tiny, settings=settings)
    run = [sys.executable, "-m", "kdbench", "run", *_references(loaded)]
    if not re.fullmatch(r"auto|cpu|\d+(,\d+)*", devices, re.ASCII):
        raise BadInput(f"--devices {devices}: write auto, cpu, or GPU numbers such as 0,1")
    several = parse_devices_per_run(per_run)
    if cluster:
        several = devices_per_run(loaded) if several is None else several
        check_options(RunOptions(devices=devices, jobs_per_device=jobs_per_device, devices_per_run=several))
    run += _options(
        {
            "results": os.path.abspath(results),
            "data": os.path.abspath(data),
            "devices": devices if devices != RunOptions.devices else None,
            "jobs-per-device": jobs_per_device,
            "devices-per-run": per_run,
            "trials": trials,
            "only": only,
            "set": settings,
            "tiny": tiny,
            "download": download,
            "retry-diverged": retry_diverged,
            "checkpoint-seconds": checkpoint_seconds if checkpoint_seconds != RunOptions.checkpoint_seconds else None,
            "deterministic": deterministic,
            "eager": eager,
            "cache-outputs": caching.value if caching != RunOptions.caching else None,
        }
    )
    logs = Path(os.path.abspath(results), "logs")
    if re.search(r"[\"\\\n\r]", str(logs)):
        raise BadInput(f"--results {results}: Slurm takes no path with quotes, backslashes or line ends. Name another")
    resources = {
        "partition": partition,
        "account": account,
        "time": time,
        "cpus-per-task": cpus,
        "mem": memory,
    }
    words = _an_array(array or 1, gpus, run) if not cluster else _a_cluster(cluster, gpus, logs, run)
    script = "\n".join(_script(loaded, *words, resources, logs)) + "\n"
    _make_folder(logs)
    if output or not submit:
        print_text(script, output)
    if submit:
        _submit(script)
        say(f"Who works at what: {command('status', str(results))}")


def _options(values: Mapping[str, Any]) -> Iterator[str]:
    """Options as they are typed: those that are None or False are left out, and of several values each is named."""
    for name, value in values.items():
        if value is True:
            yield f"--{name}"
        elif value is not None and value is not False:
            for each in value if isinstance(value, list) else [value]:
                yield from (f"--{name}", str(each))


def _references(suites: Sequence[Suite]) -> Iterator[str]:
    """What names the suites from any folder."""
    bundled = {str(path): name for name, path in bundled_suites().items()}
    yield from (bundled.get(suite.file) or os.path.abspath(suite.file) for suite in suites)


def _script(
    suites: Sequence[Suite], title: str, shape: Mapping[str, Any], body: str, resources: Mapping[str, Any], logs: Path
) -> Iterator[str]:
    """The lines of a batch script; ``title`` says what does the work, ``shape`` what Slurm is to give."""
    names = shorten(", ".join(suite.name for suite in suites), 80)
    options = {
        "job-name": re.sub("[^A-Za-z0-9._-]+", "-", f"kdbench-{suites[0].name}"),
        **shape,
        **resources,
        "output": f'"{_pattern(logs)}/slurm-{"%A_%a" if "array" in shape else "%j"}.log"',
        "open-mode": "append",
    }
    yield "#!/bin/bash"
    yield f"# {title.format(names)}"
    yield from (f"#SBATCH --{name}={value}" for name, value in options.items() if value)
    yield "#SBATCH --requeue"
    yield "# Two minutes before its time is up a task gets SIGTERM: it saves, and is queued again."
    yield "#SBATCH --signal=B:TERM@120"
    yield ""
    yield body
    yield _HANDLING


def _an_array(tasks: int, gpus: int, run: Sequence[str]) -> tuple[str, dict[str, Any], str]:
    """What the script says of equal tasks, asks for, and does."""
    body = f"""\
task="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
{shell_line(run)} &"""
    title = f"{tasks} equal tasks share the runs of {{}}: each takes what no other is at."
    return title, {"array": f"1-{tasks}", "ntasks": 1, "gpus-per-task": gpus}, body


def _a_cluster(nodes: int, gpus: int, logs: Path, run: Sequence[str]) -> tuple[str, dict[str, Any], str]:
    """The same for a Ray cluster, which is started before the run and stopped afterwards."""
    python, log = shell_line(run[:1]), shell_line([f"{_pattern(logs)}/ray-%j.log"])
    body = f"""\
task=$SLURM_JOB_ID
trap 'scontrol requeue "$task"' TERM # nothing is trained yet
trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT

# Ray's head is on this node, the first one, at a port that is free; then come the others.
address=$({python} -c '
import socket, ray.util
with socket.create_server(("", 0)) as free:
    print(ray.util.get_node_ip_address(), free.getsockname()[1], sep=":")')
host=${{address%:*}} port=${{address##*:}}
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$({python} -c 'import secrets; print(secrets.token_hex(32))')
start_ray() {{ # NODES FIRST OPTIONS...
    exec srun --nodes="$1" --ntasks="$1" --relative="$2" --cpu-bind=none --output={log} --open-mode=append \\
        {python} -m ray.scripts.scripts start --block --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus={gpus} "${{@:3}}"
}}
start_ray 1 0 --head --node-ip-address="$host" --port="$port" --include-dashboard=false &
until (: < "/dev/tcp/$host/$port") 2> /dev/null; do
    kill -0 $! || exit 1
    sleep 1
done
start_ray {nodes - 1} 1 --address="$address" &

{shell_line(run)} --cluster "$address" &"""
    title = f"A Ray cluster of {nodes} nodes trains the runs of {{}}."
    return title, {"nodes": nodes, "ntasks-per-node": 1, "gpus-per-node": gpus}, body


def _pattern(logs: Path) -> str:
    """A folder as Slurm takes it in the name of a log."""
    return str(logs).replace("%", "%%")


_HANDLING = """\
run=$!
trap 'trap "" TERM; told=yes; kill -TERM "$run"' TERM
wait "$run"; status=$?
if [ "$told" ]; then wait "$run"; status=$?; fi

# 130: interrupted, with work left; 143: before it had begun. A cancelled task is not running any longer, and stays so.
if [[ "$status" =~ ^(130|143)$ ]] && [ "$(squeue --noheader --jobs="$task" --format=%T)" = RUNNING ]; then
    scontrol requeue "$task"
fi
exit "$status\""""


def _make_folder(logs: Path) -> None:
    """Slurm does not start a task whose log has no folder."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{logs}: cannot be made: {error.strerror or error}. Choose another folder with --results"
        ) from None


def _submit(script: str) -> None:
    done = subprocess.run(["sbatch"], input=script, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadInput(f"sbatch refuses it: {done.stderr.strip() or f'exit code {done.returncode}'}")
    typer.echo(done.stdout.strip())
