"""A small detection data set that draws itself: scikit-learn's bundled handwritten digits scattered over cluttered canvases.

Deterministic by its seed, and by it alone; nothing is downloaded. Each digit is one of 1,797 real handwritten ones (8x8 grey values,
Alpaydin & Kaynak 1998), enlarged, tinted, and placed where it overlaps no other; lines, ellipses and noise lie under and over it.
"""

import random
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

CLASSES = ("zero", "one", "two", "three")
SIDE_PX = 128
Box = tuple[int, int, int, int]
Glyphs = dict[int, list[NDArray[np.float64]]]


def draw_data_set(folder: Path, *, train: int = 240, val: int = 60, seed: int = 0) -> Path:
    """Draw `train` and `val` images with labels under `folder` and return the data YAML; an equal one is left as it is.

    No handwritten digit appears in both splits.
    """
    file = folder / "data.yaml"
    config = {"train": "images/train", "val": "images/val", "names": dict(enumerate(CLASSES))}
    header = f"# Drawn by nas_attn: {train} train and {val} val images, seed {seed}.\n"
    text = header + yaml.safe_dump(config, sort_keys=False)
    if file.is_file() and file.read_text() == text:
        return file
    train_glyphs, val_glyphs = _glyphs()
    for split, count, glyphs in (("train", train, train_glyphs), ("val", val, val_glyphs)):
        for i in range(count):
            _draw_image(folder, split, i, glyphs, random.Random(f"{seed}/{split}/{i}"))
    file.write_text(text)  # last, so that a data set cut short is drawn again
    return file


def _glyphs() -> tuple[Glyphs, Glyphs]:
    digits = load_digits()
    by_class = {
        c: [image / 16.0 for image, target in zip(digits.images, digits.target, strict=True) if target == c] for c in range(len(CLASSES))
    }
    # Every fifth handwriting is kept for val.
    train = {c: [g for i, g in enumerate(items) if i % 5] for c, items in by_class.items()}
    val = {c: items[::5] for c, items in by_class.items()}
    return train, val


def _draw_image(folder: Path, split: str, index: int, glyphs: Glyphs, rng: random.Random) -> None:
    canvas = _background(rng)
    _clutter(canvas, rng, strokes=6)
    rows: list[str] = []
    taken: list[Box] = []
    for _ in range(rng.randint(2, 5)):
        side = rng.randint(24, 44)
        box = _free_place(side, taken, rng)
        if box is None:
            continue
        taken.append(box)
        c = rng.randrange(len(CLASSES))
        rows.append(_label(c, _paste_digit(canvas, rng.choice(glyphs[c]), box, rng)))
    _clutter(canvas, rng, strokes=2)
    for kind, suffix in (("images", "png"), ("labels", "txt")):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
        target = folder / kind / split / f"{index:04d}.{suffix}"
        if kind == "images":
            canvas.save(target)
        else:
            target.write_text("".join(rows))


def _background(rng: random.Random) -> Image.Image:
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 12, (SIDE_PX, SIDE_PX, 3))
    ramp = np.linspace(-20, 20, SIDE_PX)[:, None, None] * rng.choice([-1, 1])
    tone = np.array([rng.randint(40, 120) for _ in range(3)])
    return Image.fromarray(np.clip(noise + ramp + tone, 0, 255).astype(np.uint8))


def _clutter(canvas: Image.Image, rng: random.Random, strokes: int) -> None:
    draw = ImageDraw.Draw(canvas)
    for _ in range(strokes):
        ends = [rng.randint(0, SIDE_PX) for _ in range(4)]
        colour = tuple(rng.randint(40, 170) for _ in range(3))
        if rng.random() < 0.5:
            draw.line(ends, fill=colour, width=rng.randint(1, 2))
        else:
            x, y, radius = ends[0], ends[1], rng.randint(4, 14)
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=colour, width=1)


def _free_place(side: int, taken: list[Box], rng: random.Random) -> Box | None:
    for _ in range(20):
        x, y = rng.randint(0, SIDE_PX - side), rng.randint(0, SIDE_PX - side)
        box = (x, y, x + side, y + side)
        if all(box[2] <= o[0] or o[2] <= box[0] or box[3] <= o[1] or o[3] <= box[1] for o in taken):
            return box
    return None


def _paste_digit(canvas: Image.Image, glyph: NDArray[np.float64], box: Box, rng: random.Random) -> Box:
    side = box[2] - box[0]
    mask = Image.fromarray((glyph * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    ink = Image.new("RGB", (side, side), tuple(rng.randint(180, 255) for _ in range(3)))
    canvas.paste(ink, box[:2], mask)
    rows, columns = np.nonzero(np.asarray(mask) > 40)
    return box[0] + int(columns.min()), box[1] + int(rows.min()), box[0] + int(columns.max()) + 1, box[1] + int(rows.max()) + 1


def _label(c: int, box: Box) -> str:
    x, y = (box[0] + box[2]) / 2 / SIDE_PX, (box[1] + box[3]) / 2 / SIDE_PX
    width, height = (box[2] - box[0]) / SIDE_PX, (box[3] - box[1]) / SIDE_PX
    return f"{c} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n"
