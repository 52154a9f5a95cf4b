"""The training loop: each batch is loaded once, the teacher runs once, then every student takes its step."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batches
from kdbench.errors import BadInput, reason_of
from kdbench.evaluation import LayerSimilarity, Scores
from kdbench.methods.term import Term
from kdbench.models.outputs import Outputs
from kdbench.store.result import Failure
from kdbench.training.checkpoint import CheckpointWriter
from kdbench.training.environment import LostRank, Settings, device_lost, out_of_memory
from kdbench.training.guard import Watch, aliased, relisted, rows_of
from kdbench.training.ranks import ALONE, Ranks
from kdbench.training.replay import Replay, lessons
from kdbench.training.teacher import FrozenTeacher
from kdbench.training.trainer import Trainer


TELL_SECONDS = 5.0
"""The time between two reports within an epoch."""

Evaluate = Callable[[Sequence[nn.Module], Ranks], list[Scores]]
"""A test of networks by some processes, each on its part of the images. It leaves them in eval mode."""


@dataclass(frozen=True)
class Callbacks:
    """Functions that the training loop calls.

    ``on_progress`` gets, every few seconds of a long epoch, each trainer, the share of the epoch that it has done, and images
    per second; ``on_epoch`` each trainer after its epoch, and images per second; ``on_finish`` each trainer that has finished
    or failed, at once. Images per second count all trainers. ``should_stop`` is asked after each step whether to save and
    return. ``checkpoint_seconds`` is the age at which checkpoints are replaced.
    """

    on_progress: Callable[[Trainer, float, float], None]
    on_epoch: Callable[[Trainer, float], None]
    on_finish: Callable[[Trainer], None]
    should_stop: Callable[[], bool]
    checkpoint_seconds: float = 30.0


def train(
    trainers: Sequence[Trainer],
    teacher: FrozenTeacher | None,
    stream: Batches,
    evaluate: Evaluate | None,
    callbacks: Callbacks,
    replay: Replay | None = None,
    ranks: Ranks = ALONE,
) -> bool:
    """Train all trainers to their last epoch. Returns False if asked to stop before. Without ``evaluate`` none is tested.

    With ``replay``, full batches are trained on by captured steps. Of several ``ranks``, which take the same steps, the first
    alone reports, saves, and says when to stop.

    Trainers that are behind (after a crash, say) train alone until they have caught up: the stream and the teacher replay
    any epoch, so the result is the same in any company.
    """
    with CheckpointWriter(callbacks.checkpoint_seconds) if ranks.leads else nullcontext() as checkpoints:
        if replay and checkpoints:
            replay.settle = checkpoints.wait
        while behind := [trainer.progress.epoch for trainer in trainers if trainer.active]:
            epoch = min(behind) + 1
            group = [trainer for trainer in trainers if trainer.active and trainer.progress.epoch == epoch - 1]
            timer = EpochTimer(group, ranks.size)
            if not train_epoch(group, teacher, stream, epoch, callbacks, timer, replay, ranks, checkpoints):
                _report_finished(group, callbacks, checkpoints)
                return False
            alive = [trainer for trainer in group if trainer.failure is None]
            ranks.follow([buffer for trainer in alive for buffer in trainer.network.buffers()])
            tested = [trainer for trainer in alive if trainer.due_for_test(epoch)]
            results = _evaluate(tested, teacher, evaluate, epoch, ranks) if evaluate else {}
            alive = [trainer for trainer in alive if trainer.failure is None]
            speed = timer.end(alive)
            for trainer in alive:
                _guarded(trainer, partial(trainer.end_epoch, epoch, *results.get(id(trainer), (None, {}))), epoch)
                if trainer.failure is None:
                    callbacks.on_epoch(trainer, speed)
            _compare_failures(group, ranks, epoch)
            _report_finished(group, callbacks, checkpoints)
            if _save_or_stop(alive, teacher, callbacks, checkpoints):
                return False
        return True


class EpochTimer:
    """The time that passes in an epoch, shared equally among those it is spent on, and counted for each of the devices."""

    def __init__(self, trainers: Sequence[Trainer], devices: int = 1) -> None:
        self.trainers, self.devices = trainers, devices
        self.before = self._images()
        self.started = self.counted = self.told = time.perf_counter()

    def count(self, trainers: Sequence[Trainer]) -> None:
        """Share the time since the last count among some trainers."""
        now = time.perf_counter()
        for trainer in trainers:
            trainer.progress.seconds += self.devices * (now - self.counted) / len(trainers)
        self.counted = now

    def end(self, trainers: Sequence[Trainer]) -> float:
        """Count, and return the images per second of all trainers together."""
        self.count(trainers)
        return self._speed(self.counted)

    def tell(self, callbacks: Callbacks, images: int) -> None:
        """Report how far the trainers are in an epoch of ``images`` images, unless that was reported just now."""
        now = time.perf_counter()
        if now - self.told < TELL_SECONDS:
            return
        self.told = now
        for trainer in self.trainers:
            if trainer.failure is None:
                share = min(1.0, trainer.progress.batches * trainer.recipe.batch / images)
                callbacks.on_progress(trainer, share, self._speed(now))

    def _speed(self, now: float) -> float:
        return (self._images() - self.before) / (now - self.started)

    def _images(self) -> int:
        return sum(trainer.progress.images for trainer in self.trainers)


def train_epoch(
    group: Sequence[Trainer],
    teacher: FrozenTeacher | None,
    stream: Batches,
    epoch: int,
    callbacks: Callbacks,
    timer: EpochTimer,
    replay: Replay | None = None,
    ranks: Ranks = ALONE,
    checkpoints: CheckpointWriter | None = None,
) -> bool:
    """One pass over the stream, or what each trainer has left of it. Returns False if asked to stop on the way.

    The teacher skips an epoch in which no trainer reads it, and the batches that all its readers have seen: it is as far as
    the reader that is furthest behind.

    Where a trainer fails in its step, batch and outputs are made anew for those after it: it may have written into them.
    """
    readers = [trainer.progress.batches for trainer in group if trainer.reads_teacher]
    if not readers:
        teacher = None
    teacher_start = min(readers, default=0)
    if teacher:
        teacher.begin_epoch(epoch, stream, teacher_start)
    network = teacher.network if teacher else None
    for trainer in group:
        _guarded(trainer, partial(trainer.begin_epoch, epoch, network, stream), epoch)
        _confirm(trainer, ranks)
    transforms = sorted({trainer.transforms for trainer in group if trainer.transforms})
    portion = ranks.portion([trainer.recipe.batch_norm_parts for trainer in group])
    while alive := [trainer for trainer in group if trainer.failure is None]:
        first = min(trainer.progress.batches for trainer in alive)
        taught = lessons(
            stream,
            teacher,
            replay,
            epoch=epoch,
            first=first,
            teacher_start=teacher_start,
            transforms=transforms,
            portion=portion,
        )
        for number, (batch, shown, copies) in enumerate(taught, first):
            captured = replay if replay and len(batch) == replay.batch else None
            active = [trainer for trainer in alive if trainer.failure is None and trainer.progress.batches == number]
            for trainer in active:
                _guarded(trainer, partial(trainer.step, batch, shown, copies.get(trainer.transforms), captured), epoch)
                _confirm(trainer, ranks)
                if trainer.failure is not None:
                    break
            timer.count(active)
            if any(trainer.progress.batches == number for trainer in active):
                break
            if teacher and number >= teacher_start:
                teacher.learn()
            if _save_or_stop(group, teacher, callbacks, checkpoints):
                return False
            timer.tell(callbacks, len(stream))
        else:
            return True
    return True


def _save_or_stop(
    group: Sequence[Trainer], teacher: FrozenTeacher | None, callbacks: Callbacks, checkpoints: CheckpointWriter | None
) -> bool:
    """Save if it is time. Returns whether to stop, for which all are saved."""
    stopping = callbacks.should_stop()
    if checkpoints:
        checkpoints.save(group, teacher.state if teacher else dict, now=stopping)
    return stopping


def _report_finished(group: Sequence[Trainer], callbacks: Callbacks, checkpoints: CheckpointWriter | None) -> None:
    """Report those that have ended. What is stored of them replaces their checkpoints, which must not come after it."""
    ended = [trainer for trainer in group if not trainer.active]
    if ended and checkpoints:
        checkpoints.flush()
    for trainer in ended:
        callbacks.on_finish(trainer)


def _evaluate(
    trainers: Sequence[Trainer], teacher: FrozenTeacher | None, evaluate: Evaluate, epoch: int, ranks: Ranks
) -> dict[int, tuple[Scores, dict[str, float]]]:
    """Test accuracy, and likeness to the teacher where it is due, by the trainers' id().

    Each device tests its part of the images. Likeness is no sum over images: where it is due the first device tests alone.
    """
    shown = CachedTeacher(teacher) if teacher else None
    networks = [
        LayerSimilarityMonitor(trainer, shown, epoch) if shown and trainer.due_for_likeness(epoch) else trainer.network
        for trainer in trainers
    ]
    if any(isinstance(network, LayerSimilarityMonitor) for network in networks):
        if not ranks.leads:
            return {}
        ranks = ALONE
    results = {}
    for trainer, network, scores in zip(trainers, networks, evaluate(networks, ranks), strict=True):
        likeness = network.similarity.scores() if isinstance(network, LayerSimilarityMonitor) else {}
        results[id(trainer)] = scores, likeness
    return results


SLICE = 64
"""Test images whose similarities are compared with each other: the batch size of SemCKD's experiments."""


