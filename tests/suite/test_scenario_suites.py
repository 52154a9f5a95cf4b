"""The suites of few images and wrong labels: as many runs as the papers' figures and tables have cells, times the trials."""

from collections import Counter

import pytest

from kdbench.planning.plan import make_plan
from kdbench.store.store import Store
from kdbench.suite.load import bundled_suites, load_suite
from kdbench.suite.specs import Scenario


SEMCKD = ("ce", "kd", "fitnet", "at", "sp", "vid", "hkd", "mgd", "semckd")
FRACTIONS = [Scenario(fraction=share) for share in (0.25, 0.5, 0.75, 1.0)]
CASES = {
    "sskd_few_shot": ("vgg13", ("ce", "kd", "at", "crd", "sskd"), FRACTIONS, 3),
    "sskd_label_noise": (
        "vgg13",
        ("ce", "kd", "ft", "crd", "sskd"),
        [Scenario(label_noise=share) for share in (0.0, 0.1, 0.3, 0.5)],
        3,
    ),
    "semckd_few_shot": ("resnet32x4", SEMCKD, FRACTIONS, 4),
    "semckd_label_noise": (
        "resnet32x4",
        SEMCKD,
        [Scenario(), *(Scenario(label_noise=share, noise="all") for share in (0.1, 0.2, 0.3, 0.4, 0.5))],
        4,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return load_suite(bundled_suites()[request.param]), *CASES[request.param]


def test_every_cell_has_its_trials_and_nothing_else_is_run(case, tmp_path):
    suite, teacher, methods, scenarios, trials = case
    expected = [(method, scenario, trial) for method in methods for scenario in scenarios for trial in range(trials)]
    found = [(run.method, run.spec.scenario, run.spec.trial) for run in suite.runs]
    assert Counter(found) == Counter(expected)
    assert {(run.teacher, run.spec.student, run.spec.dataset.name) for run in suite.runs} == {
        (teacher, "vgg8", "cifar100")
    }
    auxiliaries = len(scenarios) * trials * ("hkd" in methods)
    plan = make_plan(suite.specs.values(), Store(tmp_path / "none"))
    assert plan.runs == len(expected) + auxiliaries
    plain = [run.scenario for cohort in plan.cohorts for run in cohort.runs if run.teacher is None]
    assert Counter(plain) == Counter(scenarios * trials)


def test_one_teacher_for_all_scenarios_and_its_parts_too(case, tmp_path):
    suite, _, methods, _, _ = case
    made = {stage.id: stage for spec in suite.specs.values() for stage in spec.stages if stage.kind != "adapter"}
    assert len(made) == 1
    parts = {part.id for spec in suite.specs.values() for part in spec.adapters}
    assert len(parts) == len({"ft", "sskd"} & set(methods))
    cohorts = make_plan(suite.specs.values(), Store(tmp_path / "none")).cohorts
    whole = [cohort for cohort in cohorts if len(cohort.runs) > 1]
    assert {len(cohort.runs) for cohort in whole} == {len(methods)}
    assert all(len({run.scenario for run in cohort.runs}) == 1 for cohort in whole)
