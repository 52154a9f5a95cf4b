"""A worker's surroundings in this process, tiny specs, and a way to compare what runs leave on disk."""

import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import fakegpu
import pytest
import torch

from kdbench.catalogue.terms import term_names
from kdbench.data.stream import DataSource
from kdbench.store.store import Store
from kdbench.suite.load import load_suite
from kdbench.suite.measurements import ProbeSpec, SimilaritySpec
from kdbench.suite.protocol import bundled_protocol
from kdbench.suite.specs import Adapter, DatasetSpec, HeadSpec, NewLayers, Recipe, RunSpec, Supervised, WeightedTerm
from kdbench.training import jobs
from kdbench.training.context import JobContext
from kdbench.training.measuring import take_measurement
from kdbench.training.weights import WeightFiles


CPU = torch.device("cpu")
TINY = DatasetSpec(name="digits", train_per_class=4, test_per_class=3, size=8)
RECIPE = Recipe(epochs=3, batch=16, lr=0.02, momentum=0.9, weight_decay=5e-4, milestones=(2,), crop_padding=2)
NEEDS_A_FINISHED_TEACHER = {"ft", "sskd"}
SUITE = """
protocol: {{base: smoke, lr: 0.02, node_embedding: {node_embedding}{changes}}}
dataset: {{name: digits, train_per_class: 4, test_per_class: 1, size: {size}}}
grid:
  - {{teacher: resnet8, student: wrn-10-1, strategy: {strategy}, method: [{methods}]}}
  - {{teacher: resnet8, student: wrn-16-1, strategy: {strategy}, method: hkd}}
"""
KEPT = ("spec.json", "metrics.jsonl", "result.json", "weights.safetensors")


@pytest.fixture(scope="session", autouse=True)
def faulty_terms():
    """The module of misbehaving terms can be imported by name."""
    sys.path.insert(0, str(Path(__file__).parent))
    yield
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Batches of 16 small images are no work for two, least of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items):
    """The device must be there before the first backward pass: autograd counts devices once."""
    if fakegpu.INSTALLABLE and any("gpu" in item.fixturenames for item in items):
        fakegpu.install()


@pytest.fixture(scope="session")
def gpu():
    """A device for tests, ``fakegpu``; a process whose tests ask for it has it from its start."""
    if not fakegpu.INSTALLABLE:
        pytest.skip(fakegpu.MISSING)
    return fakegpu.install()


@dataclass
class Bench:
    """A results folder with a worker's view of it.

    It is told to stop after so many epochs, counted over all trainers, or when it asks for the so manieth time: once after
    each batch and each epoch.
    """

    root: Path
    device: torch.device = CPU
    checkpoint_seconds: float = 1e9
    eager: bool = True
    stop_after: int | None = None
    stop_at_call: int | None = None
    calls: int = 0
    events: list = field(default_factory=list)
    files_given: dict = field(default_factory=dict)

    def __post_init__(self):
        self.store = Store(self.root)
        self.data = DataSource(self.root, self.device)

    def emit(self, event, **fields):
        self.events.append({"event": event, **fields})

    def stopped(self):
        self.calls += 1
        if self.calls == self.stop_at_call:
            return True
        return self.stop_after is not None and self.count("epoch") >= self.stop_after

    @property
    def shop(self):
        return self.context()

    def context(self, **job):
        weights = WeightFiles(self.root / "weights", self.files_given)
        return JobContext(
            self.store,
            self.data,
            weights,
            self.device,
            self.emit,
            self.stopped,
            self.checkpoint_seconds,
            self.eager,
            **job,
        )

    def count(self, event):
        return sum(entry["event"] == event for entry in self.events)

    def texts(self, event="message"):
        return [entry.get("text", entry.get("reason")) for entry in self.events if entry["event"] == event]

    def teacher(self, spec, **job):
        return jobs.train_teacher(spec, self.context(**job))

    def cohort(self, *runs, **job):
        return jobs.train_cohort(runs, self.context(**job))

    def measure(self, spec):
        return take_measurement(spec, self.shop)

    def teachers(self, *runs):
        for run in runs:
            for spec in run.stages:
                self.teacher(spec)

    def train(self, *runs, **job):
        self.teachers(*runs)
        return self.cohort(*runs, **job)

    def record(self, spec):
        """The record of a run, a teacher's last stage or a measurement."""
        match spec:
            case RunSpec():
                return self.store.run(spec.id)
            case ProbeSpec() | SimilaritySpec():
                return self.store.measurement(spec.id)
            case _:
                return self.store.teacher(spec.id)

    def files(self, *specs):
        """What must be the same byte for byte."""
        folders = [self.record(spec).folder for spec in specs]
        return {(folder.name, name): (folder / name).read_bytes() for folder in folders for name in KEPT}

    def again(self, **changes):
        """The same results folder after a restart."""
        return replace(self, events=[], calls=0, **changes)

    def copy(self, name):
        """Another folder with all that is in this one."""
        self.root.mkdir(exist_ok=True)
        return self.again(root=Path(shutil.copytree(self.root, self.root.with_name(name))))


