"""A term that prepares itself before an epoch and fails there."""

MGD = {"weight": 1e-4}


def test_an_error_in_it_ends_its_run_alone(bench, make_run, monkeypatch):
    def broken(*_):
        raise ValueError("broken on purpose")

    monkeypatch.setattr("kdbench.methods.mgd.MGD.begin_epoch", broken)
    runs = [make_run(terms) for terms in ({"ce": 1, "kd": 1}, {"ce": 1, "mgd": MGD})]
    shop = bench()
    shop.train(*runs)
    assert shop.store.run(runs[0].id).done()
    assert shop.store.run(runs[1].id).failure().reason == "ValueError in epoch 1: broken on purpose"
