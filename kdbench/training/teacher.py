"""The teacher's side of a cohort: its outputs for each batch, and the adapters that terms train on it first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from itertools import islice
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.catalogue.terms import term
from kdbench.data.batch import Batch, Batches
from kdbench.errors import BadRecord
from kdbench.evaluation import measure
from kdbench.methods import Part, build_part
from kdbench.methods.term import Term, TermContext
from kdbench.models.backbone import Backbone
from kdbench.models.folding import fold_batch_norm
from kdbench.models.heads import NodeEmbedding
from kdbench.models.outputs import Outputs, measure_shapes
from kdbench.store.record import Record
from kdbench.store.result import Accuracy
from kdbench.store.store import Store
from kdbench.suite.components import TeacherInference
from kdbench.suite.specs import Adapter, Recipe, Stage
from kdbench.training.build import DamagedTeacher, load_teacher, module_key, move_layers, seed_key, seeded, seen_size
from kdbench.training.checkpoint import as_safetensors
from kdbench.training.guard import mapped, plugged_in
from kdbench.training.ranks import ALONE, Ranks
from kdbench.training.trainer import Trainer, make_optimiser, set_learning_rate


TestImages = Iterable[tuple[Tensor, Tensor]]
"""Test images and labels, batch by batch."""


class FrozenTeacher:
    """A finished teacher, frozen: strategies `pretrained` and `sequential`.

    ``bf16``: its passes are in bfloat16; ``widened``: students get its outputs in float32 all the same. ``inference``: its
    batch normalisation is folded into its convolutions, for images of ``side`` pixels, and it may be compiled.
    ``own_test``: the test set in its own view of the images; None where it sees the students'. ``tested_after``: the epoch
    of its weights, where its accuracy as it teaches is to be measured, because its record does not hold it.
    """

    learns = False
    """Whether it changes from batch to batch."""

    def __init__(
        self,
        network: Backbone,
        *,
        bf16: bool = False,
        widened: bool = False,
        inference: TeacherInference | None = None,
        side: int = 32,
        own_test: TestImages | None = None,
        tested_after: int | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        folded = fold_batch_norm(self.network, side) if inference else self.network
        self.inference = _cast_once(folded) if bf16 else folded
        if inference == "compiled":
            self.inference.compile(dynamic=False)
        self.bf16, self.widened = bf16, widened
        self.own_test = own_test
        self.tested_after = tested_after
        self.measured: Accuracy | None = None

    def begin_epoch(self, epoch: int, stream: Batches, first: int = 0) -> None:
        """Nothing changes from step to step."""

    def look(self, batch: Batch) -> tuple[Outputs, Mapping[str, Outputs]]:
        """The outputs for a batch and, by kind, for its transformed copies."""
        copies = self.forward_views(batch)
        return self.forward(batch), copies

    @torch.no_grad()
    def forward(self, batch: Batch) -> Outputs:
        """The teacher's outputs, without gradient."""
        with self._autocast(batch.images.device):
            outputs = self._outputs(batch)
        return self._as_shown(outputs)

    def learn(self) -> None:
        """Learn from the batch that was shown last."""

    @torch.no_grad()
    def forward_views(self, batch: Batch) -> dict[str, Outputs]:
        """The teacher's outputs for the transformed copies, by kind, without gradient. It learns nothing from them."""
        return {
            name: self._look(copies.images if copies.teacher_images is None else copies.teacher_images)
            for name, copies in batch.views.items()
        }

    def _look(self, images: Tensor) -> Outputs:
        with self._autocast(images.device):
            outputs: Outputs = self.inference(images)
        return self._as_shown(outputs)

    def _outputs(self, batch: Batch) -> Outputs:
        """Those that were looked up for a batch, without maps; all, from its images, where none were."""
        if batch.taught is None:
            outputs: Outputs = self.inference(self.view_of(batch))
            return outputs
        below = Outputs(*batch.taught, [], [])
        return self.inference.extend(below) if isinstance(self.inference, NodeEmbedding) else below

    def _as_shown(self, outputs: Outputs) -> Outputs:
        return mapped(Tensor.float, outputs) if self.widened else outputs

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def fixed_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and embeddings [B, D] for an OutputCache; below new layers, frozen or not, the embedding alone."""
        with self._autocast(images.device):
            if isinstance(self.inference, NodeEmbedding):
                embedding = self.inference.backbone(images).embedding
                return embedding[:, :0], embedding
            outputs: Outputs = self.inference(images)
            return outputs.logits, outputs.embedding

    @staticmethod
    def view_of(batch: Batch) -> Tensor:
        """What the teacher sees: its own view of the images, or the students'."""
        return batch.images if batch.teacher_images is None else batch.teacher_images

    def finalize(self, record: Record, test: TestImages) -> dict[str, Any]:
        """Keep in a finished run's record what teaching has changed; returns fields of the run's result.

        test: in the students' view
        """
        return {} if self.tested_after is None else {"teacher": self.accuracy(self.tested_after, test)}

    def accuracy(self, epoch: int, test: TestImages) -> Accuracy:
        """Its accuracy after an epoch as it sees the test images, measured once, however many runs end there."""
        if self.measured is None or self.measured.epoch != epoch:
            (scores,) = measure([self.network], test if self.own_test is None else self.own_test)
            self.measured = Accuracy(epoch=epoch, top1=scores.top1, top5=scores.top5)
        return self.measured

    def state(self) -> dict[str, Any]:
        """What changes while it teaches."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a ``state``."""


