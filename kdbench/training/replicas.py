"""The other processes of a job on several devices: the worker starts them, and they end with it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from kdbench.child import exit_reason, interpreter
from kdbench.suite.components import Recipe, usable_devices
from kdbench.training.context import JobContext
from kdbench.training.environment import LostRank, out_of_memory
from kdbench.training.ranks import TIMEOUT, Ranks


END_SECONDS = 60.0
"""How long a process may take to end once its work is done, or once another one has ended too early."""
NEWS_SECONDS = 5.0
"""How long after another process is missed it is known how that ended."""
OUT_OF_MEMORY, BEREFT = 75, 76
"""Exit codes of a process that ran out of memory, and of one that has lost the others."""


@contextmanager
def on_several_devices(job: Mapping[str, Any], recipes: Sequence[Recipe], ctx: JobContext) -> Iterator[JobContext]:
    """Start a process for each further device that a job was given; yields what this one works with in their company.

    job: what these are told to train; all do the same from here on
    recipes: those of its networks; devices among which their batches cannot be divided are left idle

    Where one of them ends too early, this process ends as well, with a message on standard error: the job is then resumed
    from its last checkpoint. Raises OutOfMemoryError where that one ran out of memory, as if it had been this one.
    """
    given = 1 + len(ctx.replicas)
    size = usable_devices(recipes, given)
    if size < given:
        text = f"{size} of {given} devices used: the batches cannot be divided equally among more"
        ctx.emit("message", text=text)
    if size == 1:
        yield ctx
        return
    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder, contextlib.ExitStack() as stack:
        meeting = str(Path(folder) / "ranks")
        stack.callback(Ranks.leave)
        full: queue.Queue[str] = queue.Queue()
        replicas = [
            stack.enter_context(
                _Replica({**ctx.options, **how, "meeting": meeting, "rank": rank, "size": size, "job": dict(job)}, full)
            )
            for rank, how in enumerate(ctx.replicas[: size - 1], 1)
        ]
        try:
            ranks = meet(meeting, 0, size, ctx.device)
            yield replace(ctx, ranks=ranks)
        except LostRank as error:
            with contextlib.suppress(queue.Empty):
                raise torch.OutOfMemoryError(full.get(timeout=NEWS_SECONDS)) from error
            raise
        for replica in replicas:
            replica.expected.set()
        ranks.leave()
        for replica in replicas:
            with contextlib.suppress(subprocess.TimeoutExpired):
                replica.process.wait(END_SECONDS)


def exit_code(error: BaseException) -> int:
    """How a further process ends over an error."""
    if out_of_memory(error):
        return OUT_OF_MEMORY
    return BEREFT if isinstance(error, LostRank) else 1


def meet(meeting: str, rank: int, size: int, device: torch.device) -> Ranks:
    """Meet the other processes, which are on this host, through the file ``meeting`` and the loopback interface."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    store = dist.FileStore(meeting, size)  # type: ignore[attr-defined]
    store.set_timeout(TIMEOUT)
    return Ranks.join(store, rank, size, device)


class _Replica:
    """One further process, killed on leaving; ``expected``: it may end. Into ``full`` it says that it ran out of memory."""

    def __init__(self, options: dict[str, Any], full: queue.Queue[str]) -> None:
        self.name = f"device {options['rank'] + 1} of {options['size']}"
        self.full = full
        self.expected = threading.Event()
        self.process = subprocess.Popen(
            interpreter("from kdbench.training.worker import assist\nassist()"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **options.pop("environment")},
        )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the listener tells of its end
            self.process.stdin.write(json.dumps(options, default=str) + "\n")
            self.process.stdin.flush()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def __enter__(self) -> _Replica:
        return self

    def __exit__(self, *error: object) -> None:
        self.expected.set()
        self.process.kill()
        self.process.wait()
        self.listener.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _listen(self) -> None:
        """Wait for its end. Its output is why it gives up."""
        assert self.process.stdout is not None
        words = self.process.stdout.read().strip()
        code = self.process.wait()
        if self.expected.is_set():
            return
        if code == OUT_OF_MEMORY:
            self.full.put(f"{self.name}: {words}")
        waits = code in (OUT_OF_MEMORY, BEREFT)  # gloo tells this process that the other is gone, NCCL lets it wait
        if not (waits and self.expected.wait(END_SECONDS)):
            reason = f"the process of {self.name} ended ({exit_reason(code)})" + (f": {words}" if words else "")
            print(reason, file=sys.stderr, flush=True)
            os._exit(1)
