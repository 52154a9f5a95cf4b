"""Values out of range: every number and choice that a suite may set is refused where it cannot be trained with."""

import pytest
from pydantic import ValidationError

from kdbench.errors import BadSuite
from kdbench.suite.components import HeadSpec, Preprocessing, Recipe, late_milestone, usable_devices
from kdbench.suite.measurements import ProbeProtocol
from kdbench.suite.protocol import SET_BY_LOADER, Protocol
from kdbench.suite.specs import DatasetSpec, Scenario, SimCLR


GRID = "grid:\n  teacher: resnet32x4\n  student: resnet8x4\n  method: [ce, kd]\n"
RECIPE = ["epochs", "batch", "lr", "momentum", "weight_decay", "decay", "crop_padding", "size", "evaluate_every"]
RECIPE += ["batch_norm_parts"]
PROBED = [key for key in RECIPE if key != "size"]
SECTIONS = [
    "teacher: ",
    "head: ",
    "head_simultaneous: ",
    "fine_tune: ",
    "pretraining: ",
    "parts: {ft: ",
    "datasets: {digits: ",
]
NUMBERS = [
    "trials: VALUE",
    *(f"dataset: {{name: digits, {key}: VALUE}}" for key in ("classes", "train_per_class", "test_per_class")),
    *(f"dataset: {{name: digits, {key}: VALUE}}" for key in ("val_split", "size")),
    *(f"scenario: {{{key}: VALUE}}" for key in ("fraction", "label_noise")),
    *(f"protocol: {{base: crd, {key}: VALUE}}" for key in (*RECIPE, "node_embedding", "trials")),
    *(f"protocol: {{base: crd, {section}{{lr: VALUE}}{'}' * section.count('{')}}}" for section in SECTIONS),
    *(f"protocol: {{base: crd, {section}{{epochs: VALUE}}{'}' * section.count('{')}}}" for section in SECTIONS),
    "protocol: {base: crd, milestones: [VALUE]}",
    "protocol: {base: crd, milestones: [1, VALUE]}",
    "protocol: {base: crd, mean: [0.5, VALUE, 0.5]}",
    "protocol: {base: crd, std: [0.5, 0.5, VALUE]}",
    "protocol: {base: crd, crop_area: [0.1, VALUE]}",
    "protocol: {base: crd, crop_ratio: [VALUE, 1.25]}",
    "protocol: {base: crd, lr_for: {resnet8: VALUE}}",
    'protocol: {base: crd, parts: {ft: {lr_for: {"resnet*": VALUE}}}}',
    *(f"protocol: {{base: ega, simclr: {{{key}: VALUE}}}}" for key in SimCLR.model_fields),
    *(f"measure: {{probe_protocol: {{base: linear, {key}: VALUE}}}}" for key in PROBED if key != "batch_norm_parts"),
    "measure: {probe_protocol: {base: linear, batch_norm: batch, batch_norm_parts: VALUE}}",
    "measure: {probe_protocol: {base: linear, milestones: [VALUE]}}",
    *(f"measure: {{probe: {{name: digits, {key}: VALUE}}}}" for key in ("classes", "train_per_class", "val_split")),
    *(f"measure: {{similarity: {{name: digits, {key}: VALUE}}}}" for key in ("classes", "test_per_class", "size")),
]
CHOICES = [
    "strategy: VALUE",
    "scenario: {label_noise: 0.1, noise: VALUE}",
    *(
        f"protocol: {{base: crd, {key}: VALUE}}"
        for key in ("precision", "score", "teacher_checkpoint", "teacher_inference", "teacher_precision", "teacher_view")
    ),
    "measure: {probe_protocol: {base: linear, batch_norm: VALUE}}",
]  # fmt: skip
SWITCHES = [
    "protocol: {base: crd, nesterov: VALUE}",
    "protocol: {base: crd, flip: VALUE}",
    "protocol: {base: crd, teacher: {nesterov: VALUE}}",
]


def refused(load, setting):
    """The one problem of a suite with this line at its top."""
    head = [
        line for line in ("protocol: crd", "dataset: cifar100") if line.partition(":")[0] != setting.partition(":")[0]
    ]
    with pytest.raises(BadSuite) as caught:
        load("\n".join([*head, setting, GRID]))
    (problem,) = caught.value.problems
    assert problem.line == len(head) + 1
    assert problem.path.startswith(setting.partition(":")[0])
    return problem


