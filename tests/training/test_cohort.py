"""A run in a cohort gives, byte for byte, what it gives alone; and one run's end is not its neighbours'."""

import gc
import re
import weakref

import pytest
import torch

from kdbench.data.image_sets import apply_scenario
from kdbench.errors import BadInput
from kdbench.suite.specs import Preprocessing, Scenario
from kdbench.training import jobs
from kdbench.training.environment import out_of_memory
from kdbench.training.loop import failure_of


METHODS = [
    {"ce": 1},
    {"ce": 0.1, "kd": 0.9},
    {"ce": 1, "fitnet": {"weight": 1, "layer": 2}},
    {"ce": 1, "at": 100},
    {"ce": 1, "sp": 300},
    {"ce": 1, "vid": 1},
    {"ce": 1, "rkd": 1},
    {"ce": 1, "pkt": 300},
    {"ce": 1, "faulty_terms:Random": 0.1},
]


def test_scenarios_reach_the_student_and_leave_the_teacher_alone(bench, make_run):
    shop = bench()
    runs = [make_run({"ce": 1, "kd": 1}, scenario=s) for s in (Scenario(), Scenario(fraction=0.5, label_noise=0.5))]
    for run in runs:
        shop.train(run)
    plain, changed = (shop.store.run(run.id).result() for run in runs)
    assert (plain.train_images, changed.train_images) == (40, 20)
    assert plain.parent_sha256 == shop.store.teacher(runs[0].teacher.id).result().weights_sha256
    assert shop.count("finished") == 2 + 2
    assert shop.store.teacher(runs[0].teacher.id).result().train_images == 40


def test_methods_of_a_trial_start_from_the_same_weights(bench, make_run):
    from kdbench.training.build import student_trainer

    shop = bench()
    a, b, other = make_run({"ce": 1}), make_run({"ce": 1, "faulty_terms:Random": 1}), make_run({"ce": 1}, trial=1)
    weights = []
    for run in (a, b, other):
        torch.manual_seed(len(weights))
        trainer = student_trainer(run, shop.store, None, torch.zeros(40, dtype=torch.long), torch.device("cpu"))
        weights.append(torch.cat([p.flatten() for p in trainer.network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_teacher_with_another_view_is_tested_whoever_comes_first(bench, make_run):
    own_view = {"teacher_view": Preprocessing(size=20), "recipe": {"epochs": 1}}
    plain, taught = make_run({"ce": 1}, recipe={"epochs": 1}), make_run({"ce": 1, "kd": 1}, **own_view)
    first, last = bench("first"), bench("last")
    first.train(plain, taught)
    last.train(taught, plain)
    assert first.files(plain, taught) == last.files(plain, taught)
    assert first.record(taught).result().teacher is not None


def test_methods_of_a_trial_see_the_same_subset(bench, make_run):
    shop = bench()
    train, _ = shop.data.sets(make_run({"ce": 1}).dataset)
    scenario = Scenario(fraction=0.5, label_noise=0.2)
    parts = [apply_scenario(train, scenario, make_run(terms).dataset, 0) for terms in METHODS]
    assert all(torch.equal(part.images, parts[0].images) for part in parts)
    assert all(torch.equal(part.labels, parts[0].labels) for part in parts)


@pytest.mark.parametrize("after", [0, 4])
@pytest.mark.parametrize(
    ("term", "kind", "reason"),
    [
        ("NotANumber", "diverged", "the loss is not finite"),
        ("Broken", "error", "ValueError in epoch .: broken on purpose"),
    ],
)
def test_a_faulty_run_ends_alone(bench, make_run, term, kind, reason, after):
    good = [make_run({"ce": 1, **guide}, recipe={"epochs": 2}) for guide in ({"kd": 1}, {"at": 100})]
    bad = make_run({"ce": 1, f"faulty_terms:{term}": {"after": after}}, recipe={"epochs": 2})
    shop, alone = bench(), bench("alone")
    shop.train(good[0], bad, good[1])
    alone.train(*good)
    assert shop.files(*good) == alone.files(*good)
    record = shop.store.run(bad.id)
    failure = record.failure()
    assert not record.done()
    assert (failure.kind, failure.epoch) == (kind, 1 if after == 0 else 2)
    assert re.match(reason, failure.reason)
    assert shop.texts("failed") == [failure.reason]
    assert ("Traceback" in failure.detail) == (kind == "error")


def test_a_run_that_cannot_be_built_ends_alone(bench, make_run, tmp_path):
    good = make_run({"ce": 1, "kd": 1})
    bad = [
        make_run({"ce": 1, "faulty_terms:Unbuildable": 1}),
        make_run({"ce": 1, "faulty_terms:Unbuildable": {"file": str(tmp_path / "absent")}}),
        make_run({"ce": 1, "faulty_terms:Unbuildable": {"nonsense": 1}}),
    ]
    shop = bench()
    shop.train(*bad[:1], good, *bad[1:])
    assert shop.store.run(good.id).done()
    reasons = [shop.store.run(run.id).failure().reason for run in bad]
    assert reasons[0] == "ValueError: cannot be built"
    assert "FileNotFoundError" in reasons[1]
    assert (
        reasons[2]
        == "faulty_terms:Unbuildable: unknown hyper-parameter 'nonsense' of faulty_terms:Unbuildable. It has file."
    )


class Speechless(Exception):
    """Fails where it is asked what it says."""

    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError(), "ValueError in epoch 2"),
        (AssertionError(" "), "AssertionError in epoch 2"),
        (KeyError("x"), "KeyError in epoch 2: 'x'"),
        (RuntimeError("one\n  two\r\n\nthree"), "RuntimeError in epoch 2: one two three"),
        (RuntimeError("x" * 10**6), "RuntimeError in epoch 2: " + "x" * 375 + " …"),
        (Speechless(), "Speechless in epoch 2"),
        (BadInput("in kdbench's own words"), "in kdbench's own words"),
        (BadInput(), "BadInput in epoch 2"),
    ],
)
def test_a_failure_has_a_reason_in_one_line(error, reason):
    failure = failure_of(error, 2)
    assert failure.reason == reason
    assert type(error).__name__ in failure.detail
    assert not out_of_memory(error)


