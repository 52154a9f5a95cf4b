"""Archived suites and code: which files belong to them, what is damaged, and what a merge takes of them."""

import json

import pytest

from kdbench.catalogue.plugins import SourceFile, source_hash
from kdbench.datafiles.own_files import ImageSource
from kdbench.files import write_json
from kdbench.store.archives import archived_files, damaged_suites, merge_sources, merge_suites, portable_about
from kdbench.store.store import Store
from kdbench.store.suites import About, KeptSuite
from kdbench.suite.components import hashed


TEXT = "protocol: smoke\n"


@pytest.fixture
def archived():
    """archived(store, text, …): the folder of a suite that was run from /home/one/s.yaml."""

    def keep(store, text=TEXT, run="2026-01-02", **about):
        folder = store.root / "suites" / hashed(text)
        folder.mkdir(parents=True)
        (folder / "s.yaml").write_text(text)
        write_json(folder / "about.json", {"file": "/home/one/s.yaml", "run": run, "weights": {}, **about})
        return folder

    return keep


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def test_hidden_files_caches_and_links_do_not_belong_to_an_archive(tmp_path):
    for name in ("b.py", "a.py", "sub/c.py", ".hidden", ".git/d.py", "__pycache__/e.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "link.py").symlink_to("a.py")
    (tmp_path / "lost.py").symlink_to("nowhere")
    found = [path.relative_to(tmp_path).as_posix() for path in archived_files(tmp_path)]
    assert found == ["a.py", "b.py", "sub/c.py"]


def test_a_folder_of_suites_that_is_not_there_holds_none_and_one_that_cannot_be_read_is_told(store):
    assert damaged_suites(store) == []
    store.root.mkdir()
    (store.root / "suites").write_text("")
    assert damaged_suites(store) == [f"{store.root / 'suites'}: cannot be read: Not a directory"]


def test_each_archived_suite_that_is_not_what_was_stored_has_a_line(store, archived):
    archived(store)
    unknown, changed, locked = (archived(store, f"name: {name}\n") for name in ("unknown", "changed", "locked"))
    (unknown / "about.json").write_text("{")
    (changed / "s.yaml").write_text("name: another\n")
    (locked / "large.bin").touch()
    with (locked / "large.bin").open("r+b") as file:
        file.truncate(2**30)
    (store.root / "suites" / "a file").write_text("")
    assert sorted(damaged_suites(store)) == sorted(
        [
            f"{unknown}: its about.json cannot be read, so the suite is not known",
            f"{changed / 's.yaml'}: is not the suite that was stored",
            f"{locked / 'large.bin'}: is far larger than what was stored",
        ]
    )


def test_a_suite_whose_files_the_system_refuses_has_a_line(store, archived, monkeypatch):
    folder = archived(store)

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("kdbench.store.archives.read", refuse)
    assert damaged_suites(store) == [f"{folder / 'about.json'}: cannot be read: Permission denied"]


def test_of_a_suite_that_both_have_what_is_known_is_put_together_and_other_files_are_told(tmp_path, archived):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    mine = archived(here, weights={"/a": "1"}, images={"x": {"n": 1}}, part=["r"])
    theirs = archived(there, run="2026-05-05", weights={"/a": "2", "/b": "2"}, images={"y": {"n": 2}}, trials=9)
    (mine / "m.py").write_text("x = 1\n")
    (theirs / "m.py").write_text("x = 2\n")
    (theirs / "new.py").write_text("y = 1\n")
    before, notes = (mine / "about.json").read_bytes(), []
    assert merge_suites(there, here, notes, dry_run=True) == set()
    assert ((mine / "about.json").read_bytes(), (mine / "new.py").exists(), notes) == (before, False, [])
    assert merge_suites(there, here, notes) == set()
    assert notes == [f"{theirs / 'm.py'}: is not like {mine / 'm.py'}, which is kept"]
    assert ((mine / "m.py").read_text(), (mine / "new.py").read_text()) == ("x = 1\n", "y = 1\n")
    about = About.model_validate_json((mine / "about.json").read_bytes())
    assert about == About(
        file="/home/one/s.yaml",
        run="2026-01-02",
        weights={"/a": "1", "/b": "2"},
        images={"x": {"n": 1}, "y": {"n": 2}},
    )
    written = (mine / "about.json").stat().st_ino
    merge_suites(there, here, [])
    assert (mine / "about.json").stat().st_ino == written, "nothing new is known, so nothing is written"


def test_a_suite_that_is_new_here_is_taken_whole_and_a_damaged_one_is_left_out(tmp_path, archived):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    good, bad = archived(there, part=["r"]), archived(there, "name: bad\n")
    (bad / "s.yaml").write_text("")
    notes = []
    assert merge_suites(there, here, notes, dry_run=True) == {good.name}
    assert not here.root.exists()
    assert merge_suites(there, here, []) == {good.name}
    assert notes == [f"{bad / 's.yaml'}: is not the suite that was stored: it is left out"]
    taken = here.root / "suites" / good.name
    assert {path.name for path in taken.iterdir()} == {"s.yaml", "about.json"}
    assert json.loads((taken / "about.json").read_bytes())["part"] is None


def test_code_is_taken_where_it_is_not_or_is_damaged(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    modules = {"pack": "pack/__init__.py", "pack.one": "pack/one.py", "top": "top.py"}
    sha256 = source_hash([SourceFile(name, tmp_path / path, name.encode()) for name, path in modules.items()])
    for name, path in modules.items():
        file = there.source_folder(sha256) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (there.source_folder(sha256) / "notes.txt").write_text("no module")
    assert merge_sources(there, here, [], dry_run=True) == {sha256}
    assert not here.root.exists()
    assert merge_sources(there, here, []) == {sha256}
    folder = here.source_folder(sha256)
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert files == {path: name for name, path in modules.items()}
    assert merge_sources(there, here, []) == set()
    (folder / "top.py").write_text("damaged")
    assert merge_sources(there, here, []) == {sha256}
    assert (folder / "top.py").read_text() == "top"


@pytest.mark.parametrize(("file", "travels_as"), [("/home/one/suites/s.yaml", "/s.yaml"), ("/home/one/suites/", "/")])
def test_places_in_a_travelling_suite_are_as_if_it_had_been_in_the_root(tmp_path, file, travels_as):
    (tmp_path / "s.yaml").write_text("{images: /shared/cats}\n")
    (tmp_path / "suite.yaml").write_text("{images: /shared/cats}\n")
    below, above, named = (
        ImageSource("folder", path, 32) for path in ("/home/one/suites/pets", "/home/one/dogs", "/shared/cats")
    )
    about = About(
        file=file,
        run="2026",
        weights={"/home/one/suites/w/a.pth": "1"},
        images={source.key: {"n": n} for n, source in enumerate((below, above, named))} | {"of another version": {}},
        part=["r"],
        trials=3,
    )
    moved = {ImageSource("folder", path, 32).key: {"n": n} for n, path in enumerate(("/pets", "/dogs", "/shared/cats"))}
    assert About.model_validate_json(portable_about(KeptSuite(tmp_path, about))) == about.model_copy(
        update={"file": travels_as, "weights": {"/w/a.pth": "1"}, "images": moved, "part": None}
    )
