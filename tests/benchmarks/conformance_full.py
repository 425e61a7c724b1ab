"""Every mechanism at a P3, a P4 and a P5 site of every family: builds, is silent at insertion, learns in one step, leaves as ONNX.

    python tests/benchmarks/conformance_full.py --out results/conformance-full.csv     # the same command goes on where it was stopped

A row is one mechanism in one family, in one model that has it at all three sites: the output at insertion, a training step, the export.
Where anything breaks, each site is examined alone as well. A cell says what broke, or `holds`.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from detector_grid import FAMILIES, examine, sites

from nas_attn.records import MODULES

LEVELS = ("P3", "P4", "P5")
COLUMNS = ("module", "family", "P3", "P4", "P5", "together")
HOLDS, ABSENT = "holds", "no such site"


def row(module: str, family: str) -> dict[str, str]:
    """One mechanism in one family, in one model that has it at all three sites; what breaks is looked for at each site alone."""
    chosen = [(level, module) for level in LEVELS if level in sites(family)]
    findings = examine(family, chosen, export=True)
    cells = dict.fromkeys(LEVELS, ABSENT)
    for level, _ in chosen:
        cells[level] = _text(examine(family, [(level, module)], export=True)) if findings else HOLDS
    return {"module": module, "family": family, **cells, "together": _text(findings)}


def _text(findings: list[str]) -> str:
    return "; ".join(findings) or HOLDS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, str]] = []
    if arguments.out.is_file():
        with arguments.out.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {(entry["module"], entry["family"]) for entry in rows}
    with arguments.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not rows:
            writer.writeheader()
        for family in FAMILIES:
            for module in (name for name in MODULES if (name, family) not in done):
                try:
                    entry = row(module, family)
                except Exception as error:
                    entry = {"module": module, "family": family, **dict.fromkeys(COLUMNS[2:], f"raised {type(error).__name__}: {error}")}
                rows.append(entry)
                writer.writerow(entry)
                file.flush()
                sys.stdout.write(" ".join(map(str, entry.values())) + "\n")
    broken = [entry for entry in rows if any(entry[key] not in (HOLDS, ABSENT) for key in COLUMNS[2:])]
    sys.stdout.write(f"{len(rows)} pairs of mechanism and family, {len(broken)} broken\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
