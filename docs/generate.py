"""The generated pages of the reference, as an mkdocs hook: made from the package at each build, never committed.

Catalogue pages hold what `kdbench list KIND --json` and `kdbench show NAME` print. The keys of suites and protocols come from
the pydantic schema, with a sentence for each from keys.yaml: a key without a sentence, or one without a key, is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

import kdbench
from kdbench import api
from kdbench.cli.app import app
from kdbench.suite.components import Recipe, SimCLR
from kdbench.suite.data_specs import Scenario
from kdbench.suite.measurements import ProbeProtocol
from kdbench.suite.protocol import Protocol
from kdbench.suite.schema import (
    DatasetEntry,
    GridEntry,
    ImagesEntry,
    MeasureEntry,
    MethodEntry,
    NetworkEntry,
    Pair,
    Selector,
    Shared,
    SuiteHead,
    TeacherEntry,
)


if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page


DOCS = Path(__file__).parent
SCHEMAS: dict[str, dict[str, type[BaseModel]]] = {
    "suite": {
        "At the top or in a grid": Shared,
        "Suite": SuiteHead,
        "Grid": GridEntry,
        "Data set": DatasetEntry,
        "Scenario": Scenario,
        "Method": MethodEntry,
        "Images": ImagesEntry,
        "Network": NetworkEntry,
        "Teacher": TeacherEntry,
        "Pair": Pair,
        "Include and exclude": Selector,
        "Measure": MeasureEntry,
        "Probe protocol": ProbeProtocol,
    },
    "protocol": {"Recipe": Recipe, "Protocol": Protocol, "SimCLR": SimCLR},
}
INTERNAL = {"Data set": {"stand_in", "images"}, "Protocol": {"name", "terms"}}
"""Fields of a schema that no file may set."""
CATALOGUE = {
    "methods": ("Methods", "text", {"method": "", "paper": "paper", "reads": "reads", "time": "time × kd"}),
    "protocols": ("Protocols", "yaml", None),
    "models": ("Networks", "text", None),
    "datasets": ("Data sets", "text", None),
    "suites": ("Bundled suites", "yaml", None),
    "tables": ("Published tables", "text", None),
}
"""Title of a page, the language of its blocks, and the columns of its table with their headings (None: all)."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, content in pages():
        files.append(File.generated(config, name, content=content))
    return files


