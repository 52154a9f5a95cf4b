"""A cluster's nodes as slots, and folders that are mirrored to and from nodes; Ray itself is in test_ray."""

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadInput, KdbenchError, NoDevice
from kdbench.execution import node, seats
from kdbench.execution.cluster import Cluster, check_options, connected, slots_of
from kdbench.execution.devices import NO_GPUS, Gpu, Machine, Slot
from kdbench.execution.jobs import Job
from kdbench.execution.node import Mirror, NodeFacts, Seat, look_at_node, versions
from kdbench.execution.seats import Node, SeatHandle
from kdbench.execution.worker_handle import RunOptions
from kdbench.store import lock
from kdbench.store.liveness import Process
from kdbench.store.lock import Taken
from kdbench.store.store import Store
from kdbench.suite.specs import Adapter, DatasetSpec, Recipe, RunSpec, Supervised, WeightedTerm


GPUS = Machine(threads=8, gpus=(Gpu("A"), Gpu("B", trouble="too old"), Gpu("C")))
FACTS = NodeFacts(versions(), Machine(threads=8), shares_results=True)


@pytest.mark.parametrize(
    ("resources", "machine", "options", "expected"),
    [
        ({"CPU": 8.0}, Machine(threads=8), {}, [("n:cpu:0", 2), ("n:cpu:1", 2), ("n:cpu:2", 2), ("n:cpu:3", 2)]),
        ({"CPU": 3.0}, Machine(threads=8), {"jobs_per_device": 2}, [("n:cpu:0", 1), ("n:cpu:1", 1)]),
        ({"CPU": 8.0, "GPU": 3.0}, GPUS, {}, [("n:gpu:0", 0), ("n:gpu:2", 0)]),
        ({"CPU": 8.0, "GPU": 1.0}, GPUS, {"jobs_per_device": 2}, [("n:gpu:0.0", 0), ("n:gpu:0.1", 0)]),
        ({"CPU": 1.0, "GPU": 3.0}, GPUS, {"devices": "cpu"}, [("n:cpu:0", 1)]),
        ({"GPU": 1.0}, Machine(threads=8), {}, []),
        ({"CPU": 9.0}, Machine(threads=8), {}, [(f"n:cpu:{n}", 2) for n in range(4)]),
        ({"CPU": 2.0, "GPU": 2.0}, GPUS, {"jobs_per_device": 1}, [("n:gpu:0", 0), ("n:gpu:2", 0)]),
        ({"CPU": 2.0, "GPU": 0.5}, GPUS, {}, [("n:cpu:0", 1), ("n:cpu:1", 1)]),
    ],
)
def test_slots_are_what_ray_gives_out_and_torch_can_use(resources, machine, options, expected):
    facts = NodeFacts(versions(), machine, shares_results=True)
    slots = slots_of("n", resources, facts, RunOptions(**options))
    assert [(slot.name, slot.threads) for slot in slots] == expected
    assert {slot.host for slot in slots} <= {"n"}