def _cast_once(network: Backbone) -> Backbone:
    """A copy with the weights in bf16 that autocast would cast in every forward pass: the same outputs, bit for bit.

    Foreign networks stay as they are: they may read their weights elsewhere than in these layers.
    """
    if plugged_in(network):
        return network
    copy = deepcopy(network)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    return copy


class OnlineTeacher(FrozenTeacher):
    """A frozen backbone whose new layers learn from cross-entropy beside the students: strategy `simultaneous`.

    The students see the outputs from before each update, and no gradient of theirs reaches the teacher (Ma et al., BMVC
    2022, Algorithm A). How many students there are changes nothing for the teacher. It learns from the students' images,
    under few-shot only from those, and from their clean labels. On several devices each passes its portion of them.
    """

    learns = True

    def __init__(
        self,
        network: NodeEmbedding,
        recipe: Recipe,
        *,
        bf16: bool = False,
        widened: bool = False,
        inference: TeacherInference | None = None,
        side: int = 32,
        own_test: TestImages | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(network, widened=widened, own_test=own_test)
        self.bf16 = bf16
        if inference:
            network.backbone = fold_batch_norm(network.backbone, side)
        shown = network.on(_cast_once(network.backbone)) if bf16 else network
        if inference == "compiled":
            shown.backbone.compile(dynamic=False)
        self.inference = shown
        self.head = nn.ModuleList([network.node, network.fc]).requires_grad_(True)
        self.recipe = recipe
        self.optimiser = make_optimiser(list(self.head.parameters()), recipe)
        self.ranks = ranks
        self.epoch = self.batches = 0

    def begin_epoch(self, epoch: int, stream: Batches, first: int = 0) -> None:
        """Stand before batch number ``first`` of an epoch.

        The epochs and batches that were missed, because no student that reads the teacher was there, are replayed. In a
        student's initial stage the new layers do not learn yet.
        """
        if epoch < 1:
            return
        for missed in range(self.epoch + 1, epoch):
            self._go_to(missed)
            self._catch_up(stream.epoch(missed))
        self._go_to(epoch)
        if self.batches < first:
            self._catch_up(islice(stream.epoch(epoch, first=self.batches), first - self.batches))

    def _catch_up(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self.forward(batch)
            self.learn()

    def _go_to(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, 0
        set_learning_rate(self.optimiser, self.recipe.lr_at(epoch))

    def forward(self, batch: Batch) -> Outputs:
        """The outputs for the students, and the gradients of the new layers, with which ``learn`` takes its step."""
        if self.epoch < 1:
            return super().forward(batch)
        self.optimiser.zero_grad(set_to_none=True)
        labels = batch.labels if batch.clean_labels is None else batch.clean_labels
        with torch.enable_grad(), self._autocast(batch.images.device):
            outputs = self._outputs(batch)
            loss = F.cross_entropy(outputs.logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        seen = Outputs(outputs.logits.detach(), outputs.embedding.detach(), outputs.features, outputs.preactivations)
        return self._as_shown(seen)

    def learn(self) -> None:
        """One step of the new layers, once the students have taken theirs."""
        if self.epoch >= 1:
            self.ranks.average([*self.head.parameters()])
            self.optimiser.step()
            self.batches += 1

    def finalize(self, record: Record, test: TestImages) -> dict[str, Any]:
        """Keep the new layers as they are now, and their accuracy."""
        layers = {key: value for key, value in self.network.state_dict().items() if not key.startswith("backbone.")}
        accuracy = self.accuracy(self.epoch, test)
        content = as_safetensors(layers)
        record.write_bytes(record.teacher_head_file.name, content)
        return {"teacher": accuracy, "teacher_head_sha256": hashlib.sha256(content).hexdigest()}

    def state(self) -> dict[str, Any]:
        """Weights and momentum of the new layers, and how far they are: the epoch, and its batches behind them."""
        place = {"epoch": self.epoch, "batches": self.batches}
        return {**place, "head": self.head.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a ``state``."""
        if state:
            self.epoch, self.batches = state["epoch"], state["batches"]
            self.head.load_state_dict(state["head"])
            self.optimiser.load_state_dict(state["optimiser"])


class TeacherWithAdapter(Backbone):
    """A finished teacher, frozen, and the adapter that learns from its outputs."""

    def __init__(self, teacher: nn.Module, adapter: Part) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.part = adapter  # the name is in the keys of stored weights

    def forward(self, images: Tensor) -> Outputs:
        """The teacher's outputs, without gradient."""
        with torch.no_grad():
            outputs: Outputs = self.teacher(images)
        return outputs


class AdapterLoss(Term):
    """The loss of an adapter. The network trains and saves the adapter, so it is no submodule here."""

    reads = "what the adapter reads"
    needs_teacher = False

    def __init__(self, context: TermContext, adapter: Part) -> None:
        super().__init__(context)
        self._loss = adapter.loss
        self.transforms = adapter.transforms

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the adapter's loss on the teacher's outputs, which come as the trained network's own."""
        return self._loss(student, batch)


def adapter_trainer(spec: Adapter, store: Store, device: torch.device, train_size: int) -> Trainer:
    """The trainer of an adapter, whose first weights depend on its spec alone.

    Raises DamagedTeacher where a stage before is not what was stored.
    """
    teacher = load_teacher(spec.parent, store, device)
    store.keep_source(term(spec.term, spec.source_sha256).source)
    with seeded("part", seed_key(spec)):
        context, adapter = _fresh_adapter(spec, teacher, train_size)
    move_layers(adapter, device)
    network = TeacherWithAdapter(teacher, adapter)
    terms: dict[str, Term] = {module_key(spec.term): AdapterLoss(context, adapter)}
    record, weights = store.teacher(spec.id), dict.fromkeys(terms, 1.0)
    key = seed_key(spec)
    return Trainer(record, network, terms, weights, spec.recipe, seed=key, modules=[adapter], classifies=False)


def load_adapter(spec: Adapter, store: Store, teacher: nn.Module, device: torch.device) -> Part:
    """A trained adapter of a teacher, frozen, checked against the hash in its record.

    Raises DamagedTeacher where its file is not what was stored.
    """
    record = store.teacher(spec.id)
    try:
        store.check_teacher(spec)
        result = record.result()
    except BadRecord as error:
        raise DamagedTeacher(str(error), spec) from None
    state = {key.removeprefix("part."): value for key, value in load_file(record.weights_file).items()}
    with torch.random.fork_rng(devices=[]):
        _, adapter = _fresh_adapter(spec, teacher, result.train_images if result else 0)
    try:
        adapter.load_state_dict(state)
    except RuntimeError:
        raise DamagedTeacher(f"{record.weights_file}: holds another adapter", spec) from None
    move_layers(adapter, device)
    return adapter.eval().requires_grad_(False)


def _fresh_adapter(spec: Adapter, teacher: nn.Module, train_size: int) -> tuple[TermContext, Part]:
    """An untrained adapter and its context. It knows no student: both networks of the context are the teacher."""
    shapes = measure_shapes(teacher, seen_size(spec.dataset, spec.recipe))
    context = TermContext(shapes, shapes, shapes.logits, train_size, spec.recipe.batch)
    return context, build_part(spec.term, context, spec.source_sha256, **spec.hyperparameters)


def load_stage(spec: Stage, store: Store, device: torch.device) -> nn.Module:
    """The last stage of a teacher, whatever it is, and those before it. Raises DamagedTeacher as they do."""
    if isinstance(spec, Adapter):
        return load_adapter(spec, store, load_teacher(spec.parent, store, device), device)
    return load_teacher(spec, store, device)
