"""The HTML report of tiny runs in a real browser: they have no published numbers and tables of their own kind."""

import json
import re
import shutil
import subprocess

import pytest


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, to open the page")

SUITE = """\
tables: [sskd-3]
protocol: sskd
dataset: cifar100
grid:
  - teacher: wrn-40-2
    student: wrn-16-2
    method: [kd, at]
    measure: {similarity: stl10}
"""

PROBE = """
<pre id="probe"></pre>
<script>
const numbers = (name) => Array.from(document.querySelectorAll(`table.${name} td`), (cell) => cell.textContent.trim())
  .filter((text) => /^[0-9.]+ \\(1\\)$/.test(text)).length;
const found = { printed: numbers("printed"), points: document.querySelectorAll("#scatter polygon.mark").length };
found.warned = document.body.innerText.includes("mean nothing");
document.getElementById("probe").textContent = JSON.stringify(found);
</script>
"""


@pytest.mark.slow
def test_a_page_of_tiny_runs_opens_without_a_word_in_the_console(kdbench, one_process, tmp_path):
    (tmp_path / "own.yaml").write_text(SUITE)
    done = kdbench("run", "own.yaml", "--tiny", "--devices", "cpu", "--jobs-per-device", 1)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "page.html"
    done = kdbench("report", "own.yaml", "--tiny", "-f", "html", "-o", page)
    assert done.returncode == 0, done.stderr
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    seen = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--enable-logging=stderr", "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert [line for line in seen.stderr.splitlines() if "CONSOLE" in line] == []
    found = json.loads(re.search(r'<pre id="probe">(.*?)</pre>', seen.stdout, re.S)[1])
    assert found["warned"]
    assert found["printed"] == 4  # kd, at, and the teacher in the columns of both its students
    assert found["points"] == 2
