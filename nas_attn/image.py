"""An image file's size, and whether the file is whole, from its headers: no pixel is decoded and nothing is written.

A copy that broke off is the commonest fault of a data set. Ultralytics writes such JPEGs anew in place, half grey; here they are refused.
"""

import os
import struct
import warnings
from pathlib import Path
from typing import IO, Any

from PIL import ExifTags, Image, UnidentifiedImageError

from nas_attn.errors import DataError

FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
"""Pillow reads forty more, which no detector's images are in; each is code that reads strangers' files."""
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_SCAN = 0xDA
_STRIPS = ((273, 279), (324, 325))
"""Tags of a TIFF: where its strips, or its tiles, begin and how many bytes each has."""
_TURNED = frozenset({5, 6, 7, 8})


def size(image: str) -> tuple[int, int]:
    """Height and width in pixels, as decoded.

    Raises:
        DataError: no image, an image without its end, or one whose header lies.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a size that can only be an attack, or of a header that lies
            with Path(image).open("rb") as stream, Image.open(stream, formats=FORMATS) as picture:
                width_px, height_px = picture.size
                if not _is_whole(stream, picture):
                    raise OSError("it ends before its last pixel")
                # Pillow turns the size of a TIFF by itself.
                orientation = picture.getexif().get(ExifTags.Base.Orientation, 1) if picture.format != "TIFF" else 1
    except (UnidentifiedImageError, ImportError) as error:  # Ultralytics, once imported, asks for a HEIF reader that is not installed
        known = ", ".join(FORMATS)
        raise DataError(
            f"Every image must be readable, but {image} is no image of a known kind ({known}); convert it, or remove it from the split."
        ) from error
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, struct.error, Warning, _BOMB) as error:
        # What Pillow's readers raise where a header is not what they take it for.
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"Every image must be readable, but {image} is not ({reason.rstrip('.')}); copy it again, or remove it from the split."
        ) from error
    return (width_px, height_px) if orientation in _TURNED else (height_px, width_px)


_BOMB = Image.DecompressionBombError


def _is_whole(stream: IO[bytes], picture: Any) -> bool:
    """Whether the last pixel is in the file; the stream stands where it stood, for Pillow reads on from there."""
    here = stream.tell()
    try:
        return _has_end(stream, picture)
    finally:
        stream.seek(here)


def _has_end(stream: IO[bytes], picture: Any) -> bool:
    """By the rules of its format; of a WebP Pillow itself has asked that."""
    length = stream.seek(0, os.SEEK_END)
    if picture.format == "TIFF":
        tags = picture.tag_v2
        return all(
            at + count <= length for start, counts in _STRIPS for at, count in zip(tags.get(start, ()), tags.get(counts, ()), strict=False)
        )
    if picture.format == "BMP":
        return all(codec != "raw" or at + args[1] * picture.height <= length for codec, _, at, args in picture.tile)
    stream.seek(0)
    start = stream.read(len(_PNG))
    if start == _PNG:
        return _png_ends(stream)
    return not start.startswith(_JPEG) or _jpeg_ends(stream, length)


def _png_ends(stream: IO[bytes]) -> bool:
    """Whether the last chunk and its checksum are there: chunks are stepped over from one head to the next."""
    while len(head := stream.read(8)) == 8:
        if head[4:] == b"IEND":
            return len(stream.read(4)) == 4
        stream.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


def _jpeg_ends(stream: IO[bytes], length: int) -> bool:
    """Whether the end's marker follows the pixels: as a rule they are the last two bytes, but some cameras write more behind them."""
    stream.seek(length - 2)
    if stream.read(2) == _JPEG_END:
        return True
    stream.seek(len(_JPEG))
    while len(head := stream.read(4)) == 4 and head[0] == 0xFF:
        if head[1] == _SCAN:  # a thumbnail in the segments before has an end of its own
            return _JPEG_END in stream.read()
        stream.seek(int.from_bytes(head[2:], "big") - 2, os.SEEK_CUR)
    return False
