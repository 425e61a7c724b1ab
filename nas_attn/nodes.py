"""Whether every node of a pool has what a search needs, asked before anything is trained: the images and labels, and the same code."""

import json
from dataclasses import asdict

from nas_attn.errors import InputError
from nas_attn.plan import Plan
from nas_attn.setup import code_version
from nas_attn.work import Pool


def check(pool: Pool, plan: Plan) -> None:
    """Asks one worker of each node.

    Raises:
        InputError: a node without some of the images, with other labels, or with other versions of the code; it is named.
    """
    payload = json.dumps({"setup": asdict(plan.setup), "train": plan.train, "scored": plan.scored})
    for node, done in pool.everywhere("check", payload):
        if done.result is None:
            raise InputError(f"Every node must be able to read the data set, but on {node}: {done.lost}")
        wrong = _wrong(json.loads(done.result), len(plan.train) + len(plan.scored))
        if wrong:
            raise InputError(f"Every node must have the same data set and code, but {node} {wrong}")


def _wrong(told: dict[str, object], images: int) -> str | None:
    ours = code_version()
    if told["code"] != ours:
        return f"has {told['code']} where this driver has {ours}; install the same versions there."
    if told["missing"]:
        return f"lacks {told['missing']} of {images} images, {told['first']} first; copy or mount the data set to the same path there."
    return None if told["equal"] else "has other labels or image sizes than this driver; copy the data set there once more."
