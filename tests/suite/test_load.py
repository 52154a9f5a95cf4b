"""From a file to runs: what suites can say."""

import pytest

from kdbench.errors import BadSuite
from kdbench.suite.load import bundled_suites, find_suite, load_suites


def places(suite):
    return [(run.teacher, run.spec.student, run.method, run.strategy, run.spec.trial) for run in suite.runs]


def test_a_product(grid):
    suite = grid(student="[resnet8x4, vgg8]", trials=2)
    assert len(suite.runs) == 8
    assert places(suite)[:3] == [
        ("resnet32x4", "resnet8x4", "ce", "pretrained", 0),
        ("resnet32x4", "resnet8x4", "ce", "pretrained", 1),
        ("resnet32x4", "resnet8x4", "kd", "pretrained", 0),
    ]


def test_pairs_in_both_notations_and_beside_a_product(grid):
    pairs = "[[resnet32x4, resnet8x4], {teacher: vgg13, student: vgg8}]"
    suite = grid(pairs=pairs, teacher=None, student=None, method="kd")
    assert [p[:2] for p in places(suite)] == [("resnet32x4", "resnet8x4"), ("vgg13", "vgg8")]
    assert len(grid(pairs="[[vgg13, vgg8]]", method="kd").runs) == 2


def test_exclude_and_include(grid):
    suite = grid(
        teacher="[resnet32x4, vgg13]", student="[resnet8x4, vgg8]",
        exclude="[{teacher: vgg13, student: resnet8x4}, {method: ce}]",
        include="{teacher: resnet110, student: resnet32, method: at}",
    )  # fmt: skip
    assert [p[:3] for p in places(suite)] == [
        ("resnet32x4", "resnet8x4", "kd"),
        ("resnet32x4", "vgg8", "kd"),
        ("vgg13", "vgg8", "kd"),
        ("resnet110", "resnet32", "at"),
    ]


def test_a_selector_takes_any_spelling(grid):
    suite = grid(dataset="[cifar100, digits]", exclude="{dataset: CIFAR-100, student: ResNet8x4}")
    assert {run.spec.dataset.name for run in suite.runs} == {"digits"}


def test_grids_have_their_own_settings(load):
    suite = load("""
protocol: crd
dataset: cifar100
trials: 1
methods: {mine: {ce: 1, kd: 2}}
grid:
  - {teacher: vgg13, student: vgg8, method: [mine, kd], trials: 2}
  - {teacher: vgg13, student: vgg8, method: kd, protocol: semckd, scenario: [{fraction: 0.5}, {label_noise: 0.1}]}
  - {teacher: vgg13, student: vgg8, method: kd, protocol: ega, dataset: digits, strategy: [sequential, simultaneous]}
  - {teacher: vgg13, student: vgg8, method: {terms: {ce: 1, at: 5}}}
""")
    assert [(r.method, r.protocol.name, r.strategy) for r in suite.runs if r.spec.trial == 0] == [
        ("mine", "crd", "pretrained"),
        ("kd", "crd", "pretrained"),
        ("kd", "semckd", "pretrained"),
        ("kd", "semckd", "pretrained"),
        ("kd", "ega", "sequential"),
        ("kd", "ega", "simultaneous"),
        ("ce+at", "crd", "pretrained"),
    ]
    sequential, simultaneous = suite.runs[6].spec, suite.runs[7].spec
    assert sequential.teacher.head.width == 256
    assert sequential.head is None
    assert simultaneous.teacher.kind == "supervised"
    assert simultaneous.head.recipe.milestones == ()


def test_one_grid_may_stand_without_a_list(load):
    assert load("protocol: demo\ndataset: digits\ngrid: {student: resnet8, method: ce}").runs[0].teacher == ""


def test_trials_come_from_the_option_then_the_grid_then_the_suite_then_the_protocol(load):
    text = "protocol: crd\ndataset: digits\n{}grid:\n  - {{student: resnet8, method: ce{}}}\n"
    assert len(load(text.format("", "")).runs) == 3
    assert len(load(text.format("trials: 4\n", "")).runs) == 4
    assert len(load(text.format("trials: 4\n", ", trials: 2")).runs) == 2
    assert len(load(text.format("trials: 4\n", ", trials: 2"), trials=5).runs) == 5


def test_the_same_run_twice_is_one_run(load):
    grid = "{teacher: vgg13, student: vgg8, method: [ce, kd, kd]}"
    assert len(load(f"protocol: crd\ntrials: 1\ndataset: cifar100\ngrid: [{grid}, {grid}]").runs) == 2


def test_a_name_with_two_meanings_is_refused(load):
    head = "protocol: crd\ndataset: cifar100\ngrid:\n"
    line = "  - {teacher: vgg13, student: vgg8, method: {name: mine, terms: {ce: 1, kd: %s}}}\n"
    assert len(load(head + line % 1 + line % 1.0).specs) == 3
    with pytest.raises(BadSuite, match="give one another name") as caught:
        load(head + line % 1 + line % 2)
    assert caught.value.problems[0].line == 5
    with pytest.raises(BadSuite, match=r"'kd' is 1·ce here but 0.1·ce"):
        load(
            head
            + "  - {teacher: vgg13, student: vgg8, method: at, include: {method: kd}}\n"
            + "  - {student: vgg8, method: {name: kd, terms: {ce: 1}}}\n"
        )


@pytest.mark.parametrize("name", sorted(bundled_suites()))
def test_bundled_suites_load(name):
    (suite,) = load_suites([name])
    assert suite.runs
    assert suite.description


def test_a_suite_named_twice_is_loaded_once():
    assert len(load_suites(["smoke", str(find_suite("smoke")), "demo"])) == 2


def test_problems_of_all_files_come_together(tmp_path):
    (tmp_path / "a.yaml").write_text("protocol: crdd\n")
    (tmp_path / "b.yaml").write_text("a: [\n")
    references = [str(tmp_path / "a.yaml"), "dmo", str(tmp_path / "b.yaml"), str(tmp_path / "c.yaml"), "x" * 5000, "\0"]
    with pytest.raises(BadSuite) as caught:
        load_suites([*references, str(tmp_path)])
    text = str(caught.value)
    for part in (
        "crdd",
        "unknown suite 'dmo'. Did you mean 'demo'?",
        "b.yaml:2",
        "c.yaml  no such file",
        "is a folder",
    ):
        assert part in text
    assert len(caught.value.problems) == 8
    assert text.endswith("8 problems. Nothing was run.")


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.yaml").write_text(
            "protocol: demo\ndataset: digits\ngrid: {student: resnet8, method: ce}"
        )
    with pytest.raises(BadSuite, match="is called 'x', too"):
        load_suites([str(tmp_path / folder / "x.yaml") for folder in ("a", "b")])


def test_a_suite_says_how_many_devices_train_a_run_and_that_changes_no_run(load):
    text = "protocol: crd\ndataset: cifar100\ngrid: {teacher: vgg13, student: vgg8, method: kd}\n"
    plain = load(text)
    for value, number in (("4", 4), ("auto", 0)):
        suite = load(f"devices_per_run: {value}\n{text}")
        assert (suite.devices_per_run, [*suite.specs]) == (number, [*plain.specs])
    for wrong in ("0", "65", "true", "'4'", "1.5"):
        with pytest.raises(BadSuite, match="devices_per_run: write auto, or a number from 1 to 64"):
            load(f"devices_per_run: {wrong}\n{text}")
