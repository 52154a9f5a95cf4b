"""Builds networks and trainers from specifications."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.terms import term
from kdbench.catalogue.text import command, nearest
from kdbench.data.batch import Batch, seed_of
from kdbench.data.preprocess import Normalisation, resize
from kdbench.datafiles.folders import class_names
from kdbench.errors import BadInput, BadRecord
from kdbench.methods import Part, build_term
from kdbench.methods.functional import in_float32
from kdbench.methods.term import Term, TermContext
from kdbench.models import build
from kdbench.models.backbone import Backbone
from kdbench.models.heads import Branch, NodeEmbedding
from kdbench.models.outputs import Outputs, Shapes, measure_shapes
from kdbench.store.store import Store
from kdbench.suite.specs import (
    DatasetSpec,
    FineTuned,
    HeadSpec,
    NewLayers,
    Preprocessing,
    RunSpec,
    SelfSupervised,
    Stage,
    StudentOf,
    Supervised,
    Teacher,
)
from kdbench.training.seeds import seed_key
from kdbench.training.trainer import Trainer


class NTXent(Term):
    """Normalised temperature-scaled cross-entropy: each view of an image must find the other among all views of the batch.

    Equation:   z = g(e) / |g(e)|,  g = Linear(D, D), ReLU, Linear(D, projection)
                L = mean over the 2B views i of  -log( exp(z_i·z_j / T) / sum over k ≠ i of exp(z_i·z_k / T) ),
                j the other view of the same image.
    Shapes:     embeddings e [2B, D], all first views, then all second views in the same order.
    Source:     Chen, Kornblith, Norouzi, Hinton. A Simple Framework for Contrastive Learning of Visual Representations.
                ICML 2020, eq. 1.
    """

    reads = "embedding"
    needs_teacher = False

    def __init__(self, context: TermContext, *, temperature: float = 0.5, projection: int = 128) -> None:
        super().__init__(context)
        width = context.student.embedding
        self.temperature = temperature
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the loss of the batch's two halves against each other."""
        return nt_xent(self.project(student.embedding), self.temperature)


@in_float32
def nt_xent(projections: Tensor, temperature: float) -> Tensor:
    """NT-Xent of [2B, P] projections, whose row i and row i + B are the two views of one image."""
    count = projections.shape[0]
    units = F.normalize(projections, dim=1)
    itself = torch.eye(count, dtype=torch.bool, device=units.device)
    similarity = (units @ units.T / temperature).masked_fill(itself, -torch.inf)
    other = torch.arange(count, device=units.device).roll(count // 2)
    return F.cross_entropy(similarity, other)


def new_network(name: str, spec: DatasetSpec, node_embedding: int | None, *seed: object) -> Backbone:
    """A network with fresh weights, drawn from ``seed`` on the CPU, whatever the device and whatever was drawn before."""
    classes = spec.class_count
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("weights", name, spec.canonical(), *seed))
        return _drawn(name, classes, node_embedding)


def _drawn(name: str, classes: int, node_embedding: int | None) -> Backbone:
    """A network with weights from torch's own generator."""
    network = build(name, classes)
    return network if node_embedding is None else NodeEmbedding(network, classes=classes, width=node_embedding)


def student_trainer(
    spec: RunSpec,
    store: Store,
    teacher: nn.Module | None,
    labels: Tensor,
    device: torch.device,
    parts: Sequence[Part] = (),
    shown: Shapes | None = None,
) -> Trainer:
    """The trainer of a run. Its first weights depend on student, data set and trial; its terms' on the run.

    labels: [N] int64, of all training images, as the student learns them
    parts:  what its terms have trained on the teacher, in the order of ``spec.adapters``
    shown:  the sizes of what the teacher gives; measured where they are not known yet
    """
    network = new_network(spec.student, spec.dataset, spec.recipe.node_embedding, "student", spec.trial)
    shapes = measure_shapes(network, seen_size(spec.dataset, spec.recipe))
    if teacher is not None and shown is None:
        shown = measure_shapes(teacher, seen_size(spec.dataset, spec.teacher_view or spec.recipe))
    context = TermContext(
        student=shapes,
        teacher=shown if teacher is not None and shown else shapes,
        classes=shapes.logits,
        train_size=len(labels),
        batch_size=spec.recipe.batch,
        labels=labels,
        branch=lambda: Branch(_drawn(spec.student, shapes.logits, spec.recipe.node_embedding)),
    )
    trained = {adapter.term: part for adapter, part in zip(spec.adapters, parts, strict=True)}
    terms: dict[str, Term] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("terms", seed_key(spec)))
        for use in spec.terms:
            store.keep_source(term(use.name, use.source_sha256).source)
            own = replace(context, part=trained.get(use.name))
            terms[module_key(use.name)] = build_term(use.name, own, use.source_sha256, **use.hyperparameters).to(device)
    weights = {module_key(use.name): use.weight for use in spec.terms}
    keep_best = spec.checkpoint == "best"
    record, network = store.run(spec.id), on_device(network, device)
    return Trainer(record, network, terms, weights, spec.recipe, seed=seed_key(spec), keep_best=keep_best)


