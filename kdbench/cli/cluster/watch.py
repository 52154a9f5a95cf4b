"""`kdbench watch`: the live display of runs that go on elsewhere, fed from their heartbeats."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict

from kdbench.cli.cluster.status import Chosen, Folder, chosen_suites, describe_suites
from kdbench.cli.options import Only, Set, Tiny, Trials, say
from kdbench.cli.progress import NetworkProgress, RunProgress
from kdbench.errors import BadInput
from kdbench.planning.plan import make_plan
from kdbench.store.live import JobAt, sightings
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.suite.suite import Suite, measurement_specs, run_specs


LOOK_SECONDS = 2.0
ALL_LOOKS = 15
"""At each so many looks all records that are left are looked up, not only those of networks that were seen in training."""


def watch(
    results: Folder,
    suites: Chosen = None,
    trials: Trials = None,
    only: Only = None,
    settings: Set = None,
    tiny: Tiny = False,
) -> None:
    """Show the progress of what works in a results folder, from any machine that sees it. Ctrl-C leaves it alone."""
    store = Store(results)
    if not results.is_dir():
        raise BadInput(f"{results}: no such results folder")
    chosen = chosen_suites(store, suites, trials, only, settings, tiny=tiny)
    progress = RunProgress(chosen, on_interrupt="stop watching")
    try:
        with closing(progress):
            watcher = Watcher(store, chosen, progress)
            while watcher.look():
                time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        say("The runs go on.")
        return
    say(f"Nothing works any more in {results}.")
    for line in describe_suites(chosen, store, []):
        say(line)


class Watcher:
    """Tells a display what has changed in a store since the last look."""

    def __init__(self, store: Store, suites: Sequence[Suite], progress: RunProgress) -> None:
        plan = make_plan(run_specs(suites), store, measurements=measurement_specs(suites))
        self.store = store
        self.progress = progress
        self.left: dict[str, Record] = {teacher.id: store.teacher(teacher.id) for teacher in plan.teachers}
        self.left |= {run.id: store.run(run.id) for cohort in plan.cohorts for run in cohort.runs}
        self.left |= {spec.id: store.measurement(spec.id) for spec in plan.measurements}
        self.failures = {id: record.failure() for id, record in self.left.items()}
        self.jobs: dict[str, JobAt] = {}
        self.seen: set[str] = set()
        self.looks = 0
        progress.listen("", {"event": "planned", "plan": plan})

    def look(self) -> bool:
        """Look once. Returns whether any process is at work."""
        at_work = [sighting for sighting in sightings(self.store) if sighting.at_work]
        found = [sighting.heartbeat for sighting in at_work]
        if not self.looks and found:
            self.progress.started -= max(each.heartbeat.seconds + each.age for each in at_work)
        jobs = {f"{each.host} {each.pid} {slot}": job for each in found for slot, job in each.slots.items()}
        for slot, job in self.jobs.items():
            if slot not in jobs or jobs[slot].networks.keys() != job.networks.keys():
                self.progress.listen(slot, {"event": "done"})
        for slot, job in jobs.items():
            if slot not in self.progress.slots:
                self._begin(slot, job)
            self._follow(slot, job)
        self.jobs = jobs
        self._settle({id for job in jobs.values() for id in job.networks}, every=not found)
        self.looks += 1
        return bool(found)

    def _begin(self, slot: str, job: JobAt) -> None:
        for id, network in job.networks.items():
            known = self.progress.networks.setdefault(id, NetworkProgress(network.label))
            if not self.looks and network.epochs:  # it was trained so far before anybody watched
                known.reach(asdict(network))
                known.earlier = known.trained
        self.progress.begin(slot, job.title, [*job.networks])
        self.seen.update(job.networks)

    def _follow(self, slot: str, job: JobAt) -> None:
        for id, network in job.networks.items():
            if network.epochs:
                told = {"event": "under way", "id": id, "images_per_second": job.images_per_second}
                self.progress.listen(slot, {**told, **asdict(network)})

    def _settle(self, training: set[str], *, every: bool) -> None:
        """Tell what has been finished or has failed."""
        every = every or self.looks % ALL_LOOKS == 0
        for id, record in [*self.left.items()]:
            if id in training or not (every or id in self.seen):
                continue
            failure = record.failure()
            if record.done():
                last = (result := record.result()) and result.last
                self.progress.listen("", {"event": "finished", "id": id, "top1": last.top1 if last else None})
                del self.left[id]
            elif failure and failure != self.failures[id]:
                self.failures[id] = failure
                self.progress.listen("", {"event": "failed", "id": id, "reason": failure.reason})
