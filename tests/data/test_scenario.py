"""Few-shot subsets and label noise: exact, stratified, and the same for everyone."""

import pytest
import torch

from kdbench.data.batch import generator, seed_of
from kdbench.data.image_sets import ImageSet, apply_scenario
from kdbench.suite.specs import DatasetSpec, Scenario


SPEC = DatasetSpec(name="digits")


@pytest.fixture
def numbered():
    """Images whose first pixels say which they are: 5 classes with 40, 41 … 44 images."""
    labels = torch.cat([torch.full((40 + label,), label) for label in range(5)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    images = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels)) % 256
    return ImageSet(images, labels, 5)


def names(part):
    return set(part.images[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.25, 0.5, 0.99])
def test_a_fraction_keeps_so_many_of_each_class_in_their_order(numbered, fraction):
    part = apply_scenario(numbered, Scenario(fraction=fraction), SPEC, 0)
    counts = torch.bincount(part.labels, minlength=5).tolist()
    assert counts == [max(1, round(fraction * (40 + label))) for label in range(5)]
    kept = part.images[:, 0, 0, 0].long()
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(part.labels, numbered.labels[kept])


def test_smaller_fractions_are_parts_of_larger_ones(numbered):
    parts = [names(apply_scenario(numbered, Scenario(fraction=f), SPEC, 0)) for f in (0.1, 0.2, 0.6, 1.0)]
    assert parts[0] < parts[1] < parts[2] < parts[3]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_noise_moves_exactly_its_share_of_each_class_and_never_to_the_same_class(numbered, share):
    noisy = apply_scenario(numbered, Scenario(label_noise=share), SPEC, 0)
    moved = noisy.labels != numbered.labels
    counts = [int(moved[numbered.labels == label].sum()) for label in range(5)]
    assert sum(counts) == round(share * 210)
    assert all(abs(count - share * (40 + label)) < 1 for label, count in enumerate(counts))
    assert torch.equal(noisy.images, numbered.images)
    assert noisy.labels.min() >= 0
    assert noisy.labels.max() < 5


@pytest.mark.parametrize(("noise", "own", "each"), [("other", 2000, 500), ("all", 2400, 400)])
def test_noise_is_spread_over_the_classes(noise, own, each):
    labels = torch.zeros(4000, dtype=torch.long)
    train = ImageSet(torch.zeros(4000, 3, 1, 1, dtype=torch.uint8), labels, 5)
    noisy = apply_scenario(train, Scenario(label_noise=0.5, noise=noise), SPEC, 0)
    counts = torch.bincount(noisy.labels, minlength=5)
    assert abs(int(counts[0]) - own) < (75 if noise == "all" else 1)
    assert (counts[1:] - each).abs().max() < 75


def test_noise_over_all_classes_draws_for_the_same_images_and_keeps_some_labels(numbered):
    other, all_ = (apply_scenario(numbered, Scenario(label_noise=0.5, noise=n), SPEC, 0) for n in ("other", "all"))
    moved, redrawn = other.labels != numbered.labels, all_.labels != numbered.labels
    assert not (redrawn & ~moved).any()
    assert 0 < int(redrawn.sum()) < int(moved.sum())


@pytest.mark.parametrize("noise", ["other", "all", "classes"])
def test_a_larger_share_changes_what_a_smaller_one_does(numbered, noise):
    few, more = (apply_scenario(numbered, Scenario(label_noise=s, noise=noise), SPEC, 0).labels for s in (0.2, 0.6))
    changed = few != numbered.labels
    assert changed.any()
    assert torch.equal(few[changed], more[changed])
    assert (more != numbered.labels).sum() > changed.sum()


@pytest.mark.parametrize(("share", "count"), [(0.09, 0), (0.2, 1), (0.6, 3), (0.99, 5)])
def test_classes_are_renamed_as_a_whole(numbered, share, count):
    renamed = apply_scenario(numbered, Scenario(label_noise=share, noise="classes"), SPEC, 0)
    names_ = [renamed.labels[numbered.labels == label].unique().tolist() for label in range(5)]
    assert all(len(each) == 1 for each in names_)
    assert sum(each != [label] for label, each in enumerate(names_)) == count
    assert torch.equal(renamed.clean_labels, numbered.labels)


def test_a_kind_of_noise_without_noise_is_refused():
    with pytest.raises(ValueError, match="noise 'all' needs a label_noise above 0"):
        Scenario(noise="all")
    with pytest.raises(ValueError, match="'other', 'all' or 'classes'"):
        Scenario(label_noise=0.1, noise="some")


def test_draws_depend_on_data_set_and_trial_alone(numbered):
    scenario = Scenario(fraction=0.5, label_noise=0.25)
    first = apply_scenario(numbered, scenario, SPEC, 0)
    torch.manual_seed(7)
    again = apply_scenario(numbered, scenario, SPEC, 0)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert names(apply_scenario(numbered, scenario, SPEC, 1)) != names(first)
    assert names(apply_scenario(numbered, scenario, DatasetSpec(name="cifar10"), 0)) != names(first)


def test_nothing_to_do_leaves_the_set_as_it_is(numbered):
    assert apply_scenario(numbered, Scenario(), SPEC, 0) is numbered


def test_seeds_depend_on_every_part_and_on_nothing_else():
    assert seed_of("a", 1, {"x": 1, "y": 2}) == seed_of("a", 1, {"y": 2, "x": 1})
    assert len({seed_of("a", 1), seed_of("a", 2), seed_of("b", 1), seed_of("a1"), seed_of("a", "1")}) == 5
    assert 0 <= seed_of("anything") < 2**63
    drawn = [torch.randperm(50, generator=generator("a", n)).tolist() for n in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("noise", ["other", "all"])
def test_the_share_of_all_labels_is_right_where_that_of_a_class_is_no_whole_number(noise):
    labels = torch.arange(100).repeat_interleave(125)
    train = ImageSet(torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8), labels, 100)
    for share in (0.1, 0.3, 0.5):
        noisy = apply_scenario(train, Scenario(label_noise=share, noise=noise), SPEC, 0)
        redrawn = (noisy.labels != labels).sum()
        if noise == "other":
            assert redrawn == round(share * len(labels))
        counts = (noisy.labels != labels).view(100, 125).sum(1)
        assert counts.max() <= -(-share * 125 // 1)
