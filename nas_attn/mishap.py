"""What went wrong within a worker, and whether the candidate can be blamed: lack of memory, a device that has failed, data that is away.

A failure that is not the candidate's must not become its outcome: a search would tell good architectures FAIL for as long as a network
folder is away, and a process whose CUDA context is broken would fail every task that it is given afterwards.
"""

import errno
import gc
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from nas_attn.errors import Unavailable, Unfit
from nas_attn.work import DISK

ROOM = 2**28
"""Bytes: what a training writes at once has room in this."""
LOOKED_AT = 64
"""Images, from all over a list, that must be there for the data set to count as there."""


def lacks_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, the device's or the machine's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Gives back what a failed training holds, for the next task of this process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def require_device(error: BaseException, device: str) -> None:
    """Raises Unfit where an error says that this process can compute on its GPU no more: CUDA's errors but lack of memory stay for good."""
    if device != "cpu" and not lacks_memory(error) and (isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)):
        raise Unfit(f"A worker's GPU must work, but: {' '.join(str(error).split())[:300]}") from error


def require_disk(error: BaseException, folder: str) -> None:
    """Raises OSError where a training broke because its folder took no more: torch tells of a full disk in words of its own."""
    if isinstance(error, OSError) and error.errno in DISK:
        raise error
    if shutil.disk_usage(folder).free < ROOM and "PytorchStreamWriter" in str(error):
        raise OSError(errno.ENOSPC, "no space left on device", folder) from error


def require_data(lists: Iterable[str]) -> None:
    """Raises Unavailable where images of the lists are not there: a folder that is away, or that is being copied."""
    for name in lists:
        images = Path(name).read_text(encoding="utf-8").split("\n") if Path(name).is_file() else [name]
        images = [image for image in images if image]
        some = images[:: max(1, len(images) // LOOKED_AT)]
        missing = [image for image in some if not Path(image).is_file()]
        if missing:
            raise Unavailable(
                f"The data set must stay where it is, but {len(missing)} of {len(some)} images looked at are not: {missing[0]}"
            )
