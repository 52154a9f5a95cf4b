"""Protocols: the papers' numbers, copied here from the papers and their code, and how single values are changed."""

import re
from importlib.resources import files

import pytest

from kdbench.errors import BadInput
from kdbench.suite import protocol
from kdbench.suite.methods import formula
from kdbench.suite.protocol import bundled_protocol, protocol_names
from kdbench.suite.specs import DatasetSpec, Recipe


CIFAR100 = DatasetSpec(name="cifar100")
PAPERS = ("crd", "sskd", "semckd", "ega")
CRD_MEAN, SSKD_MEAN = (0.5071, 0.4867, 0.4408), (0.5071, 0.4866, 0.4409)
STD = (0.2675, 0.2565, 0.2761)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


def weights(protocol, method):
    return {use.name: use.weight for use in bundled_protocol(protocol).terms[method]}


def test_all_protocols_load():
    assert set(protocol_names()) >= {*PAPERS, "demo", "smoke"}
    for name in protocol_names():
        protocol = bundled_protocol(name)
        assert protocol.name == protocol.base == name
        assert {"ce", "kd"} <= protocol.terms.keys()


def test_an_unknown_protocol():
    with pytest.raises(BadInput, match="Did you mean 'semckd'"):
        bundled_protocol("semkcd")


@pytest.mark.parametrize("name", PAPERS)
def test_the_recipe_that_the_four_papers_share(name):
    recipe = bundled_protocol(name).recipe("resnet8x4", CIFAR100)
    assert (recipe.epochs, recipe.batch, recipe.lr, recipe.momentum) == (240, 64, 0.05, 0.9)
    assert (recipe.weight_decay, recipe.nesterov, recipe.decay) == (5e-4, False, 0.1)
    assert (recipe.crop_padding, recipe.flip, recipe.precision) == (4, True, "fp32")
    rates = {epoch: recipe.lr_at(epoch) for epoch in (1, 150, 151, 180, 181, 210, 211, 240)}
    assert rates == pytest.approx(
        {1: 0.05, 150: 0.05, 151: 5e-3, 180: 5e-3, 181: 5e-4, 210: 5e-4, 211: 5e-5, 240: 5e-5}
    )


@pytest.mark.parametrize(
    ("name", "score", "checkpoint", "mean", "node"),
    [
        ("crd", "last", "last", CRD_MEAN, None),
        ("sskd", "best", "best", SSKD_MEAN, None),
        ("semckd", "best", "last", CRD_MEAN, None),
        ("ega", "best", "last", CLIP_MEAN, 256),
    ],
)
def test_where_the_papers_differ(name, score, checkpoint, mean, node):
    settings = bundled_protocol(name)
    recipe = settings.recipe("resnet8x4", CIFAR100)
    assert (settings.score, settings.teacher_checkpoint, settings.paper) == (score, checkpoint, name)
    assert (recipe.mean, recipe.node_embedding) == (mean, node)
    assert node or recipe.std == STD
    assert settings.teacher_recipe("vgg13", CIFAR100).node_embedding is None


def test_semckd_has_four_trials():
    assert bundled_protocol("semckd").trials == 4


@pytest.mark.parametrize(
    ("method", "weight"), [("fitnet", 100), ("at", 1000), ("sp", 3000), ("vid", 1), ("rkd", 1), ("pkt", 30000)]
)
def test_weights_of_the_methods(method, weight):
    assert weights("crd", method) == {"ce": 1, method: weight}
    assert weights("sskd", method) == {"ce": 0.1, "kd": 0.9, method: weight}
    assert weights("semckd", method) == {"ce": 1, "kd": 1, method: weight}


def test_methods_with_an_initial_stage():
    assert (weights("crd", "ab"), weights("crd", "fsp")) == ({"ce": 1, "ab": 1}, {"ce": 1, "fsp": 50})
    assert weights("sskd", "ab") == {"ce": 0.1, "kd": 0.9, "ab": 1}


def test_weights_of_mgd():
    assert weights("semckd", "mgd") == {"ce": 1, "kd": 1, "mgd": 1e-4}


def test_weights_of_kd_and_layers_of_fitnet():
    assert weights("crd", "kd") == weights("sskd", "kd") == {"ce": 0.1, "kd": 0.9}
    assert weights("semckd", "kd") == {"ce": 1, "kd": 1}
    assert weights("crd", "ce") == weights("sskd", "ce") == weights("semckd", "ce") == {"ce": 1}
    assert formula(bundled_protocol("crd").terms["fitnet"]) == "1·ce + 100·fitnet"
    assert formula(bundled_protocol("semckd").terms["fitnet"]) == "1·ce + 100·fitnet(layer=1) + 1·kd"


