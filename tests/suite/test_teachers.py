"""Teachers by name: what each name stands for, and what it takes to have that teacher under each strategy."""

import hashlib
import json
import math

import pytest

from kdbench.errors import BadSuite
from kdbench.suite.specs import DatasetSpec, Imported, Weights, stage_label, trained_stages


SUITE = """
protocol: {protocol}
dataset: {dataset}
trials: 1
teachers: {teachers}
grid: {{teacher: {teacher}, student: resnet8x4, method: kd, strategy: {strategy}}}
"""
EGA = "{base: crd, node_embedding: 256}"


@pytest.fixture
def spec(load):
    """The only run's spec."""

    def make(teacher, strategy="pretrained", *, protocol="crd", dataset="cifar100", **teachers):
        own = "{" + ", ".join(f"{name}: {value}" for name, value in teachers.items()) + "}"
        text = SUITE.format(protocol=protocol, dataset=dataset, teacher=teacher, strategy=strategy, teachers=own)
        (run,) = load(text).runs
        return run.spec

    return make


def stages(spec):
    return [stage_label(stage) for stage in trained_stages(spec.teacher)]


@pytest.mark.parametrize(
    ("name", "strategy", "expected"),
    [
        ("wrn-40-2", "pretrained", ["wrn-40-2 on cifar100"]),
        ("wrn-40-2", "sequential", ["wrn-40-2 on cifar100", "wrn-40-2 on cifar100 + new layers"]),
        ("wrn-40-2", "simultaneous", ["wrn-40-2 on cifar100"]),
        (
            "clip-vit-b32",
            "sequential",
            ["clip-vit-b32 (openai weights)", "clip-vit-b32 (openai weights) on cifar100 + new layers"],
        ),
        ("clip-vit-b32", "simultaneous", ["clip-vit-b32 (openai weights)"]),
        ("rn50", "pretrained", ["rn50 (torchvision weights)", "rn50 (torchvision weights), fine-tuned on cifar100"]),
        (
            "rn50",
            "sequential",
            [
                "rn50 (torchvision weights)",
                "rn50 (torchvision weights), fine-tuned on cifar100",
                "rn50 (torchvision weights), fine-tuned on cifar100 + new layers",
            ],
        ),
        ("mine", "pretrained", ["resnet20 (SimCLR) on cifar100", "resnet20 (SimCLR), fine-tuned on cifar100"]),
        ("mine", "sequential", ["resnet20 (SimCLR) on cifar100", "resnet20 (SimCLR) on cifar100 + new layers"]),
        ("mine", "simultaneous", ["resnet20 (SimCLR) on cifar100"]),
    ],
)  # fmt: skip
def test_the_stages_of_each_kind_of_teacher(spec, name, strategy, expected):
    made = spec(name, strategy, protocol=EGA, mine="{network: resnet20, pretraining: simclr}")
    assert stages(made) == expected
    assert (made.head is not None) == (strategy == "simultaneous")
    assert trained_stages(made.teacher)[0].parent is None


def test_published_weights_of_the_data_sets_own_classes_are_used_as_they_are(spec):
    made = spec("resnet34", dataset="imagenet", protocol="{base: crd, batch: 256}")
    assert stages(made) == ["resnet34 (torchvision weights) on imagenet"]
    assert made.teacher.weights == Weights(source="torchvision", classifier=True)
    assert made.teacher_view is None


def test_an_encoder_is_the_same_teacher_on_every_data_set(spec):
    first, second = (
        spec("clip-vit-b32", "simultaneous", protocol="ega", dataset=name) for name in ("cifar100", "digits")
    )
    assert first.teacher == second.teacher
    assert first.teacher.dataset is None
    assert first.head == second.head


def test_a_clip_teacher_sees_its_own_views_in_its_own_size_and_colours(spec):
    for strategy in ("sequential", "simultaneous"):
        made = spec("clip-vit-b32", strategy, protocol=EGA)
        assert (made.teacher_view.size, made.teacher_view.crop_padding, made.teacher_view.flip) == (224, 4, True)
        assert made.teacher_view.mean == (0.48145466, 0.4578275, 0.40821073)
        assert made.teacher_view.std == (0.26862954, 0.26130258, 0.27577711)
        head = made.head or made.teacher.head
        assert head.recipe.preprocessing == made.teacher_view


def test_the_protocol_says_whether_a_teacher_of_the_students_kind_has_a_view_of_its_own(spec):
    assert spec("wrn-40-2", "simultaneous", protocol=EGA).teacher_view is None
    own = spec("wrn-40-2", "simultaneous", protocol="ega").teacher_view
    assert (own.size, own.crop_padding, own.flip) == (None, 4, True)
    assert spec("wrn-40-2", protocol="{base: crd, teacher_view: own}").teacher_view is not None


def test_new_layers_beside_the_student_keep_their_rate(spec):
    made = spec("clip-vit-b32", "simultaneous", protocol="ega")
    assert made.head.recipe.milestones == ()
    assert spec("clip-vit-b32", "sequential", protocol="ega").teacher.head.recipe.milestones == (150, 180, 210)