class FakeRay:
    """As much of Ray as looking at nodes takes; ``answers`` by node, an exception or facts."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []
        strategy = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
        self.util = SimpleNamespace(scheduling_strategies=strategy)
        self.exceptions = SimpleNamespace(RayError=RuntimeError)

    def nodes(self):
        resources = {"CPU": 1.0}
        return [
            {"NodeID": id, "Alive": True, "NodeManagerHostname": id[0], "Resources": resources} for id in self.answers
        ]

    def remote(self, function):
        def options(scheduling_strategy, **asked):
            def called(*arguments, **named):
                self.asked.append((function, asked, arguments, named))
                return scheduling_strategy

            return SimpleNamespace(remote=called)

        return SimpleNamespace(options=options)

    def get(self, node, timeout):
        if isinstance(answer := self.answers[node], Exception):
            raise answer
        return answer


@pytest.fixture
def look(tmp_path):
    """look({node: answer}): the names of the slots, and what the user hears."""

    def at(answers):
        said = []
        found = Cluster(FakeRay(answers), RunOptions(results=tmp_path / "r"), said.append).slots()
        assert not [*(tmp_path / "r").iterdir()]
        return [slot.name for slot in found], said

    return at


def test_a_node_that_differs_is_refused_by_name_and_the_others_go_on(look):
    old = NodeFacts({**versions(), "torch": "2.0.0"}, Machine(threads=1), shares_results=True)
    bare = NodeFacts(versions(), Machine(threads=1), shares_results=True, missing=["/data/mine"])
    names, said = look(
        {"a1": FACTS, "b1": old, "c1": RuntimeError("Traceback\n  No module named 'kdbench'"), "d1": bare}
    )
    assert names == ["a:cpu:0"]
    assert said == [
        f"node b is not used: it has torch 2.0.0 (here {versions()['torch']}); install the same versions there",
        "node c cannot be used: No module named 'kdbench'",
        "node d is not used: it lacks /data/mine; put them on a shared disk",
    ]


def test_nodes_of_one_host_have_names_of_their_own(look):
    assert look({"a1": FACTS, "a2": FACTS})[0] == ["a:cpu:0", "a-2:cpu:0"]


def test_looking_for_a_plan_writes_nothing(tmp_path):
    options = RunOptions(results=tmp_path / "r")
    found = Cluster(FakeRay({"a1": FACTS}), options, print, writing=False).slots()
    assert [slot.name for slot in found] == ["a:cpu:0"]
    assert not (tmp_path / "r").exists()


def test_without_any_node_nothing_runs(look):
    with pytest.raises(NoDevice, match="no node of the cluster can be used"):
        look({"c1": RuntimeError("gone")})


def test_a_nodes_facts(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(node, "query_devices", lambda *, gpus: Machine(threads=3 if gpus else 2))
    (tmp_path / "token").touch()
    facts = look_at_node(str(tmp_path / "token"), [str(tmp_path), str(tmp_path / "no")], gpus=False)
    assert facts == NodeFacts(versions(), Machine(threads=2), shares_results=True, missing=[str(tmp_path / "no")])
    assert versions()["Python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not look_at_node(str(tmp_path / "other"), [], gpus=False).shares_results
    assert look_at_node("", [], gpus=False).shares_results


class Held:
    """As much of Ray as a seat takes whose resources are another job's until ``free`` is set."""

    def __init__(self, actors=()):
        self.free, self.asked, self.sent, self.killed = threading.Event(), [], [], []
        self.told, self.files, self.closes = [], [], []
        self.exceptions = SimpleNamespace(RayError=RuntimeError, GetTimeoutError=TimeoutError)
        strategy = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
        self.util = SimpleNamespace(scheduling_strategies=strategy)
        ids = {"own": "kdbench run", "2a": "python train.py", "3b": "python other.py", "4c": "gone"}
        jobs = [
            {"JobID": id, "IsDead": id == "4c", "Entrypoint": entrypoint, "DriverIPAddress": "10.0.0.3"}
            for id, entrypoint in ids.items()
        ]
        table = {number: {"JobID": id, "Address": {"NodeID": node}} for number, (id, node) in enumerate(actors)}
        state = SimpleNamespace(jobs=lambda: jobs, actors=lambda actor_state_name: table)
        self._private = SimpleNamespace(state=state)

    def get_runtime_context(self):
        return SimpleNamespace(get_job_id=lambda: "own")

    def remote(self, **groups):
        assert groups == {"concurrency_groups": {"listening": 1, "sending": 1}}, "one call at a time, in order"

        def options(num_cpus, num_gpus, scheduling_strategy):
            self.asked.append((scheduling_strategy, num_cpus, num_gpus))
            return SimpleNamespace(remote=self.seat)

        return lambda cls: SimpleNamespace(options=options)

    def seat(self, *_, **__):
        sent = []
        self.sent.append(sent)

        def ready(timeout):
            if not self.free.wait(timeout):
                raise TimeoutError

        def events(timeout):
            time.sleep(0.01)
            found = self.told.pop(0) if self.told else ({}, [])
            if isinstance(found, Exception):
                raise found
            return found

        def send(message, files, lent):
            sent.append(message)
            self.files.append(files)

        def close(timeout):
            self.closes.append(timeout)
            return True

        return SimpleNamespace(
            __ray_ready__=SimpleNamespace(remote=lambda: ready),
            send=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=send)),
            lend=SimpleNamespace(remote=dict),
            events=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: events)),
            close=SimpleNamespace(remote=lambda: close),
            stderr_tail=SimpleNamespace(remote=lambda: lambda timeout: f"its last words, within {timeout:.0f} s"),
        )

    def get(self, call, timeout=None):
        return call(timeout)

    def kill(self, seat):
        self.killed.append(seat)


