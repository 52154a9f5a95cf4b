"""Networks from elsewhere in a suite: what their identity is, and what is said before anything runs."""

import json
import shutil
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from kdbench.catalogue.plugins import locating_modules
from kdbench.errors import BadInput, BadSuite
from kdbench.models.build import _facts_or_error
from kdbench.planning.plan import changed_plugins
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.suite import networks
from kdbench.suite.components import NetworkSpec
from kdbench.suite.load import load_suite, load_suites
from kdbench.suite.methods import plugin_folders


ASK = networks._ask
CODE = """\
from torch import nn
import suite_helpers as helpers


class Net(nn.Module):
    def __init__(self, classes, width=4):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layer1 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), helpers.norm(width))
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, padding=1), helpers.norm(2 * width))
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images):
        return self.head(self.layer2(self.layer1(self.stem(images))).mean((2, 3)))


class Large(nn.Sequential):  # for images of 64 pixels alone
    def __init__(self, classes):
        super().__init__(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(256, classes))


def three():
    return Net(3)
"""
SUITE = """\
protocol: {protocol}
dataset: digits
networks: {networks}
grid: {{teacher: {teacher}, student: {student}, method: {method}}}
"""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Networks are measured here, which is many times faster; tests/cli/test_own_network.py has the real thing."""

    def ask(specs):
        finders, modules = list(sys.meta_path), set(sys.modules)
        try:
            return [_facts_or_error(spec) for spec in specs]
        finally:
            sys.meta_path[:] = finders
            for name in set(sys.modules) - modules:
                if name.partition(".")[0] in ("suite_nets", "suite_helpers"):
                    del sys.modules[name]

    monkeypatch.setattr(networks, "_ask", ask)


@pytest.fixture
def suite(tmp_path):
    """suite(networks, student, method, teacher, folder): a suite beside the module of networks."""

    def write(
        own="{mine: suite_nets:Net}",
        student="mine",
        method="[ce, kd]",
        teacher="resnet8",
        folder="first",
        protocol="smoke",
    ):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        if not (place / "suite_nets.py").exists():
            (place / "suite_nets.py").write_text(CODE)
            (place / "suite_helpers.py").write_text(
                "from torch import nn\n\n\ndef norm(width):\n    return nn.BatchNorm2d(width)\n"
            )
        file = place / "suite.yaml"
        file.write_text(SUITE.format(networks=own, student=student, method=method, teacher=teacher, protocol=protocol))
        return load_suite(file)

    return write


def ids(suite):
    return [run.id for run in suite.runs]


@pytest.fixture
def problems(suite):
    """problems(…): the places and messages of what is wrong."""

    def collect(*arguments, **keys):
        with pytest.raises(BadSuite) as caught:
            suite(*arguments, **keys)
        return {(problem.path, problem.message) for problem in caught.value.problems}

    return collect


def test_a_protocol_says_something_of_them_alone(suite, problems):
    found = suite(
        student="[mine, resnet8]",
        method="ft",
        protocol="{base: smoke, lr_for: {mine: 0.3}, parts: {ft: {lr_for: {mi*: 0.2}}}}",
    )
    assert [(run.spec.recipe.lr, run.spec.adapters[0].recipe.lr) for run in found.runs] == [(0.3, 0.2), (0.01, 0.01)]
    wrong = problems(protocol="{base: smoke, lr_for: {mien: 0.3}}")
    assert {(place, message.partition("?")[0]) for place, message in wrong} == {
        ("protocol.lr_for.mien", "unknown model 'mien'. Did you mean 'mine'")
    }


def test_names_and_places_are_no_part_of_the_identity_but_all_else_is(suite, tmp_path):
    before = ids(suite())
    assert ids(suite(student="'suite_nets:Net'")) == before
    assert ids(suite("{other: {build: 'suite_nets:Net'}}", student="other")) == before
    moved = shutil.copytree(tmp_path / "first", tmp_path / "moved")
    assert ids(load_suite(moved / "suite.yaml")) == before
    others = [
        ids(suite(own))
        for own in (
            "{mine: {build: suite_nets:Net, arguments: {width: 5}}}",
            "{mine: {build: suite_nets:Net, maps: [stem, layer2]}}",
            "{mine: {build: suite_nets:Net, size: 16}}",
        )
    ]
    (moved / "suite_helpers.py").write_text((moved / "suite_helpers.py").read_text() + "# one line more\n")
    others.append(ids(load_suite(moved / "suite.yaml")))
    others.append(ids(suite(teacher="mine", student="resnet8")))
    assert len({*before, *(id for each in others for id in each)}) == 2 + 8 + 2


def test_a_package_may_give_its_networks_short_names(suite, monkeypatch):
    before = ids(suite())
    entry = EntryPoint("mini", "suite_nets:Net", networks.PLUGINS)
    monkeypatch.setattr(networks.importlib.metadata, "entry_points", lambda group: [entry])
    networks.short_names.cache_clear()
    try:
        assert ids(suite(student="mini")) == before
    finally:
        networks.short_names.cache_clear()


def test_what_changed_is_told(suite, tmp_path):
    run = suite().runs[1].spec
    store = Store(tmp_path / "results")
    record = store.run(run.id)
    record.begin(run.canonical())
    score, metrics = Accuracy(epoch=1, top1=9.0, top5=50.0), record.write_metrics([])
    record.finish(
        Result(id=run.id, kind="run", last=score, best=score, weights_sha256="0" * 64, metrics_sha256=metrics), {}
    )
    (tmp_path / "first" / "suite_helpers.py").write_text("from torch import nn\n\n\nnorm = nn.BatchNorm2d\n")
    edited = list(suite().specs.values())
    assert changed_plugins(edited, store) == ["suite_nets:Net has changed since 1 finished run: not reused."]
    assert plugin_folders(edited) == {"suite_nets": tmp_path / "first", "suite_helpers": tmp_path / "first"}


def test_the_spec_says_all_of_a_network(suite):
    spec = suite("{mine: {build: suite_nets:Net, arguments: {width: 5}, maps: [stem, layer2]}}").runs[1].spec
    assert f"{spec.student}" == "mine"
    assert "mine" not in json.dumps(spec.canonical())
    student = spec.canonical()["student"]
    assert len(student.pop("source_sha256")) == 64
    assert student == {"build": "suite_nets:Net", "arguments": {"width": 5}, "maps": ["stem", "layer2"]}
    assert type(spec).model_validate(spec.canonical()).id == spec.id


def test_images_are_resized_for_a_network_of_one_size(suite):
    runs = suite(
        "{large: suite_nets:Large, fixed: {build: suite_nets:Net, size: 48}}", "[large, fixed]", "[kd]", "large"
    ).runs
    assert [run.spec.recipe.size for run in runs] == [64, 48]
    assert [run.spec.teacher.recipe.size for run in runs] == [64, 64]
    assert [run.spec.teacher_view.size if run.spec.teacher_view else None for run in runs] == [64, 64]


@pytest.mark.parametrize(
    ("own", "keys", "path", "message"),
    [
        ("{mine: suite_nets:Nett}", {}, "networks.mine", "there is no function or class 'Nett' in"),
        ("{mine: nots:Net}", {}, "networks.mine", "cannot find the module 'nots'"),
        ("{mine: {build: suite_nets:Net, maps: [stem, layr2]}}", {}, "networks.mine.maps", "Did you mean 'layer2'?"),
        ("{mine: {build: suite_nets:Net, arguments: {wide: 3}}}", {}, "networks.mine", "cannot be built: TypeError"),
        ("{mine: {biuld: suite_nets:Net}}", {}, "networks.mine.biuld", "unknown key. Did you mean 'build'?"),
        ("{mine: {build: suite_nets}}", {}, "networks.mine", "'suite_nets' names no builder: write package.module:name"),
        ("{resnet8: suite_nets:Net}", {"student": "resnet8"}, "networks.resnet8", "is the name of a network of kdbench"),
        ("{mine: suite_nets:three}", {}, "grid.method[0]", "mine gives 3 logits whatever is asked of it, and digits has 10"),
        ("{mine: suite_nets:Net}", {"student": "mime"}, "grid.student", "unknown model 'mime'. Did you mean 'mine'?"),
        ("{mine: suite_nets:Net}", {"student": "timm:resnet17"}, "grid.student", "timm has no network 'resnet17'"),
        ("{mine: suite_nets:Net}", {"method": "mgd"}, "grid.method", "the maps before the activation, and mine gives none"),
        ("{mine: suite_nets:Net}", {"method": "online_kd"}, "grid.method", "trains copies of the student's last stage"),
        ("{mine: suite_nets:Net}", {"method": "hkd"}, "grid.method", "no doubled mine is known"),
        ("{mine: suite_nets:Net}", {"method": "fsp"}, "grid.method", "pairs the stages one by one, but mine has 2"),
    ],
)  # fmt: skip
def test_mistakes(problems, own, keys, path, message):
    found = problems(own, **keys)
    assert any(path in place and message in text for place, text in found), found
    assert len(found) <= 2


def test_two_modules_of_one_name_cannot_run_together(suite, tmp_path):
    suite()
    suite(folder="second")
    (tmp_path / "second" / "suite_nets.py").write_text(CODE + "# another\n")
    suites = load_suites([str(tmp_path / folder / "suite.yaml") for folder in ("first",)])
    other = load_suite(tmp_path / "second" / "suite.yaml")
    with pytest.raises(Exception, match="are both the module 'suite_nets'"):
        plugin_folders([*suites[0].specs.values(), *other.specs.values()])


def test_a_name_outside_a_suite():
    assert networks.find_network("ResNet8x4") == networks.find_network("resnet8x4") == "resnet8x4"
    with pytest.raises(BadInput, match=r"unknown model 'resnet8x5'\. Did you mean 'resnet8x4'"):
        networks.find_network("resnet8x5")
    with pytest.raises(BadInput, match="':Net' names no builder: write package"):
        networks.find_network(":Net")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ({"returncode": 1, "stderr": "Traceback\n\nImportError: no libfoo\n"}, "ImportError: no libfoo"),
        ({"returncode": 3, "stderr": ""}, "its code ends the process (exit code 3)"),
        (TimeoutError(), "its code does not end within 300 s"),
    ],
)
def test_of_several_networks_the_one_whose_code_ends_the_process_is_named(monkeypatch, end, reason):
    """All are asked together, and each alone where that fails."""
    good, bad = (NetworkSpec(name=name, build=f"timm:{name}") for name in ("good", "bad"))
    asked = []

    def ask(code, request, seconds):
        names = [each["name"] for each in request["networks"]]
        asked.append(names)
        if "bad" not in names:
            answer = json.dumps([{"macs": 7} for _ in names])
            return SimpleNamespace(returncode=0, stdout=f"what a library prints\n{answer}\n", stderr="a warning")
        if isinstance(end, Exception):
            raise end
        return SimpleNamespace(stdout="", **end)

    monkeypatch.setattr(networks, "ask", ask)
    monkeypatch.setattr(networks, "_ask", ASK)
    assert ASK([good, bad]) == [{"macs": 7}, {"error": f"bad cannot be built: {reason}"}]
    assert asked == [["good", "bad"], ["good"], ["bad"]]


def test_the_process_that_measures_is_told_where_the_modules_are(monkeypatch, tmp_path):
    asked = []

    def ask(code, request, seconds):
        asked.append(request["beside"])
        return SimpleNamespace(returncode=0, stdout="[{}, {}]", stderr="")

    monkeypatch.setattr(networks, "ask", ask)
    monkeypatch.setitem(networks.SOURCES, "5" * 64, SimpleNamespace(beside=("suite_helpers", "elsewhere")))
    own = NetworkSpec(name="own", build="suite_nets.inner:Net", source_sha256="5" * 64)
    with locating_modules({"suite_nets": tmp_path, "suite_helpers": tmp_path / "x", "timm": tmp_path}.get):
        ASK([own, NetworkSpec(name="other", build="timm:other")])
    assert asked == [{"suite_nets": str(tmp_path), "suite_helpers": str(tmp_path / "x")}]
