"""A results folder: what is found in it, what of it counts, and who waits for whom."""

import pytest

from kdbench.catalogue.plugins import SourceFile
from kdbench.errors import BadInput, BadRecord, KdbenchError
from kdbench.store.liveness import Process
from kdbench.store.result import Failure
from kdbench.store.store import Store, exclusive, log_name, parent_here, write_modules
from kdbench.suite.specs import DatasetSpec, HeadSpec, NewLayers, Recipe, Supervised


DIGITS = DatasetSpec(name="digits")
RECIPE = Recipe(epochs=1, batch=16, lr=0.1)
BACKBONE = Supervised(network="resnet8", dataset=DIGITS, recipe=RECIPE)
LAYERS = NewLayers(parent=BACKBONE, dataset=DIGITS, head=HeadSpec(width=8, recipe=RECIPE))
ID = "0123456789ab"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def test_everything_has_its_place(store):
    root = store.root
    assert store.run(ID).folder == root / "runs" / ID
    assert store.teacher(ID).folder == root / "teachers" / ID
    assert store.measurement(ID).folder == root / "measurements" / ID
    assert store.outputs("abc") == root / "outputs" / "abc"
    assert store.outputs_lock("abc", 7).path == root / "locks" / "outputs-abc-0007.lock"
    assert store.source_folder("5f") == root / "sources" / "5f"


@pytest.mark.parametrize(
    ("prefix", "found"),
    [("abcd0", "abcd00000001"), ("abc", None), ("", None), ("abcd", "abcd00000001"), ("bcd0", None)],
)
def test_four_digits_name_a_record(store, prefix, found):
    (store.root / "runs" / "abcd00000001").mkdir(parents=True)
    record = store.find("runs", prefix)
    assert (record and record.id) == found


def test_of_many_records_whose_ids_begin_so_ten_are_named(store):
    for number in range(12):
        (store.root / "runs" / f"abcd{number:08}").mkdir(parents=True)
    ids = ", ".join(f"abcd{number:08}" for number in range(10))
    with pytest.raises(BadInput) as caught:
        store.find("runs", "abcd")
    assert str(caught.value) == f"'abcd' begins the ids of several runs in {store.root}: {ids}"


def test_quarantined_records_and_those_of_the_first_version_are_no_records(store):
    for name in ("a" * 12, f"{'a' * 12}.damaged-1", f".{'b' * 12}.copy.tmp", "c" * 12):
        (store.root / "runs" / name).mkdir(parents=True)
    (store.root / "runs" / ("c" * 12) / "about.json").write_text("{}")
    assert [record.id for record in store.records("runs")] == ["a" * 12]
    assert [path.name for path in store.quarantined("runs")] == [f"{'a' * 12}.damaged-1"]
    assert store.outdated() == (
        f"{store.root}: 1 record was written by kdbench 0.1 and is not used. Report them with that version, or run their "
        "suites again"
    )


def test_a_file_in_the_place_of_the_records_holds_none_and_a_folder_that_is_locked_is_told(store, monkeypatch):
    store.root.mkdir()
    (store.root / "runs").write_text("")
    assert list(store.records("runs")) == []

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("kdbench.store.store.os.scandir", refuse)
    with pytest.raises(KdbenchError, match=f"^{store.root / 'teachers'}: cannot be read: Permission denied$"):
        list(store.records("teachers"))


def test_hashes_are_joined_in_order_and_there_are_none_where_one_is_missing(store, put):
    first = put(store.teacher(BACKBONE.id), BACKBONE, "teacher").weights_sha256
    assert (store.hashes([BACKBONE]), store.hashes([]), store.hashes([BACKBONE, LAYERS])) == (first, "", None)
    second = put(store.teacher(LAYERS.id), LAYERS, "teacher", weights=b"layers", parent=first).weights_sha256
    assert store.hashes([LAYERS, BACKBONE]) == f"{second}+{first}"