def test_a_file_is_known_by_its_content(load, tmp_path, file):
    (tmp_path / "weights").mkdir()
    (tmp_path / file(100, width=256)).rename(tmp_path / "weights" / "net.pth")
    sha256 = hashlib.sha256((tmp_path / "weights" / "net.pth").read_bytes()).hexdigest()
    text = SUITE.format(
        protocol="crd", dataset="cifar100", teacher="mine", strategy="pretrained",
        teachers="{mine: {network: resnet32x4, weights: weights/net.pth}}",
    )  # fmt: skip
    suite = load(text)
    teacher = suite.runs[0].spec.teacher
    assert teacher == Imported(
        network="resnet32x4", dataset=DatasetSpec(name="cifar100"), weights=Weights(source="file", sha256=sha256)
    )
    assert suite.weight_files == {sha256: tmp_path / "weights" / "net.pth"}
    assert suite.runs[0].teacher == "mine"
    by_hash = load(text.replace("weights/net.pth", f"'sha256:{sha256}'"))
    assert by_hash.runs[0].id == suite.runs[0].id
    assert by_hash.weight_files == {}


def test_random_weights_in_place_of_published_ones(spec):
    made = spec("mine", mine="{network: rn50, weights: random}")
    assert stages(made) == ["rn50 on cifar100"]


@pytest.mark.parametrize(
    ("teachers", "line", "word"),
    [
        ("{mine: {network: resnet32x5}}", "teachers.mine.network", "Did you mean 'resnet32x4'?"),
        ("{mine: {network: resnet20, pretraining: simclear}}", "teachers.mine.pretraining", "Did you mean 'simclr'?"),
        ("{mine: {network: resnet20, weight: x}}", "teachers.mine.weight", "Did you mean 'weights'?"),
        ("{mine: {network: resnet20, weights: there/is/none.pth}}", "teachers.mine.weights", "no such file"),
        ("{mine: {network: resnet20, weights: openai}}", "teachers.mine.weights", "publishes no weights of resnet20"),
        ("{mine: {network: rn50, weights: openai}}", "teachers.mine.weights", "'torchvision' does"),
        ("{mine: {network: clip-vit-b32, weights: random}}", "teachers.mine.weights", "cannot be trained here"),
        ("{mine: {network: clip-vit-b32, pretraining: simclr}}", "teachers.mine.pretraining", "cannot be trained here"),
        ("{mine: {network: rn50, weights: torchvision, pretraining: simclr}}", "teachers.mine.weights", "not from both"),
        ("{resnet20: {network: resnet20}}", "teachers.resnet20", "is the name of a network"),
        ("{mine: {network: resnet20, weights: 'sha256:12'}}", "teachers.mine.weights", "has 64 hexadecimal digits"),
        ("{mine: {network: resnet20, weights: '.'}}", "teachers.mine.weights", "is a folder"),
        ("{mine: resnet20}", "teachers.mine", "must be a mapping"),
        ("[mine]", "teachers", "must be a mapping"),
    ],
)  # fmt: skip
def test_mistakes_in_a_description(load, teachers, line, word):
    text = SUITE.format(
        protocol="crd", dataset="cifar100", teacher="resnet56", strategy="pretrained", teachers=teachers
    )
    with pytest.raises(BadSuite) as caught:
        load(text)
    (problem,) = caught.value.problems
    assert problem.path.startswith(line)
    assert word in problem.message


def test_an_unknown_teacher_is_compared_with_the_suites_own_names_too(load):
    text = SUITE.format(
        protocol="crd", dataset="cifar100", teacher="my-teachr", strategy="pretrained",
        teachers="{my-teacher: {network: resnet56}}",
    )  # fmt: skip
    with pytest.raises(BadSuite, match=r"unknown teacher 'my-teachr'\. Did you mean 'my-teacher'"):
        load(text)


def test_an_encoder_has_no_classifier_of_its_own(load):
    text = SUITE.format(protocol=EGA, dataset="cifar100", teacher="clip-vit-b32", strategy="pretrained", teachers="{}")
    with pytest.raises(BadSuite, match="clip-vit-b32 has no classifier: use strategy sequential or simultaneous"):
        load(text)


def test_an_encoder_is_no_student(grid):
    with pytest.raises(BadSuite, match="clip-rn50 is an encoder for teachers"):
        grid(student="clip-rn50")


def test_a_suites_own_teacher_can_be_left_out_and_paired(load):
    text = """
protocol: crd
dataset: cifar100
trials: 1
teachers:
  mine: {network: resnet20, pretraining: simclr}
grid:
  - teacher: [mine, resnet20]
    student: [resnet8x4, vgg8]
    method: kd
    exclude: {teacher: mine, student: vgg8}
  - pairs: [[mine, vgg13]]
    method: kd
"""
    assert [(run.teacher, run.spec.student) for run in load(text).runs] == [
        ("mine", "resnet8x4"), ("resnet20", "resnet8x4"), ("resnet20", "vgg8"), ("mine", "vgg13"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "classifier"),
    [(None, True), (DatasetSpec(name="digits"), False)],
)
def test_imported_weights_name_a_data_set_exactly_where_they_have_a_classifier(dataset, classifier):
    with pytest.raises(ValueError, match="name a dataset exactly where they have a classifier"):
        Imported(network="resnet20", dataset=dataset, weights=Weights(source="openai", classifier=classifier))


