"""Strategy `simultaneous`: what the teacher's new layers have become is kept with every run that they taught."""

import pytest
import torch
from safetensors.torch import load_file

from kdbench.errors import BadRecord
from kdbench.evaluation import measure
from kdbench.files import file_hash
from kdbench.store.record import Record
from kdbench.store.result import Accuracy, Result
from kdbench.suite.specs import Preprocessing, Scenario, StudentOf
from kdbench.training import jobs
from kdbench.training import teacher as teacher_module
from kdbench.training.build import load_teacher, online_layers, with_head
from kdbench.training.checkpoint import write_tensors
from kdbench.training.teacher import OnlineTeacher


CPU = torch.device("cpu")
READERS = [
    {"ce": 1, "kd": 1},
    {"ce": 1, "at": 100},
    {"ce": 1, "ega": 1},
]


def head(shop, run):
    return shop.store.run(run.id).teacher_head_file


@pytest.fixture
def tests_of_teachers(monkeypatch):
    """How often a teacher was tested."""
    calls = []
    monkeypatch.setattr(
        teacher_module, "measure", lambda networks, test: calls.append(len(networks)) or measure(networks, test)
    )
    return calls


def test_three_students_leave_the_layers_that_one_leaves(bench, make_run, tests_of_teachers):
    runs = [make_run(terms, "simultaneous", {"epochs": 1}) for terms in READERS]
    plain = make_run({"ce": 1}, "simultaneous", {"epochs": 1})
    together, alone = bench("together"), bench("alone")
    together.train(*runs, plain)
    assert tests_of_teachers == [1]
    alone.train(runs[1])
    expected = head(alone, runs[1]).read_bytes()
    assert {head(together, run).read_bytes() for run in runs} == {expected}
    assert len({together.store.run(run.id).result().teacher for run in runs}) == 1
    assert not head(together, plain).exists()
    assert together.store.run(plain.id).result().teacher is None


def test_the_layers_are_those_of_the_runs_last_epoch_and_so_is_their_accuracy(bench, make_run):
    short, long = (make_run({"ce": 1, "kd": 1}, "simultaneous", {"epochs": n}) for n in (1, 3))
    shop, alone = bench(), bench("alone")
    shop.train(short, long)
    alone.train(short)
    assert head(shop, short).read_bytes() == head(alone, short).read_bytes() != head(shop, long).read_bytes()
    assert [shop.store.run(run.id).result().teacher.epoch for run in (short, long)] == [1, 3]
    spec = online_layers(long)
    network = with_head(load_teacher(long.teacher, shop.store, CPU), spec)
    state = load_file(head(shop, long))
    assert state.keys() == {"node.weight", "node.bias", "fc.weight", "fc.bias"}
    network.load_state_dict(state, strict=False)
    (scores,) = measure([network], shop.data.test(long.dataset, long.recipe))
    assert shop.store.run(long.id).result().teacher == Accuracy(epoch=3, top1=scores.top1, top5=scores.top5)


def test_finished_teachers_leave_nothing(bench, make_run):
    run, shop = make_run({"ce": 1, "kd": 1}, "sequential", {"epochs": 1}), bench()
    shop.train(run)
    assert not head(shop, run).exists()
    assert not {"teacher", "teacher_head_sha256"} & shop.store.run(run.id).result().model_dump(exclude_none=True).keys()


def test_a_teacher_with_a_view_of_its_own_is_tested_in_it(bench, make_run, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        teacher_module,
        "measure",
        lambda networks, test: sizes.extend(len(images[0, 0]) for images, _ in test) or measure(networks, test),
    )
    run, shop = (
        make_run({"ce": 1, "kd": 1}, "simultaneous", {"epochs": 1}, teacher_view=Preprocessing(size=40)),
        bench(),
    )
    shop.train(run)
    assert sizes == [40]


def test_the_layers_are_whole_before_there_is_a_result(bench, make_run, monkeypatch):
    run, whole, hurt = make_run({"ce": 1, "kd": 1}, "simultaneous"), bench("whole"), bench("hurt", checkpoint_seconds=0)
    whole.train(run)
    hurt.teachers(run)

    class Killed(BaseException):
        pass

    def dying(record, result, about, **how):
        raise Killed

    finish = Record.finish
    monkeypatch.setattr(Record, "finish", dying)
    with pytest.raises(Killed):
        jobs.train_cohort([run], hurt.shop)
    assert head(hurt, run).read_bytes() == head(whole, run).read_bytes()
    assert not hurt.store.run(run.id).done()
    monkeypatch.setattr(Record, "finish", finish)
    jobs.train_cohort([run], hurt.shop)
    assert hurt.files(run) == whole.files(run)
    assert head(hurt, run).read_bytes() == head(whole, run).read_bytes()


@pytest.mark.parametrize("damage", ["flip", "gone"])
def test_damaged_layers_are_found(bench, make_run, damage):
    run, shop = make_run({"ce": 1, "kd": 1}, "simultaneous", {"epochs": 1}), bench()
    shop.train(run)
    record = shop.store.run(run.id)
    record.check()
    assert record.result().teacher_head_sha256 == file_hash(record.teacher_head_file)
    if damage == "gone":
        record.teacher_head_file.unlink()
    else:
        content = bytearray(record.teacher_head_file.read_bytes())
        content[-1] ^= 1
        record.teacher_head_file.write_bytes(content)
    with pytest.raises(BadRecord, match=r"teacher_head\.safetensors: is (missing|not the file)"):
        record.check()


def test_under_few_shot_they_see_the_subset_alone(bench, make_run, monkeypatch):
    few = make_run({"ce": 1, "kd": 1}, "simultaneous", {"epochs": 1}, scenario=Scenario(fraction=0.5))
    shop, seen, forward = bench(), [], OnlineTeacher.forward
    monkeypatch.setattr(OnlineTeacher, "forward", lambda self, batch: seen.append(len(batch)) or forward(self, batch))
    shop.train(few)
    assert sum(seen) == 20


def test_sequential_is_pretrained_with_the_trained_layers(bench, make_run, teacher):
    """The student cannot tell whether its teacher came from two stages or was finished in one file."""
    shop = bench()
    staged = make_run({"ce": 1, "kd": 1, "at": 100}, "sequential")
    shop.train(staged)
    made_by = make_run({"ce": 1}, "sequential")  # a resnet8 with new layers, as a run leaves it
    network = load_teacher(staged.teacher, shop.store, CPU)
    record, accuracy = shop.store.run(made_by.id), Accuracy(epoch=3, top1=50.0, top5=90.0)
    record.begin(made_by.canonical())
    write_tensors(record.weights_file, network.state_dict())
    record.finish(
        Result(id=record.id, kind="run", last=accuracy, best=accuracy, weights_sha256=file_hash(record.weights_file)),
        {},
    )
    finished = StudentOf(run=made_by)
    whole = staged.model_copy(update={"teacher": finished})
    jobs.train_cohort([whole], shop.shop)
    left, right = (load_file(shop.store.run(run.id).weights_file) for run in (staged, whole))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
