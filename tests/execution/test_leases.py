"""Many processes on one folder whose file system has no locks, some of which are killed or stopped."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("gcc"), reason="no C compiler for a library that takes locks away"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes through /proc"),
]


@pytest.fixture
def without_locks(tmp_path, monkeypatch):
    """Processes find neither locks nor folders that can be synced. Returns the file that lists the results that landed."""
    library = tmp_path / "no_flock.so"
    source = Path(__file__).with_name("no_flock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    landings = tmp_path / "landed"
    monkeypatch.setenv("LANDED", str(landings))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    return landings


def test_four_processes_with_kills_finish_each_run_once(place, undisturbed, without_locks):
    landings = without_locks
    draw, here = random.Random(1), place()
    sessions = [here.start("--jobs-per-device", "1") for _ in range(4)]
    for _ in range(3):
        time.sleep(draw.uniform(2, 6))
        if not (alive := [session for session in sessions if session.process.poll() is None]):
            break
        session = draw.choice(alive)
        victims = [session.process.pid, *session.workers()]
        os.kill(draw.choice(victims), signal.SIGKILL)
        sessions.append(here.start("--jobs-per-device", "1"))
    for session in sessions:
        session.end(seconds=300)
    again = here.start()
    assert again.end() == 0, again.said
    assert here.files() == undisturbed
    landed = Counter(landings.read_text().split())
    assert set(landed.values()) == {1}
    assert len(landed) == len({id for _, id, _ in undisturbed})
    assert not [*(here.results / "locks").glob("*.lease*")]
