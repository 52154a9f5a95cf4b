"""The YAML reader: every trap with its line, and no input that leads to a traceback."""

import pytest

from kdbench.errors import BadSuite
from kdbench.suite.yaml_reader import parse_yaml, read_yaml, write_yaml


def problems(text):
    return [(p.line, p.path) for p in parse_yaml(text, "x.yaml").problems]


@pytest.mark.parametrize(
    ("text", "word", "value"),
    [
        ("1e-3", "write 1.0e-3", 0.001),
        ("5E2", "write 5.0e+2", 500.0),
        ("1.e5", "write 1.e+5", 100000.0),
        (".5e3", "write .5e+3", 500.0),
        ("no", "false in YAML 1.1", False),
        ("Off", "false in YAML 1.1", False),
        ("YES", "true in YAML 1.1", True),
        ("on", "true in YAML 1.1", True),
        ("010", "octal", 8),
        ("-017", "octal", -15),
        ("0_17", "octal", 15),
        ("00", "octal", 0),
        ("1:30", "base-60", "1:30"),
        ("1_0:30.5", "base-60", "1_0:30.5"),
        ("2020-01-01", "timestamp", "2020-01-01"),
        ("=", "value", "="),
        (".inf", "finite", None),
        ("-.INF", "finite", None),
        (".nan", "finite", None),
        ("1.0e+999", "finite", None),
        ("1" * 30, "finite", None),
        ("1" * 5000, "cannot be read", "1" * 5000),
        ("!!int abc", "cannot be read as int", "abc"),
        ("!!float x", "cannot be read as float", "x"),
        ("!secret x", "!secret", "x"),
        ("0x_", "cannot be read", "0x_"),
        ("!!set {a: 1}", "tag 'set'", None),
        ("!!python/tuple [1]", "tag 'python/tuple'", None),
    ],
)
def test_traps(text, word, value):
    document = parse_yaml(f"a: 1\n\nkey: {text}\n", "x.yaml")
    assert document.data == {"a": 1, "key": value}
    assert [(p.file, p.line, p.path) for p in document.problems] == [("x.yaml", 3, "key")]
    assert word in document.problems[0].message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.0e-3", 0.001), ("1_000", 1000), ("0x1F", 31), ("0b11", 3), ("-5", -5), ("0", 0), ("0.0", 0.0),
        ("true", True), ("False", False), ("~", None), ("", None), ("'no'", "no"), ('"1e-3"', "1e-3"), ("'010'", "010"),
        ("resnet8x4", "resnet8x4"), ("wrn-40-2", "wrn-40-2"), ("1e", "1e"), ("!!str 7", "7"), ("08", "08"),
    ],
)  # fmt: skip
def test_what_is_no_trap(text, value):
    document = parse_yaml(f"key: {text}\n", "x.yaml")
    assert document.data == {"key": value}
    assert not document.problems


def test_duplicate_keys_name_both_lines_and_do_not_hide_what_follows():
    document = parse_yaml("a: 1\nb: {x: 1,\n  x: 2}\na: 2\nc: no\n", "x.yaml")
    assert [(p.line, p.path) for p in document.problems] == [(3, "b.x"), (4, "a"), (5, "c")]
    assert "first in line 1" in document.problems[1].message
    assert document.data == {"a": 1, "b": {"x": 1}, "c": False}


def test_merge_keys_and_keys_that_are_no_names():
    assert problems("a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\n") == [(3, "b")]
    assert problems("a: 1\n? [b]\n: 2\n") == [(2, "")]
    assert parse_yaml("'<<': 1\n", "x").data == {"<<": 1}


def test_keys_stay_text():
    assert parse_yaml("yes: 1\n1: 2\nnull: 3\n", "x").data == {"yes": 1, "1": 2, "null": 3}


