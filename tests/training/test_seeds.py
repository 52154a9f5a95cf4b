"""The randomness of runs and teachers' stages follows a form of their specs that never changes."""

import pytest

from kdbench.suite.load import bundled_suites, load_suite
from kdbench.suite.specs import digest, lineage
from kdbench.training.build import seed_key


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("smoke", "c918579b5939"),
        ("ega_sequential", "0c9ca9c4ab58"),
        ("semckd_cifar100", "f6abe499d185"),
        ("sskd_similar", "69a03b9b2eb2"),
    ],
)
def test_seeds_are_what_they_were_in_the_first_version(suite, expected):
    # If this test fails, runs and teachers come out otherwise than in everybody's results. Ids may change, these may not.
    specs = load_suite(bundled_suites()[suite]).specs.values()
    stages = [seed_key(stage) for spec in specs for each in spec.dependencies for stage in lineage(each)]
    assert digest([[seed_key(spec) for spec in specs], stages]) == expected
