"""What travels with a pool's tasks between the driver and workers that do not see the study's folder, by Ray's object store."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from nas_attn.carry import deliver, leave_mark, needed
from nas_attn.errors import PoolError
from nas_attn.work import Done, Task


class Freight:
    """For one study's folder; None where nothing travels."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder.resolve() if folder is not None else None
        self.mark = leave_mark(self.folder) if self.folder is not None else ""
        self._shipped: dict[str, tuple[tuple[int, int], Any]] = {}

    def files(self, task: Task) -> tuple[str, ...]:
        """The driver's files that a task reads."""
        return () if self.folder is None else needed(task.payload, self.folder, task.needs)

    def ship(self, paths: tuple[str, ...], flying: Container[str]) -> list[Any]:
        """The contents of files in the object store, each put there once for all workers. What no task reads that is `flying` is let go:
        every checkpoint would stay there for as long as the search.
        """
        self._shipped = {path: kept for path, kept in self._shipped.items() if path in flying or path in paths}
        return [self._ship(path) for path in paths]

    def unload(self, done: Done, files: Mapping[str, bytes]) -> Done:
        """The end of a task, once what its worker brought is in the study's folder."""
        if self.folder is None or not files:
            return done
        try:
            deliver(self.folder, files)
        except (OSError, PoolError) as error:
            cause = "disk" if isinstance(error, OSError) else "answer"
            return Done(done.key, None, f"what it wrote could not be kept: {error}", cause)
        return done

    def _ship(self, path: str) -> Any:
        import ray

        state = Path(path).stat()
        version = (state.st_mtime_ns, state.st_size)
        if self._shipped.get(path, (None, None))[0] != version:
            self._shipped[path] = (version, ray.put(Path(path).read_bytes()))
        return self._shipped[path][1]
