"""The report as people see it: opened from disk by a real Chromium that has no network, at two widths, light, dark and in print."""

import base64
import dataclasses
import json
import time
from pathlib import Path

import chromium
import pytest
from snapshots import HOSTILE, base, failed, measured, placement, snapshot, study, trial, with_network

from nas_attn import pick, report
from nas_attn.architecture import Placement
from nas_attn.posterior import believe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (chromium.CHROMIUM and chromium.DRIVER), reason="needs Debian's chromium and chromium-driver (.ci/run installs them)"
    ),
]
WIDE, NARROW = 1280, 390
HARD = {
    "only the base": lambda: snapshot(base()),
    "one trial": lambda: snapshot(base(), trial(1, [placement(4)], 0.31, 1.1)),
    "all failed": lambda: snapshot(failed(0), failed(1)),
    "500 trials": lambda: study(500),
    "three objectives": lambda: study(30, three=True),
    "names with HTML": lambda: snapshot(
        base(controls={HOSTILE: measured(0.3)}),
        *(trial(k, [Placement(layer=4 + k, module=HOSTILE)], 0.32 + k / 1e3, 1.1, gates={HOSTILE: 0.1}) for k in range(1, 12)),
        failed(20, error=HOSTILE),
        name=HOSTILE,
    ),
}


