"""kdbench.catalogue.terms: what is read from a term's source equals what the class says."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import kdbench
from kdbench.catalogue import terms
from kdbench.catalogue.hyperparameters import RANGES, check_hyperparameters
from kdbench.catalogue.terms import TERM_CONSTANTS, Hyperparameter, term, term_names
from kdbench.errors import BadInput
from kdbench.methods import Term, build_term


PLUGIN = '''
"""Losses of someone else."""
from __future__ import annotations
import torch
from typing import Literal
import kdbench.methods.kd as published
from kdbench.methods import Term as Base

class Mine(Base):
    """Half of nothing.

    Equation: L = 0
    """
    reads = "logits"
    requires = ("equal_maps_without_regressor",)
    full_batches = True
    version = 3

    def __init__(self, context, *, scale: float = -1.0, mode: Literal["sum", "mean"] = "sum", warm: int | None = None,
                 name: str = "x", flag: bool = False):
        super().__init__(context)

    def forward(self, student, teacher, batch):
        return student.logits.sum() * 0

class Warmer(published.KD):
    """KD with more."""

    def __init__(self, context, *, extra: int = 1, **others):
        super().__init__(context, **others)

class Same(Warmer):
    """As it was."""
    needs_teacher: bool = False

class Computed(Base):
    """Not literal."""
    version = 1 + len("x")


class ReadsNothing(Mine):
    reads_maps = "no_such"

class NoTerm:
    """Something else."""
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package outside kdbench: folder/mylosses/deep/losses.py, re-exported one level up."""
    deep = tmp_path / "mylosses" / "deep"
    deep.mkdir(parents=True)
    (tmp_path / "mylosses" / "__init__.py").write_text("from .deep.losses import Mine\n")
    (deep / "__init__.py").write_text("")
    (deep / "losses.py").write_text(PLUGIN)
    (deep / "broken.py").write_text("class A(:\n")
    (deep / "failing.py").write_text(
        "from kdbench.methods import Term\nraise RuntimeError('too late')\n\nclass Late(Term):\n    'Fails at import.'\n"
    )
    (deep / "hidden.py").write_text(
        "def base():\n    return dict\n\nclass Hidden(base()):\n    'Whose base no source names.'\n"
    )
    (deep / "exiting.py").write_text(
        "import sys\nfrom kdbench.methods import Term\nsys.exit(3)\n\nclass Gone(Term):\n    'Exits at import.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    clear()
    yield deep / "losses.py"
    clear()
    for module in [name for name in sys.modules if name.partition(".")[0] == "mylosses"]:
        del sys.modules[module]


def clear():
    importlib.invalidate_caches()
    for cached in (terms._term, terms.term_names, terms._entry_points, terms._bundled):
        cached.cache_clear()


def test_the_bundled_terms():
    assert {"at", "ce", "fitnet", "kd", "pkt", "rkd", "sp", "vid"} <= set(term_names())
    assert term_names() == sorted(term_names())


@pytest.mark.parametrize("name", term_names())
def test_facts_equal_the_class(name):
    info = term(name)
    module, class_name = info.target.split(":")
    kind = getattr(importlib.import_module(module), class_name)
    assert issubclass(kind, Term)
    assert info.name == name
    assert info.path == Path(inspect.getfile(kind))
    assert info.description == inspect.cleandoc(kind.__doc__)
    assert info.summary == info.description.splitlines()[0]
    for fact in TERM_CONSTANTS:
        assert getattr(info, fact) == getattr(kind, fact)
    parameters = list(inspect.signature(kind).parameters.values())[1:]
    expected = {p.name: Hyperparameter(p.annotation, p.default) for p in parameters}
    assert info.hyperparameters == expected
    assert check_hyperparameters(info, {p.name: p.default for p in parameters}) == []


@pytest.mark.parametrize("name", term_names())
def test_the_docstring_informs_and_the_file_holds_one_term(name):
    info = term(name)
    assert info.summary.endswith(".")
    assert info.reads
    assert "Equation:" in info.description
    assert "Weights:" in info.description
    assert "Departures:" in info.description
    assert re.fullmatch(r"[A-Z].+\. .+\. .*(19|20)\d\d.*", info.paper)
    module = importlib.import_module(info.target.split(":")[0])
    own = [k for k in vars(module).values() if isinstance(k, type) and issubclass(k, Term)]
    assert [k.__name__ for k in own if k.__module__ == module.__name__] == [info.target.split(":")[1]]


def test_nothing_is_imported():
    code = (
        "import sys; from kdbench.catalogue.terms import *; names = [term(name).version for name in term_names()];"
        "assert names; assert 'torch' not in sys.modules and 'kdbench.methods' not in sys.modules, 'imported'"
    )
    root = Path(kdbench.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_either_spelling(monkeypatch):
    monkeypatch.setattr(terms, "_bundled", lambda: {"two-words": "kdbench.methods.kd:KD"})
    clear_term = partial(terms._term.__wrapped__, beside=None)
    assert clear_term("two-words") == clear_term("Two_Words")
    assert clear_term("two_words").name == "two-words"


@pytest.mark.parametrize(
    "name, message",
    [
        ("kdd", r"unknown term 'kdd'. Did you mean 'kd'\?  \(kdbench list methods\)"),
        ("mypackage.losses:Mine", "'mypackage.losses': it must lie beside the suite, or be installed"),
        ("kdbench.methods.nothing:Mine", "cannot find the module 'kdbench.methods.nothing'"),
        (":Mine", "'' is no name of a module: write package.module:Class"),
        ("sys:Mine", "'sys' is a module of Python's own library: give yours another name"),
        ("kdbench.methods.vid:Vid", r"no class 'Vid' in .*vid.py. Did you mean 'VID'\?"),
    ],
)
def test_names_that_mean_nothing(name, message, context):
    with pytest.raises(BadInput, match=message):
        term(name)
    with pytest.raises(BadInput, match=message):
        build_term(name, context)


def test_a_term_of_another_package(plugin, context):
    info = term("mylosses.deep.losses:Mine")
    assert info.path == plugin
    assert (info.summary, info.reads, info.version, info.needs_teacher) == ("Half of nothing.", "logits", 3, True)
    assert info.requires == ("equal_maps_without_regressor",)
    assert info.full_batches
    assert info.hyperparameters["scale"] == Hyperparameter("float", -1.0)
    assert "mylosses" not in sys.modules
    assert term("mylosses:Mine").path == plugin
    built = build_term("mylosses:Mine", context, mode="mean")
    assert type(built).__module__ == "mylosses.deep.losses"


def test_facts_and_hyperparameters_are_inherited(plugin, context):
    info = term("mylosses.deep.losses:Same")
    assert info.reads == "logits"
    assert not info.needs_teacher
    assert list(info.hyperparameters) == ["extra", "temperature"]
    assert build_term("mylosses.deep.losses:Same", context, temperature=2).temperature == 2


def test_terms_that_an_installed_package_announces(plugin, context, monkeypatch):
    entry = importlib.metadata.EntryPoint("my_own", "mylosses:Mine", terms.PLUGINS)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == terms.PLUGINS else [])
    assert {"my-own", "kd"} <= set(term_names())
    assert term("my-own").target == "mylosses:Mine"
    assert type(build_term("my-own", context)).__name__ == "Mine"


@pytest.mark.parametrize(
    "name, message",
    [
        ("mylosses.deep.losses:NoTerm", "is no loss term: it must be a subclass of kdbench.methods.Term"),
        ("mylosses.deep.losses:Computed", "losses.py:.* Computed: version must be a literal"),
        (
            "mylosses.deep.losses:ReadsNothing",
            "reads_maps is 'no_such', and neither True, False nor a hyper-parameter's name",
        ),
        ("mylosses.deep.broken:A", "broken.py:1  invalid syntax"),
        ("mylosses.deep.failing:Late", "cannot import the term .*RuntimeError: too late"),
        ("mylosses.deep.hidden:Hidden", "is no loss term: it must be a subclass of kdbench.methods.Term"),
        ("mylosses.deep.exiting:Gone", "cannot import the term .*SystemExit: 3"),
    ],
)
def test_broken_terms(plugin, context, name, message):
    with pytest.raises(BadInput, match=message):
        build_term(name, context)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("scale", "four", "scale must be a number, not 'four'"),
        ("scale", True, "scale must be a number, not True"),
        ("scale", float("nan"), "scale must be a number, not nan"),
        ("mode", "max", "mode must be one of 'sum', 'mean', not 'max'"),
        ("warm", 1.5, "warm must be a whole number or null, not 1.5"),
        ("name", 1, "name must be text, not 1"),
        ("flag", 1, "flag must be true or false, not 1"),
        ("scael", 1, "unknown hyper-parameter 'scael' of mylosses:Mine. Did you mean 'scale'?"),
        ("zzz", 1, "unknown hyper-parameter 'zzz' of mylosses:Mine. It has scale, mode, warm, name, flag."),
    ],
)
def test_hyperparameters_that_do_not_fit(plugin, key, value, message):
    assert check_hyperparameters(term("mylosses:Mine"), {key: value}) == [(key, message)]


