"""How fast each attention module is beside the plainest correct implementation of the same thing: same weights, same input, one run.

    python tests/benchmarks/attention_speed.py --out results/attention-speed-cpu-2threads.csv [--names LSKA,LIA] [--rounds 11]

The plain forms are in the files `plain_*.py` beside this one: timm's or Ultralytics' own module where the mechanism comes from there, and
otherwise what a careful person would write after the reference's structure. Both compute m(x) without the gate; a test holds them equal.
In every round each module and its plain form run in random order, forward alone (evaluation, one image, no gradients) and forward with
backward (training, two images, gradients of weights and input); the ratio of a round is plain over ours, so that above 1 ours is faster.
Kept: the median ratio and its 5th and 95th percentile over the rounds, and both median times.
"""

import argparse
import csv
import importlib
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas_attn.contract import Case
from nas_attn.listing import SIZES
from nas_attn.records import MODULES

FAMILIES = ("seed", "channel", "spatial", "wide", "windowed", "block")
LEAST_S = 0.02
MOST_CALLS = 50
LEAST_ROUNDS = 5
MOST_S = 10.0
"""Seconds for one comparison; quadratic attention on the largest map takes seconds a call."""
LARGEST_WINDOW = 9
COLUMNS = ("name", "channels", "side", "pass", "ratio", "ratio_p5", "ratio_p95", "ours_ms", "plain_ms", "rounds")

Call = Callable[[Tensor], Tensor]


def plain_forms() -> dict[str, Callable[[torch.nn.Module], Call]]:
    """The plain form of every mechanism, as a function from our module."""
    return {name: form for family in FAMILIES for name, form in importlib.import_module(f"plain_{family}").PLAIN.items()}


def seconds(call: Call, x_BCHW: Tensor, backward: bool) -> float:
    """One call, timed."""
    start = time.perf_counter()
    if backward:
        call(x_BCHW).square().mean().backward()
    else:
        with torch.no_grad():
            call(x_BCHW)
    return time.perf_counter() - start


def fitting(module: torch.nn.Module, plain: Call, case: Case, batch: int, side: int) -> Tensor:
    """The map, as much larger as the plain form needs where it takes only whole windows."""
    for more in range(LARGEST_WINDOW):
        x = case.draw(batch, side + more, side + more)
        with torch.no_grad():
            try:
                plain(x)
            except RuntimeError as error:
                if "shape" not in str(error):
                    raise
                continue
            torch.testing.assert_close(module.mechanism(x), plain(x), rtol=1e-3, atol=1e-3)
        return x
    raise RuntimeError(f"The plain form of {case.name} must take some map of {side} to {side + LARGEST_WINDOW - 1} cells; mend it.")


def compare(name: str, channels: int, side: int, backward: bool, rounds: int, order: random.Random) -> dict[str, object]:
    """Both forms in turn, `rounds` times, each long enough for the clock."""
    case = Case(name, {}, channels)
    module = case.build()
    x = fitting(module, plain_forms()[name](module), case, 2 if backward else 1, side).requires_grad_(backward)
    module.train(backward)
    calls: tuple[Call, Call] = (module.mechanism, plain_forms()[name](module))
    once = [min(seconds(call, x, backward) for _ in range(2)) for call in calls]
    repeats = [max(1, min(MOST_CALLS, round(LEAST_S / taken))) for taken in once]
    rounds = max(LEAST_ROUNDS, min(rounds, round(MOST_S / sum(once))))
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for which in order.sample((0, 1), 2):
            times = [seconds(calls[which], x, backward) for _ in range(repeats[which])]
            taken[which].append(statistics.fmean(times))
    ratios = np.array(taken[1]) / np.array(taken[0])
    low, middle, high = np.percentile(ratios, (5, 50, 95))
    ours, plain = (1e3 * statistics.median(values) for values in taken)
    what = "forward+backward" if backward else "forward"
    values = (name, channels, x.shape[2], what, f"{middle:.3f}", f"{low:.3f}", f"{high:.3f}", f"{ours:.3f}", f"{plain:.3f}", rounds)
    return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", default=",".join(MODULES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    order = random.Random(0)
    for backward in (False, True):  # the first seconds of a process are slower: its threads and libraries start
        compare(arguments.names.split(",")[0], *SIZES[0], backward, LEAST_ROUNDS, order)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name in arguments.names.split(","):
            for channels, side in SIZES:
                for backward in (False, True):
                    row = compare(name, channels, side, backward, arguments.rounds, order)
                    writer.writerow(row)
                    file.flush()
                    sys.stdout.write(" ".join(map(str, row.values())) + "\n")


if __name__ == "__main__":
    main()