@pytest.fixture
def sit(tmp_path, monkeypatch):
    """sit(ray, …): a seat of two cores on node 1, or of a GPU, which is given back after a moment, and its inbox."""
    monkeypatch.setattr(seats, "PLACE_SECONDS", 0.05)
    monkeypatch.setattr(seats, "WAIT_SECONDS", 0.05)
    made = []

    def at(ray, kind="cpu", shares=True, threads=2, **options):
        inbox = queue.Queue()
        slot = Slot(f"n:{kind}:0", kind, NO_GPUS, threads, Gpu("A") if kind == "gpu" else None, host="n")
        there = Node("1", "n", shares_results=shares)
        made.append(SeatHandle(ray, slot, RunOptions(tmp_path, **options), inbox, there, Store(tmp_path)))
        return made[-1], inbox

    yield at
    for handle in made:
        assert handle.close()


def test_a_seat_asks_for_its_cores_or_its_share_of_a_gpu(sit):
    ray = Held()
    for kind, jobs in (("cpu", None), ("gpu", None), ("gpu", 4)):
        sit(ray, kind, jobs_per_device=jobs)
    assert ray.asked == [("1", 2, 0), ("1", 0, 1), ("1", 0, 0.25)]


def test_a_seat_that_another_job_holds_up_gives_its_job_back_and_starts_when_it_can(sit):
    ray = Held(actors=[("own", "1"), ("2a", "1"), ("3b", "2")])
    handle, inbox = sit(ray)
    handle.send({"runs": ["a run"]})
    name, event = inbox.get(timeout=10)
    assert (name, event["event"]) == ("n:cpu:0", "held")
    assert event["reason"] == (
        "node n has not had 2 CPUs free for 0 s: held by job 2a (python train.py, from 10.0.0.3)"
    )
    ray.free.set()
    assert inbox.get(timeout=10) == ("n:cpu:0", {"event": "placed"})
    assert ray.sent == [[{"runs": ["a run"]}], []], "the job is not left with the seat that may start later"


def test_a_seat_is_waited_for_by_what_ray_tells_and_can_be_let_go(sit):
    handle, inbox = sit(Held())
    others = "job 2a (python train.py, from 10.0.0.3), job 3b (python other.py, from 10.0.0.3)"
    assert inbox.get(timeout=10)[1]["reason"].endswith(f" for 0 s: the cluster also has {others}")
    handle.send({"stop": True})
    assert inbox.get(timeout=10)[1] == {"event": "done", "busy": []}
    silent = Held()
    del silent._private
    assert sit(silent)[1].get(timeout=10)[1]["reason"] == "node n has started no process for 0 s"


def student(trial):
    terms = (WeightedTerm(name="ce"),)
    return RunSpec(student="resnet8", terms=terms, dataset=DIGITS, recipe=RECIPE, trial=trial)


DIGITS, RECIPE = DatasetSpec(name="digits"), Recipe(epochs=1, batch=16, lr=0.1)
TEACHER = Supervised(network="resnet20", dataset=DIGITS, recipe=RECIPE)


@pytest.fixture
def far(sit):
    """A seat that is there, on a node that does not see the results folder; its inbox, and Ray."""
    ray = Held()
    ray.free.set()
    handle, inbox = sit(ray, shares=False)
    while not handle.placed:
        time.sleep(0.01)
    return handle, inbox, ray


