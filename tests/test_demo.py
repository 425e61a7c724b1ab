"""The demo's data set is the same for the same seed, legal, and free of overlap between its splits."""

from pathlib import Path

import numpy as np
from PIL import Image

from nas_attn import data
from nas_attn.demo import CLASSES, draw_data_set


def images(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): np.asarray(Image.open(f)).tobytes() for f in sorted(folder.rglob("*.png"))}


def test_the_same_seed_draws_the_same_pictures_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_data_set(tmp_path / name, train=4, val=2, seed=seed)
    assert images(tmp_path / "a") == images(tmp_path / "b") != images(tmp_path / "c")


def test_labels_lie_on_ink(tmp_path: Path) -> None:
    found = data.load(draw_data_set(tmp_path, train=12, val=3))
    assert found.names == CLASSES
    for image in found.train:
        labels = data.read_labels(image, len(CLASSES))
        pixels = np.asarray(Image.open(image)).astype(float).max(axis=2)
        assert len(labels.classes) >= 1
        for x, y, w, h in labels.boxes_xywh * pixels.shape[0]:
            inside = pixels[int(y - h / 2) : int(y + h / 2), int(x - w / 2) : int(x + w / 2)]
            assert inside.max() > 170
            assert min(w, h) > 6


def test_a_finished_data_set_is_left_as_it_is_and_a_torn_one_drawn_again(tmp_path: Path) -> None:
    file = draw_data_set(tmp_path, train=2, val=1)
    picture = tmp_path / "images/train/0000.png"
    before = picture.stat().st_mtime_ns
    draw_data_set(tmp_path, train=2, val=1)
    assert picture.stat().st_mtime_ns == before
    file.unlink()
    draw_data_set(tmp_path, train=2, val=1)
    assert picture.stat().st_mtime_ns != before
