"""Two processes that train one run together give what one process gives, to rounding."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdbench.training import ranks, replicas


CASES = {
    "kd": [{"ce": 0.1, "kd": 0.9}],
    "at": [{"ce": 1, "at": 100}],
    "sp": [{"ce": 1, "sp": 300}],
    "vid": [{"ce": 1, "vid": 1}],
    "rkd": [{"ce": 1, "rkd": 1}],
    "crd": [{"ce": 1, "crd": {"weight": 0.8, "negatives": 32}}],
    "semckd": [{"ce": 1, "semckd": 10}],
    "own": [{"ce": 1, "faulty_terms:Random": 0.1}],
    "a teacher that learns": [{"ce": 1, "kd": 1}, "simultaneous"],
}


class Pair:
    """This process and a second one, which trains what this one trains."""

    def __init__(self, folder):
        ranks.TIMEOUT = timedelta(seconds=60)
        file = Path(__file__).with_name("second_rank.py")
        self.process = subprocess.Popen([sys.executable, str(file)], stdin=subprocess.PIPE, text=True)
        self.tell(meeting=str(folder / "ranks"), root=str(folder), seconds=60)
        self.ranks = replicas.meet(str(folder / "ranks"), 0, 2, torch.device("cpu"))

    def tell(self, **message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def train(self, shop, *specs):
        """Train runs, or a stage of a teacher."""
        values = [spec.model_dump(mode="json") for spec in specs]
        runs = hasattr(specs[0], "terms")
        self.tell(root=str(shop.root), job={"runs": values} if runs else {"teacher": values[0]})
        return shop.cohort(*specs, ranks=self.ranks) if runs else shop.teacher(specs[0], ranks=self.ranks)


@pytest.fixture(autouse=True)
def double_precision(monkeypatch, faulty_terms):
    from second_rank import in_float64

    in_float64(monkeypatch.setattr)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    timeout = ranks.TIMEOUT
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.process.stdin.close()
    pair.ranks.leave()
    pair.process.kill()
    pair.process.wait()
    ranks.TIMEOUT = timeout


def curve(shop, spec):
    rows = [json.loads(line) for line in (shop.record(spec).folder / "metrics.jsonl").read_text().splitlines()]
    return [value for row in rows for value in (row["loss"], *row["terms"].values())]


def assert_alike(one, two, *specs):
    for spec in specs:
        assert curve(two, spec) == pytest.approx(curve(one, spec), rel=1e-8)
        weights, others = (load_file(shop.record(spec).folder / "weights.safetensors") for shop in (one, two))
        for key, value in weights.items():
            torch.testing.assert_close(others[key], value, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("case", CASES)
def test_two_devices_give_the_loss_curve_of_one(bench, make_run, pair, case):
    terms, *strategy = CASES[case]
    one, run = bench("one"), make_run(terms, *strategy)
    one.teachers(run)
    two = one.copy("two")
    one.cohort(run)
    pair.train(two, run)
    assert_alike(one, two, run)


def test_batch_norm_has_the_same_parts_on_one_device_and_on_two(bench, make_run, pair):
    whole, run = (make_run({"ce": 1}, recipe={"batch_norm_parts": parts}) for parts in (1, 2))
    one, two = bench("one"), bench("two")
    one.cohort(run, whole)
    pair.train(two, run)
    assert_alike(one, two, run)
    assert curve(one, run) != pytest.approx(curve(one, whole), rel=1e-3)


def test_students_and_a_teacher_train_on_two_devices(bench, make_run, pair, teacher):
    one, two = bench("one"), bench("two")
    one.teacher(teacher)
    pair.train(two, teacher)
    assert curve(two, teacher) == pytest.approx(curve(one, teacher), rel=1e-8)
    two = one.copy("cohort")
    cohort = [make_run(terms) for terms in ({"ce": 1}, {"ce": 1, "faulty_terms:NotANumber": 1}, {"kd": 1})]
    one.cohort(*cohort)
    pair.train(two, *cohort)
    assert_alike(one, two, cohort[0], cohort[2])
    assert two.record(cohort[1]).failure().reason == one.record(cohort[1]).failure().reason


def test_a_failure_in_one_process_alone_ends_the_job(monkeypatch):
    monkeypatch.setattr(ranks, "FAILURE_SECONDS", 0)
    store = torch.distributed.HashStore()
    store.add("shared", 1)
    one = ranks.Ranks(0, 2, store)
    one.confirm("ValueError: no", "shared")
    with pytest.raises(ranks.LostRank, match=r"^ValueError: no, but not on each of 2 devices$"):
        one.confirm("ValueError: no", "own")


@pytest.mark.parametrize("before", [1, 2])
def test_a_run_is_resumed_on_another_number_of_devices(bench, make_run, pair, before):
    whole, run = bench("whole"), make_run({"ce": 1, "crd": {"weight": 0.8, "negatives": 32}})
    whole.teachers(run)
    stopped = whole.copy("stopped")
    whole.cohort(run)
    stopped.stop_at_call = 6  # in the second epoch
    resumed = stopped.again(stop_at_call=None)
    assert (stopped.cohort(run) if before == 1 else pair.train(stopped, run)).stopped
    assert not (pair.train(resumed, run) if before == 1 else resumed.cohort(run)).stopped
    assert resumed.texts("resumed") == ["resumes after epoch 1 and 2 batches"]
    assert_alike(whole, resumed, run)
