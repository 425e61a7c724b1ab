"""A driver for fault tests: a search of the fake space on a cluster that is there, an event a line, each with the time at which it came.

python tests/fault_driver.py FOLDER --address HOST:PORT --trials N [--fake JSON] [--storage URL]
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fake_evaluator import Fake, setup
from study_targets import BASE, space

from nas_attn import study
from nas_attn.errors import NasAttnError
from nas_attn.event import Event
from nas_attn.home import require_no_driver
from nas_attn.pool import InlinePool, RayPool
from nas_attn.seating import Slot
from nas_attn.spec import SpaceSpec
from nas_attn.work import Pool, Task

TRUE_TIME = time.time
TARGET = "fake_evaluator:serve"
CHOICES = space(sites=6, most=3)
"""4,897 architectures: enough for a hundred faults."""
SPEC = {
    "base": BASE,
    "sites": ["P3"],
    "modules": {"LIA": {"f": [8]}},
    "limits": {"latency_ratio": 1.3},
    "base_seeds": 2,
    "controls": False,
}


class Telling(RayPool):
    """A pool that tells which node it gives a task to, and when it has seen a node's notice."""

    _noticed: frozenset[str] = frozenset()

    def _watch(self) -> None:
        super()._watch()
        leaving = frozenset(slot.node for slot in self._slots if slot.leaving)
        for node in sorted(leaving - self._noticed):
            _print(f"notice {node}")
        self._noticed |= leaving

    def _hand_over(self, slot: Slot, task: Task) -> None:
        _print(f"handed {slot.node} {task.key}")
        super()._hand_over(slot, task)


def search(
    folder: Path,
    pool: Pool,
    trials: int,
    fake: Fake,
    storage: str | None = None,
    deadline_s: float = 3600.0,
    tell: Callable[[Event], None] | None = None,
) -> None:
    """The search of every fault test: the evaluator is a pure function, the sampler draws at random."""
    study.run(
        folder,
        SpaceSpec.from_dict(SPEC),
        CHOICES,
        setup(folder, fake),
        pool,
        trials=trials,
        sampler="random",
        storage=storage,
        deadline_s=deadline_s,
        on_event=tell or _say,
    )


def undisturbed(folder: Path, trials: int, fake: Fake) -> None:
    """The same search in this process, which nothing happens to."""
    folder.mkdir(parents=True)
    search(folder, InlinePool(TARGET), trials, fake, tell=lambda _: None)


def _say(event: Event) -> None:
    _print(f"{event.kind} {event.message}")


def _print(words: str) -> None:
    print(f"{TRUE_TIME():.2f} {words}", flush=True)  # noqa: T201


def main() -> int:
    """Exit codes as those of `nas-attn`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--address", required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--fake", type=json.loads, default={})
    parser.add_argument("--storage")
    parser.add_argument("--deadline-s", type=float, default=3600.0)
    parser.add_argument("--clock", type=Path, help="a file with the seconds by which this process's clock of the day is wrong")
    given = parser.parse_args()
    # A campaign that a shell runs in the background ignores SIGINT, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if given.clock:
        time.time = lambda: TRUE_TIME() + float(given.clock.read_text() or 0)
    try:
        require_no_driver(given.folder)  # as the command line does, before workers start
        with Telling(TARGET, workers=given.workers, gpus_per_worker=0, address=given.address, folder=given.folder) as pool:
            search(given.folder, pool, given.trials, Fake(**given.fake), given.storage, given.deadline_s)
    except NasAttnError as error:
        _print(f"error {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
