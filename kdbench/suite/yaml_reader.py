"""YAML with line numbers, and without YAML 1.1's traps.

PyYAML reads YAML 1.1, in which ``1e-3`` is text, ``no`` is False, ``010`` is 8 and a repeated key silently wins.
Each of these has spoilt a benchmark's configuration before; here each is a problem with its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdbench.errors import BadInput, Problem


Path_ = tuple[str | int, ...]
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
_OCTAL = re.compile(r"[-+]?0[0-7]+")
_SEXAGESIMAL = re.compile(r"[-+]?\d+(:[0-5]?\d)+(\.\d*)?")


@dataclass
class Document:
    """A YAML file as plain Python values, the line of every value and key, and what is wrong with the text itself."""

    file: str
    data: Any
    lines: dict[Path_, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path_) -> int:
        """The line of ``path``, or of the nearest thing that encloses it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def problem(self, path: Path_, message: str) -> Problem:
        """A problem at ``path``, with its line filled in."""
        return Problem(self.file, self.line(path), show_path(path), message)


def show_path(path: Path_) -> str:
    """Write ('grid', 0, 'student', 2) as ``grid[0].student[2]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_yaml(file: Path) -> Document:
    """Read a YAML file.

    Raises BadInput where the file cannot be read or is not YAML at all; smaller problems are collected in the document.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: cannot be read: {error}") from None
    return parse_yaml(text, str(file))


def parse_yaml(text: str, file: str) -> Document:
    """Parse YAML text; ``file`` is the name used in messages."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise BadInput(f"{file}:{line}  is not valid YAML: {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{file}  is not valid YAML: {error}") from None
    finally:
        loader.dispose()
    document = Document(file, None)
    if node is not None:
        document.data = _convert(node, (), document, set())
    return document


def _convert(node: yaml.Node, path: Path_, document: Document, open_nodes: set[int]) -> Any:
    document.lines[path] = node.start_mark.line + 1
    if id(node) in open_nodes:
        document.problems.append(document.problem(path, "an alias must not contain itself"))
        return None
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, path, document)
    open_nodes = open_nodes | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        return [_convert(child, (*path, index), document, open_nodes) for index, child in enumerate(node.value)]
    return _mapping(node, path, document, open_nodes)


def _mapping(node: yaml.MappingNode, path: Path_, document: Document, open_nodes: set[int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        here = (*path, key_node.value if isinstance(key_node, yaml.ScalarNode) else "?")
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(Problem(document.file, line, show_path(path), "a key must be a plain name"))
            continue
        if key_node.value == "<<":
            message = "merge keys (<<) are not read: write the values out"
            document.problems.append(Problem(document.file, line, show_path(path), message))
            continue
        key = key_node.value
        if key in result:
            message = f"is given twice (first in line {document.lines[here]}): keep one of them"
            document.problems.append(Problem(document.file, line, show_path(here), message))
            continue
        result[key] = _convert(value_node, here, document, open_nodes)
        document.lines[here] = line
    return result


def _scalar(node: yaml.ScalarNode, path: Path_, document: Document) -> Any:
    text: str = node.value
    kind = node.tag.rpartition(":")[2]
    if node.style in ("'", '"', "|", ">"):
        return text
    trap = _trap(kind, text)
    if trap:
        document.problems.append(document.problem(path, trap))
        if _SEXAGESIMAL.fullmatch(text) and ":" in text:
            return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind == "float" or (kind == "str" and trap):
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "int":
        return int(text, 8) if trap and _OCTAL.fullmatch(text) else int(text.replace("_", ""), 0)
    return text


def _trap(kind: str, text: str) -> str | None:
    if kind == "str" and _EXPONENT.fullmatch(text):
        mantissa, _, exponent = text.lower().partition("e")
        mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
        sign = exponent if exponent[0] in "+-" else f"+{exponent}"
        return f"'{text}' is text in YAML 1.1: write {mantissa}e{sign}."
    if kind == "bool" and text.lower() not in ("true", "false"):
        meaning = "true" if text.lower() in ("yes", "on") else "false"
        return f"'{text}' is {meaning} in YAML 1.1: write {meaning} if that is meant, else '{text}' in quotes."
    if kind == "int" and _OCTAL.fullmatch(text):
        return f"'{text}' is the octal number {int(text, 8)} in YAML 1.1: write it without the leading zero."
    if kind in ("int", "float") and _SEXAGESIMAL.fullmatch(text):
        return f"'{text}' is a base-60 number in YAML 1.1: put it in quotes, or write the number out."
    if kind not in ("str", "int", "float", "bool", "null"):
        return f"'{text}' is read as a {kind} in YAML 1.1: put it in quotes."
    return None
