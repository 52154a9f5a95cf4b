"""A Ray cluster as devices: its nodes are looked at, each slot becomes an actor there, and nodes may come and go.

Ray places the actors and tells which have died; what runs where and when is the scheduler's, as on one machine.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadInput, KdbenchError, NoDevice
from kdbench.execution.devices import MAX_CPU_SLOTS, NO_GPUS, Slot
from kdbench.execution.jobs import Job
from kdbench.execution.node import Files, Mirror, NodeFacts, Seat, look_at_node, versions
from kdbench.execution.worker_handle import KILL_SECONDS, Inbox, RunOptions
from kdbench.files import write_text
from kdbench.store.lock import Taken
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.suite.specs import Stage


LOOK_SECONDS = 3.0
"""So often is looked for nodes that have come or gone."""

NODE_SECONDS = 300.0
"""How long a node may take to import torch and to say what it has."""


class Cluster:
    """The slots of a Ray cluster. ``tell`` is called with what the user should know of its nodes."""

    def __init__(self, ray: Any, options: RunOptions, tell: Callable[[str], None]) -> None:
        self.ray, self.tell = ray, tell
        self.options = replace(
            options,
            results=options.results.resolve(),
            data=options.data.resolve(),
            beside={module: folder.resolve() for module, folder in options.beside.items()},
            images={sha256: _absolute(source) for sha256, source in options.images.items()},
        )
        self.store = Store(self.options.results)
        self.nodes: dict[str, _Node] = {}
        self.node_of: dict[str, _Node] = {}
        self.names: set[str] = set()
        self.closing = threading.Event()

    def slots(self) -> list[Slot]:
        """The slots of all nodes that can be used. Raises NoDevice where there are none."""
        found = [slot for node in self._new_nodes() for slot in node.slots]
        if not found:
            raise NoDevice("no node of the cluster can be used (ray status lists them)")
        return found

    def start(self, slot: Slot, options: RunOptions, inbox: Inbox) -> SeatHandle:
        """Start a worker on a slot. ``options`` are those of the cluster."""
        return SeatHandle(self.ray, slot, self.options, inbox, self.node_of[slot.name], self.store)

    @contextmanager
    def watched(self, inbox: Inbox) -> Iterator[None]:
        """Tell ``inbox`` of slots that ``joined`` or ``left``, as long as this lasts."""
        thread = threading.Thread(target=self._watch, args=(inbox,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.closing.set()
            thread.join()

    def _watch(self, inbox: Inbox) -> None:
        while not self.closing.wait(LOOK_SECONDS):
            with contextlib.suppress(self.ray.exceptions.RayError, OSError):
                for slot in self._lost_slots():
                    inbox.put((slot.name, {"event": "left", "reason": "its node has left the cluster"}))
                for node in self._new_nodes():
                    for slot in node.slots:
                        inbox.put((slot.name, {"event": "joined", "slot": slot}))

    def _lost_slots(self) -> list[Slot]:
        there = alive(self.ray)
        lost = [node for id, node in self.nodes.items() if id not in there]
        for node in lost:
            del self.nodes[node.id]
        return [slot for node in lost for slot in node.slots]

    def _new_nodes(self) -> list[_Node]:
        """The nodes that have come since the last look, all looked at at once. One that cannot be used has no slots."""
        fresh = {id: node for id, node in alive(self.ray).items() if id not in self.nodes}
        token = self.store.root / f".cluster-{secrets.token_hex(6)}"
        if not fresh:
            return []
        write_text(token, "")
        try:
            asked = {id: self._ask(id, token) for id in fresh}
            made = [self._node(id, fresh[id], answer) for id, answer in asked.items()]
        finally:
            token.unlink(missing_ok=True)
        self.nodes |= {node.id: node for node in made}
        self.node_of |= {slot.name: node for node in made for slot in node.slots}
        return made

    def _ask(self, id: str, token: Path) -> Any:
        paths = [str(path) for path in (*self.options.weights.values(), *self.options.beside.values())]
        paths += [source.path for source in self.options.images.values()]
        paths += [str(self.options.data)] if self.options.data.exists() else []
        look = self.ray.remote(look_at_node).options(num_cpus=0, scheduling_strategy=_on(self.ray, id))
        return look.remote(str(token), paths, gpus=self.options.devices != "cpu")

    def _node(self, id: str, node: dict[str, Any], answer: Any) -> _Node:
        host = str(node["NodeManagerHostname"])
        name = next(name for name in (host, *(f"{host}-{n}" for n in range(2, 10_000))) if name not in self.names)
        self.names.add(name)
        try:
            facts: NodeFacts = self.ray.get(answer, timeout=NODE_SECONDS)
        except Exception as error:  # whatever its Python says of this kdbench
            self.tell(f"node {name} cannot be used: {_last_line(error)}")
            return _Node(id, name)
        own = versions()
        apart = [
            f"{what} {facts.versions[what]} (here {own[what]})" for what in own if facts.versions[what] != own[what]
        ]
        if apart:
            self.tell(f"node {name} is not used: it has {', '.join(apart)}; install the same versions there")
            return _Node(id, name)
        if facts.missing:
            self.tell(f"node {name} is not used: it lacks {', '.join(facts.missing)}; put them on a shared disk")
            return _Node(id, name)
        if not facts.shares_results:
            self.tell(f"node {name} does not see {self.store.root}: its results are sent here as they are made")
        for text in facts.machine.unusable():
            self.tell(f"node {name}: {text}")
        slots = slots_of(name, node["Resources"], facts, self.options)
        return _Node(id, name, tuple(slots), facts.shares_results)


@dataclass(frozen=True)
class _Node:
    """A node of the cluster, by Ray's id for it and a name for the user."""

    id: str
    name: str
    slots: tuple[Slot, ...] = ()
    shares_results: bool = True


