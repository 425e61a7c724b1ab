"""The proxy: the base is fitted once, then every candidate, and the base itself, is trained on from it for the same few epochs.

What is pinned and why (each of these has changed a ranking somewhere): the optimizer and its rate (`auto` switches by the number of
iterations); nominal batch = batch (the default of 64 makes a short proxy 32 steps long, in which no gate opens); a warm-up of half an
epoch with biases from zero; mosaic until the last 40 % of the epochs (the default closes it ten epochs before the end, so a short run never
sees it); the seed of every random source just before training, so that base and candidate see the same images, order and augmentation;
threads. Batch halving on lack of memory and recovery from NaN are off: they would compare trainings that differ.

A training may pause at a rung and go on later (`Piece`). It is one training all the same: at every epoch its learning rate, its mosaic
and its augmentation are those of the whole length, so that what a rung shows has not been annealed, for the base and every candidate alike.
"""

import math
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.models.yolo.detect import DetectionTrainer

from nas_attn import checkpoint
from nas_attn.attention.gate import Gated
from nas_attn.dataset import NasDataset
from nas_attn.detector import silence
from nas_attn.errors import InputError, NasAttnError
from nas_attn.train import NasTrainer
from nas_attn.weights import layers

Epoch = dict[str, float]

MOSAIC_SHARE = 0.6
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
PINNED: Mapping[str, Any] = {
    "optimizer": "AdamW",
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "warmup_epochs": 0.5,
    "warmup_bias_lr": 0.0,
    "warmup_momentum": 0.9,
    "lrf": 0.01,
    "cos_lr": False,
}
ALWAYS: Mapping[str, Any] = {
    "task": "detect",
    "mode": "train",
    "pretrained": False,
    "save": False,
    "plots": False,
    "val": True,
    "verbose": False,
    "deterministic": True,
    "workers": 0,
    "patience": 1_000_000,
    "exist_ok": True,
    "cache": False,
    "rect": False,
    "compile": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training of a ready model: its images, schedule, seed and device. `args` are further Ultralytics arguments."""

    train_list: str
    val_list: str
    names: tuple[str, ...]
    folder: str
    epochs: int
    imgsz: int
    batch: int
    lr0: float
    new_lr_scale: float
    seed: int
    device: str
    threads: int
    stride: int = 32
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The part of a training that ends after epoch `until`.

    It goes on from the first usable of the checkpoints `resume`, else from the beginning; a pause before the last epoch is kept in
    `save`, and so is, for a training that may be lost with its worker, an epoch's end whenever `every_s` seconds have passed since the
    last. `identity` names the whole training: a checkpoint of another one is not used.
    """

    until: int
    identity: str
    save: Path | None = None
    resume: tuple[Path, ...] = ()
    every_s: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished training, or one that paused: the averaged weights that were scored, every epoch from the first on, and what it took.

    `train_seconds` is what this call took, without the pieces before it.
    """

    state: Mapping[str, Tensor]
    curve: tuple[Epoch, ...]
    gates: Mapping[int, float]
    train_seconds: float
    peak_memory_mib: float

    @property
    def map50_95(self) -> float:
        """mAP50-95 after the last epoch, in 0..1."""
        return self.curve[-1]["map50_95"]

    @property
    def map50(self) -> float:
        """mAP50 after the last epoch, in 0..1."""
        return self.curve[-1]["map50"]

    def score(self, name: str, average: int) -> float:
        """The mean of a metric over the last `average` epochs, or over all where there are fewer."""
        return fmean(epoch[name] for epoch in self.curve[-average:])


class ProxyTrainer(NasTrainer):
    """A trainer for one ready model that writes no checkpoint, reads no data YAML and changes no batch size on its own."""

    def __init__(
        self, training: Training, model: nn.Module, on_epoch: Callable[[Epoch], None] | None = None, piece: Piece | None = None
    ) -> None:
        self.training, self.piece = training, piece
        self.paused = checkpoint.first_usable(piece.resume, piece.identity, piece.until) if piece else None
        self.new_lr_scale = training.new_lr_scale
        self.curve: list[Epoch] = []
        self.on_epoch = on_epoch
        self.saved_s = time.monotonic()
        super().__init__(overrides=arguments(training))
        # Ultralytics' device selection sets the number of threads of the whole process.
        torch.set_num_threads(training.threads)
        self.model = model
        self.add_callback("on_train_epoch_start", _refuse_batch_halving)
        self.add_callback("on_fit_epoch_end", _note_epoch)
        if piece is not None:
            self.add_callback("on_train_start", _restore_random)
            self.add_callback("on_fit_epoch_end", _pause)

    def get_dataset(self) -> dict[str, Any]:
        """The lists of the study's folder, instead of a data YAML that Ultralytics would download, repair and cache beside."""
        names = dict(enumerate(self.training.names))
        lists = {"train": self.training.train_list, "val": self.training.val_list}
        return {**lists, "nc": len(names), "names": names, "channels": 3}

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> NasDataset:
        """Images and labels of one list, from memory after the first trial."""
        training = mode == "train"
        return NasDataset(
            img_path=img_path,
            imgsz=self.args.imgsz,
            batch_size=batch,
            augment=training,
            hyp=self.args,
            rect=not training,
            stride=max(int(self.training.stride), 32),
            pad=0.0 if training else 0.5,
            task="detect",
            data=self.data,
        )

    def resume_training(self, ckpt: object) -> None:  # noqa: ARG002
        """Where this piece goes on from a pause: that state, instead of a checkpoint of Ultralytics', which is halved and holds less."""
        if self.paused is not None:
            checkpoint.restore(self, self.paused)
            self.curve = [dict(epoch) for epoch in self.paused["curve"]]

    def save_model(self) -> bool:
        """Nothing: the averaged weights are taken from memory when the training has ended."""
        return False

    def final_eval(self) -> None:
        """Nothing: the last epoch's validation is the score."""

    def _handle_nan_recovery(self, epoch: int) -> bool:
        if not all(torch.isfinite(value).all() for value in self.tloss.values()):
            raise NasAttnError(f"The loss must stay finite, but in epoch {epoch + 1} it is {_floats(self.tloss)}; lower proxy.lr0.")
        return False


def train(training: Training, model: nn.Module, on_epoch: Callable[[Epoch], None] | None = None, piece: Piece | None = None) -> Trained:
    """Train `model` and score its averaged weights after every epoch; with `piece`, only as far as that goes.

    On a CPU, pieces give the curve and the weights of the whole, bit for bit. `on_epoch` is told the epochs that this call trained.

    Raises:
        InputError: a piece that ends outside of the training.
        NasAttnError: a loss that is not finite.
        RuntimeError: what torch raises, lack of memory included.
    """
    if piece is not None and not 1 <= piece.until <= training.epochs:
        raise InputError(f"`1 <= until <= epochs` must hold for a piece, but got until={piece.until} with epochs={training.epochs}.")
    silence()
    _reset_peak_memory(training.device)
    trainer = ProxyTrainer(training, model, on_epoch, piece)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    averaged = trainer.ema.ema
    return Trained(
        state={k: v.detach().cpu().clone() for k, v in averaged.state_dict().items()},
        curve=tuple(trainer.curve),
        gates=gates(averaged),
        train_seconds=seconds,
        peak_memory_mib=_peak_memory_mib(training.device),
    )


def arguments(training: Training) -> dict[str, Any]:
    """Ultralytics' training arguments: what is pinned, what the space says, what the search needs, in rising precedence."""
    mosaic_epochs = math.ceil(training.epochs * MOSAIC_SHARE)
    return {
        **PINNED,
        "close_mosaic": max(training.epochs - mosaic_epochs, 0),
        **training.args,
        **ALWAYS,
        "model": "nas_attn.yaml",
        "data": "nas_attn.yaml",
        "epochs": training.epochs,
        "imgsz": training.imgsz,
        "batch": training.batch,
        "nbs": training.batch,
        "lr0": training.lr0,
        "seed": training.seed,
        "device": training.device.removeprefix("cuda:"),
        "amp": False if training.device == "cpu" else "bf16",
        "save_dir": training.folder,
    }


def gates(model: nn.Module) -> dict[int, float]:
    """The mean |gate| of every inserted row, by its row in the edited model; zero means that it never opened."""
    rows = layers(model).named_children()
    return {int(row): float(m.gate_bias.detach().abs().mean()) for row, m in rows if isinstance(m, Gated)}


def _refuse_batch_halving(trainer: DetectionTrainer) -> None:
    # Ultralytics halves the batch while this counter is below three: a comparison at different batch sizes is no comparison.
    trainer._oom_retries = 3


def _restore_random(trainer: ProxyTrainer) -> None:
    # Setting up a trainer draws random numbers, of which the paused training knows nothing.
    if trainer.paused is not None:
        checkpoint.restore_random(trainer.paused)
        trainer.paused = None


def _pause(trainer: ProxyTrainer) -> None:
    piece, done = trainer.piece, trainer.epoch + 1
    if piece is None or done >= trainer.epochs:
        return
    ends = done >= piece.until
    if piece.save is not None and (ends or time.monotonic() - trainer.saved_s >= piece.every_s):
        checkpoint.save(piece.save, trainer, piece.identity, trainer.curve)
        trainer.saved_s = time.monotonic()
    trainer.stop = trainer.stop or ends


def _note_epoch(trainer: ProxyTrainer) -> None:
    metrics = trainer.metrics
    epoch: Epoch = {
        "epoch": float(trainer.epoch + 1),
        "map50_95": float(metrics["metrics/mAP50-95(B)"]),
        "map50": float(metrics["metrics/mAP50(B)"]),
        "train_loss": sum(_floats(trainer.tloss).values()),
        "val_loss": sum(float(v) for k, v in metrics.items() if k.startswith("val/")),
        "lr": float(trainer.optimizer.param_groups[0]["lr"]),
    }
    for row, opening in gates(trainer.model).items():
        epoch[f"gate_{row}"] = opening
    trainer.curve.append(epoch)
    if trainer.on_epoch is not None:
        trainer.on_epoch(epoch)


def _floats(losses: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in losses.items()}


def _reset_peak_memory(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")  # resets the kernel's high-water mark, which else stays that of the largest trial before


def _peak_memory_mib(device: str) -> float:
    if device == "cpu":
        marks = [line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")] if STATUS.exists() else []
        return float(marks[0]) / 1024 if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return float(torch.cuda.max_memory_allocated()) / (1 << 20)


def write_list(file: Path, images: tuple[str, ...]) -> None:
    """One image path a line, as Ultralytics reads lists."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{image}\n" for image in images), encoding="utf-8")
