"""Latency of models beside their base: paired, interleaved in random order, and accepted only when the base ran as it does in quiet.

A round times one block of the base and one of every candidate, in random order; a ratio is taken within a round, so that what slows the
machine for seconds slows both. That does not save the tail (a neighbour that starts within a round makes errors of two), so a measurement
counts as `gated` only if the base's own blocks had the level and the scatter of quiet runs on this machine (`calibrate`).

What is timed: the forward pass of a fused copy in evaluation mode, single precision, fixed input, run by torch or by another backend
(`nas_attn.runner`). Non-maximum suppression is not included; the top-k of an end-to-end head is.
"""

import gc
import math
import platform
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from nas_attn.errors import InputError, StudyError
from nas_attn.outcome import Latency
from nas_attn.runner import described, open_runner

Shape = tuple[int, int, int, int]
"""Images, channels, rows, columns."""

BLOCK_MS = 10.0
"""A block lasts at least this long: the clock and one scheduling tick are then small beside it."""
MIN_FORWARDS = 3
SLOW_MS = 200.0
"""A forward pass longer than this is a block of its own."""
MODEL_SECONDS = 30.0
"""No candidate is timed much longer than this in one attempt; a very slow one takes part in fewer rounds."""
MIN_BLOCKS = 2
SIGN_BLOCKS = 6
"""From six pairs on, order statistics reach 95 %: five lie all on one side of their median once in sixteen times."""
WARM_FORWARDS = 50
WARM_MS = 1000.0
AGREE = 0.05
MAX_WARM_BLOCKS = 20
_STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
FLOOR = 0.01
"""A base within 1 % of its calibration is accepted in any case: an exceptionally quiet calibration must not refuse what is good enough."""
MAX_WAIT_SECONDS = 30.0


class Clock(Protocol):
    """Time, which tests replace."""

    def now_ns(self) -> int:
        """Nanoseconds since some moment, never decreasing."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's own high-resolution clock."""

    def now_ns(self) -> int:
        """Nanoseconds since some moment, never decreasing."""
        return time.perf_counter_ns()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


_SYSTEM_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How the base runs on one machine in quiet, from `runs` runs against itself.

    `base_ms` is the median of the runs' medians; `deviation` and `iqr` are the 95th percentiles of a run's |median / base_ms - 1| and of
    its interquartile range over its median. `environment` says where: a gate is valid nowhere else.
    """

    base_ms: float
    deviation: float
    iqr: float
    runs: int
    environment: Mapping[str, Any]

    def accepts(self, base_ms: Sequence[float]) -> bool:
        """Whether these blocks of the base have the level and the scatter of the calibration."""
        deviation = abs(statistics.median(base_ms) / self.base_ms - 1.0)
        return deviation <= max(self.deviation, FLOOR) and _relative_iqr(base_ms) <= max(self.iqr, FLOOR)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Gate":
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            StudyError: missing or unknown fields, or values that no calibration gives.
        """
        try:
            gate = cls(**data)
            numbers = (gate.base_ms, gate.deviation, gate.iqr, gate.runs)
            usable = all(math.isfinite(n) and n >= 0 for n in numbers) and gate.base_ms > 0 and gate.runs > 0
        except TypeError as error:
            raise StudyError(f"A latency gate must have the fields of a calibration, but: {error}; calibrate again.") from error
        if not usable:
            raise StudyError(f"A latency gate must hold positive, finite numbers, but got {numbers}; calibrate again.")
        return gate


def environment(device: str = "cpu", *, threads: int, backend: str = "torch") -> dict[str, Any]:
    """What a latency depends on besides model and input, as JSON values; the same from call to call on an unchanged machine."""
    common = {
        **described(backend, device),
        "device": device,
        "threads": threads,
        "torch": torch.__version__,
        "precision": f"float32, {torch.get_float32_matmul_precision()} products",
        "system": platform.platform(),
    }
    target = torch.device(device)
    if target.type != "cuda":
        return {**common, "name": _processor(), "governor": _governor()}
    properties = torch.cuda.get_device_properties(target)
    return {**common, "name": properties.name, "cuda": torch.version.cuda, "cudnn": _cudnn()}


