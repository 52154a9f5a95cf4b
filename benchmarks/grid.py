"""What EGA Table 1's grid of CLIP ViT-B/32 costs: its runs one by one, as a cohort, and on the teacher's cached outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from steps import CIFAR, Row, Setup, pass_over, with_cache

from kdbench.data.stream import Stream
from kdbench.models import build
from kdbench.models.outputs import measure_shapes
from kdbench.store.store import Store
from kdbench.suite.load import load_suites
from kdbench.suite.protocol import bundled_protocol
from kdbench.training.build import online_layers, seen_size, student_trainer, with_head
from kdbench.training.teacher import OnlineTeacher


METHODS = ("kd", "fitnet", "pkt", "rkd", "irg", "nce", "crd", "ccl", "ega")


def grid(setup: Setup, methods: Sequence[str] = METHODS) -> Iterator[Row]:
    """A step of the grid's methods in resnet8x4 on random images, under a ViT with random weights.

    ``alone`` is how much longer the same runs take one by one. What is cached is computed once for each crop of each image,
    flipped or not, and all epochs of all trials share that cost.
    """
    trials = bundled_protocol("ega").trials
    runs = [
        run.spec.model_copy(update={"recipe": setup.adapted(run.spec.recipe)})
        for run in load_suites(["ega_simultaneous"], trials=1)[0].runs
        if run.method in methods and run.spec.dataset == CIFAR
        if (run.spec.teacher.network, run.spec.student) == ("clip-vit-b32", "resnet8x4")
    ]
    lead = runs[0]
    view, side = lead.teacher_view, seen_size(CIFAR, lead.teacher_view)
    stream = Stream(setup.images(setup.batch * setup.steps), lead.recipe, CIFAR, ("benchmark",), setup.device, view)
    backbone = build(lead.teacher.network, CIFAR.class_count)
    backbone.remove_classifier()
    network = with_head(backbone, online_layers(lead)).to(setup.device)
    teacher = OnlineTeacher(network, lead.head.recipe, bf16=setup.precision == "bf16", side=side)
    shapes = measure_shapes(teacher.network, side)
    batches = torch.arange(len(stream), device=setup.device).split(setup.batch)
    with tempfile.TemporaryDirectory() as folder:
        store, labels = Store(Path(folder)), stream.labels
        trainers = [
            student_trainer(run, store, teacher.network, labels.clone(), setup.device, (), shapes) for run in runs
        ]
        cached = with_cache(stream, teacher, Path(folder) / "outputs")
        *alone, together, looked_up, forward = setup.medians(
            [
                *(partial(pass_over, [trainer], teacher, stream) for trainer in trainers),
                partial(pass_over, trainers, teacher, stream),
                partial(pass_over, trainers, teacher, cached),
                lambda: [teacher.fixed_outputs(stream.shown.numbered(0, batch)) for batch in batches],
            ]
        )
    filling = forward * stream.shown.view.crops / (lead.recipe.epochs * trials)
    times = {
        "one by one": sum(alone),
        "as a cohort": together,
        "as a cohort, outputs cached": looked_up,
        "as a cohort, outputs cached, with the caching": looked_up + filling,
    }
    for what, seconds in times.items():
        yield {
            "what": f"{len(runs)} run{'s' if len(runs) > 1 else ''} {what}",
            "ms": 1000 * seconds / setup.steps,
            "alone": sum(alone) / seconds,
        }
