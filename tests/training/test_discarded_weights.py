"""Weights that nothing will read are not stored; what is stored is the same without them."""

import pytest

from kdbench.errors import BadRecord
from kdbench.suite.specs import StudentOf
from kdbench.training.build import DamagedTeacher, load_teacher


WEIGHTS = "weights.safetensors"


@pytest.mark.parametrize("strategy", ["pretrained", "simultaneous"])
def test_the_result_is_the_same_with_and_without(bench, make_run, strategy):
    kept, spare = make_run({"ce": 1, "kd": 1}, strategy), make_run({"ce": 1, "at": 9}, strategy)
    whole, part = bench("whole"), bench("part")
    whole.train(kept, spare)
    part.train(kept, spare, discard_weights=[spare.id])
    files = whole.files(kept, spare)
    weights = files.pop((spare.id, WEIGHTS))
    records = part.store.run(kept.id), part.store.run(spare.id)
    assert {key: (part.root / "runs" / key[0] / key[1]).read_bytes() for key in files} == files
    assert not (records[1].folder / WEIGHTS).exists()
    assert weights
    assert [record.keeps_weights() for record in records] == [True, False]
    assert part.store.run(spare.id).done()


def test_weights_that_are_wanted_after_all_are_missed_with_the_reason(bench, make_run):
    run, shop = make_run({"ce": 1, "kd": 1}), bench()
    shop.train(run, discard_weights=[run.id])
    of_run = StudentOf(run=run)
    with pytest.raises(BadRecord, match="was not kept"):
        shop.store.check_teacher(of_run)
    with pytest.raises(DamagedTeacher, match="was not kept"):
        load_teacher(of_run, shop.store, shop.shop.device)
