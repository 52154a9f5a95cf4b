"""Progress: plain lines where standard error is no terminal, one display where it is."""

import errno
import io
import os
import sys
import threading
from contextlib import closing
from datetime import datetime

import pytest
from rich.console import Console

from kdbench.cli.display import Display, LiveDisplay, middle_cut
from kdbench.cli.progress import RunProgress, time_of_day
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


def started(teacher=None, runs=(), **changes):
    return {"event": "started", "teacher": teacher, "runs": runs, "measurement": None, "waited": False, **changes}


class Clock:
    """Stands still until it is moved; it starts on a Saturday at noon."""

    def __init__(self):
        self.now = datetime(2026, 11, 28, 12).timestamp()

    def __call__(self):
        return self.now


def progress_of(plan):
    progress = RunProgress([], clock=Clock())
    progress.listen("", {"event": "planned", "plan": plan})
    return progress


def shown(progress, width, height=40):
    """The lines of the display on a terminal of that size."""
    console = Console(width=width, height=height, file=io.StringIO())
    console.print(Display(progress.frame))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.fixture
def progress(tmp_path):
    return progress_of(make_plan(RUNS, Store(tmp_path)))


def drive(progress):
    progress.listen("cpu", started(TEACHER))
    progress.listen("cpu", epoch(TEACHER.id, 1, 50.0))
    progress.listen("cpu", epoch(TEACHER.id, 2, 51.0))
    progress.listen("cpu", {"event": "finished", "id": TEACHER.id, "top1": 99.0})
    progress.listen("cpu", {"event": "done", "busy": []})
    progress.listen("cpu", started(runs=RUNS))
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
        "[cpu] teacher resnet20 on digits: epoch 1/4, loss 1.250, top-1 50.00 @ 1, 1,234 images/s; 15%, 0 of 2 runs, "
    )
    assert "finished teacher resnet20 on digits: top-1 99.00" in lines
    assert "[cpu] 2 students of resnet20, trial 0: starts" in lines
    assert "auxiliary resnet8 #0: resumes after epoch 2" in lines
    assert "FAILED auxiliary resnet8 #0: loss is not finite" in lines
    assert "finished auxiliary resnet8 #0: top-1 91.50" in lines
    assert lines[-1] == "[not markup]"
    assert not any("epoch 2/4" in line for line in lines), "not every epoch is a line"
    assert progress.reached() == "100%, 1 of 2 runs, 1 failed"


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
    assert len(progress.unfinished) == 1


def test_a_long_epoch_is_told_of_on_its_way(progress, capsys):
    way = {"event": "under way", "id": TEACHER.id, "epochs": 4, "initial_epochs": 0, "images_per_second": 50.0}
    progress.listen("cpu", started(TEACHER))
    progress.listen("cpu", way | {"epoch": 0, "share": 0.25})
    member = progress.networks[TEACHER.id]
    assert member.trained == pytest.approx(member.cost * 0.25 / 4)
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
    teacher = progress.networks[TEACHER.id]
    assert teacher.earlier == pytest.approx(teacher.cost * 1.5 / 4)
    assert teacher.trained == pytest.approx(teacher.cost * 1.75 / 4)


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


def test_what_does_not_fit_a_terminals_height_is_counted(progress):
    many = [run.model_copy(update={"trial": n}) for n in range(15) for run in RUNS]
    progress.networks |= {run.id: progress.networks[RUNS[0].id] for run in many}
    progress.listen("gpu:0", started(runs=many))
    progress.listen("gpu:1", started(TEACHER))
    lines = shown(progress, 80, height=14)
    assert len(lines) == 13
    assert "teacher resnet20" in lines[9], "each device has its share of the rows"
    assert lines[10] == "… and 22 more networks in training"


@pytest.fixture
def at_work(progress):
    """Two students that were resumed after two of four epochs, a minute ago; one is an epoch further."""
    first, second = (progress.networks[run.id] for run in RUNS)
    first.label, second.label = (
        "resnet20 → resnet8 kd+at #0",
        "clip-vit-b32 → shufflenetv1-tiny semckd[factor=2]+crd #0",
    )
    progress.networks[TEACHER.id].trained = progress.networks[TEACHER.id].earlier = progress.networks[TEACHER.id].cost
    progress.listen("cpu:0", started(runs=RUNS))
    for run in RUNS:
        at = {"id": run.id, "epoch": 2, "epochs": 4, "initial_epochs": 0}
        progress.listen("cpu:0", {"event": "resumed", **at, "text": "resumes"})
    progress.clock.now += 60
    progress.listen("cpu:0", epoch(RUNS[0].id, 3, 91.5))
    return progress


