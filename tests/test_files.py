"""Whole files: what a failed write leaves, and in which order the disk is told."""

import os

import pytest

from nas_attn import files
from nas_attn.files import write_atomic


def test_a_file_is_replaced_at_once_and_its_folder_is_made(tmp_path):
    file = tmp_path / "a" / "b.json"
    for text in ("one", "two"):
        write_atomic(file, lambda target, text=text: target.write_text(text))
        assert file.read_text() == text
    assert [path.name for path in file.parent.iterdir()] == ["b.json"]


def test_a_write_that_fails_leaves_the_former_file(tmp_path):
    def torn(target):
        target.write_text("half")
        raise OSError("disk full")

    write_atomic(tmp_path / "a", lambda target: target.write_text("whole"))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "a", torn)
    assert (tmp_path / "a").read_text() == "whole"


def test_the_text_is_on_the_disk_before_its_name_and_then_the_folder(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files, "_fsync", lambda path: seen.append((path.name, (tmp_path / "a").exists())))
    write_atomic(tmp_path / "a", lambda target: target.write_text("x"))
    assert seen == [(f".a.{os.getpid()}", False), (tmp_path.name, True)]
