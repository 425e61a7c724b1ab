"""How likely a candidate can be had at all, from those that were observed and those that failed, were rejected or do not exist.

Trees on one column a choice: what makes a candidate invalid is mostly that two or three choices do not go together.
"""

import numpy as np

from nas_attn.candidates import Codes, Floats

TREES = 100
DOUBT = 2.0
"""Observations that the share of valid ones among all counts as: leaves of a few observations know little."""


def validity(asked: Codes, valid: Codes, invalid: Codes, seed: int) -> Floats:
    """The probability (n,) that each of the rows `asked` is valid; 1 where nothing was seen to be invalid."""
    if not len(invalid) or not len(asked):
        return np.ones(len(asked))
    seen = np.concatenate([valid, invalid])
    share = (len(valid) + 1.0) / (len(seen) + 2.0)
    if not len(valid):
        return np.full(len(asked), share)
    from sklearn.ensemble import ExtraTreesClassifier  # here, because it takes seconds to import, and most commands ask for no trees

    choices = np.maximum(seen.max(axis=0), asked.max(axis=0, initial=0)) + 1
    trees = ExtraTreesClassifier(TREES, random_state=seed % 2**31, n_jobs=1)
    trees.fit(_columns(seen, choices), np.arange(len(seen)) < len(valid))
    # Asked tree by tree: scikit-learn's own loop checks and wraps every one of them, which takes longer than the answers.
    columns = _columns(asked, choices)
    told = sum(tree.tree_.predict(columns).reshape(len(asked), -1)[:, -1] for tree in trees.estimators_) / TREES
    return np.asarray((len(seen) * told + DOUBT * share) / (len(seen) + DOUBT))


def _columns(codes: Codes, choices: Codes) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    columns = [codes[:, [gene]] == np.arange(count) for gene, count in enumerate(choices.tolist())]
    return np.concatenate(columns, axis=1).astype(np.float32)
