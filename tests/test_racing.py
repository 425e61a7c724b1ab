"""Racing stops only what even an optimist gives up: never a newcomer that dominates all, whatever the order, the same at every replay."""

import random
import statistics
from dataclasses import replace

import pytest

from nas_attn import pareto
from nas_attn.errors import InputError
from nas_attn.racing import Race, Racer, rungs_of, simulate

RUNGS = (1, 3, 9)
PLANE = {"map50_95": "maximize", "latency_ratio": "minimize"}


def race(**changes):
    return replace(Race(objectives=PLANE, rungs=RUNGS), **changes)


def racer(number, shown, ratio=1.1, **known):
    scores = {rung: {"map50_95": score} for rung, score in zip(RUNGS, shown, strict=False)}
    return Racer(number=number, known={"latency_ratio": ratio, **known}, shown=scores)


def field(rng, finished=6):
    """Trials that went all the way, each with luck of its own on the way."""
    scores = [(rng.uniform(0.1, 0.2), rng.uniform(0.2, 0.25), rng.uniform(0.3, 0.35)) for _ in range(finished)]
    return [racer(i, shown, rng.choice([1.0, 1.1, 1.2, rng.uniform(1, 1.3)])) for i, shown in enumerate(scores)]


def newcomer(rng, others, rung):
    """One that shows more than all others did at its rung, and is as fast as the fastest or faster."""
    epochs = RUNGS[rung]
    best = max(one.shown[epochs]["map50_95"] for one in others)
    fastest = min(one.known["latency_ratio"] for one in others)
    shown = [best + rng.choice([1e-9, rng.uniform(0, 0.1)])] * (rung + 1)
    return racer(99, shown, fastest - rng.choice([0.0, rng.uniform(0, 0.1)]))


def dominating_newcomers_stopped(rule, draws=300):
    rng, stopped = random.Random(0), 0
    for _ in range(draws):
        others = field(rng, rng.randint(4, 12))
        stopped += 99 in rule([*others, newcomer(rng, others, rng.randrange(2))])
    return stopped


def test_a_newcomer_that_dominates_all_is_never_stopped():
    assert dominating_newcomers_stopped(race().stopped) == 0


def indices_as_priorities(racers):
    """The wrong rule: the indices that sort the trials are read as the trials' priorities, and the newest's decides whether it goes on."""
    points = [[one.shown[1]["map50_95"], one.known["latency_ratio"]] for one in racers]
    left, ranked = list(range(len(points))), []
    while left:
        best = pareto.front([points[i] for i in left], list(PLANE.values()))
        ranked += [left[i] for i in best]
        left = [i for i in left if i not in ranked]
    return (racers[-1].number,) if ranked[-1] >= len(racers) // 3 else ()


def test_the_wrong_rule_of_another_library_would_fail_that_test():
    assert dominating_newcomers_stopped(indices_as_priorities) > 50


FULL = [racer(i, (0.10 + i / 1000, 0.20 + i / 1000, 0.30 + i / 1000), 1.0 + i / 10) for i in range(5)]


def test_what_is_behind_beyond_any_rise_is_stopped_and_what_is_faster_is_not():
    behind = (0.05, 0.10)
    rule = race()
    assert rule.stopped([*FULL, racer(7, behind[:1], 1.2), racer(8, behind, 1.2)]) == (7, 8)
    assert rule.stopped([*FULL, racer(7, behind[:1], 0.99), racer(8, behind, 0.99)]) == ()
    assert rule.stopped([*FULL, racer(7, (), 1.2)]) == ()
    assert rule.stopped([*FULL, racer(7, (0.01, 0.02, 0.03), 1.2)]) == ()  # it is at the end
    # Rivals that are slower do not count, however good they are.
    assert rule.stopped([*FULL, racer(7, (0.1001,), 1.0)]) == ()


def test_the_optimist_grants_the_scatter_of_rises_and_how_little_is_known_of_it():
    """Ends that have nothing to do with what was shown: the prediction interval of a sixth rise, and of a sixth end, by Student's t."""
    scattered = [racer(i, (0.10 + 0.001 * i, 0.20, end), 1.0) for i, end in enumerate((0.30, 0.33, 0.26, 0.33, 0.30))]
    mean, best = 0.304, 0.33
    errors = sum((end - mean) ** 2 for end in (0.30, 0.33, 0.26, 0.33, 0.30))
    grant = 2.1318 * (errors / 4 * (1 + 1 / 5)) ** 0.5  # t of 4 degrees at 0.95: all reach beyond the best
    assert mean + grant > best
    assert race().stopped([*scattered, racer(7, (0.1019,), 1.0)]) == ()
    # All showed the same, so that only rises say anything: what shows less by as much as the grant goes beyond the best is stopped.
    alike = [racer(i, (0.10, 0.20, end), 1.0) for i, end in enumerate((0.30, 0.33, 0.26, 0.33, 0.30))]
    limit = 0.10 + best - mean - grant
    assert race().stopped([*alike, racer(7, (limit + 1e-4,), 1.0)]) == ()
    assert race().stopped([*alike, racer(7, (limit - 1e-4,), 1.0)]) == (7,)