def calibrate(
    base: nn.Module,
    *,
    shape: Shape,
    device: str = "cpu",
    backend: str = "torch",
    threads: int = 1,
    blocks: int = 30,
    runs: int = 30,
    seed: int = 0,
    clock: Clock = _SYSTEM_CLOCK,
) -> Gate:
    """How the base runs here: `runs` times what `measure` does, with a second copy of the base as the candidate.

    It must be called while the machine is quiet. The base stays untouched.

    Raises:
        InputError: fewer than two blocks, no run, no thread, or a backend that cannot measure here.
    """
    _require(blocks, threads)
    if runs < 1:
        raise InputError(f"`runs >= 1` must hold, but got {runs=}; 30 give reliable bounds.")
    rng = random.Random(seed)
    with _Bench((base, base), shape, device, threads, clock, backend) as bench:
        plan = bench.warm_up(blocks)
        series = [[row[0] for row in bench.rounds(plan, blocks, rng)] for _ in range(runs)]
    medians = [statistics.median(times) for times in series]
    base_ms = statistics.median(medians)
    return Gate(
        base_ms=base_ms,
        deviation=_percentile_95([abs(median / base_ms - 1.0) for median in medians]),
        iqr=_percentile_95([_relative_iqr(times) for times in series]),
        runs=runs,
        environment=_where(device, threads, shape, backend),
    )


def measure(
    base: nn.Module,
    candidates: Sequence[nn.Module],
    *,
    gate: Gate,
    shape: Shape,
    device: str = "cpu",
    backend: str = "torch",
    threads: int = 1,
    blocks: int = 30,
    retries: int = 5,
    seed: int = 0,
    clock: Clock = _SYSTEM_CLOCK,
) -> list[Latency]:
    """Time the candidates beside the base; one answer each, in their order. The models stay untouched.

    Every round times all of them in an order drawn anew (`seed`). `ratio` is the median of a candidate's ratios to the base's block of the
    same round, `low` and `high` enclose the true median in at least 95 % of cases; `latency_ms` is the ratio times the gate's `base_ms`.
    Where the gate refuses the base's blocks, the batch is measured again after a pause that doubles from 1 s to 30 s, at most `retries`
    times. After that the answer is `ungated`: the median over all attempts, and an interval that encloses those of every attempt.

    Raises:
        InputError: fewer than two blocks, a negative number of retries, no thread, or a backend that cannot measure here.
        StudyError: the gate was calibrated in another environment or with another input.
    """
    _require(blocks, threads)
    if retries < 0:
        raise InputError(f"`retries >= 0` must hold, but got {retries=}; 0 measures once.")
    where = _where(device, threads, shape, backend)
    if dict(gate.environment) != where:
        changed = sorted(k for k in where.keys() | gate.environment.keys() if where.get(k) != gate.environment.get(k))
        raise StudyError(f"A gate must be calibrated where it is used, but {', '.join(changed)} differ; calibrate again.")
    if not candidates:
        return []
    rng = random.Random(seed)
    attempts: list[list[list[float]]] = []
    with _Bench((base, *candidates), shape, device, threads, clock, backend) as bench:
        plan = bench.warm_up(blocks)
        for attempt in range(1 + retries):
            if attempt:
                clock.sleep(min(2.0 ** (attempt - 1), MAX_WAIT_SECONDS))
            rows = bench.rounds(plan, blocks, rng)
            attempts.append([[row[i] / row[0] for row in rows if i in row] for i in range(1, 1 + len(candidates))])
            if gate.accepts([row[0] for row in rows]):
                return [_latency([ratios], gate, "gated", attempt + 1) for ratios in attempts[-1]]
    return [_latency(runs, gate, "ungated", len(attempts)) for runs in zip(*attempts, strict=True)]


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median of at least two positive ratios.

    Rule: the k-th smallest and the k-th largest of n, with the largest k for which a fair coin shows fewer than k heads in n throws with
    a probability of at most 2.5 %; no assumption but that the values are independent. Below six values no k reaches that, and Student's t
    on the logarithms is used, which is honest for noise that is roughly normal, and very wide for two values.
    """
    ordered = sorted(ratios)
    n = len(ordered)
    if n < SIGN_BLOCKS:
        logs = [math.log(value) for value in ordered]
        reach = _STUDENT_T[n] * statistics.stdev(logs) / math.sqrt(n)
        return math.exp(statistics.fmean(logs) - reach), math.exp(statistics.fmean(logs) + reach)
    below, k = 0.5**n, 1
    while below + math.comb(n, k) * 0.5**n <= 0.025:
        below += math.comb(n, k) * 0.5**n
        k += 1
    return ordered[k - 1], ordered[n - k]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one model takes part: forward passes a block, and blocks an attempt."""

    forwards: int
    blocks: int


