"""kdbench teachers, with real processes: trained once whoever asks, imported, verified, made again, exported."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kdbench.files import file_hash
from kdbench.models import build, load_checkpoint
from kdbench.store.result import Accuracy, Result
from kdbench.store.store import Store
from kdbench.suite.load import load_suite
from kdbench.suite.specs import lineage


SUITE = """\
protocol: {base: smoke, node_embedding: 16}
dataset: {name: digits, train_per_class: 4, test_per_class: 2}
trials: 1
teachers:
  mine: {network: resnet8, pretraining: simclr}
grid:
  - teacher: mine
    student: resnet8
    method: kd
    strategy: sequential
"""


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def teachers(suite, tmp_path):
    """The records of the suite's teachers, in the order of their stages."""
    (run,) = load_suite(suite).runs
    return [Store(tmp_path / "results").teacher(stage.id) for stage in lineage(run.spec.teacher)]


@pytest.mark.slow
def test_two_processes_train_one_teacher_once(kdbench, kdbench_process, suite, teachers):
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(kdbench_process, "teachers", "train", suite, "--jobs-per-device", 1) for _ in range(2)]
        done = [call.result() for call in calls]
    assert [each.returncode for each in done] == [0, 0], done
    assert all("2 teachers are there." in each.stdout for each in done)
    assert [record.metadata()["sessions"] for record in teachers] == [1, 1]
    trained = sum(each.stderr.count("epoch") > 0 or "finished teacher" in each.stderr for each in done)
    assert trained >= 1

    listed = json.loads(kdbench("teachers", "list", "--json").stdout)
    assert {entry["teacher"] for entry in listed} == {
        "resnet8 (SimCLR) on digits",
        "resnet8 (SimCLR) on digits + new layers",
    }
    assert {entry["status"] for entry in listed} == {"done"}
    assert any("neighbours" in entry["last / best"] for entry in listed)


