"""Export of a finished network into a folder that is used without kdbench. What is written is loaded again and compared."""

from __future__ import annotations

import importlib.util
import json
import secrets
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.catalogue.networks import network as catalogue_network
from kdbench.catalogue.plugins import SOURCES
from kdbench.catalogue.text import listed, nearest
from kdbench.deployment.card import model_card
from kdbench.deployment.classifier import Classifier
from kdbench.deployment.evaluate import found_of
from kdbench.deployment.finished import FinishedNetwork
from kdbench.deployment.source import standalone
from kdbench.errors import BadInput, KdbenchError, reason_of
from kdbench.files import write_json
from kdbench.models.backbone import Backbone
from kdbench.models.external import ExternalNetwork
from kdbench.models.heads import NodeEmbedding
from kdbench.store.store import write_modules
from kdbench.suite.components import NetworkSpec
from kdbench.training.checkpoint import write_tensors


_Write = Callable[[Classifier, Tensor, Path], None]
_Read = Callable[[Path, Tensor], Tensor]
TOLERANCE = 1e-4
"""So much may a written network's logits differ from those of the network, in parts of the largest."""
IMAGES = 3
"""The batch that written files are compared on; another than that with which they are traced."""


def export(found: FinishedNetwork, folder: Path, data: Path, formats: Sequence[str] = ()) -> list[str]:
    """Write a network to a new folder, whole or not at all; returns the names of its files.

    Raises BadInput for a folder that is not empty, a format that is unknown or needs another package, and KdbenchError
    where a written file does not give the network's logits.
    """
    for name in formats:
        if name not in _WRITERS:
            near = nearest(name, [*_WRITERS])
            hint = f"did you mean '{near}'?" if near else f"choose {listed([*_WRITERS])}"
            raise BadInput(f"format '{name}': {hint}")
    if "onnx" in formats and (missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if _absent(name)]):
        raise BadInput(f"format 'onnx' needs {listed(missing)}, which cannot be imported: pip install 'kdbench[onnx]'")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BadInput(f"{folder}: is there already and not empty. Name a new folder")
    temporary = folder.absolute().parent / f".{folder.name[:40]}.{secrets.token_hex(6)}.tmp"
    try:
        temporary.mkdir(parents=True)
        _write(found, temporary, data, formats)
        temporary.replace(folder)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(path.name for path in folder.iterdir())


def _absent(package: str) -> bool:
    return importlib.util.find_spec(package) is None


@torch.no_grad()
def _write(found: FinishedNetwork, folder: Path, data: Path, formats: Sequence[str]) -> None:
    network = found.network
    mean, std = (getattr(found.view, key) or getattr(found.dataset.facts, key) for key in ("mean", "std"))
    sizes = [size for size in (found.dataset.image_size, found.view.size) if size]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, 3, found.size, found.size, generator=generator)
    classifier = Classifier(network, (), mean, std).eval()  # at the network's own size
    expected = classifier(images)
    write_tensors(folder / "model.safetensors", network.state_dict())
    description: dict[str, Any] = {
        "id": found.id,
        "network": str(found.architecture),
        "dataset": found.dataset.name,
        "class_names": found.class_names(data),
        "size": found.size,
        "sizes": sizes,
        "mean": mean,
        "std": std,
    }
    write_json(folder / "config.json", description)
    with_code = _can_have_code(found)
    if with_code:
        if not isinstance(found.architecture, str) and found.architecture.source_sha256:
            write_modules(SOURCES[found.architecture.source_sha256].local_files, folder)
        (folder / "model.py").write_text(_model_source(found), encoding="utf-8")
        resizing = Classifier(network, sizes, mean, std).eval()
        _compare("model.py", lambda: _from_folder(folder, images), resizing(images))
    for name in formats:
        file, write, read = _WRITERS[name]

        def written_and_read(path: Path = folder / file, write: _Write = write, read: _Read = read) -> Tensor:
            write(classifier, images[:2], path)
            return read(path, images)

        _compare(file, written_and_read, expected)
    (folder / "README.md").write_text(model_card(found, description, with_code, formats), encoding="utf-8")


def _compare(file: str, read: Callable[[], Tensor], expected: Tensor) -> None:
    """Raise KdbenchError where a file cannot be written and read, or gives other logits than these."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing, whose outcome is compared
            logits = read()
    except Exception as error:  # exporters and runtimes may raise anything
        raise KdbenchError(f"{file} cannot be written and read: {reason_of(error)}. Nothing is exported") from None
    difference = float((logits - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not difference <= TOLERANCE:
        raise KdbenchError(f"{file} gives other logits than the network (by {difference:.1e}). Nothing is exported")


def _can_have_code(found: FinishedNetwork) -> bool:
    """Whether its code can be written down: not of open_clip's networks, nor of own ones that are built on kdbench."""
    if isinstance(found.architecture, str):
        return catalogue_network(found.architecture).builder != "clip"
    return isinstance(_backbone(found), ExternalNetwork)


def _backbone(found: FinishedNetwork) -> Backbone:
    return found.network.backbone if isinstance(found.network, NodeEmbedding) else found.network


