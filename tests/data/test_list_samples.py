"""The list of a student's images and labels: exact counts on the real data, and the same whoever asks and wherever."""

import csv
import hashlib

import pytest
import torch

from kdbench import __version__
from kdbench.data.stream import DataSource
from kdbench.suite.load import bundled_suites, load_suite
from kdbench.suite.specs import DatasetSpec, Scenario


CPU = torch.device("cpu")
DIGITS = DatasetSpec(name="digits")
CIFAR = DatasetSpec(name="cifar100")


@pytest.fixture(scope="module")
def cifar(real_data):
    """The real CIFAR-100, read once for all tests."""
    return DataSource(real_data, CPU)


def pairs(samples):
    return dict(zip(samples.indices.tolist(), samples.given.tolist(), strict=True))


@pytest.mark.parametrize(("fraction", "each"), [(0.25, 125), (0.5, 250), (0.75, 375), (1.0, 500)])
def test_few_shots_of_cifar100_keep_so_many_of_each_class(cifar, fraction, each):
    samples = cifar.samples(CIFAR, Scenario(fraction=fraction), 0)
    assert torch.bincount(samples.given).tolist() == [each] * 100
    assert torch.equal(samples.given, samples.true)
    official = cifar.sets(CIFAR)[0]
    assert torch.equal(samples.true, official.labels[samples.indices])
    assert len(set(samples.indices.tolist())) == 100 * each


def test_few_shots_of_cifar100_are_nested_and_differ_between_trials(cifar):
    kept = [set(pairs(cifar.samples(CIFAR, Scenario(fraction=f), 0))) for f in (0.25, 0.5, 0.75, 1.0)]
    assert kept[0] < kept[1] < kept[2] < kept[3]
    other = set(pairs(cifar.samples(CIFAR, Scenario(fraction=0.25), 1)))
    assert 1000 < len(kept[0] & other) < 5000  # a quarter of a quarter of 50,000, by chance


@pytest.mark.parametrize(
    ("share", "each"), [(0.1, {50}), (0.3, {150}), (0.5, {250}), (0.003, {1, 2}), (0.999, {499, 500})]
)
def test_noise_on_cifar100_moves_exactly_its_share_of_each_class(cifar, share, each):
    samples = cifar.samples(CIFAR, Scenario(label_noise=share), 0)
    moved = torch.bincount(samples.true[samples.given != samples.true], minlength=100)
    assert set(moved.tolist()) == each
    assert samples.changed == moved.sum() == round(share * 50_000)
    assert torch.equal(samples.indices, torch.arange(50_000))
    assert torch.equal(samples.true, cifar.sets(CIFAR)[0].labels)


def test_other_kinds_of_noise_on_cifar100(cifar):
    other, every, renamed = (
        cifar.samples(CIFAR, Scenario(label_noise=0.3, noise=noise), 0) for noise in ("other", "all", "classes")
    )
    moved = other.given != other.true
    assert set((every.given != every.true).nonzero().flatten().tolist()) < set(moved.nonzero().flatten().tolist())
    assert every.changed == pytest.approx(0.99 * 15_000, abs=50)  # 4 deviations of a binomial of 15,000
    assert renamed.changed == 30 * 500


def test_noise_and_few_shots_together_on_cifar100(cifar):
    few = cifar.samples(CIFAR, Scenario(fraction=0.5, label_noise=0.5), 0)
    assert set(few.indices.tolist()) == set(cifar.samples(CIFAR, Scenario(fraction=0.5), 0).indices.tolist())
    moved = torch.bincount(few.true[few.given != few.true], minlength=100)
    assert moved.tolist() == [125] * 100


def test_all_methods_of_a_trial_of_a_suite_learn_from_the_same_list(cifar):
    for name in ("sskd_few_shot", "semckd_label_noise"):
        asked = {}
        for run in load_suite(bundled_suites()[name], trials=2).runs:
            key = (run.spec.scenario.id, run.spec.trial)
            asked.setdefault(key, set()).add((run.spec.dataset, run.spec.scenario, run.spec.trial))
        assert all(len(each) == 1 for each in asked.values())
        changed = [next(iter(each)) for each in asked.values() if next(iter(each))[1] != Scenario()]
        assert len({cifar.samples(*each).sha256 for each in changed}) == len(changed)


DRAWN = [
    (DIGITS, Scenario(fraction=0.25), 0),
    (DIGITS, Scenario(label_noise=0.3), 1),
    (DIGITS, Scenario(label_noise=0.3, noise="all"), 1),
    (DIGITS, Scenario(fraction=0.5, label_noise=0.3, noise="classes"), 0),
    (DatasetSpec(name="digits", classes=4, train_per_class=33), Scenario(label_noise=0.5), 0),
    (DatasetSpec(name="digits", val_split=0.2), Scenario(fraction=0.3), 2),
]


def test_lists_depend_on_nothing_but_what_they_are_drawn_for(tmp_path):
    """Neither on the order, nor on torch's own generator, nor on a device; for the process see tests/cli."""
    first = [DataSource(tmp_path, CPU).samples(*each).sha256 for each in DRAWN]
    assert len(set(first)) == len(DRAWN)
    torch.manual_seed(99)
    source = DataSource(tmp_path, torch.device("meta"))  # on which nothing can be read
    again = [source.samples(*each).sha256 for each in reversed(DRAWN)]
    assert again[::-1] == first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_lists_on_a_gpu(tmp_path):
    indices = [DataSource(tmp_path, torch.device(name)) for name in ("cpu", "cuda")]
    lists = [[place.samples(*each).sha256 for each in DRAWN] for place in indices]
    assert lists[0] == lists[1]


def test_literal_lists(tmp_path):
    # What finished runs have learned from. If this test fails, a run that is trained again learns from other images or
    # labels than before, under the same id.
    source = DataSource(tmp_path, CPU)
    assert [source.samples(*each).sha256[:12] for each in DRAWN[:2]] == LITERAL


LITERAL = ["7daab421834b", "1a0cd0ae69fe"]


def test_digits_are_named_by_their_places_in_scikit_learns_list(tmp_path):
    from sklearn.datasets import load_digits

    samples = DataSource(tmp_path, CPU).samples(*DRAWN[4])
    assert torch.equal(torch.from_numpy(load_digits().target).long()[samples.indices], samples.true)
    assert torch.bincount(samples.true).tolist() == [33] * 4
    assert torch.bincount(samples.true[samples.given != samples.true]).tolist() == [16, 17, 16, 17]


def test_the_csv_says_what_it_is_and_its_hash_can_be_checked(tmp_path):
    spec, scenario, trial = DRAWN[3]
    samples = DataSource(tmp_path, CPU).samples(spec, scenario, trial)
    lines = list(samples.csv(spec, scenario, trial))
    head = [line for line in lines if line.startswith("#")]
    rows = list(csv.DictReader(lines[len(head) :]))
    assert {int(row["index"]): int(row["given_label"]) for row in rows} == pairs(samples)
    assert [int(row["true_label"]) for row in rows] == samples.true.tolist()
    text = "".join(f"{row['index']},{row['given_label']}\n" for row in rows)
    assert hashlib.sha256(text.encode()).hexdigest() == samples.sha256
    for word in (__version__, '{"name": "digits"}', '"noise": "classes"', "trial: 0", samples.sha256):
        assert any(word in line for line in head), word
    assert f"# images: 500, labels that are not the true ones: {samples.changed}" in head
