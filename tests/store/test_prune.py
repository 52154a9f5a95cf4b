"""What may be removed from a results folder, what may not, and that it is removed whole."""

import os
import time

import pytest

from kdbench.errors import KdbenchError
from kdbench.store import lock, prune
from kdbench.store.liveness import Process
from kdbench.store.prune import Choice, Item, What, prunable, remove
from kdbench.store.store import Store, log_name
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


@pytest.mark.parametrize(("age", "goes"), [(86399.0, False), (86400.0, True)])
def test_the_log_of_another_machine_goes_after_a_day_and_that_of_a_process_here_with_it(
    tmp_path, found, monkeypatch, age, goes
):
    logs = tmp_path / "logs"
    logs.mkdir()
    elsewhere, ended, living = (
        logs / log_name("cpu", process)
        for process in (Process(7, "x", "y", "1"), Process.current()._replace(pid=2**22 + 1), Process.current())
    )
    for log in (elsewhere, ended, living):
        log.touch()
        os.utime(log, (1000, 1000))
    monkeypatch.setattr(prune.time, "time", lambda: 1000 + age)
    expected = [ended, elsewhere] if goes else [ended]
    assert sorted(found(Store(tmp_path), What.logs)) == sorted(f"logs/{log.name}" for log in expected)


def test_only_what_was_changed_before_a_time_goes_and_a_folder_is_as_young_as_its_youngest_file(tmp_path, found):
    folder = tmp_path / "outputs" / "abc"
    folder.mkdir(parents=True)
    (folder / "0000.bin").touch()
    os.utime(folder / "0000.bin", (2000, 2000))
    os.utime(folder, (1000, 1000))
    store = Store(tmp_path)
    assert found(store, What.outputs, until=2000) == []
    assert found(store, What.outputs, until=2000.5) == ["outputs/abc"]
    os.utime(folder, (3000, 3000))
    assert found(store, What.outputs, until=2000.5) == []


def test_each_item_says_what_it_is_its_bytes_and_its_record(made, suite):
    store = made("store", ["ce"])
    record, root = store.run(suite.runs[0].id), store.root
    files = {
        f"runs/.{record.id}.copy.tmp/{record.id}/a": 3,
        f"runs/{record.id}.damaged-1/a/b": 5,
        f"runs/{record.id}/.x.tmp": 7,
        f"runs/{record.id}/result.json.damaged-1": 11,
        f"runs/{record.id}/state.pt": 13,
        ".unpacked-1/a": 17,
        "outputs/abc/0000.bin": 19,
        "outputs/abc/0001.bin.damaged-1": 23,
        "outputs/abc/.0002.bin.0f.tmp": 29,
        "suites/abc/.s.yaml.0f.tmp": 31,
        "sources/abc/.m.py.0f.tmp": 37,
        "logs/worker-cpu-elsewhere-1.log": 41,
    }
    for name, size in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes(size))
    (root / "outputs" / "abc" / "link").symlink_to(record.weights_file)
    os.utime(root / "logs" / "worker-cpu-elsewhere-1.log", (0, 0))
    link = (root / "outputs" / "abc" / "link").lstat().st_size
    label = f"run {record.id}, resnet8, 1·ce, trial 0"
    record.teacher_head_file.write_bytes(bytes(2))
    found = [
        (item.what.value, item.paths[0].relative_to(root).as_posix(), item.label, item.bytes, item.guard().path.name)
        for item in prunable(
            store, Choice([each for each in What if each is not What.unused], only=None, keep={suite.runs[2].id})
        )
        if item.record is None or item.record.id == record.id
    ]
    of_record = f"runs-{record.id}.lock"
    assert found == [
        ("tmp", f"runs/.{record.id}.copy.tmp", "a copy that was not finished", 3, of_record),
        ("tmp", ".unpacked-1", "an unpacked pack", 17, "merging.lock"),
        ("tmp", "outputs/abc/.0002.bin.0f.tmp", "was not written to its end", 29, "outputs-abc-0002.lock"),
        ("tmp", "suites/abc/.s.yaml.0f.tmp", "was not written to its end", 31, "suites-abc.lock"),
        ("tmp", "sources/abc/.m.py.0f.tmp", "was not written to its end", 37, "sources-abc.lock"),
        ("tmp", f"runs/{record.id}/.x.tmp", label, 7, of_record),
        ("logs", "logs/worker-cpu-elsewhere-1.log", "the log of a worker", 41, "logs.lock"),
        ("damaged", f"runs/{record.id}.damaged-1", "a quarantined record", 5, of_record),
        ("damaged", "outputs/abc/0001.bin.damaged-1", "quarantined outputs of a teacher", 23, "outputs-abc.lock"),
        ("damaged", f"runs/{record.id}/result.json.damaged-1", label, 11, of_record),
        ("checkpoints", f"runs/{record.id}/state.pt", label, 13, of_record),
        ("outputs", "outputs/abc", "a teacher's cached outputs", 19 + 23 + 29 + link, "outputs-abc.lock"),
        ("weights", f"runs/{record.id}/weights.safetensors", label, len(b"weights") + 2, of_record),
    ]