def test_what_a_term_tells_of_an_epoch_is_added_and_replaces_nothing(bench, make_run):
    good = make_run({"ce": 1})
    boasts, bad = (make_run({"ce": 1, "faulty_terms:Boasts": {"storable": each}}) for each in (True, False))
    shop = bench()
    shop.train(bad, boasts, good)
    for told, plain in zip(shop.store.run(boasts.id).metrics(), shop.store.run(good.id).metrics(), strict=True):
        assert (told["own"], told["top1"], told["loss"]) == (1, plain["top1"], plain["loss"])
    assert "not JSON serializable" in shop.store.run(bad.id).failure().reason


def test_who_leaves_the_program_leaves_alone(bench, make_run):
    good, bad = make_run({"ce": 1}), make_run({"ce": 1, "faulty_terms:Leaves": 1})
    shop = bench()
    shop.train(bad, good)
    assert shop.store.run(bad.id).failure().reason == "SystemExit in epoch 1"
    assert shop.store.run(good.id).done()


def test_a_failure_is_stored_at_once_not_when_the_cohort_ends(bench, make_run):
    good = make_run({"ce": 1, "kd": 1})
    bad = make_run({"ce": 1, "faulty_terms:Broken": {"after": 0}})
    shop = bench()
    shop.teachers(good)
    assert jobs.train_cohort([good, bad], shop.again(stop_after=1).shop).stopped
    assert shop.store.run(bad.id).failure().epoch == 1
    assert not shop.store.run(good.id).done()


def test_weights_that_the_last_step_spoils_are_not_a_result(bench, make_run):
    run = make_run({"ce": 1, "faulty_terms:LastStraw": {"after": 8}})
    shop = bench()
    shop.train(run)
    assert not shop.store.run(run.id).done()
    assert shop.store.run(run.id).failure().kind == "diverged"
    assert "is not finite in epoch 3" in shop.store.run(run.id).failure().reason


def test_a_lost_device_is_nobodys_fault(bench, make_run):
    runs = [make_run({"ce": 1, "kd": 1}), make_run({"ce": 1, "faulty_terms:DeviceLost": {"after": 1}})]
    shop = bench()
    with pytest.raises(RuntimeError, match="CUDA error"):
        shop.train(*runs)
    assert all(shop.store.run(run.id).failure() is None for run in runs)


def test_when_all_fail_the_job_still_ends(bench, make_run):
    shop = bench()
    runs = [make_run({"ce": 1, "faulty_terms:Broken": {"after": n}}) for n in (0, 1)]
    runs += [make_run({"faulty_terms:Unbuildable": 1})]
    assert not shop.train(*runs).stopped
    assert shop.count("failed") == 3