def test_hyperparameters_that_fit(plugin):
    fitting = [{"scale": 2, "mode": "mean", "warm": None}, {"scale": 0.5, "warm": 3, "name": "y", "flag": True}, {}]
    assert [check_hyperparameters(term("mylosses:Mine"), values) for values in fitting] == [[], [], []]


NUMBERS = [
    (name, key, hyper)
    for name in term_names()
    for key, hyper in term(name).hyperparameters.items()
    if isinstance(hyper.default, int | float) and not isinstance(hyper.default, bool)
]


@pytest.mark.parametrize("name, key, hyper", NUMBERS)
def test_every_number_of_a_bundled_term_has_a_range(name, key, hyper):
    words, low, high, whole = RANGES[hyper.annotation]
    assert -1 < low <= hyper.default <= high < 1e7
    inside = [int(high), hyper.default] if whole else [high, int(high), hyper.default]
    outside = [low - 1, low - 1e-9, high * (1 + 1e-9), math.nan, math.inf, 10**400, "1", True, None, [1]]
    for value in inside:
        assert check_hyperparameters(term(name), {key: value}) == []
    for value in outside:
        assert check_hyperparameters(term(name), {key: value}) == [(key, f"{key} must be {words}, not {value!r}")]


@pytest.mark.parametrize("value, fits", [(0, False), (0.0, False), (5e-324, True), (-1.0, False), (1e6, True)])
def test_a_positive_number_is_above_0(value, fits):
    assert (check_hyperparameters(term("kd"), {"temperature": value}) == []) is fits


def test_a_range_may_be_left_open(plugin):
    assert check_hyperparameters(term("semckd"), {"student_layer": None, "teacher_layer": 0}) == [
        ("teacher_layer", "teacher_layer must be a whole number from 1 to 1,000,000 or null, not 0")
    ]
    assert check_hyperparameters(term("mylosses:Mine"), {"scale": -1e300}) == []
    assert check_hyperparameters(term("mylosses:Mine"), {"scale": 10**400})[0][1].startswith(
        "scale must be a number, not"
    )
