"""A user's detection data set, read without writing a byte into its folder.

Ultralytics writes `labels.cache` beside the labels, repairs JPEG files in place and runs the `download:` key of a data YAML. A search does
none of these: paths, labels and sizes are read here, and what must be written (text lists, fingerprints) goes to the study's folder.
"""

import hashlib
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_attn.document import is_file, read_file
from nas_attn.errors import DataError, nearest, shown
from nas_attn.image import size

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MAX_YAML_BYTES = 1 << 20
MAX_LABEL_BYTES = 1 << 24
"""Of one image's labels: a hundred thousand boxes take a quarter of it."""
MAX_CLASSES = 100_000
"""A head has a channel for each class."""
KEYS = ("path", "train", "val", "test", "names", "nc", "download")
_LINE_ENDS = re.compile(r"\r\n|\n|\r")


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
    height_px, width_px = size(image)
    file = label_file(image)
    rows = _label_rows(file, classes) if file.is_file() else []
    values = np.unique(np.array(rows, dtype=np.float32).reshape(-1, 5), axis=0)
    return Labels(image, values[:, 0], values[:, 1:], height_px, width_px)


def read_all_labels(images: Iterable[str], classes: int) -> dict[str, Labels]:
    """`read_labels` of every image, each once.

    Raises:
        DataError: the first image or label file that cannot be used, and how many more there are: a broken copy rarely breaks one.
    """
    found: dict[str, Labels] = {}
    problems: list[DataError] = []
    for image in dict.fromkeys(images):
        try:
            found[image] = read_labels(image, classes)
        except DataError as error:
            problems.append(error)
    if problems:
        more = f" ({len(problems) - 1} more images have such problems.)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}") from problems[0]
    return found


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
    if not is_file(file):
        raise DataError(f"A data set is named by its YAML file, but {file} is no file; give --data a path such as data/data.yaml.")
    return read_file(file, kind=DataError, largest=MAX_YAML_BYTES, example="train: images/train")


def _names(config: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    names, count = config.get("names"), config.get("nc")
    if count is not None and (type(count) is not int or not 1 <= count <= MAX_CLASSES):
        raise DataError(
            f"{file}: `nc` must be a whole number from 1 to {MAX_CLASSES}, but got {shown(count)}; write the number of classes."
        )
    if names is None and count is not None:
        names = [f"class_{i}" for i in range(count)]
    if isinstance(names, Mapping):
        if not all(type(key) is int for key in names) or set(names) != set(range(len(names))):
            raise DataError(
                f"{file}: `names` must number the classes 0..{len(names) - 1}, but its keys are {shown(list(names))}; number them from 0."
            )
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: `names` must list the classes, but got {shown(names)}; write e.g. `names: [cat, dog]`.")
    for number, name in enumerate(names):
        # A number is a name as well: digits are a data set.
        if not isinstance(name, str | int | float) or not str(name).strip():
            raise DataError(
                f"{file}: `names` must be words, but that of class {number} is {shown(name)}; write a word, in quotes if need be."
            )
    if count is not None and count != len(names):
        raise DataError(f"{file}: `nc` must equal the number of names, but got nc={count} and {len(names)} names; correct one of them.")
    return tuple(str(name) for name in names)


def _images(config: Mapping[str, Any], split: str, file: Path) -> tuple[str, ...]:
    entries = config.get(split)
    given = entries if isinstance(entries, list) else [entries]
    listed = [entry for entry in given if isinstance(entry, str) and entry]
    if not entries or len(listed) < len(given):
        slip = nearest(split, [str(key) for key in config if key not in KEYS]) if entries is None and config.keys() - set(KEYS) else ""
        raise DataError(
            f"{file}: key `{split}` must name images, but it is {shown(entries)}; write e.g. `{split}: images/{split}`. {slip}".rstrip()
        )
    root = file.parent / _folder(config, file)
    found: list[str] = []
    for entry in listed:
        found += _expand(_locate(entry, root, file, split))
    images = sorted({name for name in found if Path(name).suffix.lower() in IMAGE_SUFFIXES})
    if not images:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(
            f"{file}: `{split}: {shown(entries)}` must hold images ({suffixes}), but none was found; correct `path` or `{split}`."
        )
    return tuple(images)


def _folder(config: Mapping[str, Any], file: Path) -> Path:
    given = config.get("path")
    try:
        if given is None or isinstance(given, str):
            return Path(given or "").expanduser()
        reason = f"got {shown(given)}"
    except RuntimeError as error:  # a user that this machine does not know
        reason = f"got {shown(given)}: {error}"
    raise DataError(f"{file}: `path` must be a folder's name, but {reason.rstrip('.')}; write e.g. `path: .`, the folder of this file.")


def _locate(entry: str, root: Path, file: Path, split: str) -> Path:
    # Hosted data sets write `../train/images` for `train/images`; Ultralytics accepts both, and so do their users.
    candidates = [root / entry, root / entry.removeprefix("../"), file.parent / entry]
    try:
        for candidate in candidates:
            if candidate.exists():
                return candidate.resolve()
    except (OSError, ValueError) as error:  # longer than a file system takes, or with a byte that none takes
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file}: `{split}: {shown(entry)}` must name a file or folder, but: {reason}; correct `{split}`.") from error
    raise DataError(f"{file}: `{split}: {shown(entry)}` must exist, but {candidates[0]} does not; correct `path` or `{split}`.")


