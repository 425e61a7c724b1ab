"""A report in a browser of its own without a network, and what can be asked of its layout: for tests that open reports."""

import dataclasses
import time
from pathlib import Path

import chromium
import pytest
from snapshots import base, placement, rejected, snapshot, study, trial, with_network

from nas_attn import report

WIDE, NARROW, HEIGHT = 1280, 390, 844
NEEDS = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (chromium.CHROMIUM and chromium.DRIVER), reason="needs Debian's chromium and chromium-driver (.ci/run installs them)"
    ),
]


def running(profile):
    """A browser that is offline, until the generator is closed."""
    driver = chromium.start("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}")
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


def written(snap, folder):
    """The study with its folder, in which its report is."""
    snap = dataclasses.replace(snap, folder=folder)
    with_network(folder)
    report.write(snap, folder)
    return snap, folder


def crowded():
    """40 trials and one, 99, whose long names stand after rows that are neighbours; one place was over the limit alone."""
    drawn = study(40)
    neighbours = trial(99, [placement(9, 4), placement(10, 3), placement(13, 4)], 0.31, 1.15)
    return dataclasses.replace(drawn, trials=(*drawn.trials, neighbours, rejected(98, layer=8)))


def clear():
    """Three placements with large effects at different prices, so that there is something to take, and the recommendation has steps."""
    effects = {4: (0.02, 0.05), 6: (0.05, 0.12), 9: (0.09, 0.30)}
    trials = [
        trial(k, [placement(row)], [0.3 + gain + s / 1e4 for s in (-1, 0, 1)], 1 + slower)
        for k, (row, (gain, slower)) in enumerate(effects.items(), 1)
    ]
    others = [trial(k, [placement(row)], [0.2899, 0.29, 0.2901], 1.2) for k, row in enumerate((10, 13, 16, 19, 22), 4)]
    return snapshot(base((0.2999, 0.3, 0.3001)), *trials, *others)


class Page:
    """A report in the browser."""

    def __init__(self, driver, file, width=WIDE, dark=False, touch=False):
        self.driver, self.touch = driver, touch
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch, "maxTouchPoints": 1})
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
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
        if self.touch:
            x, y = self.point(number)
            self.touched("touchStart", x, y)
            self.touched("touchEnd")
            return
        x, y = self.hover(number)
        self.until(lambda: self.shown() == number)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def touched(self, kind, *at):
        points = [dict(zip("xy", at, strict=True))] if at else []
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def shown(self):
        return int(self.js("return document.getElementById('trial-card').dataset.number"))

    def slide(self, limit):
        code = "const s = document.getElementById('limit'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
        self.js(code, str(limit))

    def pins(self):
        return self.js("return Array.from(document.querySelectorAll('#pins button')).map((b) => b.textContent)")

    def lines(self):
        """Where limits are drawn on the front, upright lines."""
        upright = "(s) => s.type === 'line' && s.x0 === s.x1"
        shapes = "document.getElementById('chart-front')._fullLayout.shapes"
        return self.js(f"return {shapes}.filter({upright}).map((s) => s.x0)")

    def sees(self, selector):
        """Whether an element is in the window whole, as far as its height goes."""
        code = """
const b = document.querySelector(arguments[0]).getBoundingClientRect();
return b.height > 0 && b.top >= -1 && b.bottom <= innerHeight + 1;
"""
        return self.js(code, selector)

    def press(self, selector):
        self.js("document.querySelector(arguments[0]).click()", selector)

    def until(self, held, seconds=10.0):
        end = time.monotonic() + seconds
        while not held():
            assert time.monotonic() < end, "it never came"
            time.sleep(0.05)


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
STRUCK = """
const found = [], inside = (b, p, m) => p.x > b.left + m && p.x < b.right - m && p.y > b.top + 2 * m && p.y < b.bottom - 2 * m;
for (const svg of document.querySelectorAll("svg.network, svg.atlas")) {
  if (!svg.getBoundingClientRect().width) continue;
  const grounds = Array.from(svg.querySelectorAll(".node rect, .cell .ground, .lost rect")).map((e) => e.getBoundingClientRect());
  const texts = Array.from(svg.querySelectorAll("text")).filter((e) => e.textContent.trim())
    .map((e) => [e.textContent, e.getBoundingClientRect()]);
  for (const line of svg.querySelectorAll("path.edge, line, path.sure")) {
    const to = line.getScreenCTM(), length = line.getTotalLength();
    for (let at = 0; at <= length; at += 2) {
      const p = line.getPointAtLength(at).matrixTransform(to);
      // a ground is drawn over what runs beneath it
      const over = line.closest(".flags, .cell") ? false : grounds.some((b) => inside(b, p, 0));
      const struck = over ? undefined : texts.find(([, b]) => inside(b, p, 1));
      if (struck) { found.push(line.getAttribute("class") + " through " + struck[0]); break; }
    }
  }
}
return found;
"""
SMALL = """
const found = [];
for (const text of document.querySelectorAll("svg.network text, svg.atlas text")) {
  const size = parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a;
  if (text.getBoundingClientRect().width && size < 8.4) found.push(text.textContent + ": " + size);
}
return found;
"""
CUT = """
const found = [];
for (const chart of document.querySelectorAll(".chart")) {
  const whole = chart.getBoundingClientRect(), legend = chart.querySelector(".legend .bg"), plot = chart.querySelector(".nsewdrag");
  for (const text of chart.querySelectorAll(".xtitle, .ytitle, .x2title, .y2title, .legendtext")) {
    const b = text.getBoundingClientRect();
    if (b.top < whole.top - 1 || b.bottom > whole.bottom + 1 || b.left < whole.left - 1 || b.right > whole.right + 1) {
      found.push(text.textContent);
    }
  }
  if (legend && legend.getBoundingClientRect().bottom > plot.getBoundingClientRect().top + 1) found.push("legend of " + chart.id);
}
return found;
"""
EMPTY = """
return Array.from(document.querySelectorAll("main section")).filter((s) => s.textContent.trim().length < 20).map((s) => s.id)
  .concat(Array.from(document.querySelectorAll(".chart"))
  .filter((c) => !c.querySelector(".main-svg") || !c.querySelector(".point, .js-line")).map((c) => c.id));
"""
