"""Times every attention module on this machine's CPU and writes the reference table; or only writes the page made from it.

python tests/benchmarks/module_timings.py            # measures, writes nas_attn/timings.csv and docs/modules.md
python tests/benchmarks/module_timings.py --page     # writes docs/modules.md alone
"""

import argparse
import csv
import platform
from pathlib import Path

import torch

from nas_attn import detector, listing, speed
from nas_attn.cost import deployed
from nas_attn.records import MODULES

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write docs/modules.md alone")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if not arguments.page:
        torch.set_num_threads(arguments.threads)
        graph, scale = detector.load_base(listing.BASE)
        base, image_BCHW = deployed(detector.build(graph, scale)), torch.zeros(1, 3, listing.BASE_SIDE, listing.BASE_SIDE)
        measured = speed.measure(list(MODULES), others={(listing.BASE, 0): (base, image_BCHW)})
        about = (
            f"# Milliseconds: one image, fp32, evaluation, {arguments.threads} threads of a shared {platform.machine()} machine, "
            f"torch {torch.__version__}; beside them {listing.BASE} at {listing.BASE_SIDE} px took {measured[listing.BASE, 0]:.0f}."
        )
        with (ROOT / "nas_attn" / listing.TIMINGS).open("w", newline="", encoding="utf-8") as file:
            file.write(about + "\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["name", "channels", "cpu_ms"])
            writer.writerows([name, channels, f"{ms:.3f}"] for (name, channels), ms in measured.items())
    (ROOT / "docs" / "modules.md").write_text(listing.markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
