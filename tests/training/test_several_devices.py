"""Two processes that train one run together give what one process gives, to rounding."""

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdbench.planning.plan import make_plan
from kdbench.suite.specs import Preprocessing
from kdbench.training import ranks, replicas


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
        double = torch.get_default_dtype() == torch.float64
        self.tell(root=str(shop.root), double=double, job={"runs": values} if runs else {"teacher": values[0]})
        return shop.cohort(*specs, ranks=self.ranks) if runs else shop.teacher(specs[0], ranks=self.ranks)


@pytest.fixture(autouse=True)
def double_precision(monkeypatch, faulty_terms):
    from second_rank import in_default_dtype

    torch.set_default_dtype(torch.float64)
    in_default_dtype(monkeypatch.setattr)
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
        name = " + ".join(use.name for use in spec.terms)
        assert curve(two, spec) == pytest.approx(curve(one, spec), rel=1e-8), name
        weights, others = (load_file(shop.record(spec).folder / "weights.safetensors") for shop in (one, two))
        for key, value in weights.items():
            torch.testing.assert_close(others[key], value, rtol=1e-6, atol=1e-6, msg=f"{name}: {key}")


@pytest.fixture
def train_twice(bench, pair):
    """train_twice(runs): the folders of the runs trained on one device, and on two."""

    def train(runs):
        one = bench("one")
        for run in runs:
            if run.teacher and run.teacher.source_run:
                one.train(run.teacher.source_run)
            one.teachers(run)
        two = one.copy("two")
        for cohort in make_plan(runs, one.store).cohorts:
            one.cohort(*cohort.runs)
            pair.train(two, *cohort.runs)
        return one, two

    return train


def test_two_devices_give_the_loss_curve_of_one(make_run, train_twice):
    methods = (
        {"ce": 0.1, "kd": 0.9},
        {"ce": 1, "crd": {"weight": 0.8, "negatives": 32}},
        {"ce": 1, "sp": 300},
        {"ce": 1, "faulty_terms:Random": 0.1},
    )
    runs = [make_run(terms, recipe={"epochs": 2}) for terms in methods]
    runs.append(
        make_run({"ce": 1, "semckd": 10}, recipe={"epochs": 1})
    )  # slow: torch's convolutions in double precision
    assert_alike(*train_twice(runs), *runs)


@pytest.mark.slow
def test_two_devices_give_the_loss_curve_of_one_with_every_term(every_term, train_twice):
    runs = every_term("pretrained")
    assert_alike(*train_twice(runs), *runs)


@pytest.mark.slow
def test_two_devices_give_the_loss_curve_of_one_with_variants_of_terms(make_run, with_adapter, train_twice):
    pretexts = ("jigsaw", "exemplar", "rotation")
    variants = ("equal-allocation", "no-projection", "no-mlp", "no-similarity", "shared-allocation")
    options = [{"variant": variant} for variant in variants] + [{"preactivation": True}]
    runs = [
        *(with_adapter("sskd", {"pretext": pretext}) for pretext in pretexts),
        *(make_run({"ce": 1, "semckd": {"weight": 4, **each}}) for each in options),
        make_run({"ce": 1, "mgd": {"weight": 1e-4, "normalise": True}}),
    ]
    assert_alike(*train_twice(runs), *runs)


def test_two_devices_give_the_loss_curve_of_one_beside_a_teacher_that_learns_from_its_own_view(make_run, train_twice):
    view = Preprocessing(crop_padding=1, flip=True, size=24)
    run = make_run({"ce": 1, "kd": 1, "at": 100}, "simultaneous", {"epochs": 2}, teacher_view=view)
    assert_alike(*train_twice([run]), run)


def test_what_has_no_double_precision_agrees_in_the_first_epoch(make_run, with_adapter, train_twice):
    torch.set_default_dtype(torch.float32)
    short = {"epochs": 1}
    transformed = with_adapter("sskd", {"transforms": "four"}, recipe=short)
    half = [make_run(terms, recipe={**short, "precision": "bf16"}) for terms in ({"ce": 1}, {"ce": 1, "sp": 300})]
    one, two = train_twice([transformed, *half])
    for run, difference in ((transformed, 1e-3), (half[0], 1e-2), (half[1], 1e-2)):
        assert curve(two, run) == pytest.approx(curve(one, run), rel=difference)


