"""A fake worker for the tests of `verify`: scores are a pure function of arm and seed; every training leaves a line in `executions.log`."""

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from snapshots import base, measured, placement, snapshot, trial

from nas_attn.data import load
from nas_attn.outcome import Failure, Job, Snapshot, outcome_file_text, outcome_to_dict
from nas_attn.setup import Setup

WIDTH = {"width": 0.28125, "ratio": 1.11, "candidate_ratio": 1.10, "params_m": 2.9, "quality": "gated", "probes": [], "skipped": {}}


def study(folder: Path, data_yaml: Path, **fake: Any) -> tuple[Snapshot, Setup]:
    """A study of the base and three further trials, of which two are on the front; `fake` is told to the worker below."""
    found = load(data_yaml)
    (folder / "base").mkdir(parents=True, exist_ok=True)
    (folder / "base" / "weights.pt").write_bytes(b"weights")
    (folder / "lists").mkdir(exist_ok=True)
    for name, images in (("train", found.train[:-2]), ("search_val", found.train[-2:])):
        (folder / "lists" / f"{name}.txt").write_text("".join(f"{image}\n" for image in images))
    setup = Setup(
        folder=str(folder),
        base="yolo11n.yaml",
        graph=fake,
        scale="n",
        weights=None,
        weights_sha256=None,
        names=found.names,
        train_list="/moved/from/lists/train.txt",
        val_list="/moved/from/lists/search_val.txt",
        score_on="search_val",
        data="d-d",
        fit={"epochs": 4, "imgsz": 64, "batch": 8, "lr0": 0.002, "hsv_h": 0.0},
        latency={"imgsz": 64, "batch": 1, "blocks": 3, "calibrations": 2, "retries": 0},
        device="cpu",
        seed=0,
    )
    trials = (
        base(),
        trial(1, [placement(4)], 0.31, 1.05),
        trial(2, [placement(6)], 0.33, 1.10),
        trial(3, [placement(9)], 0.29, 1.20),
    )
    return snapshot(*trials, folder=folder), setup


def serve(kind: str, payload: str) -> str:
    """The worker."""
    task = json.loads(payload)
    fake, folder, root = task["setup"]["graph"], Path(task["folder"]), Path(task["setup"]["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    if kind in fake.get("fails", ()):
        return json.dumps({"failure": asdict(Failure(stage="latency", error="no quiet moment"))})
    if kind == "width":
        log(root, "width")
        return json.dumps(fake.get("width", WIDTH))
    if kind == "fit":
        log(root, "fit")
        (folder / "weights.pt").write_bytes(b"wider")
        return json.dumps({"fingerprint": "w" * 12, "moved": 3, "tensors": 499})
    job = Job.from_dict(task["job"])
    arm = folder.parent.name.split("-w")[0].split("-e")[0]
    log(root, f"{arm} {job.seed}")
    bad = f"{arm} {job.seed}" in fake.get("fails", ())
    done = measured(score(arm, job.seed))
    epoch = {"epoch": 1.0, "train_loss": 3.0 + job.seed * (not fake.get("same_seeds")), "val_loss": 2.0}
    outcome = Failure(stage="train", error="CUDA out of memory") if bad else replace(done, curve=(epoch,))
    (folder / "outcome.json").write_text(outcome_file_text(job, outcome))
    return json.dumps(outcome_to_dict(outcome))


def score(arm: str, seed: int) -> float:
    """What an arm reaches with a seed, always."""
    gain = {"base": 0.0, "extra": 0.005, "wider": 0.01, "trial-1": 0.012, "trial-2": 0.03}[arm]
    return 0.3 + gain + random.Random(seed).gauss(0, 0.02) + random.Random(f"{arm}{seed}").gauss(0, 0.001)


def log(folder: Path, line: str) -> None:
    """One line more in the log."""
    with (folder / "executions.log").open("a") as file:
        file.write(f"{line}\n")


def executions(folder: Path) -> list[str]:
    """The log, a line a training, width search or fit."""
    file = folder / "executions.log"
    return file.read_text().splitlines() if file.is_file() else []
