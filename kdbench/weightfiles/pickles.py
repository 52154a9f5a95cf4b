"""Pickles read as data. Nothing that they name is imported: a name stands for plain data here, or is refused."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, BinaryIO

from kdbench.weightfiles.tensors import SIZES, Storage, Stored, contiguous, stored


class Refused(Exception):
    """A pickle names something that is no plain data: ``name``."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Inert:
    """An object of which only the ``state`` is kept: its attributes, none of its behaviour."""

    state: object = None
    arguments: tuple[object, ...] = ()

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments


class NumpyType(Inert):
    """NumPy's name of a type, such as f4, and its byte order."""

    @property
    def kind(self) -> str:
        """Torch's name of the type; "" if it has none, or the bytes are big-endian."""
        name = str(self.arguments[0]) if self.arguments else ""
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "<"
        return "" if order == ">" else _NUMPY.get(name, "")


class NumpyArray(Inert):
    """An array whose values come with its state: version, shape, type, order, bytes."""

    def tensor(self) -> Stored | None:
        """The array as a tensor; None if its values are not numbers."""
        match self.state:
            case (_, tuple() as shape, NumpyType() as kind, by_columns, bytes() as values) if kind.kind:
                return _array(values, kind, shape, by_columns)
        return None


def _array(values: bytes, kind: NumpyType, shape: tuple[int, ...], by_columns: object = False) -> Stored:
    return contiguous(Storage(kind.kind, len(values), lambda: values), shape, columns=bool(by_columns))


OPERATIONS = 2**19
"""Pickle operations that a small file may use: far more than its tensors and history need."""


class _Counted(dict[int, Callable[..., None]]):
    """The operations of a pickle, no more than ``left`` of them: one byte of a file makes up to a hundred in memory."""

    left = 0

    def __getitem__(self, operation: int) -> Callable[..., None]:
        self.left -= 1
        if self.left < 0:
            raise Excessive("it makes too many objects")
        return super().__getitem__(operation)


class Excessive(Exception):
    """A file that claims, or unpacks to, far more than it holds."""


class Unpickler(pickle._Unpickler):  # the one in C takes memory for what a file claims
    """Makes plain data, tensors and ``Inert`` objects, and refuses every other name.

    ``size`` is that of the pickle in bytes, ``whole`` that of the file; ``storage`` finds what a persistent id stands for:
    type, key, number of values. ``nested`` reads a storage that is a torch file of its own, as where tensors were pickled
    without torch; None refuses it.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        whole: int,
        storage: Callable[[str, str, int], Storage],
        nested: Callable[[bytes], object] | None = None,
    ) -> None:
        super().__init__(file, encoding="latin1")
        self._storage = storage
        self._nested, self._nested_left = nested, size
        self._copies = size
        own: dict[bytes, Callable[[Any], None]] = {pickle.BUILD: _build, pickle.REDUCE: _reduce}
        own |= dict.fromkeys((pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4), _refuse)
        self.dispatch = _Counted(pickle._Unpickler.dispatch | {key[0]: value for key, value in own.items()})  # type: ignore[misc]
        self.dispatch.left = OPERATIONS + whole // 64

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a global name. Raises Refused."""
        if self._nested and (module, name) == ("torch.storage", "_load_from_bytes"):
            return self._load_nested
        known = _known(module.replace("numpy._core", "numpy.core"), name)
        if known is None:
            raise Refused(f"{module}.{name}")
        return known

    def _load_nested(self, content: bytes) -> object:
        self._nested_left -= len(content)
        if self._nested_left < 0:
            raise Excessive("it holds the same again and again")
        return self._nested(content) if self._nested else None

    def persistent_load(self, pid: Any) -> Storage:
        """The storage of a tensor."""
        _, kind, key, _, count, *rest = pid
        if not isinstance(kind, str) or type(count) is not int or any(part is not None for part in rest):
            raise ValueError("an unknown kind of storage")
        return self._storage(kind, str(key), count)

    def copies(self, length: int) -> None:
        """Count copied bytes. Raises Excessive for a pickle that copies the same content repeatedly."""
        self._copies -= length
        if self._copies < 0:
            raise Excessive("it copies the same again and again")


def _build(unpickler: Any) -> None:
    state = unpickler.stack.pop()
    if isinstance(unpickler.stack[-1], Inert):
        unpickler.stack[-1].state = state


def _reduce(unpickler: Any) -> None:
    arguments = unpickler.stack.pop()
    unpickler.copies(sum(len(each) for each in arguments if isinstance(each, str | list | dict)))
    unpickler.stack[-1] = unpickler.stack[-1](*arguments)