def _model_source(found: FinishedNetwork) -> str:
    """A module that builds and loads the network with torch, safetensors and, of a network from elsewhere, its own code."""
    roots, head, build, needs = [("kdbench.deployment.classifier", "Classifier")], "", "", "torch and safetensors"
    if isinstance(found.architecture, str):
        known = catalogue_network(found.architecture)
        roots.append((f"kdbench.models.{known.builder}", "build"))
        arguments = "".join(f", {key}={value!r}" for key, value in known.arguments.items())
    else:
        roots.append(("kdbench.models.external", "ExternalNetwork"))
        build, arguments = _builder_source(found, found.architecture), ""
        needs += f", and {found.architecture.build.partition(':')[0]}"
    if isinstance(found.network, NodeEmbedding):
        roots.append(("kdbench.models.heads", "NodeEmbedding"))
        head = f"\n    network = NodeEmbedding(network, classes=classes, width={found.network.width})"
    return (
        f'"""{found.architecture} with its preprocessing; generated by kdbench from its own source. Needs {needs}."""\n\n'
        + standalone(roots)
        + build
        + _LOAD.format(arguments=arguments, head=head)
    )


def _builder_source(found: FinishedNetwork, spec: NetworkSpec) -> str:
    """The function that builds a network from elsewhere: by its library, or by the module that lies beside it."""
    network = _backbone(found)
    assert isinstance(network, ExternalNetwork)
    module, _, name = spec.build.partition(":")
    given = [f"{key}={value!r}" for key, value in spec.arguments.items()]
    classes = [f"{key}=classes" for key in network.class_arguments]
    match spec.library:
        case "timm":
            imported, call = (
                "from timm import create_model",
                f"create_model({', '.join([repr(name), *given, *classes])})",
            )
        case "torchvision":
            imported, call = (
                "from torchvision.models import get_model",
                f"get_model({', '.join([repr(name), *given, *classes])})",
            )
        case _:
            imported, call = f"from {module} import {name}", f"{name}({', '.join([*given, *classes])})"
    fields: dict[str, Any] = {"maps": (), "embedding": network.embedding, "classifier": network.classifier}
    fields |= {"width": network.width, "size": network.size, "classes": network.classes}
    values = ", ".join(f"{key}={value!r}" for key, value in fields.items())
    return _BUILD.format(imported=imported, call=call, values=values)


_BUILD = '''

def build(classes: int) -> ExternalNetwork:
    """Build the network by its own code."""
    import sys
    from pathlib import Path

    sys.path.append(str(Path(__file__).parent))
    {imported}

    return ExternalNetwork({call}, {values})
'''


_LOAD = '''

def load(folder: str | None = None) -> Classifier:
    """The trained network in eval mode, from the folder of this file or another: images [B, 3, H, W] to logits [B, K]."""
    import json
    from pathlib import Path

    from safetensors.torch import load_file

    here = Path(folder or Path(__file__).parent)
    config = json.loads((here / "config.json").read_text(encoding="utf-8"))
    classes = len(config["class_names"])
    network = build(classes=classes{arguments}){head}
    network.load_state_dict(load_file(here / "model.safetensors"))
    return Classifier(network, config["sizes"], config["mean"], config["std"]).eval()
'''


def _from_folder(folder: Path, images: Tensor) -> Tensor:
    spec = importlib.util.spec_from_file_location("kdbench_exported_model", folder / "model.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        with torch.random.fork_rng(devices=[]):
            spec.loader.exec_module(module)
            logits: Tensor = module.load()(images)
    finally:
        sys.dont_write_bytecode = written
    return logits


def _write_torchscript(classifier: Classifier, images: Tensor, path: Path) -> None:
    traced = torch.jit.trace(classifier, images, check_trace=False)  # type: ignore[no-untyped-call]
    traced.save(str(path))


def _read_torchscript(path: Path, images: Tensor) -> Tensor:
    logits: Tensor = torch.jit.load(str(path))(images)  # type: ignore[no-untyped-call]
    return logits


def _exported(classifier: Classifier, images: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(classifier, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})


def _write_pt2(classifier: Classifier, images: Tensor, path: Path) -> None:
    torch.export.save(_exported(classifier, images), path)


def _read_pt2(path: Path, images: Tensor) -> Tensor:
    logits: Tensor = torch.export.load(path).module()(images)
    return logits


def _write_onnx(classifier: Classifier, images: Tensor, path: Path) -> None:
    program = torch.onnx.export(
        _exported(classifier, images), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert program is not None
    program.save(path)


def _read_onnx(path: Path, images: Tensor) -> Tensor:
    session = import_module("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


_WRITERS: dict[str, tuple[str, _Write, _Read]] = {
    "torchscript": ("model.torchscript.pt", _write_torchscript, _read_torchscript),
    "pt2": ("model.pt2", _write_pt2, _read_pt2),
    "onnx": ("model.onnx", _write_onnx, _read_onnx),
}


def print_exported() -> None:
    """Export the network of the request on standard input, and print the names of the files as JSON."""
    request = json.load(sys.stdin)
    names = sys.stdout
    sys.stdout = sys.stderr  # exporters print
    try:
        found = found_of(request, torch.device("cpu"))
        files = export(found, Path(request["folder"]), Path(request["data"]), request["formats"])
        print(json.dumps(files), file=names)
    except KdbenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
