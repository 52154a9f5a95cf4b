"""A trained student as a module that takes images as they are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kdbench.catalogue.datasets import dataset
from kdbench.catalogue.text import command, nearest
from kdbench.data.preprocess import Normalisation, resize
from kdbench.datafiles.folders import class_names
from kdbench.errors import BadInput
from kdbench.models.backbone import Backbone
from kdbench.models.outputs import Outputs
from kdbench.store.store import Store
from kdbench.suite.specs import RunSpec, StudentOf
from kdbench.training.build import load_teacher, seen_size


class Student(nn.Module):
    """A network with the preprocessing that it was tested with.

    network:     the network itself, for normalised images of ``size``
    size:        the side in pixels of the images that the network sees
    mean, std:   [3], of each channel's values from 0 to 1
    class_names: the names of the K classes in the order of the logits; () where they are unknown
    """

    def __init__(self, network: Backbone, spec: RunSpec, names: tuple[str, ...], device: torch.device) -> None:
        super().__init__()
        known = dataset(spec.dataset.name)
        self.network = network
        self.size = seen_size(spec.dataset, spec.recipe)
        self.mean, self.std = spec.recipe.mean or known.mean, spec.recipe.std or known.std
        self.class_names = names[: spec.dataset.class_count]
        self._sizes = (spec.dataset.image_size, spec.recipe.size)
        self._normalise = Normalisation(spec.recipe, spec.dataset, device)

    def forward(self, images: Tensor) -> Outputs:
        """Classify images [B, 3, H, W], uint8 or float from 0 to 1; they are resized to squares. Logits are [B, K].

        Raises BadInput for images of another shape or type.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not (images.dtype == torch.uint8 or images.is_floating_point()):
            shape = [*images.shape]
            raise BadInput(
                f"a student takes images [B, 3, H, W] as uint8, or as float from 0 to 1, not {images.dtype} {shape}. "
                "A single image [3, H, W] needs unsqueeze(0)"
            )
        images = images.to(self._normalise.scale.device)
        pixels = images if images.dtype == torch.uint8 else images.float() * 255
        for size in self._sizes:
            pixels = resize(pixels, size)
        outputs: Outputs = self.network(self._normalise(pixels))
        return outputs


def load(id: str, store: Store, data: Path, device: str = "cpu") -> Student:
    """The student of a finished run, checked against its record, in eval mode.

    Raises BadInput for an unknown or unfinished run, BadRecord where the weights are damaged or were not kept.
    """
    record = store.run(id)
    if not record.done():
        raise BadInput(_absent(id, store))
    spec = RunSpec.model_validate(record.spec())
    on = torch.device(device)
    network = load_teacher(StudentOf(run=spec), store, on).eval().requires_grad_(False)
    return Student(network, spec, class_names(dataset(spec.dataset.name), data), on).eval()


def _absent(id: str, store: Store) -> str:
    """Why a run has no student, and what to do."""
    record = store.run(id)
    if failure := record.failure():
        return f"run {id} in {store.root} failed: {failure.reason}"
    if record.ended() or record.started():
        return f"run {id} in {store.root} is not finished: run its suite again to resume it"
    known = [each.id for each in store.records("runs")]
    near = nearest(id, known)
    hint = f"Did you mean '{near}'?" if near else command("list", "runs", results=store.root) + " lists them."
    return f"no run '{id}' in {store.root}. {hint}"
