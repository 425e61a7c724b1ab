"""Seconds a trial against the seconds of its bare training steps: warm workers, and one `yolo train` process a trial.

    python tests/benchmarks/orchestration_overhead.py --data DATA.yaml --out results

The same candidates (one LSKA at different rows of yolo11n), images, epochs and batch in three ways, taken in turn in one run:

- `bare`: in this process, forward, backward and optimizer steps alone on batches that are already in memory, as many as a trial has;
- `warm`: as a job of a warm Ray worker, from submission to outcome: build, move weights, load, train, score every epoch, write the outcome;
- `process`: a fresh `yolo train` process on the candidate's YAML with the same schedule (no weights moved, no labels kept in memory).

Every way computes on `--threads` threads. A trial's overhead is its seconds over those of the bare steps; scoring is part of it.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
import yaml

from nas_attn import detector, plan, proxy
from nas_attn.architecture import Architecture, Placement
from nas_attn.dataset import NasDataset
from nas_attn.outcome import Job
from nas_attn.pool import open_pool
from nas_attn.protocol import recipe_of
from nas_attn.records import record
from nas_attn.spec import SpaceSpec
from nas_attn.work import Pool, Task

ROWS = (2, 4, 6, 8, 13, 16, 19, 22)


def candidate(base: str, row: int) -> Architecture:
    """One LSKA after a row."""
    return Architecture(base, (Placement(row, "LSKA", record("LSKA").complete({})),))


def ask(pool: Pool, kind: str, payload: dict[str, object]) -> tuple[dict[str, object], float]:
    """One task through the pool, and the seconds from submission to answer."""
    start = time.perf_counter()
    pool.submit(Task(f"{kind}/{start}", kind, json.dumps(payload)))
    done = pool.wait(None)[0]
    if done.result is None:
        raise SystemExit(f"{kind} was lost: {done.lost}")
    return json.loads(done.result), time.perf_counter() - start


def bare_seconds(prepared: plan.Plan, architecture: Architecture, threads: int) -> float:
    """Forward, backward and step on batches in memory, as many as one trial has."""
    torch.set_num_threads(threads)
    setup, schedule = prepared.setup, prepared.spec.proxy
    edit = detector.insert_architecture(setup.yaml_graph(), architecture)
    model = detector.build(edit.graph, setup.scale, len(setup.names))
    arguments = detector.default_arguments()
    model.args = arguments
    data = {"names": dict(enumerate(setup.names)), "channels": 3}
    sizes = {"imgsz": schedule.imgsz, "batch_size": schedule.batch}
    images = NasDataset(img_path=setup.train_list, augment=False, hyp=arguments, task="detect", data=data, **sizes)
    batches = []
    for first in range(0, len(images), schedule.batch):
        batch = NasDataset.collate_fn([images[i] for i in range(first, min(first + schedule.batch, len(images)))])
        batches.append({**batch, "img": batch["img"].float() / 255})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    start = time.perf_counter()
    for _ in range(schedule.epochs):
        for batch in batches:
            optimizer.zero_grad()
            model(batch)[0].sum().backward()
            optimizer.step()
    return time.perf_counter() - start


def process_seconds(prepared: plan.Plan, architecture: Architecture, folder: Path, threads: int) -> float:
    """A fresh `yolo train` process on the candidate's YAML, registered through `python -c`."""
    setup, schedule = prepared.setup, prepared.spec.proxy
    edit = detector.insert_architecture(setup.yaml_graph(), architecture)
    scales = edit.graph.to_yaml()["scales"]
    config = {**edit.graph.to_yaml(), "nc": len(setup.names), "scales": {setup.scale: scales[setup.scale]}}
    (folder / "yolo11n-candidate.yaml").write_text(yaml.safe_dump(config))
    lists = {"train": setup.train_list, "val": setup.val_list, "names": dict(enumerate(setup.names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(lists))
    settings = {
        **proxy.PINNED,
        "model": str(folder / "yolo11n-candidate.yaml"),
        "data": str(folder / "data.yaml"),
        "epochs": schedule.epochs,
        "imgsz": schedule.imgsz,
        "batch": schedule.batch,
        "nbs": schedule.batch,
        "lr0": schedule.lr0,
        "device": "cpu",
        "workers": 0,
        "plots": False,
        "project": str(folder),
        "pretrained": False,
        "amp": False,
    }
    code = "import sys, nas_attn; from ultralytics.cfg import entrypoint; sys.argv[0] = 'yolo'; entrypoint()"
    arguments = [f"{name}={value}" for name, value in settings.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "detect", "train", *arguments], check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def main() -> None:
    """Run the protocol and write its CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    detector.silence()
    whole = SpaceSpec.load("yolo11-cpu")
    spec = whole.model_copy(update={"proxy": whole.proxy.model_copy(update={"epochs": options.epochs})})
    spec = spec.model_copy(update={"base_fit": spec.base_fit.model_copy(update={"epochs": 1})})
    rows = []
    with tempfile.TemporaryDirectory(prefix="nas-attn-") as name:
        folder = Path(name)
        prepared = plan.prepare(spec, "yolo11-cpu", options.data, folder / "study", device="cpu")
        prepared.save()
        with open_pool("ray", "nas_attn.evaluate:serve", workers=1, threads=options.threads) as pool:
            setup = asdict(prepared.setup)
            fit, _ = ask(pool, "fit", {"setup": setup})
            recipe = recipe_of(spec, setup, fit)
            job = Job(architecture=candidate(spec.base, ROWS[-1]), recipe=recipe, seed=99)
            ask(pool, "train", {"setup": setup, "job": job.to_dict()})  # the worker is warm from here on
            for repeat in range(options.repeats):
                architecture = candidate(spec.base, ROWS[repeat % len(ROWS)])
                answer, warm = ask(pool, "train", {"setup": setup, "job": replace(job, architecture=architecture, seed=repeat).to_dict()})
                bare = bare_seconds(prepared, architecture, options.threads)
                fresh = process_seconds(prepared, architecture, folder, options.threads)
                rows.append({"repeat": repeat, "row": ROWS[repeat % len(ROWS)], "bare_s": bare, "warm_s": warm, "process_s": fresh})
                rows[-1] |= {"warm_ratio": warm / bare, "process_ratio": fresh / bare, "warm_train_s": answer["train_seconds"]}
                sys.stdout.write(", ".join(f"{k} {v:.2f}" for k, v in rows[-1].items()) + "\n")
                sys.stdout.flush()
    options.out.mkdir(parents=True, exist_ok=True)
    images = f"{options.data.parent.name}-{spec.proxy.imgsz}px-b{spec.proxy.batch}-e{options.epochs}"
    file = options.out / f"orchestration-overhead-yolo11n-{images}-cpu{options.threads}.csv"
    with file.open("w", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 3) for k, v in row.items()} for row in rows)
    for way in ("warm_ratio", "process_ratio"):
        values = [row[way] for row in rows]
        sys.stdout.write(f"{way}: median {statistics.median(values):.2f}, {min(values):.2f} to {max(values):.2f}\n")
    sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