def test_the_records_of_a_job_are_locked_here_while_a_node_without_the_folder_is_at_it(far, tmp_path):
    (handle, inbox, ray), here, there = far, student(0), student(1)
    Store(tmp_path).run(here.id).begin(here.canonical())
    job = Job(runs=(here, there))
    with Store(tmp_path).run(there.id).lock().acquire(timeout=0):
        handle.send(job.message(), job)
    assert ray.sent == [[{**job.message(), "runs": [here.model_dump(mode="json")]}]]
    assert [*ray.files[0]] == [f"runs/{here.id}/spec.json"]
    with pytest.raises(Taken):
        Store(tmp_path).run(here.id).lock().acquire(timeout=0)
    ray.told.append(({f"runs/{here.id}/metrics.jsonl": b"{}"}, [{"event": "ready"}, {"event": "done", "busy": ["x"]}]))
    assert [inbox.get(timeout=10)[1] for _ in range(2)] == [
        {"event": "ready"},
        {"event": "done", "busy": ["x", there.id]},
    ]
    assert (tmp_path / "runs" / here.id / "metrics.jsonl").read_bytes() == b"{}"
    Store(tmp_path).run(here.id).lock().acquire(timeout=0).release()


def test_on_a_node_that_sees_the_folder_the_worker_locks_and_reads_by_itself(sit, tmp_path):
    ray, job = Held(), Job(runs=(student(0),))
    ray.free.set()
    handle, _ = sit(ray)
    Store(tmp_path).run(job.ids[0]).begin(job.runs[0].canonical())
    handle.send(job.message(), job)
    assert (ray.sent, ray.files, handle.pid) == ([[job.message()]], [{}], 0)
    assert not Store(tmp_path).run(job.ids[0]).is_locked()


def test_a_request_to_stop_reaches_a_node_without_the_folder(far):
    handle, _, ray = far
    handle.send({"stop": True})
    assert (ray.sent, ray.files) == ([[{"stop": True}]], [{}])


@pytest.mark.parametrize("job", [Job(runs=(student(0),)), Job(teacher=TEACHER)])
def test_a_job_whose_records_are_all_taken_is_not_sent_and_all_are_busy_at_once(far, tmp_path, monkeypatch, job):
    handle, inbox, ray = far
    monkeypatch.setattr(
        lock, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: pytest.fail("waited"))
    )
    store = Store(tmp_path)
    record = store.teacher(TEACHER.id) if job.teacher else store.run(job.ids[0])
    with record.lock().acquire(timeout=0):
        handle.send(job.message(), job)
    assert inbox.get(timeout=10)[1] == {"event": "done", "busy": []}
    assert (ray.sent, handle.busy) == ([[]], [record.id])


def test_a_teacher_is_sent_as_it_is_and_what_it_needs_with_it(far, tmp_path):
    handle, _, ray = far
    part = Adapter(parent=TEACHER, dataset=DIGITS, term="ft", recipe=RECIPE)
    for spec in (TEACHER, part):
        Store(tmp_path).teacher(spec.id).begin(spec.canonical())
    job = Job(teacher=part)
    handle.send(job.message(), job)
    assert ray.sent == [[job.message()]]
    assert [*ray.files[0]] == [f"teachers/{spec.id}/spec.json" for spec in (part, TEACHER)]
    assert handle.needs == [TEACHER]


@pytest.mark.parametrize(
    ("there", "event"),
    [
        (True, {"event": "exit", "code": 1, "reason": "Ray lost the worker of n:cpu:0: it died"}),
        (False, {"event": "left", "reason": "its node is lost"}),
    ],
)
def test_a_seat_that_is_gone_is_told_from_a_node_that_is(sit, monkeypatch, there, event):
    naps = []
    monkeypatch.setattr(seats, "time", SimpleNamespace(sleep=naps.append))
    ray = Held()
    ray.nodes = lambda: [{"NodeID": "1", "Alive": there}, {"NodeID": "2", "Alive": True}]
    ray.free.set()
    ray.told.append(RuntimeError("Traceback\nit died"))
    _, inbox = sit(ray)
    assert inbox.get(timeout=10) == ("n:cpu:0", event)
    assert naps == [0.3] * 20 * there


def test_a_seat_that_is_closed_tells_nothing_more(sit):
    ray = Held()
    ray.free.set()
    handle, inbox = sit(ray)
    while not handle.placed:
        time.sleep(0.01)
    assert handle.stderr_tail() == "its last words, within 5 s"
    handle.closed = True
    ray.told.append(RuntimeError("it died"))
    handle.thread.join()
    assert handle.close()
    assert (inbox.empty(), ray.closes) == (True, [10.0])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "results/x"), "No space left on device: results/x"),
        (KdbenchError("it cannot be quarantined"), "it cannot be quarantined"),
    ],
)
def test_results_that_cannot_be_written_here_stop_the_work(far, monkeypatch, error, words):
    handle, inbox, ray = far

    def refuse(files):
        raise error

    monkeypatch.setattr(handle.mirror, "write", refuse)
    ray.told.append(({"runs/1/spec.json": b""}, []))
    assert inbox.get(timeout=10)[1] == {"event": "done", "error": words, "fatal": True}


