"""Whether every node of a pool has what a search needs, asked before anything is trained: images and labels, the same code, the backend."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from nas_attn.errors import InputError
from nas_attn.plan import Plan
from nas_attn.setup import Setup, code_version
from nas_attn.work import Pool


def check(pool: Pool, plan: Plan) -> None:
    """Asks one worker of each node.

    Raises:
        InputError: a node without some of the images, with other labels or versions of the code, or without the latency backend.
    """
    for node, told in _ask(pool, plan.setup, plan.train, plan.scored):
        wrong = _wrong(told) or _wrong_data(told, len(plan.train) + len(plan.scored))
        if wrong:
            raise InputError(f"Every node must have the same data set and code, but {node} {wrong}")


def check_code(pool: Pool, setup: Setup) -> None:
    """As `check`, for work that reads no image.

    Raises:
        InputError: a node with other versions of the code, or without the latency backend.
    """
    for node, told in _ask(pool, setup, (), ()):
        wrong = _wrong(told)
        if wrong:
            raise InputError(f"Every node must have the same code, but {node} {wrong}")


def _ask(pool: Pool, setup: Setup, train: Sequence[str], scored: Sequence[str]) -> list[tuple[str, dict[str, object]]]:
    payload = json.dumps({"setup": asdict(setup), "train": train, "scored": scored})
    answers = []
    for node, done in pool.everywhere("check", payload):
        if done.result is None:
            raise InputError(f"Every node must be able to read the data set, but on {node}: {done.lost}")
        answers.append((node, json.loads(done.result)))
    return answers


def _wrong(told: dict[str, object]) -> str | None:
    ours = code_version()
    if told["code"] != ours:
        return f"has {told['code']} where this driver has {ours}; install the same versions there."
    return f"cannot measure: {told['backend']}" if told["backend"] else None


def _wrong_data(told: dict[str, object], images: int) -> str | None:
    if told["missing"]:
        return f"lacks {told['missing']} of {images} images, {told['first']} first; copy or mount the data set to the same path there."
    return None if told["equal"] else "has other labels or image sizes than this driver; copy the data set there once more."
