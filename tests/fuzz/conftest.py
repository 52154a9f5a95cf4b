"""Fuzzing with hypothesis: a few seconds of fixed examples in `make test`, new ones for long in `make fuzz`."""

import os
import resource
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings


SLOW = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.function_scoped_fixture,
]
settings.register_profile("test", derandomize=True, database=None, deadline=None, suppress_health_check=SLOW)
settings.register_profile("fuzz", max_examples=5000, deadline=None, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("KDBENCH_FUZZ", "test"))

SECONDS = 2.0
GIGABYTES = 1.0


def _peak_gigabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@pytest.fixture(scope="session")
def within_limits(processor_time_below):
    """A context in which no more than 2 s of processor time and 1 GB of memory may be used."""

    @contextmanager
    def limits():
        peak = _peak_gigabytes()
        with processor_time_below(SECONDS):
            yield
        assert _peak_gigabytes() - peak < GIGABYTES, "takes too much memory"

    return limits
