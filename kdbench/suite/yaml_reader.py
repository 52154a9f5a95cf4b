"""Reads YAML with line numbers, and explains values that YAML 1.1 takes for something else."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdbench.catalogue.text import LONGEST, shorten
from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadInput, BadSuite, Problem


_EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_LARGEST = 2**63
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters but tabs and line feeds, separators of lines, and halves of characters."""


def read_scalar(node: yaml.ScalarNode) -> tuple[Any, str]:
    """The probable value, and what is wrong with its spelling ("" if nothing)."""
    text: str = node.value
    if UNPRINTABLE.search(text):
        return None, f"{shorten(repr(text))} holds a character that cannot be printed: leave it out."
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if node.style in ("'", '"', "|", ">"):
        return text, ""
    trap = _trap(kind, text)
    try:
        value = _value(kind, text)
    except (ValueError, OverflowError):
        return text, trap or f"'{shorten(text)}' cannot be read as {kind}: put it in quotes."
    usable = abs(value) < _LARGEST if isinstance(value, int) else not isinstance(value, float) or math.isfinite(value)
    if not usable:
        return None, trap or f"'{shorten(text)}' is not a number that can be used: write a finite, smaller one."
    return value, trap


def _value(kind: str, text: str) -> Any:
    plain = text.replace("_", "").lower()
    if kind == "null":
        return None
    if kind == "bool":
        return plain in ("true", "yes", "on")
    if kind == "float" or (kind == "str" and _EXPONENT.fullmatch(text)):
        return text if ":" in text else float(plain.replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "int":
        return text if ":" in text else int(plain, 8) if _OCTAL.fullmatch(text) else int(plain, 0)
    return text


def _trap(kind: str, text: str) -> str:
    if kind == "str" and _EXPONENT.fullmatch(text):
        mantissa, _, exponent = text.lower().partition("e")
        mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
        sign = exponent if exponent[0] in "+-" else f"+{exponent}"
        return f"'{text}' is text in YAML 1.1: write {mantissa}e{sign}."
    if kind == "bool" and text.lower() not in ("true", "false"):
        meaning = "true" if text.lower() in ("yes", "on") else "false"
        return f"'{text}' is {meaning} in YAML 1.1: write {meaning} if that is meant, else '{text}' in quotes."
    if kind == "int" and _OCTAL.fullmatch(text):
        return f"'{shorten(text)}' is an octal number in YAML 1.1: write it without the leading zero."
    if kind in ("int", "float") and ":" in text:
        return f"'{text}' is a base-60 number in YAML 1.1: put it in quotes, or write the number out."
    if kind not in ("str", "int", "float", "bool", "null"):
        return f"'{shorten(text)}' is read as a {kind} in YAML 1.1: put it in quotes."
    return ""


YamlPath = tuple[str | int, ...]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_LEVELS = 50
_MOST_VALUES = 30_000
_MOST_BYTES = 2_000_000
STDIN = "-"
"""In the place of a path: standard input."""
_MAPPING_TAG, _SEQUENCE_TAG = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"


def no_run(id: str) -> dict[str, Any]:
    """The look-up of runs where no results folder is named. Raises BadInput."""
    raise BadInput(f"run {shorten(id)} is looked for in a results folder, and none is named: give one with --results")


@dataclass
class Document:
    """A YAML file as plain Python values, the line of every value and key, and what is wrong with the text itself.

    ``trapped`` holds the places of values that YAML 1.1 reads as something else than what was meant. ``known`` gives the
    SHA-256 of a file of weights that is named in it and is not there, if that is known; ``class_counts`` for how many classes
    a file was imported with its classifier, by its SHA-256 and the key in it, None if it was not imported; ``run`` the stored
    spec of a finished run by its id, or raises BadInput; ``elsewhere`` the folder of a top-level module that has moved from
    beside it; ``images`` what is known of images of one's own that are not there any more, None if nothing.
    ``settings`` names the options ``--set`` that changed values, by the place of the value.
    ``piped`` says that the text comes from no file on a disk, so that the name and the folder of ``file`` mean nothing.
    """

    file: str
    data: Any
    lines: dict[YamlPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    trapped: set[YamlPath] = field(default_factory=set)
    settings: dict[YamlPath, str] = field(default_factory=dict)
    piped: bool = False
    text: str = ""
    known: Callable[[str], str | None] = lambda _: None
    images: Callable[[ImageSource], dict[str, Any] | None] = lambda _: None
    class_counts: Callable[[str, str | None], frozenset[int] | None] = lambda sha256, key: None
    run: Callable[[str], dict[str, Any]] = no_run
    elsewhere: Callable[[str], Path | None] = lambda _: None

    @property
    def folder(self) -> Path:
        """The base of relative paths in it: its own folder, or the working folder."""
        return Path() if self.piped else Path(self.file).parent

    def place(self, path: YamlPath) -> YamlPath:
        """The part of ``path`` that exists in the file: ``student`` for ``student[0]`` if no list was written."""
        place: YamlPath = ()
        for part in path:
            if (*place, part) in self.lines:
                place = (*place, part)
            elif part != 0:
                break
        return place

    def problem(self, path: YamlPath, message: str) -> Problem:
        """A problem at ``path``: with the line of the nearest thing that encloses it, or the option that set the value."""
        for start, option in self.settings.items():
            if path[: len(start)] == start:
                return Problem(option, 0, show_path(path[len(start) :]), message)
        place = self.place(path)
        return Problem(self.file, self.lines.get(place, 1), show_path(place), message)

    def all_problems(self, found: Iterable[Problem]) -> list[Problem]:
        """The text's own problems and those ``found`` in its values, without what only repeats a trap."""
        repeated = {show_path(path) for path in self.trapped}
        return self.problems + [problem for problem in found if problem.path not in repeated]


def show_path(path: YamlPath) -> str:
    """Write ('grid', 0, 'student', 2) as ``grid[0].student[2]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_yaml(file: Path) -> Document:
    """Read a YAML file, a pipe, or standard input (`-`).

    Raises BadSuite where it cannot be read or is not YAML at all; smaller problems are collected in the document.
    """
    name = "standard input" if str(file) == STDIN else str(file)
    try:
        content = _content(file)
        if len(content) > _MOST_BYTES:
            raise _refused(name, 0, f"is larger than {_MOST_BYTES / 1e6:g} MB: no suite needs that")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _refused(name, 0, "cannot be read: it is not UTF-8 text") from None
    except OSError as error:
        raise _refused(name, 0, f"cannot be read: {error.strerror or error}") from None
    document = parse_yaml(text, name)
    document.piped = not file.is_file()
    return document


def _content(file: Path) -> bytes:
    """Read a file or standard input, up to one byte beyond the limit."""
    if str(file) != STDIN:
        with file.open("rb") as stream:
            return stream.read(_MOST_BYTES + 1)
    if sys.stdin is None:
        raise OSError("it is closed")
    return sys.stdin.buffer.read(_MOST_BYTES + 1)


def parse_yaml(text: str, file: str) -> Document:
    """Parse YAML text; ``file`` is the name used in messages. Raises BadSuite for what is not YAML."""
    try:
        _check_depth(text, file)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise _refused(file, line, f"is not valid YAML: {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise _refused(file, 0, "is not valid YAML: " + str(error).partition("\n")[0]) from None
    document = Document(file, None, text=text)
    if node is not None:
        document.data = _convert(node, (), document, frozenset())
    return document


def _check_depth(text: str, file: str) -> None:
    """Refuse nesting that no suite needs, and more values; the composer would recurse into it until the stack is full."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if count > 2 * _MOST_VALUES:
            raise _refused(file, line, "holds too many values")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_LEVELS:
            raise _refused(file, line, f"is nested more than {_MOST_LEVELS} levels deep")


def _refused(file: str, line: int, message: str) -> BadSuite:
    return BadSuite([Problem(file, line, "", message)])


def _convert(node: yaml.Node, path: YamlPath, document: Document, enclosing: frozenset[int]) -> Any:
    document.lines[path] = node.start_mark.line + 1
    if len(document.lines) > _MOST_VALUES:
        raise _refused(document.file, node.start_mark.line + 1, "holds too many values, counting every alias")
    if id(node) in enclosing:
        return _trapped(path, "an alias must not contain itself", document)
    if isinstance(node, yaml.ScalarNode):
        value, trap = read_scalar(node)
        return _trapped(path, trap, document, value) if trap else value
    if node.tag not in (_MAPPING_TAG, _SEQUENCE_TAG):
        message = f"has the tag '{node.tag.removeprefix('tag:yaml.org,2002:')}': suites use plain values only"
        return _trapped(path, message, document)
    enclosing = enclosing | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        return [_convert(child, (*path, index), document, enclosing) for index, child in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    return _mapping(node, path, document, enclosing)


def _mapping(node: yaml.MappingNode, path: YamlPath, document: Document, enclosing: frozenset[int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key is None:
            _complain(document, line, path, "a key must be a plain name")
        elif key_node.tag == "tag:yaml.org,2002:merge":
            _complain(document, line, path, "merge keys (<<) are not read: write the values out")
        elif len(key) > LONGEST or UNPRINTABLE.search(key) or "\n" in key:
            what = f"must be one line of text, of {LONGEST} letters at most"
            _complain(document, line, path, f"the key {shorten(repr(key))} is not a name: it {what}")
        elif key in result:
            first = document.lines[*path, key]
            _complain(document, line, (*path, key), f"is given twice (first in line {first}): keep one of them")
        else:
            result[key] = _convert(value_node, (*path, key), document, enclosing)
            document.lines[*path, key] = line
    return result


def _complain(document: Document, line: int, path: YamlPath, message: str) -> None:
    document.problems.append(Problem(document.file, line, show_path(path), message))


def _trapped(path: YamlPath, message: str, document: Document, value: Any = None) -> Any:
    document.problems.append(document.problem(path, message))
    document.trapped.add(path)
    return value


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 takes for text, and ``read_scalar`` for a number."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _EXPONENT.fullmatch(text) else None)


_Dumper.add_representer(str, _represent_text)


def write_yaml(data: Any) -> str:
    """Plain values as YAML that ``parse_yaml`` reads as the same values."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