@pytest.mark.parametrize("terms", [{"ce": 1}, {"ce": 1, "at": 100}])
def test_two_devices_count_what_one_counts(bench, make_run, teacher, pair, terms):
    """They divide two batches of test images, unless likeness to the teacher is told as well."""
    images = teacher.dataset.model_copy(update={"test_per_class": 30})
    run = make_run(terms, recipe={"epochs": 1}, dataset=images)
    one = bench("one")
    one.teachers(run)
    two = one.copy("two")
    one.cohort(run)
    pair.train(two, run)
    ours, theirs = two.record(run).result(), one.record(run).result()
    assert (ours.test_images, ours.last, ours.best) == (300, theirs.last, theirs.best)
    assert ours.layer_cka == pytest.approx(theirs.layer_cka)


def test_batch_norm_has_the_same_parts_on_one_device_and_on_two(bench, make_run, pair):
    whole, run = (make_run({"ce": 1}, recipe={"batch_norm_parts": parts}) for parts in (1, 2))
    one, two = bench("one"), bench("two")
    one.cohort(run, whole)
    pair.train(two, run)
    assert_alike(one, two, run)
    assert curve(one, run) != pytest.approx(curve(one, whole), rel=1e-3)


def test_an_adapter_trains_on_two_devices(bench, with_adapter, pair):
    run, one = with_adapter("sskd", {"pretext": "jigsaw"}), bench("one")
    one.teachers(run.model_copy(update={"adapters": ()}))
    two, adapter = one.copy("two"), run.adapters[0]
    one.teacher(adapter)
    pair.train(two, adapter)
    assert curve(two, adapter) == pytest.approx(curve(one, adapter), rel=1e-8)


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


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_at_the_end_of_an_epoch(bench, make_run, pair, rank):
    """In the first process, which tests, it ends the run in all; in another one alone it ends the job."""
    shop, run = bench(), make_run({"ce": 1, "faulty_terms:Beside": {"rank": rank}})
    reason = "ValueError in epoch 1: not here"
    if rank:
        with pytest.raises(ranks.LostRank, match=rf"^{reason}, but not on the first of 2 devices$"):
            pair.train(shop, run)
    else:
        good = make_run({"ce": 1})
        pair.train(shop, run, good)
        assert shop.record(run).failure().reason == reason
        assert shop.record(good).done()


@pytest.fixture
def company(monkeypatch, bench, recipe):
    """company(code): the first of four processes is in the context of the others, which run this."""

    def make(code):
        monkeypatch.setattr(replicas, "interpreter", lambda _: [sys.executable, "-c", code])
        monkeypatch.setattr(replicas, "meet", lambda *_: ranks.Ranks(0, 4))
        monkeypatch.setattr(ranks.Ranks, "leave", lambda *_: None)
        return replicas.on_several_devices({}, [recipe], bench().context(replicas=[{"environment": {}}] * 3))

    return make


def test_out_of_memory_on_another_device_is_out_of_memory(company):
    """Whoever ends because of that is not blamed."""
    code = f"""
import json, os
rank = json.loads(input())["rank"]
print("no room" if rank == 2 else "lost", flush=True)
os._exit({replicas.OUT_OF_MEMORY} if rank == 2 else {replicas.BEREFT})
"""
    with pytest.raises(torch.OutOfMemoryError, match=r"^device 3 of 4: no room$"), company(code):
        raise ranks.LostRank("it is gone")


def test_what_fails_in_the_first_process_ends_the_others(company, tmp_path):
    def save():
        while len([*tmp_path.glob("[0-9]*")]) < 3:
            time.sleep(0.01)
        raise OSError("disk full")

    code = f"import os, time\nopen(f'{tmp_path}/{{os.getpid()}}', 'w').close()\ntime.sleep(600)"
    with pytest.raises(OSError, match="disk full"), company(code):
        save()
    for file in tmp_path.glob("[0-9]*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.name), 0)


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
