"""What brings a training's checkpoints to the driver from nodes that do not see the study's folder, before or after a worker is lost.

One small actor a node, without CPUs of its own. It is there before it is needed: a node that is about to go takes no new work.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas_attn.carry import deliver
from nas_attn.errors import PoolError
from nas_attn.worker import Porter

PATIENCE_S = 10.0
"""How long the loss of a worker may wait for what it has kept."""


class Porters:
    """The porters of a pool, for one study's folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._actors: dict[str, Any] = {}
        self._asked: list[Any] = []

    def post(self, node: str) -> None:
        """Sees to it that a node has a porter."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if node not in self._actors:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            self._actors[node] = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=there)(Porter).remote()

    def ask(self, node: str, root: str) -> None:
        """Asks for what a worker has kept so far; it comes when it comes."""
        if node in self._actors:
            self._asked.append(self._actors[node].fetch.remote(root))

    def collect(self) -> None:
        """Takes what has come."""
        import ray

        ready, self._asked = ray.wait(self._asked, num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        for ref in ready:
            self._take(ref)

    def inherit(self, node: str, root: str) -> None:
        """Takes what a dead worker has kept, if its node still lives, and clears its folder away."""
        if node in self._actors:
            self._take(self._actors[node].fetch.remote(root))
            self._actors[node].clear.remote(root)

    def forget(self, node: str) -> None:
        """A node is gone."""
        self._actors.pop(node, None)

    def close(self) -> None:
        """Ends the porters."""
        import ray

        for actor in self._actors.values():
            if ray.is_initialized():
                ray.kill(actor, no_restart=True)
        self._actors.clear()

    def _take(self, ref: Any) -> None:
        import ray

        # What cannot be had any more is trained again: a checkpoint saves time, and nothing depends on it.
        with contextlib.suppress(ray.exceptions.RayError, PoolError, OSError):
            files: Mapping[str, bytes] = ray.get(ref, timeout=PATIENCE_S)
            if self._folder is not None:
                deliver(self._folder, files)
