"""How long a mechanism takes on this machine's CPU: forward passes in evaluation, fp32, one image."""

import statistics
import time
from collections.abc import Sequence

import torch

from nas_attn.contract import Case
from nas_attn.listing import SIZES

ROUNDS = 7
LEAST_S = 0.02
MOST_CALLS = 50


def measure(names: Sequence[str], rounds: int = ROUNDS) -> dict[tuple[str, int], float]:
    """Milliseconds of a forward pass by module and channels (of `listing.SIZES`), defaults, gate closed.

    Rule: each round calls every module in turn, long enough for the clock; the median over the rounds counts, so that a passing load on
    the machine hits all alike. What cannot be built at a width is left out.
    """
    taken: dict[tuple[str, int], list[float]] = {}
    for channels, side in SIZES:
        cases = [Case(name, {}, channels) for name in names]
        modules = [(case, case.build()) for case in cases if not case.record.violations(channels, {})]
        x = cases[0].draw(1, side, side) if cases else None
        calls: dict[str, int] = {}
        for number in range(rounds + 1):
            for case, module in modules:
                seconds = _seconds(module, x, calls.get(case.name, 1))
                if number:
                    taken.setdefault((case.name, channels), []).append(seconds / calls[case.name])
                else:  # warms up, and tells how many calls a measurement needs
                    calls[case.name] = min(MOST_CALLS, max(1, round(LEAST_S / seconds)))
    return {key: 1e3 * statistics.median(values) for key, values in taken.items()}


def _seconds(module: torch.nn.Module, x_BCHW: torch.Tensor | None, calls: int) -> float:
    with torch.inference_mode():
        start = time.perf_counter()
        for _ in range(calls):
            module(x_BCHW)
        return time.perf_counter() - start
