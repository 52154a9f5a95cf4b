"""Choosing runs with --only: every name can be chosen, and what no run has is refused with the nearest."""

import re

import pytest

from kdbench.errors import BadInput
from kdbench.suite.load import load_suite
from kdbench.suite.selection import _named, select


NAMES = ["ce", "kd", "kd, T=2", "kd[temperature=2,weight=3]", "KD,ce", "=1+1", " spaced ", "кд·α→β"]


@pytest.fixture
def suites(tmp_path):
    methods = "".join(f"    - {{name: {name!r}, terms: {{ce: 1, kd: {n + 1}}}}}\n" for n, name in enumerate(NAMES[2:]))
    file = tmp_path / "x.yaml"
    file.write_text(
        "protocol: smoke\ndataset: digits\nteachers: {'T, 1': {network: resnet8}}\n"
        f"grid:\n  teacher: 'T, 1'\n  student: [resnet8, wrn-16-1]\n  method:\n    - ce\n    - kd\n{methods}",
        encoding="utf-8",
    )
    return [load_suite(file)]


def chosen(suites, *only):
    return list(dict.fromkeys(run.method for suite in select(suites, only) for run in suite.runs))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_can_be_chosen(suites, name):
    assert chosen(suites, f"method={name}") == [name]


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("method=ce,kd", ["ce", "kd"]),
        ("method=CE, Kd,", ["ce", "kd"]),
        ("method=kd, t=2,ce", ["ce", "kd, T=2"]),
        ("method=ce,kd[temperature=2,weight=3],kd, T=2", ["ce", "kd, T=2", "kd[temperature=2,weight=3]"]),
        ("method=kd,ce", ["KD,ce"]),
        (" Method = ce", ["ce"]),
        ("teacher=T, 1", NAMES),
        ("student=WRN_16_1,ResNet8", NAMES),
    ],
)
def test_several_names_and_spellings(suites, condition, names):
    assert chosen(suites, condition) == names


def test_conditions_are_joined(suites):
    found = select(suites, ["method=ce,kd", "student=resnet8", "trial=0"])
    assert [(run.method, run.spec.student) for run in found[0].runs] == [("ce", "resnet8"), ("kd", "resnet8")]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("method", "write KEY=VALUE"),
        ("method=,", "write KEY=VALUE"),
        ("=ce", "write KEY=VALUE"),
        ("methods=ce", "Did you mean 'method'?"),
        ("method=kd, T=3", "no run has the method 'T=3'"),
        (
            "method=kd[temperature=2,weight=4]",
            "'kd[temperature=2,weight=4]'. Did you mean 'kd[temperature=2,weight=3]'?",
        ),
        ("method=dk[x=1,y=2],kd", "no run has the method 'dk[x=1,y=2]'."),
        ("method=[dk,kd", "no run has the method '[dk'."),
        ("method=cee", "no run has the method 'cee'. Did you mean 'ce'?"),
        ("teacher=vgg8", "no run has the teacher 'vgg8'. There are 'T, 1'."),
        ("method=sp[temperature=2,weight=3]", "no run has the method 'sp[temperature=2,weight=3]'."),
        ("method=ce,rkd[a=1,b=2],kd", "'rkd[a=1,b=2]'."),
        ("trial=00", "no run has the trial '00'."),
        ("method=" + "x," * 5000, "no run has the method 'x'."),
        ("method=" + "x" * 5000, "no run has the method 'xxx"),
    ],
)
def test_what_no_run_has(suites, condition, message):
    with pytest.raises(BadInput) as caught:
        select(suites, [condition])
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ("a[b=1,c=2,d=3],a", [{"a[b=1,c=2,d=3]"}, {"a"}]),
        ("a,a[b=1,c=2,d=3]", [{"a"}, {"a[b=1,c=2,d=3]"}]),
        ("A, a", [{"a"}, {"a"}]),
        (",a,", [{"a"}]),
    ],
)
def test_a_name_may_hold_commas_itself(values, found):
    assert [*_named(values, "method", ["a", "a[b=1,c=2,d=3]"])] == found


@pytest.mark.parametrize(
    ("values", "wrong"), [("a,b", "b"), ("a[b=1,c=9],a", "a[b=1,c=9]"), ("x[y=1,z=2]q,a", "x[y=1,z=2]q")]
)
def test_a_name_that_no_run_has_is_told_whole(values, wrong):
    with pytest.raises(KeyError, match=re.escape(wrong)):
        [*_named(values, "method", ["a", "a[b=1,c=2]"])]