def _refuse(_: Any) -> None:
    raise ValueError("an operation that no file of weights needs")


@lru_cache(maxsize=1000)
def _known(module: str, name: str) -> Any:
    """Resolve a global name; None for one that is refused."""
    if (module, name) in _NAMES:
        return _NAMES[module, name]
    if module == "torch" and (match := re.fullmatch(r"(\w+)Storage", name)):
        return _STORAGES.get(match[1])
    if module == "torch._utils" and name.startswith("_rebuild_"):
        return _unusual
    inert = any(re.fullmatch(known, f"{module}.{name}") for known in _INERT)
    return Inert if inert or module.partition(".")[0] == "__torch__" else None


def _first(value: object, *_: object) -> object:
    return value


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Stored:
    return stored(storage, offset, tuple(shape), tuple(stride))


def _unusual(*arguments: Any) -> Stored:
    """A sparse or quantised tensor, or one without values."""
    inner = arguments[-1] if arguments and isinstance(arguments[-1], tuple) else ()
    sizes = [each for each in (*arguments, *inner) if isinstance(each, tuple) and each is not inner]
    shapes = [
        size for size in sizes if len(size) < 64 and all(type(side) is int and 0 <= side < 2**62 for side in size)
    ]
    return Stored(shapes[0] if shapes else ())


def _of_type(rebuild: Callable[..., object], _: object, arguments: tuple[object, ...], *__: object) -> object:
    return rebuild(*arguments)


def _mapping(*arguments: object) -> dict[object, object]:
    return dict(arguments[-1]) if arguments and isinstance(arguments[-1], dict | list) else {}


def _sequence(items: object = (), *_: object) -> list[object]:
    return list(items) if isinstance(items, list | tuple) else []


def _bytes(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


def _scalar(kind: NumpyType, values: bytes | None = None) -> object:
    return _array(values, kind, ()) if isinstance(values, bytes) and kind.kind else Inert(kind, values)


def _from_buffer(values: bytes, kind: NumpyType, shape: tuple[int, ...], order: str = "C") -> object:
    return _array(bytes(values), kind, shape, order == "F") if kind.kind else Inert(kind, shape)


def _instance(kind: object, *_: object) -> object:
    return Inert() if kind is Inert else None


_STORAGES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Double": "float64",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
_NUMPY = {"b1": "bool", "u1": "uint8"} | {
    f"{kind[0]}{size}": kind for kind, size in SIZES.items() if kind not in ("bfloat16", "uint8", "bool")
}
_NAMES: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _bytes,
    ("collections", "Counter"): _mapping,
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("collections", "deque"): _sequence,
    ("copy_reg", "_reconstructor"): _instance,
    ("copyreg", "_reconstructor"): _instance,
    ("numpy", "dtype"): NumpyType,
    ("numpy.core.multiarray", "_reconstruct"): NumpyArray,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("torch", "Size"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.nn.parameter", "Buffer"): _first,
    ("torch.nn.parameter", "Parameter"): _first,
    **{
        ("torch.jit._pickle", name): _first
        for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
    },
    **{
        (module, name): _sequence
        for module in ("builtins", "__builtin__")
        for name in ("list", "set", "frozenset", "tuple")
    },
    **{(module, "dict"): _mapping for module in ("builtins", "__builtin__")},
}
_INERT = (
    r"(builtins|__builtin__)\.(int|long|float|str|unicode|bool|complex|bytes|bytearray|slice|range|xrange|object)",
    r"argparse\.Namespace",
    r"types\.SimpleNamespace",
    r"pathlib\.\w+",
    r"pathlib\._local\.\w+",
    r"datetime\.(datetime|date|time|timedelta|timezone)",
    r"(decimal\.Decimal|fractions\.Fraction|uuid\.UUID|uuid\.SafeUUID)",
    r"numpy\.(ndarray|generic|bool_?|str_?|bytes_|void|(u?int|float|complex)\d+|datetime64|timedelta64|longdouble)",
    r"numpy\.dtypes\.\w+",
    r"torch\.(device|dtype|layout|Tensor|strided|sparse_coo|sparse_csr|[u]?int\d+|float\d*\w*|bfloat16|half|double)",
    r"torch\.(long|short|int|uint8|bool|complex\d+|qu?int\d+|contiguous_format|channels_last|per_tensor_affine)",
    r"torch\.serialization\._get_layout",
    r"torch\.torch_version\.TorchVersion",
    r"torch\.(storage\.)?(Typed|Untyped)Storage",
)
"""Names of plain data and of torch's types, of which nothing is needed."""