@pytest.mark.parametrize("setting", NUMBERS)
def test_no_number_is_out_of_range(load, setting):
    for value in (
        "-1",
        "-9000000000000000000",
        "9000000000000000000",
        "1.0e+300",
        ".nan",
        ".inf",
        "true",
        "x",
        "[]",
        "{}",
    ):
        assert refused(load, setting.replace("VALUE", value))


@pytest.mark.parametrize("setting", CHOICES + SWITCHES)
def test_no_other_choice(load, setting):
    for value in ("-1", "1.5", "x", "[]", "{}"):
        assert refused(load, setting.replace("VALUE", value))


def test_every_number_of_the_schema_is_tried():
    """A new field of these must be added to the table above, or here where it holds no number."""
    tried = set(" ".join(NUMBERS + CHOICES + SWITCHES).replace("{", " ").replace(":", " ").replace(",", " ").split())
    beside = {
        "name",
        "stand_in",
        "images",
        "title",
        "paper",
        "methods",
        "teacher",
        "head",
        "datasets",
        "parts",
        *SET_BY_LOADER,
    }
    for schema in (Preprocessing, Recipe, Protocol, DatasetSpec, Scenario, SimCLR, ProbeProtocol):
        assert schema.model_fields.keys() <= tried | beside


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("protocol: {base: crd, lr: 0}", "must be greater than 0"),
        ("protocol: {base: crd, batch: 1}", "must be greater than or equal to 2"),
        ("protocol: {base: crd, epochs: 10, milestones: [5, 20]}", "after epoch 20, but there are 10"),
        ("protocol: {base: crd, teacher: {epochs: 10, milestones: [20]}}", "after epoch 20, but there are 10"),
        ("protocol: {base: crd, datasets: {digits: {milestones: [250]}}}", "after epoch 250, but there are 240"),
        ("protocol: {base: ega, fine_tune: {milestones: [25]}}", "after epoch 25, but there are 20"),
        ("measure: {probe_protocol: {base: linear, epochs: 5, milestones: [3, 9]}}", "after epoch 9, but there are 5"),
        ("protocol: {base: crd, crop_padding: 32}", "crop_padding is 32, as much as the images of cifar100"),
        ("protocol: {base: crd, teacher: {crop_padding: 40}}", "crop_padding is 40"),
        ("protocol: {base: crd, simclr: {temperature: 0}}", "must be greater than 0"),
    ],
)
def test_values_that_do_not_go_together(load, setting, word):
    assert word in refused(load, setting).message


@pytest.mark.parametrize(
    "setting",
    [
        "protocol: {base: crd, epochs: 20}",  # milestones that a protocol brings along may lie beyond the end
        "protocol: {base: crd, epochs: 20, milestones: [20]}",
        "protocol: {base: crd, crop_padding: 31}",
        "protocol: {base: crd, mean: [0, 0, 0], std: [1, 1, 1]}",
        "protocol: {base: crd, teacher: {epochs: 300, milestones: [250]}}",
        "measure: {probe_protocol: {base: linear, epochs: 50}, probe: digits}",
    ],
)
def test_values_that_do(load, setting):
    head = [
        line for line in ("protocol: crd", "dataset: cifar100") if line.partition(":")[0] != setting.partition(":")[0]
    ]
    assert load("\n".join([*head, setting, GRID])).runs


@pytest.mark.parametrize(
    ("images", "batch", "word"),
    [
        (1, 16, "and there are 2 training images: take more of them, or leave it out"),
        (3, 16, "and 6 training images fill none of 16. Another would do: protocol: {base: smoke, batch: 6}"),
        (3, 2, "not of 2. Another would do: protocol: {base: smoke, batch: 4}"),
        (3, 6, ""),
    ],
)
def test_full_batches(grid, images, batch, word):
    keys = {"protocol": f"{{base: smoke, batch: {batch}}}", "method": "semckd"}
    keys |= {"dataset": f"{{name: digits, classes: 2, train_per_class: {images}}}"}
    if not word:
        assert grid(**keys).runs
        return
    with pytest.raises(BadSuite) as caught:
        grid(**keys)
    (problem,) = caught.value.problems
    assert problem.message.endswith(word)


def test_weights_that_overflow(grid):
    with pytest.raises(BadSuite, match=r"the weight must be at most 1e\+09, not 1e\+10"):
        grid(method="{terms: {ce: 1.0e+10}}")