def slots_of(name: str, resources: dict[str, float], facts: NodeFacts, options: RunOptions) -> list[Slot]:
    """The slots of a node: of its GPUs, as far as torch can use them, or else of the CPUs that Ray counts there."""
    jobs, usable = options.jobs_per_device or 1, facts.machine.usable
    gpus = usable[: int(resources.get("GPU", 0))] if options.devices != "cpu" else []
    if gpus:
        return [
            Slot(f"{name}:gpu:{n}" + (f".{job}" if jobs > 1 else ""), "gpu", gpu=facts.machine.gpus[n], host=name)
            for job in range(jobs)
            for n in gpus
        ]
    cpus = int(resources.get("CPU", 0))
    jobs = min(cpus, options.jobs_per_device or MAX_CPU_SLOTS)
    return [Slot(f"{name}:cpu:{n}", "cpu", NO_GPUS, cpus // jobs, host=name) for n in range(jobs)]


class SeatHandle:
    """A seat on a node as its holder sees it: what a WorkerHandle is for a worker of this machine.

    On a node that does not see the results folder, the records that a job needs are sent with it, the locks of its own are
    held here meanwhile, and what its worker writes lands here before its events are passed on.
    """

    pid = 0

    def __init__(self, ray: Any, slot: Slot, options: RunOptions, inbox: Inbox, node: _Node, store: Store) -> None:
        self.ray, self.slot, self.inbox, self.node = ray, slot, inbox, node
        self.store = store
        self.mirror = None if node.shares_results else Mirror(store.root)
        self.held = ExitStack()
        self.busy: list[str] = []
        self.needs: list[Stage] = []
        self.closed = False
        share = (
            {"num_gpus": 1 / (options.jobs_per_device or 1), "num_cpus": 0} if slot.gpu else {"num_cpus": slot.threads}
        )
        actor = ray.remote(concurrency_groups={"listening": 1})(Seat).options(
            **share, scheduling_strategy=_on(ray, node.id)
        )
        self.seat = actor.remote(slot, options, shares_results=node.shares_results)
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def send(self, message: dict[str, Any], job: Job | None = None) -> None:
        """Send a job or a request. One that is gone is noticed through its "exit" event."""
        files: Files = {}
        if self.mirror and job:
            message = self._claim(message, job)
            if not any(message.get(part) for part in ("runs", "teacher", "measurement")):
                self._pass_on({"event": "done", "busy": []})
                return
            self.needs = [*job.dependencies.values()]
            files = self._needed(job)
        self.seat.send.remote(message, files)

    def close(self) -> bool:
        """End the worker at once. What it trained since its last checkpoint is lost."""
        self.closed = True
        ended = True
        with contextlib.suppress(self.ray.exceptions.RayError):
            ended = self.ray.get(self.seat.close.remote(), timeout=2 * KILL_SECONDS)
        self.ray.kill(self.seat)
        self.thread.join()
        self.held.close()
        return ended

    def stderr_tail(self) -> str:
        """The end of the worker's log, if its node can still tell."""
        with contextlib.suppress(self.ray.exceptions.RayError):
            return str(self.ray.get(self.seat.stderr_tail.remote(), timeout=KILL_SECONDS))
        return ""

    def _claim(self, message: dict[str, Any], job: Job) -> dict[str, Any]:
        """Lock a job's records, and take what another process is at out of the message."""
        self.busy = []
        for record in self._records(job):
            try:
                self.held.enter_context(record.lock().acquire(timeout=0))
            except Taken:
                self.busy.append(record.id)
        if job.runs:
            runs = [spec for run, spec in zip(job.runs, message["runs"], strict=True) if run.id not in self.busy]
            return {**message, "runs": runs}
        return {**message, "teacher": None, "measurement": None} if self.busy else message

    def _records(self, job: Job) -> list[Record]:
        of = self.store.measurement if job.measurement else self.store.teacher if job.teacher else self.store.run
        return [of(id) for id in job.ids]

    def _needed(self, job: Job) -> Files:
        """The files of a job's own records and of those that it depends on."""
        records = [*self._records(job), *(self.store.record_of(need) for need in job.dependencies.values())]
        return {
            path: content
            for record in records
            for path, content in Mirror(self.store.root).record(record.folder.parent.name, record.id).items()
        }

    def _listen(self) -> None:
        errors = self.ray.exceptions
        try:
            while not self.closed:
                asked = self.seat.events.options(concurrency_group="listening").remote()
                files, events = self.ray.get(asked)
                if self.mirror and files:
                    self.mirror.write(files)
                for event in events:
                    if event["event"] == "done":
                        self.held.close()
                        event["busy"] = [*event.get("busy", ()), *self.busy]
                        if self.mirror and "lost_teacher" in event:
                            self._check_teachers()
                    self._pass_on(event)
        except errors.RayError as error:
            self._pass_on(self._end(error))
        except OSError as error:
            reason = f"{error.strerror or error}: {error.filename or self.store.root}"
            self._pass_on({"event": "done", "error": reason, "fatal": True})
        except KdbenchError as error:
            self._pass_on({"event": "done", "error": str(error), "fatal": True})

    def _check_teachers(self) -> None:
        """Quarantine what the job depends on and is damaged here, too: the node quarantined its copy."""
        for text in self.store.quarantine_damaged_teachers(self.needs):
            self._pass_on({"event": "message", "text": text})

    def _end(self, error: Exception) -> dict[str, Any]:
        """The event for a seat that is gone. Ray may take a moment to find that its whole node is."""
        for _ in range(20):
            if self.node.id not in alive(self.ray):
                return {"event": "left", "reason": "its node is lost"}
            time.sleep(0.3)
        return {"event": "exit", "code": 1, "reason": f"Ray lost the worker: {_last_line(error)}"}

    def _pass_on(self, event: dict[str, Any]) -> None:
        if not self.closed:
            self.inbox.put((self.slot.name, event))


def alive(ray: Any) -> dict[str, dict[str, Any]]:
    """What Ray says of each node that is there, by its id."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _on(ray: Any, node: str) -> Any:
    """Ray's strategy that places something on one node, and nowhere else."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)


def _absolute(source: ImageSource) -> ImageSource:
    return replace(source, path=str(Path(source.path).resolve()))


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def connected(options: RunOptions, tell: Callable[[str], None]) -> Iterator[Cluster]:
    """Connect to the cluster at ``options.cluster``: ``local`` (started here), ``auto`` (the one that runs here), HOST:PORT.

    Raises BadInput where Ray is not installed, or there is no cluster.
    """
    if options.devices not in ("auto", "cpu"):
        raise BadInput(f"--devices {options.devices}: with --cluster write auto or cpu; Ray gives out the GPUs")
    if options.devices_per_run not in (None, 1):
        raise BadInput(
            "--devices-per-run works on the devices of one machine, without --cluster: Ray gives out single GPUs"
        )
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise BadInput("--cluster needs Ray: pip install 'kdbench[cluster]'") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    address = {"local": {"include_dashboard": False}}.get(options.cluster, {"address": options.cluster})
    try:
        ray.init(**address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise BadInput(
            f"--cluster {options.cluster}: no Ray cluster can be reached: {_last_line(error)}. Write local, auto, or "
            "HOST:PORT of one that 'ray start --head' has started"
        ) from None
    try:
        yield Cluster(ray, options, tell)
    finally:
        ray.shutdown()
