"""What a term changes of what it is shown changes nothing for others, and it is told by name."""

import shutil

import pytest
import torch

from kdbench.suite.specs import Preprocessing, Scenario
from kdbench.training.environment import Settings


NEIGHBOURS = [{"kd": 1}, {"at": 100}, {"part_terms:Seeing": 0.1}]
TERM = "writing_terms:"


@pytest.fixture
def company(bench, make_run):
    """company(culprits, strategy): neighbours train among runs with such terms, and alone; gives how the culprits failed."""

    def train(culprits, strategy):
        setting = {"scenario": Scenario(label_noise=0.5), "teacher_view": Preprocessing(crop_padding=1, size=12)}

        def run(terms):
            return make_run({"ce": 1, "kd": 1, **terms}, strategy, {"epochs": 1}, **setting)

        neighbours = [run(terms) for terms in NEIGHBOURS]
        bad = [run(terms) for terms in culprits]
        alone, together = bench("alone"), bench("together")
        alone.teachers(*neighbours)
        shutil.copytree(alone.root, together.root)
        for each in neighbours:
            alone.train(each)
        before = Settings()
        together.train(neighbours[0], *bad, *neighbours[1:])
        assert before.put_back() == []
        assert together.files(*neighbours) == alone.files(*neighbours)
        return [together.store.run(each.id).failure() for each in bad]

    return train


@pytest.mark.parametrize("strategy", ["pretrained", "simultaneous"])
def test_whoever_writes_in_a_step_fails_by_name_and_alone(company, strategy):
    from writing_terms import WRITES

    failures = company([{f"{TERM}Writes": {"how": how}} for how in WRITES], strategy)
    for (name, _), failure in zip(WRITES.values(), failures, strict=True):
        assert f"{TERM}Writes' writes into {name}, " in failure.reason or (
            f"backward pass of ce + kd + {TERM}Writes writes into {name}, " in failure.reason
        )
        assert failure.epoch == 1


def test_what_is_assigned_stays_where_it_is_assigned(company):
    from writing_terms import ASSIGNS

    culprits = [{f"{TERM}Writes": {"how": how}} for how in ASSIGNS] + [{f"{TERM}Relabels": 1}]
    assert company(culprits, "pretrained") == [None] * len(culprits)


def test_the_other_places_where_a_term_is_shown_something(company):
    prepares, reaches, begins, associates = company(
        [{f"{TERM}{name}": 1} for name in ("Prepares", "Reaches", "Begins", "Associates")], "simultaneous"
    )
    assert prepares is None
    assert "has no attribute 'labels'" in reaches.reason
    assert f"{TERM}Begins' writes into teacher.logits" in begins.reason
    assert f"{TERM}Associates' writes into teacher.features[1]" in associates.reason


def test_settings_of_torch_are_put_back(company):
    from writing_terms import SETS

    culprits = [{f"{TERM}Sets": {"what": name}} for name in SETS] + [{f"{TERM}NoGrad": 1}]
    *failures, without_gradient = company(culprits, "pretrained")
    for name, failure in zip(SETS, failures, strict=True):
        assert f"{TERM}Sets changes torch's {name.partition(' by ')[0]}, which all runs share" in failure.reason
    assert "does not require grad" in without_gradient.reason


def test_settings_that_a_term_changes_when_it_is_loaded_are_put_back_too(bench, make_run):
    run, shop = make_run({"ce": 1, f"{TERM}Sets": {"what": "default dtype", "at_once": True}}), bench(stop_after=0)
    shop.train(run)
    assert torch.get_default_dtype() is torch.float32
    assert "changed torch's default dtype" in shop.texts()[0]