def test_a_failed_run_is_tried_again_and_its_old_failure_forgotten(bench, make_run, monkeypatch):
    import faulty_terms

    run = make_run({"ce": 1, "faulty_terms:Broken": 1})
    shop = bench()
    shop.train(run)
    monkeypatch.setattr(faulty_terms.Broken, "fault", lambda self, student: student.logits.sum() * 0)
    shop.train(run)
    assert shop.store.run(run.id).done()
    assert shop.store.run(run.id).failure() is None


@pytest.mark.parametrize("most", [1, 3])
def test_out_of_memory_splits_the_cohort_and_goes_on(bench, make_run, most):
    runs = [
        make_run({"ce": 1, "faulty_terms:Hungry": {"most": most, "weight": w}}, recipe={"epochs": 1})
        for w in (1, 2, 3, 4, 5)
    ]
    shop, alone = bench(), bench("alone")
    shop.train(*runs)
    assert any("out of memory with 5 students" in text for text in shop.texts())
    for run in runs:
        alone.train(run)
    assert shop.files(*runs) == alone.files(*runs)
    assert shop.count("failed") == 0


def test_what_has_ended_when_memory_runs_out_is_not_begun_again(bench, make_run):
    unbuildable, short = make_run({"ce": 1, "faulty_terms:Unbuildable": 1}), make_run({"ce": 1}, recipe={"epochs": 1})
    hungry = [make_run({"ce": 1, "faulty_terms:Hungry": {"first_epoch": 2, "weight": w}}) for w in (1, 2)]
    shop = bench()
    shop.train(hungry[0], unbuildable, short, hungry[1])
    assert any("out of memory" in text for text in shop.texts())
    told = [(event["event"], event["id"]) for event in shop.events if event["event"] in ("failed", "finished")]
    assert told.count(("failed", unbuildable.id)) == told.count(("finished", short.id)) == 1
    assert len(told) == 4


def test_a_run_without_room_for_itself_fails_alone(bench, make_run):
    big = make_run({"ce": 1, "faulty_terms:Hungry": {"most": 0}})
    good = make_run({"ce": 1, "kd": 1})
    shop = bench()
    shop.train(big, good)
    assert shop.store.run(good.id).done()
    assert shop.store.run(big.id).failure().reason == "out of memory: room for 0 only"


def test_the_cpus_own_error_for_want_of_memory_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert out_of_memory(caught.value)


def test_what_circles_of_references_hold_is_free_before_the_halves_train(bench, make_run, monkeypatch):
    class Tensors:
        pass

    held = []
    together = jobs._train_together

    def train(specs, ctx):
        if len(specs) > 1:
            tensors = Tensors()
            tensors.own = tensors
            held.append(weakref.ref(tensors))
            raise MemoryError
        assert held[0]() is None
        return together(specs, ctx)

    monkeypatch.setattr(jobs, "_train_together", train)
    runs = [make_run({"ce": 1}, trial=n, recipe={"epochs": 1}) for n in range(2)]
    shop = bench()
    gc.disable()
    try:
        shop.train(*runs)
    finally:
        gc.enable()
    assert all(shop.store.run(run.id).done() for run in runs)


def test_runs_that_another_process_is_at_are_left_to_it(bench, make_run):
    runs = [make_run({"ce": 1}, trial=n) for n in range(3)]
    shop = bench()
    with shop.store.run(runs[1].id).lock():
        outcome = jobs.train_cohort(runs, shop.shop)  # a second lock object on the same file: another process
    assert outcome.busy == [runs[1].id]
    assert [shop.store.run(run.id).done() for run in runs] == [True, False, True]
    assert not shop.store.run(runs[1].id).folder.exists()


def test_what_another_process_has_done_or_failed_meanwhile_is_not_done_again(bench, make_run):
    done, failed = make_run({"ce": 1}), make_run({"ce": 1, "faulty_terms:Broken": 1})
    shop = bench()
    shop.train(done, failed)
    before = shop.files(done)
    later = shop.again()
    later.train(done, failed, waited=True)
    assert later.count("epoch") == 0
    assert later.texts("failed") == ["ValueError in epoch 1: broken on purpose"]
    assert [e["id"] for e in later.events if e["event"] == "finished"] == [done.id]
    assert later.files(done) == before
