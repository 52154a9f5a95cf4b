"""A student in training: network, terms, optimiser, position; it takes one step per batch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from inspect import unwrap
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdbench.data.batch import VIEWS_PER_IMAGE, Batch, Batches, seed_default_generators, seed_of
from kdbench.data.views import interleave_views
from kdbench.errors import BadInput
from kdbench.evaluation import Scores
from kdbench.methods.term import Term
from kdbench.models.backbone import Backbone
from kdbench.models.outputs import Outputs
from kdbench.store.record import Record
from kdbench.store.result import Accuracy, Failure
from kdbench.suite.specs import Recipe
from kdbench.training.batch_norm import batch_norm_by_parts
from kdbench.training.environment import lacks_variance
from kdbench.training.guard import (
    ReplayedStream,
    Watch,
    aliased,
    interleave_outputs,
    one_transform,
    plugged_in,
    relisted,
    rows_of,
)
from kdbench.training.ranks import ALONE, Ranks, whole
from kdbench.training.replay import Replay


class SGD(torch.optim.SGD):
    """torch's SGD without the wrappers for torch.compile, which import torch._dynamo: 1.7 s of each worker's start."""

    add_param_group = unwrap(torch.optim.SGD.add_param_group)
    state_dict = unwrap(torch.optim.SGD.state_dict)
    load_state_dict = unwrap(torch.optim.SGD.load_state_dict)
    zero_grad = unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


def make_optimiser(parameters: Sequence[nn.Parameter], recipe: Recipe) -> SGD:
    """SGD under a recipe. The fused form is one kernel for all parameters."""
    return SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=True,
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = lr


LIKENESS_EPOCHS = 10
"""The number of epochs at the end of a training over which likeness is averaged, as in SemCKD's Table 5."""


@dataclass
class Progress:
    """A trainer's position: whole epochs, and batches and images of the current one. Part of its checkpoint."""

    epoch: int = 0
    batches: int = 0
    images: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    sessions: int = 0