@pytest.mark.parametrize(
    ("width", "heads", "first", "second"),
    [
        (60, "", "3/4 91.50 @ 3", "clip-vi…v1-tiny semckd[factor=2]+crd #0 2/4"),
        (80, "", "3/4 91.50 @ 3", "clip-vit-b32 → shufflenetv1-tiny semckd[factor=2]+crd #0 2/4"),
        (
            140,
            "done epoch loss ",
            "━━━━━━━━━━━━ 75% 3/4 1.250 91.50 @ 3 cpu:0",
            "clip-vit-b32 → shufflenetv1-tiny semckd[factor=2]+crd #0 ━━━━━━━━ 50% 2/4",
        ),
    ],
)
def test_each_network_has_one_row(at_work, width, heads, first, second):
    """Columns go before names are cut, the least important first."""
    head, *rows, bar, times = lines = shown(at_work, width)
    assert max(map(len, lines)) <= min(width, 120)
    assert " ".join(head.split()).startswith(f"network {heads}" if heads else "network epoch test top-1")
    assert [" ".join(row.split()) for row in rows] == [f"resnet20 → resnet8 kd+at #0 {first}", second]
    assert bar.startswith("━━━━━━")
    assert bar.endswith("  85%, 0 of 2 runs")
    keys = "Ctrl-C: save and stop"
    assert " ".join(times.split()) == f"60 s elapsed, about 3 min left, ends 12:04{f' {keys}' if width > 60 else ''}"


def test_names_are_cut_in_the_middle_and_keep_the_method():
    label = "clip-vit-b32 → shufflenetv1 semckd+crd #0"
    assert middle_cut(label, 41) == label
    assert middle_cut(label, 30) == "clip-vit…lenetv1 semckd+crd #0"
    assert middle_cut("teacher resnet20 (SimCLR) on digits + new layers", 20) == "teacher re…ew layers"


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 11, 28, 23, 59), "23:59"),
        (datetime(2026, 11, 29, 0, 5), "Sun 00:05"),
        (datetime(2026, 12, 6, 14, 32), "Sun 6 Dec 14:32"),
    ],
)
def test_the_day_is_told_where_it_is_not_today(moment, text):
    assert time_of_day(moment.timestamp(), Clock()()) == text


def test_time_left_counts_what_this_session_has_done(progress):
    teacher = progress.networks[TEACHER.id]
    for run in RUNS:
        progress.listen("", {"event": "failed", "id": run.id, "reason": "out of memory"})
    assert progress.times() == "0 s elapsed, time left unknown"
    progress.clock.now += 60
    teacher.trained = teacher.earlier = teacher.cost / 2
    assert progress.times() == "60 s elapsed, time left unknown"
    teacher.trained = teacher.cost * 0.75
    assert progress.times() == "60 s elapsed, about 60 s left, ends 12:02"
    teacher.earlier -= 1
    teacher.trained = teacher.earlier + 1
    assert progress.times() == "60 s elapsed, time left unknown", "more than a year is no forecast"


def test_plain_lines_become_rarer(progress, capsys):
    """One after ten seconds, after three hours one in ten minutes, however many slots report."""
    progress.listen("cpu:0", started(TEACHER))
    progress.listen("cpu:1", started(runs=RUNS))
    capsys.readouterr()

    def lines(seconds):
        for _ in range(seconds // 5):
            progress.clock.now += 5
            progress.listen("cpu:0", epoch(TEACHER.id, 1))
            progress.listen("cpu:1", epoch(RUNS[0].id, 1))
        return len(capsys.readouterr().err.splitlines())

    assert lines(60) == 6
    assert 10 < lines(3 * 3600) < 100
    assert lines(3600) == 6


def test_rows_that_a_narrower_terminal_has_added_are_erased(at_work, monkeypatch):
    """rich goes up by the lines that it has drawn; each of 80 columns takes two rows of 60."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    display = Display(at_work.frame)
    live = LiveDisplay(display)
    live.console.size = (80, 40)
    live.console.print(display)
    long = sum(length > 60 for length in display.drawn)
    live.console.size = (60, 40)
    assert str(live.process_renderables([])[0]).count("\x1b[1A") == long > 0


def test_a_teacher_that_was_not_planned_is_shown_all_the_same(progress, capsys):
    other = TEACHER.model_copy(update={"checkpoint": "best"})
    progress.listen("cpu", started(other))
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
        assert member.trained == pytest.approx(member.cost * share / 34)


def test_a_run_that_no_plan_foresaw_has_a_place(tmp_path):
    """An auxiliary whose record was lost while others worked."""
    progress = progress_of(make_plan([], Store(tmp_path)))
    progress.listen("cpu", started(runs=RUNS[:1]))
    progress.listen("cpu", epoch(RUNS[0].id, 2))
    assert progress.networks[RUNS[0].id].label == "auxiliary resnet8 #0"
