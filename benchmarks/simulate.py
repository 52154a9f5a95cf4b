"""Play the papers' suites on 1 to 1,024 devices: the scheduler of a real run, made-up workers, a clock that jumps.

    python benchmarks/simulate.py [--devices 1 8 64 …] [--on gpu]     the tables of README.md, written there
    python benchmarks/simulate.py --jobs 100000                       planning and scheduling so many runs: time and memory

Efficiency is the ideal time over the makespan. The ideal time is that of the unsplit plan, in which each cohort has one
teacher pass, divided by the devices, which never wait: so repeated passes, start-up, saving, lost work, the absence of
lost devices and idle time all count against it. The bound is the ideal time over the longest chain of jobs that need each
other, if that is longer, each run trained alone on as many devices of a host as are worthwhile: no schedule does better.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tables import markdown, write_part

from kdbench.execution.simulation import Conditions, play
from kdbench.files import write_text
from kdbench.planning.cohorts import Cohort, makespan, tasks
from kdbench.planning.plan import Plan, make_plan
from kdbench.planning.speed import Speed, choose, known_speeds
from kdbench.store.store import Store
from kdbench.suite.load import bundled_suites, load_suites
from kdbench.suite.suite import Suite, measurement_specs, run_specs


README = Path(__file__).parent / "README.md"
NOWHERE = Store(Path("/nowhere"))
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONDITIONS = Conditions(start=20, prepare=15, checkpoint=30, save=0.01, loss=3600, absence=600)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--devices", type=int, nargs="+", default=DEVICES)
    options.add_argument(
        "--on", default="gpu", help="the device whose speed is taken: cpu, gpu, or a measured one's name"
    )
    options.add_argument("--jobs", type=int, help="plan and schedule so many made-up runs instead")
    given = options.parse_args()
    if given.jobs:
        print(markdown([large(given.jobs, slots) for slots in given.devices]))
        return
    speed = choose(known_speeds(NOWHERE), given.on)
    text = README.read_text()
    for part, suites in paper_suites().items():
        plan = make_plan(run_specs(suites), NOWHERE, measurements=measurement_specs(suites))
        rows = list(play_on(plan, given.devices, speed, CONDITIONS))
        print(markdown(rows))
        hours = speed.seconds(plan.work) / 3600
        facts = f"{plan.runs:,} runs, {len(plan.teachers)} stages of teachers, {len(plan.measurements)} measurements; "
        text = write_part(text, part, f"{facts}{hours:,.0f} hours of a device, speed {speed}.", markdown(rows))
    write_text(README, text)


def paper_suites() -> dict[str, list[Suite]]:
    """The suites of the three papers, by the part of the page: those without ImageNet, and all."""
    names = [name for name in bundled_suites() if name.startswith(("ega_", "sskd_", "semckd_"))]
    without = [name for name in names if not name.endswith("imagenet")]
    return {"simulation": load_suites(without), "simulation with ImageNet": load_suites(names)}


def play_on(plan: Plan, counts: tuple[int, ...], speed: Speed, conditions: Conditions) -> Iterator[dict[str, Any]]:
    """One row for each number of devices: with devices that get lost, and the efficiency without."""
    work = speed.seconds(plan.work)
    alone = [Cohort((run,), (work,)) for c in plan.cohorts for run, work in zip(c.runs, c.students, strict=True)]
    quickest = [
        replace(task, seconds=min([task.seconds, *(seconds for _, seconds in task.quicker)]))
        for task in tasks(plan.teachers, alone, speed, conditions.per_host)
    ]
    chain = makespan(quickest, len(quickest))
    for devices in counts:
        ideal = work / devices
        calm = play(plan, devices, speed, replace(conditions, loss=0), devices_per_run=0)
        played = play(plan, devices, speed, conditions, devices_per_run=0)
        yield {
            "devices": f"{devices:,}",
            "ideal, h": f"{ideal / 3600:,.1f}",
            "makespan, h": f"{played.makespan / 3600:,.1f}",
            "efficiency": f"{ideal / played.makespan:.1%}",
            "without losses": f"{ideal / calm.makespan:.1%}",
            "bound": f"{min(1.0, ideal / chain):.1%}",
            "repeated teacher passes": f"{abs(calm.trained / (1 + conditions.save) / work - 1):.1%}",
            "devices lost": f"{played.losses:,}",
            "work lost": f"{played.repeated / work:.2%}",
        }


def large(count: int, devices: int) -> dict[str, Any]:
    """Plan and schedule ``count`` runs: seven pairs of networks and fourteen methods, in as many trials as it takes."""
    once = run_specs(load_suites(["crd_similar"], 1))
    trials = -(-count // len(once))
    specs = [spec.model_copy(update={"trial": trial}) for trial in range(trials) for spec in once][:count]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    plan = make_plan(specs, NOWHERE)
    planned = time.process_time()
    played = play(plan, devices, choose([], "gpu"), CONDITIONS)
    ended = time.process_time()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "runs": f"{plan.runs:,}",
        "devices": f"{devices:,}",
        "planned, s": f"{planned - began:.1f}",
        "split and played, s": f"{ended - planned:.1f}",
        "jobs": f"{played.jobs:,}",
        "memory of the runs, MiB": f"{before / 1024:,.0f}",
        "peak, MiB": f"{after / 1024:,.0f}",
    }


if __name__ == "__main__":
    main()