def test_ega_trains_its_new_layers_at_a_hundredth():
    settings = bundled_protocol("ega")
    sequential = settings.head_spec(CIFAR100, simultaneous=False)
    simultaneous = settings.head_spec(CIFAR100, simultaneous=True)
    assert sequential.width == simultaneous.width == 256
    assert (sequential.recipe.lr, sequential.recipe.milestones) == (0.01, (150, 180, 210))
    assert (simultaneous.recipe.lr, simultaneous.recipe.milestones) == (0.01, ())
    assert bundled_protocol("crd").head_spec(CIFAR100, simultaneous=False) is None


@pytest.mark.parametrize("name", PAPERS)
def test_every_value_carries_its_source(name):
    text = files("kdbench.suite").joinpath(f"protocols/{name}.yaml").read_text(encoding="utf-8")
    blocks = re.findall(r"^(\w+):(.*(?:\n[ ].*)*)", text, flags=re.MULTILINE)
    assert len(blocks) > 12
    unsourced = {key for key, block in blocks if "#" not in block}
    assert unsourced <= {"title", "paper", "decay"}  # decay: the milestones' source has it, too


def one(grid, **changes):
    return grid(method="kd", **changes).runs[0]


def test_single_values_are_changed(grid):
    run = one(grid, protocol="{base: crd, epochs: 20, milestones: [5], teacher: {epochs: 40}}")
    assert run.protocol.name == "crd* (epochs 20, milestones [5], teacher.epochs 40)"
    assert (run.spec.recipe.epochs, run.spec.teacher.recipe.epochs) == (20, 40)
    assert run.spec.recipe.mean == CRD_MEAN


def test_a_change_that_changes_nothing_has_no_mark(grid):
    assert one(grid, protocol="{base: crd}").protocol.name == "crd"
    assert one(grid, protocol="{base: crd, lr: 0.05, trials: 9, methods: {x: {ce: 1}}}").protocol.name == "crd"


def test_two_changes_of_one_protocol_are_two_protocols(grid):
    names = {one(grid, protocol=f"{{base: crd, lr: {lr}}}").protocol.name for lr in (0.1, 0.2)}
    assert names == {"crd* (lr 0.1)", "crd* (lr 0.2)"}


def test_a_change_for_a_data_set_keeps_its_other_values(grid):
    recipe = one(grid, protocol="{base: sskd, datasets: {CIFAR-100: {lr: 0.1}}}").spec.recipe
    assert (recipe.lr, recipe.mean) == (0.1, SSKD_MEAN)
    assert one(grid, dataset="digits", protocol="{base: sskd, datasets: {cifar100: {lr: 0.1}}}").spec.recipe.lr == 0.05


def test_the_rate_of_a_network_holds_for_it_as_student_and_as_teacher(grid):
    spec = one(grid, protocol="{base: crd, lr_for: {ResNet8x4: 0.01}}").spec
    assert (spec.recipe.lr, spec.teacher.recipe.lr) == (0.01, 0.05)
    spec = one(grid, protocol="{base: crd, lr_for: {resnet32x4: 0.02}}").spec
    assert (spec.recipe.lr, spec.teacher.recipe.lr) == (0.05, 0.02)


def test_teacher_overrides_are_stronger_than_those_of_the_data_set(grid):
    spec = one(grid, protocol="{base: crd, datasets: {cifar100: {epochs: 9}}, teacher: {epochs: 8}}").spec
    assert (spec.recipe.epochs, spec.teacher.recipe.epochs) == (9, 8)


def test_a_protocol_may_bring_methods(grid):
    run = grid(method="mine", protocol="{base: crd, methods: {mine: {ce: 1, kd: 3}}}").runs[0]
    assert formula(run.spec.terms) == "1·ce + 3·kd"


def test_what_is_as_published(grid):
    def published(method="kd", name=None, **changes):
        run = grid(method=method, **changes).runs[0]
        return run.protocol.as_published(name or run.method, run.spec.terms)

    assert published()
    assert published(protocol="{base: crd, trials: 1}")
    assert not published(protocol="demo")
    assert not published(protocol="{base: crd, epochs: 1}")
    assert not published(method="{name: kd, terms: {ce: 1, kd: 1}}")
    assert published(method="{name: kd, terms: {kd: 0.9, ce: 0.1}}")
    assert not published(protocol="{base: crd, methods: {kd: {ce: 1, kd: 1}}}")
    assert not published(method="{name: mine, terms: {ce: 1, kd: 1}}")


