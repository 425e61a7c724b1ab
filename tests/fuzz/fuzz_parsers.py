"""Fuzzes what reads users' files, and keeps what it found: each way in which an input is refused or breaks a parser, minimized.

    python tests/fuzz/fuzz_parsers.py --target space --engine hypothesis --minutes 3 --out fuzz
    python tests/fuzz/fuzz_parsers.py --target space --engine atheris --minutes 3 --out fuzz
    python tests/fuzz/fuzz_parsers.py --show --out fuzz

A parser must return or raise InputError with printable lines that name the file, within a few seconds of its own time and a GiB of memory,
and leave no file behind; all else is `broken`. The same command goes on where the last one ended. `hypothesis` edits good inputs (a value,
a key, a leaf, a line, a byte); `atheris` (libFuzzer, `pip install nas-attn[fuzz]`) is guided by the branches of `nas_attn` and PyYAML that
an input reaches. `keep.py` makes finds entries of `tests/corpus/found`; the README beside this file walks through it. Exit code 1 if
anything is broken.
"""

import argparse
import contextlib
import functools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")

ENGINES = ("hypothesis", "atheris")
MEMORY_BYTES = 16 << 30
"""Of addresses, which torch alone takes several GiB of: a parser that asks for more than that breaks with MemoryError."""
SAVE_EVERY = 200
EXAMPLES = 300


def main() -> None:
    """Parse, fuzz, say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="all", help="one of tests/fuzz/targets.py, several by commas, or all")
    parser.add_argument("--engine", choices=ENGINES, default="hypothesis")
    parser.add_argument("--minutes", type=float, default=3.0, help="for each target; shrinking comes on top")
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--show", action="store_true", help="only print what earlier runs saw")
    options = parser.parse_args()
    options.out = options.out.absolute()
    if not options.show:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        options.out.mkdir(parents=True, exist_ok=True)
        fuzz(options.engine, options.target, options.minutes * 60, options.out)
    sys.exit(show(options.out))


def fuzz(engine: str, names: str, seconds: float, out: Path) -> None:
    """Each target in a process of its own, which libFuzzer ends as it likes; what is read takes a while to import, and is imported once."""
    if engine == "atheris":
        _instrument()
    from targets import TARGETS, quicken

    quicken()
    for name in TARGETS if names == "all" else names.split(","):
        if (child := os.fork()) == 0:
            {"hypothesis": run_hypothesis, "atheris": run_atheris}[engine](name, seconds, out)
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{name} {engine}: ended with {os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def show(out: Path) -> int:
    """One line a verdict; 1 if any is `broken`."""
    broken = 0
    for file in sorted(out.glob("*.json")):
        kept = json.loads(file.read_text())
        bad = [entry for entry in kept["seen"].values() if entry["kind"] == "broken"]
        broken += len(bad)
        sys.stdout.write(f"{file.stem}: {kept['executions']} executions, {kept['seconds']:.0f} s, {len(kept['seen'])} verdicts\n")
        for entry in bad:
            sys.stdout.write(f"  broken: {entry['key']}: {entry['message'][:120]}\n")
    return 1 if broken else 0


def run_hypothesis(name: str, seconds: float, out: Path) -> None:
    """Rounds of edited inputs, each from its own seed; Hypothesis shrinks what breaks."""
    import hypothesis
    from edits import inputs
    from ledger import BROKEN, Ledger, judge
    from targets import TARGETS

    target, ledger = TARGETS[name], Ledger.open(out / f"{name}-hypothesis.json")
    until = time.monotonic() + seconds

    class Broken(Exception):  # noqa: N818 - a verdict, which Hypothesis shrinks
        pass

    with _folder():
        drawn = inputs(target.seeds(), target.drawn())
        while time.monotonic() < until:
            ledger.rounds += 1
            known = {key for key, entry in ledger.seen.items() if entry["kind"] == BROKEN}

            @hypothesis.seed(ledger.rounds)
            @hypothesis.settings(max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
            @hypothesis.given(drawn)
            def one(content: bytes) -> None:
                verdict = judge(target, content)
                ledger.note(verdict, content)
                if verdict is not None and verdict.kind == BROKEN and verdict.key not in known:  # noqa: B023 - called in this round only
                    raise Broken(verdict.key)

            with contextlib.suppress(Broken, hypothesis.errors.Flaky, ExceptionGroup):
                one()
            ledger.save()
        ledger.shrink(functools.partial(judge, target))
        ledger.save()


def run_atheris(name: str, seconds: float, out: Path) -> None:
    """libFuzzer over the instrumented parsers; its own corpus lies beside the ledger, so that a later run goes on from it."""
    import atheris
    from edits import mutated
    from ledger import Ledger, judge
    from targets import TARGETS

    target, ledger = TARGETS[name], Ledger.open(out / f"{name}-atheris.json")
    corpus = out / f"{name}-corpus"
    corpus.mkdir(exist_ok=True)
    words = out / f"{name}.dict"
    words.write_text(_dictionary())
    until = time.monotonic() + seconds
    with _folder():
        for number, content in enumerate(target.seeds()):
            (corpus / f"seed-{number}").write_bytes(content)

        def one(content: bytes) -> None:
            if time.monotonic() > until:  # libFuzzer ends the process without a word to Python
                ledger.shrink(functools.partial(judge, target))
                ledger.save()
                os._exit(0)
            if ledger.note(judge(target, content), content) or ledger.executions % SAVE_EVERY == 0:
                ledger.save()

        arguments = [
            f"-timeout={int(seconds) + 3600}",
            "-rss_limit_mb=0",
            "-max_len=65536",
            "-verbosity=0",
            f"-artifact_prefix={corpus}/",
            f"-dict={words}",
        ]

        def other(content: bytes, largest: int, seed: int) -> bytes:
            return mutated(content, largest, seed, atheris.Mutate)

        atheris.Setup([sys.argv[0], *arguments, str(corpus)], one, custom_mutator=other)
        atheris.Fuzz()


def _instrument() -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("Coverage-guided fuzzing needs atheris, but it is not installed; run: pip install 'nas-attn[fuzz]'")
    with atheris.instrument_imports(include=["nas_attn", "yaml"]):
        import targets  # noqa: F401


def _dictionary() -> str:
    from edits import HOSTILE

    words = (word for word in HOSTILE if 0 < len(word) <= 64)
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)


@contextlib.contextmanager
def _folder() -> Iterator[None]:
    """A current folder of good files, two levels deep, so that `..` is its own as well."""
    from refusals import prepare

    with tempfile.TemporaryDirectory(prefix="nas-attn-fuzz-") as name:
        folder = Path(name) / "a" / "b"
        folder.mkdir(parents=True)
        prepare(folder)
        with contextlib.chdir(folder):
            yield


if __name__ == "__main__":
    main()
