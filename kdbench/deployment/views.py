"""What pictures show of finished networks: embeddings, Grad-CAM, class correlations, similarity of layers, predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.data.file_stream import FileTestSet
from kdbench.data.image_sets import ImageFiles
from kdbench.data.stream import DataSource, TestSet, embed
from kdbench.deployment.evaluate import classify, confusion_matrix, expected_calibration_error, reliability
from kdbench.deployment.finished import FinishedNetwork, find_network, find_teacher_of
from kdbench.errors import BadInput, KdbenchError
from kdbench.evaluation import class_correlation, linear_cka
from kdbench.models.outputs import Outputs
from kdbench.store.store import Store
from kdbench.training.measuring import classifier_weights


T = TypeVar("T")

MOST_IMAGES = 2000
"""Images of a t-SNE where a request does not say ``most``; of more, as many are drawn at regular places."""
COMPARED_IMAGES = 512
"""Test images on which layers are compared."""
SHOWN_IMAGES = 10


class Views:
    """Views of networks on their test images, in the order of the request.

    A request holds ``networks``, each with ``run``, ``results`` (its folder) and ``of`` (`student` or `teacher`), and
    ``data``, the folder of the data sets. All networks were trained on the same data set.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self.data = Path(request["data"])
        self.device = torch.device("cpu")
        self.source = DataSource(self.data, self.device)
        wanted = [(each["run"], each["results"], each["of"]) for each in request["networks"]]
        known = {key: self._find(*key) for key in dict.fromkeys(wanted)}
        self.networks = [known[key] for key in wanted]
        if len({each.dataset.id for each in self.networks}) > 1:
            raise BadInput("networks of several data sets cannot share a picture: choose one with --only dataset=NAME")
        self.dataset = self.networks[0].dataset
        self.names = self.networks[0].class_names(self.data)

    def _find(self, run: str, results: str, of: str) -> FinishedNetwork:
        find = find_teacher_of if of == "teacher" else find_network
        return find(run, Store(Path(results)), self.data, self.device)

    def embeddings(self) -> dict[str, Any]:
        """Each network's embeddings of the test images of some classes, in the plane, by t-SNE with one seed."""
        from sklearn.manifold import TSNE

        classes = self._classes(self.request["classes"], 9)
        labels = self.source.sets(self.dataset)[1].labels
        chosen = torch.isin(labels, torch.tensor(classes)).nonzero().flatten()
        chosen = chosen[:: -(-len(chosen) // self.request.get("most", MOST_IMAGES))]
        if len(chosen) < 5:
            raise BadInput(f"{len(chosen)} test images are too few for t-SNE: name more classes with --class")
        perplexity = min(30.0, (len(chosen) - 1) / 3)
        plane = TSNE(perplexity=perplexity, init="pca", random_state=self.request["seed"])
        return {
            "classes": [self.names[label] for label in labels[chosen].tolist()],
            "positions": chosen.tolist(),
            "points": self._each(
                lambda found: plane.fit_transform(embed(found.network, self._test(found, chosen))[0].numpy()).tolist()
            ),
            "perplexity": perplexity,
        }

    def gradcam(self) -> dict[str, Any]:
        """Chosen test images, and where each network looks for their true class."""
        chosen, labels = self._images()

        def look(found: FinishedNetwork) -> dict[str, Any]:
            maps, predicted = zip(*(_gradcam(found, *each) for each in self._test(found, chosen)), strict=True)
            answers = torch.cat(predicted).tolist()
            return {"maps": torch.cat(maps).tolist(), "predicted": [self.names[label] for label in answers]}

        networks = self._each(look)
        seen = self.networks[0]
        pixels = torch.cat([_pixels(images, seen) for images, _ in self._test(seen, chosen)])
        names = [self.names[label] for label in labels]
        return {"images": pixels.tolist(), "labels": names, "positions": chosen.tolist(), "networks": networks}

    def correlations(self) -> dict[str, Any]:
        """The cosines between the classes of each network's classifier, [K][K]."""
        matrices = self._each(lambda found: class_correlation(classifier_weights(found.network)).tolist())
        return {"classes": list(self.names), "matrices": matrices}

    def layers(self) -> list[list[list[float]]]:
        """Linear CKA of the stages of each student (rows) and of the teacher after it in the request (columns)."""
        count = len(self.source.sets(self.dataset)[1])
        chosen = torch.arange(0, count, -(-count // COMPARED_IMAGES))
        stages = self._each(lambda found: self._stages(found, chosen))
        pairs = zip(stages[::2], stages[1::2], strict=True)
        return [[[linear_cka(x, y) for y in teacher] for x in student] for student, teacher in pairs]

    def predictions(self) -> dict[str, Any]:
        """Each network's confusion matrix (rows are true classes), and its confidence and accuracy by bins."""

        def predict(found: FinishedNetwork) -> dict[str, Any]:
            logits, labels = classify(found, self.data, self.device)
            images, confidence, right = reliability(logits, labels)
            return {
                "confusion": confusion_matrix(logits.argmax(1), labels, len(self.names)).tolist(),
                "ece": expected_calibration_error(logits, labels),
                "images": images.tolist(),
                "confidence": confidence.tolist(),
                "right": right.tolist(),
            }

        return {"classes": list(self.names), "networks": self._each(predict)}

    def _each(self, show: Callable[[FinishedNetwork], T]) -> list[T]:
        """What each network shows. One that the request has several times, as several students' teacher, is asked once."""
        shown = {id(found): show(found) for found in {id(each): each for each in self.networks}.values()}
        return [shown[id(found)] for found in self.networks]

    def _test(self, found: FinishedNetwork, chosen: Tensor) -> TestSet | FileTestSet:
        """The chosen test images as a network sees them."""
        images: Any = self.source.sets(self.dataset)[1]
        part = images.select(chosen)
        make = FileTestSet if isinstance(part, ImageFiles) else TestSet
        return make(part, found.view, self.dataset, self.device, batch=128)

    @torch.no_grad()
    def _stages(self, found: FinishedNetwork, chosen: Tensor) -> list[Tensor]:
        batches = [
            [maps.flatten(1) for maps in found.network(images).stages] for images, _ in self._test(found, chosen)
        ]
        return [compact(torch.cat(each)) for each in zip(*batches, strict=True)]

    def _classes(self, wanted: Sequence[str], count: int) -> list[int]:
        """The positions of the named classes, or of the first ones. Raises BadInput for an unknown one."""
        for name in wanted:
            if name not in self.names:
                known = ", ".join(self.names[:12]) + (" …" if len(self.names) > 12 else "")
                raise BadInput(f"--class {name}: {self.dataset.name} has no such class. There are {known}")
        return [self.names.index(name) for name in wanted] or list(range(min(count, len(self.names))))

    def _images(self) -> tuple[Tensor, list[int]]:
        """The positions and labels of the named test images, or of the first one of each class."""
        labels = self.source.sets(self.dataset)[1].labels
        wanted: list[int] = self.request["images"]
        if outside := [at for at in wanted if at >= len(labels)]:
            raise BadInput(f"--image {outside[0]}: there are {len(labels)} test images, counted from 0")
        classes = self._classes(self.request["classes"], SHOWN_IMAGES)
        first = [int((labels == label).nonzero()[0]) for label in classes if (labels == label).any()]
        chosen = torch.tensor(wanted or first)
        return chosen, labels[chosen].tolist()


def compact(features: Tensor) -> Tensor:
    """Features [N, min(N, D)] with the same inner products as those given, [N, D]."""
    return torch.linalg.qr(features.T, mode="r").R.T if features.shape[1] > len(features) else features


def _gradcam(found: FinishedNetwork, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of the true class on the last feature map, [B, H, W] from 0 to 1.

    Also the predicted classes [B]. Raises BadInput where the logits do not depend on the map.
    """
    outputs: Outputs = found.network(images.requires_grad_())
    last, scores = outputs.features[-1], outputs.logits.gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(scores, last, allow_unused=True)
    if gradient is None:
        raise BadInput(f"{found.label}: its classifier does not read its last feature map, so it has no Grad-CAM")
    maps = F.relu((gradient.mean((2, 3), keepdim=True) * last).sum(1)).detach()
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12), outputs.logits.argmax(1)


def _pixels(images: Tensor, found: FinishedNetwork) -> Tensor:
    """Normalised images [B, 3, H, W] as pixels [B, H, W, 3] from 0 to 255."""
    known = found.dataset.facts
    mean, std = (
        torch.tensor(each).view(1, 3, 1, 1) for each in (found.view.mean or known.mean, found.view.std or known.std)
    )
    return (255 * (images * std + mean)).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def print_views() -> None:
    """Print the ``view`` that the request on standard input names, as JSON."""
    request = json.load(sys.stdin)
    try:
        print(json.dumps(getattr(Views(request), request["view"])()))
    except KdbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
