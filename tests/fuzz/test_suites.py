"""Suites that hypothesis makes up: right ones, nearly right ones and torn ones, and options of the command line.

Whatever comes, a command ends with exit code 0 or 2 and a message, within the limits of time and memory.
"""

import json
from copy import deepcopy
from functools import cache

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kdbench.catalogue.datasets import datasets
from kdbench.catalogue.networks import networks
from kdbench.catalogue.terms import term_names
from kdbench.cli.app import app
from kdbench.errors import BadInput, BadSuite
from kdbench.planning.plan import auxiliaries_of
from kdbench.suite.load import bundled_suites, load_suite
from kdbench.suite.measurements import probe_protocols
from kdbench.suite.protocol import Protocol, bundled_protocol, protocol_names
from kdbench.suite.schema import DatasetEntry, GridEntry, MeasureEntry, MethodEntry, SuiteHead, TeacherEntry


LONG = settings.get_current_profile_name() == "fuzz"
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Nothing is made smaller: that takes minutes with texts as long as these."""
HAND_WRITTEN = """\
name: mine
protocol: {base: smoke, epochs: 3, milestones: [2], teacher: {epochs: 2}, datasets: {digits: {lr: 0.1}}}
dataset: {name: digits, classes: 4, train_per_class: 8, test_per_class: 4, val_split: 0.2, size: 16}
trials: 2
scenario: [{fraction: 0.5}, {label_noise: 0.2, noise: all}]
measure: {probe: stl10, probe_protocol: {base: linear, epochs: 2, milestones: [1]}, similarity: digits}
methods:
  own: {ce: 1, kd: {weight: 0.5, temperature: 2}, crd: {weight: 0.1, negatives: 16}}
teachers:
  first: {network: resnet8, weights: random}
  second: {network: resnet20, pretraining: simclr}
tables: [semckd-6]
grid:
  - pairs: [[first, resnet8], {teacher: second, student: wrn-16-1}]
    method: [ce, own, sp, {name: "kd, T=2", terms: {ce: 1, kd: 2}}]
    include: {teacher: vgg13, student: vgg8, method: [at]}
    exclude: [{teacher: first, method: ce}]
  - teacher: [resnet8x4, clip-vit-b32]
    student: resnet8
    strategy: [sequential, simultaneous]
    method: [ega, kd, ce]
    protocol: {base: ega, batch: 8, node_embedding: 16}
