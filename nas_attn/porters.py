"""What brings a training's checkpoints to the driver from nodes that do not see the study's folder, before or after a worker is lost.

One small actor a node, without CPUs of its own. It is there before it is needed: a node that is about to go takes no new work.
"""

import contextlib
from collections.abc import Container, Iterable, Mapping
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
        self._asked: dict[Any, str] = {}
        self._cleared: list[Any] = []

    def post(self, node: str) -> None:
        """Sees to it that a node has a porter."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if node not in self._actors:
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            self._actors[node] = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=there)(Porter).remote()

    def ask(self, node: str, root: str) -> None:
        """Asks for what a worker has kept so far; it comes when it comes."""
        self.post(node)  # one that has died is replaced
        self._asked[self._actors[node].fetch.remote(root)] = node

    def collect(self) -> None:
        """Takes what has come."""
        import ray

        ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        for ref in ready:
            self._take(self._asked.pop(ref), ref)
        if self._cleared:
            _, self._cleared = ray.wait(self._cleared, num_returns=len(self._cleared), timeout=0)

    def inherit(self, node: str, root: str) -> None:
        """Takes what a dead worker has kept, if its node still lives."""
        if root and node in self._actors:
            self._take(node, self._actors[node].fetch.remote(root))

    def clear(self, node: str, root: str) -> None:
        """Clears the folder of a worker away that is dead, if its node still lives."""
        if root and node in self._actors:
            self._cleared.append(self._actors[node].clear.remote(root))

    def keep(self, nodes: Container[str]) -> None:
        """Forgets the porters of all other nodes, which are gone."""
        self._actors = {node: actor for node, actor in self._actors.items() if node in nodes}
        self._asked = {ref: node for ref, node in self._asked.items() if node in nodes}

    def close(self, left: Iterable[tuple[str, str]] = ()) -> None:
        """Clears what is left, each a node and the folder of a worker that was killed there, and ends the porters."""
        import ray

        if ray.is_initialized():
            for node, root in left:
                self.clear(node, root)
            if self._cleared:
                ray.wait(self._cleared, num_returns=len(self._cleared), timeout=PATIENCE_S)
            for actor in self._actors.values():
                ray.kill(actor, no_restart=True)
        self._actors.clear()

    def _take(self, node: str, ref: Any) -> None:
        import ray

        # What cannot be had any more is trained again: a checkpoint saves time, and nothing depends on it.
        with contextlib.suppress(ray.exceptions.RayError, PoolError, OSError):
            try:
                files: Mapping[str, bytes] = ray.get(ref, timeout=PATIENCE_S)
            except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnschedulableError):
                self._actors.pop(node, None)
                raise
            if self._folder is not None:
                deliver(self._folder, files, pauses=())
