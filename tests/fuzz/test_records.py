"""A results folder in which anything may stand: every command that reads it goes on, and says what it could not read."""

import contextlib
import copy
import json
import os
import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kdbench.catalogue.text import CONTROL
from kdbench.cli.app import app
from kdbench.errors import KdbenchError
from kdbench.files import file_hash
from kdbench.planning.plan import make_plan
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.suite.load import load_suite
from kdbench.suite.specs import digest


SUITE = """\
protocol: smoke
dataset: digits
trials: 1
grid:
  - teacher: resnet8
    student: resnet8
    method: [kd, ft]
    measure: {similarity: digits}
"""

WEIGHTS = (64).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(64) + b"\0" * 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A suite file, and beside it a folder with a finished record of everything in it."""
    folder = tmp_path_factory.mktemp("records")
    file = folder / "own.yaml"
    file.write_text(SUITE)
    suite, store = load_suite(file), Store(folder / "whole")
    accuracy = Accuracy(epoch=2, top1=50.0, top5=90.0)
    stages = {stage.id: stage for run in suite.runs for stage in run.spec.stages}
    records = [(store.teacher(id), stage, "teacher") for id, stage in stages.items()]
    records += [(store.run(run.id), run.spec, "run") for run in suite.runs]
    records += [(store.measurement(each.spec.id), each.spec, "measurement") for each in suite.measurements]
    about = {"device": {"kind": "cpu", "name": "x"}, "macs": 8.0, "seconds": 2.0, "versions": {"kdbench": "0.1.0"}}
    for record, spec, kind in records:
        record.begin(spec.canonical())
        record.weights_file.write_bytes(WEIGHTS)
        sha256 = file_hash(record.weights_file)
        below = spec.dependencies if kind != "teacher" else [spec.parent] if spec.parent else []
        result = Result(
            id=record.id, kind=kind, last=accuracy, best=accuracy, weights_sha256=sha256,
            parent_sha256="+".join([sha256] * len(below)) or None,
            values={"kl_t4": 0.5, "cka": 0.9} if kind == "measurement" else None,
            metrics_sha256=record.write_metrics([{"epoch": n, "loss": 2.0, "terms": {"ce": 1.0}} for n in (1, 2)]),
        )  # fmt: skip
        record.finish(result, about)
    (store.run("0" * 12).folder).mkdir()
    (store.run("0" * 12).folder / "failure.json").write_text('{"kind": "error", "epoch": 1, "reason": "why"}')
    return file


def test_the_folder_is_whole(place):
    done = CliRunner().invoke(app, ["verify", "--results", str(place.with_name("whole"))])
    assert done.output.splitlines()[-1].endswith(" 0 damaged.")
    plan = make_plan(load_suite(place).specs.values(), Store(place.with_name("whole")))
    assert (plan.runs, plan.teachers) == (0, ())


def commands(file, results, id):
    reports = [["report", file, "--results", results, "-f", form] for form in ("terminal", "markdown", "latex")]
    reports += [["report", file, "--results", results, "-f", form] for form in ("csv", "json", "html")]
    there = ["--results", results]
    return [
        ["list", "runs", *there], ["list", "teachers", *there], ["list", "runs", "--json", *there],
        ["list", "teachers", "--json", *there], ["show", id, *there], *reports,
        ["report", file, "--results", results, "--results", results],
        ["report", file, "--results", results, "--statistics"],
        ["compare", file.replace("own.yaml", "whole"), results, file],
        ["compare", file.replace("own.yaml", "whole"), results, file, "-f", "json"],
        ["plan", file, *there], ["plan", file, "--json", *there], ["verify", *there], ["verify", file, "--json", *there],
        ["teachers", "verify", *there], ["teachers", "verify", "--json", *there], ["teachers", "list", *there],
        ["teachers", "export", id, file.replace("own.yaml", "exported"), *there],
        ["data", "samples", "--run", id, *there],
    ]  # fmt: skip


HOSTILE = [
    None, True, -1, 0, 10**400, 2**64, -(10**18), 1e308, -1e308, 5e-324, "", "1", "\x1b]0;x\x07\x1b[8m", "\x00",
    "\u202ex\u2028", "a\nb", "x" * 5000, [], {}, [[]], {"": 1}, [1] * 2000, {"terms": []}, "10" * 200, "../../etc",
    "ce", "\x9b31m",
]  # fmt: skip
TEXTS = [
    b"", b"{", b"NaN", b"[NaN]", b'{"a": Infinity}', b'{"seconds": 1e400, "macs": -1e400}', b'"\\ud800"', b'{"\\ud800": 1}',
    b'{"id": 1, "id": 2}', b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 1000, b"null", b"5", b"1" * 5000,
    b"\0" * 100,
    b"[]\n" * 50_000, b"\n" * 50_000, b'{"epoch": 1, "loss": NaN}\n{"epoch": 1e999}\n{"epoch": 2, "loss": 1e308}\n',
    b'{"kind": "error", "epoch": 1, "reason": "\\u001b]0;owned\\u0007\\u001b[8mhidden \\u202e"}',
]  # fmt: skip


def damage(path, how, chance):
    """Let something else stand in the place of a file."""
    content = path.read_bytes()
    if how == "value" and path.suffix in (".json", ".jsonl"):
        whole = path.suffix == ".json"
        values = [json.loads(content)] if whole else [json.loads(line) for line in content.splitlines()]
        values = altered(values, chance)
        if path.name == "result.json" and isinstance(values[0], dict) and chance.random() < 0.8:
            values[0].pop("checksum", None)  # who can write here can compute it
            values[0]["checksum"] = digest(values[0])
        path.write_text("\n".join(map(json.dumps, values)))
    elif how == "bytes" and content:
        changed = bytearray(content)
        for _ in range(chance.choice([1, 1, 3, 30])):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        path.write_bytes(changed[: chance.choice([len(changed), chance.randrange(len(changed))])])
    elif how == "text":
        path.write_bytes(chance.choice(TEXTS))
    elif how == "large":
        os.truncate(path, 10 * 2**30)
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "pipe":
            os.mkfifo(path)
        elif how == "link":
            path.symlink_to(chance.choice(["/dev/zero", "/dev/tty", path.name, "nowhere", "..", "/dev/null"]))


def altered(value, chance):
    """A copy in which something hostile stands in a random place."""
    value = copy.deepcopy(value)
    node = value
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = chance.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and chance.random() < 0.8:
            node = node[key]
            continue
        if isinstance(node, dict) and chance.random() < 0.2:
            node[chance.choice(["", "more", "\x1b[8m", "terms", "epoch", "\u202e"])] = node.pop(key)
        else:
            node[key] = chance.choice(HOSTILE)
        return value


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


WAYS = ["value"] * 6 + ["bytes", "text", "text", "folder", "pipe", "link", "large", "missing"]


@settings(max_examples=settings().max_examples // 5)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(WAYS), min_size=1, max_size=3))
def test_whatever_stands_there(place, within_limits, seed, ways):
    chance = random.Random(seed)
    results = place.with_name("damaged")
    shutil.rmtree(results, ignore_errors=True)
    shutil.rmtree(place.with_name("exported"), ignore_errors=True)
    shutil.copytree(place.with_name("whole"), results)
    for way, path in zip(ways, chance.sample(sorted(results.glob("*/*/*.*")), len(ways)), strict=True):
        damage(path, way, chance)
    id = chance.choice(sorted(results.glob("*/*"))).name
    for command in chance.sample(commands(str(place), str(results), id), 3):
        with within_limits():
            done = CliRunner().invoke(app, command)
        if not isinstance(done.exception, SystemExit | KdbenchError | None):
            raise AssertionError(f"{command}, {ways}") from done.exception
        if done.exit_code == 0 or "verify" in command:
            if "json" in command or "--json" in command:
                json.loads(done.stdout, parse_constant=refuse)
            if "html" not in command:
                assert not CONTROL.search(done.stdout.replace("\n", "")), command
    suite, store = load_suite(place), Store(results)
    with within_limits(), contextlib.suppress(KdbenchError):
        store.quarantine_damaged(store.run(id) for id in suite.specs)
        store.quarantine_damaged(store.measurement(each.spec.id) for each in suite.measurements)
        store.quarantine_damaged_teachers(stage for run in suite.runs for stage in run.spec.stages)
        make_plan(suite.specs.values(), store, measurements=[each.spec for each in suite.measurements])
