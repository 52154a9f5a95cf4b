"""Where in a file's content tensors lie together, and what a file says of its own accuracy."""

from __future__ import annotations

import re
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from kdbench.errors import BadInput
from kdbench.weightfiles.pickles import Inert, NumpyArray
from kdbench.weightfiles.tensors import Stored, printable


State = dict[str, Stored]
WRAPPERS = ("module", "_orig_mod")
"""What torch puts into the names of a network's tensors where it is run in parallel, or compiled."""
DEPTH = 30
"""How far tensors are looked for, mapping in mapping."""


def states(content: object) -> dict[str, State]:
    """The mappings of names to tensors, by the place where they stand, such as ``state.model``; "" for a bare one.

    Raises BadInput where there are none.
    """
    found: dict[str, State] = {}
    seen: set[int] = set()
    waiting: deque[tuple[str, object]] = deque([("", content)])
    while waiting:
        place, value = waiting.popleft()
        if id(value) in seen or place.count(".") > DEPTH:
            continue
        seen.add(id(value))
        inside = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(value, Inert):
            tensors, inside = dict(_attributes(value)), value.state
        elif isinstance(inside, Mapping):
            tensors = {str(key): tensor for key, inner in inside.items() if (tensor := as_tensor(inner))}
        if not isinstance(inside, Mapping):
            continue
        if tensors:
            found[place] = {printable(key): tensor for key, tensor in tensors.items()}
        holders = (Mapping, list, tuple) if isinstance(value, Inert) else (Mapping, list, tuple, Inert)
        waiting += [(_joined(place, key), inner) for key, inner in inside.items() if isinstance(inner, holders)]
    if not found:
        raise BadInput(f"no weights found: it holds {_kind(content)}. Expected names and their tensors.")
    return found


def _kind(content: object) -> str:
    if isinstance(content, Mapping):
        return f"the keys {some([printable(str(key)) for key in content if isinstance(key, str | int)])}"
    return "one tensor" if as_tensor(content) else f"a {type(content).__name__}"


def some(names: list[str]) -> str:
    """The first three of many names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def class_counts(there: Mapping[str, State], width: int, key: str | None) -> frozenset[int]:
    """For how many classes there are classifiers on an embedding of this width, at a place that ``key`` names.

    Raises BadInput for a key that names nothing.
    """
    named = [t for place, state in there.items() for name, t in state.items() if is_named(f"{place}.{name}", key)]
    if not named:
        raise BadInput(f"the key '{key}' names nothing in it. It holds {some([place or '(bare)' for place in there])}.")
    return frozenset(tensor.shape[0] for tensor in named if len(tensor.shape) == 2 and tensor.shape[1] == width)


def is_named(place: str, key: str | None) -> bool:
    """Whether a key names a place in a file: all of it, or some of its parts."""
    return key is None or f".{key}." in f".{place}."


def as_tensor(value: object) -> Stored | None:
    """A tensor, or an array of NumPy's as one."""
    return value.tensor() if isinstance(value, NumpyArray) else value if isinstance(value, Stored) else None


def without_wrappers(key: str) -> str:
    """A tensor's name without what wrappers have put into it."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def is_averaged(place: str) -> bool:
    """Whether a place's name says that its weights are a running average of others in the file."""
    return any(
        re.search(r"(^|_)(ema|swa|avg|averaged?|averages|momentum|k)(_|$)", part) for part in place.lower().split(".")
    )


def accuracy(content: object) -> float | None:
    """The accuracy in % that a file states of itself; up to 1 it is taken for a fraction. None: it states none.

    That of the weights themselves comes before the best one, which may have been that of an earlier epoch.
    """
    if not isinstance(content, Mapping):
        return None
    named = [key for key in content if isinstance(key, str) and _ACCURACY.fullmatch(key.lower())]
    for key in sorted(named, key=lambda key: "best" in key.lower()):
        value = _number(content[key])
        if value is not None and 0 <= value <= 100:
            return float(value if value > 1 else 100 * value)
    return None


_ACCURACY = re.compile(
    r"((best|test|val|valid|eval|final)[_-]?)?((top[_-]?1[_-]?)?(acc|accuracy|prec|precision)[_@-]?1?|top[_-]?1)"
)


def _number(value: object) -> float | None:
    if isinstance(value, Stored) and value.count == 1 and value.storage:
        code = {"float32": "f", "float64": "d", "float16": "e", "int64": "q", "int32": "i"}.get(value.storage.dtype)
        if code is None:
            return None
        return float(struct.unpack_from(f"<{code}", value.storage.read(), value.offset * struct.calcsize(code))[0])
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _attributes(root: Inert) -> Iterator[tuple[str, Stored]]:
    """The tensors of a TorchScript program under their names in the module's tree."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        name, value = waiting.pop()
        if (tensor := as_tensor(value)) is not None:
            yield name, tensor
        elif isinstance(value, Inert) and isinstance(value.state, Mapping) and id(value) not in seen:
            seen.add(id(value))
            if name.count(".") > DEPTH:
                continue
            waiting += [(_joined(name, key), inner) for key, inner in reversed(list(value.state.items()))]


def _joined(place: str, key: object) -> str:
    name = printable(str(key)) if isinstance(key, str | int) else "?"
    return f"{place}.{name}" if place else name
