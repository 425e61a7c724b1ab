"""Functions that workers serve in tests/test_pool.py; workers import this file by name."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from nas_attn.errors import Unavailable

calls = 0


def serve(kind: str, payload: str) -> str:
    """Do what `kind` says; every answer tells the process and how many tasks it has had."""
    global calls  # noqa: PLW0603
    calls += 1
    data = json.loads(payload)
    extra = _KINDS[kind](data)
    return extra if isinstance(extra, str) else json.dumps({"pid": os.getpid(), "calls": calls, **extra})


def _echo(data: dict[str, Any]) -> dict[str, Any]:
    return {"echo": data}


def _environment(data: dict[str, Any]) -> dict[str, Any]:
    return {name: os.environ.get(name) for name in data["names"]}


def _sleep(data: dict[str, Any]) -> dict[str, Any]:
    """Sleep, and tell from when to when on the machine's monotonic clock."""
    begin = time.monotonic()
    Path(data["pid_file"]).write_text(str(os.getpid())) if "pid_file" in data else None
    time.sleep(data["seconds"])
    return {"begin": begin, "end": time.monotonic()}


def _meet(data: dict[str, Any]) -> dict[str, Any]:
    """Wait until that many tasks are at work at the same time."""
    Path(data["folder"], str(os.getpid())).touch()
    while len(list(Path(data["folder"]).iterdir())) < data["count"]:
        time.sleep(0.1)
    return {"node": Path(f"/proc/{os.getppid()}").name}


def _stop(_data: dict[str, Any]) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGSTOP)
    return {}


def _die(_data: dict[str, Any]) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _die_first(data: dict[str, Any]) -> dict[str, Any]:
    """Die, unless that was done before."""
    try:
        Path(data["file"]).touch(exist_ok=False)
    except FileExistsError:
        return {}
    return _die(data)


def _need(data: dict[str, Any]) -> dict[str, Any]:
    """Do without what is away for now."""
    if not Path(data["file"]).exists():
        raise Unavailable(f"{data['file']} is away")
    return {}


def _keep(data: dict[str, Any]) -> dict[str, Any]:
    """Keep one checkpoint at once and one when told to, as a training does, and say after each which process it was."""
    for number in (1, 2):
        folder = Path(data["folder"], str(number))
        folder.mkdir(parents=True)
        (folder / "checkpoint.pt").write_text(f"kept {number}")
        Path(f"{data['kept']}{number}").write_text(str(os.getpid()))
        while not Path(data["told"]).exists():
            time.sleep(0.05)
    time.sleep(60)
    return {}


def _fail(data: dict[str, Any]) -> dict[str, Any]:
    raise LookupError(data["text"])


def _exit(_data: dict[str, Any]) -> dict[str, Any]:
    sys.exit(3)


def _raw(data: dict[str, Any]) -> str:
    return str(data["text"]) * data.get("times", 1)


def _interrupt(_data: dict[str, Any]) -> dict[str, Any]:
    raise KeyboardInterrupt


def _gpu_sum(data: dict[str, Any]) -> dict[str, Any]:
    """Compute on the GPU for so long."""
    import torch

    begin = time.monotonic()
    while time.monotonic() < begin + data["seconds"]:
        torch.ones(1000, device="cuda").sum().item()
    return {"begin": begin, "end": time.monotonic()}


def _break_gpu(_data: dict[str, Any]) -> dict[str, Any]:
    """Break this process's CUDA context: an index beyond its tensor fails on the device, and everything after it fails as well."""
    import torch

    from nas_attn.mishap import require_device

    try:
        print(torch.zeros(2, device="cuda")[torch.tensor([5], device="cuda")].item())  # noqa: T201
    except Exception as error:
        require_device(error, "cuda:0")
    return {}


_KINDS = {
    "gpu_sum": _gpu_sum,
    "break_gpu": _break_gpu,
    "echo": _echo,
    "environment": _environment,
    "sleep": _sleep,
    "meet": _meet,
    "stop": _stop,
    "die": _die,
    "die_first": _die_first,
    "need": _need,
    "keep": _keep,
    "fail": _fail,
    "exit": _exit,
    "raw": _raw,
    "interrupt": _interrupt,
}


def not_text(_kind: str, _payload: str) -> Any:
    """Break the rule that results are text."""
    return 3


not_callable = 3
