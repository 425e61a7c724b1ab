"""A user's detection data set, read without writing a byte into its folder.

Ultralytics writes `labels.cache` beside the labels, repairs JPEG files in place and runs the `download:` key of a data YAML. A search does
none of these: paths, labels and sizes are read here, and what must be written (text lists, fingerprints) goes to the study's folder.
"""

import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from nas_attn.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MAX_YAML_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Image paths of the train and val splits, sorted, and the class names by index."""

    yaml_file: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """One image's boxes and size: `classes (n,)`, `boxes_xywh (n, 4)` relative to the image, `height_px`, `width_px` as decoded."""

    image: str
    classes: NDArray[np.float32]
    boxes_xywh: NDArray[np.float32]
    height_px: int
    width_px: int


def load(path: str | Path) -> DataSet:
    """Read an Ultralytics data YAML: its `path`, `train`, `val` (folders, image lists or lists of them) and `names` or `nc`.

    Raises:
        DataError: no such file, not a mapping, a missing key, a split without images, or names that do not number 0..nc-1.
    """
    file = Path(path).expanduser().resolve()
    config = _read_yaml(file)
    return DataSet(
        yaml_file=str(file),
        train=_images(config, "train", file),
        val=_images(config, "val", file),
        names=_names(config, file),
    )


def read_labels(image: str, classes: int) -> Labels:
    """The boxes of one image; a missing label file means no objects, polygons become their boxes, duplicate rows count once.

    Raises:
        DataError: an unreadable image, or a label row that is not `class x y w h` (or a polygon) relative to the image.
    """
    height_px, width_px = _image_size(image)
    file = label_file(image)
    rows = _label_rows(file) if file.is_file() else []
    values = np.array([_box(row, file) for row in rows], dtype=np.float32).reshape(-1, 5)
    values = np.unique(values, axis=0)
    if len(values):
        _check_values(values, classes, file)
    return Labels(image, values[:, 0], values[:, 1:], height_px, width_px)


def label_file(image: str) -> Path:
    """Where the labels of an image are: the last `/images/` in its path becomes `/labels/`, its suffix `.txt`."""
    before, separator, after = image.rpartition(f"{os.sep}images{os.sep}")
    moved = f"{before}{os.sep}labels{os.sep}{after}" if separator else image
    return Path(moved).with_suffix(".txt")


