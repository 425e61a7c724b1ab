"""A study's snapshot as files: tables (CSV, Parquet), pictures, a summary in Markdown, and one HTML file that needs nothing else.

The same snapshot gives the same bytes: rows are in the order of their numbers (of their latency on the front), and no time of writing
enters. Whatever users wrote is escaped, and passwords in storage URLs are masked.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
from threadpoolctl import threadpool_limits

from nas_attn import answer, columns, effects, figures, history, network
from nas_attn.columns import COLUMNS, RECOMMENDED, Row, front_table, recommended_table, table
from nas_attn.files import write_atomic
from nas_attn.outcome import Snapshot
from nas_attn.page import Study, page, renewed
from nas_attn.picture import picture
from nas_attn.posterior import believe
from nas_attn.record import load_study
from nas_attn.summary import summary
from nas_attn.table import csv_text

PROGRESS: Mapping[str, str] = {
    "trial": "number of the measured trial that this line is after",
    "trials": "trials that had been measured or stopped by then",
    "seconds": "what all trainings of the trials so far took, without the base's fit and controls",
    "hypervolume": "that of the observed front, against a point that is fixed for the study",
    "front": "trials on the observed front",
}
ABOUT: Mapping[str, Mapping[str, str]] = {
    "trials.csv": columns.ABOUT,
    "front.csv": columns.ABOUT,
    "recommended.csv": RECOMMENDED,
    "atlas.csv": effects.COLUMNS,
    "interactions.csv": effects.INTERACTION_COLUMNS,
    "progress.csv": PROGRESS,
}
"""What each column of each table holds."""
NUMBERS = ("map50_95", "latency_ratio", "latency_ms", "params_m", "gmacs", "map50", "latency_low", "latency_high", "gain", "gain_sigmas",
           "gain_to_mean", "gate_movement", "train_seconds", "activation_mib")  # fmt: skip


def load(folder: Path | str, storage: str | None = None) -> pd.DataFrame:
    """All trials of the study in `folder` as a data frame, one row a trial, with the columns that `columns.ABOUT` describes.

    Raises:
        StudyError: no study there, or another storage.
    """
    return frame(load_study(Path(folder), storage))


def frame(snapshot: Snapshot) -> pd.DataFrame:
    """The trials of a snapshot as a data frame; numbers are floats (NaN where there is none) in studies without a measured trial too."""
    found = pd.DataFrame(table(snapshot), columns=list(COLUMNS))
    return found.astype(dict.fromkeys(NUMBERS, "float64"))


def study(snapshot: Snapshot) -> Study:
    """Everything that the files tell of, worked out once."""
    with threadpool_limits(1):  # matrices of a study are small: two threads wait for each other, on a busy machine for minutes
        believed, atlas = believe(snapshot), effects.atlas(snapshot)
    used = (placement.layer for trial in snapshot.trials for placement in trial.architecture.placements)
    rows = {
        "trials.csv": table(snapshot),
        "front.csv": front_table(snapshot),
        "recommended.csv": recommended_table(believed),
        "atlas.csv": effects.atlas_table(atlas) if atlas else [],
        "interactions.csv": effects.interactions_table(atlas) if atlas else [],
        "progress.csv": [asdict(step) for step in history.progress(snapshot)],
    }
    tables = {name: _csv(found, ABOUT[name]) for name, found in rows.items()}
    return Study(snapshot=snapshot, believed=believed, atlas=atlas, drawing=network.load(snapshot.folder, used), tables=tables)


def write(snapshot: Snapshot, folder: Path, refresh_s: float | None = None) -> tuple[Path, ...]:
    """Write report.html, summary.md, front.png and the tables into `folder`, each whole or not at all; gives their paths.

    `front.csv` is what was observed, `recommended.csv` what a model of all trials expects: empty where there are too few for one, as
    `atlas.csv` and `interactions.csv` are. trials.parquet holds what trials.csv does. With `refresh_s` the page loads itself again.
    """
    told = study(snapshot)
    answered = answer.answer(snapshot, told.believed, told.drawing)
    files = {
        "report.html": page(told, refresh_s).encode(),
        "summary.md": summary(told).encode(),
        "front.png": picture(snapshot, table(snapshot), front_table(snapshot), told.believed, (answered.headline, answered.sentence)),
        **{name: text.encode() for name, text in told.tables.items()},
        "trials.parquet": _parquet(frame(snapshot)),
    }
    return _written(files, folder)


def renew(folder: Path) -> None:
    """Of a study that has not changed: its page in `folder`, which loads itself again, is told that it is still watched."""
    file = folder / "report.html"
    if file.is_file():
        _written({file.name: renewed(file.read_text(encoding="utf-8")).encode()}, folder)


def write_figures(snapshot: Snapshot, folder: Path) -> tuple[Path, ...]:
    """Write the report's figures into `folder` as PNG and SVG, those that have something to show; gives their paths."""
    return _written(figures.files(study(snapshot)), folder)


def _written(files: Mapping[str, bytes], folder: Path) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(folder / name, partial(_put, content))
    return tuple(folder / name for name in files)


def _put(content: bytes, file: Path) -> None:
    file.write_bytes(content)


def _csv(rows: Sequence[Row], names: Iterable[str]) -> str:
    return csv_text(pd.DataFrame(rows, columns=list(names)))


def _parquet(found: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    found.to_parquet(buffer, index=False)
    return buffer.getvalue()
