"""Builds networks and trainers from specifications."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.catalogue.plugins import SOURCES, ModuleLocator, in_folder, locating_modules
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
    Adapter,
    DatasetSpec,
    FineTuned,
    Network,
    NewLayers,
    Preprocessing,
    RunSpec,
    SelfSupervised,
    Stage,
    StudentOf,
    Supervised,
    Teacher,
    code_of,
    digest,
)
from kdbench.training.guard import plugged_in
from kdbench.training.trainer import Trainer


TEACHER_TRIAL = -1
"""A teacher's stream is that of a trial of its own, so that no student sees the teacher's batches."""


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


def seed_key(spec: RunSpec | Stage) -> str:
    """Twelve hexadecimal digits that the randomness of a run, or of a teacher's stage, depends on. They are not its id.

    They are the hash of a fixed form of the spec, so renaming a field changes ids and leaves every result as it was.
    """
    return digest(_form_of_run(spec) if isinstance(spec, RunSpec) else _form_of_stage(spec))


def _form_of_run(run: RunSpec) -> dict[str, Any]:
    form = _fields(run, "teacher_view", "adapters")
    form |= {"teacher": _form_of_stage(run.teacher)} if run.teacher else {}
    form |= {"view": run.teacher_view.canonical()} if run.teacher_view else {}
    return form | ({"parts": [_form_of_stage(adapter) for adapter in run.adapters]} if run.adapters else {})


def _form_of_stage(stage: Stage) -> dict[str, Any]:
    """The fields of a stage on top of those of its parents."""
    match stage:
        case StudentOf():
            return {"network": stage.network, "dataset": stage.dataset.canonical(), "student": _form_of_run(stage.run)}
        case FineTuned() | NewLayers():
            return _form_of_stage(stage.parent) | _fields(stage, "parent")
        case Adapter():
            below = _form_of_stage(stage.parent) | {"dataset": stage.dataset.canonical()}
            return below | {"part": _fields(stage, "parent", "dataset")}
    return _fields(stage)


def _fields(spec: RunSpec | Stage, *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in spec.canonical().items() if name not in ("kind", *left_out)}


@contextmanager
def seeded(*seed: object) -> Iterator[None]:
    """Draw random numbers from ``seed`` on the CPU, whatever the device and whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*seed))
        yield


def new_network(name: Network, spec: DatasetSpec, node_embedding: int | None, *seed: object) -> Backbone:
    """A network with fresh weights, drawn from ``seed``."""
    with seeded("weights", name if isinstance(name, str) else name.canonical(), spec.canonical(), *seed):
        return _drawn(name, spec.class_count, node_embedding)


def keep_code(network: Network, store: Store) -> None:
    """Archive the source of a network that does not come with kdbench, once it is built."""
    for sha256 in code_of(network).values():
        store.keep_source(SOURCES[sha256])


def _drawn(name: Network, classes: int, node_embedding: int | None) -> Backbone:
    network = build(name, classes)
    return network if node_embedding is None else NodeEmbedding(network, classes=classes, width=node_embedding)


def student_trainer(
    spec: RunSpec,
    store: Store,
    teacher: nn.Module | None,
    labels: Tensor,
    device: torch.device,
    adapters: Sequence[Part] = (),
    teacher_shapes: Shapes | None = None,
) -> Trainer:
    """The trainer of a run. Its first weights depend on student, data set and trial; its terms' on the run.

    labels:         [N] int64, of all training images, as the student learns them
    adapters:       what its terms have trained on the teacher, in the order of ``spec.adapters``
    teacher_shapes: the sizes of the teacher's outputs; measured where they are not known yet
    """
    network = new_network(spec.student, spec.dataset, spec.recipe.node_embedding, "student", spec.trial)
    keep_code(spec.student, store)
    shapes = measure_shapes(network, seen_size(spec.dataset, spec.recipe))
    if teacher is None:
        teacher_shapes = shapes
    elif teacher_shapes is None:
        teacher_shapes = measure_shapes(teacher, seen_size(spec.dataset, spec.teacher_view or spec.recipe))
    context = TermContext(
        student=shapes,
        teacher=teacher_shapes,
        classes=shapes.logits,
        train_size=len(labels),
        batch_size=spec.recipe.batch,
        labels=labels,
        branch=lambda: Branch(_drawn(spec.student, shapes.logits, spec.recipe.node_embedding)),
    )
    trained = {stage.term: adapter for stage, adapter in zip(spec.adapters, adapters, strict=True)}
    terms: dict[str, Term] = {}
    with seeded("terms", seed_key(spec)):
        for use in spec.terms:
            store.keep_source(term(use.name, use.source_sha256).source)
            own = replace(context, part=trained.get(use.name))
            terms[module_key(use.name)] = build_term(use.name, own, use.source_sha256, **use.hyperparameters)
            move_layers(terms[module_key(use.name)], device)
    return Trainer(
        store.run(spec.id),
        on_device(network, device),
        terms,
        {module_key(use.name): use.weight for use in spec.terms},
        spec.recipe,
        seed=seed_key(spec),
        keep_best=spec.checkpoint == "best",
    )