def test_aliases():
    nested = "a: &a [1, 2]\nb: &b [*a, *a]\nc: {d: *b}\n"
    assert parse_yaml(nested, "x").data == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"d": [[1, 2], [1, 2]]}}
    assert problems("a: 1\nb: &x\n  - *x\n") == [(2, "b[0]")]
    assert problems("b: &x {c: {d: *x}}") == [(1, "b.c.d")]


def test_a_bomb_of_aliases_is_refused():
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(BadSuite, match="too many values"):
        parse_yaml("\n".join(["l0: &l0 [1]", *levels]), "x.yaml")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 3000 + "]" * 3000, "{a: " * 60 + "1" + "}" * 60, "- " * 200 + "1"]
)
def test_deep_nesting_is_refused(text):
    with pytest.raises(BadSuite, match=r"x\.yaml:1  is nested more than"):
        parse_yaml(text, "x.yaml")


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\n\tb: 2", 2), ("a: [1,\n", 2), ("a: 1\nb: c: d", 2), ("a: *nope", 1), ("a: 1\n---\nb: 2", 2), ("a: 'x", 1)],
)
def test_what_is_not_yaml_has_its_line(text, line):
    with pytest.raises(BadSuite) as caught:
        parse_yaml(text, "x.yaml")
    (problem,) = caught.value.problems
    assert problem.line == line
    assert "not valid YAML" in problem.message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00a", b"\x00\x01\x02", b"a: \x07", b"\x80\x04\x95", b"PK\x03\x04\xaa"])
def test_binary_files(tmp_path, content):
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(BadSuite) as caught:
        read_yaml(file)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\n\n"])
def test_empty_files(text):
    document = parse_yaml(text, "x")
    assert document.data is None
    assert not document.problems


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(BadSuite, match=r"no\.yaml  cannot be read: No such file"):
        read_yaml(tmp_path / "no.yaml")
    with pytest.raises(BadSuite, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("text", ["\ufeffa: 1\nb: no\n", "a: 1\r\nb: no\r\n", "a:\t1\nb: no"])
def test_byte_order_marks_carriage_returns_and_tabs(tmp_path, text):
    file = tmp_path / "x.yaml"
    file.write_bytes(text.encode())
    document = read_yaml(file)
    assert document.data == {"a": 1, "b": False}
    assert [p.line for p in document.problems] == [2]


def test_lines_of_values():
    document = parse_yaml("a: [x, y,\n    z]\nb:\n  - p\n\n  - q: 1\n    r: {s: 2,\n        t: 3}\n", "x")
    assert document.lines == {
        (): 1, ("a",): 1, ("a", 0): 1, ("a", 1): 1, ("a", 2): 2, ("b",): 3, ("b", 0): 4, ("b", 1): 6,
        ("b", 1, "q"): 6, ("b", 1, "r"): 7, ("b", 1, "r", "s"): 7, ("b", 1, "r", "t"): 8,
    }  # fmt: skip


def test_places_that_are_not_in_the_file():
    document = parse_yaml("a: x\nb:\n  - {c: 1}\n", "x.yaml")
    assert document.place(("a", 0, "name")) == ("a",)
    assert document.place(("b", 0, "c", "d")) == ("b", 0, "c")
    assert document.problem(("b", 0, "e"), "").line == 3
    assert str(document.problem(("b", 0, "c"), "is wrong")) == "x.yaml:3  b[0].c: is wrong"


def test_what_is_written_is_read_as_the_same_values():
    values = [
        "1e-3",
        "yes",
        "1:30",
        "010",
        "null",
        "<<",
        "=",
        "2001-01-01",
        " a ",
        "a\nb\n",
        "x: y",
        "#",
        "ä",
        "-",
        "w " * 99,
    ]
    data = {
        "numbers": [1, 1e-05, 2.5e30, True, None],
        **{f"key {n}": value for n, value in enumerate(values)},
        "1e-3": {},
    }
    document = parse_yaml(write_yaml(data), "x.yaml")
    assert (document.data, document.problems) == (data, [])
