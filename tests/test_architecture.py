"""Imports go one way without circles, the half that plans and reports never imports torch, and modules stay few and short.

`python tests/test_architecture.py` prints how many and how long they are.
"""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import kdbench


ROOT = Path(kdbench.__file__).parent
MODULES = {
    ".".join((ROOT.name, *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): p
    for p in ROOT.rglob("*.py")
    if p != ROOT / "__init__.py"  # imports the public names when they are asked for: tests/test_api.py
}
FREE = {"methods", "models"}
"""One file per method and per family of networks, however many there are."""
HEAVY = {"torch", "torchvision", "open_clip", "safetensors", "sklearn"}
TORCH_FREE = {
    "catalogue",
    "suite",
    "planning",
    "store",
    "reporting",
    "plots",
    "cli",
    "execution",
    "datafiles",
    "weightfiles",
    "files",
    "child",
    "tracking",
}
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "child": {"errors"},
    "catalogue": {"errors", "files"},
    "weightfiles": {"errors"},
    "suite": {"errors", "files", "datafiles", "child", "catalogue", "weightfiles"},
    "store": {"errors", "files", "datafiles", "catalogue", "suite"},
    "planning": {"errors", "files", "catalogue", "suite", "store"},
    "reporting": {"errors", "files", "catalogue", "suite", "store"},
    "tracking": {"errors", "suite", "store"},
    "plots": {"errors", "files", "catalogue", "suite", "store", "reporting"},
    "models": {"errors", "files", "catalogue", "suite", "data", "weightfiles"},
    "datafiles": {"errors", "files", "catalogue", "store"},
    "data": {"errors", "files", "catalogue", "suite", "datafiles"},
    "methods": {"errors", "files", "catalogue", "suite", "models", "data"},
    "evaluation": {"errors", "files", "catalogue", "suite", "models", "data"},
    "training": {
        "errors",
        "files",
        "catalogue",
        "suite",
        "store",
        "planning",
        "models",
        "data",
        "methods",
        "evaluation",
        "datafiles",
        "child",
    },
    "deployment": {
        "errors",
        "files",
        "catalogue",
        "suite",
        "store",
        "models",
        "data",
        "datafiles",
        "evaluation",
        "training",
    },
    "execution": {"errors", "files", "child", "datafiles", "catalogue", "suite", "store", "planning"},
    "cli": {
        "errors",
        "files",
        "child",
        "catalogue",
        "suite",
        "store",
        "planning",
        "reporting",
        "plots",
        "execution",
        "datafiles",
        "tracking",
    },
    "api": {"errors", "catalogue", "suite", "store", "planning", "reporting", "execution", "training", "deployment"},
    "__main__": {"errors", "files", "catalogue", "cli"},
}


def imports(path):
    """The names that a module imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module):
    names = module.split(".")
    return names[1] if len(names) > 1 else ""


def test_every_part_of_the_package_has_its_rule():
    assert {part_of(module) for module in MODULES} == MAY_IMPORT.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module):
    part = part_of(module)
    names = list(imports(MODULES[module]))
    for name in names:
        top, _, rest = name.partition(".")
        if top in HEAVY:
            assert part not in TORCH_FREE, f"{module} imports {name}"
        if top == "kdbench" and rest and rest != "__version__":
            other = rest.partition(".")[0]
            assert other == part or other in MAY_IMPORT[part], f"{module} imports {name}"


def lines_of_modules():
    return Counter({name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()})


def modules_of_folders():
    return Counter(path.parent.relative_to(ROOT).as_posix() for path in MODULES.values())


def circle():
    """Modules that import each other, the first again at the end; none where there is no circle."""
    graph = {name: {target for target in imports(path) if target in MODULES} - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_exceeds_400_lines():
    assert {name: lines for name, lines in lines_of_modules().items() if lines > 400} == {}


def test_no_folder_has_more_than_18_modules():
    assert {name: count for name, count in modules_of_folders().items() if count > 18 and name not in FREE} == {}


def test_no_modules_import_each_other_in_a_circle():
    assert circle() == []


if __name__ == "__main__":
    lines, folders = lines_of_modules(), modules_of_folders()
    print(f"{len(lines)} modules, {lines.total():,} lines, circle: {' → '.join(circle()) or 'none'}")
    for what, found in (("largest files", lines), ("folders with most modules", folders)):
        print(f"{what}: {', '.join(f'{name} {count}' for name, count in found.most_common(5))}")