def teacher_trainer(
    spec: SelfSupervised | Supervised | FineTuned | NewLayers, store: Store, device: torch.device
) -> Trainer:
    """The trainer of a teacher's stage: SimCLR, cross-entropy on all of the network, or on new layers alone.

    Raises BadRecord where the parent is not what was stored.
    """
    network: Backbone
    modules: list[nn.Module] | None = None
    if isinstance(spec, NewLayers):
        network = headed = with_head(load_teacher(spec.parent, store, device), spec)
        modules = [headed.node, headed.fc]
    else:
        network = new_network(spec.network, spec.dataset, None, "teacher", 0)
    keep_code(spec.network, store)
    if isinstance(spec, SelfSupervised):
        network.remove_classifier()
    elif isinstance(spec, FineTuned):
        load_encoder(network, load_teacher(spec.parent, store, torch.device("cpu")))
    network = on_device(network, device)
    shapes = measure_shapes(network, seen_size(spec.dataset, spec.recipe))
    context = TermContext(shapes, shapes, shapes.logits, 0, spec.recipe.batch)
    terms: dict[str, Term]
    if isinstance(spec, SelfSupervised):
        how = spec.pretraining
        with seeded("projection", seed_key(spec)):
            contrast = NTXent(context, temperature=how.temperature, projection=how.projection)
        terms = {"simclr": contrast.to(device)}
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
        classifies=not isinstance(spec, SelfSupervised),
    )


def load_encoder(network: Backbone, encoder: Backbone) -> None:
    """Fill a network with an encoder's weights; its classifier stays as it is where the encoder has none."""
    network.load_state_dict({**network.state_dict(), **encoder.state_dict()})


def with_head(backbone: Backbone, spec: NewLayers) -> NodeEmbedding:
    """New layers, freshly drawn, on a frozen backbone. The draw depends on backbone, data set and width alone."""
    backbone.requires_grad_(False)
    with seeded("head", seed_key(spec.parent), spec.dataset.canonical(), spec.head.width):
        return NodeEmbedding(backbone, classes=spec.dataset.class_count, width=spec.head.width)


def online_layers(run: RunSpec) -> NewLayers:
    """The new layers that learn on a run's teacher during the run. Raises ValueError where none do."""
    if run.teacher is None or run.head is None or isinstance(run.teacher, NewLayers):
        raise ValueError("new layers learn on a teacher that has none yet")
    return NewLayers(parent=run.teacher, dataset=run.dataset, head=run.head)


def load_teacher(spec: Teacher, store: Store, device: torch.device) -> Backbone:
    """A trained teacher: its files, and below new layers its parent's, are checked against the hashes in their records.

    Raises DamagedTeacher where a file is not what was stored.
    """
    network: Backbone
    if headed := isinstance(spec, NewLayers):
        network = with_head(load_teacher(spec.parent, store, device), spec)
    else:
        network = _without_weights(spec)
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


def _without_weights(spec: Teacher) -> Backbone:
    """A stage's network before its weights are loaded.

    The tensors of kdbench's networks have shapes but no memory; code from elsewhere may compute some that no file holds.
    """
    bundled = isinstance(spec.network, str)
    with torch.device("meta") if bundled else torch.random.fork_rng(devices=[]):
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


def move_layers(layers: nn.Module, device: torch.device) -> None:
    """Move a term or an adapter to a device; on a GPU, where it is kdbench's own, into channels-last memory as the maps.

    Otherwise each convolution would bring weights and gradients into the other order in every step.
    """
    own = device.type != "cpu" and not plugged_in(layers)
    layers.to(device=device, memory_format=torch.channels_last if own else torch.preserve_format)  # type: ignore[call-overload]


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
        known = spec.dataset.facts
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
    with locating_modules(archived_modules(spec.student, store)):
        network = load_teacher(StudentOf(run=spec), store, on).eval().requires_grad_(False)
    return Student(network, spec, class_names(spec.dataset.facts, data), on).eval()


def archived_modules(network: Network, store: Store) -> ModuleLocator:
    """Where the modules of a network are that can no longer be imported: in the copy that was archived with its results."""
    folders = [store.source_folder(sha256) for sha256 in code_of(network).values()]
    return lambda top: next((folder for folder in folders if in_folder(top, folder)), None)


def _absent(id: str, store: Store) -> str:
    """Why a run has no student, and what to do."""
    record = store.run(id)
    if failure := record.failure():
        return f"run {id} in {store.root} failed: {failure.reason}"
    if record.has_result_file() or record.has_checkpoint():
        return f"run {id} in {store.root} is not finished: run its suite again to resume it"
    near = nearest(id, [run.id for run in store.records("runs")])
    hint = f"Did you mean '{near}'?" if near else command("list", "runs", results=store.root) + " lists them."
    return f"no run '{id}' in {store.root}. {hint}"