def teacher_trainer(
    spec: SelfSupervised | Supervised | FineTuned | NewLayers, store: Store, device: torch.device
) -> Trainer:
    """The trainer of a teacher's stage: SimCLR, cross-entropy on all of the network, or on new layers alone.

    Raises BadRecord where the parent is not what was stored.
    """
    modules: list[nn.Module] | None = None
    network: Backbone
    if isinstance(spec, NewLayers):
        network = headed = with_head(load_teacher(spec.parent, store, device), spec)
        modules = [headed.node, headed.fc]
    else:
        network = new_network(spec.network, spec.dataset, None, "teacher", 0)
    if isinstance(spec, SelfSupervised):
        network.remove_classifier()
    elif isinstance(spec, FineTuned):
        parent = load_teacher(spec.parent, store, torch.device("cpu"))
        load_encoder(network, parent, classifier=spec.parent.has_classifier)
    network = on_device(network, device)
    shapes = measure_shapes(network, seen_size(spec.dataset, spec.recipe))
    context = TermContext(shapes, shapes, shapes.logits, 0, spec.recipe.batch)
    if isinstance(spec, SelfSupervised):
        terms: dict[str, Term] = {"simclr": _contrast(spec, context).to(device)}
    else:
        terms = {"ce": build_term("ce", context)}
    return Trainer(
        store.teacher(spec.id),
        network,
        terms,
        dict.fromkeys(terms, 1.0),
        spec.recipe,
        seed=seed_key(spec),
        modules=modules,
        keep_best=spec.checkpoint == "best",
    )


def _contrast(spec: SelfSupervised, context: TermContext) -> Term:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("projection", seed_key(spec)))
        return NTXent(context, temperature=spec.pretraining.temperature, projection=spec.pretraining.projection)


def load_encoder(network: Backbone, encoder: Backbone, *, classifier: bool = False) -> None:
    """Fill a network with an encoder's weights; its classifier stays as it is, unless the encoder brings one."""
    if classifier:
        network.load_state_dict(encoder.state_dict())
        return
    name = f"{network.classifier_name}."
    own = {key: value for key, value in network.state_dict().items() if key.startswith(name)}
    network.load_state_dict({**encoder.state_dict(), **own})


def with_head(backbone: Backbone, spec: NewLayers) -> NodeEmbedding:
    """New layers, freshly drawn, on a frozen backbone. The draw depends on backbone, data set and width alone."""
    backbone.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("head", seed_key(spec.parent), spec.dataset.canonical(), spec.head.width))
        return NodeEmbedding(backbone, classes=spec.dataset.class_count, width=spec.head.width)


def online_layers(run: RunSpec, teacher: Teacher, head: HeadSpec) -> NewLayers:
    """The new layers that learn on a run's teacher during the run."""
    if isinstance(teacher, NewLayers | StudentOf):
        raise ValueError("new layers learn on a teacher that has none yet")
    return NewLayers(parent=teacher, dataset=run.dataset, head=head)


def load_teacher(spec: Teacher, store: Store, device: torch.device) -> Backbone:
    """A trained teacher, each stage checked against the hash in its record.

    Raises DamagedTeacher where a file is not what was stored.
    """
    headed = isinstance(spec, NewLayers)
    network = (
        with_head(load_teacher(spec.parent, store, device), spec) if isinstance(spec, NewLayers) else meta_network(spec)
    )
    record = store.record_of(spec)
    try:
        store.check_teacher(spec)
    except BadRecord as error:
        raise DamagedTeacher(str(error), spec) from None
    state = load_file(record.weights_file)
    missing, unexpected = network.load_state_dict(state, strict=False, assign=not headed)
    if unexpected or any(not (headed and key.startswith("backbone.")) for key in missing):
        raise DamagedTeacher(f"{record.weights_file}: holds another network", spec)
    return on_device(network, device)


