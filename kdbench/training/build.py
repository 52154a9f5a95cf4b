"""From specs to networks, terms and learners, with weights that depend on nothing but the spec."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import nn

from kdbench.catalogue.datasets import dataset
from kdbench.data.seeds import seed_of
from kdbench.errors import BadRecord
from kdbench.methods import build_term
from kdbench.methods.term import Setting, Term
from kdbench.models import build
from kdbench.models.backbone import Backbone
from kdbench.models.node_embedding import NodeEmbedding
from kdbench.models.shapes import measure_shapes
from kdbench.store.record import file_hash
from kdbench.store.store import Store
from kdbench.suite.specs import DatasetSpec, RunSpec, TeacherSpec
from kdbench.training.learner import Learner


def new_network(name: str, spec: DatasetSpec, node_embedding: int | None, *seed: object) -> Backbone:
    """A network with fresh weights, drawn from ``seed`` on the CPU, whatever the device and whatever was drawn before."""
    classes = spec.classes or dataset(spec.name).classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("weights", name, spec.canonical(), *seed))
        network = build(name, classes)
        if node_embedding is not None:
            network = NodeEmbedding(network, classes=classes, width=node_embedding)
    return network


def student_learner(
    spec: RunSpec, store: Store, guide: nn.Module | None, train_size: int, device: torch.device
) -> Learner:
    """The learner of a run. Its first weights depend on student, data set and trial; its terms' on the run."""
    network = new_network(spec.student, spec.dataset, spec.recipe.node_embedding, "student", spec.trial)
    size = dataset(spec.dataset.name).size
    shapes = measure_shapes(network, size)
    setting = Setting(
        student=shapes,
        teacher=measure_shapes(guide, size) if guide is not None else shapes,
        classes=shapes.logits,
        train_size=train_size,
        batch_size=spec.recipe.batch,
    )
    terms: dict[str, Term] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("terms", spec.id))
        for use in spec.terms:
            terms[module_key(use.name)] = build_term(use.name, setting, **use.hyperparameters).to(device)
    weights = {module_key(use.name): use.weight for use in spec.terms}
    return Learner(store.run(spec.id), on_device(network, device), terms, weights, spec.recipe)


def teacher_learner(spec: TeacherSpec, store: Store, device: torch.device) -> Learner:
    """The learner of a teacher: cross-entropy alone, on all of the network, or on the new layers of a frozen backbone.

    Raises BadRecord where that backbone is not what was stored.
    """
    modules: list[nn.Module] | None = None
    recipe = spec.recipe
    if spec.head is None:
        network = new_network(spec.network, spec.dataset, None, "teacher", spec.seed)
    else:
        recipe = spec.head.recipe
        network = with_head(load_teacher(spec.backbone, store, device), spec)
        modules = [network.node, network.fc]
    network = on_device(network, device)
    shapes = measure_shapes(network, dataset(spec.dataset.name).size)
    ce = build_term("ce", Setting(shapes, shapes, shapes.logits, 0, recipe.batch))
    keep_best = spec.checkpoint == "best"
    return Learner(
        store.teacher(spec.id), network, {"ce": ce}, {"ce": 1.0}, recipe, modules=modules, keep_best=keep_best
    )


def with_head(backbone: Backbone, spec: TeacherSpec) -> NodeEmbedding:
    """New layers, freshly drawn, on a frozen backbone. The draw depends on the teacher's spec alone."""
    if spec.head is None:
        raise ValueError("the teacher's spec has no head")
    classes = spec.dataset.classes or dataset(spec.dataset.name).classes
    backbone.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("head", spec.backbone.id, spec.head.width))
        return NodeEmbedding(backbone, classes=classes, width=spec.head.width)


def load_teacher(spec: TeacherSpec, store: Store, device: torch.device) -> Backbone:
    """A trained teacher, checked against the hash in its record. Raises BadRecord where the file is not what was stored."""
    record = store.teacher(spec.id)
    result = record.result()
    if result is None:
        raise BadRecord(f"teacher {spec.network} ({spec.id}) is not there")
    path = record.weights_file
    if not path.is_file() or file_hash(path) != result.weights_sha256:
        raise BadRecord(f"{path}: is not the file that was stored")
    network = new_network(spec.network, spec.dataset, None, "teacher", spec.seed)
    if spec.head is not None:
        network = with_head(network, spec)
    network.load_state_dict(load_file(path))
    return on_device(network, device)


def on_device(network: Backbone, device: torch.device) -> Backbone:
    """Move a network to a device, in channels-last memory, which convolutions run faster in."""
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def module_key(name: str) -> str:
    """A term's name as the key of a module: without dots."""
    return name.replace(".", "_")
