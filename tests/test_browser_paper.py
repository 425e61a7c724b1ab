"""The report on paper: what a printed page says, and how wide and in which colours its figures are."""

import base64
import re

import pytest
from report_page import CUT, NARROW, NEEDS, WIDE, Page, crowded, running, written

pytestmark = NEEDS
SHEET = 1010
"""The pixels between the margins of a sheet of A4 on its side, less a few."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    yield from running(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return written(crowded(), tmp_path_factory.mktemp("study"))


def on_paper(page):
    """The page as it lies on a sheet, for as long as it takes to look at it."""
    features = [{"name": "prefers-color-scheme", "value": "dark" if page.dark else "light"}]
    page.js("dispatchEvent(new Event('beforeprint'))")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    size = {"width": SHEET, "height": 720, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


VISIBLE = """
return Array.from(document.querySelectorAll(arguments[0])).map((e) => {
  const b = e.getBoundingClientRect();
  return b.width && b.height && getComputedStyle(e).visibility === "visible" ? e.textContent.trim() : "";
});
"""


@pytest.fixture(params=[(WIDE, False), (WIDE, True), (NARROW, True)])
def page(driver, drawn, request):
    width, dark = request.param
    made = Page(driver, drawn[1] / "report.html", width, dark)
    made.dark = dark
    yield made
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_numbers_of_trials_and_both_atlases_with_their_units_are_printed(page, drawn):
    page.js("document.querySelectorAll('details').forEach((d) => { d.open = false; })")
    on_paper(page)
    assert page.js("return Array.from(document.querySelectorAll('details')).every((d) => d.open)")
    numbers = page.js(VISIBLE, "button.trial")
    assert {str(trial.number) for trial in drawn[0].trials} == set(numbers)
    assert "" not in numbers
    assert page.js(VISIBLE, "[data-atlas] h3") == ["Effect in points of mAP50-95", "Effect in % of the base's latency"]
    assert "" not in page.js(VISIBLE, "[data-atlas] .value")
    assert set(page.js(VISIBLE, "nav, .switch, [data-download], [data-copy], #limit")) == {""}
    page.js("dispatchEvent(new Event('afterprint'))")
    assert page.js("return Array.from(document.querySelectorAll('details')).every((d) => !d.open)")


def test_what_is_drawn_has_the_width_of_the_sheet_and_light_colours(page):
    on_paper(page)
    found = page.js("""
return Array.from(document.querySelectorAll(".chart .main-svg, svg.network, svg.atlas")).map((e) => e.getBoundingClientRect())
  .map((b) => [b.left, b.right]);
""")
    assert len(found) > 8
    assert page.js(CUT) == []
    assert all(left >= 0 and 0.9 * SHEET < right <= SHEET + 1 for left, right in found), found
    assert page.js("return document.documentElement.scrollWidth") <= SHEET
    assert page.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    inks = page.js("return Array.from(document.querySelectorAll('.chart')).map((c) => c._fullLayout.font.color)")
    assert set(inks) == {"#5b6472"}
    page.js("dispatchEvent(new Event('afterprint'))")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [
        {"name": "prefers-color-scheme", "value": "dark" if page.dark else "light"}]})  # fmt: skip
    page.js("dispatchEvent(new Event('afterprint'))")
    assert page.js("return document.getElementById('chart-front')._fullLayout.font.color") == ("#9aa4b2" if page.dark else "#5b6472")


def test_printing_lays_the_page_on_sheets_and_then_takes_it_back(driver, drawn):
    page = Page(driver, drawn[1] / "report.html", NARROW, dark=True)
    page.js(
        "addEventListener('afterprint', () => { window.charts = document.querySelectorAll('.chart .main-svg[viewBox]').length; }, true)"
    )
    width = "return document.querySelector('#chart-front .main-svg').getBoundingClientRect().width"
    before = page.js(width)
    pdf = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True})["data"])
    sheets = [tuple(map(float, box)) for box in re.findall(rb"/MediaBox \[0 0 (\S+) (\S+)\]", pdf)]
    assert len(sheets) >= 4
    assert all(wide > tall for wide, tall in sheets)
    assert page.js("return window.charts") is not None  # so it was told of the print, and drew for it
    assert page.js(width) == before
    assert page.errors() == []
