"""Parts of data sets: what is larger than the whole, and what leaves nothing to train or to measure on."""

import pytest

from kdbench.errors import BadSuite


def message(grid, dataset, **keys):
    with pytest.raises(BadSuite) as caught:
        grid(dataset=dataset, **keys)
    (problem,) = caught.value.problems
    assert problem.path.startswith(("grid[0].dataset", "grid[0].method"))
    return problem.message


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("{name: cifar100, classes: 101}", "cifar100 has only 100 classes, not 101"),
        ("{name: cifar100, train_per_class: 501}", "cifar100 has only 500 train per class, not 501"),
        ("{name: cifar100, test_per_class: 101}", "cifar100 has only 100 test per class, not 101"),
        (
            "{name: cifar100, val_split: 0.1, train_per_class: 451}",
            "cifar100 has only 450 train per class when 0.1 of the training set is held out, not 451",
        ),
        (
            "{name: cifar100, val_split: 0.1, test_per_class: 51}",
            "cifar100 has only 50 test per class when 0.1 of the training set is held out, not 51",
        ),
        (
            "{name: cifar100, val_split: 0.001}",
            "0.001 of the 500 training images of a class of cifar100 leaves none to measure on",
        ),
        (
            "{name: digits, val_split: 0.999}",
            "0.999 of the 100 training images of a class of digits leaves none to train on",
        ),
        ("{name: cifar100, val_split: 1}", "must be less than 1, not 1"),
        ("{name: cifar100, val_split: 0}", "must be greater than 0, not 0"),
        ("{name: cifar100, val_splt: 0.1}", "unknown key. Did you mean 'val_split'?"),
    ],
)
def test_what_there_is_not(grid, dataset, expected):
    assert message(grid, dataset, method="ce") == expected


@pytest.mark.parametrize(
    "dataset",
    [
        "{name: cifar100, val_split: 0.1, train_per_class: 450, test_per_class: 50}",
        "{name: cifar100, val_split: 0.002}",
        "{name: digits, val_split: 0.01}",
        "[cifar100, {name: cifar100, val_split: 0.1}]",
    ],
)
def test_what_there_is(grid, dataset):
    assert grid(dataset=dataset).runs


def test_a_teacher_from_elsewhere_may_have_seen_what_is_held_out(grid, load):
    elsewhere = f"'sha256:{0:064}'"
    text = """
protocol: ega
dataset: {{name: cifar100, val_split: 0.1}}
trials: 1
teachers: {{mine: {{network: resnet32x4, weights: {weights}}}}}
grid: {{teacher: {teacher}, student: resnet8x4, method: [ce, kd], strategy: simultaneous}}
"""
    with pytest.raises(BadSuite, match="mine was trained elsewhere, perhaps on the images that val_split holds out"):
        load(text.format(weights=elsewhere, teacher="mine"))
    assert load(text.format(weights="random", teacher="mine")).runs
    assert load(text.format(weights="random", teacher="clip-vit-b32")).runs
    assert load(text.format(weights="random", teacher="rn50")).runs  # fine-tuned here: its classes are ImageNet's
    with pytest.raises(BadSuite, match="resnet34 was trained elsewhere"):
        grid(dataset="{name: imagenet, val_split: 0.1}", teacher="resnet34", student="resnet18", method="kd")


def test_a_kind_of_noise_needs_noise(grid):
    with pytest.raises(BadSuite, match="noise 'all' needs a label_noise above 0"):
        grid(scenario="[{fraction: 0.5}, {noise: all}]")
