"""What README and documentation show works as printed."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
import yaml
from PIL import Image

import kdbench
from kdbench.catalogue.terms import term
from kdbench.cli.app import app
from kdbench.data.batch import Batch
from kdbench.methods import Term, TermContext, build_term
from kdbench.models import Outputs, Shapes
from kdbench.suite.load import bundled_suites, load_suite
from kdbench.suite.schema import TeacherEntry


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(language, block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, (language, block) in enumerate(re.findall(r"```(\w+)\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
]


def of(language, word=""):
    return [block for block in BLOCKS if block.values[0] == language and word in block.values[1]]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SUITES = [block for block in of("yaml", "grid:") if "networks:" not in block.values[1]]
"""The suite with a network of its own is trained in tests/cli/test_own_network.py."""


@pytest.mark.parametrize(("language", "text"), SUITES)
def test_example_suites_are_valid(tmp_path, language, text):
    for label in ("cat", "dog"):
        for part in ("train", "test"):
            folder = tmp_path / "pictures" / part / label
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), label == "cat").save(folder / "1.png")
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    assert load_suite(file).runs


@pytest.mark.parametrize(("language", "text"), of("yaml", "measure:"))
def test_example_measurements_are_valid(tmp_path, language, text):
    file = tmp_path / "grid.yaml"
    grid = "grid: [{teacher: resnet32x4, student: resnet8x4, method: kd}]"
    file.write_text(f"protocol: crd\ndataset: cifar100\n{grid}\n{text}")
    assert {"probe", "similarity"} == {each.spec.kind for each in load_suite(file).measurements}


@pytest.mark.parametrize(("language", "text"), of("yaml", "teachers:"))
def test_example_teachers_fit_the_schema(language, text):
    for entry in yaml.safe_load(text)["teachers"].values():
        TeacherEntry.model_validate(entry)


@pytest.mark.parametrize(("language", "text"), of("python", "(Term)"))
def test_example_terms_train(tmp_path, monkeypatch, language, text):
    package = f"docs_example_{tmp_path.name}"
    (tmp_path / f"{package}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    (name,) = re.findall(r"class (\w+)", text)
    name = f"{package}:{name}"
    assert term(name).reads == "embedding"
    shapes = Shapes(logits=5, embedding=6, features=((4, 2, 2),))
    loss = build_term(name, TermContext(shapes, shapes, 5, 100, 3))
    outputs = Outputs(torch.randn(3, 5), torch.randn(3, 6), [torch.randn(3, 4, 2, 2)], [])
    value = loss(outputs, outputs, Batch(torch.zeros(3, 3, 8, 8), torch.zeros(3).long(), torch.arange(3)))
    value.backward()
    assert value.shape == ()
    assert loss.project.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("language", "text"), of("console", "kdbench "))
def test_commands_exist_with_their_options(language, text):
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "kdbench" and "--install-completion" not in words:
            command, rest = typer.main.get_command(app), words[1:]
            context = typer.Context(command, info_name="kdbench")
            while hasattr(command, "get_command"):
                name, command, rest = command.resolve_command(context, rest)
                context = typer.Context(command, info_name=name, parent=context)
            command.make_context(name, rest)


def test_every_key_of_suites_and_protocols_is_explained(generate):
    pages = {page: generate.keys(page) for page in generate.SCHEMAS}
    assert '| `precision` | `fp32`, `bf16` | `"fp32"` |' in pages["protocol"]
    assert "| `fraction` | number > 0, ≤ 1 | `1.0` |" in pages["suite"]


@pytest.mark.parametrize("kind", ["methods", "protocols", "models", "datasets", "tables"])
def test_catalogue_pages_show_each_entry(generate, kind):
    page = generate.catalogue(kind)
    links = re.findall(r"^\| \[.*?\]\(#(.*?)\)", page, re.MULTILINE)
    assert links
    assert links == re.findall(r"^## .*? \{ #(.*) \}", page, re.MULTILINE)


def test_public_names_exist():
    named = {name for page in PAGES for name in re.findall(r"\bkdbench\.(\w+)\(", page.read_text("utf-8"))}
    assert named >= {"run", "results", "load_student"}
    assert named <= set(kdbench.__all__)


def test_files_that_are_named_exist():
    pattern = r"`((?:kdbench|tests|docs|benchmarks)/[\w./-]+)`"
    named = {name for page in PAGES for name in re.findall(pattern, page.read_text("utf-8"))}
    assert named
    assert not [name for name in named if "NAME" not in name and not (ROOT / name).exists()]


def test_what_a_staged_term_sets_is_there():
    guide = (ROOT / "docs" / "guides" / "extending.md").read_text("utf-8")
    rows = re.findall(r"^\| (?:pre-)?\w+s .*? \| (`.*?) \| `(\w+)` \|$", guide, re.MULTILINE)
    named = {name for sets, _ in rows for name in re.findall(r"`(?:context\.)?(\w+)", sets)}
    assert len(rows) == 8
    known = {*dir(Term), *TermContext.__dataclass_fields__, "initial_epochs", "parts"}
    assert named <= known, named - known
    assert all(term(example).name == example.replace("_", "-") for _, example in rows)


def test_the_readme_is_short_and_fits_package_indexes():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.encode()) <= 8192
    assert all(target.startswith("https://") for target in re.findall(r"\]\((.*?)\)", text))


def test_every_bundled_suite_is_in_the_guide():
    guide = (ROOT / "docs" / "guides" / "suites.md").read_text("utf-8")
    assert not [name for name in bundled_suites() if f"`{name}`" not in guide]


@pytest.mark.parametrize("name", bundled_suites())
def test_every_bundled_suite_is_valid(name):
    assert load_suite(bundled_suites()[name]).runs
