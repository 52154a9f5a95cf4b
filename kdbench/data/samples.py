"""Which images a student learns from, and with which labels: a list that others can repeat."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench import __version__
from kdbench.data.image_files import ImageFiles
from kdbench.data.images import ImageSet
from kdbench.suite.specs import DatasetSpec, Scenario


@dataclass(frozen=True)
class Samples:
    """places: [N] int64, positions in the official training set, rising; true, given: [N] int64, labels."""

    places: Tensor
    true: Tensor
    given: Tensor

    @property
    def changed(self) -> int:
        """How many labels are not the true ones."""
        return int((self.true != self.given).sum())

    @property
    def sha256(self) -> str:
        """The hash of the lines ``index,given_label``, each ended by a line feed."""
        lines = zip(self.places.tolist(), self.given.tolist(), strict=True)
        return hashlib.sha256("".join(f"{place},{given}\n" for place, given in lines).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """What a student's result says of them."""
        return {"changed_labels": self.changed, "samples_sha256": self.sha256}

    def csv(self, spec: DatasetSpec, scenario: Scenario, trial: int) -> Iterator[str]:
        """The lines of a CSV file; those that begin with # say what it is."""
        yield f"# kdbench {__version__}: the images and labels that a student learns from"
        yield f"# dataset: {json.dumps(spec.canonical())}"
        yield f"# scenario: {json.dumps(scenario.canonical())}"
        yield f"# trial: {trial}"
        yield f"# images: {len(self.places)}, labels that are not the true ones: {self.changed}"
        yield f"# sha256 of the lines index,given_label: {self.sha256}"
        yield "index,true_label,given_label"
        for row in zip(self.places.tolist(), self.true.tolist(), self.given.tolist(), strict=True):
            yield "{},{},{}".format(*row)


def samples_of(train: ImageSet | ImageFiles) -> Samples:
    """The list of a training set as a scenario leaves it."""
    places = torch.arange(len(train)) if train.places is None else train.places
    return Samples(places, train.labels if train.clean is None else train.clean, train.labels)
