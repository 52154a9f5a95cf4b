"""Made-up outputs of a student and a teacher, small enough that every test takes milliseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.catalogue.terms import term
from kdbench.data.batch import VIEWS_PER_IMAGE, AugmentedViews, Batch
from kdbench.data.views import TRANSFORMS, Draws
from kdbench.methods import TermContext, build_part
from kdbench.models.outputs import Outputs, Shapes


CLASSES = 10
STUDENT = Shapes(CLASSES, 24, ((8, 8, 8), (8, 8, 8), (16, 4, 4), (24, 2, 2)))
TEACHER = Shapes(CLASSES, 32, ((12, 8, 8), (16, 8, 8), (20, 4, 4), (32, 2, 2)))
LABELS = torch.arange(50) % 4


def _outputs(shapes: Shapes, size: int, seed: int, grad: bool = False) -> Outputs:
    rng = torch.Generator().manual_seed(seed)

    def leaf(*shape: int, relu: bool = True) -> Tensor:
        values = torch.randn(size, *shape, generator=rng)
        return (values.relu() if relu else values).requires_grad_(grad)

    return Outputs(
        logits=leaf(shapes.logits, relu=False),
        embedding=leaf(shapes.embedding),
        features=[leaf(*shape) for shape in shapes.features],
        preactivations=[leaf(*shape, relu=False) for shape in shapes.stages],
    )


def _branch() -> nn.Module:
    """A last stage of the made-up student with a classifier."""
    width, height = STUDENT.features[-2][0], STUDENT.features[-1][0]
    stage = [nn.Conv2d(width, height, 3, 2, padding=1, bias=False), nn.BatchNorm2d(height), nn.ReLU()]
    return nn.Sequential(*stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(height, CLASSES))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Maps of a few hundred numbers are no work for two, least of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def context() -> TermContext:
    size = {"classes": CLASSES, "train_size": 50, "batch_size": 8}
    return TermContext(STUDENT, TEACHER, **size, labels=LABELS, branch=_branch)


@pytest.fixture
def equal_context(context: TermContext) -> TermContext:
    """The same with embeddings of one width, for the terms that compare the embeddings themselves."""
    return dataclasses.replace(context, teacher=dataclasses.replace(TEACHER, embedding=STUDENT.embedding))


@pytest.fixture
def with_part() -> Callable[..., TermContext]:
    """with_part(name, context, **hyper): the context with the term's part, where it has one, always the same and frozen."""

    def build(name: str, context: TermContext, **hyper: Any) -> TermContext:
        if term(name).part is None:
            return context
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            part = build_part(name, dataclasses.replace(context, student=context.teacher, labels=None), **hyper)
        return dataclasses.replace(context, part=part.eval().requires_grad_(False))

    return build


@pytest.fixture
def make_outputs() -> Callable[..., Outputs]:
    """make_outputs(shapes, size, seed, grad=False): random outputs; maps and embedding are not negative."""
    return _outputs


@pytest.fixture
def make_batch() -> Callable[[int], Batch]:
    def batch(size: int) -> Batch:
        positions, rng = torch.arange(size), torch.Generator().manual_seed(3)
        images = torch.randn(size, 3, 8, 8, generator=rng)
        copies = {}
        for name, transform in TRANSFORMS.items():
            draws = transform.draw(size, rng)
            changed = transform.apply(images.repeat_interleave(VIEWS_PER_IMAGE, 0), Draws(draws, draws))
            copies[name] = AugmentedViews(changed, transform.labels(draws))
        return Batch(images=images, labels=positions % 4, indices=positions, views=copies)

    return batch


@pytest.fixture
def leaves() -> Callable[[Outputs], list[Tensor]]:
    """All tensors of an Outputs in a row."""
    return lambda out: [out.logits, out.embedding, *out.features, *out.preactivations]


@pytest.fixture
def outputs_from() -> Callable[..., Outputs]:
    """outputs_from(logits=, embedding=, stages=): what a test has, zeros for the rest, a stem before the stages."""

    def build(logits: Tensor | None = None, embedding: Tensor | None = None, stages: list[Tensor] | None = None):
        given = [t for t in (logits, embedding, *(stages or [])) if t is not None]
        like = given[0].detach()
        stages = stages or [like.new_zeros(len(like), 1, 1, 1)]
        return Outputs(
            logits=like.new_zeros(len(like), 2) if logits is None else logits,
            embedding=like.new_zeros(len(like), 2) if embedding is None else embedding,
            features=[like.new_zeros(len(like), 1, 1, 1), *stages],
            preactivations=stages,
        )

    return build
