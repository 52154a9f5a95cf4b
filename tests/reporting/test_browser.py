"""The HTML report in a real browser: no console message, tables that sort, numbers that explain themselves, charts."""

import json
import re
import shutil
import subprocess

import pytest

from kdbench.reporting.html import html
from kdbench.reporting.observations import run_frame
from kdbench.reporting.options import ReportOptions, View
from kdbench.reporting.report import Report, measured_report
from kdbench.reporting.tables import grid_tables


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, to open the page")

HOSTILE = "</script><script>console.error('hostile')</script><img src=x onerror=console.error(1)>"

PROBE = """
<pre id="probe"></pre>
<script>
const table = document.querySelector("table.results"), buttons = table.tHead.querySelectorAll("button");
const order = () => Array.from(table.tBodies[0].rows, (row) => row.cells[0].textContent);
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const found = { first: order(), sort: [] };
for (const at of [1, 1, 1, 0]) {
  buttons[at].click();
  found.sort.push([buttons[at].closest("th").getAttribute("aria-sort"), order()]);
}
table.querySelector("td[tabindex='0']").focus();
press("ArrowRight");
found.detail = document.getElementById("detail").innerText;
found.column = document.activeElement.cellIndex;
press("Escape");
found.hidden = document.getElementById("detail").hidden;
found.stops = table.querySelectorAll("td[tabindex='0']").length;
found.width = document.documentElement.scrollWidth <= window.innerWidth;
found.points = document.querySelectorAll("#scatter .mark").length;
found.names = Array.from(document.querySelectorAll("#pick-methods label"), (label) => label.textContent);
found.lines = document.querySelectorAll("#curves polyline").length;
document.querySelector("#pick-methods input").click();
found.fewer = document.querySelectorAll("#scatter .mark").length;
document.getElementById("probe").textContent = JSON.stringify(found);
</script>
"""


PRINTED = """
<pre id="probe"></pre>
<script>
const table = document.querySelector("table.printed"), body = table.tBodies[table.tBodies.length - 1];
const column = () => Array.from(body.rows, (row) => row.cells[5].textContent.trim());
const buttons = table.querySelectorAll("thead button");
const found = { buttons: buttons.length, sort: [] };
for (const _ of [1, 2]) { buttons[5].click(); found.sort.push(column()); }
const cell = body.querySelector("td[data-detail]");
cell.click();
found.detail = document.getElementById("detail").innerText;
cell.blur();
document.getElementById("detail").hidden = true;
cell.dispatchEvent(new PointerEvent("pointerover", { pointerType: "mouse", bubbles: true }));
found.hover = document.getElementById("detail").hidden;
document.getElementById("probe").textContent = JSON.stringify(found);
</script>
"""


@pytest.fixture
def probe(tmp_path):
    """Open a page with the probe in it; returns what it found and what else than its error is in the browser's console."""

    def look(page, script=PROBE):
        file = tmp_path / "page.html"
        error = "<script>console.error('of the probe')</script>"
        file.write_text(page.replace("</body>", script + error + "</body>"), encoding="utf-8")
        done = subprocess.run(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--enable-logging=stderr", "--dump-dom",
             f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,800", file.as_uri()],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        *console, last = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert "of the probe" in last
        text = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)[1]
        return json.loads(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), console

    return look


@pytest.fixture
def page(trained):
    """A page of made-up runs, one of whose methods has a hostile name."""
    name = json.dumps(HOSTILE)
    suite, store = trained(f"""\
name: {name}
protocol: smoke
dataset: digits
trials: 2
grid:
  teacher: resnet8x4
  student: [resnet8, resnet14]
  method: [at, {{name: {name}, terms: {{ce: 1, kd: 2}}}}, kd, sp]
  exclude: [{{method: sp, student: resnet8}}]
""")
    report = measured_report([suite], [store])
    return html(report, ReportOptions())


def test_the_page_works_in_a_narrow_window_and_the_console_stays_empty(page, probe):
    found, console = probe(page)
    assert console == []
    assert found["first"] == ["at", HOSTILE, "kd", "sp"]
    assert found["sort"] == [
        ["descending", ["kd", HOSTILE, "at", "sp"]],
        ["ascending", ["at", HOSTILE, "kd", "sp"]],
        ["none", ["at", HOSTILE, "kd", "sp"]],
        ["ascending", [HOSTILE, "at", "kd", "sp"]],
    ]
    assert found["detail"].startswith("at on resnet8x4 → resnet14")
    assert "sd 0.71, n 2 of 2" in found["detail"]
    assert "5 TMAC, 60 s on gpu" in found["detail"]
    assert (found["column"], found["hidden"], found["stops"], found["width"]) == (2, True, 1, True)
    assert (found["names"], found["points"], found["fewer"]) == (["at", HOSTILE, "kd", "sp"], 7, 5)
    assert found["lines"] == 3


