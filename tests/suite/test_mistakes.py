"""Many mistakes in one file: each is reported at its line, once, and none hides another."""

import random
from itertools import combinations

import pytest

from kdbench.errors import BadSuite


BASE = """\
name: suite
description: nothing
protocol: crd
dataset: cifar100
trials: 2
methods:
  mine: {ce: 1, kd: 2}
grid:
  - teacher: [resnet32x4, vgg13]
    student:
      - resnet8x4
      - vgg8
    method: [ce, kd, mine]
    exclude:
      - {teacher: vgg13, student: resnet8x4}
  - pairs:
      - [resnet56, resnet20]
    method:
      - at
      - name: half
        terms: {ce: 0.5, kd: {weight: 0.5, temperature: 2}}
    include:
      - {method: sp}
    scenario: {fraction: 0.5}
  - teacher: vgg13
    student: vgg8
    method: kd
    protocol: {base: ega, epochs: 20}
    strategy: sequential
"""

MISTAKES = {
    "name": ("name: suite", "name: 5", 1, "must be a name, not 5"),
    "description": ("nothing", "[a]", 2, "must be a name"),
    "trials": ("trials: 2", "trials: 0", 5, "greater than or equal to 1, not 0"),
    "unknown key at the top": ("description:", "descripton:", 2, "Did you mean 'description'?"),
    "term": ("mine: {ce: 1", "mine: {cee: 1", 7, "unknown term 'cee'. Did you mean 'ce'?"),
    "weight": ("kd: 2}", "kd: x}", 7, "the weight must be a number, not 'x'"),
    "teacher": ("[resnet32x4, vgg13]", "[resnet32x4, vgg133]", 9, "Did you mean 'vgg13'?"),
    "student": ("      - vgg8", "      - resnet8x5", 12, "unknown model 'resnet8x5'"),
    "method": ("[ce, kd, mine]", "[ce, kd, mien]", 13, "Did you mean 'mine'?"),
    "unknown key in a selector": ("{teacher: vgg13, student", "{teacher: vgg13, studet", 15, "Did you mean 'student'?"),
    "student of a pair": ("resnet56, resnet20", "resnet56, resnet21", 17, "unknown model 'resnet21'"),
    "null in a pair": ("resnet56, resnet20", "resnet56, ~", 17, "is empty"),
    "method is a number": ("      - at", "      - 7", 19, "must be a name, not 7"),
    "method is a list": ("      - at", "      - [at]", 19, "must be a name"),
    "hyper-parameter": ("temperature: 2", "temprature: 2", 21, "Did you mean 'temperature'?"),
    "range of a hyper-parameter": ("temperature: 2", "temperature: 0", 21, "must be a number above 0, up to 1,000,000"),
    "type of a hyper-parameter": ("temperature: 2", "temperature: hot", 21, "must be a number"),
    "exponent": ("ce: 0.5", "ce: 5e-1", 21, "write 5.0e-1"),
    "included method": ("{method: sp}", "{method: spp}", 23, "Did you mean 'sp'?"),
    "scenario": ("fraction: 0.5", "fraction: 1.5", 24, "less than or equal to 1"),
    "key of a scenario": ("{fraction", "{fractoin", 24, "Did you mean 'fraction'?"),
    "empty value": ("    student: vgg8", "    student:", 26, "is empty"),
    "protocol's value": ("epochs: 20", "epochs: many", 28, "must be a whole number"),
    "protocol's key": ("epochs: 20", "epoch: 20", 28, "Did you mean 'epochs'?"),
    "base": ("base: ega", "base: eag", 28, "Did you mean 'ega'?"),
    "strategy": ("sequential", "sequentiel", 29, "Did you mean 'sequential'?"),
}


def broken(*names):
    text = BASE
    for name in names:
        before, after, *_ = MISTAKES[name]
        head, found, tail = text.partition(before)
        assert found, name
        text = head + after + tail
    return text


def problems_of(load, text):
    with pytest.raises(BadSuite) as caught:
        load(text)
    return caught.value.problems


def test_the_base_is_right(load):
    assert len(load(BASE).runs) == 26


@pytest.mark.parametrize("name", MISTAKES)
def test_one_mistake(load, name):
    (problem,) = problems_of(load, broken(name))
    assert problem.line == MISTAKES[name][2]
    assert MISTAKES[name][3] in str(problem)