@pytest.mark.slow
def test_a_flipped_bit_is_found_said_and_repaired(kdbench, one_process, suite, teachers):
    assert kdbench("run", suite, "--jobs-per-device", 1).returncode == 0
    before = [file_hash(record.weights_file) for record in teachers]
    good = kdbench("teachers", "verify")
    assert (good.returncode, good.stdout.count("ok  ")) == (0, 2)

    content = bytearray(teachers[0].weights_file.read_bytes())
    content[len(content) // 2] ^= 4
    teachers[0].weights_file.write_bytes(content)
    bad = kdbench("teachers", "verify")
    assert bad.returncode == 1
    assert f"BAD  {teachers[0].id}" in bad.stdout
    assert "its SHA-256 has changed" in bad.stdout

    again = kdbench("run", suite, "--jobs-per-device", 1)
    assert again.returncode == 0
    assert f"quarantined ({teachers[0].id}.damaged-1) and redone" in again.stderr
    assert [file_hash(record.weights_file) for record in teachers] == before
    assert kdbench("teachers", "verify").returncode == 0

    spec = teachers[1].folder / "spec.json"
    good_spec = spec.read_text()
    spec.write_text(good_spec.replace('"resnet8"', '"resnet14"'))
    changed = kdbench("teachers", "verify")
    assert changed.returncode == 1
    assert "spec.json: is not what was stored" in changed.stdout
    assert "is not what was stored" in kdbench("teachers", "export", teachers[1].id, "out").stderr
    spec.write_text(good_spec)

    assert kdbench("teachers", "export", teachers[1].id, "out").returncode == 0
    taken = kdbench("teachers", "import", "out", "--results", "elsewhere")
    assert taken.returncode == 0, taken.stderr
    assert kdbench("teachers", "verify", "--results", "elsewhere").stdout.count("ok  ") == 2
    assert json.loads(kdbench("plan", suite, "--results", "elsewhere", "--json").stdout)["teachers"] == []


def test_layers_that_learned_beside_a_run_are_verified_with_it(kdbench, suite, tmp_path):
    (run,) = load_suite(suite).runs
    records = [Store(tmp_path / "results").run(f"{name}{run.id[1:]}") for name in "ab"]
    record = Store(tmp_path / "results").run(run.id)
    record.begin(run.spec.canonical())
    record.write_metrics([{"epoch": 2, "loss": 1.0, "terms": {}}])
    record.weights_file.write_bytes(b"the student's")
    record.teacher_head_file.write_bytes(b"the new layers'")
    accuracy = Accuracy(epoch=2, top1=50.0, top5=90.0)
    record.finish(
        Result(
            id=record.id, kind="run", last=accuracy, best=accuracy, weights_sha256=file_hash(record.weights_file),
            teacher=accuracy, teacher_head_sha256=file_hash(record.teacher_head_file),
        ),
        {},
    )  # fmt: skip
    for other in records:  # neither a run without such layers nor a damaged result is the teachers' matter
        other.folder.mkdir()
    (records[0].folder / "result.json").write_text("{")
    good = kdbench("teachers", "verify")
    assert (good.returncode, good.stdout.count("ok  ")) == (0, 1)
    assert "1 finished teachers, 0 damaged" in good.stdout

    record.teacher_head_file.write_bytes(b"the new layers?")
    bad = kdbench("teachers", "verify")
    assert bad.returncode == 1
    assert f"BAD  {record.id}" in bad.stdout
    assert f"{record.teacher_head_file.name}: is not the file that was stored" in bad.stdout
    assert f"Remove results/runs/{record.id}, and the next kdbench run of its suite makes it again." in bad.stdout
    assert "sets it aside" not in bad.stdout


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = build("resnet8", 10)
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": network.state_dict(), "accuracy": torch.tensor(12.25)}, path)
    return path


@pytest.mark.slow
def test_import_export_and_use(kdbench, one_process, tmp_path, checkpoint):
    done = kdbench("teachers", "import", checkpoint, "--network", "resnet8", "--dataset", "digits")
    assert done.returncode == 0, done.stderr
    assert "12.25 % stated by the file" in done.stdout
    sha256 = file_hash(checkpoint)
    assert f"weights: 'sha256:{sha256}'" in done.stdout
    (entry,) = json.loads(kdbench("teachers", "list", "--json").stdout)
    assert entry["teacher"] == "resnet8 (file weights) on digits"
    assert "(12.25 stated)" in entry["last / best"]

    exported = kdbench("teachers", "export", entry["id"][:6], "out")
    assert exported.returncode == 0, exported.stderr
    network = build("resnet8", 10)
    load_checkpoint(network, tmp_path / "out" / entry["id"] / "weights.safetensors")
    original = torch.load(checkpoint)["model"]
    assert all(torch.equal(value, original[key]) for key, value in network.state_dict().items())
    assert kdbench("teachers", "export", entry["id"], "out").returncode == 2

    checkpoint.unlink()
    suite = tmp_path / "own.yaml"
    suite.write_text(SUITE.replace("pretraining: simclr", f"weights: 'sha256:{sha256}'"))
    planned = json.loads(kdbench("plan", suite, "--json").stdout)
    assert planned["teachers"] == ["resnet8 (file weights) on digits + new layers"]


@pytest.mark.slow
def test_a_stated_accuracy_that_is_not_reached_is_a_warning_each_time(kdbench, one_process, tmp_path, checkpoint):
    torch.save({**torch.load(checkpoint), "accuracy": 90.5, "best_acc": 91.0}, checkpoint)
    for _ in range(2):
        done = kdbench("teachers", "import", checkpoint, "--network", "resnet8", "--dataset", "digits")
        assert (
            done.stderr.count("WARNING resnet8 (file weights) on digits: its file states 90.50 % of its weights") == 1
        )
        assert "90.50 % stated by the file, 91.00 % stated as the best of its training" in done.stdout


@pytest.mark.slow
def test_import_without_its_classifier_and_use(kdbench, one_process, tmp_path, checkpoint):
    done = kdbench("teachers", "import", checkpoint, "--network", "resnet8", "--classes", 10)
    assert done.returncode == 0, done.stderr
    assert "used without a classifier" in done.stdout
    line = done.stdout.splitlines()[-1].strip()
    assert line.endswith("fine_tune: true}")
    checkpoint.unlink()
    suite = tmp_path / "own.yaml"
    suite.write_text(SUITE.replace("mine: {network: resnet8, pretraining: simclr}", line))
    assert json.loads(kdbench("plan", suite, "--json").stdout)["teachers"] == [
        "resnet8 (file weights), fine-tuned on digits",
        "resnet8 (file weights), fine-tuned on digits + new layers",
    ]


def test_import_for_other_classes(kdbench, tmp_path, checkpoint):
    said = refused(kdbench, tmp_path, checkpoint, "--network", "resnet8", "--dataset", "cifar100")
    assert "holds a classifier for 10 classes, and cifar100 has 100" in said
    assert "with --classes 10 in place of --dataset" in said
    assert "and none for 7" in refused(kdbench, tmp_path, checkpoint, "--network", "resnet8", "--classes", 7)


def refused(kdbench, tmp_path, file, *options):
    done = kdbench("teachers", "import", file, *(options or ("--network", "resnet8", "--dataset", "digits")))
    assert done.returncode == 2, done
    assert not (tmp_path / "results").exists()
    return done.stderr


def test_what_cannot_be_imported(kdbench, tmp_path, checkpoint):
    assert "Did you mean 'resnet8'?" in refused(
        kdbench, tmp_path, checkpoint, "--network", "resnet8y", "--dataset", "digits"
    )
    assert "--dataset is missing" in refused(kdbench, tmp_path, checkpoint, "--network", "resnet8")
    assert "no such file" in refused(kdbench, tmp_path, tmp_path / "none.pth")
    assert "--network is missing" in refused(kdbench, tmp_path, checkpoint, "--dataset", "digits")
    assert "holds no teacher" in refused(kdbench, tmp_path, tmp_path)
    page = tmp_path / "page.pth"
    page.write_text("<!DOCTYPE html><html></html>")
    assert "a web page, not weights" in refused(kdbench, tmp_path, page)


@pytest.mark.slow
def test_weights_of_another_architecture_are_refused_with_the_one_that_fits(kdbench, one_process, tmp_path, checkpoint):
    wrong = refused(kdbench, tmp_path, checkpoint, "--network", "wrn-16-1", "--dataset", "digits")
    assert "weights of another architecture" in wrong
    assert "resnet8" in wrong


class Command:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch '{self.sentinel}'",)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(kdbench, tmp_path):
    file, sentinel = tmp_path / "hostile.pth", tmp_path / "sentinel"
    torch.save({"model": build("resnet8", 10).state_dict(), "extra": Command(sentinel)}, file)
    assert "could run code, so it is refused" in refused(kdbench, tmp_path, file)
    assert not sentinel.exists()
    torch.load(file, weights_only=False)
    assert sentinel.exists(), "the sentinel proves nothing unless the file could run"


def test_missing_published_weights_are_named_before_anything_starts(kdbench, tmp_path):
    suite = tmp_path / "clip.yaml"
    suite.write_text(
        "protocol: ega\ndataset: {name: digits, train_per_class: 2, test_per_class: 1}\n"
        "grid: {teacher: clip-vit-b32, student: resnet8, method: kd, strategy: simultaneous}\n"
    )
    done = kdbench("run", suite)
    assert done.returncode == 2
    assert "ViT-B-32.pt" in done.stderr
    assert "data/weights" in done.stderr.replace(os.sep, "/")
    assert "openaipublic.azureedge.net/clip/models/40d36571" in done.stderr
    assert not (tmp_path / "results").exists()


def test_weights_that_nobody_has_imported_are_named_before_anything_starts(kdbench, tmp_path):
    suite = tmp_path / "own.yaml"
    suite.write_text(SUITE.replace("pretraining: simclr", f"weights: 'sha256:{'0' * 64}'"))
    done = kdbench("run", suite)
    assert done.returncode == 2
    assert "no teacher here was made from them" in done.stderr
    assert "kdbench teachers import FILE" in done.stderr
    assert not (tmp_path / "results").exists()
