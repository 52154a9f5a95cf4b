"""kdbench teachers import, in this process: what a failure leaves, and what validate and import say of files."""

import os

import pytest
import torch
from typer.testing import CliRunner

from kdbench.cli.app import app
from kdbench.cli.teachers import _leave_as_it_was
from kdbench.errors import BadInput
from kdbench.models import build
from kdbench.store.store import Store


def test_a_failed_import_takes_away_only_what_it_made(tmp_path):
    results = tmp_path / "results"
    folders = [results / "runs", results / "teachers", results / "locks", results]
    store = Store(results)
    store.check_writable()
    record = store.teacher("0" * 12)
    record.begin({"network": "resnet8"})
    (results / "runs" / "precious").mkdir()  # what another process has stored since
    _leave_as_it_was(record, folders)
    assert not record.folder.exists()
    assert (results / "runs" / "precious").is_dir()
    assert not (results / "teachers").exists()


def test_nothing_is_left_where_nobody_has_come_since(tmp_path):
    store = Store(tmp_path / "results")
    store.check_writable()
    _leave_as_it_was(store.teacher("0" * 12), [tmp_path / "results" / n for n in ("runs", "teachers", "locks", "")])
    assert list(tmp_path.iterdir()) == []


def test_a_finished_teacher_stays(tmp_path):
    record = Store(tmp_path / "results").teacher("0" * 12)
    record.begin({"network": "resnet8"})
    (record.folder / "result.json").write_text("{}")
    _leave_as_it_was(record, [])
    assert record.folder.is_dir()


@pytest.mark.parametrize("text", ["0.5", "0.5,0.5,x", "nan,1,1", "0,0,0,0"])
def test_a_normalisation_is_three_numbers(tmp_path, text):
    torch.save(build("resnet8", 10).state_dict(), tmp_path / "net.pth")
    options = ["--network", "resnet8", "--dataset", "digits", "--results", str(tmp_path / "results"), "--mean", text]
    done = CliRunner().invoke(app, ["teachers", "import", str(tmp_path / "net.pth"), *options])
    assert isinstance(done.exception, BadInput)
    assert "--mean" in str(done.exception)
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_validate_says_which_files_do_not_hold_their_network(tmp_path):
    torch.save(build("resnet14", 10).state_dict(), tmp_path / "net.pth")
    (tmp_path / "own.yaml").write_text(
        "protocol: smoke\ndataset: digits\nteachers: {mine: {network: resnet8, weights: net.pth}}\n"
        "grid: {teacher: mine, student: resnet8, method: kd}\n"
    )
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "own.yaml")])
    assert str(done.exception).startswith(
        f"{tmp_path / 'own.yaml'}  teachers: {tmp_path / 'net.pth'}: weights of another"
    )
    assert "These are the weights of resnet14" in str(done.exception)


def test_an_exported_folder_with_links_is_refused(tmp_path):
    record = Store(tmp_path / "exported").teacher("0" * 12)
    record.begin({"network": "resnet8"})
    os.symlink("/dev/zero", record.weights_file)
    options = ["--results", str(tmp_path / "results")]
    done = CliRunner().invoke(app, ["teachers", "import", str(record.folder.parent), *options])
    assert isinstance(done.exception, BadInput)
    assert "weights.safetensors: is a link or a device" in str(done.exception)
    assert not (tmp_path / "results").exists()
