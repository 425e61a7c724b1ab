"""How large a report is, how long it takes to write, and how soon it has opened in Chromium from disk, for studies of several sizes.

    python tests/benchmarks/report_speed.py --out results/report-speed.csv

The studies are fake (tests/snapshots.py), the network is YOLO11n's; one thread. `opened_s` is from the navigation's start until the page's
script has drawn every figure, median of `--repeats` loads with the least and the most.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import chromium
import pandas as pd
from snapshots import study, with_network

from nas_attn import report

ENTRY = "return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"


def main() -> int:
    """Run the protocol; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[40, 200, 500])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nas-attn-report-") as folder:
        rows = [_row(Path(folder) / str(count), count, given.repeats) for count in given.trials]
    pd.DataFrame(rows).to_csv(given.out, index=False, lineterminator="\n")
    sys.stdout.write(given.out.read_text())
    return 0


def _row(folder: Path, count: int, repeats: int) -> dict[str, float]:
    folder.mkdir()
    snapshot = dataclasses.replace(study(count), folder=with_network(folder))
    began = time.monotonic()
    report.write(snapshot, folder)
    written_s = time.monotonic() - began
    opened = [_opened(folder / "report.html") for _ in range(repeats)]
    return {
        "trials": count,
        "megabytes": round((folder / "report.html").stat().st_size / 1e6, 2),
        "written_s": round(written_s, 1),
        "opened_s": round(statistics.median(opened), 2),
        "opened_least_s": round(min(opened), 2),
        "opened_most_s": round(max(opened), 2),
    }


def _opened(file: Path) -> float:
    """In a browser that has just been started, as by a double click; its own start is not counted."""
    driver = chromium.start("--window-size=1280,900")
    try:
        driver.get(file.as_uri())
        ended = driver.execute_script(ENTRY)  # the scripts at the page's end have run by then
        return float(ended) / 1000
    finally:
        driver.quit()


if __name__ == "__main__":
    sys.exit(main())
