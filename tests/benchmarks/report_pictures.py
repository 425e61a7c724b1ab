"""Pictures of a report as Chromium shows it: the first screen, the front, the atlas; wide, narrow and dark.

python tests/benchmarks/report_pictures.py demo/study/report.html --name demo --out docs
"""

import argparse
import base64
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import chromium

WIDE, NARROW, HEIGHT = 1280, 390, 900
BOX = """
const top = document.querySelector(arguments[0]).getBoundingClientRect(), more = arguments[1] ? document.querySelector(arguments[1]) : null;
const bottom = more ? more.getBoundingClientRect().top : top.bottom;
return [0, top.top + scrollY - 8, innerWidth, bottom - top.top + 8];
"""


def main() -> int:
    """Take the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args()
    driver = chromium.start()
    try:
        _open(driver, given.report, WIDE)
        _keep(driver, [0, 0, WIDE, HEIGHT], given.out / f"{given.name}-report.png")
        _keep(driver, driver.execute_script(BOX, "#front", "#observed"), given.out / f"{given.name}-report-front.png")
        _keep(driver, driver.execute_script(BOX, "#atlas"), given.out / f"{given.name}-report-atlas.png")
        _open(driver, given.report, NARROW, dark=True)
        _keep(driver, [0, 0, NARROW, HEIGHT], given.out / f"{given.name}-report-narrow.png")
    finally:
        driver.quit()
    return 0


def _open(driver: Any, report: Path, width: int, dark: bool = False) -> None:
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(report.resolve().as_uri())


def _keep(driver: Any, box: list[float], to: Path) -> None:
    clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": 1}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    to.write_bytes(base64.b64decode(taken["data"]))
    sys.stdout.write(f"{to}\n")


if __name__ == "__main__":
    sys.exit(main())
