"""An image is whole to its last pixel or it is refused, and no file is touched."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas_attn import image
from nas_attn.errors import DataError

KINDS = (
    ("PNG", {}),
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
)


def encoded(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_no_cut_copy_passes_for_an_image(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    file, whole = tmp_path / "a.png", encoded(kind, **options)
    file.write_bytes(whole)
    assert image.size(str(file)) == (12, 16)
    assert file.read_bytes() == whole
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.png is .*remove it from the split"):
            image.size(str(file))


@pytest.mark.parametrize("behind", [b"", b"\0" * 300, encoded("JPEG")])
def test_what_a_camera_writes_behind_a_jpeg_does_no_harm(tmp_path: Path, behind: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG") + behind)
    assert image.size(str(tmp_path / "a.jpg")) == (12, 16)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9".encode("latin-1").decode("latin-1") * 3
    whole = encoded("JPEG", exif=b"Exif\0\0" + exif.tobytes()[6:] + b"\xff\xd9" * 3)
    (tmp_path / "a.jpg").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="it ends before its last pixel"):
        image.size(str(tmp_path / "a.jpg"))


def test_a_kind_that_no_detector_reads_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("GIF"))
    with pytest.raises(DataError, match="no image of a known kind"):
        image.size(str(tmp_path / "a.png"))
