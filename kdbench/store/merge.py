"""Merges results folders: finished records, the code and the suites that belong to them, into another folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from pydantic import ValidationError

from kdbench.errors import BadRecord, KdbenchError
from kdbench.store.archives import merge_sources, merge_suites
from kdbench.store.exchange import basis, check_copyable, place
from kdbench.store.lock import Taken
from kdbench.store.record import Record
from kdbench.store.result import Failure, Result
from kdbench.store.store import KINDS, Store
from kdbench.store.verify import label_of
from kdbench.suite.specs import Stage, digest, stage_label


MERGING = "merging.lock"
"""The lock that is held in the folder into which results are merged."""


@dataclass(frozen=True)
class LeftOut:
    """A record that was not taken over, and why."""

    kind: str
    id: str
    label: str
    source: str
    reason: str


@dataclass
class Merged:
    """What a merge did, or would do.

    ``taken`` counts records by kind (``runs`` …), ``suites`` and ``sources``. ``same`` counts those that are finished here
    with equal content; ``differing`` are finished here with another, and stay so. ``left_out`` could not be taken;
    ``unfinished`` counts those that can go on where they are. One that diverged has ended as well as a finished one.
    """

    taken: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*KINDS, "suites", "sources"), 0))
    same: int = 0
    unfinished: int = 0
    differing: list[LeftOut] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def merge(sources: Mapping[str, Store], target: Store, *, dry_run: bool = False) -> Merged:
    """Take over what ``sources``, by their names in messages, have and ``target`` has not.

    Nothing that is finished in ``target`` is changed. A record lands whole or not at all, after the networks that it was made
    on: a merge that was killed is simply repeated. Raises KdbenchError where the target cannot be written.
    """
    merged, would_take = Merged(), dict[str, Outcome]()
    suites, code = set[str](), set[str]()
    for name, source in sources.items():
        merger = _Merger(source, target, merged, name, would_take, dry_run=dry_run)
        notes: list[str] = []
        try:
            code |= merge_sources(source, target, notes, dry_run=dry_run)
            for kind in KINDS:
                for record in source.records(kind):
                    merger.take(kind, record)
            suites |= merge_suites(source, target, notes, dry_run=dry_run)
        except OSError as error:
            where = error.filename2 or error.filename or target.root
            raise KdbenchError(f"{where}: {error.strerror or error}. Mend this and repeat the merge") from None
        if outdated := source.outdated():
            notes.append(outdated)
        merged.notes += [note.replace(str(source.root), name) for note in notes]
    merged.taken |= {"suites": len(suites), "sources": len(code)}
    return merged


Outcome = Result | Failure


class _Merger:
    """Takes over the records of one folder, each after those that it was made on. ``would_take`` holds those of a dry run."""

    def __init__(
        self,
        source: Store,
        target: Store,
        merged: Merged,
        name: str,
        would_take: dict[str, Outcome],
        *,
        dry_run: bool,
    ) -> None:
        self._source, self._target, self._merged, self._name = source, target, merged, name
        self._would_take = would_take
        self._dry_run = dry_run
        self._seen: set[str] = set()

    def take(self, kind: str, record: Record) -> None:
        """Take over a record, or tell why not."""
        if record.id in self._seen:
            return
        self._seen.add(record.id)
        try:
            outcome = record.outcome()
            if outcome is None:
                self._merged.unfinished += 1
                return
            if digest(record.spec()) != record.id:
                raise BadRecord(f"{record.folder / 'spec.json'}: is not what was stored")
            networks = basis(record, kind)
            for network in networks:
                below = self._source.record_of(network)
                if below.has_result_file():
                    self.take("runs" if network.source_run else "teachers", below)
            self._take_ended(kind, record, outcome, networks)
        except BadRecord as error:
            self._leave_out(kind, record, str(error))
        except ValidationError:
            self._leave_out(kind, record, "its spec.json says nothing that this version of kdbench understands")
        except Taken:
            self._leave_out(kind, record, "another process is making it here: repeat the merge when it has finished")

    def _take_ended(self, kind: str, record: Record, theirs: Outcome, networks: tuple[Stage, ...]) -> None:
        here = Record(self._target.root / kind / record.id)
        mine = None
        with suppress(BadRecord):  # it is quarantined, and theirs takes its place
            mine = here.outcome() or self._would_take.get(record.id)
        if mine == theirs or (isinstance(mine, Failure) and isinstance(theirs, Failure)):
            self._merged.same += 1
        elif mine:
            texts = (
                f"{text} {where} ({each.made_by()})"
                for text, each, where in zip(_apart(mine, theirs), (here, record), ("here", "there"), strict=True)
            )
            self._merged.differing.append(self._told(kind, record, ", ".join(texts)))
        elif isinstance(theirs, Result) and (reason := self._other_weights(theirs, networks)):
            self._leave_out(kind, record, reason)
        else:
            check_copyable(record)
            if self._dry_run:
                self._would_take[record.id] = theirs
            else:
                place(record, here)
            self._merged.taken[kind] += 1

    def _other_weights(self, result: Result, networks: tuple[Stage, ...]) -> str:
        """Why a record does not fit the networks that are here or were taken; "" where it does, or where one is not there."""
        now = [self._weights(network) for network in networks]
        then = (result.parent_sha256 or "").split("+")
        if None in now or not result.parent_sha256 or now == then:
            return ""
        other = next((at for at, pair in enumerate(zip(now, then, strict=False)) if pair[0] != pair[1]), 0)
        return (
            f"rests on other weights of {stage_label(networks[other])} ({then[other]:.8}) than are here ({now[other]:.8}). "
            "Merge into an empty folder to keep both, and report the two side by side"
        )

    def _weights(self, network: Stage) -> str | None:
        record = self._target.record_of(network)
        with suppress(BadRecord):
            outcome = record.result() or self._would_take.get(record.id)
            return outcome.weights_sha256 if isinstance(outcome, Result) else None
        return None

    def _leave_out(self, kind: str, record: Record, reason: str) -> None:
        self._merged.left_out.append(self._told(kind, record, reason))

    def _told(self, kind: str, record: Record, reason: str) -> LeftOut:
        reason = reason.replace(str(self._source.root), self._name)
        return LeftOut(kind[:-1], record.id, label_of(record, kind), self._name, reason)


def _apart(first: Outcome, second: Outcome) -> tuple[str, str]:
    """What tells two outcomes of one record apart: the accuracies or values, or else the hash of the weights or the curve."""
    if isinstance(first, Failure) or isinstance(second, Failure):
        first_text, second_text = (
            "diverged" if isinstance(each, Failure) else _numbers(each) for each in (first, second)
        )
        return first_text, second_text
    ways: tuple[Callable[[Result], str], ...] = (
        _numbers,
        lambda result: f"weights {result.weights_sha256:.8}",
        lambda result: f"curve {result.metrics_sha256 or '':.8}",
    )
    texts = [(way(first), way(second)) for way in ways]
    return next((pair for pair in texts if pair[0] != pair[1]), ("one result", "another"))


def _numbers(result: Result) -> str:
    accuracies = {"last": result.last, "best": result.best}
    shown = [f"{name} {each.top1:.2f} %" for name, each in accuracies.items() if each]
    return " ".join([*shown, *(f"{name} {value:.4g}" for name, value in (result.values or {}).items())])