class _Bench:
    """The models side by side on one device, with threads and garbage collection pinned while it is open; number 0 is the base."""

    def __init__(self, models: Sequence[nn.Module], shape: Shape, device: str, threads: int, clock: Clock, backend: str) -> None:
        image_BCHW = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        self._runners = [open_runner(backend, model, image_BCHW, device, threads) for model in models]
        self._threads = threads
        self._clock = clock
        self._restore: tuple[int, bool] | None = None

    def __enter__(self) -> "_Bench":
        self._restore = torch.get_num_threads(), gc.isenabled()
        torch.set_num_threads(self._threads)
        gc.collect()
        gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        if self._restore is not None:
            threads, collecting = self._restore
            torch.set_num_threads(threads)
            if collecting:
                gc.enable()

    def warm_up(self, blocks: int) -> list[_Plan]:
        """Run each model until it is steady, and size its blocks."""
        return [self._warm(i, blocks) for i in range(len(self._runners))]

    def rounds(self, plans: Sequence[_Plan], blocks: int, rng: random.Random) -> list[dict[int, float]]:
        """Milliseconds of one forward pass by model, one mapping a round; a model takes part in as many rounds as its plan says."""
        present = [set(rng.sample(range(blocks), plan.blocks)) for plan in plans]
        rows = []
        for number in range(blocks):
            order = [i for i, plan in enumerate(present) if number in plan]
            rng.shuffle(order)
            rows.append({i: self._block(i, plans[i].forwards) for i in order})
        return rows

    def _warm(self, i: int, blocks: int) -> _Plan:
        # A GPU raises its clocks, and libraries choose their kernels, within the first second or so.
        passes: list[float] = []
        while len(passes) < WARM_FORWARDS and sum(passes) < WARM_MS:
            passes.append(self._timed(i, 1))
        once_ms = min(passes)
        forwards = 1 if once_ms > SLOW_MS else max(MIN_FORWARDS, math.ceil(BLOCK_MS / once_ms))
        last_ms = self._block(i, forwards)
        for _ in range(1 if forwards == 1 else MAX_WARM_BLOCKS):
            before_ms, last_ms = last_ms, self._block(i, forwards)
            if abs(last_ms / before_ms - 1.0) <= AGREE:
                break
        affordable = int(MODEL_SECONDS * 1000.0 / (last_ms * forwards))
        return _Plan(forwards, blocks if i == 0 else min(blocks, max(SIGN_BLOCKS, affordable)))

    def _block(self, i: int, forwards: int) -> float:
        if forwards > 1:
            # The model before this one left its own weights in the caches; a long pass does not notice.
            self._timed(i, 1)
        return self._timed(i, forwards)

    def _timed(self, i: int, forwards: int) -> float:
        runner = self._runners[i]
        with torch.inference_mode():
            runner.wait()
            start = self._clock.now_ns()
            for _ in range(forwards):
                runner.run()
            runner.wait()
            return max(self._clock.now_ns() - start, 1) / forwards / 1e6


def _latency(runs: Sequence[Sequence[float]], gate: Gate, quality: str, attempts: int) -> Latency:
    ratio = statistics.median([value for run in runs for value in run])
    bounds = [interval(run) for run in runs]
    return Latency(
        ratio=ratio,
        low=min(low for low, _ in bounds),
        high=max(high for _, high in bounds),
        latency_ms=ratio * gate.base_ms,
        base_ms=gate.base_ms,
        quality=quality,
        blocks=sum(map(len, runs)),
        attempts=attempts,
        environment=gate.environment,
    )


def _require(blocks: int, threads: int) -> None:
    if blocks < MIN_BLOCKS:
        raise InputError(f"`blocks >= {MIN_BLOCKS}` must hold for an interval, but got {blocks=}; 30 are usual.")
    if threads < 1:
        raise InputError(f"`threads >= 1` must hold, but got {threads=}; 1 is the most repeatable.")


def _where(device: str, threads: int, shape: Shape, backend: str) -> dict[str, Any]:
    return {**environment(device, threads=threads, backend=backend), "image": "x".join(map(str, shape))}


def _relative_iqr(values: Sequence[float]) -> float:
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return (upper - lower) / middle


def _percentile_95(values: Sequence[float]) -> float:
    """The value that 95 % of new ones stay below, conservatively: below twenty values it is their maximum."""
    ordered = sorted(values)
    return ordered[min(len(ordered), math.ceil(0.95 * (len(ordered) + 1))) - 1]


def _cudnn() -> int | None:
    found: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return found


def _processor() -> str:
    return _first_line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _governor() -> str:
    return _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown"


def _first_line(file: str, start: str = "") -> str:
    """The first line of a system file that begins with `start`, what follows its colon; empty where there is none."""
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.rpartition(":")[2].strip() for line in lines if line.startswith(start)), "")
