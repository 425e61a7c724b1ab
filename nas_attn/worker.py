"""The body of a Ray worker: imports the target once, keeps the process's state from task to task, and knows whether files must travel.

Beside it, on a node whose files travel, a porter: it brings what a worker has kept of its training, also when that worker is dead.
"""

import json
import os
import shutil
import socket
import sys
import time
from typing import Any

from nas_attn.carry import Annex, salvage, sees
from nas_attn.schedule import processor
from nas_attn.seats import node_kind
from nas_attn.work import answer, import_target, unwritten

CLEARINGS = 50
"""How often a porter tries to clear a folder away, a tenth of a second apart."""


class Worker:
    """One process. `folder` and `mark` tell it the study's folder and how to know whether it sees it (see `nas_attn.carry`)."""

    def __init__(self, target: str, environment: dict[str, str], folder: str | None, mark: str) -> None:
        os.environ.update(environment)  # before the target imports torch, which reads the number of threads once
        self._target, self._folder, self._mark = target, folder, mark
        self._annex: Annex | None = None

    def start(self) -> str:
        """JSON: process, node, kind and names of the devices that Ray gave it, and whether the study's files must travel to it."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        here: dict[str, Any] = next((entry for entry in ray.nodes() if entry["NodeID"] == node), {}) if ray.get_gpu_ids() else {}
        self._serve = import_target(self._target)
        if ray.get_gpu_ids() and "torch" in sys.modules:  # a GPU that has failed is found here, and not by a trial
            sys.modules["torch"].zeros(8, device="cuda").sum().item()
        # By the name that a study keeps of its latencies' device, or Ray's own word for it where the target does not compute with torch.
        kind = (
            sys.modules["torch"].cuda.get_device_name(0) if ray.get_gpu_ids() and "torch" in sys.modules else node_kind(here, processor())
        )
        if self._folder is not None and not sees(self._folder, self._mark):
            self._annex = Annex(self._folder)
        return json.dumps(
            {
                "pid": os.getpid(),
                "node": node,
                "name": f"{socket.gethostname()} ({ray.util.get_node_ip_address()})",
                "kind": kind,
                "devices": [f"{node}/{gpu}" for gpu in ray.get_gpu_ids() or ["cpu"]],
                "annex": str(self._annex.root) if self._annex else "",
            }
        )

    def run(
        self, kind: str, payload: str, paths: tuple[str, ...], *contents: bytes
    ) -> tuple[str | None, str | None, str, dict[str, bytes]]:
        """One task, with the files that it reads: its result, or why there is none and of which cause, and the files that it wrote."""
        if self._annex is None:
            return (*answer(self._serve, kind, payload), {})
        files = dict(zip(paths, contents, strict=True))
        try:
            given, written = self._annex.work(lambda ours: answer(self._serve, kind, ours), payload, files)
        except OSError as error:  # this node's own disk takes no more: neither this worker nor its task is to blame
            return (*unwritten(error), {})
        return (*given, written)


class Porter:
    """A small process of its own on a node whose workers do not see the study's folder."""

    def fetch(self, root: str) -> dict[str, bytes]:
        """What the worker with that private folder has kept of its training."""
        return salvage(root)

    def clear(self, root: str) -> None:
        """Deletes the private folder of a worker that is dead, or about to be: it may write for a moment yet."""
        for _ in range(CLEARINGS):
            shutil.rmtree(root, ignore_errors=True)
            time.sleep(0.1)
            if not os.path.lexists(root):
                return
