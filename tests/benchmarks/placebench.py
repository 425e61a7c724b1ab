"""The placement benchmark: a designed sample of architectures, each trained with the proxy, every seed and every epoch kept.

    python tests/benchmarks/placebench.py --data DATA.yaml --work FOLDER --out results

The space is placebench.yaml beside this file. The sample: the base with `--base-seeds` seeds; `--anchors` architectures with
`--anchor-seeds` seeds; further architectures with one seed until `--runs` trainings are planned; then base and anchors again for
`--long` times the epochs. Architectures are chosen one by one so that the main effects of all placements are known as well as possible
(D-optimal, greedy), with every number of placements in turn. One resumable command: finished trainings are read from FOLDER;
killed at any moment, the same command goes on. Writes placebench-<protocol>.csv, one line an epoch of a training, and
placebench-<protocol>-costs.csv, one line an architecture.

Another proxy on the base and the anchors alone, to be told from the first by placebench_figures.py:

    python tests/benchmarks/placebench.py --data DATA.yaml --work ANOTHER --lr0 0.0003 --base-seeds 3 --runs 33 --long-seeds 0 --no-latency
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from nas_attn import plan, protocol
from nas_attn.architecture import Architecture
from nas_attn.outcome import Job, Measured, read_outcome_file
from nas_attn.pool import open_pool
from nas_attn.space import SearchSpace
from nas_attn.spec import SpaceSpec
from nas_attn.work import Pool, Task

TARGET = "nas_attn.evaluate:serve"
SPACE = Path(__file__).with_name("placebench.yaml")
DRAWS = 3000
RIDGE = 1.0


def drawn(space: SearchSpace, rng: random.Random) -> Architecture:
    """An architecture with a uniform number of placements: a uniform architecture of this space has nearly every site filled."""
    count = rng.randint(1, len(space.sites))
    chosen = [rng.choice(space.placements[i]) for i in sorted(rng.sample(range(len(space.sites)), count))]
    return Architecture(space.base, tuple(chosen))


def design(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """`count` architectures, greedily D-optimal for the main effect of every placement, in the order of their choice."""
    rng = random.Random(seed)
    pool = list({a.digest(): a for a in (drawn(space, rng) for _ in range(DRAWS))}.values())
    columns = {placement: k for k, placement in enumerate(p for options in space.placements for p in options)}
    rows = np.zeros((len(pool), len(columns) + 1))
    rows[:, -1] = 1.0
    for i, architecture in enumerate(pool):
        rows[i, [columns[p] for p in architecture.placements]] = 1.0
    inverse, chosen = np.eye(rows.shape[1]) / RIDGE, list[int]()
    sizes = np.array([len(architecture.placements) for architecture in pool])
    for turn in range(count):
        # Every number of placements in turn: the criterion alone would fill all sites, and nobody searches there.
        spread = np.where(sizes == 1 + turn % len(space.sites), np.einsum("nd,de,ne->n", rows, inverse, rows), -1.0)
        spread[chosen] = -1.0
        best = int(np.argmax(spread))
        chosen.append(best)
        step = inverse @ rows[best]
        inverse -= np.outer(step, step) / (1.0 + spread[best])
    return [pool[i] for i in chosen]


def jobs(space: SearchSpace, recipe: protocol.Recipe, options: argparse.Namespace) -> list[Job]:
    """Every training, the most needed first: an unfinished benchmark is a smaller one."""
    base = Architecture(space.base)
    singles = options.runs - options.base_seeds - options.anchors * options.anchor_seeds
    sample = design(space, options.anchors + singles, options.seed)
    anchors, others = sample[: options.anchors], sample[options.anchors :]
    long = replace(recipe, epochs=recipe.epochs * options.long)
    plans: list[tuple[Architecture, protocol.Recipe, int]] = [
        *((base, recipe, seed) for seed in range(options.base_seeds)),
        *((architecture, recipe, seed) for seed in range(options.anchor_seeds) for architecture in anchors),
        *((architecture, recipe, 0) for architecture in others),
        *((architecture, long, seed) for seed in range(options.long_seeds) for architecture in (base, *anchors)),
    ]
    return [Job(architecture=architecture, recipe=r, seed=seed) for architecture, r, seed in plans]


def finished(job: Job, folder: Path) -> Measured | None:
    """The outcome of a job that was done before, in whatever attempt."""
    for file in sorted(job.folder(folder).parent.glob("*/outcome.json")):
        outcome = read_outcome_file(file.read_text(), job)
        if isinstance(outcome, Measured):
            return outcome
    return None


def train(wanted: Sequence[Job], folder: Path, setup: dict[str, object], pool: Pool) -> None:
    """Train what is missing, as many at a time as the pool has workers."""
    left = [job for job in wanted if finished(job, folder) is None]
    total, start, flying, begun = len(left), time.monotonic(), dict[str, Job](), iter(left)
    done = 0
    while True:
        while len(flying) < pool.slots and (job := next(begun, None)) is not None:
            key = f"{job.architecture.digest()}/{job.name()}"
            flying[key] = job
            pool.submit(Task(key=key, kind="train", payload=json.dumps({"setup": setup, "job": job.to_dict()}), deadline_s=3600.0))
        if not flying:
            return
        for answer in pool.wait(None):
            job = flying.pop(answer.key)
            done += 1
            text = "lost: " + str(answer.lost) if answer.result is None else str(json.loads(answer.result).get("map50_95"))
            minutes = (time.monotonic() - start) / 60
            sys.stdout.write(f"{done}/{total} after {minutes:.1f} min: {job.architecture} seed {job.seed}: {text}\n")
            sys.stdout.flush()


def measure(wanted: Sequence[Architecture], folder: Path, setup: dict[str, object], pool: Pool) -> pd.DataFrame:
    """Costs of every architecture, measured in small batches with nothing else running; kept in `costs.json` as they come."""
    file = folder / "costs.json"
    known: dict[str, dict[str, object]] = json.loads(file.read_text()) if file.is_file() else {}
    left = [a for a in wanted if a.digest() not in known]
    for start in range(0, len(left), 8):
        batch = left[start : start + 8]
        payload = json.dumps({"setup": setup, "architectures": [a.to_dict() for a in batch]})
        pool.submit(Task(key=f"measure/{start}", kind="measure", payload=payload, exclusive=True, deadline_s=3600.0))
        (answer,) = pool.wait(None)
        for architecture, cost in zip(batch, protocol.read_costs(str(answer.result), len(batch)), strict=True):
            known[architecture.digest()] = {"architecture": architecture.to_json(), **asdict(cost)}
        file.write_text(json.dumps(known))
        sys.stdout.write(f"{len(known)} of {len(wanted)} architectures timed\n")
    rows = []
    for digest, entry in known.items():
        latency = entry.get("latency")
        if isinstance(latency, dict):
            timed = {f"latency_{name}": latency[name] for name in ("ratio", "low", "high", "quality")}
            costs = {name: entry[name] for name in ("params_m", "gmacs", "activation_mib")}
            rows.append({"digest": digest, **costs, **timed, "latency_ms": latency["latency_ms"], "base_ms": latency["base_ms"]})
    return pd.DataFrame(rows).sort_values("digest")


def curves(wanted: Sequence[Job], folder: Path, sites: Sequence[int]) -> Iterator[dict[str, object]]:
    """One row an epoch of every finished training; a site's column holds the module there, empty for none."""
    for job in wanted:
        outcome = finished(job, folder)
        placed = {p.layer: p.module for p in job.architecture.placements}
        for epoch in outcome.curve if outcome else ():
            yield {
                "digest": job.architecture.digest(),
                **{f"row_{site}": placed.get(site, "") for site in sites},
                "epochs": job.recipe.epochs,
                "seed": job.seed,
                **{name: epoch[name] for name in ("epoch", "map50_95", "map50", "train_loss", "val_loss", "lr")},
                "gate": np.mean([value for name, value in epoch.items() if name.startswith("gate_")] or [0.0]),
                "train_seconds": outcome.train_seconds if outcome else None,
            }


