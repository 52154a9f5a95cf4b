"""The parts of cross-layer distillation: how the teacher's maps are weighted, and how a pair of maps is compared.

Every part takes the student's S maps and the teacher's T maps, each [B, C, H, W], and gives [B, S, T].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.methods.functional import in_float32, pool_to_smaller, unit_rows


Shape = tuple[int, int, int]
Maps = Sequence[Tensor]


# Weights: they sum to 1 over the teacher's maps


class EqualAllocation(nn.Module):
    """The same weight for all of the teacher's maps."""

    def forward(self, sources: Maps, targets: Maps) -> Tensor:
        """Return 1 / T everywhere."""
        shape = (len(sources[0]), len(sources), len(targets))
        return torch.full(shape, 1 / len(targets), device=sources[0].device)


class SharedAllocation(nn.Module):
    """Learned weights that are the same for all images; equal at first."""

    def __init__(self, sources: int, targets: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.logits = nn.Parameter(torch.zeros(sources, targets))

    def forward(self, sources: Maps, targets: Maps) -> Tensor:
        """Return the softened weights, once for each image."""
        return torch.softmax(self.logits / self.temperature, dim=1).expand(len(sources[0]), -1, -1)


class Attention(nn.Module):
    """Weights by the agreement of a query for each student map with a key for each teacher map.

    batch:      the number of images B, which sets the width of queries and keys, ⌊B/4⌋
    similarity: whether they are read from rows of the Gram matrices or from the maps themselves
    mlp:        whether they are the unit-length outputs of an MLP or linear
    """

    def __init__(
        self,
        sources: Sequence[Shape],
        targets: Sequence[Shape],
        batch: int,
        temperature: float,
        *,
        similarity: bool,
        mlp: bool,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.read = gram if similarity else flatten
        kind = UnitMLP if mlp else nn.Linear
        widths = [[batch if similarity else c * h * w for c, h, w in shapes] for shapes in (sources, targets)]
        self.queries, self.keys = (nn.ModuleList(kind(width, batch // 4) for width in each) for each in widths)

    def forward(self, sources: Maps, targets: Maps) -> Tensor:
        """Return the softmax over the teacher's maps of query · key / temperature."""
        queries, keys = (
            stack_embeddings(self.queries, map(self.read, sources)),
            stack_embeddings(self.keys, map(self.read, targets)),
        )
        return attention(queries, keys, self.temperature)


@in_float32
def attention(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Softmax over the keys of query · key / temperature; queries [B, S, D], keys [B, T, D]."""
    return torch.softmax(queries @ keys.transpose(1, 2) / temperature, dim=2)


# Errors


class Projections(nn.Module):
    """Mean squared error between the projected student map and the teacher's, one projection for each pair."""

    def __init__(self, sources: Sequence[Shape], targets: Sequence[Shape]) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(
            build_projection(source[0], target[0]) for source, target in product(sources, targets)
        )

    def forward(self, sources: Maps, targets: Maps) -> Tensor:
        """Return the errors. The larger map of a pair is average-pooled first."""
        errors = [squared_error(projected, target) for projected, target in self.compared(sources, targets)]
        return torch.stack(errors, dim=1).reshape(-1, len(sources), len(targets))

    def compared(self, sources: Maps, targets: Maps) -> list[tuple[Tensor, Tensor]]:
        """Return what the errors are of, for each student map all of the teacher's."""
        pairs = []
        for project, (source, target) in zip(self.pairs, product(sources, targets), strict=True):
            smaller, aim = pool_to_smaller(source, target)
            pairs.append((project(smaller), aim))
        return pairs


class SimilarityEmbeddings(nn.Module):
    """Mean squared error between vectors that MLPs make of the maps' similarity matrices; one MLP for each map."""

    def __init__(self, sources: int, targets: int, batch: int) -> None:
        super().__init__()
        self.of_student, self.of_teacher = (
            nn.ModuleList(UnitMLP(batch, batch // 4) for _ in range(count)) for count in (sources, targets)
        )

    def forward(self, sources: Maps, targets: Maps) -> Tensor:
        """Return the errors."""
        ours, theirs = (
            stack_embeddings(self.of_student, map(gram, sources)),
            stack_embeddings(self.of_teacher, map(gram, targets)),
        )
        return (ours[:, :, None] - theirs[:, None]).square().mean(3)

    def compared(self, sources: Maps, targets: Maps) -> list[tuple[Tensor, Tensor]]:
        """Return what the errors are of, for each student map all of the teacher's."""
        ours, theirs = (
            stack_embeddings(self.of_student, map(gram, sources)),
            stack_embeddings(self.of_teacher, map(gram, targets)),
        )
        return list(product(ours.unbind(1), theirs.unbind(1)))


@in_float32
def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image [B] between two maps [B, C, H, W]."""
    return F.mse_loss(prediction, target, reduction="none").mean((1, 2, 3))


def build_projection(source: int, target: int) -> nn.Sequential:
    """Three convolutions, 1×1, 3×3 and 1×1, without bias, by way of twice the target's channels."""
    inner = 2 * target
    return nn.Sequential(
        nn.Conv2d(source, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, inner, 3, padding=1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, target, 1, bias=False),
    )


# Vectors


class UnitMLP(nn.Module):
    """Two linear layers with ReLU between; rows [B, inputs] → [B, width] of length 1."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 2 * width), nn.ReLU(inplace=True), nn.Linear(2 * width, width))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the vectors; one of length 0 stays 0."""
        return unit_rows(self.layers(rows), epsilon=1e-6)


def stack_embeddings(modules: nn.ModuleList, rows: Iterable[Tensor]) -> Tensor:
    """Stack what each module makes of its map's rows: [B, maps, D]."""
    return torch.stack([embed(each, module) for module, each in zip(modules, rows, strict=True)], dim=1)


@in_float32
def embed(rows: Tensor, module: nn.Module) -> Tensor:
    """Run a module on rows [B, inputs] in float32."""
    return module(rows)  # type: ignore[no-any-return]


@in_float32
def gram(feature_map: Tensor) -> Tensor:
    """Gram matrix [B, B] of the flattened images of a map [B, …], as it is."""
    images = feature_map.flatten(1)
    return images @ images.T


def flatten(feature_map: Tensor) -> Tensor:
    """A map's images as rows [B, C·H·W]."""
    return feature_map.flatten(1)