class CachedTeacher:
    """What the teacher gives for the test batch that students are looking at, in float32.

    It runs once for each batch, however many students ask for it, and not at all where none asks; once more where a term may
    have written into its outputs. Use one for each pass.
    """

    def __init__(self, teacher: FrozenTeacher) -> None:
        self.network = teacher.network
        self.own = iter(teacher.own_test) if teacher.own_test is not None else None
        self.images: Tensor | None = None

    def __call__(self, images: Tensor) -> Outputs:
        """Return its outputs for the batch, in its own view of the images where it has one."""
        if images is not self.images:
            self.images = images
            self.view = next(self.own)[0] if self.own else images
            self.outputs: Outputs | None = None
        if self.outputs is None:
            self.outputs = self.network(self.view)
        return self.outputs


class LayerSimilarityMonitor(nn.Module):
    """A student under test whose maps are compared with the teacher's; ``similarity`` holds what comes of it.

    Slices have 64 images, or as many as a batch where a term needs full ones, which then leaves shorter slices out.
    """

    def __init__(self, trainer: Trainer, shown: CachedTeacher, epoch: int) -> None:
        super().__init__()
        self.network, self.terms = trainer.network, trainer.terms
        self.trainer, self.shown, self.epoch = trainer, shown, epoch
        self.similarity = LayerSimilarity()

    def forward(self, images: Tensor) -> Outputs:
        """Return what the network gives."""
        outputs: Outputs = self.network(images)
        if self.trainer.failure is None:
            _guarded(self.trainer, partial(self._compare, images, outputs), self.epoch)
            if self.trainer.failure is not None:
                self.shown.outputs = None
        return outputs

    @torch.no_grad()
    def _compare(self, images: Tensor, outputs: Outputs) -> None:
        size = self.trainer.recipe.batch if self.trainer.full_batches else SLICE
        end = len(images) // size * size if self.trainer.full_batches else len(images)
        teacher = aliased(self.shown(images))
        watch = Watch(values=self.trainer.foreign, start=0)
        watch.add("student", outputs)
        watch.add("teacher", teacher)
        for start in range(0, end, size):
            rows = slice(start, start + size)
            student_rows, teacher_rows = rows_of(outputs, rows), rows_of(teacher, rows)
            pairs = []
            for name, term in self.terms.items():
                pairs += cast(Term, term).layer_pairs(relisted(student_rows), relisted(teacher_rows))
                watch.check(f"the term '{name}'")
            if pairs:
                self.similarity.add(pairs)


