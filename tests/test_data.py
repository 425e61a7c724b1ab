"""A data set is read as Ultralytics reads it, split with every class in its place, and never written to."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas_attn import data
from nas_attn.errors import DataError

BCCD = Path(__file__).parents[2] / "shared" / "data" / "bccd320" / "data.yaml"


def make(folder: Path, labels: dict[str, str], *, split: str = "train", size: tuple[int, int] = (40, 30)) -> None:
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    for name, rows in labels.items():
        Image.new("RGB", size).save(folder / "images" / split / f"{name}.png")
        (folder / "labels" / split / f"{name}.txt").write_text(rows)


def write_yaml(folder: Path, text: str = "train: images/train\nval: images/train\nnames: [a, b]\n") -> Path:
    file = folder / "data.yaml"
    file.write_text(text)
    return file


def test_folders_lists_and_the_path_key_name_the_same_images(tmp_path: Path) -> None:
    make(tmp_path / "root", {"x": "", "y": ""})
    (tmp_path / "root" / "all.txt").write_text("./images/train/x.png\nimages/train/y.png\n")
    by_folder = data.load(write_yaml(tmp_path, "path: root\ntrain: images/train\nval: ../images/train\nnames: {0: a, 1: b}\n"))
    by_list = data.load(write_yaml(tmp_path, "path: root\ntrain: all.txt\nval: [images/train]\nnc: 2\n"))
    assert by_folder.train == by_folder.val == by_list.train == by_list.val
    assert [Path(p).name for p in by_folder.train] == ["x.png", "y.png"]
    assert (by_folder.names, by_list.names) == (("a", "b"), ("class_0", "class_1"))


def test_labels_are_boxes_polygons_or_nothing(tmp_path: Path) -> None:
    make(tmp_path, {"box": "1 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n", "polygon": "0 0.1 0.1 0.5 0.1 0.5 0.3 0.1 0.3\n", "empty": ""})
    box, polygon, empty = (data.read_labels(str(tmp_path / "images/train" / f"{n}.png"), 2) for n in ("box", "polygon", "empty"))
    assert box.classes.tolist() == [1.0]
    assert (box.height_px, box.width_px) == (30, 40)
    np.testing.assert_allclose(polygon.boxes_xywh, [[0.3, 0.2, 0.4, 0.2]], atol=1e-6)
    assert empty.boxes_xywh.shape == (0, 4)


def test_a_turned_photograph_has_the_size_that_it_is_decoded_to(tmp_path: Path) -> None:
    file = tmp_path / "images" / "turned.jpg"
    file.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    labels = data.read_labels(str(file), 1)
    assert (labels.height_px, labels.width_px) == (40, 30)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", r"a class must be a whole number in 0\.\.1"),
        ("0 5 5 1 1", r"box values must lie in 0\.\.1"),
        ("0 0.5 0.5 0.1", "or a polygon, but it has 4 columns"),
        ("zero 0.5 0.5 0.1 0.1", "a label row must be numbers"),
        ("0 nan 0.5 0.1 0.1", r"box values must lie in 0\.\.1"),
    ],
)
def test_wrong_labels_are_named_with_their_file(tmp_path: Path, row: str, message: str) -> None:
    make(tmp_path, {"x": row})
    with pytest.raises(DataError, match=message) as caught:
        data.read_labels(str(tmp_path / "images/train/x.png"), 2)
    assert "x.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val: images\nnames: [a]\n", "key `train` must name images"),
        ("train: nowhere\nval: images\nnames: [a]\n", "does not; correct `path` or `train`"),
        ("train: images/train\nval: images/train\n", "`names` must list the classes"),
        ("train: images/train\nval: images/train\nnames: {0: a, 2: b}\n", r"must number the classes 0\.\.1"),
        ("train: images/train\nval: images/train\nnames: [a]\nnc: 3\n", "nc=3 and 1 names"),
        ("train: labels\nval: images/train\nnames: [a]\n", "must hold images"),
        ("[1, 2]\n", "must map keys to values"),
        ("train: images/train\nval: images/train\nnames: {0: a, b: c}\n", "must number the classes"),
        ("a: [1\n", "must be plain YAML"),
    ],
)
def test_a_wrong_yaml_gets_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    make(tmp_path, {"x": ""})
    with pytest.raises(DataError, match=message) as caught:
        data.load(write_yaml(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_yaml_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give --data a path"):
        data.load(tmp_path / "none.yaml")


def test_the_split_is_stratified_seeded_and_whole(tmp_path: Path) -> None:
    common, rare = "0 0.5 0.5 0.1 0.1\n", "1 0.5 0.5 0.1 0.1\n"
    make(tmp_path, {f"{i:03d}": common + (rare if i % 10 == 0 else "") for i in range(100)})
    labels = [data.read_labels(image, 2) for image in data.load(write_yaml(tmp_path)).train]
    train, search_val = data.split_search_val(labels, 0.2, seed=3)
    assert (len(train), len(search_val)) == (80, 20)
    assert not set(train) & set(search_val)
    assert sum(Path(name).stem.endswith("0") for name in search_val) == 2
    assert data.split_search_val(labels[::-1], 0.2, seed=3) == (train, search_val)
    assert data.split_search_val(labels, 0.2, seed=4) != (train, search_val)


def test_a_linked_image_keeps_the_labels_beside_the_link(tmp_path: Path) -> None:
    make(tmp_path, {"x": "0 0.5 0.5 0.1 0.1"})
    store = tmp_path / "store.png"
    (tmp_path / "images/train/x.png").rename(store)
    (tmp_path / "images/train/x.png").symlink_to(store)
    (tmp_path / "all.txt").write_text("./images/train/x.png\n")
    for text in ("train: images/train", "train: all.txt"):
        found = data.load(write_yaml(tmp_path, f"{text}\nval: all.txt\nnames: [a]\n"))
        assert len(data.read_labels(found.train[0], 1).classes) == 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_split_without_one_side_is_refused(tmp_path: Path, share: float) -> None:
    make(tmp_path, {"x": "", "y": ""})
    labels = [data.read_labels(image, 2) for image in data.load(write_yaml(tmp_path)).train]
    with pytest.raises(DataError, match="change search_val"):
        data.split_search_val(labels, share, seed=0)


def test_the_fingerprint_follows_labels_and_not_places(tmp_path: Path) -> None:
    for name in ("here", "there"):
        make(tmp_path / name, {"x": "0 0.5 0.5 0.1 0.1"})
    first, second = ([data.read_labels(str(tmp_path / n / "images/train/x.png"), 2)] for n in ("here", "there"))
    assert data.fingerprint(first, ["a"]) == data.fingerprint(second, ["a"]) != data.fingerprint(second, ["b"])
    make(tmp_path / "there", {"x": "0 0.5 0.5 0.1 0.2"})
    changed = [data.read_labels(str(tmp_path / "there/images/train/x.png"), 2)]
    assert data.fingerprint(first, ["a"]) != data.fingerprint(changed, ["a"])


@pytest.mark.skipif(not BCCD.is_file(), reason="the blood-cell data set is not beside the repository")
def test_real_photographs_split_with_every_class_and_stay_untouched() -> None:
    before = {f: f.stat().st_mtime_ns for f in BCCD.parent.rglob("*")}
    found = data.load(BCCD)
    labels = [data.read_labels(image, len(found.names)) for image in found.train]
    _, search_val = data.split_search_val(labels, 0.2, seed=0)
    by_image = {item.image: item for item in labels}
    boxes = Counter(int(c) for name in search_val for c in by_image[name].classes)
    assert (len(found.train), len(found.val), len(search_val)) == (291, 73, 58)
    assert all(boxes[c] >= 40 for c in range(3))
    assert {f: f.stat().st_mtime_ns for f in BCCD.parent.rglob("*")} == before
