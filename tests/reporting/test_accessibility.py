"""The HTML report under axe-core in a real browser: nothing that WCAG 2.2 A or AA forbids, in light and in dark."""

import shutil

import pytest

from kdbench.reporting.html import html
from kdbench.reporting.options import PagePicture, ReportOptions
from kdbench.reporting.report import measured_report


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, to open the page")

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)


@pytest.fixture
def page(trained):
    """A page with a paper's table, grid tables of several pairs, pictures, and a method that is worse."""
    suite, store = trained("""\
protocol: sskd
dataset: cifar100
tables: sskd-3
trials: 3
grid:
  teacher: [vgg13, wrn-40-2]
  student: [vgg8, shufflenetv1]
  method: [ce, kd, at, sskd]
""")
    numbers = (("method", "mean"), ("kd", "51.5"))
    pictures = tuple(
        PagePicture("bars", pair, "Accuracies", ("kd",), "n = 3", PIXEL, 700, numbers) for pair in ("", "a → b")
    )
    return html(measured_report([suite], [store]), ReportOptions(commands="kdbench report", pictures=pictures))


@pytest.mark.slow
def test_axe_finds_nothing_to_say(page, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    from playwright.sync_api import sync_playwright

    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 24, 31)")):
            view = browser.new_page(color_scheme=scheme, bypass_csp=True)
            view.goto(file.as_uri())
            view.eval_on_selector_all("details", "all => all.forEach((each) => { each.open = true; })")
            view.click("table.results td[data-cell]")
            assert view.evaluate("getComputedStyle(document.body).backgroundColor") == ground
            for width in (390, 1400):
                view.set_viewport_size({"width": width, "height": 800})
                found = axe.run(view, options=RULES).response
                assert {"color-contrast", "image-alt", "label"} <= {rule["id"] for rule in found["passes"]}
                assert [(rule["id"], node["html"]) for rule in found["violations"] for node in rule["nodes"]] == []
        browser.close()
