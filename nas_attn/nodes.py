"""Whether every node of a pool has what a search needs, asked before it trains anything: the images and labels, and the same code."""

import json
from dataclasses import asdict

from nas_attn.errors import InputError
from nas_attn.plan import Plan
from nas_attn.setup import code_version
from nas_attn.work import Done, Pool


def check(pool: Pool, plan: Plan) -> None:
    """Asks one worker of each node, and from then on each node that joins.

    Raises:
        InputError: a node without some of the images, with other labels, or with other versions of the code; it is named.
    """
    images = len(plan.train) + len(plan.scored)
    payload = json.dumps({"setup": asdict(plan.setup), "train": plan.train, "scored": plan.scored})
    for node, done in pool.everywhere("check", payload):
        wrong = _judged(done, images)
        if wrong:
            raise InputError(f"Every node must have the same data set and code, but {node} {wrong}")
    pool.require("check", payload, lambda done: _judged(done, images))


def _judged(done: Done, images: int) -> str | None:
    """What is wrong with a node, from its answer."""
    return f"cannot read the data set: {done.lost}" if done.result is None else _wrong(json.loads(done.result), images)


def _wrong(told: dict[str, object], images: int) -> str | None:
    ours = code_version()
    if told["code"] != ours:
        return f"has {told['code']} where this driver has {ours}; install the same versions there."
    if told["missing"]:
        return f"lacks {told['missing']} of {images} images, {told['first']} first; copy or mount the data set to the same path there."
    return None if told["equal"] else "has other labels or image sizes than this driver; copy the data set there once more."
