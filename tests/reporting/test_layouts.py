"""The papers' 24 tables, as they are printed: every cell of reference.csv, in its place and with its mark."""

import pytest

from kdbench.catalogue.tables import TABLES, layouts, remarks, table_name
from kdbench.errors import BadInput
from kdbench.reporting.keys import printed, reference
from kdbench.reporting.options import ReportOptions, View
from kdbench.reporting.rendered import Emphasis
from kdbench.reporting.report import published_report


RENDERED = {table.id: table for table in published_report().tables(ReportOptions(View.published))}
REFERENCE = reference().to_dict("records")
PRINTED = {id: printed(id) for id in TABLES}
ORDER = [at for numbers in PRINTED.values() for at in numbers.index]
RECORDS = [REFERENCE[at] for at in ORDER]
PLACES = [place for layout in layouts().tables.values() for place in layout.places]


def body(table):
    """The entries of a table's cells in print order, without header and labels."""
    return [
        entry for band in table.sections for part in band.parts for line in part for entry in line[table.row_labels :]
    ]


def texts(line):
    return [(entry.text, entry.span) for entry in line]


def test_all_tables_are_there():
    assert list(layouts().tables) == list(TABLES) == list(RENDERED)
    assert len(TABLES) == 24
    assert remarks().keys() <= set(TABLES)


def test_every_record_is_used_once_and_in_print_order():
    assert sorted(ORDER) == list(range(873)) == list(range(len(REFERENCE)))
    assert sorted(ORDER, key=lambda at: TABLES.index(f"{REFERENCE[at]['paper']}-{REFERENCE[at]['table']}")) == ORDER
    assert all(list(numbers.index) == sorted(numbers.index) for numbers in PRINTED.values())


@pytest.mark.parametrize("table", TABLES)
def test_every_cell_is_printed_as_in_the_paper(table):
    """The text of each of the 873 cells, from the record's own columns."""
    expected = []
    for each in REFERENCE:
        if f"{each['paper']}-{each['table']}" == table:
            value = {"": "—"}.get(each["value"], each["value"])
            expected.append(value + (f" ± {each['std']}" if each["std"] else ""))
    shown = [entry.text for entry in body(RENDERED[table])]
    assert len(shown) == len(expected)
    for text, number in zip(shown, expected, strict=True):
        assert text == number or text.endswith(f" {number}")  # behind a network's name
        if table not in ("semckd-2", "semckd-3", "semckd-4", "semckd-9"):
            assert text == number


def test_counts():
    shown = [entry.text for table in RENDERED.values() for entry in body(table)]
    assert (len(shown), shown.count("nan"), shown.count("—")) == (873, 5, 2)


@pytest.mark.parametrize("table", TABLES)
def test_every_line_is_as_wide_as_its_table(table):
    table = RENDERED[table]
    assert {sum(entry.span for entry in line) for line in table.lines} == {table.width}


def test_decimals_follow_the_rule_but_for_the_exceptions():
    odd = {}
    texts = [text for numbers in PRINTED.values() for text in numbers["printed"]]
    for place, text in zip(PLACES, texts, strict=True):
        if text in ("nan", "—"):
            continue
        value, _, sd = text.partition(" ± ")
        if len(value.partition(".")[2]) != place.decimals:
            odd.setdefault(place.layout.id, []).append(value)
        assert len(sd.partition(".")[2]) == (2 if sd else 0)
    assert odd == {"ega-1": ["73.7"], "ega-C": ["9.6"]}  # RKD under RN101, KD under ViT-B/16


def test_groups_span_their_columns():
    groups, labels = RENDERED["ega-1"].sections[0].header
    assert texts(groups) == [("", 1), ("Same student different teacher", 3), ("Same teacher different student", 3)]
    assert [text for text, _ in texts(labels)] == [
        "Method", "ViT-B/32", "ViT-B/16", "RN101", "Resnet8x4", "ShuffleNetV1", "VGG13",
    ]  # fmt: skip
    groups, labels = RENDERED["sskd-6"].sections[0].header
    assert texts(groups) == [("Dataset", 1), *((f"{name} test set", 2) for name in ("CIFAR100", "STL10", "SVHN"))]
    assert texts(labels)[:3] == [("Metric", 1), ("KL-div(↓)", 1), ("CKA-simi(↑)", 1)]