def main() -> None:
    """Parse, train what is missing, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where trainings are kept; the same folder goes on")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--runs", type=int, default=120)
    parser.add_argument("--base-seeds", type=int, default=8)
    parser.add_argument("--anchors", type=int, default=10)
    parser.add_argument("--anchor-seeds", type=int, default=3)
    parser.add_argument("--long", type=int, default=3, help="the long training has so many times the epochs of the proxy")
    parser.add_argument("--long-seeds", type=int, default=2)
    parser.add_argument("--lr0", type=float, help="the proxy's learning rate, another than the space's")
    parser.add_argument("--new-lr-scale", type=float, help="how many times as fast inserted modules learn, another than the space's")
    parser.add_argument("--no-latency", action="store_true", help="train only; time the architectures in a later, quiet call")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    spec = SpaceSpec.load(SPACE)
    changed = {name: value for name in ("lr0", "new_lr_scale") if (value := getattr(options, name)) is not None}
    spec = spec.model_copy(update={"proxy": spec.proxy.model_copy(update=changed)})
    prepared = plan.prepare(spec, str(SPACE), options.data, options.work, device=options.device)
    prepared.save()
    setup = asdict(prepared.setup)
    with open_pool("ray", TARGET) as pool:
        pool.submit(Task(key="fit", kind="fit", payload=json.dumps({"setup": setup})))
        fit = protocol.read_fit(str(pool.wait(None)[0].result))
        sys.stdout.write(f"the base is fitted: {fit['map50_95']:.4f}\n")
        wanted = jobs(prepared.space, protocol.recipe_of(spec, setup, fit), options)
        train(wanted, options.work, setup, pool)
        name = f"placebench-yolo11n-{options.data.parent.name}-{spec.proxy.imgsz}px-b{spec.proxy.batch}-e{spec.proxy.epochs}"
        name += "".join(f"-{key.removesuffix('_scale').replace('_', '')}{value:g}" for key, value in changed.items())
        options.out.mkdir(parents=True, exist_ok=True)
        rows = pd.DataFrame(curves(wanted, options.work, [site.layer for site in prepared.space.sites]))
        rows.to_csv(options.out / f"{name}.csv", index=False, float_format="%.6g")
        if not options.no_latency:
            architectures = list({job.architecture.digest(): job.architecture for job in wanted}.values())
            costs = measure(architectures, options.work, setup, pool)
            costs.to_csv(options.out / f"{name}-costs.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
