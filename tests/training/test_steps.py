"""Stopped after any step, what trains ends bit for bit where the uninterrupted training ends."""

from kdbench.training import jobs, loop


def test_others_join_in_the_middle_of_an_epoch(bench, make_run):
    """One that reads the teacher and has a whole epoch to go, one that reads none, and one that is at its second batch."""
    runs = [make_run(t, "simultaneous") for t in ({"ce": 1, "kd": 1}, {"ce": 1, "vid": 1}, {"ce": 1})]
    whole, apart = bench("whole"), bench("apart")
    whole.train(*runs)
    apart.teachers(*runs)
    jobs.train_cohort(runs[:1], apart.again(stop_at_call=2).shop)
    jobs.train_cohort(runs[2:], apart.again(stop_at_call=1).shop)
    jobs.train_cohort(runs[::2], apart.again(stop_at_call=1).shop)
    last = apart.again()
    jobs.train_cohort(runs, last.shop)
    assert sorted(last.texts("resumed")) == ["resumes after epoch 0 and 2 batches"] * 2
    assert apart.files(*runs) == whole.files(*runs)


def test_new_layers_make_up_for_batches_when_the_run_that_lags_fails_an_epoch_before(bench, make_run):
    good = make_run({"ce": 1, "kd": 1}, "simultaneous")
    bad = make_run({"ce": 1, "kd": 1, "faulty_terms:Broken": {"after": 1}}, "simultaneous")
    alone, shop = bench("alone"), bench("together")
    alone.train(good)
    shop.teachers(good)
    jobs.train_cohort([good], shop.again(stop_at_call=6).shop)
    last = shop.again()
    jobs.train_cohort([bad, good], last.shop)
    assert shop.store.run(bad.id).failure().epoch == 1
    assert last.texts("resumed") == ["resumes after epoch 1 and 2 batches"]
    assert shop.files(good) == alone.files(good)


def test_new_layers_make_up_for_batches_when_the_run_that_lags_stays_away(bench, make_run):
    """The run that is ahead was saved last while the other, and with it the teacher, was still behind it."""
    ahead, behind = (make_run(t, "simultaneous") for t in ({"ce": 1, "kd": 1}, {"ce": 1, "vid": 1}))
    alone, shop = bench("alone"), bench("together")
    alone.train(ahead)
    shop.teachers(ahead)
    jobs.train_cohort([ahead], shop.again(stop_at_call=2).shop)
    jobs.train_cohort([behind, ahead], shop.again(stop_at_call=1).shop)
    jobs.train_cohort([ahead], shop.again().shop)
    assert shop.files(ahead) == alone.files(ahead)


def test_long_epochs_are_told_of(bench, make_run, monkeypatch):
    monkeypatch.setattr(loop, "TELL_SECONDS", 0.0)
    runs, shop = [make_run({"ce": 1}), make_run({"ce": 2})], bench()
    shop.train(*runs)
    told = [event for event in shop.events if event["event"] == "under way" and event["id"] == runs[1].id]
    assert [(event["epoch"], event["share"]) for event in told] == [
        (epoch, share) for epoch in range(3) for share in (0.4, 0.8, 1.0)
    ]


def test_a_run_that_fails_as_work_stops_has_failed(bench, make_run):
    run, shop = make_run({"ce": 1, "faulty_terms:Broken": {"after": 1}}), bench(stop_at_call=2)
    assert shop.train(run).stopped
    assert shop.store.run(run.id).failure().kind == "error"


def test_time_is_shared_by_those_it_was_spent_on(bench, make_run, monkeypatch):
    """The clock goes on by a second with each batch. One run fails in the first, and the other has the time to itself."""
    now = [0.0]

    def passes():
        now[0] += 1.0
        return False

    runs, shop = [make_run({"ce": 1}), make_run({"ce": 1, "faulty_terms:Broken": {"after": 0}})], bench()
    shop.stopped = passes
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    shop.train(*runs)
    assert shop.store.run(runs[0].id).metadata()["seconds"] == 3 * 3
