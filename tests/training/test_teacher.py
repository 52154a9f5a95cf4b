"""Teachers: trained once, checked at every load, changed by nobody; and what each strategy does with them."""

import shutil
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdbench.data.batch import Batch
from kdbench.errors import BadRecord, LostTeacher
from kdbench.models import build
from kdbench.models.heads import NodeEmbedding
from kdbench.suite.specs import Scenario
from kdbench.training import jobs
from kdbench.training.build import DamagedTeacher, load_teacher, online_layers, with_head
from kdbench.training.teacher import FrozenTeacher, OnlineTeacher


CPU = torch.device("cpu")
DAMAGE = ("flip", "cut", "gone", "result", "other")


def weights(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture
def watched(monkeypatch):
    """The teachers that cohorts make."""
    made, make = [], jobs.open_teacher
    monkeypatch.setattr(jobs, "open_teacher", lambda *a: made.append(make(*a)) or made[-1])
    return made


def test_a_teacher_is_trained_once(bench, make_run):
    shop = bench()
    runs = [make_run({"ce": 1, "kd": 1}, trial=n) for n in range(2)]
    for run in runs:
        shop.train(run)
    teacher = runs[0].teacher
    assert sum(e["event"] == "epoch" and e["id"] == teacher.id for e in shop.events) == teacher.recipe.epochs
    before = shop.files(teacher)
    jobs.train_teacher(teacher, shop.shop)
    assert shop.files(teacher) == before


def test_who_finds_a_teacher_taken_comes_back_later(bench, teacher):
    shop = bench()
    with shop.store.teacher(teacher.id).lock():
        assert jobs.train_teacher(teacher, shop.shop).busy == [teacher.id]
    assert not shop.store.teacher(teacher.id).folder.exists()


@pytest.mark.parametrize(
    ("strategy", "damage"),
    [
        *(("pretrained", damage) for damage in DAMAGE),
        ("sequential", "flip"),
        ("simultaneous", "flip"),
        *(
            pytest.param(strategy, damage, marks=pytest.mark.slow)
            for strategy in ("sequential", "simultaneous")
            for damage in DAMAGE[1:]
        ),
    ],
)
def test_a_damaged_teacher_is_set_aside_and_rebuilt_bit_for_bit(bench, make_run, damage, strategy):
    run, shop = make_run({"ce": 1, "kd": 1}, strategy, {"epochs": 1}), bench()
    shop.teachers(run)
    before = shop.files(run.teacher)
    record = shop.store.teacher(run.teacher.id)
    content = bytearray(record.weights_file.read_bytes())
    if damage == "flip":
        content[-1000] ^= 1
        record.weights_file.write_bytes(content)
    elif damage == "cut":
        record.weights_file.write_bytes(content[:-5000])
    elif damage == "gone":
        record.weights_file.unlink()
    else:
        (record.folder / "result.json").write_text("{}" if damage == "result" else '{"id": 3}')
    with pytest.raises(LostTeacher, match=r"quarantined \(.*damaged-1\) and redone"):
        jobs.train_cohort([run], shop.shop)
    assert not shop.store.run(run.id).done()
    assert not record.folder.exists()
    shop.train(run)
    assert shop.files(run.teacher) == before
    assert shop.store.run(run.id).done()


def test_a_damaged_backbone_is_found_before_its_new_layers_are_trained(bench, make_run):
    run, shop = make_run({"ce": 1, "kd": 1}, "sequential"), bench()
    jobs.train_teacher(run.teacher.parent, shop.shop)
    shop.store.teacher(run.teacher.parent.id).weights_file.write_bytes(b"nonsense")
    with pytest.raises(LostTeacher, match="quarantined"):
        jobs.train_teacher(run.teacher, shop.shop)
    shop.train(run)
    assert shop.store.run(run.id).done()


def test_a_teacher_that_is_lost_and_rebuilt_by_others_is_left_alone(bench, teacher):
    shop = bench()
    jobs.train_teacher(teacher, shop.shop)
    with pytest.raises(LostTeacher, match="another process has made it again"), shop.shop.claimed([]):
        raise DamagedTeacher("odd", teacher)
    another = shop.store.teacher(teacher.id).lock()
    with another, pytest.raises(LostTeacher, match="another process trains it"), shop.shop.claimed([]):
        raise DamagedTeacher("odd", teacher)
    assert shop.store.teacher(teacher.id).done()


def test_a_teacher_that_is_not_there_is_a_lost_one(bench, make_run, teacher):
    shop = bench()
    with pytest.raises(BadRecord, match="no finished network"):
        load_teacher(teacher, shop.store, CPU)
    with pytest.raises(LostTeacher):
        jobs.train_cohort([make_run({"ce": 1, "kd": 1})], shop.shop)


@pytest.mark.parametrize("strategy", ["pretrained", "sequential", "simultaneous"])
def test_students_change_nothing_of_a_finished_teacher(bench, make_run, watched, strategy):
    shop, run = bench(), make_run({"ce": 1, "kd": 1, "at": 100}, strategy)
    shop.teachers(run)
    before = weights(load_teacher(run.teacher, shop.store, CPU))
    jobs.train_cohort([run], shop.shop)
    after = weights(watched[0].network)
    if strategy == "simultaneous":
        before = {f"backbone.{key}": value for key, value in before.items() if not key.startswith("fc.")}
        changed = {key: after.pop(key) for key in list(after) if not key.startswith("backbone.")}
        assert set(changed) == {"node.weight", "node.bias", "fc.weight", "fc.bias"}
    assert same(before, after)
    norms = [module for module in watched[0].network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)


def test_the_backbone_of_a_sequential_teacher_stays_as_it_was(bench, make_run):
    shop, run = bench(), make_run({"ce": 1, "kd": 1}, "sequential")
    shop.teachers(run)
    backbone = weights(load_teacher(run.teacher.parent, shop.store, CPU))
    whole = weights(load_teacher(run.teacher, shop.store, CPU))
    for key, value in backbone.items():
        if not key.startswith("fc."):
            assert torch.equal(whole[f"backbone.{key}"], value)
    fresh = with_head(load_teacher(run.teacher.parent, shop.store, CPU), run.teacher)
    assert not torch.equal(fresh.node.weight, whole["node.weight"])


@pytest.mark.parametrize("strategy", ["pretrained", "sequential"])
def test_a_finished_teacher_shows_what_its_file_computes(bench, make_run, strategy):
    shop, run = bench(), make_run({"ce": 1, "kd": 1}, strategy)
    shop.teachers(run)
    teacher = jobs.open_teacher(run, shop.shop)
    assert type(teacher) is FrozenTeacher
    stream = shop.data.stream(run.dataset, run.scenario, run.recipe, 0)
    batch = next(stream.epoch(1))
    shown = teacher.forward(batch)
    expected = load_teacher(run.teacher, shop.store, CPU).eval()(batch.images)
    assert torch.equal(shown.logits, expected.logits)
    assert torch.equal(shown.embedding, expected.embedding)
    assert not any(t.requires_grad for t in (shown.logits, shown.embedding, *shown.features, *shown.preactivations))


def test_new_layers_learn_from_cross_entropy_alone_and_show_what_they_were_before_each_step(bench, make_run):
    shop, run = bench(), make_run({"ce": 1, "kd": 1}, "simultaneous")
    shop.teachers(run)
    teacher = jobs.open_teacher(run, shop.shop)
    assert isinstance(teacher, OnlineTeacher)
    layers = online_layers(run)
    copy = with_head(load_teacher(run.teacher, shop.store, CPU), layers).eval()
    plain = torch.optim.SGD([*copy.node.parameters(), *copy.fc.parameters()], lr=0.05, momentum=0.9, weight_decay=5e-4)
    stream = shop.data.stream(run.dataset, run.scenario, run.recipe, 0)
    teacher.begin_epoch(1, stream)
    for batch in stream.epoch(1):
        outputs = copy(batch.images)
        shown = teacher.forward(batch)
        teacher.learn()
        assert torch.allclose(shown.logits, outputs.logits, atol=1e-5)
        assert not any(t.requires_grad for t in (shown.logits, shown.embedding, *shown.features, *shown.preactivations))
        plain.zero_grad()
        nn.functional.cross_entropy(outputs.logits, batch.labels).backward()
        plain.step()
    assert torch.allclose(teacher.network.node.weight, copy.node.weight, atol=1e-5)
    teacher.begin_epoch(3, stream)
    assert teacher.epoch == 3
    assert teacher.optimiser.param_groups[0]["lr"] == pytest.approx(0.005)


def test_new_layers_learn_from_clean_labels_where_the_students_see_wrong_ones(bench, make_run, watched):
    noisy = Scenario(label_noise=0.5)
    shop, run = bench(), make_run({"ce": 1, "kd": 1}, "simultaneous", scenario=noisy)
    stream = shop.data.stream(run.dataset, noisy, run.recipe, 0)
    wrong = [batch.labels != batch.clean_labels for batch in stream.epoch(1)]
    assert torch.cat(wrong).float().mean().item() == 0.5
    shop.train(run)
    seen = make_run({"ce": 1, "kd": 1}, "simultaneous", scenario=noisy, trial=0)
    teacher = jobs.open_teacher(seen, shop.shop)
    for epoch in range(1, run.recipe.epochs + 1):
        teacher.begin_epoch(epoch, stream)
        for batch in stream.epoch(epoch):
            teacher.forward(replace(batch, labels=batch.clean_labels, clean_labels=None))
            teacher.learn()
    assert same(weights(watched[0].network), weights(teacher.network))
    kept = load_file(shop.store.run(run.id).teacher_head_file)
    assert same(kept, {key: value for key, value in weights(teacher.network).items() if key in kept})


def test_a_teacher_that_keeps_its_best_epoch_is_stored_with_it(bench, teacher):
    spec = teacher.model_copy(
        update={"checkpoint": "best", "recipe": teacher.recipe.model_copy(update={"epochs": 5, "lr": 0.2})}
    )
    shop = bench()
    jobs.train_teacher(spec, shop.shop)
    record = shop.store.teacher(spec.id)
    rows = record.metrics()
    best = max(rows, key=lambda row: row["top1"])
    assert record.result().best.model_dump() == {key: best[key] for key in ("epoch", "top1", "top5")}
    network = load_teacher(spec, shop.store, CPU).eval()
    hits = [
        (network(images).logits.argmax(1) == labels) for images, labels in shop.data.test(spec.dataset, spec.recipe)
    ]
    assert 100 * torch.cat(hits).float().mean().item() == pytest.approx(best["top1"])
    assert record.result().last.epoch == 5


def test_a_teacher_that_diverges_says_so(bench, teacher):
    spec = teacher.model_copy(update={"recipe": teacher.recipe.model_copy(update={"lr": 1e30})})
    shop = bench()
    jobs.train_teacher(spec, shop.shop)
    assert shop.store.teacher(spec.id).failure().kind == "diverged"
    assert shop.count("failed") == 1


@pytest.mark.parametrize("name", ["resnet8x4", "wrn-16-2", "vgg8", "shufflenetv2", "mobilenetv2"])
def test_a_bf16_teacher_casts_its_weights_once_and_shows_what_autocast_computes(name):
    network = build(name, 10)
    teacher = FrozenTeacher(network, bf16=True)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    shown = teacher.forward(Batch(images, torch.zeros(2, dtype=torch.long), torch.arange(2)))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(images)
    pairs = zip(torch.utils._pytree.tree_leaves(shown), torch.utils._pytree.tree_leaves(expected), strict=True)
    assert all(left.dtype == right.dtype and torch.equal(left, right) for left, right in pairs)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    widened = FrozenTeacher(network, bf16=True, widened=True).forward(Batch(images, torch.zeros(2), torch.arange(2)))
    for left, right in zip(
        torch.utils._pytree.tree_leaves(widened), torch.utils._pytree.tree_leaves(expected), strict=True
    ):
        assert left.dtype == torch.float32
        assert torch.equal(left, right.float())
    assert {torch.bfloat16, torch.float32} == {parameter.dtype for parameter in teacher.inference.parameters()}


def test_a_bf16_teacher_that_learns_casts_its_backbone_once(recipe):
    network = NodeEmbedding(build("resnet8x4", 10).requires_grad_(False), classes=10, width=16)
    plain = deepcopy(network).eval()
    teacher = OnlineTeacher(network, recipe, bf16=True)
    images, labels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(2)
    teacher.epoch = 1
    shown = teacher.forward(Batch(images, labels, labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain(images)
        loss = nn.functional.cross_entropy(expected.logits, labels)
    loss.backward()
    pairs = zip(torch.utils._pytree.tree_leaves(shown), torch.utils._pytree.tree_leaves(expected), strict=True)
    assert all(left.dtype == right.dtype and torch.equal(left, right) for left, right in pairs)
    assert torch.equal(network.node.weight.grad, plain.node.weight.grad)
    assert teacher.inference.node is network.node
    assert teacher.inference.backbone.conv1.weight.dtype == torch.bfloat16
    assert network.backbone.conv1.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_teacher_shows_the_same_but_for_rounding():
    network = build("resnet8", 10)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.zeros(4, dtype=torch.long), torch.arange(4))
    plain, compiled = FrozenTeacher(network), FrozenTeacher(network, inference="compiled")
    shown = (torch.utils._pytree.tree_leaves(each.forward(batch)) for each in (plain, compiled))
    for left, right in zip(*shown, strict=True):
        assert torch.allclose(left, right, atol=1e-4)