@pytest.fixture
def bench(tmp_path):
    """bench(name, …): a results folder."""
    return lambda name="results", **options: Bench(tmp_path / name, **options)


@pytest.fixture
def recipe():
    return RECIPE


@pytest.fixture
def teacher():
    return Supervised(network="resnet8", dataset=TINY, recipe=RECIPE.model_copy(update={"epochs": 2}))


@pytest.fixture
def make_run(teacher):
    """make_run({term: weight or {weight, …}}, strategy, recipe={…}, **fields): a run on a handful of digits."""

    def make(terms, strategy="pretrained", recipe=None, **fields):
        uses = []
        for name, value in sorted(terms.items()):
            options = dict(value) if isinstance(value, dict) else {"weight": value}
            uses.append(WeightedTerm(name=name, weight=float(options.pop("weight", 1)), hyperparameters=options))
        changes = {"node_embedding": None if strategy == "pretrained" else 16, **(recipe or {})}
        head = HeadSpec(width=16, recipe=RECIPE.model_copy(update={"lr": 0.05}))
        parts = {
            "pretrained": {"teacher": teacher},
            "sequential": {"teacher": NewLayers(parent=teacher, dataset=TINY, head=head)},
            "simultaneous": {"teacher": teacher, "head": head},
        }[strategy]
        if set(terms) <= {"ce"} or all(":" in name or name == "ce" for name in terms):
            parts = {}
        spec = {"student": "resnet8", "dataset": TINY, "recipe": RECIPE.model_copy(update=changes), **parts, **fields}
        return RunSpec(terms=tuple(uses), **spec)

    return make


@pytest.fixture
def with_adapter(make_run, recipe):
    """with_adapter(term, {hyper-parameters}, …): a run with a term that trains an adapter on the teacher first."""

    def make(term, options, strategy="pretrained", **fields):
        run = make_run({"ce": 1, "kd": 1}, strategy, **fields)
        how = recipe.model_copy(update={"epochs": 1, "lr": 0.05})
        adapter = Adapter(parent=run.teacher, dataset=run.dataset, term=term, hyperparameters=options, recipe=how)
        terms = make_run({"ce": 1, "kd": 1, term: {"weight": 0.1, **options}}).terms
        return run.model_validate(run.model_copy(update={"terms": terms, "adapters": (adapter,)}).model_dump())

    return make


def method_of(term):
    """The smoke protocol's first method with a term."""
    for method, uses in bundled_protocol("smoke").terms.items():
        if term in {use.name for use in uses}:
            return method
    raise AssertionError(f"the smoke protocol has no method with '{term}'")


@pytest.fixture
def every_term(tmp_path):
    """every_term(strategy, {changes of the protocol}, pixels): a run with each loss term that the strategy allows.

    A new term needs no line here.
    """

    def runs(strategy, changes=None, size=8):
        terms = [name for name in term_names() if name != "hkd"]
        if strategy == "simultaneous":
            terms = [name for name in terms if name not in NEEDS_A_FINISHED_TEACHER]
        file = tmp_path / "suite.yaml"
        node_embedding = "null" if strategy == "pretrained" else 8
        methods = ", ".join(map(method_of, terms))
        more = "".join(f", {key}: {value}" for key, value in (changes or {}).items())
        file.write_text(
            SUITE.format(strategy=strategy, methods=methods, node_embedding=node_embedding, changes=more, size=size)
        )
        return [run.spec for run in load_suite(file).runs]

    return runs