def test_where_early_scores_say_little_the_ends_themselves_bound_what_is_to_be_expected():
    """What is shown scatters over 0.2, the ends by 0.002, and one is far above: by its rise alone everything might become as good."""
    shown = [0.05 + 0.2 * ((7 * i) % 20) / 20 for i in range(20)]
    full = [racer(20 + i, (start, 0.2, 0.30 + 0.001 * (i % 5)), 1.0) for i, start in enumerate(shown)]
    top = racer(50, (0.2, 0.2, 0.33), 1.0)
    assert race().stopped([*full, top, racer(7, (0.19,), 1.0)]) == (7,)
    assert race().stopped([*full, racer(50, (0.2, 0.2, 0.305), 1.0), racer(7, (0.19,), 1.0)]) == ()  # within their scatter
    assert race().stopped([*full, top, racer(7, (0.2401,), 1.0)]) == ()  # more than that was never shown


def test_early_scores_that_fall_where_ends_rise_are_a_samples_luck():
    """A slope below zero would favour whoever shows less."""
    falling = [racer(i, (0.10 + 0.01 * i, 0.2, 0.34 - 0.01 * i), 1.0) for i in range(5)]
    worse, better = racer(7, (0.05,), 1.0), racer(8, (0.12,), 1.0)
    assert race().order([*falling, worse, better], [7, 8]) == (8, 7)


def test_fewer_than_four_finished_ones_stop_nothing():
    hopeless = racer(7, (0.001,), 1.9)
    assert race().stopped([*FULL[:3], hopeless]) == ()
    assert race().stopped([*FULL[:4], hopeless]) == (7,)
    unseen = [replace(one, shown={9: one.shown[9]}) for one in FULL]  # nothing is known of their way
    assert race().stopped([*unseen, hopeless]) == ()


def test_what_may_end_equal_is_not_stopped():
    rule = race()
    same = [racer(i, (0.125, 0.25, 0.5), 1.0) for i in range(4)]
    assert rule.stopped([*same, racer(7, (0.125,), 1.0)]) == ()
    assert rule.stopped([*same, racer(7, (0.125,), 1.001)]) == (7,)
    assert rule.stopped([*same, racer(7, (0.124,), 1.0)]) == (7,)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_trials_never_matters(seed):
    rng = random.Random(seed)
    racers = field(rng, 6) + [racer(10 + i, [rng.uniform(0.0, 0.2)] * rng.randint(0, 2), rng.uniform(0.9, 1.4)) for i in range(8)]
    waiting = [one.number for one in racers if one.number >= 10]
    stopped, order = race().stopped(racers), race().order(racers, waiting)
    for _ in range(5):
        rng.shuffle(racers)
        rng.shuffle(waiting)
        assert (race().stopped(racers), race().order(racers, waiting)) == (stopped, order)
    assert sorted(order) == sorted(waiting)


def test_with_one_objective_it_is_a_stopping_rule_on_the_score():
    rule = race(objectives={"map50_95": "maximize"})
    best = max(one.shown[9]["map50_95"] for one in FULL)
    for score in (0.05, 0.09, 0.1035, 0.1041, 0.12):
        assert rule.stopped([*FULL, racer(7, (score,), 5.0)]) == (() if score + 0.2 >= best else (7,))
    racers = [*FULL, *(racer(10 + i, (score,), 1.0) for i, score in enumerate((0.1, 0.3, 0.2)))]
    assert rule.order(racers, [10, 11, 12]) == (11, 12, 10)


