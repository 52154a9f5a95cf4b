"""The tensors of a TorchScript archive, read without running or even parsing its program."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip archive with TorchScript's constants beside its data."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The archive's tensors under their names in the module's tree.

    Raises pickle.UnpicklingError where its data name anything but tensors, plain values and TorchScript's own classes,
    and whatever a damaged archive makes the readers raise.
    """
    with zipfile.ZipFile(path) as archive:
        (data,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
        return dict(_tensors(_Unpickler(archive, data).load(), ""))


class _Object:
    """An instance of one of the archive's classes: its attributes, none of its behaviour."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Makes tensors, plain values and ``_Object``s, and refuses every other name."""

    def __init__(self, archive: zipfile.ZipFile, data: str) -> None:
        super().__init__(io.BytesIO(archive.read(data)))
        self._archive = archive
        self._folder = data.removesuffix("data.pkl")
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Object
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return _unchanged
        known: dict[tuple[str, str], Callable[..., object]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _unchanged(value: object, *_: object) -> object:
    return value


def _tensors(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Object) and isinstance(value.state, dict):
        for key, inner in value.state.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))