def test_pairs_of_mistakes(load):
    for names in combinations(MISTAKES, 2):
        if len({MISTAKES[name][0] for name in names}) == 2 and not together(*names):
            check(load, names)


def test_five_mistakes_at_once(load):
    draw = random.Random(0)
    for _ in range(150):
        names = sorted(draw.sample(sorted(MISTAKES), 5), key=list(MISTAKES).index)
        if len({MISTAKES[name][2] for name in names}) == 5:
            check(load, names)


def together(*names):
    """Whether two mistakes are in one value, so that they cannot both be seen."""
    return set(names) in ({"description", "unknown key at the top"}, {"scenario", "key of a scenario"})


def check(load, names):
    try:
        text = broken(*names)
    except AssertionError:
        return
    found = [(p.line, p.message) for p in problems_of(load, text)]
    lines = sorted(MISTAKES[name][2] for name in names)
    assert sorted(line for line, _ in found) == lines, (names, found)
    for name in names:
        assert any(MISTAKES[name][3] in message for _, message in found) or name == "base", (name, found)


def test_all_at_once(load):
    text = """\
protocol: {base: crd, lr: fast, teacher: {epochz: 5}, datasets: {cifar100: {batch: no}}, lr_for: {resnet8x5: 0.1}}
dataset: cifar101
dataset: digits
trials: 1e1
colour: red
methods:
  mine: [ce]
grid:
  - teacher: [resnet32x4, 7]
    pairs: [[resnet32x4, resnet8x9]]
    method:
      - kdd
      - {terms: {ce: 1, kd: {weight: 1, temprature: 4}}}
      - 3
      - name: deep
        terms: {ce: 1, fitnet: {layer: 9}}
    student: [resnet8x4]
    exclude:
      - {student: vgg8}
      - {studnt: vgg8}
      - {method: foo}
    scenario: {label_noise: lots}
  - 5
  - student: [resnet8]
    method: kd
"""
    lines = [problem.line for problem in problems_of(load, text)]
    assert sorted(lines) == [1, 1, 1, 1, 2, 3, 4, 5, 7, 9, 10, 12, 13, 14, 15, 20, 21, 22, 23, 25]


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("", 1, "a suite is a mapping"),
        ("- a", 1, "a suite is a mapping"),
        ("just text", 1, "a suite is a mapping"),
        ("protocol: crd\ndataset: digits\n", 1, "'grid' must be a list"),
        ("protocol: crd\ngrid: 5\n", 2, "'grid' must be a list"),
        ("protocol: crd\ngrid: []\n", 2, "'grid' must be a list"),
        ("protocol: crd\ngrid:\n", 2, "'grid' must be a list"),
        ("protocol: crd\ngrid:\n  - \n", 3, "must be a mapping"),
        ("grid: [{student: vgg8, method: ce, dataset: digits}]", 1, "'protocol' is missing"),
        ("protocol:\ngrid: [{student: vgg8, method: ce, dataset: digits}]", 1, "'protocol' is missing"),
        ("protocol: 3\ngrid: [{student: vgg8, method: ce, dataset: digits}]", 1, "must be a name or a mapping, not 3"),
        ("protocol: [crd]\ngrid: [{student: vgg8, method: ce, dataset: digits}]", 1, "must be a name or a mapping"),
        ("protocol: {epochs: 3}\ngrid: [{student: vgg8, method: ce, dataset: digits}]", 1, "'base' is missing"),
        ("protocol: crd\ngrid:\n - {student: vgg8, method: ce}", 3, "'dataset' is missing"),
        ("protocol: crd\ndataset: digits\ngrid:\n - {method: ce}", 4, "'student' is missing"),
        ("protocol: crd\ndataset: digits\ngrid:\n - {student: vgg8}", 4, "'method' is missing"),
        ("protocol: crd\ndataset: digits\ngrid:\n - {student: vgg8, method: {}}", 4, "needs a 'name', or 'terms'"),
        ("protocol: crd\ndataset: digits\ngrid:\n - {student: vgg8, method: []}", 4, "is an empty list"),
        ("protocol: crd\ndataset: digits\ngrid:\n - {student: vgg8, method: kd}", 4, "needs a teacher"),
        ("protocol: crd\ndataset: digits\nmethods: 5\ngrid:\n - {student: vgg8, method: ce}", 3, "must be a mapping"),
        ("protocol: crd\ndataset: digits\nmethods:\ngrid:\n - {student: vgg8, method: ce}", 3, "is empty"),
        ("protocol: crd\ndataset: null\ngrid:\n - {student: vgg8, method: ce}", 2, "is empty"),
        ("protocol: crd\ndataset: digits\ntrials:\ngrid:\n - {student: vgg8, method: ce}", 3, "is empty"),
    ],
)
def test_shapes(load, text, line, word):
    (problem,) = problems_of(load, text)
    assert problem.line == line
    assert word in problem.message


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"teacher": ""}, "is empty"),
        ({"method": "null"}, "is empty"),
        ({"scenario": "5"}, "must be a mapping"),
        ({"scenario": "{label_noise: 1.0}"}, "must be less than 1"),
        ({"scenario": "{fraction: 0}"}, "must be greater than 0"),
        ({"scenario": "{fraction: no}"}, "false in YAML 1.1"),
        ({"strategy": "3"}, "is not one of"),
        ({"trials": "-1"}, "greater than or equal to 1"),
        ({"trials": "1.5"}, "must be a whole number"),
        ({"trials": "true"}, "must be a whole number"),
        ({"dataset": "{name: cifar100, classes: 101}"}, "has only 100 classes"),
        ({"dataset": "{name: cifar100, train_per_class: 501}"}, "has only 500 train per class"),
        ({"dataset": "{classes: 10}"}, "'name' is missing"),
        ({"dataset": "{name: cifar100, clases: 10}"}, "Did you mean 'classes'?"),
        ({"exclude": "{}"}, "must name at least one of"),
        ({"exclude": "[{method: at}]"}, "unknown method 'at'"),
        ({"exclude": "[{student: vgg8}]"}, "is not in this grid"),
        ({"exclude": "[{dataset: digits}]"}, "is not in this grid"),
        ({"pairs": "[[vgg13, vgg8]]", "exclude": "[{teacher: vgg13, student: resnet8x4}]"}, "matches no run"),
        ({"include": "{dataset: digits}"}, "is not in this grid"),
        ({"include": "{student: vgg9}"}, "unknown model 'vgg9'"),
        ({"scenario": "{label_noise: 0.004, noise: classes}"}, "0.004 of the 100 classes of cifar100 is not one class"),
        ({"include": "{method: kdd}"}, "Did you mean 'kd'?"),
        ({"include": "{teacher: []}"}, "is an empty list"),
        ({"include": "[]"}, "is an empty list"),
        ({"exclude": "[]"}, "is an empty list"),
        ({"measure": "{probe: {name: digits, train_per_clas: 3}}"}, "Did you mean 'train_per_class'?"),
        ({"pairs": "[vgg13]", "student": None}, "must be [teacher, student], or {teacher: …, student: …}"),
        ({"pairs": "5"}, "must be a list"),
        ({"pairs": "[[vgg13, vgg8, vgg8]]"}, "must be [teacher, student]"),
        ({"method": "{terms: {ce: 0, kd: 0}}"}, "every weight is 0"),
        ({"method": "{terms: null}"}, "must be a sum of terms"),
        ({"method": "{terms: {kd: 1, KD: 2}}"}, "is given 2 times"),
        ({"method": "{terms: {kd: true}}"}, "the weight must be a number"),
        ({"method": "{terms: {kd: 1e400}}"}, "is text in YAML 1.1"),
        ({"method": "{terms: {kd: .nan}}"}, "finite"),
        ({"method": '{name: "a\\nb", terms: {kd: 1}}'}, "is not a name"),
        ({"method": "{terms: {fitnet: {weight: 1, layer: 9}}}"}, "reads layer 9"),
        ({"method": "{terms: {fitnet: {weight: 1, regressor: false}}}", "student": "vgg8"}, "needs equal maps"),
        ({"method": "{terms: {'no.module:Term': 1}}"}, "cannot find the module"),
        ({"strategy": "sequential"}, "trains new layers on a frozen backbone"),
        ({"protocol": "{base: crd, nesterov: true, momentum: 0}"}, "nesterov needs a momentum"),
        ({"protocol": "{base: crd, milestones: [3, 2]}"}, "must rise"),
        ({"protocol": "{base: crd, lr_for: {resnet8x4: -1}}"}, "must be greater than 0"),
        ({"protocol": "{base: crd, lr_for: [a]}"}, "must be a mapping"),
        ({"protocol": "{base: crd, methods: [a]}"}, "must be a mapping"),
        ({"protocol": "{base: crd, methods: {kd: {ce: x}}}"}, "the weight must be a number"),
        ({"protocol": "{base: crd, datasets: 5}"}, "must be a mapping"),
        ({"protocol": "{base: crd, datasets: {cifar100: 5}}"}, "must be a mapping"),
        ({"protocol": "{base: crd, datasets: {cifar101: {lr: 1}}}"}, "unknown dataset"),
        ({"protocol": "{base: crd, datasets: {cifar100: {lr: x}}}"}, "must be a number"),
        ({"protocol": "{base: crd, teacher: {momentum: 0}, datasets: {digits: {nesterov: true}}}"}, "on digits"),
        ({"protocol": "{base: crd, teacher: 5}"}, "must be a mapping"),
        ({"protocol": "{base: crd, std: [1, 1, 0]}"}, "must be greater than 0"),
        ({"protocol": "{base: crd, mean: [1, 1]}"}, "must hold 3 values"),
        ({"protocol": "{base: crd, crop_area: [1]}"}, "must hold 2 values"),
        ({"protocol": "{base: crd, crop_area: [1, 0.1]}"}, "must name the smaller end first"),
        ({"protocol": "{base: crd, crop_ratio: [0, 1]}"}, "must be greater than or equal to 0.01, not 0"),
        ({"protocol": "{base: crd, epochs: 1e2}"}, "write 1.0e+2"),
    ],
)  # fmt: skip
def test_values_of_a_grid(grid, keys, word):
    with pytest.raises(BadSuite) as caught:
        grid(**keys)
    (problem,) = caught.value.problems
    assert word in problem.message
    assert problem.line > 2


