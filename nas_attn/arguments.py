"""Ultralytics' training arguments: which of them a search space may set, and which the search sets itself, and why."""

import math
from collections.abc import Iterable, Mapping

from nas_attn.errors import nearest, shown

FREE = (
    *("optimizer", "cos_lr", "lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum", "warmup_bias_lr"),
    *("box", "cls", "cls_pw", "dfl"),
    *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "bgr"),
    *("mosaic", "close_mosaic", "mixup", "cutmix", "copy_paste", "copy_paste_mode", "multi_scale"),
    *("iou", "max_det", "channels_last"),
)
"""What a space may set in `base_fit` and `proxy`: optimizer, losses, augmentation, scoring, memory format."""

_ONE_TASK = "the search trains detectors in its own way"
_PAIRED = "base and candidates must train alike, or their scores do not compare"
_FOLDER = "trainings write into the study's folder only"
_SAME_DATA = "all trainings see the same images and classes"
_INHERITED = "every candidate starts from the fitted base"
PINNED: Mapping[str, str] = {
    **dict.fromkeys(("task", "mode", "cfg", "distill_model", "dis"), _ONE_TASK),
    **dict.fromkeys(("deterministic", "amp", "compile", "nbs", "rect", "profile", "time", "patience", "freeze"), _PAIRED),
    **dict.fromkeys(("project", "name", "exist_ok", "save", "save_dir", "save_period", "plots", "resume", "verbose"), _FOLDER),
    **dict.fromkeys(("fraction", "split", "single_cls", "classes"), _SAME_DATA),
    **dict.fromkeys(("pretrained", "cls_remap"), _INHERITED),
    "model": "the space's `base` is the model",
    "data": "the data set is named on the command line",
    "seed": "the space has one `seed` for all",
    "device": "the device is named on the command line",
    "workers": "images stay in each worker's memory",
    "cache": "images stay in each worker's memory",
    "val": "every epoch is scored",
}
"""What the search sets itself, and why."""


def problem(name: object, value: object, known: Iterable[str] = ()) -> str | None:
    """Why a space may not set argument `name` to `value`, and the remedy, or None; `known` are further names that may have been meant."""
    given = shown(value)
    if name in PINNED:
        return f"cannot be set, but got {given}: {PINNED[str(name)]}; remove it"
    if name not in FREE:
        return f"must be a known argument. {nearest(str(name), [*known, *FREE])}"
    if not isinstance(value, (bool, int, float, str)) or (isinstance(value, float) and not math.isfinite(value)):
        return f"must be a number, a word, true or false, but got {given}; write one value"
    if (name, value) == ("optimizer", "auto"):
        return "must be one optimizer, but got 'auto', which would choose by the length of a training; write e.g. AdamW"
    return None