def test_further_objectives_count():
    rule = race(objectives={**PLANE, "map50": "maximize", "params_m": "minimize"})

    def wide(number, shown, ratio, params, better=0.0):
        scores = {rung: {"map50_95": s, "map50": s * 1.5 + better} for rung, s in zip(RUNGS, shown, strict=False)}
        return Racer(number=number, known={"latency_ratio": ratio, "params_m": params}, shown=scores)

    full = [wide(i, (0.1, 0.2, 0.3), 1.0, 2.0) for i in range(4)]
    assert rule.stopped([*full, wide(7, (0.05,), 1.1, 2.1)]) == (7,)
    assert rule.stopped([*full, wide(7, (0.05,), 1.1, 1.9)]) == ()
    assert rule.stopped([*full, wide(7, (0.05,), 1.1, 2.1, better=0.2)]) == ()
    with pytest.raises(InputError, match=r"trial 7 lacks \['map50', 'params_m'\]"):
        rule.stopped([*full, racer(7, (0.05,), 1.1)])


def test_workers_take_by_rank_then_number_and_first_what_has_shown_nothing():
    racers = [
        *FULL,
        racer(10, (0.12,), 1.10),
        racer(11, (0.13,), 1.05),  # dominates 10
        racer(12, (0.12, 0.15), 1.00),  # rises less from there on, but is fastest
        racer(13, (), 1.30),
        racer(14, (0.12,), 1.10),  # equals 10
    ]
    assert race().order(racers, [14, 13, 12, 11, 10]) == (13, 11, 12, 10, 14)
    assert race().order(racers, [10, 14]) == (10, 14)
    assert race().order(racers, []) == ()
    assert race().order([racer(1, (0.2,)), racer(2, (0.3,))], [1, 2]) == (2, 1)  # before any has finished


def test_rungs_are_thirds_rounded_down():
    assert {epochs: rungs_of(epochs) for epochs in (1, 2, 3, 4, 6, 9, 20)} == {
        1: (1,),
        2: (2,),
        3: (1, 3),
        4: (1, 4),
        6: (2, 6),
        9: (1, 3, 9),
        20: (2, 6, 20),
    }
    assert rungs_of(8, eta=2) == (1, 2, 4, 8)
    for bad in ({"epochs": 0}, {"epochs": 3, "eta": 1}):
        with pytest.raises(InputError, match="must hold for rungs"):
            rungs_of(**bad)
    for rungs in ((), (3, 1), (0, 3), (1, 1)):
        with pytest.raises(InputError, match="rising whole epochs"):
            race(rungs=rungs)


# -- recorded curves -------------------------------------------------------------------------------------------------------------------


def recorded(rng, trials=60, noise=0.003):
    quality = [0.0] + [rng.gauss(-0.005, 0.012) for _ in range(trials - 1)]
    curves = [[0.3 + q * (epoch + 3) / 12 + 0.02 * epoch**0.5 + rng.gauss(0, noise) for epoch in range(1, 10)] for q in quality]
    return curves, [1.0] + [rng.uniform(0.98, 1.3) for _ in quality[1:]]


@pytest.mark.parametrize("slots", [1, 4])
def test_recorded_curves_keep_their_front_for_fewer_epochs(slots):
    epochs, lost, total, shares = 0, 0, 0, list[float]()
    for seed in range(10):
        curves, costs = recorded(random.Random(seed))
        order = random.Random(seed).sample(range(60), 60)
        ended = simulate(curves, costs, RUNGS, order, slots=slots, always=[0])
        assert ended == simulate(curves, costs, RUNGS, order, slots=slots, always=[0])
        assert ended[0] == 9
        assert set(ended) <= set(RUNGS)
        points = [(curve[-1], cost) for curve, cost in zip(curves, costs, strict=True)]
        front = pareto.front(points, ["maximize", "minimize"])
        found = [point for point, ends in zip(points, ended, strict=True) if ends == 9]
        kept, whole = (pareto.hypervolume(some, (0.0, 1.3), ["maximize", "minimize"]) for some in (found, points))
        shares.append(kept / whole)
        lost += sum(ended[i] < 9 for i in front)
        total += len(front)
        epochs += sum(ended)
    assert lost <= total / 8
    assert epochs < 0.5 * 10 * 60 * 9
    assert statistics.fmean(shares) > 0.99
    assert min(shares) > 0.97


def test_a_race_of_equals_stops_nothing_and_short_curves_are_refused():
    assert simulate([[0.1, 0.2, 0.3]] * 8, [1.0] * 8, (1, 3), range(8)) == (3,) * 8
    assert simulate([[0.1, 0.2, 0.3]] * 3, [1.0] * 3, (1, 3), [2, 0]) == (3, 0, 3)
    for wrong in ({"curves": [[0.1, 0.2]]}, {"costs": [1.0, 2.0]}, {"slots": 0}):
        with pytest.raises(InputError, match="curves needs 3 epochs"):
            simulate(**{"curves": [[0.1, 0.2, 0.3]], "costs": [1.0], "rungs": (1, 3), "order": [0], **wrong})
