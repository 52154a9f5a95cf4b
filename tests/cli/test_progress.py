"""Progress: plain lines where standard error is no terminal, one display where it is."""

import errno
import io
import os
import sys
import threading
from contextlib import closing

import pytest
from rich.console import Console

from kdbench.cli.progress import RunProgress, Totals
from kdbench.planning.plan import make_plan
from kdbench.store.store import Store
from kdbench.suite.specs import DatasetSpec, Recipe, RunSpec, Supervised, WeightedTerm


DIGITS = DatasetSpec(name="digits")
RECIPE = Recipe(epochs=4, batch=16, lr=0.1)
TEACHER = Supervised(network="resnet20", dataset=DIGITS, recipe=RECIPE)
RUNS = [
    RunSpec(
        student="resnet8", teacher=TEACHER, terms=(WeightedTerm(name="kd", weight=w),), dataset=DIGITS, recipe=RECIPE
    )
    for w in (1.0, 2.0)
]


def epoch(id, number, top1=None):
    return {
        "event": "epoch",
        "id": id,
        "epoch": number,
        "epochs": 4,
        "initial_epochs": 0,
        "loss": 1.25,
        "top1": top1,
        "images_per_second": 1234.5,
    }


def progress_of(plan):
    progress = RunProgress([])
    progress.listen("", {"event": "planned", "plan": plan})
    return progress


def shown(progress, width):
    """The lines of the display on a terminal of that many columns."""
    console = Console(width=width, file=io.StringIO())
    console.print(progress._render())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.fixture
def progress(tmp_path):
    return progress_of(make_plan(RUNS, Store(tmp_path)))


def drive(progress):
    progress.listen("cpu", {"event": "started", "teacher": TEACHER, "runs": (), "measurement": None, "waited": False})
    progress.listen("cpu", epoch(TEACHER.id, 1, 50.0))
    progress.listen("cpu", epoch(TEACHER.id, 2, 51.0))
    progress.listen("cpu", {"event": "finished", "id": TEACHER.id, "top1": 99.0})
    progress.listen("cpu", {"event": "done", "busy": []})
    progress.listen("cpu", {"event": "started", "teacher": None, "runs": RUNS, "measurement": None, "waited": False})
    where = {"epoch": 2, "epochs": 4, "initial_epochs": 0}
    progress.listen("cpu", {"event": "resumed", "id": RUNS[0].id, **where, "text": "resumes after epoch 2"})
    progress.listen("cpu", epoch(RUNS[0].id, 3))
    progress.listen("", {"event": "failed", "id": RUNS[1].id, "reason": "loss is not finite"})
    progress.listen("cpu", {"event": "finished", "id": RUNS[0].id, "top1": 91.5})
    progress.listen("", {"event": "message", "text": "[not markup]"})
    progress.listen("cpu", {"event": "ready"})


def test_plain_lines(progress, capsys):
    with closing(progress):
        drive(progress)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "[cpu] teacher resnet20 on digits: starts"
    assert lines[1].startswith(
        "[cpu] teacher resnet20 on digits: epoch 1/4, loss 1.250, top-1 50.00, 1,234 images/s; 0 of 2 runs"
    )
    assert "finished teacher resnet20 on digits: top-1 99.00" in lines
    assert "[cpu] 2 students of resnet20, trial 0: starts" in lines
    assert "auxiliary resnet8 #0: resumes after epoch 2" in lines
    assert "FAILED auxiliary resnet8 #0: loss is not finite" in lines
    assert "finished auxiliary resnet8 #0: top-1 91.50" in lines
    assert lines[-1] == "[not markup]"
    assert not any("epoch 2/4" in line for line in lines), "not every epoch is a line"
    assert progress._summary().startswith("1 of 2 runs, 1 failed")


@pytest.mark.parametrize("terminal", [False, True])
def test_work_goes_on_where_nobody_can_be_told(progress, monkeypatch, tmp_path, terminal):
    """The terminal or the pipe behind standard error was closed."""

    class Closed(io.StringIO):
        file = (tmp_path / "err").open("w")

        def isatty(self):
            return terminal

        def fileno(self):
            return self.file.fileno()

        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(threading, "excepthook", lambda facts: None)
    with Closed.file, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Closed())
        with closing(progress):
            drive(progress)
        assert os.readlink(f"/proc/self/fd/{Closed.file.fileno()}") == os.devnull
    assert progress.totals.finished == 1


