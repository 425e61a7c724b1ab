"""`pool_targets`, of which the first import fails, as on a GPU that is broken; `FIRST_START` names the file that tells whether it was."""

import contextlib
import os
from pathlib import Path

from pool_targets import serve

__all__ = ["serve"]

with contextlib.suppress(FileExistsError):
    Path(os.environ["FIRST_START"]).touch(exist_ok=False)
    raise RuntimeError("CUDA error: simulated")
