"""How long a mechanism takes on this machine's CPU: forward passes in evaluation, fp32, one image."""

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nas_attn.contract import Case
from nas_attn.listing import SIZES

ROUNDS = 7
LEAST_S = 0.02
MOST_CALLS = 50

Key = tuple[str, int]
Timed = tuple[nn.Module, Tensor]


def measure(names: Sequence[str], rounds: int = ROUNDS, others: Mapping[Key, Timed] | None = None) -> dict[Key, float]:
    """Milliseconds of a forward pass by module and channels (of `listing.SIZES`), defaults, gate closed; `others` besides, with inputs.

    Rule: each round calls everything in turn, long enough for the clock; the median over the rounds counts, so that a passing load on
    the machine hits all alike. What cannot be built at a width is left out.
    """
    timed = dict(others or {})
    for channels, side in SIZES:
        for case in (Case(name, {}, channels) for name in names):
            if not case.record.violations(channels, {}):
                timed[case.name, channels] = (case.build(), case.draw(1, side, side))
    # The first calls warm up, and tell how many a measurement needs.
    calls = {key: min(MOST_CALLS, max(1, round(LEAST_S / min(_seconds(*entry), _seconds(*entry))))) for key, entry in timed.items()}
    taken: dict[Key, list[float]] = {key: [] for key in timed}
    for _ in range(rounds):
        for key, entry in timed.items():
            taken[key].append(_seconds(*entry, calls[key]) / calls[key])
    return {key: 1e3 * statistics.median(values) for key, values in taken.items()}


def _seconds(module: nn.Module, x_BCHW: Tensor, calls: int = 1) -> float:
    with torch.inference_mode():
        start = time.perf_counter()
        for _ in range(calls):
            module(x_BCHW)
        return time.perf_counter() - start