def test_of_records_only_the_chosen_ones_are_looked_at(made, suite, found):
    store = made("store", ["ce"])
    first, second = (store.run(run.id) for run in suite.runs if run.method == "ce")
    for record in (first, second):
        record.state_file.touch()
        record.folder.with_name(f"{record.id}.damaged-1").mkdir()
        record.folder.with_name(f".{record.id}.copy.tmp").mkdir()
    of_first = [f"runs/.{first.id}.copy.tmp", f"runs/{first.id}.damaged-1", f"runs/{first.id}/state.pt"]
    everything = What.tmp, What.damaged, What.checkpoints
    assert found(store, *everything, only={first.id}) == of_first
    assert found(store, *everything, keep={second.id}) == of_first
    assert found(store, *everything, only={first.id}, keep={first.id}) == []


def test_weights_of_teachers_and_of_runs_that_have_not_ended_stay(made, suite, found):
    store = made("store")
    (store.run(suite.runs[0].id).folder / "result.json").unlink()
    store.run(suite.runs[1].id).weights_file.unlink()
    assert found(store, What.weights) == sorted(f"runs/{run.id}/weights.safetensors" for run in suite.runs[2:])


def test_unused_records_go_unless_what_stays_is_made_on_them(made, suite, found):
    store = made("store")
    teacher = next(run.spec.teacher.id for run in suite.runs if run.spec.teacher)
    ce, kd = ([run.id for run in suite.runs if run.method == method] for method in ("ce", "kd"))
    assert sorted(found(store, What.unused)) == sorted([f"teachers/{teacher}", *(f"runs/{id}" for id in ce + kd)])
    assert sorted(found(store, What.unused, used=ce)) == sorted([f"teachers/{teacher}", *(f"runs/{id}" for id in kd)])
    assert sorted(found(store, What.unused, used=kd)) == sorted(f"runs/{id}" for id in ce)
    assert sorted(found(store, What.unused, used=[*kd, ce[0]], only=ce)) == [f"runs/{ce[1]}"]
    assert found(store, What.unused, until=0) == []
    young = time.time() + 100
    os.utime(store.run(kd[0]).folder, (young, young))
    assert f"teachers/{teacher}" not in found(store, What.unused, until=young), "what stays is made on it"
    with store.run(kd[0]).lock().acquire(timeout=0):
        assert f"teachers/{teacher}" not in found(store, What.unused)


def test_a_record_that_goes_whole_is_not_listed_for_its_weights(made, suite, found):
    store = made("store", ["ce"])
    first, second = (run.id for run in suite.runs if run.method == "ce")
    assert found(store, What.weights, What.unused, used={first}) == [
        f"runs/{first}/weights.safetensors", f"runs/{second}"
    ]  # fmt: skip


def test_links_are_removed_and_not_what_they_lead_to(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").touch()
    (tmp_path / ".unpacked-1").symlink_to("there")
    (item,) = prunable(Store(tmp_path), Choice([What.tmp]))
    assert list(remove([item])) == [item]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["locks", "there"]
    assert (tmp_path / "there" / "x").exists()
    assert list(remove([item])) == [item], "what is gone already is no trouble"


def test_what_has_come_into_use_is_passed_over_and_not_waited_for(made, suite, monkeypatch):
    store = made("store", ["ce"])
    items = prunable(store, Choice([What.weights]))
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: pytest.fail("waited"))
    with store.run(items[0].record.id).lock().acquire(timeout=0):
        assert list(remove(items)) == items[1:]


def test_what_cannot_be_removed_is_told(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "x").mkdir()
    item = Item(What.outputs, (tmp_path / "x",), "outputs", 0, lock=tmp_path / "locks" / "x.lock")
    monkeypatch.setattr(prune, "remove_folder", refuse)
    with pytest.raises(KdbenchError, match=f"^{tmp_path / 'x'}: cannot be removed: Permission denied$"):
        list(remove([item]))
