"""The model card of an exported network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kdbench import __version__
from kdbench.catalogue.networks import network as catalogue_network
from kdbench.deployment.finished import FinishedNetwork
from kdbench.suite.specs import Imported, RunSpec, lineage, stage_label


_FILES = {
    "torchscript": ("model.torchscript.pt", 'torch.jit.load("model.torchscript.pt")(images)'),
    "pt2": ("model.pt2", 'torch.export.load("model.pt2").module()(images)'),
    "onnx": ("model.onnx", 'onnxruntime.InferenceSession("model.onnx").run(["logits"], {"images": images.numpy()})'),
}


def model_card(found: FinishedNetwork, config: dict[str, Any], with_code: bool, formats: Iterable[str]) -> str:
    """A page of Markdown: what the network is, how it was trained, how to load it, and what is known of licences."""
    side, facts = found.size, found.dataset.facts
    lines = [
        f"# {found.label}",
        "",
        f"Exported by kdbench {__version__} from record `{found.id}`.",
        "",
        f"- Network: `{found.architecture}`",
        f"- Data: {facts.summary} ({found.dataset.class_count} classes; their names are in `config.json`)",
        *_training(found),
        *([f"- Accuracy: top-1 {found.top1:.2f} % on the test images"] if found.top1 is not None else []),
        "",
        "## Load",
        "",
    ]
    if with_code:
        lines += [
            f"`model.py` needs torch, safetensors{_needs(found)}. Images [B, 3, H, W] are uint8, or float from 0 to 1; it",
            "resizes and normalises them:",
            "",
            "```python",
            "import model  # with this folder as working folder or in sys.path",
            "",
            "logits = model.load()(images)",
            "```",
            "",
        ]
    else:
        lines += ["There is no `model.py`: part of this network's code is not kdbench's.", ""]
    files = [_FILES[name] for name in formats]
    if files:
        lines += [f"The other files take float images from 0 to 1, [B, 3, {side}, {side}], and normalise them:", ""]
        lines += [f"- `{name}`: `{call}`" for name, call in files] + [""]
    lines += ["## Licences", "", f"- Data set: {facts.name}. Its licence: to be filled in."]
    lines += [f"- Weights: {_origin(found)}. Their licence: to be filled in.", ""]
    return "\n".join(lines)


def _needs(found: FinishedNetwork) -> str:
    """What the code of a network from elsewhere needs besides."""
    if isinstance(found.architecture, str):
        return ""
    library = found.architecture.library
    return f" and {library}" if library else ", the modules beside it and what they import"


def _training(found: FinishedNetwork) -> list[str]:
    match found.spec:
        case RunSpec() as run:
            method = " + ".join(f"{use.weight:g}·{use.name}" for use in run.terms)
            teacher = stage_label(run.teacher) if run.teacher else "none"
            return [f"- Method: {method}", f"- Teacher: {teacher}", f"- Epochs: {run.recipe.epochs}, trial {run.trial}"]
        case None:
            return []
        case stage:
            return [f"- Method: {stage.kind.replace('_', ' ')}"]


def _origin(found: FinishedNetwork) -> str:
    stages = lineage(found.spec) if found.spec and not isinstance(found.spec, RunSpec) else []
    for stage in stages:
        if isinstance(stage, Imported):
            public = catalogue_network(stage.network).public if isinstance(stage.network, str) else None
            place = f", {public.url}" if public and stage.weights.source != "file" else ""
            return f"began as imported ones ({stage.weights.source}{place})"
    return "of a file from elsewhere" if found.spec is None else "trained with kdbench from random ones"
