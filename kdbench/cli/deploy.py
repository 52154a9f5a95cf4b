"""`kdbench evaluate` and `kdbench export`: what a finished network is worth, and a folder that is used without kdbench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from tabulate import tabulate

from kdbench.catalogue.datasets import dataset as find_dataset
from kdbench.catalogue.text import printable
from kdbench.cli.options import Data, Json, Output, Results, answer_of, path, print_text
from kdbench.cli.teachers import HeldDataset, HeldNetwork, Key, Mean, Std, channels
from kdbench.errors import BadInput
from kdbench.suite.networks import find_network, info


def evaluate(
    name: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run's or teacher's id, how it begins, or a weights file.")
    ],
    network: HeldNetwork = None,
    dataset: HeldDataset = None,
    key: Key = None,
    mean: Mean = None,
    std: Std = None,
    size: Annotated[
        int | None, typer.Option("--size", min=8, max=1024, help="The side in pixels of the images it sees.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:NUMBER.")] = "auto",
    results: Results = Path("results"),
    data: Data = Path("data"),
    output: Output = None,
    json_output: Json = False,
) -> None:
    """Measure a finished network: accuracy by class, calibration, size, latency. It sees its own data set's test images."""
    request: dict[str, Any] = {"name": name, "results": str(results), "data": str(data), "device": device}
    options = {"--network": network, "--dataset": dataset, "--key": key, "--mean": mean, "--std": std, "--size": size}
    if Path(name).is_file():
        request |= _checkpoint(name, network, dataset) | {"key": key}
        request["view"] = {"mean": channels("--mean", mean), "std": channels("--std", std), "size": size}
    elif given := [option for option, value in options.items() if value is not None]:
        raise BadInput(
            f"{name}: no such file, and {', '.join(given)} describes a checkpoint: leave it out for a run or teacher"
        )
    code = "from kdbench.deployment.evaluate import print_evaluation\nprint_evaluation()"
    found = answer_of(code, request, f"{name} cannot be evaluated", f"{name}: test images on {device}")
    print_text((json.dumps(found, indent=1) if json_output else _page(found)) + "\n", output)


def export(
    id: Annotated[str, typer.Argument(metavar="RUN|TEACHER", help="A run's or teacher's id, or how it begins.")],
    folder: Annotated[
        Path, typer.Option("--output", "-o", parser=path, metavar="FOLDER", help="A folder that is new or empty.")
    ],
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Also torchscript, pt2 (torch.export) or onnx; may be repeated."),
    ] = None,
    results: Results = Path("results"),
    data: Data = Path("data"),
) -> None:
    """Write a finished network into a folder that is used without kdbench.

    It has the weights as safetensors, Python source that loads them, and a model card. Each file is loaded again and its
    logits are compared with the network's.
    """
    request = {"name": id, "results": str(results), "data": str(data), "folder": str(folder), "formats": formats or []}
    code = "from kdbench.deployment.export import print_exported\nprint_exported()"
    files = answer_of(code, request, f"{id} cannot be exported", f"{id}: writing and checking {folder}")
    typer.echo(printable(f"{folder}: {', '.join(files)}"))


def _checkpoint(file: str, network: str | None, dataset: str | None) -> dict[str, str]:
    if network is None:
        raise BadInput(f"{file}: --network is missing: name the network whose weights it holds (kdbench list models)")
    if dataset is None:
        raise BadInput(f"{file}: --dataset is missing: name the data set that it classifies (kdbench list datasets)")
    return {"network": info(find_network(network)).name, "dataset": find_dataset(dataset).name}


def _page(found: dict[str, Any]) -> str:
    """An evaluation as text: one value per line, then the classes, then the confusion matrix of up to 20 of them."""
    fit = found["calibration"]
    latency = [
        f"{each['milliseconds']:.2f} ms for {each['batch']} (median of {each['passes']})" for each in found["latency"]
    ]
    lines = [
        f"{found['network']} ({found['id']})",
        f"Test images: {found['images']:,} of {found['dataset']}, seen at {found['size']} × {found['size']} pixels",
        f"Top-1: {found['top1']:.2f} %   top-5: {found['top5']:.2f} %",
        f"ECE: {fit['ece']:.4f} (15 bins, all images)",
        f"Temperature {fit['temperature']:.3f}, fitted on the {fit['fitted_on']:,} images at even positions; on the other "
        f"{fit['reported_on']:,} the ECE is {fit['before']:.4f} before and {fit['after']:.4f} after",
        f"Parameters: {found['parameters']:,}   multiply-accumulates: {found['macs']:,}",
        f"Latency: {', '.join(latency)}; {found['device']}, {found['threads']} threads, {found['precision']}",
    ]
    rows = [
        [printable(each["name"]), each["images"], *(f"{v:.2f}" if v is not None else "–" for v in scores)]
        for each in found["classes"]
        for scores in [(each["recall"], each["precision"])]
    ]
    table = tabulate(rows, ["class", "images", "recall %", "precision %"], disable_numparse=True)
    parts = ["\n".join(lines), table]
    if len(rows) <= 20:
        names = [row[0] for row in rows]
        counts = [[name, *row] for name, row in zip(names, found["confusion"], strict=True)]
        parts.append(tabulate(counts, ["true \\ predicted", *names]))
    else:
        parts.append("The confusion matrix is in the JSON (--json).")
    return "\n\n".join(parts)
