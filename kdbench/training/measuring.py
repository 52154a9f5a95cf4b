"""The third job of a worker: measure finished networks. A probe can stop after any step and go on later."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.data.batch import Batches
from kdbench.data.stream import FeatureStream, embed
from kdbench.errors import BadInput
from kdbench.evaluation import class_correlation, is_constant, kl_divergence, linear_cka, measure
from kdbench.files import quarantine
from kdbench.methods import build_term
from kdbench.methods.term import TermContext
from kdbench.models.backbone import Backbone
from kdbench.models.heads import LinearProbe
from kdbench.models.outputs import Shapes
from kdbench.planning.cost import measurement_work
from kdbench.store.record import Record
from kdbench.store.store import Store
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.specs import RunSpec, Scenario, StudentOf
from kdbench.training.build import TEACHER_TRIAL, load_teacher, on_device, online_layers, seeded, with_head
from kdbench.training.context import JobContext, JobResult, RunFinisher
from kdbench.training.loop import train
from kdbench.training.trainer import Trainer


TEMPERATURES = (4.0, 1.0)
"""At which the KL divergence is taken: KD's own, and that of the probabilities as they are."""


def take_measurement(spec: ProbeSpec | SimilaritySpec, ctx: JobContext) -> JobResult:
    """Measure finished networks, unless that is done or another process does it.

    Raises LostTeacher where a network proves damaged.
    """
    record = ctx.store.measurement(spec.id)
    with ctx.claimed([record]) as mine:
        if not mine:
            return JobResult(busy=[spec.id])
        if ctx.store.measured(spec) is None and record.done():
            name = quarantine(record.folder / "result.json").name
            ctx.emit(
                "message", text=f"{spec.label}: was measured on other weights; quarantined as {name}, measured again"
            )
        if ctx.already_finished(record):
            return JobResult()
        ctx.begin(record, spec.canonical())
        if isinstance(spec, ProbeSpec):
            return JobResult(stopped=not _train_probe(spec, record, ctx))
        _compare(spec, record, ctx)
        return JobResult()


def _train_probe(spec: ProbeSpec, record: Record, ctx: JobContext) -> bool:
    """Train a linear classifier on a frozen backbone. False if asked to stop before the end."""
    trial = spec.source.run.trial if isinstance(spec.source, StudentOf) else TEACHER_TRIAL
    stream: Batches
    test: Iterable[tuple[Tensor, Tensor]]
    if spec.fixed_features:
        network = load_teacher(spec.source, ctx.store, ctx.device)
        features, labels = embed(network, ctx.data.train(spec.dataset, spec.recipe))
        stream = FeatureStream(features, labels, spec.recipe.batch, (spec.dataset.canonical(), trial))
        seen, right = embed(network, ctx.data.test(spec.dataset, spec.recipe))
        test = list(zip(torch.split(seen, _TEST_BATCH), torch.split(right, _TEST_BATCH), strict=True))
        tested = len(right)
    else:
        stream = ctx.data.stream(spec.dataset, Scenario(), spec.recipe, trial)
        test = ctx.data.test(spec.dataset, spec.recipe)
        tested = len(test)
    make = partial(_probe_trainer, spec, record, trial, ctx)
    trainer, _ = ctx.restore_or_build(make, spec.dependencies)
    fields = {"train_images": len(stream), "test_images": tested}
    conclude = RunFinisher(ctx, "measurement", {spec.id: {"macs": measurement_work(spec).macs}}, fields)
    return train([trainer], None, stream, lambda networks, _: measure(networks, test), ctx.callbacks(conclude))


_TEST_BATCH = 4096
"""Features are small: a test of them is a few products."""


