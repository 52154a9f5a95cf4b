"""Parts of suites: each run in one, of about the same length, with few teachers in two."""

import pytest

from kdbench.planning.plan import make_plan
from kdbench.planning.shards import _cut, shard
from kdbench.planning.speed import ASSUMED
from kdbench.store.store import Store
from kdbench.suite.load import load_suites
from kdbench.suite.suite import measurement_specs, run_specs


@pytest.fixture(scope="module")
def suites():
    return load_suites(["semckd_cifar100", "smoke"])


@pytest.fixture
def plan_of(tmp_path):
    return lambda suites: make_plan(run_specs(suites), Store(tmp_path))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_each_run_is_in_one_part_of_about_the_same_length(suites, plan_of, count):
    parts = [shard(suites, number, count) for number in range(1, count + 1)]
    ids = [id for part in parts for id in {spec.id for spec in run_specs(part)}]
    assert len(ids) == len(set(ids))
    assert set(ids) == {spec.id for spec in run_specs(suites)}
    measured = {spec.id for part in parts for spec in measurement_specs(part)}
    assert measured == {spec.id for spec in measurement_specs(suites)}
    seconds = [ASSUMED["cpu"].seconds(plan_of(part).work) for part in parts]
    assert max(seconds) < 1.15 * sum(seconds) / count


def test_few_teachers_are_trained_twice(suites, plan_of):
    """Each cut divides the runs of one teacher at most, and here only those of the largest."""
    whole = {teacher.id for teacher in plan_of(suites).teachers}
    trained = [teacher.id for number in range(1, 5) for teacher in plan_of(shard(suites, number, 4)).teachers]
    assert set(trained) == whole
    assert len(trained) <= len(whole) + 3


def test_a_teachers_runs_stay_together_where_that_makes_a_part_little_longer(tmp_path, plan_of):
    (tmp_path / "two.yaml").write_text("""\
protocol: smoke
dataset: digits
grid:
  - {teacher: resnet14, student: resnet8, method: [kd, at, sp, pkt]}
  - {teacher: resnet20, student: resnet8, method: [kd, at, sp, pkt]}
""")
    suites = load_suites([str(tmp_path / "two.yaml")])
    networks = [[str(t.network) for t in plan_of(shard(suites, number, 2)).teachers] for number in (1, 2)]
    assert networks == [["resnet14"], ["resnet20"]]


@pytest.mark.parametrize(("trials", "first"), [((18, 12), 18), ((18, 10), 15)])
def test_a_teachers_cohorts_stay_together_within_a_tenth_of_a_part(tmp_path, trials, first):
    """Each trial is a cohort. The middle is after 16 and after 15 of them."""
    (tmp_path / "two.yaml").write_text(f"""\
protocol: smoke
dataset: digits
grid:
  - {{teacher: resnet14, student: resnet8, method: kd, trials: {trials[0]}}}
  - {{teacher: resnet20, student: resnet8, method: kd, trials: {trials[1]}}}
""")
    assert len(run_specs(shard(load_suites([str(tmp_path / "two.yaml")]), 1, 2))) == first


def test_no_part_is_empty_unless_there_are_more_parts_than_runs(tmp_path):
    """The teacher and its student are by far the largest share, and in the first part alone."""
    (tmp_path / "three.yaml").write_text("""\
protocol: smoke
dataset: digits
trials: 1
grid:
  - {teacher: resnet56, student: resnet56, method: [kd]}
  - {student: [resnet8, resnet14], method: ce}
""")
    suites = load_suites([str(tmp_path / "three.yaml")])
    for count, runs in ((2, [1, 2]), (3, [1, 1, 1]), (4, [1, 1, 1, 0])):
        assert [len(run_specs(shard(suites, number, count))) for number in range(1, count + 1)] == runs


@pytest.mark.parametrize(
    ("wanted", "tolerance", "cut"),
    [
        (5.0, 1.0, 4),  # after a teacher's runs, exactly as far as is tolerated
        (5.0, 0.9, 5),  # after a cohort
        (7.9, 0.0, 8),  # after the nearest run
        (1.0, 1.0, 2),  # position 1 is not allowed
    ],
)
def test_a_line_is_cut_near_the_wanted_place_at_the_best_of_ends(wanted, tolerance, cut):
    at = [float(position) for position in range(11)]
    assert _cut(at, ({4, 10}, {2, 5, 9}), range(2, 10), wanted, tolerance) == cut
