"""The training loop: each batch is loaded once, the teacher runs once, then every student takes its step."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from kdbench.data.batch import Batches
from kdbench.errors import BadInput, reason_of
from kdbench.evaluation import Scores
from kdbench.store.record import Failure
from kdbench.training.checkpoint import save_checkpoint
from kdbench.training.environment import Settings, device_lost, out_of_memory
from kdbench.training.guide import Guide
from kdbench.training.learner import Learner
from kdbench.training.likeness import Shown, Watched


TELL_SECONDS = 5.0
"""Between two reports from within an epoch."""

Examine = Callable[[Sequence[nn.Module]], list[Scores]]
"""A test of networks, which it leaves in eval mode."""


@dataclass(frozen=True)
class Hooks:
    """How the loop talks to its surroundings.

    ``under_way`` hears every few seconds of a long epoch which share of it each learner has behind it (learner, share, images
    per second), ``epoch_done`` of each learner's epoch (learner, images per second), and ``ended`` of each learner that has
    finished or failed, at once. Images per second are those of all learners. ``stopped`` says after each step whether to save
    and leave. A checkpoint is written whenever the last one is ``checkpoint_seconds`` old, but no more than a twentieth of
    the time is spent on that (0: after each step).
    """

    under_way: Callable[[Learner, float, float], None]
    epoch_done: Callable[[Learner, float], None]
    ended: Callable[[Learner], None]
    stopped: Callable[[], bool]
    checkpoint_seconds: float = 30.0


def train(
    learners: Sequence[Learner], guide: Guide | None, stream: Batches, examine: Examine | None, hooks: Hooks
) -> bool:
    """Train all learners to their last epoch. Returns False if asked to stop before. Without ``examine`` none is tested.

    Learners that are behind (after a crash, say) train alone until they have caught up: the stream and the teacher replay
    any epoch, so the result is the same in any company.
    """
    while behind := [learner.progress.epoch for learner in learners if learner.active]:
        epoch = min(behind) + 1
        group = [learner for learner in learners if learner.active and learner.progress.epoch == epoch - 1]
        lap = Lap(group)
        if not train_epoch(group, guide, stream, epoch, hooks, lap):
            _tell_ended(group, hooks)
            return False
        alive = [learner for learner in group if learner.failure is None]
        tested = [learner for learner in alive if examine and learner.due_for_test(epoch)]
        found, likeness = _examined(tested, guide, examine, epoch) if examine else ({}, {})
        alive = [learner for learner in alive if learner.failure is None]
        speed = lap.end(alive)
        for learner in alive:
            facts = found.get(id(learner)), likeness.get(id(learner))
            _guarded(learner, partial(learner.end_epoch, epoch, *facts), epoch)
            if learner.failure is None:
                hooks.epoch_done(learner, speed)
        _tell_ended(group, hooks)
        stopping = hooks.stopped()
        _save(alive, guide, hooks, now=stopping)
        if stopping:
            return False
    return True


class Lap:
    """The time that passes in an epoch, shared equally among those it is spent on."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = learners
        self.before = self._images()
        self.started = self.counted = self.told = time.perf_counter()

    def count(self, learners: Sequence[Learner]) -> None:
        """Add what has passed to the seconds of some learners."""
        now = time.perf_counter()
        for learner in learners:
            learner.progress.seconds += (now - self.counted) / len(learners)
        self.counted = now

    def end(self, learners: Sequence[Learner]) -> float:
        """Count, and return how many images a second were seen, those of all learners together."""
        self.count(learners)
        return self._speed(self.counted)

    def tell(self, hooks: Hooks, images: int) -> None:
        """Tell how far the learners are in an epoch of so many images, if that was not told just now."""
        now = time.perf_counter()
        if now - self.told < TELL_SECONDS:
            return
        self.told = now
        for learner in self.learners:
            if learner.failure is None:
                share = min(1.0, learner.progress.batches * learner.recipe.batch / images)
                hooks.under_way(learner, share, self._speed(now))

    def _speed(self, now: float) -> float:
        return (self._images() - self.before) / (now - self.started)

    def _images(self) -> int:
        return sum(learner.progress.images for learner in self.learners)


