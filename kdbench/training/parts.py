"""Parts: what terms train on a finished teacher before any student. Each has a record of its own among the teachers."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.catalogue.terms import term
from kdbench.data.batch import Batch, seed_of
from kdbench.errors import BadRecord
from kdbench.methods import Part, build_part
from kdbench.methods.term import Term, TermContext
from kdbench.models.backbone import Backbone
from kdbench.models.outputs import Outputs, measure_shapes
from kdbench.store.store import Store
from kdbench.suite.specs import Adapter, Stage
from kdbench.training.build import DamagedTeacher, load_teacher, module_key, seen_size
from kdbench.training.seeds import seed_key
from kdbench.training.trainer import Trainer


class TeacherWithPart(Backbone):
    """A finished teacher, frozen, and the part that learns from its outputs."""

    def __init__(self, teacher: nn.Module, part: Part) -> None:
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.part = part

    def forward(self, images: Tensor) -> Outputs:
        """The teacher's outputs, without gradient."""
        with torch.no_grad():
            outputs: Outputs = self.teacher(images)
        return outputs


class PartLoss(Term):
    """What a part learns. The part is the network's to train and to save, so it is no submodule here."""

    reads = "what the part reads"
    needs_teacher = False

    def __init__(self, context: TermContext, part: Part) -> None:
        super().__init__(context)
        self._loss = part.loss
        self.transforms = part.transforms

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the part's loss on the teacher's outputs, which come as the trained network's own."""
        return self._loss(student, batch)


def part_trainer(spec: Adapter, store: Store, device: torch.device, train_size: int) -> Trainer:
    """The trainer of a part, whose first weights depend on its spec alone.

    Raises DamagedTeacher where a stage before is not what was stored.
    """
    teacher = load_teacher(spec.parent, store, device)
    context = _context(spec, teacher, train_size)
    store.keep_source(term(spec.term, spec.source_sha256).source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("part", seed_key(spec)))
        module = build_part(spec.term, context, spec.source_sha256, **spec.hyperparameters).to(device)
    terms: dict[str, Term] = {module_key(spec.term): PartLoss(context, module)}
    network = TeacherWithPart(teacher, module)
    record, weights = store.teacher(spec.id), dict.fromkeys(terms, 1.0)
    return Trainer(record, network, terms, weights, spec.recipe, seed=seed_key(spec), modules=[module])


def load_part(spec: Adapter, store: Store, teacher: nn.Module, device: torch.device) -> Part:
    """A trained part of a teacher, frozen, checked against the hash in its record.

    Raises DamagedTeacher where its file is not what was stored.
    """
    record = store.teacher(spec.id)
    try:
        store.check_teacher(spec)
        result = record.result()
    except BadRecord as error:
        raise DamagedTeacher(str(error), spec) from None
    state = {key.removeprefix("part."): value for key, value in load_file(record.weights_file).items()}
    context = _context(spec, teacher, result.train_images if result else 0)
    with torch.random.fork_rng(devices=[]):
        module = build_part(spec.term, context, spec.source_sha256, **spec.hyperparameters)
    try:
        module.load_state_dict(state)
    except RuntimeError:
        raise DamagedTeacher(f"{record.weights_file}: holds another part", spec) from None
    return module.to(device).eval().requires_grad_(False)


def load_stage(spec: Stage, store: Store, device: torch.device) -> nn.Module:
    """The last stage of a teacher, whatever it is, and those before it. Raises DamagedTeacher as they do."""
    if isinstance(spec, Adapter):
        return load_part(spec, store, load_teacher(spec.parent, store, device), device)
    return load_teacher(spec, store, device)


def _context(spec: Adapter, teacher: nn.Module, train_size: int) -> TermContext:
    """A part knows no student: both networks of its context are the teacher."""
    shapes = measure_shapes(teacher, seen_size(spec.dataset, spec.recipe))
    return TermContext(shapes, shapes, shapes.logits, train_size, spec.recipe.batch)