def test_new_layers_are_checked_against_what_they_were_made_on(store, put):
    put(store.teacher(LAYERS.id), LAYERS, "teacher", parent="5" * 64)
    folder = store.teacher(LAYERS.id).folder
    with pytest.raises(BadRecord, match=rf"^{folder}: what it was made on \(resnet8 on digits\) is not there$"):
        store.check_origin(LAYERS)
    below = put(store.teacher(BACKBONE.id), BACKBONE, "teacher").weights_sha256
    with pytest.raises(
        BadRecord, match=f"^{folder}: was made on other weights of resnet8 on digits than are there now$"
    ):
        store.check_origin(LAYERS)
    put(store.teacher(LAYERS.id), LAYERS, "teacher", parent=below)
    store.check_teacher(LAYERS)
    store.check_origin(BACKBONE)


def test_a_teacher_is_unfinished_from_its_start_or_quarantine_to_its_end(store, put):
    record = store.teacher(BACKBONE.id)
    assert not store.unfinished(BACKBONE)
    record.begin(BACKBONE.canonical())
    assert store.unfinished(BACKBONE)
    record.fail(Failure(kind="error", epoch=1, reason="x"))
    assert store.unfinished(BACKBONE)
    record.fail(Failure(kind="diverged", epoch=1, reason="x"))
    assert not store.unfinished(BACKBONE)
    put(record, BACKBONE, "teacher")
    assert not store.unfinished(BACKBONE)
    record.folder.rename(record.folder.with_name(f"{record.id}.damaged-1"))
    assert store.unfinished(BACKBONE)


def test_a_record_that_cannot_be_quarantined_stops_the_work(store, put, monkeypatch):
    record = store.teacher(BACKBONE.id)
    put(record, BACKBONE, "teacher")
    record.weights_file.write_bytes(b"changed")
    reason = f"{record.weights_file}: is not the file that was stored (its SHA-256 has changed)"

    def refuse(path):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as blocked:
        blocked.setattr("kdbench.store.store.quarantine", refuse)
        with pytest.raises(KdbenchError) as caught:
            store.quarantine_damaged_teachers([BACKBONE])
    assert str(caught.value) == (
        f"{reason}; it cannot be quarantined: Read-only file system. Repair that, or choose another folder with --results."
    )
    assert store.quarantine_damaged_teachers([BACKBONE]) == [
        f"{reason}; the teacher is quarantined ({record.id}.damaged-1) and redone"
    ]


def test_a_resume_state_that_another_process_may_need_stays(store, put):
    record = store.teacher(BACKBONE.id)
    put(record, BACKBONE, "teacher")
    record.state_file.write_bytes(b"state")
    with Store(store.root).teacher(BACKBONE.id).lock():
        store.quarantine_damaged_teachers([BACKBONE])
        assert record.has_checkpoint()
    store.quarantine_damaged_teachers([BACKBONE])
    assert not record.has_checkpoint()


def test_a_log_tells_its_parent_on_this_machine_alone(tmp_path):
    me = Process.current()
    assert log_name("gpu:0.1") == f"worker-gpu-0.1-{me.machine}-{me.pid}.log"
    assert parent_here(tmp_path / log_name("gpu:0.1")) == me.pid
    assert parent_here(tmp_path / log_name("cpu", me._replace(pid=10**17))) == 10**17
    for name in (
        log_name("cpu", me._replace(pid=10**18)),
        log_name("cpu", me._replace(host="elsewhere")),
        f"slurm-{me.machine}-7.log",
        f"{log_name('cpu')}.1",
    ):
        assert parent_here(tmp_path / name) is None


def test_modules_are_written_where_they_are_missing_or_differ(tmp_path, store):
    files = {name: SourceFile(name, tmp_path / f"{name}.py", name.encode()) for name in ("one", "two")}
    folder = store.source_folder("5" * 64)
    store.keep_source(None)
    assert not store.root.exists()
    write_modules(files.values(), folder)
    written = {path.name: path.stat().st_ino for path in folder.iterdir()}
    (folder / "two.py").write_text("changed")
    write_modules(files.values(), folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"one.py": "one", "two.py": "two"}
    assert (folder / "one.py").stat().st_ino == written["one.py"]


def test_whoever_has_a_folder_of_archived_files_to_itself_removes_what_was_half_written(store):
    folder = store.root / "sources" / "5f"
    folder.mkdir(parents=True)
    for name in (".x.py.0a.tmp", "x.py"):
        (folder / name).write_text("")
    with exclusive(folder):
        assert [path.name for path in folder.iterdir()] == ["x.py"]
        assert [path.name for path in (store.root / "locks").iterdir()] == ["sources-5f.lock"]