def test_a_teacher_that_a_node_has_lost_is_looked_at_here_too(far, monkeypatch):
    handle, inbox, ray = far
    handle.needs = [TEACHER]
    monkeypatch.setattr(handle.store, "quarantine_damaged_teachers", lambda needs: [f"{needs[0].network} is redone"])
    ray.told.append(({}, [{"event": "done", "lost_teacher": "damaged"}]))
    assert [inbox.get(timeout=10)[1] for _ in range(2)] == [
        {"event": "message", "text": "resnet20 is redone"}, {"event": "done", "lost_teacher": "damaged", "busy": []},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "threads", "wanted"), [("cpu", 1, "a CPU"), ("cpu", 2, "2 CPUs"), ("gpu", 0, "a GPU")]
)
def test_what_a_seat_waits_for_is_named(sit, kind, threads, wanted):
    _, inbox = sit(Held(actors=[("2a", "1")]), kind, threads=threads)
    assert inbox.get(timeout=10)[1]["reason"].startswith(f"node n has not had {wanted} free for 0 s: held by job 2a (")


@pytest.mark.parametrize(("text", "line"), [("one\n two \n\n", "two"), ("", "ValueError"), (" \n", "ValueError")])
def test_of_an_error_of_another_process_the_last_line_is_told(text, line):
    assert seats.last_line(ValueError(text)) == line


def test_a_job_that_waits_for_a_seat_beside_is_done_when_it_is_to_stop(sit):
    free = Held()
    free.free.set()
    leader, inbox = sit(free)
    while not leader.placed:
        time.sleep(0.01)
    leader.send({"runs": ["a run"]}, Job(), [sit(Held())[0]])
    leader.send({"stop": True})
    assert inbox.get(timeout=10)[1] == {"event": "done", "busy": []}


def test_a_seat_has_a_worker_from_its_first_job_until_it_is_lent(tmp_path, monkeypatch):
    made, told = [], []

    class Worker:
        def __init__(self, *_):
            made.append(self)

        def send(self, message):
            told.append(message)

        def close(self):
            made.remove(self)

    monkeypatch.setattr(node, "WorkerHandle", Worker)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda lent: [each.lend() for each in lent]))
    leader, other = (Seat(Slot(f"n:gpu:{n}", "gpu"), RunOptions(tmp_path), shares_results=True) for n in range(2))
    other.send({"stop": True}, {})
    assert not made
    other.send({"runs": []}, {})
    assert len(made) == 1
    leader.send({"replicas": [{"environment": {}, "threads": 3}]}, {}, [other])
    assert made == [leader.worker]
    assert told[-1] == {"replicas": [{"environment": {"CUDA_VISIBLE_DEVICES": "5"}, "threads": 3}]}
    other.send({"runs": []}, {})
    assert made == [leader.worker, other.worker]


def test_a_worker_that_cannot_be_started_on_a_node_has_ended(tmp_path):
    (tmp_path / "logs").touch()
    seat = Seat(Slot("n:cpu:0", "cpu", NO_GPUS), RunOptions(tmp_path), shares_results=True)
    seat.send({"runs": []}, {})
    (event,) = seat.events()[1]
    assert (event["event"], event["code"]) == ("exit", 1)
    assert event["reason"].startswith("the worker of n:cpu:0 cannot be started: FileExistsError")


def test_a_job_is_not_sent_without_a_seat_that_is_lost(tmp_path, monkeypatch):
    def get(lent):
        raise RuntimeError

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=RuntimeError)))
    seat = Seat(Slot("n:cpu:0", "cpu", NO_GPUS), RunOptions(tmp_path), shares_results=True)
    seat.send({"runs": [], "replicas": [{}]}, {}, ["a seat"])
    assert not seat.worker


