"""How different latency is by another runtime: some placements, each timed beside the base by torch and by ONNX Runtime.

    python tests/benchmarks/backend_fronts.py --out results/backend-fronts-yolo11n-160px-cpu-t1.csv [--modules LSKA,LIA,...] [--site P4]

One row a candidate: one module after one site of the base, with its default hyperparameters, and the median ratio of each backend with its
95 % interval and quality. Printed beside it: Kendall's tau of the two orders, how many of the ratios differ by more than both intervals,
and the fronts. No accuracy is measured here: for the fronts each candidate gets scores drawn at random, `--draws` times, the same for
both backends; told is the mean share of one front's members that are on the other.
"""

import argparse
import csv
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from scipy.stats import kendalltau

from nas_attn import detector, latency
from nas_attn.architecture import Architecture, Placement
from nas_attn.outcome import Latency
from nas_attn.pareto import front
from nas_attn.records import record
from nas_attn.runner import BACKENDS

MODULES = "LSKA,LIA,EMA,CoordAtt,TripletAttention,SimAM,HaloAttention,DoubleAttention,CBAM,MHSA"
COLUMNS = ("module", "site", "backend", "ratio", "low", "high", "base_ms", "quality", "blocks")
DIRECTIONS = ("maximize", "minimize")


def timed(models: list[torch.nn.Module], backend: str, options: argparse.Namespace) -> list[Latency]:
    """Latencies of all but the first model, beside the first."""
    shared = {"shape": (1, 3, options.imgsz, options.imgsz), "threads": options.threads, "blocks": options.blocks, "backend": backend}
    gate = latency.calibrate(models[0], runs=options.calibrations, **shared)
    return latency.measure(models[0], models[1:], gate=gate, retries=options.retries, **shared)


def shared_fronts(first: list[float], second: list[float], draws: int) -> float:
    """The mean share of the first front's members, the base not counted, that are on the second, over random scores; base included."""
    rng, shares = random.Random(0), []
    for _ in range(draws):
        scores = [rng.random() for _ in range(len(first) + 1)]
        fronts = [set(front(list(zip(scores, [1.0, *ratios], strict=True)), DIRECTIONS)) - {0} for ratios in (first, second)]
        if fronts[0]:
            shares.append(len(fronts[0] & fronts[1]) / len(fronts[0]))
    return statistics.fmean(shares)


def main() -> None:
    """Parse, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="yolo11n.yaml")
    parser.add_argument("--modules", default=MODULES)
    parser.add_argument("--site", default="P4")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--calibrations", type=int, default=6)
    parser.add_argument("--retries", type=int, default=1)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    detector.silence()
    start = time.perf_counter()
    graph, scale, sites = detector.base_sites(options.base)
    row = next(site.layer for site in sites if options.site in site.names)
    state = detector.build(graph, scale, 1).state_dict()
    names = options.modules.split(",")
    chosen = [(), *((Placement(row, name, record(name).complete({})),) for name in names)]
    models = [detector.build_architecture(graph, scale, Architecture(options.base, placed), ("a",), state)[0] for placed in chosen]
    found = {backend: timed(models, backend, options) for backend in BACKENDS}
    rows = [
        (name, options.site, backend, *(f"{x:.4f}" for x in (one.ratio, one.low, one.high, one.base_ms)), one.quality, one.blocks)
        for backend, answers in found.items()
        for name, one in zip(names, answers, strict=True)
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    ratios = [[one.ratio for one in found[backend]] for backend in BACKENDS]
    apart = sum(a.high < b.low or b.high < a.low for a, b in zip(*(found[backend] for backend in BACKENDS), strict=True))
    sys.stdout.write(
        f"{len(names)} placements after {options.site} of {options.base}, {options.threads} thread(s), {options.imgsz} px; "
        f"base {found['torch'][0].base_ms:.2f} ms by torch, {found['onnxruntime'][0].base_ms:.2f} ms by ONNX Runtime\n"
        f"Kendall's tau of the ratios: {kendalltau(*ratios).statistic:.2f}; {apart} of {len(names)} ratios differ beyond both intervals\n"
        f"of one front's members (random scores, {options.draws} draws) on the other: {shared_fronts(*ratios, options.draws):.2f} "
        f"(torch's on ONNX Runtime's), {shared_fronts(*ratios[::-1], options.draws):.2f} (the other way)\n"
        f"{time.perf_counter() - start:.0f} s\n"
    )


if __name__ == "__main__":
    main()
