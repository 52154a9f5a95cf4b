"""Merged results folders: what is taken, what stays as it is, what is told, and what a killed merge leaves."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal

import pytest

from kdbench.catalogue.plugins import SourceFile, source_hash
from kdbench.errors import KdbenchError
from kdbench.files import write_json
from kdbench.planning.shards import shard
from kdbench.store import exchange
from kdbench.store.archives import portable_about
from kdbench.store.merge import _apart, merge
from kdbench.store.result import Accuracy, Failure, Result
from kdbench.store.store import Store
from kdbench.store.suites import all_kept, find_kept
from kdbench.store.verify import verify
from kdbench.suite.specs import Adapter, DatasetSpec, Recipe, RunSpec, Supervised, WeightedTerm, digest, stage_label


@pytest.fixture
def halves(made):
    return {"a": made("a", ["ce"]), "b": made("b", ["kd"])}


def test_two_halves_make_the_whole(made, halves, content, tmp_path):
    target = Store(tmp_path / "target")
    whole = made("whole")
    would = merge(halves, target, dry_run=True)
    assert not target.root.exists()
    merged = merge(halves, target)
    assert content(target) == content(whole)
    assert merged == would
    assert merged.taken == {"teachers": 1, "runs": 4, "measurements": 0, "suites": 1, "sources": 0}
    assert not verify(target).damaged
    again = merge(halves, target)
    assert (again.same, sum(again.taken.values())) == (5, 0)


def test_all_parts_of_a_suite_make_the_whole(made, suite, content, tmp_path):
    parts = {f"part{number}": shard([suite], number, 3)[0] for number in (1, 2, 3)}
    target = Store(tmp_path / "target")
    merge({name: made(name, part=part) for name, part in parts.items()}, target)
    assert content(target) == content(made("whole"))
    (kept,) = all_kept([target])
    assert kept.about.part is None


def test_other_numbers_are_told_and_the_ones_here_stay(made, content, tmp_path):
    here, there = (
        made("here", ["ce"], top1=50.0),
        made("there", ["ce"], top1=51.0, about={"device": {"name": "A card"}}),
    )
    before = content(here)
    merged = merge({"there": there}, here)
    assert content(here) == before
    assert [each.reason for each in merged.differing] == [
        "last 50.00 % best 50.00 % here (kdbench 0.2.0, torch 2.13.0, A processor), "
        "last 51.00 % best 51.00 % there (A card)"
    ] * 2


def test_runs_of_another_teacher_are_left_out_and_come_with_theirs_where_there_is_none(made, suite, tmp_path):
    here, there = made("here", ["kd"]), made("there", ["kd"], teacher=b"another")
    for run in suite.runs:
        shutil.rmtree(here.run(run.id).folder, ignore_errors=True)
    merged = merge({"there": there}, here)
    assert [each.kind for each in merged.differing] == ["teacher"]
    assert len(merged.left_out) == 2
    assert merged.left_out[0].reason.startswith("rests on other weights of resnet20 on digits (")
    assert not list(here.records("runs"))
    assert merge({"there": there}, Store(tmp_path / "empty")).taken["runs"] == 2


def test_damaged_unfinished_and_old_records_stay_behind(made, suite, tmp_path):
    source = made("source")
    damaged, unfinished, old = (source.run(run.id) for run in suite.runs[:3])
    damaged.weights_file.write_bytes(b"others")
    (unfinished.folder / "result.json").unlink()
    write_json(old.folder / "about.json", {})
    merged = merge({"their pack": source}, Store(tmp_path / "target"))
    (left,) = merged.left_out
    assert left.id == damaged.id
    assert left.reason.startswith("their pack/runs/")
    assert "its SHA-256 has changed" in left.reason
    assert (merged.unfinished, merged.taken["runs"]) == (1, 1)
    assert merged.notes == [
        "their pack: 1 record was written by kdbench 0.1 and is not used. Report them with that version, or run their "
        "suites again"
    ]


def test_a_diverged_run_has_ended(made, suite, tmp_path):
    source, target = made("source"), Store(tmp_path / "target")
    diverged = source.run(suite.runs[0].id)
    for name in ("result.json", "metadata.json", "weights.safetensors"):
        (diverged.folder / name).unlink()
    diverged.fail(Failure(kind="diverged", epoch=3, reason="the loss is nan"))
    assert merge({"source": source}, target).taken["runs"] == 4
    assert target.run(diverged.id).diverged()
    assert merge({"source": source}, target).same == 5
    (reason,) = (each.reason for each in merge({"whole": made("whole")}, target).differing)
    assert reason == (
        "diverged here (machine and versions unknown), "
        "last 50.00 % best 50.00 % there (kdbench 0.2.0, torch 2.13.0, A processor)"
    )


def test_a_finished_record_takes_the_place_of_an_unfinished_or_damaged_one(made, suite):
    here, there = made("here"), made("there")
    unfinished, damaged = (here.run(run.id) for run in suite.runs[:2])
    (unfinished.folder / "result.json").unlink()
    unfinished.state_file.write_bytes(b"state")
    (damaged.folder / "result.json").write_text("{")
    assert merge({"there": there}, here).taken["runs"] == 2
    unfinished.check()
    damaged.check()
    assert not unfinished.has_checkpoint()
    assert len(list(here.quarantined("runs"))) == 1


def test_a_full_disk_leaves_the_unfinished_record_that_was_to_be_replaced(made, suite, monkeypatch):
    here, there = made("here", ["ce"]), made("there", ["ce"])
    unfinished = here.run(suite.runs[0].id)
    (unfinished.folder / "result.json").unlink()
    unfinished.state_file.write_bytes(b"state")

    def full(*files):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exchange.shutil, "copyfileobj", full)
    with pytest.raises(KdbenchError, match="here: No space left on device"):
        merge({"there": there}, here)
    assert unfinished.state_file.read_bytes() == b"state"
    assert {path.name for path in (here.root / "runs").iterdir()} == {record.id for record in here.records("runs")}


def test_a_stray_file_in_the_place_of_a_record_is_named_and_stays(made, suite):
    here, there = made("here", []), made("there", ["ce"])
    stray = here.run(suite.runs[0].id).folder
    stray.parent.mkdir()
    stray.write_text("notes")
    with pytest.raises(KdbenchError, match=f"^{stray}: Not a directory. Mend this and repeat the merge"):
        merge({"there": there}, here)
    assert stray.read_text() == "notes"
    stray.unlink()
    stray.symlink_to("nowhere")
    merge({"there": there}, here)
    here.run(suite.runs[0].id).check()
    assert not stray.is_symlink()


def test_what_another_process_makes_is_left_to_it(made, suite):
    here, there = made("here", []), made("there", ["ce"])
    with here.run(suite.runs[0].id).lock().acquire(timeout=0):
        merged = merge({"there": there}, here)
    assert [each.id for each in merged.left_out] == [suite.runs[0].id]
    assert merged.taken["runs"] == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_merge_that_is_killed_at_any_file_is_repeated(made, content, tmp_path, monkeypatch):
    source, target = made("source"), Store(tmp_path / "target")
    copy, counts = shutil.copyfileobj, iter(())

    def copy_or_die(*files):
        if next(counts) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        copy(*files)

    monkeypatch.setattr(exchange.shutil, "copyfileobj", copy_or_die)
    for files in (3, 8, 6):
        counts = iter(range(files, -1, -1))
        process = multiprocessing.get_context("fork").Process(target=merge, args=({"source": source}, target))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        for kind in ("teachers", "runs"):
            for record in target.records(kind):
                record.check()
    counts = iter(range(1000, 0, -1))
    merge({"source": source}, target)
    assert content(target) == content(source)


def test_the_code_of_plug_ins_comes_along_if_it_is_what_was_stored(made, tmp_path):
    source = made("source", [])
    good = source.source_folder("0" * 64)
    good.mkdir(parents=True)
    (good / "mine.py").write_text("x = 1\n")
    target = Store(tmp_path / "target")
    assert [note.split(": ")[1] for note in merge({"s": source}, target).notes] == ["is not the code that was stored"]
    sha256 = source_hash([SourceFile("mine", good / "mine.py", b"x = 1\n")])
    good.rename(source.source_folder(sha256))
    assert merge({"s": source}, target).taken["sources"] == 1
    assert (target.source_folder(sha256) / "mine.py").read_text() == "x = 1\n"


def test_what_is_known_of_a_suites_files_is_put_together(made, suite, tmp_path):
    here, there = made("here", []), made("there", [])
    for store, weights in ((here, {"/w/a.pth": "a"}), (there, {"/w/a.pth": "b", "/w/c.pth": "c"})):
        (about,) = store.root.glob("suites/*/about.json")
        write_json(about, {"file": str(tmp_path / "two.yaml"), "run": "2026", "weights": weights})
    merge({"there": there}, here)
    (about,) = here.root.glob("suites/*/about.json")
    assert '"/w/a.pth": "a"' in about.read_text()
    assert '"/w/c.pth": "c"' in about.read_text()
    (kept,) = there.root.glob("suites/*/two.yaml")
    kept.write_text("name: changed\n")
    empty = Store(tmp_path / "empty")
    assert [note.split(": ")[1] for note in merge({"there": there}, empty).notes] == [
        "is not the suite that was stored"
    ]
    assert find_kept([empty], "two") is None


def test_what_travels_of_a_suite_names_no_folder_of_the_machine(tmp_path):
    folder = tmp_path / "suites" / "abc"
    folder.mkdir(parents=True)
    (folder / "s.yaml").write_text("teachers: {a: {weights: ../w.pth}, b: {weights: /shared/v.pth}}\n")
    weights = {"/home/someone/w.pth": "1", "/shared/v.pth": "2"}
    write_json(folder / "about.json", {"file": "/home/someone/suites/s.yaml", "run": "2026", "weights": weights})
    (kept,) = all_kept([Store(tmp_path)])
    text = portable_about(kept).decode()
    assert "someone" not in text
    assert '"/w.pth": "1"' in text
    assert '"/shared/v.pth": "2"' in text


def test_equal_accuracies_of_other_weights_are_told_by_their_hashes(made, suite):
    here, there = made("here", ["ce"], weights=b"one"), made("there", ["ce"], weights=b"two")
    (first, _) = (each.reason for each in merge({"there": there}, here).differing)
    hashes = [hashlib.sha256(weights).hexdigest()[:8] for weights in (b"one", b"two")]
    made_by = "(kdbench 0.2.0, torch 2.13.0, A processor)"
    assert first == f"weights {hashes[0]} here {made_by}, weights {hashes[1]} there {made_by}"


ACCURACY = Accuracy(epoch=1, top1=50.0, top5=90.0)
RUN = Result(id="a" * 12, kind="run", last=ACCURACY, best=ACCURACY, weights_sha256="0" * 64, metrics_sha256="1" * 64)
MEASUREMENT = Result(id="a" * 12, kind="measurement", weights_sha256="0" * 64, values={"cka": 0.123456, "sm": 20.0})
DIVERGED = Failure(kind="diverged", epoch=3, reason="the loss is nan")


@pytest.mark.parametrize(
    ("first", "changes", "words"),
    [
        (
            RUN,
            {"best": Accuracy(epoch=2, top1=50.5, top5=90.0)},
            ("last 50.00 % best 50.00 %", "last 50.00 % best 50.50 %"),
        ),
        (RUN, {"weights_sha256": "f" * 64}, ("weights 00000000", "weights ffffffff")),
        (RUN, {"metrics_sha256": "2" * 64}, ("curve 11111111", "curve 22222222")),
        (RUN, {"metrics_sha256": None}, ("curve 11111111", "curve ")),
        (RUN, {"train_images": 7}, ("one result", "another")),
        (MEASUREMENT, {"values": {"cka": 0.2}}, ("cka 0.1235 sm 20", "cka 0.2")),
    ],
)
def test_two_outcomes_are_told_apart_by_the_first_thing_in_which_they_differ(first, changes, words):
    assert _apart(first, first.model_copy(update=changes)) == words


def test_a_run_that_diverged_is_told_from_one_that_did_not():
    assert _apart(DIVERGED, RUN) == ("diverged", "last 50.00 % best 50.00 %")
    assert _apart(RUN, DIVERGED) == ("last 50.00 % best 50.00 %", "diverged")


@pytest.mark.parametrize("changed", [0, 1])
def test_of_several_networks_the_one_with_other_weights_is_named(tmp_path, put, changed):
    recipe = Recipe(epochs=1, batch=16, lr=0.1)
    digits = DatasetSpec(name="digits")
    teacher = Supervised(network="resnet20", dataset=digits, recipe=recipe)
    part = Adapter(parent=teacher, dataset=digits, term="ft", recipe=recipe)
    terms = (WeightedTerm(name="ft"),)
    spec = RunSpec(student="resnet8", teacher=teacher, terms=terms, dataset=digits, recipe=recipe, adapters=(part,))
    networks = [teacher, part]
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    hashes = {}
    for store in (here, there):
        of_store = []
        for number, network in enumerate(networks):
            weights = b"changed" if (store, number) == (here, changed) else b"weights"
            of_store.append(put(store.teacher(network.id), network, "teacher", weights=weights).weights_sha256)
        hashes[store] = of_store
    put(there.run(spec.id), spec, parent="+".join(hashes[there]))
    (left,) = merge({"there": there}, here).left_out
    assert left.reason == (
        f"rests on other weights of {stage_label(networks[changed])} ({hashes[there][changed][:8]}) than are here "
        f"({hashes[here][changed][:8]}). Merge into an empty folder to keep both, and report the two side by side"
    )


def test_networks_come_with_what_was_made_on_them_and_nothing_is_counted_twice(made, suite, tmp_path):
    source, target = made("source", ["kd"]), Store(tmp_path / "target")
    merged = merge({"one": source, "two": source}, target)
    assert merged.taken == {"teachers": 1, "runs": 2, "measurements": 0, "suites": 1, "sources": 0}
    assert (merged.same, merged.unfinished, merged.differing, merged.left_out) == (3, 0, [], [])


def test_a_record_of_another_version_or_with_another_spec_is_left_out(made, suite, tmp_path):
    source = made("source", ["ce"])
    first, second = (source.run(run.id) for run in suite.runs if run.method == "ce")
    write_json(first.folder / "spec.json", {"student": "changed"})
    foreign = source.run(digest({"kind": "of tomorrow"}))
    second.folder.rename(foreign.folder)
    write_json(foreign.folder / "spec.json", {"kind": "of tomorrow"})
    content = json.loads((foreign.folder / "result.json").read_text())
    content = {**content, "id": foreign.id}
    del content["checksum"]
    write_json(foreign.folder / "result.json", {**content, "checksum": digest(content)})
    merged = merge({"their pack": source}, Store(tmp_path / "target"))
    assert {(each.kind, each.id, each.source): each.reason for each in merged.left_out} == {
        ("run", first.id, "their pack"): f"their pack/runs/{first.id}/spec.json: is not what was stored",
        ("run", foreign.id, "their pack"): "its spec.json says nothing that this version of kdbench understands",
    }