def test_mistakes_that_depend_on_each_other_are_reported_once(load):
    """What follows from a mistake is not reported again, what does not is."""
    text = """\
protocol: {base: crd, lr: fast}
dataset: digits
grid:
  - {teacher: vgg13, student: vgg8, method: kd, strategy: sequential}
  - {teacher: vgg13, method: [kd, at], exclude: {student: vgg8}}
  - {teacher: vgg13x, student: vgg8, method: kd, exclude: {teacher: vgg13}}
  - {teacher: vgg13, student: vgg8, protocol: {base: crdd, node_embedding: 8}, method: kdd, strategy: sequential}
  - {teacher: vgg13, student: vgg8, method: {name: kd, terms: {ce: 1}}, include: {method: nosuch}}
"""
    assert [problem.line for problem in problems_of(load, text)] == [1, 4, 5, 6, 7, 7, 8, 8]


def test_long_values_are_shortened(grid):
    with pytest.raises(BadSuite) as caught:
        grid(trials="[" + "1, " * 500 + "]")
    assert len(str(caught.value)) < 300


def test_initial_stages_that_make_no_method(grid):
    for terms, message in (
        (
            "{ce: 1, ab: 1, fsp: 1}",
            "ab and fsp train the student before the main training: only one term of a method may",
        ),
        ("{ab: 1}", "ab is 0 in the main training: add what the student learns from then, such as ce: 1"),
    ):
        with pytest.raises(BadSuite) as error:
            grid(method=f"{{name: mine, terms: {terms}}}")
        assert message in str(error.value)
    assert len(grid(method="{name: mine, terms: {ce: 1, ab: {weight: 1, initial_epochs: 3}}}").runs) == 1


def test_a_selector_with_a_wrong_student_has_its_method_checked_too(grid):
    with pytest.raises(BadSuite) as caught:
        grid(include="{student: vgg9, method: kdd}")
    assert [problem.path for problem in caught.value.problems] == ["grid[0].include.method", "grid[0].include.student"]


def test_a_member_of_a_pair_is_found_in_its_line(load):
    text = """\
protocol: smoke
dataset: digits
grid:
  - pairs:
      - - 7
        - resnet8
      - - resnet8
        - [4]
    method: kd
"""
    assert [(each.line, each.path) for each in problems_of(load, text)] == [
        (5, "grid[0].pairs[0][0]"),
        (8, "grid[0].pairs[1][1]"),
    ]