@pytest.mark.parametrize(
    "values", [{"lr": 0.0}, {"epochs": 0}, {"batch": 1}, {"decay": 0.0}, {"momentum": 1.0}, {"milestones": (3, 3)},
               {"milestones": (0,)}, {"std": (1.0, 1.0, 0.0)}, {"nesterov": True, "momentum": 0.0}, {"lr": float("inf")},
               {"weight_decay": float("nan")}, {"epochs": True}, {"epochs": 2.0}, {"lr": "0.1"}, {"precision": "fp16"}]
)  # fmt: skip
def test_recipes_that_make_no_sense(values):
    with pytest.raises(ValueError, match="validation error"):
        Recipe(**{"epochs": 2, "batch": 4, "lr": 0.1, "momentum": 0.9, **values})


def spec_under(load, protocol, **grid):
    """The spec of the only run of a grid under a protocol with changes."""
    axes = {"teacher": "clip-rn101", "student": "resnet8x4", "method": "kd", "strategy": "sequential", **grid}
    dataset = axes.pop("dataset", "cifar100")
    written = ", ".join(f"{key}: {value}" for key, value in axes.items())
    (run,) = load(f"protocol: {protocol}\ndataset: {dataset}\ntrials: 1\ngrid: {{{written}}}").runs
    return run.spec


def test_what_the_authors_do_otherwise_can_be_chosen(load):
    """The keys that the comments of the protocols name."""
    head = spec_under(load, "{base: ega, teacher_checkpoint: best}").teacher
    assert (head.checkpoint, head.parent.checkpoint) == ("best", "last")
    assert spec_under(load, "ega").teacher.checkpoint == "last"
    supervised = spec_under(load, "{base: ega, mean: null, std: null}", teacher="rn50", strategy="simultaneous")
    assert (supervised.recipe.mean, supervised.recipe.std) == (None, None)
    assert spec_under(load, "{base: ega, datasets: {stl10: {size: 32}}}", dataset="stl10").recipe.size == 32
    own = {"teacher": "shufflenetv2", "student": "mobilenetv2", "strategy": "pretrained"}
    assert spec_under(load, "{base: semckd, teacher_checkpoint: best}", **own).teacher.checkpoint == "best"
    dali = "{base: semckd-imagenet, crop_area: [0.1, 1.0], crop_ratio: [0.8, 1.25]}"
    spec = spec_under(load, dali, teacher="resnet34", student="resnet18", strategy="pretrained", dataset="imagenet")
    assert (spec.recipe.crop_area, spec.recipe.crop_ratio) == ((0.1, 1.0), (0.8, 1.25))


def test_what_other_programs_leave_behind_is_no_protocol(tmp_path, monkeypatch):
    (tmp_path / "protocols").mkdir()
    for name in (".DS_Store", "._demo.yaml", "notes.txt", "mine.yaml"):
        (tmp_path / "protocols" / name).touch()
    monkeypatch.setattr(protocol, "files", lambda _: tmp_path)
    assert protocol.protocol_names.__wrapped__() == ["mine"]


def test_how_a_teacher_computes_is_part_of_the_identity(grid):
    plain, ce = one(grid).spec, grid(method="ce", protocol="{base: crd, teacher_precision: bf16}").runs[0].spec
    bf16 = one(grid, protocol="{base: crd, teacher_precision: bf16}").spec
    assert (plain.teacher_precision, bf16.teacher_precision, ce.teacher_precision) == (None, "bf16", None)
    assert len({plain.id, bf16.id}) == len({plain.cohort_key, bf16.cohort_key}) == 2
    assert one(grid, protocol="{base: crd, teacher_precision: fp32}").spec.id == plain.id
    folded = one(grid, protocol="{base: crd, teacher_inference: folded}").spec
    assert len({plain.id, folded.id}) == len({plain.cohort_key, folded.cohort_key}) == 2
    both = one(grid, protocol="{base: crd, precision: bf16, teacher_precision: bf16}").spec
    assert both.id == one(grid, protocol="{base: crd, precision: bf16}").spec.id


@pytest.mark.parametrize(("checkpoint", "every"), [("last", 1), ("best", 7)])
def test_how_often_a_teacher_is_tested_matters_only_where_its_best_epoch_is_kept(load, checkpoint, every):
    protocol = f"{{base: semckd, evaluate_every: 7, teacher_checkpoint: {checkpoint}}}"
    own = {"teacher": "shufflenetv2", "student": "mobilenetv2", "strategy": "pretrained"}
    spec = spec_under(load, protocol, **own)
    assert (spec.teacher.recipe.evaluate_every, spec.recipe.evaluate_every) == (every, 7)
