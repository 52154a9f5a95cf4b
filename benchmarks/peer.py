"""RepDistiller's own training loop, timed from outside, on random batches that lie ready.

    python benchmarks/peer.py FOLDER METHOD… [--teacher resnet32x4] [--student resnet8x4] [--batch 64] [--steps 6]

FOLDER is a checkout of github.com/HobbitLong/RepDistiller, which stays as it is. For each method its train_student.py runs,
under CRD's weights, for an epoch of --steps batches after one to warm up; its loader, its tests and its log are left out.
Prints {method: milliseconds per step} as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

from kdbench.data.preprocess import import_torchvision


ARGUMENTS = {
    "kd": "kd -r 0.1 -a 0.9 -b 0",
    "fitnet": "hint -a 0 -b 100",
    "at": "attention -a 0 -b 1000",
    "sp": "similarity -a 0 -b 3000",
    "cc": "correlation -a 0 -b 0.02",
    "vid": "vid -a 0 -b 1",
    "rkd": "rkd -a 0 -b 1",
    "pkt": "pkt -a 0 -b 30000",
    "crd": "crd -a 0 -b 0.8",
}
"""The loss and its weights as RepDistiller's scripts call it, by kdbench's names."""

TRAIN_IMAGES = 50_000
NEGATIVES = 16_384


def batches(method: str, batch: int, steps: int) -> list[tuple[Any, ...]]:
    """An epoch of what the peer's loaders give: images, labels, indices and, for crd, the places of its negatives."""
    draw = torch.Generator().manual_seed(2)
    found = []
    for _ in range(steps):
        indices = torch.randint(0, TRAIN_IMAGES, (batch,), generator=draw)
        images = torch.randn(batch, 3, 32, 32, generator=draw)
        parts = (images, torch.randint(0, 100, (batch,), generator=draw), indices)
        if method == "crd":
            others = torch.randint(0, TRAIN_IMAGES, (batch, NEGATIVES), generator=draw)
            parts = (*parts, torch.cat([indices.unsqueeze(1), others], 1))
        found.append(parts)
    return found


def step_ms(peer: ModuleType, method: str, options: argparse.Namespace) -> float:
    """Milliseconds per step of one method, in the peer's own ``main`` from the second epoch."""
    epochs: list[float] = []
    train = peer.train

    def timed(*arguments: Any) -> Any:
        _synchronise()
        started = time.perf_counter()
        result = train(*arguments)
        _synchronise()
        epochs.append(time.perf_counter() - started)
        return result

    data = batches(method, options.batch, options.steps)
    arguments = f"--distill {ARGUMENTS[method]} --model_s {options.student} --epochs 2 --print_freq 1000000"
    replaced = {
        "train": timed,
        "validate": lambda *_: (0.0, 0.0, 0.0),
        "load_teacher": lambda path, classes: peer.model_dict[options.teacher](num_classes=classes),
        "get_cifar100_dataloaders": lambda **_: (data, [], TRAIN_IMAGES),
        "get_cifar100_dataloaders_sample": lambda **_: (data, [], TRAIN_IMAGES),
    }
    command = ["train_student.py", *arguments.split(), "--path_t", f"save/{options.teacher}_vanilla/last.pth"]
    with mock.patch.multiple(peer, **replaced), mock.patch.object(sys, "argv", command):
        peer.main()
    return 1000 * epochs[-1] / options.steps


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="+", choices=[*ARGUMENTS])
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    import_torchvision()
    sys.path.insert(0, str(options.folder.resolve()))
    sys.modules["tensorboard_logger"] = SimpleNamespace(  # type: ignore[assignment]
        Logger=lambda **_: SimpleNamespace(log_value=lambda *_: None)
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        os.chdir(folder)  # where it writes its checkpoints
        peer = importlib.import_module("train_student")
        if not torch.cuda.is_available():  # its loss of crd asks for a GPU even where it then works without
            importlib.import_module("crd.memory").AliasMethod.cuda = lambda self: None
        found = {method: step_ms(peer, method, options) for method in options.methods}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