def _guarded(trainer: Trainer, act: Callable[[], None], epoch: int) -> None:
    """One run's error ends that run, not its neighbours. Running out of memory or losing the device concerns them all."""
    settings = Settings()
    try:
        act()
    except (Exception, SystemExit) as error:
        if out_of_memory(error) or device_lost(error):
            raise
        trainer.failure = failure_of(error, epoch)
    finally:
        changed = settings.put_back()
    if changed and trainer.failure is None:
        names, terms = ", ".join(changed), " + ".join(trainer.terms)
        blame = f"{terms} changes torch's {names}, which all runs share: it must put back what it sets"
        trainer.failure = failure_of(BadInput(blame), epoch)


def _confirm(trainer: Trainer, ranks: Ranks) -> None:
    """A failure, if there is one, ends a run where all processes have it."""
    if trainer.failure is not None:
        progress = trainer.progress
        ranks.confirm(trainer.failure.reason, f"{trainer.record.id} {progress.epoch} {progress.batches}")


def _compare_failures(trainers: Sequence[Trainer], ranks: Ranks, epoch: int) -> None:
    """A failure in the first process, which alone stores, ends a run in all. Raises LostRank for one in others alone."""
    own = [trainer.failure.reason if trainer.failure else "" for trainer in trainers]
    for trainer, (first, *others) in zip(trainers, zip(*ranks.exchange(own), strict=True), strict=True):
        if first and trainer.failure is None:
            trainer.failure = Failure(kind="error", epoch=epoch, reason=first)
        if not first and any(others):
            raise LostRank(f"{next(filter(None, others))}, but not on the first of {ranks.size} devices")


def failure_of(error: BaseException, epoch: int) -> Failure:
    """What is stored of an error that ends a run."""
    reason = reason_of(error, f" in epoch {epoch}" if epoch else "")
    return Failure(kind="error", epoch=epoch, reason=reason, detail="".join(traceback.format_exception(error)))
