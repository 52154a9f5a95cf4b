"""Transformed copies of a batch's images: what is drawn for them, and how they are made on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from kdbench.data.batch import Copies
from kdbench.data.pixels import cut, grey, log_uniform, recoloured
from kdbench.data.seeds import generator
from kdbench.data.view import Normalisation
from kdbench.errors import BadInput


COPIES = 3
"""Copies of each image. SSKD's code makes three."""


class Transform(ABC):
    """One way to transform images. All that is random is drawn for a whole epoch in advance, COPIES times for each image.

    ``draws`` are uniform numbers [COPIES · N, numbers] on the CPU, image after image.
    """

    classes: int
    """How many different transforms there are, the image itself included."""

    numbers: int
    """How many numbers are drawn for a copy."""

    def draw(self, images: int, draw: torch.Generator) -> Tensor:
        """The draws for as many images."""
        return torch.rand(COPIES * images, self.numbers, generator=draw)

    @abstractmethod
    def labels(self, draws: Tensor) -> Tensor:
        """Which transform each copy gets: [COPIES · N] int64, from 0 to ``classes`` - 1."""

    @abstractmethod
    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The copies of images [COPIES · N, 3, H, W], a square of values from 0 to 255 each, one for each of the draws."""


class Rotations(Transform):
    """The image's copies in order: turned counter-clockwise by 90, 180 and 270 degrees. Nothing is drawn."""

    classes = 4
    numbers = 0

    def labels(self, draws: Tensor) -> Tensor:
        """The quarter turns."""
        return torch.arange(len(draws)) % COPIES + 1

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The turned images."""
        return turned(images, self.labels(draws))


class Four(Transform):
    """The pool of four of SSKD's paper: each copy is grey, or turned, or a part of the image, or has other colours.

    A turn is by 90, 180 or 270 degrees; the part has 8 to 100 % of the area at a ratio from 3:4 to 4:3; brightness, contrast
    and saturation are multiplied by 0.6 to 1.4, and hue moves by up to a tenth of a turn. The paper does not say how often
    each comes; here all four are equally likely, and each copy draws anew. It prints the first weight of grey as 0.229;
    here it is the usual 0.299.
    """

    classes = 5
    numbers = 5

    def labels(self, draws: Tensor) -> Tensor:
        """1: grey, 2: turned, 3: a part, 4: other colours."""
        return below(draws[:, 0], 4) + 1

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The transformed images, as float."""
        kinds = self.labels(draws)
        values = images.float() / 255
        ways = (self._grey, self._turned, self._part, self._recoloured)
        for kind, way in enumerate(ways, start=1):
            rows = (kinds == kind).nonzero().flatten()
            if len(rows):
                where = rows.to(images.device)
                values = values.index_copy(0, where, way(values[where], draws[rows]))
        return values * 255

    @staticmethod
    def _grey(images: Tensor, draws: Tensor) -> Tensor:
        return grey(images).expand_as(images)

    @staticmethod
    def _turned(images: Tensor, draws: Tensor) -> Tensor:
        return turned(images, below(draws[:, 1], 3) + 1)

    @staticmethod
    def _part(images: Tensor, draws: Tensor) -> Tensor:
        area, ratio, right, down = draws[:, 1:].to(images.device).unbind(1)
        return cut(images, 0.08 + 0.92 * area, log_uniform(ratio, 4 / 3), right, down)

    @staticmethod
    def _recoloured(images: Tensor, draws: Tensor) -> Tensor:
        uniform = draws[:, 1:].to(images.device).T.view(4, -1, 1, 1, 1)
        brightness, contrast, saturation = 0.6 + 0.8 * uniform[:3]
        return recoloured(images, brightness, contrast, saturation, 0.1 * (2 * uniform[3] - 1))


class Jigsaw(Transform):
    """The image's quarters in another order: each copy draws one of the 24 permutations, 0 being the image itself."""

    classes = 24
    numbers = 1

    def labels(self, draws: Tensor) -> Tensor:
        """The permutations, in lexicographic order."""
        return below(draws[:, 0], self.classes)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The images with their quarters moved. Raises BadInput for an odd number of pixels, which has no halves."""
        count, channels, side, _ = images.shape
        if side % 2:
            raise BadInput(f"a jigsaw needs images whose sides have halves, not {side} pixels")
        half = side // 2
        orders = torch.tensor(list(permutations(range(4))))[self.labels(draws)].to(images.device)
        quarters = images.reshape(count, channels, 2, half, 2, half).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        moved = quarters[torch.arange(count, device=images.device).unsqueeze(1), orders]
        return moved.view(count, 2, 2, channels, half, half).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


TRANSFORMS: dict[str, Transform] = {"rotations": Rotations(), "four": Four(), "jigsaw": Jigsaw()}


class Copier:
    """Makes one kind of copies for an epoch of ``count`` images, alike for the student's and the teacher's views."""

    def __init__(self, name: str, count: int, seed: tuple[object, ...]) -> None:
        self.transform = TRANSFORMS[name]
        self.draws = self.transform.draw(count, generator("copies", name, *seed))

    def __call__(self, pixels: Sequence[Tensor], normalise: Sequence[Normalisation], start: int) -> Copies:
        """The copies of the epoch's images from number ``start`` on.

        pixels: [COPIES · B, 3, H, W], the crops that are transformed: the student's, and the teacher's if it has its own
        """
        draws = self.draws[copies_of(start, len(pixels[0]) // COPIES)]
        seen = [each(self.transform.apply(crops, draws)) for crops, each in zip(pixels, normalise, strict=True)]
        labels = self.transform.labels(draws).to(pixels[0].device)
        return Copies(seen[0], labels, seen[1] if len(seen) > 1 else None)


def copies_of(start: int, count: int) -> slice:
    """Where the copies of ``count`` images are among an epoch's, from image number ``start`` on."""
    return slice(COPIES * start, COPIES * (start + count))


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Square images [N, 3, H, W], each turned counter-clockwise by ``quarters`` [N], on the CPU, quarter turns."""
    result = images.clone()
    for quarter in (1, 2, 3):
        where = (quarters == quarter).nonzero().flatten().to(images.device)
        result = result.index_copy(0, where, torch.rot90(images[where], quarter, (2, 3)))
    return result


def below(uniform: Tensor, count: int) -> Tensor:
    """Whole numbers from 0 to count - 1, of uniform ones from 0 to 1."""
    return (uniform * count).long().clamp(max=count - 1)


def interleaved(images: Tensor, copies: Tensor) -> Tensor:
    """[B, …] and [COPIES · B, …] as [(1 + COPIES) · B, …]: each image, followed by its copies."""
    rows = torch.cat([images.unsqueeze(1), copies.reshape(len(images), -1, *copies.shape[1:])], dim=1)
    return rows.flatten(0, 1)