def test_weights_are_published_or_a_file():
    with pytest.raises(ValueError, match="sha256"):
        Weights(source="file")
    with pytest.raises(ValueError, match="sha256"):
        Weights(source="openai", sha256="0" * 64)


def test_simclr_on_images_that_stay_files_is_refused(load):
    text = SUITE.format(
        protocol=EGA, dataset="imagenet", teacher="mine", strategy="sequential",
        teachers="{mine: {network: resnet18, pretraining: simclr}}",
    )  # fmt: skip
    with pytest.raises(BadSuite, match="SimCLR needs its images in memory, and those of imagenet stay files"):
        load(text)


def test_an_imported_file_is_one_teacher_however_many_images_are_used(spec):
    mine = f"{{network: resnet20, weights: 'sha256:{'0' * 64}'}}"
    whole, part = (spec("mine", dataset=d, mine=mine) for d in ("digits", "{name: digits, train_per_class: 3}"))
    assert whole.teacher == part.teacher
    heads = [
        spec("mine", "sequential", protocol=EGA, dataset=d, mine=mine).teacher
        for d in ("digits", "{name: digits, train_per_class: 3}")
    ]
    assert heads[0] != heads[1]
    assert heads[0].parent == heads[1].parent == whole.teacher


def test_weights_that_would_do_are_trained_on_where_that_is_asked_for(load):
    text = """
protocol: semckd-imagenet
dataset: imagenet
teachers: {longer: {network: resnet34, weights: torchvision, fine_tune: true}}
grid: [{teacher: [resnet34, longer], student: resnet18, method: kd}]
"""
    plain, longer = (run.spec.teacher for run in load(text).runs)
    assert isinstance(plain, Imported)
    assert plain.weights.classifier
    assert longer.recipe.epochs == 10
    assert longer.parent == plain


@pytest.fixture
def file(tmp_path):
    """A file of weights with a classifier for so many classes on an embedding; a resnet20's has a width of 64."""

    def make(classes, width=64):
        header = {"conv1.weight": (16, 3, 3, 3), **({"fc.weight": (classes, width)} if classes else {})}
        entries, place = {}, 0
        for name, shape in header.items():
            length = 4 * math.prod(shape)
            entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + length]}
            place += length
        text = json.dumps(entries).encode()
        (tmp_path / "file.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(place))
        return "file.safetensors"

    return make


def test_a_files_classifier_serves_where_it_has_the_classes_of_the_data_set(spec, file):
    known = spec("mine", mine=f"{{network: resnet20, weights: {file(100)}}}").teacher
    assert known.weights.classifier
    assert stages(spec("mine", mine=f"{{network: resnet20, weights: {file(100)}, fine_tune: true}}"))[1:] == [
        "resnet20 (file weights), fine-tuned on cifar100"
    ]
    for classes in (0, 10):
        tuned = spec("mine", mine=f"{{network: resnet20, weights: {file(classes)}, fine_tune: true}}").teacher
        assert not tuned.parent.weights.classifier
        assert [stage.dataset is None for stage in trained_stages(tuned)] == [True, False]
        frozen = spec("mine", "sequential", protocol=EGA, mine=f"{{network: resnet20, weights: {file(classes)}}}")
        assert stages(frozen) == ["resnet20 (file weights)", "resnet20 (file weights) on cifar100 + new layers"]
        assert not frozen.teacher.parent.weights.classifier


def test_a_file_that_cannot_teach_is_refused_at_its_line(spec, file, tmp_path):
    with pytest.raises(BadSuite, match=r"its file holds only one for 10 classes: use fine_tune: true, or strategy"):
        spec("mine", mine=f"{{network: resnet20, weights: {file(10)}}}")
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(BadSuite, match=r"suite.yaml:5  teachers.mine.weights: .*page.pth: a web page, not weights"):
        spec("mine", mine="{network: resnet20, weights: page.pth}")
    with pytest.raises(BadSuite, match=r"'key', 'mean' and 'std' say something of a file of weights"):
        spec("mine", mine="{network: resnet20, weights: random, key: model}")


def test_a_file_sees_the_images_as_it_was_trained_to(spec, file):
    plain = spec("mine", mine=f"{{network: resnet20, weights: {file(100)}}}")
    told = spec("mine", mine=f"{{network: resnet20, weights: {file(100)}, key: fc, mean: [0, 0, 0], std: [1, 1, 1]}}")
    assert plain.teacher_view is None
    assert (told.teacher_view.mean, told.teacher_view.std) == ((0, 0, 0), (1, 1, 1))
    assert told.teacher.weights.key == "fc"
    assert plain.teacher.weights.canonical().keys() == {"source", "sha256"}
    assert not told.teacher_seen_elsewhere
    with pytest.raises(BadSuite, match=r"the key 'student' names nothing in it. It holds conv1, fc"):
        spec("mine", mine=f"{{network: resnet20, weights: {file(100)}, key: student}}")