def test_two_lines_of_networks_are_not_joined():
    teachers, students = RENDERED["sskd-3"].sections[0].header
    assert texts(teachers)[:3] == [("Teacher", 1), ("wrn40-2", 1), ("wrn40-2", 1)]
    assert texts(students)[:3] == [("Student", 1), ("wrn16-2", 1), ("wrn40-1", 1)]


@pytest.mark.parametrize("table", TABLES)
def test_every_place_has_a_name_of_its_own(table):
    names = [place.name for place in layouts().tables[table].places]
    assert len(set(names)) == len(names)


def test_partitions():
    parts = {id: [len(part) for band in table.sections for part in band.parts] for id, table in RENDERED.items()}
    assert parts["ega-1"] == [8, 1]
    assert parts["ega-4"] == [7, 2]
    assert parts["sskd-3"] == [2, 11]
    assert parts["semckd-2"] == [1, 8, 1]
    assert parts["semckd-9"] == [12]
    assert parts["ega-B"] == [1, 1]


def test_labels_and_references():
    table = RENDERED["semckd-2"]
    first, second, *_, last = [line for part in table.sections[0].parts for line in part]
    assert (first[0].text, first[1].text) == ("", "70.46 ± 0.29")
    assert second[0].text == "KD [9]"
    assert (last[0].text, last[1].text) == ("Teacher", "ResNet-32x4 79.42")
    assert not RENDERED["semckd-9"].row_labels
    assert body(RENDERED["semckd-9"])[0].text == "VGG-8 70.46 ± 0.29"
    node, edge = RENDERED["ega-B"].sections
    assert (node.header[0][0].text, edge.header[0][0].text) == ("Node weight", "Edge weight")


def test_underlines_are_those_of_the_paper_but_for_one():
    """SSKD's text keeps its 19 underlines. One contradicts the numbers: CRD* in the column vgg13→vgg8 of Table 3."""
    shown = [entry for table in RENDERED.values() for entry in body(table)]
    marked = {index for index, entry in enumerate(shown) if entry.emphasis is Emphasis.second}
    noted = {index for index, each in enumerate(RECORDS) if each["note"].startswith("underlined")}
    assert len(noted) == 19
    assert [(RECORDS[i]["method"], RECORDS[i]["value"]) for i in noted - marked] == [("crd", "74.06")]
    assert [(RECORDS[i]["method"], RECORDS[i]["value"]) for i in marked - noted] == [("ab", "74.27")]


def test_bold_is_the_best_of_its_row_or_column():
    best = {
        id: [entry.text for entry in body(table) if entry.emphasis is Emphasis.best] for id, table in RENDERED.items()
    }
    assert best["ega-1"] == ["77.68", "76.65", "76.30", "75.41", "76.65", "76.24"]
    assert best["sskd-3"] == ["71.78", "76.04", "76.04", "76.13", "76.20", "75.33"]  # a tie on wrn16-2; teachers apart
    assert best["sskd-5"] == ["28.38", "9.33"]
    assert best["sskd-6"] == ["14.71", "6.24", "0.7419", "0.8521", "10.58", "0.7382"]
    assert best["semckd-5"] == ["0.99", "11.27"]
    assert len(best["semckd-9"]) == 12
    assert best["semckd-6"] == []


@pytest.mark.parametrize(
    ("name", "table"), [("ega-1", "ega-1"), ("EGA_a", "ega-A"), ("sskd-s1", "sskd-S1"), (" SemCKD-9 ", "semckd-9")]
)
def test_spellings(name, table):
    assert table_name(name) == table


def test_an_unknown_table_is_told_the_nearest():
    with pytest.raises(BadInput, match=r"unknown table 'semckd-99'. Did you mean 'semckd-9'"):
        table_name("semckd-99")
