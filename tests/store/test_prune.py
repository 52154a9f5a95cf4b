"""What may be removed from a results folder, what may not, and that it is removed whole."""

import os
import time

import pytest

from kdbench.store.prune import Choice, What, prunable, remove
from kdbench.store.store import log_name
from kdbench.store.verify import verify
from kdbench.suite.specs import StudentOf


@pytest.fixture
def found():
    """found(store, what, …): the names of what can be removed."""

    def names(store, *what, **choice):
        return [item.paths[0].relative_to(store.root).as_posix() for item in prunable(store, Choice(what, **choice))]

    return names


def test_half_written_and_quarantined_files_and_old_logs(made, suite, found):
    store = made("store", ["ce"])
    (first, *_), root = store.records("runs"), store.root
    for name in (f"runs/.{first.id}.aa.tmp/{first.id}", ".unpacked-x", f"runs/{first.id}.damaged-1", "logs"):
        (root / name).mkdir(parents=True)
    (first.folder / ".x.tmp").write_text("")
    (first.folder / "result.json.damaged-1").write_text("")
    for name in ("worker-cpu-elsewhere-1.log", log_name("cpu")):
        (root / "logs" / name).write_text("x")
    for name in ("worker-cpu-elsewhere-1.log", "slurm-17_3.log", "of-another-program.log"):
        (root / "logs" / name).touch()
        os.utime(root / "logs" / name, (0, 0))
    assert found(store, What.tmp, What.logs, What.damaged) == [
        f"runs/.{first.id}.aa.tmp", ".unpacked-x", f"runs/{first.id}/.x.tmp", "logs/slurm-17_3.log",
        "logs/worker-cpu-elsewhere-1.log",
        f"runs/{first.id}.damaged-1", f"runs/{first.id}/result.json.damaged-1",
    ]  # fmt: skip
    assert found(store, What.tmp, What.logs, only={first.id}) == [f"runs/.{first.id}.aa.tmp", f"runs/{first.id}/.x.tmp"]


def test_weights_of_students_go_and_the_numbers_stay(made, suite, found):
    store = made("store")
    first, second, third, fourth = suite.runs
    assert found(store, What.weights, needed={second.id}, keep={third.id}) == sorted(
        f"runs/{run.id}/weights.safetensors" for run in (first, fourth)
    )
    items = prunable(store, Choice([What.weights]))
    assert len(list(remove(items))) == 4
    assert not verify(store).damaged
    assert store.run(first.id).result()
    assert found(store, What.weights) == []


def test_a_student_that_teaches_keeps_its_weights_and_stays(made, suite, found):
    store = made("store", ["ce"])
    taught = suite.runs[2].spec.model_copy(update={"teacher": StudentOf(run=suite.runs[0].spec)})
    record = store.run(taught.id)
    record.begin(taught.canonical())  # not finished: its teacher's weights are needed yet
    teacher = f"runs/{suite.runs[0].id}/weights.safetensors"
    assert teacher not in found(store, What.weights)
    assert f"runs/{suite.runs[0].id}" not in found(store, What.unused, used={record.id})
    assert f"runs/{suite.runs[1].id}" in found(store, What.unused, used={record.id})


def test_cached_outputs_go_whole_and_one_that_is_being_made_stays(made, found):
    store = made("store", ["ce"])
    folder = store.outputs("abc")
    folder.mkdir(parents=True)
    for name in ("0000.bin", ".0001.bin.0f.tmp", "0002.bin.damaged-1"):
        (folder / name).write_bytes(b"rows")
    everything = [f"outputs/abc/{name}" for name in (".0001.bin.0f.tmp", "0002.bin.damaged-1")] + ["outputs/abc"]
    assert found(store, What.tmp, What.damaged, What.outputs) == everything
    with store.outputs_lock("abc", 1).acquire(timeout=0):
        assert found(store, What.tmp) == []
    assert [item.bytes for item in remove(prunable(store, Choice([What.outputs])))] == [12]
    assert not folder.exists()


def test_what_is_in_use_or_young_stays(made, suite, found):
    store = made("store")
    record = store.run(suite.runs[0].id)
    record.state_file.write_bytes(b"state")
    assert found(store, What.checkpoints) == [f"runs/{record.id}/state.pt"]
    assert found(store, What.checkpoints, until=time.time() - 3600) == []
    everything = found(store, What.unused)
    with record.lock().acquire(timeout=0):
        assert found(store, What.checkpoints) == []
        assert set(everything) - set(found(store, What.unused)) == {f"runs/{record.id}"}
        items = prunable(store, Choice([What.unused]))
    with store.run(suite.runs[1].id).lock().acquire(timeout=0):
        removed = {item.paths[0].name for item in remove(items)}
    assert len(removed) == len(items) - 1
    assert {each.id for each in store.records("runs")} == {record.id, suite.runs[1].id}
