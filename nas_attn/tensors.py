"""The one place that reads files of torch: tensors and plain values only, nothing in them is executed."""

import re
from pathlib import Path
from typing import Any

import torch

from nas_attn.errors import InputError

OLDEST = (2, 10)
"""Of torch: before, files could execute code in spite of `weights_only` (CVE-2025-32434, CVE-2026-24747)."""


def require_torch() -> None:
    """Refuse a torch whose safe loading is not safe.

    Raises:
        InputError: says so.
    """
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found is None or tuple(map(int, found.groups())) < OLDEST:
        raise InputError(
            f"Reading weights needs torch {OLDEST[0]}.{OLDEST[1]} or later, for older ones let a file execute code, but this is "
            f"{torch.__version__}; pip install -U torch."
        )


def read_tensors(file: Path | str) -> Any:
    """What `torch.save` wrote, on the CPU, if it holds tensors and plain values.

    Raises:
        InputError: a torch that is too old for that.
    """
    require_torch()
    return torch.load(file, map_location="cpu", weights_only=True)
