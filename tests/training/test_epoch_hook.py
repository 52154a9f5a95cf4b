"""A term that prepares itself before an epoch: the same in any company, and after a stop."""

import pytest

from kdbench.training import jobs


MGD = {"weight": 1e-4}


@pytest.mark.parametrize("strategy", ["pretrained", "simultaneous"])
def test_together_as_alone(bench, make_run, strategy):
    runs = [make_run(terms, strategy) for terms in ({"ce": 1, "kd": 1}, {"ce": 1, "mgd": MGD})]
    together, alone = bench("together"), bench("alone")
    together.train(*runs)
    for run in runs:
        alone.train(run)
    assert together.files(*runs) == alone.files(*runs)


@pytest.mark.parametrize("epochs", [1, 2])
def test_stopped_after_any_epoch(bench, make_run, epochs):
    run = make_run({"ce": 1, "mgd": MGD})
    whole, halting = bench("whole"), bench("halting")
    whole.train(run)
    halting.teachers(run)
    assert jobs.train_cohort([run], halting.again(stop_after=epochs).shop).stopped
    jobs.train_cohort([run], halting.shop)
    assert halting.files(run) == whole.files(run)


def test_an_error_in_it_ends_its_run_alone(bench, make_run, monkeypatch):
    def broken(*_):
        raise ValueError("broken on purpose")

    monkeypatch.setattr("kdbench.methods.mgd.MGD.begin_epoch", broken)
    runs = [make_run(terms) for terms in ({"ce": 1, "kd": 1}, {"ce": 1, "mgd": MGD})]
    shop = bench()
    shop.train(*runs)
    assert shop.store.run(runs[0].id).done()
    assert shop.store.run(runs[1].id).failure().reason == "ValueError in epoch 1: broken on purpose"