"""
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63 - 1, -(2**63), 10**25, 1e-320, 1e308, -0.0, float("nan"), float("inf")]),
    st.floats(width=16),
    st.text(max_size=12),
    st.text("ab.:/~-\x00\x1b\u202e\U0001f600", min_size=1, max_size=400),
    st.sampled_from(
        ["", "ce", "kd", "resnet8", "vgg8", "digits", "crd", "~", "no", "1e3", "a" * 300, "x.y:Z", "sha256:0"]
    ),
)
NESTED = st.recursive(
    ODD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        *SuiteHead.model_fields,
        *GridEntry.model_fields,
        *MethodEntry.model_fields,
        *TeacherEntry.model_fields,
        *Protocol.model_fields,
        *DatasetEntry.model_fields,
        *MeasureEntry.model_fields,
        "base",
        "weight",
        "",
    ]
)


def names(known):
    return st.sampled_from(sorted(known))


def one_or_many(values, most=3):
    return values | st.lists(values, min_size=1, max_size=most)


def fields(required, optional):
    """Mappings with all of the required keys and some of the optional ones."""

    @st.composite
    def drawn(draw):
        chosen = draw(st.lists(st.sampled_from(sorted(optional)), unique=True, max_size=3)) if optional else []
        return {key: draw(values) for key, values in {**required, **{key: optional[key] for key in chosen}}.items()}

    return drawn()


SHARES = st.floats(0.01, 0.99).map(lambda value: round(value, 3))
COUNTS = st.integers(1, 40)
RECIPE = {
    "epochs": COUNTS,
    "batch": st.integers(2, 300),
    "lr": SHARES,
    "momentum": SHARES,
    "weight_decay": SHARES,
    "nesterov": st.booleans(),
    "milestones": st.lists(COUNTS, max_size=3, unique=True).map(sorted),
    "decay": SHARES,
    "crop_padding": st.integers(0, 8),
    "flip": st.booleans(),
    "size": st.integers(8, 64),
    "evaluate_every": COUNTS,
    "precision": st.sampled_from(["fp32", "bf16"]),
}
DATASET = names(datasets()) | fields(
    {"name": names(datasets())},
    {
        "classes": st.integers(2, 12),
        "train_per_class": COUNTS,
        "test_per_class": COUNTS,
        "val_split": SHARES,
        "size": st.integers(8, 64),
    },
)
TERMS = st.dictionaries(
    names(term_names()), st.integers(0, 5) | SHARES | st.fixed_dictionaries({"weight": SHARES}), min_size=1, max_size=3
)
METHOD = names(bundled_protocol("smoke").terms) | fields(
    {"terms": TERMS}, {"name": st.text("ab, =[]", min_size=1, max_size=9)}
)
PROTOCOL = names(protocol_names()) | fields(
    {"base": names(protocol_names())},
    {
        **RECIPE,
        "node_embedding": st.integers(1, 64),
        "teacher": fields({}, RECIPE),
        "head": fields({}, RECIPE),
        "trials": COUNTS,
    },
)
SHARED = {
    "dataset": one_or_many(DATASET, 2),
    "strategy": one_or_many(st.sampled_from(["pretrained", "sequential", "simultaneous"])),
    "scenario": one_or_many(
        fields({}, {"fraction": SHARES, "label_noise": SHARES, "noise": st.sampled_from(["other", "all"])})
    ),
    "trials": st.integers(1, 4),
    "measure": fields(
        {},
        {
            "probe": DATASET,
            "similarity": DATASET,
            "probe_protocol": names(probe_protocols())
            | fields({"base": names(probe_protocols())}, {"epochs": COUNTS, "lr": SHARES}),
        },
    ),
}
NETWORK = names(networks())
SELECTOR = fields({}, {"teacher": NETWORK, "student": NETWORK, "method": names(bundled_protocol("smoke").terms)})
GRID = fields(
    {"student": one_or_many(NETWORK), "teacher": one_or_many(NETWORK), "method": one_or_many(METHOD)},
    {
        **SHARED,
        "protocol": PROTOCOL,
        "include": one_or_many(SELECTOR, 2),
        "exclude": one_or_many(SELECTOR, 2),
        "pairs": st.lists(st.tuples(NETWORK, NETWORK).map(list), max_size=2),
    },
)
SUITE = fields(
    {"protocol": PROTOCOL, "dataset": one_or_many(DATASET, 2), "grid": one_or_many(GRID, 2)},
    {**SHARED, "name": st.text(min_size=1, max_size=9)},
)


@cache
def original(name):
    text = HAND_WRITTEN if name == "hand-written" else bundled_suites()[name].read_text(encoding="utf-8")
    return text, yaml.safe_load(text)


SOURCES = st.sampled_from(["hand-written", "smoke", "demo", "cifar100_mini"])
PARSED = SOURCES.map(lambda name: original(name)[1])


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from places(child, (*path, key))


def put(value, path, new):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


@st.composite
def mutated(draw):
    """A suite with up to five of its values replaced, removed, renamed, swapped or doubled."""
    data = deepcopy(draw(PARSED | SUITE))
    for _ in range(draw(st.integers(1, 5))):
        spots = list(places(data))[1:]
        if not spots:
            return draw(NESTED)
        path = spots[draw(st.integers(0, len(spots) - 1))]
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.integers(0, 5))
        if action <= 2:
            parent[path[-1]] = draw(NESTED)
        elif action == 3:
            del parent[path[-1]]
        elif action == 4 and isinstance(parent, dict):
            parent[draw(KEYS)] = parent.pop(path[-1]) if draw(st.booleans()) else draw(NESTED)
        else:
            other = spots[draw(st.integers(0, len(spots) - 1))]
            if other[: len(path)] != path and path[: len(other)] != other:
                put(data, path, deepcopy(value_at(data, other)))
    return data


def value_at(data, path):
    for key in path:
        data = data[key]
    return data


@st.composite
def torn(draw, base):
    """The text of a suite with some letters replaced, lines doubled, anchors and tags put in, or cut short."""
    text = draw(base)
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(text)))
        piece = draw(
            st.sampled_from(
                [
                    "[",
                    "]",
                    "{",
                    "}",
                    ":",
                    ", ",
                    "-",
                    "&a ",
                    "*a",
                    "!!int ",
                    "<<: *a",
                    "|",
                    "\n",
                    "\t",
                    "\0",
                    "'",
                    '"\\x1b"',
                    "é",
                    "\ufeff",
                    "? ",
                    "1e5",
                    ".nan",
                    "99999999999",
                    "{" * 60,
                    "\n---\n",
                ]
            )
        )
        text = text[:at] + piece + text[at + draw(st.integers(0, 3)) :]
    lines = text.split("\n")
    first = draw(st.integers(0, len(lines)))
    last = first + draw(st.integers(0, 4))
    return "\n".join(lines[:last] + lines[first : first if draw(st.booleans()) else None])


def dumped(data):
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def command(within_limits, *arguments):
    """The outcome of a command: exit code, its text, its problem. Anything but a KdbenchError is a bug."""
    with within_limits():
        done = CliRunner().invoke(app, list(arguments))
    error = done.exception
    if error is not None and not isinstance(error, BadInput | SystemExit):
        raise error
    code = error.exit_code if isinstance(error, BadInput) else done.exit_code
    assert code in (0, 2), done.output
    return code, done.stdout, error


def validated(within_limits, file, text):
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    code, _, error = command(within_limits, "validate", str(file))
    if code:
        assert isinstance(error, BadSuite)
        assert all(problem.message and problem.line >= 0 for problem in error.problems)
        assert len(str(error).splitlines()) < 500
    return code


@pytest.fixture
def file(tmp_path):
    return tmp_path / "suite.yaml"


@settings(max_examples=3000 if LONG else 20, phases=PHASES)
@given(data=SUITE)
def test_suites_of_the_grammar(file, within_limits, data):
    if validated(within_limits, file, dumped(data)) == 0:
        _, text, _ = command(within_limits, "plan", str(file), "--json", "--results", str(file.parent / "none"))
        specs = load_suite(file).specs.values()
        runs = {run.id for spec in specs for run in (*auxiliaries_of(spec), spec)}
        assert json.loads(text)["runs"] == len(runs)


@settings(max_examples=3000 if LONG else 50, phases=PHASES)
@given(data=mutated())
def test_suites_with_wrong_values(file, within_limits, data):
    validated(within_limits, file, dumped(data))


@settings(max_examples=3000 if LONG else 30, phases=PHASES)
@given(text=torn(SOURCES.map(lambda name: original(name)[0])))
def test_torn_suites(file, within_limits, text):
    validated(within_limits, file, text)


@settings(max_examples=3000 if LONG else 20, phases=PHASES)
@given(data=NESTED, times=st.sampled_from([1, 3, 50, 2000]))
def test_suites_of_anything(file, within_limits, data, times):
    validated(within_limits, file, dumped({"protocol": "smoke", "dataset": "digits", "grid": [data] * times}))


CONDITIONS = st.text("method=kd,teacher trial0[]T2", max_size=20) | st.builds(
    "{}={}".format,
    st.sampled_from(["method", "student", "teacher", "dataset", "strategy", "trial", "Method ", "x"]),
    st.lists(
        st.sampled_from(["ce", "own", "kd, T=2", "kd", "0", "1", "digits", "resnet8", "first", "", " ", "é"])
        | st.text(max_size=5),
        max_size=4,
    ).map(",".join),
)
WORDS = (  # few trials, or too many: thousands are planned, too, but take their time
    (st.integers(max_value=50) | st.integers(min_value=10_000)).map(str)
    | st.floats().map(str)
    | st.sampled_from(["", "1,2", "auto", "cpu", "0x1", "1e9", "-", "é"])
)


@settings(max_examples=3000 if LONG else 30, phases=PHASES)
@given(
    only=st.lists(CONDITIONS, max_size=3),
    options=st.dictionaries(st.sampled_from(["--trials", "--slots", "--on", "--speed"]), WORDS, max_size=2),
)
def test_options(file, within_limits, only, options):
    if not file.exists():
        file.write_text(HAND_WRITTEN.replace("clip-vit-b32", "vgg13"), encoding="utf-8")
    given = [f"{key}={value}" for key, value in options.items()]
    command(within_limits, "plan", str(file), *(f"--only={each}" for each in only), *given)


def test_the_hand_written_suite_is_right(file, within_limits):
    assert validated(within_limits, file, HAND_WRITTEN) == 0
