"""Archived suites: which is the latest, and where the modules and weights are that are gone from their folder."""

from pathlib import Path

import pytest

from kdbench.datafiles.own_files import ImageSource
from kdbench.errors import BadInput
from kdbench.files import quarantine, write_json
from kdbench.planning.shards import shard
from kdbench.store.record import NO_WEIGHTS
from kdbench.store.result import Failure
from kdbench.store.store import Store
from kdbench.store.suites import ArchivedFiles, find_kept, finished_run, image_sources, keep_suites, kept_suites
from kdbench.suite.components import hashed
from kdbench.suite.load import load_suite
from kdbench.suite.specs import DatasetSpec, Imported, Recipe, Supervised, Weights
from kdbench.suite.yaml_reader import Document


TEXT = "protocol: smoke\n"
DIGITS = DatasetSpec(name="digits")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


@pytest.fixture
def document(tmp_path):
    """document(text): a suite file in a folder of its own."""
    folder = tmp_path / "own"
    folder.mkdir()
    return lambda text=TEXT: Document(str(folder / "suite.yaml"), {}, text=text)


@pytest.fixture
def archive(store):
    """archive(document, run, weights={…}, modules=(…)): as if the suite had been run at this time; its folder."""

    def keep(document, run, weights=None, modules=()):
        folder = store.root / "suites" / hashed(document.text)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "suite.yaml").write_text(document.text)
        for module in modules:
            (folder / f"{module}.py").write_text("")
        write_json(folder / "about.json", {"file": document.file, "run": run, "weights": weights or {}})
        return folder

    return keep


def test_the_suite_that_was_run_last_from_a_file_is_kept(store, document, archive):
    archive(document("a: 1\n"), "2026-01-02")
    archive(document("a: 2\n"), "2026-01-03")
    archive(document("a: 3\n"), "2026-01-01")
    assert [each.file.read_text() for each in kept_suites([store])] == ["a: 2\n"]


def test_modules_come_from_the_archive_where_none_is_left(store, document, archive):
    suite = document()
    folder = archive(suite, "2026-01-02", modules=("mine", "helper"))
    files = ArchivedFiles([store])
    files.tell(suite)
    assert suite.elsewhere("mine") == suite.elsewhere("helper") == folder.resolve()
    assert suite.elsewhere("other") is None
    (message,) = files.messages
    assert "their code is taken from the run of 2026-01-02" in message

    (suite.folder / "helper.py").write_text("")
    files = ArchivedFiles([store])
    files.tell(suite)
    assert suite.elsewhere("mine") is None, "modules of two versions do not mix"
    edited = document("another text\n")
    files.tell(edited)
    assert edited.elsewhere("mine") is None


def test_weights_are_known_by_their_place_and_by_that_of_a_suite_with_this_text(store, document, archive, tmp_path):
    suite = document()
    there = str(suite.folder.resolve() / "teacher.pth")
    archive(suite, "2026-01-02", weights={there: "5" * 64})
    moved = Document(str(tmp_path / "elsewhere" / "suite.yaml"), {}, text=TEXT)
    edited = document("another text\n")
    files = ArchivedFiles([store])
    for each in (suite, moved, edited):
        files.tell(each)
        assert each.known("teacher.pth") == "5" * 64
        assert each.known("student.pth") is None
    stranger = Document(str(tmp_path / "elsewhere" / "suite.yaml"), {}, text="another text\n")
    files.tell(stranger)
    assert stranger.known("teacher.pth") is None
    assert files.messages
    (suite.folder / "teacher.pth").write_bytes(b"x")
    assert suite.known("teacher.pth") is None, "what is there needs no archive"


def test_what_a_killed_process_left_in_the_archive_is_removed(store, tmp_path):
    (tmp_path / "suite.yaml").write_text("protocol: smoke\ndataset: digits\ngrid: {student: resnet8, method: ce}\n")
    suite = load_suite(tmp_path / "suite.yaml")
    folder = store.root / "suites" / hashed(suite.text)
    folder.mkdir(parents=True)
    (folder / ".suite.yaml.0123456789ab.tmp").write_text("half of")
    keep_suites([suite], store)
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", "suite.yaml"]


