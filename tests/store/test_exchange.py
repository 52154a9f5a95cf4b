"""Exported teachers: whole with what they were made from, checked before they are taken, never over what is there."""

import pytest

from kdbench.errors import BadInput
from kdbench.store import exchange, lock
from kdbench.store.exchange import export_teacher, import_teachers
from kdbench.store.result import Failure
from kdbench.store.store import Store
from kdbench.suite.specs import DatasetSpec, HeadSpec, NewLayers, Recipe, StudentOf, Supervised


DIGITS = DatasetSpec(name="digits")
RECIPE = Recipe(epochs=1, batch=16, lr=0.1)
BACKBONE = Supervised(network="resnet8", dataset=DIGITS, recipe=RECIPE)
LAYERS = NewLayers(parent=BACKBONE, dataset=DIGITS, head=HeadSpec(width=8, recipe=RECIPE))


@pytest.fixture
def store(tmp_path, put):
    """A results folder with a teacher of two stages."""
    store = Store(tmp_path / "results")
    parent = put(store.teacher(BACKBONE.id), BACKBONE, "teacher").weights_sha256
    put(store.teacher(LAYERS.id), LAYERS, "teacher", parent=parent)
    return store


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_teacher_travels_with_the_stages_that_it_was_made_from(store, tmp_path, content):
    exported, other = tmp_path / "exported", Store(tmp_path / "other")
    assert export_teacher(store.teacher(LAYERS.id), exported, store) == [BACKBONE, LAYERS]
    assert {path.name for path in exported.iterdir()} == {BACKBONE.id, LAYERS.id}
    assert sorted(import_teachers(exported, other), key=lambda stage: stage.id) == sorted(
        [BACKBONE, LAYERS], key=lambda stage: stage.id
    )
    assert content(other) == content(store)
    import_teachers(exported, other)
    assert content(other) == content(store)


def test_what_cannot_be_exported_leaves_no_folder(store, tmp_path, suite, put):
    there, new = tmp_path / "there", tmp_path / "new"
    there.mkdir()
    record = store.teacher(LAYERS.id)
    with pytest.raises(BadInput, match="is there already"):
        export_teacher(record, there, store)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file/new: cannot be written"):
        export_teacher(record, tmp_path / "file" / "new", store)
    taught = NewLayers(parent=StudentOf(run=suite.runs[0].spec), dataset=DIGITS, head=LAYERS.head)
    put(store.teacher(taught.id), taught, "teacher")
    with pytest.raises(
        BadInput, match=f"is made on the student of run {suite.runs[0].id}, which an export does not hold"
    ):
        export_teacher(store.teacher(taught.id), new, store)
    store.teacher(BACKBONE.id).weights_file.write_bytes(b"others")
    with pytest.raises(BadInput, match=r"SHA-256 has changed.* it is made again"):
        export_teacher(record, new, store)
    assert not new.exists()
    assert not list(tmp_path.glob(".new*"))


def test_what_cannot_be_imported_is_not_taken(store, tmp_path):
    exported, other = tmp_path / "exported", Store(tmp_path / "other")
    with pytest.raises(BadInput, match="holds no teacher"):
        import_teachers(tmp_path, other)
    export_teacher(store.teacher(LAYERS.id), exported, store)
    with other.teacher(LAYERS.id).lock().acquire(), pytest.raises(BadInput, match="is being made by another process"):
        import_teachers(exported, other)
    (exported / LAYERS.id / "weights.safetensors").write_bytes(b"others")
    with pytest.raises(BadInput, match=r"exported: .*SHA-256 has changed"):
        import_teachers(exported, Store(tmp_path / "third"))
    assert not (tmp_path / "third" / "teachers").exists()


def test_a_record_that_has_ended_stays_and_one_that_has_not_gives_way(store, tmp_path, put):
    exported = tmp_path / "exported"
    export_teacher(store.teacher(BACKBONE.id), exported, store)
    done, diverged, begun, damaged = (Store(tmp_path / name) for name in ("done", "diverged", "begun", "damaged"))
    put(done.teacher(BACKBONE.id), BACKBONE, "teacher", weights=b"mine")
    diverged.teacher(BACKBONE.id).begin(BACKBONE.canonical())
    diverged.teacher(BACKBONE.id).fail(Failure(kind="diverged", epoch=1, reason="loss is nan"))
    begun.teacher(BACKBONE.id).begin(BACKBONE.canonical())
    put(damaged.teacher(BACKBONE.id), BACKBONE, "teacher")
    (damaged.teacher(BACKBONE.id).folder / "result.json").write_text("{")
    before = files(done.teacher(BACKBONE.id).folder)
    for each in (done, diverged, begun, damaged):
        import_teachers(exported, each)
    assert files(done.teacher(BACKBONE.id).folder) == before
    assert diverged.teacher(BACKBONE.id).diverged()
    assert files(begun.teacher(BACKBONE.id).folder) == files(exported / BACKBONE.id)
    assert files(damaged.teacher(BACKBONE.id).folder) == files(exported / BACKBONE.id)
    assert [path.name for path in damaged.quarantined("teachers")] == [f"{BACKBONE.id}.damaged-1"]


def test_hidden_folders_links_and_others_are_no_records_of_a_teacher(store, tmp_path):
    exported, other = tmp_path / "exported", Store(tmp_path / "other")
    export_teacher(store.teacher(BACKBONE.id), exported, store)
    record = exported / BACKBONE.id
    record.rename(exported / ".hidden")
    (exported / BACKBONE.id).symlink_to(".hidden")
    (exported / "notes").mkdir()
    with pytest.raises(BadInput, match="exported: holds no teacher"):
        import_teachers(exported, other)
    (exported / BACKBONE.id).unlink()
    (exported / ".hidden").rename(record)
    assert import_teachers(exported, other) == [BACKBONE]


def test_what_cannot_be_written_or_is_being_made_is_told_at_once(store, tmp_path, monkeypatch):
    exported, other = tmp_path / "exported", Store(tmp_path / "other")
    export_teacher(store.teacher(BACKBONE.id), exported, store)

    def full(*files):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exchange.shutil, "copyfileobj", full)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(BadInput) as caught:
        import_teachers(exported, other)
    assert str(caught.value) == f"{other.teacher(BACKBONE.id).folder}: cannot be written: No space left on device"
    with pytest.raises(BadInput) as caught:
        export_teacher(store.teacher(BACKBONE.id), tmp_path / "new", store)
    assert str(caught.value) == f"{tmp_path / 'new'}: cannot be written: No space left on device"
    with other.teacher(BACKBONE.id).lock().acquire(), pytest.raises(BadInput) as caught:
        import_teachers(exported, Store(other.root))
    assert str(caught.value) == f"teacher {BACKBONE.id} is being made by another process: try again later"
