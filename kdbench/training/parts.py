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
from kdbench.suite.specs import PartSpec, TeacherSpec
from kdbench.training.build import DamagedTeacher, load_teacher, module_key, seen_size
from kdbench.training.learner import Learner


class WithPart(Backbone):
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


def part_learner(spec: TeacherSpec, store: Store, device: torch.device, train_size: int) -> Learner:
    """The learner of a part, whose first weights depend on its spec alone.

    Raises DamagedTeacher where a stage before is not what was stored.
    """
    teacher, part = _before(spec, store, device), _part(spec)
    context = _context(spec, teacher, train_size)
    store.keep_source(term(part.term, part.source_sha256).source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("part", spec.id))
        module = build_part(part.term, context, part.source_sha256, **part.hyperparameters).to(device)
    terms: dict[str, Term] = {module_key(part.term): PartLoss(context, module)}
    network = WithPart(teacher, module)
    return Learner(store.teacher(spec.id), network, terms, dict.fromkeys(terms, 1.0), part.recipe, modules=[module])


def load_part(spec: TeacherSpec, store: Store, teacher: nn.Module, device: torch.device) -> Part:
    """A trained part of a teacher, frozen, checked against the hash in its record.

    Raises DamagedTeacher where its file is not what was stored.
    """
    record, part = store.teacher(spec.id), _part(spec)
    try:
        store.check_teacher(spec)
        result = record.result()
    except BadRecord as error:
        raise DamagedTeacher(str(error), spec) from None
    state = {key.removeprefix("part."): value for key, value in load_file(record.weights_file).items()}
    context = _context(spec, teacher, result.train_images if result else 0)
    with torch.random.fork_rng(devices=[]):
        module = build_part(part.term, context, part.source_sha256, **part.hyperparameters)
    try:
        module.load_state_dict(state)
    except RuntimeError:
        raise DamagedTeacher(f"{record.weights_file}: holds another part", spec) from None
    return module.to(device).eval().requires_grad_(False)


def load_stage(spec: TeacherSpec, store: Store, device: torch.device) -> nn.Module:
    """The last stage of a teacher, whatever it is, and those before it. Raises DamagedTeacher as they do."""
    if spec.part:
        return load_part(spec, store, _before(spec, store, device), device)
    return load_teacher(spec, store, device)


def _context(spec: TeacherSpec, teacher: nn.Module, train_size: int) -> TermContext:
    """A part knows no student: both networks of its context are the teacher."""
    recipe, data = _part(spec).recipe, spec.dataset
    if data is None:
        raise ValueError("a part is trained on a data set")
    shapes = measure_shapes(teacher, seen_size(data, recipe))
    return TermContext(shapes, shapes, shapes.logits, train_size, recipe.batch)


def _before(spec: TeacherSpec, store: Store, device: torch.device) -> Backbone:
    if spec.parent is None:
        raise ValueError("a part has a teacher")
    return load_teacher(spec.parent, store, device)


def _part(spec: TeacherSpec) -> PartSpec:
    if spec.part is None:
        raise ValueError("the teacher's spec has no part")
    return spec.part
