"""Whether every node of a pool has what a search needs, asked before it trains anything: images and labels, the same code, the backend."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

from nas_attn.errors import InputError, PoolError
from nas_attn.losses import GONE, MAX_LOSSES
from nas_attn.plan import Plan
from nas_attn.setup import Setup, code_version
from nas_attn.work import Done, Pool

Told = dict[str, object]


def check(pool: Pool, plan: Plan) -> None:
    """Asks one worker of each node, and from then on each node that joins.

    Raises:
        InputError: a node without some of the images, with other labels or versions of the code, or without the latency backend.
        PoolError: a node whose workers are lost again and again.
    """
    images = len(plan.train) + len(plan.scored)
    _ask(pool, plan.setup, plan.train, plan.scored, "data set and code", lambda told: _wrong(told) or _wrong_data(told, images))


def check_code(pool: Pool, setup: Setup) -> None:
    """As `check`, for work that reads no image.

    Raises:
        InputError: a node with other versions of the code, or without the latency backend.
    """
    _ask(pool, setup, (), (), "code", _wrong)


def _ask(pool: Pool, setup: Setup, train: Sequence[str], scored: Sequence[str], what: str, wrong: Callable[[Told], str | None]) -> None:
    payload = json.dumps({"setup": asdict(setup), "train": train, "scored": scored})

    def judged(done: Done) -> str | None:
        return f"cannot read the data set: {done.lost}" if done.result is None else wrong(json.loads(done.result))

    for node, done in pool.everywhere("check", payload):
        if done.result is None and done.cause in GONE:
            told = f"but {node} was lost over it {MAX_LOSSES} times: {done.lost}; run the same command again, or without that node."
            raise PoolError(f"Every node must tell what it has before a search begins, {told}")
        reason = judged(done)
        if reason:
            raise InputError(f"Every node must have the same {what}, but {node} {reason}")
    pool.require("check", payload, judged)


def _wrong(told: Told) -> str | None:
    ours = code_version()
    if told["code"] != ours:
        return f"has {told['code']} where this driver has {ours}; install the same versions there."
    return f"cannot measure: {told['backend']}" if told["backend"] else None


def _wrong_data(told: Told, images: int) -> str | None:
    if told["missing"]:
        return f"lacks {told['missing']} of {images} images, {told['first']} first; copy or mount the data set to the same path there."
    return None if told["equal"] else "has other labels or image sizes than this driver; copy the data set there once more."
