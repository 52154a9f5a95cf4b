"""Tables and their texts."""

import csv
import io
import json
import time
from dataclasses import replace

import pytest

from kdbench.report.formats import cell_text, csv_text, json_text, markdown, notes, terminal
from kdbench.report.rows import collect
from kdbench.report.tables import Cell, make_cell, make_tables
from kdbench.store.store import Store
from kdbench.suite.specs import digest


def test_mean_and_deviation_by_hand(row):
    cell = make_cell([row(trial, value) for trial, value in enumerate((70.0, 71.0, 73.0))])
    assert cell.mean == pytest.approx(71.333333)
    assert cell.sd == pytest.approx(1.527525)  # sqrt((1.7778 + 0.1111 + 2.7778) / 2)
    assert (cell.n, cell.planned, cell.note) == (3, 3, "")
    assert cell_text(cell, compare=False) == "71.33 ± 1.53 (3)"


def test_partial_trials(row):
    cell = make_cell([row(0, 70.0), row(1), row(2, reason="loss is nan", status="failed"), row(3)])
    assert (cell.mean, cell.sd, cell.n, cell.planned) == (70.0, None, 1, 4)
    assert cell.note == "not run (2 of 4); loss is nan (1 of 4)"
    assert cell_text(cell, compare=False) == "70.00 (1 of 4)"


def test_texts_of_cells():
    assert cell_text(None, compare=True) == ""
    assert cell_text(Cell(None, None, 0, 3), compare=True) == "–"
    assert cell_text(Cell(None, None, 0, 3, "74.42 ± 0.05"), compare=True) == "– | 74.42 ± 0.05"
    assert cell_text(Cell(70.0, 1.0, 3, 3, "74.42"), compare=False) == "70.00 ± 1.00 (3)"
    assert cell_text(Cell(70.0, 1.0, 3, 3, "74.42"), compare=True) == "70.00 ± 1.00 (3) | 74.42"


def test_one_table_for_each_setting(row):
    rows = [
        row(0, 1.0), row(0, 2.0, method="at"), row(0, 3.0, student="vgg8"), row(0, 4.0, dataset="digits"),
        row(0, 5.0, scenario="x"), row(0, 6.0, strategy="sequential"), row(0, 7.0, protocol="crd* (lr 0.1)"),
        row(0, 8.0, suite="t"),
    ]  # fmt: skip
    tables = make_tables(rows)
    assert len(tables) == 6
    assert tables[0].methods == ["kd", "at"]
    assert tables[0].pairs == [("resnet32x4", "resnet8x4"), ("resnet32x4", "vgg8")]
    assert tables[0].best(("resnet32x4", "resnet8x4")) == "at"
    assert tables[0].best(("resnet32x4", "vgg8")) is None


def test_the_caption_names_rule_protocol_and_trials(row):
    (table,) = make_tables([row(t, 70.0, version="0.1") for t in range(3)] + [row(0, 71.0, method="at")])
    assert table.caption == (
        "Top-1 test accuracy in %, mean ± sd (n); protocol crd; accuracy after the last epoch; 1-3 trials; kdbench 0.1."
    )
    assert "best epoch, chosen by test accuracy" in make_tables([row(0, 1.0, score="best")])[0].caption


def test_notes_say_why_cells_are_empty(row):
    rows = [row(t, method=m) for m in ("a", "b", "c", "d") for t in range(2)]
    (line,) = notes(make_tables(rows)[0])
    assert line == "a on resnet32x4 → resnet8x4, b on resnet32x4 → resnet8x4 and 2 more: not run (2 of 2)"


def test_markdown(row):
    rows = [row(t, v, paper="semckd") for t, v in enumerate((74.0, 75.0))] + [row(0, 70.0, method="at", paper="")]
    text = markdown(make_tables(rows), compare=True)
    lines = text.splitlines()
    assert lines[0] == "### s: cifar100, pretrained teacher"
    body = [line for line in lines if line.startswith("|")]
    assert len(body) == 4
    assert {line.replace("\\|", "").count("|") for line in body} == {3}
    assert "**74.50 ± 0.71 (2) \\| 74.42 ± 0.05**" in text
    assert "Behind the bar: the published number." in text
    assert "74.42" not in markdown(make_tables(rows), compare=False)


HOSTILE = ["a|b", "[red]x[/red]", "**x**", "=1+1", 'q"uote', "a,b;c", "\\", "ü→名", "<b>", "[/]", "%s {0}", "-"]


