"""Augmented views on the device: the two of SimCLR's pre-training, and the transformed ones that some terms need."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batch import UNDIVIDED, VIEWS_PER_IMAGE, AugmentedViews, Batch, Portion, generator
from kdbench.data.image_sets import ImageSet
from kdbench.data.preprocess import Normalisation
from kdbench.errors import BadInput
from kdbench.suite.specs import DatasetSpec, Pretraining


def crop(
    images: Tensor,
    area: Tensor,
    ratio: Tensor,
    right: Tensor,
    down: Tensor,
    flip: Tensor | None = None,
    size: int | None = None,
) -> Tensor:
    """A part of each image [N, 3, H, W], resized bilinearly to ``size`` (None: the image's), flipped where ``flip`` [N].

    ``area`` [N] is its share of the image, ``ratio`` [N] width over height, ``right`` and ``down`` [N] from 0 to 1 its
    place. A side that would be longer than the image's is cut to that.
    """
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = (1 - width) * (2 * right - 1), (1 - height) * (2 * down - 1)
    if flip is not None:
        width = torch.where(flip, -width, width)
    zero = torch.zeros_like(width)
    theta = torch.stack([width, zero, left, zero, height, top], dim=1).view(len(images), 2, 3)
    side = size or images.shape[-1]
    grid = F.affine_grid(theta, [len(images), 3, side, side], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def color_jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Images [N, 3, H, W] with other colours: factors [N, 1, 1, 1], applied in this order, and hue in full turns."""
    images = (images * brightness).clamp(0, 1)
    mean = to_grayscale(images).mean((2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp(0, 1)
    luma = to_grayscale(images)
    images = (luma + (images - luma) * saturation).clamp(0, 1)
    return adjust_hue(images, 2 * math.pi * hue.flatten())


def to_grayscale(images: Tensor) -> Tensor:
    """The luma [N, 1, H, W] of ITU-R BT.601."""
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def adjust_hue(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate the two colour axes of YIQ space by an angle [N] in radians."""
    forward, inverse = _yiq(images.device)
    cosine, sine = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
    rotation = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], dim=1).view(-1, 3, 3)
    matrix = inverse @ rotation @ forward
    return torch.einsum("nij,njhw->nihw", matrix, images).clamp(0, 1)


@cache
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrices [3, 3] from RGB to YIQ and back, on a device, where they stay."""
    forward = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    return forward.to(device), torch.linalg.inv(forward).to(device)


def log_uniform(uniform: Tensor, most: float) -> Tensor:
    """Map uniform numbers from 0 to 1 to numbers from 1/most to most with a uniform logarithm."""
    return torch.exp(math.log(most) * (2 * uniform - 1))


class Draws(NamedTuple):
    """Uniform numbers [n, numbers] for n views, image after image.

    They lie on the CPU, where the number of views of each kind is known without waiting for the device, and on the device.
    """

    host: Tensor
    device: Tensor

    def of(self, rows: slice) -> Draws:
        """Those of some of the views."""
        return Draws(self.host[rows], self.device[rows])


class Transform(ABC):
    """A family of image transformations. Its random numbers are drawn for a whole epoch in advance, on the CPU."""

    classes: int
    """The number of transforms, the identity included."""

    numbers: int
    """The number of random numbers per view."""

    def draw(self, images: int, rng: torch.Generator) -> Tensor:
        """The draws [VIEWS_PER_IMAGE · N, numbers] for N images."""
        return torch.rand(VIEWS_PER_IMAGE * images, self.numbers, generator=rng)

    @abstractmethod
    def labels(self, draws: Tensor) -> Tensor:
        """The transform of each view: [VIEWS_PER_IMAGE · N] int64, from 0 to ``classes`` - 1."""

    @abstractmethod
    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Transform square images [VIEWS_PER_IMAGE · N, 3, H, W] of values from 0 to 255, each by its row of ``draws``."""


class Rotations(Transform):
    """The image rotated counter-clockwise by 90, 180 and 270 degrees, in this order. Nothing is random."""

    classes = 4
    numbers = 0

    def labels(self, draws: Tensor) -> Tensor:
        """The quarter turns."""
        return torch.arange(len(draws)) % VIEWS_PER_IMAGE + 1

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """The turned images."""
        turned = [torch.rot90(images[turns - 1 :: VIEWS_PER_IMAGE], turns, (2, 3)) for turns in (1, 2, 3)]
        return torch.stack(turned, dim=1).flatten(0, 1)


class MixedTransforms(Transform):
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
        return randint_below(draws[:, 0], 4) + 1

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """The transformed images, as float."""
        counts = self.labels(draws.host).bincount(minlength=self.classes).tolist()
        rows = torch.split(self.labels(draws.device).argsort(stable=True), counts)
        values = images.float() / 255
        ways = (self._grey, self._turned, self._part, self._recoloured)
        for way, where in zip(ways, rows[1:], strict=True):
            if len(where):
                values = values.index_copy(0, where, way(values[where], draws.device[where]))
        return values * 255

    @staticmethod
    def _grey(images: Tensor, draws: Tensor) -> Tensor:
        return to_grayscale(images).expand_as(images)

    @staticmethod
    def _turned(images: Tensor, draws: Tensor) -> Tensor:
        return rotate90(images, randint_below(draws[:, 1], 3) + 1)

    @staticmethod
    def _part(images: Tensor, draws: Tensor) -> Tensor:
        area, ratio, right, down = draws[:, 1:].unbind(1)
        return crop(images, 0.08 + 0.92 * area, log_uniform(ratio, 4 / 3), right, down)

    @staticmethod
    def _recoloured(images: Tensor, draws: Tensor) -> Tensor:
        uniform = draws[:, 1:].T.view(4, -1, 1, 1, 1)
        brightness, contrast, saturation = 0.6 + 0.8 * uniform[:3]
        return color_jitter(images, brightness, contrast, saturation, 0.1 * (2 * uniform[3] - 1))


class Jigsaw(Transform):
    """The image's quarters in another order: each copy draws one of the 24 permutations, 0 being the image itself."""

    classes = 24
    numbers = 1

    def labels(self, draws: Tensor) -> Tensor:
        """The permutations, in lexicographic order."""
        return randint_below(draws[:, 0], self.classes)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """The images with their quarters moved. Raises BadInput for an odd number of pixels, which has no halves."""
        count, channels, side, _ = images.shape
        if side % 2:
            raise BadInput(f"a jigsaw needs images whose sides have halves, not {side} pixels")
        half = side // 2
        orders = _orders(images.device)[self.labels(draws.device)]
        quarters = images.reshape(count, channels, 2, half, 2, half).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        moved = quarters[torch.arange(count, device=images.device).unsqueeze(1), orders]
        return moved.view(count, 2, 2, channels, half, half).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


@cache
def _orders(device: torch.device) -> Tensor:
    """The permutations [24, 4] of four quarters in lexicographic order, on a device, where they stay."""
    return torch.tensor(list(permutations(range(4)))).to(device)


TRANSFORMS: dict[str, Transform] = {"rotations": Rotations(), "four": MixedTransforms(), "jigsaw": Jigsaw()}


class ViewGenerator:
    """Generates one kind of views for an epoch of ``count`` images, with the same transforms for student and teacher."""

    def __init__(self, name: str, count: int, seed: tuple[object, ...], device: torch.device) -> None:
        self.transform = TRANSFORMS[name]
        draws = self.transform.draw(count, generator("copies", name, *seed))
        self.draws = Draws(draws, draws.to(device))
        self.labels = self.transform.labels(draws).to(device)

    def __call__(self, pixels: Sequence[Tensor], normalise: Sequence[Normalisation], start: int) -> AugmentedViews:
        """The views of one batch, which begins at image number ``start`` of the epoch.

        pixels: [VIEWS_PER_IMAGE · B, 3, H, W] each, the crops of the student, and of the teacher if it has its own
        """
        rows = view_rows(start, len(pixels[0]) // VIEWS_PER_IMAGE)
        draws = self.draws.of(rows)
        seen = [each(self.transform.apply(crops, draws)) for crops, each in zip(pixels, normalise, strict=True)]
        return AugmentedViews(seen[0], self.labels[rows], seen[1] if len(seen) > 1 else None)


def view_rows(start: int, count: int) -> slice:
    """The rows of the views of ``count`` images, from image number ``start`` of the epoch on."""
    return slice(VIEWS_PER_IMAGE * start, VIEWS_PER_IMAGE * (start + count))


def rotate90(images: Tensor, quarters: Tensor) -> Tensor:
    """Square images [N, 3, H, W], each turned counter-clockwise by ``quarters`` [N] int64, quarter turns."""
    places = _turned_places(images.shape[-1], images.device)[quarters]
    return images.flatten(2).gather(2, places.unsqueeze(1).expand(-1, images.shape[1], -1)).view(images.shape)


@cache
def _turned_places(side: int, device: torch.device) -> Tensor:
    """[4, side²]: the pixels of a square image that come in place of each after 0 to 3 quarter turns, on a device."""
    places = torch.arange(side**2).view(side, side)
    return torch.stack([torch.rot90(places, turns).flatten() for turns in range(4)]).to(device)


def randint_below(uniform: Tensor, count: int) -> Tensor:
    """Map uniform numbers from 0 to 1 to integers from 0 to count - 1."""
    return (uniform * count).long().clamp(max=count - 1)


def interleave_views(images: Tensor, views: Tensor) -> Tensor:
    """[B, …] and [VIEWS_PER_IMAGE · B, …] as [(1 + VIEWS_PER_IMAGE) · B, …]: each image, followed by its views."""
    rows = torch.cat([images.unsqueeze(1), views.reshape(len(images), -1, *views.shape[1:])], dim=1)
    return rows.flatten(0, 1)


class TwoViews:
    """The batches of a pre-training: images [2B, 3, H, W], all first views, then all second views in the same order.

    Each view is a random crop of at least ``smallest_crop`` of the area at a ratio between 3:4 and 4:3, resized to the
    recipe's size or the image's own, flipped if the recipe flips; in four of five its colours are changed, and one in five
    is grey. As on CIFAR in the paper there is no blur. Departures: colours change in a fixed order, and hue by a rotation
    in YIQ space.
    """

    def __init__(
        self, train: ImageSet, how: Pretraining, spec: DatasetSpec, seed: tuple[object, ...], device: torch.device
    ) -> None:
        self.how = how
        self.seed = seed
        self.device = device
        self.images, self.labels = train.images.to(device), train.labels.to(device)
        self.normalise = Normalisation(how.recipe, spec, device)

    def __len__(self) -> int:
        """Images per epoch, each seen twice."""
        return self.labels.shape[0]

    def epoch(
        self,
        epoch: int,
        *,
        with_teacher: bool = False,
        transforms: Sequence[str] = (),
        first: int = 0,
        portion: Portion = UNDIVIDED,
    ) -> Iterator[Batch]:
        """The batches of an epoch, counted from 1. There is no teacher, and there are no transformed views.

        They are not divided: whatever the ``portion``, a device sees them whole.
        """
        rng = generator("two views", *self.seed, epoch)
        order = torch.randperm(len(self), generator=rng).to(self.device)
        parts = torch.split(order, self.how.recipe.batch)
        draws = [
            (torch.rand(5, 2 * len(part), generator=rng), torch.rand(6, 2 * len(part), generator=rng)) for part in parts
        ]
        where, colours = (torch.cat(each, dim=1).to(self.device) for each in zip(*draws, strict=True))
        for number, part in enumerate(parts[first:], first):
            indices = part.repeat(2)
            start = 2 * number * self.how.recipe.batch
            columns = slice(start, start + len(indices))
            crops = self._crop(self.images[indices].float() / 255, where[:, columns])
            views = self._recolour(crops, colours[:, columns, None, None, None])
            yield Batch(self.normalise(views.mul_(255)), self.labels[indices], indices)

    def _crop(self, images: Tensor, uniform: Tensor) -> Tensor:
        area = self.how.smallest_crop + (1 - self.how.smallest_crop) * uniform[0]
        flip = uniform[4] < 0.5 if self.how.recipe.flip else None
        ratio = log_uniform(uniform[1], 4 / 3)
        return crop(images, area, ratio, uniform[2], uniform[3], flip, self.how.recipe.size)

    def _recolour(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Brightness, contrast, saturation and hue of images [N, 3, H, W] of values 0–1."""
        changed = uniform[4] < 0.8
        strength = 0.8 * self.how.colour
        brightness, contrast, saturation = (
            torch.where(changed, 1 + strength * (2 * uniform[n] - 1), 1.0) for n in range(3)
        )
        turn = torch.where(changed, 0.2 * self.how.colour * (2 * uniform[3] - 1), 0.0)
        images = color_jitter(images, brightness, contrast, saturation, turn)
        return torch.where(uniform[5] < 0.2, to_grayscale(images), images)
