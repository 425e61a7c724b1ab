"""What a candidate is not to blame for."""

import errno
from types import SimpleNamespace

import pytest
import torch

from nas_attn import mishap
from nas_attn.errors import Unavailable, Unfit


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_lack_of_memory_is_known_by_its_kinds(error, lacks):
    assert mishap.lacks_memory(error) is lacks


def test_a_broken_device_is_told_from_a_broken_candidate():
    broken = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(Unfit, match="GPU must work, but: CUDA error: an illegal"):
        mishap.require_device(broken, "cuda:0")
    mishap.require_device(broken, "cpu")
    mishap.require_device(RuntimeError("shapes do not fit"), "cuda:0")
    mishap.require_device(torch.OutOfMemoryError("CUDA out of memory"), "cuda:0")


def test_images_that_are_gone_are_nobody_s_failure(tmp_path):
    images = [tmp_path / f"{number}.jpg" for number in range(200)]
    for image in images:
        image.touch()
    (tmp_path / "train.txt").write_text("".join(f"{image}\n" for image in images))
    mishap.require_data([str(tmp_path / "train.txt")])
    for image in images[100:]:
        image.unlink()
    with pytest.raises(Unavailable, match=r"33 of 67 images looked at are not: .*102\.jpg"):
        mishap.require_data([str(tmp_path / "train.txt")])
    with pytest.raises(Unavailable, match=r"none\.txt"):
        mishap.require_data([str(tmp_path / "none.txt")])


def test_a_full_disk_is_told_from_a_broken_candidate(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="full"):
        mishap.require_disk(OSError(errno.ENOSPC, "full"), str(tmp_path))
    torn = RuntimeError("[enforce fail at inline_container.cc:664] PytorchStreamWriter failed writing file data/3")
    mishap.require_disk(torn, str(tmp_path))
    monkeypatch.setattr(mishap.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="no space left"):
        mishap.require_disk(torn, str(tmp_path))
    mishap.require_disk(RuntimeError("shapes do not fit"), str(tmp_path))