def test_a_papers_table_with_two_header_lines_sorts_and_explains_its_numbers(trained, probe):
    suite, store = trained(
        "protocol: sskd\ndataset: cifar100\ntables: sskd-3\ntrials: 2\n"
        "grid: {teacher: vgg13, student: vgg8, method: [kd, at, sp]}"
    )
    report = measured_report([suite], [store])
    found, console = probe(html(report, ReportOptions(View.measured)), PRINTED)
    assert (console, found["buttons"]) == ([], 6)
    empty = ["–"] * 8
    assert found["sort"] == [
        ["54.00 (1 of 2)", "52.50 ± 0.71 (2)", "50.50 ± 0.71 (2)", *empty],
        ["50.50 ± 0.71 (2)", "52.50 ± 0.71 (2)", "54.00 (1 of 2)", *empty],
    ]
    assert "n 2 of 2" in found["detail"]
    assert (
        suite.runs[4].id in found["detail"]
        or suite.runs[0].id in found["detail"]
        or suite.runs[2].id in found["detail"]
    )
    assert found["hover"] is False


CHOSEN = """
<pre id="probe"></pre>
<script>
const ticked = () => Array.from(document.querySelectorAll("#pick-methods label"))
  .filter((label) => label.querySelector("input").checked).map((label) => label.textContent);
const found = { ticked: ticked() };
for (const check of document.querySelectorAll("#pick-methods input")) if (!check.checked) check.click();
const shape = (mark) => {
  const [first, ...rest] = mark.getAttribute("points").split(" ").map((point) => point.split(",").map(Number));
  return rest.map(([x, y]) => [Math.round(5 * (x - first[0])), Math.round(5 * (y - first[1]))].join());
};
found.styles = Array.from(document.querySelectorAll("#pick-methods .swatch"), ({ children: [line, mark] }) =>
  [getComputedStyle(line).stroke, getComputedStyle(line).strokeDasharray, shape(mark).join(" ")]);
found.lines = document.querySelectorAll("#curves polyline").length;
found.marks = document.querySelectorAll("#curves .mark").length;
document.getElementById("probe").textContent = JSON.stringify(found);
</script>
"""


def test_a_suites_own_methods_are_ticked_and_all_look_as_in_pictures(trained, probe):
    method_styles = pytest.importorskip("kdbench.plots.style", exc_type=ImportError).method_styles
    names = [f"m{at}" for at in range(8)]  # each better than the ones before
    sweep = ", ".join(f"{{name: {name}, terms: {{ce: 1, kd: {at + 2}}}}}" for at, name in enumerate(names))
    suite, store = trained(
        f"protocol: smoke\ndataset: digits\ntrials: 1\n"
        f"grid: {{teacher: resnet8x4, student: resnet8, method: [ce, {sweep}, kd, at, sp, vid, rkd, pkt]}}"
    )
    report = measured_report([suite], [store])
    found, console = probe(html(report, ReportOptions()), CHOSEN)
    assert (console, found["ticked"]) == ([], ["ce", *names])
    looks = method_styles(["ce", *names, "kd", "at", "sp", "vid", "rkd", "pkt"]).values()
    assert [(colour, dashes) for colour, dashes, _ in found["styles"]] == [
        (
            f"rgb({', '.join(str(int(look.colour[at : at + 2], 16)) for at in (1, 3, 5))})",
            "none" if look.line == "solid" else ", ".join(f"{2 * length:g}px" for length in look.line[1]),
        )
        for look in looks
    ]
    shapes = {(look.marker, shape) for look, (_, _, shape) in zip(looks, found["styles"], strict=True)}
    assert len(shapes) == len({marker for marker, _ in shapes}) == len({shape for _, shape in shapes})
    assert len({(dashes, shape) for _, dashes, shape in found["styles"]}) == 15
    assert (found["lines"], found["marks"]) == (14, 14 * 4)  # the last has not been run


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs pdftotext, to read the print")
def test_a_printed_table_repeats_its_headings_on_the_next_page(row, tmp_path):
    runs = run_frame([row(0, 50.0, method=f"m{at}", status="missing") for at in range(150)])
    report = Report([], runs, all_grids=grid_tables(runs))
    file, pdf = tmp_path / "page.html", tmp_path / "page.pdf"
    file.write_text(html(report, ReportOptions()), encoding="utf-8")
    subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--no-pdf-header-footer", f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={pdf}", file.as_uri()],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    text = subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True, check=True).stdout
    second = text.split("\f")[1].split()
    assert {"method", "resnet32x4", "resnet8x4"} <= set(second[:5])
    assert "m149" in text
