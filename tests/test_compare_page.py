"""The page of two studies as people see it: opened from disk by a real Chromium, at two widths."""

import dataclasses
import json

import chromium
import pytest
from snapshots import study, with_network

from nas_attn import comparison

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not chromium.there(), reason="needs Debian's chromium and chromium-driver (.ci/run installs them)"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    running = chromium.start("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    yield running
    running.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The page of two studies on a drawn network, with atlases of both."""
    folders = [with_network(tmp_path_factory.mktemp(name)) for name in ("first", "second")]
    both = [
        dataclasses.replace(study(16, seed=seed), name=folder.name, folder=folder) for seed, folder in zip((0, 3), folders, strict=True)
    ]
    path = folders[0] / "both.html"
    path.write_text(comparison.page(comparison.compare(*both)), encoding="utf-8")
    return path


@pytest.fixture(params=[1280, 390])
def opened(request, driver, file):
    """The browser with the page, which has said nothing on its console."""
    size = {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get(file.as_uri())
    assert driver.execute_script("return document.documentElement.dataset.ready") == "true"
    assert complaints(driver) == []
    return driver


def complaints(driver):
    return [entry["message"] for entry in driver.get_log("browser")]


def test_it_fits_and_every_figure_is_drawn(opened):
    assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert opened.execute_script("return document.querySelectorAll('.chart .main-svg').length") >= 2
    assert opened.execute_script("return document.querySelectorAll('svg.atlas').length") == 2


def test_a_cell_is_no_button_and_takes_a_click_and_a_key_without_an_error(opened):
    said = opened.execute_script(
        """
const cells = Array.from(document.querySelectorAll("svg .cell"));
for (const cell of cells) {
  cell.dispatchEvent(new MouseEvent("click", {bubbles: true}));
  cell.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
}
return JSON.stringify({count: cells.length, buttons: cells.filter((c) => c.hasAttribute("role") || c.hasAttribute("tabindex")).length});
"""
    )
    found = json.loads(said)
    assert found["count"] > 20
    assert found["buttons"] == 0
    assert complaints(opened) == []