@pytest.mark.parametrize("per_run", [0, 2])
def test_shares_of_a_gpu_that_may_be_the_same_train_no_run_together(per_run):
    with pytest.raises(BadInput, match="--jobs-per-device 2: runs that take several GPUs of a cluster take whole ones"):
        check_options(RunOptions(devices_per_run=per_run, jobs_per_device=2))
    check_options(RunOptions(devices="cpu", devices_per_run=per_run, jobs_per_device=2))


def test_what_ray_gives_out_is_not_chosen_by_number(tmp_path):
    with (
        pytest.raises(BadInput, match="--devices 0: with --cluster write auto or cpu"),
        connected(RunOptions(devices="0", cluster="auto"), print),
    ):
        pass


def test_without_ray_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(BadInput, match=r"pip install 'kdbench\[cluster\]'"),
        connected(RunOptions(cluster="auto"), print),
    ):
        pass


def test_a_cluster_that_is_started_here_has_a_token_of_its_own(monkeypatch, tmp_path):
    """Ray would leave one in the home folder, and ask for it in clusters that others start there."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    seen = []
    ray = ModuleType("ray")
    ray.init = lambda address, **_: seen.append((os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]))
    ray.shutdown = lambda: None
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, ray)
    for _ in range(2):
        with connected(RunOptions(tmp_path, tmp_path, cluster="local"), print):
            pass
    (mode, first), (_, second) = seen
    assert mode == "token"
    assert len(first) == 64
    assert first != second
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_mirror_gives_what_has_changed_and_takes_results_last(tmp_path, monkeypatch):
    one, other = Mirror(tmp_path / "one"), Mirror(tmp_path / "other")
    record = one.root / "runs" / ("0" * 12)
    record.mkdir(parents=True)
    for name in ("spec.json", "state.pt", "metrics.jsonl", ".x.tmp", "state.pt.damaged-1"):
        (record / name).write_text(name)
    first = one.changes()
    assert [path.rpartition("/")[2] for path in first][-1] == "state.pt"
    assert {path.rpartition("/")[2] for path in first} == {"spec.json", "state.pt", "metrics.jsonl"}
    assert one.changes() == {}
    other.write(first)
    assert other.changes() == {}
    (record / "state.pt").unlink()
    (record / "result.json").write_text("{}")
    order = []
    monkeypatch.setattr(node, "write_bytes", lambda path, content: (order.append(path.name), path.write_bytes(content)))
    other.write({**one.changes(), f"runs/{record.name}/weights.safetensors": b"w"})
    assert order == ["weights.safetensors", "result.json"]
    kept = {path.name for path in (other.root / "runs" / record.name).iterdir()}
    assert kept == {"spec.json", "metrics.jsonl", "result.json", "weights.safetensors"}


def test_a_node_that_clears_its_temporary_folder_takes_no_results_along(tmp_path):
    here, there = Mirror(tmp_path / "here"), Mirror(tmp_path / "there")
    record = here.root / "teachers" / ("0" * 12)
    record.mkdir(parents=True)
    (record / "result.json").write_text("{}")
    there.write(here.record("teachers", record.name))
    shutil.rmtree(there.root)
    here.write(there.changes())
    assert (record / "result.json").exists()


def test_what_killed_seats_left_on_a_node_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen(["sleep", "60"]) as worker:
        users = {"dead": [worker.pid], "orphaned": [worker.pid, os.getpid()], "mine": [os.getpid()], "new": None}
        for name, pids in users.items():
            (tmp_path / f"kdbench-node-{name}" / "runs").mkdir(parents=True)
            if pids:
                node.note_users(tmp_path / f"kdbench-node-{name}", *pids)
        (tmp_path / "kdbench-node-unreadable").mkdir()
        (tmp_path / "kdbench-node-unreadable" / "users.json").write_text('{"not": "ours"}')
        node.remove_abandoned()
        assert len([*tmp_path.iterdir()]) == 5
        worker.kill()
    node.remove_abandoned()
    left = {path.name.removeprefix("kdbench-node-") for path in tmp_path.iterdir()}
    assert left == {"orphaned", "mine", "new", "unreadable"}


def failure(kind):
    return json.dumps({"kind": kind, "epoch": 1, "reason": "a reason"}).encode()


def test_a_mirrored_record_keeps_the_checkpoint_of_a_failed_try_and_not_that_of_a_diverged_run(tmp_path):
    mirror, names = Mirror(tmp_path), lambda: {path.name for path in (tmp_path / "runs" / "1").iterdir()}
    mirror.write({"runs/1/failure.json": failure("error"), "runs/1/state.pt": b"at epoch 1"})
    assert names() == {"failure.json", "state.pt"}
    mirror.write({"runs/1/state.pt": b"at epoch 2, of the next try"})
    assert names() == {"state.pt"}
    mirror.write({"runs/1/failure.json": failure("diverged")})
    assert names() == {"failure.json"}


@pytest.mark.parametrize(("devices", "gpus"), [("auto", True), ("cpu", False)])
def test_a_node_is_asked_for_what_a_run_needs_there_without_a_core_of_its_own(tmp_path, devices, gpus):
    files = {name: tmp_path / name for name in ("w.pth", "modules", "pets", "data")}
    files["data"].mkdir()
    ray = FakeRay({"a1": FACTS})
    options = RunOptions(
        results=tmp_path / "r", data=files["data"], devices=devices, weights={"5": files["w.pth"]},
        beside={"mine": files["modules"]}, images={"6": ImageSource("folder", str(files["pets"]), 32)},
    )  # fmt: skip
    cluster = Cluster(ray, options, print)
    cluster.slots()
    ((function, asked, (token, paths), named),) = ray.asked
    assert (function, asked, named) == (look_at_node, {"num_cpus": 0}, {"gpus": gpus})
    assert paths == [str(path) for path in files.values()]
    assert os.path.dirname(token) == str(tmp_path / "r")
    files["data"].rmdir()
    ray.answers["b1"] = FACTS
    assert [each.name for each in cluster._new_nodes()] == ["b"]
    assert ray.asked[1][2][1] == paths[:3]
    assert cluster._new_nodes() == []
    assert len(ray.asked) == 2


def test_what_is_wrong_with_a_nodes_gpus_and_its_disk_is_told(look, tmp_path):
    facts = NodeFacts(versions(), replace(GPUS, threads=1), shares_results=False)
    names, said = look({"a1": facts})
    assert names == ["a:cpu:0"]
    assert said == [
        f"node a does not see {tmp_path / 'r'}: its results are sent here as they are made",
        "node a: GPU 1, B (compute capability 0.0), cannot be used: too old",
    ]


def test_slots_of_nodes_that_come_and_go_are_told_to_the_inbox(tmp_path, monkeypatch):
    ray = FakeRay({"a1": FACTS})
    cluster, inbox = Cluster(ray, RunOptions(results=tmp_path / "r"), print), queue.Queue()
    (first,) = cluster.slots()
    ray.answers = {"b1": FACTS}
    looks = iter([False, False, True])
    cluster.closing = SimpleNamespace(wait=lambda seconds: next(looks))
    cluster._watch(inbox)
    said = [inbox.get_nowait() for _ in range(inbox.qsize())]
    (slot,) = cluster.nodes["b1"].slots
    assert said == [
        (first.name, {"event": "left", "reason": "its node has left the cluster"}),
        ("b:cpu:0", {"event": "joined", "slot": slot}),
    ]
    assert [*cluster.nodes] == ["b1"]
    ray.answers = {}
    looks = iter([False, True])
    cluster._watch(inbox)
    assert inbox.get_nowait()[1]["event"] == "left"
    assert cluster.nodes == {}


@pytest.mark.parametrize(
    "options",
    [
        {}, {"devices": "cpu"}, {"jobs_per_device": 2, "devices_per_run": 1}, {"jobs_per_device": 2},
        {"jobs_per_device": 1, "devices_per_run": 2}, {"devices_per_run": 2},
    ],
)  # fmt: skip
def test_options_that_a_cluster_can_meet_are_taken(options):
    check_options(RunOptions(**options))


@pytest.mark.parametrize(
    ("mode", "advice"), [(None, ". If it asks for a token: export RAY_AUTH_MODE=token"), ("token", "")]
)
def test_a_cluster_that_cannot_be_reached_is_one_sentence(monkeypatch, mode, advice):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)

    def init(address, **how):
        assert how == {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        raise ConnectionError("Traceback\n nobody answers\n")

    ray = ModuleType("ray")
    ray.init = init
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, ray)
    with pytest.raises(BadInput) as caught, connected(RunOptions(cluster="host:6379"), print):
        pass
    assert str(caught.value) == (
        "--cluster host:6379: no Ray cluster can be reached: nobody answers. Write local, auto, or HOST:PORT of one that "
        f"'ray start --head' has started{advice}"
    )


def test_a_seat_with_a_folder_of_its_own_mirrors_it_and_removes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(node, "EVENT_SECONDS", 0.0)
    sent = []
    worker = SimpleNamespace(pid=os.getppid(), send=sent.append, close=lambda: False, stderr_tail=lambda: "the end")
    monkeypatch.setattr(node, "WorkerHandle", lambda slot, options, inbox: started.append(options.results) or worker)
    started = []
    seat = Seat(Slot("n:cpu:0", "cpu", NO_GPUS), RunOptions(tmp_path / "r"), shares_results=False)
    root = seat.mirror.root
    assert json.loads((root / "users.json").read_text()) == [list(Process.current())]
    assert seat.stderr_tail() == ""
    seat.send({"runs": []}, {"runs/1/spec.json": b"{}"})
    users = [Process.current(), Process.of(os.getppid())]
    assert json.loads((root / "users.json").read_text()) == [list(user) for user in users]
    assert (started, sent, (root / "runs" / "1" / "spec.json").read_bytes()) == ([root], [{"runs": []}], b"{}")
    (root / "runs" / "1" / "state.pt").write_bytes(b"state")
    for event in ("one", "two"):
        seat.inbox.put(("n:cpu:0", {"event": event}))
    assert seat.events() == ({"runs/1/state.pt": b"state"}, [{"event": "one"}, {"event": "two"}])
    assert seat.events() == ({}, [])
    assert seat.stderr_tail() == "the end"
    assert not seat.close()
    assert not root.exists()


def test_a_seat_that_shares_the_results_has_no_folder_and_ends_in_peace(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(node, "EVENT_SECONDS", 0.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    seat = Seat(Slot("n:gpu:0", "gpu", {"A": "1"}), RunOptions(tmp_path / "r"), shares_results=True)
    assert (seat.mirror, seat.options.results) == (None, tmp_path / "r")
    assert seat.lend() == {"CUDA_VISIBLE_DEVICES": "5", "A": "1"}
    assert (seat.events(), seat.close(), list(tmp_path.iterdir())) == (({}, []), True, [])


def test_a_mirror_tells_files_of_sources_and_records_the_result_first_and_the_checkpoint_last(tmp_path):
    mirror = Mirror(tmp_path)
    names = ("state.pt", "weights.safetensors", "result.json", "metrics.jsonl", ".hidden", "result.json.damaged-1")
    files = [f"runs/{'0' * 12}/{name}" for name in names]
    files += [f"runs/{'0' * 12}.damaged-1/result.json", "sources/5f/pack/a.py", "sources/5f/.b.py", "suites/5f/s.yaml"]
    for path in files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    expected = ["sources/5f/pack/a.py"]
    expected += [
        f"runs/{'0' * 12}/{name}" for name in ("result.json", "metrics.jsonl", "weights.safetensors", "state.pt")
    ]
    found = mirror.changes()
    assert (sorted(found), list(found)[:2], list(found)[-1]) == (sorted(expected), expected[:2], expected[-1])
    assert next(iter(mirror.record("runs", "0" * 12))) == expected[1]
    assert mirror.record("runs", "1" * 12) == {}
    (tmp_path / expected[2]).write_text("longer than it was before, which is noticed whatever the clock says")
    assert [*mirror.changes()] == [expected[2]]


def test_files_land_with_the_checkpoint_first_and_the_result_last(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(node, "write_bytes", lambda path, content: (order.append(path.name), path.write_bytes(content)))
    (tmp_path / "runs" / "1").mkdir(parents=True)
    names = ("result.json", "failure.json", "spec.json", "state.pt")
    Mirror(tmp_path).write({f"runs/1/{name}": b"{}" for name in names})
    assert order == ["state.pt", "spec.json", "failure.json", "result.json"]
