import copy
import gc
import json
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas_attn import latency
from nas_attn.errors import InputError, StudyError
from nas_attn.latency import Gate, calibrate, environment, interval, measure
from nas_attn.outcome import Latency

SHAPE = (1, 3, 8, 8)
MS = 1_000_000


class FakeClock:
    """Time that passes only when a model runs or somebody sleeps; a copied model keeps its clock."""

    def __init__(self) -> None:
        self.ns = 0
        self.slept: list[float] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "FakeClock":
        return self

    def now_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.ns += round(seconds * 1e9)


class Timed(nn.Module):
    """A model whose forward pass takes as long as `milliseconds` says, given the seconds since the start; `log` notes who ran."""

    def __init__(self, name: str, clock: FakeClock, milliseconds: Callable[[float], float], log: "Log | None" = None) -> None:
        super().__init__()
        self.name, self.clock, self.milliseconds, self.log = name, clock, milliseconds, log
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.log is not None:
            self.log.names.append(self.name)
        self.clock.ns += round(self.milliseconds(self.clock.ns / 1e9) * MS)
        return x


class Log:
    """Names in order; shared with copies."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Log":
        return self


def constant(milliseconds: float) -> Callable[[float], float]:
    return lambda _: milliseconds


def noisy(milliseconds: float, sigma: float, rng: random.Random) -> Callable[[float], float]:
    return lambda _: milliseconds * rng.lognormvariate(0.0, sigma)


@pytest.fixture
def uncollected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of simulated measurements need no garbage collection each, which takes longer than all the rest."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def gate(base_ms: float = 4.0, deviation: float = 0.05, iqr: float = 0.05, shape: tuple[int, int, int, int] = SHAPE) -> Gate:
    where = {**environment("cpu", threads=1), "image": "x".join(map(str, shape))}
    return Gate(base_ms=base_ms, deviation=deviation, iqr=iqr, runs=30, environment=where)


def timed(clock: FakeClock, base: Callable[[float], float], *others: Callable[[float], float], **options: Any) -> list[Latency]:
    models = [Timed(f"c{i}", clock, other) for i, other in enumerate(others)]
    return measure(Timed("base", clock, base), models, **{"gate": gate(), "shape": SHAPE, "clock": clock, **options})


def order_of(seed: int, blocks: int = 12) -> list[str]:
    clock, log = FakeClock(), Log()
    models = [Timed(name, clock, constant(4.0), log) for name in ("base", "c0", "c1")]
    measure(models[0], models[1:], gate=gate(), shape=SHAPE, seed=seed, blocks=blocks, clock=clock)
    # One untimed and three timed passes a block; what comes before the rounds is warm-up.
    return log.names[-4 * 3 * blocks :: 4]


def test_ratios_of_quiet_models_are_exact() -> None:
    slow, fast = timed(FakeClock(), constant(4.0), constant(6.0), constant(3.0))
    assert (slow.ratio, slow.low, slow.high) == (1.5, 1.5, 1.5)
    assert (fast.ratio, fast.latency_ms, fast.base_ms) == (0.75, 3.0, 4.0)
    assert (fast.quality, fast.blocks, fast.attempts) == ("gated", 30, 1)
    assert fast.environment["image"] == "1x3x8x8"


def test_no_candidates_need_no_time() -> None:
    clock = FakeClock()
    assert timed(clock, constant(4.0)) == []
    assert clock.ns == 0


def test_latency_is_the_ratio_times_the_calibrated_base() -> None:
    (answer,) = timed(FakeClock(), constant(4.1), constant(8.2))
    assert answer.ratio == pytest.approx(2.0)
    assert answer.latency_ms == pytest.approx(8.0)


def test_a_slow_minute_does_not_change_the_ratio() -> None:
    clock = FakeClock()

    def drift(milliseconds: float) -> Callable[[float], float]:
        return lambda seconds: milliseconds * (1.0 + 0.001 * seconds)

    (answer,) = timed(clock, drift(4.0), drift(6.0), gate=gate(deviation=1.0, iqr=1.0))
    assert answer.ratio == pytest.approx(1.5, rel=1e-3)


def test_every_round_times_every_model_in_a_random_but_seeded_order() -> None:
    order = order_of(seed=1)
    rounds = [tuple(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert all(sorted(names) == ["base", "c0", "c1"] for names in rounds)
    assert len(set(rounds)) > 3
    assert order == order_of(seed=1)
    assert order != order_of(seed=2)


def test_a_block_lasts_long_enough_for_the_clock() -> None:
    clock, log = FakeClock(), Log()
    base = Timed("base", clock, constant(0.5), log)
    measure(base, [Timed("c", clock, constant(0.7), log)], gate=gate(0.5), shape=SHAPE, blocks=10, clock=clock)
    runs = "".join(name[0] for name in log.names)
    # 20 passes of half a millisecond fill ten; 15 of 0.7; one more in each block meets the caches that the other model left.
    assert runs.count("b") == 50 + 2 * 21 + 10 * 21
    assert runs.count("c") == 50 + 2 * 16 + 10 * 16


def test_warm_up_goes_on_until_two_blocks_agree() -> None:
    clock, passes = FakeClock(), []

    def settling(seconds: float) -> float:
        passes.append(4.0 + 40.0 * max(0.0, 1.5 - seconds))
        return passes[-1]

    (answer,) = timed(clock, settling, constant(6.0), retries=0)
    assert max(passes) > 60.0
    assert max(passes[-30 * 4 :]) < 4.4
    assert answer.quality == "gated"


def test_a_very_slow_candidate_takes_part_in_fewer_rounds() -> None:
    clock, log = FakeClock(), Log()
    slow = Timed("slow", clock, constant(4000.0), log)
    fast = Timed("fast", clock, constant(6.0), log)
    answers = measure(Timed("base", clock, constant(4.0)), [slow, fast], gate=gate(), shape=SHAPE, clock=clock)
    assert [a.blocks for a in answers] == [7, 30]
    assert answers[0].ratio == 1000.0
    assert log.names.count("slow") == 1 + 2 + 7


def test_the_gate_refuses_a_slow_base_and_the_measurement_is_repeated() -> None:
    clock = FakeClock()
    # A neighbour takes half of the machine for the first five seconds.
    base = Timed("base", clock, lambda seconds: 8.0 if seconds < 5.0 else 4.0)
    candidate = Timed("c", clock, lambda seconds: 24.0 if seconds < 5.0 else 6.0)
    (answer,) = measure(base, [candidate], gate=gate(), shape=SHAPE, clock=clock)
    assert (answer.quality, answer.ratio) == ("gated", 1.5)
    assert answer.attempts == len(clock.slept) + 1 > 1


def test_the_gate_refuses_a_base_that_scatters_around_its_level() -> None:
    turns = iter(range(10**9))
    clock = FakeClock()
    (answer,) = timed(clock, lambda _: (3.0, 4.0, 5.0)[next(turns) // 4 % 3], constant(6.0), retries=2)
    assert answer.quality == "ungated"


def test_exhausted_retries_give_an_ungated_answer_that_encloses_every_attempt() -> None:
    clock = FakeClock()
    levels = [(8.0, 10.0), (8.0, 20.0), (8.0, 12.0)]

    def level(i: int) -> Callable[[float], float]:
        return lambda _: levels[min(len(clock.slept), 2)][i]

    (answer,) = timed(clock, level(0), level(1), retries=2)
    assert clock.slept == [1.0, 2.0]
    assert (answer.quality, answer.attempts, answer.blocks) == ("ungated", 3, 90)
    assert (answer.low, answer.ratio, answer.high) == (1.25, 1.5, 2.5)


def test_pauses_double_up_to_half_a_minute() -> None:
    clock = FakeClock()
    timed(clock, constant(8.0), constant(10.0), retries=7, blocks=6)
    assert clock.slept == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_without_retries_it_measures_once() -> None:
    clock = FakeClock()
    (answer,) = timed(clock, constant(8.0), constant(10.0), retries=0)
    assert (answer.quality, answer.attempts, clock.slept) == ("ungated", 1, [])


def test_calibration_describes_the_base_in_quiet() -> None:
    clock, rng = FakeClock(), random.Random(0)
    found = calibrate(Timed("base", clock, noisy(4.0, 0.1, rng)), shape=SHAPE, clock=clock)
    assert found.base_ms == pytest.approx(4.0, rel=0.02)
    # A block averages three passes: sigma 0.058, whose interquartile range is 0.078; the median of thirty has sigma 0.013.
    assert 0.015 < found.deviation < 0.05
    assert 0.08 < found.iqr < 0.16
    assert found.runs == 30
    assert found.environment["image"] == "1x3x8x8"


@pytest.mark.usefixtures("uncollected")
def test_calibrated_bounds_accept_most_quiet_runs_and_no_disturbed_one() -> None:
    clock, rng = FakeClock(), random.Random(1)
    quiet = noisy(4.0, 0.1, rng)
    found = calibrate(Timed("base", clock, quiet), shape=SHAPE, clock=clock)

    def share(base: Callable[[float], float]) -> float:
        answers = [timed(clock, base, constant(6.0), gate=found, retries=0)[0].quality for _ in range(40)]
        return answers.count("gated") / len(answers)

    assert share(quiet) > 0.75
    assert share(lambda seconds: 1.3 * quiet(seconds)) == 0.0
    # Half of the blocks are disturbed, so that the level alone may pass.
    assert share(lambda seconds: quiet(seconds) * (2.0 if rng.random() < 0.5 else 1.0)) == 0.0


def test_a_gate_from_one_exact_run_still_accepts_what_is_within_one_percent() -> None:
    clock = FakeClock()
    found = calibrate(Timed("base", clock, constant(4.0)), shape=SHAPE, runs=1, clock=clock)
    assert (found.base_ms, found.deviation, found.iqr) == (4.0, 0.0, 0.0)
    assert found.accepts([4.03] * 10)
    assert not found.accepts([4.05] * 10)
    assert not found.accepts([3.9] * 10)


def test_a_gate_survives_json() -> None:
    found = gate()
    assert Gate.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_ms": 0.0}, "positive, finite"),
        ({"iqr": float("nan")}, "positive, finite"),
        ({"bogus": 1}, "bogus"),
        ({"runs": "x"}, "runs|str|real"),
    ],
)
def test_a_broken_gate_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        Gate.from_dict({**gate().to_dict(), **change})


def test_a_gate_of_another_place_or_input_is_refused() -> None:
    clock = FakeClock()
    moved = replace(gate(), environment={**gate().environment, "name": "another processor"})
    with pytest.raises(StudyError, match="but name differ"):
        timed(clock, constant(4.0), constant(6.0), gate=moved)
    with pytest.raises(StudyError, match="but image differ"):
        timed(clock, constant(4.0), constant(6.0), shape=(1, 3, 16, 16))
    with pytest.raises(StudyError, match="but threads differ"):
        timed(clock, constant(4.0), constant(6.0), threads=2)


@pytest.mark.parametrize(
    ("bad", "message"), [({"blocks": 1}, "blocks >= 2"), ({"threads": 0}, "threads >= 1"), ({"retries": -1}, "retries >= 0")]
)
def test_impossible_settings_are_refused(bad: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        timed(FakeClock(), constant(4.0), constant(6.0), **bad)


def test_a_calibration_without_runs_is_refused() -> None:
    with pytest.raises(InputError, match="runs >= 1"):
        calibrate(Timed("base", FakeClock(), constant(4.0)), shape=SHAPE, runs=0)


@pytest.mark.parametrize(("n", "k"), [(6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (30, 10), (40, 14), (100, 40)])
def test_the_interval_takes_the_ranks_of_the_sign_test(n: int, k: int) -> None:
    values = [float(i) for i in range(1, n + 1)]
    assert interval(random.Random(0).sample(values, n)) == (k, n + 1 - k)


@pytest.mark.parametrize("n", [2, 3, 5, 6, 10, 30, 50])
def test_the_interval_covers_the_truth_in_95_percent_of_simulations(n: int) -> None:
    rng = random.Random(n)
    hits = 0
    for _ in range(2000):
        low, high = interval([1.3 * rng.lognormvariate(0.0, 0.2) for _ in range(n)])
        hits += low <= 1.3 <= high
    assert 0.935 <= hits / 2000 <= 0.99


@pytest.mark.usefixtures("uncollected")
def test_the_interval_covers_the_truth_in_measurements_with_heavy_tails() -> None:
    rng = random.Random(5)

    def jittery(milliseconds: float) -> Callable[[float], float]:
        # Mostly quiet, with one pass in twenty that is disturbed by up to three times its length.
        return lambda _: milliseconds * rng.lognormvariate(0.0, 0.05) * (1.0 + 3.0 * rng.random() * (rng.random() < 0.05))

    clock, hits = FakeClock(), 0
    base, candidate = Timed("base", clock, jittery(4.0)), Timed("c", clock, jittery(6.0))
    wide = gate(deviation=1.0, iqr=1.0)
    for seed in range(150):
        (answer,) = measure(base, [candidate], gate=wide, shape=SHAPE, blocks=20, seed=seed, clock=clock)
        assert answer.low <= answer.ratio <= answer.high
        hits += answer.low <= 1.5 <= answer.high
    assert hits / 150 >= 0.9


def test_the_median_of_answers_repeats_better_than_absolute_times() -> None:
    rng, clock = random.Random(3), FakeClock()
    speed = [1.0]

    def shared(milliseconds: float) -> Callable[[float], float]:
        return lambda _: milliseconds * speed[0]

    ratios, absolute = [], []
    for _ in range(10):
        speed[0] = rng.uniform(1.0, 2.0)
        start = clock.ns
        (answer,) = timed(clock, shared(4.0), shared(6.0), retries=0)
        ratios.append(answer.ratio)
        absolute.append(clock.ns - start)
    assert statistics.stdev(ratios) < 1e-6
    assert statistics.stdev(absolute) / statistics.fmean(absolute) > 0.05


def test_models_threads_and_garbage_collection_are_left_as_they_were() -> None:
    clock = FakeClock()
    seen: list[tuple[int, bool, bool]] = []

    def watch(_: float) -> float:
        seen.append((torch.get_num_threads(), gc.isenabled(), torch.is_inference_mode_enabled()))
        return 4.0

    models = [Timed("base", clock, watch), nn.Sequential(nn.BatchNorm2d(3), Timed("c", clock, constant(6.0)))]
    before = copy.deepcopy(models[1].state_dict())
    threads = torch.get_num_threads()
    measure(
        models[0], models[1:], gate=replace(gate(), environment={**gate().environment, "threads": 2}), shape=SHAPE, threads=2, clock=clock
    )
    assert set(seen) == {(2, False, True)}
    assert (torch.get_num_threads(), gc.isenabled()) == (threads, True)
    assert models[1].training
    assert all(p.requires_grad for p in models[1].parameters())
    assert all(torch.equal(before[name], value) for name, value in models[1].state_dict().items())


def test_threads_are_restored_after_an_error() -> None:
    def fail(_: float) -> float:
        raise RuntimeError("out of memory")

    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="out of memory"):
        timed(FakeClock(), constant(4.0), fail)
    assert (torch.get_num_threads(), gc.isenabled()) == (threads, True)


def test_a_model_is_fused_before_it_is_timed() -> None:
    clock = FakeClock()

    class Fusible(Timed):
        def fuse(self) -> "Fusible":
            self.milliseconds = constant(5.0)
            return self

    model = Fusible("c", clock, constant(50.0))
    (answer,) = measure(Timed("base", clock, constant(4.0)), [model], gate=gate(), shape=SHAPE, clock=clock)
    assert answer.ratio == 1.25
    assert model.milliseconds(0.0) == 50.0


def test_the_environment_is_json_and_stays_the_same() -> None:
    found = environment("cpu", threads=1)
    assert found == environment("cpu", threads=1) == json.loads(json.dumps(found))
    assert found["name"]
    assert found["torch"] == torch.__version__
    assert found != environment("cpu", threads=2)


def test_real_models_are_timed_on_the_real_clock() -> None:
    small, large = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3))
    shape = (1, 3, 32, 32)
    found = calibrate(small, shape=shape, blocks=6, runs=2)
    assert found.base_ms > 0
    answers = measure(small, [large], gate=found, shape=shape, blocks=6, retries=0)
    assert answers[0].ratio > 1.0
    assert answers[0].low <= answers[0].ratio <= answers[0].high
    assert latency.MIN_FORWARDS >= 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_real_models_are_timed_on_a_gpu() -> None:
    small, large = nn.Conv2d(3, 8, 3), nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(12)])
    shape = (1, 3, 64, 64)
    found = calibrate(small, shape=shape, blocks=6, runs=2, device="cuda:0")
    (answer,) = measure(small, [large], gate=found, shape=shape, blocks=6, retries=0, device="cuda:0")
    assert answer.ratio > 3.0
    assert next(small.parameters()).device.type == "cpu"