def train_epoch(
    group: Sequence[Learner], guide: Guide | None, stream: Batches, epoch: int, hooks: Hooks, lap: Lap
) -> bool:
    """One pass over the stream, or what each learner has left of it. Returns False if asked to stop on the way.

    The teacher stays out of an epoch in which no learner reads it, and out of the batches that are behind all who do: it is
    as far as the one of these that is furthest behind.

    Where a learner fails in its step, what it was shown is made anew for those behind it: it may have written into that.
    """
    readers = [learner.progress.batches for learner in group if learner.reads_teacher]
    if not readers:
        guide = None
    looks_on_from = min(readers, default=0)
    if guide:
        guide.begin_epoch(epoch, stream, looks_on_from)
    teacher = guide.network if guide else None
    for learner in group:
        _guarded(learner, partial(learner.begin_epoch, epoch, teacher, stream), epoch)
    transforms = sorted({learner.transforms for learner in group if learner.transforms})
    while alive := [learner for learner in group if learner.failure is None]:
        first = min(learner.progress.batches for learner in alive)
        batches = stream.epoch(epoch, with_teacher=guide is not None, transforms=transforms, first=first)
        for number, batch in enumerate(batches, first):
            teaching = guide if number >= looks_on_from else None
            copies = teaching.show_copies(batch) if teaching else {}
            shown = teaching.show(batch) if teaching else None
            at_it = [each for each in alive if each.failure is None and each.progress.batches == number]
            for learner in at_it:
                _guarded(learner, partial(learner.step, batch, shown, copies.get(learner.transforms)), epoch)
                if learner.failure is not None:
                    break
            lap.count(at_it)
            if any(learner.progress.batches == number for learner in at_it):
                break
            if teaching:
                teaching.learn()
            stopping = hooks.stopped()
            _save(group, guide, hooks, now=stopping)
            if stopping:
                return False
            lap.tell(hooks, len(stream))
        else:
            return True
    return True


def _tell_ended(group: Sequence[Learner], hooks: Hooks) -> None:
    for learner in group:
        if not learner.active:
            hooks.ended(learner)


def _examined(
    learners: Sequence[Learner], guide: Guide | None, examine: Examine, epoch: int
) -> tuple[dict[int, Scores], dict[int, dict[str, float]]]:
    """Test accuracy of all, and likeness to the teacher of those for which it is due, by the learners' id()."""
    watched: dict[int, Watched] = {}
    if guide:
        shown, guarded = Shown(guide), partial(_guarded, epoch=epoch)
        watched = {id(each): Watched(each, shown, guarded) for each in learners if each.due_for_likeness(epoch)}
    found = examine([watched.get(id(each), each.network) for each in learners])
    scores = dict(zip(map(id, learners), found, strict=True))
    return scores, {key: each.similarity.scores() for key, each in watched.items()}


def _guarded(learner: Learner, act: Callable[[], None], epoch: int) -> None:
    """One run's error ends that run, not its neighbours. Running out of memory or losing the device concerns them all."""
    settings = Settings()
    try:
        act()
    except (Exception, SystemExit) as error:
        if out_of_memory(error) or device_lost(error):
            raise
        learner.failure = failure_of(error, epoch)
    finally:
        changed = settings.put_back()
    if changed and learner.failure is None:
        names, terms = ", ".join(changed), " + ".join(learner.terms)
        blame = f"{terms} changes torch's {names}, which all runs share: it must put back what it sets"
        learner.failure = failure_of(BadInput(blame), epoch)


def failure_of(error: BaseException, epoch: int) -> Failure:
    """What is stored of an error that ends a run."""
    reason = reason_of(error, f" in epoch {epoch}" if epoch else "")
    return Failure(kind="error", epoch=epoch, reason=reason, detail="".join(traceback.format_exception(error)))


def _save(learners: Sequence[Learner], guide: Guide | None, hooks: Hooks, *, now: bool) -> None:
    """Write checkpoints of all that go on, if it is time."""
    active = [learner for learner in learners if learner.active]
    if active and (now or _due(active, hooks.checkpoint_seconds)):
        state = guide.state() if guide else {}
        for learner in active:
            save_checkpoint(learner, state)


def _due(learners: Sequence[Learner], seconds: float) -> bool:
    age = time.monotonic() - min(learner.saved_at for learner in learners)
    return age >= (seconds and max(seconds, _SHARE * sum(learner.save_seconds for learner in learners)))


_SHARE = 20
"""Learners train at least so many times as long as it took to save them before they are saved again."""
