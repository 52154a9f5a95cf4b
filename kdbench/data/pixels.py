"""What can be done to pixels on the device: parts of an image, colours, turns. Values lie between 0 and 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def cut(
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


def recoloured(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Images [N, 3, H, W] with other colours: factors [N, 1, 1, 1], applied in this order, and hue in full turns."""
    images = (images * brightness).clamp(0, 1)
    mean = grey(images).mean((2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp(0, 1)
    luma = grey(images)
    images = (luma + (images - luma) * saturation).clamp(0, 1)
    return turned_hue(images, 2 * math.pi * hue.flatten())


def grey(images: Tensor) -> Tensor:
    """The luma [N, 1, H, W] of ITU-R BT.601."""
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def turned_hue(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate the two colour axes of YIQ space by an angle [N] in radians."""
    forward = images.new_tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    cosine, sine = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
    rotation = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], dim=1).view(-1, 3, 3)
    matrix = torch.linalg.inv(forward) @ rotation @ forward
    return torch.einsum("nij,njhw->nihw", matrix, images).clamp(0, 1)


def log_uniform(uniform: Tensor, most: float) -> Tensor:
    """Numbers from 1/most to most whose logarithm is uniform, of uniform ones from 0 to 1."""
    return torch.exp(math.log(most) * (2 * uniform - 1))
