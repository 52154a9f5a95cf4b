"""Imports go one way, and the half that plans and reports knows nothing of torch."""

import ast
from pathlib import Path

import pytest

import kdbench


ROOT = Path(kdbench.__file__).parent
MODULES = {".".join((ROOT.name, *p.relative_to(ROOT).with_suffix("").parts)): p for p in ROOT.rglob("*.py")}
HEAVY = {"torch", "torchvision", "open_clip", "safetensors", "sklearn"}
TORCH_FREE = {"catalogue", "suite", "plan", "store", "report", "cli", "execution", "datafiles", "weightfiles"}
MAY_IMPORT = {
    "errors": set(),
    "catalogue": {"errors"},
    "weightfiles": {"errors"},
    "suite": {"errors", "catalogue", "weightfiles"},
    "store": {"errors", "catalogue", "suite"},
    "plan": {"errors", "catalogue", "suite", "store"},
    "report": {"errors", "catalogue", "suite", "store"},
    "models": {"errors", "catalogue", "suite", "data", "weightfiles"},
    "datafiles": {"errors", "catalogue", "store"},
    "data": {"errors", "catalogue", "suite", "datafiles"},
    "methods": {"errors", "catalogue", "suite", "models", "data"},
    "evaluation": {"errors", "catalogue", "suite", "models", "data"},
    "training": {
        "errors",
        "catalogue",
        "suite",
        "store",
        "plan",
        "models",
        "data",
        "methods",
        "evaluation",
        "datafiles",
    },
    "execution": {"errors", "catalogue", "suite", "store", "plan"},
    "cli": {"errors", "catalogue", "suite", "store", "plan", "report", "execution", "datafiles"},
    "__main__": {"errors", "catalogue", "cli"},
}


def imports(path):
    """The names that a module imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "kdbench")


def part_of(module):
    names = module.split(".")
    return names[1] if len(names) > 1 and module != "kdbench.__init__" else ""


def test_every_part_of_the_package_has_its_rule():
    assert {part_of(module) for module in MODULES} - {""} == MAY_IMPORT.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module):
    part = part_of(module)
    names = list(imports(MODULES[module]))
    if part == "":
        assert not [name for name in names if name.startswith("kdbench")]
        return
    for name in names:
        top, _, rest = name.partition(".")
        if top in HEAVY:
            assert part not in TORCH_FREE, f"{module} imports {name}"
        if top == "kdbench" and rest and rest != "__version__":
            other = rest.partition(".")[0]
            assert other == part or other in MAY_IMPORT[part], f"{module} imports {name}"


def test_modules_are_small():
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values())
    assert lengths[-1] <= 400
    assert lengths[len(lengths) // 2] < 100
