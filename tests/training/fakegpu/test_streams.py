"""Every stream on the device gives the CPU's batches. Its host waits for copies as an epoch begins, and not for a batch."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from fakegpu import Recorder
from PIL import Image

from kdbench.data import file_stream
from kdbench.data.image_sets import ImageFiles, ImageSet
from kdbench.data.output_cache import OutputCache
from kdbench.data.stream import FeatureStream, Stream
from kdbench.data.views import TRANSFORMS, TwoViews
from kdbench.suite.specs import DatasetSpec, Preprocessing, Pretraining, Recipe


CPU = torch.device("cpu")
DIGITS = DatasetSpec(name="digits")
RECIPE = Recipe(epochs=1, batch=8, lr=0.1, crop_padding=2, flip=True)
OWN_VIEW = Preprocessing(size=24, crop_padding=2)
COUNT = 30
LABELS = torch.arange(COUNT) % 10


def pixels():
    return torch.randint(0, 256, (COUNT, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def in_memory(device, folder, view=None):
    return Stream(ImageSet(pixels(), LABELS, 10, clean_labels=LABELS.flip(0)), RECIPE, DIGITS, ("seed",), device, view)


def with_cached_outputs(device, folder):
    stream = in_memory(device, folder, OWN_VIEW)
    draw = torch.Generator().manual_seed(1)
    outputs = (
        torch.randn(OWN_VIEW.crops, COUNT, 5, generator=draw),
        torch.randn(OWN_VIEW.crops, COUNT, 3, generator=draw),
    )
    stream.cache = OutputCache(folder, COUNT, OWN_VIEW.crops, tuple(each[0].to(device) for each in outputs))
    for crop in stream.cache.missing():
        stream.cache.put(crop, [tuple(each[crop] for each in outputs)])
    assert [*stream.cache.open()] == []
    return stream


def two_views(device, folder):
    return TwoViews(ImageSet(pixels(), LABELS, 10), Pretraining(recipe=RECIPE), DIGITS, ("seed",), device)


def of_features(device, folder):
    return FeatureStream(pixels().float().flatten(1).to(device), LABELS.to(device), 8, ("seed",))


class InThisProcess:
    """Takes the place of the workers: decodes each batch as it is asked for, into pinned memory as it were."""

    def __init__(self, crops, device):
        self.crops, self.device = crops, device

    def __call__(self, requests):
        for request in requests:
            yield [stack.to(self.device, non_blocking=True) for stack in self.crops[request]]


def of_files(device, folder):
    names = [f"{number}.png" for number in range(COUNT)]
    for name, image in zip(names, pixels(), strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name)
    files = ImageFiles(folder, np.array(names, dtype=bytes), LABELS, 10, 16)
    return file_stream.FileStream(files, RECIPE, DIGITS, ("seed",), device, OWN_VIEW)


KINDS = sorted(TRANSFORMS)
STREAMS = {
    "in memory": (in_memory, [], 3),
    "in memory, the teacher's own view": (lambda *where: in_memory(*where, OWN_VIEW), [], 5),
    "in memory, cached outputs": (with_cached_outputs, [], 3),
    **{f"in memory, {kind}": (in_memory, [kind], 6) for kind in KINDS},
    "two views": (two_views, [], 3),
    "features": (of_features, [], 1),
    "files": (of_files, [], 1),
    "files, four": (of_files, ["four"], 3),
}
"""How a stream is made, the transformed views that it is asked for, and the blocking copies that begin an epoch."""


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value.cpu()]
    if isinstance(value, dict | tuple):
        return [each for part in (value.values() if isinstance(value, dict) else value) for each in tensors(part)]
    if value is None or isinstance(value, int):
        return []
    return [each for field in fields(value) for each in tensors(getattr(value, field.name))]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_gives_the_cpus_batches_without_a_wait(gpu, tmp_path, monkeypatch, name):
    monkeypatch.setattr(file_stream, "Loader", InThisProcess)
    make, transforms, allowed = STREAMS[name]
    expected = list(make(CPU, tmp_path).epoch(2, transforms=transforms))
    stream, found = make(gpu, tmp_path), []
    next(stream.epoch(1, transforms=transforms))  # brings constants to the device, once in a process
    with Recorder() as beginning:
        batches = stream.epoch(2, transforms=transforms)
        found.append(next(batches))
    with Recorder() as later:
        found.extend(batches)
    assert dict(later.waits) == {}
    assert beginning.waits.total() == allowed, dict(beginning.waits)
    assert all(wait.startswith("blocking copy, host to device") for wait in beginning.waits)
    for left, right in zip(found, expected, strict=True):
        pairs = zip(tensors(left), tensors(right), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