class DamagedTeacher(BadRecord):
    """A stage of a teacher whose record is not what was stored."""

    def __init__(self, message: str, spec: Stage) -> None:
        super().__init__(message)
        self.spec = spec


def meta_network(spec: Teacher) -> Backbone:
    """A stage's network without weights: the tensors have shapes but no memory."""
    with torch.device("meta"):
        classes = spec.dataset.class_count if spec.dataset else 1
        network = build(spec.network, classes)
        if isinstance(spec, StudentOf) and spec.recipe.node_embedding:
            network = NodeEmbedding(network, classes=classes, width=spec.recipe.node_embedding)
    if not spec.has_classifier:
        network.remove_classifier()
    return network


def seen_size(spec: DatasetSpec, view: Preprocessing) -> int:
    """The side in pixels of the images that a network sees."""
    return view.size or spec.image_size


def on_device(network: Backbone, device: torch.device) -> Backbone:
    """Move a network to a device, in channels-last memory, which convolutions run faster in."""
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def module_key(name: str) -> str:
    """A term's name as the key of a module: without dots."""
    return name.replace(".", "_")


class Student(nn.Module):
    """A network with the preprocessing that it was tested with.

    network:     the network itself, for normalised images of ``size``
    size:        the side in pixels of the images that the network sees
    mean, std:   [3], of each channel's values from 0 to 1
    class_names: the names of the K classes in the order of the logits; () where they are unknown
    """

    def __init__(self, network: Backbone, spec: RunSpec, names: tuple[str, ...], device: torch.device) -> None:
        super().__init__()
        known = dataset(spec.dataset.name)
        self.network = network
        self.size = seen_size(spec.dataset, spec.recipe)
        self.mean, self.std = spec.recipe.mean or known.mean, spec.recipe.std or known.std
        self.class_names = names[: spec.dataset.class_count]
        self._sizes = (spec.dataset.image_size, spec.recipe.size)
        self._normalise = Normalisation(spec.recipe, spec.dataset, device)

    def forward(self, images: Tensor) -> Outputs:
        """Classify images [B, 3, H, W], uint8 or float from 0 to 1; they are resized to squares. Logits are [B, K].

        Raises BadInput for images of another shape or type.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not (images.dtype == torch.uint8 or images.is_floating_point()):
            shape = [*images.shape]
            raise BadInput(
                f"a student takes images [B, 3, H, W] as uint8, or as float from 0 to 1, not {images.dtype} {shape}. "
                "A single image [3, H, W] needs unsqueeze(0)"
            )
        images = images.to(self._normalise.scale.device)
        pixels = images if images.dtype == torch.uint8 else images.float() * 255
        for size in self._sizes:
            pixels = resize(pixels, size)
        outputs: Outputs = self.network(self._normalise(pixels))
        return outputs


def load(id: str, store: Store, data: Path, device: str = "cpu") -> Student:
    """The student of a finished run, checked against its record, in eval mode.

    Raises BadInput for an unknown or unfinished run, BadRecord where the weights are damaged or were not kept.
    """
    record = store.run(id)
    if not record.done():
        raise BadInput(_absent(id, store))
    spec = RunSpec.model_validate(record.spec())
    on = torch.device(device)
    network = load_teacher(StudentOf(run=spec), store, on).eval().requires_grad_(False)
    return Student(network, spec, class_names(dataset(spec.dataset.name), data), on).eval()


def _absent(id: str, store: Store) -> str:
    """Why a run has no student, and what to do."""
    record = store.run(id)
    if failure := record.failure():
        return f"run {id} in {store.root} failed: {failure.reason}"
    if record.has_result_file() or record.has_checkpoint():
        return f"run {id} in {store.root} is not finished: run its suite again to resume it"
    known = [each.id for each in store.records("runs")]
    near = nearest(id, known)
    hint = f"Did you mean '{near}'?" if near else command("list", "runs", results=store.root) + " lists them."
    return f"no run '{id}' in {store.root}. {hint}"