ENDS = [
    (Recipe, "epochs", [1, 100_000], [0, 100_001]), (Recipe, "batch", [2, 65_536], [1, 65_537]),
    (Recipe, "lr", [100.0], [0.0, 100.1]), (Recipe, "decay", [1.0], [0.0, 1.01]),
    (Recipe, "momentum", [0.0, 0.99], [-0.1, 1.0]), (Recipe, "weight_decay", [0.0, 1.0], [-0.1, 1.01]),
    (Recipe, "crop_padding", [0, 1024], [-1, 1025]), (Recipe, "size", [8, 1024], [7, 1025]),
    (Recipe, "evaluate_every", [1, 100_000], [0, 100_001]), (Recipe, "node_embedding", [1, 65_536], [0, 65_537]),
    (Recipe, "batch_norm_parts", [1], [0]),
    (Recipe, "crop_ratio", [(0.01, 100.0)], [(0.009, 1.0), (1.0, 101.0), (1.1, 1.0)]),
    (Recipe, "crop_area", [(0.5, 1.0), (0.5, 0.5)], [(0.0, 1.0), (0.5, 1.01), (0.6, 0.5)]),
    (Recipe, "mean", [(0.0, 0.5, 1.0)], [(-0.1, 0.5, 1.0), (0.0, 0.5, 1.1)]),
    (Recipe, "std", [(0.1, 0.5, 1.0)], [(0.0, 0.5, 1.0), (0.1, 0.5, 1.1)]),
    (HeadSpec, "width", [1, 65_536], [0, 65_537]), (SimCLR, "temperature", [1000.0], [0.0, 1001.0]),
    (SimCLR, "smallest_crop", [1.0], [0.0, 1.01]), (SimCLR, "colour", [0.0, 1.0], [-0.1, 1.01]),
    (DatasetSpec, "classes", [2], [1]), (DatasetSpec, "train_per_class", [1], [0]),
    (Scenario, "fraction", [1.0], [0.0, 1.01]), (Scenario, "label_noise", [0.0, 0.99], [-0.1, 1.0]),
]  # fmt: skip
NEEDED = {
    Recipe: {"epochs": 1, "batch": 2, "lr": 0.1},
    HeadSpec: {"recipe": Recipe(epochs=1, batch=2, lr=0.1)},
    DatasetSpec: {"name": "cifar100"},
}


@pytest.mark.parametrize(("schema", "key", "inside", "outside"), ENDS)
def test_ranges_hold_their_ends(schema, key, inside, outside):
    needed = NEEDED.get(schema, {})
    for value in inside:
        assert getattr(schema(**needed | {key: value}), key) == value
    for value in outside:
        with pytest.raises(ValidationError, match=key):
            schema(**needed | {key: value})


@pytest.mark.parametrize(("batch", "parts", "fits"), [(16, 8, True), (16, 16, False), (16, 3, False), (3, 1, True)])
def test_a_part_of_batch_norm_has_two_images_or_more(batch, parts, fits):
    if fits:
        Recipe(epochs=1, batch=batch, lr=0.1, batch_norm_parts=parts)
    else:
        with pytest.raises(ValidationError, match=f"a batch of {batch} has no {parts} equal parts of 2 images or more"):
            Recipe(epochs=1, batch=batch, lr=0.1, batch_norm_parts=parts)


@pytest.mark.parametrize(
    ("batches", "parts", "devices", "usable"),
    [
        ((64,), 1, 4, 4), ((64,), 1, 3, 2), ((64,), 1, 1, 1), ((9,), 1, 2, 1),
        ((8,), 1, 8, 4),  # two images for each
        ((64, 48), 1, 8, 8), ((64, 12), 1, 8, 4),
        ((64,), 4, 8, 8), ((64,), 4, 2, 2), ((12,), 2, 3, 2),
    ],
)  # fmt: skip
def test_devices_divide_batches_and_their_parts_equally(batches, parts, devices, usable):
    recipes = [Recipe(epochs=1, batch=batch, lr=0.1, batch_norm_parts=parts) for batch in batches]
    assert usable_devices(recipes, devices) == usable


def test_a_milestone_at_the_last_epoch_is_not_late():
    assert late_milestone([5, 10], 10) == ""
    assert late_milestone([5, 11], 10) == "the rate would fall after epoch 11, but there are 10"
    assert late_milestone(["x"], 10) == late_milestone(7, 5) == late_milestone([7], "x") == ""