def _expand(location: Path) -> list[str]:
    if location.is_dir():
        return _walk(location)
    if location.suffix.lower() == ".txt":
        # Not resolved: labels lie beside the link and not beside what it points to.
        return [os.path.normpath(location.parent / line) for line in _lines(location, "an image list") if line]
    return [str(location)]


def _walk(location: Path) -> list[str]:
    """All files below a folder, as Ultralytics finds them: through links too, but into no folder twice, or two links to it never end."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(location, followlinks=True):
        found += [os.path.join(folder, name) for name in names]  # noqa: PTH118
        kept = []
        for name in sorted(inner):
            status = Path(folder, name).stat()
            if (place := (status.st_dev, status.st_ino)) not in seen:
                seen.add(place)
                kept.append(name)
        inner[:] = kept
    return found


def _lines(file: Path, kind: str) -> list[str]:
    """The stripped lines of a text in UTF-8."""
    try:
        if (size := file.stat().st_size) > MAX_LABEL_BYTES and kind == "a label file":
            raise DataError(f"{file}: a label file must be at most {MAX_LABEL_BYTES} bytes, but has {size}; is it another file's copy?")
        content = file.read_bytes()
        lines = [line.strip() for line in _LINE_ENDS.split(content.decode("utf-8-sig"))]
    except OSError as error:
        raise DataError(f"{file}: {kind} must be readable, but: {error.strerror}; remove it or allow reading it.") from error
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{file}: line {number}: {kind} must be text in UTF-8, but holds the byte {content[error.start]:#04x}; save it so."
        ) from error
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise DataError(f"{file}: line {number}: {kind} must be text, but the line holds a zero byte; write the file again.")
    return lines


def _label_rows(file: Path, classes: int) -> list[list[float]]:
    """`[class, x, y, w, h]` of every row that is not empty."""
    return [_label(line, f"{file}: line {number}", classes) for number, line in enumerate(_lines(file, "a label file"), 1) if line]


def _label(line: str, where: str, classes: int) -> list[float]:
    try:
        row = [float(value) for value in line.split()]
    except ValueError as error:
        raise DataError(f"{where}: a label row must be numbers, but got {shown(line)}; write `class x y w h`.") from error
    if len(row) != 5 and (len(row) < 7 or len(row) % 2 == 0):
        raise DataError(f"{where}: a label row must be `class x y w h` or a polygon, but it has {len(row)} columns; write five numbers.")
    if not 0 <= row[0] < classes or row[0] % 1:
        raise DataError(f"{where}: a class must be a whole number in 0..{classes - 1}, but got {row[0]:g}; correct it or `names`.")
    box = row if len(row) == 5 else _around(row)
    bad = next((value for value in (*row[1:], *box[1:]) if not -0.01 <= value <= 1.01), None)  # so that nan is one too
    if bad is not None or min(box[3:]) < 0:
        bad = min(box[3:]) if bad is None else bad
        raise DataError(f"{where}: box values must lie in 0..1, but got {bad:g}; divide by the image's size.")
    return box


def _around(row: list[float]) -> list[float]:
    """The box of a polygon."""
    xs, ys = row[1::2], row[2::2]
    return [row[0], (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]


def _stratified_order(labels: Sequence[Labels], seed: int) -> list[int]:
    counts = Counter(int(c) for item in labels for c in item.classes)

    def stratum(i: int) -> tuple[int, int]:
        present = set(labels[i].classes.astype(int).tolist())
        return min(((counts[c], c) for c in present), default=(-1, -1))

    shuffled = sorted(range(len(labels)), key=lambda i: labels[i].image)
    random.Random(f"search_val/{seed}").shuffle(shuffled)
    return sorted(shuffled, key=stratum)