def test_images_of_ones_own_are_known_from_where_the_suite_was(document, archive, tmp_path):
    """A folder of results of another machine, where the suite and its images lay elsewhere."""
    suite = document()
    there = ImageSource("folder", "/home/someone/pets", 32)
    folder = archive(suite, "2026-01-02")
    about = {
        "file": "/home/someone/suite.yaml",
        "run": "2026-01-02",
        "weights": {},
        "images": {there.key: {"size": 32}},
    }
    write_json(folder / "about.json", about)
    files = ArchivedFiles([Store(tmp_path / "results")])
    files.tell(suite)
    assert suite.images(ImageSource("folder", str(tmp_path / "own" / "pets"), 32)) == {"size": 32}
    assert suite.images(ImageSource("folder", str(tmp_path / "own" / "other"), 32)) is None
    assert suite.images(ImageSource("folder", str(tmp_path), 32)) is None  # it is there


def test_a_suite_is_found_by_its_name_its_file_or_the_stem_of_that(store, suite, tmp_path):
    keep_suites([suite], store)
    file = tmp_path / "two.yaml"
    assert [find_kept([store], name) for name in ("two", "two.yaml", "three")] == [file, file, None]
    file.write_text(file.read_text().replace("name: two", "name: another"))
    edited = load_suite(file)
    kept, kept_edited = (store.root / "suites" / hashed(each.text) / "two.yaml" for each in (suite, edited))
    assert find_kept([store], "two") == kept, "the file is not what it was"
    keep_suites([edited], store)
    assert find_kept([store], "another") == file
    file.unlink()
    assert find_kept([store], "another") == kept_edited


def test_what_was_known_of_a_suites_weights_and_images_stays(store, suite):
    folder = store.root / "suites" / hashed(suite.text)
    folder.mkdir(parents=True)
    before = {"file": "/x.yaml", "run": "2026", "weights": {"/a.pth": "5" * 64}, "images": {"key": {"size": 8}}}
    write_json(folder / "about.json", before)
    keep_suites([suite], store)
    (kept,) = kept_suites([store])
    assert (kept.about.weights, kept.about.images) == (before["weights"], before["images"])
    assert (kept.about.file, kept.about.tiny, kept.about.part) == (suite.file, False, None)


def test_of_a_pipe_the_working_folder_is_known(store, document, archive, monkeypatch):
    folder = archive(document(), "2026-01-02")
    write_json(folder / "about.json", {"file": "/home/someone/", "run": "2026-01-02", "weights": {}})
    (kept,) = kept_suites([store])
    assert (kept.piped, kept.file, kept.original) == (True, folder / "suite.yaml", folder / "suite.yaml")
    assert (kept.text, kept.name) == (TEXT.encode(), "")


def test_sources_of_images_are_those_of_the_last_run(store, document, archive):
    for number, text in enumerate(("a: 1\n", "a: 2\n")):
        source = ImageSource("folder", f"/pets-{number}", 32)
        folder = archive(document(text), f"2026-01-0{number + 1}")
        images = {source.key: {"sha256": "5" * 64}, "of another version": {"sha256": "6" * 64}, source.key + "x": {}}
        write_json(
            folder / "about.json", {"file": "/a", "run": f"2026-01-0{number + 1}", "weights": {}, "images": images}
        )
    assert image_sources(store) == {"5" * 64: ImageSource("folder", "/pets-1", 32)}


def test_a_finished_run_whose_student_is_to_teach(store, suite, put):
    done, begun = suite.runs[0], suite.runs[1]
    assert done.id[:4] != begun.id[:4]
    with pytest.raises(BadInput, match=f"no run's id in .*results begins with '{done.id[:6]}'"):
        finished_run([store], done.id[:6])
    record = store.run(done.id)
    put(record, done.spec)
    assert finished_run([store], done.id[:6]) == done.spec.canonical()
    elsewhere = Store(store.root.parent / "elsewhere")
    assert finished_run([elsewhere, store], done.id) == done.spec.canonical()
    store.run(begun.id).begin(begun.spec.canonical())
    store.run(begun.id).write_metrics([{"epoch": 1}, {"epoch": 2}])
    with pytest.raises(BadInput, match=rf"run {begun.id} is not finished \(2 epochs so far\)"):
        finished_run([store], begun.id)
    store.run(begun.id).fail(Failure(kind="diverged", epoch=2, reason="loss is nan"))
    with pytest.raises(BadInput, match=r"is not finished \(failed: loss is nan\)"):
        finished_run([store], begun.id)
    quarantine(record.folder)
    with pytest.raises(BadInput, match=f"run {done.id} was damaged and is quarantined"):
        finished_run([store], done.id)


