"""The report as people see it: opened from disk by a real Chromium that has no network, at two widths, light and dark."""

import dataclasses
import json
import re

import pytest
from report_page import CUT, EMPTY, NARROW, NEEDS, OUTSIDE, OVERLAPS, SMALL, STRUCK, WIDE, Page, clear, crowded, running, written
from snapshots import HOSTILE, base, failed, measured, placement, snapshot, study, trial

from nas_attn import pick, report
from nas_attn.architecture import Placement
from nas_attn.posterior import believe

pytestmark = NEEDS
LAYOUT = {"over another": OVERLAPS, "outside": OUTSIDE, "struck through": STRUCK, "too small": SMALL, "cut off": CUT, "empty": EMPTY}
HARD = {
    "only the base": lambda: snapshot(base()),
    "one trial": lambda: snapshot(base(), trial(1, [placement(4)], 0.31, 1.1)),
    "all failed": lambda: snapshot(failed(0), failed(1)),
    "500 trials": lambda: study(500),
    "three objectives": lambda: study(30, three=True),
    "something to take": clear,
    "names with HTML": lambda: snapshot(
        base(controls={HOSTILE: measured(0.3)}),
        *(trial(k, [Placement(layer=4 + k, module=HOSTILE)], 0.32 + k / 1e3, 1.1, gates={HOSTILE: 0.1}) for k in range(1, 12)),
        failed(20, error=HOSTILE),
        name=HOSTILE,
    ),
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    yield from running(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A study on a drawn network, and its folder with the report."""
    return written(crowded(), tmp_path_factory.mktemp("study"))


@pytest.fixture(params=[WIDE, NARROW])
def page(driver, drawn, request):
    return Page(driver, drawn[1] / "report.html", request.param, touch=request.param == NARROW)


def faults(page):
    """All that is wrong with a page's layout."""
    return {name: found for name, code in LAYOUT.items() if (found := page.js(code))}


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_without_an_error_and_fits(driver, drawn, width, dark):
    page = Page(driver, drawn[1] / "report.html", width, dark)
    assert page.errors() == []
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
    assert faults(page) == {}
    page.press("button.trial[data-number='99']")  # long names after neighbours
    page.press("[data-show-atlas='latency']")
    assert page.js("return Array.from(document.querySelectorAll('#trial-network .flags text')).map((t) => t.firstChild.data)") == [
        "DoubleAttention", "HaloAttention", "DoubleAttention",
    ]  # fmt: skip
    assert faults(page) == {}
    assert page.js("return document.querySelectorAll('.chart .main-svg').length") >= 4
    ground = page.js("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(18, 21, 27)") == dark
    assert page.js("return document.getElementById('chart-front')._fullLayout.font.color") == ("#9aa4b2" if dark else "#5b6472")


@pytest.mark.parametrize("name", HARD)
def test_hard_studies_open(driver, tmp_path, name):
    written(HARD[name](), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 6e6
    for width in (WIDE, NARROW):
        page = Page(driver, tmp_path / "report.html", width)
        assert page.errors() == []
        assert page.js("return document.documentElement.scrollWidth <= innerWidth")
        assert faults(page) == {}
    assert page.js("return document.querySelectorAll('img').length") == 0
    assert len(page.text("#answer h1")) > 5
    assert ("Take " in page.text("#answer h1")) == (name in ("something to take", "names with HTML"))


def test_the_first_screen_says_what_to_take_and_how_sure_that_is(driver, drawn):
    seen = Page(driver, drawn[1] / "report.html").js(
        "return Array.from(document.querySelectorAll('#answer h1, #answer .lead, #answer .figure, #answer .interval, #answer code'))"
        ".filter((e) => e.getBoundingClientRect().bottom < innerHeight).map((e) => e.className || e.tagName)"
    )
    assert len(seen) == 8, seen


def test_what_weighs_most_against_the_answer_stands_beside_it(driver, tmp_path):
    written(snapshot(base([0.3]), *(trial(k, [placement(4 + k)], 0.3, 1.1) for k in range(1, 12))), tmp_path)
    first = "const w = document.querySelector('#answer .caveats li').getBoundingClientRect(); return w.top > 0 && w.bottom < innerHeight"
    assert Page(driver, tmp_path / "report.html").js(first)


def test_a_hover_shows_the_trial_and_where_its_modules_stand(driver, drawn):
    page, snap = Page(driver, drawn[1] / "report.html"), drawn[0]
    for number in (1, 5):
        page.hover(number)
        page.until(lambda number=number: page.shown() == number)
        rows = page.js("return Array.from(document.querySelectorAll('#trial-network .node.placed')).map((n) => Number(n.dataset.row))")
        assert rows == [p.layer for p in snap.trials[number].architecture.placements]
        assert f"Trial {number}" in page.text("#trial-card h3")
        assert f"{snap.trials[number].cost.latency.ratio:.3f} ×" in page.text("#trial-card dl")


def test_a_click_or_a_tap_pins_a_trial_and_a_second_one_unpins_it(page):
    page.click(3)
    page.until(lambda: page.pins() == ["#3 ✕"])
    assert "pins=3" in page.driver.current_url
    pressed = "return document.querySelector(\"#trials button.trial[data-number='5']\").ariaPressed"
    assert page.js(pressed) == "false"
    page.press("#trials button.trial[data-number='5']")
    assert page.pins() == ["#3 ✕", "#5 ✕"]
    assert page.js(pressed) == "true"
    again = Page(page.driver, page.driver.current_url, page.js("return innerWidth"), touch=page.touch)
    assert again.pins() == ["#3 ✕", "#5 ✕"]
    again.js("setTimeout(() => { window.later = true; }, 700)")
    again.until(lambda: again.js("return window.later === true"))  # a second tap, not the double of the first
    again.click(3)
    again.until(lambda: again.pins() == ["#5 ✕"])


def test_what_a_tap_changes_stands_beside_what_is_tapped(driver, drawn):
    page = Page(driver, drawn[1] / "report.html", NARROW, touch=True)
    page.click(99)
    page.until(lambda: page.shown() == 99)
    page.js("document.getElementById('chart-front').scrollIntoView({block: 'start', behavior: 'instant'})")
    assert page.sees("#chart-front")
    assert page.sees("#trial-network")
    assert page.sees("#trial-card h3")
    inside = page.js(
        "const w = document.getElementById('trial-network').getBoundingClientRect();"
        "return Array.from(document.querySelectorAll('#trial-network .node.placed rect, #trial-network .flags text'))"
        ".map((e) => e.getBoundingClientRect())"
        ".map((b) => b.left >= w.left && b.right <= w.right)"
    )
    assert inside == 6 * [True]


def test_a_finger_that_swipes_over_a_figure_scrolls_the_page(driver, drawn):
    page = Page(driver, drawn[1] / "report.html", NARROW, touch=True)
    x, y = page.point(3)
    before, spans = page.js("return [scrollY, document.getElementById('chart-front')._fullLayout.yaxis.range]")
    page.touched("touchStart", x, y)
    for moved in range(20, 320, 20):
        page.touched("touchMove", x, y - moved)
    page.touched("touchEnd")
    page.until(lambda: page.js("return scrollY") > before + 100)
    assert page.js("return document.getElementById('chart-front')._fullLayout.yaxis.range") == spans


def test_what_does_not_fit_says_that_it_scrolls(page):
    told = page.js(
        "return Array.from(document.querySelectorAll('.scroll')).filter((e) => e.checkVisibility())"
        ".map((e) => [e.scrollWidth > e.clientWidth + 1, getComputedStyle(e, '::before').content.includes('more to the side')])"
    )
    assert len(told) > 5
    assert [scrolls for scrolls, _ in told] == [says for _, says in told]
    assert any(scrolls for scrolls, _ in told) or not page.touch


def test_a_pin_keeps_the_limit_and_the_zoom(driver, drawn):
    page = Page(driver, drawn[1] / "report.html")
    page.slide(1.2)
    assert page.lines() == [1.2]
    page.js("return Plotly.relayout('chart-front', {'xaxis.range': [1.0, 1.25], 'yaxis.range': [0.28, 0.32]}).then(() => true)")
    page.press("#trials button.trial[data-number='3']")
    assert page.pins() == ["#3 ✕"]
    assert page.lines() == [1.2]
    zoom = "const l = document.getElementById('chart-front')._fullLayout; return [...l.xaxis.range, ...l.yaxis.range]"
    assert page.js(zoom) == [1.0, 1.25, 0.28, 0.32]
    page.slide(1.1)
    assert page.lines() == [1.1]
    assert page.js(zoom) == [1.0, 1.25, 0.28, 0.32]


def test_a_link_shows_what_was_seen(driver, tmp_path):
    _, folder = written(clear(), tmp_path)
    page = Page(driver, folder / "report.html")
    page.press("#trials button.trial[data-number='5']")
    page.slide(1.15)
    assert page.shown() == 2
    page.press("nav a")
    again = Page(driver, driver.current_url)
    assert (again.pins(), again.lines(), again.shown(), again.text("#limit-value")) == (["#5 ✕"], [1.15], 2, "1.150 ×")
    assert again.text("#limited code").endswith(" --max-latency-ratio 1.120000 --to winner")
    again.press("#trials button.trial[data-number='6']")
    once_more = Page(driver, driver.current_url)
    assert (once_more.pins(), once_more.lines(), once_more.shown()) == (["#5 ✕", "#6 ✕"], [1.15], 6)
    by_hand = Page(driver, f"{(folder / 'report.html').as_uri()}#pins=3&limit=1.06")
    assert (by_hand.pins(), by_hand.shown()) == (["#3 ✕"], 1)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_slider_moves_the_recommendation_as_pick_would(driver, tmp_path, width):
    snap, folder = written(clear(), tmp_path)
    page, believed = Page(driver, folder / "report.html", width), believe(snap)
    taken = []
    for limit in (1.0, 1.04, 1.05, 1.1, 1.12, 1.2, 1.3):
        page.slide(limit)
        chosen = pick.pick(snap, "best", limit, posterior=believed).trial.number
        command = page.text("#limited code")
        assert bool(command) == (chosen != 0), "there is nothing to export where the base is kept"
        if command:
            given = float(re.search(r"--max-latency-ratio (\S+) --to winner$", command)[1])
            assert pick.pick(snap, "best", given, posterior=believed).trial.number == chosen, limit
        assert page.shown() == chosen
        assert page.lines() == [limit]
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


def test_every_table_can_be_downloaded(page, drawn, tmp_path):
    snap, folder = drawn
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
    page.js("document.querySelector(\"[data-atlas='latency'] .cell\").dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert page.js("return document.getElementById('cell-card').hidden") is False
    assert " after " in page.text("#cell-card h3")
    assert page.js("return document.querySelectorAll('#cell-options tr').length") >= 1


def test_a_watched_report_loads_itself_again(driver, tmp_path):
    snap = dataclasses.replace(study(3), folder=tmp_path)
    report.write(snap, tmp_path, refresh_s=1.0)
    page = Page(driver, tmp_path / "report.html")
    page.js("window.before = true")
    report.write(dataclasses.replace(study(4), folder=tmp_path), tmp_path)
    page.until(lambda: page.js("return window.before !== true && document.documentElement.dataset.ready === 'true'"))
    page.until(lambda: json.loads(page.text("#study"))["refresh_s"] is None)
