"""What all tests share: their order, their own cache, and a limit of processor time that a slow machine does not break."""

import gc
import os
import time
from contextlib import contextmanager

import pytest


def pytest_collection_modifyitems(items):
    """Each test process begins with its share of the slow tests: while some wait for processes, others do the rest."""
    slow, quick = ([item for item in items if ("slow" in item.keywords) is kind] for kind in (True, False))
    parts = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    ends = [len(quick) * part // parts for part in range(parts + 1)]
    items[:] = [each for part in range(parts) for each in slow[part::parts] + quick[ends[part] : ends[part + 1]]]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def processor_time_below():
    """A context that may take so many seconds of processor time on an idle core, and more where a core is slower now.

    The time of processes that it starts and waits for counts, too.
    """
    return _processor_time_below


@contextmanager
def _processor_time_below(seconds):
    yardstick = _yardstick()
    gc.freeze()  # what other tests have left is not looked through for each thing that this one makes
    started = sum(os.times()[:4])
    try:
        yield
        used = sum(os.times()[:4]) - started
    finally:
        gc.unfreeze()
    limit = seconds * max(1.0, yardstick, _yardstick())
    assert used < limit, f"{used:.2f} s of processor time, {limit:.2f} s allowed"


def _yardstick():
    """How long a fixed piece of work takes now, as a multiple of what it takes on an idle core: 12 ms."""
    started = time.process_time()
    sum(len(str(number)) for number in range(100_000))
    return (time.process_time() - started) / 0.012