def test_a_student_whose_weights_were_not_kept_teaches_nothing(store, suite, put):
    run = suite.runs[0]
    put(store.run(run.id), run.spec, about=NO_WEIGHTS)
    with pytest.raises(BadInput) as caught:
        finished_run([store], run.id)
    assert str(caught.value) == f"the weights of run {run.id} were not kept, as those of tiny runs: name another run"


def test_suites_of_one_file_with_other_settings_and_all_from_pipes_are_kept(store, document, archive):
    files = [
        ("a: 1\n", "/x.yaml", []),
        ("a: 2\n", "/x.yaml", ["lr=1"]),
        ("a: 3\n", "/home/", []),
        ("a: 4\n", "/home/", []),
    ]
    for number, (text, file, settings) in enumerate(files):
        folder = archive(document(text), "2026")
        write_json(
            folder / "about.json", {"file": file, "run": f"2026-0{4 - number}", "weights": {}, "settings": settings}
        )
    assert [each.about.run for each in kept_suites([store])] == ["2026-01", "2026-02", "2026-03", "2026-04"]


def test_images_that_are_there_need_no_archive_though_they_are_known(document, archive, tmp_path):
    suite = document()
    source = ImageSource("folder", str(tmp_path / "own" / "pets"), 32)
    folder = archive(suite, "2026-01-02")
    about = {"file": suite.file, "run": "2026-01-02", "weights": {}, "images": {source.key: {"size": 32}}}
    write_json(folder / "about.json", about)
    files = ArchivedFiles([Store(tmp_path / "results")])
    files.tell(suite)
    assert suite.images(source) == {"size": 32}
    assert list(files.messages) == [
        f"{source.path} is not there: what is known of its images is taken from the run of 2026-01-02"
    ]
    (tmp_path / "own" / "pets").mkdir()
    assert suite.images(source) is None


def test_of_several_stores_the_one_in_which_a_run_is_finished_counts(store, suite, put):
    run, other = suite.runs[0], Store(store.root.parent / "other")
    store.run(run.id).begin(run.spec.canonical())
    put(other.run(run.id), run.spec)
    assert finished_run([store, other], run.id) == run.spec.canonical()
    (other.run(run.id).folder / "result.json").write_text("{")
    with pytest.raises(BadInput, match=r"result\.json: .*\. The next kdbench run of its suite makes it again$"):
        finished_run([store, other], run.id)


def test_of_a_run_that_is_not_there_four_digits_are_asked_for(store):
    with pytest.raises(BadInput) as caught:
        finished_run([store], "abc")
    assert str(caught.value) == (
        f"no run's id in {store.root} begins with 'abc' (four digits or more): kdbench list runs"
    )


@pytest.mark.parametrize(
    ("stored", "classes"),
    [
        ([], None),
        (["classifier"], {10}),
        (["encoder"], set()),
        (["classifier", "encoder"], {10}),
        (["other key"], None),
    ],
)
def test_for_how_many_classes_a_file_was_imported_is_known_from_its_records(store, document, stored, classes):
    weights = {
        "classifier": Weights(source="file", sha256="5" * 64),
        "encoder": Weights(source="file", sha256="5" * 64, classifier=False),
        "other key": Weights(source="file", sha256="5" * 64, key="ema"),
    }
    trained = Supervised(network="resnet8", dataset=DIGITS, recipe=Recipe(epochs=1, batch=16, lr=0.1))
    specs = [
        Imported(network="resnet8", weights=weights[each], dataset=None if each == "encoder" else DIGITS)
        for each in stored
    ]
    for spec in [trained, *specs]:
        store.teacher(spec.id).begin(spec.canonical())
    suite = document()
    ArchivedFiles([store]).tell(suite)
    assert suite.class_counts("5" * 64, None) == classes
    assert suite.class_counts("6" * 64, None) is None


def test_a_suite_that_was_run_in_part_is_kept_with_the_ids_of_the_part(store, suite):
    part = shard([suite], 1, 2)[0]
    keep_suites([part], store)
    (kept,) = kept_suites([store])
    assert kept.about.part == list(part.specs)
    assert (kept.name, kept.piped, kept.original) == ("two", False, Path(suite.file))
