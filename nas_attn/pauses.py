"""Where a training keeps itself and what it goes on from: pauses at rungs, and the last epoch's end, should its worker be lost.

Every attempt writes into its own folder and reads those of all: a late copy of a lost attempt can do no harm. All copies of one training
are the same at the same epoch, so that it does not matter whose checkpoint is taken.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nas_attn.outcome import CHECKPOINT, Job
from nas_attn.proxy import Piece

EVERY_S = 15.0
"""An epoch's end is kept when the last one that was kept is so old: then it costs a hundredth, and seldom is more than an epoch lost."""


def piece(study: Path, job: Job) -> Piece:
    """As far as the job goes, from the highest rung below at which something was kept; of equal ones, the latest attempt first."""
    until = job.recipe.epochs if job.epochs is None else job.epochs
    reached = [(rung, file) for rung, file in _kept(study, job) if rung <= until]
    return Piece(
        until=until,
        identity=f"{job.architecture.digest()}/{_whole(job).name()}",
        save=job.folder(study) / CHECKPOINT,
        resume=tuple(file for _, file in sorted(reached, reverse=True)),
        every_s=EVERY_S,
    )


def piece_of_fit(folder: Path, asked: str, epochs: int) -> Piece:
    """A whole fit in `folder`; `asked` names what it stands for."""
    file = folder / CHECKPOINT
    return Piece(until=epochs, identity=f"fit/{asked}", save=file, resume=(file,), every_s=EVERY_S)


def clear(study: Path, job: Job) -> None:
    """Deletes what was kept of a training that has run to its end."""
    for _, file in _kept(study, _whole(job)):
        file.unlink(missing_ok=True)


def _whole(job: Job) -> Job:
    return replace(job, epochs=None)


def _kept(study: Path, job: Job) -> Sequence[tuple[int, Path]]:
    """The checkpoints of a training, each with the rung that its job goes to."""
    name, trial = _whole(job).name(), job.folder(study).parent.parent
    rungs = [(file, file.parent.parent.name.removeprefix(name).removeprefix("-e")) for file in trial.glob(f"{name}*/*/{CHECKPOINT}")]
    return [(int(rung or job.recipe.epochs), file) for file, rung in rungs if not rung or rung.isdigit()]