def pages() -> Iterator[tuple[str, str]]:
    """Path and Markdown of each generated page."""
    yield "changelog.md", (DOCS.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    yield "guides/notebook.md", notebook()
    yield "reference/cli.md", command_line()
    for page in SCHEMAS:
        yield f"reference/{page}.md", keys(page)
    for kind in CATALOGUE:
        yield f"reference/{kind}.md", catalogue(kind)


def printed(*arguments: str) -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    if done.exit_code:
        raise RuntimeError(f"kdbench {' '.join(arguments)}: {done.output}")
    return done.stdout.rstrip()


def catalogue(kind: str) -> str:
    """A table of all, then each in full."""
    title, language, columns = CATALOGUE[kind]
    lines = json.loads(printed("list", kind, "--json"))
    names = [next(iter(line.values())) for line in lines]
    headings = columns or {column: column or "summary" for column in lines[0]}
    _, *shown = headings
    rows = [[f"[{name}](#{anchor(name)})", *(line[c] for c in shown)] for name, line in zip(names, lines, strict=True)]
    parts = [f"# {title}", "", f"The same on the command line: `kdbench list {kind}` and `kdbench show NAME`.", ""]
    parts += [markdown_table([kind, *(headings[column] for column in shown)], rows)]
    for name in names:
        parts += ["", f"## {name} {{ #{anchor(name)} }}", "", f"```{language}", printed("show", name), "```"]
    return "\n".join(parts) + "\n"


def anchor(name: str) -> str:
    """A name as the id of its section."""
    return name.lower().replace(".", "-")


def keys(page: str) -> str:
    """The keys of suite files or of protocols: type, default and meaning."""
    texts = yaml.safe_load((DOCS / "reference" / "keys.yaml").read_text(encoding="utf-8"))[page]
    parts = [f"# {texts['title']}", "", texts["intro"]]
    for title, schema in SCHEMAS[page].items():
        section = texts[title]
        described, fields = section["keys"], schema.model_json_schema()["properties"]
        known = fields.keys() - INTERNAL.get(title, set()) - inherited(schema)
        if known != described.keys():
            raise RuntimeError(f"keys.yaml, {page}.{title}: differs from the schema in {known ^ described.keys()}")
        rows = [[f"`{key}`", kind_of(fields[key]), default_of(fields[key]), described[key]] for key in described]
        parts += ["", f"## {title}", "", section["intro"], "", markdown_table(["key", "value", "default", ""], rows)]
    return "\n".join(parts) + "\n"


def inherited(schema: type[BaseModel]) -> set[str]:
    """The keys that a base class with a section of its own has already."""
    sections = {each for page in SCHEMAS.values() for each in page.values()} - {schema}
    return {key for base in schema.__mro__ if base in sections for key in base.model_fields}


def kind_of(schema: dict[str, Any]) -> str:
    """The type and range of a value in words."""
    if "anyOf" in schema:
        return " or ".join(kind_of(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "integer" | "number" as kind:
            return {"integer": "whole number", "number": "number"}[kind] + limits(schema)
        case "boolean":
            return "`true`, `false`"
        case "string":
            return "text"
        case "array" if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {kind_of(schema['prefixItems'][0])}"
        case "array":
            return f"list: {kind_of(schema['items'])}"
        case _:
            return "mapping" if "$ref" in schema or schema.get("type") == "object" else ""


def limits(schema: dict[str, Any]) -> str:
    """The range of a number."""
    if "minimum" in schema and "maximum" in schema:
        return f", {schema['minimum']:,g} to {schema['maximum']:,g}"
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[bound]:,g}" for bound, sign in words.items() if bound in schema]
    return f" {', '.join(bounds)}" if bounds else ""


def default_of(schema: dict[str, Any]) -> str:
    """The default as YAML; nothing where it is empty or computed."""
    value = schema.get("default")
    return "" if value in (None, "", []) or "{" in json.dumps(value) else f"`{json.dumps(value)}`"


def notebook() -> str:
    """The example in examples/ as a page: its cells of Markdown and of code."""
    _, *cells = re.split(
        r"^# %%(.*)\n", (DOCS.parent / "examples" / "digits.py").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    parts = []
    for kind, cell in zip(cells[::2], cells[1::2], strict=True):
        prose = re.sub(r"^# ?", "", cell.strip(), flags=re.MULTILINE)
        parts.append(prose if "markdown" in kind else f"```python\n{cell.strip()}\n```")
    suite = (DOCS.parent / "examples" / "digits.yaml").read_text(encoding="utf-8").strip()
    parts.insert(1, f"```yaml\n{suite}\n```")
    return "\n\n".join(parts) + "\n"


def command_line() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    text = "# Command line\n\nExit codes: 0 all done, 1 some runs failed, 2 bad input and nothing was run, 130 interrupted.\n"
    return text + "".join(command_section(root, "kdbench"))


def command_section(command: Any, path: str) -> Iterator[str]:
    """A command's section, and those of its subcommands."""
    context = typer.Context(command, info_name=path)
    if path != "kdbench":
        yield f"\n## {path} {{ #{path.removeprefix('kdbench ').replace(' ', '-')} }}\n\n{command.help or ''}\n\n"
        records = [each.get_help_record(context) for each in command.get_params(context) if each.name != "help"]
        yield (
            markdown_table(["argument or option", ""], [[f"`{names}`", text] for names, text in filter(None, records)])
            + "\n"
        )
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from command_section(command.resolve_command(context, [name])[1], f"{path} {name}")


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Add the public names to the page of the Python API."""
    return markdown + python_api() if page.file.src_uri == "reference/api.md" else markdown


def python_api() -> str:
    """The public names, functions first, for mkdocstrings to explain by their docstrings."""
    text = ""
    for name in sorted(kdbench.__all__, key=lambda name: name not in vars(api)):
        value = vars(api).get(name) or getattr(kdbench, name)
        options = f"    options:\n      heading: kdbench.{name}\n      toc_label: {name}\n"
        text += f"\n::: {value.__module__}.{value.__qualname__}\n{options}"
    return text


def markdown_table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; bars and line ends in cells are escaped."""

    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(cell_text(cell) for cell in cells) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def cell_text(value: Any) -> str:
    """A value in a cell of a table."""
    if value is None:
        return ""
    text = f"{value:,}" if isinstance(value, int) else str(value).replace("\n", " ")
    prose = [part.replace("|", "\\|").replace("<", "&lt;") for part in text.split("`")[::2]]
    code = text.split("`")[1::2]
    return "`".join(part for pair in zip(prose, [*code, None], strict=True) for part in pair if part is not None)
