"""Frees space in a results folder: finds what nothing needs any more, and removes it under the lock that guards it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from kdbench.errors import KdbenchError
from kdbench.files import remove_folder, write_json
from kdbench.store.exchange import basis
from kdbench.store.liveness import process_state
from kdbench.store.lock import Lock, Taken
from kdbench.store.merge import MERGING
from kdbench.store.packs import UNPACKED
from kdbench.store.record import NO_WEIGHTS, Record
from kdbench.store.store import KINDS, Store, parent_here
from kdbench.store.verify import label_of
from kdbench.suite.specs import Stage


class What(StrEnum):
    """What can be pruned."""

    tmp = "tmp"
    """what killed processes left half-written"""
    logs = "logs"
    """the logs of workers that have ended"""
    damaged = "damaged"
    """quarantined records and files"""
    checkpoints = "checkpoints"
    """resume states: what is not finished starts again"""
    outputs = "outputs"
    """teachers' cached outputs: runs that read them make them again"""
    weights = "weights"
    """weights of finished students that nothing is made on; the numbers stay"""
    unused = "unused"
    """records that no known suite has"""


@dataclass(frozen=True)
class Item:
    """Files or folders that go together, with their bytes, and the record that they belong to, if it is one."""

    what: What
    paths: tuple[Path, ...]
    label: str
    bytes: int
    record: Record | None = None
    lock: Path | None = None

    def guard(self) -> Lock:
        """The lock under which it is removed."""
        if self.record:
            return self.record.lock()
        assert self.lock
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        return Lock(self.lock)


@dataclass(frozen=True)
class Choice:
    """What is looked for.

    only:     ids of records; None: all, and what belongs to no record
    keep:     ids of records of which nothing is touched
    used:     ids of the records that suites have: others are unused
    needed:   ids of runs whose weights suites still need
    until:    only what was changed before this time, in seconds since 1970
    """

    what: Collection[What]
    only: Collection[str] | None = None
    keep: Collection[str] = ()
    used: Collection[str] = ()
    needed: Collection[str] = ()
    until: float = math.inf


def prunable(store: Store, choice: Choice) -> list[Item]:
    """What can be removed, in order. What something else is made on is not, nor what another process is at."""
    unused = _unused(store, choice) if What.unused in choice.what else []
    gone = {item.paths[0].name for item in unused}
    made_on = {
        run.id
        for kind in KINDS
        for record in store.records(kind)
        if record.id not in gone
        for stage in _basis(record, kind)
        if (run := stage.source_run)
    }
    items = [*_of_folder(store, choice), *unused]
    for kind in KINDS:
        for record in store.records(kind):
            if record.id not in gone and _chosen(record.id, choice):
                items += _of_record(record, kind, choice, weights=record.id not in (*made_on, *choice.needed))
    wanted = (item for item in items if item.what in choice.what and _newest(item.paths) < choice.until)
    return sorted((item for item in wanted if not _in_use(item)), key=lambda item: list(What).index(item.what))


def remove(items: Iterable[Item]) -> Iterator[Item]:
    """Remove what is not in use meanwhile, and yield it. Raises KdbenchError where that is not permitted."""
    for item in items:
        try:
            with item.guard().acquire(timeout=0):
                if item.what is What.weights and item.record:
                    write_json(item.record.folder / "metadata.json", {**item.record.metadata(), **NO_WEIGHTS})
                for path in item.paths:
                    if path.is_dir() and not path.is_symlink():
                        remove_folder(path)
                    else:
                        path.unlink(missing_ok=True)
        except Taken:
            continue
        except OSError as error:
            raise KdbenchError(f"{item.paths[0]}: cannot be removed: {error.strerror or error}") from None
        yield item


