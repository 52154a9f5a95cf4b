"""Sets of images that stay files: names and labels in memory, pixels on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdbench.datafiles.folders import Listing
from kdbench.datafiles.pictures import read_picture


@dataclass(frozen=True)
class ImageFiles:
    """names: [N] file names below ``folder``, as bytes; labels: [N] int64; clean: the labels before label noise, if any.

    ``size`` is the side in pixels of what a network sees where its view states none. places: [N] int64, where the files stand
    in the whole list, sorted by class and name; None where they are all of it.
    """

    folder: Path
    names: NDArray[np.bytes_]
    labels: Tensor
    classes: int
    size: int
    clean: Tensor | None = None
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Tensor) -> ImageFiles:
        """The files at ``indices``, in that order."""
        clean = None if self.clean is None else self.clean[indices]
        places = indices if self.places is None else self.places[indices]
        return replace(self, names=self.names[indices.numpy()], labels=self.labels[indices], clean=clean, places=places)

    def read(self, index: int) -> Image.Image:
        """One image in RGB. Raises BadInput for a file that is none."""
        return read_picture(self.folder / os.fsdecode(self.names[index]))


def image_files(listing: Listing, classes: int, size: int) -> ImageFiles:
    """The set of files that a listing names."""
    return ImageFiles(listing.folder, listing.names, torch.from_numpy(listing.labels), classes, size)
