"""A Ray cluster as devices: its nodes are looked at, each slot becomes an actor there, and nodes may come and go.

Ray places the actors and tells which have died; what runs where and when is the scheduler's, as on one machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadInput, NoDevice
from kdbench.execution.devices import MAX_CPU_SLOTS, NO_GPUS, Slot
from kdbench.execution.node import NodeFacts, look_at_node, versions
from kdbench.execution.seats import Node, SeatHandle, alive, last_line, on_node
from kdbench.execution.worker_handle import Inbox, RunOptions
from kdbench.files import write_text
from kdbench.store.store import Store


LOOK_SECONDS = 3.0
"""So often is looked for nodes that have come or gone."""

NODE_SECONDS = 300.0
"""How long a node may take to import torch and to say what it has."""


class Cluster:
    """The slots of a Ray cluster. ``tell`` is called with what the user should know of its nodes.

    Without ``writing`` nothing is put into the results folder to find out which nodes see it.
    """

    def __init__(self, ray: Any, options: RunOptions, tell: Callable[[str], None], *, writing: bool = True) -> None:
        self.ray, self.tell, self.writing = ray, tell, writing
        self.options = replace(
            options,
            results=options.results.resolve(),
            data=options.data.resolve(),
            beside={module: folder.resolve() for module, folder in options.beside.items()},
            images={sha256: _absolute(source) for sha256, source in options.images.items()},
        )
        self.store = Store(self.options.results)
        self.nodes: dict[str, Node] = {}
        self.node_of: dict[str, Node] = {}
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

    def _new_nodes(self) -> list[Node]:
        """The nodes that have come since the last look, all looked at at once. One that cannot be used has no slots."""
        fresh = {id: node for id, node in alive(self.ray).items() if id not in self.nodes}
        if not fresh:
            return []
        with self._token() if self.writing else nullcontext("") as token:
            asked = {id: self._ask(id, token) for id in fresh}
            made = [self._node(id, fresh[id], answer) for id, answer in asked.items()]
        self.nodes |= {node.id: node for node in made}
        self.node_of |= {slot.name: node for node in made for slot in node.slots}
        return made

    @contextmanager
    def _token(self) -> Iterator[str]:
        """The path of a file that the nodes see if they see the results folder."""
        token = self.store.root / f".cluster-{secrets.token_hex(6)}"
        write_text(token, "")
        try:
            yield str(token)
        finally:
            token.unlink(missing_ok=True)

    def _ask(self, id: str, token: str) -> Any:
        paths = [str(path) for path in (*self.options.weights.values(), *self.options.beside.values())]
        paths += [source.path for source in self.options.images.values()]
        paths += [str(self.options.data)] if self.options.data.exists() else []
        look = self.ray.remote(look_at_node).options(num_cpus=0, scheduling_strategy=on_node(self.ray, id))
        return look.remote(token, paths, gpus=self.options.devices != "cpu")

    def _node(self, id: str, node: dict[str, Any], answer: Any) -> Node:
        host = str(node["NodeManagerHostname"])
        name = next(name for name in (host, *(f"{host}-{n}" for n in range(2, 10_000))) if name not in self.names)
        self.names.add(name)
        try:
            facts: NodeFacts = self.ray.get(answer, timeout=NODE_SECONDS)
        except Exception as error:  # whatever its Python says of this kdbench
            self.tell(f"node {name} cannot be used: {last_line(error)}")
            return Node(id, name)
        own = versions()
        apart = [
            f"{what} {facts.versions[what]} (here {own[what]})" for what in own if facts.versions[what] != own[what]
        ]
        if apart:
            self.tell(f"node {name} is not used: it has {', '.join(apart)}; install the same versions there")
            return Node(id, name)
        if facts.missing:
            self.tell(f"node {name} is not used: it lacks {', '.join(facts.missing)}; put them on a shared disk")
            return Node(id, name)
        if not facts.shares_results:
            self.tell(f"node {name} does not see {self.store.root}: its results are sent here as they are made")
        for text in facts.machine.unusable():
            self.tell(f"node {name}: {text}")
        slots = slots_of(name, node["Resources"], facts, self.options)
        return Node(id, name, tuple(slots), facts.shares_results)


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


def _absolute(source: ImageSource) -> ImageSource:
    return replace(source, path=str(Path(source.path).resolve()))


def check_options(options: RunOptions) -> None:
    """Raise BadInput for options that cannot be met on a cluster."""
    if options.devices not in ("auto", "cpu"):
        raise BadInput(f"--devices {options.devices}: with --cluster write auto or cpu; Ray gives out the GPUs")
    if options.devices != "cpu" and (options.jobs_per_device or 1) > 1 and options.devices_per_run not in (None, 1):
        raise BadInput(
            f"--jobs-per-device {options.jobs_per_device}: runs that take several GPUs of a cluster take whole ones, as Ray "
            "may give out two shares of the same. Leave it out, or write --devices-per-run 1"
        )


@contextmanager
def connected(options: RunOptions, tell: Callable[[str], None], *, writing: bool = True) -> Iterator[Cluster]:
    """Connect to the cluster at ``options.cluster``: ``local`` (started here), ``auto`` (the one that runs here), HOST:PORT.

    Raises BadInput where Ray is not installed, or there is no cluster.
    """
    check_options(options)
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    with ExitStack() as stack:
        if options.cluster == "local":
            how["include_dashboard"] = False
            stack.enter_context(_own_token())
        try:
            import ray
            import ray.util.scheduling_strategies
        except ImportError:
            raise BadInput("--cluster needs Ray: pip install 'kdbench[cluster]'") from None
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(options.cluster, **how)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            tokens = "" if "RAY_AUTH_MODE" in os.environ else ". If it asks for a token: export RAY_AUTH_MODE=token"
            raise BadInput(
                f"--cluster {options.cluster}: no Ray cluster can be reached: {last_line(error)}. Write local, auto, or "
                f"HOST:PORT of one that 'ray start --head' has started{tokens}"
            ) from None
        stack.callback(ray.shutdown)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's prints its stack, and gives an exit code of its own
        yield Cluster(ray, options, tell, writing=writing)


@contextmanager
def _own_token() -> Iterator[None]:
    """Let Ray protect what it starts with a token of this process's own.

    Otherwise it leaves one in the home folder: later heads would ask for that, and later nodes and drivers not give it.
    """
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    added = {} if "RAY_AUTH_MODE" in os.environ else {name: own[name] for name in own if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
