"""Ultralytics' training data set over labels and images that a worker keeps in memory from one trial to the next.

Nothing is written beside the user's files: no label cache, no repaired JPEG, no `.npy`. Every trial gets a fresh data set object, so that
its augmentation state never depends on earlier trials; only what is read from disk is shared.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from ultralytics.data.dataset import YOLODataset

from nas_attn.data import Labels, read_labels
from nas_attn.errors import DataError

IMAGE_CACHE_BYTES = 1 << 29
"""A worker's share for decoded images; a worker is planned with 2 GiB in all."""
Loaded = tuple[NDArray[np.uint8], tuple[int, int], tuple[int, int]]

_labels = lru_cache(maxsize=None)(read_labels)
_images: dict[tuple[str, int], Loaded] = {}
_image_bytes = 0


class NasDataset(YOLODataset):  # type: ignore[misc]
    """A `YOLODataset` that reads each label file and decodes each image once a process."""

    def get_labels(self) -> list[dict[str, Any]]:
        """Ultralytics' label dictionaries, fresh ones, from labels that were read once."""
        entries = [_labels(image, len(self.data["names"])) for image in self.im_files]
        if not any(len(entry.classes) for entry in entries):
            raise DataError(f"At least one image must have a label, but none of {len(entries)} has; is there a `labels` beside `images`?")
        return [_entry(labels) for labels in entries]

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> Loaded:
        """Image `i` with its long side resized to `imgsz`, as a copy that augmentation may change in place."""
        if not rect_mode or resize_short or not isinstance(self.imgsz, int):
            raise DataError("Detection data resizes the long side to one size, but another resize was asked for; use imgsz=<int>.")
        image, original, resized = _load(self.im_files[i], self.imgsz)
        if self.augment:
            self._remember(i)
        return image.copy(), original, resized

    def _remember(self, i: int) -> None:
        # Mosaic draws its partners from this buffer of recent images, as Ultralytics' own loader fills it.
        self.buffer.append(i)
        if 1 < len(self.buffer) >= self.max_buffer_length:
            self.buffer.pop(0)


def _entry(labels: Labels) -> dict[str, Any]:
    return {
        "im_file": labels.image,
        "shape": (labels.height_px, labels.width_px),
        "cls": labels.classes.reshape(-1, 1).copy(),
        "bboxes": labels.boxes_xywh.copy(),
        "segments": [],
        "keypoints": None,
        "normalized": True,
        "bbox_format": "xywh",
    }


def _load(file: str, imgsz: int) -> Loaded:
    global _image_bytes  # noqa: PLW0603 - the cache is the process's, by design
    key = (file, imgsz)
    if key in _images:
        return _images[key]
    loaded = _read(file, imgsz)
    if _image_bytes + loaded[0].nbytes <= IMAGE_CACHE_BYTES:
        _images[key] = loaded
        _image_bytes += loaded[0].nbytes
    return loaded


def _read(file: str, imgsz: int) -> Loaded:
    raw = np.frombuffer(Path(file).read_bytes(), dtype=np.uint8)
    image = cv2.imdecode(raw, cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"Every image must be readable, but {file} is not; remove it from the split.")
    height, width = image.shape[:2]
    ratio = imgsz / max(height, width)
    if ratio != 1:
        size = (min(round_up(width * ratio), imgsz), min(round_up(height * ratio), imgsz))
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return image.astype(np.uint8), (height, width), (image.shape[0], image.shape[1])


def round_up(value: float) -> int:
    """The next whole number, as Ultralytics rounds resized sides."""
    return int(np.ceil(value))