def test_a_long_epoch_is_told_of_on_its_way(progress, capsys):
    way = {"event": "under way", "id": TEACHER.id, "epochs": 4, "initial_epochs": 0, "images_per_second": 50.0}
    progress.listen("cpu", {"event": "started", "teacher": TEACHER, "runs": (), "measurement": None, "waited": False})
    progress.listen("cpu", way | {"epoch": 0, "share": 0.25})
    member = progress.networks[TEACHER.id]
    assert progress.totals.done[TEACHER.id] == pytest.approx(member.cost * 0.25 / 4)
    assert "teacher resnet20 on digits: epoch 0.25/4, 50 images/s" in capsys.readouterr().err
    progress.listen("cpu", epoch(TEACHER.id, 1, 50.0))
    assert member.place == "1/4"
    progress.listen("cpu", way | {"epoch": 1, "share": 0.5})
    assert (member.place, member.loss, member.top1) == ("1.50/4", 1.25, 50.0)
    progress.listen("cpu", way | {"epoch": -1, "initial_epochs": 2, "share": 0.5})
    assert member.place == "1.50/2 (initial)"
    progress.listen("cpu", way | {"epoch": 0, "initial_epochs": 2, "share": 0.5})
    assert member.place == "0.50/4"


def test_what_was_done_of_an_epoch_before_does_not_count_as_done_now(progress):
    where = {"id": TEACHER.id, "epochs": 4, "initial_epochs": 0, "epoch": 1}
    progress.listen("cpu", {"event": "resumed", **where, "text": "resumes after epoch 1 and 90 batches"})
    for share in (0.5, 0.75):
        progress.listen("cpu", {"event": "under way", **where, "share": share, "images_per_second": 1.0})
    cost = progress.networks[TEACHER.id].cost
    assert progress.totals.earlier[TEACHER.id] == pytest.approx(cost * 1.5 / 4)
    assert progress.totals.done[TEACHER.id] == pytest.approx(cost * 1.75 / 4)


def test_a_terminal_gets_one_display(progress, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with closing(progress):
        drive(progress)
        assert len(shown(progress, 80)) == 4
    assert "[not markup]" in screen.getvalue()


def test_the_display_of_a_large_cohort_is_cut(progress):
    many = [run.model_copy(update={"trial": n}) for n in range(15) for run in RUNS]
    progress.networks |= {run.id: progress.networks[RUNS[0].id] for run in many}
    progress.listen("gpu:0", {"event": "started", "teacher": None, "runs": many, "measurement": None, "waited": False})
    assert len(shown(progress, 80)) == 1 + 20 + 1 + 1


@pytest.mark.parametrize("width", [60, 80, 140])
def test_each_network_has_one_line_with_all_its_numbers(progress, width):
    progress.listen("cpu", {"event": "started", "teacher": None, "runs": RUNS, "measurement": None, "waited": False})
    progress.listen("cpu", epoch(RUNS[0].id, 3, 91.5))
    progress.networks[RUNS[0].id].label = "a teacher of a long name → a student of a long name kd+at #0"
    title, network, *_ = lines = shown(progress, width)
    assert len(lines) == 4
    assert max(map(len, lines)) <= min(width, 100)
    assert title.endswith("1,234 images/s")
    assert network.endswith("3/4  loss 1.250  top-1 91.50")
    assert lines[-1].endswith("Ctrl-C: save and stop")


def test_time_left_counts_what_this_session_has_done():
    totals = Totals(total=100.0, runs=2)
    totals.started -= 60
    assert totals.left() == "time left unknown"
    totals.done["a"] = totals.earlier["a"] = 50.0
    assert totals.left() == "time left unknown"
    totals.done["a"] = 75.0
    assert totals.left() == "about 60 s left"


def test_a_teacher_that_was_not_planned_is_shown_all_the_same(progress, capsys):
    other = TEACHER.model_copy(update={"checkpoint": "best"})
    progress.listen("cpu", {"event": "started", "teacher": other, "runs": (), "measurement": None, "waited": False})
    progress.listen("cpu", epoch(other.id, 1))
    assert "teacher resnet20 on digits: epoch 1/4" in capsys.readouterr().err


def test_an_initial_stage_is_part_of_the_way(tmp_path):
    run = RUNS[0].model_copy(update={"terms": (WeightedTerm(name="ab"), WeightedTerm(name="ce"))})
    progress = progress_of(make_plan([run], Store(tmp_path)))
    member = progress.networks[run.id]
    assert member.place == "waiting"
    for number, place, share in (
        (-29, "1/30 (initial)", 1),
        (0, "30/30 (initial)", 30),
        (1, "1/4", 31),
        (4, "4/4", 34),
    ):
        progress.listen("cpu", epoch(run.id, number) | {"initial_epochs": 30})
        assert member.place == place
        assert progress.totals.done[run.id] == pytest.approx(member.cost * share / 34)


def test_a_run_that_no_plan_foresaw_has_a_place(tmp_path):
    """An auxiliary whose record was lost while others worked."""
    progress = progress_of(make_plan([], Store(tmp_path)))
    progress.listen(
        "cpu", {"event": "started", "teacher": None, "runs": RUNS[:1], "measurement": None, "waited": False}
    )
    progress.listen("cpu", epoch(RUNS[0].id, 2))
    assert progress.networks[RUNS[0].id].label == "auxiliary resnet8 #0"
