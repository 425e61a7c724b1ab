"""`NasTrainer`: Ultralytics' detection training for models with inserted attention.

It differs from the stock trainer in three things: its module's import registers the attention classes, so that DDP subprocesses find
them; a model built from an exported YAML starts from the `weights.pt` beside it; inserted modules and their gates are an optimizer group of
their own, without weight decay and without Muon, which would pull a gate to zero or give it a unit-norm update. Use it as
`YOLO(yaml).train(trainer=NasTrainer, ...)` or directly, `NasTrainer(overrides={"model": yaml, ...}).train()`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from ultralytics.cfg import parse_key_value_pair
from ultralytics.models.yolo.detect import DetectionTrainer

from nas_attn.attention.gate import Gated
from nas_attn.data import load
from nas_attn.errors import InputError
from nas_attn.weights import load_weights

WEIGHTS = "weights.pt"


class NasTrainer(DetectionTrainer):  # type: ignore[misc]
    """A detection trainer that knows inserted attention. `new_lr_scale` multiplies the learning rate of inserted modules."""

    new_lr_scale = 1.0

    def get_model(self, cfg: str | dict[str, Any] | None = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """The model of `cfg`; where `cfg` is an exported YAML with `weights.pt` beside it, with those weights.

        Head tensors that depend on the number of classes stay new when the data has other classes than the export.
        """
        model: nn.Module = super().get_model(cfg, weights, verbose)
        file = Path(str(cfg)).parent / WEIGHTS if isinstance(cfg, (str, Path)) else None
        if weights is None and file is not None and file.is_file() and self.args.pretrained is not False:
            load_weights(model, file)
        return model

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Ultralytics' optimizer, with inserted modules moved to a group of their own."""
        optimizer: torch.optim.Optimizer = super().build_optimizer(model, *args, **kwargs)
        separate_new(optimizer, model, self.new_lr_scale)
        return optimizer


def separate_new(optimizer: torch.optim.Optimizer, model: nn.Module, lr_scale: float) -> None:
    """Move the parameters of inserted modules to one group `new`: no weight decay, no Muon, `lr_scale` times the base's learning rate.

    Raises:
        InputError: a learning-rate scale that is not positive.
    """
    if not lr_scale > 0:
        raise InputError(f"`new_lr_scale > 0` must hold, but got {lr_scale}; gates could not open.")
    new = [p for module in model.modules() if isinstance(module, Gated) for p in module.parameters()]
    identities = {id(p) for p in new}
    if not new:
        return
    template = min(optimizer.param_groups, key=lambda group: group["lr"])
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in identities]
    settings = {k: v for k, v in template.items() if k not in {"params", "initial_lr"}}
    changes = {"lr": template["lr"] * lr_scale, "weight_decay": 0.0, "param_group": "new"}
    if "use_muon" in settings:
        changes["use_muon"] = False
    optimizer.add_param_group({"params": new, **settings, **changes})


def _resolved_data(folder: Path, data: str) -> Path:
    """The data set as the search reads it, in absolute paths: Ultralytics resolves relative ones elsewhere, and runs `download:`."""
    found = load(data)
    target = folder.resolve() / "data"
    target.mkdir(exist_ok=True)
    lists = {"train": found.train, "val": found.val}
    for name, images in lists.items():
        (target / f"{name}.txt").write_text("".join(f"{image}\n" for image in images), encoding="utf-8")
    config = {**{name: str(target / f"{name}.txt") for name in lists}, "names": dict(enumerate(found.names))}
    (target / "data.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return target / "data.yaml"


def train_export(folder: Path, data: str, settings: Sequence[str] = ()) -> Path:
    """Train the one YAML of an export in full, from its weights; returns the folder of the run.

    `settings` are Ultralytics' training arguments as `epochs=100`; several devices (`device=0,1`) train with DDP. Images are read by
    Ultralytics' own loader, which keeps a `labels.cache` beside the labels.

    Raises:
        InputError: a folder without exactly one YAML, a data set that cannot be read, or a setting that is not `name=value`.
    """
    yamls = sorted(folder.glob("*.yaml"))
    if len(yamls) != 1:
        raise InputError(
            f"An export holds exactly one YAML, but {folder} holds {len(yamls)}; give the folder that `nas-attn export` wrote."
        )
    overrides: dict[str, Any] = {}
    for setting in settings:
        if "=" not in setting:
            raise InputError(f"A training argument must be name=value, but got {setting!r}; write e.g. epochs=100.")
        name, value = parse_key_value_pair(setting)
        overrides[name] = value
    try:
        trainer = NasTrainer(overrides={**overrides, "model": str(yamls[0]), "data": str(_resolved_data(folder, data))})
    except (SyntaxError, TypeError, ValueError) as error:
        raise InputError(f"Training arguments must be Ultralytics', but: {error}") from error
    trainer.train()
    return Path(trainer.save_dir)