class Page:
    """A report in the browser."""

    def __init__(self, driver, file, width=WIDE, dark=False):
        self.driver = driver
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        )
        driver.get("about:blank")  # so that the same file with another fragment is loaded anew
        driver.get_log("browser")
        driver.get(file if "://" in str(file) else Path(file).as_uri())
        assert self.js("return document.documentElement.dataset.ready") == "true"

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def errors(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def mouse(self, kind, x, y):
        event = {
            "type": kind,
            "x": x,
            "y": y,
            "button": "none" if kind == "mouseMoved" else "left",
            "clickCount": int(kind != "mouseMoved"),
        }
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def point(self, number):
        """The place of a trial's mark in the window."""
        code = """
const chart = document.getElementById("chart-front"), trial = JSON.parse(document.getElementById("study").textContent).trials[arguments[0]];
chart.scrollIntoView({block: "center", behavior: "instant"});
const box = chart.querySelector(".nsewdrag").getBoundingClientRect(), layout = chart._fullLayout;
return [box.left + layout.xaxis.l2p(trial.latency), box.top + layout.yaxis.l2p(trial.y)];
"""
        return self.js(code, number)

    def hover(self, number):
        x, y = self.point(number)
        self.mouse("mouseMoved", x - 30, y - 30)
        self.mouse("mouseMoved", x, y)
        return x, y

    def click(self, number):
        x, y = self.hover(number)
        self.until(lambda: self.shown() == number)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def shown(self):
        return int(self.js("return document.getElementById('trial-card').dataset.number"))

    def press(self, selector):
        self.js("document.querySelector(arguments[0]).click()", selector)

    def until(self, held, seconds=10.0):
        end = time.monotonic() + seconds
        while not held():
            assert time.monotonic() < end, "it never came"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    running = chromium.start("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}")
    running.execute_cdp_cmd("Network.enable", {})
    running.execute_cdp_cmd(
        "Network.emulateNetworkConditions", {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    )
    yield running
    running.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A study of 40 trials on a drawn network, and its folder with the report."""
    folder = tmp_path_factory.mktemp("study")
    snap = dataclasses.replace(study(40), folder=folder)
    with_network(folder)
    report.write(snap, folder)
    return snap, folder


@pytest.fixture
def page(driver, written):
    return Page(driver, written[1] / "report.html")


OVERLAPS = """
const shown = (e) => { const b = e.getBoundingClientRect(); return b.width > 0 && b.height > 0; };
const found = [];
for (const svg of document.querySelectorAll("svg.network, svg.atlas")) {
  const texts = Array.from(svg.querySelectorAll("text")).filter((e) => e.textContent.trim() && shown(e));
  const boxes = texts.map((e) => e.getBoundingClientRect());
  for (let i = 0; i < texts.length; i++) for (let k = 0; k < i; k++) {
    const a = boxes[i], b = boxes[k];
    const w = Math.min(a.right, b.right) - Math.max(a.left, b.left), h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (w > 1.5 && h > 2.5) found.push(texts[i].textContent + " | " + texts[k].textContent);
  }
}
return found;
"""
OUTSIDE = """
const found = [];
for (const e of document.querySelectorAll("main *")) {
  if (e.closest("svg, .scroll") || !Array.from(e.childNodes).some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
  const b = e.getBoundingClientRect();
  if (b.width && (b.left < -1 || b.right > innerWidth + 1)) found.push(e.tagName + ": " + e.textContent.slice(0, 40));
  if (e.scrollWidth > e.clientWidth + 2 && getComputedStyle(e).overflowX === "hidden") found.push("cut: " + e.textContent.slice(0, 40));
}
return found;
"""
EMPTY = """
return Array.from(document.querySelectorAll("main section")).filter((s) => s.textContent.trim().length < 20).map((s) => s.id)
  .concat(Array.from(document.querySelectorAll(".chart"))
  .filter((c) => c.querySelector(".main-svg") && !c.querySelector(".point, .js-line")).map((c) => c.id));
"""


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_without_an_error_and_fits(driver, written, width, dark):
    page = Page(driver, written[1] / "report.html", width, dark)
    assert page.errors() == []
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
    assert page.js(OVERLAPS) == []
    assert page.js(OUTSIDE) == []
    assert page.js(EMPTY) == []
    assert page.js("return document.querySelectorAll('.chart .main-svg').length") >= 4
    ground = page.js("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(18, 21, 27)") == dark
    assert page.js("return document.getElementById('chart-front')._fullLayout.font.color") == ("#9aa4b2" if dark else "#5b6472")


@pytest.mark.parametrize("name", HARD)
def test_hard_studies_open(driver, tmp_path, name):
    snap = dataclasses.replace(HARD[name](), folder=tmp_path)
    with_network(tmp_path)
    report.write(snap, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 6e6
    for width in (WIDE, NARROW):
        page = Page(driver, tmp_path / "report.html", width)
        assert page.errors() == []
        assert page.js("return document.documentElement.scrollWidth <= innerWidth")
        assert page.js(OUTSIDE) == []
        assert page.js(OVERLAPS) == []
    assert page.js("return document.querySelectorAll('img').length") == 0
    assert len(page.text("#answer h1")) > 5


def test_the_first_screen_says_what_to_take_and_how_sure_that_is(page):
    seen = page.js(
        "return Array.from(document.querySelectorAll('#answer h1, #answer .lead, #answer .figure, #answer .interval, #answer code'))"
        ".filter((e) => e.getBoundingClientRect().bottom < innerHeight).map((e) => e.className || e.tagName)"
    )
    assert len(seen) == 8, seen


def test_a_hover_shows_the_trial_and_where_its_modules_stand(page, written):
    snap, _ = written
    for number in (1, 5):
        page.hover(number)
        page.until(lambda number=number: page.shown() == number)
        rows = page.js("return Array.from(document.querySelectorAll('#trial-network .node.placed')).map((n) => Number(n.dataset.row))")
        assert rows == [p.layer for p in snap.trials[number].architecture.placements]
        assert f"Trial {number}" in page.text("#trial-card h3")
        assert f"{snap.trials[number].cost.latency.ratio:.3f} ×" in page.text("#trial-card dl")


def test_a_click_pins_a_trial_and_a_second_one_unpins_it(page):
    page.click(3)
    page.until(lambda: page.js("return document.querySelectorAll('#pins button').length") == 1)
    assert page.text("#pins button") == "#3 ✕"
    assert "pins=3" in page.driver.current_url
    page.press("#trials button.trial[data-number='5']")
    assert page.js("return Array.from(document.querySelectorAll('#pins button')).map((b) => b.textContent)") == ["#3 ✕", "#5 ✕"]
    again = Page(page.driver, page.driver.current_url)
    assert again.js("return document.querySelectorAll('#pins button').length") == 2
    again.press("#pins button")
    assert again.js("return Array.from(document.querySelectorAll('#pins button')).map((b) => b.textContent)") == ["#5 ✕"]


def test_the_slider_moves_the_recommendation_as_pick_would(driver, tmp_path):
    # Three placements with large effects at different prices, so that the recommendation has steps.
    effects = {4: (0.02, 0.05), 6: (0.05, 0.12), 9: (0.09, 0.30)}
    trials = [
        trial(k, [placement(row)], [0.3 + gain + s / 1e4 for s in (-1, 0, 1)], 1 + slower)
        for k, (row, (gain, slower)) in enumerate(effects.items(), 1)
    ]
    others = [trial(k, [placement(row)], [0.2899, 0.29, 0.2901], 1.2) for k, row in enumerate((10, 13, 16, 19, 22), 4)]
    snap = dataclasses.replace(snapshot(base((0.2999, 0.3, 0.3001)), *trials, *others), folder=tmp_path)
    report.write(snap, tmp_path)
    page, believed = Page(driver, tmp_path / "report.html"), believe(snap)
    taken = []
    for limit in (1.0, 1.04, 1.05, 1.1, 1.12, 1.2, 1.3):
        page.js("const s = document.getElementById('limit'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))", str(limit))
        chosen = pick.pick(snap, "best", limit, posterior=believed).trial.number
        assert f"--trial {chosen} " in page.text("#limited code"), limit
        assert page.shown() == chosen
        taken.append(chosen)
    assert taken == [0, 0, 1, 1, 2, 2, 3]
    assert page.text("#limit-value") == "1.300 ×"


def test_the_slider_answers_to_the_keyboard(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    slider = page.driver.find_element(By.ID, "limit")
    before = page.text("#limit-value")
    slider.send_keys(Keys.ARROW_LEFT)
    assert page.text("#limit-value") != before
    assert "limit=" in page.driver.current_url


def test_every_table_can_be_downloaded(page, written, tmp_path):
    snap, folder = written
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    names = page.js("return Array.from(document.querySelectorAll('[data-download]')).map((b) => b.dataset.download)")
    assert names == list(report.study(snap).tables)
    for name in names:
        page.press(f"[data-download='{name}']")
        page.until(lambda name=name: (tmp_path / name).is_file())
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert page.errors() == []


def test_the_atlas_shows_latency_too_and_a_cells_parts(page):
    assert page.js("return Array.from(document.querySelectorAll('[data-atlas]')).map((e) => e.hidden)") == [False, True]
    page.press("[data-show-atlas='latency']")
    assert page.js("return Array.from(document.querySelectorAll('[data-atlas]')).map((e) => e.hidden)") == [True, False]
    assert page.js(OVERLAPS) == []
    page.js("document.querySelector(\"[data-atlas='latency'] .cell\").dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert page.js("return document.getElementById('cell-card').hidden") is False
    assert " after " in page.text("#cell-card h3")
    assert page.js("return document.querySelectorAll('#cell-options tr').length") >= 1


def test_it_prints_with_everything_unfolded(page):
    page.js("document.querySelectorAll('details').forEach((d) => { d.open = false; }); dispatchEvent(new Event('beforeprint'))")
    assert page.js("return Array.from(document.querySelectorAll('details')).every((d) => d.open)")
    page.js("dispatchEvent(new Event('afterprint'))")
    assert page.js("return Array.from(document.querySelectorAll('details')).some((d) => !d.open)")
    pdf = base64.b64decode(page.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 30_000


def test_a_watched_report_loads_itself_again(driver, tmp_path):
    snap = dataclasses.replace(study(3), folder=tmp_path)
    report.write(snap, tmp_path, refresh_s=1.0)
    page = Page(driver, tmp_path / "report.html")
    page.js("window.before = true")
    report.write(dataclasses.replace(study(4), folder=tmp_path), tmp_path)
    page.until(lambda: page.js("return window.before !== true && document.documentElement.dataset.ready === 'true'"))
    page.until(lambda: json.loads(page.text("#study"))["refresh_s"] is None)
