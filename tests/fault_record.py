"""What a record must show of single trials after a search with faults: who was blamed, and that each was told once."""

import contextlib
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from nas_attn.architecture import Architecture
from nas_attn.losses import CRASHES, LOSSES
from nas_attn.outcome import Snapshot
from nas_attn.protocol import job_key
from nas_attn.storage import Storage


def blamed(folder: Path, digests: Collection[str], storage: str | None = None) -> list[tuple[int, str]]:
    """Those trials that have a crash or the loss of a node counted against them: their numbers, and which of the two."""
    with contextlib.closing(Storage.read(folder, storage)) as stored:
        rows = [(row.number, row.user_attrs) for row in stored.rows.trials()]
    ours = [(n, has) for n, has in rows if Architecture.from_dict(json.loads(has["architecture"])).digest() in digests]
    return [(number, counter) for number, has in ours for counter in (CRASHES, LOSSES) if has.get(counter)]


def often_told(snapshot: Snapshot, log: str, digests: Collection[str]) -> list[str]:
    """What is wrong with those trials: each was told once, with one outcome a job."""
    found = []
    for trial in snapshot.trials:
        if trial.architecture.digest() in digests:
            told, jobs = log.count(f" told trial {trial.number}: "), Counter(job_key(job) for job, _ in trial.results)
            if told != 1 or trial.state != "COMPLETE" or set(jobs.values()) != {1}:
                found.append(f"trial {trial.number} is {trial.state}, was told {told} times, with outcomes {dict(jobs)}")
    return found
