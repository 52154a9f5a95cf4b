"""What was measured on networks of other training, or otherwise, is never averaged with, nor put beside, what was not."""

import pytest

from kdbench.reporting.keys import KEY, tuples
from kdbench.reporting.observations import collect, comparable, measurement_observations
from kdbench.reporting.report import measured_report
from kdbench.store.store import Store


HEAD = "protocol: sskd\ntrials: 1\ngrid:\n"
PAIR = "teacher: wrn-40-2, student: shufflenetv1, method: kd"


def keys_of(suite, store):
    return set(tuples(comparable(measurement_observations([suite], [store]))[KEY]))


@pytest.mark.parametrize(
    "grid",
    [
        "dataset: {name: cifar100, val_split: 0.1}, measure: {probe: stl10}",
        "dataset: {name: cifar100, classes: 10, train_per_class: 20}, measure: {probe: stl10}",
        "dataset: cifar10, measure: {probe: stl10}",
        "dataset: cifar100, measure: {probe: stl10, probe_protocol: semckd}",
        "dataset: cifar100, measure: {probe: stl10, probe_protocol: {base: linear, epochs: 1}}",
    ],
)
def test_nothing_of_other_training_stands_beside_printed_numbers(load, tmp_path, grid):
    usual = load(HEAD + f"  - {{{PAIR}, dataset: cifar100, measure: {{probe: stl10}}}}\n")
    other = load(HEAD + f"  - {{{PAIR}, {grid}}}\n")
    keys = keys_of(usual, Store(tmp_path))
    assert len(keys) == 2
    assert not keys & keys_of(other, Store(tmp_path))


def test_each_stands_in_a_place_of_its_own(load, tmp_path):
    suite = load(
        HEAD
        + f"  - {{{PAIR}, dataset: cifar100, measure: {{probe: stl10}}}}\n"
        + f"  - {{{PAIR}, dataset: cifar10, measure: {{probe: stl10}}}}\n"
        + f"  - {{{PAIR}, dataset: cifar100, measure: {{probe: stl10, probe_protocol: semckd}}}}\n"
    )
    tables = measured_report([suite], [Store(tmp_path)]).measurements
    assert [table.setting.trained_on for table in tables] == ["cifar100", "cifar10"]
    assert {planned for table in tables for planned in table.cells["planned"]} == {1}
    assert len(tables[0].cells) == 4


def test_ways_to_draw_wrong_labels_are_told_apart(load, tmp_path):
    suite = load(
        "protocol: semckd\ndataset: cifar100\ntrials: 1\n"
        "grid: {teacher: resnet32x4, student: vgg8, method: kd, scenario: "
        "[{label_noise: 0.1}, {label_noise: 0.1, noise: all}, {label_noise: 0.1, noise: classes}]}\n"
    )
    settings = collect([suite], [Store(tmp_path)])["setting"]
    assert list(settings) == ["noise=0.1,labels=other", "noise=0.1", "noise=0.1,labels=classes"]