def test_hostile_names(row):
    rows = [row(0, 50.0 + i, method=name, teacher=name, suite=name, reason=name) for i, name in enumerate(HOSTILE)]
    tables = make_tables(rows)
    text = terminal(tables, compare=True, width=160, colour=False)
    for name in HOSTILE:
        assert name in text
    assert markdown(tables, compare=True).count("###") == len(HOSTILE)
    assert terminal(tables, compare=True, width=20, colour=True)


def test_csv_and_json_come_back(row):
    rows = [row(t, v, method=name, best_epoch=3) for name in HOSTILE for t, v in ((0, 70.123456789), (1, None))]
    found = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert [line["method"] for line in found] == [each.method for each in rows]
    assert [float(line["top1"]) if line["top1"] else None for line in found] == [each.top1 for each in rows]
    data = json.loads(json_text(rows, make_tables(rows)))
    assert [line["method"] for line in data["runs"]] == [each.method for each in rows]
    assert data["runs"][0]["top1"] == 70.123456789
    assert data["runs"][1]["top1"] is None
    assert [cell["method"] for cell in data["cells"]] == HOSTILE
    assert {cell["n"] for cell in data["cells"]} == {1}


def test_no_rows():
    assert make_tables([]) == []
    assert csv_text([]).startswith("suite,protocol,")
    assert json.loads(json_text([], [])) == {"runs": [], "cells": []}
    assert markdown([], compare=True).strip() == ""
    assert terminal([], compare=True, width=80, colour=False).strip() == ""


def test_teachers_show_their_own_accuracy(load, tmp_path, finish):
    suite = load("protocol: smoke\ndataset: digits\ngrid: {teacher: resnet8x4, student: resnet8, method: [ce, kd]}")
    store = Store(tmp_path / "results")
    finish(store.teacher(suite.runs[1].spec.teacher.id), kind="teacher", last=88.5)
    (table,) = make_tables(collect([suite], [store]), [store])
    assert table.teachers == {"resnet8x4": 88.5}
    assert "(teacher)" in markdown([table], compare=False)
    (store.teacher(suite.runs[1].spec.teacher.id).folder / "result.json").write_text("{")
    assert make_tables(collect([suite], [store]), [store])[0].teachers == {}


def test_ten_thousand_rows_are_fast(row):
    first = row(0, 70.0)
    rows = [
        replace(first, method=f"m{m}", student=f"s{s}", trial=t, top1=70.0 + t, suite=f"suite{g}")
        for g in range(5) for m in range(40) for s in range(10) for t in range(5)
    ]  # fmt: skip
    assert len(rows) == 10_000
    start = time.process_time()
    tables = make_tables(rows)
    markdown(tables, compare=True)
    csv_text(rows)
    json_text(rows, tables)
    terminal(tables, compare=True, width=200, colour=False)
    assert time.process_time() - start < 2.0


def test_ten_thousand_records_are_read_within_two_seconds(load, tmp_path, finish):
    students = ["resnet8", "resnet14", "resnet20", "resnet32", "resnet44"]
    suite = load(
        f"protocol: crd\ndataset: cifar100\ntrials: 2000\ngrid: {{student: [{', '.join(students)}], method: ce}}"
    )
    assert len(suite.specs) == 10_000
    store = Store(tmp_path / "results")
    record = store.run(suite.runs[0].id)
    finish(record)
    content = record.result().model_dump(exclude_none=True)
    for run in suite.runs[1:]:
        folder = store.run(run.id).folder
        folder.mkdir(parents=True)
        content["id"] = run.id
        (folder / "result.json").write_text(json.dumps({**content, "seal": digest(content)}))
    start = time.process_time()
    rows = collect([suite], [store])
    tables = make_tables(rows, [store])
    text = markdown(tables, compare=True)
    assert time.process_time() - start < 2.0
    assert "(2000)" in text


def test_a_teacher_that_learns_beside_its_students_has_an_accuracy_for_each_trial(row):
    learning = {"strategy": "simultaneous", "student": "vgg8"}
    rows = [
        row(0, 50.0, teacher_top1=60.0, **learning), row(0, 51.0, method="at", teacher_top1=60.0, **learning),
        row(1, 52.0, teacher_top1=63.0, **learning), row(1, method="at", **learning),
        row(0, 53.0, **learning | {"teacher": "vgg13"}),
    ]  # fmt: skip
    (table,) = make_tables(rows)
    assert table.teachers == {"resnet32x4": 61.5}
    assert "(teacher)" in markdown([table], compare=False)
