"""Prints how a checkout is built: modules, lines, import circles, the largest files and folders of the package and its tests.

Usage: python benchmarks/structure.py [ROOT]    ROOT is any checkout; the default is this one.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Every module, or member of a module, that a module imports, at its top or inside functions, but not for types alone."""
    for_types = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other: strongly connected components, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in sorted(graph[name]):
            if target not in order:
                visit(target)
            if target in stack:
                low[name] = min(low[name], low[target])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in order:
            visit(name)
    return found


def describe(root: Path, folder: str) -> None:
    """Print one package's numbers."""
    paths = sorted((root / folder).rglob("*.py"))
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    names = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    graph = {
        name: {target for target in imported_names(ast.parse(path.read_bytes())) if target in names} - {name}
        for name, path in names.items()
    }
    folders = Counter(path.parent for path in paths)
    largest, (fullest, count) = max(paths, key=lines.__getitem__), folders.most_common(1)[0]
    print(f"{folder}: {len(paths)} modules, {sum(lines.values()):,} lines, {len(circles(graph))} import circles")
    for group in circles(graph):
        print(f"  circle: {' ↔ '.join(group)}")
    print(f"  largest file: {largest.relative_to(root)} ({lines[largest]} lines)")
    print(f"  largest folder: {fullest.relative_to(root)} ({count} modules)")
    for path, number in sorted(folders.items()):
        size = sum(lines[each] for each in paths if each.parent == path)
        print(f"  {path.relative_to(root).as_posix():24}{number:4} modules{size:7,} lines")


if __name__ == "__main__":
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    for part in ("kdbench", "tests"):
        describe(checkout, part)
