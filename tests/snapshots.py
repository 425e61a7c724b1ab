"""Builders of fake snapshots, so that what reads a study can be tested without a study.

snapshot(base(), trial(1, [LSKA_4], 0.32, 1.05), rejected(2), failed(3))
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas_attn.architecture import Architecture, Placement
from nas_attn.network import Network, Node
from nas_attn.outcome import Cost, Failure, Job, Latency, Measured, Outcome, Recipe, Rejected, Snapshot, Stopped, Trial

BASE = "yolo11n.yaml"
OBJECTIVES = {"map50_95": "maximize", "latency_ratio": "minimize"}
RECIPE = Recipe(
    epochs=6,
    imgsz=160,
    batch=16,
    lr0=0.001,
    new_lr_scale=10.0,
    score_on="search_val",
    data="d" * 12,
    base="b" * 12,
    code="nas_attn 0.1.0, ultralytics 8.4.190, torch 2.15.0",
)
_MODULES: Sequence[tuple[str, tuple[tuple[str, float], ...]]] = (
    ("LSKA", (("k_size", 7), ("use_proj", False))),
    ("LSKA", (("k_size", 23), ("use_proj", False))),
    ("LIA", (("f", 16),)),
    ("HaloAttention", (("block_size", 8), ("dim_head", 16), ("halo_size", 3))),
    ("DoubleAttention", (("c_m", 0.25), ("c_n", 0.125))),
    ("CloAttention", (("kernel_size", 5), ("n_local", 4), ("num_heads", 8), ("window_size", 2))),
)
_LAYERS = (4, 6, 9, 10, 13, 16, 19, 22)


def placement(layer: int, module: int = 0) -> Placement:
    """A placement of one of six known modules after row `layer`."""
    name, params = _MODULES[module % len(_MODULES)]
    return Placement(layer=layer, module=name, params=params)


def latency(ratio: float, *, width: float = 0.02, quality: str = "gated") -> Latency:
    """A latency ratio with the interval `ratio ± width`, beside a base of 8 ms."""
    return Latency(
        ratio=ratio,
        low=ratio - width,
        high=ratio + width,
        latency_ms=8.0 * ratio,
        base_ms=8.0,
        quality=quality,
        blocks=30,
        attempts=1,
        environment={"device": "cpu", "threads": 1},
    )


def cost(ratio: float, *, params_m: float = 2.6, gmacs: float = 0.2, quality: str = "gated", width: float = 0.02) -> Cost:
    """A cost at a latency ratio."""
    return Cost(params_m=params_m, gmacs=gmacs, activation_mib=12.5, latency=latency(ratio, width=width, quality=quality))


def measured(map50_95: float, gates: Mapping[str, float] | None = None) -> Measured:
    """A finished training with that score."""
    return Measured(
        map50_95=map50_95,
        map50=min(1.0, map50_95 * 1.6),
        curve=({"epoch": 1.0, "map50_95": map50_95},),
        gates=gates or {},
        train_seconds=40.0,
        total_seconds=44.0,
        peak_memory_mib=900.0,
        batch=16,
        device="cpu",
    )


def results(arch: Architecture, scores: Sequence[float], gates: Mapping[str, float] | None = None) -> tuple[tuple[Job, Outcome], ...]:
    """One finished job a score, with seeds 0, 1, ..."""
    return tuple((Job(architecture=arch, recipe=RECIPE, seed=seed), measured(score, gates)) for seed, score in enumerate(scores))


def base(
    scores: Sequence[float] = (0.300, 0.304, 0.296),
    *,
    controls: Mapping[str, Outcome] | None = None,
    extra: Mapping[str, float] | None = None,
) -> Trial:
    """Trial 0: the base, with one score a seed, and its positive controls by label."""
    arch = Architecture(BASE)
    return Trial(
        number=0,
        state="COMPLETE",
        kind="measured",
        architecture=arch,
        cost=cost(1.0, width=0.005),
        values={"map50_95": sum(scores) / len(scores), "latency_ratio": 1.0, **(extra or {})},
        results=results(arch, scores),
        controls=tuple((label, Job(architecture=arch, recipe=RECIPE, seed=0), o) for label, o in (controls or {}).items()),
        seconds=150.0,
    )


def trial(
    number: int,
    placements: Sequence[Placement],
    score: float | Sequence[float],
    ratio: float,
    *,
    extra: Mapping[str, float] | None = None,
    gates: Mapping[str, float] | None = None,
    quality: str = "gated",
    width: float = 0.02,
) -> Trial:
    """A measured trial: a score, or one a seed, at a latency ratio; `extra` adds further objectives."""
    arch = Architecture(BASE, tuple(placements))
    values = [score] if isinstance(score, float) else list(score)
    moved = {str(p.layer): 0.05 for p in placements} if gates is None else gates
    return Trial(
        number=number,
        state="COMPLETE",
        kind="measured",
        architecture=arch,
        cost=cost(ratio, params_m=2.6 + 0.1 * len(placements), gmacs=0.2 * ratio, quality=quality, width=width),
        values={"map50_95": sum(values) / len(values), "latency_ratio": ratio, **(extra or {})},
        results=results(arch, values, moved),
        seconds=50.0,
    )


def rejected(number: int, ratio: float = 1.5, bound: float = 1.3, layer: int = 4) -> Trial:
    """A trial over the limit of latency before any training."""
    verdict = Rejected(limit="latency_ratio", value=ratio, bound=bound)
    arch = Architecture(BASE, (placement(layer, number),))
    return Trial(number=number, state="PRUNED", kind="rejected", architecture=arch, cost=cost(ratio), verdict=verdict)


def stopped(number: int, layer: int = 6) -> Trial:
    """A trial stopped at rung 1 on purpose."""
    verdict = Stopped(rung=1, curve=({"epoch": 1.0, "map50_95": 0.1},))
    arch = Architecture(BASE, (placement(layer, number),))
    return Trial(number=number, state="PRUNED", kind="stopped", architecture=arch, cost=cost(1.1), verdict=verdict)


def failed(number: int, error: str = "CUDA out of memory", layer: int = 9) -> Trial:
    """A trial that failed while it trained."""
    arch = Architecture(BASE, (placement(layer, number),))
    failure = Failure(stage="train", error=error, traceback="Traceback (most recent call last): ...")
    job = Job(architecture=arch, recipe=RECIPE, seed=0)
    return Trial(number=number, state="FAIL", kind="failure", architecture=arch, results=((job, failure),), verdict=failure)


def running(number: int) -> Trial:
    """A trial that has not ended."""
    return Trial(number=number, state="RUNNING", kind=None, architecture=Architecture(BASE, (placement(4, number),)))


def snapshot(
    *trials: Trial,
    name: str = "demo",
    folder: Path = Path("runs/demo"),
    objectives: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Snapshot:
    """A study of these trials."""
    fit = {
        "fingerprint": "b" * 12,
        "data": "d" * 12,
        "code": RECIPE.code,
        "map50_95": 0.29,
        "curve": [],
        "seconds": 240.0,
        "new_tensors": [],
    }
    return Snapshot(
        folder=folder,
        name=name,
        objectives=objectives or OBJECTIVES,
        settings={"space": {"base": BASE, "max_placements": 3}, "seed": 0} if settings is None else settings,
        fit=fit,
        trials=trials,
    )


def study(count: int, *, seed: int = 0, three: bool = False) -> Snapshot:
    """A plausible study: a base with controls and `count` further trials of every kind, drawn with `seed`."""
    rng = random.Random(seed)
    helps = {"help: longer fit": measured(0.334), "harm: shuffled channels": measured(0.21)}
    trials = [base(controls=helps, extra={"params_m": 2.6} if three else None)]
    for number in range(1, count + 1):
        layers = sorted(rng.sample(_LAYERS, rng.randint(1, 3)))
        chosen = [placement(layer, rng.randrange(6)) for layer in layers]
        ratio = 1.0 + 0.06 * len(layers) + abs(rng.gauss(0, 0.06))
        kind = rng.random()
        if kind < 0.08 or ratio > 1.34:
            trials.append(rejected(number, ratio=max(ratio, 1.31)))
        elif kind < 0.12:
            trials.append(failed(number))
        else:
            score = 0.298 + 0.02 * (ratio - 1) + rng.gauss(0, 0.005)
            gates = {str(layer): abs(rng.gauss(0.04, 0.02)) for layer in layers}
            extra = {"params_m": 2.6 + 0.1 * rng.random()} if three else None
            quality = "ungated" if rng.random() < 0.1 else "gated"
            trials.append(trial(number, chosen, score, ratio, extra=extra, gates=gates, quality=quality, width=0.004 + 0.02 * rng.random()))
    return snapshot(*trials, objectives={**OBJECTIVES, "params_m": "minimize"} if three else None)


HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"
_ROWS = (
    ("Conv", 2, (-1,), ""), ("Conv", 4, (0,), ""), ("C3k2", 4, (1,), "P2"), ("Conv", 8, (2,), ""), ("C3k2", 8, (3,), "P3"),
    ("Conv", 16, (4,), ""), ("C3k2", 16, (5,), "P4"), ("Conv", 32, (6,), ""), ("C3k2", 32, (7,), "P5"), ("SPPF", 32, (8,), "SPPF"),
    ("C2PSA", 32, (9,), "PSA"), ("nn.Upsample", 16, (10,), ""), ("Concat", 16, (11, 6), ""), ("C3k2", 16, (12,), "neck_P4"),
    ("nn.Upsample", 8, (13,), ""), ("Concat", 8, (14, 4), ""), ("C3k2", 8, (15,), "neck_P3_out"), ("Conv", 16, (16,), ""),
    ("Concat", 16, (17, 13), ""), ("C3k2", 16, (18,), "neck_P4_out"), ("Conv", 32, (19,), ""), ("Concat", 32, (20, 10), ""),
    ("C3k2", 32, (21,), "neck_P5_out"), ("Detect", 0, (16, 19, 22), ""),
)  # fmt: skip


def network() -> Network:
    """YOLO11n's rows as a study keeps them for drawings."""
    nodes = tuple(
        Node(
            row=number, module=module, sources=tuple(s for s in sources if s >= 0), channels=64 if stride else 0, stride=stride,
            names=(name,) if name else (),
        )
        for number, (module, stride, sources, name) in enumerate(_ROWS)
    )  # fmt: skip
    return Network(nodes=nodes, backbone=11)


def with_network(folder: Path) -> Path:
    """The folder, with that network in it."""
    network().save(folder)
    return folder


A, B, C = [placement(4)], [placement(6, 2)], [placement(9, 3)]


def drawn() -> Snapshot:
    """sigma is 0.004: trial 1 is the bend, trial 2 within one sigma of trial 3, the best; trial 4 is dominated."""
    return snapshot(
        base(),
        trial(1, A, 0.330, 1.05),
        trial(2, B, 0.337, 1.20),
        trial(3, C, 0.340, 1.28),
        trial(4, A + B, 0.320, 1.25),
        rejected(5),
        failed(6),
        running(7),
        stopped(8),
    )


def numbers(trials: Sequence[Trial]) -> list[int]:
    """Their numbers."""
    return [t.number for t in trials]