def _of_folder(store: Store, choice: Choice) -> Iterator[Item]:
    """What lies beside the records: quarantined ones, half-written ones, logs."""
    for kind in KINDS:
        for path in store.quarantined(kind):
            if _chosen(path.name.partition(".")[0], choice):
                owner = Record(path.with_name(path.name.partition(".")[0]))
                yield Item(What.damaged, (path,), "a quarantined record", _size(path), owner)
        for path in sorted((store.root / kind).glob(".*.tmp")):
            owner = Record(path.with_name(path.name.split(".")[1]))
            if _chosen(owner.id, choice):
                yield Item(What.tmp, (path,), "a copy that was not finished", _size(path), owner)
    if choice.only is not None:
        return
    locks = store.root / "locks"
    for path in sorted(store.root.glob(f"{UNPACKED}*")):
        yield Item(What.tmp, (path,), "an unpacked pack", _size(path), lock=locks / MERGING)
    for folder in sorted((store.root / "outputs").glob("*")):
        guard = locks / f"outputs-{folder.name}.lock"
        yield Item(What.outputs, (folder,), "a teacher's cached outputs", _size(folder), lock=guard)
        for path in sorted(folder.glob("*.damaged-*")):
            yield Item(What.damaged, (path,), "quarantined outputs of a teacher", _size(path), lock=guard)
        for path in sorted(folder.glob(".*.tmp")):
            crop = locks / f"outputs-{folder.name}-{path.name.split('.')[1]}.lock"
            yield Item(What.tmp, (path,), "was not written to its end", _size(path), lock=crop)
    for name in ("suites", "sources"):
        for path in sorted((store.root / name).glob("*/.*.tmp")):
            guard = locks / f"{name}-{path.parent.name}.lock"
            yield Item(What.tmp, (path,), "was not written to its end", _size(path), lock=guard)
    for path in sorted(path for kind in ("worker", "slurm") for path in (store.root / "logs").glob(f"{kind}-*.log")):
        if not _still_written(path):
            yield Item(What.logs, (path,), "the log of a worker", _size(path), lock=locks / "logs.lock")


def _of_record(record: Record, kind: str, choice: Choice, *, weights: bool) -> Iterator[Item]:
    """What can go of a record whose numbers stay."""
    label = f"{kind[:-1]} {record.id}, {label_of(record, kind)}"
    with suppress(OSError):
        for name in sorted(os.listdir(record.folder)):
            path = record.folder / name
            if name.startswith(".") and name.endswith(".tmp"):
                yield Item(What.tmp, (path,), label, _size(path), record)
            elif ".damaged-" in name:
                yield Item(What.damaged, (path,), label, _size(path), record)
            elif path == record.state_file:
                yield Item(What.checkpoints, (path,), label, _size(path), record)
    if What.weights in choice.what and kind == "runs" and weights and record.done():
        files = tuple(path for path in (record.weights_file, record.teacher_head_file) if path.is_file())
        if files:
            yield Item(What.weights, files, label, sum(map(_size, files)), record)


def _unused(store: Store, choice: Choice) -> list[Item]:
    """The records that no suite has, and on which nothing that stays is made."""
    records = {record.id: (record, kind) for kind in KINDS for record in store.records(kind)}
    items = {
        id: Item(
            What.unused, (record.folder,), f"{kind[:-1]} {id}, {label_of(record, kind)}", _size(record.folder), record
        )
        for id, (record, kind) in records.items()
        if id not in choice.used and _chosen(id, choice)
    }
    items = {id: item for id, item in items.items() if _newest(item.paths) < choice.until and not _in_use(item)}
    staying = [id for id in records if id not in items]
    for id in staying:
        for stage in _basis(*records[id]):
            below = store.record_of(stage).id
            if items.pop(below, None):
                staying.append(below)
    return list(items.values())


def _basis(record: Record, kind: str) -> tuple[Stage, ...]:
    try:
        return basis(record, kind)
    except ValidationError:
        return ()


def _chosen(id: str, choice: Choice) -> bool:
    return id not in choice.keep and (choice.only is None or id in choice.only)


def _in_use(item: Item) -> bool:
    try:
        with item.guard().acquire(timeout=0):
            return False
    except Taken:
        return True
    except (KdbenchError, OSError):
        return False  # removing says why it cannot be locked


def _still_written(log: Path) -> bool:
    """Whether the worker of a log may live: on this machine its process does, on another the log is of the last day."""
    if parent := parent_here(log):
        return process_state(parent) != "gone"
    return time.time() - log.stat().st_mtime < _DAY


_DAY = 86400.0


def _size(path: Path) -> int:
    """The bytes of a file, or of all files below a folder."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        return sum(_size(each) for each in path.iterdir())
    return 0


def _newest(paths: Iterable[Path]) -> float:
    """When the last of some files, or of those in some folders, was changed."""
    times = [0.0]
    for path in paths:
        with suppress(OSError):
            times += [each.lstat().st_mtime for each in (path, *(path.iterdir() if path.is_dir() else ()))]
    return max(times)