def split_search_val(labels: Sequence[Labels], share: float, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide training images into `(train, search_val)`, stratified by the rarest class that an image shows, the same for the same seed.

    The user's validation split stays untouched for the final check; the search must not score on it (design, decision 8).

    Raises:
        DataError: fewer than two images, or a share that leaves either side empty.
    """
    count = round(len(labels) * share)
    if not 0 < count < len(labels):
        raise DataError(
            f"`0 < search_val images < training images` must hold, but {share=} of {len(labels)} gives {count}; change search_val."
        )
    order = _stratified_order(labels, seed)
    # Every (1/share)-th image of an order that is sorted by stratum takes the same share of each stratum.
    chosen = {order[int(step)] for step in np.floor((np.arange(count) + 0.5) * len(order) / count)}
    names = [item.image for item in labels]
    return (
        tuple(sorted(name for i, name in enumerate(names) if i not in chosen)),
        tuple(sorted(names[i] for i in chosen)),
    )


def fingerprint(labels: Iterable[Labels], names: Sequence[str]) -> str:
    """Twelve hexadecimal digits over image names, sizes and boxes: the same for a data set that was moved, another for one that changed."""
    digest = hashlib.sha256("\0".join(names).encode())
    for item in sorted(labels, key=lambda entry: entry.image):
        digest.update(f"{Path(item.image).name}:{item.height_px}x{item.width_px}".encode())
        digest.update(item.classes.tobytes() + item.boxes_xywh.tobytes())
    return digest.hexdigest()[:12]


def labels_fingerprint(train: Sequence[str], scored: Sequence[str], names: Sequence[str], known: Mapping[str, Labels] | None = None) -> str:
    """The fingerprints of what is trained on and what is scored; labels that are not `known`, by image, are read from this machine."""
    both = ([known[image] if known else read_labels(image, len(names)) for image in images] for images in (train, scored))
    return "-".join(fingerprint(labels, names) for labels in both)


def _read_yaml(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise DataError(f"A data set is named by its YAML file, but {file} is no file; give --data a path such as data/data.yaml.")
    if file.stat().st_size > MAX_YAML_BYTES:
        raise DataError(f"A data YAML has at most {MAX_YAML_BYTES} bytes, but {file} has more; list images in a text file.")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} must be YAML in UTF-8, but: {str(error).splitlines()[0]}") from error
    if not isinstance(config, Mapping):
        raise DataError(f"{file} must be a mapping with train, val and names, but it holds {type(config).__name__}.")
    return config


def _names(config: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    names = config.get("names")
    if names is None and isinstance(config.get("nc"), int):
        names = [f"class_{i}" for i in range(config["nc"])]
    if isinstance(names, Mapping):
        if set(names) != set(range(len(names))):
            raise DataError(f"{file}: `names` must number the classes 0..{len(names) - 1}, but its keys are {sorted(names, key=str)}.")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: `names` must list the classes, but got {names!r}; write e.g. `names: [cat, dog]`.")
    if isinstance(config.get("nc"), int) and config["nc"] != len(names):
        raise DataError(f"{file}: `nc` must equal the number of names, but got nc={config['nc']} and {len(names)} names.")
    return tuple(str(name) for name in names)


def _images(config: Mapping[str, Any], split: str, file: Path) -> tuple[str, ...]:
    entries = config.get(split)
    if not entries:
        raise DataError(f"{file}: key `{split}` must name images, but it is {entries!r}; write e.g. `{split}: images/{split}`.")
    root = (file.parent / Path(str(config.get("path") or "")).expanduser()).resolve()
    found: list[str] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        found += _expand(_locate(str(entry), root, file, split))
    images = sorted({name for name in found if Path(name).suffix.lower() in IMAGE_SUFFIXES})
    if not images:
        raise DataError(f"{file}: `{split}: {entries}` must hold images ({', '.join(sorted(IMAGE_SUFFIXES))}), but none was found.")
    return tuple(images)


def _locate(entry: str, root: Path, file: Path, split: str) -> Path:
    # Hosted data sets write `../train/images` for `train/images`; Ultralytics accepts both, and so do their users.
    candidates = [root / entry, root / entry.removeprefix("../"), file.parent / entry]
    for candidate in candidates:
        if candidate.exists():
            return candidate.resolve()
    raise DataError(f"{file}: `{split}: {entry}` must exist, but {candidates[0]} does not; correct `path` or `{split}`.")


def _expand(location: Path) -> list[str]:
    if location.is_dir():
        # As Ultralytics does, into linked folders too.
        return [os.path.join(folder, name) for folder, _, names in os.walk(location, followlinks=True) for name in names]  # noqa: PTH118
    if location.suffix.lower() == ".txt":
        lines = location.read_text(encoding="utf-8-sig").split("\n")
        # Not resolved: labels lie beside the link and not beside what it points to.
        return [os.path.normpath(location.parent / line.strip()) for line in lines if line.strip()]
    return [str(location)]


def _image_size(image: str) -> tuple[int, int]:
    try:
        with Image.open(image) as picture:
            width_px, height_px = picture.size
            # Pillow turns the size of a TIFF by itself.
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1) if picture.format != "TIFF" else 1
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"Every image must be readable, but {image} is not ({error}); remove it from the split.") from error
    return (width_px, height_px) if orientation in {5, 6, 7, 8} else (height_px, width_px)


def _label_rows(file: Path) -> list[list[float]]:
    try:
        return [[float(v) for v in line.split()] for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except ValueError as error:
        raise DataError(f"{file}: a label row must be numbers, but: {error}.") from error


def _box(row: list[float], file: Path) -> list[float]:
    if len(row) == 5:
        return row
    if len(row) < 7 or len(row) % 2 == 0:
        raise DataError(f"{file}: a label row must be `class x y w h` or a polygon, but it has {len(row)} columns.")
    xs, ys = row[1::2], row[2::2]
    return [row[0], (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]


def _check_values(values: NDArray[np.float32], classes: int, file: Path) -> None:
    index, boxes = values[:, 0], values[:, 1:]
    if (index % 1 != 0).any() or index.min() < 0 or index.max() >= classes:
        raise DataError(f"{file}: a class must be a whole number in 0..{classes - 1}, but got {sorted(set(index.tolist()))}.")
    if not (boxes.min() >= -0.01 and boxes.max() <= 1.01 and boxes[:, 2:].min() >= 0):  # so that nan fails too
        raise DataError(f"{file}: box values must lie in 0..1, but they span {boxes.min():g}..{boxes.max():g}; divide by the image's size.")


def _stratified_order(labels: Sequence[Labels], seed: int) -> list[int]:
    counts = Counter(int(c) for item in labels for c in item.classes)

    def stratum(i: int) -> tuple[int, int]:
        present = set(labels[i].classes.astype(int).tolist())
        return min(((counts[c], c) for c in present), default=(-1, -1))

    shuffled = sorted(range(len(labels)), key=lambda i: labels[i].image)
    random.Random(f"search_val/{seed}").shuffle(shuffled)
    return sorted(shuffled, key=stratum)