class Trainer:
    """A network, its weighted loss terms and one optimiser over the trainable parts of both.

    ``seed`` decides on the random numbers of its steps. ``modules`` says which parts of the network train; the others
    stay in eval mode and are not touched. ``classifies`` says whether the network's logits are answers, whose errors count.
    ``parent_sha256`` joins the hashes of the weights that it depends on, ``ranks`` are the processes that train it together.

    A term with an initial stage trains the student by itself first, in epochs that are counted up to 0: the network's
    feature modules and its own parts, at the recipe's first rate. The main training then begins with a fresh optimiser.
    """

    def __init__(
        self,
        record: Record,
        network: Backbone,
        terms: dict[str, Term],
        weights: dict[str, float],
        recipe: Recipe,
        *,
        seed: str,
        modules: list[nn.Module] | None = None,
        keep_best: bool = False,
        classifies: bool = True,
    ) -> None:
        self.record = record
        self.network = network
        self.terms = nn.ModuleDict(terms)
        self.weights = weights
        self.recipe = recipe
        self.seed = seed
        self.trained = modules if modules is not None else [network]
        self.keep_best = keep_best
        self.classifies = classifies
        self.reads_teacher = any(term.needs_teacher for term in terms.values())
        self.main_transforms = one_transform(terms.values())
        self.full_batches = any(term.full_batches for term in terms.values())
        self.reads_epoch = any(term.reads_epoch for term in terms.values())
        self.associates = any(type(term).layer_pairs is not Term.layer_pairs for term in terms.values())
        self.foreign = plugged_in(self.terms) or plugged_in(network)
        self.device = next(network.parameters()).device
        self.initial = next(((name, term) for name, term in terms.items() if term.initial), None)
        self.initial_epochs = self.initial[1].initial_epochs if self.initial else 0
        self.seek(Progress(epoch=-self.initial_epochs))
        self.best_weights: dict[str, Tensor] | None = None
        self.failure: Failure | None = None
        self.bound: list[Tensor] = []
        self.bindings = 0
        self.parent_sha256: str | None = None
        self.ranks: Ranks = ALONE
        self.saved_at = time.monotonic()

    @property
    def length(self) -> dict[str, int]:
        """How many epochs it trains, and how many before these in an initial stage."""
        return {"epochs": self.recipe.epochs, "initial_epochs": self.initial_epochs}

    @property
    def active(self) -> bool:
        """Whether it has neither failed nor finished."""
        return self.failure is None and self.progress.epoch < self.recipe.epochs

    @property
    def transforms(self) -> str:
        """The kind of transformed views that the current or next epoch uses; "": none, as in an initial stage."""
        return "" if self.progress.epoch < 0 else self.main_transforms

    def seek(self, progress: Progress) -> None:
        """Move to ``progress``, with a fresh optimiser for what trains from there on."""
        self.progress = progress
        self.sums: dict[str, Tensor] = {}
        parameters = [p for module in self._training(progress.epoch + 1) for p in module.parameters()]
        self.optimiser = make_optimiser(parameters, self.recipe)

    def _training(self, epoch: int) -> list[nn.Module]:
        """The modules that train in an epoch."""
        if epoch < 1 and self.initial:
            return [*self.network.feature_modules(), self.initial[1]]
        return [*self.trained, self.terms]

    def begin_epoch(self, epoch: int, teacher: Backbone | None = None, stream: Batches | None = None) -> None:
        """Set modes and learning rate. At its start, reset the sums and let terms prepare, each with a copied teacher."""
        beginning = not self.progress.batches
        self.network.eval()
        self.terms.eval()
        for term in cast(list[Term], list(self.terms.values())):
            term.epoch = epoch
            prepares = type(term).begin_epoch is not Term.begin_epoch
            if beginning and prepares and epoch > 0 and teacher is not None and stream is not None:
                term.begin_epoch(epoch, self.network, deepcopy(teacher), ReplayedStream(stream))
        for module in self._training(epoch):
            module.train()
        set_learning_rate(self.optimiser, self.recipe.lr_at(epoch))
        self.optimiser.zero_grad(set_to_none=True)  # a term may have left gradients as it prepared
        if beginning:
            for value in self.sums.values():
                value.zero_()
        modules = self._module_state()
        if [*map(id, modules)] != [*map(id, self.bound)]:
            self.bound, self.bindings = modules, self.bindings + 1
        self.setting = (self.recipe.lr_at(epoch), self.bindings, epoch if self.reads_epoch else 0)

    def state(self) -> list[Tensor]:
        """What a step changes: weights, buffers, momentum and sums."""
        momentum = [value for state in self.optimiser.state.values() for value in state.values()]
        return [*self._module_state(), *filter(torch.is_tensor, momentum), *self.sums.values()]

    def _module_state(self) -> list[Tensor]:
        state = self.network.state_dict(keep_vars=True) | self.terms.state_dict(prefix="terms.", keep_vars=True)
        return [*filter(torch.is_tensor, state.values())]

    def step(
        self, batch: Batch, teacher: Outputs | None, copies: Outputs | None = None, replay: Replay | None = None
    ) -> None:
        """Forward, weighted sum of the terms, backward, SGD.

        ``copies`` is what the teacher gives for the batch's transformed copies, where a term looks at those: the network
        then sees images and copies in one pass, and its other terms see what it gives for the images.

        Random numbers depend on the run and the step alone, whoever else trains in the process. A short batch is left out
        whole where a term needs full ones, and so is a last one of a single image where that gives a batch norm a single
        value of each channel, which has no variance: torch refuses it, and so the authors' code stops there.

        On several devices the network sees this one's portion, terms see the whole batch, and gradients are averaged.

        With ``replay`` the tensors are in its memory, and the step is captured and replayed; not with foreign code, which may
        do what no graph can hold.

        Raises BadInput where a term writes into what it is shown: then ``batch`` and the teacher's outputs are spoiled.
        """
        self.progress.batches += 1
        images = len(batch) * batch.portions
        if self.full_batches and images < self.recipe.batch:
            return
        take = partial(self._take, batch, teacher, copies)
        if replay and not self.foreign:
            step = replay.step_of((self.record.id, self.progress.epoch < 0), " + ".join(self.terms))
            done = step(take, (self.setting, replay.lessons.changes), self.state, self._seed)
        else:
            self._seed()
            done = take()
        if done:
            self.progress.images += images

    def _seed(self) -> None:
        seed_default_generators(seed_of("step", self.seed, self.progress.epoch, self.progress.images), self.device)

    def _take(self, batch: Batch, teacher: Outputs | None, copies: Outputs | None) -> bool:
        """Take the step. False where the batch is left out."""
        modules = (self.network, self.terms) if len(batch) == 1 else ()
        before = {buffer: buffer.clone() for module in modules for buffer in module.buffers()}
        bf16 = self.recipe.precision == "bf16"
        batch, teacher = aliased(batch), teacher and aliased(teacher)
        watch = Watch(values=self.foreign, start=self.progress.batches)
        watch.add("batch", batch)
        watch.add("teacher", teacher)
        try:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                with batch_norm_by_parts(self.recipe.batch_norm_parts, batch.portions, self.ranks):
                    outputs = self.network(self._images_of(batch))
                watch.check("the student's network")
                loss, values, others = self._losses(outputs, teacher, copies, batch, watch)
        except ValueError as error:
            if len(batch) > 1 or not lacks_variance(error):
                raise
            if not self.progress.images:
                text = "a batch of one image gives batch norm a single value per channel: choose another"
                raise BadInput(text) from error
            for buffer, value in before.items():
                buffer.copy_(value)
            return False
        loss.backward()  # type: ignore[no-untyped-call]
        watch.check(f"the backward pass of {' + '.join(values)}")
        self.ranks.average([p for group in self.optimiser.param_groups for p in group["params"]])
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)  # at once: the next trainer's gradients take the same memory
        if self.progress.epoch >= 0:
            for term in cast(list[Term], list(self.terms.values())):
                term.after_step()
        self._count({"loss": loss, **values, **others}, len(batch) * batch.portions)
        return True

    @torch.no_grad()
    def _count(self, values: Mapping[str, Tensor], images: int) -> None:
        """Add a batch's means to the epoch's sums, in place and all at once."""
        totals = torch._foreach_mul(list(values.values()), images)
        if not self.sums:
            self.sums = {name: torch.zeros_like(total) for name, total in zip(values, totals, strict=True)}
        torch._foreach_add_([self.sums[name] for name in values], totals)

    def _images_of(self, batch: Batch) -> Tensor:
        """The batch's images, each followed by its copies where a term looks at those."""
        if not self.transforms:
            return batch.images
        images = interleave_views(batch.images, batch.views[self.transforms].images)
        return images.contiguous(memory_format=torch.channels_last)

    def _losses(
        self, outputs: Outputs, teacher: Outputs | None, copies: Outputs | None, batch: Batch, watch: Watch
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The loss to minimise, the value of each term, and what is recorded beside these, all of them scalars."""
        watch.add("student", outputs)
        upright = rows_of(outputs, slice(None, None, 1 + VIEWS_PER_IMAGE)) if self.transforms else outputs
        upright_pair, pair_with_copies = (upright, teacher or upright), (outputs, outputs)
        if teacher and copies:
            pair_with_copies = outputs, interleave_outputs(teacher, copies)
            watch.add("teacher", pair_with_copies[1])
        if batch.portions > 1:
            gather = partial(whole, ranks=self.ranks, watch=watch)
            batch = gather("batch", batch)
            upright_pair, pair_with_copies = (
                (gather("student", student), gather("teacher", shown))
                for student, shown in (upright_pair, pair_with_copies)
            )
        if self.progress.epoch < 0 and self.initial:
            name, term = self.initial
            value = term.initial_loss(*upright_pair, batch)
            watch.check(f"the term '{name}'")
            return value, {name: value}, {}
        values = {}
        for name, module in self.terms.items():
            pair = pair_with_copies if cast(Term, module).transforms else upright_pair
            values[name] = module(*map(relisted, pair), batch)
            watch.check(f"the term '{name}'")
        first, *others = (_weighted(value, self.weights[name]) for name, value in values.items())
        error = {"train_error": _error_rate(upright_pair[0].logits, batch.labels)} if self.classifies else {}
        return sum(others, first), values, error

    def end_epoch(self, epoch: int, scores: Scores | None, likeness: Mapping[str, float] | None = None) -> None:
        """Record an epoch's mean losses, training error in %, test accuracy and likeness to the teacher.

        The training error is that of the images as they were trained on, each by the weights of its step. A loss that is
        not finite ends the run.
        """
        means = {name: float(value) / self.progress.images for name, value in self.sums.items()}
        wrong = [name for name, value in means.items() if not math.isfinite(value)]
        wrong = ["the loss" if name == "loss" else f"the term '{name}'" for name in wrong]
        if epoch == self.recipe.epochs:
            state = self.network.state_dict()
            wrong += [f"the weight '{name}'" for name, value in state.items() if not value.isfinite().all()]
        if wrong:
            reason = f"{wrong[0]} is not finite in epoch {epoch}"
            self.failure = Failure(kind="diverged", epoch=epoch, reason=reason)
            return
        row: dict[str, Any] = {
            "epoch": epoch,
            "lr": self.recipe.lr_at(epoch),
            "loss": means.pop("loss"),
        }
        if "train_error" in means:
            row["train_error"] = 100 * means.pop("train_error")
        row["terms"] = means
        if scores is not None:
            row |= {"top1": scores.top1, "top5": scores.top5}
        row |= likeness or {}
        for term in cast(list[Term], list(self.terms.values())):
            own = json.loads(json.dumps(term.epoch_metrics()))  # what cannot be stored ends the run here
            row |= {key: value for key, value in own.items() if key not in row}
        self.progress.metrics.append(row)
        self.progress.epoch, self.progress.batches, self.progress.images = epoch, 0, 0
        if epoch == 0:
            self.seek(self.progress)
        if self.keep_best and (best := self.best()) and best.epoch == epoch:
            self.best_weights = {key: value.clone() for key, value in self.trainable_state_dict().items()}

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """The network's weights, as far as they are trained."""
        state = self.network.state_dict()
        if self.trained == [self.network]:
            return state
        parts = tuple(f"{name}." for name, module in self.network.named_modules() if module in self.trained)
        return {key: value for key, value in state.items() if key.startswith(parts)}

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Go back to a ``trainable_state_dict``. Raises ValueError for that of another network."""
        if state.keys() != self.trainable_state_dict().keys():
            raise ValueError("it holds the weights of another network")
        self.network.load_state_dict(state, strict=False)

    def due_for_test(self, epoch: int) -> bool:
        return epoch > 0 and (epoch % self.recipe.evaluate_every == 0 or epoch == self.recipe.epochs)

    def due_for_likeness(self, epoch: int) -> bool:
        """Whether a test after this epoch also tells how alike the maps are that the terms associate."""
        return self.associates and epoch > self.recipe.epochs - LIKENESS_EPOCHS

    def likeness(self) -> dict[str, float]:
        """``sm_score`` and ``layer_cka``, means over the epochs that have them; what none has is left out."""
        values = {key: [row[key] for row in self.progress.metrics if key in row] for key in ("sm_score", "layer_cka")}
        return {key: fmean(numbers) for key, numbers in values.items() if numbers}

    def last(self) -> Accuracy | None:
        """Test accuracy after the last epoch that was tested; None where none was."""
        return next(reversed(self._tested()), None)

    def best(self) -> Accuracy | None:
        """Test accuracy after the first of the best epochs; None where none was tested."""
        return max(self._tested(), key=lambda accuracy: accuracy.top1, default=None)

    def _tested(self) -> list[Accuracy]:
        rows = [row for row in self.progress.metrics if "top1" in row]
        return [Accuracy(epoch=row["epoch"], top1=row["top1"], top5=row["top5"]) for row in rows]


@torch.no_grad()
def _error_rate(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of wrong answers, a float32 scalar; nothing is copied from the device."""
    return (logits.argmax(1) != labels).mean(dtype=torch.float32)


def _weighted(value: Tensor, weight: float) -> Tensor:
    return value if weight == 1 else weight * value