def _probe_trainer(spec: ProbeSpec, record: Record, trial: int, ctx: JobContext) -> Trainer:
    """The trainer of a probe, whose first weights depend on data set, width and trial: not on who is probed.

    Where batch norms are in training mode, they drift, and so belong to what is trained and kept.
    """
    backbone = load_teacher(spec.source, ctx.store, ctx.device)
    classes, width = spec.dataset.class_count, backbone.width
    with seeded("probe", spec.dataset.canonical(), width, trial):
        network = LinearProbe(width, classes, None if spec.fixed_features else backbone)
    shapes = Shapes(classes, width, ())
    terms = {"ce": build_term("ce", TermContext(shapes, shapes, classes, 0, spec.recipe.batch))}
    modules: list[nn.Module] = [network] if spec.batch_norm == "batch" else [network.fc]
    return Trainer(
        record, on_device(network, ctx.device), terms, {"ce": 1.0}, spec.recipe, seed=spec.id, modules=modules
    )


@torch.no_grad()
def _compare(spec: SimilaritySpec, record: Record, ctx: JobContext) -> None:
    """Store how alike the outputs of student and teacher for the same test images are."""
    student = load_teacher(spec.source, ctx.store, ctx.device).eval()
    teacher = _teacher(spec, ctx).eval()
    sums = dict.fromkeys(TEMPERATURES, 0.0)
    embeddings: list[tuple[Tensor, Tensor]] = []
    own, other = (ctx.data.test(spec.dataset, view) for view in (spec.student_view, spec.teacher_view))
    for (images, labels), (shown, _) in zip(own, other, strict=True):
        ours, theirs = student(images), teacher(shown)
        embeddings.append((ours.embedding.float().cpu(), theirs.embedding.float().cpu()))
        for temperature in TEMPERATURES:
            value = kl_divergence(ours.logits, theirs.logits, temperature)
            sums[temperature] += float(value) * len(labels)
    student_embeddings, teacher_embeddings = map(torch.cat, zip(*embeddings, strict=True))
    correlations = {
        "student": class_correlation(classifier_weights(student)),
        "teacher": class_correlation(classifier_weights(teacher)),
    }
    values = {f"kl_t{temperature:g}": total / len(student_embeddings) for temperature, total in sums.items()}
    values["cka"] = linear_cka(student_embeddings, teacher_embeddings)
    values["class_correlation_difference"] = float((correlations["student"] - correlations["teacher"]).abs().mean())
    undefined = {name: "not a finite number" for name, value in values.items() if not math.isfinite(value)}
    if "cka" in undefined and (is_constant(student_embeddings) or is_constant(teacher_embeddings)):
        undefined["cka"] = "the same embedding for all images"
    fields = {
        "values": {name: value for name, value in values.items() if name not in undefined},
        "undefined": undefined or None,
        "parent_sha256": ctx.store.hashes(spec.dependencies),
        "test_images": len(student_embeddings),
    }
    ctx.finish(record, "measurement", correlations, fields, {"sessions": 1, "macs": measurement_work(spec).macs})


def _teacher(spec: SimilaritySpec, ctx: JobContext) -> Backbone:
    if spec.teacher is not None:
        return load_teacher(spec.teacher, ctx.store, ctx.device)
    return online_teacher(spec.source.run, ctx.store, ctx.device)


def online_teacher(run: RunSpec, store: Store, device: torch.device) -> Backbone:
    """The teacher whose new layers learned beside a run's student, as it was when the run ended."""
    layers = online_layers(run)
    network = with_head(load_teacher(layers.parent, store, torch.device("cpu")), layers)
    file = store.run(run.id).teacher_head_file
    if not file.is_file():
        raise BadInput(f"{file}: is not there; the run was trained by a version that did not keep it")
    network.load_state_dict(load_file(file), strict=False)
    return on_device(network, device)


def classifier_weights(network: Backbone) -> Tensor:
    """The weights [K, D] of a network's last linear layer."""
    layer = network.get_submodule(network.classifier_name or "")
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise BadInput("a network without classifier cannot be compared by its classes")
    return weight.detach().float().cpu()
