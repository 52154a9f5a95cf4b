"""A frozen network's outputs for every crop and flip of the training images: looked up instead of computed in each epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdbench.files import quarantine, write_atomically


_DIGEST = hashlib.sha256().digest_size
"""A file begins with the SHA-256 of what follows."""


class OutputCache:
    """One file for each crop and flip (``Augmenter.number``) with the logits [N, K] and embeddings [N, D] of all N images.

    They are stored as they are computed, side by side, each image's in a row of bytes. The files lie in ``folder``, which
    several processes may fill at the same time, and are mapped into memory: what is read often stays there. ``like`` are the
    logits and embeddings of any images.
    """

    def __init__(self, folder: Path, images: int, crops: int, like: tuple[Tensor, Tensor]) -> None:
        self.folder, self.images, self.crops = folder, images, crops
        self.device = like[0].device
        self._dtypes = [outputs.dtype for outputs in like]
        widths = [outputs.shape[1] * outputs.element_size() for outputs in like]
        self._row, self._middle = sum(widths), widths[0]
        self._rows: dict[int, np.ndarray] = {}

    @property
    def complete(self) -> bool:
        """Whether all files have been opened."""
        return len(self._rows) == self.crops

    def file(self, crop: int) -> Path:
        """Where the outputs for a crop are, or will be."""
        return self.folder / f"{crop:04d}.bin"

    def missing(self) -> list[int]:
        """The crops whose outputs are not there."""
        return [crop for crop in range(self.crops) if crop not in self._rows and not self.file(crop).is_file()]

    def put(self, crop: int, outputs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Store logits [B, K] and embeddings [B, D] of all images, batch by batch in their order. Raises OSError."""
        rows = np.concatenate([np.concatenate([*map(_as_bytes, batch)], 1) for batch in outputs]).tobytes()
        digest = hashlib.sha256(rows).digest()
        write_atomically(self.file(crop), lambda file: file.writelines((digest, rows)))

    def open(self) -> Iterator[Path]:
        """Check and map the files that are there. Those that do not hold what was stored are quarantined; yields these."""
        for crop in set(range(self.crops)) - self._rows.keys():
            path = self.file(crop)
            with suppress(FileNotFoundError):
                if path.stat().st_size == _DIGEST + self.images * self._row and _intact(path):
                    rows = np.memmap(path, np.uint8, "r", _DIGEST, (self.images, self._row))
                    self._rows[crop] = np.asarray(rows)  # indexing a memmap itself takes ten times as long
                else:
                    yield quarantine(path)

    def __call__(self, crops: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and embeddings [B, D], on the device, for crops [B] of images [B] by number, both on the CPU."""
        rows = torch.empty(len(indices), self._row, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        for row, crop, index in zip(rows.numpy(), crops.tolist(), indices.tolist(), strict=True):
            row[:] = self._rows[crop][index]
        found = rows.to(self.device, non_blocking=True)
        logits, embedding = (
            _typed(part, dtype)
            for part, dtype in zip((found[:, : self._middle], found[:, self._middle :]), self._dtypes, strict=True)
        )
        return logits, embedding


def _as_bytes(outputs: Tensor) -> np.ndarray:
    """[B, D] of any type as [B, bytes] uint8."""
    return outputs.cpu().contiguous().view(torch.uint8).numpy()


def _typed(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, bytes] uint8 as [B, D] of a type, in memory of its own."""
    outputs = torch.empty(len(rows), rows.shape[1] // dtype.itemsize, dtype=dtype, device=rows.device)
    outputs.view(torch.uint8).copy_(rows)
    return outputs


def _intact(path: Path) -> bool:
    with path.open("rb") as file:
        stored = file.read(_DIGEST)
        return hashlib.file_digest(file, "sha256").digest() == stored
